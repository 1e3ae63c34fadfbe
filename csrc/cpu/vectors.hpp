// Sums of long float64 vectors, on all threads.
#pragma once

#include <algorithm>
#include <span>
#include <vector>

#include "cpu/kernels.hpp"
#include "cpu/thread_team.hpp"

namespace pysubmod::cpu {

// y -= sum over m of a[m] * xs[m]: vector by vector in this order, one chunk of y to a task.
inline void subtract_vectors(std::span<const double> a, std::span<const double* const> xs, std::span<double> y,
                             ThreadTeam& team, const KernelSet& kernels) {
    constexpr std::size_t kChunk = 1024;
    const auto add_rows = kernels.by_type[static_cast<std::size_t>(Storage::float64)].add_rows;
    std::vector<double> minus_a(a.begin(), a.end());
    for (double& factor : minus_a) factor = -factor;
    const auto bytes = static_cast<double>((xs.size() + 1) * y.size() * sizeof(double));
    team.run(static_cast<Index>((y.size() + kChunk - 1) / kChunk), bytes, [&](Index chunk, int) {
        const std::size_t begin = static_cast<std::size_t>(chunk) * kChunk;
        const std::size_t count = std::min(kChunk, y.size() - begin);
        std::vector<const std::byte*> rows;
        for (const double* x : xs) rows.push_back(reinterpret_cast<const std::byte*>(x + begin));
        add_rows(minus_a.data(), rows.data(), rows.size(), y.data() + begin, count);
    });
}

}  // namespace pysubmod::cpu
