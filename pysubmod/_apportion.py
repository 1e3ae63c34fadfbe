"""Shares into whole numbers: the rules of apportionment behind `pysubmod.budgets.allocate`, in exact arithmetic."""

from __future__ import annotations

import heapq
import math
from fractions import Fraction
from typing import cast

import numpy as np
import numpy.typing as npt

__all__ = ["MOST", "apportion", "partition_sel"]

MOST = 2**50  # samples in all: below it the float64 estimates that save time are off by less than one


def apportion(total: int, shares: list[Fraction], low: list[int], high: list[int], webster: bool) -> list[int]:
    """The `total` smallest units, each at least a group's floor; a group's units have growing keys."""
    if webster and not all(shares):
        return _zeros_last(total, shares, low, high)
    quotas = [total * share for share in shares]
    given = _head_start(total, shares, low, high, webster)

    def key(p: int) -> Fraction:
        """What a further unit of group p costs, up to what is the same for all groups."""
        return (2 * given[p] + 1) / shares[p] if webster else given[p] - quotas[p]

    queue = [(key(p), p) for p in range(len(given)) if given[p] < high[p]]
    heapq.heapify(queue)
    for _ in range(total - sum(given)):
        _, p = queue[0]
        given[p] += 1
        if given[p] < high[p]:
            heapq.heapreplace(queue, (key(p), p))
        else:
            heapq.heappop(queue)
    return given


def _zeros_last(total: int, shares: list[Fraction], low: list[int], high: list[int]) -> list[int]:
    """Webster's rule where some weigh nothing: they get their floors, and evenly what all the others cannot take."""
    heavy, light = [p for p, w in enumerate(shares) if w], [p for p, w in enumerate(shares) if not w]
    taken = min(total - sum(low[p] for p in light), sum(high[p] for p in heavy))
    given = list(low)
    even = [Fraction(1, len(light))] * len(light)
    for part, amount, weights in ((heavy, taken, [shares[p] for p in heavy]), (light, total - taken, even)):
        found = apportion(amount, weights, [low[p] for p in part], [high[p] for p in part], part is heavy)
        for p, units in zip(part, found, strict=True):
            given[p] = units
    return given


def _head_start(total: int, shares: list[Fraction], low: list[int], high: list[int], webster: bool) -> list[int]:
    """Units that are certain to be given, all but a few a group: those below a threshold that lets too few through."""
    if total - sum(low) <= 4 * len(low):
        return list(low)
    w, floor, cap = (np.array([float(x) for x in part]) for part in (shares, low, high))

    def below(level: float) -> npt.NDArray[np.float64]:
        # The number of units whose key is at most `level`: of keys b - q, or (b + 1/2) / w.
        units = np.floor(level * w + 0.5) if webster else np.floor(level + total * w) + 1.0
        return cast("npt.NDArray[np.float64]", np.clip(units, floor, cap))

    # What no rounding of `below` can take away: one unit a group, so the threshold must leave one a group.
    few, many = (0.25, 1e300) if webster else (-2.0 * total, 2.0 * total)
    for _ in range(200):
        middle = math.sqrt(few) * math.sqrt(many) if webster else (few + many) / 2
        if not few < middle < many:
            break
        few, many = (middle, many) if (below(middle) + 1.0).sum() <= total else (few, middle)
    return [int(x) for x in np.clip(below(few) - 1.0, floor, cap)]


def partition_sel(total: int, shares: list[Fraction], high: list[int], balanced: bool) -> list[int]:
    """Floors of the shares, then one more for the smallest budget with room, again and again."""
    given = [0 if balanced else min(math.floor(total * share), cap) for share, cap in zip(shares, high, strict=True)]
    rest = total - sum(given)
    # Whole levels at a time: all budgets below a level are raised to it, capped.
    while rest > len(given):
        open_ = [p for p in range(len(given)) if given[p] < high[p]]
        smallest = min(given[p] for p in open_)
        lowest = [p for p in open_ if given[p] == smallest]
        above = min([given[p] for p in open_ if given[p] > smallest], default=MOST)
        step = min(above - smallest, min(high[p] for p in lowest) - smallest, rest // len(lowest))
        for p in lowest:
            given[p] += step
        rest -= step * len(lowest)
    queue = [(given[p], p) for p in range(len(given)) if given[p] < high[p]]
    heapq.heapify(queue)
    for _ in range(rest):
        count, p = heapq.heappop(queue)
        given[p] = count + 1
        if given[p] < high[p]:
            heapq.heappush(queue, (given[p], p))
    return given
