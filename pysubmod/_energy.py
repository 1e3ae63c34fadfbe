"""The energy of a task mixture: its checks, its semidefiniteness, its solution and the certificate of that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ._capped_simplex import EPS, duality_gap, face_is_regular, minimise, stationary_point
from ._validation import as_array, as_groups, as_scalar, shown, widen

__all__ = ["TOLERANCE", "Energy", "Solution", "as_symmetric"]

FloatArray = npt.NDArray[np.float64]
TOLERANCE = 1e-9  # of the energy's scale: the gap of an optimum
_ASYMMETRY = 1e-6  # of the largest entry: what float32 leaves of a symmetric matrix
_ROUNDED = 1e-6  # of n times the largest entry: negative curvature that float32 may leave of a semidefinite one
_LARGEST = 1e150  # of the coefficients of the energy: their products stay finite


@dataclass(frozen=True, eq=False)
class Solution:
    """What `Energy.solve` finds; the fields are those of `Mixture`."""

    p: FloatArray
    energy: float
    gap: float
    active: npt.NDArray[np.int8]
    closed_form: FloatArray | None
    unique: bool


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
        S = as_symmetric("similarity", similarity)
        n = len(S)
        names = _as_labels(labels, n)
        low, high = _as_bound("lower", lower, 0.0, names), _as_bound("upper", upper, 1.0, names)
        _check_bounds(low, high, names)
        worth = S.sum(axis=1) if unary is None else _as_vector("unary", unary, n)
        model = cls(S, beta, lam, worth, low, high, names, unary is not None)
        model.check_size("beta")
        least = model._least_curvature()
        if least >= -model._slack:
            return model
        if not shift:
            raise ValueError(model._indefinite(least))
        return replace(model, shift=-least + model._slack)

    def check_size(self, beta_name: str) -> None:
        """Refuse coefficients whose products overflow."""
        sizes = (("lam", self.lam, "similarity", self.similarity), (beta_name, self.beta, "unary", self.unary))
        for name, factor, of, array in sizes:
            largest = factor * float(np.abs(array).max())
            if not largest <= _LARGEST:
                raise ValueError(
                    f"{name}: {factor:.3g} times the largest entry of {of}, {float(np.abs(array).max()):.3g}, is above"
                    f" {_LARGEST:g}; the mixture depends on beta / lam alone, so scale both down"
                )

    def _indefinite(self, least: float) -> str:
        largest = float(np.abs(self._J).max())
        found = (
            "similarity: lam * similarity is not positive semidefinite on the mixtures' differences: its smallest"
            f" eigenvalue there is {least:.6g}, its largest entry {largest:.3g}. "
        )
        if least >= -_ROUNDED * len(self._J) * largest:
            return found + (
                "Rounding explains as much, to float32 or to few digits: compute it in float64, or pass"
                f" on_indefinite='shift', which adds {-least:.2g} to the diagonal and reports it"
            )
        return found + (
            "A point where no small change helps need not be the best then. Is it a divergence (negate it:"
            " pysubmod.similarity.to_similarity)? Else on_indefinite='shift' adds the least multiple of I that"
            " cures it, which is another problem, and reports it"
        )

    def without_unary(self) -> Energy:
        return replace(self, beta=0.0)

    @cached_property
    def _J(self) -> FloatArray:
        J: FloatArray = self.lam * self.similarity
        J[np.diag_indices(len(J))] += self.shift
        return J

    @cached_property
    def _centred(self) -> tuple[FloatArray, FloatArray]:
        """J and h less what is the same for all mixtures: with 1'p = 1, ``p'(r 1')p = r'p``, whatever r.

        Zeros where only rounding is left of both: `_rounding` has room for what that leaves out.
        """
        J = self._J
        rows = J.mean(axis=1)
        h = self.beta * self.unary - rows
        J, h = J - rows[:, None] - rows[None, :] + rows.mean(), h - h.mean()
        if max(float(np.ptp(h)), float(np.abs(J).max())) <= 8 * EPS * self._largest:
            return np.zeros_like(J), np.zeros_like(h)
        return J, h

    @property
    def _largest(self) -> float:
        """Of the coefficients, before what is common to them is taken out."""
        return float(np.abs(self._J).max()) + self.shift + self.beta * float(np.abs(self.unary).max())

    @cached_property
    def scale(self) -> float:
        J, h = self._centred
        # A shift may take away nearly all of J; where all mixtures are as good, any size of the input will do.
        return max(float(np.ptp(h)), float(np.abs(J).max()), self.shift) or self._largest or 1.0

    @cached_property
    def regular(self) -> bool:
        """Whether J has an inverse, on the complement of the ones vector at least: else there is no closed form."""
        J, _ = self._centred
        size = float(np.abs(np.diag(J)).max())
        return size > self._least_size and face_is_regular(J, np.ones(len(J), dtype=bool), size)

    @property
    def _least_size(self) -> float:
        """What J's diagonal must exceed to be more than what rounding left when a shift took J away."""
        return self._slack if self.shift else 0.0

    def forget(self) -> None:
        """Drop the matrices that can be made again: whoever keeps many models has one similarity."""
        for name in ("_J", "_centred"):
            self.__dict__.pop(name, None)

    @property
    def _slack(self) -> float:
        """Negative curvature that rounding may have made."""
        return 8 * len(self._J) * EPS * max(float(np.abs(self._J).max()), self.shift)

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
        closed = stationary_point(J, h, lower, upper) if self.regular else None
        p = minimise(J, h, lower, upper, start) if closed is None else closed
        g = J @ p - h
        gap = duality_gap(g, p, lower, upper)
        return Solution(
            p=p,
            energy=float(-self.beta * (self.unary @ p) + 0.5 * (p @ (self._J @ p))),
            gap=scale * gap + self._rounding,
            active=np.where(p <= lower, -1, np.where(p >= upper, 1, 0)).astype(np.int8),
            closed_form=closed,
            unique=closed is not None or self._unique(J, g, p, size),
        )

    @property
    def _rounding(self) -> float:
        """What rounding may hide of a gap: of J and h when they are centred, of ``Jp - h``, of the semidefiniteness."""
        J, h = self._centred
        n = len(h)
        products = EPS * (n + 8) * (float(np.abs(J).max(initial=0.0)) + float(np.abs(h).max(initial=0.0)))
        # Zeros stand for up to 8 EPS each: g then spans up to 24 EPS more, twice 16 have room for it.
        centring = (8 if J.any() or h.any() else 16) * EPS * self._largest
        return 2 * (products + centring) + self._slack

    def _unique(self, J: FloatArray, g: FloatArray, p: FloatArray, size: float) -> bool:
        """Whether E curves along every direction in which it is flat to first order; a proof, not a condition."""
        free = (p > self.lower) & (p < self.upper)
        level = float(g[free].mean()) if free.any() else _level(g, p <= self.lower, p >= self.upper)
        face = free | ((np.abs(g - level) <= 1e-9) & (self.upper > self.lower))
        if size * self.scale <= self._least_size:
            return int(np.count_nonzero(face)) < 2
        return face_is_regular(J, face, size)


def _level(g: FloatArray, low: npt.NDArray[np.bool_], high: npt.NDArray[np.bool_]) -> float:
    """A multiplier of the sum where every entry is at a bound: between the gradients of the one kind and the other."""
    least, most = np.where(low, g, np.inf).min(), np.where(high, g, -np.inf).max()
    if not np.isfinite(least) or not np.isfinite(most):
        return float(least if np.isfinite(least) else most)
    return float((least + most) / 2)


def as_symmetric(name: str, value: Any) -> FloatArray:
    """A symmetric matrix of finite real numbers, a row a task; a copy."""
    array, dtype = as_array(name, value)
    if array.ndim != 2 or array.shape[0] != array.shape[1]:
        raise ValueError(f"{name}: expected a square matrix (n, n); got shape {array.shape}")
    if array.shape[0] == 0:
        raise ValueError(f"{name}: has no tasks; a mixture needs at least one")
    S = _as_finite(name, array, dtype)
    largest = float(np.abs(S).max())
    if largest > 1e100:
        raise ValueError(f"{name}: its largest entry {largest:.3g} is above 1e100; rescale it")
    off = float(np.abs(S - S.T).max())
    if off > _ASYMMETRY * largest:
        i, j = np.unravel_index(int(np.abs(S - S.T).argmax()), S.shape)
        raise ValueError(
            f"{name}: expected a symmetric matrix; entry ({i}, {j}) is {S[i, j]:.6g} and entry ({j}, {i}) is"
            f" {S[j, i]:.6g}; if both directions count, pass (S + S.T) / 2"
        )
    return (S + S.T) / 2


def _as_finite(name: str, array: npt.NDArray[Any], dtype: str) -> FloatArray:
    if array.dtype.kind not in "iuf" or array.dtype.itemsize > 8:
        raise TypeError(f"{name}: expected real numbers, got dtype {array.dtype}")
    out: FloatArray = np.array(widen(array, dtype))  # never the caller's own
    if not np.isfinite(out).all():
        place = np.argwhere(~np.isfinite(out))[0].tolist()
        raise ValueError(f"{name}: entry {place if len(place) > 1 else place[0]} is NaN or infinite")
    return out


def _as_vector(name: str, value: Any, n: int) -> FloatArray:
    array, dtype = as_array(name, value)
    if array.shape != (n,):
        raise ValueError(f"{name}: expected shape ({n},), a number a task; got shape {array.shape}")
    return _as_finite(name, array, dtype)


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
            f"{name}: expected shares between 0 and 1, got {bound[wrong[0]]:.15g} for task {shown(labels[wrong[0]])}"
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
