// Random numbers that are the same on every machine and in NumPy (pysubmod/_random.py).
#pragma once

#include <cstdint>

namespace pysubmod {

// Counter-based SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): number `counter` of stream `seed` is a hash of both.
constexpr std::uint64_t random_bits(std::uint64_t seed, std::uint64_t counter) {
    std::uint64_t z = seed + (counter + 1) * 0x9e3779b97f4a7c15ULL;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    return z ^ (z >> 31);
}

// A number in 0 .. n - 1: the high 64 bits of the 128-bit product bits * n, for 1 <= n < 2^32. The chances of two
// numbers differ by less than n / 2^64 of their size.
constexpr std::uint64_t random_below(std::uint64_t seed, std::uint64_t counter, std::uint64_t n) {
    const std::uint64_t bits = random_bits(seed, counter);
    return ((bits >> 32) * n + (((bits & 0xffffffffULL) * n) >> 32)) >> 32;
}

}  // namespace pysubmod
