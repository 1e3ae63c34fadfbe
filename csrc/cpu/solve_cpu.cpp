// Instantiates the pursuit for the CPU sources: no other file pays for the templates.
#include "pysubmod/solve.hpp"

#include <chrono>
#include <memory>
#include <numeric>
#include <string>

#include "cpu/dense_source.hpp"
#include "cpu/gram_source.hpp"
#include "cpu/kernels.hpp"
#include "cpu/route.hpp"
#include "cpu/thread_team.hpp"
#include "pysubmod/pursuit.hpp"
#include "pysubmod/swap_search.hpp"

namespace pysubmod {
namespace {

class Stopwatch {
  public:
    // Seconds since the last look.
    double lap() {
        const auto now = std::chrono::steady_clock::now();
        const double seconds = std::chrono::duration<double>(now - last_).count();
        last_ = now;
        return seconds;
    }

  private:
    std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

const cpu::KernelSet& kernels_for(const Execution& execution) {
    if (!execution.kernels) return cpu::kernel_set();
    const cpu::KernelSet* set = cpu::kernel_set(execution.kernels);
    if (!set)
        throw InvalidArgument(std::string("kernels: '") + execution.kernels + "' cannot run here; use " +
                              cpu::kernel_set().name);
    return *set;
}

// Runs `use`, and says of an unbounded problem which argument makes it so: c = G t never does.
template <class Use>
auto naming_the_unbounded(bool is_gram, Use use) {
    try {
        return use();
    } catch (const Unbounded& error) {
        throw Unbounded(std::string(is_gram ? "c: " : "tilt: ") + error.what());
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

// What every solve of a call has in common.
struct Call {
    const Problem& problem;
    std::span<const std::span<const double>> targets;
    const Constraint& constraint;
    const Options& options;
    PartitionMatroid matroid;
    std::vector<Index> pool;  // what can enter the selection; to leave a row out is the same as not having it
    cpu::ThreadTeam& team;
    const cpu::KernelSet& kernels;
    Monitor& monitor;
};

// What follows the pursuits: swaps, and the record of the work.
template <class S>
void complete(const Call& call, S& source, Solution& solution) {
    if (call.options.swap && solution.status != Status::stopped)
        solution = improve_by_swaps(source, call.matroid, call.options, std::move(solution), call.monitor);
    solution.passes = source.passes();
    solution.bytes_read = source.bytes_read();
    solution.threads = call.team.started();
}

std::vector<Solution> solve_gram(const Call& call) {
    Stopwatch clock;
    cpu::GramSource source(call.problem.gram, call.problem.linear, call.problem.target_norm, call.pool, call.options,
                           call.team, call.kernels);
    const double prepared = clock.lap();
    Solution solution = Pursuit(source, call.matroid, call.options, call.monitor).run(call.constraint.initial);
    const double pursued = clock.lap();
    complete(call, source, solution);
    solution.seconds_prepare = prepared;
    solution.seconds_pursuit = pursued;
    solution.seconds_swap = clock.lap();
    return {solution};
}

// One pursuit for each target, all in step: whoever needs a pass waits for the others, and one is made for all.
std::vector<Solution> solve_rows(const Call& call) {
    Stopwatch clock;
    const std::span<const std::span<const double>> targets = call.targets;
    cpu::Rows rows(call.problem.rows, targets[0].size(), call.team, call.kernels);
    const cpu::FirstPass first = cpu::read_first(rows, call.pool, targets);
    const Route route = cpu::choose_route(call.options, first.squares, rows.width(), rows.row_bytes(),
                                          static_cast<std::size_t>(call.matroid.rank()), targets.size());
    cpu::ColumnStore store(rows.size());
    const cpu::Reading reading{route, targets.size(), &store};

    std::vector<std::unique_ptr<cpu::DenseSource>> sources;
    std::vector<Pursuit<cpu::DenseSource>> pursuits;
    pursuits.reserve(targets.size());
    for (std::size_t p = 0; p < targets.size(); ++p) {
        sources.push_back(std::make_unique<cpu::DenseSource>(rows, targets[p], call.pool, first.squares,
                                                             first.products[p], call.options, reading));
        pursuits.emplace_back(*sources[p], call.matroid, call.options, call.monitor);
    }
    const double prepared = clock.lap();
    for (auto& pursuit : pursuits) pursuit.start_from(call.constraint.initial);
    std::vector<std::size_t> going(pursuits.size());
    std::iota(going.begin(), going.end(), std::size_t{0});
    for (;;) {
        std::erase_if(going, [&](std::size_t p) { return pursuits[p].climb(); });
        if (going.empty()) break;
        cpu::Pass pass(rows);
        // Only when all have climbed: what a plan puts into the shared store is not there until the pass is made.
        for (const std::size_t p : going) sources[p]->plan(pass, pursuits[p].matroid(), pursuits[p].refit());
        pass.run();
        for (const std::size_t p : going) sources[p]->finish();
    }
    std::vector<Solution> solutions;
    for (auto& pursuit : pursuits) solutions.push_back(pursuit.finish());
    const double pursued = clock.lap();
    for (std::size_t p = 0; p < solutions.size(); ++p) complete(call, *sources[p], solutions[p]);
    const double swapped = clock.lap();
    for (Solution& solution : solutions) {
        solution.route = route;
        solution.seconds_prepare = prepared;
        solution.seconds_pursuit = pursued;
        solution.seconds_swap = swapped;
    }
    return solutions;
}

}  // namespace

Solution solve_cpu(const Problem& problem, const Constraint& constraint, const Options& options,
                   const Execution& execution, Monitor& monitor) {
    return solve_each_cpu(problem, {&problem.target, 1}, constraint, options, execution, monitor)[0];
}

std::vector<Solution> solve_each_cpu(const Problem& problem, std::span<const std::span<const double>> targets,
                                     const Constraint& constraint, const Options& options, const Execution& execution,
                                     Monitor& monitor) {
    if (targets.empty()) throw InvalidArgument("target: none given");
    cpu::ThreadTeam team(execution.n_threads, execution.bytes_worth_threads, monitor);
    Call call{problem,
              targets,
              constraint,
              options,
              PartitionMatroid(constraint.group_of, constraint.budgets, constraint.candidates),
              {},
              team,
              kernels_for(execution),
              monitor};
    if (call.matroid.size() != n_rows(problem)) throw InvalidArgument("groups: must have one entry per row");
    const std::vector<char> stands = flags_of(constraint.initial, call.matroid.size(), "initial");
    for (Index i = 0; i < call.matroid.size(); ++i)
        if (call.matroid.may_take(i) || stands[static_cast<std::size_t>(i)]) call.pool.push_back(i);
    return naming_the_unbounded(problem.is_gram, [&] { return problem.is_gram ? solve_gram(call) : solve_rows(call); });
}

Evaluation evaluate_cpu(const Problem& problem, std::span<const Index> members, const Options& options, bool with_gains,
                        const Execution& execution, Monitor& monitor) {
    const Index n = n_rows(problem);
    const std::vector<char> inside = flags_of(members, n, "S");
    std::vector<Index> pool;  // without gains only the members' rows are read
    for (Index i = 0; i < n; ++i)
        if (with_gains || inside[static_cast<std::size_t>(i)]) pool.push_back(i);
    cpu::ThreadTeam team(execution.n_threads, execution.bytes_worth_threads, monitor);
    const cpu::KernelSet& kernels = kernels_for(execution);
    return naming_the_unbounded(problem.is_gram, [&] {
        if (problem.is_gram) {
            cpu::GramSource source(problem.gram, problem.linear, problem.target_norm, pool, options, team, kernels);
            return evaluate_support(source, n, members, options.nonneg, with_gains, monitor);
        }
        cpu::Rows rows(problem.rows, problem.target.size(), team, kernels);
        const cpu::FirstPass first = cpu::read_first(rows, pool, {&problem.target, 1});
        cpu::DenseSource source(rows, problem.target, pool, first.squares, first.products[0], options, {});
        return evaluate_support(source, n, members, options.nonneg, with_gains, monitor);
    });
}

const char* widest_kernels() { return cpu::kernel_set().name; }

}  // namespace pysubmod
