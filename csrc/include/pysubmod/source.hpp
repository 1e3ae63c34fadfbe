// The seam: what the pursuit asks of the data. Adding a source (a device, a disk, ranks) means writing these functions.
#pragma once

#include <concepts>
#include <span>
#include <vector>

#include "pysubmod/partition_matroid.hpp"
#include "pysubmod/refit.hpp"
#include "pysubmod/types.hpp"

namespace pysubmod {

// The answer to "who is next?".
struct Best {
    Index index = -1;          // -1: no eligible row helps
    double correlation = 0.0;  // g_i
    bool saw_barred = false;   // a barred row was passed over
};

// The answer to "between whom is the draw?", in row order.
struct Shortlist {
    std::vector<Index> rows;
    bool saw_barred = false;  // a barred row was passed over
};

// K = G G' (no ridge); C = K + ridge I; c = G t + tilt/2 diag K; g = c - C w at the weights last set.
// Everything is float64 and independent of the number of threads. A source reads its data in place and never writes to
// it.
template <class S>
concept Source = requires(S& s, const S& cs, Index i, std::span<const Index> members, std::span<const double> in,
                          std::span<double> out, const PartitionMatroid& matroid, Mark mark, Ask ask, double x,
                          std::span<double* const> outs, std::span<const double* const> ins, const Refit& refit) {
    { cs.scale() } -> std::convertible_to<double>;           // E_0: the unit of every tolerance before the first pick
    { cs.target_norm() } -> std::convertible_to<double>;     // ||t||, or kUnknown
    { cs.rank_tolerance() } -> std::convertible_to<double>;  // kRankTolerance, larger where only K is at hand
    { cs.in_range() } -> std::convertible_to<bool>;          // c = G t exactly: no direction is unbounded
    { cs.diagonal(i) } -> std::convertible_to<double>;       // C_ii
    { cs.linear(i) } -> std::convertible_to<double>;         // c_i
    { s.gram_row(i, members, out) };                         // out[j] = K[i, members[j]]; O(|members| d)
    // The Schur complement of C_ii given the members: ||g_i - sum_j x_j g_j||^2 + ridge (1 + ||x||^2) at its minimiser
    // x.
    { s.schur_from_rows(i, members, in) } -> std::convertible_to<double>;
    { cs.has_rows() } -> std::convertible_to<bool>;  // false: only K is at hand, and schur_from_rows may not be called
    // The weights and E, the unit of tolerances that goes with them; returns ||r|| or kUnknown; O(|members| d).
    { s.set_weights(members, in, x) } -> std::convertible_to<double>;
    { s.correlations(members, out) };  // g of a few rows, from the residual; O(|members| d)
    // Whether the correlations at the present weights are at hand. If not, `read` gets them in ONE pass over the
    // eligible rows; from the refit that has these weights it may read ahead.
    { cs.ready() } -> std::convertible_to<bool>;
    { s.read(matroid, refit) };
    { s.best(matroid, ask) } -> std::same_as<Best>;  // the argmax
    // The rows whose scores make the heaviest base of what the matroid has left: of each group the
    // best so many. With Ask::any also rows that do not help, after those that do.
    { s.shortlist(matroid, ask) } -> std::same_as<Shortlist>;
    { s.correlation(i) } -> std::convertible_to<double>;  // g_i as of the last `best` or `shortlist`
    { s.mark(i, mark) };
    { s.clear_barred() };
    { s.restart() };  // forgets weights and marks
    // For swap search: outs[m][j] = K[rows[j], members[m]] for any number of members in ONE pass over the rows.
    { s.columns(members, members, outs) };
    { s.subtract(in, ins, out) };  // out -= sum of in[m] * ins[m], long vectors
    // For rule = greedy only.
    {
        s.deflate(i, in, x)
    };  // K[:, i] in one pass, minus its part in the rows before: in = row of the factor, x its end
    { cs.is_exact(i) } -> std::convertible_to<bool>;  // best() returned i by its exact gain, not by a bound
    { s.set_exact(i, x) };                            // sqrt(2 * exact gain) of i, valid until the weights change
};

}  // namespace pysubmod
