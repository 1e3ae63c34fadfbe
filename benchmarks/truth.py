"""Orthogonal matching pursuit in float64 at full size: what the picks of every competitor are held against.

The rules of docs/design.md, section 2, kept apart from the package: an orthonormal basis grown by Gram-Schmidt, twice,
and correlations from the residual by one product over all rows a pick. `python benchmarks/truth.py` holds it against
the slower specification, ``pysubmod._reference``, on small problems.
"""

from __future__ import annotations

import numpy as np

TOL, RANK_TOL = 1e-12, 1e-10  # docs/design.md: what is a tie, and what is a dependent row


def float64_picks(G, target, k, *, groups=None, budgets=None, nonneg=False, gains=False):
    """The first k picks in order, fewer where nothing helps any more.

    Parameters
    ----------
    G : (n, d) array
        Taken as it is stored; the arithmetic is float64.
    groups, budgets : (n,) and (P,) int arrays, optional
        Codes and budgets of groups.
    nonneg : bool
        Weights >= 0 (SciPy's nnls on the triangular factor).
    gains : bool
        Rank by the exact gain of free weights, as order-recursive least squares does, instead of by correlation.
    """
    wide, t = np.asarray(G, float), np.asarray(target, float)
    n = len(wide)
    groups = np.zeros(n, int) if groups is None else np.asarray(groups)
    left = np.array([k]) if budgets is None else np.array(budgets)
    norms2 = np.einsum("ij,ij->i", wide, wide)
    root, schur = np.sqrt(norms2), norms2.copy()
    state = _Fit(wide, t, k, nonneg)
    c = wide @ t
    E0 = max(np.linalg.norm(t), np.max(np.abs(c) / np.where(root > 0, root, np.inf), initial=0.0))
    barred = np.zeros(n, bool)
    while len(state.picks) < k:
        E = max(E0, np.abs(state.weights) @ root[state.picks])
        h = c if nonneg else np.abs(c)
        open_ = (h > TOL * E * root) & (left[groups] > 0) & ~barred
        open_[state.picks] = False
        if not open_.any():
            break
        score, unit = h, E * root
        if gains:
            stretch = np.sqrt(np.maximum(schur, RANK_TOL * norms2))
            score, unit = h / stretch, E * root / stretch
        i = int(np.argmax(open_ & (score + TOL * unit >= np.max((score - TOL * unit)[open_]))))
        if not state.add(i, norms2[i], h[i], TOL / 2 * E * root[i]):
            barred[i] = True
            continue
        barred[:] = False
        left[groups[i]] -= 1
        if gains:
            c, deflated = (wide @ np.stack([state.residual, state.Q[state.rank - 1]], axis=1)).T
            schur -= deflated**2
        else:
            c = wide @ state.residual
    return np.array(state.picks, np.int64)


class _Fit:
    """Least squares on the picks, or with weights >= 0: G_S' = Q' R, Q (rank, d) with orthonormal rows."""

    def __init__(self, wide, target, k, nonneg):
        self.wide, self.target, self.nonneg = wide, target, nonneg
        self.Q, self.R, self.rank = np.empty((min(k, wide.shape[1]), wide.shape[1])), np.zeros((k, k)), 0
        self.picks, self.weights, self.residual = [], np.empty(0), target.copy()

    def add(self, i, norm2, rise, enough):
        """Refit with row i too; False, and nothing changed, where it depends on the others or gains nothing."""
        row, j, known = self.wide[i].copy(), len(self.picks), self.Q[: self.rank]
        column = np.zeros(len(self.R))
        for _ in range(2):  # what the first sweep leaves of a near-dependent row is not orthogonal yet
            part = known @ row
            row -= part @ known
            column[: self.rank] += part
        height2 = float(row @ row)
        independent = height2 > RANK_TOL * norm2 and self.rank < len(self.Q)
        if not independent and not self.nonneg:
            return False
        rank = self.rank
        if independent:
            column[rank] = np.sqrt(height2)
            self.Q[rank] = row / column[rank]
            rank += 1
        self.R[:, j] = column
        weights, residual = self._solve([*self.picks, i], rank)
        if self.nonneg and rise * weights[-1] / 2 <= enough * weights[-1]:
            return False
        self.picks.append(i)
        self.weights, self.residual, self.rank = weights, residual, rank
        return True

    def _solve(self, picks, rank):
        R, rhs = self.R[:rank, : len(picks)], self.Q[:rank] @ self.target
        if not self.nonneg:
            residual = self.target - rhs @ self.Q[:rank]
            residual -= (self.Q[:rank] @ residual) @ self.Q[:rank]
            return np.linalg.solve(R, rhs), residual
        from scipy.optimize import nnls

        weights = nnls(R, rhs)[0]
        positive = weights > 0
        weights[positive] = np.linalg.lstsq(R[:, positive], rhs, rcond=None)[0]  # to full accuracy
        return weights, self.target - weights @ self.wide[picks]


def agreement(truth, picks, ordered=True):
    """How `picks` compare with the true ones, as a dict: how many are in common, and how long the order is the same."""
    truth, picks = [int(i) for i in truth], [int(i) for i in picks]
    lead = next((j for j, (a, b) in enumerate(zip(truth, picks, strict=False)) if a != b), min(len(truth), len(picks)))
    common = len(set(truth) & set(picks))
    same = set(truth) == set(picks) and (truth == picks or not ordered)
    return {"same": same, "common": common, "of": len(truth), "lead": lead if ordered else None}


def main():
    from problems import families, gaussian

    from pysubmod._reference import omp_partition_reference

    checked = 0
    for seed in range(3):
        for name, (G, target, groups) in (families(96, 64, seed) | {"gaussian": gaussian(96, 64, seed)}).items():
            for nonneg in (False, True):
                for codes, budgets in ((groups, np.full(8, 3)), (np.zeros_like(groups), np.array([24]))):
                    expected = omp_partition_reference(G, target, codes, budgets, nonneg=nonneg).indices.tolist()
                    got = float64_picks(G, target, 24, groups=codes, budgets=budgets, nonneg=nonneg).tolist()
                    checked += 1
                    if got != expected:
                        raise SystemExit(f"{name}, seed {seed}, nonneg={nonneg}: {got} is not {expected}")
            expected = omp_partition_reference(G, target, np.zeros(96, int), [24], nonneg=False, rule="greedy").indices
            got, checked = float64_picks(G, target, 24, gains=True), checked + 1
            if got.tolist() != expected.tolist():
                raise SystemExit(f"{name}, seed {seed}, gains: {got} is not {expected}")
    print(f"{checked} pursuits, all as the specification has them")


if __name__ == "__main__":
    main()
