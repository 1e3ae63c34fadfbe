// The words shared by every room: indices, rules, outcomes, options and the answer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

namespace pysubmod {

using Index = std::int64_t;

// Relative to the scale E of the problem (docs/design.md, section 2): below it a score is zero, within it two tie.
inline constexpr double kScoreTolerance = 1e-12;
// A row is dependent on the active ones when its Schur complement is at most this share of its diagonal,
// i.e. when its distance from their span is at most 1e-5 of its norm.
inline constexpr double kRankTolerance = 1e-10;
// The same where only K is at hand: 4 sqrt(eps) of its type. Rows at the tolerance amplify K's own rounding to about
// eps / tolerance, which must stay below the tolerance.
inline constexpr double kRankToleranceGram64 = 0x1p-24;
inline constexpr double kRankToleranceGram32 = 1.3810679320049757e-03;

inline constexpr double kUnknown = std::numeric_limits<double>::quiet_NaN();

// How numbers are stored; every computation on them is float64.
enum class Storage : std::uint8_t { float16, bfloat16, float32, float64 };

// A borrowed block of rows; strides in bytes, any sign, no alignment needed.
struct RowBlock {
    const std::byte* data = nullptr;
    Index rows = 0;
    std::ptrdiff_t row_stride = 0;
    std::ptrdiff_t column_stride = 0;
    Storage storage = Storage::float32;
};

enum class Rule { omp, normalized, greedy };
enum class Pick { argmax, random };

// Marks of a row that the source keeps, because they have size n.
enum class Mark : std::uint8_t {
    none,
    selected,
    barred  // cannot help until the next accepted pick
};

enum class Ask {
    improving,  // only rows that raise the objective, by the rule's score
    any         // every row that may be taken, by height: what `fill` takes
};

enum class Status { budget, tolerance, no_gain, rank_deficient, exhausted, stopped };

// How rows are read: one pass for each pick; columns of K = G G', several to a pass, kept; or several picks to a pass,
// drafted and verified. `automatic` is the one that a cost model thinks fastest; `gram` reads no rows: K was given.
enum class Route { automatic, plain, columns, draft, gram };

struct Options {
    double ridge = 0.0;
    double tilt = 0.0;
    double tol = 0.0;  // stop once ||r|| <= tol * ||t||; 0 never stops
    bool nonneg = true;
    Rule rule = Rule::omp;
    bool fill = false;
    bool release_zeros = false;
    Pick pick = Pick::argmax;
    std::uint64_t seed = 0;  // pick = random
    bool swap = false;       // go on to a swap-local optimum
    double swap_tol = 1e-9;  // a swap must gain more than this share of the objective
    Index max_swaps = -1;    // -1: no limit
    Route route = Route::automatic;
    bool signed_ranking = false;  // pick = random with fill: rank what does not help by signed height, not by index
};

// What a monitor is told after each pick.
struct Progress {
    Index n_selected;
    Index rank;
    Index index;
    double gain;
    double objective;
    double residual_norm;  // kUnknown where the target's norm is not known
};

// The solver's line to its caller. Both may be called often and must be cheap; `interrupted` is polled inside long
// passes over the data, from the thread that called the solver.
class Monitor {
  public:
    virtual ~Monitor() = default;
    virtual bool interrupted() { return false; }
    virtual bool picked(const Progress&) { return false; }  // true: stop here
};

struct Solution {
    std::vector<Index> indices;  // pick order
    std::vector<double> weights;
    std::vector<double> gains;
    std::vector<double> residual_norms;  // after each pick; kUnknown where the target's norm is not known
    double objective = 0.0;
    double target_norm = kUnknown;
    double scale = 0.0;  // E: every tolerance is relative to it
    Status status = Status::budget;
    Index n_filled = 0;  // members added by `fill`: they improve nothing
    Index n_swaps = 0;
    bool swap_local_optimum = false;  // no single swap gains more than the tolerance
    // Work done, for the caller to see.
    Route route = Route::gram;  // the one taken
    Index passes = 0;           // passes over all eligible rows
    double bytes_read = 0.0;
    double seconds_prepare = 0.0;
    double seconds_pursuit = 0.0;
    double seconds_swap = 0.0;
    int threads = 1;
};

// The value of a support that somebody else chose.
struct Evaluation {
    std::vector<double> weights;  // aligned with the members given
    std::vector<double> gains;    // f(S + i) - f(S) for every row i (0 on S); empty unless asked for
    double objective = 0.0;
    double residual_norm = kUnknown;
};

}  // namespace pysubmod
