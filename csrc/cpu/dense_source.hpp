// Rows of G in memory, in their storage type and layout, read in place.
#pragma once

#include <span>
#include <vector>

#include "cpu/candidate_scores.hpp"
#include "cpu/kernels.hpp"
#include "cpu/thread_team.hpp"
#include "cpu/vectors.hpp"
#include "pysubmod/source.hpp"

namespace pysubmod::cpu {

// One pass over the eligible rows for each pick (two products in the same pass for rule = greedy). Of size d it keeps
// the target, the residual and one row in float64; of size n a handful of vectors; for greedy also n x k deflated
// columns.
class DenseSource {
  public:
    // Blocks follow one another in row order and share d. Throws InvalidArgument, naming the row, for NaN, infinity, or
    // norms whose squares leave float64's range. Only the rows in `pool` (distinct, ascending) are ever read.
    DenseSource(std::vector<RowBlock> blocks, std::span<const double> target, std::vector<Index> pool,
                const Options& options, ThreadTeam& team, const KernelSet& kernels);

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
    Best best(const PartitionMatroid& matroid, Ask ask);
    Shortlist shortlist(const PartitionMatroid& matroid, Ask ask);
    double correlation(Index i) const { return scores_.correlation(i); }
    void mark(Index i, Mark mark) { scores_.mark(i, mark); }
    void clear_barred() { scores_.clear_barred(); }

    void restart();
    void columns(std::span<const Index> members, std::span<const Index> rows, std::span<double* const> outs);

    void subtract(std::span<const double> a, std::span<const double* const> xs, std::span<double> y) {
        subtract_vectors(a, xs, y, team_, kernels_);
    }

    void deflate(Index i, std::span<const double> l, double l_end);
    bool is_exact(Index i) const { return scores_.is_exact(i); }
    void set_exact(Index i, double score) { scores_.set_exact(i, score); }

    Index passes() const { return passes_; }
    double bytes_read() const { return bytes_read_; }

  private:
    // Columns read at a time, so that x stays in the nearest caches; fewer where rows must be packed first.
    static constexpr std::size_t kChunk = 4096;
    static constexpr std::size_t kPackedChunk = 1024;
    static constexpr std::size_t kWidenedChunk = 1024;  // 64 rows as factors: 512 KB
    static constexpr std::size_t kTile = 64;            // rows to a task at most
    // Bytes; the odd line keeps rows out of each other's cache sets.
    static constexpr std::size_t kPackedRow = kPackedChunk * 8 + 64;

    struct Location {
        const RowBlock* block;
        const std::byte* data;
    };
    struct Workspace {
        std::vector<double> lanes, widened;
        std::vector<const double*> xs;
        std::vector<std::byte> packed;
    };
    struct PendingColumn {
        std::vector<double> row;  // the row of G whose column of K is wanted
        std::vector<double> l;
        double l_end;
    };

    Location locate(Index i) const;
    double bytes_of(std::size_t rows) const { return static_cast<double>(rows) * row_bytes_; }
    void prepare(std::size_t n, const Options& options);
    void check_squares(std::span<const Index> rows, std::span<const double> squares) const;
    void refresh(const PartitionMatroid& matroid);
    void apply_columns(std::span<const Index> rows, std::span<const std::vector<double>> columns);

    // What rows are multiplied by: vectors of length d (nullptr: each row by itself), or rows of G, widened a piece at
    // a time.
    struct Factors {
        std::span<const double* const> vectors;
        std::span<const Index> rows;
        std::size_t size() const { return vectors.size() + rows.size(); }
    };
    // outs[v][j] = <row rows[j], factor v>. The only loop over the data.
    void multiply(std::span<const Index> rows, const Factors& factors, std::span<double* const> outs);
    void multiply(std::span<const Index> rows, std::span<const double* const> xs, std::span<double* const> outs) {
        multiply(rows, Factors{xs, {}}, outs);
    }
    void multiply_tile(std::span<const Index> rows, const Factors& factors, Workspace& work);
    // The factors from this column on, m entries.
    void point_to(const Factors& factors, std::size_t column, std::size_t m, Workspace& work) const;
    void widen_row(Index i, std::vector<double>& out);
    // out = from - sum of x[m] * row members[m].
    void subtract_rows(std::span<const double> from, std::span<const Index> members, std::span<const double> x,
                       std::span<double> out);
    // The m columns from `column` on of these rows, contiguous: in place where they are, else packed into `work`.
    void gather(std::span<const Index> rows, std::size_t column, std::size_t m, Workspace& work,
                const std::byte** out) const;

    std::vector<RowBlock> blocks_;
    std::vector<Index> first_row_;
    std::size_t d_ = 0;
    double row_bytes_ = 0.0;
    std::size_t chunk_ = kChunk;
    std::span<const double> target_;
    double target_norm_ = 0.0;
    double ridge_ = 0.0;
    double tilt_ = 0.0;
    bool greedy_ = false;
    ThreadTeam& team_;
    const KernelSet& kernels_;
    CandidateScores scores_;
    std::vector<Workspace> workspaces_;

    std::vector<double> residual_, wide_row_;
    std::vector<double> weight_of_;  // by row, for the ridge term
    std::vector<Index> weighted_;    // rows with a weight
    std::vector<double> square_;     // diag K
    bool stale_ = false;             // g is older than the weights
    std::vector<Index> eligible_;
    std::vector<PendingColumn> pending_;
    std::vector<std::vector<double>> deflated_;  // greedy: columns of L^-1 applied to K, over `pool_`
    std::vector<Index> pool_;

    Index passes_ = 0;
    double bytes_read_ = 0.0;
};

static_assert(Source<DenseSource>);

}  // namespace pysubmod::cpu
