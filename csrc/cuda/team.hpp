// Device code is written once, over a team of threads, and compiled twice: by nvcc for blocks of a GPU
// (cuda_device.cuh) and by the host's compiler for threads of the host (host_device.hpp), where all of it is tested.
#pragma once

#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>

// PYSUBMOD_HD_INLINE is for what must be part of its caller: a function of its own wants `this` in memory, and with it
// all that could stay in registers.
#ifdef __CUDACC__
#define PYSUBMOD_HD __host__ __device__
#define PYSUBMOD_HD_INLINE __host__ __device__ __forceinline__
#else
#define PYSUBMOD_HD
#define PYSUBMOD_HD_INLINE
#endif

// Loops that keep arrays in registers: an index that is not known when compiling sends the array to memory.
#ifdef __CUDA_ARCH__
#define PYSUBMOD_UNROLL _Pragma("unroll")
#else
#define PYSUBMOD_UNROLL
#endif

namespace pysubmod::cuda {

// What a kernel is launched on. A *team* is the blocks that share a problem; they wait for each other and see each
// other's global memory after sync_all.
struct Grid {
    int teams = 1;               // independent of each other
    int blocks = 1;              // of a team
    int threads = 1;             // of a block, a multiple of 32 on a device
    std::size_t fast_bytes = 0;  // memory of a block (shared memory), beside what the team itself needs
};

// The concept that every kernel is a template over; each call is made by all threads of a block (sync_all: of a team)
// or by none:
//   int rank(), size()        this thread in its block, threads in the block
//   int block(), n_blocks()   this block in its team
//   int team()                which team
//   void sync(), sync_all()   barriers; they order memory
//   double max(double), int min(int)   over the block, for all its threads
//   std::byte* fast()         the block's own memory, aligned for doubles
//   double* lanes()           room for 2 kSumLanes numbers, another one at every call but the last
//   double join(lanes)        their sum, in a fixed tree
inline constexpr int kSumLanes = 32;

// body(j) for every j in 0 .. count - 1, shared out over the block; ends with a barrier.
template <class Team, class Body>
PYSUBMOD_HD void each(Team& team, int count, Body body) {
    for (int j = team.rank(); j < count; j += team.size()) body(j);
    team.sync();
}

// The sum of term(0) .. term(count - 1), for all threads of the block. The order of the additions depends on `count`
// alone: 32 lanes, then a tree; so the number of threads does not show in the bits.
template <class Team, class Term>
PYSUBMOD_HD double sum(Team& team, int count, Term term) {
    double* lanes = team.lanes();
    for (int lane = team.rank(); lane < kSumLanes; lane += team.size()) {
        double total = 0.0;
        for (int j = lane; j < count; j += kSumLanes) total += term(j);
        lanes[lane] = total;
    }
    team.sync();
    return team.join(lanes);
}

// Two such sums for one barrier.
struct TwoSums {
    double first, second;
};
template <class Team, class First, class Second>
PYSUBMOD_HD TwoSums sum_both(Team& team, int count, First first, Second second) {
    double* lanes = team.lanes();
    for (int lane = team.rank(); lane < 2 * kSumLanes; lane += team.size()) {
        double total = 0.0;
        if (lane < kSumLanes)
            for (int j = lane; j < count; j += kSumLanes) total += first(j);
        else
            for (int j = lane - kSumLanes; j < count; j += kSumLanes) total += second(j);
        lanes[lane] = total;
    }
    team.sync();
    return {team.join(lanes), team.join(lanes + kSumLanes)};
}

// The same in 1024 lanes, for long sums; `room` holds as many numbers in the block's memory.
inline constexpr int kWideLanes = 1024;
template <class Team, class Term>
PYSUBMOD_HD double wide_sum(Team& team, std::int64_t count, double* room, Term term) {
    each(team, kWideLanes, [&](int lane) {
        double total = 0.0;
        for (std::int64_t j = lane; j < count; j += kWideLanes) total += term(j);
        room[lane] = total;
    });
    return sum(team, kWideLanes, [&](int lane) { return room[lane]; });
}

// What was at `place` before; several threads, of any block, may add at once.
PYSUBMOD_HD inline int atomic_add(int* place, int value) {
#ifdef __CUDA_ARCH__
    return atomicAdd(place, value);
#else
    return std::atomic_ref<int>(*place).fetch_add(value, std::memory_order_relaxed);
#endif
}

// Whether any thread of the block says so.
template <class Team>
PYSUBMOD_HD bool any(Team& team, bool mine) {
    return team.max(mine ? 1.0 : 0.0) > 0.0;
}

}  // namespace pysubmod::cuda
