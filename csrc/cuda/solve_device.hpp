// What the doors of solve_cuda.hpp do, on any device.
#pragma once

#include <chrono>
#include <deque>

#include "cuda/dense_solve.hpp"
#include "cuda/gram_product.hpp"
#include "cuda/gram_solve.hpp"
#include "cuda/products.hpp"
#include "cuda/solve_cuda.hpp"

namespace pysubmod::cuda {

// K of so many rows is formed rather than that the rows are drafted from: the pursuit on it is one launch.
inline constexpr Index kMostRowsForGram = 4096;
// The most rows for which a K can be formed: n * n numbers are counted in 31 bits.
inline constexpr Index kMostRowsOfGram = 46340;

inline Route choose_device_route(const DeviceProblem& problem) {
    const Options& options = problem.options;
    if (problem.is_gram) return Route::gram;
    if (options.route == Route::gram || options.route == Route::draft) return options.route;
    if (options.route != Route::automatic) throw InvalidArgument("route: a device has 'gram' and 'draft' (or 'auto')");
    const bool needs_gram =
        options.rule == Rule::greedy || options.pick == Pick::random || options.fill || options.release_zeros;
    const Index n = problem.rows.rows;
    if (needs_gram && n > kMostRowsOfGram)
        throw InvalidArgument(
            "route: rule='greedy', pick='random', fill and release_zeros need the Gram matrix, which is "
            "formed for up to 46340 rows; G has " +
            std::to_string(n) + ": solve on the CPU");
    return needs_gram || n <= kMostRowsForGram ? Route::gram : Route::draft;
}

template <class Device>
class DeviceSolve {
  public:
    DeviceSolve(Device& device, std::span<const DeviceProblem> problems, const DeviceOutputs* outputs, Monitor& monitor)
        : device_(device), problems_(problems), outputs_(outputs), monitor_(monitor), solved_(problems.size()) {}

    // Everything on Gram matrices is queued first, in one launch.
    std::vector<DeviceSolution> run() {
        const auto start = std::chrono::steady_clock::now();
        std::vector<std::size_t> on_gram, on_rows;
        for (std::size_t p = 0; p < problems_.size(); ++p)
            (choose_device_route(problems_[p]) == Route::gram ? on_gram : on_rows).push_back(p);
        if (outputs_ && !on_rows.empty())
            throw InvalidArgument(
                "output: 'device' is for route='gram', for route='draft' waits for the device in every "
                "round; pass route='gram', or output='selection'");
        if (!on_gram.empty()) solve_grams(on_gram);
        for (const std::size_t p : on_rows) solve_rows(p);
        if (outputs_) return {};
        const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
        for (DeviceSolution& solved : solved_) {
            solved.solution.seconds_pursuit = seconds;
            solved.run.device = device_.name();
            solved.run.device_bytes = device_.allocated();
        }
        return std::move(solved_);
    }

  private:
    void solve_grams(const std::vector<std::size_t>& which) {
        std::vector<GramJob> jobs;
        for (const std::size_t p : which)
            jobs.push_back(problems_[p].is_gram ? job_of_gram(problems_[p])
                                                : job_of_rows(problems_[p], solved_[p].run));
        check_given(jobs);
        GramBatch batch(jobs, outputs_);
        batch.launch(device_);
        if (outputs_) return;
        std::vector<Solution> solutions = batch.collect(device_);
        for (std::size_t j = 0; j < which.size(); ++j) {
            DeviceSolution& solved = solved_[which[j]];
            solved.solution = std::move(solutions[j]);
            solved.run.blocks = batch.grid().blocks;
            solved.run.threads = batch.grid().threads;
        }
    }

    // Of a K that was given nobody knows yet whether it is finite and symmetric.
    void check_given(std::vector<GramJob>& jobs) {
        std::vector<View> grams;
        for (const GramJob& job : jobs)
            if (!job.from_rows && job.gram.rows > 0) grams.push_back(job.gram);
        if (grams.empty()) return;
        const auto checks = check_grams(device_, std::span<const View>(grams));
        std::size_t next = 0;
        for (GramJob& job : jobs)
            if (!job.from_rows && job.gram.rows > 0) job.checks = checks[next++];
    }

    GramJob job_of_gram(const DeviceProblem& problem) {
        GramJob job;
        job.gram = problem.gram;
        job.linear = vector_of(problem, problem.linear);
        job.target_norm = problem.target_norm;
        job.rank_tolerance = problem.gram.storage == Storage::float64 ? kRankToleranceGram64 : kRankToleranceGram32;
        job.constraint = &problem.constraint;
        job.options = &problem.options;
        return job;
    }

    // K and c from the rows.
    GramJob job_of_rows(const DeviceProblem& problem, DeviceRun& run) {
        const Index n = problem.rows.rows;
        if (n > kMostRowsOfGram)
            throw InvalidArgument("route: 'gram' is for up to 46340 rows, and G has " + std::to_string(n) +
                                  "; use route='draft'");
        const auto rows = static_cast<std::size_t>(n);
        const double* target = target_of(problem);
        auto* linear = device_.template allocate<double>(2 * rows + 1);
        double *squares = linear + rows, *norm = squares + rows;
        if (n > 0) form_linear(device_, problem.rows, target, linear, squares);
        const Formed& formed = form_once(problem.rows, squares);
        run.product = formed.product.product;
        run.product_type = formed.product.type;
        GramJob job;
        job.rank_tolerance = run.product_type == "float32" ? kRankToleranceGram32 : kRankToleranceGram64;
        device_.run({.threads = 256, .fast_bytes = sizeof(double) * kWideLanes},
                    TargetNormBody{target, problem.rows.columns, norm});
        job.gram = {formed.gram, n, n, n, Storage::float64};
        job.linear = {linear, 1, n, n, Storage::float64};
        job.target_norm_at = norm;
        job.in_range = problem.options.tilt == 0.0;
        job.from_rows = true;
        job.constraint = &problem.constraint;
        job.options = &problem.options;
        return job;
    }

    // K of rows that several problems may have in common.
    struct Formed {
        View rows;
        double* gram;
        GramProduct product;
    };
    const Formed& form_once(const View& rows, const double* squares) {
        for (const Formed& formed : formed_)
            if (formed.rows.data == rows.data && formed.rows.rows == rows.rows && formed.rows.columns == rows.columns &&
                formed.rows.stride == rows.stride && formed.rows.storage == rows.storage)
                return formed;
        const auto n = static_cast<std::size_t>(rows.rows);
        Formed formed{rows, device_.template allocate<double>(n * n), {"", ""}};
        if (n > 0) formed.product = form_gram(device_, rows, squares, formed.gram);
        formed_.push_back(formed);
        return formed_.back();
    }

    void solve_rows(std::size_t p) {
        const DeviceProblem& problem = problems_[p];
        DenseSolve<Device> dense(device_, problem.rows, target_of(problem), problem.constraint, problem.options,
                                 monitor_);
        DeviceSolution& solved = solved_[p];
        solved.solution = dense.run();
        solved.run.product = dense.used_blas() ? "cublas" : "built-in";
        solved.run.product_type = "float64";  // what picks are decided by
        solved.run.blocks = dense.draft_grid().blocks;
        solved.run.threads = dense.draft_grid().threads;
    }

    // A vector given in host memory, if there is one, on the device.
    View vector_of(const DeviceProblem& problem, const View& on_device) {
        const std::span<const double> host = problem.host_vector;
        if (host.empty()) return on_device;
        double* copy = device_.template allocate<double>(host.size());
        device_.upload(copy, host.data(), host.size());
        const auto length = static_cast<Index>(host.size());
        return {copy, 1, length, length, Storage::float64};
    }

    // The target as float64, the mean of its rows.
    const double* target_of(const DeviceProblem& problem) {
        const View target = vector_of(problem, problem.target);
        if (target.rows == 1 && target.storage == Storage::float64) return static_cast<const double*>(target.data);
        double* mean = device_.template allocate<double>(static_cast<std::size_t>(target.columns));
        form_mean(device_, target, mean);
        return mean;
    }

    Device& device_;
    std::span<const DeviceProblem> problems_;
    const DeviceOutputs* outputs_;
    Monitor& monitor_;
    std::vector<DeviceSolution> solved_;
    std::deque<Formed> formed_;
};

template <class Device>
std::vector<DeviceSolution> solve_on_device(Device& device, std::span<const DeviceProblem> problems,
                                            const DeviceOutputs* outputs, Monitor& monitor) {
    return DeviceSolve<Device>(device, problems, outputs, monitor).run();
}

}  // namespace pysubmod::cuda
