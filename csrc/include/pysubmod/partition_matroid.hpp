// The constraint: at most budget[p] members from group p.
#pragma once

#include <span>
#include <vector>

#include "pysubmod/error.hpp"
#include "pysubmod/types.hpp"

namespace pysubmod {

// Keeps the books: what each group may still give, and what it still has. Codes and mask are borrowed and must
// outlive this object; an empty mask means that every row is a candidate.
class PartitionMatroid {
  public:
    PartitionMatroid(std::span<const std::int32_t> group_of, std::span<const Index> budgets,
                     std::span<const std::uint8_t> candidates)
        : group_of_(group_of),
          candidates_(candidates),
          left_(budgets.begin(), budgets.end()),
          pool_(budgets.size(), 0) {
        for (const Index budget : budgets) {
            if (budget < 0) throw InvalidArgument("budgets: a budget is negative");
            total_ += budget;
        }
        if (!candidates.empty() && candidates.size() != group_of.size())
            throw InvalidArgument("candidates: must have one entry per row");
        for (Index i = 0; i < size(); ++i) {
            if (group(i) < 0 || at(group(i)) >= budgets.size())
                throw InvalidArgument("groups: a group code is outside 0 .. len(budgets) - 1");
            if (is_candidate(i)) ++pool_[at(group(i))];
        }
        for (std::size_t p = 0; p < left_.size(); ++p) takeable_ += left_[p] > 0 && pool_[p] > 0;
    }

    Index size() const { return static_cast<Index>(group_of_.size()); }
    Index total() const { return total_; }  // sum of all budgets
    Index used() const { return used_; }
    bool full() const { return used_ == total_; }
    bool exhausted() const { return takeable_ == 0; }  // no open group has a candidate left

    // The largest feasible number of members: sum over groups of min(budget, candidates).
    Index rank() const {
        Index sum = used_;
        for (std::size_t p = 0; p < left_.size(); ++p) sum += left_[p] < pool_[p] ? left_[p] : pool_[p];
        return sum;
    }

    std::int32_t group(Index i) const { return group_of_[at(i)]; }
    bool is_candidate(Index i) const { return candidates_.empty() || candidates_[at(i)] != 0; }
    bool has_budget(Index i) const { return left_[at(group(i))] > 0; }
    Index n_groups() const { return static_cast<Index>(left_.size()); }
    Index budget_left(std::int32_t group) const { return left_[at(group)]; }
    // Whether row i was already taken is not asked here.
    bool may_take(Index i) const { return is_candidate(i) && has_budget(i); }

    void take(Index i) { move(i, -1); }
    void give_back(Index i) { move(i, +1); }

  private:
    template <class Integer>
    static std::size_t at(Integer i) {
        return static_cast<std::size_t>(i);
    }
    void move(Index i, Index step) {
        const std::size_t p = at(group(i));
        takeable_ -= left_[p] > 0 && pool_[p] > 0;
        left_[p] += step;
        if (is_candidate(i)) pool_[p] += step;
        used_ -= step;
        takeable_ += left_[p] > 0 && pool_[p] > 0;
    }

    std::span<const std::int32_t> group_of_;
    std::span<const std::uint8_t> candidates_;
    std::vector<Index> left_;  // budget left, by group
    std::vector<Index> pool_;  // candidates not taken, by group
    Index total_ = 0;
    Index used_ = 0;
    Index takeable_ = 0;  // groups with both
};

}  // namespace pysubmod
