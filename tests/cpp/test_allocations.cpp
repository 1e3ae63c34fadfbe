// What the loop asks of the heap for each pick must not grow with the number of candidates.
#include <cstdlib>
#include <new>

#include "check.hpp"
#include "instance.hpp"

namespace {
std::atomic<long> allocations{0}, allocated_bytes{0};
}

// Replaced for this whole program. `new[]` and the sized and nothrow forms all come through these two.
void* operator new(std::size_t size) {
    ++allocations;
    allocated_bytes += static_cast<long>(size);
    if (void* memory = std::malloc(size > 0 ? size : 1)) return memory;
    throw std::bad_alloc();
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

using namespace pysubmod;

namespace {

struct Cost {
    long allocations, bytes;
};

class Meter : public Monitor {
  public:
    bool picked(const Progress&) override {
        seen.push_back({allocations, allocated_bytes});
        return false;
    }
    std::vector<Cost> per_pick() const {
        std::vector<Cost> all;
        for (std::size_t m = 1; m < seen.size(); ++m)
            all.push_back({seen[m].allocations - seen[m - 1].allocations, seen[m].bytes - seen[m - 1].bytes});
        return all;
    }
    std::vector<Cost> seen;
};

constexpr Index kPicks = 20;

// The same useful rows, then n rows at a right angle to the target, which are looked at in vain.
Instance instance_with(std::size_t n) {
    dense::Random random(1);
    std::vector<std::vector<double>> rows;
    for (std::size_t i = 0; i < 40; ++i) {
        rows.push_back(random.normals(30));
        rows[i].push_back(0.0);
    }
    for (std::size_t i = 0; i < n; ++i) {
        rows.emplace_back(31, 0.0);
        rows.back()[30] = 1.0 + static_cast<double>(i);
    }
    std::vector<double> target = random.normals(30);
    target.push_back(0.0);
    return {rows, target, kPicks};
}

std::vector<Cost> cost_of(std::size_t n, const Options& options, bool gram) {
    const Instance instance = instance_with(n);
    const GramInstance as_gram(instance);
    const std::vector<double> flat = instance.flat();
    Problem problem = as_gram.problem();
    if (!gram) {
        problem = {};
        problem.rows = {block_of(flat, instance.n(), instance.d())};
        problem.target = instance.target;
    }
    Meter meter;
    meter.seen.reserve(kPicks);
    CHECK(solve_cpu(problem, instance.constraint(), options, {}, meter).indices.size() == kPicks);
    return meter.per_pick();
}

}  // namespace

TEST_CASE(a_pick_allocates_as_much_among_many_candidates_as_among_few) {
    for (const bool nonneg : {true, false})
        for (const Rule rule : {Rule::omp, Rule::normalized, Rule::greedy})
            for (const bool gram : {true, false}) {
                Options options;
                options.nonneg = nonneg;
                options.rule = rule;
                options.route = gram ? Route::automatic : Route::plain;  // drafts keep what grows with their length
                const auto few = cost_of(50, options, gram), many = cost_of(400, options, gram);
                CHECK(few.size() == many.size());
                for (std::size_t m = 0; m < few.size(); ++m) {
                    const long doublings = m == 0 ? 5 : 0;  // a list of candidates grows once
                    CHECK(std::abs(few[m].allocations - many[m].allocations) <= doublings);
                    if (gram && rule != Rule::greedy)
                        CHECK(few[m].bytes == many[m].bytes);  // greedy keeps columns of K
                }
            }
}
