// From any selection to one that no single swap improves. The specification is docs/design.md, section 2.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "pysubmod/pursuit.hpp"
#include "pysubmod/refit.hpp"
#include "pysubmod/source.hpp"
#include "pysubmod/swap_rows.hpp"
#include "pysubmod/swap_table.hpp"

namespace pysubmod {

struct SwapResult {
    std::vector<Index> members;  // those that stayed in their old order, then those that came in
    Index n_swaps = 0;
    bool local_optimum = false;
    bool stopped = false;  // by the monitor
};

// Screens all swaps in closed form, verifies the best by an exact refit, takes the first that improves. The weights
// are those of the refit throughout; the table only screens, and is made afresh before its verdict is final.
template <Source S>
class SwapSearch {
  public:
    // The source must be as new (`restart`). With may_add = false the selection keeps its size.
    SwapSearch(S& source, PartitionMatroid matroid, const Options& options, bool may_add, Monitor& monitor,
               std::span<const Index> start)
        : source_(source),
          matroid_(std::move(matroid)),
          options_(options),
          may_add_(may_add),
          monitor_(monitor),
          rank_(matroid_.rank()),
          inside_(flags(matroid_.size(), start)),
          is_filler_(inside_.size(), 0),
          rows_(matroid_, inside_),
          columns_(source, rows_),
          refit_(refit_settings(source, options.nonneg)),
          table_(empty_table()) {
        for (std::size_t r = 0; r < rows_.size(); ++r) linear_.push_back(source_.linear(rows_[r]));
        columns_.read(start);
        for (const Index i : start) add_member(i);
        value_ = refit_.value();
        follow();
    }

    SwapResult run() {
        while (result_.n_swaps != options_.max_swaps && !result_.stopped) {
            if (improve(table_, {})) continue;
            if (n_changes_ > 0) {
                refresh();
                continue;
            }
            if (fill_up()) continue;
            if (!improve_with_idle()) {
                result_.local_optimum = true;
                break;
            }
        }
        for (std::size_t m = 0; m < refit_.size(); ++m)
            if (refit_.is_active(m) || !is_filler_[at(refit_.ids()[m])]) result_.members.push_back(refit_.ids()[m]);
        return std::move(result_);
    }

  private:
    static constexpr Index kNobody = -1;
    static constexpr int kChangesBetweenRefreshes = 100;
    static constexpr std::size_t kColumnsAtOnce = 8;
    static constexpr double kGainsAlike = 1e-9;

    struct Swap {
        double gain;  // in closed form
        Index in, out;
    };

    static std::size_t at(Index i) { return static_cast<std::size_t>(i); }
    double threshold() const { return options_.swap_tol * value_; }

    static std::vector<char> flags(Index n, std::span<const Index> rows) {
        std::vector<char> flags(at(n), 0);
        for (const Index i : rows) flags[at(i)] = 1;
        return flags;
    }

    SwapTable empty_table() {
        std::vector<double> diagonal;
        std::vector<SwapTable::Range> groups;
        for (std::size_t r = 0; r < rows_.size(); ++r) {
            diagonal.push_back(source_.diagonal(rows_[r]));
            groups.push_back(rows_.group(matroid_.group(rows_[r])));
        }
        return {std::move(diagonal), std::move(groups),
                [this](auto a, auto xs, auto y) { source_.subtract(a, xs, y); }};
    }

    void add_member(Index i) {
        if (monitor_.interrupted()) throw Interrupted();
        const Refit::Member member = describe(refit_, i);
        if (refit_.add(member) != Refit::Outcome::improved) refit_.add_idle(member);
        matroid_.take(i);
        inside_[at(i)] = 1;
    }

    // What a refit asks about row i, whose column is at hand.
    Refit::Member describe(const Refit& refit, Index i) {
        const std::vector<double>& column = columns_[i];
        c_row_.clear();
        for (const Index member : refit.ids()) c_row_.push_back(column[rows_.place_of(member)]);
        const double c = source_.linear(i);
        return {i, c_row_, source_.diagonal(i), c, c - dot(c_row_.data(), refit.weights().data(), c_row_.size())};
    }

    // ---- the table follows the refit ----

    void follow() {
        std::vector<char> wanted(rows_.size(), 0);
        for (std::size_t m = 0; m < refit_.size(); ++m)
            if (refit_.is_active(m)) wanted[rows_.place_of(refit_.ids()[m])] = 1;
        const bool fresh = table_.size() == 0 && n_changes_ == 0;
        for (std::size_t m = table_.size(); m-- > 0;) {
            if (wanted[table_.members()[m]])
                wanted[table_.members()[m]] = 0;
            else
                table_.drop(m), ++n_changes_;
        }
        std::vector<Index> entering;
        for (const Index i : refit_.ids())
            if (wanted[rows_.place_of(i)]) entering.push_back(i);
        require_columns(entering);
        for (const Index i : entering) table_.add(rows_.place_of(i), columns_.take(i), source_.rank_tolerance());
        if (!fresh) n_changes_ += static_cast<int>(entering.size());
        if (n_changes_ >= kChangesBetweenRefreshes)
            refresh();
        else
            update_correlations();
    }

    // Reads the columns that are not at hand. Where this costs a pass over the data, those of the rows that are likely
    // to come next are read with them.
    void require_columns(std::span<const Index> members) {
        std::vector<Index> missing;
        for (const Index i : members)
            if (!columns_.has(i)) missing.push_back(i);
        if (missing.empty()) return;
        std::sort(swaps_.begin(), swaps_.end(), [](const Swap& a, const Swap& b) {
            return std::tuple(-a.gain, a.in, a.out) < std::tuple(-b.gain, b.in, b.out);
        });
        for (const Swap& swap : swaps_) {
            if (!source_.has_rows() || missing.size() % kColumnsAtOnce == 0) break;
            if (!columns_.has(swap.in) && std::find(missing.begin(), missing.end(), swap.in) == missing.end())
                missing.push_back(swap.in);
        }
        columns_.read(missing);
    }

    void refresh() {
        table_.rebuild(source_.rank_tolerance());
        n_changes_ = 0;
        update_correlations();
    }

    void update_correlations() {
        weight_of_row_.assign(rows_.size(), 0.0);
        for (std::size_t m = 0; m < refit_.size(); ++m)
            weight_of_row_[rows_.place_of(refit_.ids()[m])] = refit_.weights()[m];
        std::vector<double> w;
        for (const std::size_t row : table_.members()) w.push_back(weight_of_row_[row]);
        g_ = table_.correlations(linear_, w);
    }

    // ---- which swaps there are ----

    // The member that has to leave for row i to come and no active one to go; kNobody where there is budget left;
    // nothing where there is none.
    std::optional<Index> place_for(std::int32_t group) const {
        if (may_add_ && matroid_.budget_left(group) > 0) return kNobody;
        for (std::size_t m = 0; m < refit_.size(); ++m)
            if (!refit_.is_active(m) && matroid_.group(refit_.ids()[m]) == group) return refit_.ids()[m];
        return std::nullopt;
    }

    // What may replace a member at no loss, by member of the table; empty where the table says the truth of all.
    using Replaceable = std::vector<char>;

    // Swaps that may gain more than the tolerance. What an active member makes way for gains by the closed form of a
    // drop and an addition; where a place costs nothing, that of an addition. Where budget is left only additions
    // count: f never falls when a member stays.
    std::vector<Swap> screen(const SwapTable& table, const Replaceable& replaceable) const {
        std::vector<Swap> swaps;
        const auto n_groups = static_cast<std::int32_t>(matroid_.n_groups());
        for (std::int32_t p = 0; p < n_groups; ++p) {
            if (const std::optional<Index> place = place_for(p)) screen_additions(table, p, *place, swaps);
        }
        for (std::size_t m = 0; m < table.size(); ++m) {
            const Index out = rows_[table.members()[m]];
            if (may_add_ && matroid_.has_budget(out)) continue;
            if (!replaceable.empty() && replaceable[m])
                screen_additions(table, matroid_.group(out), out, swaps);
            else
                screen_member(table, m, swaps);
        }
        return swaps;
    }

    bool may_enter(std::size_t row) const { return !inside_[at(rows_[row])] && matroid_.is_candidate(rows_[row]); }

    void screen_additions(const SwapTable& table, std::int32_t group, Index place, std::vector<Swap>& swaps) const {
        for (std::size_t r = rows_.group(group).begin; r < rows_.group(group).end; ++r)
            propose(table, r, place, g_[r], table.schur(r), 0.0, swaps);
    }

    void screen_member(const SwapTable& table, std::size_t m, std::vector<Swap>& swaps) const {
        const std::size_t row = table.members()[m];
        const double p = table.inverse_diagonal(m), w = weight_of_row_[row];
        const double loss = 0.5 * w * w / p;
        for (std::size_t r = table.group(m).begin; r < table.group(m).end; ++r) {
            const double h = table.coefficient(r, m);
            propose(table, r, rows_[row], g_[r] + w / p * h, table.schur(r) + h * h / p, loss, swaps);
        }
    }

    // Row r comes with correlation g and Schur complement s once `out` is gone, which loses `loss`.
    void propose(const SwapTable& table, std::size_t r, Index out, double g, double s, double loss,
                 std::vector<Swap>& swaps) const {
        if (options_.nonneg && !(g > 0.0)) return;
        if (!(0.5 * g * g > (loss + threshold()) * s) || !may_enter(r)) return;
        if (s > source_.rank_tolerance() * table.diagonal(r))
            swaps.push_back({0.5 * g * g / s - loss, rows_[r], out});
        else if (&table != &table_ && std::abs(g) > kScoreTolerance * scale_ * std::sqrt(table.diagonal(r)))
            swaps.push_back({std::numeric_limits<double>::infinity(), rows_[r], out});
    }

    // The table of the active members knows nothing of the idle ones, which may take the place of what leaves, or help
    // what comes. Were they free of w >= 0, every swap would gain at least as much: a table of all members gives upper
    // bounds, and the refit of those above the tolerance is the last word. A member on which idle ones depend linearly
    // may be replaced by them; then the swap gains no more than an addition would.
    bool improve_with_idle() {
        std::vector<Index> idle;
        for (std::size_t m = 0; m < refit_.size(); ++m)
            if (!refit_.is_active(m)) idle.push_back(refit_.ids()[m]);
        if (idle.empty()) return false;
        SwapTable all = table_;
        require_columns(idle);
        std::vector<std::size_t> dependent;
        for (const Index i : idle) {
            const std::size_t row = rows_.place_of(i);
            if (all.schur(row) > source_.rank_tolerance() * all.diagonal(row))
                all.add(row, columns_[i], source_.rank_tolerance());
            else
                dependent.push_back(row);
        }
        Replaceable replaceable(all.size(), 0);
        for (const std::size_t row : dependent) {
            const std::vector<double> h = all.coefficients_of(row);
            for (std::size_t m = 0; m < all.size(); ++m)
                if (std::abs(h[m]) * std::sqrt(all.diagonal(all.members()[m])) >
                    std::sqrt(source_.rank_tolerance() * all.diagonal(row)))
                    replaceable[m] = 1;
        }
        return improve(all, replaceable);
    }

    // Budget that is left is filled with the steepest rows, though nobody gains by them: what a swap takes away they
    // may be able to replace. At most as many as there are members, or one a group; once. True if there were any.
    bool fill_up() {
        std::vector<Index> fillers;
        const std::size_t most = 1 + refit_.size() / std::max<std::size_t>(1, at(matroid_.n_groups()));
        const auto slope = [&](Index i) {
            const std::size_t r = rows_.place_of(i);
            const double height = options_.nonneg ? g_[r] : std::abs(g_[r]);
            return table_.diagonal(r) > 0.0 ? height / std::sqrt(table_.diagonal(r)) : 0.0;
        };
        for (std::int32_t p = 0; may_add_ && !filled_up_ && p < static_cast<std::int32_t>(matroid_.n_groups()); ++p) {
            const std::size_t left = std::min(most, at(matroid_.budget_left(p)));
            std::vector<Index> open;
            for (std::size_t r = rows_.group(p).begin; left > 0 && r < rows_.group(p).end; ++r)
                if (may_enter(r)) open.push_back(rows_[r]);
            std::stable_sort(open.begin(), open.end(), [&](Index a, Index b) { return slope(a) > slope(b); });
            open.resize(std::min(open.size(), left));
            fillers.insert(fillers.end(), open.begin(), open.end());
        }
        filled_up_ = true;
        if (fillers.empty()) return false;
        columns_.read(fillers);
        for (const Index i : fillers) {
            add_member(i);
            is_filler_[at(i)] = 1;
        }
        value_ = refit_.value();
        follow();
        return true;
    }

    // ---- taking one ----

    // Takes the best swap that a refit confirms; false if there is none. Of gains that rounding cannot tell apart the
    // lowest (in, out) goes first.
    bool improve(const SwapTable& table, const Replaceable& replaceable) {
        scale_ = refit_.current_scale();
        swaps_ = screen(table, replaceable);
        while (!swaps_.empty()) {
            if (monitor_.interrupted()) throw Interrupted();
            double best = 0.0;
            for (const Swap& swap : swaps_) best = std::max(best, swap.gain);
            auto first = swaps_.end();
            for (auto swap = swaps_.begin(); swap != swaps_.end(); ++swap)
                if (swap->gain >= best * (1.0 - kGainsAlike) &&
                    (first == swaps_.end() || std::pair(swap->in, swap->out) < std::pair(first->in, first->out)))
                    first = swap;
            const Swap swap = *first;
            *first = swaps_.back();
            swaps_.pop_back();
            if (take(swap)) return true;
        }
        return false;
    }

    bool take(const Swap& swap) {
        if (columns_.size() > 2 * refit_.size() + kColumnsAtOnce) columns_.clear();
        require_columns(std::span(&swap.in, 1));
        Refit trial(refit_);
        if (swap.out != kNobody) {
            const auto ids = trial.ids();
            trial.remove(static_cast<std::size_t>(std::find(ids.begin(), ids.end(), swap.out) - ids.begin()));
        }
        if (trial.add(describe(trial, swap.in)) != Refit::Outcome::improved) return false;
        const double value = trial.value();
        if (!(value - value_ > threshold())) return false;
        if (swap.out != kNobody) {
            matroid_.give_back(swap.out);
            inside_[at(swap.out)] = 0;
        }
        matroid_.take(swap.in);
        inside_[at(swap.in)] = 1;
        const double gain = value - std::exchange(value_, value);
        refit_ = std::move(trial);
        ++result_.n_swaps;
        follow();
        result_.stopped = monitor_.picked({static_cast<Index>(refit_.size()), rank_, swap.in, gain, value_, kUnknown});
        return true;
    }

    S& source_;
    PartitionMatroid matroid_;
    Options options_;
    bool may_add_;
    Monitor& monitor_;
    Index rank_;
    std::vector<char> inside_, is_filler_;  // by row of the problem
    bool filled_up_ = false;
    GroupedRows rows_;
    ColumnCache<S> columns_;
    Refit refit_;
    SwapTable table_;    // of the active members
    int n_changes_ = 0;  // of the table since it was made
    double value_ = 0.0, scale_ = 0.0;
    std::vector<double> linear_, g_, weight_of_row_;  // by place
    std::vector<double> c_row_;
    std::vector<Swap> swaps_;  // screened, not yet tried
    SwapResult result_;
};

// Goes on from a pursuit's result. The final members enter once more, in their order: gains, residuals and weights are
// then those of a pursuit.
template <Source S>
Solution improve_by_swaps(S& source, const PartitionMatroid& matroid, const Options& options, Solution start,
                          Monitor& monitor) {
    source.restart();
    const bool may_add = start.status != Status::tolerance;
    const SwapResult swaps = SwapSearch(source, matroid, options, may_add, monitor, start.indices).run();
    start.swap_local_optimum = swaps.local_optimum;
    if (swaps.n_swaps == 0) return start;
    source.restart();
    Solution better = Pursuit(source, matroid, options, monitor).run(swaps.members, !swaps.stopped);
    // Near-dependent rows may enter worse in another order: what is returned is never worse than the start.
    start.swap_local_optimum = false;
    if (!(better.objective >= start.objective)) return start;
    better.swap_local_optimum = swaps.local_optimum;
    better.n_swaps = swaps.n_swaps;
    return better;
}

}  // namespace pysubmod
