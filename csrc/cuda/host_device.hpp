// A device made of threads of the host: it runs the very kernels that a GPU runs, for tests on machines without one.
// Under the thread sanitizer it shows their races.
#pragma once

#include <algorithm>
#include <barrier>
#include <cstring>
#include <exception>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "cuda/blas.hpp"
#include "cuda/team.hpp"

namespace pysubmod::cuda {

class HostTeam {
  public:
    struct Block {
        explicit Block(int threads, std::size_t fast_bytes)
            : barrier(threads),
              fast(fast_bytes / sizeof(double) + 1),
              slots(2 * static_cast<std::size_t>(std::max(threads, 2 * kSumLanes))) {}
        std::barrier<> barrier;
        std::vector<double> fast, slots;
    };

    HostTeam(Block& block, std::barrier<>& all, const Grid& grid, int team, int block_of_team, int rank)
        : block_(block), all_(all), grid_(grid), team_(team), block_of_team_(block_of_team), rank_(rank) {}

    int rank() const { return rank_; }
    int size() const { return grid_.threads; }
    int block() const { return block_of_team_; }
    int n_blocks() const { return grid_.blocks; }
    int team() const { return team_; }
    std::byte* fast() { return reinterpret_cast<std::byte*>(block_.fast.data()); }

    void sync() {
        if (grid_.threads > 1) block_.barrier.arrive_and_wait();
    }
    void sync_all() {
        if (grid_.threads * grid_.blocks > 1) all_.arrive_and_wait();
    }
    double max(double x) {
        double* all = lanes();
        all[rank_] = x;
        sync();
        return *std::max_element(all, all + size());
    }
    int min(int x) { return -static_cast<int>(max(-static_cast<double>(x))); }

    // Two halves in turn: what one reduction reads, the next but one writes, and a barrier lies between.
    double* lanes() {
        turn_ ^= 1;
        return block_.slots.data() + static_cast<std::size_t>(turn_) * block_.slots.size() / 2;
    }
    double join(const double* lanes) const {
        double tree[kSumLanes];
        std::copy_n(lanes, kSumLanes, tree);
        for (int step = kSumLanes / 2; step > 0; step /= 2)
            for (int lane = 0; lane < step; ++lane) tree[lane] += tree[lane + step];
        return tree[0];
    }

  private:
    Block& block_;
    std::barrier<>& all_;
    const Grid& grid_;
    int team_, block_of_team_, rank_;
    int turn_ = 0;
};

class HostDevice {
  public:
    // Every kernel gets so many blocks and threads a block at most, whatever its driver asks for.
    explicit HostDevice(int most_threads = 1, int most_blocks = 8)
        : most_threads_(most_threads), most_blocks_(most_blocks) {}

    static constexpr bool is_emulated = true;
    int poison = 0xcd;
    std::string name() const { return "emulated"; }
    std::size_t fast_bytes() const { return 64 * 1024; }  // memory of a block
    int multiprocessors() const { return 4; }
    int rows_worth_a_block() const { return 4; }      // so that small problems run on several, too
    int most_blocks() const { return most_blocks_; }  // of a team
    Blas* blas() { return nullptr; }                  // the kernels' own products are what is tested

    // Uninitialised; freed with the device.
    template <class T>
    T* allocate(std::size_t count) {
        memory_.push_back(std::make_unique<std::byte[]>(count * sizeof(T) + 64));
        allocated_ += count * sizeof(T);
        std::byte* at = memory_.back().get();
        std::memset(at, poison, count * sizeof(T));  // what nobody has written is noticed
        return reinterpret_cast<T*>(at);
    }
    std::size_t allocated() const { return allocated_; }
    template <class T>
    void upload(T* to, const T* from, std::size_t count) {
        std::copy_n(from, count, to);
    }
    template <class T>
    void download(T* to, const T* from, std::size_t count) {
        std::copy_n(from, count, to);
    }
    void synchronize() {}

    template <class Body>
    void run(Grid grid, const Body& body) {
        grid.threads = std::min(grid.threads, most_threads_);
        grid.blocks = std::min(grid.blocks, most_blocks_);
        for (int team = 0; team < grid.teams; ++team) run_team(grid, team, body);
    }

  private:
    template <class Body>
    static void run_team(const Grid& grid, int team, const Body& body) {
        std::barrier<> all(grid.blocks * grid.threads);
        std::vector<std::unique_ptr<HostTeam::Block>> blocks;
        for (int b = 0; b < grid.blocks; ++b)
            blocks.push_back(std::make_unique<HostTeam::Block>(grid.threads, grid.fast_bytes));
        const auto work = [&](int b, int rank) {
            HostTeam member(*blocks[static_cast<std::size_t>(b)], all, grid, team, b, rank);
            body(member);
        };
        std::vector<std::thread> threads;
        for (int b = 0; b < grid.blocks; ++b)
            for (int rank = 0; rank < grid.threads; ++rank)
                if (b + rank > 0) threads.emplace_back(work, b, rank);
        work(0, 0);
        for (std::thread& thread : threads) thread.join();
    }

    int most_threads_, most_blocks_;
    std::size_t allocated_ = 0;
    std::vector<std::unique_ptr<std::byte[]>> memory_;
};

}  // namespace pysubmod::cuda
