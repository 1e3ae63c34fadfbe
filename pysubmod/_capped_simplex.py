"""A convex quadratic over the capped simplex, minimised exactly, with a certificate.

    minimise  E(p) = 1/2 p'Jp - h'p   over   lower <= p <= upper, sum p = 1,

J positive semidefinite on the complement of the ones vector. Accelerated projected gradients find most of the bounds
that hold; a primal active set method finishes: it solves on the free entries, and frees or fixes some. It runs inside a
proximal loop, which adds ``delta / 2 ||p - anchor||^2``: every system is then regular, whatever the rank of J, and the
anchor moves until the addition is without effect. The first anchor is 0, so of several minimisers the one of least
norm comes out: tasks that are the same share alike. Where the active set method has far to go, one entry at a time
(nothing tells the bounds apart when J is close to singular), an interior point method takes over.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["capped_fill", "duality_gap", "face_is_regular", "minimise", "project", "stationary_point"]

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

EPS = float(np.finfo(np.float64).eps)
DELTA = 1e-9  # of the proximal term, over the largest diagonal entry: far above rounding, far below what matters
REGULAR = 1e-9  # curvature over the largest diagonal entry, below which a direction counts as flat
_GRADIENT_STEPS = 80
_PROXIMAL_ROUNDS = 12
_FAR = 40  # active set steps that are far to go
_CLOSE = 1e-12  # the gap at which the answer of the interior point method is taken
_KEPT = 8  # gradient steps without a change of face, after which the face is taken to be found


def project(v: FloatArray, lower: FloatArray, upper: FloatArray, total: float = 1.0) -> FloatArray:
    """The nearest point of {lower <= x <= upper, sum x = total}, which must not be empty; O(n log n).

    It is ``clip(v - t, lower, upper)``; the sum falls piecewise linearly with t, so t stands between two breakpoints.
    """
    n = len(v)
    points = np.concatenate([v - upper, v - lower])
    order = np.argsort(points, kind="stable")
    points = points[order]
    moving = np.cumsum(np.where(order < n, 1.0, -1.0))  # entries between their bounds, just after each point
    sums = upper.sum() - np.concatenate([[0.0], np.cumsum(moving[:-1] * np.diff(points))])
    k = max(int(np.searchsorted(-sums, -total, side="right")) - 1, 0)
    t = points[k] + ((sums[k] - total) / moving[k] if moving[k] > 0.5 else 0.0)
    x: FloatArray = np.clip(v - t, lower, upper)
    return _settled(x, lower, upper, total)


def _settled(x: FloatArray, lower: FloatArray, upper: FloatArray, total: float = 1.0) -> FloatArray:
    """`x` within its bounds and with the right sum, up to the last bits, which the entries between bounds take."""
    for _ in range(2):
        x = np.clip(x, lower, upper)
        inside = (x > lower) & (x < upper)
        if inside.any():
            x[inside] += (total - x.sum()) / np.count_nonzero(inside)
    settled: FloatArray = np.clip(x, lower, upper)
    return settled


def capped_fill(g: FloatArray, lower: FloatArray, upper: FloatArray) -> tuple[FloatArray, float]:
    """The minimiser of g'q over the capped simplex, and the g of the entry that was filled last."""
    order = np.argsort(g, kind="stable")
    room = (upper - lower)[order]
    before = np.concatenate([[0.0], np.cumsum(room)[:-1]])
    given = np.clip(1.0 - lower.sum() - before, 0.0, room)
    q = lower.copy()
    q[order] += given
    last = int(np.flatnonzero(given > 0)[-1]) if (given > 0).any() else 0
    return q, float(g[order[last]])


def duality_gap(g: FloatArray, p: FloatArray, lower: FloatArray, upper: FloatArray) -> float:
    """``g'p - min g'q``: no feasible point has an energy lower than E(p) by more than this; without cancellation.

    Against the level of the last filled entry all terms are at least 0: q is at its upper bound where g is below it,
    and at its lower bound where g is above.
    """
    q, level = capped_fill(g, lower, upper)
    return float(np.maximum((g - level) * (p - q), 0.0).sum())


def stationary_point(J: FloatArray, h: FloatArray, lower: FloatArray, upper: FloatArray) -> FloatArray | None:
    """The stationary point of E on the plane sum p = 1, if it is within the bounds; J must be regular there."""
    p = np.full(len(h), 1.0 / len(h))
    for _ in range(2):  # the second step refines the first
        p = p + _face_direction(J, J @ p - h, 0.0)
        if (p < lower - 1e-9).any() or (p > upper + 1e-9).any():
            return None
    return p if (p >= lower).all() and (p <= upper).all() else None


def face_is_regular(J: FloatArray, face: BoolArray, scale: float) -> bool:
    """Whether E curves, by more than rounding, along every direction within a face whose entries sum to 0."""
    k = int(np.count_nonzero(face))
    if k < 2:
        return True
    part = J[np.ix_(face, face)]
    rows = part.mean(axis=1)
    centred = part - rows[:, None] - rows[None, :] + rows.mean() + scale / k
    centred[np.diag_indices(k)] -= REGULAR * scale
    try:
        np.linalg.cholesky(centred)
    except np.linalg.LinAlgError:
        return False
    return True


def _face_direction(J: FloatArray, g: FloatArray, delta: float) -> FloatArray:
    """The d with sum d = 0 that minimises ``g'd + d'(J + delta I)d / 2``; the border holds the multiplier."""
    k = len(g)
    system = np.ones((k + 1, k + 1))
    system[:k, :k] = J
    system[np.arange(k), np.arange(k)] += delta
    system[k, k] = 0.0
    d: FloatArray = np.linalg.solve(system, np.append(g.mean() - g, 0.0))[:k]
    d -= d.mean()
    return d


class _Proximal:
    """E plus ``delta / 2 ||p - anchor||^2`` over the capped simplex, and its active set method."""

    def __init__(self, J: FloatArray, h: FloatArray, lower: FloatArray, upper: FloatArray, delta: float) -> None:
        self.J, self.h, self.lower, self.upper, self.delta = J, h, lower, upper, delta
        self.movable = upper > lower
        self.noise = 64 * EPS * (float(np.abs(J).max(initial=0.0)) + float(np.abs(h).max(initial=0.0)))
        self.steps = 0

    def gradient(self, p: FloatArray, anchor: FloatArray) -> FloatArray:
        g: FloatArray = self.J @ p - self.h + self.delta * (p - anchor)
        return g

    def inside(self, p: FloatArray) -> BoolArray:
        return (p > self.lower) & (p < self.upper)

    def descend(self, p: FloatArray, anchor: FloatArray, scale: float) -> FloatArray:
        """Accelerated projected gradients, restarted when they point uphill, until the face stays the same."""
        # No larger than the largest eigenvalue: the Frobenius norm, the row sums. A linear energy has none of its own.
        curvature = min(float(np.sqrt(np.square(self.J).sum())), float(np.abs(self.J).sum(axis=1).max()))
        L = max(curvature, 1e-3 * scale) + self.delta
        y, momentum, same = p, 1.0, 0
        for _ in range(_GRADIENT_STEPS):
            x = project(y - self.gradient(y, anchor) / L, self.lower, self.upper)
            same = same + 1 if (self.inside(x) == self.inside(p)).all() else 0
            if same == _KEPT:
                return x
            if (y - x) @ (x - p) > 0:
                momentum = 1.0
            following = (1.0 + np.sqrt(1.0 + 4.0 * momentum * momentum)) / 2.0
            y = x + (momentum - 1.0) / following * (x - p)
            p, momentum = x, following
        return p

    def solve(self, p: FloatArray, anchor: FloatArray, limit: int) -> FloatArray:
        """The minimiser, from a feasible point: a strictly convex problem, so each step lowers the energy."""
        free = self.inside(p)
        for _ in range(limit):
            self.steps += 1
            g = self.gradient(p, anchor)
            p, free, reached = self._within_face(p, g, free, anchor)
            if not reached:
                continue
            g = self.gradient(p, anchor)
            freed = self._released(p, g, free)
            if not freed.any():
                break
            free = self._free_with(p, g, free, freed)
        return _settled(p, self.lower, self.upper)

    def _within_face(
        self, p: FloatArray, g: FloatArray, free: BoolArray, anchor: FloatArray
    ) -> tuple[FloatArray, BoolArray, bool]:
        """To the minimiser on the free entries; or towards it as far as the bounds let, which fixes some."""
        if np.count_nonzero(free) < 2:
            return p, free, True
        d = np.zeros_like(p)
        d[free] = _face_direction(self.J[np.ix_(free, free)], g[free], self.delta)
        with np.errstate(divide="ignore", invalid="ignore"):
            room = np.where(d > 0, (self.upper - p) / d, np.where(d < 0, (self.lower - p) / d, np.inf))
        share = float(room.min())
        if share >= 1.0:
            return np.clip(p + d, self.lower, self.upper), free, True
        stopped = p + max(share, 0.0) * d
        blocked = room <= share
        stopped[blocked] = np.where(d[blocked] > 0, self.upper[blocked], self.lower[blocked])
        # The projection of the whole step fixes many entries at once; it counts only if it is at least as good.
        bent = project(p + d, self.lower, self.upper)
        if self._change(p, g, bent) < self._change(p, g, stopped):
            return bent, self.inside(bent), False
        return stopped, free & ~blocked, False

    def _change(self, p: FloatArray, g: FloatArray, x: FloatArray) -> float:
        d = x - p
        return float(g @ d + 0.5 * (d @ (self.J @ d) + self.delta * (d @ d)))

    def _released(self, p: FloatArray, g: FloatArray, free: BoolArray) -> BoolArray:
        """The entries at a bound that the energy would leave; without a free entry a pair that exchanges mass."""
        low, high = (p <= self.lower) & ~free & self.movable, (p >= self.upper) & ~free & self.movable
        freed = np.zeros(len(p), dtype=bool)
        if free.any():
            level = float(g[free].mean())
            freed[low] = g[low] < level - self.noise
            freed[high] = g[high] > level + self.noise
        elif low.any() and high.any():
            into, out_of = np.where(low, g, np.inf).argmin(), np.where(high, g, -np.inf).argmax()
            freed[[into, out_of]] = g[into] < g[out_of] - self.noise
        return freed

    def _free_with(self, p: FloatArray, g: FloatArray, free: BoolArray, freed: BoolArray) -> BoolArray:
        """The free entries and those of `freed` that move off their bounds; one alone, the worst, always does."""
        if not free.any():
            return freed
        worst = np.where(freed, np.abs(g - g[free].mean()), -1.0).argmax()
        for _ in range(3):
            if np.count_nonzero(freed) == 1:
                break
            both = free | freed
            d = np.zeros_like(p)
            d[both] = _face_direction(self.J[np.ix_(both, both)], g[both], self.delta)
            wrong = freed & (((p <= self.lower) & (d <= 0)) | ((p >= self.upper) & (d >= 0)))
            if not wrong.any():
                return both
            freed = freed & ~wrong
        single = free.copy()
        single[worst] = True
        return single


def _interior_point(J: FloatArray, h: FloatArray, lower: FloatArray, upper: FloatArray) -> FloatArray:
    """A primal-dual path to the minimiser, a gap of `_CLOSE` away from it or as near as rounding lets."""
    n = len(h)
    p: FloatArray = lower + (1.0 - lower.sum()) / (upper.sum() - lower.sum()) * (upper - lower)
    above, below = p - lower, upper - p
    if min(float(above.min()), float(below.min())) <= 0.0:  # an entry that cannot move: there is no inside
        return p
    tol = _CLOSE / 16
    centre = max(float(np.ptp(J @ p - h)), tol) * float(np.minimum(above, below).mean())
    z, w, level = centre / above, centre / below, 0.0
    for _ in range(40):
        g = J @ p - h
        complement = float(above @ z + below @ w)
        if complement < tol and float(np.abs(g + level - z + w).max()) < tol:
            break
        aim = 0.1 * complement / (2 * n)
        system = J.copy()
        system[np.diag_indices(n)] += z / above + w / below
        sides = np.stack([aim / above - aim / below - g - level, np.ones(n)], axis=1)
        solved = np.linalg.solve(system, sides)
        change = float(solved[:, 0].sum() / solved[:, 1].sum())
        d = solved[:, 0] - change * solved[:, 1]
        moves = (d, -d, aim / above - z - z / above * d, aim / below - w + w / below * d)
        share = min(_share(value, move) for value, move in zip((above, below, z, w), moves, strict=True))
        p, level, z, w = p + share * d, level + share * change, z + share * moves[2], w + share * moves[3]
        above, below = p - lower, upper - p
    return _settled(p, lower, upper)


def _share(value: FloatArray, move: FloatArray) -> float:
    """How much of a move keeps positive numbers positive."""
    falling = move < 0
    return min(1.0, 0.995 * float((-value[falling] / move[falling]).min())) if falling.any() else 1.0


def minimise(
    J: FloatArray, h: FloatArray, lower: FloatArray, upper: FloatArray, start: FloatArray | None = None
) -> FloatArray:
    """The minimiser of E over the capped simplex, which must not be empty.

    J and h should be centred (rows of J and entries of h that sum to 0) and of order 1: neither changes the minimiser,
    and both keep digits. `start` is a point to begin at, for a problem that is like one already solved.
    """
    n = len(h)
    scale = max(float(np.ptp(h)), float(np.abs(J).max(initial=0.0)))
    size = float(np.abs(np.diag(J)).max(initial=0.0))
    if scale == 0.0:  # nothing to choose by: as even as the bounds let
        return project(np.full(n, 1.0 / n), lower, upper)
    work = _Proximal(J, h, lower, upper, DELTA * size + 1e-14 * scale)
    anchor, limit = np.zeros(n), 50 + 10 * n
    p = project(np.full(n, 1.0 / n) if start is None else start, lower, upper)
    if start is None:
        p = work.descend(p, anchor, scale)
    p = work.solve(p, anchor, min(limit, _FAR))
    left = duality_gap(J @ p - h, p, lower, upper)
    if work.steps >= _FAR:
        inner = _interior_point(J, h, lower, upper)
        gap = duality_gap(J @ inner - h, inner, lower, upper)
        if gap <= max(_CLOSE, left):
            p, left = inner, gap
        if gap <= _CLOSE:
            return _on_bounds(J, h, lower, upper, p)
        p = work.solve(p, anchor, limit)
        left = duality_gap(J @ p - h, p, lower, upper)
    for _ in range(_PROXIMAL_ROUNDS):
        closer = work.solve(p, p, limit)
        gap = duality_gap(J @ closer - h, closer, lower, upper)
        if gap < left:
            p = closer
        if gap > 0.5 * left:  # only rounding is left
            break
        left = gap
    return p


def _on_bounds(J: FloatArray, h: FloatArray, lower: FloatArray, upper: FloatArray, p: FloatArray) -> FloatArray:
    """`p` with what is next to a bound on it, as far as the gap stays small: an interior point is never on one."""
    for near in (1e-6, 1e-8, 1e-10, 1e-12):
        moved = np.where(p - lower < near, lower, np.where(upper - p < near, upper, p))
        moved = _settled(moved, lower, upper)
        if duality_gap(J @ moved - h, moved, lower, upper) <= _CLOSE:
            return moved
    return p
