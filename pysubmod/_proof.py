"""The bounds behind a certificate, the cheap ones first, in units in which C has a unit diagonal."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ._covers import EPS
from ._diagonal import Diagonal, Relaxed, choose_diagonal
from ._nodes import root
from ._quadratic import Quadratic
from ._search import tighten
from .matroid import PartitionMatroid

if TYPE_CHECKING:
    from .problem import GradientMatching

__all__ = ["LEVELS", "MOST_DENSE", "PROVEN", "Proof"]

FloatArray = npt.NDArray[np.float64]
IndexArray = npt.NDArray[np.int64]

LEVELS = ("auto", "one-shot", "diagonal", "block")
PROVEN = 1e-9  # a gap of that size is rounding
# An objective that is less by this share of the target's squared norm has no row left that the library would pick:
# scores below 1e-12 of the norm count as zero (docs/design.md).
NOISE = 1e-24
ROUNDING = 1e-10  # the smallest gap that is aimed at
MOST_DENSE = 4000  # rows for which an (n, n) matrix and its inverse are made
MOST_BLOCK = 700  # rows for which the block bound is worth its time
LARGEST = 1e120  # weights in units: their squares must stay in float64

# Why there is no bound but the trivial ones.
SINGULAR = (
    "G G' + ridge I is singular (more rows than columns, or repeated ones); with a ridge, e.g. 0.01 times the mean "
    "squared row norm, more can be proved."
)
LARGE = f"With more than {MOST_DENSE} rows more can be proved only of rows (not of a Gram matrix) and with a ridge."
UNBOUNDED = "The linear term rewards a row that the Gram matrix does not see, so the objective has no maximum."


class Proof:
    """The bounds on one problem's optimum.

    `members` and `weights` are a feasible selection whose objective is at hand; it may be empty. The optimum is over
    the rows in `mask` (all, if None) whose group has budget, and `members`.
    """

    def __init__(
        self,
        problem: GradientMatching,
        matroid: PartitionMatroid,
        mask: npt.NDArray[np.bool_] | None,
        members: IndexArray,
        weights: FloatArray,
    ) -> None:
        self.problem = problem
        self.bounds: dict[str, float] = {}
        self.note = ""  # why there is no better bound, where something stands in the way
        self.better: IndexArray | None = None
        self.better_value: float | None = None
        self.iterations = self.nodes = 0
        allowed = matroid.budgets[matroid.codes] > 0
        if mask is not None:
            allowed &= mask
        allowed[members] = True
        self.rows = rows = np.flatnonzero(allowed)
        self.quadratic = quadratic = Quadratic(problem._restricted(rows), rows)
        # A zero row adds nothing; one that c rewards (only a Gram matrix can have it) makes the problem unbounded.
        used = np.flatnonzero(quadratic.diagonal > 0)
        idle = quadratic.c[quadratic.diagonal <= 0]
        self.unbounded = bool((idle > 0).any() or (not problem.nonneg and (idle < 0).any()))
        self.used = used[np.argsort(matroid.codes[rows[used]], kind="stable")]  # group by group
        self.pool = rows[self.used]
        self.root = np.sqrt(quadratic.diagonal[self.used])
        self.width = (quadratic.width or 0) + 2
        full = np.zeros(problem.n)
        full[members] = weights
        w = full[self.pool] * self.root
        if not (np.abs(w) < LARGEST).all():
            raise ValueError("selection: a weight is too large for its objective to be computed")
        linear = quadratic.c[self.used] / self.root
        squares, norm = quadratic.squares[self.used], quadratic.target_norm
        # Of c: sums of `width` products, at most |g_i| |t| in all; and the tilt's part.
        size = np.abs(linear) if norm is None else np.maximum(np.sqrt(squares) / self.root * norm, np.abs(linear))
        self._error = (self.width + 4) * EPS * (size + abs(problem.tilt) * squares / self.root)
        self.objective = self._objective(w)
        largest = float(np.square(linear).max(initial=0.0)) / 2
        self.scale = self.objective if self.objective > 0 else largest if largest > 0 else 1.0
        self.unit = math.sqrt(self.scale)
        self.c, self.w, self.error = linear / self.unit, w / self.unit, self._error / self.unit
        names, self.group = np.unique(matroid.codes[self.pool], return_inverse=True)
        self.budget = np.minimum(matroid.budgets[names], np.bincount(self.group, minlength=len(names)))

    def _objective(self, w: FloatArray) -> float:
        """The objective at weights w (of rows of unit length), from below."""
        quadratic, chosen = self.quadratic, np.flatnonzero(w)
        if not len(chosen):
            return 0.0
        members, weights = self.used[chosen], w[chosen] / self.root[chosen]
        C = quadratic.columns(members)[members]
        c = quadratic.c[members]
        size, norm = float(np.abs(w).sum()), quadratic.target_norm or 0.0
        slack = (self.width + len(members) + 8) * EPS * (size**2 + size * norm + float(np.abs(weights) @ np.abs(c)))
        slack += float(np.abs(w) @ self._error)
        return max(0.0, float(weights @ c - 0.5 * weights @ C @ weights) - slack)

    # ---- what is proved ---------------------------------------------------------------------------------------------

    @property
    def upper(self) -> float:
        """No selection has a larger objective; infinite if nothing is proved."""
        return min(self.bounds.values(), default=math.inf) * self.scale * (1 + 4 * EPS)

    def share(self, value: float) -> float:
        """At least this share of the optimum has a selection of that objective."""
        return 1.0 if self.upper == 0.0 else min(1.0, value / self.upper)

    def is_proven(self, value: float) -> bool:
        """Whether a selection of that objective is optimal, but for what rounding decides."""
        norm = max(self.quadratic.target_norm or 0.0, self.unit * float(np.abs(self.c).max(initial=0.0)))
        return 1.0 - self.share(value) <= PROVEN or self.upper - value <= NOISE * norm**2

    def add_bound(self, name: str, upper: float) -> None:
        """Take a bound on the objective that somebody else has proved."""
        self._add(name, upper / self.scale * (1 + 4 * EPS))

    def _add(self, name: str, value: float) -> None:
        if math.isfinite(value):
            self.bounds[name] = min(value, self.bounds.get(name, math.inf))

    # ---- the levels -------------------------------------------------------------------------------------------------

    def run(self, gap: float, time_limit: float, level: str) -> None:
        """Add bounds, the cheap ones first, until the gap is met; the time runs from when the matrices are made."""
        gap = max(gap, ROUNDING)
        if self.unbounded:
            self.note = UNBOUNDED
        if self.unbounded or not self._something_to_gain():
            return
        target = self.objective / (1.0 - gap) / self.scale
        self._add_norm()
        if self._met(target):
            return
        if len(self.pool) > MOST_DENSE:
            diagonal = self._matrix_free()
            if diagonal is not None:
                self._run_diagonal(diagonal, self.w, target, time.perf_counter() + time_limit, level)
            return
        R, diagonal, inverse = self._dense()
        deadline = time.perf_counter() + time_limit
        if diagonal is None or inverse is None:
            return
        everything = np.bincount(self.group, minlength=len(self.budget))
        unconstrained = inverse @ self.c
        self._add("all rows", replace(diagonal, budget=everything).bound(unconstrained))
        relaxed = None
        if not self._met(target):
            # From there FISTA takes half the steps that it takes from the selection's weights.
            relaxed = self._run_diagonal(diagonal, unconstrained, target, deadline, level)
        wanted = level == "block" or (level == "auto" and len(self.pool) <= MOST_BLOCK)
        if wanted and relaxed and self.objective > 0 and not self._met(target) and time.perf_counter() < deadline:
            self._run_block(R, relaxed, gap, deadline)

    def relax(self, time_limit: float) -> FloatArray | None:
        """The perspective relaxation's z, by row of `pool`, and its bound; None where there is none."""
        if self.unbounded:
            self.note = UNBOUNDED
            return None
        if not self._something_to_gain():
            return np.zeros(len(self.pool))
        start, diagonal = self.w, None
        if len(self.pool) > MOST_DENSE:
            diagonal = self._matrix_free()
        else:
            _, diagonal, inverse = self._dense()
            start = start if inverse is None else inverse @ self.c
        if diagonal is None:
            return None
        relaxed = diagonal.fista(start, 0.0, time.perf_counter() + time_limit)
        self._add("diagonal", relaxed.upper)
        self.iterations += relaxed.iterations
        return relaxed.z

    def _something_to_gain(self) -> bool:
        """False, and a bound of 0, where no weight on any row can help: no rows, or w >= 0 and c <= 0."""
        c = self.c if self.quadratic.nonneg else np.abs(self.c)
        if (c + self.error > 0).any() and self.budget.any():
            return True
        self._add("diagonal", 0.0)
        return False

    def _met(self, target: float) -> bool:
        return min(self.bounds.values(), default=math.inf) <= target

    def _add_norm(self) -> None:
        norm = self.quadratic.target_norm
        if self.quadratic.bounded and norm is not None:
            self._add("target norm", 0.5 * (norm / self.unit) ** 2 * (1 + (self.width + 8) * EPS))

    def _matrix_free(self) -> Diagonal | None:
        """D = ridge I: C - D = G G' is positive semidefinite by itself, and C is never formed.

        None without a ridge; and for a Gram matrix, which somebody may have rounded until it is no longer so.
        """
        quadratic, used, root_ = self.quadratic, self.used, self.root
        if not quadratic.ridge > 0 or not quadratic.has_rows:
            self.note = LARGE
            return None
        full = np.zeros(quadratic.n)

        def times(x: FloatArray) -> FloatArray:
            full[used] = x / root_
            return np.asarray(quadratic.times(full)[used] / root_)

        D = quadratic.ridge / np.square(root_) * (1 - 4 * EPS)
        return Diagonal(times, D, self.c, self.error, self.width, self.group, self.budget, quadratic.nonneg)

    def _dense(self) -> tuple[FloatArray, Diagonal | None, FloatArray | None]:
        """R, the diagonal bound on it (None where R is too near to singular), and R's inverse."""
        n = len(self.pool)
        R = self.quadratic.matrix[np.ix_(self.used, self.used)] / np.multiply.outer(self.root, self.root)
        # Lowered by what rounding in its entries may have added to any eigenvalue.
        R[np.diag_indices(n)] = 1.0 - (n * (self.width + 6)) * EPS
        chosen = choose_diagonal(R)
        if chosen is None:
            self.note = SINGULAR
            return R, None, None
        nonneg = self.quadratic.nonneg
        diagonal = Diagonal(R.__matmul__, chosen[0], self.c, self.error, 0, self.group, self.budget, nonneg)
        return R, diagonal, chosen[1]

    def _run_diagonal(
        self, diagonal: Diagonal, start: FloatArray, target: float, deadline: float, level: str
    ) -> Relaxed | None:
        self._add("one-shot", diagonal.bound(self.w))
        if level == "one-shot" or self._met(target):
            return None
        relaxed = diagonal.fista(start, target, deadline)
        self._add("diagonal", relaxed.upper)
        self.iterations += relaxed.iterations
        return relaxed

    def _run_block(self, R: FloatArray, relaxed: Relaxed, gap: float, deadline: float) -> None:
        nonneg = self.quadratic.nonneg
        start = root(R, self.c, self.error, self.group, self.budget, nonneg, relaxed.w, relaxed.price, deadline)
        if start is None:
            return
        outcome = tighten(*start, 1.0, min(self.bounds.values(), default=math.inf), gap, deadline)
        self._add("block", outcome.upper)
        self.iterations += outcome.evaluations
        self.nodes += outcome.nodes
        if outcome.support is not None:
            self._offer(self.pool[np.sort(outcome.support)])

    def _offer(self, members: IndexArray) -> None:
        """Keep a selection that was met if it is better at the weights that the problem gives it."""
        w = np.zeros(self.quadratic.n)
        w[np.searchsorted(self.rows, members)] = self.problem.weights(members)
        value = self._objective(w[self.used] * self.root)
        if value > self.objective * (1 + ROUNDING):
            self.better, self.better_value = members, value
