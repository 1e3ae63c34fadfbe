// K = G G', and the check of a K that was given.
#pragma once

#include <algorithm>
#include <limits>
#include <span>
#include <vector>

#include "cuda/products.hpp"

namespace pysubmod::cuda {

// ---- tiles of a symmetric matrix ----

inline constexpr int kTile = 32;

// Tiles on and below the diagonal, row by row.
struct Tile {
    Index down, across;  // across <= down
};
PYSUBMOD_HD inline Index tiles_of(Index n) { return pieces(n, kTile) * (pieces(n, kTile) + 1) / 2; }
PYSUBMOD_HD inline Tile tile_at(Index t) {
    Index down = static_cast<Index>((std::sqrt(8.0 * static_cast<double>(t) + 1.0) - 1.0) / 2.0);
    while (down * (down + 1) / 2 > t) --down;
    while ((down + 1) * (down + 2) / 2 <= t) ++down;
    return {down, t - down * (down + 1) / 2};
}

// ---- K = G G' without help ----

// gram (count x count) = the products of the rows in `list` (nullptr: of all rows, in order), in float64. Each is one
// fused sum from the first column to the last. A team has a tile, and a thread 4 x 4 of its entries.
template <Storage S>
struct GramBody {
    static constexpr int kThreads = 64, kSide = 8, kEach = kTile / kSide;
    static constexpr int kDepth = 32, kStride = kDepth + 1;  // odd, for the banks of shared memory

    View rows;
    const Index* list;
    Index count;
    double* gram;

    int teams() const { return static_cast<int>(tiles_of(count)); }
    static std::size_t fast_bytes() { return sizeof(double) * (2 * kTile * kStride + kTile * kTile); }

    template <class Team>
    PYSUBMOD_HD void operator()(Team& team) const {
        const Tile tile = tile_at(team.team());
        auto* left = reinterpret_cast<double*>(team.fast());
        double *right = left + kTile * kStride, *sums = right + kTile * kStride;
        each(team, kTile * kTile, [&](int at) { sums[at] = 0.0; });
        for (Index first = 0; first < rows.columns; first += kDepth) {
            each(team, kTile * kDepth, [&](int at) {
                const int r = at / kDepth, c = at % kDepth;
                left[r * kStride + c] = number(tile.down * kTile + r, first + c);
                right[r * kStride + c] = number(tile.across * kTile + r, first + c);
            });
            each(team, kSide * kSide, [&](int item) { add_up(left, right, sums, item / kSide, item % kSide); });
        }
        each(team, kTile * kTile, [&](int at) {
            const Index i = tile.down * kTile + at / kTile, j = tile.across * kTile + at % kTile;
            if (i >= count || j >= count) return;
            gram[i * count + j] = sums[at];
            if (tile.down != tile.across) gram[j * count + i] = sums[at];
        });
    }

  private:
    PYSUBMOD_HD double number(Index place, Index j) const {
        if (place >= count || j >= rows.columns) return 0.0;
        return static_cast<double>(Stored<S>::load(rows.data, (list ? list[place] : place) * rows.stride + j));
    }
    PYSUBMOD_HD static void add_up(const double* left, const double* right, double* sums, int down, int across) {
        double sum[kEach][kEach];
        PYSUBMOD_UNROLL
        for (int r = 0; r < kEach; ++r) {
            PYSUBMOD_UNROLL
            for (int c = 0; c < kEach; ++c) sum[r][c] = sums[(down + r * kSide) * kTile + across + c * kSide];
        }
        for (int j = 0; j < kDepth; ++j) {
            double x[kEach], y[kEach];
            PYSUBMOD_UNROLL
            for (int r = 0; r < kEach; ++r) {
                x[r] = left[(down + r * kSide) * kStride + j];
                y[r] = right[(across + r * kSide) * kStride + j];
            }
            PYSUBMOD_UNROLL
            for (int r = 0; r < kEach; ++r) {
                PYSUBMOD_UNROLL
                for (int c = 0; c < kEach; ++c) sum[r][c] = std::fma(x[r], y[c], sum[r][c]);
            }
        }
        PYSUBMOD_UNROLL
        for (int r = 0; r < kEach; ++r) {
            PYSUBMOD_UNROLL
            for (int c = 0; c < kEach; ++c) sums[(down + r * kSide) * kTile + across + c * kSide] = sum[r][c];
        }
    }
};

// The Gram matrix of the `count` rows in `list` (device memory).
template <class Device>
void form_gram_of(Device& device, const View& rows, const Index* list, Index count, double* gram) {
    by_storage(rows.storage, [&](auto storage) {
        using Body = GramBody<decltype(storage)::value>;
        const Body body{rows, list, count, gram};
        device.run({.teams = body.teams(), .threads = Body::kThreads, .fast_bytes = Body::fast_bytes()}, body);
    });
}

// ---- K = G G' with a BLAS ----

// Columns first .. first + width - 1 as float64: out (rows x width).
template <Storage S>
struct WidenBody {
    static constexpr int kColumns = 1024;

    View rows;
    Index first, width;
    double* out;

    int teams() const { return static_cast<int>(rows.rows * pieces(width, kColumns)); }

    template <class Team>
    PYSUBMOD_HD void operator()(Team& team) const {
        const Index blocks = pieces(width, kColumns);
        const Index row = team.team() / blocks, column = team.team() % blocks * kColumns;
        each(team, static_cast<int>(least(kColumns, width - column)), [&](int j) {
            out[row * width + column + j] =
                static_cast<double>(Stored<S>::load(rows.data, row * rows.stride + first + column + j));
        });
    }
};

// Rows first_row .. first_row + rows - 1 of K (n x n) up to the diagonal: sets (fresh) or increases them by `count`
// products (rows x columns each), one after another. When `finish`, what lies across the diagonal becomes the same.
template <class Number>
struct AddBody {
    static constexpr int kColumns = 1024;

    const Number* products;
    int count;
    Index rows, columns, first_row;
    double* gram;
    Index n;
    bool fresh, finish;

    int teams() const { return static_cast<int>(rows * pieces(columns, kColumns)); }

    template <class Team>
    PYSUBMOD_HD void operator()(Team& team) const {
        const Index blocks = pieces(columns, kColumns);
        const Index row = team.team() / blocks, column = team.team() % blocks * kColumns, i = first_row + row;
        each(team, static_cast<int>(least(kColumns, columns - column)), [&](int at) {
            const Index j = column + at;
            if (j > i) return;
            double total = fresh ? 0.0 : gram[i * n + j];
            for (int p = 0; p < count; ++p) total += static_cast<double>(products[(p * rows + row) * columns + j]);
            gram[i * n + j] = total;
            if (finish) gram[j * n + i] = total;
        });
    }
};

// How K is made of products that fit a bounded memory: panels of rows, in each of which several pieces of the columns
// are multiplied at once, so that a small K keeps a large device busy.
struct GramPlan {
    static constexpr Index kBytes = Index{128} << 20;  // for products; and once more for widened rows
    // Columns of a product. In float32 the running sum is rounded, or cut off, at every step, which makes an error of
    // its own size where all terms are positive: fewer columns, less of it; more columns, fewer sums to add up.
    static constexpr Index kColumns = 4096;
    static constexpr Index kBlasTile = 128;  // about what a BLAS gives to one multiprocessor

    Index panel;    // rows
    Index columns;  // of a product
    Index at_once;  // products

    // Number: what products are summed in; rows in another type than float64 are widened for sums in float64.
    template <class Number>
    static GramPlan of(const View& rows, int multiprocessors) {
        constexpr bool is_wide = sizeof(Number) == 8;
        const Index n = rows.rows, bytes = static_cast<Index>(sizeof(Number));
        const bool widens = is_wide && rows.storage != Storage::float64;
        GramPlan plan;
        plan.panel = std::clamp(kBytes / (n * bytes) / kBlasTile * kBlasTile, Index{1}, n);
        plan.columns = std::min(rows.columns, kColumns);
        if (widens) plan.columns = std::clamp(kBytes / (8 * n), Index{1}, plan.columns);
        const Index tiles = pieces(plan.panel, kBlasTile) * pieces(n, kBlasTile);
        const Index room =
            widens ? kBytes / (8 * n * std::max(plan.columns, plan.panel)) : kBytes / (bytes * n * plan.panel);
        plan.at_once = std::max(Index{1}, std::min(pieces(4 * multiprocessors, tiles), room));
        return plan;
    }
};

// Number: the type that products are summed in, float (of rows in half precision) or double (of any).
template <class Number, class Device>
void form_gram_with(Device& device, Blas& blas, const GramPlan& plan, const View& rows, double* gram) {
    const Index n = rows.rows, widest = std::min(plan.columns * plan.at_once, rows.columns);
    auto* out = device.template allocate<Number>(static_cast<std::size_t>(plan.at_once * plan.panel * n));
    const bool widens = sizeof(Number) == 8 && rows.storage != Storage::float64;
    double* wide = widens ? device.template allocate<double>(static_cast<std::size_t>(n * widest)) : nullptr;
    for (Index first = 0, width; first < rows.columns; first += width) {
        const Index left = rows.columns - first;
        const Index count = std::max(Index{1}, std::min(plan.at_once, left / plan.columns));
        width = std::min(left, count * plan.columns);
        Products products{.storage = rows.storage,
                          .columns = width / count,
                          .a_stride = rows.stride,
                          .step = width / count,
                          .count = static_cast<int>(count),
                          .out = out};
        const auto* factor = static_cast<const std::byte*>(rows.data) + first * bytes_of(rows.storage);
        if (widens) {
            by_storage(rows.storage, [&](auto storage) {
                const WidenBody<decltype(storage)::value> widen{rows, first, width, wide};
                device.run({.teams = widen.teams(), .threads = kMostThreads}, widen);
            });
            factor = reinterpret_cast<const std::byte*>(wide);
            products.storage = Storage::float64;
            products.a_stride = width;
        }
        products.b = factor;
        products.b_stride = products.a_stride;
        for (Index row = 0; row < n; row += plan.panel) {
            products.a = factor + row * products.a_stride * bytes_of(products.storage);
            products.a_rows = std::min(plan.panel, n - row);
            products.b_rows = row + products.a_rows;
            blas.multiply(products);
            const AddBody<Number> add{out,
                                      products.count,
                                      products.a_rows,
                                      products.b_rows,
                                      row,
                                      gram,
                                      n,
                                      first == 0,
                                      width == rows.columns - first};
            device.run({.teams = add.teams(), .threads = kMostThreads}, add);
        }
    }
}

// ---- K = G G', the better way ----

struct GramProduct {
    const char *product, *type;  // what formed K, and in what type it summed; DeviceRun has the words
};

// Below both our own kernel, which sums in float64, takes less than about 0.3 ms: it has a tile of K to a block, and so
// takes long where rows are long or tiles are many.
inline constexpr double kWorthBlas = 0x1p30;  // multiplications
inline constexpr Index kLongRows = 8192;
// Rows in half precision are multiplied in float64 up to here (2 ms at 60 TFLOP/s): a K of float32 sums tells less of
// which rows are dependent.
inline constexpr double kMostInFloat64 = 0x1p36;

inline bool suits_blas(const View& rows) {
    constexpr Index most = std::numeric_limits<int>::max();
    const double multiplications =
        static_cast<double>(rows.rows) * static_cast<double>(rows.rows) * static_cast<double>(rows.columns);
    return (multiplications >= kWorthBlas || rows.columns >= kLongRows) &&
           std::max({rows.rows, rows.columns, rows.stride}) <= most;
}

// K_ii of its own.
struct DiagonalBody {
    const double* squares;
    double* gram;
    Index n;
    int teams() const { return static_cast<int>(pieces(n, 1024)); }

    template <class Team>
    PYSUBMOD_HD void operator()(Team& team) const {
        const Index first = Index{1024} * team.team();
        each(team, static_cast<int>(least(1024, n - first)),
             [&](int j) { gram[(first + j) * (n + 1)] = squares[first + j]; });
    }
};

// gram (n x n) = G G'. The device's BLAS multiplies large matrices in half precision, and sums up to GramPlan::kColumns
// products in float32, the rest in float64; other rows it multiplies in float64, if that is fast. Else it is our own
// kernel, in float64. Where sums are float32 the diagonal, whose terms are all positive and whose errors add up, is
// taken from `squares` (||row||^2, device memory).
template <class Device>
GramProduct form_gram(Device& device, const View& rows, const double* squares, double* gram) {
    const bool is_half = bytes_of(rows.storage) == 2;
    Blas* blas = suits_blas(rows) ? device.blas() : nullptr;
    const double multiplications =
        static_cast<double>(rows.rows) * static_cast<double>(rows.rows) * static_cast<double>(rows.columns);
    const bool is_wide = blas && blas->has_fast_float64() && (!is_half || multiplications <= kMostInFloat64);
    if (blas && is_half && !is_wide) {
        form_gram_with<float>(device, *blas, GramPlan::of<float>(rows, device.multiprocessors()), rows, gram);
        const DiagonalBody diagonal{squares, gram, rows.rows};
        device.run({.teams = diagonal.teams(), .threads = kMostThreads}, diagonal);
        return {"cublas", "float32"};
    }
    if (is_wide) {
        form_gram_with<double>(device, *blas, GramPlan::of<double>(rows, device.multiprocessors()), rows, gram);
        return {"cublas", "float64"};
    }
    form_gram_of(device, rows, nullptr, rows.rows, gram);
    return {"built-in", "float64"};
}

// ---- the check of a K that was given ----

// Whether matrices K (float32 or float64) are finite and symmetric, up to a tolerance times sqrt(K_ii K_jj). Some teams
// look at the tiles of each, and each leaves in its place the first fault among its own, i * n + j with i <= j, or n *
// n.
struct GramCheckBody {
    static constexpr int kStride = kTile + 1;

    const View* grams;
    Index* faults;
    int teams_each;

    static std::size_t fast_bytes() { return sizeof(double) * 2 * kTile * kStride; }

    template <class Team>
    PYSUBMOD_HD void operator()(Team& team) const {
        auto* above = reinterpret_cast<double*>(team.fast());
        double* below = above + kTile * kStride;
        const View& gram = grams[team.team() / teams_each];
        const Index n = gram.rows, tiles = tiles_of(n);
        Index fault = n * n;
        for (Index t = team.team() % teams_each; t < tiles; t += teams_each) {
            const Tile tile = tile_at(t);
            const Index row = tile.across * kTile, column = tile.down * kTile;  // of the tile above the diagonal
            each(team, kTile * kTile, [&](int at) {
                const int r = at / kTile, c = at % kTile;
                above[r * kStride + c] = entry(gram, row + r, column + c);
                below[r * kStride + c] = entry(gram, column + r, row + c);
            });
            int first = kTile * kTile;
            for (int at = team.rank(); at < kTile * kTile; at += team.size()) {
                const int r = at / kTile, c = at % kTile;
                if (at < first && row + r <= column + c && column + c < n &&
                    is_fault(gram, above[r * kStride + c], below[c * kStride + r], row + r, column + c))
                    first = at;
            }
            first = team.min(first);
            if (first < kTile * kTile) fault = least(fault, (row + first / kTile) * n + column + first % kTile);
        }
        if (team.rank() == 0) faults[team.team()] = fault;
    }

  private:
    PYSUBMOD_HD static double entry(const View& gram, Index i, Index j) {
        return i < gram.rows && j < gram.rows ? gram.at(i, j) : 0.0;
    }
    PYSUBMOD_HD static double root(const View& gram, Index i) { return std::sqrt(std::fabs(gram.at(i, i))); }
    PYSUBMOD_HD static bool is_fault(const View& gram, double x, double y, Index i, Index j) {
        if (x - y == 0.0) return false;                 // neither is infinite, nor NaN
        if (x - x != 0.0 || y - y != 0.0) return true;  // one of them is
        const double tolerance = gram.storage == Storage::float64 ? 1e-10 : 1e-5;
        return std::fabs(x - y) > tolerance * (root(gram, i) * root(gram, j));
    }
};

// Queues the check of all in one launch; for each the answer is in the device memory that is returned: the first fault
// is the least of its numbers, i * n + j, and n * n says that there is none.
template <class Device>
std::vector<std::span<const Index>> check_grams(Device& device, std::span<const View> grams) {
    Index tiles = 1;
    for (const View& gram : grams) tiles = std::max(tiles, tiles_of(gram.rows));
    const auto count = static_cast<Index>(grams.size());
    const int teams_each = static_cast<int>(std::min(tiles, std::max(Index{1}, 4 * device.multiprocessors() / count)));
    View* views = device.template allocate<View>(grams.size());
    device.upload(views, grams.data(), grams.size());
    auto* faults = device.template allocate<Index>(grams.size() * static_cast<std::size_t>(teams_each));
    device.run({.teams = static_cast<int>(count) * teams_each,
                .threads = kMostThreads,
                .fast_bytes = GramCheckBody::fast_bytes()},
               GramCheckBody{views, faults, teams_each});
    std::vector<std::span<const Index>> answers;
    for (Index g = 0; g < count; ++g)
        answers.push_back({faults + g * teams_each, static_cast<std::size_t>(teams_each)});
    return answers;
}

}  // namespace pysubmod::cuda
