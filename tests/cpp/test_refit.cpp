#include "pysubmod/refit.hpp"

#include <algorithm>

#include "check.hpp"
#include "dense.hpp"

using namespace pysubmod;
using dense::Matrix;
using dense::Random;
using dense::Real;
using dense::Vector;
using Outcome = Refit::Outcome;
using Rows = std::vector<std::vector<double>>;

namespace {

// A problem (C, c), and a refit that walks through it row by row as the pursuit does.
struct Problem {
    Matrix c;
    Vector linear;
    Real scale;  // E_0
    bool in_range;
    Rows rows;  // if given, small Schur complements are asked of them

    Problem(Matrix c_, Vector linear_, Real target_norm, bool in_range_)
        : c(std::move(c_)), linear(std::move(linear_)), scale(target_norm), in_range(in_range_) {
        for (Real& x : c.x) x = static_cast<double>(x);  // both sides see the same numbers
        for (Real& x : linear) x = static_cast<double>(x);
        for (std::size_t i = 0; i < linear.size(); ++i)
            if (c(i, i) > 0) scale = std::max(scale, std::fabs(linear[i]) / std::sqrt(c(i, i)));
    }
    std::size_t size() const { return linear.size(); }
    Refit refit(bool nonneg) const {
        Refit::Settings settings;
        settings.nonneg = nonneg;
        settings.scale = static_cast<double>(scale);
        settings.in_range = in_range;
        if (!rows.empty())
            settings.schur_from_rows = [this](Index i, std::span<const Index> members, std::span<const double> x) {
                const auto& row = rows[static_cast<std::size_t>(i)];
                Vector left(row.begin(), row.end());
                for (std::size_t m = 0; m < members.size(); ++m)
                    for (std::size_t k = 0; k < left.size(); ++k)
                        left[k] -= static_cast<Real>(x[m]) * rows[static_cast<std::size_t>(members[m])][k];
                return static_cast<double>(dense::inner(left, left));  // without ridge
            };
        return Refit(settings);
    }

    Refit::Member describe(const Refit& refit, std::size_t i, std::vector<double>& row) const {
        row.clear();
        Real g = linear[i];
        for (std::size_t m = 0; m < refit.size(); ++m) {
            const auto j = static_cast<std::size_t>(refit.ids()[m]);
            row.push_back(static_cast<double>(c(i, j)));
            g -= c(i, j) * static_cast<Real>(refit.weights()[m]);
        }
        return {static_cast<Index>(i), row, static_cast<double>(c(i, i)), static_cast<double>(linear[i]),
                static_cast<double>(g)};
    }
    Outcome add(Refit& refit, std::size_t i) const {
        std::vector<double> row;
        const Refit::Member member = describe(refit, i, row);
        const Outcome outcome = refit.add(member);
        if (outcome != Outcome::improved) {
            CHECK(refit.last_gain() == 0.0);
            refit.add_idle(member);
        }
        return outcome;
    }
    Vector weights(const Refit& refit) const {
        Vector w(size(), 0);
        for (std::size_t m = 0; m < refit.size(); ++m)
            w[static_cast<std::size_t>(refit.ids()[m])] = static_cast<Real>(refit.weights()[m]);
        return w;
    }
    Real value(const Refit& refit) const { return dense::objective(c, linear, weights(refit)); }
    Vector gradient(const Vector& w) const {
        Vector g = dense::multiply(c, w);
        for (std::size_t i = 0; i < g.size(); ++i) g[i] = linear[i] - g[i];
        return g;
    }

    // What must hold on any support: feasible, and stationary to `tolerance` of the scale.
    void check_kkt(const Refit& refit, bool nonneg, Real tolerance = 1e-10L) const {
        const Vector w = weights(refit), g = gradient(w);
        const Real unit = tolerance * std::max(scale, static_cast<Real>(refit.current_scale()));
        for (std::size_t m = 0; m < refit.size(); ++m) {
            const auto i = static_cast<std::size_t>(refit.ids()[m]);
            const Real root = std::sqrt(c(i, i));
            if (refit.is_active(m)) CHECK_CLOSE(g[i], 0, unit * root);
            if (!refit.is_active(m)) CHECK(refit.weights()[m] == 0.0);
            if (nonneg) CHECK(refit.weights()[m] >= 0.0);
            if (nonneg && refit.is_active(m)) CHECK(refit.weights()[m] > 0.0);
            if (nonneg) CHECK(g[i] <= unit * root);
        }
    }
};

Problem fitting(const Rows& rows, const std::vector<double>& target, double ridge = 0, double tilt = 0) {
    Matrix c = dense::gram(rows, static_cast<Real>(ridge));
    Vector linear;
    for (std::size_t i = 0; i < rows.size(); ++i)
        linear.push_back(dense::inner(rows[i], target) + static_cast<Real>(tilt) / 2 * dense::inner(rows[i], rows[i]));
    return {std::move(c), std::move(linear), std::sqrt(dense::inner(target, target)), tilt == 0};
}

Rows random_rows(Random& random, std::size_t k, std::size_t d) {
    Rows rows;
    for (std::size_t i = 0; i < k; ++i) rows.push_back(random.normals(d));
    return rows;
}

std::vector<double> scaled(std::vector<double> row, double factor) {
    for (double& x : row) x *= factor;
    return row;
}

std::vector<double> moved(std::vector<double> row, const std::vector<double>& by, double share) {
    for (std::size_t k = 0; k < row.size(); ++k) row[k] += share * by[k];
    return row;
}

// Everything that must be true after each row that enters.
void check_all(const Problem& problem, bool nonneg, Real kkt = 1e-10L) {
    Refit refit = problem.refit(nonneg);
    std::vector<std::size_t> members;
    Real before = 0;
    for (std::size_t i = 0; i < problem.size(); ++i) {
        const Outcome outcome = problem.add(refit, i);
        members.push_back(i);
        CHECK(refit.size() == members.size());
        problem.check_kkt(refit, nonneg, kkt);
        const Real unit = std::pow(std::max(problem.scale, static_cast<Real>(refit.current_scale())), 2);
        const Real value = problem.value(refit);
        CHECK_CLOSE(refit.last_gain(), value - before, 1e-13L * unit + 1e-9L * std::fabs(value - before));
        if (nonneg && outcome == Outcome::improved) CHECK(refit.last_gain() > 0.0);
        const auto best = dense::optimum(dense::part(problem.c, members), dense::part(problem.linear, members), nonneg);
        CHECK_CLOSE(value, best.value, 1e-13L * unit + 1e-11L * best.value);
        before = value;
    }
}

void check_both(const Problem& problem, Real kkt = 1e-10L) {
    check_all(problem, true, kkt);
    check_all(problem, false, kkt);
}

bool same_state(const Refit& a, const Refit& b) {
    if (a.size() != b.size() || a.current_scale() != b.current_scale() || a.last_gain() != b.last_gain()) return false;
    for (std::size_t m = 0; m < a.size(); ++m)
        if (a.ids()[m] != b.ids()[m] || a.weights()[m] != b.weights()[m] || a.is_active(m) != b.is_active(m))
            return false;
    return true;
}

}  // namespace

TEST_CASE(random_rows_reach_the_optimum) {
    Random random(1);
    for (int trial = 0; trial < 120; ++trial) {
        const std::size_t k = 1 + random.below(7), d = 1 + random.below(10);
        const double ridge = random.chance(0.5) ? 0.0 : std::pow(10.0, random.uniform(-4, 1));
        const Rows rows = random_rows(random, k, d);
        check_both(fitting(rows, random.normals(d), ridge));
    }
}

TEST_CASE(rows_that_pull_against_each_other) {  // many members come and go
    Random random(2);
    for (int trial = 0; trial < 60; ++trial) {
        const std::size_t d = 9;
        const std::vector<double> target = random.normals(d), shared = random.normals(d);
        Rows rows;
        for (int i = 0; i < 8; ++i) {
            const double along = random.uniform(0, 2);
            rows.push_back(moved(moved(random.normals(d), shared, 3.0), target, along));
        }
        check_all(fitting(rows, target), true);
    }
}

TEST_CASE(duplicates_negations_zeros) {
    Random random(3);
    for (int trial = 0; trial < 80; ++trial) {
        const std::size_t d = 1 + random.below(8);
        const double ridge = random.chance(0.3) ? 0.1 : 0.0;
        Rows rows = random_rows(random, 3, d);
        while (rows.size() < 7) {
            const std::vector<double> from = rows[random.below(rows.size())];
            const double factors[] = {1.0, -1.0, 2.0, -0.5, 0.0, ridge > 0 ? 1.0 : 3e4};
            rows.push_back(scaled(from, factors[random.below(6)]));
        }
        for (std::size_t i = rows.size(); i-- > 1;) std::swap(rows[i], rows[random.below(i + 1)]);
        check_both(fitting(rows, random.normals(d), ridge));
    }
}

TEST_CASE(near_dependent_rows) {
    Random random(4);
    for (const double distance : {1e-2, 1e-3, 1e-4})
        for (int trial = 0; trial < 30; ++trial) {
            const std::size_t d = 20;
            Rows rows = random_rows(random, 3, d);
            while (rows.size() < 6) {
                const std::size_t from = random.below(3);
                rows.push_back(moved(rows[from], random.normals(d), distance));
            }
            Problem problem = fitting(rows, random.normals(d));
            check_both(problem);
            problem.rows = rows;
            check_both(problem);
        }
}

TEST_CASE(scaling_rows_and_target_changes_only_the_scale) {
    Random random(5);
    for (const double row_scale : {1e-12, 1e12})
        for (const double target_scale : {1e-6, 1e6}) {
            Rows rows = random_rows(random, 6, 8);
            const std::vector<double> target = random.normals(8);
            const Problem plain = fitting(rows, target);
            for (auto& row : rows) row = scaled(row, row_scale);
            const Problem other = fitting(rows, scaled(target, target_scale));
            for (const bool nonneg : {true, false}) {
                Refit a = plain.refit(nonneg), b = other.refit(nonneg);
                for (std::size_t i = 0; i < 6; ++i) {
                    CHECK(plain.add(a, i) == other.add(b, i));
                    for (std::size_t m = 0; m <= i; ++m) {
                        CHECK(a.is_active(m) == b.is_active(m));
                        CHECK_CLOSE(b.weights()[m] * (row_scale / target_scale), a.weights()[m], 1e-11L);
                    }
                }
            }
            check_both(other);
        }
}

// c = G t + tilt/2 diag K is not in the range of K: dependent rows are worth a trade, along a ray.
TEST_CASE(rays_lead_to_the_optimum) {
    // Twice the row, four times the tilt: the longer one is better and takes the place of the shorter one.
    const Problem pair = fitting({{1.0, 0.0}, {2.0, 0.0}}, {1.0, 0.0}, 0.0, 1.0);
    Refit refit = pair.refit(true);
    CHECK(pair.add(refit, 0) == Outcome::improved);
    CHECK(pair.add(refit, 1) == Outcome::improved);
    CHECK(!refit.is_active(0) && refit.is_active(1));
    CHECK(refit.weights()[1] == 1.0);  // c_2 / C_22 = 4 / 4

    Random random(6);
    for (int trial = 0; trial < 150; ++trial) {
        // All entries positive: no combination with weights >= 0 vanishes, so the problem has a maximum.
        const std::size_t d = 1 + random.below(3), k = 2 + random.below(6);
        Rows rows = random_rows(random, k, d);
        for (auto& row : rows)
            for (double& x : row) x = 0.1 + std::fabs(x);
        const double tilt = random.uniform(0.1, 2.0);
        check_all(fitting(rows, random.normals(d), 0.0, tilt), true);
    }
}

TEST_CASE(problems_without_a_maximum_are_errors) {
    // A row and its negative, both rewarded by their length.
    const Problem both = fitting({{1.0, 2.0}, {-1.0, -2.0}}, {1.0, 0.0}, 0.0, 1.0);
    for (const bool nonneg : {true, false}) {
        Refit refit = both.refit(nonneg);
        both.add(refit, 0);
        CHECK_THROWS(Unbounded, "row 1", both.add(refit, 1));
    }
    // With a ridge it has one; so has the negative tilt.
    check_both(fitting({{1.0, 2.0}, {-1.0, -2.0}}, {1.0, 0.0}, 0.5, 1.0));
    check_all(fitting({{1.0, 2.0}, {-1.0, -2.0}}, {1.0, 0.0}, 0.0, -1.0), true);

    // Random rows in few dimensions: unbounded exactly when some d + 1 of them, with weights z >= 0, cancel.
    Random random(7);
    int unbounded = 0, bounded = 0;
    for (int trial = 0; trial < 200; ++trial) {
        const std::size_t d = 1 + random.below(2), k = d + 1 + random.below(3);
        const Rows rows = random_rows(random, k, d);
        const Problem problem = fitting(rows, random.normals(d), 0.0, 1.0);
        bool cancels = false, clear = true;
        for (std::uint32_t set = 0; set < (1u << k); ++set) {
            std::vector<std::size_t> which;
            for (std::size_t i = 0; i < k; ++i)
                if (set >> i & 1) which.push_back(i);
            if (which.size() != d + 1) continue;
            const std::size_t last = which.back();  // - row[last] = sum of z_i row[i] over the other d
            which.pop_back();
            Vector along;
            for (const std::size_t i : which) along.push_back(-problem.c(i, last));
            const auto z = dense::solve(dense::part(problem.c, which), along);
            if (!z) {
                clear = false;
                continue;
            }
            bool positive = true;
            for (std::size_t a = 0; a < z->size(); ++a) {
                positive = positive && (*z)[a] >= 0;
                clear = clear && std::fabs((*z)[a]) > 1e-2L && std::fabs((*z)[a]) < 1e2L;
            }
            cancels = cancels || positive;
        }
        if (!clear) continue;
        Refit refit = problem.refit(true);
        bool threw = false;
        try {
            for (std::size_t i = 0; i < k; ++i) problem.add(refit, i);
        } catch (const Unbounded&) {
            threw = true;
        }
        CHECK(threw == cancels);
        if (!threw) problem.check_kkt(refit, true, 1e-9L);
        ++(threw ? unbounded : bounded);
    }
    CHECK(unbounded > 20 && bounded > 20);
}

TEST_CASE(a_trial_changes_nothing) {
    Random random(8);
    for (int trial = 0; trial < 40; ++trial) {
        const bool nonneg = random.chance(0.5), tilted = nonneg && random.chance(0.5);
        Rows rows = random_rows(random, 8, 4);
        for (auto& row : rows)
            for (double& x : row) x = tilted ? std::fabs(x) + 0.1 : x;
        rows[5] = rows[1];
        const Problem problem = fitting(rows, random.normals(4), 0.0, tilted ? 1.0 : 0.0);
        Refit refit = problem.refit(nonneg);
        for (std::size_t i = 0; i < rows.size(); ++i) {
            const Refit before = refit;
            std::vector<double> row;
            const Refit::Member member = problem.describe(refit, i, row);
            Outcome outcome{};
            const double gain = refit.trial_gain(member, outcome);
            CHECK(same_state(refit, before));
            CHECK(refit.add(member) == outcome);
            CHECK(refit.last_gain() == gain);
            if (outcome != Outcome::improved) refit.add_idle(member);
        }
    }
}

// A refused member leaves no trace: what comes after is the same to the bit.
TEST_CASE(a_refused_member_changes_nothing) {
    Random random(9);
    int refused = 0;
    for (int trial = 0; trial < 60; ++trial) {
        const bool nonneg = random.chance(0.7), tilted = nonneg && random.chance(0.5);
        Rows rows = random_rows(random, 10, 4);
        for (auto& row : rows)
            for (double& x : row) x = tilted ? std::fabs(x) + 0.1 : x;
        const Problem problem = fitting(rows, random.normals(4), 0.0, tilted ? 1.0 : 0.0);
        Refit with = problem.refit(nonneg), without = problem.refit(nonneg);
        for (std::size_t i = 0; i < rows.size(); ++i) {
            std::vector<double> row;
            const Outcome outcome = with.add(problem.describe(with, i, row));
            if (outcome == Outcome::improved)
                problem.add(without, i);
            else
                ++refused;
            CHECK(with.size() == without.size());
            CHECK(with.current_scale() == without.current_scale());
            CHECK(std::equal(with.weights().begin(), with.weights().end(), without.weights().begin()));
        }
    }
    CHECK(refused > 50);
}

// Trials of every row before each one that is added, among them many that drop members, let idle ones in, follow a ray
// or are refused. Their gains are those of the true optima, and what comes after is the same to the bit as without
// them.
TEST_CASE(trials_in_between_leave_no_trace) {
    Random random(11);
    int gained = 0, dropped = 0, entered = 0, refused = 0;
    for (int trial = 0; trial < 200; ++trial) {
        const bool nonneg = trial % 4 != 0, tilted = nonneg && random.chance(0.3);
        const std::size_t d = 5 + random.below(6);
        const std::vector<double> shared = random.normals(d), target = random.normals(d);
        Rows rows = random_rows(random, 8, d);
        for (auto& row : rows) row = moved(moved(row, shared, random.uniform(0, 4)), target, random.uniform(0, 2));
        rows[6] = scaled(rows[1], 2.0);
        rows[7] = moved(rows[2], random.normals(d), 0.1);
        if (tilted)
            for (auto& row : rows)
                for (double& x : row) x = std::fabs(x) + 0.1;
        const Problem problem = fitting(rows, target, random.chance(0.5) ? 0.0 : 0.01, tilted ? 1.0 : 0.0);
        Refit with = problem.refit(nonneg), without = problem.refit(nonneg);
        std::vector<std::size_t> members;
        for (std::size_t i = 0; i < rows.size(); ++i) {
            const Real before = problem.value(with);
            for (std::size_t j = i; j < rows.size(); ++j) {
                std::vector<double> row;
                Outcome outcome{};
                const Real gain = with.trial_gain(problem.describe(with, j, row), outcome);
                std::vector<std::size_t> larger = members;
                larger.push_back(j);
                const auto best =
                    dense::optimum(dense::part(problem.c, larger), dense::part(problem.linear, larger), nonneg);
                const Real unit = std::pow(std::max(problem.scale, static_cast<Real>(with.current_scale())), 2);
                CHECK_CLOSE(gain, best.value - before, 1e-12L * unit + 1e-9L * gain);
                ++(outcome == Outcome::improved ? gained : refused);
            }
            std::vector<char> was_active;
            for (std::size_t m = 0; m < i; ++m) was_active.push_back(with.is_active(m));
            CHECK(problem.add(with, i) == problem.add(without, i));
            members.push_back(i);
            CHECK(same_state(with, without));
            for (std::size_t m = 0; m < i; ++m) {
                dropped += was_active[m] && !with.is_active(m);
                entered += !was_active[m] && with.is_active(m);
            }
            CHECK(with.value() == without.value());
        }
    }
    CHECK(gained > 1000 && refused > 1000 && dropped > 100 && entered > 5);
}

TEST_CASE(an_unbounded_problem_stays_an_error) {
    const Problem both = fitting({{1.0, 2.0}, {-1.0, -2.0}}, {1.0, 0.0}, 0.0, 1.0);
    for (const bool nonneg : {true, false}) {
        Refit refit = both.refit(nonneg);
        both.add(refit, 0);
        for (int again = 0; again < 4; ++again) {
            Refit copy = refit;
            for (int twice = 0; twice < 2; ++twice) CHECK_THROWS(Unbounded, "row 1", both.add(copy, 1));
        }
    }
}

// A dependent row whose correlation is no more than noise trades places with an active one and back: no gain, all
// undone.
TEST_CASE(a_trade_that_gains_nothing_is_undone) {
    const Rows rows = {{1.0, 0.0, 0.0}, {0.0, 1.0, 0.0}, {1.0, 0.0, 1e-6}};
    const std::vector<double> target = {2.0, 1.0, -1.0};
    const Problem problem = fitting(rows, target);
    Refit refit = problem.refit(true);
    problem.add(refit, 0);
    problem.add(refit, 1);
    const Refit before = refit;
    std::vector<double> row;
    Refit::Member member = problem.describe(refit, 2, row);
    CHECK(member.correlation < 0.0);
    member.correlation = 1e-9;
    CHECK(refit.add(member) != Outcome::improved);
    CHECK(refit.last_gain() == 0.0);
    CHECK(refit.size() == 2);
    CHECK(std::equal(refit.weights().begin(), refit.weights().end(), before.weights().begin()));
    CHECK(refit.is_active(0) && refit.is_active(1));
}

// With a ridge that only the short rows feel, the long ones are dependent, and each still has a positive multiplier
// while another one carries the weight: trades that lose must be undone.
TEST_CASE(a_refit_never_loses) {
    const Problem problem = fitting({{2e5}, {4e5}, {6.0}}, {2.0}, 1.0);
    Refit refit = problem.refit(true);
    Real before = 0;
    for (std::size_t i = 0; i < 3; ++i) {
        CHECK(problem.add(refit, i) == Outcome::improved);
        CHECK(refit.last_gain() > 0.0);
        CHECK(problem.value(refit) >= before);
        before = problem.value(refit);
    }
    CHECK_CLOSE(refit.weights()[1], 5e-6L, 1e-9L * 5e-6L);

    Random random(12);
    for (int trial = 0; trial < 500; ++trial) {
        const std::size_t d = 1 + random.below(8);
        Rows rows = random_rows(random, 3, d);
        while (rows.size() < 8) {
            const double factors[] = {1.0, -1.0, 2.0, -0.5, 1e-3, 3e4};
            const std::vector<double> from = rows[random.below(rows.size())];
            rows.push_back(scaled(from, factors[random.below(6)]));
        }
        for (std::size_t i = rows.size(); i-- > 1;) std::swap(rows[i], rows[random.below(i + 1)]);
        const Problem long_and_short = fitting(rows, moved(random.normals(d), rows[0], 0.3), 0.1);
        Refit walk = long_and_short.refit(true);
        Real value = 0;
        for (std::size_t i = 0; i < rows.size(); ++i) {
            if (long_and_short.add(walk, i) == Outcome::improved) CHECK(walk.last_gain() > 0.0);
            long_and_short.check_kkt(walk, true);
            const Real now = long_and_short.value(walk);
            CHECK(now >= value - 1e-15L * std::pow(static_cast<Real>(walk.current_scale()), 2));
            value = now;
        }
    }
}

TEST_CASE(many_members) {
    Random random(13);
    for (const bool nonneg : {true, false})
        for (const std::size_t d : {30u, 100u}) {
            const std::vector<double> shared = random.normals(d);
            Rows rows;
            for (int i = 0; i < 80; ++i) rows.push_back(moved(random.normals(d), shared, 0.5));
            const Problem problem = fitting(rows, moved(random.normals(d), shared, 2.0));
            Refit refit = problem.refit(nonneg);
            Real before = 0;
            std::size_t idle = 0;
            for (std::size_t i = 0; i < rows.size(); ++i) {
                problem.add(refit, i);
                problem.check_kkt(refit, nonneg);
                const Real value = problem.value(refit);
                CHECK_CLOSE(refit.last_gain(), value - before, 1e-13L * problem.scale * problem.scale);
                before = value;
            }
            for (std::size_t m = 0; m < refit.size(); ++m) idle += !refit.is_active(m);
            if (nonneg) CHECK(idle > 10);
            if (!nonneg) CHECK(idle == (d == 30 ? 50u : 0u));
        }
}

TEST_CASE(useless_members_are_refused) {
    const Problem problem = fitting({{1.0, 0.0}, {-1.0, 0.1}, {0.0, 0.0}, {0.0, 1.0}}, {1.0, 0.0});
    Refit refit = problem.refit(true);
    CHECK(problem.add(refit, 1) == Outcome::no_gain);  // points away from the target
    CHECK(problem.add(refit, 2) == Outcome::no_gain);  // zero
    CHECK(problem.add(refit, 3) == Outcome::no_gain);  // at a right angle
    CHECK(problem.add(refit, 0) == Outcome::improved);
    CHECK(refit.size() == 4 && refit.is_active(3) && !refit.is_active(0));
    CHECK(refit.weights()[3] == 1.0);
    Refit free = problem.refit(false);
    CHECK(problem.add(free, 2) == Outcome::dependent);
    CHECK(problem.add(free, 3) == Outcome::improved);  // gains nothing today, may matter tomorrow
    CHECK(free.last_gain() == 0.0 && free.is_active(1));
    CHECK(problem.add(free, 1) == Outcome::improved);
    CHECK(problem.add(free, 0) == Outcome::dependent);
}

TEST_CASE(idle_members_enter_when_they_help) {
    // Row 0 points away from the target until row 1 overshoots in its direction.
    const Problem problem = fitting({{-1.0, 0.2, 0.0}, {3.0, 1.0, 0.1}}, {0.1, 1.0, 0.0});
    Refit refit = problem.refit(true);
    std::vector<double> row;
    refit.add_idle(problem.describe(refit, 0, row));
    CHECK(refit.size() == 1 && !refit.is_active(0));
    problem.add(refit, 1);
    CHECK(refit.is_active(0) && refit.is_active(1));
    problem.check_kkt(refit, true);
}

TEST_CASE(idle_members_can_be_removed) {
    Random random(10);
    int removed = 0;
    for (int trial = 0; trial < 60; ++trial) {
        const std::size_t d = 5;
        const Problem problem = fitting(random_rows(random, 8, d), random.normals(d));
        Refit refit = problem.refit(true);
        for (std::size_t i = 0; i < 8; ++i) {
            problem.add(refit, i);
            if (i % 2 == 0) continue;
            std::vector<std::pair<Index, double>> kept;
            for (std::size_t m = 0; m < refit.size(); ++m)
                if (refit.is_active(m)) kept.emplace_back(refit.ids()[m], refit.weights()[m]);
            removed += static_cast<int>(refit.size() - kept.size());
            const double scale = refit.current_scale();
            refit.remove_idle();
            CHECK(refit.size() == kept.size());
            CHECK(refit.current_scale() == scale);
            for (std::size_t m = 0; m < refit.size() && m < kept.size(); ++m) {
                CHECK(refit.is_active(m));
                CHECK(refit.ids()[m] == kept[m].first);
                CHECK(refit.weights()[m] == kept[m].second);
            }
            problem.check_kkt(refit, true);  // and the rows after it still reach theirs
        }
    }
    CHECK(removed > 20);
}

TEST_CASE(refining_by_the_true_gradient) {
    Random random(11);
    for (const bool nonneg : {true, false})
        for (int trial = 0; trial < 20; ++trial) {
            const std::size_t d = 6;
            Rows rows = random_rows(random, 3, d);
            rows.push_back(moved(rows[0], random.normals(d), 1e-4));  // C has a condition number of about 1e8
            std::vector<double> target = moved(rows[1], rows[2], 0.5);
            target = moved(moved(target, rows[0], 1.0), rows[3], 2.0);
            const Problem problem = fitting(rows, moved(target, random.normals(d), 1e-3));
            Refit refit = problem.refit(nonneg);
            for (std::size_t i = 0; i < 4; ++i) problem.add(refit, i);
            const Real before = problem.value(refit);
            const Vector g = problem.gradient(problem.weights(refit));
            const double gained = refit.refine(std::vector<double>(g.begin(), g.end()));
            CHECK(gained >= 0.0);
            const auto best = dense::optimum(problem.c, problem.linear, nonneg);
            CHECK_CLOSE(before + static_cast<Real>(gained), best.value, 1e-15L * best.value);
            for (std::size_t m = 0; m < 4; ++m) {
                const Real size = std::fabs(best.weights[m]);
                CHECK_CLOSE(refit.weights()[m], best.weights[m], 1e-9L * (size + 1));
            }
        }
}
