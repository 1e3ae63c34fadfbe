"""The block bound: an upper bound on the best feasible objective, as tight as time allows.

The bound. Let C - D be positive semidefinite and D block-diagonal, its blocks ("clusters" of rows) B each inside a
part of the ground set whose possible supports are listed ("covers"). For every w0 and all prices >= 0

    OPT <= 1/2 w0'(C-D)w0 + sum_p price_p b_p + sum_B max over covers S of B [ m_S - price(S) ],
    m_S = max over u supported on S (u >= 0 if nonneg) of <q, u> - 1/2 u'Du,     q = c - (C-D) w0

because <w, c> - 1/2 w'Cw = [<w, c-q> - 1/2 w'(C-D)w] + sum_B [<q, u_B> - 1/2 u_B'D u_B] with u = w. It is a Lagrangian
decomposition with linear (q) and quadratic (D) multipliers: in (q, D, price) it is jointly convex, so all of them are
optimised together, maxima smoothed by entropy and the cone by a log-barrier, in the variables (w0, D, log price), in
which the function is tame near the cone's boundary. The perspective relaxation with the best diagonal D is the case of
clusters of one row (Frangioni and Gentile 2006; Zheng, Sun and Li 2014). More in docs/design.md.

Three moves tighten it until the gap is met: covers whose own bound is below what is to be proved are struck off
(screening); clusters with few covers left are merged, which lets D be fuller; and a node can be split in two by a row.

Everything is in units in which C has a unit diagonal and the best known value is 1. R is lowered by as much as rounding
may have raised it, and every m_S carries its own slack, so what comes out is a bound, not an approximation.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import combinations
from math import comb

import numpy as np
import numpy.typing as npt

from ._covers import cholesky, maximise, solve
from ._lbfgs import lbfgs

__all__ = ["Node", "Options", "State", "bound", "cover_values", "improve", "merge", "root", "screen", "split"]

FloatArray = npt.NDArray[np.float64]
IndexArray = npt.NDArray[np.int64]

EPS = float(np.finfo(np.float64).eps)
BARRIER = 0.3  # of the temperature; found by trial
TOLERANCE = 1e-6  # relative progress a step, below which a temperature is done
FIRST_COVERS = 600  # a group with at most so many supports is one cluster from the start
FIRST_BLOCK = 8  # rows of a cluster otherwise
MOST_NUMBERS = 400_000  # covers times (rows of one) squared, of a merged cluster


@dataclass(frozen=True)
class Node:
    """A set of selections: at most one cover from every cluster, within the budgets of the priced groups."""

    rows: IndexArray  # of the problem; all that follows counts from 0 within them
    R: FloatArray  # C in units, lowered by what rounding may have added
    c: FloatArray
    error: FloatArray  # of c, at most
    group: IndexArray
    budget: FloatArray  # by group
    cluster: IndexArray  # of every row
    covers: tuple[tuple[IndexArray, IndexArray], ...]  # by size k: (k, m) rows, and the m clusters
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


@dataclass(frozen=True)
class State:
    w: FloatArray
    D: FloatArray  # (n, n), zero between clusters
    price: FloatArray  # by priced group, > 0


@dataclass
class Options:
    target: float  # a bound below this is good enough
    deadline: float  # of time.perf_counter()
    evaluations: int = field(default=0)


class _Enough(Exception):
    """The target is reached, or the time is up."""


# ---- the function ----------------------------------------------------------------------------------------------------


def _prices(node: Node, price: FloatArray) -> FloatArray:
    by_group = np.zeros(len(node.budget))
    by_group[node.priced] = price
    return by_group[node.group]


def _factor(matrices: FloatArray) -> FloatArray | None:
    try:
        return np.asarray(np.linalg.cholesky(matrices), np.float64)
    except np.linalg.LinAlgError:
        return None


def _inverse(matrices: FloatArray) -> FloatArray | None:
    try:
        return np.asarray(np.linalg.inv(matrices), np.float64)
    except np.linalg.LinAlgError:
        return None


def _log_determinant(factors: FloatArray) -> float:
    return 2.0 * float(np.log(np.diagonal(factors, axis1=-2, axis2=-1)).sum())


def _gather(D: FloatArray, rows: IndexArray) -> FloatArray:
    return np.asarray(D[rows[:, None], rows[None, :]])


def _smooth(
    node: Node, state: State, temperature: float, blocks: list[IndexArray]
) -> tuple[float, float, FloatArray, FloatArray, FloatArray] | None:
    """The smoothed bound with its barrier, the bound itself (without slack), and gradients by w, D and price."""
    from scipy.linalg.lapack import dpotri

    w, D = state.w, state.D
    A = node.R - D
    factor = _factor(A)
    if factor is None:
        return None
    mu = BARRIER * temperature
    inverse, _ = dpotri(factor, lower=1)
    inverse = np.tril(inverse) + np.tril(inverse, -1).T
    walls = _log_determinant(factor)
    for members in blocks:
        D_blocks = D[members[:, :, None], members[:, None, :]]
        block_factors, block_inverses = _factor(D_blocks), _inverse(D_blocks)
        if block_factors is None or block_inverses is None:
            return None
        walls += _log_determinant(block_factors)
        inverse[members[:, :, None], members[:, None, :]] -= block_inverses
    Aw = A @ w
    q, cost = node.c - Aw, _prices(node, state.price)
    base = 0.5 * float(w @ Aw) + float(state.price @ node.budget[node.priced])
    values, mixes = [], []
    for rows, _ in node.covers:
        linear = q[rows]
        u = maximise(_gather(D, rows), linear, node.nonneg)
        if u is None:
            return None
        values.append(0.5 * (linear * u).sum(axis=0) - cost[rows].sum(axis=0))
        mixes.append(u)
    owner = np.concatenate([owner for _, owner in node.covers])
    value = np.concatenate(values)
    top = np.zeros(node.n_clusters)
    np.maximum.at(top, owner, value)
    weight = np.exp((value - top[owner]) / temperature)
    total = np.exp(-top / temperature) + np.bincount(owner, weight, len(top))
    share = weight / total[owner]
    hard = base + float(top.sum())
    smooth = hard + temperature * float(np.log(total).sum()) - mu * walls
    mean, second, used = _moments(node, share, mixes)
    gradient_w = A @ (w - mean)
    outer = np.multiply.outer(mean, w)
    gradient_D = 0.5 * (outer + outer.T - np.multiply.outer(w, w) - second) + mu * inverse
    gradient_price = (node.budget - np.bincount(node.group, used, len(node.budget)))[node.priced]
    return smooth, hard, gradient_w, gradient_D, gradient_price


def _moments(node: Node, share: FloatArray, mixes: list[FloatArray]) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Mean of u, of u u', and the probability that a row is in the cover, under these shares."""
    n, first = len(node.c), 0
    row_index, row_value, row_share, pair_index, pair_value = [], [], [], [], []
    for (rows, _), u in zip(node.covers, mixes, strict=True):
        s = share[first : first + rows.shape[1]]
        first += rows.shape[1]
        kept = np.flatnonzero(s > 1e-10)
        rows, u, s = rows[:, kept], u[:, kept], s[kept]
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


def bound(node: Node, state: State) -> tuple[float, list[FloatArray], FloatArray] | None:
    """The bound with slack for rounding, every cover's value in it (less its cost), and every cluster's largest."""
    w, n = state.w, len(state.w)
    # The check below reads one triangle, the products both: with weights of 1e7 the difference would be no bound.
    D = (state.D + state.D.T) / 2
    A = node.R - D
    if _factor(A - np.diag(np.full(n, (n + 2) * EPS * max(float(np.trace(A)), 0.0)))) is None:
        return None  # not surely positive semidefinite (Rump 2006, with twice his constant)
    size = np.abs(A) @ np.abs(w)
    Aw = A @ w
    q, cost = node.c - Aw, _prices(node, state.price)
    error = node.error + (n + 3) * EPS * (np.abs(node.c) + size)
    values, top = [], np.zeros(node.n_clusters)
    for rows, owner in node.covers:
        value = cover_values(_gather(D, rows), q[rows], error[rows], node.nonneg)
        if value is None:
            return None
        value = value - cost[rows].sum(axis=0) * (1 - 1e-13)
        np.maximum.at(top, owner, value)
        values.append(value)
    base = 0.5 * float(w @ Aw) + (n + 2) * EPS * float(np.abs(w) @ size)
    base += float(state.price @ node.budget[node.priced]) * (1 + 1e-13)
    return base + float(top.sum()) * (1 + 1e-13) + 1e-14, values, top


def cover_values(D: FloatArray, q: FloatArray, error: FloatArray, nonneg: bool) -> FloatArray | None:
    """max over u of <q', u> - 1/2 u'Du for every q' within `error` of q, from above.

    With r = q - Du at any u (>= 0 where asked), q raised to Du + max(r, 0) only raises the maximum over u >= 0, and the
    maximum without signs is 1/2 u'Du + u'r + 1/2 r'D^-1 r.
    """
    u = maximise(D, q, nonneg)
    lower = cholesky(D)
    if u is None or lower is None:
        return None
    k = len(q)
    Du = (D * u).sum(axis=1)
    r = q - Du
    r = (
        (np.maximum(r, 0.0) if nonneg else np.abs(r))
        + error
        + (k + 3) * EPS * (np.abs(q) + (np.abs(D) * np.abs(u)).sum(axis=1))
    )
    trace = np.zeros(q.shape[1])  # of D^-1, which bounds its largest eigenvalue
    for j in range(k):
        unit = np.zeros_like(q)
        unit[j] = 1.0
        trace += solve(lower, unit)[j]
    value = 0.5 * (u * Du).sum(axis=0) + (np.abs(u) * r).sum(axis=0) + np.square(r).sum(axis=0) * trace
    return np.asarray(value * (1 + (k + 3) * EPS * 4))


# ---- its minimisation ------------------------------------------------------------------------------------------------


class _Coordinates:
    """Variables in which the Hessian at a state is roughly the identity."""

    def __init__(self, node: Node, state: State, scale: float) -> None:
        n = len(node.c)
        self.node, self.state, self.scale = node, state, np.sqrt(scale)
        A = node.R - state.D
        inverse = np.linalg.inv(A)
        diagonal = np.diagonal(state.D)
        # Hessian by w if every row were chosen: A + A D^-1 A, with D's diagonal for D.
        hessian = A + (A / np.maximum(diagonal, 1e-3 * diagonal.mean())) @ A
        root = None
        for jitter in (1e-12, 1e-9, 1e-6, 1e-3):
            root = _factor(hessian + jitter * np.trace(hessian) / n * np.eye(n)) if root is None else root
        self.root = np.eye(n) if root is None else root
        self.blocks: list[tuple[IndexArray, FloatArray, tuple[IndexArray, IndexArray]]] = []
        for members in node.blocks():
            local = inverse[members[:, :, None], members[:, None, :]]
            values, vectors = np.linalg.eigh(local)
            least = np.maximum(values, 1e-12 * np.abs(values[:, -1:]))
            self.blocks.append((members, vectors / np.sqrt(least)[:, None, :], np.tril_indices(members.shape[1])))
        self.length = n + sum(len(b) * len(t[0]) for b, _, t in self.blocks) + len(state.price)

    def state_at(self, x: FloatArray) -> State:
        from scipy.linalg import solve_triangular

        n = len(self.node.c)
        w = self.state.w + self.scale * solve_triangular(self.root, x[:n], lower=True, trans=1)
        D, first = self.state.D.copy(), n
        for members, factor, (a, b) in self.blocks:
            last = first + len(members) * len(a)
            X = np.zeros((len(members), members.shape[1], members.shape[1]))
            X[:, a, b] = X[:, b, a] = x[first:last].reshape(len(members), len(a))
            change = factor @ X @ factor.transpose(0, 2, 1)
            D[members[:, :, None], members[:, None, :]] += (change + change.transpose(0, 2, 1)) / 2
            first = last
        return State(w, D, self.state.price * np.exp(np.clip(x[first:], -30.0, 30.0)))

    def gradient(self, state: State, by_w: FloatArray, by_D: FloatArray, by_price: FloatArray) -> FloatArray:
        from scipy.linalg import solve_triangular

        parts = [self.scale * solve_triangular(self.root, by_w, lower=True)]
        for members, factor, (a, b) in self.blocks:
            X = factor.transpose(0, 2, 1) @ by_D[members[:, :, None], members[:, None, :]] @ factor
            parts.append(((1.0 + (a != b)) * X[:, a, b]).ravel())
        parts.append(by_price * state.price)
        return np.concatenate(parts)


def improve(node: Node, state: State, temperature: float, options: Options, steps: int = 200) -> State:
    """Minimise the smoothed bound; the state with the least bound that was met."""
    try:
        coordinates = _Coordinates(node, state, 1.0)
    except np.linalg.LinAlgError:
        return state  # next to the cone's boundary R - D can be singular to working precision
    best, best_value, blocks = state, np.inf, node.blocks()

    def function(x: FloatArray) -> tuple[float, FloatArray] | None:
        nonlocal best, best_value
        if time.perf_counter() > options.deadline:
            raise _Enough
        options.evaluations += 1
        here = coordinates.state_at(x)
        found = _smooth(node, here, temperature, blocks)
        if found is None:
            return None
        smooth, hard, *gradients = found
        if hard < best_value:
            best, best_value = here, hard
            if hard < options.target:
                raise _Enough
        return smooth, coordinates.gradient(here, *gradients)

    with suppress(_Enough):
        lbfgs(function, np.zeros(coordinates.length), steps, TOLERANCE)
    return best


# ---- nodes -----------------------------------------------------------------------------------------------------------


def root(
    R: FloatArray, c: FloatArray, error: FloatArray, group: IndexArray, budget: IndexArray, nonneg: bool
) -> tuple[Node, State] | None:
    """All feasible selections; a group is one cluster where it has few supports, else it is cut into small ones.

    None where R is singular to working precision: then no D is worth having.
    """
    n, cluster = len(c), np.zeros(len(c), np.int64)
    covers: dict[int, tuple[list[IndexArray], list[IndexArray]]] = {}
    priced, n_clusters = [], 0
    for p in range(len(budget)):
        members = np.flatnonzero(group == p)
        most = min(int(budget[p]), len(members))
        whole = most < len(members) and comb(len(members), most) <= FIRST_COVERS
        parts = [members] if whole else _clusters(R, members, FIRST_BLOCK)
        if len(parts) > 1 and most < len(members):
            priced.append(p)
        for part in parts:
            cluster[part] = n_clusters
            full = whole or most == len(members)
            for k in range(most if whole else len(part) if full else 1, min(len(part), most) + 1):
                supports = part[np.array(list(combinations(range(len(part)), k)))].T
                rows, owner = covers.setdefault(k, ([], []))
                rows.append(supports)
                owner.append(np.full(supports.shape[1], n_clusters))
            n_clusters += 1
    lists = tuple((np.concatenate(rows, axis=1), np.concatenate(owner)) for rows, owner in covers.values())
    node = Node(
        np.arange(n), R, c, error, group, budget.astype(float), cluster, lists, np.array(priced, np.int64), nonneg
    )
    try:
        state = _first_state(node)
    except np.linalg.LinAlgError:
        state = None
    return None if state is None else (node, state)


def _clusters(R: FloatArray, members: IndexArray, block: int) -> list[IndexArray]:
    """Average-linkage clusters of the most correlated rows, none larger than `block`."""
    parts = [[int(i)] for i in members]
    link = np.abs(R[np.ix_(members, members)])
    while len(parts) > 1:
        sizes = np.array([len(part) for part in parts])
        mean = np.where(np.add.outer(sizes, sizes) <= block, link / np.multiply.outer(sizes, sizes), -1.0)
        np.fill_diagonal(mean, -1.0)
        a, b = divmod(int(mean.argmax()), len(parts))
        if mean[a, b] < 0.0:
            break
        a, b = min(a, b), max(a, b)
        link[a] += link[b]
        link[:, a] += link[:, b]
        link = np.delete(np.delete(link, b, 0), b, 1)
        parts[a] += parts.pop(b)
    return [np.array(sorted(part)) for part in parts]


def _first_state(node: Node) -> State | None:
    """D = 0.9 s times the blocks' Schur complements, s the largest scale with R - D positive semidefinite."""
    n = len(node.c)
    if _factor(node.R) is None:
        return None
    inverse = np.linalg.inv(node.R)
    D = np.zeros((n, n))
    for b in range(node.n_clusters):
        part = np.flatnonzero(node.cluster == b)
        D[np.ix_(part, part)] = np.linalg.inv(inverse[np.ix_(part, part)])
    factor = _factor(D)
    if factor is None:
        return None
    half = np.linalg.solve(factor, node.R)
    scale = float(np.linalg.eigvalsh(np.linalg.solve(factor, half.T))[0])
    if not scale > 1e-12:
        return None
    w = 0.5 * (inverse @ node.c)
    price = np.full(len(node.priced), 0.5 / max(1.0, float(node.budget.sum())))
    state = State(w, 0.9 * scale * D, price)
    return state if _smooth(node, state, 1.0, node.blocks()) is not None else None


def _keep(node: Node, state: State, kept: list[npt.NDArray[np.bool_]]) -> tuple[Node, State]:
    """The node with these covers alone, and without the rows that are then in none."""
    covers = [(rows[:, k], owner[k]) for (rows, owner), k in zip(node.covers, kept, strict=True) if k.any()]
    used = np.zeros(len(node.c), bool)
    for rows, _ in covers:
        used[rows] = True
    number = np.cumsum(used) - 1
    _, cluster = np.unique(node.cluster[used], return_inverse=True)
    renamed = np.full(node.n_clusters, -1)
    renamed[node.cluster[used]] = cluster
    box = np.ix_(used, used)
    smaller = replace(
        node,
        rows=node.rows[used],
        R=node.R[box],
        c=node.c[used],
        error=node.error[used],
        group=node.group[used],
        cluster=cluster.astype(np.int64),
        covers=tuple((number[rows], renamed[owner]) for rows, owner in covers),
    )
    return smaller, State(state.w[used], state.D[box], state.price)


def screen(node: Node, state: State, target: float) -> tuple[Node, State, float, float, bool]:
    """Strike off the covers that no selection above `target` can have.

    Returns the smaller node and its state, its bound, the largest bound among what was struck off, and whether nothing
    is left: a cluster that has no cover above the target, and cannot stay empty either.
    """
    found = bound(node, state)
    assert found is not None, "only states with a bound are screened"
    value, values, top = found
    kept, struck, alive = [], 0.0, value - top > target
    for (_, owner), mine in zip(node.covers, values, strict=True):
        alone = value - top[owner] + mine
        keep = alone > target
        alive[owner[keep]] = True
        struck = max(struck, float(alone[~keep].max(initial=0.0)))
        kept.append(keep)
    if not alive.all():
        return node, state, value, max(struck, float((value - top)[~alive].max())), True
    if not any(keep.any() for keep in kept):
        return node, state, value, struck, True  # the empty selection is left, and worth 0
    smaller, state = _keep(node, state, kept)
    return smaller, state, value, struck, False


def merge(node: Node, state: State) -> tuple[Node, State] | None:
    """Pair the clusters with the fewest covers, inside a priced group first; None where the lists would be too long."""
    counts = node.counts()
    group_of = np.zeros(node.n_clusters, np.int64)
    group_of[node.cluster] = node.group
    inside = np.isin(group_of, node.priced)
    sizes = np.bincount(node.cluster, minlength=node.n_clusters)
    order = np.lexsort((counts, np.where(inside, group_of, len(node.budget))))
    pairs, a = [], 0
    while a + 1 < len(order):
        x, y = int(order[a]), int(order[a + 1])
        same = bool(inside[x] and inside[y] and group_of[x] == group_of[y])
        open_across = (inside[x] or inside[y]) and not same
        longest = _longest(node, x) + _longest(node, y)
        if (
            not open_across
            and (counts[x] + 1) * (counts[y] + 1) * longest**2 <= MOST_NUMBERS
            and sizes[x] + sizes[y] <= 80
        ):
            pairs.append((x, y))
            a += 2
        else:
            a += 1
    return _join(node, state, pairs) if pairs else None


def _longest(node: Node, b: int) -> int:
    return max((len(rows) for rows, owner in node.covers if (owner == b).any()), default=0)


def _join(node: Node, state: State, pairs: list[tuple[int, int]]) -> tuple[Node, State]:
    lists: dict[int, list[IndexArray]] = {b: [] for b in range(node.n_clusters)}
    for rows, owner in node.covers:
        for b in np.unique(owner):
            lists[int(b)].append(rows[:, owner == b])
    cluster = node.cluster.copy()
    for x, y in pairs:
        cluster[cluster == y] = x
        lists[x] = _products(node, lists[x], lists.pop(y))
    names, cluster = np.unique(cluster, return_inverse=True)
    by_size: dict[int, tuple[list[IndexArray], list[IndexArray]]] = {}
    for new, old in enumerate(names):
        for rows in lists[int(old)]:
            found = by_size.setdefault(len(rows), ([], []))
            found[0].append(rows)
            found[1].append(np.full(rows.shape[1], new))
    covers = tuple((np.concatenate(rows, axis=1), np.concatenate(owner)) for rows, owner in by_size.values())
    spread = [p for p in node.priced if len(np.unique(cluster[node.group == p])) > 1]
    kept = np.isin(node.priced, spread)
    merged = replace(node, cluster=cluster.astype(np.int64), covers=covers, priced=node.priced[kept])
    return merged, replace(state, price=state.price[kept])


def _products(node: Node, left: list[IndexArray], right: list[IndexArray]) -> list[IndexArray]:
    """Every cover of one list with every one of the other, within the budgets; in one group also each alone."""
    groups_of = [set(np.unique(np.concatenate([node.group[rows].ravel() for rows in side]))) for side in (left, right)]
    # Of different groups the pairs always fit, and a part of a cover adds nothing to it.
    out = [*left, *right] if groups_of[0] & groups_of[1] else []
    for a in left:
        for b in right:
            both = np.concatenate([np.repeat(a, b.shape[1], axis=1), np.tile(b, a.shape[1])])
            groups = node.group[both]
            fits = np.ones(both.shape[1], bool)
            for p in np.unique(groups):
                fits &= (groups == p).sum(axis=0) <= node.budget[p]
            if fits.any():
                out.append(both[:, fits])
    return out


def split(node: Node, state: State) -> list[tuple[Node, State]]:
    """Two nodes, with and without the row whose part in the smoothed maximisers is the most undecided."""
    w, A = state.w, node.R - state.D
    q, cost = node.c - A @ w, _prices(node, state.price)
    used = np.zeros(len(w))
    total = np.zeros(node.n_clusters)
    values = []
    for rows, _ in node.covers:
        u = maximise(_gather(state.D, rows), q[rows], node.nonneg)
        assert u is not None
        values.append(0.5 * (q[rows] * u).sum(axis=0) - cost[rows].sum(axis=0))
    top = np.zeros(node.n_clusters)
    for (_, owner), value in zip(node.covers, values, strict=True):
        np.maximum.at(top, owner, value)
    for (rows, owner), value in zip(node.covers, values, strict=True):
        share = np.exp((value - top[owner]) / 3e-3)
        total += np.bincount(owner, share, len(total))
        for line in rows:
            used += np.bincount(line, share, len(used))
    used /= total[node.cluster] + np.exp(-top / 3e-3)[node.cluster]
    row = int(np.argmin(np.abs(used - 0.5)))
    with_row = [(rows == row).any(axis=0) for rows, _ in node.covers]
    mine = node.cluster[row]
    inside = [(owner != mine) | has for (_, owner), has in zip(node.covers, with_row, strict=True)]
    return [_keep(node, state, inside), _keep(node, state, [~has for has in with_row])]
