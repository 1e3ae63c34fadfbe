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

// The correlations of all rows at the weights at hand are those at the last pass, less the columns of the members times
// what their weights have changed since: right up to a known error, and the few rows that can be the best within it are
// all that must be looked at in float64. A pass that must fetch a column fetches those of the rows that are likely to
// be picked next as well.
class ColumnCache {
  public:
    // `scores`, `squares` (diag K by row) and `pool` are the source's and must outlive this object; `products` is G t
    // in the pool's order.
    ColumnCache(Rows& rows, ColumnStore& store, const CandidateScores& scores, std::span<const double> products,
                double target_norm, std::span<const double> squares, std::span<const Index> pool,
                const Options& options, std::size_t n_sharing);

    bool covers_present() const { return has_all_; }
    void set_weights(std::span<const Index> members, std::span<const double> weights);
    // Says what the pass must give, `residual` being that of the present weights; `finish` when it was made.
    void plan(Pass& pass, const PartitionMatroid& matroid, std::span<const double> residual);
    void finish();
    // As Screening::contenders, for the present weights.
    std::vector<Index> contenders(const PartitionMatroid& matroid);

    void marked(Index i) { screening_.marked(i); }
    void clear_barred() { screening_.clear_barred(); }
    void restart();

  private:
    struct Weight {
        Index row;
        double value;
    };

    void learn();
    void form_products();

    Rows& rows_;
    ColumnStore& store_;
    std::span<const double> squares_;
    std::span<const Index> pool_;
    Screening screening_;
    bool is_shared_;
    std::size_t at_once_, most_at_once_, most_columns_;
    double picks_per_pass_;  // of late
    // G r over ||r|| for the weights of the last pass, and at the start.
    std::vector<float> base_, first_;
    double base_norm_ = 0.0, first_norm_ = 0.0;
    std::vector<Weight> base_weights_, weights_, changes_;  // then, now, and what has changed (without zeros)
    bool has_all_ = true, is_formed_ = false;
    std::vector<float> products_;  // G r over `products_unit_`, for the weights they were last formed for
    double products_unit_ = 1.0;
    double error_ = 0.0;  // of a product, in units of the row's length
};

}  // namespace pysubmod::cpu
