// The products with the rows of G that a device makes, on threads of the host, against long double.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "check.hpp"
#include "cpu/gram_check.hpp"
#include "cuda/gram_product.hpp"
#include "cuda/host_device.hpp"
#include "dense.hpp"
#include "plain_blas.hpp"

using namespace pysubmod;
using namespace pysubmod::cuda;
using dense::Random;
using dense::Real;

namespace {

constexpr Storage kStorages[] = {Storage::float16, Storage::bfloat16, Storage::float32, Storage::float64};
constexpr int kThreadCounts[] = {1, 5};

// Stored numbers, and what they are: decoded here without a look at the core.
class Matrix {
  public:
    // `offset`: numbers before the first row, to spoil the alignment.
    Matrix(Storage storage, Index rows, Index columns, std::uint64_t seed, Index stride = 0, Index offset = 0)
        : rows_(rows), columns_(columns), stride_(std::max(stride, columns)), storage_(storage), offset_(offset) {
        bytes_.assign(static_cast<std::size_t>((rows_ * stride_ + offset_) * width() + 16), std::byte{0x7f});
        Random random(seed);
        for (Index i = 0; i < rows; ++i)
            for (Index j = 0; j < columns; ++j) set(i, j, random.normal());
    }
    void set(Index i, Index j, double value) {
        std::byte* to = first() + (i * stride_ + j) * width();
        if (storage_ == Storage::float64) return write(to, value);
        const auto single = static_cast<float>(value);
        if (storage_ == Storage::float32) return write(to, single);
        std::uint32_t bits;
        std::memcpy(&bits, &single, sizeof bits);
        if (storage_ == Storage::bfloat16) return write(to, static_cast<std::uint16_t>(bits >> 16));
        int exponent;
        const double mantissa = std::frexp(std::fabs(value), &exponent);  // normal numbers of half precision only
        const auto digits = static_cast<int>(mantissa * 2048.0);
        const int half = digits < 1024 || exponent < -13 ? 0 : ((exponent + 14) << 10) | (digits - 1024);
        write(to, static_cast<std::uint16_t>(half | (value < 0.0 ? 0x8000 : 0)));
    }
    double operator()(Index i, Index j) const {
        const std::byte* from = first() + (i * stride_ + j) * width();
        if (storage_ == Storage::float64) return read<double>(from);
        if (storage_ == Storage::float32) return static_cast<double>(read<float>(from));
        const int bits = read<std::uint16_t>(from), sign = bits & 0x8000 ? -1 : 1;
        const int digits = storage_ == Storage::float16 ? 10 : 7, bias = storage_ == Storage::float16 ? 15 : 127;
        const int exponent = (bits & 0x7fff) >> digits, mantissa = bits & ((1 << digits) - 1);
        if (exponent == 0) return sign * std::ldexp(mantissa, 1 - bias - digits);
        return sign * std::ldexp(mantissa + (1 << digits), exponent - bias - digits);
    }
    std::vector<double> row(Index i) const {
        std::vector<double> x;
        for (Index j = 0; j < columns_; ++j) x.push_back((*this)(i, j));
        return x;
    }
    View view() const { return {first(), rows_, columns_, stride_, storage_}; }

  private:
    Index width() const { return bytes_of(storage_); }
    std::byte* first() { return bytes_.data() + start() + offset_ * width(); }
    const std::byte* first() const { return bytes_.data() + start() + offset_ * width(); }
    // The first place that a wide load could take.
    std::size_t start() const { return (16 - reinterpret_cast<std::uintptr_t>(bytes_.data()) % 16) % 16; }
    template <class Number>
    static void write(std::byte* to, Number x) {
        std::memcpy(to, &x, sizeof x);
    }
    template <class Number>
    static Number read(const std::byte* from) {
        Number x;
        std::memcpy(&x, from, sizeof x);
        return x;
    }

    Index rows_, columns_, stride_;
    Storage storage_;
    Index offset_;
    std::vector<std::byte> bytes_;
};

struct Shape {
    Index rows, columns;
};
constexpr Shape kShapes[] = {{1, 1}, {3, 5}, {5, 64}, {33, 70}, {131, 517}, {9, 5003}};

Real length(const std::vector<double>& x) { return std::sqrt(dense::inner(x, x)); }

// What `make` gives, the same to the bit for every number of threads, and wherever the matrix lies in memory.
template <class Number>
std::vector<Number> same_everywhere(Storage storage, const Shape& shape,
                                    const std::function<std::vector<Number>(HostDevice&, const Matrix&)>& make) {
    std::vector<Number> first;
    for (const Index offset : {0, 1})
        for (const int threads : kThreadCounts) {
            // Aligned rows first; then a stride that no wide load can take.
            const Index stride = offset == 0 ? (shape.columns + 7) / 8 * 8 : shape.columns + 3;
            const Matrix matrix(storage, shape.rows, shape.columns, 11, stride, offset);
            HostDevice device(threads);
            const std::vector<Number> made = make(device, matrix);
            if (first.empty()) first = made;
            CHECK(std::memcmp(made.data(), first.data(), made.size() * sizeof(Number)) == 0);
        }
    return first;
}

}  // namespace

TEST_CASE(reductions_are_the_same_for_every_number_of_threads) {
    struct Result {
        double largest, sum, small_sum;
        int least;
        bool any, none;
    };
    struct Body {
        const double* x;
        int n;
        Result* results;
        void operator()(HostTeam& team) const {
            double largest = -1e300;
            int least = n;
            for (int j = team.rank(); j < n; j += team.size()) {
                largest = std::max(largest, x[j]);
                if (x[j] > 1.0) least = std::min(least, j);
            }
            Result& result = results[team.rank()];
            for (int round = 0; round < 3; ++round) {  // slots are used again, with one barrier to a reduction
                result.largest = team.max(largest);
                result.least = team.min(least);
                result.sum = sum(team, n, [&](int j) { return x[j]; });
                result.small_sum = sum(team, 5, [&](int j) { return x[j]; });
                result.any = any(team, team.rank() == team.size() - 1);
                result.none = any(team, false);
            }
        }
    };
    Random random(3);
    const std::vector<double> x = random.normals(1000);
    const auto expected_sum = [&](int count) {
        double lanes[kSumLanes] = {};
        for (int j = 0; j < count; ++j) lanes[j % kSumLanes] += x[static_cast<std::size_t>(j)];
        for (int step = kSumLanes / 2; step > 0; step /= 2)
            for (int lane = 0; lane < step; ++lane) lanes[lane] += lanes[lane + step];
        return lanes[0];
    };
    const auto above = std::find_if(x.begin(), x.end(), [](double value) { return value > 1.0; });
    for (const int threads : {1, 2, 3, 7, 40}) {
        std::vector<Result> results(static_cast<std::size_t>(threads));
        HostDevice device(threads);
        device.run({.threads = threads}, Body{x.data(), 1000, results.data()});
        for (const Result& result : results) {
            CHECK(result.largest == *std::max_element(x.begin(), x.end()));
            CHECK(result.least == above - x.begin());
            CHECK(result.sum == expected_sum(1000));
            CHECK(result.small_sum == expected_sum(5));
            CHECK(result.any && !result.none);
        }
    }
}

TEST_CASE(linear_terms_are_float64_sums) {
    for (const Storage storage : kStorages)
        for (const Shape& shape : kShapes) {
            const std::vector<double> target = Random(5).normals(static_cast<std::size_t>(shape.columns));
            const auto made = same_everywhere<double>(storage, shape, [&](HostDevice& device, const Matrix& matrix) {
                std::vector<double> both(static_cast<std::size_t>(2 * shape.rows));
                form_linear(device, matrix.view(), target.data(), both.data(), both.data() + shape.rows);
                return both;
            });
            const Matrix matrix(storage, shape.rows, shape.columns, 11);
            for (Index i = 0; i < shape.rows; ++i) {
                const std::vector<double> row = matrix.row(i);
                const Real size = length(row), tolerance = 1e-14L * size;
                CHECK_CLOSE(made[static_cast<std::size_t>(i)], dense::inner(row, target), tolerance * length(target));
                CHECK_CLOSE(made[static_cast<std::size_t>(shape.rows + i)], size * size, tolerance * size);
            }
        }
}

TEST_CASE(means_are_float64_sums) {
    for (const Storage storage : kStorages)
        for (const Shape& shape : {Shape{1, 1}, Shape{1, 700}, Shape{33, 300}, Shape{1000, 70}, Shape{70000, 2}}) {
            const auto mean = same_everywhere<double>(storage, shape, [&](HostDevice& device, const Matrix& matrix) {
                std::vector<double> out(static_cast<std::size_t>(shape.columns));
                form_mean(device, matrix.view(), out.data());
                return out;
            });
            const Matrix matrix(storage, shape.rows, shape.columns, 11);
            for (Index j = 0; j < shape.columns; ++j) {
                Real sum = 0, size = 0;
                for (Index i = 0; i < shape.rows; ++i) sum += matrix(i, j), size += std::fabs(matrix(i, j));
                const auto count = static_cast<Real>(shape.rows);
                CHECK_CLOSE(mean[static_cast<std::size_t>(j)], sum / count, 1e-14L * size / count);
            }
        }
}

TEST_CASE(products_with_vectors_keep_their_bound) {
    for (const Storage storage : kStorages)
        for (const Shape& shape : kShapes)
            for (const int count : {1, 4, 5, 9, 13, 17, 21, 25, 32}) {
                if (shape.rows * shape.columns > 10000 && count != 5 && count != 32) continue;  // takes long
                const Index stride = shape.columns + 5, out_stride = shape.rows + 2;
                std::vector<float> vectors(static_cast<std::size_t>(stride * count));
                std::vector<std::vector<double>> wide;
                Random random(7);
                for (int v = 0; v < count; ++v) {
                    std::vector<double> x = random.normals(static_cast<std::size_t>(shape.columns));
                    const auto size = static_cast<double>(length(x));
                    for (std::size_t j = 0; j < x.size(); ++j) {
                        float& stored = vectors[static_cast<std::size_t>(v * stride) + j];
                        stored = static_cast<float>(x[j] / size);
                        x[j] = static_cast<double>(stored);
                    }
                    wide.push_back(std::move(x));
                }
                const auto made = same_everywhere<float>(storage, shape, [&](HostDevice& device, const Matrix& matrix) {
                    std::vector<float> out(static_cast<std::size_t>(out_stride * count), -7.0f);
                    multiply_vectors(device, matrix.view(), vectors.data(), stride, count, out.data(), out_stride);
                    return out;
                });
                const Matrix matrix(storage, shape.rows, shape.columns, 11);
                for (int v = 0; v < count; ++v) {
                    const float* out = made.data() + v * out_stride;
                    for (Index i = 0; i < shape.rows; ++i) {
                        const std::vector<double> row = matrix.row(i);
                        CHECK_CLOSE(out[i], dense::inner(row, wide[static_cast<std::size_t>(v)]),
                                    static_cast<Real>(kVectorsError) * length(row) * 1.001L);
                    }
                    CHECK(out[shape.rows] == -7.0f && out[shape.rows + 1] == -7.0f);  // what lies between is left alone
                }
            }
}

TEST_CASE(products_with_vectors_keep_their_bound_where_all_roundings_agree) {
    // Equal numbers just above a power of two: every addition is rounded in the same direction for long stretches.
    const Index columns = 3000;
    for (const Storage storage : kStorages)
        for (const double value : {1.0, 1.0 + 0x1p-7, 1.0 + 0x1p-10 + 0x1p-22, 1.9999}) {
            Matrix matrix(storage, 1, columns, 1);
            for (Index j = 0; j < columns; ++j) matrix.set(0, j, value);
            const std::vector<float> vector(columns, static_cast<float>(1.0 / std::sqrt(3000.0)));
            float out;
            HostDevice device(1);
            multiply_vectors(device, matrix.view(), vector.data(), columns, 1, &out, 1);
            const Real x = vector[0], g = matrix(0, 0);
            CHECK_CLOSE(out, x * g * columns, static_cast<Real>(kVectorsError) * g * x * columns);
        }
}

TEST_CASE(gram_matrices_are_float64_sums) {
    for (const Storage storage : kStorages)
        for (const Shape& shape : {Shape{1, 1}, Shape{3, 5}, Shape{33, 70}, Shape{70, 129}, Shape{5, 1003}}) {
            const Index n = shape.rows;
            const auto gram = same_everywhere<double>(storage, shape, [&](HostDevice& device, const Matrix& matrix) {
                std::vector<double> out(static_cast<std::size_t>(n * n));
                const GramProduct made = form_gram(device, matrix.view(), nullptr, out.data());
                CHECK(std::string(made.product) == "built-in" && std::string(made.type) == "float64");
                return out;
            });
            const Matrix matrix(storage, n, shape.columns, 11);
            for (Index i = 0; i < n; ++i)
                for (Index j = 0; j < n; ++j) {
                    const std::vector<double> a = matrix.row(i), b = matrix.row(j);
                    CHECK_CLOSE(gram[static_cast<std::size_t>(i * n + j)], dense::inner(a, b),
                                1e-14L * length(a) * length(b));
                    CHECK(gram[static_cast<std::size_t>(i * n + j)] == gram[static_cast<std::size_t>(j * n + i)]);
                }
        }
}

TEST_CASE(a_pair_of_rows_has_one_product_wherever_it_stands) {
    const Index n = 60;
    const Matrix matrix(Storage::float32, n, 333, 2);
    HostDevice device(4);
    std::vector<double> all(static_cast<std::size_t>(n * n));
    form_gram_of(device, matrix.view(), nullptr, n, all.data());
    std::vector<Index> list;
    for (Index i = 0; i < n; ++i) list.push_back(i * 37 % n);
    list.resize(41);
    std::vector<double> some(41 * 41);
    form_gram_of(device, matrix.view(), list.data(), 41, some.data());
    for (std::size_t a = 0; a < 41; ++a)
        for (std::size_t b = 0; b < 41; ++b)
            CHECK(some[a * 41 + b] == all[static_cast<std::size_t>(list[a] * n + list[b])]);
}

TEST_CASE(a_blas_forms_the_same_gram_matrix_in_pieces) {
    for (const Storage storage : kStorages)
        for (const GramPlan& plan :
             {GramPlan{33, 100, 1}, GramPlan{10, 7, 5}, GramPlan{16, 25, 4}, GramPlan{32, 40, 8}}) {
            const Index n = 33, columns = 100;
            const Matrix matrix(storage, n, columns, 4, columns + 3);
            PlainBlas blas(true);
            DeviceWithBlas device(blas);
            const bool is_half = bytes_of(storage) == 2;
            std::vector<double> gram(static_cast<std::size_t>(n * n));
            if (is_half) {  // in float64 too, widened: the same as our own
                form_gram_with<double>(device, blas, plan, matrix.view(), gram.data());
                std::vector<double> own(gram.size());
                form_gram_of(device, matrix.view(), nullptr, n, own.data());
                for (std::size_t at = 0; at < own.size(); ++at)
                    CHECK_CLOSE(gram[at], own[at], 1e-12L * (1 + std::abs(own[at])));
                form_gram_with<float>(device, blas, plan, matrix.view(), gram.data());
            } else {
                form_gram_with<double>(device, blas, plan, matrix.view(), gram.data());
            }
            for (Index i = 0; i < n; ++i)
                for (Index j = 0; j < n; ++j) {
                    const std::vector<double> a = matrix.row(i), b = matrix.row(j);
                    CHECK_CLOSE(gram[static_cast<std::size_t>(i * n + j)], dense::inner(a, b),
                                (is_half ? 1e-6L : 1e-15L) * length(a) * length(b));
                    CHECK(gram[static_cast<std::size_t>(i * n + j)] == gram[static_cast<std::size_t>(j * n + i)]);
                }
        }
}

TEST_CASE(the_product_is_chosen_openly) {
    const Matrix half(Storage::bfloat16, 3, 4, 1), single(Storage::float32, 3, 4, 1);
    CHECK(!suits_blas(half.view()));  // too small to be worth the start
    CHECK(suits_blas({nullptr, 1024, 1024, 1024, Storage::bfloat16}));
    CHECK(suits_blas({nullptr, 8, 8192, 8192, Storage::float32}));                 // few tiles, and long rows
    CHECK(!suits_blas({nullptr, 1024, 1024, Index{1} << 31, Storage::bfloat16}));  // no int
}

TEST_CASE(plans_stay_within_their_memory) {
    for (const Storage storage : kStorages)
        for (const Index n : {1, 100, 256, 1024, 5000, 16384, 46340})
            for (const Index columns : {1, 1000, 8192, 2300000}) {
                const GramPlan plan = bytes_of(storage) == 2
                                          ? GramPlan::of<float>({nullptr, n, columns, columns, storage}, 132)
                                          : GramPlan::of<double>({nullptr, n, columns, columns, storage}, 132);
                const Index bytes = bytes_of(storage) == 2 ? 4 : 8;
                CHECK(plan.panel >= 1 && plan.panel <= n);
                CHECK(plan.columns >= 1 && plan.columns <= std::min(columns, GramPlan::kColumns));
                CHECK(plan.at_once >= 1);
                CHECK(plan.at_once * plan.panel * n * bytes <= GramPlan::kBytes);
                if (storage == Storage::float32) CHECK(plan.at_once * plan.columns * n * 8 <= GramPlan::kBytes);
            }
}

namespace {

using Entry = std::optional<std::pair<Index, Index>>;

Entry device_fault(const View& gram, int threads) {
    HostDevice device(threads);
    const auto faults = check_grams(device, {&gram, 1})[0];
    const Index first = *std::min_element(faults.begin(), faults.end());
    if (first == gram.rows * gram.rows) return std::nullopt;
    return std::pair(first / gram.rows, first % gram.rows);
}

template <class Number>
Entry host_fault(const std::vector<Number>& k, Index n, Index stride, double tolerance) {
    return cpu::gram_fault(
        {reinterpret_cast<const std::byte*>(k.data()), n, stride * static_cast<Index>(sizeof(Number)), sizeof(Number),
         sizeof(Number) == 8 ? Storage::float64 : Storage::float32},
        tolerance);
}

template <class Number>
void check_faults(double tolerance) {
    Random random(1);
    const double bad[] = {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity(), 7.0};
    int faults = 0, fine = 0;
    for (int trial = 0; trial < 120; ++trial) {
        const auto n = static_cast<Index>(1 + random.below(90)), stride = n + static_cast<Index>(random.below(3));
        std::vector<Number> k(static_cast<std::size_t>(n * stride));
        const auto at = [&](Index i, Index j) -> Number& { return k[static_cast<std::size_t>(i * stride + j)]; };
        for (Index i = 0; i < n; ++i)
            for (Index j = 0; j <= i; ++j) {
                at(i, j) = at(j, i) = static_cast<Number>(i == j ? random.uniform(1, 4) : random.uniform(-1, 1));
                if (random.chance(0.2)) at(i, j) += static_cast<Number>(0.3 * tolerance);  // far inside it
            }
        for (std::size_t change = random.below(3); change-- > 0;) {
            const auto i = static_cast<Index>(random.below(static_cast<std::size_t>(n)));
            const auto j = static_cast<Index>(random.below(static_cast<std::size_t>(n)));
            at(i, j) = static_cast<Number>(bad[random.below(3)]);
            if (random.chance(0.5)) at(j, i) = at(i, j);
        }
        const View view{k.data(), n, n, stride, sizeof(Number) == 8 ? Storage::float64 : Storage::float32};
        const Entry expected = host_fault(k, n, stride, tolerance);
        CHECK(device_fault(view, trial % 2 ? 5 : 1) == expected);
        ++(expected ? faults : fine);
    }
    CHECK(faults > 20 && fine > 20);
}

}  // namespace

TEST_CASE(faults_of_a_gram_matrix_are_those_the_host_finds) {
    check_faults<float>(1e-5);
    check_faults<double>(1e-10);
}
