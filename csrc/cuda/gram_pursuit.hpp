// The whole pursuit on a Gram matrix in one launch: the specification of docs/design.md, section 2, as pursuit.hpp has
// it for the host. What has size k is worked out by every block of a team for itself, with the same bits; what has size
// n is shared out, and the blocks meet only to find the best row.
#pragma once

#include "cuda/gram_refit.hpp"
#include "cuda/gram_scores.hpp"
#include "cuda/gram_task.hpp"
#include "pysubmod/random.hpp"

namespace pysubmod::cuda {

template <class Team>
class GramPursuit {
  public:
    PYSUBMOD_HD GramPursuit(Team& team, const GramTask& task, const Members& members, double* factor, double* copies)
        : team_(team),
          task_(task),
          m_(members),
          refit_(team, task, members, factor, copies),
          scores_(team, task, members),
          ask_(task.random && task.fill ? Ask::any : Ask::improving) {}

    PYSUBMOD_HD_INLINE void run() {
        prepare();
        if (fault_ == Fault::none) status_ = climb();
        finish();
    }

  protected:
    PYSUBMOD_HD bool is_writer() const { return team_.block() == 0 && team_.rank() == 0; }
    PYSUBMOD_HD bool has_failed() {
        if (fault_ == Fault::none && refit_.fault() != Fault::none) fail(refit_.fault(), refit_.fault_row());
        if (fault_ == Fault::none && scores_.fault() != Fault::none) fail(scores_.fault(), scores_.fault_row());
        return fault_ != Fault::none;
    }
    PYSUBMOD_HD void fail(Fault fault, int row) {
        fault_ = fault;
        fault_row_ = row;
    }

    // ---- before the first pick ----

    PYSUBMOD_HD_INLINE void prepare() {
        target_norm_ = task_.target_norm_at ? *task_.target_norm_at : task_.target_norm;
        if (!check_gram()) return;
        scores_.each_own([&](int i) { prepare_row(i); });
        if (!check_rows()) return;
        const double known = isfinite(target_norm_) ? target_norm_ : 0.0;
        scale_ = task_.scale_at ? *task_.scale_at : scores_.max_row(known, [&](int i) {
            const double root = task_.root[i];
            return root > 0.0 && (task_.pool[i] & kInPool) ? fabs(task_.c[i]) / root : 0.0;
        });
        if (!(scale_ <= 1e140)) return fail(Fault::scale, -1);  // its square is the size of the objective
        first_scale_ = scale_;
        if (isfinite(target_norm_)) residual_norm_ = target_norm_;
        refit_.set_first_scale(scale_);
        scores_.set_scale(scale_);
        count_pools();
    }

    // What the check of K found, part by part.
    PYSUBMOD_HD bool check_gram() {
        const double none = static_cast<double>(task_.n) * task_.n;
        double mine = none;
        for (int part = team_.rank(); part < task_.n_checks; part += team_.size())
            mine = static_cast<double>(task_.checks[part]) < mine ? static_cast<double>(task_.checks[part]) : mine;
        const auto first = static_cast<std::int64_t>(-team_.max(-mine));
        if (static_cast<double>(first) == none) return true;
        fail(Fault::asymmetric, static_cast<int>(first / task_.n));
        fault_column_ = static_cast<int>(first % task_.n);
        return false;
    }

    PYSUBMOD_HD void prepare_row(int i) {
        const bool in_pool = task_.pool[i] & kInPool;
        const double k_ii = in_pool ? refit_.gram_at(i, i) : 0.0;
        const double c = in_pool ? task_.linear.at(0, i) + 0.5 * task_.tilt * k_ii : 0.0;
        const double c_ii = in_pool ? k_ii + task_.ridge : 0.0;
        task_.c[i] = task_.g[i] = c;
        task_.diagonal[i] = c_ii;
        task_.root[i] = c_ii > 0.0 ? sqrt(c_ii) : 0.0;
        task_.mark[i] = static_cast<std::uint8_t>(Mark::none);
        if (task_.rule != Rule::greedy) return;
        task_.schur[i] = c_ii;
        task_.exact[i] = 0.0;
        task_.exact_round[i] = 0;
    }

    PYSUBMOD_HD Fault fault_of_row(int i) const {
        if (!(task_.pool[i] & kInPool)) return Fault::none;
        const double k_ii = refit_.gram_at(i, i), linear = task_.linear.at(0, i), c = task_.c[i];
        if (!isfinite(k_ii) || !isfinite(linear)) return Fault::not_finite;
        if (k_ii < 0.0 || k_ii > 1e280 || (k_ii > 0.0 && k_ii < 1e-280)) return Fault::diagonal;
        if (!isfinite(c)) return Fault::tilt;
        if (task_.diagonal[i] == 0.0 && (task_.nonneg ? c > 0.0 : c != 0.0)) return Fault::zero_length;
        return Fault::none;
    }
    PYSUBMOD_HD bool check_rows() {
        const int row = scores_.first_row([&](int i) { return fault_of_row(i) != Fault::none; });
        if (row == task_.n) return true;
        team_.sync_all();
        fail(fault_of_row(row), row);
        fault_value_ = fault_ == Fault::diagonal ? refit_.gram_at(row, row) : task_.c[row];
        return false;
    }

    // The books of the matroid: what each group may still give, and has.
    PYSUBMOD_HD void count_pools() {
        each(team_, task_.n_groups, [&](int p) {
            m_.left[p] = task_.budgets[p];
            m_.pool_left[p] = task_.available[p];
        });
        for (int p = 0; p < task_.n_groups; ++p) {
            budget_left_ += m_.left[p];
            takeable_ += m_.left[p] > 0 && m_.pool_left[p] > 0;
        }
        team_.sync();
    }
    // -1: row i is taken, 1: given back.
    PYSUBMOD_HD void move(int i, int step) {
        const int p = task_.group_of[i], left = m_.left[p], pool = m_.pool_left[p];
        const int pool_now = task_.pool[i] & kMayBePicked ? pool + step : pool;
        takeable_ += (left + step > 0 && pool_now > 0) - (left > 0 && pool > 0);
        budget_left_ += step;
        team_.sync();  // all have read
        if (team_.rank() == 0) {
            m_.left[p] = left + step;
            m_.pool_left[p] = pool_now;
        }
        scores_.mark(i, step < 0 ? Mark::selected : Mark::none);  // ends with a barrier
    }

    // ---- the loop ----

    // What is to be done with a row: it is a member of `initial`; the next pick; taken even if it does not help; taken
    // with weight 0; or only its exact gain is wanted.
    enum class Use { start, pick, keep, fill, score, stop };
    struct Move {
        Use use;
        int row;
        double g;
        Status status;
    };

    PYSUBMOD_HD_INLINE Status climb() {
        for (;;) {
            const Move move = choose();
            if (has_failed() || move.use == Use::stop) return move.status;
            if (move.use == Use::fill)
                add_filler(move.row);
            else
                carry_out(move);
            if (has_failed()) return Status::stopped;
        }
    }

    PYSUBMOD_HD_INLINE Move choose() {
        if (n_started_ < task_.n_initial) {
            const int i = task_.initial[n_started_++];
            return {Use::start, i, refit_.correlation(i), Status::stopped};
        }
        for (;;) {
            if (budget_left_ == 0) return stop(Status::budget);
            if (takeable_ == 0) return stop(Status::exhausted);
            const bool filling = ask_ == Ask::any && !task_.random;
            if (!filling && task_.tol > 0.0 && residual_norm_ <= task_.tol * target_norm_)
                return stop(Status::tolerance);
            if (is_stale_) refresh();
            bool is_bound = false;  // for rule = greedy a score may be only a bound
            const int i = task_.random ? draw(is_bound) : best(is_bound);
            if (has_failed()) return stop(Status::stopped);
            if (i >= 0) {
                const Use use = is_bound ? Use::score : filling ? Use::fill : ask_ == Ask::any ? Use::keep : Use::pick;
                return {use, i, task_.g[i], Status::stopped};
            }
            if (!task_.fill || ask_ == Ask::any)
                return stop(scores_.saw_barred() ? Status::rank_deficient : Status::no_gain);
            ask_ = Ask::any;
        }
    }
    PYSUBMOD_HD static Move stop(Status status) { return {Use::stop, -1, 0.0, status}; }

    PYSUBMOD_HD void refresh() {
        scores_.form_correlations(refit_.n_active());
        is_stale_ = false;
    }

    // Best bound first, until the best is known exactly.
    PYSUBMOD_HD_INLINE int best(bool& is_bound) {
        const int i = scores_.best(ask_);
        if (i < 0 || ask_ == Ask::any || task_.rule != Rule::greedy) return i;
        is_bound = !scores_.is_exact(i);
        team_.sync_all();  // all have looked
        return i;
    }

    // pick = random: any row of the shortlist, each with the same chance; -1: none. For rule = greedy the gains on the
    // list are made exact first, one after another, and the list is made again.
    PYSUBMOD_HD_INLINE int draw(bool& is_bound) {
        for (;;) {
            if (!has_list_) {
                n_listed_ = scores_.shortlist(ask_);
                if (has_failed()) return -1;
                has_list_ = true;
                list_is_exact_ = true;
                looked_at_ = 0;
            }
            const int i = task_.rule == Rule::greedy ? scores_.next_inexact(looked_at_) : task_.n;
            if (i < task_.n) {
                team_.sync_all();
                looked_at_ = i + 1;
                list_is_exact_ = false;
                is_bound = true;
                return i;
            }
            has_list_ = false;
            if (!list_is_exact_) continue;
            if (n_listed_ == 0) return -1;
            const auto count = static_cast<std::uint64_t>(n_listed_);
            return scores_.listed(static_cast<int>(random_below(task_.seed, n_draws_++, count)));
        }
    }

    // Whether the row was taken. A pick that does not really help is barred until the next accepted pick.
    PYSUBMOD_HD_INLINE bool carry_out(const Move& move) {
        const bool improves = refit_.attempt(move.row, move.g) == Entry::improved;
        const double gain = improves ? refit_.last_gain() : 0.0;
        if (improves && move.use != Use::score)
            refit_.accept();
        else
            refit_.take_back();
        if (move.use == Use::score && gain > 0.0) {
            scores_.set_exact(move.row, sqrt(2.0 * gain));
            return false;
        }
        if (move.use == Use::score || (move.use == Use::pick && !improves)) {
            scores_.mark(move.row, Mark::barred);
            return false;
        }
        if (!improves) refit_.add_idle(move.row, move.g);
        const double before = objective_;
        take(move.row, gain);
        if (task_.rule == Rule::greedy) scores_.deflate(move.row);
        settle(move.use == Use::start ? n_started_ == task_.n_initial : objective_ > before);
        return true;
    }

    PYSUBMOD_HD void add_filler(int i) {
        take(i, 0.0);
        record_norm();
        ++n_filled_;
    }

    PYSUBMOD_HD void take(int i, double gain) {
        move(i, -1);
        if (is_writer()) {
            task_.indices[n_selected_] = i;
            task_.gains[n_selected_] = gain;
        }
        ++n_selected_;
        objective_ += gain;
    }

    // After the weights changed: zero members may go, the residual follows, whoever was barred may try again.
    PYSUBMOD_HD_INLINE void settle(bool may_release) {
        scores_.clear_barred();
        if (task_.release_zeros && may_release) release_zeros();
        weights_changed();
        record_norm();
    }
    PYSUBMOD_HD void weights_changed() {
        double squared = 0.0;
        refit_.measure(scale_, squared);
        scores_.set_scale(scale_);
        is_stale_ = true;
        if (!isfinite(target_norm_)) return;
        squared += target_norm_ * target_norm_;
        residual_norm_ = squared > 0.0 ? sqrt(squared) : 0.0;
    }
    PYSUBMOD_HD void record_norm() {
        if (is_writer())
            for (int j = n_norms_; j < n_selected_; ++j) task_.residual_norms[j] = residual_norm_;
        n_norms_ = n_selected_;
    }

    // Members and picks stand in the same order until `fill`; the pick that came last has no residual norm yet.
    PYSUBMOD_HD void release_zeros() {
        int kept = 0, kept_norms = 0;
        team_.sync_all();  // others may still read the correlation of a row that is released
        for (int m = 0; m < refit_.size(); ++m) {
            if (m_.place[m] < 0) {
                move(m_.id[m], 1);
                continue;
            }
            if (is_writer()) {
                task_.indices[kept] = task_.indices[m];
                task_.gains[kept] = task_.gains[m];
                if (m < n_norms_) task_.residual_norms[kept_norms] = task_.residual_norms[m];
            }
            kept_norms += m < n_norms_;
            ++kept;
        }
        n_selected_ = kept;
        n_norms_ = kept_norms;
        refit_.remove_idle();
    }

    // ---- after the last pick ----

    PYSUBMOD_HD_INLINE void finish() {
        team_.sync();  // what the writer has recorded stands before the rest is cleared
        if (fault_ != Fault::none) n_selected_ = n_filled_ = 0;
        const double objective = fault_ == Fault::none ? refit_.refine() : 0.0;
        if (fault_ == Fault::none && !isfinite(objective)) fail(Fault::changed, -1);
        if (team_.block() != 0) return;
        const int members = n_selected_ < refit_.size() ? n_selected_ : refit_.size();
        each(team_, task_.width, [&](int j) {
            task_.weights[j] = j < members ? m_.w[j] : 0.0;
            if (j < n_selected_) return;
            task_.indices[j] = -1;
            if (j >= task_.k) return;
            task_.gains[j] = task_.residual_norms[j] = 0.0;
        });
        if (team_.rank() != 0) return;
        const auto status = static_cast<std::int64_t>(status_);
        const auto fault = static_cast<std::int64_t>(fault_);
        *task_.header = {n_selected_,   n_filled_,    status,    fault,        fault_row_,
                         fault_column_, fault_value_, objective, first_scale_, target_norm_};
        if (task_.n_selected_out) *task_.n_selected_out = n_selected_;
        if (task_.objective_out) *task_.objective_out = objective;
        if (task_.status_out) *task_.status_out = fault != 0 ? -fault : status;
    }

    Team& team_;
    const GramTask& task_;
    Members m_;
    GramRefit<Team> refit_;
    GramScores<Team> scores_;
    Ask ask_;
    Status status_ = Status::stopped;
    bool is_stale_ = false;
    std::int64_t budget_left_ = 0;
    int takeable_ = 0;
    int n_selected_ = 0, n_filled_ = 0, n_norms_ = 0;
    std::uint64_t n_draws_ = 0;
    int n_started_ = 0;  // of `initial`
    int n_listed_ = 0, looked_at_ = 0;
    bool has_list_ = false, list_is_exact_ = true;
    double first_scale_ = 0.0, scale_ = 0.0, objective_ = 0.0, target_norm_ = 0.0, residual_norm_ = kUnknown;
    Fault fault_ = Fault::none;
    int fault_row_ = -1, fault_column_ = -1;
    double fault_value_ = 0.0;
};

// In the block's own memory: what a barrier across blocks makes a card forget of global memory is not read again.
inline constexpr std::size_t kTaskBytes = (sizeof(GramTask) + 15) / 16 * 16;
template <class Team>
PYSUBMOD_HD_INLINE const GramTask& copy_of_task(Team& team, const GramTask& task) {
    static_assert(sizeof(GramTask) % 8 == 0);
    auto* to = reinterpret_cast<double*>(team.fast());
    const auto* from = reinterpret_cast<const double*>(&task);
    each(team, static_cast<int>(sizeof(GramTask) / 8), [&](int j) { to[j] = from[j]; });
    return *reinterpret_cast<const GramTask*>(to);
}

// Where a block keeps its members, its factor and the copies of it.
struct BlockMemory {
    double *own, *factor, *copies;

    template <class Team>
    PYSUBMOD_HD BlockMemory(Team& team, const GramTask& task, Members& members) {
        const std::size_t block = static_cast<std::size_t>(team.block());
        const std::size_t member_bytes = Members::bytes(task.k, task.n_groups), factor_size = factor_bytes(task.k);
        std::byte* fast = team.fast() + kTaskBytes;
        std::byte* at = task.members_are_fast ? fast : task.members + block * member_bytes;
        members.lay_out(at, task.k, task.n_groups);
        own = reinterpret_cast<double*>(at);
        if (task.members_are_fast) fast += member_bytes;
        factor = reinterpret_cast<double*>(task.factor_is_fast ? fast : task.factors + block * factor_size);
        copies = reinterpret_cast<double*>(task.copies + 2 * block * factor_size);
    }
};

// A kernel: one problem to a team.
struct GramPursuitBody {
    const GramTask* tasks;

    template <class Team>
    PYSUBMOD_HD_INLINE void operator()(Team& team) const {
        const GramTask& task = copy_of_task(team, tasks[team.team()]);
        Members members;
        BlockMemory memory(team, task, members);
        GramPursuit<Team>(team, task, members, memory.factor, memory.copies).run();
    }
};

}  // namespace pysubmod::cuda
