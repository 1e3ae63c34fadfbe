"""Which a-priori guarantee holds for the rule that ran, with its number: the table, and nothing but the table.

Every number comes from certified quantities (`Spectrum`), rounded down. The notation: r the rank of the matroid (k of a
plain cardinality), R the matrix C scaled to a unit diagonal, lambda_s(R) and m_s the smallest eigenvalue over s x s
principal submatrices of R and of C, Lambda_s the largest one, M1 the largest diagonal entry of C, mu_w the largest
\\|R_ij\\| inside one group.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from decimal import ROUND_CEILING, ROUND_FLOOR, Context
from math import ceil, expm1, log2, sqrt
from typing import Any

import numpy as np

from ._spectrum import Spectrum

__all__ = ["Guarantee", "guarantees", "rounded"]

DAS_KEMPE = "Das and Kempe, Approximate submodularity and its applications, JMLR 19 (2018)"
ELENBERG = (
    "after Elenberg et al., Restricted strong convexity implies weak submodularity, Annals of Statistics 46 (2018)"
)
KHANNA = "after Khanna et al., Scalable greedy feature selection via weak submodularity, AISTATS 2017"
THIERY_WARD = (
    "Thiery and Ward, Two-sided weak submodularity for matroid constrained optimization and regression, COLT 2022"
)
CHEN = "after Chen, Feldman and Karbasi, Weakly submodular maximization beyond cardinality constraints, ICML 2018"
HERE = "derived for pysubmod, checked by brute force in its tests"
ROUNDING = 1e-12

PURSUITS = {"omp": "omp", "omp-normalized": "normalized", "greedy": "greedy"}
NAMES = {"omp": "OMP (raw correlations)", "normalized": "normalised OMP", "greedy": "greedy (exact gains)"}
STARTED = ("best", "exact")  # from normalised OMP
RULE_FREE = {
    "top-k": "ranking by alignment ignores redundancy",
    "top-k-per-group": "ranking by alignment ignores redundancy",
    "craig": "facility location is another objective",
    "greats": "its weights are fixed",
    "divbs": "it samples by correlation",
    "per-group": "each group is solved as if the others did not exist",
    "random": "random picks look at nothing",
    "random-per-group": "random picks look at nothing",
    "relax-round": "rounding a relaxation has none",
}


@dataclass(frozen=True)
class Guarantee:
    """``f(S) >= value * OPT`` (its expectation over the rule's own random choices if `in_expectation`)."""

    rule: str
    formula: str
    value: float
    in_expectation: bool
    citation: str


def guarantees(
    config: Mapping[str, Any],
    stats: Mapping[str, Any],
    spectrum: Spectrum,
    *,
    k: int,
    rank: int,
    n_groups: int,
    nonneg: bool,
    forced: bool,
    optimal: bool = False,
    same_rows: bool = True,
    status: str | None = None,
) -> tuple[tuple[Guarantee, ...], str]:
    """All that hold, largest first, and a sentence: why none does, or what the first one says.

    `k` picks of at most `rank`, from `n_groups` groups that can give any; `forced`: only one set of that size is
    feasible; `optimal`: no candidate would raise the objective; `same_rows`: the run had the candidates of `spectrum`.
    """
    if forced:
        only = Guarantee("any", "1", 1.0, False, "f is monotone, and this is the only largest feasible set")
        return (only,), "The budgets leave no choice: every candidate that may be picked is picked, which is optimal."
    if optimal:
        whole = Guarantee("any", "1", 1.0, False, "no candidate has a gain left (KKT), and the objective is concave")
        return (whole,), "No row would improve the match: optimal over all selections of any size, up to rounding."
    if not same_rows:
        return (), "None: the run had other `candidates` than this report; against those nothing is promised."
    if stats.get("proven_optimal"):
        proof = Guarantee("exact search", "1", 1.0, False, "the search ended with a proof")
        return (proof,), _reading(proof)
    # A residual random run keeps its guarantee where nothing is left to draw (docs/design.md).
    ended = _draws(config) and status == "no_gain" and config.get("refine") is None
    if k < rank and not ended:
        return (), f"None: only {k} of the {rank} picks that the budgets allow, and the guarantees are for a full run."
    reason = _why_no_rule(config, stats, n_groups)
    found = [] if reason else list(_of_rule(config, spectrum, rank, n_groups, nonneg))
    if k == rank:
        found += _of_swap(config, stats, spectrum, rank)
    found = [replace(g, value=max(0.0, min(1.0, g.value * (1 - ROUNDING) if g.value < 1 else 1.0))) for g in found]
    if not found:
        return (), reason or _no_rule(config)
    found.sort(key=lambda g: (g.in_expectation, -g.value))
    return tuple(found), _reading(found[0])


def rounded(bound: float, digits: int, *, up: bool) -> str:
    """A bound as text that still holds."""
    context = Context(prec=digits, rounding=ROUND_CEILING if up else ROUND_FLOOR)
    return f"{float(context.create_decimal(bound)):.{digits}g}"


def _reading(best: Guarantee) -> str:
    if best.value == 1.0:
        return "No feasible selection is better, up to rounding."
    if best.value < 1e-3:
        return (
            "It holds, and is too small to say anything about this selection; a certificate bounds the optimum itself."
        )
    mean = "on average over the rule's random choices " if best.in_expectation else ""
    share = f"at least {rounded(100 * best.value, 3, up=False)} % of the best possible objective"
    return f"In advance, from the eigenvalues of this problem: {mean}{share}."


def _method(config: Mapping[str, Any]) -> str | None:
    method = config.get("method")
    return None if method is None else str(method)


def _draws(config: Mapping[str, Any]) -> bool:
    """Whether the rule is a residual random one."""
    return config.get("pick") == "random" or _method(config) in ("residual-random", "partition-sel")


def _why_no_rule(config: Mapping[str, Any], stats: Mapping[str, Any], n_groups: int) -> str:
    if not config:
        return "None: the picks come without a record of the rule that made them."
    if np.size(config.get("initial") or ()):
        return "None: rows were given from the start (initial), and the guarantees are for a run from nothing."
    if stats.get("n_filled") and not _draws(config):  # for a random rule filling up is part of the rule
        return f"None: {stats['n_filled']} picks only fill the budget, and the guarantees are for picks by the rule."
    if config.get("release_zeros") and n_groups > 1:
        return "None: with release_zeros budgets come back, and the guarantees under a matroid are for picks that stay."
    return ""


def _no_rule(config: Mapping[str, Any]) -> str:
    method = _method(config)
    if method in RULE_FREE:
        return f"None: method {method!r} has no guarantee on this objective ({RULE_FREE[method]})."
    return f"None is known for method {method!r}." if method else "None is known for the rule that ran."


def _of_rule(
    config: Mapping[str, Any], spectrum: Spectrum, rank: int, n_groups: int, nonneg: bool
) -> Iterator[Guarantee]:
    method, rule = _method(config), config.get("rule")
    if method in PURSUITS:
        rule = rule or PURSUITS[method]
    if method == "grad-match" and nonneg:
        rule = "omp"  # with w >= 0, which is the problem's own sign then
    if method in STARTED:
        rule = rule or "normalized"  # where it starts; everything after it only improves
    if method == "partition-sel":
        yield _residual_random("omp", spectrum, rank, "PartitionSel's rule")
    elif _draws(config):
        if rule in NAMES:
            yield _residual_random(str(rule), spectrum, rank, f"residual random {NAMES[str(rule)]}")
    elif method == "stochastic-greedy":
        epsilon = config.get("epsilon", config.get("eps"))
        if n_groups == 1 and epsilon is not None and rule in (None, "greedy"):
            value = -expm1(-spectrum.low("R", 2 * rank).value * (1 - float(epsilon)))
            # A step gains (1 - epsilon) gamma / k of what is missing on average (their lemma); k steps give this, which
            # is at least 1 - exp(-gamma) - epsilon.
            yield Guarantee("stochastic greedy", "1 - exp(-(1 - epsilon) lambda_2k(R))", value, True, KHANNA)
    elif rule in NAMES and method in (None, *PURSUITS, *STARTED, "swap", "grad-match"):
        deterministic = _cardinality if n_groups == 1 else _matroid
        found = deterministic(str(rule), spectrum, rank, nonneg)
        if method in STARTED:
            found = replace(found, rule=f"{found.rule}, which method {method!r} starts from and never falls below")
        yield found


def _cardinality(rule: str, spectrum: Spectrum, k: int, nonneg: bool) -> Guarantee:
    """Deterministic rules with one budget k."""
    if rule == "omp":
        value = spectrum.low("C", 2 * k).value / spectrum.largest
        formula, citation = "1 - exp(-m_2k / M1)", f"{ELENBERG}; {HERE}"
    else:
        value = spectrum.low("R", 2 * k).value
        formula = "1 - exp(-lambda_2k(R))"
        if rule == "greedy":
            formula, citation = "1 - exp(-gamma_2k), gamma_2k >= lambda_2k(R)", DAS_KEMPE
        else:
            citation = f"{ELENBERG}; {HERE}"
    return Guarantee(NAMES[rule], formula, -expm1(-value), False, citation)


def _matroid(rule: str, spectrum: Spectrum, r: int, nonneg: bool) -> Guarantee:
    """Deterministic rules under a partition matroid. Not gamma / (1 + gamma): that is false for them."""
    which = "C" if rule == "omp" else "R"
    largest = spectrum.largest if which == "C" else 1.0
    tau, text = sqrt(r * largest), "sqrt(r M1)"
    if not nonneg:
        tau = min(tau, (1 + ceil(log2(r))) * sqrt(spectrum.high(which, r)))
        text = "min((1 + ceil(log2 r)) sqrt(Lambda_r), sqrt(r M1))"
    m = spectrum.low(which, 2 * r).value
    value = m / (m + (sqrt(largest) + tau) ** 2)
    formula = f"1 / (1 + (sqrt(M1) + tau)^2 / m_2r), tau = {text}, constants of {which}"
    return Guarantee(f"{NAMES[rule]} under a partition matroid", formula, value, False, HERE)


def _residual_random(rule: str, spectrum: Spectrum, r: int, name: str) -> Guarantee:
    low = spectrum.low("R", r).value
    if rule == "omp":
        m = spectrum.low("C", r).value
        value = low * m / (low * m + spectrum.largest)
        return Guarantee(name, "1 / (1 + (M1 / m_r) / lambda_r(R))", value, True, f"{CHEN}; {HERE}")
    value = low * low / (1 + low * low)
    if rule == "greedy":
        formula, citation = (
            "gamma_r / (gamma_r + beta_r), gamma_r >= lambda_r(R), beta_r <= 1 / lambda_r(R)",
            THIERY_WARD,
        )
    else:
        formula, citation = "1 / (1 + 1 / lambda_r(R)^2)", f"{CHEN}; {HERE}"
    return Guarantee(name, formula, value, True, citation)


def _of_swap(config: Mapping[str, Any], stats: Mapping[str, Any], spectrum: Spectrum, rank: int) -> Iterator[Guarantee]:
    if not stats.get("swap_local_optimum"):
        return
    m, M2 = spectrum.low("R", 2 * rank).value, 1 + spectrum.coherence_within
    # The relative gain below which the search called itself done.
    tol = float(stats.get("swap_tol", config.get("swap_tol", 0.0)) or 0.0)
    value = m * m / (M2 * M2 + rank * tol * M2 * m)
    formula = "(lambda_2r(R) / (1 + mu_w))^2"
    if tol > 0:
        formula = "1 / ((M2/m)^2 + r tol M2/m), M2 = 1 + mu_w, m = lambda_2r(R)"
    yield Guarantee("no single swap improves", formula, value, False, HERE)
