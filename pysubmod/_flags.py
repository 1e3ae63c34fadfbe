"""What in a diagnosis deserves attention: sentences that say what is the matter and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .result import Status

__all__ = ["flags"]

LONG_ROW = 10.0  # the longest row over the median one
ILL_CONDITIONED = 1e8
ZERO_COLUMNS = 0.1  # share of the columns
SMALL_EFFECTIVE = 0.25  # effective sample size over picks
NAMED = 5  # groups, before the others are only counted
SAME = 1e-6  # relative difference of two objectives that is not worth a word

PURSUITS = ("omp", "omp-normalized", "greedy", "swap", "residual-random", "partition-sel")
REDUNDANCY_AWARE = (*PURSUITS, "best", "exact", "relax-round", "stochastic-greedy", "grad-match", "greats")

Facts = Mapping[str, Any]
Config = Mapping[str, Any]


def flags(facts: Facts, config: Config, status: str | None, *, not_psd: bool, mismatch: str) -> tuple[str, ...]:
    """All flags of a diagnosis, the gravest first."""
    wrong = []
    if not_psd:
        wrong.append(
            "K has a negative eigenvalue: it is no Gram matrix, the objective is not concave and no bound holds. "
            "Compute K again, in float64."
        )
    if mismatch:
        wrong.append(f"The selection's own record says it was made for another problem: {mismatch}.")
    if facts["comparison"]["top_k"] is None:
        wrong.append(
            f"The run saw {config['candidates']} of the {facts['problem']['n']} rows, and which ones is not in its "
            "record: nothing is compared. Pass candidates=, the mask it was given."
        )
    if facts["problem"]["picks"] == 0:
        return (*wrong, *_of_rows(facts, config), "The selection is empty.")
    return (
        *wrong,
        *_of_rows(facts, config),
        *_of_picks(facts, config, status),
        *_of_comparison(facts, config),
        *_of_weights(facts, config),
    )


def _method(config: Config) -> str | None:
    """The method of `solve`; "omp_partition" for that, which has a rule and no method; None where nothing is known."""
    method = config.get("method", "omp_partition" if "rule" in config else None)
    return None if method is None else str(method)


def _takes_pursuit_options(config: Config) -> bool:
    return _method(config) in ("omp_partition", *PURSUITS)


def _of_rows(facts: Facts, config: Config) -> Iterator[str]:
    zero_rows, zero_columns = facts["informative"]["zero_rows"], facts["informative"]["zero_columns"]
    n, d = facts["problem"]["candidates"], facts["problem"]["d"]
    if zero_rows:
        yield (
            f"{zero_rows} of {n} rows are zero: those samples say nothing. Samples whose tokens are all masked in the "
            "loss have such rows; look at them before training on the selection."
        )
    if zero_columns is not None and zero_columns > ZERO_COLUMNS * d:
        yield (
            f"{zero_columns} of {d} columns of G are zero for every candidate: those parameters do not learn yet. With "
            "LoRA, all gradients of A are zero while B is at its initial zero: take a few training steps first."
        )
    if n and facts["problem"]["aligned_candidates"] == 0:
        yield (
            "No candidate that may be picked is aligned with the target, so the best objective is 0: check that target "
            "and gradients have the same sign and the same parameters."
        )
    norms = facts["norms"]["pool"]
    if norms and config.get("rule") == "omp" and norms["max"] > LONG_ROW * norms["median"] > 0:
        cure = {
            "omp_partition": "use rule='normalized', or ",
            "residual-random": "use rule='normalized', or ",
            "omp": "use method='omp-normalized', or ",
        }
        yield (
            f"The longest row is {norms['max'] / norms['median']:.3g} times the median one, and rule 'omp' prefers "
            f"long rows: {cure.get(str(_method(config)), '')}scale the rows to unit norm."
        )


def _of_picks(facts: Facts, config: Config, status: str | None) -> Iterator[str]:
    over = [group for group in facts["groups"] if group["picks"] > group["budget"]]
    if over:
        yield f"The picks break budgets: {_named(over, 'budget')}."
    short = [group | {"could": min(group["size"], group["budget"])} for group in facts["groups"] if group["shortfall"]]
    if short and not facts["problem"]["optimal"]:
        few = f"Fewer picks than the budgets and the pool allow: {_named(short, 'could')}"
        if len(facts["groups"]) == 1:
            few = f"Only {short[0]['picks']} of the {short[0]['could']} picks that budget and pool allow"
        known = status is not None and _method(config) in ("omp_partition", *REDUNDANCY_AWARE)
        why = f" {Status(status).explanation}" if known else ""
        fill = _takes_pursuit_options(config) and not config.get("fill")
        yield f"{few}.{why}{' If the batch must be full, use fill=True.' if fill else ''}"
    condition = facts["conditioning"]["picks_unit_diagonal"]
    if condition is not None and condition > ILL_CONDITIONED:
        yield (
            f"Some picks are linearly dependent up to rounding (condition number {condition:.1e}): their separate "
            "weights mean nothing. A small ridge makes them share the weight."
        )


def _named(groups: list[dict[str, Any]], most: str) -> str:
    names = ", ".join(f"{group['label']} ({group['picks']} of {group[most]})" for group in groups[:NAMED])
    return names + (f" and {len(groups) - NAMED} more groups" if len(groups) > NAMED else "")


def _same_as_top_k(config: Config) -> str:
    method = _method(config)
    if method in ("top-k", "top-k-per-group"):
        return f"Method {method!r} looks at each row alone: how far the picks repeat each other played no part."
    if method not in ("omp_partition", *REDUNDANCY_AWARE):
        return "The picks are exactly the top-k by alignment."
    return (
        "The picks are exactly the top-k by alignment: redundancy played no part. Either the best-aligned rows do "
        "not overlap, or the quadratic term is too small to matter (if c and K carry a learning rate, solve for "
        "rate times weight instead)."
    )


def _look_further(config: Config) -> str:
    """What may do better, in terms of how the selection was made."""
    method = _method(config)
    if method == "exact":
        return "give method='exact' a larger time_limit"
    if method == "best":
        return "try method='exact'"
    if method == "omp_partition":
        return "try refine='best'" if config.get("refine") else "try refine='swap' or refine='best'"
    if method is None:
        return "try solve(problem, matroid, method='best')"
    return "try method='best'" if config.get("refine") else "try method='swap' or method='best'"


def _of_comparison(facts: Facts, config: Config) -> Iterator[str]:
    comparison, problem = facts["comparison"], facts["problem"]
    mine, random = comparison["selection"], comparison["random"]
    if comparison["top_k"] is None:
        return
    if comparison["top_k"]["same_set"] and problem["picks"] > 1 and problem["rank"] < problem["candidates"]:
        yield _same_as_top_k(config)
    alone = "each group solved alone" if problem["groups"] > 1 else "normalised OMP"
    for name, text in (("top_k", "top-k by alignment"), ("per_group", alone)):
        other = comparison[name]["objective"]
        if other > mine["objective"] * (1 + SAME) and problem["feasible"]:
            yield (
                f"With the same budgets, {text} reaches a larger objective ({other:.6g} against "
                f"{mine['objective']:.6g}): {_look_further(config)}."
            )
    if random["objective"] and mine["objective"] < random["objective"]["mean"] * (1 - SAME):
        yield (
            f"The average random draw reaches a larger objective ({random['objective']['mean']:.6g} against "
            f"{mine['objective']:.6g}): this selection does not match this target."
        )
    if random["conflicting_pairs"] and mine["conflicting_pairs"] > random["conflicting_pairs"]["max"]:
        yield (
            f"{mine['conflicting_pairs']} of {mine['pairs']} pairs of picks conflict (negative cosine), more than in "
            f"any of {random['draws']} random draws (on average {random['conflicting_pairs']['mean']:.0f}): with equal "
            "weights they work against each other, so train with the weights."
        )


def _of_weights(facts: Facts, config: Config) -> Iterator[str]:
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
        release = _takes_pursuit_options(config) and not config.get("fill") and not config.get("release_zeros")
        yield (
            f"{weights['zeros']} of {k} weights are zero: such picks take budget and do nothing."
            + (" release_zeros=True gives the budget back." if release else "")
        )
    used = k - weights["zeros"]
    if used >= 4 and weights["effective"] < SMALL_EFFECTIVE * used:
        yield (
            f"A few picks carry the match: the effective number of weights is {weights['effective']:.1f} of {used}. "
            "Scale rows to unit norm, or raise the ridge, to spread them."
        )
