// Layout, storage, threads and instruction set change no bit of the answer.
#include <bit>

#include "check.hpp"
#include "instance.hpp"

using namespace pysubmod;
using dense::Random;

namespace {

constexpr Storage kTypes[] = {Storage::float16, Storage::bfloat16, Storage::float32, Storage::float64};

std::size_t item_size(Storage type) { return type == Storage::float64 ? 8 : type == Storage::float32 ? 4 : 2; }

// `value` must be one that the type holds, and no subnormal.
void write(std::byte* to, double value, Storage type) {
    const auto narrow = static_cast<float>(value);
    const auto bits = std::bit_cast<std::uint32_t>(narrow);
    const auto bfloat16 = static_cast<std::uint16_t>(bits >> 16);
    const std::uint32_t magnitude = value == 0.0 ? 0 : (bits >> 13 & 0x3ffff) - (112u << 10);
    const auto half = static_cast<std::uint16_t>((bits >> 16 & 0x8000) | magnitude);
    if (type == Storage::float64) std::memcpy(to, &value, 8);
    if (type == Storage::float32) std::memcpy(to, &narrow, 4);
    if (type == Storage::bfloat16) std::memcpy(to, &bfloat16, 2);
    if (type == Storage::float16) std::memcpy(to, &half, 2);
}

enum class Layout { plain, padded, unaligned, reversed_rows, reversed_columns, column_major, every_third_column };
constexpr Layout kLayouts[] = {Layout::plain,
                               Layout::padded,
                               Layout::unaligned,
                               Layout::reversed_rows,
                               Layout::reversed_columns,
                               Layout::column_major,
                               Layout::every_third_column};

// Rows `begin` to `end` of the instance, stored as asked; the gaps hold NaN, which must never be read as numbers.
struct Stored {
    std::vector<std::byte> bytes;
    RowBlock block;

    Stored(const Instance& instance, std::size_t begin, std::size_t end, Layout layout, Storage type) {
        const auto item = static_cast<std::ptrdiff_t>(item_size(type));
        const auto n = static_cast<std::ptrdiff_t>(end - begin), d = static_cast<std::ptrdiff_t>(instance.d());
        std::ptrdiff_t row_stride = d * item, column_stride = item, origin = 0;
        if (layout == Layout::padded) row_stride = (d + 3) * item;
        if (layout == Layout::unaligned) row_stride = d * item + 1, origin = 1;
        if (layout == Layout::reversed_rows) origin = (n - 1) * row_stride, row_stride = -row_stride;
        if (layout == Layout::reversed_columns) origin = (d - 1) * item, column_stride = -item;
        if (layout == Layout::column_major) row_stride = item, column_stride = n * item;
        if (layout == Layout::every_third_column) row_stride = 3 * d * item, column_stride = 3 * item;
        bytes.assign(static_cast<std::size_t>(n * 3 * (d + 3) * item + 1), std::byte{0xff});
        if (n == 0) origin = 0;
        block = {bytes.data() + origin, n, row_stride, column_stride, type};
        for (std::ptrdiff_t i = 0; i < n; ++i)
            for (std::ptrdiff_t k = 0; k < d; ++k)
                write(bytes.data() + origin + i * row_stride + k * column_stride,
                      instance.rows[begin + static_cast<std::size_t>(i)][static_cast<std::size_t>(k)], type);
    }
};

Solution solve_stored(const Instance& instance, const std::vector<Stored>& stored, const Options& options,
                      const Execution& execution = {}) {
    Problem problem;
    for (const Stored& part : stored) problem.rows.push_back(part.block);
    problem.target = instance.target;
    Monitor monitor;
    return solve_cpu(problem, instance.constraint(), options, execution, monitor);
}

Solution solve_as(const Instance& instance, Layout layout, Storage type, const Options& options,
                  const Execution& execution = {}) {
    std::vector<Stored> one;
    one.emplace_back(instance, 0, instance.n(), layout, type);
    return solve_stored(instance, one, options, execution);
}

// Numbers that every storage type holds: seven bits and a sign.
Instance coarse_instance(std::uint64_t seed, std::size_t n, std::size_t d, Index budget) {
    Random random(seed);
    std::vector<std::vector<double>> rows;
    for (std::size_t i = 0; i < n; ++i) {
        rows.emplace_back(d);
        for (double& x : rows[i]) x = (static_cast<double>(random.below(255)) - 127) / 16;
    }
    std::vector<double> target = random.normals(d);
    for (int part = 0; part < 10; ++part) {
        const auto& row = rows[random.below(n)];
        for (std::size_t k = 0; k < d; ++k) target[k] += row[k];
    }
    Instance instance(rows, target, 0);
    instance.budgets = {budget, budget / 2, 0};
    for (auto& code : instance.groups) code = static_cast<std::int32_t>(random.below(3));
    return instance;
}

std::vector<Options> some_options() {
    std::vector<Options> all(6);
    all[1].nonneg = false;
    all[1].rule = Rule::normalized;
    all[2].rule = Rule::greedy;
    all[2].ridge = 0.5;
    all[3].fill = all[3].release_zeros = true;
    all[3].tilt = 0.01;
    all[3].ridge = 2.0;
    all[4].swap = true;
    all[5].pick = Pick::random;
    all[5].seed = 42;
    all[5].fill = all[5].swap = true;
    all[5].nonneg = false;
    return all;
}

}  // namespace

TEST_CASE(layouts_and_storage_types) {
    const Instance instance = coarse_instance(1, 70, 67, 8);  // more rows than a tile, an odd tail
    for (const Options& options : some_options()) {
        const Solution expected = solve(instance, options);
        CHECK(expected.indices.size() >= 8);
        for (const Storage type : kTypes)
            for (const Layout layout : kLayouts) CHECK(same_bits(solve_as(instance, layout, type, options), expected));
    }
}

TEST_CASE(more_columns_than_a_chunk) {
    const Instance instance = coarse_instance(2, 40, 4101, 8);
    const Solution expected = solve(instance);
    for (const Storage type : {Storage::float16, Storage::float64})
        for (const Layout layout : kLayouts) CHECK(same_bits(solve_as(instance, layout, type, {}), expected));
}

TEST_CASE(blocks_of_mixed_storage_and_layout) {
    const Instance instance = coarse_instance(3, 70, 67, 8);
    Random random(3);
    for (const Options& options : some_options()) {
        const Solution expected = solve(instance, options);
        for (int trial = 0; trial < 10; ++trial) {
            std::vector<Stored> blocks;
            for (std::size_t begin = 0; begin < instance.n();) {
                const std::size_t end = std::min(instance.n(), begin + random.below(25));  // some are empty
                const Layout layout = kLayouts[random.below(std::size(kLayouts))];
                blocks.emplace_back(instance, begin, end, layout, kTypes[random.below(4)]);
                begin = end;
            }
            blocks.emplace_back(instance, 0, 0, Layout::plain, Storage::float16);
            CHECK(same_bits(solve_stored(instance, blocks, options), expected));
        }
    }
}

TEST_CASE(rows_that_share_memory) {  // strides of zero: one row many times, one number in all columns
    const double row[] = {1.0, -2.0, 3.0}, number = 2.0;
    Monitor monitor;
    const std::vector<double> target = {1.0, -1.0, 1.0};
    const std::vector<std::int32_t> groups(4, 0);
    const std::vector<Index> budgets = {4};
    Problem problem;
    problem.target = target;
    problem.rows = {{reinterpret_cast<const std::byte*>(row), 3, 0, 8, Storage::float64},
                    {reinterpret_cast<const std::byte*>(&number), 1, 8, 0, Storage::float64}};
    const Instance plain({{1, -2, 3}, {1, -2, 3}, {1, -2, 3}, {2, 2, 2}}, target, 4);
    for (const Options& options : some_options())
        CHECK(same_bits(solve_cpu(problem, {groups, budgets, {}, {}}, options, {}, monitor), solve(plain, options)));
}

TEST_CASE(threads_and_kernels) {
    const Instance instance = coarse_instance(4, 420, 160, 8);
    for (const Options& options : some_options()) {
        const Solution expected = solve(instance, options, {1, 0.0, "portable"});
        CHECK(expected.threads == 1);
        CHECK(same_bits(solve(instance, options), expected));
        for (const char* kernels : kernel_names())
            for (const int n_threads : {1, 2, 7}) {
                const Solution got = solve(instance, options, {n_threads, 0.0, kernels});
                CHECK(same_bits(got, expected));
                CHECK(got.threads == n_threads);  // large enough that they were needed
            }
        CHECK(same_bits(solve_as(instance, Layout::column_major, Storage::float32, options, {7, 0.0, nullptr}),
                        expected));
    }
}

TEST_CASE(threads_share_a_wide_residual) {
    const Instance instance = coarse_instance(5, 20, 20011, 8);
    const Solution expected = solve(instance, {}, {1, 0.0, "portable"});
    for (const int n_threads : {1, 2, 7}) {
        for (const char* kernels : kernel_names())
            CHECK(same_bits(solve(instance, {}, {n_threads, 0.0, kernels}), expected));
        const Execution execution{n_threads, 0.0, nullptr};
        CHECK(same_bits(solve_as(instance, Layout::reversed_columns, Storage::float32, {}, execution), expected));
    }
}

TEST_CASE(gram_matrix_threads_and_kernels) {
    const Instance instance = coarse_instance(6, 1100, 48, 26);
    GramInstance gram(instance);
    for (double& x : gram.gram) x = static_cast<float>(x);
    const std::vector<float> narrow(gram.gram.begin(), gram.gram.end());
    for (const Options& options : some_options()) {
        if (options.rule == Rule::greedy) continue;  // below
        const Solution expected = gram.solve(instance.constraint(), options, {1, 0.0, "portable"});
        CHECK(expected.indices.size() > 30);
        for (const char* kernels : kernel_names())
            for (const int n_threads : {1, 2, 7})
                CHECK(same_bits(gram.solve(instance.constraint(), options, {n_threads, 0.0, kernels}), expected));
    }
    // K in float32, whose rank test is coarser: compared with itself.
    Problem problem = gram.problem();
    problem.gram.data = reinterpret_cast<const std::byte*>(narrow.data());
    problem.gram.row_stride /= 2;
    problem.gram.column_stride = 4;
    problem.gram.storage = Storage::float32;
    Constraint constraint = instance.constraint();
    const std::vector<Index> budgets = {12, 5, 0};
    constraint.budgets = budgets;
    Monitor monitor;
    for (const Rule rule : {Rule::omp, Rule::greedy}) {
        Options options;
        options.rule = rule;
        const Solution expected = solve_cpu(problem, constraint, options, {1, 0.0, "portable"}, monitor);
        CHECK(expected.indices.size() == 17);
        for (const char* kernels : kernel_names())
            for (const int n_threads : {1, 2, 7})
                CHECK(same_bits(solve_cpu(problem, constraint, options, {n_threads, 0.0, kernels}, monitor), expected));
    }
}

TEST_CASE(evaluation_in_any_storage) {
    const Instance instance = coarse_instance(7, 50, 67, 6);
    const Solution solution = solve(instance);
    Monitor monitor;
    std::vector<Evaluation> all;
    for (const Storage type : kTypes)
        for (const Layout layout : kLayouts) {
            const Stored stored(instance, 0, instance.n(), layout, type);
            Problem problem;
            problem.rows = {stored.block};
            problem.target = instance.target;
            all.push_back(
                evaluate_cpu(problem, solution.indices, {}, true, {all.size() % 2 ? 1 : 3, 0.0, nullptr}, monitor));
        }
    for (const Evaluation& value : all) {
        CHECK(same_bits(value.weights, all[0].weights) && same_bits(value.gains, all[0].gains));
        CHECK(same_bits(value.objective, all[0].objective) && same_bits(value.residual_norm, all[0].residual_norm));
    }
}
