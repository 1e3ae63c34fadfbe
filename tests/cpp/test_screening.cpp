// The float32 kernels: products within their stated error, bounds of scores as the plain formula has them.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "check.hpp"
#include "cpu/kernels.hpp"
#include "dense.hpp"

using namespace pysubmod;
using namespace pysubmod::cpu;
using dense::Random;
using dense::Real;

namespace {

std::vector<const KernelSet*> sets() {
    std::vector<const KernelSet*> all;
    for (const char* name : {"portable", "avx2", "avx512"})
        if (const KernelSet* set = kernel_set(name)) all.push_back(set);
    return all;
}

// Floats that end where their memory ends, one byte off any alignment.
struct Row {
    std::unique_ptr<std::byte[]> bytes;
    std::vector<float> values;
    explicit Row(std::vector<float> x) : bytes(new std::byte[1 + x.size() * 4]), values(std::move(x)) {
        std::memcpy(bytes.get() + 1, values.data(), values.size() * 4);
    }
    const std::byte* data() const { return bytes.get() + 1; }
};

// Sizes of numbers from 1 to 1e-6, and runs of one sign, for which rounding errors add up.
std::vector<float> numbers(Random& random, std::size_t m) {
    std::vector<float> x(m);
    const bool one_sign = random.chance(0.3), wide = random.chance(0.5);
    for (float& value : x) {
        double v = random.normal();
        if (one_sign) v = 1.0 + 0.5 * random.uniform();
        if (wide) v *= std::pow(10.0, -6.0 * random.uniform());
        value = static_cast<float>(v);
    }
    return x;
}

Real norm(const std::vector<float>& x) {
    Real sum = 0;
    for (const float v : x) sum += static_cast<Real>(v) * static_cast<Real>(v);
    return std::sqrt(sum);
}

}  // namespace

TEST_CASE(products_are_within_their_error) {
    Random random(1);
    for (const KernelSet* set : sets()) {
        double worst = 0.0;
        for (const std::size_t m : {1u, 3u, 8u, 15u, 16u, 17u, 31u, 64u, 257u, 1000u, 1024u})
            for (std::size_t n_xs = 1; n_xs <= 14; ++n_xs) {
                std::vector<Row> rows;
                for (std::size_t r = 0; r < kRowsAtOnce; ++r) rows.emplace_back(numbers(random, m));
                const std::size_t stride = (m + kScreenPadding - 1) / kScreenPadding * kScreenPadding;
                std::vector<float> xs(n_xs * stride, 0.0f);
                std::vector<std::vector<float>> vectors;
                for (std::size_t v = 0; v < n_xs; ++v) {
                    vectors.push_back(numbers(random, m));
                    std::copy(vectors[v].begin(), vectors[v].end(),
                              xs.begin() + static_cast<std::ptrdiff_t>(v * stride));
                }
                ScreenRows four{};
                four.next_item = 4;
                for (std::size_t r = 0; r < kRowsAtOnce; ++r) four.rows[r] = four.next[r] = rows[r].data();
                std::vector<double> sums(n_xs * 7, 0.25);  // sums are added to
                set->screen(four, xs.data(), stride, n_xs, m, sums.data(), 7);
                for (std::size_t v = 0; v < n_xs; ++v) {
                    for (std::size_t r = 0; r < kRowsAtOnce; ++r) {
                        Real exact = 0.25;
                        for (std::size_t j = 0; j < m; ++j)
                            exact += static_cast<Real>(rows[r].values[j]) * static_cast<Real>(vectors[v][j]);
                        const Real unit = norm(rows[r].values) * norm(vectors[v]);
                        CHECK_CLOSE(sums[v * 7 + r], exact, set->screen_error * unit + 1e-16);
                        worst =
                            std::max(worst, static_cast<double>((std::fabs(sums[v * 7 + r] - exact) - 1e-16) / unit));
                    }
                    for (std::size_t r = kRowsAtOnce; r < 7; ++r) CHECK(sums[v * 7 + r] == 0.25);
                }
            }
        std::printf("     %s: the worst error is %.2g of the bound\n", set->name, worst / set->screen_error);
        CHECK(worst > 0.0 && set->screen_error < 1e-4);
    }
}

TEST_CASE(narrow_rounds_once) {
    Random random(2);
    for (const KernelSet* set : sets())
        for (const std::size_t m : {1u, 7u, 8u, 9u, 100u}) {
            std::vector<double> wide = random.normals(m);
            std::vector<float> out(m, 7.0f);
            set->by_type[static_cast<std::size_t>(Storage::float64)].narrow(
                reinterpret_cast<const std::byte*>(wide.data()), out.data(), m);
            for (std::size_t j = 0; j < m; ++j) CHECK(out[j] == static_cast<float>(wide[j]));
            std::vector<std::uint16_t> bits(m);
            for (std::uint16_t& b : bits) b = static_cast<std::uint16_t>(0x3f00u + random.below(0x200));
            set->by_type[static_cast<std::size_t>(Storage::bfloat16)].narrow(
                reinterpret_cast<const std::byte*>(bits.data()), out.data(), m);
            for (std::size_t j = 0; j < m; ++j) {
                const std::uint32_t shifted = static_cast<std::uint32_t>(bits[j]) << 16;
                float expected = 0.0f;
                std::memcpy(&expected, &shifted, sizeof expected);
                CHECK(out[j] == expected);
            }
        }
}

TEST_CASE(bounds_of_scores) {
    Random random(3);
    const std::size_t n = 5 * kScreenPadding;
    for (const KernelSet* set : sets())
        for (int round = 0; round < 200; ++round) {
            std::vector<float> products(n), factor(n), unit(n), closed(n, 0.0f), offset(n);
            for (std::size_t i = 0; i < n; ++i) {
                products[i] = static_cast<float>(random.normal());
                factor[i] = static_cast<float>(random.uniform());
                unit[i] = static_cast<float>(random.uniform());
                offset[i] = static_cast<float>(random.normal());
                if (random.chance(0.3)) closed[i] = -std::numeric_limits<float>::infinity();
            }
            const bool is_signed = random.chance(0.5), with_offset = random.chance(0.5);
            const ScreenedScores scores{
                products.data(), factor.data(), unit.data(), closed.data(), with_offset ? offset.data() : nullptr, 0.5f,
                0.01f,           is_signed};
            const std::size_t begin = kScreenPadding * random.below(3);
            const std::size_t end = begin + kScreenPadding * (1 + random.below(2));
            const ScoreBounds bounds = set->bounds(scores, begin, end);
            float at_most = -std::numeric_limits<float>::infinity(), surely = at_most;
            for (std::size_t i = begin; i < end; ++i) {
                if (closed[i] != 0.0f) continue;
                float height = products[i] + (with_offset ? 0.5f * offset[i] : 0.0f);
                if (!is_signed) height = std::abs(height);
                at_most = std::max(at_most, height * factor[i] + 0.01f * unit[i]);
                surely = std::max(surely, height * factor[i] - 0.01f * unit[i]);
            }
            CHECK(bounds.poison == 0.0f);
            if (std::isinf(at_most)) {
                CHECK(bounds.at_most == at_most && bounds.surely == surely);
                continue;
            }
            CHECK_CLOSE(bounds.at_most, at_most, 1e-6);
            CHECK_CLOSE(bounds.surely, surely, 1e-6);
            products[begin + random.below(end - begin)] = random.chance(0.5) ? NAN : INFINITY;
            CHECK(std::isnan(set->bounds(scores, begin, end).poison));
        }
}
