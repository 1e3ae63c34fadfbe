#include "cpu/rows.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "pysubmod/error.hpp"

namespace pysubmod::cpu {
namespace {

// Squares and their products must stay inside float64: outside these bounds a norm is refused rather than rounded to 0
// or inf.
constexpr double kLargestSquare = 1e280;
constexpr double kSmallestSquare = 1e-280;

std::size_t at(Index i) { return static_cast<std::size_t>(i); }

// Copies m entries of each row, `stride` bytes apart, to contiguous rows `packed_row` bytes apart. Blocks of columns
// keep both the lines that are read and those that are written in the first-level cache, whichever of the two strides
// is the long one.
template <std::size_t Size>
void pack_rows(const std::byte* const* rows, std::size_t count, std::ptrdiff_t stride, std::size_t m, std::byte* packed,
               std::size_t packed_row) {
    constexpr std::size_t kColumns = 16;
    for (std::size_t begin = 0; begin < m; begin += kColumns) {
        const std::size_t end = std::min(begin + kColumns, m);
        for (std::size_t r = 0; r < count; ++r) {
            const std::byte* from = rows[r] + static_cast<std::ptrdiff_t>(begin) * stride;
            std::byte* to = packed + r * packed_row + begin * Size;
            for (std::size_t j = begin; j < end; ++j, from += stride, to += Size) std::memcpy(to, from, Size);
        }
    }
}

}  // namespace

Rows::Rows(std::vector<RowBlock> blocks, std::size_t d, ThreadTeam& team, const KernelSet& kernels)
    : blocks_(std::move(blocks)), d_(d), team_(team), kernels_(kernels), workspaces_(at(team.size())) {
    for (const RowBlock& block : blocks_) {
        first_row_.push_back(static_cast<Index>(n_));
        n_ += at(block.rows);
        if (block.column_stride != static_cast<std::ptrdiff_t>(item_size(block.storage)))
            chunk_ = kPackedChunk, all_contiguous_ = false;
        all_float32_ = all_float32_ && block.storage == Storage::float32;
        row_bytes_ = std::max(row_bytes_, static_cast<double>(d_ * item_size(block.storage)));
    }
}

void Rows::check_squares(std::span<const Index> rows, std::span<const double> squares) const {
    for (std::size_t j = 0; j < rows.size(); ++j) {
        if (squares[j] >= kSmallestSquare && squares[j] <= kLargestSquare) continue;
        const auto [block, data] = locate(rows[j]);
        bool zero = true, finite = true;
        for (std::size_t k = 0; k < d_; ++k) {
            double x = 0.0;
            kernels_.by_type[static_cast<std::size_t>(block->storage)].widen(
                data + static_cast<std::ptrdiff_t>(k) * block->column_stride, &x, 1);
            zero = zero && x == 0.0;
            finite = finite && std::isfinite(x);
        }
        if (zero) continue;
        const std::string where = "G: row " + std::to_string(rows[j]);
        if (!finite) throw InvalidArgument(where + " contains NaN or infinity; remove it or mask it with candidates");
        throw InvalidArgument(where +
                              " has a norm outside 1e-140 .. 1e140, whose square float64 cannot hold; rescale G");
    }
}

Rows::Location Rows::locate(Index i) const {
    std::size_t b = 0;
    if (blocks_.size() > 1)
        b = static_cast<std::size_t>(std::upper_bound(first_row_.begin(), first_row_.end(), i) - first_row_.begin()) -
            1;
    const RowBlock& block = blocks_[b];
    return {&block, block.data + (i - first_row_[b]) * block.row_stride};
}

void Rows::gather(std::span<const Index> rows, std::size_t column, std::size_t m, Workspace& work,
                  const std::byte** out) const {
    for (std::size_t r = 0; r < rows.size(); ++r) {
        const auto [block, data] = locate(rows[r]);
        out[r] = data + static_cast<std::ptrdiff_t>(column) * block->column_stride;
    }
    if (all_contiguous_) return;
    // Runs of rows of one block that are not contiguous are packed together: in column-major G they share cache lines.
    for (std::size_t r = 0, end = 0; r < rows.size(); r = end) {
        const RowBlock& block = *locate(rows[r]).block;
        for (end = r + 1; end < rows.size() && locate(rows[end]).block == &block;) ++end;
        const std::size_t size = item_size(block.storage);
        if (block.column_stride == static_cast<std::ptrdiff_t>(size)) continue;
        work.packed.resize(kTile * kPackedRow);
        std::byte* packed = work.packed.data() + r * kPackedRow;
        const auto pack = size == 2 ? pack_rows<2> : size == 4 ? pack_rows<4> : pack_rows<8>;
        pack(out + r, end - r, block.column_stride, m, packed, kPackedRow);
        for (std::size_t i = r; i < end; ++i) out[i] = packed + (i - r) * kPackedRow;
    }
}

void Rows::point_to(const Factors& factors, std::size_t column, std::size_t m, Workspace& work) const {
    work.xs.clear();
    for (const double* vector : factors.vectors) work.xs.push_back(vector ? vector + column : nullptr);
    work.widened.resize(factors.rows.size() * m);
    for (std::size_t v = 0; v < factors.rows.size(); ++v) {
        const std::byte* pointer = nullptr;
        gather(factors.rows.subspan(v, 1), column, m, work, &pointer);
        double* x = work.widened.data() + v * m;
        kernels_.by_type[static_cast<std::size_t>(locate(factors.rows[v]).block->storage)].widen(pointer, x, m);
        work.xs.push_back(x);
    }
}

// Lane sums of one tile, all factors, in work.lanes[v][row][lane].
void Rows::multiply_tile(std::span<const Index> rows, const Factors& factors, Workspace& work) {
    work.lanes.assign(factors.size() * kTile * kLanes, 0.0);
    const std::byte* pointers[kTile];
    const std::size_t chunk = factors.rows.empty() ? chunk_ : std::min(chunk_, kWidenedChunk);
    for (std::size_t column = 0; column < d_; column += chunk) {
        const std::size_t m = std::min(chunk, d_ - column);
        point_to(factors, column, m, work);
        gather(rows, column, m, work, pointers);
        const bool squares = std::find(work.xs.begin(), work.xs.end(), nullptr) != work.xs.end();
        for (std::size_t r = 0; r < rows.size();) {
            // Rows at once must share a storage type.
            const Storage type = locate(rows[r]).block->storage;
            std::size_t count = 1;
            while (count < kRowsAtOnce && r + count < rows.size() && locate(rows[r + count]).block->storage == type)
                ++count;
            const Kernels& kernels = kernels_.by_type[static_cast<std::size_t>(type)];
            if (!squares)
                kernels.accumulate_many(pointers + r, count, work.xs.data(), work.xs.size(), m,
                                        work.lanes.data() + r * kLanes, kTile);
            for (std::size_t v = 0; squares && v < work.xs.size(); ++v) {
                double* lanes = work.lanes.data() + (v * kTile + r) * kLanes;
                if (work.xs[v])
                    kernels.accumulate(pointers + r, count, work.xs[v], m, lanes);
                else
                    kernels.accumulate_squares(pointers + r, count, m, lanes);
            }
            r += count;
        }
    }
}

template <class Use>
void Rows::for_tiles(std::size_t rows, Use use) {
    // Short lists in small tiles, so that there is work for every thread.
    const std::size_t share = rows / (4 * at(team_.size())) / kRowsAtOnce * kRowsAtOnce;
    const std::size_t tile_rows = std::clamp(share, kRowsAtOnce, kTile);
    const double bytes = bytes_of(rows);
    bytes_read_ += bytes;
    team_.run(static_cast<Index>((rows + tile_rows - 1) / tile_rows), bytes, [&](Index tile, int worker) {
        const std::size_t begin = at(tile) * tile_rows;
        use(begin, std::min(tile_rows, rows - begin), workspaces_[static_cast<std::size_t>(worker)]);
    });
}

void Rows::multiply(std::span<const Index> rows, const Factors& factors, std::span<double* const> outs,
                    std::span<const Index> places) {
    for_tiles(rows.size(), [&](std::size_t begin, std::size_t count, Workspace& work) {
        multiply_tile(rows.subspan(begin, count), factors, work);
        for (std::size_t v = 0; v < factors.size(); ++v)
            for (std::size_t r = 0; r < count; ++r)
                outs[v][places.empty() ? begin + r : at(places[begin + r])] =
                    join_lanes(work.lanes.data() + (v * kTile + r) * kLanes);
    });
}

void Rows::add_to(Screen& screen, std::span<const double> x, double scale) const {
    const std::size_t begin = screen.size++ * screen_stride();
    screen.xs.resize(begin + screen_stride());
    for (std::size_t j = 0; j < d_; ++j) screen.xs[begin + j] = static_cast<float>(scale * x[j]);
    std::fill(screen.xs.begin() + static_cast<std::ptrdiff_t>(begin + d_), screen.xs.end(), 0.0f);
}

void Rows::add_row_to(Screen& screen, Index i, double scale) {
    const std::size_t begin = screen.size++ * screen_stride();
    screen.xs.resize(begin + screen_stride());
    const Storage type = locate(i).block->storage;
    for (std::size_t column = 0; column < d_; column += kScreenColumns) {
        const std::size_t m = std::min(kScreenColumns, d_ - column);
        const std::byte* pointer = nullptr;
        gather({&i, 1}, column, m, workspaces_[0], &pointer);
        float* x = screen.xs.data() + begin + column;
        kernels_.by_type[static_cast<std::size_t>(type)].narrow(pointer, x, m);
        for (std::size_t j = 0; j < m; ++j) x[j] *= static_cast<float>(scale);
    }
    std::fill(screen.xs.begin() + static_cast<std::ptrdiff_t>(begin + d_), screen.xs.end(), 0.0f);
}

// m numbers of row i in float32, in the workspace.
const std::byte* Rows::narrowed(Index i, const std::byte* from, std::size_t place, std::size_t m,
                                Workspace& work) const {
    const Storage type = locate(i).block->storage;
    if (type == Storage::float32) return from;
    float* to = work.narrowed.data() + place * kScreenColumns;
    kernels_.by_type[static_cast<std::size_t>(type)].narrow(from, to, m);
    return reinterpret_cast<const std::byte*>(to);
}

// Sums of one tile, all vectors, in work.sums[v][row]. `coming` are the rows of the next tile, if any.
void Rows::screen_tile(std::span<const Index> rows, std::span<const Index> coming, const Screen& screen,
                       Workspace& work) {
    work.sums.assign(screen.size * kTile, 0.0);
    work.narrowed.resize(kRowsAtOnce * kScreenColumns);
    const std::byte* pointers[kTile];
    for (std::size_t column = 0; column < d_; column += kScreenColumns) {
        const std::size_t m = std::min(kScreenColumns, d_ - column);
        gather(rows, column, m, work, pointers);
        for (std::size_t r = 0; r < rows.size(); r += kRowsAtOnce) {
            ScreenRows four;
            four.next_item = static_cast<std::size_t>(row_bytes_) / d_;
            for (std::size_t i = 0; i < kRowsAtOnce; ++i) {
                const std::size_t row = std::min(r + i, rows.size() - 1);  // the last one again, for sums nobody reads
                four.rows[i] = all_float32_ ? pointers[row] : narrowed(rows[row], pointers[row], i, m, work);
                // After the last rows of the tile come the next columns of the first, or the next tile.
                if (row + kRowsAtOnce < rows.size())
                    four.next[i] = pointers[row + kRowsAtOnce];
                else if (column + m < d_ || i >= coming.size())
                    four.next[i] = pointers[std::min(i, rows.size() - 1)] + m * four.next_item;
                else
                    four.next[i] = locate(coming[i]).data;
            }
            kernels_.screen(four, screen.xs.data() + column, screen_stride(), screen.size, m, work.sums.data() + r,
                            kTile);
        }
    }
}

void Rows::screen(std::span<const Index> rows, std::span<const Index> places, const Screen& screen,
                  std::span<float* const> outs) {
    for_tiles(rows.size(), [&](std::size_t begin, std::size_t count, Workspace& work) {
        screen_tile(rows.subspan(begin, count), rows.subspan(begin + count), screen, work);
        for (std::size_t v = 0; v < screen.size; ++v)
            for (std::size_t r = 0; r < count; ++r)
                outs[v][at(places[begin + r])] = static_cast<float>(work.sums[v * kTile + r]);
    });
}

void Rows::widen(Index i, std::vector<double>& out) {
    out.resize(d_);
    const Index rows[] = {i};
    const Storage type = locate(i).block->storage;
    for (std::size_t column = 0; column < d_; column += chunk_) {
        const std::size_t m = std::min(chunk_, d_ - column);
        const std::byte* pointer = nullptr;
        gather(rows, column, m, workspaces_[0], &pointer);
        kernels_.by_type[static_cast<std::size_t>(type)].widen(pointer, out.data() + column, m);
    }
}

// Member by member in a fixed order, one chunk of columns to a task.
void Rows::subtract(std::span<const double> from, std::span<const Index> members, std::span<const double> x,
                    std::span<double> out) {
    std::vector<Index> rows;
    std::vector<double> factors;
    for (std::size_t j = 0; j < members.size(); ++j) {
        if (x[j] == 0.0) continue;
        rows.push_back(members[j]);
        factors.push_back(-x[j]);
    }
    const double bytes = bytes_of(rows.size());
    bytes_read_ += bytes;
    constexpr std::size_t kColumns = 2048;
    const std::size_t chunk = std::min(chunk_, kColumns);
    team_.run(static_cast<Index>((d_ + chunk - 1) / chunk), bytes, [&](Index task, int worker) {
        const std::size_t column = at(task) * chunk;
        const std::size_t m = std::min(chunk, d_ - column);
        double* r = out.data() + column;
        std::copy_n(from.data() + column, m, r);
        const std::byte* pointers[kTile];
        for (std::size_t begin = 0; begin < rows.size(); begin += kTile) {
            const std::span<const Index> tile = std::span(rows).subspan(begin, std::min(kTile, rows.size() - begin));
            gather(tile, column, m, workspaces_[static_cast<std::size_t>(worker)], pointers);
            for (std::size_t j = 0, count = 0; j < tile.size(); j += count) {
                const Storage type = locate(tile[j]).block->storage;
                for (count = 1; j + count < tile.size() && locate(tile[j + count]).block->storage == type;) ++count;
                kernels_.by_type[static_cast<std::size_t>(type)].add_rows(factors.data() + begin + j, pointers + j,
                                                                          count, r, m);
            }
        }
    });
}

void Rows::gram_row(Index i, std::span<const Index> members, std::span<double> out) {
    if (members.empty()) return;
    widen(i, wide_row_);
    multiply(members, wide_row_.data(), out);
}

}  // namespace pysubmod::cpu
