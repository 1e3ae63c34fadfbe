// Random problems for the tests of the device's pursuits, and what it is to have the same answer.
#pragma once

#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "check.hpp"
#include "instance.hpp"

namespace pysubmod {

struct Shape {
    int threads, blocks;
};

inline Instance random_instance(std::mt19937_64& random, std::size_t n, std::size_t d, std::size_t groups,
                                double noise) {
    std::normal_distribution<double> normal;
    std::vector<std::vector<double>> centers(groups, std::vector<double>(d)), rows;
    for (auto& center : centers)
        for (double& x : center) x = normal(random);
    std::vector<double> target(d);
    Instance instance({}, {}, 1);
    for (std::size_t i = 0; i < n; ++i) {
        std::vector<double> row(d);
        const std::size_t group = random() % groups;
        for (std::size_t j = 0; j < d; ++j) row[j] = (1.0 - noise) * centers[group][j] + noise * normal(random);
        rows.push_back(row);
        instance.groups.push_back(static_cast<std::int32_t>(group));
    }
    for (double& x : target) x = normal(random);
    for (const auto& center : centers)
        for (std::size_t j = 0; j < d; ++j) target[j] += center[j];
    instance.rows = rows;
    instance.target = target;
    instance.budgets.clear();
    for (std::size_t p = 0; p < groups; ++p) instance.budgets.push_back(static_cast<Index>(random() % 5));
    return instance;
}

inline bool close(double a, double b, double tolerance) {
    return std::abs(a - b) <= tolerance || (std::isnan(a) && std::isnan(b));
}

inline void check_same(const Solution& a, const Solution& b, const std::string& what) {
    if (a.indices != b.indices || a.status != b.status || a.n_filled != b.n_filled) {
        std::string text = what + ": other picks:";
        for (const Index i : a.indices) text.append(" ").append(std::to_string(i));
        text += " instead of";
        for (const Index i : b.indices) text.append(" ").append(std::to_string(i));
        text += "; status " + std::to_string(static_cast<int>(a.status)) + ", " +
                std::to_string(static_cast<int>(b.status));
        check::fail(__FILE__, __LINE__, text);
        return;
    }
    double largest = 0.0;
    for (const double w : b.weights) largest = std::max(largest, std::abs(w));
    for (std::size_t j = 0; j < a.indices.size(); ++j) {
        CHECK(close(a.weights[j], b.weights[j], 1e-7 * largest));
        CHECK(close(a.gains[j], b.gains[j], 1e-7 * std::abs(b.objective) + 1e-14));
        CHECK(close(a.residual_norms[j], b.residual_norms[j], 1e-6 * b.target_norm));
    }
    CHECK(close(a.objective, b.objective, 1e-9 * std::abs(b.objective) + 1e-14));
}

struct Case {
    Instance instance{{}, {}, 1};
    Options options;
};

inline Case random_case(std::mt19937_64& random) {
    const std::size_t n = 5 + random() % 40, groups = 1 + random() % 4;
    const double noise = (random() % 3 == 0) ? 1.0 : 0.5;
    Case made;
    made.instance = random_instance(random, n, 3 + random() % 30, groups, noise);
    if (random() % 2) {
        for (std::size_t i = 0; i < n; ++i) made.instance.candidates.push_back(random() % 5 != 0);
    }
    Options& options = made.options;
    options.nonneg = random() % 2;
    options.rule = static_cast<Rule>(random() % 3);
    options.ridge = random() % 2 ? 0.1 : 1e-3;
    options.tilt = random() % 3 == 0 ? 0.05 : 0.0;
    options.fill = random() % 3 == 0;
    options.release_zeros = random() % 4 == 0;
    options.tol = random() % 4 == 0 ? 0.5 : 0.0;
    options.pick = random() % 3 == 0 ? Pick::random : Pick::argmax;
    options.signed_ranking = random() % 2;
    options.seed = random();
    std::vector<Index> left = made.instance.budgets;
    for (std::size_t i = 0; i < n && random() % 3 == 0; ++i)
        if (left[static_cast<std::size_t>(made.instance.groups[i])]-- > 0)
            made.instance.initial.push_back(static_cast<Index>(i));
        else
            break;
    return made;
}

}  // namespace pysubmod
