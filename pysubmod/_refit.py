"""The best weights of a few rows, in NumPy alone: an independent check of what the compiled core computes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["refit"]

FloatArray = npt.NDArray[np.float64]

RANK_TOL = 1e-10  # a pivot of the unit-diagonal matrix below it calls the rows dependent, as in the specification
RANK_TOL_64 = 1e-7  # and above this, C was given in float32
SIGN_TOL = 1e-12  # weights and multipliers below it, relative to the largest, have no sign
BACKUPS = 3  # full exchanges that may fail to reduce the violations before single ones take over


def refit(C: FloatArray, c: FloatArray, nonneg: bool, rank_tol: float = RANK_TOL) -> tuple[FloatArray, float]:
    """The exact maximum of ``<w, c> - 1/2 w' C w`` over all w, or over w >= 0.

    For w >= 0 block principal pivoting (Portugal, Judice and Vicente 1994; Kim and Park 2011): a handful of factors,
    and Murty's rule where it would cycle. Nearly dependent rows go to the slower reference, which leaves some out.

    Parameters
    ----------
    C : (k, k) float64 array
        Symmetric positive semidefinite.
    c : (k,) float64 array
    nonneg : bool
    rank_tol : float
        `Quadratic.rank_tol`: what a Schur complement must exceed, relative to the diagonal, to be more than rounding.

    Returns
    -------
    (k,) float64 array, float
        The weights and the maximum.

    Raises
    ------
    ValueError
        The problem is unbounded: a direction that C cannot see and c rewards.
    """
    w = np.zeros(len(c))
    seen = np.flatnonzero(C.diagonal() > 0)
    if (np.maximum(c, 0) if nonneg else np.abs(c))[np.setdiff1d(np.arange(len(c)), seen)].any():
        raise ValueError("unbounded problem: a row with C_ii = 0 can raise the objective for ever")
    if not len(seen):
        return w, 0.0
    root = np.sqrt(C.diagonal()[seen])
    # Unit diagonal: tolerances then mean the same for long and short rows.
    R, b = C[np.ix_(seen, seen)] / np.multiply.outer(root, root), c[seen] / root
    x = _pivoting(R, b, rank_tol) if nonneg else _solve(R, b, rank_tol)
    if x is None:
        from ._reference import refit_reference  # the specification's rules for dependent rows

        # It reads from the type of C how far C can be trusted.
        stored = R.astype(np.float32) if rank_tol > RANK_TOL_64 else R
        x = refit_reference(stored, b, nonneg)[0]  # type: ignore[no-untyped-call]
    w[seen] = x / root
    return w, float(x @ (2 * b - R @ x) / 2)


def _solve(R: FloatArray, b: FloatArray, rank_tol: float) -> FloatArray | None:
    """R^-1 b; None where R is singular up to rounding."""
    if not len(b):
        return b
    try:
        factor = np.linalg.cholesky(R)
    except np.linalg.LinAlgError:
        return None
    if factor.diagonal().min() ** 2 <= rank_tol:
        return None
    x: FloatArray = np.linalg.solve(factor.T, np.linalg.solve(factor, b))
    return x


def _pivoting(R: FloatArray, b: FloatArray, rank_tol: float) -> FloatArray | None:
    """The maximum of b'x - 1/2 x'Rx over x >= 0, or None where a factor is singular (or the exchanges do not end)."""
    active = b > 0
    fewest, backups = len(b) + 1, BACKUPS
    for _ in range(50 + 20 * len(b)):
        x = np.zeros(len(b))
        inner = _solve(R[np.ix_(active, active)], b[active], rank_tol)
        if inner is None:
            return None
        x[active] = inner
        slope = b - R @ x
        wrong = np.where(active, x < -SIGN_TOL * np.abs(x).max(), slope > SIGN_TOL * np.abs(b).max())
        count = int(wrong.sum())
        if count == 0:
            return np.maximum(x, 0.0)
        if count < fewest:
            fewest, backups = count, BACKUPS
        elif backups > 0:
            backups -= 1
        else:  # Murty's rule ends on every positive definite matrix
            wrong[: int(np.flatnonzero(wrong)[-1])] = False
        active = active ^ wrong
    return None
