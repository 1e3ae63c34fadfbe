"""Any method, each group alone."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from .._random import as_seed, random_bits
from .._validation import as_choice
from ..matroid import PartitionMatroid
from ..problem import GradientMatching
from ..result import Selection, Status
from ._trial import Trial

__all__ = ["per_group"]


def per_group(
    problem: GradientMatching,
    matroid: PartitionMatroid,
    *,
    base: str = "omp-normalized",
    random_state: Any = None,
    candidates: Any = None,
    n_threads: int | None = None,
    device: str = "auto",
    verbose: int = 0,
    **options: Any,
) -> Selection:
    """Run another method on each group alone, with the whole target, and refit all picks together.

    No group knows what the others have picked: K between groups counts as zero ("ID", the baseline of choosing per
    domain). The picks are put in rounds, the first pick of every group, then the second ones; within a round
    the larger gain in its own group comes first, then the lower row number.

    Parameters
    ----------
    base : str, default "omp-normalized"
        Any other method.
    random_state : int, Generator, RandomState or None
        Gives every group a seed of its own, if the base uses one.
    **options
        What else the base takes, but for `initial` and `callback`; a `time_limit` is that of each group.

    Notes
    -----
    A status other than "budget" or "exhausted" is that of the first group, in the order of the labels, that stopped for
    another reason. If the base has weights of its own, ``stats["method_weights"]`` are those, group by group.
    """
    from . import METHODS, solve

    as_choice("base", base, [name for name in METHODS if name != "per-group"])
    for name in ("initial", "callback"):
        if name in options:
            raise TypeError(f"{name}: not an option of method='per-group', which runs its base once for each group")
    trial = Trial(problem, matroid, candidates=candidates, n_threads=n_threads, device=device, verbose=verbose)
    given = {"n_threads": n_threads} if n_threads is not None else {}
    seed = as_seed(random_state)
    parts: list[Selection] = []
    for p in np.unique(trial.codes).tolist():
        mask = np.zeros(problem.n, bool)
        mask[trial.rows[trial.codes == p]] = True
        alone = copy.copy(matroid)
        alone.budgets = np.where(np.arange(len(matroid.budgets)) == p, matroid.budgets, 0)
        own_seed = int(random_bits(seed, p) >> np.uint64(1))
        parts.append(solve(problem, alone, base, candidates=mask, random_state=own_seed, **given, **options))
    return _joined(trial, parts, {"base": base, "options": options}, seed)


def _joined(trial: Trial, parts: list[Selection], config: dict[str, Any], seed: int) -> Selection:
    keys = [
        (j, -gain, row, place)
        for place, part in enumerate(parts)
        for j, (row, gain) in enumerate(zip(part.indices.tolist(), part.gains.tolist(), strict=True))
    ]
    keys.sort()
    if any(part.config.get("random_state") is not None for part in parts):
        config["random_state"] = seed
    other = [part.status for part in parts if part.status not in (Status.BUDGET, Status.EXHAUSTED)]
    own = [part.stats.get("method_weights") for part in parts]
    weights = None
    if own and all(w is not None for w in own):
        weights = [own[place][j] for j, _, _, place in keys]  # type: ignore[index]
    picks = np.searchsorted(trial.rows, np.array([row for _, _, row, _ in keys], np.int64))
    return trial.finish(picks, config, why=other[0] if other else None, weights=weights)
