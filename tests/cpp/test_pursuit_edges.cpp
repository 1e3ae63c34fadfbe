// Empty and degenerate problems, bad numbers, interruptions, and several solves at once.
#include <atomic>
#include <chrono>
#include <limits>
#include <stdexcept>
#include <thread>

#include "check.hpp"
#include "instance.hpp"

using namespace pysubmod;
using dense::Random;

namespace {

using Indices = std::vector<Index>;

std::vector<std::vector<double>> random_rows(Random& random, std::size_t n, std::size_t d) {
    std::vector<std::vector<double>> rows;
    for (std::size_t i = 0; i < n; ++i) rows.push_back(random.normals(d));
    return rows;
}

Instance random_instance(std::uint64_t seed, std::size_t n, std::size_t d, Index budget) {
    Random random(seed);
    auto rows = random_rows(random, n, d);
    return {rows, random.normals(d), budget};
}

Options with(Rule rule, bool nonneg, bool fill = false) {
    Options options;
    options.rule = rule;
    options.nonneg = nonneg;
    options.fill = fill;
    return options;
}

std::vector<Options> every_rule() {
    std::vector<Options> all;
    for (const Rule rule : {Rule::omp, Rule::normalized, Rule::greedy})
        for (const bool nonneg : {true, false}) all.push_back(with(rule, nonneg));
    return all;
}

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

}  // namespace

TEST_CASE(no_rows) {
    for (const Options& options : every_rule()) {
        Instance instance({}, {1.0, 2.0, 3.0}, 2);
        const Solution nothing = solve(instance, options);
        CHECK(nothing.indices.empty() && nothing.weights.empty() && nothing.objective == 0.0);
        CHECK(nothing.status == Status::exhausted);
        instance.budgets = {};
        CHECK(solve(instance, options).status == Status::budget);
    }
}

TEST_CASE(no_columns) {
    for (Options options : every_rule()) {
        const Instance instance({{}, {}, {}}, {}, 2);
        CHECK(solve(instance, options).status == Status::no_gain);
        options.fill = true;
        CHECK(solve(instance, options).indices == Indices({0, 1}));
    }
}

TEST_CASE(no_budget) {
    for (const Options& options : every_rule()) {
        const Solution nothing = solve(random_instance(1, 5, 3, 0), options);
        CHECK(nothing.indices.empty() && nothing.status == Status::budget);
        CHECK_CLOSE(nothing.objective, 0, 0);
    }
}

TEST_CASE(one_number) {
    for (const Options& options : every_rule()) {
        const Solution up = solve({{{2.0}}, {3.0}, 1}, options);
        CHECK(up.indices == Indices{0} && up.status == Status::budget);
        CHECK(up.weights == std::vector<double>{1.5} && up.objective == 4.5 && up.gains[0] == 4.5);
        CHECK(up.residual_norms[0] == 0.0 && up.target_norm == 3.0 && up.scale == 3.0);
        const Solution down = solve({{{-2.0}}, {3.0}, 1}, options);
        CHECK(down.indices.empty() == options.nonneg);
        if (!options.nonneg) CHECK(down.weights == std::vector<double>{-1.5} && down.objective == 4.5);
    }
}

TEST_CASE(one_column) {  // after the first pick nothing is left to explain
    for (const Options& options : every_rule()) {
        const Solution solution = solve({{{1.0}, {3.0}, {-2.0}, {3.0}}, {1.0}, 3}, options);
        CHECK(solution.indices.size() == 1 && solution.status == Status::no_gain);
        if (options.rule == Rule::omp)
            CHECK(solution.indices == Indices{1});  // the largest product, the lowest index
        else
            CHECK(solution.indices == Indices{0});  // all equal: the lowest index
        CHECK_CLOSE(solution.objective, 0.5, 1e-15L);
    }
}

TEST_CASE(zero_rows_and_zero_target) {
    for (Options options : every_rule()) {
        Instance instance({{0, 0}, {1, 0}, {0, 0}, {0, 1}}, {1, 2}, 4);
        Solution solution = solve(instance, options);
        CHECK(solution.indices == Indices({3, 1}) || options.rule != Rule::omp);
        CHECK(solution.indices.size() == 2 && solution.status == Status::no_gain);
        options.fill = true;
        solution = solve(instance, options);
        CHECK(solution.indices.size() == 4 && solution.status == Status::budget && solution.n_filled == 2);
        CHECK(solution.indices[2] == 0 && solution.indices[3] == 2 && solution.weights[2] == 0.0);
        options.fill = false;
        instance.target = {0, 0};
        CHECK(solve(instance, options).indices.empty());
        CHECK(solve(instance, options).status == Status::no_gain);
    }
}

TEST_CASE(more_budget_than_rows) {
    const Instance instance = random_instance(2, 4, 10, Index{1} << 60);
    const Solution solution = solve(instance, with(Rule::omp, false));
    CHECK(solution.indices.size() == 4 && solution.status == Status::exhausted);
    Instance groups = instance;
    groups.groups = {0, 1, 0, 1};
    groups.budgets = {Index{1} << 60, Index{1} << 60};
    CHECK(solve(groups, with(Rule::omp, false)).indices == solution.indices);
}

TEST_CASE(more_picks_than_dimensions) {
    for (Options options : every_rule()) {
        const Instance instance = random_instance(3, 30, 5, 20);
        const Solution solution = solve(instance, options);
        CHECK(solution.indices.size() < 20 && solution.status == Status::no_gain);
        if (!options.nonneg) CHECK_CLOSE(solution.residual_norms.back(), 0, 1e-14L * solution.target_norm);
        options.fill = true;
        const Solution filled = solve(instance, options);
        CHECK(filled.indices.size() == 20 && filled.status == Status::budget);
        CHECK(filled.n_filled == static_cast<Index>(20 - solution.indices.size()));
        CHECK(std::equal(solution.indices.begin(), solution.indices.end(), filled.indices.begin()));
    }
}

// Whatever is not in the pool might as well not exist.
TEST_CASE(only_the_pool_is_read) {
    Instance instance = random_instance(4, 20, 6, 5);
    Instance without = instance;
    instance.rows.push_back(std::vector<double>(6, kNaN));
    instance.rows.push_back(std::vector<double>(6, 1e200));
    instance.groups = std::vector<std::int32_t>(22, 0);
    instance.groups[21] = 1;
    instance.budgets = {5, 0};
    instance.candidates = std::vector<std::uint8_t>(22, 1);
    instance.candidates[20] = 0;
    for (const Options& options : every_rule()) CHECK(same_bits(solve(instance, options), solve(without, options)));
}

TEST_CASE(bad_numbers_are_named) {
    for (const double bad : {kNaN, kInfinity, -kInfinity})
        for (const std::size_t column : {0u, 10u}) {
            Instance instance = random_instance(5, 40, 11, 5);
            instance.rows[37][column] = bad;
            CHECK_THROWS(InvalidArgument, "G: row 37 contains NaN or infinity", solve(instance));
            instance.candidates.assign(40, 1);
            instance.candidates[37] = 0;
            CHECK(solve(instance).indices.size() == 5);
            instance.initial = {37};
            CHECK_THROWS(InvalidArgument, "G: row 37 contains NaN or infinity", solve(instance));
        }
    for (const double length : {1e150, 1e-150}) {
        Instance instance = random_instance(6, 10, 4, 3);
        for (double& x : instance.rows[6]) x *= length;
        CHECK_THROWS(InvalidArgument, "G: row 6 has a norm outside", solve(instance));
    }
    const Instance instance = random_instance(7, 10, 4, 3);
    const Index picked = GramInstance(instance).solve(instance.constraint()).indices[0];
    for (const double bad : {kNaN, kInfinity, -kInfinity})
        for (Index j = 0; j < 10; ++j) {  // a row of K is checked when it is read, the diagonal before
            GramInstance gram(instance);
            gram.gram[static_cast<std::size_t>(10 * picked + j)] = bad;
            const std::string message = "K: row " + std::to_string(picked) + " contains NaN or infinity";
            CHECK_THROWS(InvalidArgument, message.c_str(), gram.solve(instance.constraint()));
        }
    GramInstance negative(instance), unbounded(instance);
    negative.gram[44] = -1.0;
    CHECK_THROWS(InvalidArgument, "K: diagonal entry 4", negative.solve(instance.constraint()));
    for (std::size_t j = 0; j < 10; ++j) unbounded.gram[j] = unbounded.gram[10 * j] = 0.0;
    unbounded.linear[0] = 1.0;
    CHECK_THROWS(Unbounded, "entry 0", unbounded.solve(instance.constraint()));
    Options ridge;
    ridge.ridge = 1.0;
    CHECK(unbounded.solve(instance.constraint(), ridge).indices.size() == 3);
}

TEST_CASE(not_positive_semidefinite_is_an_error) {
    const Instance instance({{1, 0}, {0, 1}}, {1, 1}, 2);
    GramInstance gram(instance);
    gram.gram = {1, -3, -3, 1};
    CHECK_THROWS(InvalidArgument, "not positive semidefinite", gram.solve(instance.constraint()));
}

TEST_CASE(bad_arguments_are_named) {
    Instance instance = random_instance(8, 10, 4, 3);
    CHECK_THROWS(InvalidArgument, "kernels: 'none'", solve(instance, {}, {1, 0.0, "none"}));
    const auto fails = [&](const char* name, auto change) {
        Instance bad = instance;
        change(bad);
        CHECK_THROWS(InvalidArgument, name, solve(bad));
    };
    fails("groups", [](Instance& bad) { bad.groups.pop_back(); });
    fails("groups", [](Instance& bad) { bad.groups[3] = 1; });
    fails("budgets", [](Instance& bad) { bad.budgets[0] = -1; });
    fails("candidates", [](Instance& bad) { bad.candidates = {1}; });
    fails("initial: row 10", [](Instance& bad) { bad.initial = {10}; });
    fails("initial: row -1", [](Instance& bad) { bad.initial = {-1}; });
    fails("initial: row 4 comes twice", [](Instance& bad) { bad.initial = {4, 4}; });
    fails("initial: row 3", [](Instance& bad) { bad.initial = {0, 1, 2, 3}; });
    Monitor monitor;
    const GramInstance gram(instance);
    const Indices outside = {10}, twice = {1, 2, 1};
    CHECK_THROWS(InvalidArgument, "S: row 10", evaluate_cpu(gram.problem(), outside, {}, false, {}, monitor));
    CHECK_THROWS(InvalidArgument, "S: row 1 comes twice", evaluate_cpu(gram.problem(), twice, {}, false, {}, monitor));
}

TEST_CASE(a_tilt_without_ridge_may_be_unbounded) {
    Instance instance({{1.0, 0.0}, {-1.0, 0.0}}, {1.0, 0.0}, 2);
    Options options;
    options.tilt = 3.0;
    for (const Rule rule : {Rule::omp, Rule::normalized, Rule::greedy}) {
        options.rule = rule;
        options.ridge = 0.0;
        CHECK_THROWS(Unbounded, "ridge", solve(instance, options));
        options.ridge = 1.0;
        CHECK(solve(instance, options).indices.size() == 2);
    }
}

// A selection continues from where another one stopped.
TEST_CASE(initial_continues_a_pursuit) {
    for (const Options& options : every_rule()) {
        Instance instance = random_instance(9, 60, 30, 12);
        const Solution whole = solve(instance, options);
        CHECK(whole.indices.size() == 12);
        for (const std::size_t first : {1u, 5u, 12u}) {
            instance.initial.assign(whole.indices.begin(), whole.indices.begin() + static_cast<std::ptrdiff_t>(first));
            const Solution rest = solve(instance, options);
            CHECK(rest.indices == whole.indices);
            CHECK_CLOSE(rest.objective, whole.objective, 1e-13L * whole.objective);
            for (std::size_t m = 0; m < 12; ++m) CHECK_CLOSE(rest.weights[m], whole.weights[m], 1e-12L);
        }
    }
}

TEST_CASE(initial_members_need_not_be_candidates_or_useful) {
    Instance instance({{1, 0, 0}, {-1, 0, 0}, {0, 0, 0}, {0, 1, 0}, {1, 0, 0}}, {2, 1, 0}, 4);
    instance.candidates = {1, 0, 0, 1, 1};
    instance.initial = {2, 1, 0, 4};
    Solution solution = solve(instance);
    CHECK(solution.indices == instance.initial && solution.status == Status::budget);
    CHECK(solution.weights == std::vector<double>({0, 0, 2, 0}));
    CHECK(solution.gains == std::vector<double>({0, 0, 2, 0}));
    Options release;
    release.release_zeros = true;
    solution = solve(instance, release);
    CHECK(solution.indices == Indices({0, 3}) && solution.status == Status::no_gain);
    CHECK(solution.weights == std::vector<double>({2, 1}));
    CHECK(solution.gains.size() == 2 && solution.residual_norms.size() == 2);
    CHECK_CLOSE(solution.residual_norms[0], 1, 1e-15L);
    CHECK_CLOSE(solution.residual_norms[1], 0, 1e-15L);
}

TEST_CASE(duplicates_are_not_picked_twice) {
    for (const Options& options : every_rule()) {
        Instance instance = random_instance(10, 20, 8, 12);
        const Solution once = solve(instance, options);
        Instance doubled = instance;
        for (const auto& row : instance.rows) doubled.rows.push_back(row);
        doubled.groups.assign(40, 0);
        CHECK(solve(doubled, options).indices == once.indices);
    }
}

TEST_CASE(scaling_changes_no_pick) {
    for (const Options& options : every_rule()) {
        const Instance instance = random_instance(11, 40, 12, 8);
        const Solution plain = solve(instance, options);
        for (const double row_scale : {1e-12, 1e-6, 1e6, 1e12})
            for (const double target_scale : {1e-6, 1.0, 1e6}) {
                Instance other = instance;
                for (auto& row : other.rows)
                    for (double& x : row) x *= row_scale;
                for (double& x : other.target) x *= target_scale;
                const Solution solution = solve(other, options);
                CHECK(solution.indices == plain.indices && solution.status == plain.status);
                CHECK_CLOSE(solution.objective / target_scale / target_scale, plain.objective,
                            1e-12L * plain.objective);
            }
    }
}

TEST_CASE(a_monitor_hears_of_every_pick_and_may_stop) {
    class Listener : public Monitor {
      public:
        bool picked(const Progress& progress) override {
            heard.push_back(progress);
            return static_cast<Index>(heard.size()) == stop_after;
        }
        std::vector<Progress> heard;
        Index stop_after = -1;
    };
    const Instance instance = random_instance(12, 50, 20, 9);
    Listener all, some;
    const Solution whole = solve(instance, {}, {}, all);
    CHECK(all.heard.size() == 9);
    double value = 0.0;
    for (std::size_t m = 0; m < all.heard.size(); ++m) {
        const Progress& heard = all.heard[m];
        value += whole.gains[m];
        CHECK(heard.n_selected == static_cast<Index>(m) + 1 && heard.rank == 9 && heard.index == whole.indices[m]);
        CHECK(heard.gain == whole.gains[m] && heard.residual_norm == whole.residual_norms[m] &&
              heard.objective == value);
    }
    some.stop_after = 4;
    const Solution part = solve(instance, {}, {}, some);
    CHECK(part.status == Status::stopped && part.indices.size() == 4 && part.weights.size() == 4);
    CHECK(std::equal(part.indices.begin(), part.indices.end(), whole.indices.begin()));
    CHECK_CLOSE(part.objective, part.gains[0] + part.gains[1] + part.gains[2] + part.gains[3], 1e-13L);
}

// Raises its flag after the third pick, long enough before the next question that it will be asked.
class Interrupter : public Monitor {
  public:
    bool interrupted() override { return raised_; }
    bool picked(const Progress& progress) override {
        if (progress.n_selected == 3) {
            raised_ = true;
            std::this_thread::sleep_for(std::chrono::milliseconds(25));
        }
        return false;
    }

  private:
    bool raised_ = false;
};

TEST_CASE(interruption_in_the_middle) {
    const Instance instance = random_instance(13, 700, 128, 12);  // large enough for threads
    const GramInstance gram(instance);
    for (const Options& options : every_rule())
        for (const int n_threads : {1, 2, 7}) {
            if (options.rule == Rule::greedy && n_threads == 7) continue;  // slow, and the same code
            const Execution execution{n_threads, 0.0, nullptr};
            const Solution before = solve(instance, options, execution);
            Interrupter monitor, other;
            CHECK_THROWS(Interrupted, "interrupted", solve(instance, options, execution, monitor));
            CHECK(same_bits(solve(instance, options, execution), before));
            CHECK_THROWS(Interrupted, "interrupted",
                         solve_cpu(gram.problem(), instance.constraint(), options, execution, other));
        }
}

TEST_CASE(what_a_callback_throws_reaches_the_caller) {
    class Thrower : public Monitor {
        bool picked(const Progress& progress) override {
            if (progress.n_selected == 3) throw std::domain_error("from the callback");
            return false;
        }
    } monitor;
    const Instance instance = random_instance(14, 700, 64, 6);
    for (const int n_threads : {1, 3})
        CHECK_THROWS(std::domain_error, "from the callback", solve(instance, {}, {n_threads, 0.0, nullptr}, monitor));
}

TEST_CASE(interrupted_from_another_thread) {
    class Flag : public Monitor {
      public:
        bool interrupted() override { return raised; }
        bool picked(const Progress&) override {
            running = true;
            std::this_thread::sleep_for(std::chrono::milliseconds(1));
            return false;
        }
        std::atomic<bool> raised{false}, running{false};
    } monitor;
    const Instance instance = random_instance(15, 1200, 700, 700);
    std::thread other([&] {
        while (!monitor.running) std::this_thread::yield();
        monitor.raised = true;
    });
    CHECK_THROWS(Interrupted, "interrupted", solve(instance, {}, {2, 0.0, nullptr}, monitor));
    other.join();
}

TEST_CASE(several_solves_at_once) {
    const Instance instance = random_instance(16, 600, 128, 10);
    const std::vector<double> flat = instance.flat();  // shared by all of them
    Problem problem;
    problem.rows = {block_of(flat, instance.n(), instance.d())};
    problem.target = instance.target;
    const GramInstance gram(instance);
    const auto options = every_rule();
    std::vector<Solution> expected, expected_gram;
    for (const Options& each : options) {
        expected.push_back(solve(instance, each));
        expected_gram.push_back(gram.solve(instance.constraint(), each));
    }
    std::atomic<int> same{0};
    std::vector<std::thread> callers;
    for (std::size_t caller = 0; caller < options.size(); ++caller)
        callers.emplace_back([&, caller] {
            Monitor monitor;
            const Execution execution{1 + static_cast<int>(caller % 3), 0.0, nullptr};
            const Solution dense = solve_cpu(problem, instance.constraint(), options[caller], execution, monitor);
            same += same_bits(dense, expected[caller]);
            same += same_bits(gram.solve(instance.constraint(), options[caller], execution), expected_gram[caller]);
        });
    for (std::thread& caller : callers) caller.join();
    CHECK(same == 2 * static_cast<int>(options.size()));
}
