"""A pursuit between its two halves: arguments that have been checked, and results that become a `Selection`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..matroid import PartitionMatroid
from ..problem import GradientMatching
from ..result import Selection, Status

__all__ = ["Call", "selection_of"]


@dataclass(frozen=True)
class Call:
    """A pursuit whose arguments have been checked."""

    problems: Sequence[GradientMatching]  # that differ in nothing but the target
    matroid: PartitionMatroid
    options: dict[str, Any]
    mask: npt.NDArray[np.bool_] | None
    start: npt.NDArray[np.int64]
    device: int | None  # None: the CPU
    n_threads: int
    listener: Callable[..., bool] | None
    started: float

    @property
    def config(self) -> dict[str, Any]:
        """What a selection remembers."""
        from .. import __version__

        problem = self.problems[0]
        return self.options | {
            "budgets": dict(zip(self.matroid.labels, self.matroid.budgets.tolist(), strict=True)),
            "n": problem.n,
            "d": problem.d,
            "dtype": problem._rows.dtype,
            "candidates": problem.n if self.mask is None else int(self.mask.sum()),
            "initial": self.start.tolist(),
            "version": __version__,
        }


def selection_of(
    result: dict[str, Any], matroid: PartitionMatroid, config: dict[str, Any], own: dict[str, Any], seconds: float
) -> Selection:
    """One of the core's results as a selection; `own` is what stats say beside what all results have."""
    if not math.isfinite(result["objective"]):  # what was read was finite when it was read first
        name = "K" if config["d"] is None else "G"
        raise ValueError(f"{name}: is no longer finite; nothing may write to it during a solve")
    norm = float(result["target_norm"])
    known = not math.isnan(norm)
    in_core = result["seconds_prepare"] + result["seconds_pursuit"] + result["seconds_swap"]
    stats: dict[str, Any] = {
        "route": result["route"],
        "passes": result["passes"],
        "seconds": {
            "total": seconds,
            "check": seconds - in_core,
            "prepare": result["seconds_prepare"],
            "pursuit": result["seconds_pursuit"],
        },
        "target_norm": norm if known else None,
        "n_filled": result["n_filled"],
    } | own
    if config["refine"] is not None:
        stats["n_swaps"], stats["swap_local_optimum"] = result["n_swaps"], result["swap_local_optimum"]
        stats["seconds"]["swap"] = result["seconds_swap"]
    return Selection(
        indices=result["indices"],
        weights=result["weights"],
        gains=result["gains"],
        objective=float(result["objective"]),
        residual_norms=result["residual_norms"] if known else None,
        counts=matroid._counts(result["indices"]),
        status=Status(result["status"]),
        stats=stats,
        config=config,
    )
