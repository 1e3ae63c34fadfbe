#include "cpu/kernels.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <memory>
#include <span>

#include "check.hpp"
#include "dense.hpp"

using namespace pysubmod;
using namespace pysubmod::cpu;
using dense::Random;
using dense::Real;

namespace {

constexpr Storage kTypes[] = {Storage::float16, Storage::bfloat16, Storage::float32, Storage::float64};

std::vector<const KernelSet*> sets() {
    std::vector<const KernelSet*> all;
    for (const char* name : {"portable", "avx2", "avx512"})
        if (const KernelSet* set = kernel_set(name)) all.push_back(set);
    return all;
}

const Kernels& kernels(const KernelSet& set, Storage type) { return set.by_type[static_cast<std::size_t>(type)]; }

// What the bits mean, by the definition of the formats.
double decode(std::uint16_t bits, Storage type) {
    const bool half = type == Storage::float16;
    const int mantissa_bits = half ? 10 : 7, bias = half ? 15 : 127, exponents = half ? 31 : 255;
    const int exponent = bits >> mantissa_bits & exponents;
    const int mantissa = bits & ((1 << mantissa_bits) - 1);
    const int whole = exponent == 0 ? mantissa : mantissa + (1 << mantissa_bits);
    const double magnitude = std::ldexp(whole, std::max(exponent, 1) - bias - mantissa_bits);
    return bits >> 15 ? -magnitude : magnitude;
}

bool is_finite(std::uint16_t bits, Storage type) {
    const unsigned exponent = type == Storage::float16 ? 0x7c00 : 0x7f80;
    return (bits & exponent) != exponent;
}

bool same_bits(std::span<const double> a, std::span<const double> b) {
    return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size_bytes()) == 0);
}

// A stored row that ends where its memory ends, at an address that is `offset` bytes off: reading past it shows under
// asan.
class Row {
  public:
    Row(Storage type, std::size_t m, std::size_t offset)
        : type_(type), m_(m), offset_(offset), bytes_(std::make_unique<std::byte[]>(offset + m * item_size(type))) {}
    const std::byte* data() const { return bytes_.get() + offset_; }
    template <class Item>  // a double, a float, or the bits of a narrower number
    void set(std::size_t j, Item item) {
        std::memcpy(bytes_.get() + offset_ + j * sizeof item, &item, sizeof item);
    }

    // Any finite number the type has: every exponent, subnormals, both zeros.
    void fill(Random& random) {
        for (std::size_t j = 0; j < m_; ++j) {
            if (type_ == Storage::float64) {
                set(j, any(random, -1060, 1560));  // subnormals; squares that are subnormal, or zero
            } else if (type_ == Storage::float32) {
                set(j, static_cast<float>(any(random, -149, 254)));
            } else {
                std::uint16_t bits = 0;
                do bits = static_cast<std::uint16_t>(random.bits());
                while (!is_finite(bits, type_));
                if (random.chance(0.1)) bits &= 0x8000;
                set(j, bits);
            }
        }
    }
    double value(std::size_t j) const {
        if (type_ == Storage::float64) return item<double>(j);
        if (type_ == Storage::float32) return static_cast<double>(item<float>(j));
        return decode(item<std::uint16_t>(j), type_);
    }

  private:
    static double any(Random& random, int lowest, int exponents) {
        if (random.chance(0.1)) return random.chance(0.5) ? 0.0 : -0.0;
        const int exponent = lowest + static_cast<int>(random.below(static_cast<std::size_t>(exponents)));
        const double x = std::ldexp(1.0 + random.uniform(), exponent);
        return random.chance(0.5) ? x : -x;
    }
    template <class T>
    T item(std::size_t j) const {
        T x;
        std::memcpy(&x, data() + j * sizeof(T), sizeof(T));
        return x;
    }
    Storage type_;
    std::size_t m_, offset_;
    std::unique_ptr<std::byte[]> bytes_;
};

std::vector<double> vector_of(Random& random, std::size_t m) {
    std::vector<double> x(m);
    for (double& value : x)
        value = random.chance(0.1) ? -0.0 : std::ldexp(random.normal(), static_cast<int>(random.below(40)) - 20);
    return x;
}

}  // namespace

TEST_CASE(names_lead_to_sets) {
    CHECK(kernel_set("portable") != nullptr);
    CHECK(kernel_set("") == nullptr && kernel_set("neon") == nullptr && kernel_set("avx5") == nullptr);
    for (const KernelSet* set : sets()) CHECK(kernel_set(set->name) == set);
    CHECK(&kernel_set() == sets().back());
    for (const KernelSet* set : sets()) std::printf("     %s\n", set->name);
}

TEST_CASE(every_finite_half_and_bfloat16) {
    for (const Storage type : {Storage::float16, Storage::bfloat16}) {
        Row row(type, 65536, 0);
        std::vector<double> expected(65536);
        for (unsigned bits = 0; bits < 65536; ++bits) {
            const auto pattern =
                static_cast<std::uint16_t>(is_finite(static_cast<std::uint16_t>(bits), type) ? bits : 0);
            row.set(bits, pattern);
            expected[bits] = decode(pattern, type);
        }
        for (const KernelSet* set : sets()) {
            std::vector<double> out(65536, 1.0);
            kernels(*set, type).widen(row.data(), out.data(), out.size());
            CHECK(same_bits(out, expected));
            for (std::size_t j = 0; j < out.size(); j += 3) {  // one at a time: the tail's way
                double x = 1.0;
                kernels(*set, type).widen(row.data() + j * 2, &x, 1);
                CHECK(same_bits({&x, 1}, {&expected[j], 1}));
            }
        }
    }
}

TEST_CASE(infinity_and_nan_stay_what_they_are) {
    const std::uint16_t infinity[] = {0x7c00, 0x7f80}, nan[] = {0x7e01, 0x7fc1};
    for (const KernelSet* set : sets())
        for (const Storage type : {Storage::float16, Storage::bfloat16})
            for (const std::size_t m : {1u, 9u}) {
                const auto which = static_cast<std::size_t>(type);
                Row row(type, m, 0);
                std::vector<double> out(m);
                row.set(m - 1, infinity[which]);
                kernels(*set, type).widen(row.data(), out.data(), m);
                CHECK(out[m - 1] == std::numeric_limits<double>::infinity());
                row.set(0, static_cast<std::uint16_t>(infinity[which] | 0x8000));
                kernels(*set, type).widen(row.data(), out.data(), m);
                CHECK(out[0] == -std::numeric_limits<double>::infinity());
                row.set(m - 1, nan[which]);
                kernels(*set, type).widen(row.data(), out.data(), m);
                CHECK(std::isnan(out[m - 1]));
            }
}

namespace {

// Many vectors at once against one after another.
void check_many(const KernelSet& set, Storage type, const std::byte* const* pointers, std::size_t count, std::size_t m,
                Random& random) {
    constexpr std::size_t most = 9, stride = 6;
    std::vector<std::vector<double>> vectors;
    const double* xs[most];
    for (std::size_t v = 0; v < most; ++v) vectors.push_back(vector_of(random, m));
    for (std::size_t v = 0; v < most; ++v) xs[v] = vectors[v].data();
    const std::vector<double> lanes = vector_of(random, most * stride * kLanes);
    for (std::size_t n_xs = 1; n_xs <= most; ++n_xs) {
        std::vector<double> expected = lanes, got = lanes;
        for (std::size_t v = 0; v < n_xs; ++v)
            kernels(set, type).accumulate(pointers, count, xs[v], m, expected.data() + v * stride * kLanes);
        kernels(set, type).accumulate_many(pointers, count, xs, n_xs, m, got.data(), stride);
        CHECK(same_bits(got, expected));
    }
}

}  // namespace

TEST_CASE(every_set_gives_the_same_bits) {
    Random random(1);
    const KernelSet& portable = *kernel_set("portable");
    for (const Storage type : kTypes)
        for (std::size_t m = 0; m <= 33; ++m)
            for (std::size_t offset = 0; offset < 4; ++offset) {
                std::vector<Row> rows;
                const std::byte* pointers[kRowsAtOnce];
                for (std::size_t r = 0; r < kRowsAtOnce; ++r) {
                    rows.emplace_back(type, m, (offset * 5 + r) % 9);
                    rows[r].fill(random);
                }
                for (std::size_t r = 0; r < kRowsAtOnce; ++r) pointers[r] = rows[r].data();
                const std::vector<double> x = vector_of(random, m), y = vector_of(random, m);
                const std::vector<double> lanes = vector_of(random, kRowsAtOnce * kLanes);
                const double a = random.normal();
                for (const KernelSet* set : sets()) {
                    const Kernels &one = kernels(portable, type), &other = kernels(*set, type);
                    for (std::size_t count = 1; count <= kRowsAtOnce; ++count) {
                        std::vector<double> expected = lanes, got = lanes;
                        one.accumulate(pointers, count, x.data(), m, expected.data());
                        other.accumulate(pointers, count, x.data(), m, got.data());
                        CHECK(same_bits(got, expected));  // the lanes of rows beyond `count` included
                        expected = got = lanes;
                        one.accumulate_squares(pointers, count, m, expected.data());
                        other.accumulate_squares(pointers, count, m, got.data());
                        CHECK(same_bits(got, expected));
                        check_many(*set, type, pointers, count, m, random);
                    }
                    std::vector<double> expected = y, got = y;
                    const double factors[] = {a, 0.5, -a, 1.25, 3.0, a, -0.1};  // four rows at once, and three more
                    const std::byte* seven[7];
                    for (std::size_t r = 0; r < 7; ++r) seven[r] = pointers[r % kRowsAtOnce];
                    one.add_rows(factors, seven, 7, expected.data(), m);
                    other.add_rows(factors, seven, 7, got.data(), m);
                    std::vector<double> by_one = y;
                    for (std::size_t r = 0; r < 7; ++r) one.add_rows(factors + r, seven + r, 1, by_one.data(), m);
                    CHECK(same_bits(by_one, expected));
                    CHECK(same_bits(got, expected));
                    one.widen(pointers[1], expected.data(), m);
                    other.widen(pointers[1], got.data(), m);
                    CHECK(same_bits(got, expected));
                }
            }
}

TEST_CASE(the_definition_written_out) {  // element j to lane j mod 8, in order, product and addition rounded once
    Random random(2);
    for (const Storage type : kTypes)
        for (const std::size_t m : {0u, 1u, 7u, 8u, 21u, 64u, 100u}) {
            Row row(type, m, 1);
            row.fill(random);
            const std::byte* pointer = row.data();
            const std::vector<double> x = vector_of(random, m);
            std::vector<double> products(kLanes, 0.0), squares(kLanes, 0.0), sum = x, wide(m);
            for (std::size_t j = 0; j < m; ++j) {
                wide[j] = row.value(j);
                products[j % kLanes] = std::fma(wide[j], x[j], products[j % kLanes]);
                squares[j % kLanes] = std::fma(wide[j], wide[j], squares[j % kLanes]);
                sum[j] = std::fma(wide[j], -0.7, sum[j]);
            }
            for (const KernelSet* set : sets()) {
                std::vector<double> lanes(kLanes, 0.0), y = x, out(m);
                kernels(*set, type).accumulate(&pointer, 1, x.data(), m, lanes.data());
                CHECK(same_bits(lanes, products));
                lanes.assign(kLanes, 0.0);
                kernels(*set, type).accumulate_squares(&pointer, 1, m, lanes.data());
                CHECK(same_bits(lanes, squares));
                const double factor = -0.7;
                kernels(*set, type).add_rows(&factor, &pointer, 1, y.data(), m);
                CHECK(same_bits(y, sum));
                kernels(*set, type).widen(pointer, out.data(), m);
                CHECK(same_bits(out, wide));
            }
        }
}

TEST_CASE(cuts_and_company_do_not_matter) {
    Random random(3);
    const std::size_t m = 203;
    for (const Storage type : kTypes) {
        std::vector<Row> rows;
        for (std::size_t r = 0; r < kRowsAtOnce; ++r) {
            rows.emplace_back(type, m, r);
            rows[r].fill(random);
        }
        const std::vector<double> x = vector_of(random, m);
        for (const KernelSet* set : sets()) {
            const Kernels& k = kernels(*set, type);
            const std::byte* pointers[kRowsAtOnce];
            std::vector<double> alone(kRowsAtOnce * kLanes, 0.0), alone_squares = alone;
            for (std::size_t r = 0; r < kRowsAtOnce; ++r) {
                pointers[r] = rows[r].data();
                k.accumulate(&pointers[r], 1, x.data(), m, &alone[r * kLanes]);
                k.accumulate_squares(&pointers[r], 1, m, &alone_squares[r * kLanes]);
            }
            for (std::size_t count = 1; count <= kRowsAtOnce; ++count)
                for (int trial = 0; trial < 10; ++trial) {
                    std::vector<double> lanes(count * kLanes, 0.0), squares = lanes;
                    for (std::size_t begin = 0; begin < m;) {
                        const std::size_t end = std::min(m, begin + 8 * (1 + random.below(9)));
                        const std::byte* moved[kRowsAtOnce];
                        for (std::size_t r = 0; r < count; ++r) moved[r] = pointers[r] + begin * item_size(type);
                        k.accumulate(moved, count, x.data() + begin, end - begin, lanes.data());
                        k.accumulate_squares(moved, count, end - begin, squares.data());
                        begin = end;
                    }
                    CHECK(same_bits(lanes, std::span(alone).first(count * kLanes)));
                    CHECK(same_bits(squares, std::span(alone_squares).first(count * kLanes)));
                }
        }
    }
}

TEST_CASE(sums_are_close_to_long_double_sums) {
    Random random(4);
    const std::size_t m = 5000;
    for (const Storage type : kTypes) {
        Row row(type, m, 0);
        const std::vector<double> x = random.normals(m);
        for (std::size_t j = 0; j < m; ++j) {
            const double value = random.normal();
            const auto narrow = static_cast<float>(value);
            const auto bfloat16 = static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(narrow) >> 16);
            const auto half = static_cast<std::uint16_t>((random.bits() & 0x83ff) | (random.bits() % 16) << 10);
            if (type == Storage::float64) row.set(j, value);
            if (type == Storage::float32) row.set(j, narrow);
            if (type == Storage::bfloat16) row.set(j, bfloat16);
            if (type == Storage::float16) row.set(j, half);
        }
        Real product = 0, size = 0, square = 0;
        for (std::size_t j = 0; j < m; ++j) {
            const Real v = row.value(j);
            product += v * x[j], size += std::fabs(v * x[j]), square += v * v;
        }
        const std::byte* pointer = row.data();
        for (const KernelSet* set : sets()) {
            double lanes[kLanes] = {}, squares[kLanes] = {};
            kernels(*set, type).accumulate(&pointer, 1, x.data(), m, lanes);
            kernels(*set, type).accumulate_squares(&pointer, 1, m, squares);
            CHECK_CLOSE(join_lanes(lanes), product, 1e-14L * size);
            CHECK_CLOSE(join_lanes(squares), square, 1e-14L * square);
        }
    }
}
