// Drives the pursuits on Gram matrices: memory, one launch for all of them, and what is made of the results.
#pragma once

#include <algorithm>
#include <span>
#include <string>
#include <vector>

#include "cuda/gram_pursuit.hpp"
#include "cuda/gram_task.hpp"
#include "cuda/layout.hpp"
#include "cuda/solve_cuda.hpp"
#include "pysubmod/partition_matroid.hpp"

namespace pysubmod::cuda {

// A pursuit to make: a matrix K and a vector c in device memory, and the rest of the problem.
struct GramJob {
    View gram, linear;
    const double* target_norm_at = nullptr;  // device memory; or
    double target_norm = kUnknown;
    double rank_tolerance = kRankToleranceGram32;
    bool in_range = false;
    bool from_rows = false;                // K was formed from rows: that is what messages speak of
    std::span<const std::int64_t> checks;  // device memory; see GramTask
    const Constraint* constraint = nullptr;
    const Options* options = nullptr;
};

// The most members that a selection can have.
inline Index most_members(const Constraint& constraint) {
    const PartitionMatroid matroid(constraint.group_of, constraint.budgets, constraint.candidates);
    return std::min(matroid.total(), matroid.rank() + static_cast<Index>(constraint.initial.size()));
}

// A constraint in the device's words: marks of the rows, and by group the budgets and the rows that may be picked.
struct DeviceConstraint {
    std::vector<std::uint8_t> pool;
    std::vector<std::int32_t> budgets, available, initial;

    explicit DeviceConstraint(const Constraint& constraint)
        : pool(constraint.group_of.size(), 0), available(constraint.budgets.size(), 0) {
        const auto n = static_cast<Index>(constraint.group_of.size());
        for (const Index budget : constraint.budgets)  // any that no group can use up is as good as another
            budgets.push_back(static_cast<std::int32_t>(std::min(budget, n + 1)));
        for (std::size_t i = 0; i < pool.size(); ++i) {
            const auto group = static_cast<std::size_t>(constraint.group_of[i]);
            if (budgets[group] == 0 || (!constraint.candidates.empty() && !constraint.candidates[i])) continue;
            pool[i] = kMayBePicked | kInPool;
            ++available[group];
        }
        std::vector<std::int32_t> taken(budgets.size(), 0);
        for (const Index i : constraint.initial) {
            const std::string row = "initial: row " + std::to_string(i);
            if (i < 0 || i >= n) throw InvalidArgument(row + " does not exist");
            const auto at = static_cast<std::size_t>(i), group = static_cast<std::size_t>(constraint.group_of[at]);
            if (std::find(initial.begin(), initial.end(), i) != initial.end())
                throw InvalidArgument(row + " comes twice");
            if (++taken[group] > budgets[group]) throw InvalidArgument(row + " takes its group over its budget");
            pool[at] |= kInPool;
            initial.push_back(static_cast<std::int32_t>(i));
        }
    }
};

class GramBatch {
  public:
    GramBatch(std::span<const GramJob> jobs, const DeviceOutputs* outputs) : outputs_(outputs) {
        tasks_.resize(jobs.size());
        for (std::size_t p = 0; p < jobs.size(); ++p) {
            describe(jobs[p], tasks_[p]);
            from_rows_.push_back(jobs[p].from_rows);
        }
    }

    // Queues everything; nothing is waited for.
    template <class Device>
    void launch(Device& device) {
        choose_grid(device);
        const std::span<GramTask> tasks = tasks_;
        for (GramTask& task : tasks) {
            lay_out_work(task);
            lay_out_results(task);
        }
        work_.place(device.template allocate<std::byte>(work_.bytes()));
        results_.place(base_ = device.template allocate<std::byte>(results_.bytes()));
        if (outputs_) use_outputs();
        // The arrays first, for the tasks hold their addresses.
        inputs_.send(device);
        Upload last;
        const GramTask* on_device = nullptr;
        last.add(on_device, std::span<const GramTask>(tasks));
        last.send(device);
        device.run(grid_, GramPursuitBody{on_device});
    }

    const Grid& grid() const { return grid_; }

    // Waits, and returns a solution for each job. Throws what was wrong with the first that failed.
    template <class Device>
    std::vector<Solution> collect(Device& device) {
        std::vector<std::byte> bytes(results_.bytes());
        device.download(bytes.data(), base_, bytes.size());
        results_.place(bytes.data());
        std::vector<Solution> solutions;
        for (std::size_t p = 0; p < tasks_.size(); ++p) {
            const GramTask& task = tasks_[p];
            if (from_rows_[p]) check_rows(*task.header);
            check(task, *task.header);
            solutions.push_back(solution_of(task, *task.header));
        }
        return solutions;
    }

  private:
    static constexpr int kThreads = 256, kMostMembersOfSeveralBlocks = 1024;

    void describe(const GramJob& job, GramTask& task) {
        const Constraint& constraint = *job.constraint;
        const Options& options = *job.options;
        const std::size_t n = constraint.group_of.size(), n_groups = constraint.budgets.size();
        if (static_cast<Index>(n) != job.gram.rows) throw InvalidArgument("groups: must have one entry per row");
        if (job.gram.rows > kMostRows)
            throw InvalidArgument("K: more than 46340 rows do not fit this route; use route='draft'");
        if (options.swap)
            throw InvalidArgument("refine: 'swap' is not for a device; leave it out, or solve on the CPU");
        task.n = static_cast<int>(n);
        task.n_groups = static_cast<int>(n_groups);
        task.k = static_cast<int>(std::max<Index>(1, most_members(constraint)));
        task.width = task.k;
        task.gram = job.gram;
        task.linear = job.linear;
        task.target_norm_at = job.target_norm_at;
        task.target_norm = job.target_norm;
        task.checks = job.checks.data();
        task.n_checks = static_cast<int>(job.checks.size());
        task.ridge = options.ridge, task.tilt = options.tilt, task.tol = options.tol;
        task.rank_tolerance = job.rank_tolerance;
        task.seed = options.seed;
        task.rule = options.rule;
        task.nonneg = options.nonneg, task.fill = options.fill, task.release_zeros = options.release_zeros;
        task.random = options.pick == Pick::random;
        task.signed_ranking = options.signed_ranking;
        task.in_range = job.in_range;
        add_constraint(constraint, task);
    }

    void add_constraint(const Constraint& constraint, GramTask& task) {
        const DeviceConstraint books(constraint);
        task.n_initial = static_cast<int>(books.initial.size());
        inputs_.add(task.group_of, constraint.group_of);
        inputs_.add(task.budgets, std::span<const std::int32_t>(books.budgets));
        inputs_.add(task.available, std::span<const std::int32_t>(books.available));
        inputs_.add(task.pool, std::span<const std::uint8_t>(books.pool));
        inputs_.add(task.initial, std::span<const std::int32_t>(books.initial));
    }

    // Several blocks to a problem where it has rows for them and the device has room; else one. The results do not
    // depend on it.
    template <class Device>
    void choose_grid(Device& device) {
        int most_rows = 1, most_k = 1;
        std::size_t most_members_bytes = 0;
        for (const GramTask& task : tasks_) {
            most_rows = std::max(most_rows, task.n);
            most_k = std::max(most_k, task.k);
            most_members_bytes = std::max(most_members_bytes, Members::bytes(task.k, task.n_groups));
        }
        const int room = device.multiprocessors() / std::max(1, static_cast<int>(tasks_.size()));
        const int wanted = most_k > kMostMembersOfSeveralBlocks ? 1 : most_rows / device.rows_worth_a_block();
        grid_.teams = static_cast<int>(tasks_.size());
        grid_.threads = kThreads;
        grid_.blocks = 1;
        while (2 * grid_.blocks <= std::min({room, wanted, device.most_blocks()})) grid_.blocks *= 2;
        const bool members_fit = kTaskBytes + most_members_bytes <= device.fast_bytes();
        const bool factor_fits =
            members_fit && kTaskBytes + most_members_bytes + factor_bytes(most_k) <= device.fast_bytes();
        for (GramTask& task : tasks_) task.members_are_fast = members_fit, task.factor_is_fast = factor_fits;
        grid_.fast_bytes =
            kTaskBytes + (members_fit ? most_members_bytes : 0) + (factor_fits ? factor_bytes(most_k) : 0);
    }

    void lay_out_work(GramTask& task) {
        const auto n = static_cast<std::size_t>(task.n), k = static_cast<std::size_t>(task.k);
        const auto blocks = static_cast<std::size_t>(grid_.blocks);
        for (double** list : {&task.c, &task.diagonal, &task.root, &task.g}) work_.add(*list, n);
        work_.add(task.mark, n);
        if (task.rule == Rule::greedy) {
            work_.add(task.schur, n);
            work_.add(task.exact, n);
            work_.add(task.exact_round, n);
            work_.add(task.deflated, n * (task.release_zeros ? n : k));  // members that left stay in it
        }
        if (task.random) {
            work_.add(task.less, n);
            work_.add(task.plus, n);
            work_.add(task.kind, n);
            work_.add(task.list, n);
        }
        work_.add(task.exchange, 2 * 3 * blocks);
        if (!task.members_are_fast) work_.add(task.members, blocks * Members::bytes(task.k, task.n_groups));
        if (!task.factor_is_fast) work_.add(task.factors, blocks * factor_bytes(task.k));
        work_.add(task.copies, 2 * blocks * factor_bytes(task.k));
    }

    void lay_out_results(GramTask& task) {
        const auto k = static_cast<std::size_t>(task.k);
        results_.add(task.header, 1);
        results_.add(task.gains, k);
        results_.add(task.residual_norms, k);
        results_.add(task.indices, k);
        results_.add(task.weights, k);
    }

    void use_outputs() {
        for (std::size_t p = 0; p < tasks_.size(); ++p) {
            GramTask& task = tasks_[p];
            const auto at = static_cast<Index>(p);
            if (outputs_->width < task.k)
                throw InvalidArgument("outputs: room for " + std::to_string(outputs_->width) + " picks, but problem " +
                                      std::to_string(p) + " may have " + std::to_string(task.k));
            task.width = static_cast<int>(outputs_->width);
            task.indices = outputs_->indices + at * outputs_->width;
            task.weights = outputs_->weights + at * outputs_->width;
            task.n_selected_out = outputs_->n_selected + at;
            task.objective_out = outputs_->objective + at;
            task.status_out = outputs_->status + at;
        }
    }

    static void check(const GramTask& task, const GramHeader& header) {
        const auto fault = static_cast<Fault>(header.fault);
        if (fault == Fault::none) return;
        const std::string row = std::to_string(header.fault_row), value = std::to_string(header.fault_value);
        switch (fault) {
            case Fault::not_finite:
                throw InvalidArgument("K: row " + row + " (or its entry of c) contains NaN or infinity");
            case Fault::asymmetric:
                throw InvalidArgument(
                    "K: K[" + row + ", " + std::to_string(header.fault_column) +
                    "] is not finite, or differs from the entry across the diagonal; K must be symmetric");
            case Fault::diagonal:
                throw InvalidArgument(
                    "K: diagonal entry " + row + " is " + value +
                    ", negative or outside 1e-280 .. 1e280; K must be a Gram matrix, rescaled if need be");
            case Fault::tilt:
                throw InvalidArgument("tilt: too large for K; the linear term overflows");
            case Fault::zero_length:
                throw Unbounded("c: entry " + row + " is " + value + " but the row has length 0 (K[" + row + ", " +
                                row + "] = 0): the objective is unbounded; c must be G t");
            case Fault::scale:
                throw InvalidArgument(
                    std::string(task.tilt != 0.0 ? "tilt" : "c") +
                    ": too large for the lengths of the rows; the objective would leave float64: rescale");
            case Fault::unbounded:
                throw Unbounded(
                    "c: the objective is unbounded: row " + row +
                    " depends linearly on rows already selected, but the linear term (c, or the tilt) rewards "
                    "it all the same; pass ridge > 0, or tilt = 0 with c = G t");
            case Fault::not_psd:
                throw InvalidArgument("K: the Gram matrix is not positive semidefinite; K = G G' always is");
            case Fault::changed:
                throw InvalidArgument("K: is no longer finite; nothing may write to it during a solve");
            default:
                throw std::runtime_error("the active set method did not end; please report this problem");
        }
    }

    // What reads differently where rows were given.
    static void check_rows(const GramHeader& header) {
        const std::string row = "G: row " + std::to_string(header.fault_row);
        switch (static_cast<Fault>(header.fault)) {
            case Fault::not_finite:
                throw InvalidArgument(
                    row + " (or the target) contains NaN or infinity; remove it or mask it with candidates");
            case Fault::diagonal:
                throw InvalidArgument(
                    row + " has a norm outside 1e-140 .. 1e140, whose square float64 cannot hold; rescale G");
            case Fault::tilt:
                throw InvalidArgument("tilt: too large for the norms of G; the linear term overflows");
            case Fault::unbounded:
                throw Unbounded(
                    "tilt: the objective is unbounded: row " + std::to_string(header.fault_row) +
                    " depends linearly on rows already selected, but the tilt rewards it all the same; pass "
                    "ridge > 0, or tilt = 0");
            case Fault::not_psd:
            case Fault::changed:
                throw InvalidArgument("G: is no longer finite, or changed; nothing may write to it during a solve");
            default:
                return;
        }
    }

    static Solution solution_of(const GramTask& task, const GramHeader& header) {
        Solution solution;
        const auto count = static_cast<std::ptrdiff_t>(header.n_selected);
        solution.indices.assign(task.indices, task.indices + count);
        solution.weights.assign(task.weights, task.weights + count);
        solution.gains.assign(task.gains, task.gains + count);
        solution.residual_norms.assign(task.residual_norms, task.residual_norms + count);
        solution.objective = header.objective;
        solution.target_norm = header.target_norm;
        solution.scale = header.scale;
        solution.status = static_cast<Status>(header.status);
        solution.n_filled = header.n_filled;
        solution.route = Route::gram;
        solution.threads = 0;
        return solution;
    }

    static constexpr Index kMostRows = 46340;  // n * n fits 31 bits

    std::vector<GramTask> tasks_;
    std::vector<char> from_rows_;
    const DeviceOutputs* outputs_;
    Upload inputs_;
    Layout work_, results_;
    std::byte* base_ = nullptr;
    Grid grid_;
};

}  // namespace pysubmod::cuda
