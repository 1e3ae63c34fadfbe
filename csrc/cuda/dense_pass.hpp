// The pass over the rows: products of all of them with the directions of several steps.
#pragma once

#include <algorithm>
#include <limits>

#include "cuda/blas.hpp"
#include "cuda/products.hpp"

namespace pysubmod::cuda {

// With few vectors our own kernel is bound by memory; with more, tensor cores pay, which need the vectors in the rows'
// type: each is split into two parts in bfloat16, whose products are exact in float32.
struct BlasPass {
    static constexpr int kFewestVectors = 9;
    static constexpr double kFewestNumbers = 0x1p26;  // of G: less is not worth a BLAS
    static constexpr Index kRows = 1 << 17;           // of a product: what it leaves stays in the cache
    // Columns of a product: fewer where rows are long, and scores lie closer beside the error.
    static Index columns_of(Index columns) { return columns > 16384 ? 1024 : 4096; }

    // The error of a product over ||row|| ||x||. The sum of up to columns_of exact terms, whatever its order, even if
    // every addition cuts off what does not fit and not only once: 2^-22 for each. The two parts leave 2^-18 of each
    // number of x; sums over pieces of the columns round 2^-24 each.
    static double error(Index columns) {
        const double terms = static_cast<double>(std::min(columns, columns_of(columns)));
        const double sums = static_cast<double>(pieces(columns, columns_of(columns)));
        return terms * 0x1p-22 + 0x1p-17 + sums * 0x1p-23;
    }
    static bool suits(const View& rows, int vectors) {
        constexpr Index most = std::numeric_limits<int>::max();
        return rows.storage == Storage::bfloat16 && vectors >= kFewestVectors &&
               std::max(rows.columns, rows.stride) <= most;
    }
};

PYSUBMOD_HD inline std::uint16_t bfloat16_from_float(float x) {  // to nearest, ties to even; no NaN comes here
    std::uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return static_cast<std::uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

// Vectors in two parts each: rows 2 v and 2 v + 1 of `parts`.
struct SplitBody {
    static constexpr int kColumns = 1024;

    const float* vectors;
    Index columns;
    int count;
    std::uint16_t* parts;

    int teams() const { return static_cast<int>(count * pieces(columns, kColumns)); }

    template <class Team>
    PYSUBMOD_HD void operator()(Team& team) const {
        const Index blocks = pieces(columns, kColumns);
        const Index v = team.team() / blocks, first = team.team() % blocks * kColumns;
        each(team, static_cast<int>(least(kColumns, columns - first)), [&](int j) {
            const float x = vectors[v * columns + first + j];
            const std::uint16_t high = bfloat16_from_float(x);
            const float rest = x - float_from_bits(static_cast<std::uint32_t>(high) << 16);
            parts[2 * v * columns + first + j] = high;
            parts[(2 * v + 1) * columns + first + j] = bfloat16_from_float(rest);
        });
    }
};

// out[v][first_row + i] (+)= both parts of product (i, v).
struct JoinBody {
    static constexpr int kRows = 256;

    const float* products;  // (2 count, rows)
    Index rows, first_row;
    int count;
    bool fresh;
    float* out;
    Index out_stride;

    int teams() const { return static_cast<int>(pieces(rows, kRows)); }

    template <class Team>
    PYSUBMOD_HD void operator()(Team& team) const {
        const Index first = Index{kRows} * team.team();
        each(team, static_cast<int>(least(kRows, rows - first)), [&](int i) {
            const float* from = products + first + i;
            for (int v = 0; v < count; ++v) {
                float& sum = out[v * out_stride + first_row + first + i];
                sum = (fresh ? 0.0f : sum) + (from[2 * v * rows] + from[(2 * v + 1) * rows]);
            }
        });
    }
};

// What the passes of a solve share.
template <class Device>
class Pass {
  public:
    // G of fewer numbers than `fewest` is not worth a BLAS.
    Pass(Device& device, const View& rows, int most_vectors, double fewest = BlasPass::kFewestNumbers)
        : device_(device), rows_(rows) {
        const double numbers = static_cast<double>(rows.rows) * static_cast<double>(rows.columns);
        if (numbers < fewest || !BlasPass::suits(rows, most_vectors)) return;
        blas_ = device.blas();
        if (!blas_) return;
        const auto vectors = static_cast<std::size_t>(2 * most_vectors);
        parts_ = device.template allocate<std::uint16_t>(vectors * static_cast<std::size_t>(rows.columns));
        products_ =
            device.template allocate<float>(vectors * static_cast<std::size_t>(std::min(rows.rows, BlasPass::kRows)));
    }

    // out[v * rows + i] = <row i, vector v>; returns the error of a product over ||row|| for vectors of length 1.
    double multiply(const float* vectors, int count, float* out) {
        if (!blas_ || !BlasPass::suits(rows_, count)) {
            multiply_vectors(device_, rows_, vectors, rows_.columns, count, out, rows_.rows);
            return kVectorsError;
        }
        used_blas_ = true;
        const SplitBody split{vectors, rows_.columns, count, parts_};
        device_.run({.teams = split.teams(), .threads = kMostThreads}, split);
        const Index width = BlasPass::columns_of(rows_.columns);
        const auto* matrix = static_cast<const std::uint16_t*>(rows_.data);
        for (Index row = 0; row < rows_.rows; row += BlasPass::kRows) {
            const Index panel = std::min(BlasPass::kRows, rows_.rows - row);
            for (Index first = 0; first < rows_.columns; first += width) {
                blas_->multiply({.storage = Storage::bfloat16,
                                 .a = parts_ + first,
                                 .b = matrix + row * rows_.stride + first,
                                 .a_rows = 2 * count,
                                 .b_rows = panel,
                                 .columns = std::min(width, rows_.columns - first),
                                 .a_stride = rows_.columns,
                                 .b_stride = rows_.stride,
                                 .out = products_});
                const JoinBody join{products_, panel, row, count, first == 0, out, rows_.rows};
                device_.run({.teams = join.teams(), .threads = kMostThreads}, join);
            }
        }
        return BlasPass::error(rows_.columns);
    }
    bool used_blas() const { return used_blas_; }

  private:
    Device& device_;
    View rows_;
    Blas* blas_ = nullptr;
    bool used_blas_ = false;
    std::uint16_t* parts_ = nullptr;
    float* products_ = nullptr;
};

}  // namespace pysubmod::cuda
