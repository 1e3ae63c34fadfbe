// The pursuit against one written from docs/design.md alone, in long double, with every optimum found by trying all
// supports.
#include "check.hpp"
#include "instance.hpp"

using namespace pysubmod;
using dense::Random;
using dense::Real;
using dense::Vector;

namespace {

struct BruteForce {
    std::vector<Index> indices;
    Vector weights, gains, residuals;
    Real objective = 0;
    Real scale = 0;  // E at the end
    Status status = Status::budget;
    Index n_filled = 0;
    bool clear = true;  // no decision was near a tie that rounding could turn
};

class BruteForcePursuit {
  public:
    BruteForcePursuit(const Instance& instance, const Options& options)
        : in_(instance),
          options_(options),
          c_(dense::gram(instance.rows, static_cast<Real>(options.ridge))),
          w_(instance.n(), 0),
          left_(instance.budgets) {
        for (std::size_t i = 0; i < in_.n(); ++i) {
            const Real square = dense::inner(in_.rows[i], in_.rows[i]);
            linear_.push_back(dense::inner(in_.rows[i], in_.target) + static_cast<Real>(options.tilt) / 2 * square);
            root_.push_back(std::sqrt(c_(i, i)));
        }
        target_norm_ = std::sqrt(dense::inner(in_.target, in_.target));
        first_scale_ = target_norm_;
        for (std::size_t i = 0; i < in_.n(); ++i)
            if (root_[i] > 0 && (may_take(i) || contains(in_.initial, i)))
                first_scale_ = std::max(first_scale_, std::fabs(linear_[i]) / root_[i]);
    }

    BruteForce run() {
        for (const Index i : in_.initial) accept(static_cast<std::size_t>(i));
        if (options_.release_zeros && !in_.initial.empty()) release();
        out_.status = climb();
        for (const Index i : out_.indices) out_.weights.push_back(w_[static_cast<std::size_t>(i)]);
        out_.objective = dense::objective(c_, linear_, w_);
        out_.scale = scale();
        return out_;
    }

  private:
    static bool contains(const std::vector<Index>& list, std::size_t i) {
        return std::find(list.begin(), list.end(), static_cast<Index>(i)) != list.end();
    }
    Index& left(std::size_t i) { return left_[static_cast<std::size_t>(in_.groups[i])]; }
    bool may_take(std::size_t i) { return (in_.candidates.empty() || in_.candidates[i]) && left(i) > 0; }

    Real scale() const {
        Real sum = 0;
        for (std::size_t i = 0; i < in_.n(); ++i) sum += std::fabs(w_[i]) * root_[i];
        return std::max(first_scale_, sum);
    }
    Real residual_norm() const {
        Vector r(in_.target.begin(), in_.target.end());
        for (std::size_t i = 0; i < in_.n(); ++i)
            for (std::size_t k = 0; k < in_.d(); ++k) r[k] -= w_[i] * in_.rows[i][k];
        return std::sqrt(dense::inner(r, r));
    }

    dense::Optimum best_with(const std::vector<std::size_t>& members) const {
        return dense::optimum(dense::part(c_, members), dense::part(linear_, members), options_.nonneg);
    }
    std::vector<std::size_t> members() const { return {out_.indices.begin(), out_.indices.end()}; }

    Status climb() {
        bool filling = false;
        for (;;) {
            bool full = true;
            for (const Index budget : left_) full = full && budget == 0;
            if (full) return Status::budget;
            std::vector<std::size_t> eligible;
            for (std::size_t i = 0; i < in_.n(); ++i)
                if (may_take(i) && !contains(out_.indices, i)) eligible.push_back(i);
            if (eligible.empty()) return Status::exhausted;
            if (!filling && options_.tol > 0 && residual_norm() <= static_cast<Real>(options_.tol) * target_norm_)
                return Status::tolerance;
            const Vector g = correlations();
            const std::size_t pick = choose(eligible, g, filling);
            if (pick < in_.n() && filling) {
                enter(pick, 0, residual_norm());
                ++out_.n_filled;
            } else if (pick < in_.n()) {
                accept(pick);
                if (options_.release_zeros) release();
            } else if (options_.fill) {
                filling = true;
            } else {
                return Status::no_gain;
            }
        }
    }

    Vector correlations() const {
        Vector g = dense::multiply(c_, w_);
        for (std::size_t i = 0; i < g.size(); ++i) g[i] = linear_[i] - g[i];
        return g;
    }

    // The winner, or n where nobody helps.
    std::size_t choose(const std::vector<std::size_t>& eligible, const Vector& g, bool filling) {
        constexpr Real tol = 1e-12L;
        const Real e = scale();
        std::vector<std::size_t> who;
        Vector score, unit;
        for (const std::size_t i : eligible) {
            const Real height = options_.nonneg ? g[i] : std::fabs(g[i]);
            if (!filling) {
                const Real relative = root_[i] > 0 ? height / (e * root_[i]) : 0;
                if (std::fabs(relative) > 1e-14L && std::fabs(relative) < 1e-9L) out_.clear = false;
                if (!(relative > tol)) continue;
            }
            who.push_back(i);
            score.push_back(height);
            unit.push_back(e * root_[i]);
            if (filling || options_.rule == Rule::omp) continue;
            unit.back() = e;
            score.back() = height / root_[i];
            if (options_.rule == Rule::normalized) continue;
            auto with = members();
            const Real before = best_with(with).value;
            with.push_back(i);
            score.back() = std::sqrt(2 * std::max<Real>(0, best_with(with).value - before));
        }
        if (who.empty()) return in_.n();
        Real surely = -std::numeric_limits<Real>::infinity();
        for (std::size_t a = 0; a < who.size(); ++a) surely = std::max(surely, score[a] - tol * unit[a]);
        std::size_t winner = in_.n();
        for (std::size_t a = 0; a < who.size(); ++a) {
            const Real lead = score[a] + tol * unit[a] - surely;
            if (winner == in_.n() && lead >= 0) winner = who[a];
            // An exact tie leads by twice its tolerance; what is close to zero from either side could go either way.
            if (lead < tol * unit[a] && lead > -1e-9L * unit[a]) out_.clear = false;
            // Different rows that complete a fit all gain the same.
            if (options_.rule == Rule::greedy && lead >= 0 && in_.rows[who[a]] != in_.rows[winner]) out_.clear = false;
        }
        return winner;
    }

    void accept(std::size_t i) {
        auto with = members();
        const Real before = best_with(with).value;
        with.push_back(i);
        const dense::Optimum now = best_with(with);
        out_.clear = out_.clear && now.unique;
        for (std::size_t m = 0; m < with.size(); ++m) {
            w_[with[m]] = now.weights[m];
            const Real size = std::fabs(now.weights[m]) * root_[with[m]] / scale();
            if (size > 0 && size < 1e-9L) out_.clear = false;
        }
        enter(i, now.value - before, residual_norm());
    }
    void enter(std::size_t i, Real gain, Real residual) {
        out_.indices.push_back(static_cast<Index>(i));
        out_.gains.push_back(gain);
        out_.residuals.push_back(residual);
        --left(i);
    }
    void release() {
        for (std::size_t m = out_.indices.size(); m-- > 0;) {
            const auto i = static_cast<std::size_t>(out_.indices[m]);
            const auto place = static_cast<std::ptrdiff_t>(m);
            if (w_[i] != 0) continue;
            ++left(i);
            out_.indices.erase(out_.indices.begin() + place);
            out_.gains.erase(out_.gains.begin() + place);
            out_.residuals.erase(out_.residuals.begin() + place);
        }
    }

    const Instance& in_;
    Options options_;
    dense::Matrix c_;
    Vector w_;
    std::vector<Index> left_;
    Vector linear_, root_;
    Real target_norm_ = 0, first_scale_ = 0;
    BruteForce out_;
};

// Rows of very different lengths, some twice and some zero; a target made of a few of them and noise.
Instance random_instance(Random& random) {
    const std::size_t n = 1 + random.below(14), d = 1 + random.below(10), n_groups = 1 + random.below(4);
    std::vector<std::vector<double>> rows;
    for (std::size_t i = 0; i < n; ++i) {
        rows.push_back(random.normals(d));
        const double length = std::pow(10.0, random.uniform(-1, 1));
        for (double& x : rows[i]) x = random.chance(0.03) ? 0.0 : x * length;
        if (random.chance(0.05)) rows[i].assign(d, 0.0);
        if (random.chance(0.05)) rows[i] = rows[random.below(i + 1)];
    }
    std::vector<double> target = random.normals(d);
    for (int part = 0; part < 4; ++part) {
        const double share = random.uniform(0.0, 3.0);
        const auto& row = rows[random.below(n)];
        for (std::size_t k = 0; k < d; ++k) target[k] += share * row[k];
    }
    Instance instance(rows, target, 0);
    instance.budgets.assign(n_groups, 0);
    for (auto& code : instance.groups) code = static_cast<std::int32_t>(random.below(n_groups));
    for (int unit = static_cast<int>(1 + random.below(6)); unit > 0; --unit) ++instance.budgets[random.below(n_groups)];
    if (random.chance(0.3)) {
        instance.candidates.resize(n);
        for (auto& flag : instance.candidates) flag = random.chance(0.8);
    }
    if (random.chance(0.3)) {
        auto room = instance.budgets;
        for (std::size_t i = 0; i < n; ++i)
            if (random.chance(0.2) && room[static_cast<std::size_t>(instance.groups[i])]-- > 0)
                instance.initial.push_back(static_cast<Index>(i));
    }
    return instance;
}

void compare(const Instance& instance, const Solution& got, const BruteForce& expected, Real residual_tolerance) {
    CHECK(got.indices == expected.indices);
    CHECK(got.status == expected.status);
    CHECK(got.n_filled == expected.n_filled);
    CHECK(got.weights.size() == got.indices.size() && got.gains.size() == got.indices.size());
    CHECK(got.residual_norms.size() == got.indices.size());
    if (got.indices != expected.indices) return;
    const Real target_norm = std::sqrt(dense::inner(instance.target, instance.target));
    for (std::size_t m = 0; m < got.indices.size(); ++m) {
        const auto& row = instance.rows[static_cast<std::size_t>(got.indices[m])];
        CHECK_CLOSE(got.weights[m] * std::sqrt(dense::inner(row, row)),
                    expected.weights[m] * std::sqrt(dense::inner(row, row)), 1e-9L * expected.scale);
        CHECK((got.weights[m] == 0.0) == (expected.weights[m] == 0));
        CHECK_CLOSE(got.gains[m], expected.gains[m], 1e-12L * expected.scale * expected.scale);
        CHECK_CLOSE(got.residual_norms[m], expected.residuals[m], residual_tolerance * (target_norm + expected.scale));
    }
    CHECK_CLOSE(got.objective, expected.objective, 1e-12L * expected.scale * expected.scale);
}

// Runs many random problems under one choice of options; `vary` may change the rest.
template <class Vary>
void compare_many(std::uint64_t seed, int trials, Vary vary) {
    Random random(seed);
    int clear = 0;
    for (int trial = 0; trial < trials; ++trial) {
        Instance instance = random_instance(random);
        Options options;
        options.nonneg = random.chance(0.6);
        options.ridge = random.chance(0.4) ? std::pow(10.0, random.uniform(-3, 1)) : 0.0;
        vary(instance, options, random);
        const BruteForce expected = BruteForcePursuit(instance, options).run();
        if (!expected.clear) continue;
        ++clear;
        const int before = check::failures;
        compare(instance, solve(instance, options), expected, 1e-10L);
        compare(instance, GramInstance(instance).solve(instance.constraint(), options), expected, 1e-6L);
        if (check::failures != before) {
            std::fprintf(stderr, "... in trial %d of seed %d\n", trial, static_cast<int>(seed));
            return;
        }
    }
    CHECK(clear > trials * 2 / 3);
}

}  // namespace

TEST_CASE(omp) {
    compare_many(1, 300, [](Instance&, Options&, Random&) {});
}

TEST_CASE(normalized) {
    compare_many(2, 200, [](Instance&, Options& options, Random&) { options.rule = Rule::normalized; });
}

TEST_CASE(greedy) {
    compare_many(3, 200, [](Instance&, Options& options, Random&) { options.rule = Rule::greedy; });
}

TEST_CASE(fill) {
    compare_many(4, 200, [](Instance&, Options& options, Random& random) {
        options.fill = true;
        options.rule = random.chance(0.5) ? Rule::omp : Rule::normalized;
    });
}

TEST_CASE(release_zeros) {
    compare_many(5, 300, [](Instance&, Options& options, Random& random) {
        options.release_zeros = options.nonneg = true;
        options.fill = random.chance(0.3);
        options.rule = random.chance(0.3) ? Rule::greedy : Rule::omp;
    });
}

TEST_CASE(tolerance) {
    compare_many(6, 150, [](Instance&, Options& options, Random& random) { options.tol = random.uniform(0.0, 1.2); });
}

TEST_CASE(tilt) {  // with a ridge, so that every problem has a maximum
    compare_many(7, 200, [](Instance&, Options& options, Random& random) {
        options.tilt = random.uniform(-1.0, 0.5);
        options.ridge = random.uniform(0.5, 5.0);
        const Rule rules[] = {Rule::omp, Rule::normalized, Rule::greedy};
        options.rule = rules[random.below(3)];
    });
}

// Positive rows cannot cancel under w >= 0: a maximum exists without a ridge, and dependent rows are worth a trade.
TEST_CASE(tilt_without_ridge) {
    compare_many(8, 200, [](Instance& instance, Options& options, Random& random) {
        for (auto& row : instance.rows)
            for (double& x : row) x = std::fabs(x);
        options.tilt = random.uniform(0.0, 1.0);
        options.ridge = 0.0;
        options.nonneg = true;
        const Rule rules[] = {Rule::omp, Rule::normalized, Rule::greedy};
        options.rule = rules[random.below(3)];
    });
}

// The selection's own value, asked for again.
TEST_CASE(evaluation) {
    Random random(9);
    for (int trial = 0; trial < 100; ++trial) {
        const Instance instance = random_instance(random);
        Options options;
        options.nonneg = random.chance(0.5);
        options.ridge = random.chance(0.5) ? 0.1 : 0.0;
        const Solution solution = solve(instance, options);
        const std::vector<double> flat = instance.flat();
        Problem problem;
        problem.rows = {block_of(flat, instance.n(), instance.d())};
        problem.target = instance.target;
        Monitor monitor;
        const GramInstance from_gram(instance);
        const Real unit = static_cast<Real>(solution.scale * solution.scale);
        for (const Problem& form : {problem, from_gram.problem()}) {
            const Evaluation plain = evaluate_cpu(form, solution.indices, options, false, {}, monitor);
            const Evaluation value = evaluate_cpu(form, solution.indices, options, true, {}, monitor);
            CHECK(plain.gains.empty());
            CHECK(plain.objective == value.objective && plain.weights == value.weights);
            CHECK_CLOSE(value.objective, solution.objective, 1e-12L * unit);
            if (!solution.residual_norms.empty())
                CHECK_CLOSE(value.residual_norm, solution.residual_norms.back(), 1e-6L * solution.scale);

            // f(S + i) - f(S) from all supports
            const dense::Matrix c = dense::gram(instance.rows, static_cast<Real>(options.ridge));
            Vector linear;
            for (const auto& row : instance.rows) linear.push_back(dense::inner(row, instance.target));
            const std::vector<std::size_t> members(solution.indices.begin(), solution.indices.end());
            const Real before =
                dense::optimum(dense::part(c, members), dense::part(linear, members), options.nonneg).value;
            CHECK(value.gains.size() == instance.n());
            for (std::size_t i = 0; i < instance.n(); ++i) {
                auto with = members;
                if (std::find(with.begin(), with.end(), i) == with.end()) with.push_back(i);
                const Real after =
                    dense::optimum(dense::part(c, with), dense::part(linear, with), options.nonneg).value;
                CHECK_CLOSE(value.gains[i], after - before, 1e-12L * unit);
            }
        }
    }
}
