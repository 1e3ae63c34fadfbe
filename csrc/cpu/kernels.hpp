// The inner loops over stored rows. All arithmetic is float64 on exactly converted values.
#pragma once

#include <cstddef>
#include <cstdint>

#include "pysubmod/types.hpp"

namespace pysubmod::cpu {

inline constexpr std::size_t kStorageTypes = 4;

constexpr std::size_t item_size(Storage type) {
    return type == Storage::float64 ? 8 : type == Storage::float32 ? 4 : 2;
}

// Every dot product is summed in eight lanes (element j goes to lane j mod 8), each product fused with its addition
// (one rounding), and the lanes are joined by one fixed tree. So its value does not depend on the instruction set, on
// the number of threads, on how the columns are cut into chunks (multiples of eight), or on which rows are computed
// beside it.
inline constexpr std::size_t kLanes = 8;
inline constexpr std::size_t kRowsAtOnce = 4;

// Reads the storage type it is named for; rows are contiguous but need no alignment. One set for each type.
struct Kernels {
    // lanes[r][l] += sum over j = l mod 8 of rows[r][j] * x[j], for 1 <= count <= 4 rows and m columns.
    void (*accumulate)(const std::byte* const* rows, std::size_t count, const double* x, std::size_t m, double* lanes);
    // The same for 1 <= n_xs vectors at once, which read each row once for four of them; the lanes of row r and vector
    // v are at lanes + (v * stride + r) * kLanes.
    void (*accumulate_many)(const std::byte* const* rows, std::size_t count, const double* const* xs, std::size_t n_xs,
                            std::size_t m, double* lanes, std::size_t stride);
    // accumulate with each row's own entries in place of x.
    void (*accumulate_squares)(const std::byte* const* rows, std::size_t count, std::size_t m, double* lanes);
    // y[j] += a[r] * rows[r][j], row by row, each product fused with its addition.
    void (*add_rows)(const double* a, const std::byte* const* rows, std::size_t count, double* y, std::size_t m);
    // y[j] = row[j]
    void (*widen)(const std::byte* row, double* y, std::size_t m);
    // y[j] = row[j], rounded to float32
    void (*narrow)(const std::byte* row, float* y, std::size_t m);
};

// Columns that `screen` may be given at once.
inline constexpr std::size_t kScreenColumns = 1024;
// Its vectors end at a multiple of this many entries, filled up with zeros.
inline constexpr std::size_t kScreenPadding = 16;

// Four rows for `screen`, and where the four that come after them are stored: those are fetched meanwhile.
struct ScreenRows {
    const std::byte* rows[kRowsAtOnce];  // float32
    const std::byte* next[kRowsAtOnce];
    std::size_t next_item;  // bytes of one of their numbers
};

inline double join_lanes(const double* lane) {
    return ((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7]));
}

// What the scores of rows are made of, by row: height(product + offset * inverse_norm) * factor + closed, the height
// being the number itself (signed) or its size; each may be off by slack * unit. Without offsets that pointer is null.
struct ScreenedScores {
    const float *products, *factor, *unit, *closed, *offset;
    float inverse_norm, slack;
    bool is_signed;
};
// Over some rows: the highest that a score can be, the highest that one surely is, and NaN if a product is not finite.
struct ScoreBounds {
    float at_most, surely, poison;
};

struct KernelSet {
    const char* name;
    Kernels by_type[kStorageTypes];
    // Products in float32: sums[v * stride + r] += <row r, x_v> over m <= kScreenColumns columns, the vectors
    // `x_stride` apart. Each is within screen_error * ||row|| * ||x|| of the true one, but for underflow; the order of
    // summation is each set's own.
    void (*screen)(const ScreenRows& rows, const float* xs, std::size_t x_stride, std::size_t n_xs, std::size_t m,
                   double* sums, std::size_t stride);
    double screen_error;
    // For rows begin .. end - 1, both multiples of kScreenPadding.
    ScoreBounds (*bounds)(const ScreenedScores& scores, std::size_t begin, std::size_t end);
};

// The widest set this processor runs: "avx512", "avx2" or "portable". Chosen once; all give the same bits.
const KernelSet& kernel_set();
// By name, for tests; nullptr if this build or this processor has no such set.
const KernelSet* kernel_set(const char* name);

}  // namespace pysubmod::cpu
