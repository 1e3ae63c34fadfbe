// Which rows can be the best, from float32 products whose error is known.
#pragma once

#include <cmath>
#include <span>
#include <vector>

#include "cpu/candidate_scores.hpp"
#include "cpu/kernels.hpp"
#include "pysubmod/source.hpp"

namespace pysubmod::cpu {

// What Draft and ColumnCache share: the books of who may be taken and has been covered by the passes so far, and the
// scores of all rows with an interval around each.
class Screening {
  public:
    struct Candidate {
        Index row;
        float score;  // as of when it was last formed
    };

    // `scores` and `pool` are the source's and must outlive this object, `squares` (diag K by row) this call.
    Screening(const KernelSet& kernels, const CandidateScores& scores, std::span<const double> squares,
              std::span<const Index> pool, const Options& options);

    std::size_t stride() const { return stride_; }  // the number of rows, filled up for the kernels
    void restart();
    // Row i has another mark now.
    void marked(Index i);
    void clear_barred() { closed_is_stale_ = closed_is_stale_ || any_barred_; }

    // Follows the matroid. False if a row may be taken now that was not when the last pass was planned.
    bool follow(const PartitionMatroid& matroid);
    // The rows that may be taken as of the last `follow`: the next pass covers them (or, with `all`, the pool).
    const std::vector<Index>& cover(bool all);
    const std::vector<Index>& eligible() const { return eligible_; }

    // A row's score from its product; products and score both come divided by `unit`, of which `inverse` is the
    // inverse.
    float score(std::size_t i, float product, float inverse) const {
        if (!offset_.empty()) product += offset_[i] * inverse;
        return (nonneg_ ? product : std::abs(product)) * factor_[i] + closed_[i];
    }
    void set_factor(std::size_t i, float factor) { factor_[i] = factor; }

    // The eligible rows of largest score, `count` of them or all. Without products: by the correlations that the scores
    // hold.
    std::vector<Candidate> best_rows(const float* products, double unit, std::size_t count) const;
    // The rows among which the best one is, each product being off by at most error * sqrt(C_ii). None if that cannot
    // be told, or if there are so many that a pass in float64 is cheaper.
    std::vector<Index> contenders(const float* products, double unit, double error);

  private:
    const KernelSet& kernels_;
    const CandidateScores& scores_;
    std::span<const Index> pool_;
    bool nonneg_;
    std::size_t n_, stride_;
    // By row: score per height; the unit of its error; what the tilt adds to a product (empty without one); 0, or minus
    // infinity for rows that cannot be taken.
    std::vector<float> factor_, unit_, offset_, closed_;
    double largest_offset_share_ = 0.0;  // of an offset, over the root of the row's C_ii
    std::vector<char> open_groups_;
    bool closed_is_stale_ = true, any_barred_ = false;
    std::vector<Index> eligible_;
    std::vector<char> covered_;   // by row
    std::vector<float> at_most_;  // by block of rows: the highest that a score can be
};

}  // namespace pysubmod::cpu
