#include "pysubmod/growing_cholesky.hpp"

#include <algorithm>

#include "check.hpp"
#include "dense.hpp"

using namespace pysubmod;
using dense::Matrix;
using dense::Random;
using dense::Real;
using Places = std::vector<std::size_t>;

namespace {

// A well-conditioned random C = G G' + ridge I, rounded to double once, so that both sides see the same numbers.
Matrix random_spd(Random& random, std::size_t n, std::size_t d, Real ridge) {
    std::vector<std::vector<double>> rows;
    for (std::size_t i = 0; i < n; ++i) rows.push_back(random.normals(d));
    Matrix c = dense::gram(rows, ridge);
    for (Real& x : c.x) x = static_cast<double>(x);
    return c;
}

bool append(GrowingCholesky& factor, const Matrix& c, const Places& members, std::size_t i) {
    std::vector<double> column;
    for (const std::size_t j : members) column.push_back(static_cast<double>(c(i, j)));
    return factor.append(column, static_cast<double>(c(i, i)));
}

// The textbook factor, in long double.
Matrix cholesky(const Matrix& c) {
    Matrix l(c.rows, c.rows);
    for (std::size_t i = 0; i < c.rows; ++i)
        for (std::size_t j = 0; j <= i; ++j) {
            Real sum = c(i, j);
            for (std::size_t k = 0; k < j; ++k) sum -= l(i, k) * l(j, k);
            l(i, j) = i == j ? std::sqrt(sum) : sum / l(j, j);
        }
    return l;
}

void check_against_fresh(const GrowingCholesky& factor, const Matrix& c, const Places& members, Real tolerance) {
    CHECK(factor.size() == members.size());
    const Matrix here = dense::part(c, members), l = cholesky(here);
    for (std::size_t i = 0; i < members.size(); ++i) {
        const auto row = factor.row(i);
        CHECK(row.size() == i + 1);
        CHECK(row[i] > 0.0);
        for (std::size_t j = 0; j <= i; ++j) CHECK_CLOSE(row[j], l(i, j), tolerance * std::sqrt(here(i, i)));
    }
}

void check_solves(const GrowingCholesky& factor, const Matrix& c, const Places& members, Random& random,
                  Real tolerance) {
    const std::size_t m = members.size();
    const std::vector<double> b = random.normals(m);
    const Matrix here = dense::part(c, members), l = cholesky(here);
    const auto expected = dense::solve(here, {b.begin(), b.end()});
    CHECK(expected.has_value());
    if (!expected) return;
    Real size = 0;
    for (const Real x : *expected) size = std::max(size, std::fabs(x));
    std::vector<double> x = b;
    factor.solve(x);
    for (std::size_t i = 0; i < m; ++i) CHECK_CLOSE(x[i], (*expected)[i], tolerance * size);

    std::vector<double> lower = b, upper = b;  // L (L^-1 b) = b, L' (L^-T b) = b
    factor.solve_lower(lower);
    factor.solve_upper(upper);
    for (std::size_t i = 0; i < m; ++i) {
        Real product = 0, terms = 1, transposed = 0, transposed_terms = 1;
        for (std::size_t j = 0; j < m; ++j) {
            product += l(i, j) * lower[j], terms += std::fabs(l(i, j) * lower[j]);
            transposed += l(j, i) * upper[j], transposed_terms += std::fabs(l(j, i) * upper[j]);
        }
        CHECK_CLOSE(product, b[i], tolerance * terms);
        CHECK_CLOSE(transposed, b[i], tolerance * transposed_terms);
    }
}

}  // namespace

TEST_CASE(grows_into_the_textbook_factor) {
    Random random(1);
    const Matrix c = random_spd(random, 40, 50, 0);  // past several blocks of eight
    GrowingCholesky factor;
    Places members;
    std::vector<double> nothing;
    factor.solve(nothing);
    for (std::size_t i = 0; i < c.rows; ++i) {
        CHECK(append(factor, c, members, i));
        members.push_back(i);
        check_against_fresh(factor, c, members, 1e-14L);
        check_solves(factor, c, members, random, 1e-12L);
    }
}

TEST_CASE(drops_any_row) {
    Random random(2);
    for (const std::size_t n : {1u, 2u, 3u, 8u, 9u, 20u}) {
        const Matrix c = random_spd(random, n, n + 5, 0);
        for (std::size_t j = 0; j < n; ++j) {
            GrowingCholesky factor;
            Places members;
            for (std::size_t i = 0; i < n; ++i) append(factor, c, members, i), members.push_back(i);
            factor.drop(j);
            members.erase(members.begin() + static_cast<std::ptrdiff_t>(j));
            check_against_fresh(factor, c, members, 1e-13L);
            check_solves(factor, c, members, random, 1e-11L);
            CHECK(append(factor, c, members, j));  // and comes back at the end
            members.push_back(j);
            check_against_fresh(factor, c, members, 1e-13L);
        }
    }
}

TEST_CASE(dropping_the_last_row_undoes_appending_it) {
    Random random(3);
    const Matrix c = random_spd(random, 12, 12, 0.1L);
    GrowingCholesky factor;
    Places members;
    for (std::size_t i = 0; i + 1 < c.rows; ++i) append(factor, c, members, i), members.push_back(i);
    const GrowingCholesky before = factor;
    append(factor, c, members, 11);
    factor.drop(11);
    CHECK(factor.size() == before.size());
    for (std::size_t i = 0; i < before.size(); ++i)
        CHECK(std::equal(before.row(i).begin(), before.row(i).end(), factor.row(i).begin(), factor.row(i).end()));
}

TEST_CASE(long_random_runs_do_not_drift) {
    Random random(4);
    for (const double ridge : {0.0, 1e-3, 10.0}) {
        const Matrix c = random_spd(random, 60, 64, static_cast<Real>(ridge));
        GrowingCholesky factor;
        Places members, others(60);
        for (std::size_t i = 0; i < others.size(); ++i) others[i] = i;
        for (int step = 0; step < 4000; ++step) {
            const double target = 15 + 10 * std::sin(step / 300.0);  // sizes go up and down
            const bool grow =
                members.empty() || random.uniform() < (static_cast<double>(members.size()) < target ? 0.7 : 0.3);
            Places& from = grow ? others : members;
            const std::size_t place = random.below(from.size()), i = from[place];
            if (grow)
                CHECK(append(factor, c, members, i));
            else
                factor.drop(place);
            from.erase(from.begin() + static_cast<std::ptrdiff_t>(place));
            (grow ? members : others).push_back(i);
            if (step % 100 == 99) {
                check_against_fresh(factor, c, members, 1e-13L);
                check_solves(factor, c, members, random, 1e-11L);
            }
        }
    }
}

// Rows at a distance of 1e-4 and 1e-6 of their norms from the span of the others: on either side of the rank test.
TEST_CASE(rank_test_is_relative) {
    Random random(5);
    for (const double scale : {1e-12, 1e-6, 1.0, 1e6, 1e12})
        for (int trial = 0; trial < 20; ++trial) {
            const std::size_t d = 12;
            std::vector<std::vector<double>> rows;
            for (int i = 0; i < 5; ++i) rows.push_back(random.normals(d));
            for (const double distance : {1e-4, 1e-6, 0.0}) {
                std::vector<double> near(d, 0.0);
                for (const auto& row : rows) {
                    const double share = random.normal();
                    for (std::size_t k = 0; k < d; ++k) near[k] += share * row[k];
                }
                const double length = static_cast<double>(std::sqrt(dense::inner(near, near)));
                std::vector<double> away = random.normals(d);
                const Matrix others = dense::gram(rows);
                dense::Vector along;
                for (const auto& row : rows) along.push_back(dense::inner(row, away));
                const auto projection = dense::solve(others, along);
                for (std::size_t i = 0; i < rows.size(); ++i)
                    for (std::size_t k = 0; k < d; ++k) away[k] -= static_cast<double>((*projection)[i]) * rows[i][k];
                const double size = static_cast<double>(std::sqrt(dense::inner(away, away)));
                for (std::size_t k = 0; k < d; ++k) near[k] += distance * length / size * away[k];

                auto all = rows;
                all.push_back(near);
                for (auto& row : all) {
                    const double own = scale * std::pow(10.0, random.uniform(-3, 3));  // each row its own length too
                    for (double& x : row) x *= own;
                }
                const Matrix c = dense::gram(all);
                GrowingCholesky factor;
                Places members;
                for (std::size_t i = 0; i < 5; ++i) {
                    CHECK(append(factor, c, members, i));
                    members.push_back(i);
                }
                CHECK(append(factor, c, members, 5) == (distance == 1e-4));
                CHECK(factor.size() == (distance == 1e-4 ? 6u : 5u));
            }
        }
}

// Powers of two scale without rounding: every decision and every bit must follow.
TEST_CASE(scaling_by_powers_of_two_is_exact) {
    Random random(6);
    const std::size_t n = 30;
    Matrix c = random_spd(random, n, 20, 0);  // rank 20: a third of the rows is refused
    for (const int exponent : {-40, 40}) {
        GrowingCholesky plain, scaled;
        Places members;
        std::vector<double> factor_of(n);
        for (double& x : factor_of) x = std::ldexp(1.0, exponent + static_cast<int>(random.below(9)) - 4);
        Matrix other = c;
        for (std::size_t i = 0; i < n; ++i)
            for (std::size_t j = 0; j < n; ++j) other(i, j) *= static_cast<Real>(factor_of[i] * factor_of[j]);
        for (std::size_t i = 0; i < n; ++i) {
            const bool fits = append(plain, c, members, i);
            CHECK(append(scaled, other, members, i) == fits);
            if (fits) members.push_back(i);
        }
        CHECK(plain.size() == 20);
        for (std::size_t i = 0; i < plain.size(); ++i)
            for (std::size_t j = 0; j <= i; ++j) CHECK(scaled.row(i)[j] == plain.row(i)[j] * factor_of[members[i]]);
    }
}

TEST_CASE(refused_rows_change_nothing) {
    GrowingCholesky factor;
    const std::vector<double> none, same = {4.0}, negated = {-4.0}, zero = {0.0};
    CHECK(!factor.append(none, 0.0));
    CHECK(factor.append(none, 4.0));
    CHECK(!factor.append(same, 4.0));
    CHECK(!factor.append(negated, 4.0));
    CHECK(!factor.append(zero, 0.0));
    CHECK(factor.size() == 1);
    CHECK(factor.row(0)[0] == 2.0);
    const std::vector<double> other = {2.0};
    CHECK(factor.append(other, 5.0));
    CHECK(factor.row(1)[0] == 1.0 && factor.row(1)[1] == 2.0);
}

TEST_CASE(a_coarser_rank_test_can_be_asked_for) {
    const std::vector<double> none, near = {1.0};
    GrowingCholesky fine, coarse(1e-3);
    fine.append(none, 1.0);
    coarse.append(none, 1.0);
    CHECK(fine.append(near, 1.0005));
    CHECK(!coarse.append(near, 1.0005));
}

TEST_CASE(a_better_schur_complement_may_be_given) {
    const std::vector<double> none, near = {1.0};
    GrowingCholesky factor;
    factor.append(none, 1.0);
    double seen = 0.0;
    const auto nothing_left = [&](double schur) {
        seen = schur;
        return 0.0;
    };
    CHECK(!factor.append(near, 1.25, nothing_left));
    CHECK(seen == 0.25 && factor.size() == 1);
    CHECK(factor.append(near, 1.25, [](double) { return 0.5625; }));
    CHECK(factor.row(1)[0] == 1.0 && factor.row(1)[1] == 0.75);
}

TEST_CASE(what_is_not_positive_semidefinite_is_an_error) {
    const std::vector<double> none, two = {2.0}, tiny = {1e-3};
    for (const double scale : {1e-12, 1.0, 1e12}) {
        GrowingCholesky factor;
        factor.append(none, scale);
        const std::vector<double> column = {2.0 * scale}, barely = {scale * (1 + 1e-9)};
        CHECK_THROWS(InvalidArgument, "not positive semidefinite", factor.append(column, scale));
        CHECK(!factor.append(barely, scale));  // rounding may do this
        CHECK(factor.size() == 1);
    }
    GrowingCholesky factor;
    factor.append(none, 1.0);
    CHECK_THROWS(InvalidArgument, "not positive semidefinite", factor.append(tiny, 0.0));
}

TEST_CASE(shrinking_forgets_what_came_last) {
    Random random(21);
    for (int trial = 0; trial < 20; ++trial) {
        const std::size_t n = 2 + random.below(12);
        const Matrix c = random_spd(random, n, n + 3, 0.1L);
        GrowingCholesky factor, fresh;
        Places members, kept;
        for (std::size_t i = 0; i < n; ++i, members.push_back(i - 1)) CHECK(append(factor, c, members, i));
        const std::size_t size = random.below(n + 1);
        factor.shrink(size);
        for (std::size_t i = 0; i < size; ++i, kept.push_back(i - 1)) CHECK(append(fresh, c, kept, i));
        CHECK(factor.size() == size);
        for (std::size_t i = 0; i < size; ++i)
            CHECK(std::equal(factor.row(i).begin(), factor.row(i).end(), fresh.row(i).begin()));
        for (std::size_t i = size; i < n; ++i, kept.push_back(i - 1)) CHECK(append(factor, c, kept, i));
        check_against_fresh(factor, c, kept, 1e-12L);
    }
}
