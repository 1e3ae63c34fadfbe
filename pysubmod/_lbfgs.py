"""L-BFGS for a smooth convex function on an open convex set: a line search that steps back from what is infeasible."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

__all__ = ["lbfgs"]

FloatArray = npt.NDArray[np.float64]
MEMORY = 60
PATIENCE = 6  # steps over which progress is judged


def lbfgs(
    function: Callable[[FloatArray], tuple[float, FloatArray] | None],
    x: FloatArray,
    max_steps: int,
    tolerance: float,
) -> None:
    """Minimise `function` from `x` (Nocedal and Wright 2006, algorithm 7.5, with Armijo steps).

    `function` returns (value, gradient), or None where it is not defined; it keeps what it has seen. The end is when
    the value falls by less than `tolerance` (relative) a step. SciPy's L-BFGS-B gives up where a value is infinite;
    here such a step is halved.
    """
    start = function(x)
    if start is None:
        return
    value, gradient = start
    pairs: list[tuple[FloatArray, FloatArray]] = []
    history = [value]
    for _ in range(max_steps):
        direction = _direction(gradient, pairs)
        slope = float(gradient @ direction)
        if not slope < 0.0:
            return
        step, found = 1.0, None
        for _ in range(25):
            trial = function(x + step * direction)
            if trial is not None and trial[0] <= value + 1e-4 * step * slope:
                found = trial
                break
            if trial is None:
                step *= 0.5
            else:  # the minimum of the parabola through what is known
                step *= min(0.5, max(0.1, -slope * step / (2 * (trial[0] - value - slope * step))))
        if found is None:
            if not pairs:
                return
            pairs = []  # once more along the gradient
            continue
        change, bend = step * direction, found[1] - gradient
        if change @ bend > 1e-10 * np.linalg.norm(change) * np.linalg.norm(bend):
            pairs = [*pairs[1 - MEMORY :], (change, bend)]
        x, (value, gradient) = x + change, found
        history.append(value)
        if len(history) > PATIENCE and history[-1 - PATIENCE] - value < PATIENCE * tolerance * abs(value):
            return
    return


def _direction(gradient: FloatArray, pairs: list[tuple[FloatArray, FloatArray]]) -> FloatArray:
    direction = -gradient
    if not pairs:
        return direction * min(1.0, 0.1 / max(float(np.linalg.norm(gradient)), 1e-300))
    shares = []
    for change, bend in reversed(pairs):
        share = (change @ direction) / (change @ bend)
        shares.append(share)
        direction = direction - share * bend
    change, bend = pairs[-1]
    direction = direction * ((change @ bend) / (bend @ bend))
    for (change, bend), share in zip(pairs, reversed(shares), strict=True):
        direction = direction + change * (share - (bend @ direction) / (change @ bend))
    return np.asarray(direction)
