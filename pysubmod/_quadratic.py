"""A problem as numbers, C and c in float64 NumPy: what certificates, diagnostics and the baselines compute with.

Nothing here comes from the compiled core, so what is built on it checks the core's answers independently.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ._validation import widen

if TYPE_CHECKING:
    from .problem import GradientMatching

__all__ = ["Quadratic"]

FloatArray = npt.NDArray[np.float64]
IndexArray = npt.NDArray[np.int64]
CHUNK_BYTES = 32 << 20  # of float64 rows that are widened at a time


class Quadratic:
    """``<w, c> - 1/2 w' C w`` over a problem's rows: ``C = K + ridge I``, ``c`` with the tilt in it.

    Of rows it holds the caller's array and widens a piece at a time; ``matrix`` is made when it is first asked for.

    Attributes
    ----------
    n : int
    c : (n,) float64 array
    diagonal : (n,) float64 array
        Of C.
    ridge : float
    nonneg : bool
    bounded : bool
        ``c = G t`` exactly, so that no direction of C's null space is rewarded.
    target_norm : float or None
    rank_tol : float
        A row is dependent on others when its Schur complement is at most this share of the diagonal (docs/design.md).

    `names` are the caller's numbers of the rows, for messages.
    """

    def __init__(self, problem: GradientMatching, names: IndexArray | None = None) -> None:
        self._gram = widen(problem._rows.blocks[0], problem._rows.dtype) if problem._is_gram else None
        self.rank_tol = 1e-10
        self._blocks: list[tuple[npt.NDArray[Any], str]] = []
        self.n = problem.n
        self.ridge, self.nonneg = problem.ridge, problem.nonneg
        self.bounded = not problem._is_gram and problem.tilt == 0.0
        if self._gram is not None:
            squares = np.ascontiguousarray(self._gram.diagonal())
            linear = problem._vector
            norm = problem._target_norm
            # K's own rounding, amplified by rows at the tolerance, is about eps over the tolerance.
            self.rank_tol = 4 * float(np.sqrt(np.finfo(problem._rows.blocks[0].dtype).eps))
        else:
            dtypes = problem._rows.dtype.split("+")
            for block in problem._rows.blocks:
                half = block.dtype == np.uint16  # bfloat16 as its bits
                name = "bfloat16" if half else block.dtype.name
                assert name in dtypes
                self._blocks.append((block, name))
            squares, linear = np.empty(self.n), np.empty(self.n)
            for start, rows in self._pieces():
                squares[start : start + len(rows)] = np.einsum("ij,ij->i", rows, rows)
                linear[start : start + len(rows)] = rows @ problem._vector
            norm = float(np.linalg.norm(problem._vector))
        self.target_norm = None if np.isnan(norm) else norm
        self.squares = squares
        self.diagonal = squares + self.ridge
        self.c: FloatArray = linear + problem.tilt / 2 * squares
        for name, vector in (("diagonal", self.diagonal), ("c", self.c)):
            if not np.isfinite(vector).all():
                row = int(np.argmin(np.isfinite(vector)))
                row = row if names is None else int(names[row])
                raise ValueError(f"G: row {row} has a NaN or infinite entry, or its {name} leaves float64")

    def _pieces(self) -> Any:
        """(first row number, float64 rows), a piece at a time."""
        first = 0
        for block, name in self._blocks:
            step = max(1, CHUNK_BYTES // (8 * max(1, block.shape[1])))
            for start in range(0, len(block), step):
                yield first + start, widen(block[start : start + step], name)
            first += len(block)

    def rows(self, members: IndexArray) -> FloatArray:
        """The rows of G in float64; only where the problem has rows."""
        width = self._blocks[0][0].shape[1]
        out, first = np.empty((len(members), width)), 0
        for block, name in self._blocks:
            here = (members >= first) & (members < first + len(block))
            out[here] = widen(block[members[here] - first], name)
            first += len(block)
        return out

    @property
    def has_rows(self) -> bool:
        return self._gram is None

    @property
    def width(self) -> int | None:
        """d, or None where only a Gram matrix is known."""
        return None if self._gram is not None else int(self._blocks[0][0].shape[1])

    @cached_property
    def matrix(self) -> FloatArray:
        """C as an (n, n) matrix."""
        if self._gram is not None:
            c = (self._gram + self._gram.T) / 2
        else:
            c = np.empty((self.n, self.n))
            for start, rows in self._pieces():
                for other, columns in self._pieces():
                    if other <= start:
                        product = rows @ columns.T
                        c[start : start + len(rows), other : other + len(columns)] = product
                        c[other : other + len(columns), start : start + len(rows)] = product.T
        c[np.diag_indices(self.n)] = self.diagonal
        c.setflags(write=False)
        return c

    def columns(self, members: IndexArray) -> FloatArray:
        """C[:, members], shape (n, k), in one pass over the rows."""
        if "matrix" in self.__dict__:
            return self.matrix[:, members]
        if self._gram is not None:
            out = self._gram[:, members].astype(np.float64)
        else:
            chosen, out = self.rows(members), np.empty((self.n, len(members)))
            for start, rows in self._pieces():
                out[start : start + len(rows)] = rows @ chosen.T
        out[members, np.arange(len(members))] += self.ridge
        return out

    def block(self, members: IndexArray) -> FloatArray:
        """C[members, members], from those rows alone."""
        if "matrix" in self.__dict__:
            return np.array(self.matrix[np.ix_(members, members)])
        if self._gram is not None:
            part = self._gram[np.ix_(members, members)]
            out = (part + part.T) / 2
        else:
            chosen = self.rows(members)
            out = chosen @ chosen.T
        out[np.diag_indices(len(members))] = self.diagonal[members]
        return out

    def times(self, x: FloatArray) -> FloatArray:
        """C x for x of shape (n,), or (n, m), in one pass over the rows a product with G' and one with G."""
        if "matrix" in self.__dict__:
            return self.matrix @ x
        if self._gram is not None:
            return self._gram @ x + self.ridge * x
        combined = np.zeros((self._blocks[0][0].shape[1], *x.shape[1:]))
        for start, rows in self._pieces():
            combined += rows.T @ x[start : start + len(rows)]
        out = self.ridge * x
        for start, rows in self._pieces():
            out[start : start + len(rows)] += rows @ combined
        return out
