// The selection loop, written once over any source. The specification is docs/design.md, section 2.
#pragma once

#include <optional>
#include <vector>

#include "pysubmod/random.hpp"
#include "pysubmod/refit.hpp"
#include "pysubmod/source.hpp"

namespace pysubmod {

template <Source S>
Refit::Settings refit_settings(S& source, bool nonneg) {
    Refit::Settings settings{nonneg, source.scale(), source.rank_tolerance(), source.in_range(), {}};
    if (source.has_rows())
        settings.schur_from_rows = [&source](Index i, std::span<const Index> members, std::span<const double> x) {
            return source.schur_from_rows(i, members, x);
        };
    return settings;
}

// All that the refit asks about row i; `row` holds its row of C and must live as long as the answer is used.
template <Source S>
Refit::Member describe_member(S& source, const Refit& refit, Index i, std::optional<double> correlation,
                              std::vector<double>& row) {
    row.resize(refit.size());
    source.gram_row(i, refit.ids(), row);
    const double g =
        correlation ? *correlation : source.linear(i) - dot(row.data(), refit.weights().data(), row.size());
    return {i, row, source.diagonal(i), source.linear(i), g};
}

// Corrects the weights once by the true residual (the source must hold the present ones) and returns the objective,
// 1/2 <w, c + g>: exact to second order in what is still wrong with w.
template <Source S>
double refine_value(S& source, Refit& refit) {
    std::vector<double> g(refit.size());
    source.correlations(refit.ids(), g);
    double twice = 0.0;
    for (std::size_t m = 0; m < g.size(); ++m) twice += refit.weights()[m] * (source.linear(refit.ids()[m]) + g[m]);
    return 0.5 * twice + refit.refine(g);
}

template <Source S>
class Pursuit {
  public:
    Pursuit(S& source, PartitionMatroid matroid, const Options& options, Monitor& monitor)
        : source_(source),
          matroid_(std::move(matroid)),
          options_(options),
          monitor_(monitor),
          refit_(refit_settings(source, options.nonneg)),
          path_(source.rank_tolerance()),
          ask_(options.pick == Pick::random && options.fill ? Ask::any : Ask::improving) {}

    // With go_on = false nothing is added to `initial`, as if the monitor had said stop.
    Solution run(std::span<const Index> initial, bool go_on = true) {
        start_from(initial);
        if (!go_on) solution_.status = Status::stopped;
        while (go_on && !climb()) source_.read(matroid_, refit_);
        return finish();
    }

    // The same a step at a time, for pursuits that share their passes: start_from once; climb until it is true, with a
    // read by the source between; finish.
    const PartitionMatroid& matroid() const { return matroid_; }
    const Refit& refit() const { return refit_; }

    void start_from(std::span<const Index> initial) {
        rank_ = matroid_.rank();
        residual_norm_ = source_.target_norm();
        for (const Index i : initial) {
            if (!matroid_.has_budget(i))
                throw InvalidArgument("initial: row " + std::to_string(i) + " takes its group over its budget");
            take_whatever(describe(i, std::nullopt));
            residual_norm_ = source_.set_weights(refit_.ids(), refit_.weights(), refit_.current_scale());
            solution_.residual_norms.push_back(residual_norm_);
        }
        if (!initial.empty()) settle(true);
    }

    // Picks until the end (true), or until the source must read.
    bool climb() {
        const std::optional<Status> status = pick_on();
        if (status) solution_.status = *status;
        return status.has_value();
    }

    Solution finish() {
        solution_.objective = refine_value(source_, refit_);
        solution_.weights.assign(refit_.weights().begin(), refit_.weights().end());
        solution_.weights.resize(solution_.indices.size(), 0.0);  // fillers
        solution_.target_norm = source_.target_norm();
        solution_.scale = source_.scale();
        return std::move(solution_);
    }

  private:
    using Outcome = Refit::Outcome;

    std::optional<Status> pick_on() {
        const bool drawing = options_.pick == Pick::random;
        for (;;) {
            if (matroid_.full()) return Status::budget;
            if (matroid_.exhausted()) return Status::exhausted;
            const bool filling = ask_ == Ask::any && !drawing;
            if (!filling && options_.tol > 0.0 && residual_norm_ <= options_.tol * source_.target_norm())
                return Status::tolerance;
            if (!source_.ready()) return std::nullopt;
            const Best best = drawing ? draw(ask_) : next(ask_);
            if (best.index < 0) {
                if (!options_.fill || ask_ == Ask::any)
                    return best.saw_barred ? Status::rank_deficient : Status::no_gain;
                ask_ = Ask::any;
                continue;
            }
            if (filling)
                add_filler(best.index);
            else if (ask_ == Ask::any)
                accept_whatever(best);
            else if (!accept(best))
                continue;
            if (tell(best.index)) return Status::stopped;
        }
    }

    // The best candidate. For rule = greedy a score may be only an upper bound of the gain (w >= 0, or a dependent
    // row); an exact one needs a refit, so evaluate lazily, best bound first, until the best is known exactly.
    Best next(Ask ask) {
        for (;;) {
            const Best best = source_.best(matroid_, ask);
            if (best.index < 0 || ask == Ask::any || options_.rule != Rule::greedy || source_.is_exact(best.index))
                return best;
            score_exactly(best.index, best.correlation);
        }
    }

    void score_exactly(Index i, double correlation) {
        if (monitor_.interrupted()) throw Interrupted();
        Outcome outcome{};
        const double gain = refit_.trial_gain(describe(i, correlation), outcome);
        if (outcome == Outcome::improved && gain > 0.0)
            source_.set_exact(i, std::sqrt(2.0 * gain));
        else
            source_.mark(i, Mark::barred);
    }

    // pick = random: any of the heaviest base of what the matroid has left, each with the same chance.
    Best draw(Ask ask) {
        Shortlist list = source_.shortlist(matroid_, ask);
        while (score_exactly(list.rows)) list = source_.shortlist(matroid_, ask);
        if (list.rows.empty()) return {-1, 0.0, list.saw_barred};
        const Index i = list.rows[random_below(options_.seed, n_draws_++, list.rows.size())];
        return {i, source_.correlation(i), list.saw_barred};
    }

    // Whether any score was a bound. A list whose scores are all exact is right: what is not on it has less.
    bool score_exactly(std::span<const Index> rows) {
        bool any = false;
        if (options_.rule != Rule::greedy) return any;
        for (const Index i : rows) {
            if (source_.is_exact(i)) continue;
            score_exactly(i, source_.correlation(i));
            any = true;
        }
        return any;
    }

    // Takes the candidate if it really helps; bars it until the next accepted pick if not.
    bool accept(const Best& best) {
        if (refit_.add(describe(best.index, best.correlation)) != Outcome::improved) {
            source_.mark(best.index, Mark::barred);
            return false;
        }
        const double before = solution_.objective;
        extend_path(best.index);
        take(best.index, refit_.last_gain());
        settle(solution_.objective > before);
        return true;
    }

    // The same for a candidate that is taken even if it does not help.
    void accept_whatever(const Best& best) {
        const double before = solution_.objective;
        take_whatever(describe(best.index, best.correlation));
        settle(solution_.objective > before);
    }

    // A row that does not help, or cannot enter, becomes a member with weight zero.
    void take_whatever(const Refit::Member& member) {
        if (refit_.add(member) != Outcome::improved) refit_.add_idle(member);
        extend_path(member.id);
        take(member.id, refit_.last_gain());
    }

    void add_filler(Index i) {
        take(i, 0.0);
        solution_.residual_norms.push_back(residual_norm_);
        ++solution_.n_filled;
    }

    Refit::Member describe(Index i, std::optional<double> correlation) {
        return describe_member(source_, refit_, i, correlation, row_);
    }

    void take(Index i, double gain) {
        matroid_.take(i);
        source_.mark(i, Mark::selected);
        solution_.indices.push_back(i);
        solution_.gains.push_back(gain);
        solution_.objective += gain;
    }

    // After the weights changed: zero members may go, the residual follows, whoever was barred may try again. Members
    // go only when the objective grew in float64: it cannot do so for ever, so the loop ends.
    void settle(bool grew) {
        source_.clear_barred();
        if (options_.release_zeros && grew) release_zeros();
        residual_norm_ = source_.set_weights(refit_.ids(), refit_.weights(), refit_.current_scale());
        solution_.residual_norms.resize(solution_.indices.size(), residual_norm_);
    }

    void release_zeros() {
        std::size_t kept = 0, kept_norms = 0;              // the member that came last has no residual norm yet
        for (std::size_t m = 0; m < refit_.size(); ++m) {  // members and solution stand in the same order until `fill`
            if (!refit_.is_active(m)) {
                matroid_.give_back(refit_.ids()[m]);
                source_.mark(refit_.ids()[m], Mark::none);
                continue;
            }
            solution_.indices[kept] = solution_.indices[m];
            solution_.gains[kept] = solution_.gains[m];
            if (m < solution_.residual_norms.size())
                solution_.residual_norms[kept_norms++] = solution_.residual_norms[m];
            ++kept;
        }
        if (kept == refit_.size()) return;
        solution_.residual_norms.resize(kept_norms);
        solution_.indices.resize(kept);
        solution_.gains.resize(kept);
        refit_.remove_idle();
    }

    // rule = greedy scores by Schur complements given the members so far. Members that left (release_zeros) stay in
    // this factor: a larger one only loosens the bound it gives.
    void extend_path(Index i) {
        if (options_.rule != Rule::greedy) return;
        row_.resize(path_members_.size());
        source_.gram_row(i, path_members_, row_);
        if (!path_.append(row_, source_.diagonal(i))) return;
        path_members_.push_back(i);
        const auto l = path_.row(path_.size() - 1);
        source_.deflate(i, l.first(l.size() - 1), l.back());
    }

    bool tell(Index i) {
        return monitor_.picked({static_cast<Index>(solution_.indices.size()), rank_, i, solution_.gains.back(),
                                solution_.objective, residual_norm_});
    }

    S& source_;
    PartitionMatroid matroid_;
    Options options_;
    Monitor& monitor_;
    Refit refit_;
    GrowingCholesky path_;
    std::vector<Index> path_members_;
    Ask ask_;
    std::vector<double> row_;
    Solution solution_;
    double residual_norm_ = kUnknown;
    Index rank_ = 0;
    std::uint64_t n_draws_ = 0;
};

// The value, the weights and (if asked) all gains of distinct members that somebody else chose, in any order.
template <Source S>
Evaluation evaluate_support(S& source, Index n, std::span<const Index> members, bool nonneg, bool with_gains,
                            Monitor& monitor) {
    Refit refit(refit_settings(source, nonneg));
    std::vector<double> row;
    const auto describe = [&](Index i, std::optional<double> correlation) {
        if (monitor.interrupted()) throw Interrupted();
        return describe_member(source, refit, i, correlation, row);
    };
    for (const Index i : members) {
        const Refit::Member member = describe(i, std::nullopt);
        if (refit.add(member) != Refit::Outcome::improved) refit.add_idle(member);
    }
    Evaluation result;
    source.set_weights(members, refit.weights(), refit.current_scale());
    result.objective = refine_value(source, refit);
    result.residual_norm = source.set_weights(members, refit.weights(), refit.current_scale());
    result.weights.assign(refit.weights().begin(), refit.weights().end());
    if (!with_gains) return result;

    std::vector<Index> others;
    std::vector<char> inside(static_cast<std::size_t>(n), 0);
    for (const Index i : members) inside[static_cast<std::size_t>(i)] = 1;
    for (Index i = 0; i < n; ++i)
        if (!inside[static_cast<std::size_t>(i)]) others.push_back(i);
    std::vector<double> g(others.size());
    source.correlations(others, g);
    result.gains.assign(static_cast<std::size_t>(n), 0.0);
    for (std::size_t j = 0; j < others.size(); ++j) {
        Refit::Outcome outcome{};
        const double gain = refit.trial_gain(describe(others[j], g[j]), outcome);
        if (outcome == Refit::Outcome::improved && gain > 0.0) result.gains[static_cast<std::size_t>(others[j])] = gain;
    }
    return result;
}

}  // namespace pysubmod
