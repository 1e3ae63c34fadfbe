// Rows of G in memory, in their storage type and layout, read in place, and the products with them.
#pragma once

#include <span>
#include <utility>
#include <vector>

#include "cpu/kernels.hpp"
#include "cpu/thread_team.hpp"
#include "pysubmod/types.hpp"

namespace pysubmod::cpu {

class Rows {
  public:
    // Blocks follow one another in row order and have d columns each. Nothing is read yet.
    Rows(std::vector<RowBlock> blocks, std::size_t d, ThreadTeam& team, const KernelSet& kernels);

    std::size_t size() const { return n_; }
    std::size_t width() const { return d_; }
    ThreadTeam& team() const { return team_; }
    const KernelSet& kernels() const { return kernels_; }
    // The bytes of a row, of the widest storage type among the blocks.
    double row_bytes() const { return row_bytes_; }
    double bytes_read() const { return bytes_read_; }

    // What rows are multiplied by: vectors of length d (nullptr: each row by itself), or rows of G, widened a piece at
    // a time.
    struct Factors {
        std::span<const double* const> vectors;
        std::span<const Index> rows;
        std::size_t size() const { return vectors.size() + rows.size(); }
    };
    // outs[v][j] = <row rows[j], factor v>, in float64, in one pass; with `places`, outs[v][places[j]].
    void multiply(std::span<const Index> rows, const Factors& factors, std::span<double* const> outs,
                  std::span<const Index> places = {});
    void multiply(std::span<const Index> rows, std::span<const double* const> xs, std::span<double* const> outs) {
        multiply(rows, Factors{xs, {}}, outs);
    }
    // out[j] = <row rows[j], x>
    void multiply(std::span<const Index> rows, const double* x, std::span<double> out) {
        const double* xs[] = {x};
        double* outs[] = {out.data()};
        multiply(rows, xs, outs);
    }

    // Vectors rounded to float32 for `screen`, one after another, each filled up with zeros.
    struct Screen {
        std::vector<float> xs;
        std::size_t size = 0;
    };
    // A cache line more than a multiple of many: vectors at the same column must not share cache sets.
    std::size_t screen_stride() const { return (d_ / kScreenPadding + 2) * kScreenPadding; }
    // Adds `scale` times x to the vectors of a screen.
    void add_to(Screen& screen, std::span<const double> x, double scale) const;
    void add_row_to(Screen& screen, Index i, double scale);
    // outs[v][places[j]] = <row rows[j], x_v> in float32, in one pass; off by at most screen_error() times both norms
    // if no number under- or overflows.
    void screen(std::span<const Index> rows, std::span<const Index> places, const Screen& screen,
                std::span<float* const> outs);
    double screen_error() const { return kernels_.screen_error; }

    // out = from - sum of x[m] * row members[m], member by member.
    void subtract(std::span<const double> from, std::span<const Index> members, std::span<const double> x,
                  std::span<double> out);

    void widen(Index i, std::vector<double>& out);
    // out[j] = <row i, row members[j]>
    void gram_row(Index i, std::span<const Index> members, std::span<double> out);

    // Throws InvalidArgument, naming the row, for NaN, infinity, or norms whose squares leave float64's range.
    void check_squares(std::span<const Index> rows, std::span<const double> squares) const;

  private:
    // Columns read at a time, so that x stays in the nearest caches; fewer where rows must be packed first.
    static constexpr std::size_t kChunk = 4096;
    static constexpr std::size_t kPackedChunk = 1024;
    static constexpr std::size_t kWidenedChunk = 1024;  // 64 rows as factors: 512 KB
    static constexpr std::size_t kTile = 64;            // rows to a task at most, a multiple of kRowsAtOnce
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
        std::vector<double> sums;
        std::vector<float> narrowed;
    };

    Location locate(Index i) const;
    double bytes_of(std::size_t rows) const { return static_cast<double>(rows) * row_bytes_; }
    // use(begin, count, workspace) for tiles of `rows` rows, on all threads.
    template <class Use>
    void for_tiles(std::size_t rows, Use use);
    void multiply_tile(std::span<const Index> rows, const Factors& factors, Workspace& work);
    void screen_tile(std::span<const Index> rows, std::span<const Index> coming, const Screen& screen, Workspace& work);
    const std::byte* narrowed(Index i, const std::byte* from, std::size_t place, std::size_t m, Workspace& work) const;
    // The factors from this column on, m entries.
    void point_to(const Factors& factors, std::size_t column, std::size_t m, Workspace& work) const;
    // The m columns from `column` on of these rows, contiguous: in place where they are, else packed into `work`.
    void gather(std::span<const Index> rows, std::size_t column, std::size_t m, Workspace& work,
                const std::byte** out) const;

    std::vector<RowBlock> blocks_;
    std::vector<Index> first_row_;
    std::size_t n_ = 0, d_ = 0;
    double row_bytes_ = 0.0;
    std::size_t chunk_ = kChunk;
    bool all_contiguous_ = true, all_float32_ = true;
    ThreadTeam& team_;
    const KernelSet& kernels_;
    std::vector<Workspace> workspaces_;
    std::vector<double> wide_row_;
    double bytes_read_ = 0.0;
};

}  // namespace pysubmod::cpu
