#include "cpu/candidate_scores.hpp"

#include <cmath>
#include <limits>

#include "check.hpp"
#include "dense.hpp"
#include "pysubmod/error.hpp"

using namespace pysubmod;
using cpu::CandidateScores;
using dense::Random;

namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Everything `best` looks at, in plain lists.
struct Pool {
    std::vector<double> c, diagonal, g;
    std::vector<std::int32_t> groups;
    std::vector<Index> budgets;
    std::vector<std::uint8_t> candidates;
    std::vector<Mark> marks;
    double scale = 1.0;
    Options options;

    std::size_t size() const { return c.size(); }
    PartitionMatroid matroid() const { return {groups, budgets, candidates}; }
    CandidateScores scores() const {
        CandidateScores made;
        made.reset(c, diagonal, 1.0, options, kRankTolerance);
        return made;
    }

    // docs/design.md, section 2, steps 1 and 2, word for word.
    Best best(const PartitionMatroid& matroid) const {
        Best answer;
        std::vector<double> score(size(), 0.0), unit(size(), 0.0);
        double bar = -kInfinity;
        for (std::size_t i = 0; i < size(); ++i) {
            if (marks[i] == Mark::selected || !matroid.may_take(static_cast<Index>(i))) continue;
            if (marks[i] == Mark::barred) {
                answer.saw_barred = true;
                continue;
            }
            const double h = options.nonneg ? g[i] : std::abs(g[i]), root = std::sqrt(diagonal[i]);
            if (diagonal[i] == 0.0 || h <= kScoreTolerance * scale * root) continue;
            score[i] = options.rule == Rule::normalized ? h / root : h;
            unit[i] = options.rule == Rule::normalized ? scale : scale * root;
            bar = std::max(bar, score[i] - kScoreTolerance * unit[i]);
        }
        for (std::size_t i = size(); i-- > 0;)
            if (score[i] > 0.0 && score[i] + kScoreTolerance * unit[i] >= bar)
                answer.index = static_cast<Index>(i), answer.correlation = g[i];
        return answer;
    }
};

Pool random_pool(Random& random, std::size_t n) {
    Pool pool;
    const std::size_t n_groups = 1 + random.below(4);
    for (std::size_t i = 0; i < n; ++i) {
        pool.diagonal.push_back(random.chance(0.05) ? 0.0 : std::exp(random.uniform(-3, 3)));
        pool.c.push_back(0.0);
        pool.groups.push_back(static_cast<std::int32_t>(random.below(n_groups)));
        pool.candidates.push_back(random.chance(0.9));
    }
    for (std::size_t p = 0; p < n_groups; ++p) pool.budgets.push_back(static_cast<Index>(random.below(4)));
    if (random.chance(0.3)) pool.candidates.clear();
    pool.marks.assign(n, Mark::none);
    pool.options.nonneg = random.chance(0.5);
    pool.options.rule = random.chance(0.5) ? Rule::omp : Rule::normalized;
    return pool;
}

// Few different heights, so that many tie; some a rounding apart, some within the tolerance, some below the bar.
double height(Random& random, double root, double scale) {
    const double levels[] = {1.0, 1.0, 0.5, 0.0, -1.0, 1e-12, 2e-12};
    double h = levels[random.below(7)] * scale * root;
    if (random.chance(0.3)) h *= 1.0 + random.uniform(-2e-12, 2e-12);
    return random.chance(0.3) ? -h : h;
}

bool same(const Best& a, const Best& b) {
    return a.index == b.index && a.saw_barred == b.saw_barred && (a.index < 0 || a.correlation == b.correlation);
}

}  // namespace

TEST_CASE(best_follows_marks_and_budgets) {
    Random random(1);
    int found = 0, none = 0, barred = 0;
    for (int trial = 0; trial < 400; ++trial) {
        Pool pool = random_pool(random, 1 + random.below(40));
        CandidateScores scores = pool.scores();
        PartitionMatroid matroid = pool.matroid();
        std::vector<Index> taken;
        for (int step = 0; step < 12; ++step) {
            pool.scale = std::exp(random.uniform(-1, 1));
            scores.weights_changed(pool.scale);
            for (std::size_t i = 0; i < pool.size(); ++i) {
                const double g = pool.diagonal[i] > 0.0 ? height(random, std::sqrt(pool.diagonal[i]), pool.scale) : 0.0;
                scores.correlations()[i] = g;
                pool.g.resize(pool.size());
                pool.g[i] = g;
            }
            const Best best = scores.best(matroid, Ask::improving);
            CHECK(same(best, pool.best(matroid)));
            CHECK(same(scores.best(matroid, Ask::improving), best));
            best.index < 0 ? ++none : ++found;
            barred += best.saw_barred;
            const auto i = static_cast<Index>(random.below(pool.size()));
            const auto at = static_cast<std::size_t>(i);
            const auto set = [&](Mark mark) { scores.mark(i, mark), pool.marks[at] = mark; };
            if (pool.marks[at] == Mark::selected) {
                set(Mark::none);
                matroid.give_back(i);
            } else if (matroid.may_take(i) && random.chance(0.7)) {
                set(Mark::selected);
                matroid.take(i);
            } else if (pool.marks[at] == Mark::none) {
                set(Mark::barred);
            }
            if (random.chance(0.2)) {
                scores.clear_barred();
                for (Mark& mark : pool.marks)
                    if (mark == Mark::barred) mark = Mark::none;
            }
        }
        scores.restart();
        pool.marks.assign(pool.size(), Mark::none);
        pool.g = pool.c;
        pool.scale = scores.scale();
        CHECK(same(scores.best(pool.matroid(), Ask::improving), pool.best(pool.matroid())));
    }
    CHECK(found > 1000 && none > 500 && barred > 300);
}

TEST_CASE(only_rows_that_may_be_picked_must_be_finite) {
    Random random(2);
    for (const double bad : {kNaN, kInfinity, -kInfinity})
        for (std::size_t where = 0; where < 19; ++where) {
            Pool pool = random_pool(random, 19);
            pool.budgets.assign(pool.budgets.size(), 1);
            pool.g.assign(19, 0.5);
            pool.g[where] = bad;
            for (double& c : pool.diagonal) c = 1.0;
            CandidateScores scores = pool.scores();
            std::copy(pool.g.begin(), pool.g.end(), scores.correlations().begin());
            const PartitionMatroid matroid = pool.matroid();
            const std::string message = "row " + std::to_string(where) + " is no longer finite";
            if (matroid.may_take(static_cast<Index>(where)))
                CHECK_THROWS(InvalidArgument, message.c_str(), scores.best(matroid, Ask::improving));
            else
                CHECK(scores.best(matroid, Ask::improving).index != static_cast<Index>(where));
            scores.mark(static_cast<Index>(where), Mark::selected);
            CHECK(scores.best(matroid, Ask::improving).index != static_cast<Index>(where));
        }
}
