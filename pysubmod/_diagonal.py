"""The bound with a diagonal D: one shot at given weights, or optimised over w0 by FISTA; dense or matrix-free.

    OPT <= 1/2 w0'(R-D)w0 + sum over groups p of the b_p largest a_i in V_p,   a_i = q_i^2 / (2 D_i),   q = c - (R-D) w0

with max(q_i, 0) for q_i under w >= 0. It is the dual of the perspective relaxation (Frangioni and Gentile 2006; Xie and
Deng 2020), whose z in [0, 1] FISTA finds along the way: what a rounding starts from. All in units of a unit diagonal.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

__all__ = ["Diagonal", "Relaxed", "choose_diagonal", "largest_eigenvalue"]

FloatArray = npt.NDArray[np.float64]
IndexArray = npt.NDArray[np.int64]

EPS = float(np.finfo(np.float64).eps)
CHECK = 5  # iterations of FISTA from one look at the bound to the next


def choose_diagonal(R: FloatArray) -> tuple[FloatArray, FloatArray] | None:
    """D = s / diag(R^-1) with the largest s that keeps R - D positive semidefinite, and R^-1.

    None where R is too near to singular for a D to be worth having.
    """
    n = len(R)
    try:
        inverse: FloatArray = np.asarray(np.linalg.inv(R), np.float64)
    except np.linalg.LinAlgError:
        return None
    diagonal = 1.0 / np.diagonal(inverse)
    if not (diagonal > 1e-12).all():
        return None
    root = np.sqrt(diagonal)
    largest = largest_eigenvalue(lambda x: root * (inverse @ (root * x)), n)
    if not largest > 0.0:
        return None
    scale = 1.0 / largest
    for shrink in (0.9995, 0.995, 0.95, 0.5):  # Lanczos' method may stop short of the largest eigenvalue
        D = scale * shrink * diagonal
        A = R - np.diag(D)
        try:  # surely positive semidefinite (Rump 2006, with twice his constant)
            np.linalg.cholesky(A - (n + 2) * EPS * np.trace(A) * np.eye(n))
            return D, inverse
        except np.linalg.LinAlgError:
            continue
    return None


def largest_eigenvalue(times: Callable[[FloatArray], FloatArray], n: int) -> float:
    """By Lanczos' method with a fixed start; from below, and close."""
    start = 1.0 + 1e-2 * np.cos(np.arange(n))
    basis = [start / np.linalg.norm(start)]
    alphas: list[float] = []
    betas: list[float] = []
    value = 0.0
    for step in range(min(n, 60)):
        image = times(basis[-1])
        alphas.append(float(image @ basis[-1]))
        stack = np.array(basis)
        image = image - stack.T @ (stack @ image)
        image = image - stack.T @ (stack @ image)
        beta = float(np.linalg.norm(image))
        previous, value = value, value
        if step % 4 == 3 or beta < 1e-12 * abs(alphas[0]) or step == min(n, 60) - 1:
            tridiagonal = np.diag(alphas) + np.diag(betas, 1) + np.diag(betas, -1)
            value = float(np.linalg.eigvalsh(tridiagonal)[-1])
            if (value - previous < 1e-4 * value and step > 3) or beta < 1e-12 * abs(value):
                break
        betas.append(beta)
        basis.append(image / beta)
    return value


@dataclass(frozen=True)
class Relaxed:
    """Where FISTA ended."""

    upper: float  # the least bound met
    w: FloatArray  # w0 of that bound
    price: FloatArray  # what a pick of a group is worth there: the least of its b_p largest a_i
    z: FloatArray  # of the relaxation, in [0, 1]
    iterations: int


@dataclass(frozen=True)
class Diagonal:
    """Rows stand group by group; every group has a row and a budget."""

    times: Callable[[FloatArray], FloatArray]  # x -> R x
    D: FloatArray
    c: FloatArray
    error: FloatArray  # of c, at most
    width: int  # numbers summed in an entry of R: d, or 0 where R is given
    group: IndexArray
    budget: IndexArray
    nonneg: bool

    @cached_property
    def first(self) -> IndexArray:
        """The first row of every group."""
        return np.flatnonzero(np.diff(self.group, prepend=-1))

    def bound(self, w: FloatArray) -> float:
        """The bound at w0 = w, rounding included."""
        return self._bound(w, self.times(w) - self.D * w)

    def _bound(self, w: FloatArray, Aw: FloatArray) -> float:
        # |R_ij| <= 1, so each entry of R w has terms of at most sum |w|.
        terms = (len(w) + self.width + 8) * EPS * (float(np.abs(w).sum()) + np.abs(self.c) + self.D * np.abs(w))
        q, error = self.c - Aw, self.error + terms
        height = np.maximum(q + error, 0.0) if self.nonneg else np.abs(q) + error
        a = np.square(height) / (2.0 * self.D)
        base = 0.5 * float(w @ Aw) + float(np.abs(w) @ terms)
        return (max(base, 0.0) + self._largest(a)) * (1 + (len(w) + 8) * EPS) + 1e-14

    def _largest(self, a: FloatArray) -> float:
        order = np.lexsort((-a, self.group))
        place = np.arange(len(a)) - self.first[self.group]
        return float(a[order][place < self.budget[self.group]].sum())

    def _least_taken(self, w: FloatArray) -> FloatArray:
        q = self.c - (self.times(w) - self.D * w)
        a = np.square(np.maximum(q, 0.0) if self.nonneg else q) / (2.0 * self.D)
        order = np.lexsort((-a, self.group))
        return np.asarray(a[order][self.first + self.budget - 1])

    def fista(self, w: FloatArray, target: float, deadline: float, most: int = 400) -> Relaxed:
        """Accelerated proximal gradient with restart (Beck and Teboulle 2009; O'Donoghue and Candes 2015)."""
        root = np.sqrt(self.D)
        n = len(w)
        L = 1.02 * largest_eigenvalue(lambda x: self.times(x / root) / root - x, n) + 1e-12
        x = y = w * root
        c, speed, price = self.c / root, 1.0, np.zeros(len(self.budget))
        best, best_w, z = np.inf, w, np.zeros(n)
        history = []
        for iteration in range(1, most + 1):
            Ay = self.times(y / root) / root - y
            if iteration % CHECK == 1:
                value = self._bound(y / root, Ay * root)
                if value < best:
                    best, best_w = value, y / root
                history.append(best)
                stalled = len(history) > 6 and history[-6] - best < 1e-3 * best
                if best <= target or stalled or time.perf_counter() > deadline:
                    break
            new, z, price = self._prox(y + (c - Ay) / L, L, price)
            if (y - new) @ (new - x) > 0.0:
                x, y, speed = new, new, 1.0
                continue
            faster = (1.0 + np.sqrt(1.0 + 4.0 * speed * speed)) / 2.0
            x, y, speed = new, new + (speed - 1.0) / faster * (new - x), faster
        return Relaxed(best, best_w, self._least_taken(best_w), z, iteration)

    def _prox(self, v: FloatArray, L: float, start: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """argmax of -L/2 |w - v|^2 - 1/2 sum w_i^2 / z_i over w and z in [0, 1] within the budgets.

        z_i = clip((|v_i| s_p - 1)/L, 0, 1) with s_p such that the budget is met: sum z is piecewise linear and
        increasing in s: Newton's method, kept inside a bracket.
        """
        x = np.maximum(v, 0.0) if self.nonneg else np.abs(v)
        group, first, budget = self.group, self.first, self.budget
        largest = np.maximum.reduceat(x, first)
        positive = x > 1e-12 * largest[group]
        smallest = np.minimum.reduceat(np.where(positive, x, np.inf), first)
        low = 1.0 / np.where(largest > 0, largest, 1.0)
        high = np.where(largest > 0, (1.0 + L) / smallest, low)
        low = np.where(np.add.reduceat(positive.astype(np.int64), first) <= budget, high, low)
        s = np.where((start > low) & (start < high), start, 0.5 * (low + np.minimum(high, 4 * low)))
        for _ in range(60):
            raw = (x * s[group] - 1.0) / L
            z = np.minimum(np.maximum(raw, 0.0), 1.0)
            excess = np.add.reduceat(z, first) - budget
            low, high = np.where(excess < 0, s, low), np.where(excess > 0, s, high)
            if not ((np.abs(excess) > 1e-9 * budget) & (high > low * (1 + 1e-12))).any():
                break
            slope = np.add.reduceat(np.where((raw > 0) & (raw < 1), x, 0.0), first) / L
            newton = s - excess / np.where(slope > 0, slope, 1.0)
            inside = (slope > 0) & (newton > low) & (newton < high)
            s = np.where(excess == 0, s, np.where(inside, newton, 0.5 * (low + high)))
        signed = np.maximum(v, 0.0) if self.nonneg else v
        return signed * (L * z / (1.0 + L * z)), z, s
