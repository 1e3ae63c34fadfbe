// One body for every instruction set: included by kernels_<isa>.cpp, which is compiled with that set's flags and
// defines PYSUBMOD_KERNELS (the function's name) and PYSUBMOD_VECTOR (doubles in a vector register). Everything here
// has internal linkage, so that no code compiled for one instruction set can be linked into another's place.
#pragma once

#include <cmath>
#include <cstring>

#include "cpu/kernels.hpp"

#if PYSUBMOD_VECTOR > 2
#include <immintrin.h>
#endif

namespace pysubmod::cpu {
namespace {

constexpr std::size_t W = PYSUBMOD_VECTOR;
constexpr std::size_t kParts = kLanes / W;
constexpr std::size_t kPrefetchBytes = 512;  // 512 to 1024 were best on a Sapphire Rapids, by a little
typedef double Vec __attribute__((vector_size(W * 8)));
typedef float Narrow __attribute__((vector_size(W * 4)));
typedef std::uint32_t Bits32 __attribute__((vector_size(W * 4)));
typedef std::uint16_t Bits16 __attribute__((vector_size(W * 2)));

template <class V>
inline V load_as(const void* p) {
    V v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

// Half precision without F16C, exactly. Normal: shift into place and rebias the exponent. Subnormal (exponent field 0):
// put the mantissa under the exponent of 2^-14 and take 2^-14 away again. Infinity and NaN (all ones): rebias once
// more, to all ones.
inline Bits32 half_bits_to_float_bits(Bits32 h) {
    const Bits32 sign = (h & 0x8000u) << 16;
    const Bits32 magnitude = (h & 0x7fffu) << 13;
    const Bits32 exponent = h & 0x7c00u;
    const Bits32 is_subnormal = (Bits32)(exponent == 0);
    const Bits32 is_special = (Bits32)(exponent == 0x7c00u);
    Bits32 normal = magnitude + (112u << 23);
    normal += is_special & (112u << 23);
    const Bits32 shifted = magnitude | (113u << 23);
    const Bits32 subnormal = (Bits32)((Narrow)shifted - 6.103515625e-05f);
    return sign | (is_subnormal & subnormal) | (~is_subnormal & normal);
}

// GCC 12 turns __builtin_convertvector on eight lanes into halves and shuffles, three times slower; hence the
// intrinsics. fused(a, b, c) = a * b + c, rounded once.
#if PYSUBMOD_VECTOR == 8
inline Vec fused(Vec a, Vec b, Vec c) { return (Vec)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c); }
// The masked form with a full mask is the same instruction; the plain one warns of an uninitialised value in GCC 12's
// header.
inline Vec to_double(Narrow v) { return (Vec)_mm512_maskz_cvtps_pd(0xff, (__m256)v); }
inline Bits32 to_bits32(Bits16 v) { return (Bits32)_mm256_cvtepu16_epi32((__m128i)v); }
inline Narrow half_to_float(const std::byte* p) { return (Narrow)_mm256_cvtph_ps(load_as<__m128i>(p)); }
#elif PYSUBMOD_VECTOR == 4
inline Vec fused(Vec a, Vec b, Vec c) { return (Vec)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c); }
inline Vec to_double(Narrow v) { return (Vec)_mm256_cvtps_pd((__m128)v); }
inline __m128i load_8_bytes(const std::byte* p) { return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)); }
inline Bits32 to_bits32(Bits16 v) {
    std::byte bytes[sizeof v];
    std::memcpy(bytes, &v, sizeof v);
    return (Bits32)_mm_cvtepu16_epi32(load_8_bytes(bytes));
}
inline Narrow half_to_float(const std::byte* p) { return (Narrow)_mm_cvtph_ps(load_8_bytes(p)); }
#else
inline Vec fused(Vec a, Vec b, Vec c) {
    for (std::size_t i = 0; i < W; ++i) c[i] = std::fma(a[i], b[i], c[i]);
    return c;
}
inline Vec to_double(Narrow v) { return __builtin_convertvector(v, Vec); }
inline Bits32 to_bits32(Bits16 v) { return __builtin_convertvector(v, Bits32); }
inline Narrow half_to_float(const std::byte* p) {
    const Bits32 bits = half_bits_to_float_bits(to_bits32(load_as<Bits16>(p)));
    return (Narrow)bits;
}
#endif

// `floats` are exact, but for float64 rows, which are rounded.
template <Storage>
struct Stored;

template <>
struct Stored<Storage::float64> {
    static Vec load(const std::byte* p) { return load_as<Vec>(p); }
    static Narrow floats(const std::byte* p) { return __builtin_convertvector(load(p), Narrow); }
};
template <>
struct Stored<Storage::float32> {
    static Narrow floats(const std::byte* p) { return load_as<Narrow>(p); }
    static Vec load(const std::byte* p) { return to_double(floats(p)); }
};
template <>
struct Stored<Storage::bfloat16> {
    static Narrow floats(const std::byte* p) { return (Narrow)(to_bits32(load_as<Bits16>(p)) << 16); }
    static Vec load(const std::byte* p) { return to_double(floats(p)); }
};
template <>
struct Stored<Storage::float16> {
    static Narrow floats(const std::byte* p) { return half_to_float(p); }
    static Vec load(const std::byte* p) { return to_double(floats(p)); }
};

// The last few columns: copied into a zero-padded buffer, so that they go through the same conversion.
template <Storage T>
inline void load_tail(const std::byte* p, std::size_t count, double* out) {
    alignas(64) std::byte buffer[kLanes * 8] = {};
    std::memcpy(buffer, p, count * item_size(T));
    for (std::size_t part = 0; part < kParts; ++part) {
        const Vec v = Stored<T>::load(buffer + part * W * item_size(T));
        std::memcpy(out + part * W, &v, sizeof v);
    }
}

template <Storage T, std::size_t R, bool Squares>
inline void accumulate_rows(const std::byte* const* rows, const double* x, std::size_t m, double* lanes) {
    constexpr std::size_t size = item_size(T);
    Vec sum[R][kParts];
    std::memcpy(sum, lanes, sizeof sum);
    const auto add_lanes = [&](std::size_t j) {
        for (std::size_t part = 0; part < kParts; ++part) {
            const std::size_t at = j + part * W;
            if constexpr (Squares) {
                for (std::size_t r = 0; r < R; ++r) {
                    const Vec v = Stored<T>::load(rows[r] + at * size);
                    sum[r][part] = fused(v, v, sum[r][part]);
                }
            } else {
                const Vec y = load_as<Vec>(x + at);
                for (std::size_t r = 0; r < R; ++r)
                    sum[r][part] = fused(Stored<T>::load(rows[r] + at * size), y, sum[r][part]);
            }
        }
    };
    // A cache line of each row at a time: the processor's own prefetching stops at every page, this does not.
    constexpr std::size_t line = 64 / size;
    const std::size_t whole = m - m % kLanes;
    std::size_t j = 0;
    for (; j + line <= whole; j += line) {
        for (std::size_t r = 0; r < R; ++r) __builtin_prefetch(rows[r] + j * size + kPrefetchBytes);
        for (std::size_t l = 0; l < line; l += kLanes) add_lanes(j + l);
    }
    for (; j < whole; j += kLanes) add_lanes(j);
    std::memcpy(lanes, sum, sizeof sum);
    if (whole == m) return;
    for (std::size_t r = 0; r < R; ++r) {
        double tail[kLanes];
        load_tail<T>(rows[r] + whole * size, m - whole, tail);
        for (std::size_t l = 0; l < m - whole; ++l) {
            double& lane = lanes[r * kLanes + l];
            lane = std::fma(tail[l], Squares ? tail[l] : x[whole + l], lane);
        }
    }
}

template <Storage T, bool Squares>
inline void accumulate_counted(const std::byte* const* rows, std::size_t count, const double* x, std::size_t m,
                               double* lanes) {
    switch (count) {
        case 4:
            return accumulate_rows<T, 4, Squares>(rows, x, m, lanes);
        case 3:
            return accumulate_rows<T, 3, Squares>(rows, x, m, lanes);
        case 2:
            return accumulate_rows<T, 2, Squares>(rows, x, m, lanes);
        default:
            return accumulate_rows<T, 1, Squares>(rows, x, m, lanes);
    }
}

template <Storage T>
void accumulate(const std::byte* const* rows, std::size_t count, const double* x, std::size_t m, double* lanes) {
    accumulate_counted<T, false>(rows, count, x, m, lanes);
}

// Four rows by four vectors: sixteen sums stay in registers, where there are 32 of them.
template <Storage T>
inline void accumulate_four_by_four(const std::byte* const* rows, const double* const* xs, std::size_t m, double* lanes,
                                    std::size_t stride) {
    constexpr std::size_t size = item_size(T);
    Vec sum[4][4];
    for (std::size_t v = 0; v < 4; ++v)
        for (std::size_t r = 0; r < 4; ++r) sum[v][r] = load_as<Vec>(lanes + (v * stride + r) * kLanes);
    const std::size_t whole = m - m % kLanes;
    for (std::size_t j = 0; j < whole; j += W) {
        Vec x[4];
        for (std::size_t v = 0; v < 4; ++v) x[v] = load_as<Vec>(xs[v] + j);
        for (std::size_t r = 0; r < 4; ++r) {
            const Vec row = Stored<T>::load(rows[r] + j * size);
            for (std::size_t v = 0; v < 4; ++v) sum[v][r] = fused(row, x[v], sum[v][r]);
        }
    }
    for (std::size_t v = 0; v < 4; ++v)
        for (std::size_t r = 0; r < 4; ++r) std::memcpy(lanes + (v * stride + r) * kLanes, &sum[v][r], sizeof(Vec));
    for (std::size_t v = 0; v < 4 && whole < m; ++v) {
        const std::byte* tails[4];
        for (std::size_t r = 0; r < 4; ++r) tails[r] = rows[r] + whole * size;
        accumulate<T>(tails, 4, xs[v] + whole, m - whole, lanes + v * stride * kLanes);
    }
}

template <Storage T>
void accumulate_many(const std::byte* const* rows, std::size_t count, const double* const* xs, std::size_t n_xs,
                     std::size_t m, double* lanes, std::size_t stride) {
    std::size_t v = 0;
    if constexpr (kParts == 1)
        for (; count == 4 && v + 4 <= n_xs; v += 4)
            accumulate_four_by_four<T>(rows, xs + v, m, lanes + v * stride * kLanes, stride);
    for (; v < n_xs; ++v) accumulate<T>(rows, count, xs[v], m, lanes + v * stride * kLanes);
}

template <Storage T>
void accumulate_squares(const std::byte* const* rows, std::size_t count, std::size_t m, double* lanes) {
    accumulate_counted<T, true>(rows, count, nullptr, m, lanes);
}

// R rows at once: y is read and written once for all of them.
template <Storage T, std::size_t R>
inline void add_some_rows(const double* a, const std::byte* const* rows, double* y, std::size_t m) {
    constexpr std::size_t size = item_size(T), line = 64 / size;
    const std::size_t whole = m - m % kLanes;
    Vec factor[R];
    for (std::size_t r = 0; r < R; ++r)
        for (std::size_t i = 0; i < W; ++i) factor[r][i] = a[r];
    for (std::size_t j = 0; j < whole; j += W) {
        if (j % line == 0)
            for (std::size_t r = 0; r < R; ++r) __builtin_prefetch(rows[r] + j * size + kPrefetchBytes);
        Vec sum = load_as<Vec>(y + j);
        for (std::size_t r = 0; r < R; ++r) sum = fused(Stored<T>::load(rows[r] + j * size), factor[r], sum);
        std::memcpy(y + j, &sum, sizeof sum);
    }
    if (whole == m) return;
    for (std::size_t r = 0; r < R; ++r) {
        double tail[kLanes];
        load_tail<T>(rows[r] + whole * size, m - whole, tail);
        for (std::size_t j = whole; j < m; ++j) y[j] = std::fma(tail[j - whole], a[r], y[j]);
    }
}

template <Storage T>
void add_rows(const double* a, const std::byte* const* rows, std::size_t count, double* y, std::size_t m) {
    std::size_t r = 0;
    for (; r + 4 <= count; r += 4) add_some_rows<T, 4>(a + r, rows + r, y, m);
    for (; r < count; ++r) add_some_rows<T, 1>(a + r, rows + r, y, m);
}

template <Storage T, class Number>
inline void convert(const std::byte* row, Number* y, std::size_t m) {
    const std::size_t whole = m - m % kLanes;
    for (std::size_t j = 0; j < whole; j += W) {
        const std::byte* from = row + j * item_size(T);
        const auto v = [from] {
            if constexpr (sizeof(Number) == sizeof(double))
                return Stored<T>::load(from);
            else
                return Stored<T>::floats(from);
        }();
        std::memcpy(y + j, &v, sizeof v);
    }
    if (whole == m) return;
    double tail[kLanes];
    load_tail<T>(row + whole * item_size(T), m - whole, tail);
    for (std::size_t j = whole; j < m; ++j) y[j] = static_cast<Number>(tail[j - whole]);
}

template <Storage T>
void widen(const std::byte* row, double* y, std::size_t m) {
    convert<T>(row, y, m);
}

template <Storage T>
void narrow(const std::byte* row, float* y, std::size_t m) {
    convert<T>(row, y, m);
}

constexpr std::size_t kFloats = 2 * W;  // in a vector register
typedef float Floats __attribute__((vector_size(kFloats * 4)));
// Vectors at a time: 24, 12 or 8 sums stay in registers.
constexpr std::size_t kVectorsAtOnce = PYSUBMOD_VECTOR == 8 ? 6 : PYSUBMOD_VECTOR == 4 ? 3 : 2;

#if PYSUBMOD_VECTOR == 8
inline Floats fused(Floats a, Floats b, Floats c) { return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
// s[r] += the sum of sum[r], for four. Masked with a full mask for the reason above.
inline void add_four_sums(const Floats* sum, double* s) {
    const auto pair = [](Floats a, Floats b) {
        return _mm512_castps_pd(_mm512_add_ps(_mm512_maskz_unpacklo_ps(0xffff, (__m512)a, (__m512)b),
                                              _mm512_maskz_unpackhi_ps(0xffff, (__m512)a, (__m512)b)));
    };
    const __m512d ab = pair(sum[0], sum[1]), cd = pair(sum[2], sum[3]);
    const __m512 four = _mm512_add_ps(_mm512_castpd_ps(_mm512_maskz_unpacklo_pd(0xff, ab, cd)),
                                      _mm512_castpd_ps(_mm512_maskz_unpackhi_pd(0xff, ab, cd)));
    const __m256 half =
        _mm256_add_ps(_mm512_maskz_extractf32x8_ps(0xff, four, 0), _mm512_maskz_extractf32x8_ps(0xff, four, 1));
    const __m128 whole = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    _mm256_storeu_pd(s, _mm256_add_pd(_mm256_loadu_pd(s), _mm256_cvtps_pd(whole)));
}
#else
#if PYSUBMOD_VECTOR == 4
inline Floats fused(Floats a, Floats b, Floats c) { return (Floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
#else
inline Floats fused(Floats a, Floats b, Floats c) { return a * b + c; }
#endif
inline void add_four_sums(const Floats* sum, double* s) {
    for (std::size_t r = 0; r < 4; ++r) {
        float total = 0.0f;
        for (std::size_t l = 0; l < kFloats; ++l) total += sum[r][l];
        s[r] += static_cast<double>(total);
    }
}
#endif

// `first` and `last` say which of the next rows to fetch: spread over all vectors, memory is never idle.
template <std::size_t V>
inline void screen_vectors(const ScreenRows& rows, std::size_t first, std::size_t last, const float* xs,
                           std::size_t x_stride, std::size_t m, double* sums, std::size_t stride) {
    Floats sum[V][kRowsAtOnce];
    for (std::size_t v = 0; v < V; ++v)
        for (std::size_t r = 0; r < kRowsAtOnce; ++r) sum[v][r] = Floats{};
    const auto add = [&](const std::byte* const* from, std::size_t j_row, std::size_t j) {
        Floats x[V];
        for (std::size_t v = 0; v < V; ++v) x[v] = load_as<Floats>(xs + v * x_stride + j);
        for (std::size_t r = 0; r < kRowsAtOnce; ++r) {
            const Floats row = load_as<Floats>(from[r] + j_row * sizeof(float));
            for (std::size_t v = 0; v < V; ++v) sum[v][r] = fused(row, x[v], sum[v][r]);
        }
    };
    const std::size_t whole = m - m % kFloats;
    for (std::size_t j = 0; j < whole; j += kFloats) {
        for (std::size_t r = first; r < last; ++r) __builtin_prefetch(rows.next[r] + j * rows.next_item, 0, 2);
        add(rows.rows, j, j);
    }
    if (whole < m) {
        std::byte tails[kRowsAtOnce][kFloats * sizeof(float)] = {};
        const std::byte* from[kRowsAtOnce];
        for (std::size_t r = 0; r < kRowsAtOnce; ++r) {
            std::memcpy(tails[r], rows.rows[r] + whole * sizeof(float), (m - whole) * sizeof(float));
            from[r] = tails[r];
        }
        add(from, 0, whole);
    }
    for (std::size_t v = 0; v < V; ++v) add_four_sums(sum[v], sums + v * stride);
}

void screen(const ScreenRows& rows, const float* xs, std::size_t x_stride, std::size_t n_xs, std::size_t m,
            double* sums, std::size_t stride) {
    const std::size_t groups = (n_xs + kVectorsAtOnce - 1) / kVectorsAtOnce;
    for (std::size_t b = 0, v = 0; b < groups; ++b) {
        const std::size_t count = (n_xs - v + groups - b - 1) / (groups - b);
        const auto use = [&](auto run) {
            run(rows, kRowsAtOnce * b / groups, kRowsAtOnce * (b + 1) / groups, xs + v * x_stride, x_stride, m,
                sums + v * stride, stride);
        };
        switch (count) {
            case 1:
                use(screen_vectors<1>);
                break;
            case 2:
                use(screen_vectors<2>);
                break;
#if PYSUBMOD_VECTOR > 2
            case 3:
                use(screen_vectors<3>);
                break;
#endif
#if PYSUBMOD_VECTOR > 4
            case 4:
                use(screen_vectors<4>);
                break;
            case 5:
                use(screen_vectors<5>);
                break;
            case 6:
                use(screen_vectors<6>);
                break;
#endif
        }
        v += count;
    }
}

inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }
inline float largest(Floats v) {
    float most = v[0];
    for (std::size_t l = 1; l < kFloats; ++l) most = v[l] > most ? v[l] : most;
    return most;
}

template <bool Signed, bool Offset>
inline ScoreBounds bounds_of(const ScreenedScores& scores, std::size_t begin, std::size_t end) {
    const Floats inverse_norm = Floats{} + scores.inverse_norm, slack = Floats{} + scores.slack;
    Floats at_most = Floats{} - __builtin_inff(), surely = at_most, poison{};
    for (std::size_t i = begin; i < end; i += kFloats) {
        Floats s = load_as<Floats>(scores.products + i);
        if constexpr (Offset) s += load_as<Floats>(scores.offset + i) * inverse_norm;
        poison += s * 0.0f;
        if constexpr (!Signed) s = larger(s, -s);
        s = s * load_as<Floats>(scores.factor + i) + load_as<Floats>(scores.closed + i);
        const Floats error = slack * load_as<Floats>(scores.unit + i);
        at_most = larger(s + error, at_most);
        surely = larger(s - error, surely);
    }
    float sum = 0.0f;
    for (std::size_t l = 0; l < kFloats; ++l) sum += poison[l];
    return {largest(at_most), largest(surely), sum};
}

ScoreBounds bounds(const ScreenedScores& scores, std::size_t begin, std::size_t end) {
    if (scores.offset)
        return scores.is_signed ? bounds_of<true, true>(scores, begin, end)
                                : bounds_of<false, true>(scores, begin, end);
    return scores.is_signed ? bounds_of<true, false>(scores, begin, end) : bounds_of<false, false>(scores, begin, end);
}

// A product goes through at most kScreenColumns / kFloats additions, as many roundings again where it is not fused, and
// the tree; 12 more for the rounding of row and vector and of the result to float32. Each is at most 2^-24 of
// sum |row_j x_j| <= ||row|| ||x||.
constexpr double kScreenError = (kScreenColumns / kFloats * (PYSUBMOD_VECTOR > 2 ? 1 : 2) + kFloats + 12) * 0x1p-24;

template <Storage T>
constexpr Kernels kernels_for() {
    return {&accumulate<T>, &accumulate_many<T>, &accumulate_squares<T>, &add_rows<T>, &widen<T>, &narrow<T>};
}

}  // namespace

const KernelSet& PYSUBMOD_KERNELS() {
    static const KernelSet set{PYSUBMOD_KERNELS_NAME,
                               {kernels_for<Storage::float16>(), kernels_for<Storage::bfloat16>(),
                                kernels_for<Storage::float32>(), kernels_for<Storage::float64>()},
                               &screen,
                               kScreenError,
                               &bounds};
    return set;
}

}  // namespace pysubmod::cpu
