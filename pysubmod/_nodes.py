"""The nodes of the search for a bound: the first one, and the moves that tighten it (screen, merge, split)."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import replace
from itertools import combinations
from math import comb

import numpy as np
import numpy.typing as npt

from ._diagonal import largest_eigenvalue
from ._relaxation import Covers, Found, Node, State, cover_gains, shares_of, smooth, try_factor, try_inverse

__all__ = ["by_cluster", "merge", "root", "screen", "split"]

FloatArray = npt.NDArray[np.float64]
IndexArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

FIRST_COVERS = 600  # a group with at most so many supports is one cluster from the start
FIRST_BLOCK = 8  # rows of a cluster otherwise
MOST_NUMBERS = 400_000  # covers times (rows of one) squared, of a merged cluster
MOST_ROWS = 80  # of a merged cluster
UNDECIDED = 3e-3  # temperature at which `split` asks how much a row is used


def _packed(lists: Iterable[list[IndexArray]]) -> Covers:
    """Covers by size, of the lists of every cluster; a list holds (k, m) arrays of row numbers."""
    by_size: dict[int, tuple[list[IndexArray], list[IndexArray]]] = {}
    for b, own in enumerate(lists):
        for rows in own:
            found = by_size.setdefault(len(rows), ([], []))
            found[0].append(rows)
            found[1].append(np.full(rows.shape[1], b))
    return tuple((np.concatenate(rows, axis=1), np.concatenate(owner)) for rows, owner in by_size.values())


def by_cluster(node: Node) -> list[list[IndexArray]]:
    """The covers of every cluster, as (k, m) arrays."""
    lists: list[list[IndexArray]] = [[] for _ in range(node.n_clusters)]
    for rows, owner in node.covers:
        for b in np.unique(owner):
            lists[int(b)].append(rows[:, owner == b])
    return lists


def root(
    R: FloatArray,
    c: FloatArray,
    error: FloatArray,
    group: IndexArray,
    budget: IndexArray,
    nonneg: bool,
    w: FloatArray,
    price: FloatArray,
    deadline: float = math.inf,
) -> tuple[Node, State] | None:
    """All feasible selections; a group is one cluster where it has few supports, else it is cut into small ones.

    `w` and `price` (by group) are where the minimisation starts: the diagonal bound's save half of the way. None where
    R is singular to working precision, for then no D is worth having; or after `deadline`.
    """
    cluster = np.zeros(len(c), np.int64)
    lists: list[list[IndexArray]] = []
    priced = []
    for p in range(len(budget)):
        members = np.flatnonzero(group == p)
        most = min(int(budget[p]), len(members))
        all_of_it = most == len(members)
        whole = not all_of_it and comb(len(members), most) <= FIRST_COVERS
        parts = [members] if whole else _clusters(R, members, deadline)
        if len(parts) > 1 and not all_of_it:
            priced.append(p)
        for part in parts:
            cluster[part] = len(lists)
            largest = min(len(part), most)
            # Without a price a cover's subsets add nothing to it.
            sizes = range(largest if whole or all_of_it else 1, largest + 1)
            lists.append([part[np.array(list(combinations(range(len(part)), k)))].T for k in sizes])
    node = Node(
        rows=np.arange(len(c)),
        R=R,
        c=c,
        error=error,
        group=group,
        budget=budget.astype(float),
        cluster=cluster,
        covers=_packed(lists),
        priced=np.array(priced, np.int64),
        nonneg=nonneg,
    )
    state = _first_state(node, w, price) if time.perf_counter() < deadline else None
    return None if state is None else (node, state)


def _clusters(R: FloatArray, members: IndexArray, deadline: float) -> list[IndexArray]:
    """Average-linkage clusters of the most correlated rows, of at most FIRST_BLOCK; unfinished after `deadline`."""
    parts = [[int(i)] for i in members]
    link = np.abs(R[np.ix_(members, members)])
    while len(parts) > 1 and time.perf_counter() < deadline:
        sizes = np.array([len(part) for part in parts])
        mean = np.where(np.add.outer(sizes, sizes) <= FIRST_BLOCK, link / np.multiply.outer(sizes, sizes), -1.0)
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


def _first_state(node: Node, w: FloatArray, price: FloatArray) -> State | None:
    """D = 0.9 s times the blocks' Schur complements, s the largest scale with R - D positive semidefinite."""
    n = len(node.c)
    inverse = try_inverse(node.R)
    if inverse is None:
        return None
    D = np.zeros((n, n))
    for members in node.blocks():
        box = (members[:, :, None], members[:, None, :])
        schur = try_inverse(inverse[box])
        if schur is None:
            return None
        D[box] = (schur + schur.transpose(0, 2, 1)) / 2
    factor = try_factor(D)
    if factor is None:
        return None
    largest = largest_eigenvalue(lambda x: np.asarray(factor.T @ (inverse @ (factor @ x))), n)
    if not 0.0 < largest < 1e12:
        return None
    least = 1e-6 / max(1.0, float(node.budget.sum()))  # the logarithm of a price is what varies
    state = State(w, 0.9 / largest * D, np.maximum(price[node.priced], least))
    return state if smooth(node, state, 1.0, node.blocks()) is not None else None


def _keep(node: Node, state: State, kept: list[BoolArray]) -> tuple[Node, State]:
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


def screen(node: Node, state: State, found: Found, target: float) -> tuple[Node, State, float, bool]:
    """Strike off the covers that no selection above `target` can have, by the bound found at this state.

    Returns the smaller node and its state, the largest bound among what was struck off, and whether nothing is left:
    a cluster that has no cover above the target and cannot stay empty either, or no cover anywhere.
    """
    kept, struck, alive = [], 0.0, found.value - found.top > target
    for (_, owner), gain in zip(node.covers, found.gains, strict=True):
        alone = found.value - found.top[owner] + gain
        keep = alone > target
        alive[owner[keep]] = True
        struck = max(struck, float(alone[~keep].max(initial=0.0)))
        kept.append(keep)
    if not alive.all():
        return node, state, max(struck, float((found.value - found.top)[~alive].max())), True
    if not any(keep.any() for keep in kept):
        return node, state, struck, True  # the empty selection is left, which is worth nothing
    return *_keep(node, state, kept), struck, False


def merge(node: Node, state: State) -> tuple[Node, State] | None:
    """Pair the clusters with the fewest covers, inside a priced group first; None where the lists would be too long."""
    counts, lists = node.counts(), by_cluster(node)
    longest = [max(len(rows) for rows in own) for own in lists]
    group_of = np.zeros(node.n_clusters, np.int64)
    group_of[node.cluster] = node.group
    inside = np.isin(group_of, node.priced)
    sizes = np.bincount(node.cluster, minlength=node.n_clusters)
    order = np.lexsort((counts, np.where(inside, group_of, len(node.budget))))
    pairs, a = [], 0
    while a + 1 < len(order):
        x, y = int(order[a]), int(order[a + 1])
        joinable = group_of[x] == group_of[y] if inside[x] or inside[y] else True
        numbers = (counts[x] + 1) * (counts[y] + 1) * (longest[x] + longest[y]) ** 2
        if joinable and numbers <= MOST_NUMBERS and sizes[x] + sizes[y] <= MOST_ROWS:
            pairs.append((x, y))
            a += 1
        a += 1
    return _join(node, state, lists, pairs) if pairs else None


def _join(node: Node, state: State, lists: list[list[IndexArray]], pairs: list[tuple[int, int]]) -> tuple[Node, State]:
    cluster = node.cluster.copy()
    for x, y in pairs:
        cluster[cluster == y] = x
        lists[x], lists[y] = _products(node, lists[x], lists[y]), []
    names, cluster = np.unique(cluster, return_inverse=True)
    spread = [p for p in node.priced if len(np.unique(cluster[node.group == p])) > 1]
    merged = replace(
        node,
        cluster=cluster.astype(np.int64),
        covers=_packed(lists[int(name)] for name in names),
        priced=np.array(spread, np.int64),
    )
    return merged, replace(state, price=state.price[np.isin(node.priced, spread)])


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
    """Two nodes, with and without the row whose part in the smoothed maximisers is the most undecided.

    None at all where every cluster's covers are alike.
    """
    n, counts = len(node.c), node.counts()
    gained = cover_gains(node, state, node.c - (node.R - state.D) @ state.w)
    if gained is None:  # next to the cone's boundary: every cover counts the same
        shares = [1.0 / counts[owner] for _, owner in node.covers]
    else:
        _, _, shares = shares_of(node, gained[0], UNDECIDED)
    used, times = np.zeros(n), np.zeros(n)
    for (rows, _), share in zip(node.covers, shares, strict=True):
        for line in rows:
            used += np.bincount(line, share, n)
            times += np.bincount(line, minlength=n)
    open_ = times < counts[node.cluster]  # not in every cover of its cluster
    if not open_.any():
        return []
    row = int(np.argmin(np.where(open_, np.abs(used - 0.5), np.inf)))
    mine = node.cluster[row]
    has = [(rows == row).any(axis=0) for rows, _ in node.covers]
    others = [owner != mine for _, owner in node.covers]
    return [
        _keep(node, state, [o | h for o, h in zip(others, has, strict=True)]),
        _keep(node, state, [~h for h in has]),
    ]
