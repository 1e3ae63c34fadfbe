// How many barriers, maxima and sums a pick takes: the pursuit run by a team of one thread that counts.
//
//     g++ -std=c++20 -O1 -Icsrc/include -Icsrc -o /tmp/count benchmarks/kernels/count_barriers.cpp && /tmp/count
#include <cstdio>
#include <random>
#include <vector>

#include "cuda/gram_pursuit.hpp"

using namespace pysubmod;
using namespace pysubmod::cuda;

struct Counts {
    int barriers = 0, maxima = 0, sums = 0;
};

struct CountingTeam {
    Counts counts;
    std::vector<std::byte> memory;
    double slots[2][2 * kSumLanes];
    int turn = 0;

    int rank() const { return 0; }
    int size() const { return 1; }
    int block() const { return 0; }
    int n_blocks() const { return 1; }
    int team() const { return 0; }
    void sync() { ++counts.barriers; }
    void sync_all() { sync(); }
    double max(double x) { return ++counts.barriers, ++counts.maxima, x; }
    int min(int x) { return ++counts.barriers, x; }
    std::byte* fast() { return memory.data(); }
    double* lanes() { return slots[turn ^= 1]; }
    double join(const double* lanes) {
        ++counts.sums;
        double total = 0.0;
        for (int lane = 0; lane < kSumLanes; ++lane) total += lanes[lane];
        return total;
    }
};

// Gaussian rows that share a direction, so that all weights stay positive.
Counts count(int k, bool nonneg) {
    const int n = 256, d = 1024, n_groups = 8;
    std::mt19937 random(1);
    std::normal_distribution<double> normal;
    std::vector<double> mean(d), target(d), G(n * d), K(n * n), c(n);
    for (double& x : mean) x = normal(random);
    for (int j = 0; j < d; ++j) target[j] = mean[j] + 0.3 * normal(random);
    for (int i = 0; i < n * d; ++i) G[i] = normal(random) + 0.7 * mean[i % d];
    for (int i = 0; i < n; ++i) {
        for (int e = 0; e < d; ++e) c[i] += G[i * d + e] * target[e];
        for (int j = 0; j < n; ++j)
            for (int e = 0; e < d; ++e) K[i * n + j] += G[i * d + e] * G[j * d + e];
    }
    std::vector<std::int32_t> groups(n), budgets(n_groups, k / n_groups), available(n_groups, n / n_groups);
    for (int i = 0; i < n; ++i) groups[i] = i % n_groups;
    std::vector<std::uint8_t> pool(n, kMayBePicked | kInPool), mark(n);
    std::vector<double> rows(4 * n), results(3 * k);
    std::vector<std::int64_t> indices(k);
    std::vector<std::byte> copies(2 * factor_bytes(k));
    GramHeader header;

    GramTask task;
    task.n = n, task.n_groups = n_groups, task.k = task.width = k;
    task.gram = {K.data(), n, n, n, Storage::float64};
    task.linear = {c.data(), 1, n, n, Storage::float64};
    task.target_norm = kUnknown;
    task.group_of = groups.data(), task.budgets = budgets.data(), task.available = available.data();
    task.pool = pool.data(), task.mark = mark.data();
    task.nonneg = nonneg, task.rank_tolerance = 1e-8;
    task.c = rows.data(), task.diagonal = task.c + n, task.root = task.diagonal + n, task.g = task.root + n;
    task.members_are_fast = task.factor_is_fast = true;
    task.copies = copies.data(), task.indices = indices.data(), task.header = &header;
    task.weights = results.data(), task.gains = task.weights + k, task.residual_norms = task.gains + k;

    CountingTeam team;
    team.memory.resize(kTaskBytes + Members::bytes(k, n_groups) + factor_bytes(k));
    GramPursuitBody{&task}(team);
    int n_positive = 0;
    for (int j = 0; j < k; ++j) n_positive += task.weights[j] > 0.0;
    if (header.n_selected != k || (nonneg && n_positive != k)) std::puts("not the usual picks");
    return team.counts;
}

int main() {
    for (const bool nonneg : {true, false}) {
        const Counts few = count(16, nonneg), many = count(32, nonneg);
        std::printf("%s: %g barriers, %g maxima, %g sums a pick\n", nonneg ? "w >= 0" : "free",
                    (many.barriers - few.barriers) / 16.0, (many.maxima - few.maxima) / 16.0,
                    (many.sums - few.sums) / 16.0);
    }
}
