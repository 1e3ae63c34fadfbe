// What every exchange of a member for another row of its group would change, in closed form.
#pragma once

#include <algorithm>
#include <cstddef>
#include <functional>
#include <span>
#include <utility>
#include <vector>

#include "pysubmod/small_vector_ops.hpp"

namespace pysubmod {

// For members A among N rows that stand group by group: P = C_AA^-1, the coefficients H = C_{:,A} P of every row on the
// members of its own group, and the Schur complement s_i of every row given all members. A member enters or leaves by
// rank-one changes, in O(N |A|); rounding makes them worse each time, and `rebuild` starts afresh. Keeps N |A| float64
// numbers, and as many again over the number of groups.
class SwapTable {
  public:
    struct Range {
        std::size_t begin, end;
    };
    // y -= sum over m of a[m] * xs[m]
    using Subtract =
        std::function<void(std::span<const double> a, std::span<const double* const> xs, std::span<double> y)>;

    // The rows' diagonal of C, and the rows of the group that each one is in.
    SwapTable(std::vector<double> diagonal, std::vector<Range> group_of, Subtract subtract)
        : diagonal_(std::move(diagonal)),
          schur_(diagonal_),
          group_of_(std::move(group_of)),
          subtract_(std::move(subtract)) {}

    std::size_t n_rows() const { return diagonal_.size(); }
    std::size_t size() const { return members_.size(); }
    std::span<const std::size_t> members() const { return members_; }  // row numbers, in no fixed order
    double schur(std::size_t row) const { return schur_[row]; }
    double diagonal(std::size_t row) const { return diagonal_[row]; }
    double inverse_diagonal(std::size_t m) const { return inverse_[m][m]; }  // P_mm
    Range group(std::size_t m) const { return group_of_[members_[m]]; }
    double coefficient(std::size_t row, std::size_t m) const {  // H[row, m], for a row of the member's group
        return coefficients_[m][row - group(m).begin];
    }

    // P C_{A,row}: the coefficients of any row on all members.
    std::vector<double> coefficients_of(std::size_t row) const {
        std::vector<double> entries(size()), h(size());
        for (std::size_t m = 0; m < size(); ++m) entries[m] = columns_[m][row];
        for (std::size_t m = 0; m < size(); ++m) h[m] = dot(inverse_[m].data(), entries.data(), size());
        return h;
    }

    // Adds a row by its column of C. A Schur complement below `least_share` of its diagonal is rounding, and is taken
    // to be that.
    void add(std::size_t row, std::vector<double> column, double least_share) {
        const double s = std::max(schur_[row], least_share * diagonal_[row]);
        const std::vector<double> h = coefficients_of(row);
        std::vector<double> rest(column);  // the row's column of the Schur complement
        subtract_(h, pointers(), rest);
        for (std::size_t i = 0; i < n_rows(); ++i) {
            schur_[i] -= rest[i] * rest[i] / s;
            rest[i] /= s;
        }
        for (std::size_t m = 0; m < size(); ++m) {
            shift(m, h[m], rest);
            for (std::size_t a = 0; a < size(); ++a) inverse_[m][a] += h[m] * h[a] / s;
            inverse_[m].push_back(-h[m] / s);
        }
        members_.push_back(row);
        columns_.push_back(std::move(column));
        const auto [begin, end] = group_of_[row];
        coefficients_.emplace_back(rest.data() + begin, rest.data() + end);
        inverse_.emplace_back();
        for (const double x : h) inverse_.back().push_back(-x / s);
        inverse_.back().push_back(1.0 / s);
        forget_rounding();
    }

    // Removes member m; the last one takes its place.
    void drop(std::size_t m) {
        std::vector<double> h(n_rows(), 0.0), p = inverse_[m];  // h = -H[:, m]
        subtract_(p, pointers(), h);
        const double p_mm = p[m];
        for (std::size_t i = 0; i < n_rows(); ++i) schur_[i] += h[i] * h[i] / p_mm;
        for (std::size_t a = 0; a < size(); ++a) {
            const double share = p[a] / p_mm;
            shift(a, -share, h);
            for (std::size_t b = 0; b < size(); ++b) inverse_[a][b] -= share * p[b];
        }
        for (std::vector<double>& row : inverse_) forget(row, m);
        forget(inverse_, m);
        forget(members_, m);
        forget(columns_, m);
        forget(coefficients_, m);
        forget_rounding();
    }

    // The same from the columns alone.
    void rebuild(double least_share) {
        const std::vector<std::size_t> members = std::exchange(members_, {});
        std::vector<std::vector<double>> columns = std::exchange(columns_, {});
        schur_ = diagonal_;
        coefficients_.clear();
        inverse_.clear();
        for (std::size_t m = 0; m < members.size(); ++m) add(members[m], std::move(columns[m]), least_share);
    }

    // g = c - C_{:,A} w
    std::vector<double> correlations(std::span<const double> c, std::span<const double> w) const {
        std::vector<double> g(c.begin(), c.end());
        subtract_(w, pointers(), g);
        return g;
    }

  private:
    std::vector<const double*> pointers() const {
        std::vector<const double*> all;
        for (const std::vector<double>& column : columns_) all.push_back(column.data());
        return all;
    }

    // H[:, m] -= a * x over the group of member m
    void shift(std::size_t m, double a, const std::vector<double>& x) {
        double* h = coefficients_[m].data();
        const double* from = x.data() + group(m).begin;
        for (std::size_t i = 0; i < coefficients_[m].size(); ++i) h[i] -= a * from[i];
    }

    void forget_rounding() {  // nothing is left of members given themselves
        for (const std::size_t member : members_) schur_[member] = 0.0;
    }

    template <class T>
    static void forget(std::vector<T>& list, std::size_t m) {
        std::swap(list[m], list.back());
        list.pop_back();
    }

    std::vector<double> diagonal_, schur_;
    std::vector<Range> group_of_;
    Subtract subtract_;
    std::vector<std::size_t> members_;
    // By member.
    std::vector<std::vector<double>> columns_, coefficients_, inverse_;
};

}  // namespace pysubmod
