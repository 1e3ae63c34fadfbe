// The plain doors of the CPU solvers: no templates, no classes to keep alive. The bindings and the C++ tests call
// these.
#pragma once

#include <span>
#include <vector>

#include "pysubmod/types.hpp"

namespace pysubmod {

// What a problem is made of. Either rows and target, or one view of K (n x n, contiguous rows, float32 or float64) and
// c = G t.
struct Problem {
    std::vector<RowBlock> rows;  // blocks, one after another
    std::span<const double> target;
    bool is_gram = false;
    RowBlock gram;
    std::span<const double> linear;
    double target_norm = kUnknown;  // with a Gram matrix only
};

struct Constraint {
    std::span<const std::int32_t> group_of;    // (n,) codes 0 .. P-1
    std::span<const Index> budgets;            // (P,)
    std::span<const std::uint8_t> candidates;  // (n,) or empty
    std::span<const Index> initial;            // distinct rows that stand in the selection from the start
};

struct Execution {
    int n_threads = 1;
    // A job that reads less stays on the calling thread: waking a worker takes about 5 microseconds, reading 512 KB
    // about 25.
    double bytes_worth_threads = 512.0 * 1024.0;
    const char* kernels = nullptr;  // nullptr: the widest this processor has
};

// Throws InvalidArgument, Unbounded or Interrupted (error.hpp).
Solution solve_cpu(const Problem& problem, const Constraint& constraint, const Options& options,
                   const Execution& execution, Monitor& monitor);

// A solution for each of these targets in place of problem.target; all share every pass over the rows. The work
// recorded is that of all.
std::vector<Solution> solve_each_cpu(const Problem& problem, std::span<const std::span<const double>> targets,
                                     const Constraint& constraint, const Options& options, const Execution& execution,
                                     Monitor& monitor);

// f, weights, correlations and optionally all gains of a given support.
Evaluation evaluate_cpu(const Problem& problem, std::span<const Index> members, const Options& options, bool with_gains,
                        const Execution& execution, Monitor& monitor);

// The kernel set that `nullptr` stands for.
const char* widest_kernels();

}  // namespace pysubmod
