#include "cpu/candidate_scores.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <queue>
#include <string>
#include <unordered_set>
#include <utility>

#include "pysubmod/error.hpp"

namespace pysubmod::cpu {
namespace {
constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNever = -kInfinity;
constexpr std::size_t kBlock = 8;

typedef double Pair __attribute__((vector_size(16)));  // every processor has it
inline Pair both(double x) { return Pair{x, x}; }
inline Pair load(const double* p) {
    Pair pair;
    std::memcpy(&pair, p, sizeof pair);
    return pair;
}
inline Pair magnitude(Pair x) {
    typedef std::int64_t Bits __attribute__((vector_size(16)));
    return (Pair)((Bits)x & std::numeric_limits<std::int64_t>::max());  // without the sign
}

constexpr std::size_t whole_blocks(std::size_t n) { return (n + kBlock - 1) / kBlock * kBlock; }
}  // namespace

void CandidateScores::reset(std::vector<double> c, std::vector<double> diagonal, double target_norm,
                            const Options& options, double rank_tolerance) {
    rank_tolerance_ = rank_tolerance;
    c_ = std::move(c);
    diagonal_ = std::move(diagonal);
    rule_ = options.rule;
    signed_ranking_ = options.signed_ranking;
    nonneg_ = options.nonneg;
    const std::size_t n = c_.size();
    root_.resize(n);
    scale_ = std::isnan(target_norm) ? 0.0 : target_norm;
    for (std::size_t i = 0; i < n; ++i) {
        root_[i] = std::sqrt(diagonal_[i]);
        if (root_[i] > 0.0)
            scale_ = std::max(scale_, std::abs(c_[i]) / root_[i]);
        else if (nonneg_ ? c_[i] > 0.0 : c_[i] != 0.0)
            throw Unbounded("entry " + std::to_string(i) + " is " + std::to_string(c_[i]) +
                            " but the row has length 0 (K[i, i] = 0): the objective is unbounded; c must be G t");
    }
    if (!(scale_ <= 1e140))  // its square is the size of the objective
        throw InvalidArgument(std::string(options.tilt != 0.0 ? "tilt" : "c") +
                              ": too large for the lengths of the rows; the objective would leave float64: rescale");
    first_scale_ = scale_;
    score_.assign(n, kNever);
    restart();
}

void CandidateScores::restart() {
    const std::size_t n = c_.size();
    g_.assign(whole_blocks(n), 0.0);
    std::copy(c_.begin(), c_.end(), g_.begin());
    open_root_.assign(whole_blocks(n), kInfinity);
    open_is_stale_ = true;
    scale_ = first_scale_;
    ++round_;
    marks_.assign(n, Mark::none);
    barred_.clear();
    if (rule_ == Rule::greedy) {
        schur_ = diagonal_;
        exact_.assign(n, 0.0);
        exact_round_.assign(n, 0);
    }
}

void CandidateScores::mark(Index i, Mark mark) {
    marks_[at(i)] = mark;
    open_root_[at(i)] = kInfinity;
    if (mark == Mark::none) open_is_stale_ = true;
    if (mark == Mark::barred) barred_.push_back(i);
}

void CandidateScores::clear_barred() {
    for (const Index i : barred_)
        if (marks_[at(i)] == Mark::barred) mark(i, Mark::none);
    barred_.clear();
}

void CandidateScores::set_exact(Index i, double score) {
    exact_[at(i)] = score;
    exact_round_[at(i)] = round_;
}

double CandidateScores::height(std::size_t i) const { return nonneg_ ? g_[i] : std::abs(g_[i]); }

bool CandidateScores::is_exact(Index i) const {
    if (marks_[at(i)] == Mark::barred || improving_score(at(i)) == kNever) return true;
    return exact_round_[at(i)] == round_ || (!nonneg_ && schur_[at(i)] > rank_tolerance_ * diagonal_[at(i)]);
}

// The score of a row that might help. For greedy it is an upper bound until is_exact: dropping the constraints w_S >= 0
// can only raise the gain, and about a dependent row the Schur complement says nothing.
double CandidateScores::improving_score(std::size_t i) const {
    if (!(height(i) > kScoreTolerance * scale_ * root_[i])) return kNever;
    if (rule_ == Rule::omp) return height(i);
    if (rule_ == Rule::normalized) return height(i) / root_[i];
    if (exact_round_[i] == round_) return exact_[i];
    if (schur_[i] > rank_tolerance_ * diagonal_[i]) return height(i) / std::sqrt(schur_[i]);
    return std::numeric_limits<double>::infinity();
}

// How much of a score rounding may be, over kScoreTolerance. Where a Schur complement is small, so is what is left of
// g_i.
double CandidateScores::unit(std::size_t i, Ask ask) const {
    if (rule_ == Rule::omp || ask == Ask::any) return scale_ * root_[i];
    if (rule_ == Rule::normalized) return scale_;
    return scale_ * std::sqrt(diagonal_[i] / std::max(schur_[i], rank_tolerance_ * diagonal_[i]));
}

void CandidateScores::check_finite(std::size_t i) const {
    if (!std::isfinite(g_[i]))
        throw InvalidArgument("G: row " + std::to_string(i) +
                              " is no longer finite; it must not change during a solve");
}

// Which rows may be picked now.
void CandidateScores::follow(const PartitionMatroid& matroid) {
    group_open_.resize(at(matroid.n_groups()));
    for (std::size_t p = 0; p < group_open_.size(); ++p) {
        const char open = matroid.budget_left(static_cast<std::int32_t>(p)) > 0;
        open_is_stale_ = open_is_stale_ || open != group_open_[p];
        group_open_[p] = open;
    }
    if (!open_is_stale_) return;
    for (std::size_t i = 0; i < c_.size(); ++i) {
        const auto row = static_cast<Index>(i);
        const bool open = group_open_[at(matroid.group(row))] && matroid.is_candidate(row) && marks_[i] == Mark::none;
        open_root_[i] = open ? root_[i] : kInfinity;
    }
    open_is_stale_ = false;
}

void CandidateScores::check_open_rows() const {
    for (std::size_t i = 0; i < c_.size(); ++i)
        if (open_root_[i] < kInfinity) check_finite(i);
}

// improving_score less and plus what rounding may be of it (unit), without branches, two rows at a time: kNever and
// infinity where a row does not help. With root = infinity no height is above the bar.
template <bool Nonneg, bool Normalized>
struct CandidateScores::PairOfScores {
    Pair less, plus;
    PairOfScores(const double* g, const double* open_root, double scale) {
        const Pair height = Nonneg ? load(g) : magnitude(load(g)), root = load(open_root);
        const auto helps = height > kScoreTolerance * scale * root;
        const Pair score = Normalized ? height / root : height;
        const Pair slack = Normalized ? both(kScoreTolerance * scale) : kScoreTolerance * (scale * root);
        less = helps ? score - slack : both(kNever);
        plus = helps ? score + slack : both(kNever);
    }
};

// The lowest row that rounding cannot tell from the best, or the number of rows if none helps.
template <bool Nonneg, bool Normalized>
std::size_t CandidateScores::first_of_the_best() const {
    using Scores = PairOfScores<Nonneg, Normalized>;
    constexpr std::size_t kPairs = kBlock / 2;
    const double *g = g_.data(), *root = open_root_.data();
    Pair lane[kPairs], zero[kPairs] = {};
    std::fill(lane, lane + kPairs, both(kNever));
    for (std::size_t i = 0; i < g_.size(); i += kBlock)
        for (std::size_t l = 0; l < kPairs; ++l) {
            const Pair less = Scores(g + i + 2 * l, root + i + 2 * l, scale_).less;
            lane[l] = less > lane[l] ? less : lane[l];
            zero[l] += 0.0 * load(g + i + 2 * l);
        }
    double surely = kNever, zeros = 0.0;
    for (std::size_t l = 0; l < kPairs; ++l) {
        surely = std::max({surely, lane[l][0], lane[l][1]});
        zeros += zero[l][0] + zero[l][1];
    }
    if (zeros != 0.0) check_open_rows();  // infinity or NaN somewhere
    if (surely == kNever) return c_.size();
    for (std::size_t i = 0;; i += 2) {
        const Pair plus = Scores(g + i, root + i, scale_).plus;
        if (plus[0] >= surely) return i;
        if (plus[1] >= surely) return i + 1;
    }
}

Best CandidateScores::best_improving(const PartitionMatroid& matroid) {
    follow(matroid);
    Best best;
    for (const Index i : barred_) {
        if (marks_[at(i)] != Mark::barred || !matroid.may_take(i)) continue;
        check_finite(at(i));
        best.saw_barred = true;
    }
    const bool normalized = rule_ == Rule::normalized;
    const std::size_t i = nonneg_      ? normalized ? first_of_the_best<true, true>() : first_of_the_best<true, false>()
                          : normalized ? first_of_the_best<false, true>()
                                       : first_of_the_best<false, false>();
    if (i == c_.size()) return best;
    best.index = static_cast<Index>(i);
    best.correlation = g_[i];
    return best;
}

Best CandidateScores::best(const PartitionMatroid& matroid, Ask ask) {
    if (ask == Ask::improving && rule_ != Rule::greedy) return best_improving(matroid);
    Best best;
    const std::size_t n = c_.size();
    double surely = kNever;  // the best score is at least this
    for (std::size_t i = 0; i < n; ++i) {
        score_[i] = kNever;
        if (marks_[i] == Mark::selected || !matroid.may_take(static_cast<Index>(i))) continue;
        check_finite(i);
        if (ask == Ask::any)
            score_[i] = height(i);
        else if (marks_[i] == Mark::barred)
            best.saw_barred = true;
        else
            score_[i] = improving_score(i);
        if (score_[i] > kNever) surely = std::max(surely, score_[i] - kScoreTolerance * unit(i, ask));
    }
    if (surely == kNever) return best;
    // Scores that rounding cannot tell apart are equal; the lowest index wins, whatever the source or the machine.
    for (std::size_t i = 0; i < n; ++i) {
        if (!(score_[i] > kNever && score_[i] + kScoreTolerance * unit(i, ask) >= surely)) continue;
        best.index = static_cast<Index>(i);
        best.correlation = g_[i];
        break;
    }
    return best;
}

Best CandidateScores::best_of(std::span<const Index> rows, std::span<const double> g) {
    double surely = kNever;
    for (std::size_t j = 0; j < rows.size(); ++j) {
        const std::size_t i = at(rows[j]);
        g_[i] = g[j];
        check_finite(i);
        score_[i] = improving_score(i);
        if (score_[i] > kNever) surely = std::max(surely, score_[i] - kScoreTolerance * unit(i, Ask::improving));
    }
    for (const Index i : rows)
        if (score_[at(i)] > kNever && score_[at(i)] + kScoreTolerance * unit(at(i), Ask::improving) >= surely)
            return {i, g_[at(i)], false};
    return {};
}

namespace {

struct Ranked {
    std::int32_t group;
    bool helps;
    Index row;
    double surely, at_most;  // the score, less and plus what rounding may be
};

// Appends `count` rows of [begin, end), each the one that `best` would give if those before it were gone. As rows
// leave, the bar that `best` sets can only fall: whoever clears it once waits in a heap, lowest row on top.
void append_best(std::vector<Ranked>::iterator begin, std::vector<Ranked>::iterator end, std::size_t count,
                 std::vector<Index>& out) {
    if (static_cast<std::size_t>(end - begin) <= count) {
        for (; begin != end; ++begin) out.push_back(begin->row);
        return;
    }
    std::sort(begin, end, [](const Ranked& a, const Ranked& b) { return a.surely > b.surely; });
    std::vector<Ranked> by_most(begin, end);
    std::sort(by_most.begin(), by_most.end(), [](const Ranked& a, const Ranked& b) { return a.at_most > b.at_most; });
    std::priority_queue<Index, std::vector<Index>, std::greater<>> waiting;
    std::unordered_set<Index> taken;
    auto next = by_most.begin();
    while (count > 0 && begin != end) {
        if (taken.count(begin->row) > 0) {
            ++begin;
            continue;
        }
        for (; next != by_most.end() && next->at_most >= begin->surely; ++next) waiting.push(next->row);
        if (waiting.empty())  // only scores that are not numbers leave nobody
            throw InvalidArgument("G: a row is no longer finite; it must not change during a solve");
        taken.insert(waiting.top());
        out.push_back(waiting.top());
        waiting.pop();
        --count;
    }
}

}  // namespace

Shortlist CandidateScores::shortlist(const PartitionMatroid& matroid, Ask ask) const {
    Shortlist list;
    std::vector<Ranked> ranked;
    for (std::size_t i = 0; i < c_.size(); ++i) {
        const auto row = static_cast<Index>(i);
        if (marks_[i] == Mark::selected || !matroid.may_take(row)) continue;
        check_finite(i);
        const bool barred = marks_[i] == Mark::barred;
        double score = barred ? kNever : improving_score(i);
        const bool helps = score > kNever;
        double slack = helps ? kScoreTolerance * unit(i, Ask::improving) : 0.0;
        list.saw_barred = list.saw_barred || barred;
        if (!helps && ask == Ask::improving) continue;
        if (!helps) {  // the lowest row first, unless signed heights decide
            const bool raw = rule_ == Rule::omp;
            score = !signed_ranking_ ? 0.0 : raw ? height(i) : root_[i] > 0.0 ? height(i) / root_[i] : 0.0;
            slack = kScoreTolerance * scale_ * (raw ? root_[i] : 1.0);
        }
        ranked.push_back({matroid.group(row), helps, row, score - slack, score + slack});
    }
    std::stable_sort(ranked.begin(), ranked.end(), [](const Ranked& a, const Ranked& b) {
        return a.group != b.group ? a.group < b.group : a.helps && !b.helps;
    });
    std::int32_t group = -1;
    std::size_t left = 0;
    for (auto begin = ranked.begin(), end = begin; begin != ranked.end(); begin = end) {
        if (begin->group != group) left = at(matroid.budget_left(begin->group));
        group = begin->group;
        end = std::find_if(begin, ranked.end(),
                           [&](const Ranked& x) { return x.group != group || x.helps != begin->helps; });
        const std::size_t before = list.rows.size();
        append_best(begin, end, left, list.rows);
        left -= list.rows.size() - before;
    }
    std::sort(list.rows.begin(), list.rows.end());
    return list;
}

}  // namespace pysubmod::cpu
