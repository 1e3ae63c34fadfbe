"""Small symmetric systems by the thousand: one for every support ("cover") that a block of rows may contribute.

All arrays have the number of systems as their *last* axis, so that a Cholesky step is one operation over all of them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["cholesky", "maxima", "maximise", "solve"]

FloatArray = npt.NDArray[np.float64]

EPS = float(np.finfo(np.float64).eps)


def cholesky(matrices: FloatArray) -> FloatArray | None:
    """Lower factors of (k, k, m) matrices; None if one of them is not positive definite."""
    k = len(matrices)
    lower = np.zeros_like(matrices)
    for j in range(k):
        pivot = matrices[j, j] - np.square(lower[j, :j]).sum(axis=0)
        if not (pivot > 1e-14 * matrices[j, j]).all():
            return None
        lower[j, j] = np.sqrt(pivot)
        if j + 1 < k:
            lower[j + 1 :, j] = (matrices[j + 1 :, j] - (lower[j + 1 :, :j] * lower[j, :j]).sum(axis=1)) / lower[j, j]
    return lower


def solve(lower: FloatArray, right: FloatArray) -> FloatArray:
    """Solve the systems of these factors for (k, m) right-hand sides."""
    x = right.copy()
    for j in range(len(x)):
        x[j] = (x[j] - (lower[j, :j] * x[:j]).sum(axis=0)) / lower[j, j]
    for j in reversed(range(len(x))):
        x[j] = (x[j] - (lower[j + 1 :, j] * x[j + 1 :]).sum(axis=0)) / lower[j, j]
    return x


def maximise(matrices: FloatArray, linear: FloatArray, nonneg: bool) -> FloatArray | None:
    """The maximisers u of ``linear'u - 1/2 u'matrix u``, u >= 0 if `nonneg`; None if a matrix is not positive definite.

    Non-negative ones by block principal pivoting (Judice and Pires 1994), with single pivots once that has had its
    chance. A rare one that is not solved by then is left as it is: >= 0, not quite the maximiser.
    """
    lower = cholesky(matrices)
    if lower is None:
        return None
    u = solve(lower, linear)
    if not nonneg:
        return u
    wrong = np.flatnonzero((u < 0.0).any(axis=0))
    if len(wrong):
        u[:, wrong] = _pivot(matrices[:, :, wrong], linear[:, wrong], u[:, wrong] >= 0.0)
    return u


def maxima(
    matrices: FloatArray, linear: FloatArray, error: FloatArray, nonneg: bool
) -> tuple[FloatArray, FloatArray] | None:
    """The largest of ``linear'u - 1/2 u'matrix u`` for every linear term within `error`, from above, and the u.

    With r = q - Mu at any u (>= 0 where asked), raising q to Mu + max(r, 0) only raises the maximum over u >= 0; and
    the maximum without signs is 1/2 u'Mu + u'r + 1/2 r'M^-1 r.
    """
    u = maximise(matrices, linear, nonneg)
    lower = cholesky(matrices)
    if u is None or lower is None:
        return None
    k = len(linear)
    image = (matrices * u).sum(axis=1)
    left = linear - image
    left = np.maximum(left, 0.0) if nonneg else np.abs(left)
    left += error + (k + 3) * EPS * (np.abs(linear) + (np.abs(matrices) * np.abs(u)).sum(axis=1))
    trace = np.zeros(linear.shape[1])  # of the inverse: no less than its largest eigenvalue
    for j in range(k):
        unit = np.zeros_like(linear)
        unit[j] = 1.0
        trace += solve(lower, unit)[j]
    value = 0.5 * (u * image).sum(axis=0) + (np.abs(u) * left).sum(axis=0) + np.square(left).sum(axis=0) * trace
    return np.asarray(value * (1 + (k + 3) * EPS * 4)), u


def _pivot(matrices: FloatArray, linear: FloatArray, active: npt.NDArray[np.bool_]) -> FloatArray:
    k, m = linear.shape
    out = np.zeros((k, m))
    open_ = np.arange(m)
    unit = np.eye(k)[:, :, None]
    for step in range(4 + 4 * k):
        both = active[:, None] & active[None, :]
        lower = cholesky(np.where(both, matrices, unit))
        assert lower is not None  # principal submatrices of positive definite ones
        u = solve(lower, np.where(active, linear, 0.0))
        slack = linear - (matrices * u).sum(axis=1)
        flip = np.where(active, u < 0.0, slack > 1e-14 * np.abs(linear).max(axis=0))
        out[:, open_] = np.maximum(u, 0.0)
        bad = flip.any(axis=0)
        if not bad.any():
            break
        if step >= 4:  # one at a time, the last: this cannot cycle
            last = k - 1 - flip[::-1].argmax(axis=0)
            flip = np.arange(k)[:, None] == last
        active = (active ^ flip)[:, bad]
        matrices, linear, open_ = matrices[:, :, bad], linear[:, bad], open_[bad]
    return out
