#include "pysubmod/partition_matroid.hpp"

#include <algorithm>
#include <limits>

#include "check.hpp"
#include "dense.hpp"

using namespace pysubmod;

namespace {
using Codes = std::vector<std::int32_t>;
using Budgets = std::vector<Index>;
using Mask = std::vector<std::uint8_t>;
}  // namespace

TEST_CASE(counts_what_is_left) {
    const Codes codes = {0, 0, 1, 1, 1, 3};
    const Budgets budgets = {1, 2, 5, 0};  // group 2 is empty, group 3 closed
    PartitionMatroid matroid(codes, budgets, {});
    CHECK(matroid.size() == 6);
    CHECK(matroid.total() == 8);
    CHECK(matroid.rank() == 3);
    CHECK(matroid.may_take(0) && matroid.may_take(4) && !matroid.may_take(5));
    matroid.take(0);
    CHECK(!matroid.may_take(1) && matroid.may_take(2));
    matroid.take(2);
    CHECK(!matroid.exhausted() && matroid.used() == 2);
    matroid.take(4);
    CHECK(matroid.exhausted() && !matroid.full() && matroid.used() == 3 && matroid.rank() == 3);
    matroid.give_back(0);
    CHECK(!matroid.exhausted() && matroid.may_take(1) && matroid.used() == 2 && matroid.rank() == 3);
}

TEST_CASE(full_only_when_every_budget_is_used) {
    const Codes codes = {0, 1};
    const Budgets budgets = {1, 1};
    PartitionMatroid matroid(codes, budgets, {});
    matroid.take(1);
    CHECK(!matroid.full());
    matroid.take(0);
    CHECK(matroid.full() && matroid.exhausted());
}

TEST_CASE(nothing_to_take_from) {
    const Budgets none = {}, zero = {0}, some = {3};
    CHECK(PartitionMatroid({}, none, {}).full());
    CHECK(PartitionMatroid({}, none, {}).exhausted());
    CHECK(PartitionMatroid({}, some, {}).exhausted());
    CHECK(!PartitionMatroid({}, some, {}).full());
    CHECK(PartitionMatroid({}, some, {}).rank() == 0);
    const Codes codes = {0};
    CHECK(PartitionMatroid(codes, zero, {}).full());
    const Mask mask = {0};
    CHECK(PartitionMatroid(codes, some, mask).exhausted());
    CHECK(!PartitionMatroid(codes, some, mask).is_candidate(0));
    CHECK(PartitionMatroid(codes, some, mask).has_budget(0));
}

TEST_CASE(a_member_that_is_no_candidate_uses_budget_but_no_candidate) {
    const Codes codes = {0, 0, 0};
    const Budgets budgets = {2};
    const Mask mask = {0, 1, 1};
    PartitionMatroid matroid(codes, budgets, mask);
    CHECK(matroid.rank() == 2);
    matroid.take(0);  // stands in the selection from the start
    CHECK(matroid.rank() == 2 && !matroid.exhausted());
    matroid.take(1);
    CHECK(matroid.full());
    matroid.give_back(0);
    CHECK(matroid.may_take(2) && !matroid.may_take(0));
}

TEST_CASE(refuses_what_makes_no_sense) {
    const Codes codes = {0, 1};
    const Budgets one = {1}, two = {1, 1}, negative = {1, -1};
    const Mask mask = {1};
    const Codes below = {0, -1};
    CHECK_THROWS(InvalidArgument, "groups", PartitionMatroid(codes, one, {}));
    CHECK_THROWS(InvalidArgument, "groups", PartitionMatroid(below, two, {}));
    CHECK_THROWS(InvalidArgument, "groups", PartitionMatroid(codes, {}, {}));
    CHECK_THROWS(InvalidArgument, "budgets", PartitionMatroid(codes, negative, {}));
    CHECK_THROWS(InvalidArgument, "candidates", PartitionMatroid(codes, two, mask));
}

TEST_CASE(random_walk_against_a_recount) {
    dense::Random random(1);
    for (int trial = 0; trial < 50; ++trial) {
        const std::size_t n = random.below(20), groups = 1 + random.below(5);
        Codes codes(n);
        Budgets budgets(groups);
        Mask mask(n);
        for (auto& code : codes) code = static_cast<std::int32_t>(random.below(groups));
        for (auto& budget : budgets) budget = static_cast<Index>(random.below(5));
        for (auto& flag : mask) flag = random.chance(0.7);
        PartitionMatroid matroid(codes, budgets, mask);
        std::vector<char> taken(n, 0);
        for (int step = 0; step < 100; ++step) {
            if (n > 0) {
                const std::size_t i = random.below(n);
                const auto row = static_cast<Index>(i);
                if (taken[i])
                    matroid.give_back(row), taken[i] = 0;
                else if (matroid.has_budget(row))
                    matroid.take(row), taken[i] = 1;
            }
            Budgets left = budgets, pool(groups, 0);
            for (std::size_t i = 0; i < n; ++i) {
                const auto p = static_cast<std::size_t>(codes[i]);
                if (taken[i])
                    --left[p];
                else if (mask[i])
                    ++pool[p];
            }
            Index used = 0, rank = 0;
            bool exhausted = true, full = true;
            for (std::size_t p = 0; p < groups; ++p) {
                used += budgets[p] - left[p];
                rank += budgets[p] - left[p] + std::min(left[p], pool[p]);
                exhausted = exhausted && (left[p] == 0 || pool[p] == 0);
                full = full && left[p] == 0;
            }
            CHECK(matroid.used() == used);
            CHECK(matroid.rank() == rank);
            CHECK(matroid.full() == full);
            CHECK(matroid.exhausted() == exhausted);
            for (std::size_t i = 0; i < n; ++i)
                CHECK(matroid.may_take(static_cast<Index>(i)) ==
                      (mask[i] && left[static_cast<std::size_t>(codes[i])] > 0));
        }
    }
}
