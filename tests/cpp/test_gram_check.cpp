#include "cpu/gram_check.hpp"

#include <cmath>
#include <limits>

#include "check.hpp"
#include "dense.hpp"

using namespace pysubmod;
using dense::Random;

namespace {

using Fault = std::optional<std::pair<Index, Index>>;

template <class Number>
RowBlock block_of(const std::vector<Number>& k, Index n, Index stride) {
    return {reinterpret_cast<const std::byte*>(k.data()), n, stride * static_cast<Index>(sizeof(Number)),
            sizeof(Number), sizeof(Number) == 8 ? Storage::float64 : Storage::float32};
}

// Every pair, in row order.
template <class Number>
Fault first_fault(const std::vector<Number>& k, Index n, Index stride, double tolerance) {
    const auto entry = [&](Index i, Index j) {
        return static_cast<double>(k[static_cast<std::size_t>(i * stride + j)]);
    };
    for (Index i = 0; i < n; ++i)
        for (Index j = i; j < n; ++j) {
            const double length = std::sqrt(std::abs(entry(i, i))) * std::sqrt(std::abs(entry(j, j)));
            const bool apart = std::abs(entry(i, j) - entry(j, i)) > tolerance * length;
            if (!std::isfinite(entry(i, j)) || !std::isfinite(entry(j, i)) || apart) return std::pair(i, j);
        }
    return std::nullopt;
}

template <class Number>
void check_random(double tolerance) {
    Random random(1);
    const double bad[] = {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity(), 7.0};
    int faults = 0, fine = 0;
    for (int trial = 0; trial < 300; ++trial) {
        const auto n = static_cast<Index>(random.below(40)), stride = n + static_cast<Index>(random.below(3));
        std::vector<Number> k(static_cast<std::size_t>(n * stride));
        const auto at = [&](Index i, Index j) -> Number& { return k[static_cast<std::size_t>(i * stride + j)]; };
        for (Index i = 0; i < n; ++i)
            for (Index j = 0; j <= i; ++j) {
                at(i, j) = at(j, i) = static_cast<Number>(i == j ? random.uniform(1, 4) : random.uniform(-1, 1));
                if (random.chance(0.2))  // far inside the tolerance
                    at(i, j) += static_cast<Number>(0.3 * tolerance);
            }
        for (std::size_t change = random.below(3); n > 0 && change-- > 0;) {
            const auto i = static_cast<Index>(random.below(static_cast<std::size_t>(n)));
            const auto j = static_cast<Index>(random.below(static_cast<std::size_t>(n)));
            at(i, j) = static_cast<Number>(bad[random.below(3)]);
            if (random.chance(0.5)) at(j, i) = at(i, j);
        }
        const Fault found = cpu::gram_fault(block_of(k, n, stride), tolerance);
        CHECK(found == first_fault(k, n, stride, tolerance));
        ++(found ? faults : fine);
    }
    CHECK(faults > 80 && fine > 80);
}

}  // namespace

TEST_CASE(faults_are_found_wherever_they_are) {
    check_random<double>(1e-10);
    check_random<float>(1e-5);
}
