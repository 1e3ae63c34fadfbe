"""Every solver under one name space: the same problem, the same constraint, the same `Selection`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

from .._random import check_seed
from .._validation import as_choice, as_mask
from ..matroid import PartitionMatroid, checked_matroid
from ..problem import GradientMatching
from ..result import Selection
from ._call import Call
from ._trial import COMMON
from .baselines import random, random_per_group, top_k, top_k_per_group
from .craig import craig
from .divbs import divbs
from .exact import exact
from .grad_match import grad_match
from .greats import greats
from .per_group import per_group
from .pursuit import Progress, greedy, normalized_omp, omp, partition_sel, residual_random, swap
from .relaxed import best, relax_round
from .stochastic_greedy import stochastic_greedy

__all__ = ["METHODS", "Method", "Progress", "available_methods", "calls_of", "solve"]


class Method(NamedTuple):
    """A solver, what it does in a line, and whose it is."""

    solver: Callable[..., Selection]
    summary: str
    source: str = ""


METHODS: dict[str, Method] = {
    "omp": Method(omp, "the largest correlation with the residual, then an exact refit", "Pati et al. 1993"),
    "omp-normalized": Method(normalized_omp, "the same, each correlation over its row's norm"),
    "greedy": Method(greedy, "the largest exact gain", "Das and Kempe 2011"),
    "residual-random": Method(
        residual_random, "drawn uniformly from a heaviest base of what is left", "Chen et al. 2018"
    ),
    "partition-sel": Method(
        partition_sel, "drawn from every group's shortlist by raw correlation; fills", "arXiv 2606.07954"
    ),
    "swap": Method(swap, "omp-normalized, then exchanges until none improves"),
    "relax-round": Method(relax_round, "the perspective relaxation, rounded", "Xie and Deng 2020"),
    "best": Method(best, "swap from the better omp and from relax-round, the better one"),
    "exact": Method(exact, "branch and bound: the optimum, or a bound at the time limit"),
    "stochastic-greedy": Method(
        stochastic_greedy, "the largest exact gain within a random sample", "Mirzasoleiman et al. 2015"
    ),
    "grad-match": Method(grad_match, "omp with weights >= 0 and an error tolerance", "Killamsetty et al. 2021"),
    "greats": Method(greats, "the largest score less eta times the overlap with the picks", "Wang et al. 2024"),
    "divbs": Method(divbs, "sampled by correlation with what the picks leave unexplained", "Hong et al. 2024"),
    "craig": Method(craig, "medoids by facility location; no target", "Mirzasoleiman et al. 2020"),
    "per-group": Method(per_group, "any method (base=...), each group alone"),
    "top-k": Method(top_k, "the largest scores"),
    "top-k-per-group": Method(top_k_per_group, "the rows of top-k, in rounds over the groups"),
    "random": Method(random, "uniform among all selections that use up the budgets"),
    "random-per-group": Method(random_per_group, "the rows of random, in rounds over the groups"),
}


# What a device can run: the pursuits without a search that goes on from them.
ON_DEVICE = ("omp", "omp-normalized", "greedy", "residual-random", "partition-sel")


def available_methods() -> tuple[str, ...]:
    """The names that `solve` knows."""
    return tuple(METHODS)


def solve(problem: GradientMatching, matroid: PartitionMatroid | int, method: str = "omp", **options: Any) -> Selection:
    """Select rows for a problem under a partition matroid.

    Whatever the method, the weights, gains, residuals and objective of the selection are the problem's own: exact
    refits on the picks, in their order. Weights that belong to the method are in ``stats["method_weights"]``.

    Parameters
    ----------
    problem : GradientMatching
        What is matched, from rows or from a Gram matrix.
    matroid : PartitionMatroid or int
        Budgets by group; an int is a plain cardinality.
    method : str, default "omp"
        One of `available_methods`:

        =================  ==============================================================  =========================
        omp                the largest correlation with the residual, then an exact refit  Pati et al. 1993
        omp-normalized     the same, each correlation over its row's norm
        greedy             the largest exact gain                                          Das and Kempe 2011
        residual-random    drawn uniformly from a heaviest base of what is left            Chen et al. 2018
        partition-sel      drawn from every group's shortlist by raw correlation; fills    arXiv 2606.07954
        swap               omp-normalized, then exchanges until none improves
        relax-round        the perspective relaxation, rounded                             Xie and Deng 2020
        best               swap from the better omp and from relax-round, the better one
        exact              branch and bound: the optimum, or a bound at the time limit
        stochastic-greedy  the largest exact gain within a random sample                   Mirzasoleiman et al. 2015
        grad-match         omp with weights >= 0 and an error tolerance                    Killamsetty et al. 2021
        greats             the largest score less eta times the overlap with the picks     Wang et al. 2024
        divbs              sampled by correlation with what the picks leave unexplained    Hong et al. 2024
        craig              medoids by facility location; no target                         Mirzasoleiman et al. 2020
        per-group          any method (base=...), each group alone
        top-k              the largest scores
        top-k-per-group    the rows of top-k, in rounds over the groups
        random             uniform among all selections that use up the budgets
        random-per-group   the rows of random, in rounds over the groups
        =================  ==============================================================  =========================
    **options
        Of every method: candidates, device, n_threads, verbose, as in `omp_partition`; and random_state (int, NumPy
        Generator or RandomState, or None), which methods without randomness check and leave
        alone (per-group draws a seed for its base in any case). "omp",
        "omp-normalized", "greedy", "swap", "residual-random" and "partition-sel" take the other keywords of
        `omp_partition` too. Others have options of their own: swap_tol and max_swaps (swap), rule (residual-random),
        ranking (partition-sel), time_limit (relax-round, best, exact), gap (exact), epsilon (stochastic-greedy), eps
        (grad-match), eta (greats), target (divbs), base (per-group), normalize (top-k); docs/solvers.md explains them.
        A problem on a device is solved there by "omp", "omp-normalized", "greedy", "residual-random" and
        "partition-sel", without swaps; for the other methods pass ``problem.cpu()``.

    Returns
    -------
    Selection
        ``config["method"]`` names the method; its options stand beside it.

    Raises
    ------
    TypeError, ValueError
        Naming the argument; TypeError for an option that the method does not take.
    """
    matroid = checked_matroid(problem, matroid, on_host=False)
    solver = _solver(problem, method, options)
    selection = solver(problem, matroid, **_accepted(method, solver, options))
    return selection._made_from(problem, matroid, as_mask(options.get("candidates"), problem.n), method)


def calls_of(
    problems: Sequence[GradientMatching], matroids: Sequence[PartitionMatroid], method: str, options: Sequence[Any]
) -> list[Call]:
    """The checked calls of a pursuit, for a device to run together."""
    calls: list[Any] = []
    for problem, matroid, own in zip(problems, matroids, options, strict=True):
        solver = _solver(problem, method, own, on_device=True)
        calls.append(solver(problem, matroid, then=lambda call: [call], **_accepted(method, solver, own)))
    return calls


def _solver(
    problem: GradientMatching, method: str, options: dict[str, Any], on_device: bool = False
) -> Callable[..., Selection]:
    """The function of a method that can solve the problem where it is."""
    solver = METHODS[as_choice("method", method, available_methods())].solver
    if "rule" in options and method not in ("residual-random", "per-group"):
        raise TypeError("rule: is what method says; use method=" + ", ".join(map(repr, available_methods())))
    if (on_device or problem.device != "cpu") and method not in ON_DEVICE:
        raise ValueError(
            f"method: {method!r} runs on the CPU; use problem.cpu(), or one of {', '.join(map(repr, ON_DEVICE))}"
        )
    return solver


def _accepted(method: str, solver: Callable[..., Selection], options: dict[str, Any]) -> dict[str, Any]:
    """The options, every one of which the solver takes; `random_state` is dropped where nothing is random."""
    names = _option_names(solver)
    if names is None:  # passed on to another method, which checks them
        return options
    if "random_state" in options and "random_state" not in names:
        check_seed(options["random_state"])
        options = {name: value for name, value in options.items() if name != "random_state"}
    unknown = [name for name in options if name not in names]
    if unknown:
        raise TypeError(f"{unknown[0]}: not an option of method={method!r}; it takes {', '.join(sorted(names))}")
    return options


@cache  # a look at a signature takes as long as a small problem
def _option_names(solver: Callable[..., Selection]) -> tuple[str, ...] | None:
    """The names of the options that a solver takes; None if it takes those of another."""
    given = ("problem", "problems", "matroid", "rule")
    keywords = [p for p in inspect.signature(solver).parameters.values() if p.name not in given]
    names = tuple(p.name for p in keywords if p.kind is not p.VAR_KEYWORD)
    open_ended = next((p.name for p in keywords if p.kind is p.VAR_KEYWORD), None)
    if open_ended == "options":
        return None
    return names + tuple(COMMON) if open_ended == "common" else names
