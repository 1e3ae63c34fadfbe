// Stored numbers as float64, on the device and on the host alike.
#pragma once

#include <cstring>

#include "cuda/team.hpp"
#include "pysubmod/types.hpp"

namespace pysubmod::cuda {

PYSUBMOD_HD inline int bytes_of(Storage storage) {
    return storage == Storage::float64 ? 8 : storage == Storage::float32 ? 4 : 2;
}

PYSUBMOD_HD inline float float_from_bits(std::uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

// IEEE half precision, subnormals, infinities and NaN included, by an exact product: no branch but one.
PYSUBMOD_HD inline float float_from_half(std::uint16_t half) {
    const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000u) << 16;
    const std::uint32_t rest = static_cast<std::uint32_t>(half & 0x7fffu) << 13;
    if (rest >= 0x0f800000u) return float_from_bits(sign | (rest + 0x70000000u));  // infinity and NaN
    return float_from_bits(sign | rest) * 0x1p112f;
}

template <Storage S>
struct Stored;
template <>
struct Stored<Storage::float64> {
    using Number = double;
    PYSUBMOD_HD static double load(const void* data, Index i) { return static_cast<const double*>(data)[i]; }
};
template <>
struct Stored<Storage::float32> {
    using Number = float;
    PYSUBMOD_HD static float load(const void* data, Index i) { return static_cast<const float*>(data)[i]; }
};
template <>
struct Stored<Storage::float16> {
    using Number = float;
    PYSUBMOD_HD static float load(const void* data, Index i) {
        return float_from_half(static_cast<const std::uint16_t*>(data)[i]);
    }
};
template <>
struct Stored<Storage::bfloat16> {
    using Number = float;
    PYSUBMOD_HD static float load(const void* data, Index i) {
        return float_from_bits(static_cast<std::uint32_t>(static_cast<const std::uint16_t*>(data)[i]) << 16);
    }
};

// Where the type is known at run time only.
PYSUBMOD_HD inline double load(const void* data, Storage storage, Index i) {
    if (storage == Storage::float64) return Stored<Storage::float64>::load(data, i);
    if (storage == Storage::float32) return static_cast<double>(Stored<Storage::float32>::load(data, i));
    if (storage == Storage::float16) return static_cast<double>(Stored<Storage::float16>::load(data, i));
    return static_cast<double>(Stored<Storage::bfloat16>::load(data, i));
}

// A matrix (or a vector: one row) in device memory, read in place; columns are contiguous.
struct View {
    const void* data = nullptr;
    Index rows = 0, columns = 0;
    Index stride = 0;  // from a row to the next, in numbers
    Storage storage = Storage::float32;

    PYSUBMOD_HD double at(Index i, Index j) const { return load(data, storage, i * stride + j); }
};

}  // namespace pysubmod::cuda
