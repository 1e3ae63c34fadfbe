// The weights of a growing support, exactly: max <w, c> - 1/2 w' C w over w on S, free or w >= 0.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "pysubmod/error.hpp"
#include "pysubmod/growing_cholesky.hpp"
#include "pysubmod/types.hpp"

namespace pysubmod {

// Members enter one at a time and are never reordered. The *active* members are those in the Cholesky factor; all
// others have weight zero. With w >= 0 this is the active set method of Lawson and Hanson (Solving Least Squares
// Problems, 1974, ch. 23) on the factor, started from the weights before: a member enters by `append`, leaves by Givens
// rotations. It ends at the exact optimum; there is no step size and no number of iterations to choose.
class Refit {
  public:
    struct Settings {
        bool nonneg = true;
        double scale = 1.0;  // E_0 of docs/design.md: the size of the problem before anything is selected
        double rank_tolerance = kRankTolerance;
        bool in_range = true;  // c = G t exactly, so that no direction can be unbounded
        // Optional: the Schur complement of a row from the rows themselves, ||g_i - sum_j x_j g_j||^2 + ridge (1 +
        // ||x||^2). Where little of a row is left, the factor's own value is mostly rounding, and near-dependent rows
        // amplify it.
        std::function<double(Index i, std::span<const Index> members, std::span<const double> x)> schur_from_rows = {};
    };
    // What is known about a new member: its row of C against the members so far, its diagonal, linear term and
    // correlation at the present weights.
    struct Member {
        Index id;
        std::span<const double> c_row;
        double c_ii;
        double linear;
        double correlation;
    };
    enum class Outcome { improved, no_gain, dependent };

    explicit Refit(const Settings& settings) : settings_(settings), factor_(settings.rank_tolerance) {}

    std::size_t size() const { return ids_.size(); }
    std::span<const Index> ids() const { return ids_; }
    std::span<const double> weights() const { return w_; }
    bool is_active(std::size_t m) const { return place_[m] != kInactive; }
    double last_gain() const { return gain_; }

    // E of docs/design.md, the unit of every tolerance: the size of the numbers that a correlation is the difference
    // of.
    double current_scale() const {
        double terms = 0.0;
        for (std::size_t m = 0; m < size(); ++m) terms += std::abs(w_[m]) * root_[m];
        return std::max(settings_.scale, terms);
    }

    // Adds a member and moves to the new optimum. If that gains nothing (`no_gain`, `dependent`) the member is not kept
    // and nothing changes. With free weights an independent member is always kept: it may matter after the next one.
    // Throws Unbounded if the objective has no maximum.
    Outcome add(const Member& member) {
        const Outcome outcome = attempt(member);
        if (outcome == Outcome::improved)
            accept();
        else
            take_back();
        return outcome;
    }

    // Keeps a member with weight zero, whatever it might gain.
    void add_idle(const Member& member) { push(member); }

    // The gain that `add` would have; what it changes is taken back.
    double trial_gain(const Member& member, Outcome& outcome) {
        const double last = gain_;
        outcome = attempt(member);
        const double gain = outcome == Outcome::improved ? gain_ : 0.0;
        take_back();
        gain_ = last;
        return gain;
    }

    // Corrected seminormal equations: `g` is the true gradient at the present weights, formed from the rows and not
    // from the normal equations; one step C_PP^-1 g_P brings the weights to the accuracy of an orthogonal
    // factorisation (Bjorck 1987). Returns the objective that is gained. A step out of w >= 0 is not taken.
    double refine(std::span<const double> g) {
        target_.resize(active_.size());
        for (std::size_t p = 0; p < active_.size(); ++p) target_[p] = g[active_[p]];
        factor_.solve(target_);
        double gained = 0.0;
        for (std::size_t p = 0; p < active_.size(); ++p) {
            if (settings_.nonneg && w_[active_[p]] + target_[p] < 0.0) return 0.0;
            gained += 0.5 * g[active_[p]] * target_[p];
        }
        for (std::size_t p = 0; p < active_.size(); ++p) w_[active_[p]] += target_[p];
        return gained;
    }

    // The objective, 1/2 <w, c>.
    double value() const { return 0.5 * dot(w_.data(), c_.data(), size()); }

    // Forgets member m and moves to the optimum of the others, whose order stays.
    void remove(std::size_t m) {
        const bool was_active = is_active(m);
        begin();
        if (was_active) deactivate(m);
        std::vector<std::size_t> kept;
        for (std::size_t a = 0; a < size(); ++a)
            if (a != m) kept.push_back(a);
        keep(kept);
        if (!was_active) return;
        if (!settings_.nonneg)  // members that depended on it
            for (std::size_t a = 0; a < size(); ++a)
                if (!is_active(a)) activate(a);
        set_target();
        climb_to_target();
        update_correlations();
        if (settings_.nonneg) let_idle_members_enter();
    }

    // Forgets every member that is not active; the order of the others stays.
    void remove_idle() {
        std::vector<std::size_t> kept;
        for (std::size_t m = 0; m < size(); ++m)
            if (is_active(m)) kept.push_back(m);
        keep(kept);
    }

  private:
    static constexpr std::size_t kInactive = static_cast<std::size_t>(-1);
    static constexpr double kTrustedShare = 1e-3;  // of the diagonal: a larger Schur complement is right to many digits

    // Forgets all other members, none of which is active.
    void keep(const std::vector<std::size_t>& kept) {
        std::vector<double> gram;
        for (std::size_t a = 0; a < kept.size(); ++a)
            for (std::size_t b = 0; b <= a; ++b) gram.push_back(entry(kept[a], kept[b]));
        gram_ = std::move(gram);
        for (std::size_t a = 0; a < kept.size(); ++a) {
            const std::size_t m = kept[a];
            ids_[a] = ids_[m], c_[a] = c_[m], w_[a] = w_[m], g_[a] = g_[m], root_[a] = root_[m], place_[a] = place_[m];
            if (place_[a] != kInactive) active_[place_[a]] = a;
        }
        for (auto* list : {&c_, &w_, &g_, &root_}) list->resize(kept.size());
        ids_.resize(kept.size());
        place_.resize(kept.size());
    }

    double entry(std::size_t a, std::size_t b) const {
        return a >= b ? gram_[a * (a + 1) / 2 + b] : gram_[b * (b + 1) / 2 + a];
    }
    double diagonal(std::size_t m) const { return entry(m, m); }
    double unit(std::size_t m) const { return scale_ * root_[m]; }
    double height(std::size_t m) const { return settings_.nonneg ? g_[m] : std::abs(g_[m]); }
    bool helps(std::size_t m) const { return height(m) > kScoreTolerance * unit(m); }

    // More than rounding makes of two like rows that trade places. An entry without a trade gains at least g_m w_m / 2.
    bool gains(std::size_t m, double gain) const { return gain > 0.5 * kScoreTolerance * unit(m) * std::abs(w_[m]); }

    // Rows are read in place: a caller that writes to them during a solve must get an error, not an endless loop.
    static void check_finite(double x, Index id) {
        if (std::isfinite(x)) return;
        throw InvalidArgument("G: row " + std::to_string(id) +
                              " is no longer finite; it must not change during a solve");
    }

    void push(const Member& member) {
        check_finite(member.correlation, member.id);
        for (const double x : member.c_row) check_finite(x, member.id);
        gram_.insert(gram_.end(), member.c_row.begin(), member.c_row.end());
        gram_.push_back(member.c_ii);
        ids_.push_back(member.id);
        c_.push_back(member.linear);
        g_.push_back(member.correlation);
        w_.push_back(0.0);
        root_.push_back(std::sqrt(member.c_ii));
        place_.push_back(kInactive);
    }
    void pop() {
        gram_.resize(gram_.size() - size());
        for (auto* list : {&c_, &w_, &g_, &root_}) list->pop_back();
        ids_.pop_back();
        place_.pop_back();
    }

    // ---- undo ----

    // What a refit may have to go back to. Until a row is dropped the factor only grows, so its size says all; before
    // the first drop, which most refits come without, it is copied.
    struct State {
        std::vector<double> w, g, forward;
        std::vector<std::size_t> active;
        std::optional<GrowingCholesky> factor;
    };

    void begin() {
        scale_ = current_scale();
        n_remembered_ = 0;  // Unbounded may have left some
    }
    void remember() {
        State& state = remembered_[n_remembered_++];
        copy_into(state.w, w_);
        copy_into(state.g, g_);
        copy_into(state.forward, forward_);
        copy_into(state.active, active_);
        state.factor.reset();
    }
    const State& last_remembered() const { return remembered_[n_remembered_ - 1]; }
    void accept() { remembered_[--n_remembered_].factor.reset(); }
    void go_back() {
        State& state = remembered_[--n_remembered_];
        for (const std::size_t m : active_) place_[m] = kInactive;
        w_.swap(state.w), g_.swap(state.g), forward_.swap(state.forward), active_.swap(state.active);
        for (std::size_t p = 0; p < active_.size(); ++p) place_[active_[p]] = p;
        if (state.factor) factor_ = *std::move(state.factor);
        factor_.shrink(active_.size());
    }
    void before_drop() {  // where a state has its copy, the one around it has too
        for (std::size_t s = n_remembered_; s-- > 0 && !remembered_[s].factor;) remembered_[s].factor = factor_;
    }

    // Adds a member and remembers the state with it but at the weights before.
    Outcome attempt(const Member& member) {
        begin();
        push(member);
        remember();
        const std::size_t m = size() - 1;
        if (settings_.nonneg && !helps(m)) return Outcome::no_gain;
        const Outcome outcome = enter(m);
        if (outcome != Outcome::improved) return outcome;
        update_correlations();
        if (settings_.nonneg) let_idle_members_enter();
        gain_ = gain_since(last_remembered());
        return !settings_.nonneg || gains(m, gain_) ? Outcome::improved : Outcome::no_gain;
    }
    void take_back() {
        go_back();
        pop();
        gain_ = 0.0;
    }

    // ---- the active set ----

    bool activate(std::size_t m) {
        column_.resize(active_.size());
        for (std::size_t p = 0; p < active_.size(); ++p) column_[p] = entry(m, active_[p]);
        const auto confirm = [&](double schur) {
            return schur < kTrustedShare * diagonal(m) && settings_.schur_from_rows ? schur_from_rows(m) : schur;
        };
        if (!factor_.append(column_, diagonal(m), confirm)) return false;
        place_[m] = active_.size();
        active_.push_back(m);
        const auto row = factor_.row(place_[m]);
        forward_.push_back((c_[m] - dot(row.data(), forward_.data(), place_[m])) / row[place_[m]]);
        return true;
    }
    double schur_from_rows(std::size_t m) const {
        std::vector<double> x(column_);
        factor_.solve(x);
        std::vector<Index> members;
        for (const std::size_t a : active_) members.push_back(ids_[a]);
        return settings_.schur_from_rows(ids_[m], members, x);
    }

    void deactivate(std::size_t m) {
        const std::size_t place = place_[m];
        before_drop();
        factor_.drop(place);
        active_.erase(active_.begin() + static_cast<std::ptrdiff_t>(place));
        for (std::size_t p = place; p < active_.size(); ++p) place_[active_[p]] = p;
        place_[m] = kInactive;
        w_[m] = 0.0;
        forward_.resize(active_.size());
        for (std::size_t p = place; p < active_.size(); ++p) {  // L^-1 c is unchanged above the dropped row
            const auto row = factor_.row(p);
            forward_[p] = (c_[active_[p]] - dot(row.data(), forward_.data(), p)) / row[p];
        }
    }

    // Brings member m, with w_m = 0, into the factor and climbs to the optimum over the active members. A dependent
    // member may trade places with an active one. Unless it improves, what is left behind is for the caller to undo.
    Outcome enter(std::size_t m) {
        bool fresh = true;
        if (!activate(m)) {
            if (!follow_ray(m)) {
                if (may_be_unbounded(m)) throw_unbounded(m);
                return Outcome::dependent;
            }
            fresh = false;
        }
        set_target();
        if (fresh && settings_.nonneg && !(target_[place_[m]] > 0.0)) return Outcome::no_gain;
        climb_to_target();
        return Outcome::improved;
    }

    // The optimum over the active members, signs apart.
    void set_target() {
        copy_into(target_, forward_);
        factor_.solve_upper(target_);
    }

    void climb_to_target() {
        while (settings_.nonneg && step_towards_target()) set_target();
        for (std::size_t p = 0; p < active_.size(); ++p) w_[active_[p]] = target_[p];
    }

    // Moves w towards `target_` until the first active member reaches zero and drops it; false if none does.
    bool step_towards_target() {
        double share = 1.0;
        bool blocked = false;
        for (std::size_t p = 0; p < active_.size(); ++p) {
            if (target_[p] > 0.0) continue;
            const double w = w_[active_[p]];
            share = std::min(share, w > 0.0 ? w / (w - target_[p]) : 0.0);
            blocked = true;
        }
        if (!blocked) return false;
        const std::size_t before = active_.size();
        for (std::size_t p = before; p-- > 0;) {
            const std::size_t m = active_[p];
            const double w = w_[m];
            const bool reaches_zero = target_[p] <= 0.0 && !(w > 0.0 && w / (w - target_[p]) > share);
            if (reaches_zero)
                deactivate(m);
            else
                w_[m] = w + share * (target_[p] - w);
        }
        if (active_.size() == before) check_finite(kUnknown, ids_.back());  // only a NaN drops nobody
        return true;
    }

    // Along a dependent member m the objective rises without bending: w_P - a v, w_m = a with v = C_PP^-1 C_Pm. With
    // w >= 0 the ray ends where an active member reaches zero; that one leaves, and m may be independent of the rest.
    // False if a ray has no end.
    bool follow_ray(std::size_t m) {
        if (!settings_.nonneg) return false;
        const double root = root_[m];
        do {
            target_.resize(active_.size());
            for (std::size_t p = 0; p < active_.size(); ++p) target_[p] = entry(m, active_[p]);
            factor_.solve(target_);
            double length = std::numeric_limits<double>::infinity();
            std::size_t blocking = kInactive;
            bool ends = false;
            for (std::size_t p = 0; p < active_.size(); ++p) {
                const double slope = target_[p];
                if (!(slope > 0.0)) continue;
                ends = ends || slope * root_[active_[p]] > std::sqrt(settings_.rank_tolerance) * root;
                const double reach = w_[active_[p]] / slope;
                if (reach < length) blocking = active_[p], length = reach;
            }
            if (!ends || blocking == kInactive) return false;
            for (std::size_t p = 0; p < active_.size(); ++p) {
                double& w = w_[active_[p]];
                w = std::max(0.0, w - length * target_[p]);
            }
            w_[m] += length;
            deactivate(blocking);
        } while (!activate(m));
        return true;
    }

    bool may_be_unbounded(std::size_t m) const {
        return !settings_.in_range && height(m) > 10.0 * std::sqrt(settings_.rank_tolerance) * unit(m);
    }
    [[noreturn]] void throw_unbounded(std::size_t m) const {
        throw Unbounded(
            "the objective is unbounded: row " + std::to_string(ids_[m]) +
            " depends linearly on rows already selected, but the linear term (c, or the tilt) rewards it all "
            "the same; pass ridge > 0, or tilt = 0 with c = G t");
    }

    // KKT: while an idle member has a positive multiplier, let the steepest one enter. In exact arithmetic no active
    // set comes twice; when rounding makes one come back, the multipliers left are noise and the search is over.
    void let_idle_members_enter() {
        if (active_.size() == size()) return;
        std::vector<std::uint64_t> seen = {active_set_signature()};
        std::vector<char> skipped(size(), 0);
        for (;;) {
            const std::size_t m = steepest_idle(skipped);
            if (m == kInactive) return;
            remember();
            bool better = enter(m) == Outcome::improved;
            if (better) {
                update_correlations();
                better = gains(m, gain_since(last_remembered()));
            }
            if (!better) {
                go_back();
                skipped[m] = 1;
                continue;
            }
            accept();
            const std::uint64_t signature = active_set_signature();
            if (std::find(seen.begin(), seen.end(), signature) != seen.end()) return;
            seen.push_back(signature);
        }
    }

    // Among idle members that help, the largest g_m / sqrt(C_mm); the first of those that rounding cannot tell apart.
    std::size_t steepest_idle(const std::vector<char>& skipped) const {
        const auto slope = [&](std::size_t m) {
            return is_active(m) || skipped[m] || !helps(m) ? 0.0 : g_[m] / root_[m];
        };
        double best = 0.0;
        for (std::size_t m = 0; m < size(); ++m) best = std::max(best, slope(m));
        if (best == 0.0) return kInactive;
        for (std::size_t m = 0; m < size(); ++m)
            if (slope(m) > 0.0 && slope(m) >= best - 2.0 * kScoreTolerance * scale_) return m;
        return kInactive;
    }

    // g = c - C w; exactly zero for active members.
    void update_correlations() {
        for (std::size_t m = 0; m < size(); ++m) {
            g_[m] = is_active(m) ? 0.0 : c_[m];
            if (is_active(m) || !settings_.nonneg) continue;  // idle members with free weights stay idle for ever
            for (const std::size_t a : active_) g_[m] -= entry(m, a) * w_[a];
        }
    }

    std::uint64_t active_set_signature() const {
        std::uint64_t signature = 0;
        for (const std::size_t m : active_) {  // splitmix64 of each member, combined in any order
            std::uint64_t z = (static_cast<std::uint64_t>(m) + 1) * 0x9e3779b97f4a7c15ULL;
            z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
            z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
            signature += z ^ (z >> 31);
        }
        return signature;
    }

    // 1/2 sum (g_old + g_new)(w_new - w_old): for a member that stays active both correlations are an exact zero, so
    // nothing cancels however small the gain.
    double gain_since(const State& before) const {
        double gain = 0.0;
        for (std::size_t m = 0; m < size(); ++m) gain += 0.5 * (before.g[m] + g_[m]) * (w_[m] - before.w[m]);
        return gain;
    }

    Settings settings_;
    GrowingCholesky factor_;
    // By member, in the order they came.
    std::vector<Index> ids_;
    std::vector<double> gram_;  // packed lower triangle of C_SS
    std::vector<double> c_, w_;
    std::vector<double> g_;     // correlations: zero when active, as of the last refit when idle
    std::vector<double> root_;  // sqrt(C_mm)
    std::vector<std::size_t> place_;
    // By place in the factor.
    std::vector<std::size_t> active_;
    std::vector<double> forward_;  // L^-1 c_P
    std::vector<double> target_, column_;
    std::array<State, 2> remembered_;  // of the member that is added, of the idle one that enters
    std::size_t n_remembered_ = 0;
    double gain_ = 0.0;
    double scale_ = 0.0;  // current_scale() when the refit at hand began
};

}  // namespace pysubmod
