// Columns of K in float32, kept from pass to pass.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "cpu/pass.hpp"
#include "cpu/rows.hpp"
#include "cpu/screening.hpp"

namespace pysubmod::cpu {

// K[:, i] / ||g_i|| for some rows i; problems over the same rows share it.
class ColumnStore {
  public:
    explicit ColumnStore(std::size_t n) : column_of_(n) {}
    const float* find(Index i) const { return column_of_[static_cast<std::size_t>(i)].get(); }
    std::size_t size() const { return ids_.size(); }
    float* add(Index i, std::size_t stride);
    void keep_only(std::span<const Index> rows);

  private:
    std::vector<std::unique_ptr<float[]>> column_of_;  // by row
    std::vector<Index> ids_;
};

// For the weights at hand, the correlations of all rows come from the columns of the members, up to a known error, and
// the few rows that can be the best within it are all that must be looked at in float64. A pass that must fetch a column
// fetches those of the rows that are likely to be picked next.
class ColumnCache {
  public:
    // `scores` and `pool` are the source's and must outlive this object, as must `linear` (G t by row) and `squares`.
    ColumnCache(Rows& rows, ColumnStore& store, const CandidateScores& scores, std::span<const double> linear,
                std::span<const double> squares, std::span<const Index> pool, const Options& options,
                std::size_t n_sharing);

    bool covers_present() const { return has_all_; }
    void set_weights(std::span<const Index> members, std::span<const double> weights);
    // Says what the pass must give; `finish` when it was made.
    void plan(Pass& pass, const PartitionMatroid& matroid);
    void finish() { has_all_ = true; }
    // As Screening::contenders, for the present weights.
    std::vector<Index> contenders(const PartitionMatroid& matroid);

    void marked(Index i) { screening_.marked(i); }
    void clear_barred() { screening_.clear_barred(); }
    void restart();

  private:
    void form_products();

    Rows& rows_;
    ColumnStore& store_;
    const CandidateScores& scores_;
    std::span<const double> linear_, squares_;
    std::span<const Index> pool_;
    Screening screening_;
    bool is_shared_;
    std::size_t at_once_, most_columns_;
    std::vector<Index> weighted_;
    std::vector<double> weights_;
    bool has_all_ = true, is_formed_ = false;
    std::vector<float> products_;  // G r over the problem's scale, for the weights they were last formed for
    double unit_ = 1.0;            // that scale
    bool any_products_ = false;
    std::vector<double> wide_row_;
};

}  // namespace pysubmod::cpu
