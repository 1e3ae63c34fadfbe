"""The energy of a task mixture: its checks, its semidefiniteness, its solution and the certificate of that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ._capped_simplex import EPS, duality_gap, face_is_regular, minimise, stationary_point
from ._validation import as_array, as_groups, as_scalar, shown

__all__ = ["TOLERANCE", "Energy", "Solution"]

FloatArray = npt.NDArray[np.float64]
TOLERANCE = 1e-9  # of the energy's scale: the gap of an optimum
_ASYMMETRY = 1e-6  # of the largest entry: what float32 leaves of a symmetric matrix


@dataclass(frozen=True, eq=False)
class Solution:
    """What `Energy.solve` finds; the fields are those of `Mixture`."""

    p: FloatArray
    energy: float
    gap: float
    active: npt.NDArray[np.int8]
    closed_form: FloatArray | None
    unique: bool
    steps: int


@dataclass(frozen=True, eq=False)
class Energy:
    """``E(p) = -beta unary'p + 1/2 p'(lam similarity + shift I)p`` within bounds, on the simplex."""

    similarity: FloatArray
    beta: float
    lam: float
    unary: FloatArray
    lower: FloatArray
    upper: FloatArray
    labels: tuple[int | str, ...]
    own_unary: bool  # rather than the sums of similarity's rows
    shift: float = 0.0

    @classmethod
    def checked(
        cls, similarity: Any, beta: float, lam: float, unary: Any, lower: Any, upper: Any, labels: Any, shift: bool
    ) -> Energy:
        """From a caller's arguments; J is refused, or shifted, where it is not semidefinite."""
        S = _as_similarity(similarity)
        n = len(S)
        names = _as_labels(labels, n)
        low, high = _as_bound("lower", lower, 0.0, names), _as_bound("upper", upper, 1.0, names)
        _check_bounds(low, high, names)
        worth = S.sum(axis=1) if unary is None else _as_vector("unary", unary, n)
        model = cls(S, beta, lam, worth, low, high, names, unary is not None)
        least = model._least_curvature()
        if least >= -model._slack:
            return model
        if not shift:
            raise ValueError(
                f"similarity: lam * similarity is not positive semidefinite on the mixtures' differences: its smallest"
                f" eigenvalue there is {least:.6g}, its largest entry {float(np.abs(model._J).max()):.3g}. A point"
                " where no small change helps need not be the best then. Is it a divergence (negate it:"
                " pysubmod.similarity.to_similarity)? Else on_indefinite='shift' adds the least multiple of I that"
                " cures it, which is another problem, and reports it"
            )
        return replace(model, shift=-least + model._slack)

    def without_unary(self) -> Energy:
        return replace(self, beta=0.0)

    @cached_property
    def _J(self) -> FloatArray:
        J: FloatArray = self.lam * self.similarity
        J[np.diag_indices(len(J))] += self.shift
        return J

    @cached_property
    def _centred(self) -> tuple[FloatArray, FloatArray]:
        """J and h less what is the same for all mixtures: with 1'p = 1, ``p'(r 1')p = r'p``, whatever r."""
        J = self._J
        rows = J.mean(axis=1)
        h = self.beta * self.unary - rows
        return J - rows[:, None] - rows[None, :] + rows.mean(), h - h.mean()

    @cached_property
    def scale(self) -> float:
        J, h = self._centred
        return max(float(np.ptp(h)), float(np.abs(J).max(initial=0.0))) or 1.0

    @property
    def _slack(self) -> float:
        """Negative curvature that rounding may have made."""
        return 8 * len(self._J) * EPS * float(np.abs(self._J).max(initial=0.0))

    def _least_curvature(self) -> float:
        """The smallest eigenvalue of J on the complement of the ones vector; 0 for one that is at least 0."""
        J, _ = self._centred
        n = len(J)
        size = float(np.abs(J).max(initial=0.0))
        filled = J + size / n  # on the ones vector, which is left out, as large as the rest
        try:
            np.linalg.cholesky(filled + self._slack * np.eye(n))  # thirty times as fast as eigenvalues
        except np.linalg.LinAlgError:
            return float(np.linalg.eigvalsh(filled)[0]) if size > 0 else 0.0
        return 0.0

    def solve(self, start: FloatArray | None = None) -> Solution:
        """The minimiser, and how far from the minimum it can be."""
        J, h = self._centred
        scale, lower, upper = self.scale, self.lower, self.upper
        J, h = J / scale, h / scale
        size = float(np.abs(np.diag(J)).max(initial=0.0))
        closed, steps = None, 0
        if size > 0 and face_is_regular(J, np.ones(len(h), dtype=bool), size):
            closed = stationary_point(J, h, lower, upper)
        p = closed
        if p is None:
            p, steps = minimise(J, h, lower, upper, start)
        g = J @ p - h
        gap = duality_gap(g, p, lower, upper)
        return Solution(
            p=p,
            energy=float(-self.beta * (self.unary @ p) + 0.5 * (p @ (self._J @ p))),
            gap=scale * gap + self._rounding,
            active=np.where(p <= lower, -1, np.where(p >= upper, 1, 0)).astype(np.int8),
            closed_form=closed,
            unique=closed is not None or self._unique(J, g, p, size),
            steps=steps,
        )

    @property
    def _rounding(self) -> float:
        """What rounding may hide of a gap: of J and h when they are centred, of ``Jp - h``, of the semidefiniteness."""
        J, h = self._centred
        n = len(h)
        products = EPS * (n + 8) * (float(np.abs(J).max(initial=0.0)) + float(np.abs(h).max(initial=0.0)))
        centring = 8 * EPS * (float(np.abs(self._J).max()) + self.beta * float(np.abs(self.unary).max()))
        return 2 * (products + centring) + self._slack

    def _unique(self, J: FloatArray, g: FloatArray, p: FloatArray, size: float) -> bool:
        """Whether E curves along every direction in which it is flat to first order; a proof, not a condition."""
        free = (p > self.lower) & (p < self.upper)
        level = float(g[free].mean()) if free.any() else _level(g, p <= self.lower, p >= self.upper)
        face = free | ((np.abs(g - level) <= 1e-9) & (self.upper > self.lower))
        return face_is_regular(J, face, size)


def _level(g: FloatArray, low: npt.NDArray[np.bool_], high: npt.NDArray[np.bool_]) -> float:
    """A multiplier of the sum where every entry is at a bound: between the gradients of the one kind and the other."""
    least, most = np.where(low, g, np.inf).min(), np.where(high, g, -np.inf).max()
    if not np.isfinite(least) or not np.isfinite(most):
        return float(least if np.isfinite(least) else most)
    return float((least + most) / 2)


def _as_similarity(value: Any) -> FloatArray:
    array, _ = as_array("similarity", value)
    if array.ndim != 2 or array.shape[0] != array.shape[1]:
        raise ValueError(f"similarity: expected a square matrix (n, n); got shape {array.shape}")
    if array.shape[0] == 0:
        raise ValueError("similarity: has no tasks; a mixture needs at least one")
    S = _as_finite("similarity", array)
    largest = float(np.abs(S).max())
    if largest > 1e100:
        raise ValueError(f"similarity: its largest entry {largest:.3g} is above 1e100; rescale it")
    off = float(np.abs(S - S.T).max())
    if off > _ASYMMETRY * largest:
        i, j = np.unravel_index(int(np.abs(S - S.T).argmax()), S.shape)
        raise ValueError(
            f"similarity: expected a symmetric matrix; entry ({i}, {j}) is {S[i, j]:.6g} and entry ({j}, {i}) is"
            f" {S[j, i]:.6g}; if both directions count, pass (S + S.T) / 2"
        )
    return (S + S.T) / 2


def _as_finite(name: str, array: npt.NDArray[Any]) -> FloatArray:
    if array.dtype.kind not in "iuf" or array.dtype.itemsize > 8:
        raise TypeError(f"{name}: expected real numbers, got dtype {array.dtype}")
    out = array.astype(np.float64)
    if not np.isfinite(out).all():
        place = np.argwhere(~np.isfinite(out))[0].tolist()
        raise ValueError(f"{name}: entry {place if len(place) > 1 else place[0]} is NaN or infinite")
    return out


def _as_vector(name: str, value: Any, n: int) -> FloatArray:
    array, _ = as_array(name, value)
    if array.shape != (n,):
        raise ValueError(f"{name}: expected shape ({n},), a number a task; got shape {array.shape}")
    return _as_finite(name, array)


def _as_labels(labels: Sequence[Any] | None, n: int) -> tuple[int | str, ...]:
    if labels is None:
        return tuple(range(n))
    names = tuple(as_groups(labels, n, "labels").tolist())
    if len(set(names)) < n:
        double = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"labels: {shown(double)} comes twice; each task needs a name of its own")
    return names


def _as_bound(name: str, value: Any, default: float, labels: tuple[int | str, ...]) -> FloatArray:
    """A bound for all, one a task, or some by name."""
    n = len(labels)
    if value is None:
        return np.full(n, default)
    if isinstance(value, Mapping):
        unknown = [key for key in value if key not in labels]
        if unknown:
            raise ValueError(f"{name}: there is no task {shown(unknown[0])}; the tasks are {shown(list(labels), 200)}")
        bound = np.array([as_scalar(f"{name}[{shown(k)}]", value.get(k, default)) for k in labels])
    elif np.ndim(value) == 0:
        bound = np.full(n, as_scalar(name, value))
    else:
        bound = _as_vector(name, value, n)
    wrong = np.flatnonzero((bound < 0) | (bound > 1))
    if wrong.size:
        raise ValueError(
            f"{name}: expected shares between 0 and 1, got {bound[wrong[0]]:.6g} for task {shown(labels[wrong[0]])}"
        )
    return bound


def _check_bounds(lower: FloatArray, upper: FloatArray, labels: tuple[int | str, ...]) -> None:
    wrong = np.flatnonzero(lower > upper)
    if wrong.size:
        i = wrong[0]
        raise ValueError(f"lower: {lower[i]:.6g} is above upper, {upper[i]:.6g}, for task {shown(labels[i])}")
    if lower.sum() > 1.0 + 1e-12:
        raise ValueError(f"lower: the lower bounds sum to {lower.sum():.9g}, more than the 1 that there is to share")
    if upper.sum() < 1.0 - 1e-12:
        raise ValueError(
            f"upper: the upper bounds sum to {upper.sum():.9g}, which leaves {1 - upper.sum():.3g} that nobody may take"
        )
