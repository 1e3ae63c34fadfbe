#include "cpu/gram_source.hpp"

#include <algorithm>
#include <cmath>
#include <string>

#include "pysubmod/error.hpp"
#include "pysubmod/small_vector_ops.hpp"

namespace pysubmod::cpu {
namespace {

constexpr std::size_t kChunk = 1024;  // entries of g to a task
std::size_t at(Index i) { return static_cast<std::size_t>(i); }

[[noreturn]] void throw_not_finite(Index i) {
    throw InvalidArgument("K: row " + std::to_string(i) + " contains NaN or infinity");
}

}  // namespace

GramSource::GramSource(const RowBlock& gram, std::span<const double> linear, double target_norm,
                       std::span<const Index> pool, const Options& options, ThreadTeam& team, const KernelSet& kernels)
    : gram_(gram),
      all_kernels_(kernels),
      kernels_(kernels.by_type[static_cast<std::size_t>(gram.storage)]),
      team_(team),
      n_(linear.size()),
      target_norm_(target_norm),
      ridge_(options.ridge),
      tilt_(options.tilt),
      plain_linear_(linear.begin(), linear.end()),
      is_checked_(n_, 0),
      zeros_(n_, 0.0) {
    std::vector<double> diagonal(n_, 0.0), linear_of_pool(n_, 0.0);
    linear_ = plain_linear_;
    for (const Index i : pool) {
        const double k_ii = checked_diagonal(i);
        linear_[at(i)] += 0.5 * tilt_ * k_ii;
        if (!std::isfinite(linear_[at(i)])) throw InvalidArgument("tilt: too large for K; the linear term overflows");
        diagonal[at(i)] = k_ii + ridge_;
        linear_of_pool[at(i)] = linear_[at(i)];
    }
    scores_.reset(std::move(linear_of_pool), std::move(diagonal), target_norm, options, rank_tolerance());
}

double GramSource::checked_diagonal(Index i) const {
    const double k_ii = entry(i, i);
    if (!std::isfinite(k_ii)) throw_not_finite(i);
    if (k_ii < 0.0 || k_ii > 1e280 || (k_ii > 0.0 && k_ii < 1e-280))
        throw InvalidArgument("K: diagonal entry " + std::to_string(i) +
                              " is negative or outside 1e-280 .. 1e280; K must be a Gram matrix, rescaled if need be");
    return k_ii;
}

void GramSource::check(Index i) {
    if (is_checked_[at(i)]) return;
    const std::byte* rows[] = {row(i)};
    double lanes[kLanes] = {};
    kernels_.accumulate(rows, 1, zeros_.data(), n_, lanes);
    if (join_lanes(lanes) != 0.0) throw_not_finite(i);  // zero times NaN or infinity
    is_checked_[at(i)] = 1;
}

void GramSource::gram_row(Index i, std::span<const Index> members, std::span<double> out) {
    for (std::size_t m = 0; m < members.size(); ++m) out[m] = entry(i, members[m]);
}

double GramSource::set_weights(std::span<const Index> members, std::span<const double> weights, double scale) {
    weighted_.clear();
    weights_.clear();
    for (std::size_t m = 0; m < members.size(); ++m) {
        if (weights[m] == 0.0) continue;
        check(members[m]);
        weighted_.push_back(members[m]);
        weights_.push_back(weights[m]);
    }
    stale_ = true;
    scores_.weights_changed(scale);
    if (std::isnan(target_norm_)) return kUnknown;
    // ||r||^2 = ||t||^2 - 2 <w, G t> + w' K w; cancels when the fit is close: good to about 1e-8 ||t||.
    learn(members);
    products_.resize(members.size());
    for (std::size_t b = 0; b < members.size(); ++b) products_[b] = -2.0 * plain_linear_[at(members[b])];
    for (std::size_t a = 0; a < members.size(); ++a) {
        if (weights[a] == 0.0) continue;
        add_scaled(weights[a], member_gram_.data() + a * stride_, products_.data(), members.size());
    }
    double squared = target_norm_ * target_norm_;
    for (std::size_t b = 0; b < members.size(); ++b)
        if (weights[b] != 0.0) squared += weights[b] * products_[b];
    return std::sqrt(std::max(0.0, squared));
}

// Gathers what is new of K among the members; most often the last one is.
void GramSource::learn(std::span<const Index> members) {
    if (members.size() > stride_) {
        stride_ = std::max<std::size_t>(16, 2 * members.size());
        member_gram_.resize(stride_ * stride_);
        members_.clear();
    }
    const auto [known, same] = std::mismatch(members_.begin(), members_.end(), members.begin(), members.end());
    members_.erase(known, members_.end());
    for (std::size_t b = members_.size(); b < members.size(); ++b) {
        members_.push_back(members[b]);
        for (std::size_t a = 0; a <= b; ++a) {
            member_gram_[a * stride_ + b] = entry(members[b], members[a]);
            member_gram_[b * stride_ + a] = entry(members[a], members[b]);
        }
    }
}

void GramSource::correlations(std::span<const Index> rows, std::span<double> out) {
    for (std::size_t j = 0; j < rows.size(); ++j) {
        double g = linear_[at(rows[j])];
        for (std::size_t m = 0; m < weighted_.size(); ++m) {
            g -= entry(rows[j], weighted_[m]) * weights_[m];
            if (weighted_[m] == rows[j]) g -= ridge_ * weights_[m];
        }
        out[j] = g;
    }
}

Best GramSource::best(const PartitionMatroid& matroid, Ask ask) { return scores_.best(matroid, ask); }

Shortlist GramSource::shortlist(const PartitionMatroid& matroid, Ask ask) { return scores_.shortlist(matroid, ask); }

// g = c - C w, from the rows of K that carry weight, in member order.
void GramSource::refresh() {
    const std::span<double> g = scores_.correlations();
    const double bytes = static_cast<double>(weighted_.size() * n_ * item_size(gram_.storage));
    bytes_read_ += bytes;
    ++passes_;
    std::vector<double> minus_weights(weights_);
    for (double& weight : minus_weights) weight = -weight;
    team_.run(static_cast<Index>((n_ + kChunk - 1) / kChunk), bytes, [&](Index chunk, int) {
        const std::size_t begin = at(chunk) * kChunk;
        const std::size_t m = std::min(kChunk, n_ - begin);
        std::copy_n(linear_.data() + begin, m, g.data() + begin);
        std::vector<const std::byte*> rows;
        for (const Index i : weighted_) rows.push_back(row(i) + begin * item_size(gram_.storage));
        kernels_.add_rows(minus_weights.data(), rows.data(), rows.size(), g.data() + begin, m);
    });
    for (std::size_t a = 0; a < weighted_.size(); ++a) g[at(weighted_[a])] -= ridge_ * weights_[a];
    stale_ = false;
}

void GramSource::restart() {
    weighted_.clear();
    weights_.clear();
    deflated_.clear();
    stale_ = false;
    scores_.restart();
}

void GramSource::columns(std::span<const Index> members, std::span<const Index> rows, std::span<double* const> outs) {
    for (std::size_t m = 0; m < members.size(); ++m) {
        check(members[m]);
        wide_row_.resize(n_);
        kernels_.widen(row(members[m]), wide_row_.data(), n_);
        for (std::size_t j = 0; j < rows.size(); ++j) outs[m][j] = wide_row_[at(rows[j])];
    }
    bytes_read_ += static_cast<double>(members.size() * n_ * item_size(gram_.storage));
    ++passes_;
}

void GramSource::deflate(Index i, std::span<const double> l, double l_end) {
    check(i);
    std::vector<double> column(n_);
    kernels_.widen(row(i), column.data(), n_);
    for (std::size_t m = 0; m < l.size(); ++m)
        for (std::size_t j = 0; j < n_; ++j) column[j] -= l[m] * deflated_[m][j];
    for (std::size_t j = 0; j < n_; ++j) {
        column[j] /= l_end;
        scores_.lower_schur(static_cast<Index>(j), column[j] * column[j]);
    }
    deflated_.push_back(std::move(column));
}

}  // namespace pysubmod::cpu
