"""Rounding the perspective relaxation, and the best of what is quick."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from .._proof import Proof
from .._validation import as_scalar
from ..matroid import PartitionMatroid
from ..problem import GradientMatching
from ..result import Selection
from ._trial import Trial
from .pursuit import normalized_omp, omp, swap

__all__ = ["best", "relax_round"]

# Options of the last search on the way, which the caller did not give.
PATH_OPTIONS = {"rule", "pick", "ranking", "random_state", "refine", "swap_tol", "max_swaps"}
PATH_OPTIONS |= {"initial", "fill", "release_zeros", "tol"}

IndexArray = npt.NDArray[np.int64]


def relax_round(
    problem: GradientMatching, matroid: PartitionMatroid, *, time_limit: float = 10.0, **common: Any
) -> Selection:
    """Round the solution of the perspective relaxation (Frangioni and Gentile 2006; Xie and Deng 2020).

    The relaxation chooses rows by fractions z in [0, 1] that add up to the budgets; the largest of every group are
    taken, and normalised OMP goes on from them where a group has fewer fractions than budget. The relaxation's value is
    an upper bound on every selection, so ``stats["upper"]`` and ``stats["ratio"]`` (the share of it that was reached)
    come along.

    Parameters
    ----------
    time_limit : float, default 10
        Seconds for the relaxation; it takes milliseconds for hundreds of rows, seconds for thousands.

    Raises
    ------
    ValueError
        G G' + ridge I is singular (more rows than columns, or repeated rows, without a ridge): there is no relaxation.
    """
    started = time.perf_counter()
    trial = Trial(problem, matroid, **common)
    limit = as_scalar("time_limit", time_limit, minimum=0.0)
    proof, rounded = _rounded(trial, limit)
    if rounded is None:
        raise ValueError(f"ridge: there is no relaxation to round. {proof.note}")
    return _report(trial, rounded, started, proof, {"time_limit": limit})


def best(problem: GradientMatching, matroid: PartitionMatroid, *, time_limit: float = 10.0, **common: Any) -> Selection:
    """Swap search from the better of normalised and raw OMP, and from the rounded relaxation; the better of the two.

    So it is never worse than any of these. The relaxation's bound comes along as ``stats["upper"]`` and
    ``stats["ratio"]``; where there is no relaxation (G G' + ridge I singular) ``stats["relaxation"]`` says so and the
    first half is the answer.

    Parameters
    ----------
    time_limit : float, default 10
        Seconds for the relaxation.
    """
    started = time.perf_counter()
    trial = Trial(problem, matroid, **common)
    limit = as_scalar("time_limit", time_limit, minimum=0.0)
    own = _own(trial)
    starts = [normalized_omp(problem, matroid, **own), omp(problem, matroid, **own)]
    start = max(starts, key=lambda selection: selection.objective)  # the first on a tie
    first = swap(problem, matroid, initial=start.indices, **own)
    proof, rounded = _rounded(trial, limit)
    second = first if rounded is None else swap(problem, matroid, initial=rounded.indices, **own)
    plain = "omp-normalized" if start is starts[0] else "omp"
    winner, path = (second, "relaxation") if second.objective > first.objective else (first, plain)
    found = _report(trial, winner, started, proof, {"time_limit": limit})
    stats = found.stats | {"path": path, "relaxation": f"none: {proof.note}" if rounded is None else "rounded"}
    return replace(found, stats=stats)


def _own(trial: Trial) -> dict[str, Any]:
    return {"candidates": trial.mask, "n_threads": trial.n_threads, "device": trial.device}


def _rounded(trial: Trial, time_limit: float) -> tuple[Proof, Selection | None]:
    nothing = np.empty(0, np.int64)
    proof = Proof(trial.problem, trial.matroid, trial.mask, nothing, np.empty(0))
    z = proof.relax(time_limit)
    if z is None:
        return proof, None
    order = np.lexsort((proof.pool, -z))
    order = order[z[order] > 1e-9]
    positions = np.searchsorted(trial.rows, proof.pool[order])
    picks, _ = trial.within_budgets(positions)
    return proof, normalized_omp(trial.problem, trial.matroid, initial=trial.rows[picks], **_own(trial))


def _report(trial: Trial, selection: Selection, started: float, proof: Proof, options: dict[str, Any]) -> Selection:
    upper = proof.upper
    stats: dict[str, Any] = dict(selection.stats)
    stats["seconds"] = stats["seconds"] | {"total": time.perf_counter() - started}
    if np.isfinite(upper):
        stats["upper"], stats["ratio"] = upper, proof.share(selection.objective)
    config = {name: value for name, value in selection.config.items() if name not in PATH_OPTIONS}
    trial.tell(selection)
    return replace(selection, stats=stats, config=config | options)
