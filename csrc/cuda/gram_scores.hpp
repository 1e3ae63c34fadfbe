// Correlations, scores, the argmax and the shortlist on the device: the specification of docs/design.md, section 2, for
// a team of threads. The rows are shared out over the blocks of the team, a contiguous part for each.
#pragma once

#include <math.h>

#include "cuda/gram_refit.hpp"
#include "cuda/gram_task.hpp"
#include "cuda/team.hpp"
#include "pysubmod/types.hpp"

namespace pysubmod::cuda {

template <class Team>
class GramScores {
  public:
    PYSUBMOD_HD GramScores(Team& team, const GramTask& task, const Members& members)
        : team_(team),
          task_(task),
          m_(members),
          begin_(part(task.n, team.block(), team.n_blocks())),
          end_(part(task.n, team.block() + 1, team.n_blocks())) {}

    // Numbers over all blocks; each call is made by all threads of the team.
    PYSUBMOD_HD double max_all(double mine) {
        const double own = team_.max(mine);
        if (team_.n_blocks() == 1) return own;
        const Offer* offers = exchange({own, 0.0, 0.0});
        double best = offers[0].bar;
        for (int b = 1; b < team_.n_blocks(); ++b) best = offers[b].bar > best ? offers[b].bar : best;
        return best;
    }
    PYSUBMOD_HD int min_all(int mine) { return -static_cast<int>(max_all(-static_cast<double>(mine))); }

    // use(i) for the rows of this block; ends with a barrier.
    template <class Use>
    PYSUBMOD_HD void each_own(Use use) {
        for (int i = begin_ + team_.rank(); i < end_; i += team_.size()) use(i);
        team_.sync();
    }
    // The lowest row of all that passes, or n.
    template <class Test>
    PYSUBMOD_HD int first_row(Test test) {
        return min_all(first_mine(test));
    }
    template <class Value>
    PYSUBMOD_HD double max_row(double least, Value value) {
        double mine = least;
        for (int i = begin_ + team_.rank(); i < end_; i += team_.size()) {
            const double x = value(i);
            mine = x > mine ? x : mine;
        }
        return max_all(mine);
    }
    // set() by one thread of the block that has row i.
    template <class Set>
    PYSUBMOD_HD void at_row(int i, Set set) {
        if (i >= begin_ && i < end_ && team_.rank() == 0) set();
        team_.sync();
    }

    PYSUBMOD_HD void set_scale(double scale) {
        scale_ = scale;
        ++round_;
    }
    PYSUBMOD_HD double scale() const { return scale_; }
    PYSUBMOD_HD Fault fault() const { return fault_; }
    PYSUBMOD_HD int fault_row() const { return fault_row_; }

    PYSUBMOD_HD void mark(int i, Mark mark) {
        has_barred_ = has_barred_ || mark == Mark::barred;
        at_row(i, [&] { task_.mark[i] = static_cast<std::uint8_t>(mark); });
    }
    PYSUBMOD_HD void clear_barred() {
        if (!has_barred_) return;
        each_own([&](int i) {
            if (is_marked(i, Mark::barred)) task_.mark[i] = static_cast<std::uint8_t>(Mark::none);
        });
        has_barred_ = false;
    }

    // g = c - K w for those of this block's rows that are no members, from the members' rows of K. (Of the last pick
    // others may still be reading g.)
    PYSUBMOD_HD void form_correlations(int n_active) {
        if (task_.gram.storage == Storage::float64)
            form_from<double>(n_active);
        else
            form_from<float>(n_active);
    }

    // The lowest row that rounding cannot tell from the best; -1: none. After a fault the answer means nothing.
    PYSUBMOD_HD_INLINE int best(Ask ask) {
        double bar = -kInfinity, top = -kInfinity;
        for (int i = begin_ + team_.rank(); i < end_; i += team_.size()) {
            const Interval score = interval(i, ask);
            bar = score.lower > bar ? score.lower : bar;
            top = score.upper > top ? score.upper : top;
        }
        bar = team_.max(bar);
        int row = task_.n;
        if (bar > -kInfinity) row = first_own([&](int i) { return interval(i, ask).upper >= bar; });
        if (team_.n_blocks() > 1) {
            // Each block offers what it would be alone; only a row of another block that ties with the best is not told
            // by that.
            const Offer* offers = exchange({bar, team_.max(top), static_cast<double>(row)});
            for (int b = 0; b < team_.n_blocks(); ++b) bar = offers[b].bar > bar ? offers[b].bar : bar;
            row = task_.n;
            bool ties = false;
            for (int b = 0; b < team_.n_blocks(); ++b) {
                const auto own = static_cast<int>(offers[b].row);
                if (offers[b].bar == bar && own < row) row = own;
                ties = ties || (offers[b].bar < bar && offers[b].top >= bar);
            }
            if (ties) row = first_row([&](int i) { return interval(i, ask).upper >= bar; });
        }
        if (bar == -kInfinity || (bar == kInfinity && find_changed())) return -1;
        return row < task_.n ? row : -1;
    }
    PYSUBMOD_HD bool saw_barred() {
        return has_barred_ && first_row([&](int i) { return is_open(i) && is_marked(i, Mark::barred); }) < task_.n;
    }

    // rule = greedy: the score of row i is no bound.
    PYSUBMOD_HD bool is_exact(int i) const {
        if (is_marked(i, Mark::barred) || improving_score(i) == -kInfinity) return true;
        return task_.exact_round[i] == round_ ||
               (!task_.nonneg && task_.schur[i] > task_.rank_tolerance * task_.diagonal[i]);
    }
    PYSUBMOD_HD void set_exact(int i, double score) {
        at_row(i, [&] {
            task_.exact[i] = score;
            task_.exact_round[i] = round_;
        });
    }
    // rule = greedy: row i is a member from now on; Schur complements of all rows given one member more.
    PYSUBMOD_HD void deflate(int i) {
        const double schur = task_.schur[i], c_ii = task_.diagonal[i];
        if (!(schur > task_.rank_tolerance * c_ii)) {
            if (schur < -1e-3 * c_ii) set_fault(Fault::not_psd, i);
            return;
        }
        if (n_deflated_ == (task_.release_zeros ? task_.n : task_.k)) return;  // a bound stays one with fewer
        const double rho = sqrt(schur);
        const Index n = task_.n;
        team_.sync_all();  // nobody reads schur[i] any more
        double* out = task_.deflated + n_deflated_ * n;
        each_own([&](int j) {
            double x = task_.gram.at(i, j) + (j == i ? task_.ridge : 0.0);
            for (int p = 0; p < n_deflated_; ++p) x = fma(-task_.deflated[p * n + i], task_.deflated[p * n + j], x);
            x /= rho;
            out[j] = x;
            task_.schur[j] = fma(-x, x, task_.schur[j]);
        });
        ++n_deflated_;
        team_.sync_all();
    }

    // pick = random: list[i] = 1 for the rows that the draw is between; their number. Every block sees all of it.
    PYSUBMOD_HD int shortlist(Ask ask) {
        if (first_row([&](int i) { return is_open(i) && !isfinite(task_.g[i]); }) < task_.n && find_changed()) return 0;
        each_own([&](int i) { rank_row(i, ask); });
        team_.sync_all();
        each_own([&](int i) { task_.list[i] = decide(i); });
        team_.sync_all();
        if (team_.block() == 0) each(team_, task_.n_groups, [&](int p) { settle_group(p); });
        team_.sync_all();
        return count_listed();
    }
    // The row at `place` of the list.
    PYSUBMOD_HD int listed(int place) {
        int chunk = 0, before = 0;
        while (before + m_.counts[chunk] <= place) before += m_.counts[chunk++];
        int i = part(task_.n, chunk, team_.size());
        for (;; ++i) {
            before += task_.list[i];
            if (before > place) break;
        }
        team_.sync();  // all have read the counts
        return i;
    }
    // rule = greedy: the first row of the list, from `from` on, whose score is a bound; n: none.
    PYSUBMOD_HD int next_inexact(int from) {
        return first_row([&](int i) { return i >= from && task_.list[i] && !is_exact(i); });
    }

  private:
    enum Kind : std::uint8_t { closed, helping, idle };
    enum Listed : std::uint8_t { left_out, taken, undecided };

    PYSUBMOD_HD static int part(int n, int which, int of) {
        return static_cast<int>(static_cast<std::int64_t>(n) * which / of);
    }
    PYSUBMOD_HD bool is_marked(int i, Mark mark) const { return task_.mark[i] == static_cast<std::uint8_t>(mark); }
    // May be taken; barred or not.
    PYSUBMOD_HD bool is_open(int i) const {
        return (task_.pool[i] & kMayBePicked) && !is_marked(i, Mark::selected) && m_.left[task_.group_of[i]] > 0;
    }
    PYSUBMOD_HD double height(int i) const { return task_.nonneg ? task_.g[i] : fabs(task_.g[i]); }
    PYSUBMOD_HD double improving_score(int i) const {
        const double high = height(i), root = task_.root[i];
        if (!(high > kScoreTolerance * scale_ * root)) return -kInfinity;
        if (task_.rule == Rule::omp) return high;
        if (task_.rule == Rule::normalized) return high / root;
        if (task_.exact_round[i] == round_) return task_.exact[i];
        if (task_.schur[i] > task_.rank_tolerance * task_.diagonal[i]) return high / sqrt(task_.schur[i]);
        return kBound;
    }
    // What each block offers the others.
    struct Offer {
        double bar, top, row;
    };
    // Side by side, for all blocks. What is read here is written again after the next barrier but one.
    PYSUBMOD_HD const Offer* exchange(Offer own) {
        turn_ ^= 1;
        Offer* offers = reinterpret_cast<Offer*>(task_.exchange) + turn_ * team_.n_blocks();
        if (team_.rank() == 0) offers[team_.block()] = own;
        team_.sync_all();
        return offers;
    }

    // The first row of this thread, or of this block, that passes; n: none.
    template <class Test>
    PYSUBMOD_HD int first_mine(Test test) {
        for (int i = begin_ + team_.rank(); i < end_; i += team_.size())
            if (test(i)) return i;
        return task_.n;
    }
    template <class Test>
    PYSUBMOD_HD int first_own(Test test) {
        return team_.min(first_mine(test));
    }

    // A score less and plus what rounding may be of it: minus infinity for rows that cannot be the best, infinity,
    // which no score is, where a correlation is not finite.
    struct Interval {
        double lower, upper;
    };
    PYSUBMOD_HD Interval interval(int i, Ask ask) const {
        if (!is_open(i) || (ask == Ask::improving && is_marked(i, Mark::barred))) return {-kInfinity, -kInfinity};
        if (!isfinite(task_.g[i])) return {kInfinity, kInfinity};
        const double score = ask == Ask::any ? height(i) : improving_score(i);
        if (score == -kInfinity) return {-kInfinity, -kInfinity};
        const double slack = kScoreTolerance * unit(i, ask);
        return {score - slack, score + slack};
    }

    // About a dependent row a Schur complement says nothing: larger than any score, and still finite.
    static constexpr double kBound = 1e300;

    PYSUBMOD_HD double unit(int i, Ask ask) const {
        if (task_.rule == Rule::omp || ask == Ask::any) return scale_ * task_.root[i];
        if (task_.rule == Rule::normalized) return scale_;
        const double least = task_.rank_tolerance * task_.diagonal[i];
        const double schur = task_.schur[i] > least ? task_.schur[i] : least;
        return schur > 0.0 ? scale_ * sqrt(task_.diagonal[i] / schur) : 0.0;
    }
    PYSUBMOD_HD void set_fault(Fault fault, int row) {
        if (fault_ != Fault::none) return;
        fault_ = fault;
        fault_row_ = row;
    }
    PYSUBMOD_HD bool find_changed() {
        const int row = first_row([&](int i) { return is_open(i) && !isfinite(task_.g[i]); });
        if (row < task_.n) set_fault(Fault::changed, row);
        return row < task_.n;
    }

    template <class Number>
    PYSUBMOD_HD void form_from(int n_active) {
        const auto* k = static_cast<const Number*>(task_.gram.data);
        constexpr int at_once = 16;  // loads on their way together, and four chains of sums
        each_own([&](int i) {
            if (is_marked(i, Mark::selected)) return;
            double sums[4] = {task_.c[i], 0.0, 0.0, 0.0};
            int p = 0;
            for (; p + at_once <= n_active; p += at_once) {
                Number row[at_once];
                PYSUBMOD_UNROLL
                for (int l = 0; l < at_once; ++l) row[l] = k[m_.active_id[p + l] * task_.gram.stride + i];
                PYSUBMOD_UNROLL
                for (int l = 0; l < at_once; ++l)
                    sums[l % 4] = fma(-m_.active_weight[p + l], static_cast<double>(row[l]), sums[l % 4]);
            }
            for (; p < n_active; ++p)
                sums[0] =
                    fma(-m_.active_weight[p], static_cast<double>(k[m_.active_id[p] * task_.gram.stride + i]), sums[0]);
            task_.g[i] = (sums[0] + sums[2]) + (sums[1] + sums[3]);
        });
    }

    // ---- the shortlist ----

    PYSUBMOD_HD void rank_row(int i, Ask ask) {
        task_.kind[i] = closed;
        task_.list[i] = left_out;
        if (!is_open(i)) return;
        double score = is_marked(i, Mark::barred) ? -kInfinity : improving_score(i);
        const bool helps = score > -kInfinity;
        double slack = helps ? kScoreTolerance * unit(i, Ask::improving) : 0.0;
        if (!helps && ask == Ask::improving) return;
        if (!helps) {  // the lowest row first, unless signed heights decide
            const bool raw = task_.rule == Rule::omp;
            const double root = task_.root[i];
            score = !task_.signed_ranking ? -i : raw ? height(i) : root > 0.0 ? height(i) / root : 0.0;
            slack = task_.signed_ranking ? kScoreTolerance * scale_ * (raw ? root : 1.0) : 0.0;
        }
        task_.kind[i] = helps ? helping : idle;
        task_.less[i] = score - slack;
        task_.plus[i] = score + slack;
    }

    // Whether row i comes among the first `room` of its kind in its group, where that can be told from the counts of
    // those that may, and those that must, come before it.
    PYSUBMOD_HD std::uint8_t decide(int i) const {
        if (task_.kind[i] == closed) return left_out;
        const int group = task_.group_of[i];
        int may = 0, must = 0, n_helping = 0;
        for (int j = 0; j < task_.n; ++j) {
            if (task_.group_of[j] != group || task_.kind[j] == closed) continue;
            n_helping += task_.kind[j] == helping;
            if (j == i || task_.kind[j] != task_.kind[i]) continue;
            may += task_.plus[j] >= task_.less[i];
            must += task_.less[j] > task_.plus[i];
        }
        const int room = room_for(task_.kind[i], group, n_helping);
        return may < room ? taken : must >= room ? left_out : undecided;
    }
    PYSUBMOD_HD int room_for(std::uint8_t kind, int group, int n_helping) const {
        const int left = m_.left[group];
        if (kind == helping) return left;
        return left > n_helping ? left - n_helping : 0;
    }

    // Ties: the rows of a group one after another, as the argmax finds them.
    PYSUBMOD_HD void settle_group(int group) {
        bool tied[3] = {false, false, false};
        int n_helping = 0;
        for (int i = 0; i < task_.n; ++i) {
            if (task_.group_of[i] != group || task_.kind[i] == closed) continue;
            n_helping += task_.kind[i] == helping;
            tied[task_.kind[i]] = tied[task_.kind[i]] || task_.list[i] == undecided;
        }
        for (int kind = helping; kind <= idle; ++kind)
            if (tied[kind])
                settle_kind(group, static_cast<std::uint8_t>(kind),
                            room_for(static_cast<std::uint8_t>(kind), group, n_helping));
    }
    PYSUBMOD_HD void settle_kind(int group, std::uint8_t kind, int room) {
        const auto waits = [&](int i) {
            return task_.group_of[i] == group && task_.kind[i] == kind && task_.list[i] != taken;
        };
        for (int i = 0; i < task_.n; ++i)
            if (task_.group_of[i] == group && task_.kind[i] == kind) task_.list[i] = left_out;
        for (; room > 0; --room) {
            double bar = -kInfinity;
            for (int i = 0; i < task_.n; ++i)
                if (waits(i) && task_.less[i] > bar) bar = task_.less[i];
            int next = 0;
            while (next < task_.n && !(waits(next) && task_.plus[next] >= bar)) ++next;
            if (next == task_.n) return;
            task_.list[next] = taken;
        }
    }

    // By chunks of rows, a chunk a thread; every block for itself.
    PYSUBMOD_HD int count_listed() {
        each(team_, team_.size(), [&](int chunk) {
            int count = 0;
            for (int i = part(task_.n, chunk, team_.size()); i < part(task_.n, chunk + 1, team_.size()); ++i)
                count += task_.list[i];
            m_.counts[chunk] = count;
        });
        int total = 0;
        for (int chunk = 0; chunk < team_.size(); ++chunk) total += m_.counts[chunk];
        return total;
    }

    Team& team_;
    const GramTask& task_;
    Members m_;
    int begin_, end_;
    int turn_ = 0, round_ = 1, n_deflated_ = 0;
    double scale_ = 0.0;
    bool has_barred_ = false;
    Fault fault_ = Fault::none;
    int fault_row_ = -1;
};

}  // namespace pysubmod::cuda
