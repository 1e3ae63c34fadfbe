// Instantiates the pursuit for the CPU sources: no other file pays for the templates.
#include "pysubmod/solve.hpp"

#include <chrono>
#include <cstdlib>
#include <string>

#include "cpu/dense_source.hpp"
#include "cpu/gram_source.hpp"
#include "cpu/kernels.hpp"
#include "cpu/thread_team.hpp"
#include "pysubmod/pursuit.hpp"
#include "pysubmod/swap_search.hpp"

namespace pysubmod {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

const cpu::KernelSet& kernels_for(const Execution& execution) {
    if (!execution.kernels) return cpu::kernel_set();
    const cpu::KernelSet* set = cpu::kernel_set(execution.kernels);
    if (!set)
        throw InvalidArgument(std::string("kernels: '") + execution.kernels + "' cannot run here; use " +
                              cpu::kernel_set().name);
    return *set;
}

// Makes the source the problem calls for and hands it to `use`.
template <class Use>
auto with_source(const Problem& problem, std::vector<Index> pool, const Options& options, cpu::ThreadTeam& team,
                 const cpu::KernelSet& kernels, Use use) {
    try {
        if (problem.is_gram) {
            cpu::GramSource source(problem.gram, problem.linear, problem.target_norm, pool, options, team, kernels);
            return use(source);
        }
        cpu::Rows rows(problem.rows, problem.target.size(), team, kernels);
        const double* targets[] = {problem.target.data()};
        const cpu::FirstPass first = cpu::read_first(rows, pool, targets);
        const bool drafts = options.rule != Rule::greedy && options.pick == Pick::argmax &&
                            cpu::Draft::can_screen(first.squares) && !std::getenv("PLAIN");
        cpu::DenseSource source(rows, problem.target, std::move(pool), first.squares, first.products[0], options,
                                drafts ? Route::draft : Route::plain);
        return use(source);
    } catch (const Unbounded& error) {  // c = G t never is: of rows, only the tilt can make it so
        throw Unbounded(std::string(problem.is_gram ? "c: " : "tilt: ") + error.what());
    }
}

Index n_rows(const Problem& problem) {
    if (problem.is_gram) return static_cast<Index>(problem.linear.size());
    Index n = 0;
    for (const RowBlock& block : problem.rows) n += block.rows;
    return n;
}

// One flag a row; throws if a row does not exist or comes twice.
std::vector<char> flags_of(std::span<const Index> rows, Index n, const char* name) {
    std::vector<char> flags(static_cast<std::size_t>(n), 0);
    for (const Index i : rows) {
        if (i < 0 || i >= n)
            throw InvalidArgument(std::string(name) + ": row " + std::to_string(i) + " does not exist");
        if (flags[static_cast<std::size_t>(i)]++)
            throw InvalidArgument(std::string(name) + ": row " + std::to_string(i) + " comes twice");
    }
    return flags;
}

}  // namespace

Solution solve_cpu(const Problem& problem, const Constraint& constraint, const Options& options,
                   const Execution& execution, Monitor& monitor) {
    const auto start = Clock::now();
    PartitionMatroid matroid(constraint.group_of, constraint.budgets, constraint.candidates);
    if (matroid.size() != n_rows(problem)) throw InvalidArgument("groups: must have one entry per row");
    // What can enter the selection; to leave a row out is the same as not having it.
    const std::vector<char> stands = flags_of(constraint.initial, matroid.size(), "initial");
    std::vector<Index> pool;
    for (Index i = 0; i < matroid.size(); ++i)
        if (matroid.may_take(i) || stands[static_cast<std::size_t>(i)]) pool.push_back(i);
    cpu::ThreadTeam team(execution.n_threads, execution.bytes_worth_threads, monitor);
    return with_source(problem, std::move(pool), options, team, kernels_for(execution), [&](auto& source) {
        const double prepared = seconds_since(start);
        Solution solution = Pursuit(source, matroid, options, monitor).run(constraint.initial);
        const double pursued = seconds_since(start) - prepared;
        if (options.swap && solution.status != Status::stopped)
            solution = improve_by_swaps(source, matroid, options, std::move(solution), monitor);
        solution.passes = source.passes();
        solution.bytes_read = source.bytes_read();
        solution.threads = team.started();
        solution.seconds_prepare = prepared;
        solution.seconds_pursuit = pursued;
        solution.seconds_swap = seconds_since(start) - prepared - pursued;
        return solution;
    });
}

Evaluation evaluate_cpu(const Problem& problem, std::span<const Index> members, const Options& options, bool with_gains,
                        const Execution& execution, Monitor& monitor) {
    const Index n = n_rows(problem);
    const std::vector<char> inside = flags_of(members, n, "S");
    std::vector<Index> pool;  // without gains only the members' rows are read
    for (Index i = 0; i < n; ++i)
        if (with_gains || inside[static_cast<std::size_t>(i)]) pool.push_back(i);
    cpu::ThreadTeam team(execution.n_threads, execution.bytes_worth_threads, monitor);
    return with_source(problem, std::move(pool), options, team, kernels_for(execution), [&](auto& source) {
        return evaluate_support(source, n, members, options.nonneg, with_gains, monitor);
    });
}

const char* widest_kernels() { return cpu::kernel_set().name; }

}  // namespace pysubmod
