// A Gram matrix K and a linear term c, given instead of the rows.
#pragma once

#include <cstring>
#include <span>
#include <vector>

#include "cpu/candidate_scores.hpp"
#include "cpu/dense_source.hpp"
#include "cpu/kernels.hpp"
#include "cpu/thread_team.hpp"
#include "cpu/vectors.hpp"
#include "pysubmod/source.hpp"

namespace pysubmod::cpu {

// K is symmetric (n, n) with contiguous rows, float32 or float64, borrowed. Without the target's norm there are no
// residual norms; c is not known to be in the range of K, so an unbounded problem is possible and is an error.
// Rows of K are checked for NaN and infinity when they are first read: most never are.
class GramSource {
  public:
    GramSource(const RowBlock& gram, std::span<const double> linear, double target_norm, std::span<const Index> pool,
               const Options& options, ThreadTeam& team, const KernelSet& kernels);

    double scale() const { return scores_.scale(); }
    double target_norm() const { return target_norm_; }
    double rank_tolerance() const {
        return gram_.storage == Storage::float64 ? kRankToleranceGram64 : kRankToleranceGram32;
    }
    bool in_range() const { return false; }
    double diagonal(Index i) const { return scores_.diagonal(i); }
    double linear(Index i) const { return scores_.linear(i); }

    void gram_row(Index i, std::span<const Index> members, std::span<double> out);
    bool has_rows() const { return false; }
    double schur_from_rows(Index, std::span<const Index>, std::span<const double>) { return kUnknown; }
    double set_weights(std::span<const Index> members, std::span<const double> weights, double scale);
    void correlations(std::span<const Index> rows, std::span<double> out);
    bool ready() const { return !stale_; }
    void read(const PartitionMatroid&, const Refit&) { refresh(); }
    Best best(const PartitionMatroid& matroid, Ask ask);
    Shortlist shortlist(const PartitionMatroid& matroid, Ask ask);
    double correlation(Index i) const { return scores_.correlation(i); }
    void mark(Index i, Mark mark) { scores_.mark(i, mark); }
    void clear_barred() { scores_.clear_barred(); }

    void restart();
    void columns(std::span<const Index> members, std::span<const Index> rows, std::span<double* const> outs);

    void subtract(std::span<const double> a, std::span<const double* const> xs, std::span<double> y) {
        subtract_vectors(a, xs, y, team_, all_kernels_);
    }

    void deflate(Index i, std::span<const double> l, double l_end);
    bool is_exact(Index i) const { return scores_.is_exact(i); }
    void set_exact(Index i, double score) { scores_.set_exact(i, score); }

    Route route() const { return Route::gram; }
    Index passes() const { return passes_; }
    double bytes_read() const { return bytes_read_; }

  private:
    const std::byte* row(Index i) const { return gram_.data + i * gram_.row_stride; }
    double entry(Index i, Index j) const {
        const std::byte* from = row(i) + j * static_cast<Index>(item_size(gram_.storage));
        if (gram_.storage == Storage::float64) return read<double>(from);
        return static_cast<double>(read<float>(from));
    }
    template <class Number>
    static Number read(const std::byte* from) {
        Number x;
        std::memcpy(&x, from, sizeof x);
        return x;
    }
    double checked_diagonal(Index i) const;
    void check(Index i);
    void learn(std::span<const Index> members);
    void refresh();

    RowBlock gram_;
    const KernelSet& all_kernels_;
    const Kernels& kernels_;  // of K's type
    ThreadTeam& team_;
    std::size_t n_ = 0;
    double target_norm_;
    double ridge_, tilt_;
    CandidateScores scores_;
    std::vector<double> linear_;        // c, tilt included
    std::vector<double> plain_linear_;  // G t alone
    std::vector<Index> weighted_;
    std::vector<double> weights_;
    bool stale_ = false;
    // K among the members of the last set_weights: K[b, a] at a * stride_ + b, for sums over a that run along b.
    std::vector<Index> members_;
    std::vector<double> member_gram_, products_;
    std::size_t stride_ = 0;
    std::vector<char> is_checked_;  // by row
    std::vector<double> zeros_;
    std::vector<double> wide_row_;
    std::vector<std::vector<double>> deflated_;
    Index passes_ = 0;
    double bytes_read_ = 0.0;
};

static_assert(Source<GramSource>);

}  // namespace pysubmod::cpu
