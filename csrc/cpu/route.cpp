#include "cpu/route.hpp"

#include <algorithm>
#include <cmath>
#include <string>

#include "pysubmod/error.hpp"

namespace pysubmod::cpu {
namespace {

// Whether float32 can hold the products, and what the tilt adds to them: far from its limits.
bool can_screen(std::span<const double> squares, double tilt) {
    return std::ranges::all_of(
        squares, [tilt](double s) { return s == 0.0 || (s > 1e-40 && s < 1e40 && 0.5 * std::abs(tilt) * s < 1e30); });
}

// About six picks to a pass, a quarter of the vectors in vain, and what the drafts cost. Targets that share a pass
// draft less, a vector for each pick and pass at the least.
double draft_cost(double n, double d, double picks, double targets, double bytes, bool greedy) {
    const double per_pass = std::max(1.0, 6.0 / std::sqrt(targets));
    const double vectors = 1.25 * per_pass * targets;
    const double pass = greedy ? Cost::exact_pass(2.0 * vectors) : Cost::pass(vectors, bytes);
    const auto candidates = static_cast<double>(n_candidates(static_cast<std::size_t>(n)));
    const double drafted =
        Cost::kCandidate * candidates + Cost::kMember * 0.5 * picks + Cost::kDraftedBytes * n / bytes;
    return picks / per_pass * (n * Cost::short_rows(d) * pass + vectors * drafted);
}

// About a third of the columns in vain; targets share what they have in common, about a half. Every pick
// adds up the columns of all members.
double columns_cost(double n, double d, double picks, double targets, double bytes) {
    const double columns = std::min(n, 1.4 * picks * (1.0 + 0.5 * (targets - 1.0)));
    const double at_once = Cost::in_cache(bytes) ? 8.0 : 16.0;
    const double passes = std::ceil(columns / at_once);
    const double addition = 4.0 * n * picks < 2.0 * Cost::kCacheBytes ? 0.25 : 0.6;  // columns in cache, or not
    return passes * (n * Cost::short_rows(d) * Cost::pass(at_once, bytes) + Cost::kColumn * at_once) +
           targets * n * addition * picks * picks / d;
}

}  // namespace

std::size_t n_candidates(std::size_t n) {
    constexpr std::size_t kFewest = 32, kMost = 512;
    return std::clamp(n / 12, kFewest, kMost);
}

Route choose_route(const Options& options, std::span<const double> squares, std::size_t d, double row_bytes,
                   std::size_t picks, std::size_t targets) {
    const bool greedy = options.rule == Rule::greedy;
    const bool screens = options.pick == Pick::argmax && can_screen(squares, options.tilt);
    if ((options.route == Route::draft || options.route == Route::columns) && !screens)
        throw InvalidArgument(
            std::string("route: '") + (options.route == Route::draft ? "draft" : "columns") +
            "' needs pick='argmax' and norms of rows between 1e-20 and 1e20 (with a tilt, tilt/2 times "
            "their squares below 1e30); use 'plain' (or 'auto')");
    if (options.route == Route::gram) throw InvalidArgument("route: 'gram' is for a Gram matrix, and rows were given");
    if (options.route == Route::columns && greedy)
        throw InvalidArgument("route: 'columns' is not for rule='greedy'; use 'draft' (or 'auto')");
    if (options.route != Route::automatic) return options.route;
    const auto n = static_cast<double>(squares.size()), k = static_cast<double>(picks);
    const auto m = static_cast<double>(targets);
    const double bytes = n * row_bytes, members = Cost::kMember * 0.5 * k * k * m;
    // For each pick greedy reads a column of K as well.
    const double plain = n * k * Cost::exact_pass(greedy ? 2.0 * m : m) + members;
    const double draft = screens ? draft_cost(n, static_cast<double>(d), k, m, bytes, greedy) : plain;
    const double columns = screens && !greedy ? columns_cost(n, static_cast<double>(d), k, m, bytes) + members : plain;
    constexpr double kWorthIt = 0.75;  // the model is not better than that
    if (std::min(columns, draft) > kWorthIt * plain) return Route::plain;
    return columns < draft ? Route::columns : Route::draft;
}

}  // namespace pysubmod::cpu
