#include "cpu/draft.hpp"

#include <algorithm>
#include <functional>
#include <limits>
#include <numeric>

#include "cpu/route.hpp"
#include "pysubmod/small_vector_ops.hpp"

namespace pysubmod::cpu {
namespace {

std::size_t at(Index i) { return static_cast<std::size_t>(i); }

constexpr float kClosed = -std::numeric_limits<float>::infinity();
constexpr std::size_t kBlock = 256;  // rows that are looked at again together
constexpr std::size_t kLookAtAllEvery = 3, kAlwaysLookedAt = 32;
// What is counted beside the error of a product: the roundings of score(), of unit_ and of what the tilt adds.
constexpr double kSmallestNorm = 1e-30;  // of a residual: its inverse must be a float32
constexpr double kScoreRoundings = 16 * 0x1p-24;

bool same(const auto& a, const auto& b) { return a.size() == b.size() && std::equal(a.begin(), a.end(), b.begin()); }

}  // namespace

Draft::Draft(Rows& rows, const CandidateScores& scores, std::span<const double> target, std::span<const double> squares,
             std::span<const Index> pool, const Options& options, std::size_t n_sharing)
    : rows_(rows),
      scores_(scores),
      target_(target),
      squares_(squares),
      pool_(pool),
      nonneg_(options.nonneg),
      release_zeros_(options.release_zeros),
      greedy_(options.rule == Rule::greedy),
      n_sharing_(static_cast<double>(n_sharing)),
      n_(rows.size()),
      stride_((n_ + kScreenPadding - 1) / kScreenPadding * kScreenPadding) {
    const double bytes = rows.row_bytes() * static_cast<double>(pool.size());
    const double step_bytes = (greedy_ ? 16.0 : 12.0) * static_cast<double>(rows.width()) +
                              (greedy_ ? 16.0 : 4.0) * static_cast<double>(n_);
    most_steps_ = static_cast<std::size_t>(std::clamp(0.25 * bytes / (n_sharing_ * step_bytes), 1.0, static_cast<double>(kMostSteps)));
    factor_.assign(stride_, 0.0f);
    unit_.assign(stride_, 0.0f);
    if (options.tilt != 0.0) offset_.assign(stride_, 0.0f);
    for (const Index i : pool) {
        const double root = std::sqrt(scores.diagonal(i));
        if (root == 0.0) continue;
        const double factor = options.rule == Rule::normalized ? 1.0 / root : 1.0;
        factor_[at(i)] = static_cast<float>(factor);
        unit_[at(i)] = static_cast<float>(root * factor);
        if (options.tilt == 0.0) continue;
        const double offset = 0.5 * options.tilt * squares[at(i)];
        offset_[at(i)] = static_cast<float>(offset);
        largest_offset_share_ = std::max(largest_offset_share_, std::abs(offset) / root);
    }
    restart();
}

void Draft::forget() {
    steps_.clear();
    present_ = seen_ = kNone;
}

void Draft::restart() {
    forget();
    covered_.assign(n_, 0);
    closed_.assign(stride_, kClosed);
    closed_is_stale_ = true;
    any_barred_ = false;
}

void Draft::marked(Index i) {
    const Mark mark = scores_.mark_of(i);
    any_barred_ = any_barred_ || mark == Mark::barred;
    if (mark == Mark::none)
        closed_is_stale_ = true;
    else
        closed_[at(i)] = kClosed;
}

// Only when a group opened or was used up, or a row came back, are all rows looked at.
void Draft::update_closed(const PartitionMatroid& matroid) {
    open_groups_.resize(at(matroid.n_groups()));
    for (std::size_t p = 0; p < open_groups_.size(); ++p) {
        const bool open = matroid.budget_left(static_cast<std::int32_t>(p)) > 0;
        closed_is_stale_ = closed_is_stale_ || open != (open_groups_[p] != 0);
        open_groups_[p] = open;
    }
    if (!closed_is_stale_) return;
    bool covered = true;
    closed_.assign(stride_, kClosed);
    for (const Index i : pool_) {
        if (scores_.mark_of(i) != Mark::none || !matroid.may_take(i)) continue;
        closed_[at(i)] = 0.0f;
        covered = covered && covered_[at(i)];
    }
    if (!covered) forget();  // the pass has nothing on a row that came back
    closed_is_stale_ = any_barred_ = false;
}

const Draft::Step* Draft::move_to(std::span<const Index> members, std::span<const double> weights) {
    const std::size_t next = seen_ + 1;  // of kNone: 0
    present_ = kNone;
    if (seen_ == kNone || next >= steps_.size()) return nullptr;
    const Step& step = steps_[next];
    if (!same(step.members, members) || !same(step.weights, weights)) return nullptr;
    present_ = seen_ = next;
    return &step;
}

std::span<const double> Draft::gram_row(Index i, std::span<const Index> members) const {
    if (!covers_present() || present().next != i || !same(present().members, members)) return {};
    return present().gram_row;
}

std::span<const double> Draft::column(Index i) const {
    if (!greedy_ || !covers_present() || present().next != i) return {};
    return present().column;
}

void Draft::plan(Pass& pass, const PartitionMatroid& matroid, const Refit& refit,
                 std::span<const double> residual) {
    update_closed(matroid);
    learn();
    list_eligible();
    std::vector<Candidate> drafted = candidates(n_candidates(eligible_.size()));
    const std::size_t steps = n_steps(matroid, refit.size(), drafted.size());
    steps_.assign(1, Step{});
    steps_[0].residual.assign(residual.begin(), residual.end());
    set_weights(steps_[0], refit);
    run_ahead(matroid, refit, std::move(drafted), steps);
    pass.add_rows(greedy_ ? pool_ : eligible_);
    products_.resize(greedy_ ? 0 : steps_.size() * stride_);
    for (std::size_t j = 0; j < steps_.size(); ++j) {
        Step& step = steps_[j];
        step.norm = std::sqrt(dot(step.residual.data(), step.residual.data(), step.residual.size()));
        if (!greedy_) {
            pass.screen(step.residual, step.norm > 0.0 ? 1.0 / step.norm : 0.0, products_.data() + j * stride_);
            continue;
        }
        step.products.resize(n_);
        pass.multiply(step.residual.data(), step.products.data());
        if (step.next < 0) continue;
        rows_.widen(step.next, step.next_row);
        step.column.resize(n_);
        pass.multiply(step.next_row.data(), step.column.data());
    }
}

void Draft::list_eligible() {
    eligible_.clear();
    covered_.assign(n_, greedy_);
    for (const Index i : pool_) {
        if (closed_[at(i)] != 0.0f) continue;
        eligible_.push_back(i);
        covered_[at(i)] = 1;
        if (greedy_) {  // as of now: close enough for a draft
            const double schur = std::max(scores_.schur(i), kRankTolerance * scores_.diagonal(i));
            factor_[at(i)] = schur > 0.0 ? static_cast<float>(1.0 / std::sqrt(schur)) : 0.0f;
        }
    }
}

// How the last draft went. A depth that was reached counts for all that come before it, too.
void Draft::learn() {
    if (steps_.size() < 2 || seen_ == kNone) return;
    constexpr double kMemory = 0.85;
    for (std::size_t depth = 0; depth < kMostSteps; ++depth) {
        drafted_[depth] *= kMemory;
        right_[depth] *= kMemory;
        if (depth <= seen_ && depth + 1 < steps_.size()) drafted_[depth] += 1.0;
        if (depth < seen_) right_[depth] += 1.0;
    }
}

// The number of picks to draft that gives most picks for the time, if drafts go as of late.
std::size_t Draft::n_steps(const PartitionMatroid& matroid, std::size_t members, std::size_t candidates) const {
    const double n = static_cast<double>(eligible_.size());
    const double bytes = n * rows_.row_bytes();
    const double pick =
        (Cost::kCandidate * static_cast<double>(candidates) + Cost::kMember * static_cast<double>(members)) / n;
    const std::size_t most = std::min(most_steps_, at(matroid.rank() - matroid.used()) - 1);
    std::size_t best = 0;
    double picks = 0.0, p = 0.95, chance = 1.0, best_rate = 0.0;
    for (std::size_t m = 0; m <= most; ++m) {
        picks += chance;
        constexpr double kPrior = 0.5;  // a depth that nobody has been to is as safe as the one before it
        if (m < most) p = (right_[m] + kPrior * p) / (drafted_[m] + kPrior), chance *= p;
        const auto steps = static_cast<double>(m);
        const double vectors = n_sharing_ * (steps + 1.0);
        const double pass = greedy_ ? Cost::exact_pass(2.0 * vectors) : Cost::pass(vectors, bytes);
        const double rate = picks / (pass / n_sharing_ + pick * steps);
        if (rate > best_rate) best = m, best_rate = rate;
    }
    return best;
}

// The eligible rows of largest score, as far as scores are known.
std::vector<Draft::Candidate> Draft::candidates(std::size_t count) {
    estimates_.resize(eligible_.size());
    const bool screened = seen_ != kNone && !greedy_;
    const float* products = screened ? products_.data() + seen_ * stride_ : nullptr;
    const auto inverse = static_cast<float>(screened ? 1.0 / steps_[seen_].norm : 1.0);
    for (std::size_t j = 0; j < eligible_.size(); ++j) {
        const std::size_t i = at(eligible_[j]);
        if (screened)
            estimates_[j] = score(i, products[i], inverse);
        else
            estimates_[j] = height(static_cast<float>(scores_.correlation(eligible_[j]))) * factor_[i];
    }
    float lowest = kClosed;
    if (count < eligible_.size()) {
        std::vector<float> ranked = estimates_;
        const auto nth = ranked.begin() + static_cast<std::ptrdiff_t>(count - 1);
        std::nth_element(ranked.begin(), nth, ranked.end(), std::greater<>());
        lowest = *nth;
    }
    std::vector<Candidate> chosen;
    for (std::size_t j = 0; j < eligible_.size() && chosen.size() < count; ++j)
        if (estimates_[j] >= lowest) chosen.push_back({eligible_[j], estimates_[j]});
    return chosen;
}

// The pursuit on the candidates alone.
void Draft::run_ahead(PartitionMatroid matroid, Refit refit, std::vector<Candidate> candidates, std::size_t n_steps) {
    places_.resize(candidates.size());
    std::iota(places_.begin(), places_.end(), Index{0});
    while (steps_.size() <= n_steps) {
        const Index i = best_candidate(matroid, candidates);
        if (i < 0) return;
        std::erase_if(candidates, [i](const Candidate& candidate) { return candidate.row == i; });
        if (!draft_pick(i, refit, steps_.back())) continue;
        matroid.take(i);
        if (release_zeros_) {
            for (std::size_t m = 0; m < refit.size(); ++m)
                if (!refit.is_active(m)) matroid.give_back(refit.ids()[m]);
            refit.remove_idle();
        }
        steps_.back().next = i;
        Step step;
        set_weights(step, refit);
        step.residual.resize(target_.size());
        rows_.subtract(target_, step.members, step.weights, step.residual);
        steps_.push_back(std::move(step));
    }
}

// The best candidate after a step; -1 if none helps. The scores of those that were far behind are formed only now and
// then.
Index Draft::best_candidate(const PartitionMatroid& matroid, std::vector<Candidate>& candidates) {
    Step& step = steps_.back();
    step.norm = std::sqrt(dot(step.residual.data(), step.residual.data(), step.residual.size()));
    if (!(step.norm > 0.0)) return -1;
    std::size_t count = candidates.size();
    if ((steps_.size() - 1) % kLookAtAllEvery != 0 && count / kLookAtAllEvery > kAlwaysLookedAt) {
        count /= kLookAtAllEvery;
        std::nth_element(candidates.begin(), candidates.begin() + static_cast<std::ptrdiff_t>(count), candidates.end(),
                         [](const Candidate& a, const Candidate& b) { return a.score > b.score; });
    }
    std::vector<Index> rows;
    for (std::size_t j = 0; j < count; ++j) rows.push_back(candidates[j].row);
    Rows::Screen screen;
    rows_.add_to(screen, step.residual, 1.0 / step.norm);
    candidate_products_.resize(count);
    float* outs[] = {candidate_products_.data()};
    rows_.screen(rows, std::span(places_).first(count), screen, outs);
    Index best = -1;
    float highest = 0.0f;
    for (std::size_t j = 0; j < count; ++j) {
        Candidate& candidate = candidates[j];
        candidate.score = score(at(candidate.row), candidate_products_[j], static_cast<float>(1.0 / step.norm));
        if (candidate.score > highest && matroid.may_take(candidate.row))
            best = candidate.row, highest = candidate.score;
    }
    return best;
}

// Lets row i into the refit, if it improves.
bool Draft::draft_pick(Index i, Refit& refit, Step& step) {
    step.gram_row.resize(refit.size());
    rows_.gram_row(i, refit.ids(), step.gram_row);
    const double g = scores_.linear(i) - dot(step.gram_row.data(), refit.weights().data(), refit.size());
    return refit.add({i, step.gram_row, scores_.diagonal(i), scores_.linear(i), g}) == Refit::Outcome::improved;
}

void Draft::set_weights(Step& step, const Refit& refit) {
    step.members.assign(refit.ids().begin(), refit.ids().end());
    step.weights.assign(refit.weights().begin(), refit.weights().end());
}

// Of the scores of a step, s, each is within `slack * unit` of the true one, and so much again is where scores count as
// tied: rows whose score plus slack is below another's less slack are not the best.
std::vector<Index> Draft::contenders(const PartitionMatroid& matroid) {
    update_closed(matroid);
    if (!covers_present() || !(present().norm > kSmallestNorm)) return {};
    const Step& step = present();
    const auto inverse = static_cast<float>(1.0 / step.norm);
    const double tilt_share = offset_.empty() ? 0.0 : kScoreRoundings * largest_offset_share_ * inverse;
    const auto slack = static_cast<float>(rows_.screen_error() + kScoreRoundings + tilt_share +
                                          2.0 * kScoreTolerance * scores_.scale() / step.norm);
    const ScreenedScores scores{products_.data() + present_ * stride_,
                                factor_.data(),
                                unit_.data(),
                                closed_.data(),
                                offset_.empty() ? nullptr : offset_.data(),
                                inverse,
                                slack,
                                nonneg_};
    at_most_.resize((n_ + kBlock - 1) / kBlock);
    float surely = 0.0f, poison = 0.0f;
    for (std::size_t b = 0; b < at_most_.size(); ++b) {
        const ScoreBounds bounds =
            rows_.kernels().bounds(scores, b * kBlock, std::min(stride_, (b + 1) * kBlock));
        at_most_[b] = bounds.at_most;
        surely = std::max(surely, bounds.surely);
        poison += bounds.poison;
    }
    std::vector<Index> rows;
    if (surely == 0.0f || poison != 0.0f) return rows;
    for (std::size_t b = 0; b < at_most_.size(); ++b) {
        if (at_most_[b] < surely) continue;
        const std::size_t end = std::min(n_, (b + 1) * kBlock);
        for (std::size_t i = b * kBlock; i < end; ++i)
            if (score(i, scores.products[i], inverse) + slack * unit_[i] >= surely)
                rows.push_back(static_cast<Index>(i));
    }
    if (rows.size() > eligible_.size() / 8 + 16) rows.clear();
    return rows;
}

}  // namespace pysubmod::cpu
