"""The proven optimum, or the best selection found and a bound on what is better."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np

from .._proof import Proof
from .._validation import as_scalar
from ..certificate import as_gap
from ..matroid import PartitionMatroid
from ..problem import GradientMatching
from ..result import Selection, Status
from ._trial import Trial
from .relaxed import best

__all__ = ["exact"]


def exact(
    problem: GradientMatching,
    matroid: PartitionMatroid,
    *,
    gap: float = 0.0,
    time_limit: float = 60.0,
    **common: Any,
) -> Selection:
    """Branch and bound with the block bound of `pysubmod.certify`, from the selection of method "best".

    Parameters
    ----------
    gap : float, default 0
        Enough is proved when the selection reaches a share ``1 - gap`` of the optimum.
    time_limit : float, default 60
        Seconds, after which the best selection met is returned with its bound.

    Notes
    -----
    ``stats`` has ``upper`` (no selection is worth more) and ``ratio`` where there is a bound, ``proven_optimal``,
    ``nodes`` and ``iterations``. 48 rows with 12 picks take under a second, 64 rows with 16 picks some; beyond some
    hundred rows the bound is the answer.
    It needs a nonsingular G G' + ridge I; without one the bound is ``||t||^2 / 2`` and nothing is proved.
    """
    started = time.perf_counter()
    trial = Trial(problem, matroid, **common)
    gap = as_gap(gap)
    limit = as_scalar("time_limit", time_limit, minimum=0.0)
    own = {"candidates": trial.mask, "n_threads": trial.n_threads, "device": trial.device}
    start = best(problem, matroid, time_limit=limit / 4, **own)
    proof = Proof(problem, matroid, trial.mask, start.indices, np.asarray(start.weights))
    proof.add_bound("relaxation", start.stats.get("upper", np.inf))
    proof.run(gap, max(0.0, limit - (time.perf_counter() - started)), "block")
    why = Status.NO_GAIN if start.status in (Status.BUDGET, Status.EXHAUSTED) else start.status
    options = {"gap": gap, "time_limit": limit}
    found = trial.finish(np.searchsorted(trial.rows, start.indices), options, why=why)
    if proof.better is not None:
        # Its refit decides: rows that are nearly dependent may be worth less there.
        other = trial.finish(np.searchsorted(trial.rows, proof.better), options, why=why)
        found = other if other.objective > found.objective else found
    stats: dict[str, Any] = {"nodes": proof.nodes, "iterations": proof.iterations}
    stats["proven_optimal"] = proof.is_proven(found.objective)
    if np.isfinite(proof.upper):
        stats |= {"upper": proof.upper, "ratio": proof.share(found.objective)}
    return replace(found, stats=found.stats | stats)
