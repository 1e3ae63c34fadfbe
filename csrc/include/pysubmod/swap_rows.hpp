// The rows that a swap search looks at, and their columns of C.
#pragma once

#include <algorithm>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "pysubmod/partition_matroid.hpp"
#include "pysubmod/source.hpp"
#include "pysubmod/swap_table.hpp"

namespace pysubmod {

// All rows that may come or go, group by group, and by number in a group. "Place" is the position in this order.
class GroupedRows {
  public:
    // `inside` flags, by row of the problem, those that are in the selection, whatever the matroid says.
    GroupedRows(const PartitionMatroid& matroid, const std::vector<char>& inside)
        : place_of_(inside.size(), 0), first_of_(static_cast<std::size_t>(matroid.n_groups()) + 1, 0) {
        for (Index i = 0; i < matroid.size(); ++i)
            if (matroid.may_take(i) || inside[at(i)]) rows_.push_back(i);
        std::stable_sort(rows_.begin(), rows_.end(),
                         [&](Index a, Index b) { return matroid.group(a) < matroid.group(b); });
        for (const Index i : rows_) ++first_of_[static_cast<std::size_t>(matroid.group(i)) + 1];
        for (std::size_t p = 1; p < first_of_.size(); ++p) first_of_[p] += first_of_[p - 1];
        for (std::size_t r = 0; r < rows_.size(); ++r) place_of_[at(rows_[r])] = r;
    }

    std::size_t size() const { return rows_.size(); }
    Index operator[](std::size_t place) const { return rows_[place]; }
    std::span<const Index> all() const { return rows_; }
    std::size_t place_of(Index i) const { return place_of_[at(i)]; }
    SwapTable::Range group(std::int32_t p) const {
        const auto q = static_cast<std::size_t>(p);
        return {first_of_[q], first_of_[q + 1]};
    }

  private:
    static std::size_t at(Index i) { return static_cast<std::size_t>(i); }
    std::vector<Index> rows_;
    std::vector<std::size_t> place_of_, first_of_;  // by row of the problem; by group
};

// Columns of C over these rows, read many at a time and kept until they are taken.
template <Source S>
class ColumnCache {
  public:
    ColumnCache(S& source, const GroupedRows& rows) : source_(source), rows_(rows) {}

    bool has(Index i) const { return columns_.contains(i); }
    std::size_t size() const { return columns_.size(); }
    void clear() { columns_.clear(); }
    const std::vector<double>& operator[](Index i) const { return columns_.at(i); }

    std::vector<double> take(Index i) {
        std::vector<double> column = std::move(columns_.at(i));
        columns_.erase(i);
        return column;
    }

    void read(std::span<const Index> members) {
        if (members.empty()) return;
        std::vector<std::vector<double>> columns(members.size(), std::vector<double>(rows_.size()));
        std::vector<double*> outs;
        for (std::vector<double>& column : columns) outs.push_back(column.data());
        source_.columns(members, rows_.all(), outs);
        for (std::size_t m = 0; m < members.size(); ++m) {
            columns[m][rows_.place_of(members[m])] = source_.diagonal(members[m]);  // with the ridge
            columns_[members[m]] = std::move(columns[m]);
        }
    }

  private:
    S& source_;
    const GroupedRows& rows_;
    std::unordered_map<Index, std::vector<double>> columns_;
};

}  // namespace pysubmod
