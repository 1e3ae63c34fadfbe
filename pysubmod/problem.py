"""The problem as an object: what a selection is worth, whoever made it."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from ._backends import core
from ._device_parts import (
    DeviceRows,
    as_device_gram,
    as_device_linear,
    as_device_rows,
    as_device_target,
    as_device_targets,
)
from ._validation import (
    Rows,
    as_flag,
    as_gram,
    as_indices,
    as_norm,
    as_rows,
    as_scalar,
    as_target,
    as_targets,
    as_threads,
    on_device,
)

__all__ = ["GradientMatching"]

FloatArray = npt.NDArray[np.float64]


class GradientMatching:
    """Match a target gradient by a weighted sum of few rows.

    ``f(S) = max <w, c> - 1/2 w' C w`` over weights w on S (``w >= 0`` if `nonneg`), with ``C = G G' + ridge * I`` and
    ``c = G t + tilt/2 * diag(G G')``. With ``tilt=0`` that is half of ``||t||^2`` minus half of the smallest ``||t -
    G_S' w||^2 + ridge * ||w||^2``. The weights of a support are exact: a Cholesky factor and, for ``w >= 0``, the
    active set method of Lawson and Hanson (1974), all in float64 whatever the type of G.

    Parameters
    ----------
    G : (n, d) array, or mapping {group: (n_g, d) array}
        One candidate's gradient per row: NumPy float16, float32 or float64 in any layout, memory-mapped, a torch
        tensor (bfloat16 too), or anything with ``__array__`` or ``__dlpack__``. Read in place, never modified. Integers
        are copied to float64. An array on a CUDA device (torch, CuPy, or anything with ``__dlpack__`` or
        ``__cuda_array_interface__``; its rows contiguous) stays there: the pursuit runs on that device, and `cpu` makes
        the copy that all else needs.
    target : (d,) or (m, d) array
        The gradient to match; the mean of m rows is taken. With a G on a device it may be there or on the host.
    ridge : float, default 0
        Added to the diagonal of the Gram matrix; in units of a squared row norm.
    nonneg : bool, default True
        Whether weights must be >= 0.
    tilt : float, default 0
        eta of ``c = G t + eta/2 diag(G G')``: PartitionSel's utility in the variable v = eta * w.

    Raises
    ------
    TypeError, ValueError
        Naming the argument: wrong shapes, number types that are not real floating point, negative or non-finite
        parameters, non-finite targets. Non-finite rows are found when they are first read.

    Examples
    --------
    >>> import numpy as np, pysubmod
    >>> G = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    >>> problem = pysubmod.GradientMatching(G, target=np.array([1.0, 1.0]))
    >>> problem.value([0, 2]), problem.weights([0, 2])
    (1.0, array([1., 1.]))
    """

    def __init__(self, G: Any, target: Any, ridge: float = 0.0, nonneg: bool = True, tilt: float = 0.0) -> None:
        self._rows: Rows | DeviceRows
        self._vector: Any  # the target or c: float64, or a DeviceArray
        if on_device(G):
            self._rows = as_device_rows(G)
            self._vector = as_device_target(target, self._rows)
        else:
            self._rows = as_rows(G)
            self._vector = as_target(target, self._rows.shape[1])
        self._is_gram = False
        self._target_norm = math.nan  # the core computes it from the target
        self._set(ridge, nonneg, tilt)

    def _set(self, ridge: float, nonneg: bool, tilt: float) -> None:
        self.ridge = as_scalar("ridge", ridge, minimum=0.0)
        self.nonneg = as_flag("nonneg", nonneg)
        self.tilt = as_scalar("tilt", tilt)

    @classmethod
    def _separate(
        cls, G: Any, targets: Any, ridge: float = 0.0, nonneg: bool = True, tilt: float = 0.0
    ) -> list[GradientMatching]:
        """The problem of each of the (m, d) targets; they differ in nothing else, and share the rows."""
        rows: Rows | DeviceRows
        if on_device(G):
            rows = as_device_rows(G)
            vectors = as_device_targets(targets, rows)
        else:
            rows = as_rows(G)
            vectors = as_targets(targets, rows.shape[1])
        problems = []
        for vector in vectors:
            problem = cls.__new__(cls)
            problem._rows, problem._vector = rows, vector
            problem._is_gram, problem._target_norm = False, math.nan
            problem._set(ridge, nonneg, tilt)
            problems.append(problem)
        return problems

    @classmethod
    def from_gram(
        cls,
        K: Any,
        c: Any,
        ridge: float = 0.0,
        nonneg: bool = True,
        tilt: float = 0.0,
        target_norm: float | None = None,
    ) -> GradientMatching:
        """Make the problem from ``K = G G'`` and ``c = G t`` alone.

        Parameters
        ----------
        K : (n, n) array, float32 or float64
            Finite, symmetric, positive semidefinite. Without a ridge, a direction that K cannot see and c rewards
            makes the objective infinite; that is an error when a solver meets it. On a CUDA device it stays there (as
            G does), and is looked at when it is solved.
        c : (n,) array
            ``G t``, before the tilt. With a K on a device it may be there or on the host.
        ridge, nonneg, tilt
            As above.
        target_norm : float, optional
            ``||t||``, from which residual norms follow. Without it they are not known, and `tol` cannot be used.
        """
        problem = cls.__new__(cls)
        if on_device(K):
            problem._rows = as_device_gram(K)
            problem._vector = as_device_linear(c, problem._rows)
        else:
            gram, problem._vector = as_gram(K, c)
            _check_gram(gram)
            problem._rows = Rows((gram,), gram.dtype.name, gram.shape)
        problem._is_gram = True
        problem._target_norm = math.nan if target_norm is None else as_norm("target_norm", target_norm)
        problem._set(ridge, nonneg, tilt)
        return problem

    @property
    def n(self) -> int:
        """Number of candidates."""
        return self._rows.shape[0]

    @property
    def d(self) -> int | None:
        """Length of a gradient; None if only a Gram matrix was given."""
        return None if self._is_gram else self._rows.shape[1]

    @property
    def route(self) -> str:
        """How the core reads the problem: "dense" (rows) or "gram"."""
        return "gram" if self._is_gram else "dense"

    @property
    def device(self) -> str:
        """Where its arrays are: "cpu", or "cuda:0" (say)."""
        return self._rows.array.place if isinstance(self._rows, DeviceRows) else "cpu"

    def cpu(self) -> GradientMatching:
        """The same problem on a copy in host memory; itself if its arrays are there."""
        if not isinstance(self._rows, DeviceRows):
            return self
        matrix = self._rows.array.to_host("K" if self._is_gram else "G")
        vector = self._vector
        if not isinstance(vector, np.ndarray):
            vector = vector.to_host("c" if self._is_gram else "target")
        if not self._is_gram:
            return GradientMatching(matrix, vector, self.ridge, self.nonneg, self.tilt)
        norm = None if math.isnan(self._target_norm) else self._target_norm
        return GradientMatching.from_gram(matrix, vector, self.ridge, self.nonneg, self.tilt, norm)

    def value(self, S: Any) -> float:
        """f(S): the best objective with weights on the rows `S` (distinct row numbers, in any order)."""
        return float(self._evaluate(S)["objective"])

    def weights(self, S: Any) -> FloatArray:
        """The weights that attain f(S), aligned with `S`. Rows that depend linearly on earlier ones get 0."""
        weights: FloatArray = self._evaluate(S)["weights"]
        return weights

    def residual_norm(self, S: Any) -> float | None:
        """``||t - G_S' w||`` at those weights; None if the target is not known."""
        norm = float(self._evaluate(S)["residual_norm"])
        return None if math.isnan(norm) else norm

    def gains(self, S: Any) -> FloatArray:
        """f(S + i) - f(S) for every row i, exactly (a refit for each row that might help); 0 on S; shape (n,)."""
        gains: FloatArray = self._evaluate(S, with_gains=True)["gains"]
        return gains

    def _evaluate(self, S: Any, with_gains: bool = False) -> dict[str, Any]:
        members = as_indices(S, self.n, "S")
        result: dict[str, Any] = core.evaluate(
            **self._core_matrix(),
            vector=self._vector,
            members=members,
            with_gains=with_gains,
            options=self._core_options(),
            n_threads=as_threads(None),
        )
        return result

    def _restricted(self, rows: npt.NDArray[np.int64], nonneg: bool | None = None) -> GradientMatching:
        """The problem of some of its rows, ascending (the same arrays where that is all), its sign rule or another."""
        part = GradientMatching.__new__(GradientMatching)
        part._rows, part._vector = self._rows, self._vector
        part._is_gram, part._target_norm = self._is_gram, self._target_norm
        part._set(self.ridge, self.nonneg if nonneg is None else nonneg, self.tilt)
        if len(rows) == self.n:
            return part
        if self._is_gram:
            gram = self._rows.blocks[0][np.ix_(rows, rows)]
            part._rows = Rows((gram,), self._rows.dtype, (len(rows), len(rows)))
            part._vector = self._vector[rows]
            return part
        blocks, first = [], 0
        for block in self._rows.blocks:
            blocks.append(block[rows[(rows >= first) & (rows < first + len(block))] - first])
            first += len(block)
        part._rows = Rows(tuple(blocks), self._rows.dtype, (len(rows), self._rows.shape[1]))
        return part

    def _on_device(self, rows: DeviceRows) -> GradientMatching:
        """The same problem with its matrix on a device; `rows` are a copy of its own."""
        moved = copy.copy(self)
        moved._rows = rows
        return moved

    def _core_matrix(self) -> dict[str, Any]:
        return {"blocks": list(self._rows.blocks), "is_gram": self._is_gram, "target_norm": self._target_norm}

    def _core_options(self) -> dict[str, Any]:
        return {"ridge": self.ridge, "tilt": self.tilt, "nonneg": self.nonneg}

    def __repr__(self) -> str:
        what = f"K {self._rows.dtype}" if self._is_gram else f"d={self.d} {self._rows.dtype}"
        return f"GradientMatching(n={self.n}, {what}, ridge={self.ridge:g}, nonneg={self.nonneg}, tilt={self.tilt:g})"


def _check_gram(k: npt.NDArray[Any]) -> None:
    """Refuse a K with NaN or infinity, or one that is not symmetric (up to 1e-5 or 1e-10 of sqrt(K_ii K_jj))."""
    fault = core.gram_fault(k, 1e-5 if k.dtype == np.float32 else 1e-10)
    if fault is None:
        return
    i, j = fault
    for row, column in ((i, j), (j, i)):
        if not np.isfinite(k[row, column]):
            raise ValueError(f"K: row {row} contains NaN or infinity; leave such a candidate out of K and c")
    raise ValueError(f"K: not symmetric: K[{i}, {j}] = {k[i, j]} but K[{j}, {i}] = {k[j, i]}")
