"""Random numbers that are the same on every machine, in NumPy, in the compiled core and on a device.

Counter-based SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014): number
i of stream `seed` is a hash of both, so nothing has state and order does not matter. NumPy's own generators promise
the same bits, but not the same permutations from one version to the next.
"""

from __future__ import annotations

import secrets
from typing import Any

import numpy as np
import numpy.typing as npt

from ._validation import is_integer, shown

__all__ = ["as_seed", "check_seed", "random_bits", "random_order", "uniform"]

_STEP = np.uint64(0x9E3779B97F4A7C15)


def check_seed(random_state: Any) -> None:
    """Refuse what `as_seed` would, without drawing from a generator."""
    if not isinstance(random_state, np.random.Generator | np.random.RandomState):
        as_seed(random_state)


def as_seed(random_state: Any) -> int:
    """A seed in 0 .. 2**63 - 1: of an int itself, of None fresh, of a NumPy Generator or RandomState its next draw."""
    if random_state is None:
        return secrets.randbits(63)
    if isinstance(random_state, np.random.Generator):
        return int(random_state.integers(2**63 - 1))
    if isinstance(random_state, np.random.RandomState):
        return int(random_state.randint(2**31 - 1))
    if not is_integer(random_state):
        raise TypeError(
            f"random_state: expected an integer, None, or a NumPy Generator or RandomState; got {shown(random_state)}"
        )
    if not 0 <= int(random_state) < 2**63:
        raise ValueError(f"random_state: expected 0 .. 2**63 - 1; got {shown(random_state)}")
    return int(random_state)


def random_bits(seed: int, counters: Any) -> npt.NDArray[np.uint64]:
    """64 random bits for every counter (integers of at least 0)."""
    with np.errstate(over="ignore"):
        x = np.uint64(seed) + (np.asarray(counters, np.uint64) + np.uint64(1)) * _STEP
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(x ^ (x >> np.uint64(31)), np.uint64)


def uniform(seed: int, counters: Any) -> npt.NDArray[np.float64]:
    """Uniform numbers in [0, 1) with 53 random bits."""
    return (random_bits(seed, counters) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def random_order(seed: int, n: int, stream: int = 0) -> npt.NDArray[np.int64]:
    """A random permutation of 0 .. n - 1; another one for every `stream`."""
    key = int(random_bits(seed, stream))
    return np.argsort(random_bits(key, np.arange(n)), kind="stable").astype(np.int64)
