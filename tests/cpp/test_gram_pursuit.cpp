// The pursuit of the CUDA solver, run by threads of the host, against the solver for the CPU.
#include "cuda/gram_solve.hpp"

#include <random>

#include "check.hpp"
#include "cuda/host_device.hpp"
#include "device_cases.hpp"
#include "instance.hpp"

namespace pysubmod {
namespace {

std::vector<Solution> solve_on(cuda::HostDevice& device, std::span<const GramInstance> instances,
                               std::span<const Constraint> constraints, std::span<const Options> options) {
    std::vector<cuda::GramJob> jobs;
    for (std::size_t p = 0; p < instances.size(); ++p) {
        const auto n = static_cast<Index>(instances[p].linear.size());
        cuda::GramJob job;
        job.gram = {instances[p].gram.data(), n, n, n, Storage::float64};
        job.linear = {instances[p].linear.data(), 1, n, n, Storage::float64};
        job.target_norm = instances[p].target_norm;
        job.rank_tolerance = kRankToleranceGram64;
        job.constraint = &constraints[p];
        job.options = &options[p];
        jobs.push_back(job);
    }
    cuda::GramBatch batch(jobs, nullptr);
    batch.launch(device);
    return batch.collect(device);
}

Solution solve_on_device(const GramInstance& instance, const Constraint& constraint, const Options& options,
                         Shape shape = {1, 1}) {
    cuda::HostDevice device(shape.threads, shape.blocks);
    return solve_on(device, {&instance, 1}, {&constraint, 1}, {&options, 1})[0];
}

}  // namespace

TEST_CASE(picks_of_the_cpu) {
    std::mt19937_64 random(1);
    for (int trial = 0; trial < 3000; ++trial) {
        const Case given = random_case(random);
        const GramInstance gram(given.instance);
        const Solution expected = gram.solve(given.instance.constraint(), given.options);
        check_same(solve_on_device(gram, given.instance.constraint(), given.options), expected,
                   "trial " + std::to_string(trial));
    }
}

// Rows that leave and come back: their Schur complements must not be lowered for ever.
TEST_CASE(rows_that_come_back_with_exact_gains) {
    std::mt19937_64 random(4);
    for (int trial = 0; trial < 1500; ++trial) {
        Case given = random_case(random);
        given.options.rule = Rule::greedy;
        given.options.nonneg = true;
        given.options.pick = trial % 2 ? Pick::random : Pick::argmax;
        given.options.fill = given.options.release_zeros = true;
        given.options.ridge = 0.5;
        const GramInstance gram(given.instance);
        const Solution expected = gram.solve(given.instance.constraint(), given.options);
        check_same(solve_on_device(gram, given.instance.constraint(), given.options), expected,
                   "trial " + std::to_string(trial));
    }
}

TEST_CASE(the_same_bits_for_any_team) {
    std::mt19937_64 random(2);
    for (int trial = 0; trial < 400; ++trial) {
        Case given = random_case(random);
        const GramInstance gram(given.instance);
        const Solution one = solve_on_device(gram, given.instance.constraint(), given.options);
        for (const Shape shape : {Shape{3, 1}, Shape{2, 2}, Shape{1, 3}})
            CHECK(same_bits(solve_on_device(gram, given.instance.constraint(), given.options, shape), one));
    }
}

}  // namespace pysubmod
