"""What a solver returns where nobody waits for it: `DeviceSelection`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .result import Selection, Status

__all__ = ["DeviceSelection"]

# What a negative status means, as csrc/cuda/gram_task.hpp numbers what can be wrong with a problem.
_FAULTS = (
    "a row that may be picked, or the target (K or c), contains NaN or infinity",
    "a diagonal entry of K is negative, or the rows are too short or too long: rescale",
    "K is not symmetric",
    "the tilt is too large: the linear term overflows",
    "c rewards a row of length 0: the objective is unbounded",
    "the target (or c, or the tilt) is too large for the lengths of the rows: rescale",
    "the objective is unbounded: pass ridge > 0, or tilt = 0 with c = G t",
    "K is not positive semidefinite",
    "its numbers are no longer finite; nothing may write to them during a solve",
    "the active set method did not end; please report this problem",
)


@dataclass(frozen=True, eq=False)
class DeviceSelection:
    """Picks and weights as arrays on the device, in order on the caller's stream; the host has not waited for them.

    Of one problem, or of B problems that were solved together; then every array has a first axis of length B.

    Attributes
    ----------
    indices : (k,) or (B, k) int64 array of the caller's library
        Row numbers in pick order; -1 beyond `n_selected`. k is the most that any of the problems can pick.
    weights : (k,) or (B, k) float64 array
        Refitted weights; 0 beyond `n_selected`.
    n_selected : () or (B,) int64 array
    objective : () or (B,) float64 array
    status : () or (B,) int64 array
        0 budget, 1 tolerance, 2 no_gain, 3 rank_deficient, 4 exhausted, 5 stopped, as `Status` explains them. Negative:
        the problem is faulty, nothing was selected, and `result` raises the error.
    """

    indices: Any
    weights: Any
    n_selected: Any
    objective: Any
    status: Any
    # Of the host's arrays of one problem, with its number: the selection. And how arrays come to the host.
    _finish: Callable[..., Selection] = field(repr=False)
    _to_host: Callable[[Any], Any] = field(repr=False)

    def result(self) -> Selection | list[Selection]:
        """Wait, and return the `Selection`, or a list of them; under the stream of the call, as any use of the arrays.

        What stayed on the device is not in it: `gains` are NaN, `residual_norms` is None.

        Raises
        ------
        ValueError
            A problem is faulty: NaN in a row, an unbounded objective. A solve with ``output="selection"`` names the
            row.
        """
        names = ("indices", "weights", "n_selected", "objective", "status")
        arrays = {name: np.asarray(self._to_host(getattr(self, name))) for name in names}
        if arrays["status"].ndim == 0:
            return self._one(0, arrays)
        return [self._one(p, {name: array[p] for name, array in arrays.items()}) for p in range(len(arrays["status"]))]

    def _one(self, p: int, arrays: dict[str, Any]) -> Selection:
        status, count = int(arrays["status"]), int(arrays["n_selected"])
        if status < 0:
            what = _FAULTS[min(-status, len(_FAULTS)) - 1]
            raise ValueError(f"problem: {what}; problem {p} of the call (output='selection' names the row)")
        return self._finish(
            p,
            indices=arrays["indices"][:count],
            weights=arrays["weights"][:count],
            objective=float(arrays["objective"]),
            status=list(Status)[status],
        )
