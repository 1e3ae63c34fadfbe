"""Every solver under one name space: the same problem, the same constraint, the same `Selection`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .._validation import as_choice
from ..matroid import PartitionMatroid
from ..problem import GradientMatching
from ..result import Selection
from .pursuit import Progress, greedy, normalized_omp, omp, partition_sel, residual_random, swap

__all__ = ["Progress", "available_methods", "solve"]

_METHODS: dict[str, Callable[..., Selection]] = {
    "omp": omp,
    "omp-normalized": normalized_omp,
    "greedy": greedy,
    "residual-random": residual_random,
    "partition-sel": partition_sel,
    "swap": swap,
}


def available_methods() -> tuple[str, ...]:
    """The names that `solve` knows."""
    return tuple(_METHODS)


def solve(problem: GradientMatching, matroid: PartitionMatroid | int, method: str = "omp", **options: Any) -> Selection:
    """Select rows for a problem under a partition matroid.

    Parameters
    ----------
    problem : GradientMatching
        What is matched, from rows or from a Gram matrix.
    matroid : PartitionMatroid or int
        Budgets by group; an int is a plain cardinality.
    method : str, default "omp"
        "omp", "omp-normalized" or "greedy": the pursuit of `omp_partition` with that `rule`. "residual-random": its
        ``pick="random"``, by `rule` ("normalized" unless given). "partition-sel": PartitionSel, which draws from raw
        correlations and always fills; its `ranking` ("relu" or "signed") orders the candidates that do not help, the
        problem's `tilt` is eta, and the weights are eta times those of the paper. "swap": "omp-normalized" (from
        `initial` on, if given) with ``refine="swap"``. See `available_methods`.
    **options
        The other keywords of `omp_partition`: pick, refine, fill, release_zeros, tol, candidates, initial, device,
        n_threads, random_state, verbose, callback. With ``refine="swap"`` also `swap_tol` (default 1e-9: a swap has to
        gain more than this share of the objective) and `max_swaps` (None: no limit).

    Returns
    -------
    Selection

    Raises
    ------
    TypeError, ValueError
        Naming the argument.
    """
    if not isinstance(problem, GradientMatching):
        raise TypeError(f"problem: expected a GradientMatching, got {type(problem).__name__}")
    solver = _METHODS[as_choice("method", method, available_methods())]
    if "rule" in options and method != "residual-random":
        raise TypeError("rule: is what method says; use method=" + ", ".join(map(repr, available_methods())))
    if not isinstance(matroid, PartitionMatroid):
        matroid = PartitionMatroid._cardinality(problem.n, matroid)
    if matroid.n != problem.n:
        raise ValueError(f"matroid: has {matroid.n} rows but the problem has {problem.n}")
    return solver(problem, matroid, **options)
