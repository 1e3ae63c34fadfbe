"""The rivals that look at one row at a time, or at none: by score, or at random."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._random import as_seed, random_order
from .._validation import as_flag
from ..matroid import PartitionMatroid
from ..problem import GradientMatching
from ..result import Selection
from ._trial import FloatArray, IndexArray, Trial

__all__ = ["random", "random_per_group", "top_k", "top_k_per_group"]


def top_k(problem: GradientMatching, matroid: PartitionMatroid, *, normalize: bool = False, **common: Any) -> Selection:
    """Pick the rows with the largest score, whatever the other picks are.

    The score is the first one of the pursuit: ``c_i``, which is ``<g_i, t>`` without a tilt, or its size for free
    weights. Rows are taken in the order of their scores while their group has budget: a top-k that ignores the groups
    would break the constraint (a `PartitionMatroid` of one group has none to ignore). Negative scores
    are picked too when nothing better is left. Exact ties go to the lowest row number.

    Parameters
    ----------
    normalize : bool, default False
        Divide by ``sqrt(C_ii)``: without ridge and tilt, rank by cosine.
    """
    trial = Trial(problem, matroid, **common)
    picks, _ = _ranked(trial, normalize)
    return trial.finish(picks, {"normalize": bool(normalize)}, weights=trial.uniform_weights(picks))


def top_k_per_group(
    problem: GradientMatching, matroid: PartitionMatroid, *, normalize: bool = False, **common: Any
) -> Selection:
    """Pick each group's rows with the largest score, in rounds: the best of every group, then the second best ones.

    Under a partition matroid these are the same rows as those of `top_k`; only the order of the picks
    differs, and so gains and residuals along it. (With one group nothing differs.)

    Parameters
    ----------
    normalize : bool, default False
        As in `top_k`.
    """
    trial = Trial(problem, matroid, **common)
    picks, rounds = _ranked(trial, normalize)
    picks = picks[np.argsort(rounds, kind="stable")]  # within a round the order of the scores stays
    return trial.finish(picks, {"normalize": bool(normalize)}, weights=trial.uniform_weights(picks))


def random(
    problem: GradientMatching, matroid: PartitionMatroid, *, random_state: Any = None, **common: Any
) -> Selection:
    """Draw uniformly among the selections that use up the budgets: rows in random order, taken while budgets last.

    Parameters
    ----------
    random_state : int, Generator, RandomState or None
        The seed; None draws a fresh one, which ``config["random_state"]`` records.
    """
    trial, seed = Trial(problem, matroid, **common), as_seed(random_state)
    picks, _ = _shuffled(trial, seed)
    return trial.finish(picks, {"random_state": seed}, weights=trial.uniform_weights(picks))


def random_per_group(
    problem: GradientMatching, matroid: PartitionMatroid, *, random_state: Any = None, **common: Any
) -> Selection:
    """Draw each group's budget uniformly from the group, in rounds over the groups.

    Under a partition matroid that is the distribution of `random`, and for the same seed the same rows; only
    the order of the picks differs: every group gives one pick before any gives its second.

    Parameters
    ----------
    random_state : int, Generator, RandomState or None
        As in `random`.
    """
    trial, seed = Trial(problem, matroid, **common), as_seed(random_state)
    picks, rounds = _shuffled(trial, seed)
    picks = picks[np.argsort(rounds, kind="stable")]
    return trial.finish(picks, {"random_state": seed}, weights=trial.uniform_weights(picks))


def _ranked(trial: Trial, normalize: bool) -> tuple[IndexArray, IndexArray]:
    as_flag("normalize", normalize)
    return trial.within_budgets(np.argsort(-scores(trial, normalize), kind="stable"))


def scores(trial: Trial, normalize: bool) -> FloatArray:
    """The pursuit's scores before the first pick."""
    problem = trial.quadratic
    score = problem.c if problem.nonneg else np.abs(problem.c)
    if not normalize:
        return score
    root = np.sqrt(problem.diagonal)
    return np.divide(score, root, out=np.zeros_like(score), where=root > 0)


def _shuffled(trial: Trial, seed: int) -> tuple[IndexArray, IndexArray]:
    # The order is of all rows, so that a mask leaves the order of those it keeps as it was.
    order = random_order(seed, trial.problem.n)
    place = np.empty(trial.problem.n, np.int64)
    place[order] = np.arange(trial.problem.n)
    return trial.within_budgets(np.argsort(place[trial.rows], kind="stable"))
