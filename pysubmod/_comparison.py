"""The same budgets, spent in other ways: top-k, each group alone, at random; and what a set of rows looks like."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import sqrt
from typing import Any

import numpy as np
import numpy.typing as npt

from ._quadratic import Quadratic
from ._random import random_bits, random_order
from ._refit import refit
from .matroid import PartitionMatroid

__all__ = ["Facts", "Pool", "cosine_summary", "norm_summary"]

FloatArray = npt.NDArray[np.float64]
IndexArray = npt.NDArray[np.int64]
SAMPLED_ROWS = 1000  # pairs among so many rows stand for all pairs of a larger pool
NO_ANGLE = 1e-12  # a cosine this small has no sign
NO_GAIN = 1e-11  # a correlation with the residual this small, relative to what it is summed from, is rounding
EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class Facts:
    """What one set of rows is worth at its best weights, and how its rows stand to each other."""

    indices: IndexArray
    weights: FloatArray
    objective: float
    relative_residual: float | None
    conflicts: int

    @property
    def pairs(self) -> int:
        return len(self.indices) * (len(self.indices) - 1) // 2

    def as_dict(self) -> dict[str, Any]:
        return {
            "picks": len(self.indices),
            "objective": self.objective,
            "relative_residual": self.relative_residual,
            "conflicting_pairs": self.conflicts,
            "pairs": self.pairs,
        }


class Pool:
    """The rows of a problem under budgets, and the simple ways of choosing among them.

    `tilt` is the problem's, needed to tell the part of c that is ``G t``.
    """

    def __init__(self, quadratic: Quadratic, matroid: PartitionMatroid, tilt: float) -> None:
        self.q, self.matroid = quadratic, matroid
        self.aligned = quadratic.c - tilt / 2 * quadratic.squares  # G t
        self.rows = np.flatnonzero(matroid.budgets[matroid.codes] > 0).astype(np.int64)
        self.room = np.minimum(matroid.budgets, matroid.sizes)
        self.norms = np.sqrt(quadratic.squares)

    def facts(self, members: IndexArray) -> Facts:
        C, c = self.q.block(members), self.q.c[members]
        w, value = refit(C, c, self.q.nonneg, self.q.rank_tol)
        pairs = cosines(C - self.q.ridge * np.eye(len(C)))[np.triu_indices(len(C), 1)]
        return Facts(members, w, value, self._residual(C, w, members), int((pairs < -NO_ANGLE).sum()))

    def worth(self, members: IndexArray, w: FloatArray) -> tuple[float, float]:
        """The objective at weights w of these rows, and what rounding may have done to it here and elsewhere."""
        q, c = self.q, self.q.c[members]
        size = float(np.abs(w) @ np.sqrt(q.diagonal[members]))
        unit = EPS * ((q.width or 0) + len(members) + 8)
        if not q.has_rows:  # a K that is not quite symmetric may be read in two ways
            unit += 1e-10 if q.rank_tol < 1e-6 else 1e-5
        slack = unit * (size**2 + size * (q.target_norm or 0.0) + float(np.abs(w) @ np.abs(c)))
        return float(w @ (2 * c - q.block(members) @ w) / 2), slack

    def is_optimal(self, chosen: Facts) -> bool:
        """Whether, up to rounding, no row that may be picked would raise the objective: f(chosen) is then f(all rows).

        The KKT conditions over all those rows, whatever the budgets; sufficient, as the objective is concave.
        """
        q, w = self.q, np.zeros(self.q.n)
        w[chosen.indices] = chosen.weights
        root = np.sqrt(q.diagonal)
        g = q.c - q.times(w)
        score = g if q.nonneg else np.abs(g)
        alone = np.divide(np.abs(q.c), root, out=np.zeros(q.n), where=root > 0)
        scale = max(q.target_norm or 0.0, float(alone.max(initial=0.0)), float(np.abs(w) @ root))
        return bool((score <= NO_GAIN * scale * root)[self.rows].all())

    def _residual(self, C: FloatArray, w: FloatArray, members: IndexArray) -> float | None:
        norm = self.q.target_norm
        if not norm:
            return None
        explained = 2 * w @ self.aligned[members] - (w @ C @ w - self.q.ridge * (w @ w))
        return sqrt(max(0.0, 1.0 - float(explained) / norm**2))

    @cached_property
    def scores(self) -> FloatArray:
        """What top-k ranks by: alignment with the target; its size for free weights."""
        return self.q.c if self.q.nonneg else np.abs(self.q.c)

    def top_k(self) -> IndexArray:
        """The best-aligned rows that the budgets allow, best first; ties to the lowest row."""
        order = np.argsort(-self.scores, kind="stable")
        return self._first(order.astype(np.int64))

    def at_random(self, seed: int, draw: int) -> IndexArray:
        return self._first(random_order(seed, self.q.n, stream=draw))

    def _first(self, order: IndexArray) -> IndexArray:
        """Of rows in the given order, those that come while their group has budget."""
        codes = self.matroid.codes[order]
        by_group = np.argsort(codes, kind="stable")
        starts = np.cumsum(self.matroid.sizes) - self.matroid.sizes
        place = np.empty(len(order), np.int64)
        place[by_group] = np.arange(len(order)) - starts[codes[by_group]]
        return order[place < self.room[codes]].astype(np.int64)

    def per_group(self) -> IndexArray:
        """Normalised OMP in every group as if there were no others, all groups one step at a time."""
        q, codes = self.q, self.matroid.codes
        root = np.sqrt(np.where(q.diagonal > 0, q.diagonal, 1.0))
        picks: list[list[int]] = [[] for _ in self.room]
        columns: list[list[FloatArray]] = [[] for _ in self.room]
        groups = [np.flatnonzero(codes == p) for p in range(len(self.room))]
        g = q.c.copy()
        least = 1e-12 * float(np.max(np.abs(q.c) / root, initial=0.0))
        open_groups = set(np.flatnonzero(self.room).tolist())
        while open_groups:
            new: dict[int, int] = {}
            for p in sorted(open_groups):
                score = (g if q.nonneg else np.abs(g))[groups[p]] / root[groups[p]]
                score[np.isin(groups[p], picks[p])] = 0.0
                if score.max() > least:
                    new[p] = int(groups[p][np.argmax(score)])
            added = q.columns(np.array(list(new.values()), np.int64)) if new else np.empty((q.n, 0))
            for column, (p, row) in enumerate(new.items()):
                picks[p].append(row)
                columns[p].append(added[groups[p], column])
                S, H = np.array(picks[p]), np.stack(columns[p], axis=1)
                w, _ = refit(H[np.searchsorted(groups[p], S)], q.c[S], q.nonneg, q.rank_tol)
                g[groups[p]] = q.c[groups[p]] - H @ w
            open_groups = {p for p in new if len(picks[p]) < self.room[p]}
        return np.array([row for group in picks for row in group], np.int64)

    def sampled(self, seed: int) -> tuple[FloatArray, IndexArray, bool]:
        """Cosines among the rows that may be picked, their groups, and whether they are a sample."""
        rows = self.rows[self.norms[self.rows] > 0]
        sample = len(rows) > SAMPLED_ROWS and "matrix" not in self.q.__dict__
        if sample:
            rows = np.sort(rows[np.argsort(random_bits(seed, rows), kind="stable")[:SAMPLED_ROWS]])
        K = self.q.matrix if len(rows) == self.q.n and "matrix" in self.q.__dict__ else self.q.block(rows)
        root = self.norms[rows]
        return K / root / root[:, None], self.matroid.codes[rows].astype(np.int64), sample


def cosines(K: FloatArray) -> FloatArray:
    """Cosines of rows from their products; 0 where a row is zero."""
    root = np.sqrt(np.maximum(K.diagonal(), 0.0))
    scale = np.multiply.outer(root, root)
    return np.divide(K, scale, out=np.zeros_like(K), where=scale > 0)


def norm_summary(norms: FloatArray) -> dict[str, float] | None:
    if not len(norms):
        return None
    return {"min": float(norms.min()), "median": float(np.median(norms)), "max": float(norms.max())}


def cosine_summary(cosine: FloatArray, codes: IndexArray) -> dict[str, Any]:
    """Mean and share of negative ones over all pairs, over pairs inside a group and between groups."""
    above = np.triu(np.ones(cosine.shape, bool), 1)
    same = np.equal.outer(codes, codes)
    return {
        name: _pairs(cosine[mask])
        for name, mask in (("all", above), ("within", above & same), ("between", above & ~same))
    }


def _pairs(values: FloatArray) -> dict[str, Any]:
    if not len(values):
        return {"pairs": 0, "mean": None, "negative_share": None}
    return {
        "pairs": len(values),
        "mean": float(values.mean()),
        "negative_share": float((values < -NO_ANGLE).mean()),
    }
