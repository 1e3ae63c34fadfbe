// Drives the draft-and-verify pursuit on rows in device memory: a round at a time, the host waiting once in each.
#pragma once

#include <algorithm>
#include <cmath>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "cuda/dense_draft.hpp"
#include "cuda/dense_pass.hpp"
#include "cuda/dense_steps.hpp"
#include "cuda/gram_product.hpp"
#include "cuda/gram_solve.hpp"
#include "cuda/products.hpp"

namespace pysubmod::cuda {

template <class Device>
class DenseSolve {
  public:
    // `target` is float64 in device memory.
    DenseSolve(Device& device, const View& rows, const double* target, const Constraint& constraint,
               const Options& options, Monitor& monitor, double fewest_for_blas = BlasPass::kFewestNumbers)
        : device_(device),
          constraint_(constraint),
          options_(options),
          monitor_(monitor),
          fewest_for_blas_(fewest_for_blas) {
        check_options();
        data_.rows = rows;
        data_.target = target;
        data_.n = static_cast<int>(rows.rows);
        data_.n_groups = static_cast<int>(constraint.budgets.size());
        data_.k = static_cast<int>(std::max<Index>(1, most_members(constraint)));
        data_.ridge = options.ridge, data_.tilt = options.tilt, data_.tol = options.tol;
        data_.nonneg = options.nonneg;
        data_.normalized = options.rule == Rule::normalized;
        data_.error = kDirectionError + kVectorsError;
    }

    Solution run() {
        prepare();
        if (members_.empty() && result_.n_candidates == 0 && !find_first()) return finish_empty();
        for (bool go_on = true; go_on;) {
            if (monitor_.interrupted()) throw Interrupted();
            round();
            go_on = follow();
        }
        return finish();
    }

    const Grid& draft_grid() const { return grid_; }
    bool used_blas() const { return pass_ && pass_->used_blas(); }

  private:
    static constexpr double kDirectionError = 4 * 0x1p-24;  // a direction is rounded to float32
    static constexpr int kThreads = 256, kFewestCandidates = 32, kMostCandidates = 512;

    void check_options() const {
        const auto refuse = [](const char* what, const char* cure) {
            throw InvalidArgument(std::string(what) + " is not for route='draft' on a device; use " + cure);
        };
        if (options_.rule == Rule::greedy) refuse("rule: 'greedy'", "route='gram', or solve on the CPU");
        if (options_.pick == Pick::random) refuse("pick: 'random'", "route='gram', or solve on the CPU");
        if (options_.fill) refuse("fill: True", "route='gram', or solve on the CPU");
        if (options_.release_zeros) refuse("release_zeros: True", "route='gram', or solve on the CPU");
        if (options_.swap) refuse("refine: 'swap'", "the CPU");
    }

    // ---- before the first round ----

    void prepare() {
        const auto n = static_cast<std::size_t>(data_.n), d = static_cast<std::size_t>(data_.rows.columns);
        const double bytes = static_cast<double>(data_.rows.columns) * bytes_of(data_.rows.storage);
        const double step_bytes = 4.0 + 20.0 * static_cast<double>(data_.rows.columns) / data_.n;  // for each row
        most_steps_ = static_cast<int>(std::clamp(0.25 * bytes / step_bytes, 3.0, static_cast<double>(kMostSteps)));
        limit_ = std::min(8, most_steps_);
        room_ = std::clamp(data_.n / 12, kFewestCandidates, kMostCandidates);
        teams_ = static_cast<int>(
            std::clamp<Index>(pieces(data_.n, kThreads), 1, 4 * static_cast<Index>(device_.multiprocessors())));
        lay_out(n, d);
        pass_.emplace(device_, data_.rows, most_steps_ + 1, fewest_for_blas_);
        upload_constraint();
        form_linear(device_, data_.rows, data_.target, data_.linear, data_.square);
        run_one(TargetNormBody{data_.target, data_.rows.columns, data_.target_norm}, sizeof(double) * kWideLanes);
        check_rows();
        choose_first_candidates();
    }

    void lay_out(std::size_t n, std::size_t d) {
        const auto steps = static_cast<std::size_t>(most_steps_ + 1), k = static_cast<std::size_t>(data_.k);
        const auto groups = static_cast<std::size_t>(data_.n_groups), tiles = static_cast<std::size_t>(data_.n_tiles());
        const std::size_t pool = k + static_cast<std::size_t>(room_) + steps + 1;
        Layout work;
        work.add(data_.square, n), work.add(data_.linear, n), work.add(data_.closed, n);
        work.add(data_.products, steps * n);
        work.add(data_.prefix_rows, pool), work.add(data_.candidates, static_cast<std::size_t>(room_));
        work.add(data_.pool_rows, pool), work.add(data_.member_rows, k);
        work.add(data_.weights, steps * k), work.add(data_.scales, steps), work.add(data_.step_size, steps);
        work.add(data_.residuals, steps * d), work.add(data_.partial, steps * tiles), work.add(data_.norms, steps);
        work.add(data_.directions, steps * d);
        work.add(data_.n_contenders, steps), work.add(data_.contenders, steps * kContenders);
        work.add(data_.contender_g, steps * kContenders);
        work.add(data_.winners, steps), work.add(data_.surely, steps);
        work.add(data_.bounds, steps * static_cast<std::size_t>(teams_));
        work.add(data_.group_closed, groups), work.add(data_.left, groups), work.add(data_.histogram, kBins);
        work.add(data_.target_norm, 1), work.add(data_.result, 1);
        work.add(barred_, n), work.add(lowest_, static_cast<std::size_t>(teams_));
        work.add(parts_, static_cast<std::size_t>(teams_)), work.add(scale_, 1), work.add(task_on_device_, 1);
        lay_out_draft(work, pool);
        work.place(device_.template allocate<std::byte>(work.bytes()));
    }

    // What the pursuit on the pool works in.
    void lay_out_draft(Layout& work, std::size_t pool) {
        const auto k = static_cast<std::size_t>(data_.k);
        task_.n_groups = data_.n_groups;
        task_.k = task_.width = data_.k;
        const std::size_t member_bytes = Members::bytes(task_.k, task_.n_groups), factor_size = factor_bytes(task_.k);
        task_.members_are_fast = kTaskBytes + member_bytes <= device_.fast_bytes();
        task_.factor_is_fast =
            task_.members_are_fast && kTaskBytes + member_bytes + factor_size <= device_.fast_bytes();
        grid_ = {.teams = 1, .blocks = std::min(4, device_.most_blocks()), .threads = kThreads};
        grid_.fast_bytes =
            kTaskBytes + (task_.members_are_fast ? member_bytes : 0) + (task_.factor_is_fast ? factor_size : 0);
        const auto blocks = static_cast<std::size_t>(grid_.blocks);
        for (double** list : {&task_.c, &task_.diagonal, &task_.root, &task_.g}) work.add(*list, pool);
        work.add(task_.mark, pool), work.add(task_.exchange, 2 * 3 * blocks);
        if (!task_.members_are_fast) work.add(task_.members, blocks * member_bytes);
        if (!task_.factor_is_fast) work.add(task_.factors, blocks * factor_size);
        work.add(task_.copies, 2 * blocks * factor_size);
        work.add(task_.header, 1), work.add(task_.gains, k), work.add(task_.residual_norms, k);
        work.add(task_.indices, k), work.add(task_.weights, k);
        work.add(pool_gram_, pool * pool), work.add(pool_linear_, pool), work.add(pool_groups_, pool);
        work.add(pool_marks_, pool);
        work.add(args_.state, 1), work.add(args_.state_members, member_bytes / sizeof(double));
        work.add(args_.state_factor, factor_size / sizeof(double));
    }

    void upload_constraint() {
        const auto n = static_cast<std::size_t>(data_.n);
        if (constraint_.group_of.size() != n) throw InvalidArgument("groups: must have one entry per row");
        DeviceConstraint books(constraint_);
        std::vector<std::uint32_t> closed(n);
        for (std::size_t i = 0; i < n; ++i) closed[i] = books.pool[i] & kInPool ? 0 : ~0u;
        std::vector<std::int32_t> places;
        for (const std::int32_t row : books.initial) {  // they stand in the pool from the start
            const auto at = static_cast<std::size_t>(row);
            const auto group = static_cast<std::size_t>(constraint_.group_of[at]);
            books.available[group] -= (books.pool[at] & kMayBePicked) != 0;
            places.push_back(static_cast<std::int32_t>(members_.size()));
            members_.push_back(row);
        }
        Upload inputs;
        inputs.add(data_.group_of, constraint_.group_of);
        inputs.add(task_.budgets, std::span<const std::int32_t>(books.budgets));
        inputs.add(task_.available, std::span<const std::int32_t>(books.available));
        inputs.add(task_.initial, std::span<const std::int32_t>(places));
        inputs.send(device_);
        device_.upload(data_.closed, closed.data(), n);
    }

    void check_rows() {
        run_teams(SetupBody{data_, parts_, teams_});
        std::vector<SetupPart> parts(static_cast<std::size_t>(teams_));
        device_.download(parts.data(), parts_, parts.size());
        device_.download(&target_norm_, data_.target_norm, 1);
        SetupPart all{target_norm_, kInfinity, 0.0, data_.n};
        for (const SetupPart& part : parts) {
            all.scale = std::max(all.scale, part.scale), all.largest = std::max(all.largest, part.largest);
            all.smallest = std::min(all.smallest, part.smallest), all.fault = std::min(all.fault, part.fault);
        }
        if (!std::isfinite(target_norm_)) throw InvalidArgument("target: contains NaN or infinity");
        if (all.fault < data_.n)
            throw InvalidArgument("G: row " + std::to_string(all.fault) +
                                  " contains NaN or infinity; remove it or mask it with candidates");
        if (all.largest > 1e40 || all.smallest < 1e-40 || 0.5 * std::abs(data_.tilt) * all.largest > 1e30)
            throw InvalidArgument(
                "route: 'draft' needs norms of rows between 1e-20 and 1e20 (with a tilt, tilt/2 times "
                "their squares below 1e30); use route='gram', or rescale G");
        first_scale_ = all.scale;
        device_.upload(scale_, &first_scale_, 1);
        std::vector<std::uint32_t> shut(1, ~0u);
        for (const int row : members_) device_.upload(data_.closed + row, shut.data(), 1);
    }

    void choose_first_candidates() {
        const DraftResult nothing{};
        const std::vector<std::uint32_t> open(static_cast<std::size_t>(data_.n_groups), 0);
        device_.upload(data_.result, &nothing, 1);
        device_.upload(data_.scales, &first_scale_, 1);
        device_.upload(data_.group_closed, open.data(), open.size());
        run_teams(FirstProductsBody{data_, teams_});
        run_teams(BoundBody{data_, teams_});
        run_one(BarBody{data_, teams_});
        choose_candidates();
        device_.download(&result_, data_.result, 1);
        args_.is_first = true;
    }

    // Where no row surely helps at the start, and so none was proposed.
    bool find_first() {
        const PartitionMatroid matroid(constraint_.group_of, constraint_.budgets, constraint_.candidates);
        solution_.status = matroid.full() ? Status::budget : Status::exhausted;
        if (matroid.full() || matroid.exhausted()) return false;
        solution_.status = Status::tolerance;
        if (options_.tol > 0.0 && target_norm_ <= options_.tol * target_norm_) return false;
        solution_.status = Status::no_gain;
        std::vector<double> target(static_cast<std::size_t>(data_.rows.columns));
        device_.download(target.data(), data_.target, target.size());
        device_.upload(data_.residuals, target.data(), target.size());
        if (look_at_all(0) == Verdict::nobody) return false;
        forced_.push_back(result_.winner);
        return true;
    }

    Solution finish_empty() {
        record_work();
        return std::move(solution_);
    }

    // ---- a round ----

    void round() {
        draft(false);
        const int steps = limit_ + 1, tiles = data_.n_tiles();
        by_storage(data_.rows.storage,
                   [&](auto storage) { run(tiles, ResidualBody<decltype(storage)::value>{data_}); });
        run(steps, NormBody{data_});
        run(tiles, DirectionBody{data_, steps});
        data_.error = kDirectionError + pass_->multiply(data_.directions, steps, data_.products);
        run_one(CloseBody{data_, n_before_, static_cast<int>(forced_.size()), barred_, n_barred()});
        run_teams(BoundBody{data_, teams_});
        run(steps, BarBody{data_, teams_});
        run_teams(ContendBody{data_, teams_});
        run(steps, JudgeBody{data_}, sizeof(double) * kWideLanes);
        run_one(DecideBody{data_});
        choose_candidates();
        norms_.resize(static_cast<std::size_t>(steps));
        device_.download(&result_, data_.result, 1);
        device_.download(norms_.data(), data_.norms, norms_.size());
        ++passes_;
    }

    void draft(bool is_last) {
        std::vector<int> prefix = members_;
        n_before_ = static_cast<int>(members_.size());
        prefix.insert(prefix.end(), forced_.begin(), forced_.end());
        const int n_prefix = static_cast<int>(prefix.size()),
                  n_candidates = is_last ? 0 : std::min(result_.n_candidates, room_);
        device_.upload(data_.prefix_rows, prefix.data(), prefix.size());
        const int n_taken = std::max(0, static_cast<int>(forced_.size()) - (is_last ? 0 : 1));
        run_one(ReopenBody{data_, n_before_, n_taken, barred_, n_barred()});
        barred_now_ = std::exchange(next_barred_, {});
        upload_barred();
        run_one(GatherBody{data_, n_before_, n_prefix, n_candidates, pool_linear_, pool_groups_, pool_marks_});
        const Index n_pool = n_prefix + n_candidates;
        form_gram_of(device_, data_.rows, data_.pool_rows, n_pool, pool_gram_);
        describe_task(n_pool);
        args_.data = data_;
        args_.n_members = n_before_, args_.n_forced = static_cast<int>(forced_.size());
        args_.n_pool = static_cast<int>(n_pool), args_.limit = limit_, args_.is_last = is_last;
        device_.run(grid_, DraftBody{task_on_device_, args_});
    }

    void describe_task(Index n_pool) {
        task_.n = static_cast<int>(n_pool);
        task_.gram = {pool_gram_, n_pool, n_pool, n_pool, Storage::float64};
        task_.linear = {pool_linear_, 1, n_pool, n_pool, Storage::float64};
        task_.group_of = pool_groups_;
        task_.pool = pool_marks_;
        task_.n_initial = args_.is_first ? static_cast<int>(members_.size()) : 0;
        task_.target_norm_at = data_.target_norm;
        task_.scale_at = scale_;
        task_.ridge = options_.ridge, task_.tilt = options_.tilt;
        task_.rank_tolerance = kRankToleranceGram64;
        task_.rule = options_.rule;
        task_.nonneg = options_.nonneg;
        task_.in_range = options_.tilt == 0.0;
        device_.upload(task_on_device_, &task_, 1);
    }

    int n_barred() const { return static_cast<int>(barred_now_.size()); }
    void upload_barred() {
        if (!barred_now_.empty()) device_.upload(barred_, barred_now_.data(), barred_now_.size());
    }

    void choose_candidates() {
        run_one(ClearBinsBody{data_});
        run_teams(CountBody{data_, teams_}, sizeof(int) * kBins);
        run_one(CutBody{data_, room_}, CutBody::fast_bytes());
        run_teams(AppendBody{data_, room_, teams_});
    }

    template <class Body>
    void run(int teams, const Body& body, std::size_t fast_bytes = 0) {
        device_.run({.teams = teams, .threads = kThreads, .fast_bytes = fast_bytes}, body);
    }
    template <class Body>
    void run_one(const Body& body, std::size_t fast_bytes = 0) {
        run(1, body, fast_bytes);
    }
    template <class Body>
    void run_teams(const Body& body, std::size_t fast_bytes = 0) {
        run(teams_, body, fast_bytes);
    }

    // ---- after a round ----

    // Takes over what the round showed to be right; false at the end.
    bool follow() {
        check_fault();
        take_over_start();
        const int reached = result_.reached;
        std::vector<int> barred;
        for (int j = 0; j < result_.n_barred; ++j)
            if (result_.barred_steps[j] == reached) barred.push_back(result_.barred_rows[j]);
        if (reached == 0) barred.insert(barred.end(), barred_now_.begin(), barred_now_.end());
        std::sort(barred.begin(), barred.end());
        barred.erase(std::unique(barred.begin(), barred.end()), barred.end());
        forced_.assign(result_.picks, result_.picks + reached);
        for (int j = 0; j < reached; ++j) {
            solution_.indices.push_back(result_.picks[j]);
            solution_.gains.push_back(result_.gains[result_.n_forced + j]);
            solution_.residual_norms.push_back(norms_[static_cast<std::size_t>(j) + 1]);
        }
        auto verdict = static_cast<Verdict>(result_.verdict);
        if (verdict == Verdict::too_many) verdict = look_at_all(reached);
        learn(reached);
        if (verdict == Verdict::next) {
            next_barred_ = barred;
            forced_.push_back(result_.winner);
            return true;
        }
        solution_.status = verdict == Verdict::tolerance ? Status::tolerance
                           : verdict == Verdict::draft   ? static_cast<Status>(result_.status)
                           : barred.empty()              ? Status::no_gain
                                                         : Status::rank_deficient;
        return false;
    }

    // What the draft began with: members, and the forced row that came last, if it was accepted.
    void take_over_start() {
        if (args_.is_first) {
            args_.is_first = false;
            std::vector<double> gains(members_.size()), norms(members_.size());
            device_.download(gains.data(), task_.gains, gains.size());
            device_.download(norms.data(), task_.residual_norms, norms.size());
            solution_.indices.assign(members_.begin(), members_.end());
            solution_.gains = gains, solution_.residual_norms = norms;
        }
        if (forced_.empty()) return;
        const bool all_accepted = result_.n_forced == static_cast<int>(forced_.size());
        members_.insert(members_.end(), forced_.begin(), forced_.begin() + result_.n_forced);
        if (!all_accepted) return;
        solution_.indices.push_back(forced_.back());
        solution_.gains.push_back(result_.gains[result_.n_forced - 1]);
        solution_.residual_norms.push_back(norms_[0]);
        barred_now_.clear();
    }

    // In float64, where the intervals cannot tell: one pass more.
    Verdict look_at_all(int step) {
        if (!exact_) {
            exact_ = device_.template allocate<double>(static_cast<std::size_t>(data_.n));
            unused_ = device_.template allocate<double>(static_cast<std::size_t>(data_.n));
            room_for_all_ = device_.template allocate<double>(linear_room(data_.rows));
        }
        form_linear(device_, data_.rows, data_.residuals + step * data_.rows.columns, exact_, unused_, room_for_all_);
        run_teams(ExactBoundBody{data_, exact_, teams_});
        run_teams(ExactLowestBody{data_, exact_, teams_, lowest_});
        choose_candidates();
        std::vector<int> lowest(static_cast<std::size_t>(teams_));
        device_.download(lowest.data(), lowest_, lowest.size());
        device_.download(&result_.n_candidates, &data_.result->n_candidates, 1);
        result_.winner = *std::min_element(lowest.begin(), lowest.end());
        ++passes_;
        return result_.winner < data_.n ? Verdict::next : Verdict::nobody;
    }

    // A draft that was right to its end may be longer; one that was not should end a little after.
    void learn(int reached) {
        const int wanted =
            reached == result_.n_steps && reached == limit_ ? 2 * limit_ : reached + std::max(4, reached / 2);
        limit_ = std::clamp(wanted, std::min(4, most_steps_), most_steps_);
    }

    void check_fault() const {
        const auto fault = static_cast<Fault>(result_.fault);
        const std::string row = std::to_string(result_.fault_row);
        if (fault == Fault::none) return;
        if (fault == Fault::unbounded)
            throw Unbounded(
                "tilt: the objective is unbounded: row " + row +
                " depends linearly on rows already selected, but the tilt rewards it all the same; pass ridge > "
                "0, or tilt = 0");
        if (fault == Fault::scale)
            throw InvalidArgument("tilt: too large for the norms of G; the objective would leave float64: rescale");
        if (fault == Fault::tilt)
            throw InvalidArgument("tilt: too large for the norms of G; the linear term overflows");
        if (fault == Fault::no_convergence)
            throw std::runtime_error("the active set method did not end; please report this problem");
        throw InvalidArgument("G: row " + row + " is no longer finite; it must not change during a solve");
    }

    Solution finish() {
        draft(true);
        GramHeader header;
        device_.download(&header, task_.header, 1);
        device_.download(&result_, data_.result, 1);
        check_fault();
        solution_.weights.resize(solution_.indices.size());
        device_.download(solution_.weights.data(), task_.weights, solution_.weights.size());
        solution_.objective = header.objective;
        record_work();
        return std::move(solution_);
    }

    void record_work() {
        solution_.target_norm = target_norm_;
        solution_.scale = first_scale_;
        solution_.route = Route::draft;
        solution_.passes = passes_;
        solution_.bytes_read = static_cast<double>(passes_) * static_cast<double>(data_.rows.rows) *
                               static_cast<double>(data_.rows.columns) * bytes_of(data_.rows.storage);
        solution_.threads = 0;
    }

    Device& device_;
    const Constraint& constraint_;
    const Options& options_;
    Monitor& monitor_;
    double fewest_for_blas_;
    std::optional<Pass<Device>> pass_;
    DenseData data_;
    GramTask task_;
    DraftArgs args_;
    Grid grid_;
    int most_steps_ = 0, limit_ = 0, room_ = 0, teams_ = 1;
    // Device memory.
    GramTask* task_on_device_ = nullptr;
    double *pool_gram_ = nullptr, *pool_linear_ = nullptr, *scale_ = nullptr, *exact_ = nullptr, *unused_ = nullptr,
           *room_for_all_ = nullptr;
    std::int32_t* pool_groups_ = nullptr;
    std::uint8_t* pool_marks_ = nullptr;
    int *barred_ = nullptr, *lowest_ = nullptr;
    SetupPart* parts_ = nullptr;
    // Where the pursuit stands: members are in the state on the device; forced rows enter it with the next draft.
    std::vector<int> members_, forced_, barred_now_, next_barred_;
    int n_before_ = 0;
    DraftResult result_{};
    std::vector<double> norms_;
    double target_norm_ = 0.0, first_scale_ = 0.0;
    Index passes_ = 1;  // form_linear
    Solution solution_;
};

}  // namespace pysubmod::cuda
