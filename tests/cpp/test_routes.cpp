// Every route gives the answer of the plain one, to the bit, on small problems made to be hard: ties, duplicates, rows
// that differ in their last digits, zero rows, closing and reopening groups, extreme norms, several targets at once.
#include "check.hpp"
#include "instance.hpp"

using namespace pysubmod;
using dense::Random;

namespace {

constexpr Route kRoutes[] = {Route::automatic, Route::plain, Route::columns, Route::draft};

struct StopAfter : Monitor {
    Index picks;
    explicit StopAfter(Index n) : picks(n) {}
    bool picked(const Progress& progress) override { return picks > 0 && progress.n_selected >= picks; }
};

struct Case {
    Instance instance;
    std::vector<std::vector<double>> targets;
    Options options;
    Index stop_after;  // 0: never
    bool narrow;       // stored as float32, which holds all numbers
};

// What a route made of it: solutions, or the error's words.
struct Outcome {
    std::vector<Solution> solutions;
    std::string error;
};

double magnitude(Random& random, double lowest, double highest) {
    return std::pow(10.0, random.uniform(lowest, highest));
}

std::vector<double> hard_row(Random& random, int family, std::size_t d,
                             const std::vector<std::vector<double>>& before) {
    std::vector<double> x = random.normals(d);
    if (family == 1)
        for (double& v : x) v = static_cast<double>(random.below(3)) - 1.0;
    if (family == 2)
        for (double& v : x) v = 1.0 + 0.05 * v;
    if (family == 3 && !before.empty() && random.chance(0.6)) {
        const double apart = random.chance(0.5) ? magnitude(random, -14, -3) : 0.0;
        const auto& like = before[random.below(before.size())];
        for (std::size_t k = 0; k < d; ++k) x[k] = like[k] + apart * x[k];
    }
    if (family == 4) {
        const double length = magnitude(random, -3, 3);
        for (double& v : x) v *= length;
    }
    if (family == 5) {
        x.assign(d, 0.0);
        x[random.below(d)] = random.chance(0.5) ? 1.0 : -1.0;
        if (random.chance(0.5)) x[random.below(d)] += 1.0;
    }
    if (random.chance(0.05)) x.assign(d, 0.0);
    return x;
}

std::vector<double> hard_target(Random& random, std::size_t d, const std::vector<std::vector<double>>& rows) {
    std::vector<double> t = random.normals(d);
    if (random.chance(0.02)) t.assign(d, 0.0);
    if (rows.empty() || random.chance(0.3)) return t;
    if (random.chance(0.5)) t.assign(d, 0.0);  // in the span of a few rows, up to rounding
    for (std::size_t parts = 1 + random.below(6); parts > 0; --parts) {
        const auto& row = rows[random.below(rows.size())];
        for (std::size_t k = 0; k < d; ++k) t[k] += row[k];
    }
    return t;
}

void constrain(Random& random, Instance& instance) {
    const std::size_t n_groups = 1 + random.below(random.chance(0.3) ? 8 : 3);
    instance.budgets.clear();
    for (std::size_t p = 0; p < n_groups; ++p)
        instance.budgets.push_back(static_cast<Index>(random.below(random.chance(0.5) ? 4 : 16)));
    for (auto& code : instance.groups) code = static_cast<std::int32_t>(random.below(n_groups));
    if (random.chance(0.3))
        for (std::size_t i = 0; i < instance.n(); ++i) instance.candidates.push_back(random.chance(0.8));
    if (!random.chance(0.3)) return;
    std::vector<Index> left = instance.budgets;
    for (std::size_t i = random.below(3); i < instance.n() && instance.initial.size() < 6; i += 1 + random.below(9))
        if (left[static_cast<std::size_t>(instance.groups[i])]-- > 0) instance.initial.push_back(static_cast<Index>(i));
}

Options hard_options(Random& random, double row_scale, double target_scale) {
    Options options;
    options.nonneg = random.chance(0.6);
    options.rule = static_cast<Rule>(random.below(3));
    if (random.chance(0.4)) options.ridge = row_scale * row_scale * magnitude(random, -6, 3);
    if (random.chance(0.3))
        options.tilt = (random.chance(0.7) ? 1.0 : -1.0) * target_scale / row_scale * magnitude(random, -3, 0);
    if (random.chance(0.2)) options.tol = magnitude(random, -9, 0);
    options.fill = random.chance(0.3);
    options.release_zeros = random.chance(0.4);
    options.swap = random.chance(0.1);
    return options;
}

Case hard_case(std::uint64_t seed) {
    Random random(seed);
    const std::size_t n = random.chance(0.1)   ? random.below(4)
                          : random.chance(0.1) ? 260 + random.below(300)
                                               : 2 + random.below(80);
    const std::size_t d = random.chance(0.03) ? 1020 + random.below(10) : 1 + random.below(30);
    const double row_scale = random.chance(0.3) ? magnitude(random, -18, 18) : 1.0;
    const double target_scale = random.chance(0.3) ? row_scale * magnitude(random, -6, 6) : 1.0;
    const int family = static_cast<int>(random.below(6));
    std::vector<std::vector<double>> rows, targets;
    for (std::size_t i = 0; i < n; ++i) rows.push_back(hard_row(random, family, d, rows));
    for (std::size_t m = random.chance(0.4) ? 1 + random.below(5) : 1; m > 0; --m)
        targets.push_back(hard_target(random, d, rows));
    for (auto& row : rows)
        for (double& x : row) x = static_cast<float>(row_scale * x);
    for (auto& target : targets)
        for (double& x : target) x *= target_scale;
    Case made{{rows, targets[0], 0}, targets, hard_options(random, row_scale, target_scale), 0, random.chance(0.5)};
    constrain(random, made.instance);
    if (random.chance(0.15)) made.stop_after = 1 + static_cast<Index>(random.below(5));
    return made;
}

Outcome solve_by(const Case& given, Route route, std::span<const std::vector<double>> targets,
                 const Execution& execution) {
    const Instance& instance = given.instance;
    const std::vector<double> wide = instance.flat();
    const std::vector<float> narrow(wide.begin(), wide.end());
    Problem problem;
    problem.rows = {block_of(wide, instance.n(), instance.d())};
    if (given.narrow)
        problem.rows = {{reinterpret_cast<const std::byte*>(narrow.data()), static_cast<Index>(instance.n()),
                         static_cast<std::ptrdiff_t>(4 * instance.d()), 4, Storage::float32}};
    Options options = given.options;
    options.route = route;
    StopAfter monitor(given.stop_after);
    const std::vector<std::span<const double>> views(targets.begin(), targets.end());
    Outcome outcome;
    try {
        outcome.solutions = solve_each_cpu(problem, views, instance.constraint(), options, execution, monitor);
    } catch (const InvalidArgument& error) {
        outcome.error = error.what();
    }
    return outcome;
}

}  // namespace

TEST_CASE(routes_agree_with_the_plain_one) {
    const std::vector<const char*> kernels = kernel_names();
    std::size_t n_by_columns = 0, n_by_drafts = 0;
    for (std::uint64_t seed = 1; seed <= 1500; ++seed) {
        const Case given = hard_case(seed);
        std::vector<Outcome> expected;
        bool fails = false;
        for (std::size_t t = 0; t < given.targets.size(); ++t) {
            expected.push_back(solve_by(given, Route::plain, std::span(given.targets).subspan(t, 1), {}));
            fails = fails || !expected[t].error.empty();
        }
        Random random(seed + 1000000);
        for (const Route route : kRoutes) {
            if (route == Route::columns && given.options.rule == Rule::greedy) continue;
            const Execution execution{random.chance(0.7) ? 1 : 3, 0.0, kernels[random.below(kernels.size())]};
            const Outcome got = solve_by(given, route, given.targets, execution);
            if (got.error.starts_with("route: ")) continue;  // norms that float32 cannot hold
            const int failures = check::failures;
            if (fails) {
                CHECK(std::ranges::any_of(
                    expected, [&](const Outcome& one) { return !one.error.empty() && one.error == got.error; }));
            } else {
                CHECK(got.error.empty() && got.solutions.size() == expected.size());
                for (std::size_t t = 0; t < got.solutions.size(); ++t)
                    CHECK(same_bits(got.solutions[t], expected[t].solutions[0]));
            }
            if (check::failures != failures)
                std::printf("     seed %d, route %d, kernels %s\n", static_cast<int>(seed), static_cast<int>(route),
                            execution.kernels);
            n_by_columns += !got.solutions.empty() && got.solutions[0].route == Route::columns;
            n_by_drafts += !got.solutions.empty() && got.solutions[0].route == Route::draft;
        }
    }
    CHECK(n_by_columns > 500 && n_by_drafts > 1000);
}

// Rows b = 2 e1 and a = e1 cannot both have weight: with a tilt the third pick is an error, but not the second.
TEST_CASE(a_draft_raises_nothing_that_the_pursuit_does_not_reach) {
    const std::size_t n = 200;
    std::vector<std::vector<double>> rows(n, std::vector<double>(n, 0.0));
    rows[0][0] = 1.0, rows[1][0] = 2.0, rows[2][1] = 1.0;
    for (std::size_t i = 3; i < n; ++i) rows[i][i] = 0.01;
    std::vector<double> target(n, 0.0);
    target[0] = target[1] = 1.0;
    Case given{{rows, target, 8}, {target}, {}, 2, false};
    given.options.tilt = 0.5;
    given.options.nonneg = false;
    for (const Route route : kRoutes) {
        const Outcome got = solve_by(given, route, given.targets, {});
        CHECK(got.error.empty() && got.solutions[0].indices == std::vector<Index>{1, 2});
    }
    given.stop_after = 0;
    for (const Route route : kRoutes)
        CHECK(solve_by(given, route, given.targets, {}).error.find("row 0 depends linearly") != std::string::npos);
}

TEST_CASE(targets_that_share_passes_stop_for_themselves) {
    Random random(7);
    Case given{{{}, {}, 0}, {}, {}, 3, false};
    for (int i = 0; i < 60; ++i) given.instance.rows.push_back(random.normals(40));
    for (int t = 0; t < 4; ++t) given.targets.push_back(random.normals(40));
    given.instance.target = given.targets[0];
    given.instance.groups.assign(60, 0);
    given.instance.budgets = {20};
    for (const Route route : kRoutes)
        for (const Solution& solution : solve_by(given, route, given.targets, {}).solutions)
            CHECK(solution.indices.size() == 3 && solution.status == Status::stopped);
}

TEST_CASE(a_tilt_that_float32_holds_to_one_digit_only) {
    for (std::uint64_t seed = 1; seed <= 40; ++seed) {
        Random random(seed);
        std::vector<std::vector<double>> rows(150);
        for (auto& row : rows) row = {5e-19 * random.normal(), 5e-19 * random.normal(), 5e-19 * random.normal()};
        const std::vector<double> target = {2e-23, -1e-23, 1e-23};
        Case given{{rows, target, 10}, {target}, {}, 0, false};
        given.options.tilt = seed % 2 ? 3e-7 : -3e-7;
        given.options.ridge = 1e-36;
        const Outcome expected = solve_by(given, Route::plain, given.targets, {});
        for (const Route route : kRoutes)
            CHECK(same_bits(solve_by(given, route, given.targets, {}).solutions.at(0), expected.solutions.at(0)));
    }
}

TEST_CASE(no_rows_at_all) {
    const Case given{{{}, {1.0, 2.0}, 3}, {{1.0, 2.0}}, {}, 0, false};
    for (const Route route : kRoutes) {
        const Outcome got = solve_by(given, route, given.targets, {});
        CHECK(got.error.empty() && got.solutions[0].indices.empty() && got.solutions[0].status == Status::exhausted);
    }
}
