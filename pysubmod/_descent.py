"""The minimisation of the block bound over w0, D and the prices together.

In (w0, D, log price) the smoothed bound has no term that explodes where R - D becomes singular, which is where the
optimum lies; (q, D), in which it is convex, is the same up to a smooth change of variables.
"""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt

from ._lbfgs import lbfgs
from ._relaxation import Node, State, smooth, try_factor, try_inverse

__all__ = ["improve"]

FloatArray = npt.NDArray[np.float64]
IndexArray = npt.NDArray[np.int64]

TOLERANCE = 1e-6  # relative progress a step, below which a temperature is done
STEPS = 200


class _Enough(Exception):
    """The target is reached, or the time is up."""


class _Coordinates:
    """Variables in which the Hessian at a state is roughly the identity."""

    def __init__(self, node: Node, state: State, inverse: FloatArray) -> None:
        n = len(node.c)
        self.node, self.state = node, state
        A, diagonal = node.R - state.D, np.diagonal(state.D)
        # Hessian by w if every row were chosen: A + A D^-1 A, with D's diagonal for D.
        hessian = A + (A / np.maximum(diagonal, 1e-3 * diagonal.mean())) @ A
        size = np.trace(hessian) / n
        tried = (try_factor(hessian + jitter * size * np.eye(n)) for jitter in (1e-12, 1e-9, 1e-6, 1e-3))
        root = next((root for root in tried if root is not None), np.eye(n))
        unroot = try_inverse(root)
        self.unroot = np.eye(n) if unroot is None else unroot
        self.blocks: list[tuple[IndexArray, FloatArray, tuple[IndexArray, IndexArray]]] = []
        for members in node.blocks():
            # The barrier's Hessian on a block is (A^-1)_BB twice: its inverse root makes that the identity.
            values, vectors = np.linalg.eigh(inverse[members[:, :, None], members[:, None, :]])
            values = np.maximum(values, np.maximum(1e-12 * values[:, -1:], 1e-300))
            self.blocks.append((members, vectors / np.sqrt(values)[:, None, :], np.tril_indices(members.shape[1])))
        self.length = n + sum(len(b) * len(t[0]) for b, _, t in self.blocks) + len(state.price)

    def state_at(self, x: FloatArray) -> State:
        n = len(self.node.c)
        w = self.state.w + self.unroot.T @ x[:n]
        D, first = self.state.D.copy(), n
        for members, factor, (a, b) in self.blocks:
            last = first + len(members) * len(a)
            X = np.zeros((len(members), members.shape[1], members.shape[1]))
            X[:, a, b] = X[:, b, a] = x[first:last].reshape(len(members), len(a))
            change = factor @ X @ factor.transpose(0, 2, 1)
            D[members[:, :, None], members[:, None, :]] += (change + change.transpose(0, 2, 1)) / 2
            first = last
        return State(w, D, self.state.price * np.exp(np.clip(x[first:], -30.0, 30.0)))

    def gradient(self, state: State, by_w: FloatArray, by_D: FloatArray, by_price: FloatArray) -> FloatArray:
        parts = [self.unroot @ by_w]
        for members, factor, (a, b) in self.blocks:
            X = factor.transpose(0, 2, 1) @ by_D[members[:, :, None], members[:, None, :]] @ factor
            parts.append(((1.0 + (a != b)) * X[:, a, b]).ravel())
        parts.append(by_price * state.price)
        return np.concatenate(parts)


def improve(node: Node, state: State, temperature: float, target: float, deadline: float) -> tuple[State, int]:
    """Minimise the smoothed bound; the state with the least bound that was met, and the number of evaluations."""
    inverse = try_inverse(node.R - state.D)
    if inverse is None or not (np.diagonal(inverse) > 0.0).all():
        return state, 0  # next to the cone's boundary R - D can be singular to working precision
    coordinates, blocks = _Coordinates(node, state, inverse), node.blocks()
    best, least, evaluations = state, np.inf, 0

    def function(x: FloatArray) -> tuple[float, FloatArray] | None:
        nonlocal best, least, evaluations
        if time.perf_counter() > deadline:
            raise _Enough
        evaluations += 1
        here = coordinates.state_at(x)
        found = smooth(node, here, temperature, blocks)
        if found is None:
            return None
        if found.hard < least:
            best, least = here, found.hard
            if least < target:
                raise _Enough
        return found.value, coordinates.gradient(here, found.by_w, found.by_D, found.by_price)

    try:
        lbfgs(function, np.zeros(coordinates.length), STEPS, TOLERANCE)
    except _Enough:
        return best, evaluations
    return best, evaluations
