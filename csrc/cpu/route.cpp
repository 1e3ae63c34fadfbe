#include "cpu/route.hpp"

#include <algorithm>
#include <cmath>

#include "pysubmod/error.hpp"

namespace pysubmod::cpu {
namespace {

// Whether float32 can hold the products, and what the tilt adds to them: far from its limits.
bool can_screen(std::span<const double> squares, double tilt) {
    return std::ranges::all_of(squares, [tilt](double s) {
        return s == 0.0 || (s > 1e-40 && s < 1e40 && 0.5 * std::abs(tilt) * s < 1e30);
    });
}

// About five picks to a pass, a vector for each, a quarter of the vectors in vain, and what the drafts cost. Targets that
// share a pass draft less: at most a vector for each pick and pass.
double draft_cost(double n, double picks, double targets, double vector) {
    const double passes = std::min(picks, picks / 5.0 * std::sqrt(targets)), vectors = 1.25 * picks * targets;
    const auto candidates = static_cast<double>(n_candidates(static_cast<std::size_t>(n)));
    return n * (passes + vector * vectors) +
           vectors * (Cost::kCandidate * candidates + Cost::kMember * 0.5 * picks);
}

}  // namespace

std::size_t n_candidates(std::size_t n) {
    constexpr std::size_t kFewest = 32, kMost = 512;
    return std::clamp(n / 12, kFewest, kMost);
}

Route choose_route(const Options& options, std::span<const double> squares, std::size_t d, double row_bytes,
                   std::size_t picks, std::size_t targets) {
    const bool greedy = options.rule == Rule::greedy;
    const bool drafts = options.pick == Pick::argmax && can_screen(squares, options.tilt);
    if (options.route == Route::draft && !drafts)
        throw InvalidArgument(
            "route: 'draft' needs pick='argmax' and norms of rows between 1e-20 and 1e20; use 'plain' (or 'auto')");
    if (options.route != Route::automatic) return options.route;
    const auto n = static_cast<double>(squares.size()), k = static_cast<double>(picks);
    const auto m = static_cast<double>(targets);
    const double bytes = n * row_bytes, members = Cost::kMember * 0.5 * k * k * m;
    const double exact = Cost::kExactVector * (greedy ? 2.0 : 1.0);  // greedy reads a column of K for each pick
    const double plain = n * k * (1.0 + exact * m - Cost::kExactVector) + members;
    const double draft = drafts ? draft_cost(n, k, m, greedy ? exact : Cost::vector(bytes)) : plain;
    const double gram = Cost::kGram * n * n + 0.5 * members + m * n * k * k / static_cast<double>(d);
    const bool gram_fits = 8.0 * n * n <= 0.4 * bytes;
    if (gram_fits && gram < std::min(plain, draft)) return Route::gram;
    return draft < plain ? Route::draft : Route::plain;
}

}  // namespace pysubmod::cpu
