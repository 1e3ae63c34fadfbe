// The kernels of a round beside draft and pass: the pool, the residuals, the verification of the picks, the candidates
// of the next round. Every kernel has its work shared out over independent teams of one block.
#pragma once

#include "cuda/dense_data.hpp"
#include "cuda/products.hpp"
#include "cuda/team.hpp"

namespace pysubmod::cuda {

// What the pursuit on the pool is given, and the list of the pool's rows: members and forced rows, then the candidates
// in ascending order.
struct GatherBody {
    DenseData data;
    int n_members, n_prefix, n_candidates;
    double* linear;
    std::int32_t* group_of;
    std::uint8_t* pool;

    template <class Team>
    PYSUBMOD_HD void operator()(Team& team) const {
        each(team, n_candidates, [&](int j) {
            const int row = data.candidates[j];
            int place = 0;
            for (int other = 0; other < n_candidates; ++other) place += data.candidates[other] < row;
            data.pool_rows[n_prefix + place] = row;
        });
        each(team, n_prefix, [&](int j) { data.pool_rows[j] = data.prefix_rows[j]; });
        each(team, n_prefix + n_candidates, [&](int j) {
            const auto row = static_cast<int>(data.pool_rows[j]);
            linear[j] = data.linear[row];
            group_of[j] = data.group_of[row];
            bool stands_before = false;  // the forced row may be among the candidates, too
            for (int f = n_members; j >= n_prefix && f < n_prefix; ++f)
                stands_before = stands_before || data.prefix_rows[f] == row;
            pool[j] = j < n_members || stands_before ? kInPool : kInPool | kMayBePicked;
        });
    }
};

// Before the first round: what is wrong with the rows, and the scale E_0. Each team leaves its part.
struct SetupPart {
    double scale, smallest, largest;  // E_0 without ||t||; of the squares that are not 0
    Index fault;                      // the first row whose numbers are not finite, or n
};
struct SetupBody {
    DenseData data;
    SetupPart* parts;
    int teams;

    template <class Team>
    PYSUBMOD_HD void operator()(Team& team) const {
        double scale = 0.0, smallest = kInfinity, largest = 0.0;
        int fault = data.n;
        for (int i = team.team() * team.size() + team.rank(); i < data.n; i += teams * team.size()) {
            if (data.closed[i] == ~0u) continue;
            const double square = data.square[i], c = data.linear[i] + 0.5 * data.tilt * square;
            if (!(isfinite(square) && isfinite(c))) {
                fault = i < fault ? i : fault;
                continue;
            }
            if (square == 0.0) continue;
            smallest = square < smallest ? square : smallest;
            largest = square > largest ? square : largest;
            const double share = fabs(c) / data.root(i);
            scale = share > scale ? share : scale;
        }
        scale = team.max(scale);
        smallest = -team.max(-smallest);
        largest = team.max(largest);
        fault = team.min(fault);
        if (team.rank() == 0) parts[team.team()] = {scale, smallest, largest, fault};
    }
};

// Products "with the residual of length 1" for step 0 of the first round, from c = G t.
struct FirstProductsBody {
    DenseData data;
    int teams;

    template <class Team>
    PYSUBMOD_HD void operator()(Team& team) const {
        const double norm = *data.target_norm;
        for (int i = team.team() * team.size() + team.rank(); i < data.n; i += teams * team.size())
            data.products[i] = norm > 0.0 ? static_cast<float>(data.linear[i] / norm) : 0.0f;
        if (team.team() == 0 && team.rank() == 0) data.norms[0] = norm;
    }
};

// The norm of the target, by one team; fast memory for kWideLanes numbers.
struct TargetNormBody {
    const double* target;
    Index d;
    double* norm;

    template <class Team>
    PYSUBMOD_HD void operator()(Team& team) const {
        auto* room = reinterpret_cast<double*>(team.fast());
        const double squares = wide_sum(team, d, room, [&](Index j) { return target[j] * target[j]; });
        if (team.rank() == 0) *norm = sqrt(squares);
    }
};

// r = t - G_S' w at every step, a tile of columns to a team, and what the tile adds to ||r||^2.
template <Storage S>
struct ResidualBody {
    DenseData data;

    template <class Team>
    PYSUBMOD_HD void operator()(Team& team) const {
        const int steps = data.result->n_steps + 1, tile = team.team();
        const Index d = data.rows.columns, begin = static_cast<Index>(tile) * kTileColumns;
        const auto columns = static_cast<int>(begin + kTileColumns < d ? kTileColumns : d - begin);
        const int spans = (steps + kAtOnce - 1) / kAtOnce;  // a column and some steps to a thread
        each(team, columns * spans, [&](int j) { subtract(j / columns * kAtOnce, steps, begin + j % columns); });
        for (int step = 0; step < steps; ++step) {
            const double* r = data.residuals + step * d + begin;
            const double squares = sum(team, columns, [&](int j) { return r[j] * r[j]; });
            if (team.rank() == 0) data.partial[step * data.n_tiles() + tile] = squares;
        }
    }

  private:
    static constexpr int kAtOnce = 8, kAhead = 8;
    PYSUBMOD_HD void subtract(int first, int steps, Index column) const {
        double r[kAtOnce];
        PYSUBMOD_UNROLL
        for (int s = 0; s < kAtOnce; ++s) r[s] = data.target[column];
        const int last = first + kAtOnce < steps ? first + kAtOnce : steps;
        const int members = data.step_size[last - 1];
        for (int m = 0; m < members; m += kAhead) {  // loads on their way together
            double x[kAhead];
            PYSUBMOD_UNROLL
            for (int l = 0; l < kAhead; ++l) {
                const Index row = data.member_rows[m + l < members ? m + l : members - 1];
                x[l] = static_cast<double>(Stored<S>::load(data.rows.data, row * data.rows.stride + column));
            }
            PYSUBMOD_UNROLL
            for (int l = 0; l < kAhead; ++l) {
                if (m + l >= members) break;
                PYSUBMOD_UNROLL
                for (int s = 0; s < kAtOnce; ++s)
                    if (first + s < last)
                        r[s] = fma(-data.weights[static_cast<Index>(first + s) * data.k + m + l], x[l], r[s]);
            }
        }
        PYSUBMOD_UNROLL
        for (int s = 0; s < kAtOnce; ++s)
            if (first + s < last) data.residuals[(first + s) * data.rows.columns + column] = r[s];
    }
};

// A step to a team.
struct NormBody {
    DenseData data;

    template <class Team>
    PYSUBMOD_HD void operator()(Team& team) const {
        const int step = team.team();
        if (step > data.result->n_steps) return;
        const double* partial = data.partial + static_cast<Index>(step) * data.n_tiles();
        const double squares = sum(team, data.n_tiles(), [&](int tile) { return partial[tile]; });
        const bool is_target = data.step_size[step] == 0;  // whose norm is known, from a sum in another order
        if (team.rank() == 0) data.norms[step] = is_target ? *data.target_norm : sqrt(squares);
    }
};

// The residuals with length 1, in float32; zeros for steps that the draft did not reach.
struct DirectionBody {
    DenseData data;
    int steps;  // that the pass will take

    template <class Team>
    PYSUBMOD_HD void operator()(Team& team) const {
        const Index d = data.rows.columns, begin = static_cast<Index>(team.team()) * kTileColumns;
        const auto columns = static_cast<int>(begin + kTileColumns < d ? kTileColumns : d - begin);
        for (int step = 0; step < steps; ++step) {
            const bool is_there = step <= data.result->n_steps && data.norms[step] > 0.0;
            each(team, columns, [&](int j) {
                const Index at = step * d + begin + j;
                data.directions[at] = is_there ? static_cast<float>(data.residuals[at] / data.norms[step]) : 0.0f;
            });
        }
    }
};

// The books of who may be picked at which step; one team. Before the draft: what the last one wrote is taken back, and
// the first `n_taken` forced rows, which it was right about, are picked for good.
struct ReopenBody {
    DenseData data;
    int n_members, n_taken;
    const int* barred;
    int n_barred;

    template <class Team>
    PYSUBMOD_HD void operator()(Team& team) const {
        const DraftResult& result = *data.result;
        each(team, result.n_steps, [&](int j) { data.closed[result.picks[j]] = 0; });
        if (team.rank() == 0) {  // a row may be there more than once
            for (int j = 0; j < result.n_barred; ++j) data.closed[result.barred_rows[j]] = 0;
            for (int j = 0; j < n_barred; ++j) data.closed[barred[j]] = 0;
        }
        team.sync();
        each(team, n_taken, [&](int j) { data.closed[data.prefix_rows[n_members + j]] = ~0u; });
    }
};

// After the draft: its picks, and what it found barred. The last forced row is picked for good if it was accepted; if
// not, the rows in `barred` cannot help at step 0 either.
struct CloseBody {
    DenseData data;
    int n_members, n_forced;
    const int* barred;
    int n_barred;

    template <class Team>
    PYSUBMOD_HD void operator()(Team& team) const {
        const DraftResult& result = *data.result;
        const bool all_accepted = result.n_forced == n_forced;
        each(team, result.n_steps, [&](int j) { data.closed[result.picks[j]] = ~0u << (j + 1); });
        if (team.rank() == 0) {
            for (int j = 0; j < result.n_barred; ++j)
                data.closed[result.barred_rows[j]] |= 1u << result.barred_steps[j];
            for (int j = 0; j < n_barred && !all_accepted; ++j) data.closed[barred[j]] |= 1u;
            if (n_forced > 0 && all_accepted) data.closed[data.prefix_rows[n_members + n_forced - 1]] = ~0u;
        }
        each(team, data.n_groups, [&](int p) { data.group_closed[p] = closed_steps(p); });
    }

  private:
    PYSUBMOD_HD std::uint32_t closed_steps(int p) const {
        std::uint32_t mask = 0;
        int left = data.left[p];
        for (int step = 0; step <= data.result->n_steps; ++step) {
            if (step > 0) left -= data.group_of[data.result->picks[step - 1]] == p;
            if (left == 0) mask |= 1u << step;
        }
        return mask;
    }
};

// A score's interval at the steps first .. first + kSpan - 1, row by row. use(s, lower, upper), s from 0; minus
// infinity where the row surely does not help, or may not.
template <class Use>
PYSUBMOD_HD void score_intervals(const DenseData& data, int i, int first, int last, Use use) {
    const std::uint32_t closed = data.closed[i] | data.group_closed[data.group_of[i]];
    const double square = data.square[i], root = sqrt(square + data.ridge), length = sqrt(square);
    for (int step = first; step < last; ++step) {
        if (closed >> step & 1u) continue;
        const double norm = data.norms[step], product = data.products[static_cast<Index>(step) * data.n + i];
        const double high = data.height(product * norm + 0.5 * data.tilt * square), error = data.error * length * norm;
        const double slack = data.slack(root, step);
        const double lower = data.helps(high - error, root, step) ? data.score(high - error, root) - slack : -kInfinity;
        const double upper = data.helps(high + error, root, step) ? data.score(high + error, root) + slack : -kInfinity;
        use(step - first, lower, upper);
    }
}

// The largest lower end of a score at each step, by team.
struct BoundBody {
    DenseData data;
    int teams;

    template <class Team>
    PYSUBMOD_HD void operator()(Team& team) const {
        const int steps = data.result->n_steps + 1;
        for (int first = 0; first < steps; first += kSpan) {
            const int last = first + kSpan < steps ? first + kSpan : steps;
            double best[kSpan];
            PYSUBMOD_UNROLL
            for (int s = 0; s < kSpan; ++s) best[s] = -kInfinity;
            for (int i = team.team() * team.size() + team.rank(); i < data.n; i += teams * team.size())
                score_intervals(data, i, first, last, [&](int s, double lower, double) {
                    PYSUBMOD_UNROLL
                    for (int slot = 0; slot < kSpan; ++slot)  // so that `best` can stay in registers
                        if (slot == s && lower > best[slot]) best[slot] = lower;
                });
            PYSUBMOD_UNROLL
            for (int s = 0; s < kSpan; ++s) {
                const double all = team.max(best[s]);
                if (team.rank() == 0 && first + s < last) data.bounds[(first + s) * teams + team.team()] = all;
            }
        }
    }

  private:
    static constexpr int kSpan = 8;
};

// A step to a team: the bar that a row must reach to be the best.
struct BarBody {
    DenseData data;
    int teams;  // of BoundBody

    template <class Team>
    PYSUBMOD_HD void operator()(Team& team) const {
        const int step = team.team();
        if (step > data.result->n_steps) return;
        double best = -kInfinity;
        for (int t = team.rank(); t < teams; t += team.size()) {
            const double bound = data.bounds[step * teams + t];
            best = bound > best ? bound : best;
        }
        best = team.max(best);
        if (team.rank() == 0) {
            data.surely[step] = best;
            data.n_contenders[step] = 0;
        }
    }
};

// The rows whose intervals reach the bar, in no order.
struct ContendBody {
    DenseData data;
    int teams;

    template <class Team>
    PYSUBMOD_HD void operator()(Team& team) const {
        const int steps = data.result->n_steps + 1;
        for (int i = team.team() * team.size() + team.rank(); i < data.n; i += teams * team.size())
            score_intervals(data, i, 0, steps, [&](int step, double, double upper) {
                if (!(upper > -kInfinity && upper >= data.surely[step])) return;
                const int place = atomic_add(&data.n_contenders[step], 1);
                if (place < kContenders) data.contenders[step * kContenders + place] = i;
            });
    }
};

// A step to a team: the winner, from float64 products of the contenders with the residual.
struct JudgeBody {
    DenseData data;

    template <class Team>
    PYSUBMOD_HD void operator()(Team& team) const {
        const int step = team.team();
        if (step > data.result->n_steps) return;
        const int count = data.n_contenders[step];
        int winner = count > kContenders ? kTooMany : kNobody;
        if (count > 0 && count <= kContenders) winner = judge(team, step, count);
        if (team.rank() == 0) data.winners[step] = winner;
    }

  private:
    template <class Team>
    PYSUBMOD_HD int judge(Team& team, int step, int count) const {
        const int* rows = data.contenders + step * kContenders;
        double* g = data.contender_g + step * kContenders;
        auto* room = reinterpret_cast<double*>(team.fast());
        const double* r = data.residuals + step * data.rows.columns;
        for (int c = 0; c < count; ++c) {
            const Index row = rows[c];
            const double product =
                wide_sum(team, data.rows.columns, room, [&](Index j) { return data.rows.at(row, j) * r[j]; });
            if (team.rank() == 0) g[c] = product + 0.5 * data.tilt * data.square[row];
        }
        team.sync();
        const auto score = [&](int c, double sign) {
            const double root = data.root(rows[c]), high = data.height(g[c]);
            return data.helps(high, root, step) ? data.score(high, root) + sign * data.slack(root, step) : -kInfinity;
        };
        double surely = -kInfinity;
        for (int c = team.rank(); c < count; c += team.size()) surely = fmax(surely, score(c, -1.0));
        surely = team.max(surely);
        int lowest = data.n;
        for (int c = team.rank(); c < count; c += team.size())
            if (score(c, 1.0) > -kInfinity && score(c, 1.0) >= surely && rows[c] < lowest) lowest = rows[c];
        lowest = team.min(lowest);
        return lowest < data.n ? lowest : kNobody;
    }
};

// How far the draft was right, and what comes then; one team.
struct DecideBody {
    DenseData data;

    template <class Team>
    PYSUBMOD_HD void operator()(Team& team) const {
        if (team.rank() != 0) return;
        DraftResult& result = *data.result;
        const auto status = static_cast<Status>(result.status);
        for (int step = 0;; ++step) {
            result.reached = step;
            result.winner = data.winners[step];
            if (step == result.n_steps && (status == Status::budget || status == Status::exhausted))
                return set(result, Verdict::draft);
            if (data.tol > 0.0 && data.norms[step] <= data.tol * *data.target_norm)
                return set(result, Verdict::tolerance);
            if (result.winner == kTooMany) return set(result, Verdict::too_many);
            if (result.winner == kNobody) return set(result, Verdict::nobody);
            if (step == result.n_steps || result.winner != result.picks[step]) return set(result, Verdict::next);
        }
    }

  private:
    PYSUBMOD_HD static void set(DraftResult& result, Verdict verdict) { result.verdict = static_cast<int>(verdict); }
};

// The bin of a row's score at the step that was reached: kBins of them up to the highest score, -1 below 0.
PYSUBMOD_HD inline int bin_of(const DenseData& data, int i) {
    const int step = data.result->reached;
    const double most = data.surely[step];
    if (!data.is_open(i, step) || !(most > 0.0)) return -1;
    const double score = data.score(data.height(data.correlation(i, step)), data.root(i));
    if (!(score > 0.0)) return -1;
    const double bin = score / most * (kBins - 1);
    return bin < kBins - 1 ? static_cast<int>(bin) : kBins - 1;
}

struct ClearBinsBody {
    DenseData data;
    template <class Team>
    PYSUBMOD_HD void operator()(Team& team) const {
        each(team, kBins, [&](int bin) { data.histogram[bin] = 0; });
        if (team.rank() == 0) data.result->n_candidates = 0;
    }
};

// Counts rows by bin; fast memory for kBins counts.
struct CountBody {
    DenseData data;
    int teams;

    template <class Team>
    PYSUBMOD_HD void operator()(Team& team) const {
        auto* own = reinterpret_cast<int*>(team.fast());
        each(team, kBins, [&](int bin) { own[bin] = 0; });
        for (int i = team.team() * team.size() + team.rank(); i < data.n; i += teams * team.size()) {
            const int bin = bin_of(data, i);
            if (bin >= 0) atomic_add(&own[bin], 1);
        }
        team.sync();
        each(team, kBins, [&](int bin) {
            if (own[bin] > 0) atomic_add(&data.histogram[bin], own[bin]);
        });
    }
};

// The lowest bin such that it and those above it have at most `room` rows; the highest that has any, if that is already
// too full. One team.
struct CutBody {
    DenseData data;
    int room;

    template <class Team>
    PYSUBMOD_HD void operator()(Team& team) const {
        auto* own = reinterpret_cast<int*>(team.fast());
        int* sums = own + kBins;
        each(team, kBins, [&](int bin) { own[bin] = data.histogram[bin]; });
        each(team, kBins / kChunk, [&](int chunk) {
            int total = 0;
            for (int bin = 0; bin < kChunk; ++bin) total += own[chunk * kChunk + bin];
            sums[chunk] = total;
        });
        if (team.rank() != 0) return;
        int chunk = kBins / kChunk, count = 0;
        while (chunk > 0 && count + sums[chunk - 1] <= room) count += sums[--chunk];
        int cut = chunk * kChunk;
        while (cut > 0 && count + own[cut - 1] <= room) count += own[--cut];
        if (count == 0 && cut > 0) --cut;
        data.result->threshold = cut;
    }
    static std::size_t fast_bytes() { return sizeof(int) * (kBins + kBins / kChunk); }

  private:
    static constexpr int kChunk = 64;
};

struct AppendBody {
    DenseData data;
    int room, teams;

    template <class Team>
    PYSUBMOD_HD void operator()(Team& team) const {
        const int threshold = data.result->threshold;
        for (int i = team.team() * team.size() + team.rank(); i < data.n; i += teams * team.size()) {
            if (bin_of(data, i) < threshold) continue;
            const int place = atomic_add(&data.result->n_candidates, 1);
            if (place < room) data.candidates[place] = i;
        }
    }
};

// Where the contenders of step `reached` were too many: the correlations of all rows in float64 stand in `g` (G r), and
// the winner is found among them. Two launches, as for contenders; the bars of the teams in `bounds`, the lowest rows
// in `lowest`.
struct ExactBoundBody {
    DenseData data;
    const double* g;
    int teams;

    template <class Team>
    PYSUBMOD_HD void operator()(Team& team) const {
        double best = -kInfinity;
        for (int i = team.team() * team.size() + team.rank(); i < data.n; i += teams * team.size())
            best = fmax(best, exact_score(data, g, i, -1.0));
        best = team.max(best);
        if (team.rank() == 0) data.bounds[team.team()] = best;
    }
    PYSUBMOD_HD static double exact_score(const DenseData& data, const double* g, int i, double sign) {
        const int step = data.result->reached;
        const double root = data.root(i), high = data.height(g[i] + 0.5 * data.tilt * data.square[i]);
        if (!data.is_open(i, step) || !data.helps(high, root, step)) return -kInfinity;
        return data.score(high, root) + sign * data.slack(root, step);
    }
};
struct ExactLowestBody {
    DenseData data;
    const double* g;
    int teams;
    int* lowest;

    template <class Team>
    PYSUBMOD_HD void operator()(Team& team) const {
        double best = -kInfinity;
        for (int t = team.rank(); t < teams; t += team.size()) best = fmax(best, data.bounds[t]);
        best = team.max(best);
        const int step = data.result->reached;
        const double norm = data.norms[step];
        int row = data.n;
        for (int i = team.team() * team.size() + team.rank(); i < data.n; i += teams * team.size()) {
            const double score = ExactBoundBody::exact_score(data, g, i, 1.0);
            if (score > -kInfinity && score >= best && i < row) row = i;
            data.products[static_cast<Index>(step) * data.n + i] = norm > 0.0 ? static_cast<float>(g[i] / norm) : 0.0f;
        }
        row = team.min(row);
        if (team.rank() == 0) lowest[team.team()] = row;
        if (team.rank() == 0 && team.team() == 0) data.surely[step] = best;
    }
};

}  // namespace pysubmod::cuda
