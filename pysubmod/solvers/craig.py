"""CRAIG: medoids of the gradients, by facility location."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..matroid import PartitionMatroid
from ..problem import GradientMatching
from ..result import Selection, Status
from ._trial import TOL, FloatArray, Trial

__all__ = ["craig"]

BATCH = 16  # gains that are brought up to date at a time


def craig(problem: GradientMatching, matroid: PartitionMatroid, **common: Any) -> Selection:
    """Pick medoids of the pool's gradients (Mirzasoleiman, Bilmes and Leskovec, "CRAIG", ICML 2020).

    Greedy maximisation of the facility location function ``F(S) = sum over rows i of max over j in S of
    (L - ||g_i - g_j||)``, L the largest distance, over the whole pool; F is monotone and submodular, so F(S) is
    at least half of the best value under the budgets. It does not look at the target, the ridge or the signs. The paper
    runs within each class: that is ``method="per-group", base="craig"``. Ends when every row coincides with a pick.

    Notes
    -----
    ``stats["method_weights"]`` are the sizes of the clusters (each row belongs to its nearest pick, the earliest of
    equally near ones); they sum to the size of the pool. ``stats["facility_location"]`` is F(S), and
    ``stats["distance_sum"]`` the sum of the distances to the nearest pick: at least the norm of the difference between
    the sum of the pool's gradients and that of the picks with those weights. Keeps two m x m arrays for a
    pool of m rows. Distances below 1e-6 of the rows' norms (1e-3 from a float32 Gram matrix) count as zero.
    """
    trial = Trial(problem, matroid, **common)
    m = len(trial.rows)
    if m == 0:
        return trial.finish([], {}, weights=[], stats={"facility_location": 0.0, "distance_sum": 0.0})
    distances = _distances(trial)
    # Where all rows coincide any positive L does: the first pick covers everything.
    similarity = (float(distances.max()) or 1.0) - distances
    tolerance = TOL * m * float(similarity.max())
    best = np.zeros(m)
    bounds = similarity.sum(axis=1)  # gains only shrink, so the last known gain of a row is a bound
    picks: list[int] = []
    while (left := trial.open(picks)).any():
        pick, gain = _lazy_best(similarity, best, bounds, np.flatnonzero(left), tolerance)
        if gain <= tolerance:
            break
        picks.append(pick)
        np.maximum(best, similarity[pick], out=best)
    nearest = np.argmin(distances[:, picks], axis=1)
    return trial.finish(
        picks,
        {},
        why=Status.NO_GAIN,
        weights=np.bincount(nearest, minlength=len(picks)),
        stats={"facility_location": float(best.sum()), "distance_sum": float(distances[:, picks].min(axis=1).sum())},
    )


def _distances(trial: Trial) -> FloatArray:
    pool, problem = trial.quadratic, trial.problem
    sums = pool.squares[:, None] + pool.squares[None, :]
    squared = sums - 2 * pool.matrix
    rounding = 1e-6 if problem._is_gram and problem._rows.dtype == "float32" else 1e-12
    squared[squared <= rounding * sums] = 0.0
    np.fill_diagonal(squared, 0.0)  # where C has the ridge
    return np.asarray(np.sqrt(squared, out=squared))


def _lazy_best(
    similarity: FloatArray, best: FloatArray, bounds: FloatArray, left: Any, tolerance: float
) -> tuple[int, float]:
    """The first row within `tolerance` of the largest gain; brings up to date only the bounds that may reach it."""
    order = left[np.argsort(-bounds[left], kind="stable")]
    largest, done = -np.inf, 0
    while done < len(order) and bounds[order[done]] >= largest - tolerance:
        batch = order[done : done + BATCH]
        bounds[batch] = np.maximum(similarity[batch] - best, 0.0).sum(axis=1)
        largest = max(largest, float(bounds[batch].max()))
        done += len(batch)
    fresh = np.sort(order[:done])
    pick = int(fresh[np.argmax(bounds[fresh] >= largest - tolerance)])
    return pick, float(bounds[pick])
