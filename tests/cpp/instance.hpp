// A problem that owns its numbers, for tests of the plain doors.
#pragma once

#include <algorithm>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "dense.hpp"
#include "pysubmod/error.hpp"
#include "pysubmod/solve.hpp"

namespace pysubmod {

struct Instance {
    std::vector<std::vector<double>> rows;
    std::vector<double> target;
    std::vector<std::int32_t> groups;
    std::vector<Index> budgets;
    std::vector<std::uint8_t> candidates;  // empty: all
    std::vector<Index> initial;

    // One group with one budget.
    Instance(std::vector<std::vector<double>> rows_, std::vector<double> target_, Index budget)
        : rows(std::move(rows_)), target(std::move(target_)), groups(rows.size(), 0), budgets{budget} {}

    std::size_t n() const { return rows.size(); }
    std::size_t d() const { return target.size(); }
    Constraint constraint() const { return {groups, budgets, candidates, initial}; }

    std::vector<double> flat() const {
        std::vector<double> x;
        for (const auto& row : rows) x.insert(x.end(), row.begin(), row.end());
        return x;
    }
    std::vector<double> gram() const {
        std::vector<double> k(n() * n());
        for (std::size_t i = 0; i < n(); ++i)
            for (std::size_t j = 0; j <= i; ++j)
                k[i * n() + j] = k[j * n() + i] = static_cast<double>(dense::inner(rows[i], rows[j]));
        return k;
    }
    std::vector<double> linear() const {
        std::vector<double> c;
        for (const auto& row : rows) c.push_back(static_cast<double>(dense::inner(row, target)));
        return c;
    }
};

// (rows, columns) float64, one row after another.
inline RowBlock block_of(const std::vector<double>& flat, std::size_t rows, std::size_t columns) {
    return {reinterpret_cast<const std::byte*>(flat.data()), static_cast<Index>(rows),
            static_cast<std::ptrdiff_t>(8 * columns), 8, Storage::float64};
}

inline Solution solve(const Instance& instance, const Options& options, const Execution& execution, Monitor& monitor) {
    const std::vector<double> flat = instance.flat();
    Problem problem;
    problem.rows = {block_of(flat, instance.n(), instance.d())};
    problem.target = instance.target;
    return solve_cpu(problem, instance.constraint(), options, execution, monitor);
}

inline Solution solve(const Instance& instance, const Options& options = {}, const Execution& execution = {}) {
    Monitor monitor;
    return solve(instance, options, execution, monitor);
}

// A Gram matrix and c = G t in place of the rows.
struct GramInstance {
    std::vector<double> gram, linear;
    double target_norm = kUnknown;

    explicit GramInstance(const Instance& from)
        : gram(from.gram()),
          linear(from.linear()),
          target_norm(static_cast<double>(std::sqrt(dense::inner(from.target, from.target)))) {}

    Problem problem() const {
        Problem problem;
        problem.is_gram = true;
        problem.gram = block_of(gram, linear.size(), linear.size());
        problem.linear = linear;
        problem.target_norm = target_norm;
        return problem;
    }
    Solution solve(const Constraint& constraint, const Options& options = {}, const Execution& execution = {}) const {
        Monitor monitor;
        return solve_cpu(problem(), constraint, options, execution, monitor);
    }
};

// The sets of kernels that run here.
inline std::vector<const char*> kernel_names() {
    std::vector<const char*> names = {"portable", "avx2", "avx512"};
    const Instance tiny({{1.0}}, {1.0}, 1);
    std::erase_if(names, [&](const char* name) {
        try {
            solve(tiny, {}, {1, 0.0, name});
            return false;
        } catch (const InvalidArgument&) {
            return true;
        }
    });
    return names;
}

inline bool same_bits(std::span<const double> a, std::span<const double> b) {
    return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size_bytes()) == 0);
}

inline bool same_bits(double a, double b) { return std::memcmp(&a, &b, sizeof a) == 0; }

// Everything that may not depend on layout, threads, instruction set or route.
inline bool same_bits(const Solution& a, const Solution& b) {
    return a.indices == b.indices && same_bits(a.weights, b.weights) && same_bits(a.gains, b.gains) &&
           same_bits(a.residual_norms, b.residual_norms) && same_bits(a.objective, b.objective) &&
           same_bits(a.target_norm, b.target_norm) && same_bits(a.scale, b.scale) && a.status == b.status &&
           a.n_filled == b.n_filled;
}

}  // namespace pysubmod
