"""Sums of divergences over positions, from log-probabilities in log space; behind `pysubmod.similarity`."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from ._validation import widen

__all__ = ["LN2", "expected", "observed"]

FloatArray = npt.NDArray[np.float64]
LN2 = math.log(2.0)
_BLOCK = 1 << 19  # log-probabilities that are worked on at a time: 4 MB
_OFF = 0.1  # probabilities may sum to 1 +- this: bfloat16 is no worse, logits are
_FLOOR = -1e30  # in place of log 0: e to it is 0, and differences stay finite


def observed(name: str, array: npt.NDArray[Any], dtype: str, b: int) -> FloatArray:
    """Sums over D_B of ``log p_B - log p_A``, in row b."""
    values = widen(array, dtype)
    if not np.isfinite(values).all():
        model, sample = np.argwhere(~np.isfinite(values))[0].tolist()
        raise ValueError(
            f"{name}: sample {sample} has the log-probability {values[model, sample]} under model {model}; kind 'pmi'"
            " needs finite ones: give the model a floor, or leave the sample out"
        )
    sums = np.zeros((len(values), len(values)))
    sums[b] = (values[b] - values).sum(axis=1)
    return sums


def expected(name: str, array: npt.NDArray[Any], dtype: str, b: int, kind: str, over: str) -> FloatArray:
    """Sums over positions of the divergence of p_B and each p_A, in row b; or of each pair, in the upper triangle."""
    n, positions, V = array.shape
    sums = np.zeros((n, n))
    pairs = list(itertools.combinations(range(n), 2)) if over == "all" else [(b, a) for a in range(n) if a != b]
    step = max(1, _BLOCK // (n * V))
    for begin in range(0, positions, step):
        held = [_normalised(name, array[a, begin : begin + step], dtype, a, begin) for a in range(n)]
        for one, other in pairs:
            if kind == "jsd":
                sums[one, other] += _jensen_shannon(*held[one], *held[other])
            else:
                sums[one, other] += _kullback_leibler(name, *held[one], held[other][0], one, other)
    return sums


def _normalised(
    name: str, block: npt.NDArray[Any], dtype: str, model: int, begin: int
) -> tuple[FloatArray, FloatArray]:
    """log p and p of one model, in float64, p summing to 1 over the last axis."""
    logs = np.array(widen(block, dtype))
    top = logs.max(axis=1)
    if not (np.abs(top) < np.inf).all():  # NaN, infinity, or log 0 everywhere
        row = begin + int(np.flatnonzero(~(np.abs(top) < np.inf))[0])
        raise ValueError(f"{name}: position {row} of model {model} has a log-probability that is NaN or infinite")
    with np.errstate(under="ignore"):
        shifted = np.exp(logs - top[:, None])
        mass = top + np.log(shifted.sum(axis=1))
    wrong = ~(np.abs(mass) < _OFF)
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise ValueError(
            f"{name}: the probabilities at position {begin + row} of model {model} sum to exp({mass[row]:.4g}), not 1;"
            " are these logits? Pass their log_softmax"
        )
    np.maximum(logs - mass[:, None], _FLOOR, out=logs)
    with np.errstate(under="ignore"):
        return logs, np.exp(logs)


def _jensen_shannon(logs: FloatArray, probs: FloatArray, other_logs: FloatArray, other_probs: FloatArray) -> float:
    """The sum over positions. With d = log p - log q, each token adds its mean probability times a number of 0 .. ln 2,

        ln 2 - log(1 + e^-|d|) - |d| e^-|d| / (1 + e^-|d|),

    which is the same as 1/2 p log(p/m) + 1/2 q log(q/m), without the differences of large logarithms.
    """
    apart = np.abs(logs - other_logs)
    np.maximum(np.negative(apart, out=apart), -1e4, out=apart)  # in place from here on: the time goes into memory
    with np.errstate(under="ignore"):
        ratio = np.exp(apart)
        apart *= ratio
        ratio += 1.0
        apart /= ratio
        apart -= np.log(ratio, out=ratio)
        apart += LN2
        share = 0.5 * float(np.vdot(probs, apart) + np.vdot(other_probs, apart))
    return max(share, 0.0)


def _kullback_leibler(
    name: str, logs: FloatArray, probs: FloatArray, other_logs: FloatArray, one: int, other: int
) -> float:
    """The sum over positions of KL(p || q)."""
    if ((other_logs <= _FLOOR) & (probs > 0)).any():
        raise ValueError(
            f"{name}: model {other} gives probability 0 to what model {one} holds possible, so their KL divergence is"
            " infinite; kind 'jsd' is not"
        )
    with np.errstate(under="ignore"):
        terms = np.where(probs > 0, probs * (logs - other_logs), 0.0).sum(axis=1)
    return float(np.maximum(terms, 0.0).sum())  # below 0 only by rounding
