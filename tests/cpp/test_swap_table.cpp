// The closed form of every swap against fresh fits in long double.
#include <algorithm>

#include "check.hpp"
#include "dense.hpp"
#include "pysubmod/swap_table.hpp"

using namespace pysubmod;
using dense::Random;
using dense::Real;
using dense::Vector;

namespace {

constexpr double kLeastShare = 1e-10;

// Rows in groups of equal size, and C of them.
struct Rows {
    std::size_t n, per_group;
    dense::Matrix c;
    Vector linear;

    Rows(std::uint64_t seed, std::size_t groups, std::size_t per_group_, std::size_t d, Real ridge)
        : n(groups * per_group_), per_group(per_group_), c(0, 0) {
        Random random(seed);
        std::vector<std::vector<double>> rows;
        for (std::size_t i = 0; i < n; ++i) {
            rows.push_back(random.normals(d));
            for (double& x : rows[i]) x = (x + 0.5) * std::pow(10.0, random.uniform(-2, 2));
        }
        c = dense::gram(rows, ridge);
        const std::vector<double> target = random.normals(d);
        for (const auto& row : rows) linear.push_back(dense::inner(row, target));
    }

    std::vector<double> column(std::size_t i) const {
        std::vector<double> out;
        for (std::size_t j = 0; j < n; ++j) out.push_back(static_cast<double>(c(j, i)));
        return out;
    }
    SwapTable table() const {
        std::vector<double> diagonal;
        std::vector<SwapTable::Range> groups;
        for (std::size_t i = 0; i < n; ++i) {
            diagonal.push_back(static_cast<double>(c(i, i)));
            groups.push_back({i / per_group * per_group, (i / per_group + 1) * per_group});
        }
        return {diagonal, groups, [](auto a, auto xs, auto y) {
                    for (std::size_t m = 0; m < xs.size(); ++m)
                        for (std::size_t j = 0; j < y.size(); ++j) y[j] -= a[m] * xs[m][j];
                }};
    }
    Vector weights(const std::vector<std::size_t>& members) const {
        const auto w = dense::solve(dense::part(c, members), dense::part(linear, members), 1e-18L);
        CHECK(w.has_value());
        return *w;
    }
    Real value(const std::vector<std::size_t>& members) const {
        return dense::inner(weights(members), dense::part(linear, members)) / 2;
    }
};

std::vector<std::size_t> members_of(const SwapTable& table) { return {table.members().begin(), table.members().end()}; }

// Every swap inside a group, and every addition, by the table and by a fit from scratch.
void check_all(const SwapTable& table, const Rows& rows, Real tolerance) {
    const std::vector<std::size_t> members = members_of(table);
    const Vector w = rows.weights(members);
    const Real now = rows.value(members);
    std::vector<double> narrow, linear(rows.linear.begin(), rows.linear.end());
    for (const Real x : w) narrow.push_back(static_cast<double>(x));
    const std::vector<double> g = table.correlations(linear, narrow);
    const auto is_member = [&](std::size_t i) { return std::find(members.begin(), members.end(), i) != members.end(); };
    for (std::size_t i = 0; i < rows.n; ++i) {
        if (is_member(i)) {
            CHECK(table.schur(i) == 0.0);
            continue;
        }
        std::vector<std::size_t> with = members;
        with.push_back(i);
        const Real gain = rows.value(with) - now;
        CHECK_CLOSE(g[i] * g[i] / (2 * table.schur(i)), gain, tolerance * now);
        for (std::size_t m = 0; m < members.size(); ++m) {
            if (i < table.group(m).begin || i >= table.group(m).end) continue;
            with = members;
            with[m] = i;
            const double h = table.coefficient(i, m), p = table.inverse_diagonal(m), share = narrow[m] / p;
            const double height = g[i] + share * h, s = table.schur(i) + h * h / p;
            CHECK_CLOSE(height * height / (2 * s) - narrow[m] * share / 2, rows.value(with) - now, tolerance * now);
        }
    }
}

}  // namespace

TEST_CASE(closed_form_of_a_swap_equals_a_fresh_fit) {
    for (std::uint64_t seed = 0; seed < 10; ++seed) {
        const Rows rows(seed, 3, 6, seed % 2 ? 12 : 40, seed % 2 ? 0.1L : 0.0L);
        SwapTable table = rows.table();
        for (const std::size_t i : {1, 2, 7, 9, 13, 16}) {
            table.add(i, rows.column(i), kLeastShare);
            check_all(table, rows, 1e-9L);
        }
        table.drop(2);
        check_all(table, rows, 1e-9L);
        table.drop(table.size() - 1);
        check_all(table, rows, 1e-9L);
        table.add(3, rows.column(3), kLeastShare);
        check_all(table, rows, 1e-9L);
    }
}

TEST_CASE(long_runs_stay_near_a_fresh_table) {
    for (std::uint64_t seed = 20; seed < 24; ++seed) {
        const Rows rows(seed, 4, 8, 48, 0.05L);
        SwapTable table = rows.table();
        Random random(seed);
        for (int step = 0; step < 300; ++step) {
            if (table.size() > 12 || (table.size() > 2 && random.chance(0.4))) {
                table.drop(random.below(table.size()));
                continue;
            }
            const std::size_t i = random.below(rows.n);
            const std::vector<std::size_t> members = members_of(table);
            if (std::find(members.begin(), members.end(), i) == members.end())
                table.add(i, rows.column(i), kLeastShare);
        }
        SwapTable fresh = table;
        fresh.rebuild(kLeastShare);
        CHECK(members_of(fresh) == members_of(table));
        for (std::size_t i = 0; i < rows.n; ++i)
            CHECK_CLOSE(table.schur(i), fresh.schur(i), 1e-9L * static_cast<Real>(table.diagonal(i)));
        check_all(table, rows, 1e-9L);
        check_all(fresh, rows, 1e-9L);
    }
}

TEST_CASE(coefficients_of_a_row) {
    const Rows rows(30, 2, 5, 20, 0.0L);
    SwapTable table = rows.table();
    for (const std::size_t i : {0, 4, 6}) table.add(i, rows.column(i), kLeastShare);
    for (std::size_t i = 0; i < rows.n; ++i) {
        const std::vector<double> h = table.coefficients_of(i);
        Vector column;
        for (const std::size_t member : table.members()) column.push_back(rows.c(i, member));
        const auto expected = dense::solve(dense::part(rows.c, members_of(table)), column);
        for (std::size_t m = 0; m < h.size(); ++m) {
            const Real unit = std::sqrt(rows.c(i, i) / rows.c(table.members()[m], table.members()[m]));
            CHECK_CLOSE(h[m], (*expected)[m], 1e-10L * unit);
        }
    }
}
