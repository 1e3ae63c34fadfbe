"""DivBS: sampling by what the picks so far leave unexplained."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._random import as_seed, uniform
from .._validation import as_choice
from ..matroid import PartitionMatroid
from ..problem import GradientMatching
from ..result import Selection, Status
from ._trial import TOL, FloatArray, Trial

__all__ = ["divbs"]


def divbs(
    problem: GradientMatching,
    matroid: PartitionMatroid,
    *,
    target: str = "mean",
    random_state: Any = None,
    **common: Any,
) -> Selection:
    """Sample rows by their correlation with the unexplained part of the pool's mean (Hong et al., "DivBS", ICML 2024).

    A row is drawn with probability proportional to ``|<g_i, r>|``, as the authors' released code does; r is the target
    less its projection on the picks so far (free weights, no ridge). It ends where nothing is left to explain: rows
    in the span of the picks are never drawn (their correlation is rounding noise), and no random rows are added.

    Parameters
    ----------
    target : {"mean", "problem"}, default "mean"
        "mean": the mean row of the pool, the paper's; the problem's own target is not looked at. "problem": its c.
    random_state : int, Generator, RandomState or None
        The seed; None draws a fresh one, which ``config["random_state"]`` records.

    Notes
    -----
    The paper trains on the mean of the picks: ``stats["method_weights"]`` are 1/k.
    """
    as_choice("target", target, ("mean", "problem"))
    trial, seed = Trial(problem, matroid, **common), as_seed(random_state)
    pool = trial.quadratic
    left = pool.squares.copy()  # squared distance from the span of the picks
    g = pool.c.copy() if target == "problem" else _mean_target(trial)
    root = np.sqrt(np.maximum(pool.squares, 0.0))
    scale = np.divide(np.abs(g), root, out=np.zeros_like(g), where=root > 0).max(initial=0.0)
    basis = np.zeros((len(g), trial.rank))  # <g_i, q_j>, q the orthonormalised picks
    rank_tol = pool.rank_tol
    picks: list[int] = []
    while (eligible := trial.open(picks)).any():
        eligible &= (left > rank_tol * pool.squares) & (np.abs(g) > TOL * scale * root)
        if not eligible.any():
            break
        pick = _draw(np.where(eligible, np.abs(g), 0.0), float(uniform(seed, len(picks))))
        k = len(picks)
        length = np.sqrt(left[pick])
        along = (trial.column(pick) - basis[:, :k] @ basis[pick, :k]) / length
        g -= along * (g[pick] / length)
        left -= along**2
        basis[:, k] = along
        picks.append(pick)
    options = {"target": target, "random_state": seed}
    return trial.finish(picks, options, why=Status.NO_GAIN, weights=trial.uniform_weights(picks))


def _mean_target(trial: Trial) -> FloatArray:
    share = np.full(len(trial.rows), 1.0 / max(len(trial.rows), 1))
    return trial.quadratic.times(share) - trial.quadratic.ridge * share


def _draw(weights: FloatArray, at: float) -> int:
    """The position that `at` in [0, 1) falls on when each has a length proportional to its weight."""
    edges = np.cumsum(weights)
    place = int(np.searchsorted(edges, at * edges[-1], side="right"))
    return min(place, int(np.flatnonzero(weights)[-1]))  # rounding may put at * total on the last edge
