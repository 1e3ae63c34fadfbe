// Whether a matrix that was given can be a Gram matrix.
#pragma once

#include <optional>
#include <utility>

#include "pysubmod/types.hpp"

namespace pysubmod::cpu {

// The first (i, j) of K (n x n, contiguous rows, float32 or float64) in row order at which K[i, j] or K[j, i] is not
// finite, or they differ by more than tolerance * sqrt(K[i, i] K[j, j]); nothing if K is finite and symmetric.
std::optional<std::pair<Index, Index>> gram_fault(const RowBlock& gram, double tolerance);

}  // namespace pysubmod::cpu
