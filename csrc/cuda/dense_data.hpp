// The draft-and-verify pursuit on rows: what its kernels share, in device memory.
//
// A round: the pursuit is run ahead on a small pool of rows (the draft), one pass forms the products of all rows with
// the residuals after each of its picks, and every pick is verified in float64. *Step* j is the state after j picks of
// the draft; step 0 is where the pursuit stands.
#pragma once

#include "cuda/gram_task.hpp"
#include "cuda/team.hpp"

namespace pysubmod::cuda {

inline constexpr int kMostSteps = 31;  // so that the steps fit the bits of a mask
inline constexpr int kMostBarred = 256, kContenders = 1024, kBins = 4096, kTileColumns = 64;
inline constexpr int kNobody = -1, kTooMany = -2;  // in place of a row

// How a round ended, at its step `reached`.
enum class Verdict : int {
    next,       // the pursuit goes on with `winner`
    too_many,   // rows that may be the best: all must be looked at in float64
    nobody,     // no row helps
    tolerance,  // the residual is small enough
    draft,      // the draft came to its end, and it was right
};

struct DraftResult {
    // The draft.
    int n_members, n_forced, n_steps, status;  // members at step 0; forced rows that were accepted
    int fault, fault_row;
    int n_barred;
    int picks[kMostSteps];
    double gains[2 * kMostSteps + 2];  // of the accepted forced rows, then of the picks
    int barred_rows[kMostBarred], barred_steps[kMostBarred];
    // What came of it.
    int verdict, reached, winner, n_candidates, threshold;
};

struct DenseData {
    View rows;
    int n = 0, n_groups = 0, k = 0;
    const double* target = nullptr;
    const std::int32_t* group_of = nullptr;
    double ridge = 0.0, tilt = 0.0, tol = 0.0;
    bool nonneg = true, normalized = false;
    double error = 0.0;  // of a product with a vector of length 1, over the row's norm

    // By row. closed: bit j is set where the row may not be picked at step j.
    double *square = nullptr, *linear = nullptr;
    std::uint32_t* closed = nullptr;
    float* products = nullptr;  // (steps, n)

    // The pool: members and forced rows (`prefix` of them), then candidates.
    int *prefix_rows = nullptr, *candidates = nullptr;
    Index* pool_rows = nullptr;

    // By step.
    double *weights = nullptr, *scales = nullptr;                            // (steps, k) in member order
    Index* member_rows = nullptr;                                            // (k,) at the last step
    int* step_size = nullptr;                                                // members
    double *residuals = nullptr, *partial = nullptr, *norms = nullptr;       // (steps, d), (steps, tiles)
    float* directions = nullptr;                                             // (steps, d)
    int *n_contenders = nullptr, *contenders = nullptr, *winners = nullptr;  // (steps, kContenders)
    double *contender_g = nullptr, *surely = nullptr;
    double* bounds = nullptr;  // (steps, teams)

    std::uint32_t* group_closed = nullptr;
    int* left = nullptr;       // by group, at step 0
    int* histogram = nullptr;  // kBins
    double* target_norm = nullptr;
    DraftResult* result = nullptr;

    PYSUBMOD_HD int n_tiles() const { return static_cast<int>((rows.columns + kTileColumns - 1) / kTileColumns); }
    PYSUBMOD_HD double root(int i) const { return sqrt(square[i] + ridge); }
    PYSUBMOD_HD bool is_open(int i, int step) const { return !((closed[i] | group_closed[group_of[i]]) >> step & 1u); }
    // What a row promises at a step, from its correlation.
    PYSUBMOD_HD double height(double g) const { return nonneg ? g : fabs(g); }
    PYSUBMOD_HD bool helps(double high, double root_i, int step) const {
        return high > kScoreTolerance * scales[step] * root_i;
    }
    PYSUBMOD_HD double score(double high, double root_i) const { return normalized ? high / root_i : high; }
    PYSUBMOD_HD double slack(double root_i, int step) const {
        return kScoreTolerance * scales[step] * (normalized ? 1.0 : root_i);
    }
    PYSUBMOD_HD double correlation(int i, int step) const {  // up to the error; of a row that is no member
        return static_cast<double>(products[static_cast<Index>(step) * n + i]) * norms[step] + 0.5 * tilt * square[i];
    }
};

}  // namespace pysubmod::cuda
