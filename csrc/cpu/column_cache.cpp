#include "cpu/column_cache.hpp"

#include <algorithm>
#include <cmath>

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

ColumnCache::ColumnCache(Rows& rows, ColumnStore& store, const CandidateScores& scores, std::span<const double> linear,
                         std::span<const double> squares, std::span<const Index> pool, const Options& options,
                         std::size_t n_sharing)
    : rows_(rows),
      store_(store),
      scores_(scores),
      linear_(linear),
      squares_(squares),
      pool_(pool),
      screening_(rows.kernels(), scores, squares, pool, options),
      is_shared_(n_sharing > 1) {
    const double bytes = rows.row_bytes() * static_cast<double>(pool.size());
    constexpr double kCacheBytes = 4 << 20;
    at_once_ = std::max<std::size_t>(1, (bytes < kCacheBytes ? 8 : 12) / n_sharing);
    const double quarter = 0.25 * bytes / (4.0 * static_cast<double>(rows.size()));
    most_columns_ = std::max<std::size_t>(48, static_cast<std::size_t>(quarter));
    products_.assign(screening_.stride(), 0.0f);
}

void ColumnCache::restart() {
    screening_.restart();
    weighted_.clear();
    weights_.clear();
    has_all_ = true;
    is_formed_ = any_products_ = false;
    if (!is_shared_) store_.keep_only({});  // rows that were never covered are open again
}

void ColumnCache::set_weights(std::span<const Index> members, std::span<const double> weights) {
    weighted_.clear();
    weights_.clear();
    for (std::size_t m = 0; m < members.size(); ++m) {
        if (weights[m] == 0.0) continue;
        weighted_.push_back(members[m]);
        weights_.push_back(weights[m]);
    }
    is_formed_ = false;
    has_all_ = std::ranges::all_of(weighted_, [this](Index i) { return store_.find(i) != nullptr; });
}

void ColumnCache::plan(Pass& pass, const PartitionMatroid& matroid) {
    if (!screening_.follow(matroid) && !is_shared_) store_.keep_only({});
    pass.add_rows(is_shared_ ? pool_ : std::span<const Index>(screening_.cover(false)));
    if (is_shared_) screening_.cover(true);
    if (!is_shared_ && store_.size() + at_once_ > most_columns_) store_.keep_only(weighted_);
    const auto fetch = [&](Index i) {
        rows_.widen(i, wide_row_);
        pass.screen(wide_row_, 1.0 / std::sqrt(squares_[at(i)]), store_.add(i, screening_.stride()));
    };
    std::size_t fetched = 0;
    for (const Index i : weighted_) {
        if (store_.find(i)) continue;
        fetch(i);
        ++fetched;
    }
    if (fetched >= at_once_) return;
    const std::size_t wanted = at_once_ - fetched;
    auto likely = screening_.best_rows(any_products_ ? products_.data() : nullptr, unit_, wanted + store_.size());
    std::ranges::sort(likely, std::greater<>(), &Screening::Candidate::score);
    for (const Screening::Candidate& candidate : likely) {
        if (fetched >= at_once_ || !(candidate.score > 0.0f)) return;
        if (store_.find(candidate.row)) continue;
        fetch(candidate.row);
        ++fetched;
    }
}

// (G t - sum of w_m K[:, m]) / unit, summed in float64.
void ColumnCache::form_products() {
    constexpr std::size_t kChunk = 1024;
    const std::size_t n = rows_.size();
    const auto add_rows = rows_.kernels().by_type[static_cast<std::size_t>(Storage::float32)].add_rows;
    std::vector<double> factors;
    for (std::size_t m = 0; m < weighted_.size(); ++m)
        factors.push_back(-weights_[m] * std::sqrt(squares_[at(weighted_[m])]));
    unit_ = scores_.scale();
    const double inverse = 1.0 / unit_;
    const auto bytes = static_cast<double>(weighted_.size() * n * sizeof(float));
    rows_.team().run(static_cast<Index>((n + kChunk - 1) / kChunk), bytes, [&](Index chunk, int) {
        const std::size_t begin = at(chunk) * kChunk, m = std::min(kChunk, n - begin);
        double sums[kChunk];
        std::copy_n(linear_.data() + begin, m, sums);
        std::vector<const std::byte*> columns;
        for (const Index i : weighted_) columns.push_back(reinterpret_cast<const std::byte*>(store_.find(i) + begin));
        add_rows(factors.data(), columns.data(), columns.size(), sums, m);
        for (std::size_t j = 0; j < m; ++j) products_[begin + j] = static_cast<float>(sums[j] * inverse);
    });
    is_formed_ = any_products_ = true;
}

std::vector<Index> ColumnCache::contenders(const PartitionMatroid& matroid) {
    if (!screening_.follow(matroid) && !is_shared_) {  // the columns have nothing on a row that came back
        store_.keep_only({});
        has_all_ = weighted_.empty();
        return {};
    }
    if (!(scores_.scale() > 0.0)) return {};
    if (!is_formed_) form_products();
    double lengths = 0.0;
    for (std::size_t m = 0; m < weighted_.size(); ++m)
        lengths += std::abs(weights_[m]) * std::sqrt(squares_[at(weighted_[m])]);
    return screening_.contenders(products_.data(), unit_, rows_.screen_error() * lengths / unit_);
}

}  // namespace pysubmod::cpu
