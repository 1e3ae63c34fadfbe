// Products with the rows of G: c = G t, K = G G', G X for a few vectors, and the check of a K that was given.
//
// Every sum has an order of its own, fixed by the shape of the problem: neither the launch, nor the alignment of the
// data, nor the place of a row in a list shows in the bits.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <type_traits>

#include "cuda/blas.hpp"
#include "cuda/numbers.hpp"
#include "cuda/team.hpp"

namespace pysubmod::cuda {

// The most threads of a block on a device; more is cut down to it. With so few a thread may hold 255 registers.
inline constexpr int kMostThreads = 256;

// ---- what the kernels share ----

// A row is shared out over so many lanes. A thread of a GPU is one lane, and adds up with its neighbours; a thread of
// the host is all of them in turn.
inline constexpr int kLanes = 8;
template <class Team>
inline constexpr int kLanesHeld = kLanes;

// The sum over the lanes, for each of them: a tree.
template <class Team, class Number, int Held>
PYSUBMOD_HD Number fold(Team& team, const Number (&own)[Held]) {
    static_assert(Held == kLanesHeld<Team>);
    if constexpr (Held == 1) {
        return team.fold(own[0]);
    } else {
        Number tree[kLanes];
        for (int lane = 0; lane < kLanes; ++lane) tree[lane] = own[lane];
        for (int step = kLanes / 2; step > 0; step /= 2)
            for (int lane = 0; lane < step; ++lane) tree[lane] += tree[lane + step];
        return tree[0];
    }
}

PYSUBMOD_HD inline Index least(Index a, Index b) { return a < b ? a : b; }
PYSUBMOD_HD inline Index pieces(Index count, Index size) { return (count + size - 1) / size; }

PYSUBMOD_HD inline bool is_aligned(const void* at) { return reinterpret_cast<std::uintptr_t>(at) % 16 == 0; }
PYSUBMOD_HD inline bool is_aligned(const View& rows) {
    return is_aligned(rows.data) && rows.stride * bytes_of(rows.storage) % 16 == 0;
}

// 16 bytes of a row: the widest piece a lane can load at once.
template <Storage S>
struct Pack {
    using Number = typename Stored<S>::Number;
    using Raw = std::conditional_t<S == Storage::float16 || S == Storage::bfloat16, std::uint16_t, Number>;
    static constexpr int kCount = 16 / static_cast<int>(sizeof(Raw));

    // Numbers j .. j + kCount - 1 of a row; 0 beyond its end.
    PYSUBMOD_HD Pack(const void* row, Index j, Index columns, bool aligned) {
        const Raw* from = static_cast<const Raw*>(row) + j;
        if (aligned && j + kCount <= columns) {
            std::memcpy(raw, __builtin_assume_aligned(from, 16), sizeof raw);
        } else {
            PYSUBMOD_UNROLL
            for (int e = 0; e < kCount; ++e) raw[e] = j + e < columns ? from[e] : Raw{};
        }
    }
    PYSUBMOD_HD Number operator[](int e) const { return Stored<S>::load(raw, e); }

    alignas(16) Raw raw[kCount];
};

// call(std::integral_constant<Storage, ...>) for a storage known at run time only.
template <class Call>
void by_storage(Storage storage, Call call) {
    switch (storage) {
        case Storage::float16:
            return call(std::integral_constant<Storage, Storage::float16>{});
        case Storage::bfloat16:
            return call(std::integral_constant<Storage, Storage::bfloat16>{});
        case Storage::float32:
            return call(std::integral_constant<Storage, Storage::float32>{});
        case Storage::float64:
            return call(std::integral_constant<Storage, Storage::float64>{});
    }
}

// ---- sums of rows ----

// The sum of the rows of each slab, column by column, divided by `divisor`: out (slabs x columns).
template <Storage S>
struct SumRowsBody {
    static constexpr Index kSlab = 256;
    static constexpr int kColumns = 256;

    View rows;
    double divisor;
    double* out;

    int teams() const { return static_cast<int>(pieces(rows.rows, kSlab) * pieces(rows.columns, kColumns)); }

    template <class Team>
    PYSUBMOD_HD void operator()(Team& team) const {
        const Index blocks = pieces(rows.columns, kColumns);
        const Index slab = team.team() / blocks, column = team.team() % blocks * kColumns;
        const Index first = slab * kSlab, last = least(first + kSlab, rows.rows);
        each(team, static_cast<int>(least(kColumns, rows.columns - column)), [&](int j) {
            double total = 0.0;
            for (Index i = first; i < last; ++i)
                total += static_cast<double>(Stored<S>::load(rows.data, i * rows.stride + column + j));
            out[slab * rows.columns + column + j] = total / divisor;
        });
    }
};

// out[j] = (sum over the rows of their column j) / divisor, in float64.
template <class Device>
void sum_rows(Device& device, View rows, double divisor, double* out) {
    for (bool more = true; more;) {
        by_storage(rows.storage, [&](auto storage) {
            using Body = SumRowsBody<decltype(storage)::value>;
            const Index slabs = pieces(rows.rows, Body::kSlab);
            more = slabs > 1;
            double* sums =
                more ? device.template allocate<double>(static_cast<std::size_t>(slabs * rows.columns)) : out;
            const Body body{rows, more ? 1.0 : divisor, sums};
            device.run({.teams = body.teams(), .threads = kMostThreads}, body);
            rows = {sums, slabs, rows.columns, rows.columns, Storage::float64};
        });
    }
}

// The mean of the rows of a target; the target itself where it is one row.
template <class Device>
void form_mean(Device& device, const View& rows, double* mean) {
    sum_rows(device, rows, static_cast<double>(rows.rows), mean);
}

// ---- c = G t and the diagonal of K ----

// <row, t> and <row, row> over the columns of each slab, in float64: two matrices, slabs x rows. The slabs give work
// to a whole device where there are few rows, and long ones.
template <Storage S>
struct LinearBody {
    static constexpr Index kSlab = 2048;
    static constexpr int kRows = 4;    // of a thread: each number of t serves so many
    static constexpr int kQuads = 32;  // of a team

    View rows;
    const double* target;
    double *linear, *diagonal;

    int teams() const { return static_cast<int>(pieces(rows.rows, kRows * kQuads) * pieces(rows.columns, kSlab)); }

    template <class Team>
    PYSUBMOD_HD void operator()(Team& team) const {
        constexpr int held = kLanesHeld<Team>, threads = kLanes / held;
        const Index slabs = pieces(rows.columns, kSlab);
        const Index slab = team.team() % slabs, block = team.team() / slabs * (kRows * kQuads);
        const int first_lane = team.rank() % threads * held;
        for (int quad = team.rank() / threads; quad < kQuads; quad += team.size() / threads) {
            const Index row = block + kRows * quad;
            double with_target[kRows][held], with_itself[kRows][held];
            PYSUBMOD_UNROLL
            for (int lane = 0; lane < held; ++lane)
                add_up(row, slab * kSlab, first_lane + lane, lane, with_target, with_itself);
            PYSUBMOD_UNROLL
            for (int r = 0; r < kRows; ++r) {
                const double c = fold(team, with_target[r]), length = fold(team, with_itself[r]);
                if (first_lane > 0 || row + r >= rows.rows) continue;
                linear[slab * rows.rows + row + r] = c;
                diagonal[slab * rows.rows + row + r] = length;
            }
        }
    }

  private:
    // What a lane has of four rows: every kLanes-th pack of the slab. Beyond the last row it is that row once more.
    template <int Held>
    PYSUBMOD_HD void add_up(Index row, Index first, int lane, int place, double (&with_target)[kRows][Held],
                            double (&with_itself)[kRows][Held]) const {
        using Numbers = Pack<S>;
        const Index last = least(first + kSlab, rows.columns);
        const bool aligned = is_aligned(rows), target_aligned = is_aligned(target);
        const auto* base = static_cast<const typename Numbers::Raw*>(rows.data);
        double c[kRows] = {}, length[kRows] = {};
        for (Index j = first + lane * Numbers::kCount; j < last; j += kLanes * Numbers::kCount) {
            double t[Numbers::kCount];
            PYSUBMOD_UNROLL
            for (int e = 0; e < Numbers::kCount; e += 2) {
                const Pack<Storage::float64> pair(target, j + e, rows.columns, target_aligned);
                t[e] = pair[0];
                t[e + 1] = pair[1];
            }
            PYSUBMOD_UNROLL
            for (int r = 0; r < kRows; ++r) {
                const Numbers numbers(base + least(row + r, rows.rows - 1) * rows.stride, j, rows.columns, aligned);
                PYSUBMOD_UNROLL
                for (int e = 0; e < Numbers::kCount; ++e) {
                    const double x = static_cast<double>(numbers[e]);
                    c[r] = std::fma(x, t[e], c[r]);
                    length[r] = std::fma(x, x, length[r]);
                }
            }
        }
        PYSUBMOD_UNROLL
        for (int r = 0; r < kRows; ++r) {
            with_target[r][place] = c[r];
            with_itself[r][place] = length[r];
        }
    }
};

// How many numbers form_linear works in.
inline std::size_t linear_room(const View& rows) {
    const Index slabs = pieces(rows.columns, LinearBody<Storage::float32>::kSlab);
    return slabs > 1 ? static_cast<std::size_t>(2 * slabs * rows.rows) : 0;
}

// linear[i] = <row i, t>, diagonal[i] = <row i, row i>, in float64 and one pass over the rows. `room` is taken from the
// device unless it is given.
template <class Device>
void form_linear(Device& device, const View& rows, const double* target, double* linear, double* diagonal,
                 double* room = nullptr) {
    if (!room) room = device.template allocate<double>(linear_room(rows));
    by_storage(rows.storage, [&](auto storage) {
        using Body = LinearBody<decltype(storage)::value>;
        const Index slabs = pieces(rows.columns, Body::kSlab);
        Body body{rows, target, linear, diagonal};
        const auto count = static_cast<std::size_t>(slabs * rows.rows);
        if (slabs > 1) {
            body.linear = room;
            body.diagonal = room + count;
        }
        device.run({.teams = body.teams(), .threads = kMostThreads}, body);
        if (slabs > 1) {
            sum_rows(device, {body.linear, slabs, rows.rows, rows.rows, Storage::float64}, 1.0, linear);
            sum_rows(device, {body.diagonal, slabs, rows.rows, rows.rows, Storage::float64}, 1.0, diagonal);
        }
    });
}

// ---- many rows by a few vectors ----

inline constexpr int kMostVectors = 32;

// The error of `multiply_vectors` is within this share of ||row|| ||x||. In each of 8 lanes a product passes at most
// kChunk / 8 = 64 roundings (a fused one is one), 3 more in the tree and one as the result becomes a float32: that is
// within 68 u / (1 - 68 u) of sum |row_j| |x_j| with u = 2^-24, which is at most ||row|| ||x|| (Cauchy, Schwarz).
// Sums over chunks are float64, and a row stored in float64 is rounded to float32 first: less than two more. The rest
// of the constant is room. Products below 2^-126 may lose 2^-149 each: nothing beside this for norms above 1e-30.
inline constexpr double kVectorsError = 80 * 0x1p-24;

// out[v * out_stride + i] = <row i, vector v>, in float32, for vectors of length about 1. M: as many as there are, or
// more. A thread has four rows and all vectors in registers; the vectors come through fast memory.
template <Storage S, int M>
struct VectorsBody {
    static constexpr int kChunk = 512;  // columns; each chunk is summed in float32, the sums of chunks in float64
    static constexpr int kRows = 4, kQuads = 32;
    static constexpr int kPack = Pack<S>::kCount;
    static constexpr int kPart = kPack < 4 ? kPack : 4;  // numbers of a vector that a lane loads at once
    static constexpr int kStep = kLanes * kPack;
    static constexpr int kOwned = kRows * M / kLanes;  // sums that a lane keeps
    static constexpr int kResident = M <= 16 ? 2 : 1;  // blocks of a multiprocessor: one loads while another waits
    static_assert(kRows * M % kLanes == 0 && kChunk % kStep == 0);

    View rows;
    const float* vectors;
    Index vector_stride;
    int count;
    float* out;
    Index out_stride;

    int teams() const { return static_cast<int>(pieces(rows.rows, kRows * kQuads)); }
    static std::size_t fast_bytes() {
        return sizeof(double) * (kOwned * kQuads * kLanes) + sizeof(float) * (kChunk * M);
    }

    template <class Team>
    PYSUBMOD_HD void operator()(Team& team) const {
        constexpr int held = kLanesHeld<Team>, threads = kLanes / held;
        auto* totals = reinterpret_cast<double*>(team.fast());  // (kOwned, kQuads, kLanes); a lane has its own
        auto* staged = reinterpret_cast<float*>(totals + kOwned * kQuads * kLanes);
        const int at_once = team.size() / threads, first_lane = team.rank() % threads * held;
        for (int quads = 0; quads < kQuads; quads += at_once) {
            const int quad = quads + team.rank() / threads;
            const Index row = team.team() * Index{kRows * kQuads} + kRows * quad;
            for (Index first = 0; first < rows.columns; first += kChunk) {
                stage(team, first, staged);
                float sums[kRows * M][held] = {};
                PYSUBMOD_UNROLL
                for (int lane = 0; lane < held; ++lane) add_up(row, first, first_lane + lane, lane, staged, sums);
                keep(team, quad < kQuads, first == 0, first_lane, totals + quad * kLanes, sums);
                team.sync();  // before the next chunk takes the place of this one
            }
            if (quad < kQuads) write(row, first_lane, held, totals + quad * kLanes);
        }
    }

  private:
    // Where column c of a chunk stands: what lanes load at the same time lies side by side, so that no two of them ask
    // the same bank of shared memory.
    PYSUBMOD_HD static int place(int c) {
        const int lane = c / kPack % kLanes, part = c % kPack / kPart;
        return c / kStep * kStep + part * (kLanes * kPart) + lane * kPart + c % kPart;
    }
    template <class Team>
    PYSUBMOD_HD void stage(Team& team, Index first, float* staged) const {
        each(team, kChunk * M, [&](int at) {
            const int v = at / kChunk, c = at % kChunk;
            const bool is_there = v < count && first + c < rows.columns;
            staged[v * kChunk + place(c)] = is_there ? vectors[v * vector_stride + first + c] : 0.0f;
        });
    }
    // A lane's share of four rows (beyond the last row, that row once more), in one chunk.
    template <int Held>
    PYSUBMOD_HD void add_up(Index row, Index first, int lane, int held_at, const float* staged,
                            float (&sums)[kRows * M][Held]) const {
        const bool aligned = is_aligned(rows);
        const auto* base = static_cast<const typename Pack<S>::Raw*>(rows.data);
        const int columns = static_cast<int>(least(kChunk, rows.columns - first));
        const typename Pack<S>::Raw* from[kRows];
        PYSUBMOD_UNROLL
        for (int r = 0; r < kRows; ++r) from[r] = base + least(row + r, rows.rows - 1) * rows.stride;
        for (int c = 0; c < columns; c += kStep) {
            const Index j = first + c + lane * kPack;
            const Pack<S> numbers[kRows] = {
                {from[0], j, rows.columns, aligned},
                {from[1], j, rows.columns, aligned},
                {from[2], j, rows.columns, aligned},
                {from[3], j, rows.columns, aligned},
            };
            PYSUBMOD_UNROLL
            for (int part = 0; part < kPack / kPart; ++part) {
                float g[kRows][kPart];
                PYSUBMOD_UNROLL
                for (int r = 0; r < kRows; ++r) {
                    PYSUBMOD_UNROLL
                    for (int e = 0; e < kPart; ++e) g[r][e] = static_cast<float>(numbers[r][part * kPart + e]);
                }
                const float* at = staged + c + part * (kLanes * kPart) + lane * kPart;
                PYSUBMOD_UNROLL
                for (int v = 0; v < M; ++v) {
                    alignas(16) float x[kPart];
                    std::memcpy(x, __builtin_assume_aligned(at + v * kChunk, sizeof x), sizeof x);
                    PYSUBMOD_UNROLL
                    for (int r = 0; r < kRows; ++r) {
                        float& sum = sums[v * kRows + r][held_at];
                        PYSUBMOD_UNROLL
                        for (int e = 0; e < kPart; ++e) sum = std::fma(g[r][e], x[e], sum);
                    }
                }
            }
        }
    }
    // Puts the lanes' sums over a chunk together, and adds them to the totals: of every kLanes sums a lane keeps one.
    template <class Team, int Held>
    PYSUBMOD_HD static void keep(Team& team, bool is_there, bool is_first, int first_lane, double* totals,
                                 const float (&sums)[kRows * M][Held]) {
        PYSUBMOD_UNROLL
        for (int slot = 0; slot < kOwned; ++slot) {
            float own[Held] = {};
            PYSUBMOD_UNROLL
            for (int owner = 0; owner < kLanes; ++owner) {
                const float sum = fold(team, sums[slot * kLanes + owner]);
                PYSUBMOD_UNROLL
                for (int lane = 0; lane < Held; ++lane)
                    if (first_lane + lane == owner) own[lane] = sum;
            }
            if (!is_there) continue;  // all lanes have met in the sum
            PYSUBMOD_UNROLL
            for (int lane = 0; lane < Held; ++lane) {
                double& total = totals[slot * (kQuads * kLanes) + first_lane + lane];
                total = (is_first ? 0.0 : total) + static_cast<double>(own[lane]);
            }
        }
    }
    PYSUBMOD_HD void write(Index row, int first_lane, int held, const double* totals) const {
        for (int slot = 0; slot < kOwned; ++slot)
            for (int lane = first_lane; lane < first_lane + held; ++lane) {
                const int s = slot * kLanes + lane, r = s % kRows, v = s / kRows;
                if (row + r < rows.rows && v < count)
                    out[v * out_stride + row + r] = static_cast<float>(totals[slot * (kQuads * kLanes) + lane]);
            }
    }
};

// out[v * out_stride + i] = <row i, vector v> for 1 to kMostVectors vectors of length about 1 (`vector_stride` numbers
// apart), in one pass over the rows; within kVectorsError.
template <class Device>
void multiply_vectors(Device& device, const View& rows, const float* vectors, Index vector_stride, int count,
                      float* out, Index out_stride) {
    by_storage(rows.storage, [&](auto storage) {
        const auto run = [&](auto most) {
            using Body = VectorsBody<decltype(storage)::value, decltype(most)::value>;
            const Body body{rows, vectors, vector_stride, count, out, out_stride};
            device.run({.teams = body.teams(), .threads = kMostThreads, .fast_bytes = Body::fast_bytes()}, body);
        };
        if (count <= 4) return run(std::integral_constant<int, 4>{});
        if (count <= 8) return run(std::integral_constant<int, 8>{});
        if (count <= 12) return run(std::integral_constant<int, 12>{});
        if (count <= 16) return run(std::integral_constant<int, 16>{});
        if (count <= 20) return run(std::integral_constant<int, 20>{});
        if (count <= 24) return run(std::integral_constant<int, 24>{});
        if (count <= 28) return run(std::integral_constant<int, 28>{});
        run(std::integral_constant<int, 32>{});
    });
}

}  // namespace pysubmod::cuda
