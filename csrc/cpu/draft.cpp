#include "cpu/draft.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "cpu/route.hpp"
#include "pysubmod/error.hpp"
#include "pysubmod/small_vector_ops.hpp"

namespace pysubmod::cpu {
namespace {

std::size_t at(Index i) { return static_cast<std::size_t>(i); }

constexpr std::size_t kLookAtAllEvery = 3, kAlwaysLookedAt = 32;

bool same(const auto& a, const auto& b) { return a.size() == b.size() && std::equal(a.begin(), a.end(), b.begin()); }

}  // namespace

Draft::Draft(Rows& rows, const CandidateScores& scores, std::span<const double> target, std::span<const double> squares,
             std::span<const Index> pool, const Options& options, std::size_t n_sharing)
    : rows_(rows),
      scores_(scores),
      target_(target),
      pool_(pool),
      screening_(rows.kernels(), scores, squares, pool, options),
      release_zeros_(options.release_zeros),
      greedy_(options.rule == Rule::greedy),
      n_sharing_(static_cast<double>(n_sharing)),
      n_(rows.size()),
      stride_(screening_.stride()) {
    const double bytes = rows.row_bytes() * static_cast<double>(pool.size());
    const double step_bytes =
        (greedy_ ? 16.0 : 12.0) * static_cast<double>(rows.width()) + (greedy_ ? 16.0 : 4.0) * static_cast<double>(n_);
    most_steps_ = static_cast<std::size_t>(
        std::clamp(0.25 * bytes / (n_sharing_ * step_bytes), 1.0, static_cast<double>(kMostSteps)));
}

void Draft::forget() {
    steps_.clear();
    present_ = seen_ = kNone;
}

void Draft::restart() {
    forget();
    screening_.restart();
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

void Draft::plan(Pass& pass, const PartitionMatroid& matroid, const Refit& refit, std::span<const double> residual) {
    if (!screening_.follow(matroid)) forget();
    learn();
    const std::vector<Index>& eligible = screening_.cover(greedy_);
    if (greedy_) update_factors();
    const bool screened = seen_ != kNone && !greedy_;
    std::vector<Candidate> drafted =
        screening_.best_rows(screened ? products_.data() + seen_ * stride_ : nullptr,
                             screened ? steps_[seen_].norm : 1.0, n_candidates(eligible.size()));
    const std::size_t steps = n_steps(matroid, refit.size(), drafted.size());
    steps_.assign(1, Step{});
    steps_[0].residual.assign(residual.begin(), residual.end());
    set_weights(steps_[0], refit);
    run_ahead(matroid, refit, std::move(drafted), steps);
    pass.add_rows(greedy_ ? pool_ : std::span<const Index>(eligible));
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

// rule = greedy: scores by the Schur complements of now, close enough for a draft.
void Draft::update_factors() {
    for (const Index i : screening_.eligible()) {
        const double schur = std::max(scores_.schur(i), kRankTolerance * scores_.diagonal(i));
        screening_.set_factor(at(i), schur > 0.0 ? static_cast<float>(1.0 / std::sqrt(schur)) : 0.0f);
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
    const auto n = static_cast<double>(screening_.eligible().size());
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

// The pursuit on the candidates alone.
void Draft::run_ahead(PartitionMatroid matroid, Refit refit, std::vector<Candidate> candidates, std::size_t n_steps) {
    places_.resize(candidates.size());
    std::iota(places_.begin(), places_.end(), Index{0});
    while (steps_.size() <= n_steps) {
        const Index i = best_candidate(matroid, candidates);
        if (i < 0) return;
        std::erase_if(candidates, [i](const Candidate& candidate) { return candidate.row == i; });
        try {
            if (!draft_pick(i, refit, steps_.back())) continue;
        } catch (const Unbounded&) {
            return;  // the pursuit may never come here; if it does, the error is its own
        }
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
        candidate.score =
            screening_.score(at(candidate.row), candidate_products_[j], static_cast<float>(1.0 / step.norm));
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

std::vector<Index> Draft::contenders(const PartitionMatroid& matroid) {
    if (!screening_.follow(matroid)) forget();  // the pass has nothing on a row that came back
    if (!covers_present()) return {};
    return screening_.contenders(products_.data() + present_ * stride_, present().norm, rows_.screen_error());
}

}  // namespace pysubmod::cpu
