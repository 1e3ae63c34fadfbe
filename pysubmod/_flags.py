"""What in a diagnosis deserves attention: sentences that say what is the matter and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["flags"]

LONG_ROW = 10.0  # the longest row over the median one
ILL_CONDITIONED = 1e8
ZERO_COLUMNS = 0.1  # share of the columns
SMALL_EFFECTIVE = 0.25  # effective sample size over picks
SAME = 1e-6  # relative difference of two objectives that is not worth a word

Facts = Mapping[str, Any]


def flags(facts: Facts, config: Mapping[str, Any], *, not_psd: bool, mismatch: str) -> tuple[str, ...]:
    """All flags of a diagnosis, the gravest first."""
    if not_psd:
        psd = "K has a negative eigenvalue: it is no Gram matrix, the objective is not concave and no bound holds. Recompute K."
        wrong = [psd]
    else:
        wrong = []
    if mismatch:
        wrong.append(f"The selection's own record says it was made for another problem: {mismatch}.")
    return (*wrong, *_of_rows(facts, config), *_of_picks(facts), *_of_comparison(facts), *_of_weights(facts))


def _of_rows(facts: Facts, config: Mapping[str, Any]) -> Iterator[str]:
    zero_rows, zero_columns = facts["informative"]["zero_rows"], facts["informative"]["zero_columns"]
    n, d = facts["problem"]["n"], facts["problem"]["d"]
    if zero_rows:
        yield (
            f"{zero_rows} of {n} rows are zero: those samples say nothing. A loss over masked tokens only, or a clipped gradient, "
            "makes such rows; look at them before training on the selection."
        )
    if zero_columns is not None and zero_columns > ZERO_COLUMNS * d:
        yield (
            f"{zero_columns} of {d} columns of G are zero for every candidate: those parameters do not learn yet. "
            "With LoRA, all gradients of A are zero while B is at its initial zero: take a few training steps first."
        )
    if n and facts["problem"]["aligned_candidates"] == 0:
        yield (
            "No candidate that may be picked is aligned with the target, so the best objective is 0: check that target and gradients "
            "have the same sign and the same parameters."
        )
    norms = facts["norms"]["pool"]
    if norms and config.get("rule") == "omp" and norms["max"] > LONG_ROW * norms["median"]:
        yield (
            f"The longest row is {norms['max'] / max(norms['median'], 1e-300):.3g} times the median one, and rule 'omp' prefers long rows: "
            "use rule='normalized', or scale the rows to unit norm."
        )


def _of_picks(facts: Facts) -> Iterator[str]:
    over = [group for group in facts["groups"] if group["picks"] > group["budget"]]
    if over:
        named = ", ".join(f"{group['label']} ({group['picks']} of {group['budget']})" for group in over[:5])
        yield f"The picks break the budgets of {len(over)} groups: {named}."
    short = [group for group in facts["groups"] if group["shortfall"]]
    if short:
        named = ", ".join(f"{group['label']} ({group['picks']} of {group['picks'] + group['shortfall']})" for group in short[:5])
        more = f" and {len(short) - 5} more" if len(short) > 5 else ""
        yield (
            f"{len(short)} groups give fewer picks than they could: {named}{more}. If the batch must be full, use fill=True; "
            "otherwise no candidate left there improved the match."
        )
    condition = facts["conditioning"]["picks_unit_diagonal"]
    if condition is not None and condition > ILL_CONDITIONED:
        yield (
            f"Some picks are linearly dependent up to rounding (condition number {condition:.1e}): their separate weights mean "
            "nothing. A small ridge makes them share the weight."
        )


def _of_comparison(facts: Facts) -> Iterator[str]:
    comparison, k = facts["comparison"], facts["problem"]["picks"]
    mine = comparison["selection"]
    rank = facts["problem"]["rank"]
    if comparison["top_k"]["same_set"] and 1 < k and rank < facts["problem"]["n"]:
        yield (
            "The picks are exactly the top-k by alignment: redundancy played no part. Either the best-aligned rows happen not to overlap, or "
            "the quadratic term is too small to matter (with a learning rate in it, solve for the product of rate and weight)."
        )
    for name, text in (("top_k", "top-k by alignment"), ("per_group", "each group solved alone")):
        other = comparison[name]["objective"]
        if other > mine["objective"] * (1 + SAME) and facts["problem"]["feasible"]:
            yield (
                f"With the same budgets, {text} reaches a larger objective ({other:.6g} against {mine['objective']:.6g}): "
                "try rule='greedy', or a swap search from there."
            )
    random = comparison["random"]
    if random["objective"] and mine["objective"] < random["objective"]["mean"] and len(facts["groups"]):
        yield (
            f"The average random draw reaches a larger objective ({random['objective']['mean']:.6g} against {mine['objective']:.6g}): "
            "this selection does not match this target."
        )
    if random["conflicting_pairs"] and mine["conflicting_pairs"] > random["conflicting_pairs"]["max"]:
        yield (
            f"{mine['conflicting_pairs']} of {mine['pairs']} pairs of picks conflict (negative cosine), more than in any of "
            f"{random['draws']} random draws (mean {random['conflicting_pairs']['mean']:.0f}): with equal weights they would work "
            "against each other; train with the weights."
        )


def _of_weights(facts: Facts) -> Iterator[str]:
    problem, weights, k = facts["problem"], facts["weights"], facts["problem"]["picks"]
    own, best = problem["objective_at_own_weights"], problem["objective"]
    if own is not None and best > 0 and own < best * (1 - SAME):
        yield (
            f"The selection's weights are not the best ones for its picks: they reach {own:.6g} of {best:.6g}. "
            "problem.weights(selection.indices) gives the best ones."
        )
    if own is not None and own > best + SAME * abs(best):
        yield (
            f"The selection's weights reach {own:.6g}, more than {best:.6g}, the most that weights of this problem can "
            "(w >= 0 is violated, or they belong to another problem)."
        )
    if weights["zeros"]:
        yield (
            f"{weights['zeros']} of {k} weights are zero: those picks take budget and do nothing. "
            "release_zeros=True gives the budget back."
        )
    used = k - weights["zeros"]
    if used >= 4 and weights["effective"] < SMALL_EFFECTIVE * used:
        yield (
            f"A few picks carry the match: the weights amount to {weights['effective']:.1f} equal ones out of {used}. "
            "Scale rows to unit norm, or raise the ridge, to spread them."
        )
