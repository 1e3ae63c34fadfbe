// A Cholesky factor that grows by one row at a time and loses any row by Givens rotations.
#pragma once

#include <cmath>
#include <span>
#include <vector>

#include "pysubmod/error.hpp"
#include "pysubmod/small_vector_ops.hpp"
#include "pysubmod/types.hpp"

namespace pysubmod {

// C = L L', L lower triangular, float64. Rows are stored one after another in a packed triangle, so appending never
// moves what is there.  append: O(m^2); drop(j): O((m - j)^2); solves: O(m^2).
class GrowingCholesky {
  public:
    explicit GrowingCholesky(double rank_tolerance = kRankTolerance) : rank_tolerance_(rank_tolerance) {}

    std::size_t size() const { return size_; }
    std::span<const double> row(std::size_t i) const { return {packed_.data() + i * (i + 1) / 2, i + 1}; }

    // The Schur complement of a new diagonal entry `c_ii` given its column `c` against the current rows; leaves
    // L^-1 c, the new row of the factor, in `l`.
    double schur_complement(std::span<const double> c, double c_ii, std::vector<double>& l) const {
        copy_into(l, c);
        solve_lower(l);
        return c_ii - dot(l.data(), l.data(), l.size());
    }

    // Whether a Schur complement is too small, relative to its diagonal, to be told from zero.
    bool dependent(double schur, double c_ii) const { return !(schur > rank_tolerance_ * c_ii); }

    // Adds a row; false, and nothing changed, if it is dependent on the rows already there. Throws InvalidArgument when
    // C is not positive semidefinite (only a Gram matrix given by the caller can be so).
    bool append(std::span<const double> c, double c_ii) {
        const auto trust = [](double schur) { return schur; };
        return append(c, c_ii, trust);
    }
    // The same, but `confirm(schur)` may give a better value of the Schur complement than rounding left here.
    template <class Confirm>
    bool append(std::span<const double> c, double c_ii, const Confirm& confirm) {
        const double schur = confirm(schur_complement(c, c_ii, scratch_));
        if (schur < -kClearlyNegative * c_ii)
            throw InvalidArgument("K: the Gram matrix is not positive semidefinite; K = G G' always is");
        if (dependent(schur, c_ii)) return false;
        packed_.insert(packed_.end(), scratch_.begin(), scratch_.end());
        packed_.push_back(std::sqrt(schur));
        ++size_;
        return true;
    }

    // Removes row j. Rows below it lose one column; rotations from the right make them triangular again.
    void drop(std::size_t j) {
        rotations_.resize(size_);
        for (std::size_t i = j + 1; i < size_; ++i) {
            // Row i moves up to place i - 1; its first i + 1 entries are still needed, and they fit: copy them out
            // first.
            scratch_.assign(row(i).begin(), row(i).end());
            for (std::size_t p = j; p + 1 < i; ++p) {
                const auto [cosine, sine] = rotations_[p];
                const double left = scratch_[p];
                const double right = scratch_[p + 1];
                scratch_[p] = cosine * left + sine * right;
                scratch_[p + 1] = cosine * right - sine * left;
            }
            const double radius = std::hypot(scratch_[i - 1], scratch_[i]);
            rotations_[i - 1] = {scratch_[i - 1] / radius, scratch_[i] / radius};
            scratch_[i - 1] = radius;
            double* target = packed_.data() + (i - 1) * i / 2;
            for (std::size_t p = 0; p < i; ++p) target[p] = scratch_[p];
        }
        shrink(size_ - 1);
    }

    // Forgets the rows that came last; the first `size` stay.
    void shrink(std::size_t size) {
        size_ = size;
        packed_.resize(size_ * (size_ + 1) / 2);
    }

    // x <- L^-1 x
    void solve_lower(std::span<double> x) const {
        for (std::size_t i = 0; i < size_; ++i) {
            const double* l = packed_.data() + i * (i + 1) / 2;
            x[i] = (x[i] - dot(l, x.data(), i)) / l[i];
        }
    }

    // x <- L^-T x
    void solve_upper(std::span<double> x) const {
        for (std::size_t i = size_; i-- > 0;) {
            const double* l = packed_.data() + i * (i + 1) / 2;
            x[i] /= l[i];
            add_scaled(-x[i], l, x.data(), i);
        }
    }

    // x <- C^-1 x
    void solve(std::span<double> x) const {
        solve_lower(x);
        solve_upper(x);
    }

  private:
    // Rounding alone, in a factor with rows at the rank tolerance, makes a zero Schur complement come out near +-1e-6
    // c_ii.
    static constexpr double kClearlyNegative = 1e-3;

    struct Rotation {
        double cosine, sine;
    };
    std::vector<double> packed_;
    std::size_t size_ = 0;
    double rank_tolerance_;
    std::vector<double> scratch_;
    std::vector<Rotation> rotations_;
};

}  // namespace pysubmod
