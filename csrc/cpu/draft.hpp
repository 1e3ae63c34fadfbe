// Draft and verify: several picks from one pass over the rows, each of them exact.
#pragma once

#include <array>
#include <cmath>
#include <span>
#include <vector>

#include "cpu/candidate_scores.hpp"
#include "cpu/pass.hpp"
#include "cpu/rows.hpp"
#include "pysubmod/refit.hpp"
#include "pysubmod/source.hpp"

namespace pysubmod::cpu {

// From the present weights on, the pursuit is run ahead on the rows of largest score alone: a few picks, cheaply, with
// the residual after each. One pass then multiplies all eligible rows by all these residuals, in float32. While the
// pursuit's weights are, to the bit, those of the next step, its correlations are at hand up to a known error, and the
// few rows that can be the best within it are all that must be looked at in float64. A wrong draft costs a pass and
// nothing else. For rule = greedy the products are float64, and the columns of K of the drafted picks come with them.
//
// Keeps (m + 1) (12 d + 4 n) bytes for m drafted picks (greedy: (m + 1) (16 d + 16 n)), at most a quarter of what the
// rows have.
class Draft {
  public:
    // `scores`, `target` and `squares` (diag K by row) are the source's and must outlive this object. `n_sharing`
    // problems share every pass.
    Draft(Rows& rows, const CandidateScores& scores, std::span<const double> target, std::span<const double> squares,
          std::span<const Index> pool, const Options& options, std::size_t n_sharing);

    struct Step {
        std::vector<Index> members;
        std::vector<double> weights, residual;
        double norm = 0.0;             // of the residual
        Index next = -1;               // the pick that is foreseen
        std::vector<double> gram_row;  // its row of K against the members
        // rule = greedy, by row: the residual's products and the column of K of the next pick, in float64.
        std::vector<double> products, next_row, column;
    };
    // Whether the products of the present weights are at hand.
    bool covers_present() const { return present_ < steps_.size(); }
    const Step& present() const { return steps_[present_]; }
    // The step that has these weights, now the present one; nullptr if none has.
    const Step* move_to(std::span<const Index> members, std::span<const double> weights);
    // The row of K of the pick that is foreseen at the present step; empty for any other.
    std::span<const double> gram_row(Index i, std::span<const Index> members) const;
    // Its column of K, for rule = greedy.
    std::span<const double> column(Index i) const;

    // Runs ahead from the present weights and says what the pass must give.
    void plan(Pass& pass, const PartitionMatroid& matroid, const Refit& refit, std::span<const double> residual);
    // The pass was made.
    void finish() { present_ = seen_ = 0; }
    // The rows among which the best one is, for the present weights. None if that cannot be told, or if there are so
    // many that a pass in float64 is cheaper.
    std::vector<Index> contenders(const PartitionMatroid& matroid);

    // Row i has another mark now.
    void marked(Index i);
    void clear_barred() { closed_is_stale_ = closed_is_stale_ || any_barred_; }
    void restart();

  private:
    static constexpr std::size_t kNone = static_cast<std::size_t>(-1);
    static constexpr std::size_t kMostSteps = 31;
    struct Candidate {
        Index row;
        float score;  // as of when it was last formed
    };

    void forget();
    void update_closed(const PartitionMatroid& matroid);
    void learn();
    std::size_t n_steps(const PartitionMatroid& matroid, std::size_t members, std::size_t candidates) const;
    void list_eligible();
    std::vector<Candidate> candidates(std::size_t count);
    void run_ahead(PartitionMatroid matroid, Refit refit, std::vector<Candidate> candidates, std::size_t n_steps);
    Index best_candidate(const PartitionMatroid& matroid, std::vector<Candidate>& candidates);
    bool draft_pick(Index i, Refit& refit, Step& step);
    static void set_weights(Step& step, const Refit& refit);

    // A score of the product with a residual scaled to length 1, over that residual's norm.
    float score(std::size_t i, float product, float inverse_norm) const {
        if (!offset_.empty()) product += offset_[i] * inverse_norm;
        return height(product) * factor_[i] + closed_[i];
    }
    float height(float g) const { return nonneg_ ? g : std::abs(g); }

    Rows& rows_;
    const CandidateScores& scores_;
    std::span<const double> target_, squares_;
    std::span<const Index> pool_;
    bool nonneg_, release_zeros_, greedy_;
    double n_sharing_;
    std::size_t n_, stride_, most_steps_;  // stride: n filled up for the kernels
    // By row: score per height; the unit of its error; what the tilt adds to a product (empty without one); 0, or minus
    // infinity for rows that cannot be taken.
    std::vector<float> factor_, unit_, offset_, closed_;
    double largest_offset_share_ = 0.0;  // of an offset, over the row's unit
    std::vector<char> open_groups_;
    bool closed_is_stale_ = true, any_barred_ = false;

    std::vector<Step> steps_;
    std::vector<float> products_;  // [step][row], the residuals scaled to length 1
    std::size_t present_ = kNone;  // the step of the present weights
    std::size_t seen_ = kNone;     // the last step that was the present one: its scores are the newest there are
    // By depth in the draft, of late: picks that were drafted when all before them were right, and how many were right.
    std::array<double, kMostSteps> drafted_{}, right_{};
    std::vector<Index> eligible_;
    std::vector<char> covered_;  // by row: eligible when the pass was made
    std::vector<float> estimates_, candidate_products_;
    std::vector<float> at_most_;  // by block of rows: the highest that a score can be
    std::vector<Index> places_;
};

}  // namespace pysubmod::cpu
