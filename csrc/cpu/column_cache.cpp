#include "cpu/column_cache.hpp"

#include <algorithm>
#include <cmath>
#include <functional>

#include "cpu/route.hpp"
#include "pysubmod/small_vector_ops.hpp"

namespace pysubmod::cpu {
namespace {
std::size_t at(Index i) { return static_cast<std::size_t>(i); }
}  // namespace

float* ColumnStore::add(Index i, std::size_t stride) {
    column_of_[at(i)] = std::make_unique<float[]>(stride);
    ids_.push_back(i);
    return column_of_[at(i)].get();
}

void ColumnStore::keep_only(std::span<const Index> rows) {
    std::vector<std::unique_ptr<float[]>> kept;
    for (const Index i : rows) kept.push_back(std::move(column_of_[at(i)]));
    for (const Index i : ids_) column_of_[at(i)].reset();
    ids_.clear();
    for (std::size_t m = 0; m < rows.size(); ++m) {
        if (!kept[m]) continue;
        column_of_[at(rows[m])] = std::move(kept[m]);
        ids_.push_back(rows[m]);
    }
}

ColumnCache::ColumnCache(Rows& rows, ColumnStore& store, const CandidateScores& scores,
                         std::span<const double> products, double target_norm, std::span<const double> squares,
                         std::span<const Index> pool, const Options& options, std::size_t n_sharing)
    : rows_(rows),
      store_(store),
      squares_(squares),
      pool_(pool),
      screening_(rows.kernels(), scores, squares, pool, options),
      is_shared_(n_sharing > 1) {
    const double bytes = rows.row_bytes() * static_cast<double>(pool.size());
    at_once_ = most_at_once_ = std::max<std::size_t>(1, (Cost::in_cache(bytes) ? 8 : 16) / n_sharing);
    const double quarter = 0.25 * bytes / (4.0 * static_cast<double>(std::max<std::size_t>(1, rows.size())));
    most_columns_ = std::max<std::size_t>(48, static_cast<std::size_t>(quarter));
    picks_per_pass_ = 0.4 * static_cast<double>(at_once_);
    first_.assign(screening_.stride(), 0.0f);
    first_norm_ = target_norm;
    for (std::size_t j = 0; j < pool.size(); ++j)
        first_[at(pool[j])] = static_cast<float>(target_norm > 0.0 ? products[j] / target_norm : 0.0);
    products_.assign(screening_.stride(), 0.0f);
    restart();
}

void ColumnCache::restart() {
    screening_.restart();
    base_ = first_;
    base_norm_ = first_norm_;
    base_weights_.clear();
    set_weights({}, {});
    if (!is_shared_) store_.keep_only({});  // rows that were never covered are open again
}

void ColumnCache::set_weights(std::span<const Index> members, std::span<const double> weights) {
    weights_.clear();
    for (std::size_t m = 0; m < members.size(); ++m)
        if (weights[m] != 0.0) weights_.push_back({members[m], weights[m]});
    // What has changed since the base was formed; the members of old stand first in both, most often in the same order.
    changes_.clear();
    std::size_t old = 0;
    for (const Weight& now : weights_) {
        const auto was = std::find_if(base_weights_.begin() + static_cast<std::ptrdiff_t>(old), base_weights_.end(),
                                      [&](const Weight& weight) { return weight.row == now.row; });
        if (was == base_weights_.end()) {
            changes_.push_back(now);
            continue;
        }
        const auto place = static_cast<std::size_t>(was - base_weights_.begin());
        for (; old < place; ++old) changes_.push_back({base_weights_[old].row, -base_weights_[old].value});
        changes_.push_back({now.row, now.value - was->value});
        ++old;
    }
    for (; old < base_weights_.size(); ++old) changes_.push_back({base_weights_[old].row, -base_weights_[old].value});
    is_formed_ = false;
    has_all_ = std::ranges::all_of(changes_, [this](const Weight& change) { return store_.find(change.row); });
}

// Fetches fewer columns at once where few of them are used before the next pass, and more again where many are.
void ColumnCache::learn() {
    if (base_weights_.empty()) return;  // no pass yet
    const auto picks = static_cast<double>(weights_.size() - std::min(weights_.size(), base_weights_.size()));
    picks_per_pass_ = 0.5 * (picks_per_pass_ + picks);
    const auto at_once = static_cast<double>(at_once_);
    if (picks_per_pass_ < 0.2 * at_once)
        at_once_ = std::max<std::size_t>(std::min<std::size_t>(4, most_at_once_), at_once_ / 2);
    else if (picks_per_pass_ > 0.5 * at_once)
        at_once_ = std::min(most_at_once_, 2 * at_once_);
}

void ColumnCache::plan(Pass& pass, const PartitionMatroid& matroid, std::span<const double> residual) {
    learn();
    if (!screening_.follow(matroid) && !is_shared_) store_.keep_only({});
    const std::vector<Index>& eligible = screening_.cover(is_shared_);
    pass.add_rows(is_shared_ ? pool_ : std::span<const Index>(eligible));
    std::vector<Index> weighted;
    for (const Weight& weight : weights_) weighted.push_back(weight.row);
    const bool is_full = store_.size() + at_once_ > most_columns_;
    if (is_full && !is_shared_) store_.keep_only(weighted);
    const auto fetch = [&](Index i) {
        pass.screen(i, 1.0 / std::sqrt(squares_[at(i)]), store_.add(i, screening_.stride()));
    };
    std::size_t fetched = 0;
    for (const Index i : weighted) {
        if (store_.find(i)) continue;
        fetch(i);
        ++fetched;
    }
    auto likely = screening_.best_rows(products_.data(), products_unit_, at_once_ + store_.size());
    std::ranges::sort(likely, std::greater<>(), &Screening::Candidate::score);
    for (const Screening::Candidate& candidate : likely) {
        if (fetched >= at_once_ || !(candidate.score > 0.0f) || (is_full && is_shared_)) break;
        if (store_.find(candidate.row)) continue;
        fetch(candidate.row);
        ++fetched;
    }
    base_norm_ = std::sqrt(dot(residual.data(), residual.data(), residual.size()));
    pass.screen(residual, base_norm_ > 0.0 ? 1.0 / base_norm_ : 0.0, base_.data());
}

void ColumnCache::finish() {
    base_weights_ = weights_;
    changes_.clear();
    has_all_ = true;
    is_formed_ = false;
}

// The base less what the changes of the weights take from it, summed in float64.
void ColumnCache::form_products() {
    constexpr std::size_t kChunk = 1024;
    const std::size_t n = rows_.size();
    const auto add_rows = rows_.kernels().by_type[static_cast<std::size_t>(Storage::float32)].add_rows;
    std::vector<double> factors;
    error_ = base_norm_ * rows_.screen_error();
    for (const Weight& change : changes_) {
        const double length = change.value * std::sqrt(squares_[at(change.row)]);
        factors.push_back(-length / base_norm_);
        error_ += std::abs(length) * rows_.screen_error();
    }
    const auto bytes = static_cast<double>((changes_.size() + 1) * n * sizeof(float));
    rows_.team().run(static_cast<Index>((n + kChunk - 1) / kChunk), bytes, [&](Index chunk, int) {
        const std::size_t begin = at(chunk) * kChunk, m = std::min(kChunk, n - begin);
        double sums[kChunk];
        std::copy_n(base_.data() + begin, m, sums);
        std::vector<const std::byte*> columns;
        for (const Weight& change : changes_)
            columns.push_back(reinterpret_cast<const std::byte*>(store_.find(change.row) + begin));
        add_rows(factors.data(), columns.data(), columns.size(), sums, m);
        for (std::size_t j = 0; j < m; ++j) products_[begin + j] = static_cast<float>(sums[j]);
    });
    products_unit_ = base_norm_;
    is_formed_ = true;
}

std::vector<Index> ColumnCache::contenders(const PartitionMatroid& matroid) {
    if (!screening_.follow(matroid) && !is_shared_) {  // the columns have nothing on a row that came back
        store_.keep_only({});
        has_all_ = false;
        return {};
    }
    if (!(base_norm_ > 0.0)) return {};
    if (!is_formed_) form_products();
    return screening_.contenders(products_.data(), products_unit_, error_ / products_unit_);
}

}  // namespace pysubmod::cpu
