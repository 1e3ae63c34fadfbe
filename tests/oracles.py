"""Truths that share no code with the solvers: values by SciPy and NumPy, optimality conditions, what every answer has.

Everything is computed in units in which each row of the problem, and the problem itself, have size about 1. The units
are powers of two, so going there and back is exact, and norms anywhere in float64's range can be checked.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.optimize

# A row within 1e-5 of the span of others counts as dependent and may stay out: what it leaves behind, relative to E.
RANK_NOISE = 1e-4


@dataclass(frozen=True)
class Units:
    """A problem in units of about 1: `rows` (n, d + n) with C = rows rows', or C where only a Gram matrix is known."""

    C: np.ndarray
    c: np.ndarray
    rows: np.ndarray | None
    target: np.ndarray | None
    row_exponent: np.ndarray
    exponent: int

    def weights(self, w, S):
        return np.ldexp(np.asarray(w, dtype=float), self.row_exponent[S] - self.exponent)

    def value(self, f):
        return float(np.ldexp(f, -2 * self.exponent))

    def norm(self, r):
        return np.ldexp(r, -self.exponent)


def _exponents(sizes):
    return np.where(sizes > 0, np.frexp(np.where(sizes > 0, sizes, 1.0))[1], 0)


def _length(rows):
    """Euclidean norms along the last axis, of numbers whose squares may overflow or vanish."""
    largest = np.abs(rows).max(axis=-1, initial=0.0)
    divisor = np.where(largest > 0, largest, 1.0)
    return divisor * np.sqrt(np.square(rows / divisor[..., None]).sum(axis=-1)) * (largest > 0)


def units_of_rows(G, target, ridge=0.0, tilt=0.0):
    """The problem of rows and a target; all arguments float64."""
    G, target = np.asarray(G, dtype=float), np.asarray(target, dtype=float)
    root = np.hypot(_length(G), np.sqrt(ridge))
    row_exponent = _exponents(root)
    exponent = int(_exponents(_length(target)[None])[0])
    A = np.ldexp(G, -row_exponent[:, None])
    rho = np.ldexp(np.sqrt(ridge), -row_exponent)
    linear = np.ldexp((tilt / 2) * np.square(G).sum(axis=1), -row_exponent) if tilt else np.zeros(len(G))
    if linear.any():
        lifted = int(_exponents(np.abs(linear).max()[None])[0])
        exponent = max(exponent, lifted) if target.any() else lifted
    b = np.ldexp(target, -exponent)
    c = A @ b + np.ldexp(linear, -exponent)
    rows = np.hstack([A, np.diag(rho)])
    return Units(rows @ rows.T, c, rows, np.concatenate([b, np.zeros(len(A))]), row_exponent, exponent)


def units_of_gram(K, c, ridge=0.0, tilt=0.0):
    """The problem of a Gram matrix and the linear term before the tilt; all arguments float64."""
    K, c = np.asarray(K, dtype=float), np.asarray(c, dtype=float)
    C = K + ridge * np.eye(len(K))
    root = np.sqrt(np.maximum(np.diagonal(C), 0.0))
    row_exponent = _exponents(root)
    with np.errstate(over="ignore"):  # rows that are never read may be anything
        c = c + (tilt / 2) * np.diagonal(K)
    lifted = np.ldexp(c, -row_exponent)
    exponent = int(_exponents(np.abs(lifted).max(initial=0.0)[None])[0])
    scaled = np.ldexp(np.ldexp(C, -row_exponent[:, None]), -row_exponent[None, :])
    return Units(scaled, np.ldexp(lifted, -exponent), None, None, row_exponent, exponent)


def best_value(units, S, nonneg):
    """f(S) and its weights, in `units`, by SciPy's nnls or NumPy's lstsq; for rows and a plain target only."""
    S = np.asarray(S, dtype=int)
    rows, b = units.rows[S], units.target
    size = np.linalg.norm(rows, axis=1)
    keep = size > 0
    A = (rows[keep] / size[keep, None]).T
    z = np.zeros(len(S))
    if keep.any() and b.any():
        z[keep] = scipy.optimize.nnls(A, b)[0] if nonneg else np.linalg.lstsq(A, b, rcond=1e-6)[0]
    r = b - A @ z[keep]
    z[keep] /= size[keep]
    # (b + r)'(b - r) / 2 rather than (|b|^2 - |r|^2) / 2: the difference of the squares would cancel.
    return float((b + r) @ (b - r) / 2), z


def optimality(units, S, w, nonneg):
    """The largest violations of the optimality conditions on S, of members with weight and without; relative to E.

    `w` is in `units`; E comes third.
    """
    S = np.asarray(S, dtype=int)
    w = w.astype(np.longdouble)
    if units.rows is not None:
        rows = units.rows[S].astype(np.longdouble)
        linear = (units.c[S] - units.rows[S] @ units.target).astype(np.longdouble)  # the tilt
        g = rows @ (units.target - rows.T @ w) + linear
    else:
        g = units.c[S] - units.C[np.ix_(S, S)].astype(np.longdouble) @ w
    root = np.sqrt(np.diagonal(units.C)[S])
    everywhere = np.sqrt(np.diagonal(units.C))
    start = np.divide(np.abs(units.c), everywhere, out=np.zeros(len(everywhere)), where=everywhere > 0).max(initial=0.0)
    target = 0.0 if units.target is None else np.linalg.norm(units.target)
    E = max(start, target, float(np.abs(w) @ root), 1e-300)
    relative = np.divide(g, root * E, out=np.zeros_like(g), where=root > 0)
    idle = np.where(w == 0, np.maximum(relative, 0) if nonneg else np.abs(relative), 0)
    return float(np.abs(np.where(w != 0, relative, 0)).max(initial=0)), float(idle.max(initial=0)), E


def check_selection(selection, n, labels, budgets, *, nonneg, candidates=None, initial=(), units=None, exact=True):
    """Assert what every answer satisfies: feasible, unique, in range, finite, refitted, with the objective it claims.

    `labels` are the n row labels and `budgets` {label: int}; without `units` the numbers are only checked to be finite,
    and without `exact` (rows that are nearly but not quite dependent) members without weight may leave some noise.
    """
    S, w = selection
    k = len(S)
    assert S.dtype == np.int64 and len(set(S.tolist())) == k
    assert k == 0 or (S.min() >= 0 and S.max() < n)
    assert len(w) == len(selection.gains) == k
    counts = dict.fromkeys(budgets, 0)
    for i in S.tolist():
        counts[labels[i]] += 1
    assert all(counts[label] <= budgets[label] for label in counts), (counts, budgets)
    assert all(selection.counts.get(label, 0) == count for label, count in counts.items())
    assert set(initial) <= set(S.tolist()) or selection.config["release_zeros"]
    if candidates is not None:
        assert all(candidates[i] or i in set(initial) for i in S.tolist())
    _check_status(selection, n, labels, budgets, counts, candidates, S)
    for numbers in (w, selection.gains, selection.objective):
        assert np.isfinite(numbers).all()
    assert (selection.gains >= 0).all()
    assert not nonneg or (w >= 0).all()
    filled = selection.stats["n_filled"]
    assert filled == 0 or ((w[k - filled :] == 0).all() and (selection.gains[k - filled :] == 0).all())
    if units is None or k == 0:
        assert k > 0 or selection.objective == 0
        return
    scaled = units.weights(w, S)
    # Members that only fill the budget are not part of the refit.
    active, idle, E = optimality(units, S[: k - filled], scaled[: k - filled], nonneg)
    assert active < 1e-10, active
    # A gain is a square: below 1e-150 it vanishes, and with it the reason to take weight.
    assert idle < (1e-9 if exact else RANK_NOISE) or units.exponent < -500, idle
    quadratic = float(scaled @ units.C[np.ix_(S, S)] @ scaled) / 2
    assert abs(units.value(selection.objective) - quadratic) <= 1e-9 * E**2
    if selection.residual_norms is not None:
        assert len(selection.residual_norms) == k and np.isfinite(selection.residual_norms).all()
        if units.target is not None and filled == 0:
            d = len(units.target) - n
            r = np.linalg.norm(units.target[:d] - scaled @ units.rows[S][:, :d])
            assert abs(units.norm(selection.residual_norms[-1]) - r) <= 1e-9 * E


def _check_status(selection, n, labels, budgets, counts, candidates, S):
    taken = set(S.tolist())
    open_rows = [
        i
        for i in range(n)
        if i not in taken and counts[labels[i]] < budgets[labels[i]] and (candidates is None or candidates[i])
    ]
    status = selection.status.value
    if status == "budget":
        assert len(S) == sum(budgets.values())
    elif status == "exhausted":
        assert not open_rows
    else:
        assert open_rows or status == "stopped"


def same(first, second):
    """Assert that two selections are equal bit for bit."""
    assert first.indices.tolist() == second.indices.tolist()
    for name in ("weights", "gains", "residual_norms"):
        a, b = getattr(first, name), getattr(second, name)
        assert (a is None) == (b is None)
        assert a is None or a.tobytes() == b.tobytes(), name
    assert first.objective == second.objective and first.status == second.status
