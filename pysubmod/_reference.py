"""The pursuit of docs/design.md, section 2, in plain float64 NumPy: the specification as code.

Every factor is made from scratch and nothing is carried from one pick to the next but support and weights,
so it is slow and easy to check. It shares no code with the compiled core, which is tested against it.
Vectors of weights have length n here and are zero off the support.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

TOL = 1e-12
RANK_TOL = 1e-10


@dataclass(frozen=True)
class ReferenceResult:
    """What a pursuit returns; the arrays are aligned with `indices`, which is in pick order."""

    indices: np.ndarray
    weights: np.ndarray
    gains: np.ndarray
    objective: float
    residual_norms: np.ndarray
    status: str


class _Rows:
    """C = G G' + ridge I and c = G t + tilt/2 diag(G G'), by QR of the rows.

    C_PP = A'A for A = [G_P'; sqrt(ridge) I] is never formed: R of A = QR shows a Schur complement down to
    eps^2 C_ii, where a Cholesky factor of C_PP shows it down to eps C_ii.
    """

    rank_tol = RANK_TOL

    def __init__(self, G, target, ridge=0.0, tilt=0.0):
        self.G, self.target, self.ridge = np.asarray(G, float), np.asarray(target, float), ridge
        norms2 = np.einsum("ij,ij->i", self.G, self.G)
        self.diagonal = norms2 + ridge
        self.linear = tilt / 2 * norms2  # what c has beyond G t
        self.c = self.G @ self.target + self.linear
        self.target_norm = np.linalg.norm(self.target)
        self.bounded = tilt == 0

    def _qr(self, P):
        """The QR factors of A, its columns divided by their norms sqrt(C_jj)."""
        A = np.vstack([self.G[P].T, np.sqrt(self.ridge) * np.eye(len(P))])
        return np.linalg.qr(A / np.sqrt(self.diagonal[P]))

    def solve(self, P, rhs):
        """C_PP^-1 rhs."""
        R, root = self._qr(P)[1], np.sqrt(self.diagonal[P])
        return np.linalg.solve(R, np.linalg.solve(R.T, rhs / root)) / root

    def weights(self, P):
        """C_PP^-1 c_P: least squares for the part G t of c."""
        Q, R = self._qr(P)
        fit = np.linalg.solve(R, Q[: len(self.target)].T @ self.target) / np.sqrt(self.diagonal[P])
        return fit + self.solve(P, self.linear[P])

    def project(self, P, i):
        """C_PP^-1 C_Pi, and the Schur complement of C_ii given C_PP divided by C_ii."""
        R, p = self._qr([*P, i])[1], len(P)
        v = np.linalg.solve(R[:p, :p], R[:p, p]) * np.sqrt(self.diagonal[i] / self.diagonal[P])
        return v, R[p, p] ** 2 if len(R) > p else 0.0

    def correlations(self, w):
        """g = c - C w."""
        return self.G @ (self.target - self.G.T @ w) + self.linear - self.ridge * w

    def residual_norm(self, w):
        return np.linalg.norm(self.target - self.G.T @ w)


class _Gram:
    """C = K + ridge I and c + tilt/2 diag(K), by Cholesky factors of C scaled to a unit diagonal."""

    bounded = False  # nothing says that c lies in the range of K

    def __init__(self, K, c, ridge=0.0, tilt=0.0, target_norm=None):
        K = np.asarray(K)
        # Rows at the tolerance amplify K's own rounding to about eps / tolerance.
        eps = np.finfo(K.dtype).eps if K.dtype.kind == "f" and K.dtype.itemsize < 8 else np.finfo(float).eps
        self.rank_tol = 4 * float(np.sqrt(eps))
        self.K, self.plain, self.target_norm = K.astype(float), np.asarray(c, float), target_norm
        self.C = self.K + ridge * np.eye(len(K))
        self.diagonal = self.C.diagonal()
        self.c = self.plain + tilt / 2 * self.K.diagonal()
        if (self.diagonal < 0).any():
            raise ValueError("K must be positive semidefinite: its diagonal has a negative entry")

    def _block(self, P, Q):
        return self.C[np.ix_(P, Q)] / np.sqrt(np.multiply.outer(self.diagonal[P], self.diagonal[Q]))

    def solve(self, P, rhs):
        L, root = np.linalg.cholesky(self._block(P, P)), np.sqrt(self.diagonal[P])
        return np.linalg.solve(L.T, np.linalg.solve(L, rhs / root)) / root

    def weights(self, P):
        return self.solve(P, self.c[P])

    def project(self, P, i):
        L = np.linalg.cholesky(self._block(P, P))
        y = np.linalg.solve(L, self._block(P, [i])[:, 0])
        return np.linalg.solve(L.T, y) * np.sqrt(self.diagonal[i] / self.diagonal[P]), 1 - y @ y

    def correlations(self, w):
        return self.c - self.C @ w

    def residual_norm(self, w):
        if self.target_norm is None:
            return np.nan
        return np.sqrt(max(self.target_norm**2 - 2 * w @ self.plain + w @ self.K @ w, 0.0))


def _gain(before, after):
    """f(after) - f(before) for states (P, w, g) with g_P = 0; a difference of two values would cancel."""

    def slope(P, w, g):
        return np.where(np.isin(np.arange(len(w)), P), 0.0, g)

    return (slope(*before) + slope(*after)) @ (after[1] - before[1]) / 2


def _best(score, unit, allowed):
    """The lowest allowed index such that no score is surely larger."""
    return int(np.argmax(allowed & (score + TOL * unit >= np.max((score - TOL * unit)[allowed]))))


class _Refit:
    """Steps 3 and 4: how a row enters the active set P, and what follows from it."""

    def __init__(self, problem, nonneg, pool):
        self.problem, self.nonneg, self.root = problem, nonneg, np.sqrt(problem.diagonal)
        if (self.lift(problem.c)[pool & (self.root == 0)] > 0).any():
            raise ValueError("unbounded problem: a row with C_ii = 0 can raise the objective for ever")
        some = pool & (self.root > 0)
        self.E0 = self.E = max([problem.target_norm or 0.0, *np.abs(problem.c[some]) / self.root[some]])

    def rescale(self, w):
        """E for the weights w: the size of the terms that a correlation is the difference of."""
        self.E = max(self.E0, np.abs(w) @ self.root)

    def lift(self, g):
        """h, the rate at which each row can raise the objective."""
        return g if self.nonneg else np.abs(g)

    def helps(self, g):
        return self.lift(g) > TOL * self.E * self.root

    def enter(self, P, w, g, i):
        """P, w and g once i has entered, or None where it cannot."""
        P, w, rank_tol = list(P), w.copy(), self.problem.rank_tol
        while True:
            v, schur = self.problem.project(P, i) if self.root[i] > 0 else (np.zeros(len(P)), 0.0)
            if schur > rank_tol:
                break
            if not (self.nonneg and (v * self.root[P] > np.sqrt(rank_tol) * self.root[i]).any()):
                noise = 10 * np.sqrt(rank_tol) * self.E * self.root[i]
                if self.lift(g)[i] > noise and not self.problem.bounded:
                    raise ValueError(f"unbounded problem: row {i} can raise the objective for ever")
                return None
            steps = np.divide(w[P], v, out=np.full(len(P), np.inf), where=v > 0)
            w[i] += steps.min()
            self._move(P, w, v, steps)
        P.append(i)
        while True:
            z = self.problem.weights(P)
            if not self.nonneg or (z > 0).all():
                w[P] = z
                return P, w, self.problem.correlations(w)
            steps = np.where(z > 0, np.inf, 0.0)
            np.divide(w[P], w[P] - z, out=steps, where=(z <= 0) & (w[P] > 0))
            self._move(P, w, w[P] - z, steps)

    @staticmethod
    def _move(P, w, v, steps):
        """Move w_P along -v until its first member is zero, and drop that one from P."""
        j = int(np.argmin(steps))
        w[P] = np.maximum(w[P] - steps[j] * v, 0.0)
        w[P.pop(j)] = 0.0

    def gains(self, i, w, gain):
        """Whether an entry of i gained more than rounding can make of two like rows that trade places."""
        return gain > TOL / 2 * self.E * self.root[i] * abs(w[i])

    def settle(self, S, P, w, g):
        """w >= 0: let members of S without weight enter P while that raises the objective."""
        skipped = set()
        for _ in range(100 + 10 * len(S)):
            waiting = [j for j in S if j not in P and j not in skipped and self.helps(g)[j]]
            if not waiting or not self.nonneg:
                return P, w, g
            slope = g[waiting] / self.root[waiting]
            j = waiting[_best(slope, np.full(len(slope), self.E), np.ones(len(slope), bool))]
            entered = self.enter(P, w, g, j)
            if entered and self.gains(j, entered[1], _gain((P, w, g), entered)):
                P, w, g = entered
            else:
                skipped.add(j)
        raise RuntimeError("the active set method did not end")

    def add(self, S, P, w, g, i):
        """P, w, g and the gain of the refit on S + i, or None where i cannot enter or gains nothing."""
        entered = self.enter(P, w, g, i)
        if entered is None:
            return None
        after = self.settle([*S, i], *entered)
        gain = _gain((P, w, g), after)
        # With free weights a row that gains nothing now (of `initial`) may matter after the next one.
        return (*after, gain) if self.gains(i, after[1], gain) or not self.nonneg else None

    def scores(self, rule, S, P, w, g, eligible):
        """Step 1: scores, their units, and the rows that scoring has barred (greedy)."""
        unit = self.E * (self.root if rule == "omp" else np.ones(len(g)))
        barred, useful = np.zeros(len(g), bool), eligible & self.helps(g)
        score = np.where(useful, self.lift(g), 0.0)
        if rule == "normalized":
            score[useful] /= self.root[useful]
        elif rule == "greedy":
            for i in np.flatnonzero(useful):
                added = self.add(S, P, w, g, i)
                barred[i] = added is None
                score[i] = 0.0 if barred[i] else np.sqrt(2 * added[3])
                unit[i] /= np.sqrt(max(self.problem.project(P, i)[1], self.problem.rank_tol))
        return score, unit, barred

    def heights(self, rule, ranking, g):
        """Scores and units of rows that do not help, for `pick="random"` with `fill`."""
        root = np.ones(len(g)) if rule == "omp" else self.root
        height = np.divide(self.lift(g), root, out=np.zeros(len(g)), where=root > 0)
        return height * (ranking == "signed"), self.E * (self.root if rule == "omp" else np.ones(len(g)))


def _shortlist(classes, groups, left):
    """Of each group the best rows, as many as it has budget left, in row order: a heaviest base of what is left.

    `classes` are (which rows, scores, units), the best class first.
    """
    rows = []
    for p, room in enumerate(left):
        for open_, score, unit in classes:
            rest = open_ & (groups == p)
            while rest.any() and room > 0:
                i = _best(score, unit, rest)
                rows.append(i)
                rest[i], room = False, room - 1
    return sorted(rows)


def _draw(rows, seed, counter):
    """Any of the rows, by number `counter` of the SplitMix64 stream `seed`."""
    mask = 2**64 - 1
    x = (seed + (counter + 1) * 0x9E3779B97F4A7C15) & mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return rows[((x ^ (x >> 31)) * len(rows)) >> 64]


def _pursue(problem, groups, budgets, *, nonneg=True, rule="omp", tol=0.0, candidates=None, initial=None,
            fill=False, release_zeros=False, pick="argmax", seed=0, ranking="relu"):  # fmt: skip
    n = len(problem.c)
    groups, budgets = np.asarray(groups, int).reshape(n), np.asarray(budgets, int)
    allowed = np.ones(n, bool) if candidates is None else np.asarray(candidates, bool).reshape(n)
    initial = [] if initial is None else [int(i) for i in initial]

    def room(S):
        return budgets - np.bincount(groups[S], minlength=len(budgets))

    if rule not in ("omp", "normalized", "greedy"):
        raise ValueError(f"unknown rule {rule!r}")
    if pick not in ("argmax", "random") or ranking not in ("relu", "signed"):
        raise ValueError(f"unknown pick {pick!r} or ranking {ranking!r}")
    if tol > 0 and problem.target_norm is None:
        raise ValueError("tol needs target_norm")
    if len(set(initial)) < len(initial) or (room(initial) < 0).any():
        raise ValueError("initial repeats a row or has more of a group than its budget")
    pool = allowed & (budgets[groups] > 0)
    pool[initial] = True
    refit = _Refit(problem, nonneg, pool)
    S: list[int] = []
    P: list[int] = []
    w, records = np.zeros(n), {}
    g = problem.correlations(w)

    def record(i, gain):
        S.append(i)
        records[i] = gain, problem.residual_norm(w)

    for i in initial:
        refit.rescale(w)
        added = refit.add(S, P, w, g, i) if refit.helps(g)[i] or not nonneg else None
        P, w, g, gain = added or (P, w, g, 0.0)
        record(i, gain)

    status, filling, grew, value, n_draws = None, False, True, 0.0, 0
    while status is None:
        if release_zeros and grew:
            S = [j for j in S if j in P]
        grew = False
        refit.rescale(w)
        eligible = allowed & (room(S)[groups] > 0)
        eligible[S] = False
        if not room(S).any():
            status = "budget"
        elif not eligible.any():
            status = "exhausted"
        elif tol > 0 and problem.residual_norm(w) <= tol * problem.target_norm:
            status = "tolerance"
        elif filling:
            record(_best(refit.lift(g), refit.E * refit.root, eligible), 0.0)
        else:
            score, unit, barred = refit.scores(rule, S, P, w, g, eligible)
            added = None
            while added is None and (open_ := (score > 0) & ~barred).any() | (pick == "random" and fill):
                if pick == "argmax":
                    i = _best(score, unit, open_)
                else:
                    classes = [(open_, score, unit)]
                    if fill:
                        classes.append((eligible & ~open_, *refit.heights(rule, ranking, g)))
                    i = _draw(_shortlist(classes, groups, room(S)), seed, n_draws)
                    n_draws += 1
                added = refit.add(S, P, w, g, i) if open_[i] or not nonneg else None
                if added is None and pick == "random" and fill:
                    added = P, w, g, 0.0
                barred[i] = added is None
            if added is not None:
                P, w, g, gain = added
                record(i, gain)
                grew, value = value + gain > value, value + gain
            elif fill:
                filling = True
            else:
                status = "rank_deficient" if barred.any() else "no_gain"

    w, g = _refined(problem, P, w, g, nonneg)
    gains, norms = np.array([records[i] for i in S], float).reshape(-1, 2).T
    return ReferenceResult(np.array(S, np.int64), w[S], gains, float(w @ (problem.c + g) / 2), norms, status)


def _refined(problem, P, w, g, nonneg):
    """w corrected by its own optimality residual g_P."""
    better = w.copy()
    better[P] += problem.solve(P, g[P])
    if nonneg and (better < 0).any():
        return w, g
    return better, problem.correlations(better)


def omp_partition_reference(G, target, groups, budgets, *, ridge=0.0, tilt=0.0, **options):
    """Select rows of `G` (n, d) whose weighted sum matches `target` (d,), within a budget for every group.

    Parameters
    ----------
    groups : int array (n,)
        Group codes in 0..P-1.
    budgets : int array (P,)
    ridge, tilt : float
    **options
        nonneg=True, rule="omp", tol=0.0, fill=False, release_zeros=False, pick="argmax", seed=0, ranking="relu": as in
        docs/design.md; candidates=None: mask of the rows that may be picked; initial=None: rows selected from the
        start.

    Returns
    -------
    ReferenceResult

    Raises
    ------
    ValueError
        If the problem is unbounded, or the arguments contradict each other.
    """
    return _pursue(_Rows(G, target, ridge, tilt), groups, budgets, **options)


def gram_partition_reference(K, c, groups, budgets, *, ridge=0.0, tilt=0.0, target_norm=None, **options):
    """The same pursuit given K = G G' (n, n) and the linear term c (n,) before the tilt.

    `target_norm` is ||t|| where c = G t; without it the residual norms are NaN and `tol` cannot be used.
    Everything else is as in `omp_partition_reference`.
    """
    return _pursue(_Gram(K, c, ridge, tilt, target_norm), groups, budgets, **options)


def refit_reference(C, c, nonneg):
    """The weights on a given support and their value, the exact maximum of <w, c> - 1/2 w'Cw.

    `C` (k, k) includes the ridge. A row that depends on others may get weight 0. Raises ValueError if the
    problem is unbounded, RuntimeError if the weights found do not satisfy the optimality conditions.
    """
    problem, k = _Gram(C, c), len(c)
    refit = _Refit(problem, nonneg, np.ones(k, bool))
    P: list[int] = []
    w, g = np.zeros(k), problem.c
    for i in range(0 if nonneg else k):
        P, w, g = refit.enter(P, w, g, i) or (P, w, g)
    P, w, g = refit.settle(range(k), P, w, g)
    w, g = _refined(problem, P, w, g, nonneg)
    # What a dependent row that cannot enter leaves behind is noise only by the measure of RANK_TOL.
    slack = np.where(np.isin(np.arange(k), P), 1e-9, 10 * np.sqrt(problem.rank_tol)) * refit.E * refit.root
    if (np.where(w != 0, np.abs(g), refit.lift(g)) > slack).any():
        raise RuntimeError("the weights found are not optimal")
    return w, float(w @ (problem.c + g) / 2)
