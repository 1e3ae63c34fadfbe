// Which way to read the rows: a model of what each way costs.
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>

#include "pysubmod/types.hpp"

namespace pysubmod::cpu {

// What work on a row costs, a pass with one vector being 1 (measured on a Sapphire Rapids, float32; docs/design.md,
// section 5).
struct Cost {
    static constexpr double kCandidate = 0.2;     // a row that is looked at in a drafted pick
    static constexpr double kMember = 1.0;        // a member in a pick: its row is read twice in float64
    static constexpr double kColumn = 6.0;        // a column of K, for the row of G that the pass is multiplied by
    static constexpr double kDraftedBytes = 2e5;  // what could be read while a drafted pick starts its three small jobs
    // A pass with so many vectors over so many bytes. Up to eight vectors memory sets the pace.
    static double pass(double vectors, double bytes) {
        return in_cache(bytes) ? std::max(1.0, 0.4 + 0.2 * vectors) : std::max(1.0, 0.5 + 0.06 * vectors);
    }
    static constexpr double kCacheBytes = 4 << 20;
    static bool in_cache(double bytes) { return bytes < kCacheBytes; }  // rows are read from the cores' own caches
    // Rows with few columns: a float32 product has a sum to close.
    static double short_rows(double d) { return 1.0 + 50.0 / d; }
    static double exact_pass(double vectors) { return std::max(1.0, 0.5 + 0.13 * vectors); }  // in float64
};

// Candidates of a draft over n rows.
std::size_t n_candidates(std::size_t n);

// The route for `picks` picks for each of some targets from a pool with these squared norms, rows of d numbers of
// `row_bytes` bytes in all. One that was asked for is taken; throws InvalidArgument if it cannot be.
Route choose_route(const Options& options, std::span<const double> squares, std::size_t d, double row_bytes,
                   std::size_t picks, std::size_t targets);

}  // namespace pysubmod::cpu
