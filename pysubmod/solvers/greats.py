"""GREATS: greedy with the same weight for every pick."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._validation import as_scalar
from ..matroid import PartitionMatroid
from ..problem import GradientMatching
from ..result import Selection
from ._trial import TOL, Trial, first_best

__all__ = ["greats"]


def greats(
    problem: GradientMatching, matroid: PartitionMatroid, *, eta: float | None = None, **common: Any
) -> Selection:
    """Greedy for picks that all get the same weight (Wang et al., "GREATS", NeurIPS 2024).

    The next row has the largest ``s_i - eta * sum of K_ij over the picks j``, with ``s = G t`` and ``K = G G'``: the
    drop of the validation loss, over eta, that it adds to a gradient step of learning rate eta on the sum of the picks,
    to second order, with the identity for the Hessian and the row's own ``eta/2 K_ii`` left out. Weights are never
    fitted and never negative, so s_i counts with its sign in both weight modes; the budgets are always used up.

    Parameters
    ----------
    eta : float >= 0, optional
        The learning rate. Default: the problem's tilt if it has one (the same eta), else one over the number of picks,
        with which the picks' *mean* gradient is matched to the target (a choice of this library's).

    Notes
    -----
    ``stats["equals_top_k"]``: whether the redundancy term changed nothing, so that the same rows have the largest s_i.
    With unit rows that is the rule for the learning rates of fine-tuning, 1e-3 and below.
    """
    trial = Trial(problem, matroid, **common)
    rate = as_scalar("eta", _default(problem, trial) if eta is None else eta, minimum=0.0)
    pool = trial.quadratic
    alone = pool.c - problem.tilt / 2 * pool.squares
    scores = alone.copy()
    picks: list[int] = []
    tolerance = TOL * np.abs(alone).max(initial=0.0)
    while (left := trial.open(picks)).any():
        pick = first_best(scores, left, tolerance)
        picks.append(pick)
        scores -= rate * trial.column(pick)
    top, _ = trial.within_budgets(np.argsort(-alone, kind="stable"))
    return trial.finish(
        picks, {"eta": rate}, weights=np.ones(len(picks)), stats={"equals_top_k": set(picks) == set(top.tolist())}
    )


def _default(problem: GradientMatching, trial: Trial) -> float:
    return problem.tilt if problem.tilt > 0 else 1.0 / max(trial.rank, 1)
