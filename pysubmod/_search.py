"""Drives the block bound until a gap is met or the time is up: optimise, screen, merge; branch, best bound first."""

from __future__ import annotations

import heapq
import time
from dataclasses import dataclass
from itertools import count, product

import numpy as np
import numpy.typing as npt

from ._covers import maxima
from ._descent import improve
from ._nodes import by_cluster, merge, screen, split
from ._relaxation import Found, Node, State, bound

__all__ = ["Outcome", "tighten"]

FloatArray = npt.NDArray[np.float64]
IndexArray = npt.NDArray[np.int64]

FIRST_TEMPERATURES = (3e-3, 1e-3, 3e-4, 1e-4)
LATER_TEMPERATURES = (3e-4, 1e-4)
LAST_TEMPERATURES = (3e-5, 1e-5)
AIM = 0.7  # of the present gap
LEAST_AIM = 2e-3  # below it a pass goes for the gap that was asked for
FEW = 20_000  # selections of a node that are simply all evaluated,
WORK = 2e8  # if there are not too many numbers to it: selections times rows cubed
LONGEST = 128  # rows of a selection that is evaluated on the way
CHUNK = 2_000_000  # numbers of their matrices at a time


@dataclass
class Outcome:
    """What is proved: no feasible selection is worth more than `upper` (in the node's units)."""

    upper: float
    support: IndexArray | None  # a selection that seems better than the one known before
    nodes: int
    evaluations: int


class _Search:
    def __init__(self, lower: float, deadline: float) -> None:
        # Of selections met on the way it is taken in the lowered R, so it may be a little high: a higher target only
        # loosens what is proved. Whether they really are better is for others to judge.
        self.lower, self.deadline = lower, deadline
        self.support: IndexArray | None = None
        self.evaluations = self.nodes = 0
        self.aim = 0.0  # of the present pass: 1 - lower / upper
        self.closed = 0.0  # the largest bound among what was given up

    @property
    def target(self) -> float:
        return self.lower / (1.0 - self.aim)

    @property
    def late(self) -> bool:
        return time.perf_counter() > self.deadline

    def give_up(self, upper: float) -> None:
        self.closed = max(self.closed, upper)

    def round_off(self, node: Node, found: Found) -> None:
        """The union of every cluster's best cover is a selection: it may be a better one."""
        if len(node.priced):
            return  # might be over the budgets
        best = np.full(node.n_clusters, -np.inf)
        picks: list[IndexArray] = [np.empty(0, np.int64)] * node.n_clusters
        for (rows, owner), gain in zip(node.covers, found.gains, strict=True):
            for j in np.lexsort((-gain, owner))[np.unique(np.sort(owner), return_index=True)[1]]:
                if gain[j] > best[owner[j]]:
                    best[owner[j]], picks[owner[j]] = gain[j], rows[:, j]
        support = np.concatenate(picks)
        if len(support) <= LONGEST:
            self.evaluate(node, support[:, None])

    def evaluate(self, node: Node, supports: IndexArray) -> float | None:
        """The largest objective among these supports (k, m), from above; None if C is too near to singular, or late."""
        k, m = supports.shape
        most, step = 0.0, max(1, CHUNK // (k * k))
        for first in range(0, m, step):
            if first and self.late:
                return None
            rows = supports[:, first : first + step]
            matrices, linear = np.asarray(node.R[rows[:, None], rows[None, :]]), node.c[rows]
            found = maxima(matrices, linear, node.error[rows], node.nonneg)
            if found is None:
                return None
            above, u = found
            most = max(most, float(above.max()))
            value = (u * (linear - 0.5 * (matrices * u).sum(axis=1))).sum(axis=0)
            j = int(value.argmax())
            if value[j] > self.lower * (1 + 1e-10):
                self.lower, self.support = float(value[j]), node.rows[rows[:, j]]
        return most

    def enumerate(self, node: Node) -> bool:
        """Evaluate every selection of a node that has few; False if it has not."""
        lists = [[rows[:, j] for rows in own for j in range(rows.shape[1])] for own in by_cluster(node)]
        for b in np.unique(node.cluster[np.isin(node.group, node.priced)]):
            lists[b].append(np.empty(0, np.int64))  # where rows have a price, a cluster may rather stay empty
        size = sum(max(len(rows) for rows in own) for own in lists)
        number = float(np.prod([float(len(own)) for own in lists]))
        if size > LONGEST or number > FEW or number * size**3 > WORK:
            return False
        by_size: dict[int, list[IndexArray]] = {}
        for parts in product(*lists):
            support = np.concatenate(parts)
            if (np.bincount(node.group[support], minlength=len(node.budget)) > node.budget).any() or not len(support):
                continue
            by_size.setdefault(len(support), []).append(support)
        for supports in by_size.values():
            worth = self.evaluate(node, np.array(supports).T)
            if worth is None:
                return False
            self.give_up(worth)
        return True

    def cool(self, node: Node, state: State, temperatures: tuple[float, ...]) -> tuple[Node, State, float, bool]:
        """Optimise at falling temperatures, screening after each; the least bound, and whether nothing is left."""
        least = np.inf
        for temperature in temperatures:
            state, evaluations = improve(node, state, temperature, self.target, self.deadline)
            self.evaluations += evaluations
            found = bound(node, state)
            if found is None:
                break
            least = min(least, found.value)
            self.round_off(node, found)
            node, state, struck, dead = screen(node, state, found, self.target)
            self.give_up(min(struck, least))
            if dead or least <= self.target:
                self.give_up(min(least, self.target))
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
            if done or (not self.late and self.enumerate(node)):
                return None
            merged = None if self.late else merge(node, state)
            if merged is not None:
                (node, state), last = merged, False
            elif self.late or last:
                return node, state, least
            else:
                last = True

    def run(self, node: Node, state: State, upper: float) -> float:
        """One pass: a bound on this node that is at most the target, unless the time is up first."""
        self.closed = 0.0
        order = count()
        heap: list[tuple[float, int, Node, State]] = [(-upper, next(order), node, state)]
        while heap and not self.late:
            negative, _, node, state = heapq.heappop(heap)
            if -negative <= self.target:
                self.give_up(-negative)
                continue
            found = self.work(node, state)
            if found is None:
                continue
            node, state, value = found
            value = min(value, -negative)
            children = [(node, state)] if self.late else split(node, state)
            if not children:
                self.give_up(value)
            for child in children:
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
    gone = search.closed  # what the root has lost already is in none of the passes
    upper = min(upper, gone if done else max(gone, value))
    while not done and not search.late and search.aim < 1.0 - search.lower / upper:
        near = AIM * (1.0 - search.lower / upper)
        search.aim = near if near > max(gap, LEAST_AIM) else gap
        before, upper = upper, min(upper, max(gone, search.run(node, state, upper)))
        if not upper < before:
            break  # nothing is left to split: rounding is in the way
        search.aim = gap
    return Outcome(max(upper, search.lower), search.support, search.nodes, search.evaluations)
