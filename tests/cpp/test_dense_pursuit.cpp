// Draft and verify as the CUDA solver does it, run by threads of the host, against the solver for the CPU.
#include <algorithm>
#include <cstring>
#include <random>

#include "check.hpp"
#include "cuda/host_device.hpp"
#include "cuda/solve_device.hpp"
#include "device_cases.hpp"
#include "instance.hpp"
#include "plain_blas.hpp"

namespace pysubmod {
namespace {

// The rows of an instance as a device and the CPU read them.
struct StoredRows {
    std::vector<std::byte> bytes;
    Storage storage;

    // Half precision is cut off from float32; what is left is exact in both types for numbers of moderate size.
    StoredRows(const Instance& instance, Storage storage_) : storage(storage_) {
        for (const double x : instance.flat()) put(x);
    }
    void put(double x) {
        const auto narrow = static_cast<float>(x);
        std::uint32_t bits;
        std::memcpy(&bits, &narrow, sizeof bits);
        if (storage == Storage::float64) return append(x);
        if (storage == Storage::float32) return append(narrow);
        if (storage == Storage::bfloat16) return append(static_cast<std::uint16_t>(bits >> 16));
        const std::uint32_t exponent = bits >> 23 & 0xff;  // normal halves have exponents from 2^-14 to 2^15
        const bool fits = exponent > 112 && exponent < 143;
        append(static_cast<std::uint16_t>(fits ? (bits >> 16 & 0x8000) | (exponent - 112) << 10 | (bits >> 13 & 0x3ff)
                                               : 0));
    }
    template <class Number>
    void append(Number x) {
        const auto* from = reinterpret_cast<const std::byte*>(&x);
        bytes.insert(bytes.end(), from, from + sizeof x);
    }
};

struct Solved {
    Solution device, cpu;
};

Solved solve_both(const Instance& instance, const Options& options, Route route, Storage storage = Storage::float64,
                  Shape shape = {1, 1}) {
    const StoredRows stored(instance, storage);
    const auto n = static_cast<Index>(instance.n()), d = static_cast<Index>(instance.d());
    const Index item = cuda::bytes_of(storage);
    Problem problem;
    problem.rows = {{stored.bytes.data(), n, d * item, item, storage}};
    problem.target = instance.target;
    Monitor monitor;
    Options on_cpu = options, on_device = options;
    on_cpu.route = Route::plain;
    on_device.route = route;
    cuda::HostDevice device(shape.threads, shape.blocks);
    cuda::DeviceProblem given;
    given.rows = {stored.bytes.data(), n, d, d, storage};
    given.target = {instance.target.data(), 1, d, d, Storage::float64};
    given.constraint = instance.constraint();
    given.options = on_device;
    return {cuda::solve_on_device(device, {&given, 1}, nullptr, monitor)[0].solution,
            solve_cpu(problem, instance.constraint(), on_cpu, {}, monitor)};
}

// Groups of rows that are alike, as gradients are: a common direction, one of the group, and noise.
Instance gradient_like(std::mt19937_64& random, std::size_t n, std::size_t d, std::size_t groups, Index budget,
                       double noise = 1.0) {
    std::normal_distribution<double> normal;
    const auto draw = [&] {
        std::vector<double> x(d);
        for (double& entry : x) entry = normal(random);
        return x;
    };
    const std::vector<double> common = draw();
    std::vector<std::vector<double>> centers;
    for (std::size_t p = 0; p < groups; ++p) centers.push_back(draw());
    Instance instance({}, draw(), 1);
    for (std::size_t i = 0; i < n; ++i) {
        const std::size_t group = random() % groups;
        std::vector<double> row = draw();
        const double size = std::exp(0.5 * normal(random));
        for (std::size_t j = 0; j < d; ++j)
            row[j] = size * (0.5 * common[j] + 0.7 * centers[group][j] + noise * row[j]);
        instance.rows.push_back(row);
        instance.groups.push_back(static_cast<std::int32_t>(group));
    }
    for (std::size_t j = 0; j < d; ++j) {
        instance.target[j] = 0.3 * instance.target[j] + common[j];
        for (const auto& center : centers) instance.target[j] += 0.2 * center[j];
    }
    instance.budgets.assign(groups, budget);
    return instance;
}

}  // namespace

TEST_CASE(picks_of_the_cpu) {
    std::mt19937_64 random(3);
    for (int trial = 0; trial < 2000; ++trial) {
        Case given = random_case(random);
        if (given.options.rule == Rule::greedy) given.options.rule = Rule::normalized;
        given.options.pick = Pick::argmax;
        given.options.fill = given.options.release_zeros = false;
        const Solved solved = solve_both(given.instance, given.options, Route::draft);
        check_same(solved.device, solved.cpu, "trial " + std::to_string(trial));
    }
}

TEST_CASE(many_rounds_in_every_storage) {
    std::mt19937_64 random(4);
    for (const Storage storage : {Storage::float16, Storage::bfloat16, Storage::float32, Storage::float64})
        for (const bool nonneg : {true, false})
            for (const Rule rule : {Rule::omp, Rule::normalized}) {
                const Instance instance = gradient_like(random, 700, 96, 4, 12);
                Options options;
                options.nonneg = nonneg;
                options.rule = rule;
                options.ridge = 1e-2;
                const Solved solved = solve_both(instance, options, Route::draft, storage);
                check_same(solved.device, solved.cpu, "storage " + std::to_string(static_cast<int>(storage)));
                CHECK(solved.device.passes < solved.cpu.passes);
            }
}

// The products are within the error that is claimed for a BLAS, which is more than our own; the picks are the same.
TEST_CASE(passes_by_a_blas) {
    std::mt19937_64 random(10);
    const Index n = 300, d = 5000;  // two pieces of columns
    const Instance instance = gradient_like(random, n, d, 2, 20);
    const StoredRows stored(instance, Storage::bfloat16);
    const cuda::View rows{stored.bytes.data(), n, d, d, Storage::bfloat16};
    const int count = 9;
    std::vector<float> directions;
    std::normal_distribution<double> normal;
    for (int j = 0; j < count * d; ++j) directions.push_back(static_cast<float>(normal(random) / std::sqrt(1.0 * d)));
    cuda::PlainBlas blas(true);
    cuda::DeviceWithBlas device(blas);
    cuda::Pass<cuda::DeviceWithBlas> pass(device, rows, count, 1.0);
    std::vector<float> out(static_cast<std::size_t>(count * n));
    const double error = pass.multiply(directions.data(), count, out.data());
    CHECK(blas.calls == 2 && pass.used_blas());
    double worst = 0.0;
    for (int v = 0; v < count; ++v)
        for (Index i = 0; i < n; ++i) {
            long double product = 0.0L, length = 0.0L, size = 0.0L;
            for (Index j = 0; j < d; ++j) {
                const long double g = rows.at(i, j), x = directions[static_cast<std::size_t>(v * d + j)];
                product += g * x, length += g * g, size += x * x;
            }
            const auto got = static_cast<long double>(out[static_cast<std::size_t>(v * n + i)]);
            worst = std::max(worst, static_cast<double>(std::abs(got - product) / std::sqrt(length * size)));
        }
    CHECK(worst <= error);
    CHECK(worst <= 1e-6);  // what it is in practice

    // The same picks from such passes.
    const Instance longer = gradient_like(random, 1500, 300, 2, 20);
    const StoredRows all(longer, Storage::bfloat16);
    const Constraint constraint = longer.constraint();
    const Options options;
    Monitor monitor;
    cuda::DenseSolve<cuda::DeviceWithBlas> dense(device, {all.bytes.data(), 1500, 300, 300, Storage::bfloat16},
                                                 longer.target.data(), constraint, options, monitor, 1.0);
    const Solution by_blas = dense.run();
    CHECK(dense.used_blas());
    check_same(by_blas, solve_both(longer, options, Route::draft, Storage::bfloat16).cpu, "by a BLAS");
}

// Rows that come twice, nearly twice, or are zero: ties, rows that cannot enter, weights that a refit sets to zero.
TEST_CASE(rows_that_repeat) {
    std::mt19937_64 random(5);
    std::normal_distribution<double> normal;
    for (int trial = 0; trial < 40; ++trial) {
        Instance instance = gradient_like(random, 120, 30, 3, 15, 0.3);
        for (std::size_t i = 0; i < instance.n(); ++i) {
            if (random() % 3 == 0) instance.rows[i] = instance.rows[random() % (i + 1)];
            if (random() % 5 == 0)
                for (double& x : instance.rows[i]) x += 1e-3 * normal(random);
            if (random() % 20 == 0) std::fill(instance.rows[i].begin(), instance.rows[i].end(), 0.0);
        }
        Options options;
        options.nonneg = trial % 2;
        options.rule = trial % 4 < 2 ? Rule::omp : Rule::normalized;
        options.ridge = trial % 3 == 0 ? 0.0 : 1e-3;
        const Solved solved = solve_both(instance, options, Route::draft);
        check_same(solved.device, solved.cpu, "trial " + std::to_string(trial));
        const Solved on_gram = solve_both(instance, options, Route::gram);
        check_same(on_gram.device, on_gram.cpu, "trial " + std::to_string(trial) + " by K");
    }
}

// All rows tie: more contenders than there is room for, and all are looked at in float64.
TEST_CASE(too_many_contenders) {
    std::mt19937_64 random(6);
    Instance instance = gradient_like(random, 1500, 6, 2, 3);
    for (auto& row : instance.rows) row = instance.rows[0];
    instance.rows[1100][2] += 1e-9;
    for (const bool nonneg : {true, false}) {
        Options options;
        options.nonneg = nonneg;
        const Solved solved = solve_both(instance, options, Route::draft);
        check_same(solved.device, solved.cpu, "all alike");
    }
}

TEST_CASE(nothing_to_pick) {
    std::mt19937_64 random(7);
    Instance instance = gradient_like(random, 50, 8, 2, 3);
    const std::vector<double> target = instance.target;
    for (const int kind : {0, 1, 2, 3, 4, 5}) {
        instance.target = target;
        instance.budgets = {3, 3};
        instance.candidates.clear();
        Options options;
        if (kind == 0 || kind == 5) instance.target.assign(8, 0.0);
        if (kind == 5) options.tol = 0.1;
        if (kind == 1)
            for (std::size_t j = 0; j < 8; ++j) instance.target[j] = -10.0 * instance.target[j];
        if (kind == 2) instance.budgets = {0, 0};
        if (kind == 3) instance.candidates.assign(50, 0);
        if (kind == 4) options.tol = 1.0;
        const Solved solved = solve_both(instance, options, Route::draft);
        check_same(solved.device, solved.cpu, "kind " + std::to_string(kind));
    }
}

// A draft that fails before it has begun is an error; what is queued behind it must not read what nobody has written.
TEST_CASE(a_fault_at_the_start) {
    Instance instance({{1.0, 2.0}, {2.0, 4.0}, {0.5, -1.0}}, {1.0, 1.0}, 3);
    instance.initial = {0, 1};
    Options options;
    options.nonneg = false;
    options.tilt = 1.0;
    options.route = Route::draft;
    for (const int poison : {0x00, 0x01, 0x7f, 0xff}) {
        cuda::HostDevice device;
        device.poison = poison;
        const std::vector<double> flat = instance.flat();
        cuda::DeviceProblem given;
        given.rows = {flat.data(), 3, 2, 2, Storage::float64};
        given.target = {instance.target.data(), 1, 2, 2, Storage::float64};
        given.constraint = instance.constraint();
        given.options = options;
        Monitor monitor;
        CHECK_THROWS(Unbounded, "tilt: the objective is unbounded",
                     cuda::solve_on_device(device, {&given, 1}, nullptr, monitor));
    }
}

TEST_CASE(the_same_bits_for_any_team) {
    std::mt19937_64 random(8);
    const Instance instance = gradient_like(random, 300, 40, 3, 6);
    Options options;
    options.ridge = 1e-3;
    const Solution one = solve_both(instance, options, Route::draft).device;
    for (const Shape shape : {Shape{8, 1}, Shape{3, 2}, Shape{1, 4}})
        CHECK(same_bits(solve_both(instance, options, Route::draft, Storage::float64, shape).device, one));
}

TEST_CASE(errors_name_the_argument) {
    std::mt19937_64 random(9);
    Instance instance = gradient_like(random, 40, 8, 2, 3);
    const auto solve_draft = [&](const Options& options) { return solve_both(instance, options, Route::draft).device; };
    Options options;
    options.rule = Rule::greedy;
    CHECK_THROWS(InvalidArgument, "rule: 'greedy' is not for route='draft'", solve_draft(options));
    options.rule = Rule::omp;
    options.fill = true;
    CHECK_THROWS(InvalidArgument, "fill: True", solve_draft(options));
    options.fill = false;
    instance.rows[7][3] = kUnknown;
    CHECK_THROWS(InvalidArgument, "G: row 7 contains NaN", solve_draft(options));
    instance.rows[7][3] = 1e25;
    CHECK_THROWS(InvalidArgument, "route: 'draft' needs norms", solve_draft(options));
    instance.rows[7][3] = 1.0;
    instance.initial = {3, 3};
    CHECK_THROWS(InvalidArgument, "initial: row 3 comes twice", solve_draft(options));
}

}  // namespace pysubmod
