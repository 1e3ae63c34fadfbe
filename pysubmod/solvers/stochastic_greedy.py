"""Greedy by exact gains within a random sample of the candidates."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .._random import as_seed, random_order
from .._validation import as_scalar, shown
from ..matroid import PartitionMatroid
from ..problem import GradientMatching
from ..result import Selection, Status
from ._trial import Trial
from .pursuit import pursue

__all__ = ["stochastic_greedy"]


def stochastic_greedy(
    problem: GradientMatching,
    matroid: PartitionMatroid,
    *,
    epsilon: float = 0.1,
    random_state: Any = None,
    **common: Any,
) -> Selection:
    """Greedy by exact gains, each step within a fresh random sample (Mirzasoleiman et al., AAAI 2015).

    "Lazier than lazy greedy": of the n rows of the pool a step draws ``ceil(n / r log(1/epsilon))`` eligible ones
    without repetition, r being the number of picks in all, and takes the one with the largest gain. A sample in which
    no row has a gain is put aside until the next pick, and another one drawn. The guarantee in expectation
    (1 - 1/e - epsilon for submodular functions, under a plain cardinality) does not extend to a partition matroid.

    Parameters
    ----------
    epsilon : float in (0, 1), default 0.1
        Small: large samples; once a sample is all that is eligible this is ``method="greedy"``.
    random_state : int, Generator, RandomState or None
        The seed; None draws a fresh one, which ``config["random_state"]`` records.

    Notes
    -----
    ``stats["evaluations"]`` counts the sampled rows. Exact gains of rows not seen before need their products with all
    picks, so for this objective the samples save evaluations but not arithmetic: `greedy`, which
    carries those products along, is usually faster.
    """
    value = as_scalar("epsilon", epsilon)
    if not 0 < value < 1:
        raise ValueError(f"epsilon: expected a number between 0 and 1, both excluded; got {shown(epsilon)}")
    trial, seed = Trial(problem, matroid, **common), as_seed(random_state)
    size = math.ceil(len(trial.rows) / max(trial.rank, 1) * math.log(1 / value))
    picks: list[int] = []
    left = trial.open(picks)
    evaluations, draws, why = 0, 0, Status.NO_GAIN
    while left.any():
        eligible = np.flatnonzero(left)
        sample = eligible[random_order(seed, len(eligible), draws)[:size]]
        draws, evaluations = draws + 1, evaluations + len(sample)
        pick, status = _best(trial, picks, sample)
        if pick is None:
            left[sample] = False
            why = status if status == Status.RANK_DEFICIENT else why
        else:
            picks.append(pick)
            left, why = trial.open(picks), Status.NO_GAIN
    options = {"epsilon": value, "random_state": seed}
    return trial.finish(picks, options, why=why, stats={"evaluations": evaluations, "sample_size": size})


def _best(trial: Trial, picks: list[int], sample: Any) -> tuple[int | None, Status]:
    """One step of the compiled greedy pursuit within the sample, after the picks so far."""
    mask = np.zeros(trial.problem.n, bool)
    mask[trial.rows[sample]] = True
    step = pursue(
        trial.problem,
        trial.matroid,
        rule="greedy",
        initial=trial.rows[picks],
        candidates=mask,
        n_threads=trial.n_threads,
        callback=lambda progress: True,
    )
    if len(step) == len(picks):
        return None, step.status
    return int(np.searchsorted(trial.rows, step.indices[-1])), step.status
