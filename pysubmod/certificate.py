"""How far from optimal is a selection: upper bounds on the best feasible objective that hold, whoever selected."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ._proof import LEVELS, Proof
from ._validation import as_choice, as_indices, as_mask, as_scalar
from .matroid import PartitionMatroid, checked_matroid
from .result import Selection

if TYPE_CHECKING:
    from .problem import GradientMatching

__all__ = ["Certificate", "as_gap", "certify"]

FloatArray = npt.NDArray[np.float64]
IndexArray = npt.NDArray[np.int64]


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
        The gap is at most 1e-9, or 1e-24 of the target's squared norm: less than what rounding decides.
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
    note : str
        What stands in the way of a better bound, if something does.
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
    note: str = ""

    @property
    def sentence(self) -> str:
        """What is proved, in words; every number is rounded to the side on which it still holds."""
        if self.proven_optimal:
            if self.objective == 0.0:
                return "Optimal: no selection improves on the empty one."
            return "Optimal: no feasible selection has a larger objective (proved, up to rounding)."
        has, at_most = _below(self.objective, 6), _above(self.upper, 6)
        if not self.useful:
            if math.isinf(self.upper):
                text = f"No useful certificate: the selection has {has}, and nothing bounds the optimum."
            else:
                text = f"No useful certificate: the selection has {has}, the optimum is at most {at_most}."
            return f"{text} {self.note}".rstrip()
        if self.ratio >= 0.5:
            text = f"Within {_above(100 * self.gap, 2)} % of optimal (proved): "
        else:
            text = f"Reaches at least {_below(100 * self.ratio, 2)} % of the optimum (proved): "
        text += f"objective {has}, optimum at most {at_most}."
        if self.better_objective is not None:
            text += f" A better selection is known: objective {_below(self.better_objective, 6)}."
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
        Seconds, from when C and its inverse have been made (3 s for 4,000 rows); the best bound so far is then
        returned.
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
    level = as_choice("method", method, LEVELS)
    proof = Proof(problem, matroid, as_mask(candidates, problem.n), members, weights)
    proof.run(gap, limit, level)
    return _certificate(proof, time.perf_counter() - started)


def _certificate(proof: Proof, seconds: float) -> Certificate:
    upper = proof.upper
    ratio = proof.share(proof.objective)
    known = max(proof.objective, proof.better_value or 0.0)
    return Certificate(
        objective=proof.objective,
        upper=upper,
        ratio=ratio,
        gap=1.0 - ratio,
        proven_optimal=proof.is_proven(proof.objective),
        useful=proof.share(known) >= 0.5 or proof.is_proven(proof.objective),
        method=min(proof.bounds, key=lambda name: proof.bounds[name]) if proof.bounds else "none",
        bounds={name: value * proof.scale for name, value in proof.bounds.items()},
        better=proof.better,
        better_objective=proof.better_value,
        iterations=proof.iterations,
        nodes=proof.nodes,
        seconds=seconds,
        note=proof.note,
    )


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


def _rounded(number: float, digits: int, rounding: str) -> str:
    # Fourteen digits first: 7 % should not come out as 7.1 because it is 7.000000000000001.
    near = Decimal(f"{number:.14g}")
    return f"{float(Context(prec=digits, rounding=rounding).plus(near)):.6g}"


def _above(number: float, digits: int) -> str:
    return _rounded(number, digits, ROUND_CEILING)


def _below(number: float, digits: int) -> str:
    return _rounded(number, digits, ROUND_FLOOR)
