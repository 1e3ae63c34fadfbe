// Sums over a few hundred float64 numbers, always in the same order.
#pragma once

#include <cstddef>
#include <vector>

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

// y += a * x; they do not overlap.
inline void add_scaled(double a, const double* __restrict x, double* __restrict y, std::size_t m) {
    for (std::size_t j = 0; j < m; ++j) y[j] += a * x[j];
}

// `to = from` for a copy that is made again and again and grows a little each time: memory is taken ahead.
template <class Values>
void copy_into(std::vector<typename Values::value_type>& to, const Values& from) {
    if (to.capacity() < from.size()) to.reserve(2 * from.size());
    to.assign(from.begin(), from.end());
}

}  // namespace pysubmod
