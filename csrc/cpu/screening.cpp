#include "cpu/screening.hpp"

#include <algorithm>
#include <functional>
#include <limits>

namespace pysubmod::cpu {
namespace {

std::size_t at(Index i) { return static_cast<std::size_t>(i); }

constexpr float kClosed = -std::numeric_limits<float>::infinity();
constexpr std::size_t kBlock = 256;          // rows that are looked at again together
constexpr double kSmallestUnit = 1e-30;      // its inverse must be a float32
constexpr double kRoundings = 16 * 0x1p-24;  // of score(), of unit_ and of what the tilt adds

}  // namespace

Screening::Screening(const KernelSet& kernels, const CandidateScores& scores, std::span<const double> squares,
                     std::span<const Index> pool, const Options& options)
    : kernels_(kernels),
      scores_(scores),
      pool_(pool),
      nonneg_(options.nonneg),
      n_(squares.size()),
      stride_((n_ + kScreenPadding - 1) / kScreenPadding * kScreenPadding),
      factor_(stride_, 0.0f),
      unit_(stride_, 0.0f),
      offset_(options.tilt != 0.0 ? stride_ : 0, 0.0f) {
    for (const Index i : pool) {
        const double root = std::sqrt(scores.diagonal(i));
        if (root == 0.0) continue;
        const double factor = options.rule == Rule::normalized ? 1.0 / root : 1.0;
        factor_[at(i)] = static_cast<float>(factor);
        unit_[at(i)] = static_cast<float>(root * factor);
        if (options.tilt == 0.0) continue;
        const double offset = 0.5 * options.tilt * squares[at(i)];
        offset_[at(i)] = static_cast<float>(offset);
        // Below the smallest normal number an offset is off by a share of that instead.
        constexpr double kSmallestNormal = std::numeric_limits<float>::min();
        largest_offset_share_ = std::max(largest_offset_share_, (std::abs(offset) + kSmallestNormal) / root);
    }
    restart();
}

void Screening::restart() {
    covered_.assign(n_, 0);
    closed_.assign(stride_, kClosed);
    closed_is_stale_ = true;
    any_barred_ = false;
}

void Screening::marked(Index i) {
    const Mark mark = scores_.mark_of(i);
    any_barred_ = any_barred_ || mark == Mark::barred;
    if (mark == Mark::none)
        closed_is_stale_ = true;
    else
        closed_[at(i)] = kClosed;
}

// Only when a group opened or was used up, or a row came back, are all rows looked at.
bool Screening::follow(const PartitionMatroid& matroid) {
    open_groups_.resize(at(matroid.n_groups()));
    for (std::size_t p = 0; p < open_groups_.size(); ++p) {
        const bool open = matroid.budget_left(static_cast<std::int32_t>(p)) > 0;
        closed_is_stale_ = closed_is_stale_ || open != (open_groups_[p] != 0);
        open_groups_[p] = open;
    }
    if (!closed_is_stale_) return true;
    bool covered = true;
    any_barred_ = false;
    closed_.assign(stride_, kClosed);
    for (const Index i : pool_) {
        any_barred_ = any_barred_ || scores_.mark_of(i) == Mark::barred;
        if (scores_.mark_of(i) != Mark::none || !matroid.may_take(i)) continue;
        closed_[at(i)] = 0.0f;
        covered = covered && covered_[at(i)];
    }
    closed_is_stale_ = false;
    return covered;
}

const std::vector<Index>& Screening::cover(bool all) {
    eligible_.clear();
    covered_.assign(n_, 0);
    for (const Index i : pool_) {
        if (closed_[at(i)] == 0.0f) eligible_.push_back(i);
        covered_[at(i)] = all || closed_[at(i)] == 0.0f;
    }
    return eligible_;
}

std::vector<Screening::Candidate> Screening::best_rows(const float* products, double unit, std::size_t count) const {
    const auto inverse = static_cast<float>(1.0 / unit);
    std::vector<float> estimates(eligible_.size());
    for (std::size_t j = 0; j < eligible_.size(); ++j) {
        const Index i = eligible_[j];
        if (products) {
            estimates[j] = score(at(i), products[i], inverse);
        } else {
            const auto g = static_cast<float>(scores_.correlation(i) / unit);
            estimates[j] = (nonneg_ ? g : std::abs(g)) * factor_[at(i)];
        }
    }
    float lowest = kClosed;
    if (0 < count && count < eligible_.size()) {
        std::vector<float> ranked = estimates;
        const auto nth = ranked.begin() + static_cast<std::ptrdiff_t>(count - 1);
        std::nth_element(ranked.begin(), nth, ranked.end(), std::greater<>());
        lowest = *nth;
    }
    std::vector<Candidate> best;
    for (std::size_t j = 0; j < eligible_.size() && best.size() < count; ++j)
        if (estimates[j] > lowest) best.push_back({eligible_[j], estimates[j]});
    for (std::size_t j = 0; j < eligible_.size() && best.size() < count; ++j)
        if (estimates[j] == lowest) best.push_back({eligible_[j], estimates[j]});
    return best;
}

// Each score s is within slack * unit_ of the true one, and so near each other scores count as tied: rows whose score
// plus slack is below another's less slack are not the best.
std::vector<Index> Screening::contenders(const float* products, double unit, double error) {
    std::vector<Index> rows;
    if (!(unit > kSmallestUnit) || (!offset_.empty() && !(unit < 1.0 / kSmallestUnit))) return rows;
    const auto inverse = static_cast<float>(1.0 / unit);
    const double tilt_share = offset_.empty() ? 0.0 : kRoundings * largest_offset_share_ / unit;
    const auto slack =
        static_cast<float>(error + kRoundings + tilt_share + 2.0 * kScoreTolerance * scores_.scale() / unit);
    const ScreenedScores scores{
        products, factor_.data(), unit_.data(), closed_.data(), offset_.empty() ? nullptr : offset_.data(),
        inverse,  slack,          nonneg_};
    at_most_.resize((n_ + kBlock - 1) / kBlock);
    float surely = 0.0f, poison = 0.0f;
    for (std::size_t b = 0; b < at_most_.size(); ++b) {
        const ScoreBounds bounds = kernels_.bounds(scores, b * kBlock, std::min(stride_, (b + 1) * kBlock));
        at_most_[b] = bounds.at_most;
        surely = std::max(surely, bounds.surely);
        poison += bounds.poison;
    }
    if (surely == 0.0f || poison != 0.0f) return rows;  // nothing surely helps; a number is not finite
    for (std::size_t b = 0; b < at_most_.size(); ++b) {
        if (at_most_[b] < surely) continue;
        const std::size_t end = std::min(n_, (b + 1) * kBlock);
        for (std::size_t i = b * kBlock; i < end; ++i)
            if (score(i, products[i], inverse) + slack * unit_[i] >= surely) rows.push_back(static_cast<Index>(i));
    }
    if (rows.size() > eligible_.size() / 8 + 16) rows.clear();
    return rows;
}

}  // namespace pysubmod::cpu
