// What every CPU source keeps for each row, and the argmax over it.
#pragma once

#include <span>
#include <vector>

#include "pysubmod/source.hpp"
#include "pysubmod/types.hpp"

namespace pysubmod::cpu {

class CandidateScores {
  public:
    // `c` and `diagonal` are the linear term and diag C of all n rows; rows that nobody asks about hold zeros.
    // Throws Unbounded if a row without length has a linear term to gain from.
    void reset(std::vector<double> c, std::vector<double> diagonal, double target_norm, const Options& options,
               double rank_tolerance);

    double scale() const { return scale_; }
    double linear(Index i) const { return c_[at(i)]; }
    double diagonal(Index i) const { return diagonal_[at(i)]; }

    // Forgets marks, weights and all that `lower_schur` and `set_exact` said. Until the next restart `best` must be
    // asked with the same candidates and groups; only budgets may change.
    void restart();
    void mark(Index i, Mark mark);
    void clear_barred();
    bool is_selected(Index i) const { return marks_[at(i)] == Mark::selected; }
    Mark mark_of(Index i) const { return marks_[at(i)]; }

    // The correlations; a source writes them before it asks for the best.
    std::span<double> correlations() { return std::span(g_).first(c_.size()); }
    // Tolerances follow the new weights, and scores given by set_exact are forgotten.
    void weights_changed(double scale) {
        scale_ = scale;
        ++round_;
    }

    double correlation(Index i) const { return g_[at(i)]; }

    Best best(const PartitionMatroid& matroid, Ask ask);
    // The best by score of these rows alone, which may be taken and come in ascending order; g are their correlations.
    Best best_of(std::span<const Index> rows, std::span<const double> g);
    Shortlist shortlist(const PartitionMatroid& matroid, Ask ask) const;

    // rule = greedy: the Schur complement of row i loses `squared`.
    void lower_schur(Index i, double squared) { schur_[at(i)] -= squared; }
    // The score of row i is no bound; also where it has none.
    double schur(Index i) const { return schur_[at(i)]; }
    bool is_exact(Index i) const;
    void set_exact(Index i, double score);

  private:
    static std::size_t at(Index i) { return static_cast<std::size_t>(i); }
    double height(std::size_t i) const;
    double improving_score(std::size_t i) const;
    double unit(std::size_t i, Ask ask) const;
    void check_finite(std::size_t i) const;
    void check_open_rows() const;
    void follow(const PartitionMatroid& matroid);
    Best best_improving(const PartitionMatroid& matroid);
    template <bool Nonneg, bool Normalized>
    struct PairOfScores;
    template <bool Nonneg, bool Normalized>
    std::size_t first_of_the_best() const;

    Rule rule_ = Rule::omp;
    bool signed_ranking_ = false;
    bool nonneg_ = true;
    double rank_tolerance_ = kRankTolerance;
    double first_scale_ = 0.0, scale_ = 0.0;
    std::vector<double> c_, diagonal_, root_;  // root = sqrt(C_ii)
    std::vector<double> g_;                    // with zeros up to a whole number of blocks
    std::vector<double> score_;
    std::vector<Mark> marks_;
    std::vector<Index> barred_;
    // What `best` looks at, in whole blocks: root_ of the rows that may be picked, infinity of all others (no score is
    // larger than infinity). Made afresh when a group opens or closes or a mark is taken back.
    std::vector<double> open_root_;
    std::vector<char> group_open_;
    bool open_is_stale_ = true;
    std::vector<double> schur_, exact_;  // greedy only
    std::vector<std::uint64_t> exact_round_;
    std::uint64_t round_ = 1;
};

}  // namespace pysubmod::cpu
