// Fixed small problems, one solve each, for instruction counts (benchmarks/count_instructions.py): no test, no clock.
//     small_cases            lists the cases
//     small_cases CASE       solves one and prints the answer, which tells a changed problem from a changed cost
#include <cstdio>
#include <string>

#include "instance.hpp"

using namespace pysubmod;

namespace {

struct Case {
    std::string name;
    std::size_t n, d;
    Index k;
    bool gram, nonneg;
    Rule rule;
};

std::vector<Case> all_cases() {
    std::vector<Case> cases;
    const auto add = [&](const char* what, std::size_t n, std::size_t d, Index k, bool gram, bool nonneg, Rule rule) {
        cases.push_back(
            {std::string(what) + (nonneg ? "-nonneg-" : "-free-") + std::to_string(n) + "-k" + std::to_string(k), n, d,
             k, gram, nonneg, rule});
    };
    for (const bool nonneg : {false, true}) {
        for (const std::size_t n : {64, 256, 1024})
            add("gram", n, n, static_cast<Index>(n) / 8, true, nonneg, Rule::omp);
        add("gram-normalized", 256, 256, 32, true, nonneg, Rule::normalized);
        add("gram-greedy", 256, 256, 32, true, nonneg, Rule::greedy);
        add("rows", 256, 1024, 32, false, nonneg, Rule::omp);
    }
    return cases;
}

// Eight groups, a mean for each and one for all: rows that pull together, as gradients do.
Instance gradient_like(const Case& c) {
    constexpr std::size_t kGroups = 8;
    dense::Random random(1);
    const std::vector<double> shared = random.normals(c.d);
    std::vector<std::vector<double>> means;
    for (std::size_t p = 0; p < kGroups; ++p) means.push_back(random.normals(c.d));
    const auto row = [&](std::size_t p) {
        std::vector<double> x = random.normals(c.d);
        const double length = random.uniform(0.2, 1.0);
        for (std::size_t j = 0; j < c.d; ++j)  // few digits: any order of summation gives the same K
            x[j] = std::round(64.0 * length * (shared[j] + means[p][j] + x[j]));
        return x;
    };
    std::vector<std::vector<double>> rows;
    for (std::size_t i = 0; i < c.n; ++i) rows.push_back(row(i % kGroups));
    std::vector<double> target(c.d, 0.0);
    for (std::size_t i = 0; i < 8 * kGroups; ++i) {
        const std::vector<double> held_out = row(i % kGroups);
        for (std::size_t j = 0; j < c.d; ++j) target[j] += held_out[j];
    }
    Instance instance(rows, target, 0);
    for (std::size_t i = 0; i < c.n; ++i) instance.groups[i] = static_cast<std::int32_t>(i % kGroups);
    instance.budgets.assign(kGroups, c.k / static_cast<Index>(kGroups));
    return instance;
}

void solve_case(const Case& c) {
    const Instance instance = gradient_like(c);
    Options options;
    options.nonneg = c.nonneg;
    options.rule = c.rule;
    Monitor monitor;
    Problem problem;
    std::vector<float> narrow;
    std::vector<double> gram, linear;
    if (c.gram) {
        gram.resize(c.n * c.n);
        for (std::size_t i = 0; i < c.n; ++i)
            for (std::size_t j = 0; j <= i; ++j) {
                double sum = 0.0;  // exact: integers
                for (std::size_t l = 0; l < c.d; ++l) sum += instance.rows[i][l] * instance.rows[j][l];
                gram[i * c.n + j] = gram[j * c.n + i] = sum;
            }
        linear = instance.linear();
        problem.is_gram = true;
        problem.gram = block_of(gram, c.n, c.n);
        problem.linear = linear;
        problem.target_norm = static_cast<double>(std::sqrt(dense::inner(instance.target, instance.target)));
    } else {
        const std::vector<double> flat = instance.flat();
        narrow.assign(flat.begin(), flat.end());
        problem.rows = {{reinterpret_cast<const std::byte*>(narrow.data()), static_cast<Index>(c.n),
                         static_cast<std::ptrdiff_t>(4 * c.d), 4, Storage::float32}};
        problem.target = instance.target;
    }
    const Solution solution = solve_cpu(problem, instance.constraint(), options, {}, monitor);
    std::uint64_t order = 0;
    for (const Index i : solution.indices) order = order * 1099511628211ULL + static_cast<std::uint64_t>(i) + 1;
    std::printf("%zu picks %016llx %s\n", solution.indices.size(), static_cast<unsigned long long>(order),
                widest_kernels());
}

}  // namespace

int main(int argc, char** argv) {
    bool found = argc < 2;
    for (const Case& c : all_cases()) {
        if (argc < 2)
            std::printf("%s\n", c.name.c_str());
        else if (c.name == argv[1])
            solve_case(c), found = true;
    }
    if (!found) std::fprintf(stderr, "unknown case '%s'; without an argument the cases are listed\n", argv[1]);
    return found ? 0 : 1;
}
