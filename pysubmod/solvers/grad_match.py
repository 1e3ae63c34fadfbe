"""GRAD-MATCH: orthogonal matching pursuit with non-negative weights and a tolerance on its regularised error."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .._validation import as_scalar, shown
from ..matroid import PartitionMatroid
from ..problem import GradientMatching
from ..result import Selection, Status
from ._trial import Trial
from .pursuit import pursue

__all__ = ["grad_match"]


def grad_match(problem: GradientMatching, matroid: PartitionMatroid, *, eps: float = 0.0, **common: Any) -> Selection:
    """Orthogonal matching pursuit with weights >= 0 and a ridge (Killamsetty et al., "GRAD-MATCH", ICML 2021).

    The paper minimises ``E(w) = ||t - G_S' w||^2 + ridge ||w||^2``, which is ``||t||^2 - 2 f(S)``, taking the row with
    the largest raw correlation and refitting all weights; so this *is* ``method="omp"`` on the problem with
    weights >= 0, with the paper's tolerance as one more reason to stop. The ridge counts from the first row on, no row
    comes twice, the refit is the exact non-negative one, rows whose weight falls to zero may regain it, and a short
    selection stays short. Groups stand for the paper's classes, rows of G for samples or for mini-batches.

    Parameters
    ----------
    eps : float in [0, 1), default 0
        Stop once E is at most `eps` times its value without picks, ``||t||^2`` (the paper's is absolute; this
        one does not depend on units). Needs a problem without tilt, whose ``||t||`` is known.

    Notes
    -----
    ``stats["method_weights"]`` are its weights >= 0: the selection's `weights`, unless the problem has free ones.
    """
    limit = as_scalar("eps", eps, minimum=0.0)
    if limit >= 1:
        raise ValueError(f"eps: expected a number of at least 0 and below 1, relative to ||t||^2; got {shown(eps)}")
    trial = Trial(problem, matroid, **common)
    inner = problem._restricted(np.arange(problem.n), nonneg=True)
    callback = None
    if limit > 0:
        start = _error_without_picks(problem)

        def callback(progress: Any) -> bool:
            return bool(start - 2 * progress.objective <= limit * start)

    mask = np.zeros(problem.n, bool)
    mask[trial.rows] = True
    found = pursue(inner, matroid, candidates=mask, n_threads=trial.n_threads, callback=callback)
    why = Status.TOLERANCE if found.status == Status.STOPPED else found.status
    picks = np.searchsorted(trial.rows, found.indices)
    return trial.finish(picks, {"eps": limit}, why=why, weights=found.weights)


def _error_without_picks(problem: GradientMatching) -> float:
    if problem.tilt:
        raise ValueError(
            f"eps: with a tilt ({problem.tilt:g}) there is no regularised error to compare; leave eps at 0"
        )
    norm = problem._target_norm if problem._is_gram else float(np.linalg.norm(problem._vector))
    if math.isnan(norm):
        raise ValueError("eps: ||t|| is not known from K and c alone; give from_gram(..., target_norm=||t||)")
    return norm**2
