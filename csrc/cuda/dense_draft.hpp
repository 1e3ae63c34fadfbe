// The draft: the pursuit run ahead on a pool of rows whose Gram matrix was formed, from where it stands.
#pragma once

#include "cuda/dense_data.hpp"
#include "cuda/gram_pursuit.hpp"

namespace pysubmod::cuda {

// Where the pursuit stands between rounds; the members' arrays and the factor follow it in memory.
struct DraftState {
    int size, n_active, n_selected, takeable;
    std::int64_t budget_left;
    double objective, residual_norm;
};

struct DraftArgs {
    DenseData data;
    int n_members = 0, n_forced = 0, n_pool = 0;
    int limit = 0;          // picks to draft
    bool is_first = false;  // there is no state yet
    bool is_last = false;   // only the forced picks, and the final weights
    DraftState* state = nullptr;
    double* state_members = nullptr;  // Members::bytes, factor_bytes
    double* state_factor = nullptr;
};

template <class Team>
class Draft : public GramPursuit<Team> {
    using Base = GramPursuit<Team>;

  public:
    PYSUBMOD_HD Draft(Team& team, const GramTask& task, const DraftArgs& args, const Members& members, double* own,
                      double* factor, double* copies)
        : Base(team, task, members, factor, copies), args_(args), data_(args.data), own_(own), factor_(factor) {}

    PYSUBMOD_HD_INLINE void run() {
        Base::prepare();
        if (fault_ == Fault::none && !args_.is_first) load();
        status_ = Status::stopped;
        bool has_begun = false;  // the rows that stand, or are forced, are in
        while (!Base::has_failed()) {
            const bool is_given = this->n_started_ < task_.n_initial || n_tried_ < args_.n_forced;
            if (!is_given && !has_begun) {
                has_begun = true;
                record_start();
                if (args_.is_last) return Base::finish();
            }
            const Move move = is_given ? next_given() : next_drafted();
            if (Base::has_failed() || move.use == Use::stop) break;
            const bool accepted = Base::carry_out(move);
            if (Base::has_failed()) break;
            if (!accepted)
                record_barred(move.row);
            else if (has_begun)
                record_pick(move.row);
            else if (move.use == Use::pick)
                record_gain();
        }
        // What fails in the draft may never come; if it does, it fails there.
        if (!has_begun) return record_fault();
        if (is_writer()) {
            data_.result->status = static_cast<int>(status_);
            data_.result->n_steps = n_steps_;
            data_.result->n_barred = n_barred_ < kMostBarred ? n_barred_ : kMostBarred;
        }
        each(team_, refit_.size(), [&](int m) {
            if (team_.block() == 0) data_.member_rows[m] = data_.pool_rows[m_.id[m]];
        });
    }

  private:
    using Base::fault_;
    using Base::fault_row_;
    using Base::is_stale_;
    using Base::is_writer;
    using Base::m_;
    using Base::refit_;
    using Base::scores_;
    using Base::status_;
    using Base::task_;
    using Base::team_;
    using typename Base::Move;
    using typename Base::Use;

    PYSUBMOD_HD static int doubles_of(const GramTask& task) {
        return static_cast<int>(Members::bytes(task.k, task.n_groups) / sizeof(double));
    }

    PYSUBMOD_HD_INLINE void load() {
        const DraftState& state = *args_.state;
        each(team_, doubles_of(task_), [&](int j) { own_[j] = args_.state_members[j]; });
        each(team_, state.n_active * factor_stride(task_.k), [&](int j) { factor_[j] = args_.state_factor[j]; });
        refit_.restore(state.size, state.n_active);
        this->n_selected_ = this->n_norms_ = state.n_selected;
        this->budget_left_ = state.budget_left;
        this->takeable_ = state.takeable;
        this->objective_ = state.objective;
        this->residual_norm_ = state.residual_norm;
        // Members stand first in the pool, in their order.
        scores_.each_own([&](int i) {
            if (i < state.size) task_.mark[i] = static_cast<std::uint8_t>(Mark::selected);
        });
        Base::weights_changed();
        team_.sync_all();  // all have read the state
    }

    PYSUBMOD_HD_INLINE void save() {
        team_.sync_all();
        if (team_.block() != 0) return;
        each(team_, doubles_of(task_), [&](int j) { args_.state_members[j] = own_[j]; });
        each(team_, refit_.n_active() * factor_stride(task_.k), [&](int j) { args_.state_factor[j] = factor_[j]; });
        each(team_, task_.n_groups, [&](int p) { data_.left[p] = m_.left[p]; });
        if (team_.rank() == 0)
            *args_.state = {refit_.size(),      refit_.n_active(), this->n_selected_,   this->takeable_,
                            this->budget_left_, this->objective_,  this->residual_norm_};
        team_.sync();
    }

    // A row of `initial`, or one that the last round showed to be the next pick.
    PYSUBMOD_HD_INLINE Move next_given() {
        const bool stands = this->n_started_ < task_.n_initial;
        const int i = stands ? task_.initial[this->n_started_++] : args_.n_members + n_tried_++;
        return {stands ? Use::start : Use::pick, i, refit_.correlation(i), Status::stopped};
    }
    PYSUBMOD_HD_INLINE Move next_drafted() {
        if (this->budget_left_ == 0) status_ = Status::budget;
        if (this->budget_left_ > 0 && this->takeable_ == 0) status_ = Status::exhausted;
        if (status_ != Status::stopped || n_steps_ == args_.limit || n_barred_ >= kMostBarred)
            return Base::stop(status_);
        if (is_stale_) Base::refresh();
        const int i = scores_.best(Ask::improving);
        if (i < 0) return Base::stop(status_);
        return {Use::pick, i, task_.g[i], status_};
    }

    PYSUBMOD_HD_INLINE void record_start() {
        record_fault();
        save();
        record_step();
    }
    PYSUBMOD_HD_INLINE void record_fault() {
        if (!is_writer()) return;
        data_.result->fault = static_cast<int>(fault_);
        data_.result->fault_row = fault_row_ >= 0 ? static_cast<int>(data_.pool_rows[fault_row_]) : -1;
        data_.result->n_members = refit_.size();
        data_.result->n_forced = n_gains_;
        data_.result->n_steps = data_.result->n_barred = 0;
        if (fault_ != Fault::none) data_.step_size[0] = 0;  // what was queued behind this must find something
    }
    PYSUBMOD_HD_INLINE void record_gain() {
        if (is_writer()) data_.result->gains[n_gains_] = refit_.last_gain();
        ++n_gains_;
    }
    PYSUBMOD_HD_INLINE void record_pick(int i) {
        if (is_writer()) data_.result->picks[n_steps_] = static_cast<int>(data_.pool_rows[i]);
        record_gain();
        ++n_steps_;
        record_step();
    }
    PYSUBMOD_HD_INLINE void record_barred(int i) {
        if (is_writer() && n_barred_ < kMostBarred) {
            data_.result->barred_rows[n_barred_] = static_cast<int>(data_.pool_rows[i]);
            data_.result->barred_steps[n_barred_] = n_steps_;
        }
        ++n_barred_;
    }

    PYSUBMOD_HD_INLINE void record_step() {
        if (team_.block() != 0) return;
        double* weights = data_.weights + static_cast<Index>(n_steps_) * task_.k;
        each(team_, task_.k, [&](int m) { weights[m] = m < refit_.size() ? m_.w[m] : 0.0; });
        if (team_.rank() != 0) return;
        data_.scales[n_steps_] = this->scale_;
        data_.step_size[n_steps_] = refit_.size();
    }

    const DraftArgs& args_;
    const DenseData& data_;
    double *own_, *factor_;
    int n_tried_ = 0;  // of the forced rows
    int n_steps_ = 0, n_barred_ = 0, n_gains_ = 0;
};

struct DraftBody {
    const GramTask* task;
    DraftArgs args;

    template <class Team>
    PYSUBMOD_HD_INLINE void operator()(Team& team) const {
        const GramTask& own = copy_of_task(team, *task);
        Members members;
        const BlockMemory memory(team, own, members);
        Draft<Team>(team, own, args, members, memory.own, memory.factor, memory.copies).run();
    }
};

}  // namespace pysubmod::cuda
