"""Certified bounds on the eigenvalues that curvature and guarantees rest on.

``R = Delta^-1/2 C Delta^-1/2`` with ``Delta = diag C``. Everything named `low` is at most, everything named `high` at
least, the exact quantity: each carries slack for the rounding of products, scaling and eigenvalue solver.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import chain, combinations, islice
from math import comb

import numpy as np
import numpy.typing as npt

from ._quadratic import Quadratic

__all__ = ["Bound", "Spectrum"]

FloatArray = npt.NDArray[np.float64]
IndexArray = npt.NDArray[np.int64]
EPS = float(np.finfo(np.float64).eps)
SUBSETS = 20_000  # so many principal submatrices are enumerated for an exact sparse eigenvalue
BATCH_NUMBERS = 1 << 20


@dataclass(frozen=True)
class Bound:
    """A certified number and the way it was found."""

    value: float
    how: str


class Spectrum:
    """Bounds over the rows that may be picked (those with a budget and C_ii > 0).

    Parameters
    ----------
    quadratic : Quadratic
    rows : (m,) int array
        The rows that may be picked.
    codes : (m,) int array
        Their groups.
    eigen_limit : int
        With more rows than this no (m, m) matrix is made: ``C >= ridge I`` alone is used.
    """

    def __init__(self, quadratic: Quadratic, rows: IndexArray, codes: IndexArray, eigen_limit: int) -> None:
        seen = quadratic.diagonal[rows] > 0  # a row with C_ii = 0 changes no value
        self.rows, self.codes = rows[seen], codes[seen]
        self.quadratic, self.n = quadratic, int(seen.sum())
        self.has_matrix = self.n <= eigen_limit
        self._solved: dict[str, tuple[float, float, float]] = {}
        self.diagonal = quadratic.diagonal[self.rows]
        # A dot product of d terms is right to d eps times the norms; scaling to R adds a few roundings.
        self.entry_error = EPS * ((quadratic.width or 0) + 16)
        self.largest = float(self.diagonal.max(initial=0.0)) * (1 + self.entry_error)

    @cached_property
    def C(self) -> FloatArray:
        q = self.quadratic
        if self.n == q.n:
            return q.matrix
        return np.array(q.columns(self.rows)[self.rows])

    @cached_property
    def R(self) -> FloatArray:
        root = np.sqrt(self.diagonal)
        R = self.C / root
        R /= root[:, None]
        np.fill_diagonal(R, 1.0)
        return R

    def _matrix(self, which: str) -> tuple[FloatArray, float]:
        """R or C, and what an entry of it may be wrong by."""
        return (self.R, self.entry_error) if which == "R" else (self.C, self.entry_error * self.largest)

    def _ends(self, which: str) -> tuple[float, float, float]:
        """Smallest and largest computed eigenvalue of R or C, and what they may be wrong by."""
        if which not in self._solved:
            low, high = float(self.diagonal.min()), float(self.diagonal.max())
            if which == "C" and low == high:  # C is a multiple of R
                smallest, largest, slack = self._ends("R")
                self._solved["C"] = (high * smallest, high * largest, 2 * high * slack)
            else:
                matrix, entry_error = self._matrix(which)
                values = np.linalg.eigvalsh(matrix)
                slack = self.n * (entry_error + 4 * EPS * float(np.abs(values).max()))
                self._solved[which] = (float(values[0]), float(values[-1]), slack)
        return self._solved[which]

    @property
    def indefinite(self) -> bool:
        """Whether C has a negative eigenvalue beyond the rounding of K's type: only where the caller gave K itself."""
        if self.quadratic.has_rows or not self.has_matrix or self.n == 0:
            return False
        smallest, _, slack = self._ends("R")
        stored = (self.quadratic.rank_tol / 4) ** 2  # the rounding of K's own type
        return smallest + slack + 4 * self.n * stored < 0

    def low(self, which: str, k: int | None = None) -> Bound:
        """A lower bound on the smallest eigenvalue of every k x k principal submatrix of "R" or "C" (None: of all)."""
        k = self.n if k is None else min(k, self.n)
        if k == 0 or (k == 1 and which == "R"):
            return Bound(1.0 if which == "R" else float(self.diagonal.min(initial=np.inf)), "one row")
        if k == 1:
            return Bound(float(self.diagonal.min()) * (1 - self.entry_error), "smallest diagonal entry")
        found = [self._ridge_low(which)]
        if self.has_matrix:
            found.append(Bound(self._ends(which)[0] - self._ends(which)[2], "smallest eigenvalue"))
            if k == 2 and which == "R":
                found.append(Bound(1 - self._coherence() - 2 * self.entry_error, "largest correlation"))
            elif k < self.n and comb(self.n, k) <= SUBSETS:
                found.append(Bound(self._enumerated(which, k), f"exact: all {comb(self.n, k)} submatrices"))
        best = max(found, key=lambda bound: bound.value)
        return best if best.value > 0 else Bound(0.0, "none above 0: singular up to rounding")

    def _ridge_low(self, which: str) -> Bound:
        ridge = self.quadratic.ridge * (1 - 4 * EPS)
        if not self.quadratic.has_rows and self.has_matrix:
            ridge = 0.0  # K's own eigenvalues are at hand, and it may not be quite semidefinite
        how = "ridge" if which == "C" else "ridge over the largest diagonal entry"
        if not self.has_matrix and ridge > 0:
            given = "" if self.quadratic.has_rows else "; K taken as positive semidefinite"
            how += f" (no eigenvalues: {self.n} rows are more than eigen_limit{given})"
        return Bound(ridge if which == "C" else ridge / self.largest * (1 - 4 * EPS), how)

    def high(self, which: str, k: int) -> float:
        """An upper bound on the largest eigenvalue of every k x k principal submatrix."""
        k = min(k, self.n)
        trace = float(k) if which == "R" else float(np.sort(self.diagonal)[self.n - k :].sum()) * (1 + self.entry_error)
        if not self.has_matrix or k == 0:
            return trace
        return min(trace, self._ends(which)[1] + self._ends(which)[2])

    @property
    def coherence_within(self) -> float:
        """mu_w: an upper bound on \\|R_ij\\| over pairs inside one group."""
        if not self.has_matrix:
            return 1.0
        return min(1.0, self._coherence(within=True) + self.entry_error)

    def _coherence(self, within: bool = False) -> float:
        largest = 0.0
        for code in np.unique(self.codes) if within else (None,):
            members = np.flatnonzero(self.codes == code) if within else np.arange(self.n)
            block = np.abs(self.R[np.ix_(members, members)] if within else self.R)
            np.fill_diagonal(block, 0.0)
            largest = max(largest, float(block.max(initial=0.0)))
        return largest

    def _enumerated(self, which: str, k: int) -> float:
        matrix, entry_error = self._matrix(which)
        sets, smallest = combinations(range(self.n), k), np.inf
        while batch := list(islice(sets, max(1, BATCH_NUMBERS // (k * k)))):
            members = np.fromiter(chain.from_iterable(batch), np.int64).reshape(-1, k)
            values = np.linalg.eigvalsh(matrix[members[:, :, None], members[:, None, :]])
            smallest = min(smallest, float(values[:, 0].min()))
        size = 1.0 if which == "R" else self.largest
        return smallest - k * (entry_error + 4 * k * EPS * size)

    def sparse_from_above(self, k: int) -> float | None:
        """An estimate of the smallest eigenvalue over k x k submatrices of R: that of one bad submatrix, so from above.

        The truncated power method (Yuan and Zhang 2013) on a multiple of I minus R, from the most correlated pair.
        """
        k = min(k, self.n)
        if not self.has_matrix or k < 2:
            return None
        off = np.abs(self.R - np.eye(self.n))
        i, j = np.unravel_index(int(np.argmax(off)), off.shape)
        x = np.zeros(self.n)
        x[i], x[j] = 1.0, -np.sign(self.R[i, j]) or 1.0
        shift, best = float(k), np.inf
        for _ in range(30):
            y = shift * x - self.R @ x
            kept = np.argsort(-np.abs(y), kind="stable")[:k]
            values, vectors = np.linalg.eigh(self.R[np.ix_(kept, kept)])
            if values[0] >= best - 1e-12:
                break
            best = max(0.0, float(values[0]))
            x = np.zeros(self.n)
            x[kept] = vectors[:, 0]
        return best
