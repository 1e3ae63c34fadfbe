// Sums over a few hundred float64 numbers, always in the same order.
#pragma once

#include <cstddef>

namespace pysubmod {

// Eight lanes and a fixed tree: vectorises without letting the compiler choose the order of the additions.
inline double dot(const double* a, const double* b, std::size_t m) {
    double lane[8] = {0, 0, 0, 0, 0, 0, 0, 0};
    const std::size_t whole = m - m % 8;
    for (std::size_t j = 0; j < whole; j += 8)
        for (std::size_t l = 0; l < 8; ++l) lane[l] += a[j + l] * b[j + l];
    for (std::size_t j = whole; j < m; ++j) lane[j - whole] += a[j] * b[j];
    return ((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7]));
}

}  // namespace pysubmod
