// A problem given by rows: what the pursuit asks, answered from passes over them.
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "cpu/candidate_scores.hpp"
#include "cpu/column_cache.hpp"
#include "cpu/draft.hpp"
#include "cpu/pass.hpp"
#include "cpu/rows.hpp"
#include "cpu/vectors.hpp"
#include "pysubmod/source.hpp"

namespace pysubmod::cpu {

// What the first pass over a pool of rows finds, in the pool's order.
struct FirstPass {
    std::vector<double> squares;                // diag K
    std::vector<std::vector<double>> products;  // G t, a vector for each target
};
// Throws InvalidArgument, naming the row, for NaN, infinity, or norms whose squares leave float64's range.
FirstPass read_first(Rows& rows, std::span<const Index> pool, std::span<const std::span<const double>> targets);

// How a problem's rows are read.
struct Reading {
    Route route = Route::plain;
    std::size_t n_sharing = 1;     // problems that share every pass
    ColumnStore* store = nullptr;  // for the route by columns
};

// Every correlation is a float64 product with the float64 residual. The plain route forms those of all eligible rows in
// one pass for each pick (two products in the same pass for rule = greedy). The others form only those that can be the
// best and find out which in float32 (Screening), from passes that serve several picks (Draft, ColumnCache): the same
// picks, to the bit. Of size d it keeps the target, the residual and one row in float64; of size n a handful of
// vectors; for greedy also n x k deflated columns.
class DenseSource {
  public:
    // Only the rows in `pool` (distinct, ascending) are ever read. `squares` and `products` are read_first's.
    DenseSource(Rows& rows, std::span<const double> target, std::vector<Index> pool, std::span<const double> squares,
                std::span<const double> products, const Options& options, Reading reading);

    double scale() const { return scores_.scale(); }
    double target_norm() const { return target_norm_; }
    double rank_tolerance() const { return kRankTolerance; }
    bool in_range() const { return tilt_ == 0.0; }
    double diagonal(Index i) const { return scores_.diagonal(i); }
    double linear(Index i) const { return scores_.linear(i); }

    void gram_row(Index i, std::span<const Index> members, std::span<double> out);
    bool has_rows() const { return true; }
    double schur_from_rows(Index i, std::span<const Index> members, std::span<const double> x);
    double set_weights(std::span<const Index> members, std::span<const double> weights, double scale);
    void correlations(std::span<const Index> rows, std::span<double> out);
    bool ready() const { return !is_stale() || is_screened(); }
    void read(const PartitionMatroid& matroid, const Refit& refit);
    // The same in three steps, for problems that share a pass: all plan, the pass is made, all finish.
    void plan(Pass& pass, const PartitionMatroid& matroid, const Refit& refit);
    void finish();
    Best best(const PartitionMatroid& matroid, Ask ask);
    Shortlist shortlist(const PartitionMatroid& matroid, Ask ask);
    double correlation(Index i) const { return scores_.correlation(i); }
    void mark(Index i, Mark mark) {
        scores_.mark(i, mark);
        if (draft_) draft_->marked(i);
        if (cache_) cache_->marked(i);
    }
    void clear_barred() {
        scores_.clear_barred();
        if (draft_) draft_->clear_barred();
        if (cache_) cache_->clear_barred();
    }

    void restart();
    void columns(std::span<const Index> members, std::span<const Index> rows, std::span<double* const> outs);

    void subtract(std::span<const double> a, std::span<const double* const> xs, std::span<double> y) {
        subtract_vectors(a, xs, y, rows_.team(), rows_.kernels());
    }

    void deflate(Index i, std::span<const double> l, double l_end);
    bool is_exact(Index i) const { return scores_.is_exact(i); }
    void set_exact(Index i, double score) { scores_.set_exact(i, score); }

    Index passes() const { return passes_; }
    double bytes_read() const { return rows_.bytes_read(); }

  private:
    struct PendingColumn {
        std::vector<double> row;  // the row of G whose column of K is wanted
        std::vector<double> l;
        double l_end;
        std::vector<double> products;  // by row
    };

    // The draft or the columns know the present weights, and nothing else is wanted.
    bool is_screened() const {
        return n_plain_ == 0 && pending_.empty() &&
               ((draft_ && draft_->covers_present()) || (cache_ && cache_->covers_present()));
    }
    bool is_stale() const { return stale_ || !pending_.empty(); }
    Best screened_best(const PartitionMatroid& matroid);
    void refresh(const PartitionMatroid& matroid);
    void plan_all(Pass& pass, const PartitionMatroid& matroid);
    void finish_all();
    void plan_columns(Pass& pass);
    void finish_columns();
    void set_correlations(const std::vector<double>& products, std::span<const Index> rows);
    void apply_column(std::span<const double> products, std::span<const double> l, double l_end);

    Rows& rows_;
    std::span<const double> target_;
    double target_norm_ = 0.0;
    double ridge_ = 0.0;
    double tilt_ = 0.0;
    bool greedy_ = false;
    CandidateScores scores_;
    std::vector<Index> pool_;

    std::vector<double> residual_, wide_row_;
    std::vector<double> weight_of_;  // by row, for the ridge term
    std::vector<Index> weighted_;    // rows with a weight
    std::vector<double> square_;     // diag K
    bool stale_ = false;             // g is older than the weights
    std::vector<Index> eligible_;
    std::vector<double> products_;  // of the residual with all rows
    std::vector<PendingColumn> pending_;
    std::vector<std::vector<double>> deflated_;  // greedy: columns of L^-1 applied to K, over `pool_`
    std::optional<Draft> draft_;
    std::optional<ColumnCache> cache_;
    Index n_plain_ = 0, n_plain_next_ = 2;  // passes in float64 to make before screening is tried again
    bool planned_all_ = false;

    Index passes_ = 1;  // read_first
};

static_assert(Source<DenseSource>);

}  // namespace pysubmod::cpu
