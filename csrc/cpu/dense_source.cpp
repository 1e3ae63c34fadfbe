#include "cpu/dense_source.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "pysubmod/error.hpp"
#include "pysubmod/small_vector_ops.hpp"

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

DenseSource::DenseSource(std::vector<RowBlock> blocks, std::span<const double> target, std::vector<Index> pool,
                         const Options& options, ThreadTeam& team, const KernelSet& kernels)
    : blocks_(std::move(blocks)),
      d_(target.size()),
      target_(target),
      ridge_(options.ridge),
      tilt_(options.tilt),
      greedy_(options.rule == Rule::greedy),
      team_(team),
      kernels_(kernels),
      workspaces_(at(team.size())),
      pool_(std::move(pool)) {
    Index rows = 0;
    for (const RowBlock& block : blocks_) {
        first_row_.push_back(rows);
        rows += block.rows;
        if (block.column_stride != static_cast<std::ptrdiff_t>(item_size(block.storage))) chunk_ = kPackedChunk;
        row_bytes_ = std::max(row_bytes_, static_cast<double>(d_ * item_size(block.storage)));
    }
    residual_.assign(target.begin(), target.end());
    target_norm_ = std::sqrt(dot(target.data(), target.data(), d_));
    weight_of_.assign(at(rows), 0.0);
    prepare(at(rows), options);
}

// Pass 0: c and diag K together, and with them the check that every number is finite.
void DenseSource::prepare(std::size_t n, const Options& options) {
    std::vector<double> products(pool_.size()), squares(pool_.size());
    const double* xs[] = {target_.data(), nullptr};
    double* outs[] = {products.data(), squares.data()};
    multiply(pool_, xs, outs);
    ++passes_;
    check_squares(pool_, squares);
    std::vector<double> c(n, 0.0), diagonal(n, 0.0);
    square_.assign(n, 0.0);
    for (std::size_t j = 0; j < pool_.size(); ++j) {
        const std::size_t i = at(pool_[j]);
        square_[i] = squares[j];
        c[i] = products[j] + 0.5 * tilt_ * squares[j];
        diagonal[i] = squares[j] + ridge_;
        if (!std::isfinite(c[i]))
            throw InvalidArgument("tilt: too large for the norms of G; the linear term overflows");
    }
    scores_.reset(std::move(c), std::move(diagonal), target_norm_, options, rank_tolerance());
    if (!greedy_) std::vector<Index>().swap(pool_);  // only greedy asks for it again
}

void DenseSource::check_squares(std::span<const Index> rows, std::span<const double> squares) const {
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

DenseSource::Location DenseSource::locate(Index i) const {
    std::size_t b = 0;
    if (blocks_.size() > 1)
        b = static_cast<std::size_t>(std::upper_bound(first_row_.begin(), first_row_.end(), i) - first_row_.begin()) -
            1;
    const RowBlock& block = blocks_[b];
    return {&block, block.data + (i - first_row_[b]) * block.row_stride};
}

void DenseSource::gather(std::span<const Index> rows, std::size_t column, std::size_t m, Workspace& work,
                         const std::byte** out) const {
    for (std::size_t r = 0; r < rows.size(); ++r) {
        const auto [block, data] = locate(rows[r]);
        out[r] = data + static_cast<std::ptrdiff_t>(column) * block->column_stride;
    }
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

void DenseSource::point_to(const Factors& factors, std::size_t column, std::size_t m, Workspace& work) const {
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
void DenseSource::multiply_tile(std::span<const Index> rows, const Factors& factors, Workspace& work) {
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

void DenseSource::multiply(std::span<const Index> rows, const Factors& factors, std::span<double* const> outs) {
    // Short lists in small tiles, so that there is work for every thread.
    const std::size_t share = rows.size() / (4 * at(team_.size())) / kRowsAtOnce * kRowsAtOnce;
    const std::size_t tile_rows = std::clamp(share, kRowsAtOnce, kTile);
    const std::size_t n_tiles = (rows.size() + tile_rows - 1) / tile_rows;
    const double bytes = bytes_of(rows.size());
    bytes_read_ += bytes;
    team_.run(static_cast<Index>(n_tiles), bytes, [&](Index tile, int worker) {
        const std::size_t begin = at(tile) * tile_rows;
        const std::size_t count = std::min(tile_rows, rows.size() - begin);
        Workspace& work = workspaces_[static_cast<std::size_t>(worker)];
        multiply_tile(rows.subspan(begin, count), factors, work);
        for (std::size_t v = 0; v < factors.size(); ++v)
            for (std::size_t r = 0; r < count; ++r)
                outs[v][begin + r] = join_lanes(work.lanes.data() + (v * kTile + r) * kLanes);
    });
}

void DenseSource::widen_row(Index i, std::vector<double>& out) {
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

void DenseSource::gram_row(Index i, std::span<const Index> members, std::span<double> out) {
    if (members.empty()) return;
    widen_row(i, wide_row_);
    const double* xs[] = {wide_row_.data()};
    double* outs[] = {out.data()};
    multiply(members, xs, outs);
}

// Member by member in a fixed order, one chunk of columns to a task.
void DenseSource::subtract_rows(std::span<const double> from, std::span<const Index> members, std::span<const double> x,
                                std::span<double> out) {
    const double bytes = bytes_of(members.size());
    bytes_read_ += bytes;
    const auto n_chunks = static_cast<Index>((d_ + chunk_ - 1) / chunk_);
    team_.run(n_chunks, bytes, [&](Index chunk, int worker) {
        const std::size_t column = at(chunk) * chunk_;
        const std::size_t m = std::min(chunk_, d_ - column);
        double* r = out.data() + column;
        std::copy_n(from.data() + column, m, r);
        for (std::size_t j = 0; j < members.size(); ++j) {
            if (x[j] == 0.0) continue;
            const std::byte* pointer = nullptr;
            const Index rows[] = {members[j]};
            gather(rows, column, m, workspaces_[static_cast<std::size_t>(worker)], &pointer);
            kernels_.by_type[static_cast<std::size_t>(locate(members[j]).block->storage)].axpy(-x[j], pointer, r, m);
        }
    });
}

double DenseSource::schur_from_rows(Index i, std::span<const Index> members, std::span<const double> x) {
    widen_row(i, wide_row_);
    std::vector<double> rest(d_);
    subtract_rows(wide_row_, members, x, rest);
    return dot(rest.data(), rest.data(), d_) + ridge_ * (1.0 + dot(x.data(), x.data(), x.size()));
}

double DenseSource::set_weights(std::span<const Index> members, std::span<const double> weights, double scale) {
    for (const Index i : weighted_) weight_of_[at(i)] = 0.0;
    weighted_.clear();
    for (std::size_t m = 0; m < members.size(); ++m) {
        if (weights[m] == 0.0) continue;
        weight_of_[at(members[m])] = weights[m];
        weighted_.push_back(members[m]);
    }
    subtract_rows(target_, members, weights, residual_);
    stale_ = true;
    scores_.weights_changed(scale);
    return std::sqrt(dot(residual_.data(), residual_.data(), d_));
}

void DenseSource::correlations(std::span<const Index> rows, std::span<double> out) {
    const double* xs[] = {residual_.data()};
    double* outs[] = {out.data()};
    multiply(rows, xs, outs);
    for (std::size_t j = 0; j < rows.size(); ++j)
        out[j] += 0.5 * tilt_ * square_[at(rows[j])] - ridge_ * weight_of_[at(rows[j])];
}

Best DenseSource::best(const PartitionMatroid& matroid, Ask ask) {
    if (stale_ || !pending_.empty()) refresh(matroid);
    return scores_.best(matroid, ask);
}

Shortlist DenseSource::shortlist(const PartitionMatroid& matroid, Ask ask) {
    if (stale_ || !pending_.empty()) refresh(matroid);
    return scores_.shortlist(matroid, ask);
}

// One pass for all that is wanted: the correlations of the rows that may still be taken and, for greedy, the columns of
// K of the members that came since.
void DenseSource::refresh(const PartitionMatroid& matroid) {
    eligible_.clear();
    if (pending_.empty()) {
        for (Index i = 0; i < matroid.size(); ++i)
            if (matroid.may_take(i) && !scores_.is_selected(i)) eligible_.push_back(i);
    } else {
        eligible_ = pool_;
    }
    std::vector<const double*> xs = {residual_.data()};
    for (const PendingColumn& column : pending_) xs.push_back(column.row.data());
    std::vector<std::vector<double>> products(xs.size(), std::vector<double>(eligible_.size()));
    std::vector<double*> outs;
    for (std::vector<double>& product : products) outs.push_back(product.data());
    multiply(eligible_, xs, outs);
    ++passes_;
    const std::span<double> g = scores_.correlations();
    for (std::size_t j = 0; j < eligible_.size(); ++j) {
        const std::size_t i = at(eligible_[j]);
        g[i] = products[0][j] + 0.5 * tilt_ * square_[i] - ridge_ * weight_of_[i];
    }
    if (!pending_.empty()) apply_columns(eligible_, std::span(products).subspan(1));
    stale_ = false;
}

void DenseSource::restart() {
    residual_.assign(target_.begin(), target_.end());
    for (const Index i : weighted_) weight_of_[at(i)] = 0.0;
    weighted_.clear();
    pending_.clear();
    deflated_.clear();
    stale_ = false;
    scores_.restart();
}

void DenseSource::columns(std::span<const Index> members, std::span<const Index> rows, std::span<double* const> outs) {
    multiply(rows, Factors{{}, members}, outs);
    ++passes_;
}

void DenseSource::deflate(Index i, std::span<const double> l, double l_end) {
    PendingColumn column{{}, {l.begin(), l.end()}, l_end};
    widen_row(i, column.row);
    pending_.push_back(std::move(column));
}

void DenseSource::apply_columns(std::span<const Index> rows, std::span<const std::vector<double>> columns) {
    for (std::size_t v = 0; v < columns.size(); ++v) {
        std::vector<double> column = columns[v];
        const PendingColumn& pending = pending_[v];
        for (std::size_t m = 0; m < pending.l.size(); ++m)
            for (std::size_t j = 0; j < rows.size(); ++j) column[j] -= pending.l[m] * deflated_[m][j];
        for (std::size_t j = 0; j < rows.size(); ++j) {
            column[j] /= pending.l_end;
            scores_.lower_schur(rows[j], column[j] * column[j]);
        }
        deflated_.push_back(std::move(column));
    }
    pending_.clear();
}

}  // namespace pysubmod::cpu
