"""The block bound: an upper bound on the best feasible objective.

Let C - D be positive semidefinite and D block-diagonal over sets of rows ("clusters") B, and let the rows that a
feasible selection takes of B lie in one of the supports ("covers") listed for B. For every w0 and all prices >= 0

    OPT <= 1/2 w0'(C-D)w0 + sum_p price_p b_p + sum_B max(0, max over covers S of B [ m_S - price(S) ]),
    m_S = max over u supported on S (u >= 0 if nonneg) of <q, u> - 1/2 u'Du,     q = c - (C-D) w0

because <w, c> - 1/2 w'Cw = [<w, c-q> - 1/2 w'(C-D)w] + sum_B [<q, u_B> - 1/2 u_B'D u_B] with u = w. (Where rows have
a price, the rows taken must be a cover themselves: a larger one would pay for rows that are not taken.) It is a
Lagrangian decomposition with linear (q) and quadratic (D) multipliers, jointly convex in (q, D, price); the perspective
relaxation with the best diagonal D is the case of clusters of one row (Frangioni and Gentile 2006; Zheng, Sun and Li
2014).
`_descent` minimises it, `_nodes` strikes off covers, merges clusters and branches, `_search` drives both; more in
docs/design.md.

Everything is in units in which C has a unit diagonal and the best known value is about 1. R is C lowered by as much as
rounding may have raised it, and every m_S carries its own slack, so `bound` is a bound and no approximation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ._covers import EPS, maxima, maximise

__all__ = ["Found", "Node", "Smooth", "State", "bound", "cover_gains", "smooth", "try_factor", "try_inverse"]

FloatArray = npt.NDArray[np.float64]
IndexArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
Covers = tuple[tuple[IndexArray, IndexArray], ...]

BARRIER = 0.3  # of the temperature; found by trial
LEAST_SHARE = 1e-10  # of a cluster's weight: covers with less do not count in the smoothed moments


@dataclass(frozen=True)
class Node:
    """A set of selections: at most one cover from every cluster, within the budgets of the priced groups."""

    rows: IndexArray  # of the problem; all that follows counts from 0 within them
    R: FloatArray
    c: FloatArray
    error: FloatArray  # of c, at most
    group: IndexArray
    budget: FloatArray  # by group
    cluster: IndexArray  # of every row
    covers: Covers  # by size k: (k, m) rows, and the m clusters
    priced: IndexArray  # groups that lie in several clusters
    nonneg: bool

    @property
    def n_clusters(self) -> int:
        return int(self.cluster.max(initial=-1)) + 1

    def blocks(self) -> list[IndexArray]:
        """The rows of all clusters of a size, (clusters, size), for every size there is."""
        sizes = np.bincount(self.cluster)
        order = np.argsort(self.cluster, kind="stable")
        first = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        return [order[first[sizes == m][:, None] + np.arange(m)] for m in np.unique(sizes)]

    def counts(self) -> IndexArray:
        """Covers of every cluster."""
        out = np.zeros(self.n_clusters, np.int64)
        for _, owner in self.covers:
            out += np.bincount(owner, minlength=len(out))
        return out

    def prices(self, price: FloatArray) -> FloatArray:
        """What every row costs."""
        by_group = np.zeros(len(self.budget))
        by_group[self.priced] = price
        return np.asarray(by_group[self.group])


@dataclass(frozen=True)
class State:
    w: FloatArray
    D: FloatArray  # (n, n), zero between clusters
    price: FloatArray  # by priced group, > 0


@dataclass(frozen=True)
class Found:
    """A bound, and what it is made of."""

    value: float
    gains: list[FloatArray]  # of every cover: m_S less its price
    top: FloatArray  # the largest gain of every cluster, at least 0


@dataclass(frozen=True)
class Smooth:
    """The smoothed bound with its barrier, the bound itself without slack, and the former's gradients."""

    value: float
    hard: float
    by_w: FloatArray
    by_D: FloatArray
    by_price: FloatArray


def try_factor(matrices: FloatArray) -> FloatArray | None:
    """Cholesky factors, or None where a matrix is not positive definite."""
    try:
        return np.asarray(np.linalg.cholesky(matrices), np.float64)
    except np.linalg.LinAlgError:
        return None


def try_inverse(matrices: FloatArray) -> FloatArray | None:
    """Inverses, or None where a matrix is singular."""
    try:
        return np.asarray(np.linalg.inv(matrices), np.float64)
    except np.linalg.LinAlgError:
        return None


def _box(matrix: FloatArray, rows: IndexArray) -> FloatArray:
    return np.asarray(matrix[rows[:, None], rows[None, :]])


def tops(node: Node, gains: list[FloatArray]) -> FloatArray:
    """The largest gain of every cluster; 0 where it rather stays empty."""
    top = np.zeros(node.n_clusters)
    for (_, owner), gain in zip(node.covers, gains, strict=True):
        np.maximum.at(top, owner, gain)
    return top


def cover_gains(node: Node, state: State, q: FloatArray) -> tuple[list[FloatArray], list[FloatArray]] | None:
    """m_S less its price for every cover, and the maximisers u; None where D is not positive definite on one."""
    cost = node.prices(state.price)
    gains, mixes = [], []
    for rows, _ in node.covers:
        u = maximise(_box(state.D, rows), q[rows], node.nonneg)
        if u is None:
            return None
        gains.append(0.5 * (q[rows] * u).sum(axis=0) - cost[rows].sum(axis=0))
        mixes.append(u)
    return gains, mixes


def bound(node: Node, state: State) -> Found | None:
    """The bound with slack for rounding; None where R - D is not surely positive semidefinite."""
    # One triangle of D is all that a factorisation reads: what is proved must hold for the matrix that is used.
    D = (state.D + state.D.T) / 2
    w, A, n = state.w, node.R - D, len(state.w)
    # Rump (2006), with twice his constant.
    if try_factor(A - np.diag(np.full(n, (n + 2) * EPS * max(float(np.trace(A)), 0.0)))) is None:
        return None
    size = np.abs(A) @ np.abs(w)
    Aw = A @ w
    q, cost = node.c - Aw, node.prices(state.price)
    error = node.error + (n + 3) * EPS * (np.abs(node.c) + size)
    gains = []
    for rows, _ in node.covers:
        found = maxima(_box(D, rows), q[rows], error[rows], node.nonneg)
        if found is None:
            return None
        gains.append(found[0] - cost[rows].sum(axis=0) * (1 - 1e-13))
    top = tops(node, gains)
    base = 0.5 * float(w @ Aw) + (n + 2) * EPS * float(np.abs(w) @ size)
    base += float(state.price @ node.budget[node.priced]) * (1 + 1e-13)
    value = max(base, 0.0) + float(top.sum()) * (1 + 1e-13)
    return Found(value, gains, top) if np.isfinite(value) else None


def smooth(node: Node, state: State, temperature: float, blocks: list[IndexArray]) -> Smooth | None:
    """Maxima smoothed by entropy, and a barrier for R - D > 0 and D > 0; None outside of both cones.

    D > 0 is more than covers need, but without it minors of D come to rest against a singular one.
    """
    w, D = state.w, state.D
    A = node.R - D
    factor = try_factor(A)
    if factor is None:
        return None
    inverse = try_inverse(A)
    if inverse is None:
        return None
    walls = _log_determinant(factor)
    for members in blocks:
        box = (members[:, :, None], members[:, None, :])
        factors, inverses = try_factor(D[box]), try_inverse(D[box])
        if factors is None or inverses is None:
            return None
        walls += _log_determinant(factors)
        inverse[box] -= inverses
    Aw = A @ w
    found = cover_gains(node, state, node.c - Aw)
    if found is None:
        return None
    gains, mixes = found
    top, total, shares = shares_of(node, gains, temperature)
    hard = 0.5 * float(w @ Aw) + float(state.price @ node.budget[node.priced]) + float(top.sum())
    mu = BARRIER * temperature
    value = hard + temperature * float(np.log(total).sum()) - mu * walls
    mean, second, used = _moments(node, shares, mixes)
    outer = np.multiply.outer(mean, w)
    by_D = 0.5 * (outer + outer.T - np.multiply.outer(w, w) - second) + mu * inverse
    by_price = (node.budget - np.bincount(node.group, used, len(node.budget)))[node.priced]
    return Smooth(value, hard, A @ (w - mean), by_D, by_price)


def _log_determinant(factors: FloatArray) -> float:
    return 2.0 * float(np.log(np.diagonal(factors, axis1=-2, axis2=-1)).sum())


def shares_of(
    node: Node, gains: list[FloatArray], temperature: float
) -> tuple[FloatArray, FloatArray, list[FloatArray]]:
    """Largest gain and partition function of every cluster, and the share that every cover has in the latter."""
    top = tops(node, gains)
    weights = [np.exp((gain - top[owner]) / temperature) for (_, owner), gain in zip(node.covers, gains, strict=True)]
    total = np.exp(-top / temperature)  # of the empty cover
    for (_, owner), weight in zip(node.covers, weights, strict=True):
        total += np.bincount(owner, weight, len(top))
    return top, total, [weight / total[owner] for (_, owner), weight in zip(node.covers, weights, strict=True)]


def _moments(
    node: Node, shares: list[FloatArray], mixes: list[FloatArray]
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Mean of u, of u u', and the probability that a row is in the cover, under these shares."""
    n = len(node.c)
    row_index, row_value, row_share, pair_index, pair_value = [], [], [], [], []
    for (all_rows, _), all_u, share in zip(node.covers, mixes, shares, strict=True):
        kept = np.flatnonzero(share > LEAST_SHARE)
        rows, u, s = all_rows[:, kept], all_u[:, kept], share[kept]
        row_index.append(rows.ravel())
        row_value.append((u * s).ravel())
        row_share.append(np.broadcast_to(s, rows.shape).ravel())
        pair_index.append((rows[:, None] * n + rows[None, :]).ravel())
        pair_value.append((u[:, None] * u[None, :] * s).ravel())
    index = np.concatenate(row_index)
    mean = np.bincount(index, np.concatenate(row_value), n)
    used = np.bincount(index, np.concatenate(row_share), n)
    second = np.bincount(np.concatenate(pair_index), np.concatenate(pair_value), n * n).reshape(n, n)
    return np.asarray(mean, float), np.asarray(second, float), np.asarray(used, float)
