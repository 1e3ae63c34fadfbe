"""How far from optimal is a selection: upper bounds on the best feasible objective that hold, whoever selected."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from . import _relaxation as relaxation
from ._covers import maximise
from ._diagonal import EPS, Diagonal, choose_diagonal
from ._quadratic import Quadratic
from ._search import tighten
from ._validation import as_choice, as_indices, as_mask, as_scalar
from .matroid import PartitionMatroid, checked_matroid
from .result import Selection

if TYPE_CHECKING:
    from .problem import GradientMatching

__all__ = ["Certificate", "certify"]

FloatArray = npt.NDArray[np.float64]
IndexArray = npt.NDArray[np.int64]

METHODS = ("auto", "one-shot", "diagonal", "block")
PROVEN = 1e-9  # of the objective: below it rounding decides
NOISE = 1e-18  # of the target's squared norm: an objective of that size is zero
ROUNDING = 1e-10  # the smallest gap that is aimed at
MOST_DENSE = 4000  # rows for which an (n, n) matrix and its inverse are made
MOST_BLOCK = 700  # rows for which the block bound is worth its time


@dataclass(frozen=True)
class Certificate:
    """What is proved about a selection. ``print(certificate)`` says it in a sentence.

    Attributes
    ----------
    objective : float
        f of the selection, from below (its own weights, rounding included).
    upper : float
        No feasible selection has a larger f. Infinite when nothing could be proved.
    ratio : float
        ``objective / upper``: at least this share of the optimum is reached, in [0, 1].
    gap : float
        ``1 - ratio``.
    proven_optimal : bool
        The gap is at most 1e-9, which is rounding.
    useful : bool
        The bound is at most twice the best objective known; else the sentence says that it is of no use.
    method : str
        Where the smallest bound came from: "one-shot", "diagonal", "block", "all rows" (f(V)), "target norm" or "none".
    bounds : dict
        Every upper bound that was computed, by method.
    better : (k,) int64 array or None
        A feasible selection with a larger objective that was met on the way.
    better_objective : float or None
    iterations, nodes : int
        Steps of the bounds' optimisers, and nodes of the search.
    seconds : float
    """

    objective: float
    upper: float
    ratio: float
    gap: float
    proven_optimal: bool
    useful: bool
    method: str
    bounds: dict[str, float]
    better: IndexArray | None
    better_objective: float | None
    iterations: int
    nodes: int
    seconds: float

    @property
    def sentence(self) -> str:
        """What is proved, in words."""
        if self.objective == 0.0 and self.proven_optimal:
            return "Optimal: no selection improves on the empty one."
        if self.proven_optimal:
            return "Optimal: no feasible selection has a larger objective (proved, up to rounding)."
        if not self.useful:
            bound = (
                "nothing bounds the optimum" if math.isinf(self.upper) else f"the optimum is at most {self.upper:.6g}"
            )
            return (
                f"No useful certificate: the selection has {self.objective:.6g}, {bound}. A ridge, or fewer rows than "
                "columns, makes one possible; so does a selection that is nearer to optimal."
            )
        if self.ratio >= 0.5:
            text = f"Within {_percent(self.gap)} % of optimal (proved): "
        else:
            text = f"Reaches at least {_percent(self.ratio, math.floor)} % of the optimum (proved): "
        text += f"objective {self.objective:.6g}, optimum at most {self.upper:.6g}."
        if self.better_objective is not None:
            text += f" A better selection is known: objective {self.better_objective:.6g}."
        return text

    def __str__(self) -> str:
        return f"{self.sentence} [{self.method} bound, {self.seconds:.3g} s]"

    def to_dict(self) -> dict[str, Any]:
        """All of it in plain types, for JSON."""
        plain = asdict(self)
        plain["better"] = None if self.better is None else self.better.tolist()
        return plain | {"sentence": self.sentence}


def certify(
    problem: GradientMatching,
    matroid: PartitionMatroid | int,
    selection: Any,
    *,
    gap: float = 0.01,
    time_limit: float = 10.0,
    method: str = "auto",
    candidates: Any = None,
) -> Certificate:
    """Prove how close to optimal a selection is, whoever made it.

    Upper bounds on ``max f(S)`` over all feasible S by Lagrangian decomposition ("perspective" bounds), in float64 with
    slack for rounding, computed in NumPy from the problem itself and not by the core that selected. Each level is tried
    until the gap is met: one shot at the selection's weights; the diagonal bound, optimised (milliseconds; matrix-free
    for many rows with a ridge); the block bound, optimised, which enumerates what small clusters of rows can
    contribute, strikes off what cannot be part of anything better, merges clusters and branches (seconds).

    Parameters
    ----------
    problem : GradientMatching
    matroid : PartitionMatroid or int
    selection : Selection, or (k,) int array
        What is judged. Of row numbers the problem's exact weights are taken.
    gap : float, default 0.01
        Enough is proved when ``1 - ratio <= gap``; 0 asks for a proof of optimality.
    time_limit : float, default 10
        Seconds, at most, beyond the first levels; the best bound so far is then returned.
    method : {"auto", "one-shot", "diagonal", "block"}
        The last level to try; "auto" is "block" up to 700 rows and "diagonal" beyond.
    candidates : (n,) bool array, optional
        The rows that an optimal selection may come from (beside those of `selection`).

    Returns
    -------
    Certificate

    Raises
    ------
    TypeError, ValueError
        Naming the argument; a selection that breaks the budgets is refused.

    Notes
    -----
    The diagonal bound is the dual of the perspective relaxation (Frangioni and Gentile, Math. Prog. 106, 2006); with
    blocks in place of a diagonal the decomposition keeps all interactions inside a block. docs/design.md has the proof.

    Examples
    --------
    >>> import numpy as np, pysubmod
    >>> G = np.eye(4)
    >>> problem = pysubmod.GradientMatching(G, target=[4.0, 3.0, 2.0, 1.0])
    >>> sel = pysubmod.solve(problem, 2)
    >>> print(pysubmod.certify(problem, 2, sel).sentence)
    Optimal: no feasible selection has a larger objective (proved, up to rounding).
    """
    started = time.perf_counter()
    matroid = checked_matroid(problem, matroid)
    members, weights = _members(problem, matroid, selection)
    gap = as_gap(gap)
    limit = as_scalar("time_limit", time_limit, minimum=0.0)
    level = METHODS.index(as_choice("method", method, METHODS))
    mask = as_mask(candidates, problem.n)
    proof = Proof(problem, matroid, mask, members, weights)
    proof.run(gap, started + limit, level)
    return proof.certificate(time.perf_counter() - started)


def as_gap(gap: Any) -> float:
    """Check a share of the optimum."""
    checked = as_scalar("gap", gap, minimum=0.0)
    if checked >= 1.0:
        raise ValueError(f"gap: expected a share of the optimum below 1, e.g. 0.01 for 1 %; got {gap}")
    return checked


def _members(problem: GradientMatching, matroid: PartitionMatroid, selection: Any) -> tuple[IndexArray, FloatArray]:
    if isinstance(selection, Selection):
        members = as_indices(selection.indices, problem.n, "selection")
        weights = np.asarray(selection.weights)
    else:
        members = as_indices(selection, problem.n, "selection")
        weights = problem.weights(members)
    if not matroid.is_feasible(members):
        raise ValueError("selection: takes more rows of a group than its budget; only feasible selections have a ratio")
    if not np.isfinite(weights).all() or (problem.nonneg and (weights < 0).any()):
        raise ValueError("selection: its weights must be finite" + (", and >= 0" if problem.nonneg else ""))
    return members, weights


class Proof:
    """The bounds on one problem's optimum, in units in which C has a unit diagonal and the known value is 1.

    `members` and `weights` are a feasible selection whose objective is at hand; it may be empty.
    """

    def __init__(
        self,
        problem: GradientMatching,
        matroid: PartitionMatroid,
        mask: npt.NDArray[np.bool_] | None,
        members: IndexArray,
        weights: FloatArray,
    ) -> None:
        self.bounds: dict[str, float] = {}
        self.better: IndexArray | None = None
        self.better_value: float | None = None
        self.iterations = self.nodes = 0
        allowed = matroid.budgets[matroid.codes] > 0
        if mask is not None:
            allowed &= mask
        allowed[members] = True
        rows = np.flatnonzero(allowed)
        quadratic = Quadratic(problem._restricted(rows), rows)
        # A zero row adds nothing; one with c_i > 0 (only a Gram matrix can have it) makes the problem unbounded.
        used = np.flatnonzero(quadratic.diagonal > 0)
        used = used[np.argsort(matroid.codes[rows[used]], kind="stable")]
        self.quadratic, self.used, self.pool = quadratic, used, rows[used]
        self.root = np.sqrt(quadratic.diagonal[used])
        self.width = (quadratic.width or 0) + 2
        w = np.zeros(problem.n)
        w[members] = weights
        self.w = w[self.pool] * self.root
        self.objective = self._objective(self.w)
        linear = quadratic.c[used] / self.root
        largest = float(np.square(linear).max(initial=0.0)) / 2
        self.scale = self.objective if self.objective > 0 else largest if largest > 0 else 1.0
        self.unit = math.sqrt(self.scale)
        self.c, self.w = linear / self.unit, self.w / self.unit
        norm = quadratic.target_norm
        # Of c: sums of `width` products, each at most |g_i| |t|.
        size = np.abs(self.c) if norm is None else np.sqrt(quadratic.squares[used]) / self.root * (norm / self.unit)
        self.error = (self.width + 4) * EPS * np.maximum(size, np.abs(self.c))
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
        return max(0.0, float(weights @ c - 0.5 * weights @ C @ weights) - slack)

    def relax(self, deadline: float) -> FloatArray | None:
        """The perspective relaxation's z, by row of the pool, and its bound; None where there is no bound."""
        if not len(self.pool):
            self._add("diagonal", 0.0)
            return np.empty(0)
        diagonal = self._dense()[1] if len(self.pool) <= MOST_DENSE else self._matrix_free()
        if diagonal is None:
            return None
        relaxed = diagonal.fista(self.w, 0.0, deadline)
        self._add("diagonal", relaxed.upper)
        self.iterations += relaxed.iterations
        return relaxed.z

    @property
    def upper(self) -> float:
        return min(self.bounds.values(), default=math.inf)

    def add_bound(self, name: str, upper: float) -> None:
        """Take a bound on the objective that somebody else has proved."""
        if math.isfinite(upper):
            self._add(name, upper / self.scale * (1 + 4 * EPS))

    def _add(self, name: str, value: float) -> None:
        self.bounds[name] = min(value, self.bounds.get(name, math.inf))

    def run(self, gap: float, deadline: float, level: int) -> None:
        """Add bounds, the cheap ones first, until the gap is met."""
        gap = max(gap, ROUNDING)
        norm = self.quadratic.target_norm
        if self.quadratic.bounded and norm is not None:
            self._add("target norm", 0.5 * (norm / self.unit) ** 2 * (1 + (self.width + 8) * EPS))
        positive = self.c + self.error > 0 if self.quadratic.nonneg else np.abs(self.c) + self.error > 0
        if not len(self.pool) or not positive.any() or not self.budget.any():
            # w >= 0 with c <= 0: no weight helps.
            self._add("diagonal", 0.0)
            return
        target = 1.0 / (1.0 - gap) if self.objective > 0 else 0.0
        if len(self.pool) > MOST_DENSE:
            diagonal = self._matrix_free()
            if diagonal is not None:
                self._run_diagonal(diagonal, target, deadline, level)
            return
        R, diagonal, inverse = self._dense()
        if diagonal is None or inverse is None:
            return
        everything = np.bincount(self.group, minlength=len(self.budget))
        self._add("all rows", replace(diagonal, budget=everything).bound(inverse @ self.c))
        if self.upper > target:
            self._run_diagonal(diagonal, target, deadline, level)
        wanted = level == 3 or (level == 0 and len(self.pool) <= MOST_BLOCK)
        if self.upper > target and wanted and self.objective > 0:
            self._run_block(R, gap, deadline)

    def _matrix_free(self) -> Diagonal | None:
        """D = ridge I: C - D = K is positive semidefinite by itself, and C is never formed."""
        quadratic, used, root = self.quadratic, self.used, self.root
        if not quadratic.ridge > 0:
            return None
        full = np.zeros(quadratic.n)

        def times(x: FloatArray) -> FloatArray:
            full[used] = x / root
            return np.asarray(quadratic.times(full)[used] / root)

        D = quadratic.ridge / np.square(root) * (1 - 4 * EPS)
        return Diagonal(times, D, self.c, self.error, self.width, self.group, self.budget, quadratic.nonneg)

    def _dense(self) -> tuple[FloatArray, Diagonal | None, FloatArray | None]:
        """R, the diagonal bound on it (None where R is too near to singular), and R's inverse."""
        n = len(self.pool)
        R = self.quadratic.matrix[np.ix_(self.used, self.used)] / np.multiply.outer(self.root, self.root)
        # Lowered by what rounding in its entries may have added to any eigenvalue.
        R[np.diag_indices(n)] = 1.0 - (n * (self.width + 6)) * EPS
        chosen = choose_diagonal(R)
        if chosen is None:
            return R, None, None
        nonneg = self.quadratic.nonneg
        diagonal = Diagonal(R.__matmul__, chosen[0], self.c, self.error, 0, self.group, self.budget, nonneg)
        return R, diagonal, chosen[1]

    def _run_diagonal(self, diagonal: Diagonal, target: float, deadline: float, level: int) -> None:
        self._add("one-shot", diagonal.bound(self.w))
        if self.upper > target and level != 1:
            relaxed = diagonal.fista(self.w, target, deadline)
            self._add("diagonal", relaxed.upper)
            self.iterations += relaxed.iterations

    def _run_block(self, R: FloatArray, gap: float, deadline: float) -> None:
        start = relaxation.root(R, self.c, self.error, self.group, self.budget, self.quadratic.nonneg)
        if start is None:
            return
        outcome = tighten(*start, 1.0, self.upper, gap, deadline)
        self._add("block", outcome.upper)
        self.iterations += outcome.evaluations
        self.nodes += outcome.nodes
        if outcome.support is not None:
            self._offer(np.sort(outcome.support), R)

    def _offer(self, rows: IndexArray, R: FloatArray) -> None:
        """Keep a selection that was met if it is surely better: R was lowered, so its value there is too high."""
        u = maximise(R[np.ix_(rows, rows)][:, :, None], self.c[rows][:, None], self.quadratic.nonneg)
        if u is None:
            return
        w = np.zeros(len(self.pool))
        w[rows] = u[:, 0] * self.unit
        value = self._objective(w)
        if value > self.objective * (1 + ROUNDING):
            self.better, self.better_value = self.pool[rows], value

    def share(self, value: float) -> float:
        """At least this share of the optimum has a selection of that objective."""
        upper = self.upper * self.scale * (1 + 4 * EPS)
        # Below it, rounding decides what a score is (docs/design.md): a bound of next to nothing is nothing.
        noise = NOISE * max(self.quadratic.target_norm or 0.0, self.unit * float(np.abs(self.c).max(initial=0.0))) ** 2
        return 1.0 if upper - value <= noise else min(1.0, value / upper)

    def certificate(self, seconds: float) -> Certificate:
        bounds = {name: value * self.scale * (1 + 4 * EPS) for name, value in self.bounds.items()}
        name = min(bounds, key=lambda key: bounds[key]) if bounds else "none"
        upper = bounds.get(name, math.inf)
        ratio = self.share(self.objective)
        return Certificate(
            objective=self.objective,
            upper=upper,
            ratio=ratio,
            gap=1.0 - ratio,
            proven_optimal=1.0 - ratio <= PROVEN,
            useful=self.share(max(self.objective, self.better_value or 0.0)) >= 0.5,
            method=name,
            bounds=bounds,
            better=self.better,
            better_objective=self.better_value,
            iterations=self.iterations,
            nodes=self.nodes,
            seconds=seconds,
        )


def _percent(share: float, rounded: Callable[[float], int] = math.ceil) -> str:
    """Two digits, rounded to the safe side: what is printed must hold as well."""
    if share <= 0.0:
        return "0"
    digits = 1 - math.floor(math.log10(100 * share))
    factor = 10.0**digits
    return f"{rounded(100 * share * factor) / factor:g}"
