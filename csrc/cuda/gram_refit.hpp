// The weights of a growing support on the device, exactly: the logic of pysubmod/refit.hpp for a team of threads.
#pragma once

#include <math.h>

#include <limits>

#include "cuda/gram_task.hpp"
#include "cuda/team.hpp"

namespace pysubmod::cuda {

// a[0] b[0] + a[stride] b[1] + ..: four chains of fused products, so that one need not wait for the other.
PYSUBMOD_HD inline double dot_strided(const double* a, int stride, const double* b, int count) {
    double chain[4] = {0.0, 0.0, 0.0, 0.0};
    int j = 0;
    for (; j + 4 <= count; j += 4)
        for (int l = 0; l < 4; ++l) chain[l] = fma(a[(j + l) * stride], b[j + l], chain[l]);
    for (; j < count; ++j) chain[0] = fma(a[j * stride], b[j], chain[0]);
    return (chain[0] + chain[2]) + (chain[1] + chain[3]);
}

inline constexpr double kInfinity = std::numeric_limits<double>::infinity();

enum class Entry { improved, no_gain, dependent };

// Members enter one at a time; the *active* ones are in the factor C_PP = L L'. What is kept is M = L^-1, row by row:
// then a forward substitution is a product with M and a backward one a product with M', both of which a block of
// threads makes in one step, where substitution takes one step for each member. A row of M is -(L^-1 c)' M / rho beside
// 1 / rho. A member leaves by the Givens rotations that turn its column of M into a multiple of the last unit vector.
//
// Every thread calls everything and follows the same branches: what decides is a sum or a number in the block's memory,
// read between barriers.
template <class Team>
class GramRefit {
  public:
    PYSUBMOD_HD GramRefit(Team& team, const GramTask& task, const Members& members, double* factor, double* copies)
        : team_(team), task_(task), m_(members), factor_(factor), copies_(copies), stride_(factor_stride(task.k)) {}

    PYSUBMOD_HD int size() const { return size_; }
    PYSUBMOD_HD int n_active() const { return n_active_; }
    PYSUBMOD_HD double last_gain() const { return gain_; }
    PYSUBMOD_HD Fault fault() const { return fault_; }
    PYSUBMOD_HD int fault_row() const { return fault_row_; }
    // Goes on from members that are in the block's memory.
    PYSUBMOD_HD void restore(int size, int n_active) {
        size_ = size;
        n_active_ = n_active;
        each(team_, n_active_, [&](int p) { show(p); });
    }
    PYSUBMOD_HD void set_first_scale(double scale) { first_scale_ = scale_ = scale; }

    // Of C, for rows of the pool.
    PYSUBMOD_HD double gram_at(int i, int j) const {
        const Index at = static_cast<Index>(i) * task_.gram.stride + j;
        if (task_.gram.storage == Storage::float64) return static_cast<const double*>(task_.gram.data)[at];
        return static_cast<double>(static_cast<const float*>(task_.gram.data)[at]);
    }

    // E of docs/design.md and the squared residual less ||t||^2, at the present weights.
    PYSUBMOD_HD void measure(double& scale, double& squared) {
        const auto [terms, products] = sum_both(
            team_, size_, [&](int m) { return fabs(m_.w[m]) * m_.root[m]; },
            [&](int m) {
                return m_.w[m] * (m_.c[m] - 2.0 * m_.plain[m] - task_.ridge * m_.w[m]);  // w'Cw = w'c at the optimum
            });
        squared = products;
        scale = terms > first_scale_ ? terms : first_scale_;
        scale_ = scale;
    }

    // Adds row i, whose correlation is g, and moves to the new optimum; what it gains is in last_gain. To be followed
    // by accept, which keeps it, or take_back, as if nothing had been. With free weights an independent row always
    // improves: it may matter after the next one.
    PYSUBMOD_HD_INLINE Entry attempt(int i, double g) {
        n_remembered_ = 0;
        push(i, g);
        remember();
        gain_ = 0.0;
        int m = size_ - 1, n_seen = 0;
        if (task_.nonneg && !helps(m)) return Entry::no_gain;
        // Row i enters; then, while a member without weight has a positive multiplier (KKT), the steepest one does. In
        // exact arithmetic no active set comes twice; when rounding makes one come back, the multipliers left are
        // noise.
        for (bool is_new = true; fault_ == Fault::none; is_new = false) {
            if (!is_new) {
                m = steepest_idle();
                if (m == size_) break;
                remember();
            }
            const Entry entry = enter(m);
            if (entry == Entry::improved && task_.nonneg && n_active_ < size_) update_correlations();
            if (is_new && entry != Entry::improved) return entry;
            if (is_new && (!task_.nonneg || n_active_ == size_)) break;
            if (is_new) {
                each(team_, size_, [&](int j) { m_.skipped[j] = 0; });
            } else if (entry != Entry::improved || !gains(m, gain_since(1))) {
                go_back();
                if (team_.rank() == 0) m_.skipped[m] = 1;
                team_.sync();
                continue;
            } else {
                accept();
            }
            if (!see(n_seen++)) break;
        }
        gain_ = gain_since(0);
        if (fault_ != Fault::none) return Entry::dependent;
        return !task_.nonneg || gains(size_ - 1, gain_) ? Entry::improved : Entry::no_gain;
    }
    PYSUBMOD_HD void accept() { --n_remembered_; }
    PYSUBMOD_HD_INLINE void take_back() {
        go_back();
        --size_;
        gain_ = 0.0;
    }
    // Keeps a member with weight zero, whatever it might gain.
    PYSUBMOD_HD void add_idle(int i, double g) { push(i, g); }

    // The correlation of row i at the present weights.
    PYSUBMOD_HD double correlation(int i) {
        const double product =
            sum(team_, n_active_, [&](int p) { return gram_at(i, m_.id[m_.active[p]]) * m_.w[m_.active[p]]; });
        return task_.c[i] - product;
    }

    // One step C_PP^-1 g_P by the true gradient g = c - C w, unless it leaves w >= 0. Returns the objective.
    PYSUBMOD_HD double refine() {
        each(team_, size_, [&](int m) {  // of all members at once, where true_gradient is for the few idle ones
            double g = m_.c[m];
            for (int p = 0; p < n_active_; ++p) {
                const double ridge = m_.active[p] == m ? task_.ridge : 0.0;
                g = fma(-(gram_at(m_.id[m], m_.active_id[p]) + ridge), m_.active_weight[p], g);
            }
            m_.g[m] = g;
        });
        const double twice = sum(team_, size_, [&](int m) { return m_.w[m] * (m_.c[m] + m_.g[m]); });
        each(team_, n_active_, [&](int p) { m_.column[p] = m_.g[m_.active[p]]; });
        solve(m_.column);
        const bool leaves =
            task_.nonneg && any_of(n_active_, [&](int p) { return m_.w[m_.active[p]] + m_.upper[p] < 0.0; });
        if (leaves) return 0.5 * twice;
        const double gained = sum(team_, n_active_, [&](int p) { return 0.5 * m_.g[m_.active[p]] * m_.upper[p]; });
        each(team_, n_active_, [&](int p) { m_.w[m_.active[p]] += m_.upper[p]; });
        return 0.5 * twice + gained;
    }

    // Forgets the members that are not active; the order of the others stays.
    PYSUBMOD_HD void remove_idle() {
        if (n_active_ == size_) return;
        team_.sync();
        if (team_.rank() == 0) {
            int kept = 0;
            for (int m = 0; m < size_; ++m) {
                if (m_.place[m] < 0) continue;
                m_.c[kept] = m_.c[m], m_.plain[kept] = m_.plain[m], m_.w[kept] = m_.w[m], m_.g[kept] = m_.g[m];
                m_.root[kept] = m_.root[m], m_.id[kept] = m_.id[m], m_.place[kept] = m_.place[m];
                m_.active[m_.place[kept]] = kept;
                ++kept;
            }
        }
        team_.sync();
        size_ = n_active_;
    }

  private:
    struct Remembered {
        int n_active = 0;
        bool has_copy = false;  // of the factor
        std::uint64_t signature = 0;
    };
    static constexpr double kClearlyNegative = 1e-3;  // as in growing_cholesky.hpp

    // The active members' rows and weights side by side, for the sums over all rows.
    PYSUBMOD_HD void show(int p) {
        m_.active_id[p] = m_.id[m_.active[p]];
        m_.active_weight[p] = m_.w[m_.active[p]];
    }
    PYSUBMOD_HD double diagonal(int m) const { return task_.diagonal[m_.id[m]]; }
    PYSUBMOD_HD double unit(int m) const { return scale_ * m_.root[m]; }
    PYSUBMOD_HD double height(int m) const { return task_.nonneg ? m_.g[m] : fabs(m_.g[m]); }
    PYSUBMOD_HD bool helps(int m) const { return height(m) > kScoreTolerance * unit(m); }
    PYSUBMOD_HD bool gains(int m, double gain) const { return gain > 0.5 * kScoreTolerance * unit(m) * fabs(m_.w[m]); }

    template <class Test>
    PYSUBMOD_HD bool any_of(int count, Test test) {
        bool mine = false;
        for (int j = team_.rank(); j < count; j += team_.size()) mine = mine || test(j);
        return any(team_, mine);
    }
    // The lowest j that passes, or `count`.
    template <class Test>
    PYSUBMOD_HD int first_of(int count, Test test) {
        int mine = count;
        for (int j = team_.rank(); j < count; j += team_.size())
            if (test(j)) {
                mine = j;
                break;
            }
        return team_.min(mine);
    }
    template <class Value>
    PYSUBMOD_HD double max_of(int count, double least, Value value) {
        double mine = least;
        for (int j = team_.rank(); j < count; j += team_.size()) {
            const double x = value(j);
            if (x > mine) mine = x;
        }
        return team_.max(mine);
    }
    PYSUBMOD_HD void fail(Fault fault, int row) {
        if (fault_ != Fault::none) return;
        fault_ = fault;
        fault_row_ = row;
    }

    PYSUBMOD_HD void push(int i, double g) {
        if (!isfinite(g)) fail(Fault::changed, i);
        if (team_.rank() == 0) {
            m_.id[size_] = i;
            m_.c[size_] = task_.c[i];
            m_.plain[size_] = task_.linear.at(0, i);
            m_.g[size_] = g;
            m_.w[size_] = 0.0;
            m_.root[size_] = task_.root[i];
            m_.place[size_] = -1;
        }
        ++size_;
        team_.sync();
    }

    // c - C w of a member, for all threads.
    PYSUBMOD_HD double true_gradient(int m) {
        const double product = sum(team_, n_active_, [&](int p) {
            const int a = m_.active[p];
            return (gram_at(m_.id[m], m_.id[a]) + (a == m ? task_.ridge : 0.0)) * m_.w[a];
        });
        return m_.c[m] - product;
    }

    // ---- the factor ----

    PYSUBMOD_HD double* row(int p) const { return factor_ + static_cast<std::ptrdiff_t>(p) * stride_; }

    // lower = L^-1 x
    PYSUBMOD_HD void solve_lower(const double* x) {
        each(team_, n_active_, [&](int p) { m_.lower[p] = dot_strided(row(p), 1, x, p + 1); });
    }
    // out = L^-T x
    PYSUBMOD_HD void solve_upper(const double* x, double* out) {
        each(team_, n_active_, [&](int q) { out[q] = dot_strided(row(q) + q, stride_, x + q, n_active_ - q); });
    }
    // upper = C_PP^-1 x
    PYSUBMOD_HD void solve(const double* x) {
        solve_lower(x);
        solve_upper(m_.lower, m_.upper);
    }

    // Brings member m into the factor unless it is dependent on what is there; upper = C_PP^-1 C_Pm either way.
    PYSUBMOD_HD bool activate(int m) {
        const int last = n_active_;
        each(team_, last, [&](int p) { m_.column[p] = gram_at(m_.id[m], m_.id[m_.active[p]]); });
        solve(m_.column);
        const auto [squares, product] = sum_both(
            team_, last, [&](int p) { return m_.lower[p] * m_.lower[p]; },
            [&](int p) { return m_.lower[p] * m_.forward[p]; });
        const double c_ii = diagonal(m), schur = c_ii - squares;
        if (schur < -kClearlyNegative * c_ii) fail(Fault::not_psd, m_.id[m]);
        if (!(schur > task_.rank_tolerance * c_ii)) return false;
        const double rho = sqrt(schur);
        each(team_, last + 1, [&](int q) {
            if (q < last) {
                row(last)[q] = -m_.upper[q] / rho;
                return;
            }
            row(last)[last] = 1.0 / rho;
            m_.forward[last] = (m_.c[m] - product) / rho;
            m_.active[last] = m;
            m_.place[m] = last;
        });
        ++n_active_;
        signature_ += hash(m);
        return true;
    }

    PYSUBMOD_HD void deactivate(int m) {
        const int place = m_.place[m];
        signature_ -= hash(m);
        before_drop();
        drop(place);
        each(team_, n_active_ - place, [&](int p) { m_.scratch[p] = m_.active[place + p + 1]; });
        each(team_, n_active_ - place + 1, [&](int p) {
            if (p < n_active_ - place) {
                m_.active[place + p] = m_.scratch[p];
                m_.place[m_.scratch[p]] = place + p;
            } else {
                m_.place[m] = -1;
                m_.w[m] = 0.0;
            }
        });
    }

    // M of the members without the j-th. Rotations of the rows from j on, each with the next, gather column j in the
    // last row; that row and that column go. The rotations follow from column j alone, so each column can be turned by
    // a thread of its own, L^-1 c too.
    PYSUBMOD_HD void drop(int j) {
        const int last = n_active_ - 1;
        double *radius = m_.upper, *cosine = m_.lower, *sine = m_.column;
        each(team_, last + 1 - j, [&](int p) { radius[j + p] = sqrt(dot_strided_self(row(j) + j, p + 1)); });
        each(team_, last - j, [&](int p) {
            cosine[j + p] = radius[j + p] / radius[j + p + 1];
            sine[j + p] = row(j + p + 1)[j] / radius[j + p + 1];
        });
        each(team_, last + 2, [&](int q) {
            if (q == j) return;
            const bool is_forward = q == last + 1;
            double* column = is_forward ? m_.forward : factor_ + q;
            const int step = is_forward ? 1 : stride_;
            const int from = q <= j || is_forward ? j : q - 1;  // above it the column is zero
            double turned = from == q - 1 && !is_forward ? 0.0 : column[from * step];
            for (int p = from; p < last; ++p) {
                const double below = column[(p + 1) * step];
                column[p * step] = fma(cosine[p], below, -sine[p] * turned);
                turned = fma(cosine[p], turned, sine[p] * below);
            }
        });
        each(team_, last - j, [&](int p) {
            double* moved = row(j + p);
            for (int q = j + 1; q <= j + p + 1; ++q) moved[q - 1] = moved[q];
        });
        n_active_ = last;
    }
    PYSUBMOD_HD double dot_strided_self(const double* a, int count) const {
        double total = 0.0;
        for (int p = 0; p < count; ++p) total = fma(a[p * stride_], a[p * stride_], total);
        return total;
    }

    // ---- undo ----

    PYSUBMOD_HD double* copy(int s) const {
        return copies_ + s * static_cast<std::ptrdiff_t>(factor_bytes(task_.k) / 8);
    }

    PYSUBMOD_HD void remember() {
        const int s = n_remembered_++;
        if (s == 0)
            outer_ = {n_active_, false, signature_};
        else
            inner_ = {n_active_, false, signature_};
        each(team_, size_, [&](int m) {
            m_.old_w[s * task_.k + m] = m_.w[m];
            m_.old_g[s * task_.k + m] = m_.g[m];
            if (m >= n_active_) return;
            m_.old_forward[s * task_.k + m] = m_.forward[m];
            m_.old_active[s * task_.k + m] = m_.active[m];
        });
    }
    PYSUBMOD_HD void go_back() {
        team_.sync();  // all have read what decided it
        const int s = --n_remembered_;
        const bool has_copy = s == 0 ? outer_.has_copy : inner_.has_copy;
        n_active_ = s == 0 ? outer_.n_active : inner_.n_active;
        signature_ = s == 0 ? outer_.signature : inner_.signature;
        each(team_, size_, [&](int m) {
            m_.w[m] = m_.old_w[s * task_.k + m];
            m_.g[m] = m_.old_g[s * task_.k + m];
            m_.place[m] = -1;
            if (m >= n_active_) return;
            m_.forward[m] = m_.old_forward[s * task_.k + m];
            m_.active[m] = m_.old_active[s * task_.k + m];
        });
        if (has_copy) each(team_, n_active_ * stride_, [&](int j) { factor_[j] = copy(s)[j]; });
        each(team_, n_active_, [&](int p) {
            m_.place[m_.active[p]] = p;
            show(p);
        });
    }
    // Until a row is dropped the factor only grows, so its size says all; before the first drop, it is copied.
    PYSUBMOD_HD void before_drop() {
        if (n_remembered_ > 1) copy_factor(inner_, 1);
        if (n_remembered_ > 0) copy_factor(outer_, 0);
    }
    PYSUBMOD_HD void copy_factor(Remembered& state, int s) {
        if (state.has_copy) return;
        each(team_, state.n_active * stride_, [&](int j) { copy(s)[j] = factor_[j]; });
        state.has_copy = true;
    }

    // ---- the active set ----

    // Brings member m, with w_m = 0, into the factor and climbs to the optimum over the active members. A dependent
    // member may trade places with an active one. Unless it improves, what is left behind is for the caller to undo.
    PYSUBMOD_HD_INLINE Entry enter(int m) {
        bool is_fresh = true;
        while (!activate(m)) {
            if (fault_ != Fault::none) return Entry::dependent;
            if (!follow_ray(m)) {
                const bool rewarded = height(m) > 10.0 * sqrt(task_.rank_tolerance) * unit(m);
                if (!task_.in_range && rewarded) fail(Fault::unbounded, m_.id[m]);
                return Entry::dependent;
            }
            is_fresh = false;
        }
        do {
            solve_upper(m_.forward, m_.target);  // the optimum over the active members, signs apart
            if (is_fresh && task_.nonneg && !(m_.target[m_.place[m]] > 0.0)) return Entry::no_gain;
            is_fresh = false;
        } while (task_.nonneg && step_towards_target());
        if (fault_ != Fault::none) return Entry::dependent;
        each(team_, n_active_, [&](int p) {
            const int a = m_.active[p];
            m_.w[a] = m_.target[p];
            m_.g[a] = 0.0;
            show(p);
        });
        return Entry::improved;
    }

    // Moves w towards `target` until the first active member reaches zero and drops it; false if none does.
    PYSUBMOD_HD bool step_towards_target() {
        const auto reach = [&](int p) {  // the share of the way at which it is zero
            const double w = m_.w[m_.active[p]];
            return w > 0.0 ? w / (w - m_.target[p]) : 0.0;
        };
        const double nearest = max_of(n_active_, -2.0, [&](int p) { return m_.target[p] > 0.0 ? -2.0 : -reach(p); });
        if (nearest == -2.0) return false;
        const double share = -nearest;
        const int before = n_active_;
        each(team_, before, [&](int p) {
            double& w = m_.w[m_.active[p]];
            const bool reaches_zero = !(m_.target[p] > 0.0) && !(w > 0.0 && w / (w - m_.target[p]) > share);
            m_.dropping[p] = reaches_zero;
            if (!reaches_zero) w = fma(share, m_.target[p] - w, w);
        });
        for (int p = before; p-- > 0;)
            if (m_.dropping[p]) deactivate(m_.active[p]);
        if (n_active_ == before) fail(Fault::changed, m_.id[size_ - 1]);  // only a NaN drops nobody
        return fault_ == Fault::none;
    }

    // Along a dependent member m the objective rises without bending, w_P - a v, with v = C_PP^-1 C_Pm (in upper),
    // until an active member reaches zero; that one leaves, and m may be independent of the rest. False if the ray has
    // no end.
    PYSUBMOD_HD_INLINE bool follow_ray(int m) {
        if (!task_.nonneg) return false;
        const double least = sqrt(task_.rank_tolerance) * m_.root[m];
        const double* slope = m_.upper;
        if (!any_of(n_active_, [&](int p) { return slope[p] > 0.0 && slope[p] * m_.root[m_.active[p]] > least; }))
            return false;
        const auto reach = [&](int p) { return slope[p] > 0.0 ? m_.w[m_.active[p]] / slope[p] : kInfinity; };
        const double length = -max_of(n_active_, -kInfinity, [&](int p) { return -reach(p); });
        const int blocking = first_of(n_active_, [&](int p) { return slope[p] > 0.0 && reach(p) == length; });
        if (blocking == n_active_) return false;
        const int leaves = m_.active[blocking];
        each(team_, n_active_ + 1, [&](int p) {
            if (p == n_active_) {
                m_.w[m] += length;
                return;
            }
            double& w = m_.w[m_.active[p]];
            const double moved = fma(-length, slope[p], w);
            w = moved > 0.0 ? moved : 0.0;
        });
        deactivate(leaves);
        return true;
    }

    // Remembers this active set; false if it was there before.
    PYSUBMOD_HD bool see(int n_seen) {
        const std::uint64_t now = signature_;
        for (int j = 0; j < n_seen; ++j)
            if (m_.seen[j] == now) return false;
        if (n_seen == Members::most_seen(task_.k)) {
            fail(Fault::no_convergence, m_.id[size_ - 1]);
            return false;
        }
        team_.sync();  // all have read what was there
        if (team_.rank() == 0) m_.seen[n_seen] = now;
        team_.sync();
        return true;
    }

    // Among idle members that help, the largest g_m / sqrt(C_mm); the first of those that rounding cannot tell apart.
    PYSUBMOD_HD int steepest_idle() {
        const auto slope = [&](int m) {
            return m_.place[m] >= 0 || m_.skipped[m] || !helps(m) ? 0.0 : m_.g[m] / m_.root[m];
        };
        const double best = max_of(size_, 0.0, slope);
        if (best == 0.0) return size_;
        return first_of(size_, [&](int m) {
            const double x = slope(m);
            return x > 0.0 && x >= best - 2.0 * kScoreTolerance * scale_;
        });
    }

    // g = c - C w of the idle members; that of active ones is zero. (With free weights idle members stay idle for
    // ever.)
    PYSUBMOD_HD void update_correlations() {
        for (int m = 0; m < size_; ++m) {
            if (m_.place[m] >= 0) continue;
            const double g = true_gradient(m);
            if (team_.rank() == 0) m_.g[m] = g;
        }
        team_.sync();
    }

    // Of an active set: the sum of a hash (splitmix64) of each member.
    PYSUBMOD_HD static std::uint64_t hash(int m) {
        std::uint64_t z = (static_cast<std::uint64_t>(m) + 1) * 0x9e3779b97f4a7c15ULL;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
        return z ^ (z >> 31);
    }

    // 1/2 sum (g_old + g_new)(w_new - w_old), which does not cancel.
    PYSUBMOD_HD double gain_since(int s) {
        return sum(team_, size_, [&](int m) {
            return 0.5 * (m_.old_g[s * task_.k + m] + m_.g[m]) * (m_.w[m] - m_.old_w[s * task_.k + m]);
        });
    }

    Team& team_;
    const GramTask& task_;
    Members m_;
    double* factor_;
    double* copies_;  // two, one behind the other
    int stride_;
    int size_ = 0, n_active_ = 0;
    int n_remembered_ = 0;
    std::uint64_t signature_ = 0;  // of the active set; compared within a refit, in which members keep their numbers
    Remembered outer_, inner_;
    double first_scale_ = 0.0, scale_ = 0.0, gain_ = 0.0;
    Fault fault_ = Fault::none;
    int fault_row_ = -1;
};

}  // namespace pysubmod::cuda
