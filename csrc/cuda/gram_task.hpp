// What a pursuit on a Gram matrix is given, where it works, and what it leaves: plain structures in device memory.
#pragma once

#include <cstdint>

#include "cuda/numbers.hpp"
#include "cuda/team.hpp"
#include "pysubmod/types.hpp"

namespace pysubmod::cuda {

// What can be wrong with a problem, found on the device; the driver makes an exception of it.
enum class Fault : std::int64_t {
    none = 0,
    not_finite,      // a row of the input holds NaN or infinity
    diagonal,        // K_ii is negative, or its square leaves float64
    asymmetric,      // K_ij is not K_ji
    tilt,            // the linear term overflows
    zero_length,     // K_ii = 0 and c_i rewards the row: unbounded
    scale,           // c is too large for the lengths of the rows
    unbounded,       // a dependent row that c rewards all the same
    not_psd,         // K is not positive semidefinite
    changed,         // a number is no longer finite
    no_convergence,  // the active set method did not end
};

struct GramHeader {
    std::int64_t n_selected = 0, n_filled = 0, status = 0;
    std::int64_t fault = 0, fault_row = -1, fault_column = -1;
    double fault_value = 0.0;
    double objective = 0.0, scale = 0.0, target_norm = 0.0;
};

// Marks of the rows of the pool.
inline constexpr std::uint8_t kMayBePicked = 1, kInPool = 2;

// The members' arrays, which every block of a team keeps for itself, in the same bits: so the small side needs no
// exchange between blocks. `k` members at most.
struct Members {
    // By member.
    double *c, *plain, *w, *g, *root;
    int *id, *place;  // place in the factor, -1: not active
    int* skipped;     // for the rest of a refit
    // By place.
    double *forward, *target, *column, *lower, *upper, *active_weight;
    int *active, *active_id, *scratch, *dropping;
    // To go back to: two states, one within the other; that of state s begins at s * k.
    double *old_w, *old_g, *old_forward;
    int* old_active;
    // By group.
    int *left, *pool_left;
    int* counts;  // a number for each thread
    std::uint64_t* seen;

    static constexpr int kDoublesByMember = 17, kIntsByMember = 9, kMostThreads = 1024;
    PYSUBMOD_HD static int most_seen(int k) { return 4 * k + 64; }
    PYSUBMOD_HD static std::size_t bytes(int k, int n_groups) {
        const std::size_t doubles = static_cast<std::size_t>(kDoublesByMember) * static_cast<std::size_t>(k) +
                                    static_cast<std::size_t>(most_seen(k));
        const std::size_t ints = static_cast<std::size_t>(kIntsByMember) * static_cast<std::size_t>(k) +
                                 2 * static_cast<std::size_t>(n_groups) + kMostThreads;
        return 8 * doubles + (4 * ints + 15) / 16 * 16;
    }
    PYSUBMOD_HD void lay_out(std::byte* memory, int k, int n_groups) {  // no loop: all stays in registers
        c = reinterpret_cast<double*>(memory);
        plain = c + k;
        w = plain + k;
        g = w + k;
        root = g + k;
        forward = root + k;
        target = forward + k;
        column = target + k;
        lower = column + k;
        upper = lower + k;
        active_weight = upper + k;
        old_w = active_weight + k;
        old_g = old_w + 2 * k;
        old_forward = old_g + 2 * k;
        seen = reinterpret_cast<std::uint64_t*>(old_forward + 2 * k);
        id = reinterpret_cast<int*>(seen + most_seen(k));
        place = id + k;
        skipped = place + k;
        active = skipped + k;
        active_id = active + k;
        scratch = active_id + k;
        dropping = scratch + k;
        old_active = dropping + k;
        left = old_active + 2 * k;
        pool_left = left + n_groups;
        counts = pool_left + n_groups;
    }
};

// The rows of the inverse factor lie an odd number of float64 apart: no two rows start in the same bank.
PYSUBMOD_HD inline int factor_stride(int k) { return k | 1; }
PYSUBMOD_HD inline std::size_t factor_bytes(int k) {
    return (8 * static_cast<std::size_t>(k) * static_cast<std::size_t>(factor_stride(k)) + 15) / 16 * 16;
}

struct GramTask {
    // The problem. K is float32 or float64; c = linear + tilt/2 diag K.
    int n = 0, n_groups = 0, n_initial = 0, n_checks = 0;
    int k = 0;  // room for members
    View gram, linear;
    const double* target_norm_at = nullptr;  // or in target_norm
    double target_norm = 0.0;                // NaN: not known
    const double* scale_at = nullptr;        // E_0 where the rows here are not all rows
    const std::int32_t* group_of = nullptr;
    const std::int32_t *budgets = nullptr, *available = nullptr;  // by group; rows that may be picked
    const std::uint8_t* pool = nullptr;
    const std::int32_t* initial = nullptr;
    const std::int64_t* checks = nullptr;  // first fault of each part of K that was looked at, n * n if none
    double ridge = 0.0, tilt = 0.0, tol = 0.0, rank_tolerance = 0.0;
    std::uint64_t seed = 0;
    Rule rule = Rule::omp;
    bool nonneg = true, fill = false, release_zeros = false, random = false, signed_ranking = false, in_range = false;

    // Where it works, by row. schur, exact, exact_round, deflated: rule = greedy. less, plus, kind, list:
    // random.
    double *c = nullptr, *diagonal = nullptr, *root = nullptr, *g = nullptr;
    std::uint8_t* mark = nullptr;
    double *schur = nullptr, *exact = nullptr, *deflated = nullptr, *less = nullptr, *plus = nullptr;
    int* exact_round = nullptr;
    std::uint8_t *kind = nullptr, *list = nullptr;
    double* exchange = nullptr;  // 2 * 3 for each block
    // Of each block: members, unless they are in its fast memory; the factor, likewise; two copies of it.
    std::byte *members = nullptr, *factors = nullptr, *copies = nullptr;
    bool members_are_fast = false, factor_is_fast = false;

    // What it leaves: room for `width` picks; what is not used becomes -1 and 0.
    int width = 0;
    std::int64_t* indices = nullptr;
    double *weights = nullptr, *gains = nullptr, *residual_norms = nullptr;
    GramHeader* header = nullptr;
    // For a caller who does not wait: the same again, or null.
    std::int64_t *n_selected_out = nullptr, *status_out = nullptr;
    double* objective_out = nullptr;
};

}  // namespace pysubmod::cuda
