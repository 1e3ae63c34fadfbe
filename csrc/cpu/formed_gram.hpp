// K = G G' over a pool of rows, formed once.
#pragma once

#include <span>
#include <vector>

#include "cpu/rows.hpp"

namespace pysubmod::cpu {

// n x n float64 numbers for a pool of n rows. Every entry has the bits that Rows::multiply gives it.
class FormedGram {
  public:
    FormedGram(Rows& rows, std::span<const Index> pool);

    // K[i, j] for all j in the pool, in its order.
    std::span<const double> row(Index i) const { return {entries_.data() + place(i) * n_, n_}; }
    std::size_t place(Index i) const { return static_cast<std::size_t>(place_[static_cast<std::size_t>(i)]); }

  private:
    std::size_t n_;
    std::vector<Index> place_;  // by row: where it stands in the pool
    std::vector<double> entries_;
};

}  // namespace pysubmod::cpu
