// Draft and verify: several picks from one pass over the rows, each of them exact.
#pragma once

#include <array>
#include <span>
#include <vector>

#include "cpu/candidate_scores.hpp"
#include "cpu/pass.hpp"
#include "cpu/rows.hpp"
#include "cpu/screening.hpp"
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
    // `scores`, `target` and `pool` are the source's and must outlive this object; `squares` is diag K by row.
    // `n_sharing` problems share every pass.
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
    // As Screening::contenders, for the present weights.
    std::vector<Index> contenders(const PartitionMatroid& matroid);

    void marked(Index i) { screening_.marked(i); }
    void clear_barred() { screening_.clear_barred(); }
    void restart();

  private:
    static constexpr std::size_t kNone = static_cast<std::size_t>(-1);
    static constexpr std::size_t kMostSteps = 31;
    using Candidate = Screening::Candidate;

    void forget();
    void update_factors();
    void learn();
    std::size_t n_steps(const PartitionMatroid& matroid, std::size_t members, std::size_t candidates) const;
    void run_ahead(PartitionMatroid matroid, Refit refit, std::vector<Candidate> candidates, std::size_t n_steps);
    Index best_candidate(const PartitionMatroid& matroid, std::vector<Candidate>& candidates);
    bool draft_pick(Index i, Refit& refit, Step& step);
    static void set_weights(Step& step, const Refit& refit);

    Rows& rows_;
    const CandidateScores& scores_;
    std::span<const double> target_;
    std::span<const Index> pool_;
    Screening screening_;
    bool release_zeros_, greedy_;
    double n_sharing_;
    std::size_t n_, stride_, most_steps_;

    std::vector<Step> steps_;
    std::vector<float> products_;  // [step][row], the residuals scaled to length 1
    std::size_t present_ = kNone;  // the step of the present weights
    std::size_t seen_ = kNone;     // the last step that was the present one: its scores are the newest there are
    // By depth in the draft, of late: picks that were drafted when all before them were right, and how many were right.
    std::array<double, kMostSteps> drafted_{}, right_{};
    std::vector<float> candidate_products_;
    std::vector<Index> places_;
};

}  // namespace pysubmod::cpu
