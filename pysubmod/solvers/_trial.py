"""What every baseline shares: the rows it may look at, and how its picks become a `Selection`.

A baseline only chooses; what its picks are worth is the problem's exact refit on them, the same for all methods.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from .._quadratic import Quadratic
from .._validation import as_mask, as_threads, is_integer, shown
from ..matroid import PartitionMatroid
from ..problem import GradientMatching
from ..result import Selection, Status
from .pursuit import check_device, pursue

__all__ = ["COMMON", "TOL", "Trial", "first_best"]

FloatArray = npt.NDArray[np.float64]
IndexArray = npt.NDArray[np.int64]

COMMON = ("candidates", "n_threads", "device", "verbose")  # the options that every baseline takes
TOL = 1e-12  # relative to a score's scale: what is closer is tied, as in the pursuit


class Trial:
    """One run of a baseline on the pool: the rows in `candidates` whose group has budget.

    Baselines speak of pool *positions*, 0 .. len(rows) - 1; only `finish` goes back to row numbers.

    Attributes
    ----------
    rows : (m,) int64 array
        Row numbers of the pool, ascending.
    codes : (m,) int64 array
        Group of each, a position in `budgets`.
    budgets : (P,) int64 array
    rank : int
        The most picks that budgets and pool allow.
    """

    def __init__(
        self,
        problem: GradientMatching,
        matroid: PartitionMatroid,
        *,
        candidates: Any = None,
        n_threads: int | None = None,
        device: str = "auto",
        verbose: int = 0,
    ) -> None:
        self._started = time.perf_counter()
        if not isinstance(verbose, bool) and not is_integer(verbose):
            raise TypeError(f"verbose: expected 0 or 1, got {shown(verbose)}")
        check_device(device)
        as_threads(n_threads)
        self.problem, self.matroid = problem, matroid
        self.mask, self._verbose = as_mask(candidates, problem.n), verbose
        self.n_threads, self.device = n_threads, device
        eligible = matroid.budgets[matroid.codes] > 0
        self.rows: IndexArray = np.flatnonzero(eligible if self.mask is None else eligible & self.mask)
        self.codes: IndexArray = matroid.codes[self.rows].astype(np.int64)
        self.budgets = matroid.budgets
        sizes = np.bincount(self.codes, minlength=len(self.budgets))
        self.rank = int(np.minimum(sizes, self.budgets).sum())

    @cached_property
    def quadratic(self) -> Quadratic:
        """C and c of the pool alone: other rows are never read. A pool that leaves rows out is copied."""
        # The first pick of a pursuit checks the pool: errors are those of every method, with the caller's row numbers.
        pursue(self.problem, self.matroid, candidates=self.mask, n_threads=self.n_threads, callback=lambda _: True)
        with np.errstate(all="ignore"):
            return Quadratic(self.problem._restricted(self.rows))

    def column(self, i: int) -> FloatArray:
        """Column i of K = G G' over the pool."""
        pool = self.quadratic
        if len(self.rows) <= min(16 * self.rank, 4096):
            _ = pool.matrix  # all columns in one product: cheaper than a pass over the rows for each of many
        column: FloatArray = pool.columns(np.array([i]))[:, 0]
        column[i] = pool.squares[i]  # without the ridge
        return column

    def open(self, taken: list[int]) -> npt.NDArray[np.bool_]:
        """Which positions may still be picked."""
        counts = np.bincount(self.codes[taken], minlength=len(self.budgets))
        mask: npt.NDArray[np.bool_] = (counts < self.budgets)[self.codes]
        mask[taken] = False
        return mask

    def within_budgets(self, order: IndexArray) -> tuple[IndexArray, IndexArray]:
        """Walk through `order` and take what budgets allow: (positions, how many of its group came before each)."""
        codes = self.codes[order]
        grouped = np.argsort(codes, kind="stable")
        first = np.searchsorted(codes[grouped], np.arange(len(self.budgets)))
        rounds = np.empty(len(order), np.int64)
        rounds[grouped] = np.arange(len(order)) - first[codes[grouped]]
        keep = rounds < self.budgets[codes]
        return order[keep], rounds[keep]

    def uniform_weights(self, picks: Any) -> FloatArray:
        """1/k for each of k picks: their mean."""
        return np.full(len(picks), 1.0 / max(len(picks), 1))

    def finish(
        self,
        picks: Any,
        options: dict[str, Any],
        *,
        why: Status | None = None,
        weights: Any = None,
        stats: dict[str, Any] | None = None,
    ) -> Selection:
        """Refit the problem's weights on the picks (positions, in pick order) and report.

        `why` says why the method stopped if neither budgets nor pool are used up; `weights` are the method's own.
        """
        chosen = time.perf_counter()
        positions = np.asarray(picks, dtype=np.int64)
        judged = pursue(
            self.problem,
            self.matroid,
            initial=self.rows[positions],
            candidates=np.zeros(self.problem.n, bool),
            n_threads=self.n_threads,
            device=self.device,
        )
        if judged.status == Status.BUDGET:
            why = Status.BUDGET
        elif not self.open(positions.tolist()).any():
            why = Status.EXHAUSTED
        assert why is not None, "rows are left: the method must say why it stopped"
        ended = time.perf_counter()
        kept = ("route", "device", "kernels", "threads", "target_norm", "n_filled")
        seconds = {"total": ended - self._started, "select": chosen - self._started, "refit": ended - chosen}
        report = {name: judged.stats[name] for name in kept} | {"seconds": seconds} | (stats or {})
        if weights is not None:
            report["method_weights"] = np.asarray(weights).tolist()
        names = ("ridge", "tilt", "nonneg", "budgets", "n", "d", "dtype", "version")
        config = {name: judged.config[name] for name in names}
        config["candidates"] = self.problem.n if self.mask is None else int(self.mask.sum())
        self.tell(judged)
        return replace(judged, status=why, stats=report, config=config | options)

    def tell(self, judged: Selection) -> None:
        """With `verbose`, a line for each pick."""
        if not self._verbose:
            return
        values = np.cumsum(judged.gains)
        norms = np.full(len(judged), np.nan) if judged.residual_norms is None else judged.residual_norms
        for j, (row, value, norm) in enumerate(zip(judged.indices, values, norms, strict=True), 1):
            print(
                f"pysubmod: {j}/{self.rank} picked row {row}, objective {value:.6g}, residual {norm:.6g}",
                file=sys.stderr,
            )


def first_best(scores: FloatArray, mask: npt.NDArray[np.bool_], tolerance: float) -> int:
    """The first position in `mask`, which is not empty, whose score is within `tolerance` of the largest."""
    best = scores[mask].max()
    return int(np.argmax(mask & (scores >= best - tolerance)))
