"""Drives the block bound until a gap is met or the time is up: optimise, screen, merge; branch, best bound first."""

from __future__ import annotations

import heapq
import time
from dataclasses import dataclass
from itertools import count

import numpy as np
import numpy.typing as npt

from ._covers import maximise
from ._relaxation import Node, Options, State, bound, cover_values, improve, merge, screen, split

__all__ = ["Outcome", "tighten"]

FloatArray = npt.NDArray[np.float64]
IndexArray = npt.NDArray[np.int64]

FIRST_TEMPERATURES = (1e-2, 3e-3, 1e-3, 3e-4, 1e-4)
LATER_TEMPERATURES = (3e-4, 1e-4)
LAST_TEMPERATURES = (3e-5, 1e-5)
AIM = 0.5  # of the present gap
LEAST_AIM = 2e-3  # below it a pass goes for the gap that was asked for
FEW = 20_000  # selections of a node that are simply all evaluated
CHUNK = 2_000_000  # numbers of their matrices at a time


@dataclass
class Outcome:
    """What is proved: no feasible selection is worth more than `upper` (in the node's units)."""

    upper: float
    lower: float  # the value of the best selection met
    support: IndexArray | None  # it, if better than the one known before
    nodes: int
    evaluations: int


class _Search:
    def __init__(self, lower: float, deadline: float) -> None:
        self.lower, self.deadline = lower, deadline
        self.support: IndexArray | None = None
        self.evaluations = self.nodes = 0
        self.aim = 0.0  # of the present pass: 1 - lower / upper
        self.closed = 0.0  # the largest bound among what this pass gave up

    @property
    def target(self) -> float:
        return self.lower / (1.0 - self.aim)

    @property
    def late(self) -> bool:
        return time.perf_counter() > self.deadline

    def offer(self, rows: IndexArray, value: float) -> None:
        if value > self.lower * (1 + 1e-10):
            self.lower, self.support = value, rows

    def round_off(self, node: Node, state: State) -> None:
        """The union of every cluster's best cover is a selection: it may be a better one."""
        if len(node.priced):
            return  # might be over the budgets
        found = bound(node, state)
        if found is None:
            return
        picks: dict[int, tuple[float, IndexArray]] = {}
        for (rows, owner), value in zip(node.covers, found[1], strict=True):
            for b in np.unique(owner):
                mine = np.flatnonzero(owner == b)
                j = int(mine[value[mine].argmax()])
                if value[j] > picks.get(int(b), (-np.inf,))[0]:
                    picks[int(b)] = (float(value[j]), rows[:, j])
        rows = np.concatenate([rows for _, rows in picks.values()])
        self._evaluate(node, rows[:, None])

    def _evaluate(self, node: Node, supports: IndexArray) -> float:
        """The largest objective among these supports (k, m), from above; infinite where C is too near to singular."""
        k, m = supports.shape
        most, step = 0.0, max(1, CHUNK // (k * k))
        for first in range(0, m, step):
            rows = supports[:, first : first + step]
            matrices, linear = np.asarray(node.R[rows[:, None], rows[None, :]]), node.c[rows]
            u = maximise(matrices, linear, node.nonneg)
            above = cover_values(matrices, linear, node.error[rows], node.nonneg)
            if u is None or above is None:
                return np.inf
            value = (u * (linear - 0.5 * (matrices * u).sum(axis=1))).sum(axis=0)
            j = int(value.argmax())
            self.offer(node.rows[rows[:, j]], float(value[j]))
            most = max(most, float(above.max()))
        return most

    def enumerate(self, node: Node) -> bool:
        """Evaluate every selection of a node that has few; False if it has not."""
        if len(node.priced):
            return False
        counts = node.counts()
        if np.prod(counts.astype(float)) > FEW:
            return False
        lists: list[list[IndexArray]] = [[] for _ in counts]
        for rows, owner in node.covers:
            for j, b in enumerate(owner):
                lists[b].append(rows[:, j])
        by_size: dict[int, list[IndexArray]] = {}
        stack: list[tuple[int, list[IndexArray]]] = [(0, [])]
        while stack:
            b, parts = stack.pop()
            if b == len(lists):
                rows = np.concatenate(parts)
                by_size.setdefault(len(rows), []).append(rows)
            else:
                stack.extend((b + 1, [*parts, rows]) for rows in lists[b])
        worth = max(self._evaluate(node, np.array(group).T) for group in by_size.values())
        if not np.isfinite(worth):
            return False
        self.closed = max(self.closed, worth)
        return True

    def cool(self, node: Node, state: State, temperatures: tuple[float, ...]) -> tuple[Node, State, float, bool]:
        """Optimise at falling temperatures, screening after each; the least bound, and whether nothing is left."""
        least = np.inf
        for temperature in temperatures:
            options = Options(self.target, self.deadline)
            state = improve(node, state, temperature, options)
            self.evaluations += options.evaluations
            if bound(node, state) is None:
                break
            self.round_off(node, state)
            node, state, value, struck, dead = screen(node, state, self.target)
            least = min(least, value)
            self.closed = max(self.closed, min(struck, least))
            if dead or least <= self.target:
                self.closed = max(self.closed, min(least, self.target))
                return node, state, least, True
            if self.late:
                break
        return node, state, least, False

    def work(self, node: Node, state: State) -> tuple[Node, State, float] | None:
        """Tighten one node, merging its clusters; None when nothing in it exceeds the target."""
        last, least = False, np.inf
        self.nodes += 1
        while True:
            node, state, value, done = self.cool(node, state, LAST_TEMPERATURES if last else LATER_TEMPERATURES)
            least = min(least, value)
            if done or self.enumerate(node):
                return None
            merged = None if self.late else merge(node, state)
            if merged is not None:
                (node, state), last = merged, False
            elif self.late or last:
                return node, state, least
            else:
                last = True

    def run(self, node: Node, state: State, upper: float) -> float:
        """One pass: a bound that is at most the target, unless the time is up first."""
        self.closed = 0.0
        order = count()
        heap: list[tuple[float, int, Node, State]] = [(-upper, next(order), node, state)]
        while heap and not self.late:
            negative, _, node, state = heapq.heappop(heap)
            if -negative <= self.target:
                self.closed = max(self.closed, -negative)
                continue
            found = self.work(node, state)
            if found is None:
                continue
            node, state, value = found
            value = min(value, -negative)
            children = [(node, state)] if self.late else split(node, state)
            for child in children:
                if not child[0].covers:
                    continue  # the empty selection, worth 0
                heapq.heappush(heap, (-value, next(order), *child))
        return max(self.closed, self.lower, max((-entry[0] for entry in heap), default=0.0))


def tighten(node: Node, state: State, lower: float, upper: float, gap: float, deadline: float) -> Outcome:
    """Bring the bound of a root node within `gap` of the best known value, in passes with falling aims.

    A pass strikes off whatever cannot exceed its aim, so the next one starts from the root again; an aim that is near
    is reached soon, and a bound is at hand whenever the time is up.
    """
    search = _Search(lower, deadline)
    search.aim = gap
    node, state, value, done = search.cool(node, state, FIRST_TEMPERATURES)
    upper = min(upper, search.closed if done else value)
    while not search.late and search.aim < 1.0 - search.lower / upper:
        near = AIM * (1.0 - search.lower / upper)
        search.aim = near if near > max(gap, LEAST_AIM) else gap
        before, upper = upper, min(upper, search.run(node, state, upper))
        if search.aim == gap and not upper < before:
            break  # rounding is in the way
        search.aim = gap
    return Outcome(max(upper, search.lower), search.lower, search.support, search.nodes, search.evaluations)
