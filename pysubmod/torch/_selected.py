"""What a selector returns, and how well it matches."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ..problem import GradientMatching
from ..result import Selection

__all__ = ["SelectedBatch", "check_finite", "matching"]


@dataclass(frozen=True, eq=False)
class SelectedBatch:
    """The rows to train on.

    Attributes
    ----------
    batch : as the pool's
        The selected rows of the pool, in the pool's order (not that of the picks), without the column of `groups`.
    indices : (k,) int64 tensor
        Their row numbers in the pool, ascending; on the CPU.
    weights : (k,) float32 tensor
        What to multiply their losses with before *summing*: ``(losses * weights).sum()``. Uniform ones are 1/k. On
        the device of the pool's losses.
    groups : (k,) array
        Their labels.
    diagnostics : dict
        ``relative_residual`` of the refitted weights and ``cosine`` of the batch with its `weights`, both against the
        target; ``conflicts``, pairs of picks with a negative inner product (within groups, if targets are per group);
        ``counts``, picks of each label;
        ``status`` of the solver; ``staleness`` of the target in steps; ``step``; ``seconds_capture`` (gradients and
        products), ``seconds_select`` (the solver). Without gradients the first three are None. With
        `unit_norm` and for updates these are of the rows that were matched.
    selection : Selection
        The solver's answer: picks in their order and its own weights.
    """

    batch: Any
    indices: Tensor
    weights: Tensor
    groups: npt.NDArray[Any]
    diagnostics: dict[str, Any]
    selection: Selection

    def __len__(self) -> int:
        return len(self.indices)


def check_finite(values: Tensor, what: str, where: str) -> None:
    """One sample that is NaN or infinite makes all products so: say which one it is."""
    wrong = (~values.isfinite()).nonzero().flatten()
    if len(wrong):
        row = int(wrong[0])
        raise ValueError(f"compute_loss: the {what} of row {row} of {where} is NaN or infinite; leave such samples out")


def matching(
    problem: GradientMatching,
    rows: npt.NDArray[np.int64],
    weights: npt.NDArray[np.float64],
    scale: npt.NDArray[np.float64],
    selection: Selection,
) -> dict[str, Any]:
    """How well the picks match, in the rows of the problem."""
    host = problem.cpu()
    K = np.asarray(host._rows.blocks[0][np.ix_(rows, rows)], np.float64)
    c, norm = np.asarray(host._vector)[rows], host._target_norm
    own = np.divide(weights, scale[rows], out=np.zeros(len(rows)), where=scale[rows] > 0)
    length = math.sqrt(max(float(own @ K @ own), 0.0))
    relative = selection.relative_residuals
    return {
        "relative_residual": None if relative is None else float(relative[-1]),
        "cosine": float(own @ c) / (length * norm) if length > 0 and norm > 0 else None,
        "conflicts": int((np.triu(K, 1) < 0).sum()),
    }
