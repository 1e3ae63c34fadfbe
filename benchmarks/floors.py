"""What no method that reads G can beat: the floors that bench_peers.py prints beside what was measured.

Measured with NumPy's BLAS on the same rows in the same rounds as the competitors; what would take too long is computed
from the rates of `machine.limits` and says so.
"""

from __future__ import annotations

import time

import numpy as np


def known_columns(p):
    """If an oracle named the k picks in advance: one product of G with their rows, and the updates of n correlations.

    The updates are those of plain pursuit, one pick at a time: before pick j the correlations are formed from j columns
    of length n, n k^2 / 2 multiply-adds read from memory. Blocked updates would move less.
    """
    rows = p.truth

    def call():
        started = time.perf_counter()
        columns = (p.G @ p.G[rows].T).T.copy()
        middle = time.perf_counter()
        alpha, weights = p.G @ p.target, np.ones(len(rows), p.G.dtype)
        for j in range(1, len(rows) + 1):
            c = alpha - weights[:j] @ columns[:j]
            np.argmax(np.abs(c))
        return {"product": middle - started, "updates": time.perf_counter() - middle}

    return call


def one_pass(p):
    """One product of G with a vector."""

    def call():
        p.G @ p.target
        return {}

    return call


FLOORS = {"floor: columns known": known_columns, "floor: one pass": one_pass}


def computed(n, d, k, limits, item=4):
    """Seconds of the floors that are computed: the full Gram matrix, and k / 10 passes of 17 columns each.

    A pass is bound by bandwidth or by arithmetic, whichever takes longer.
    """
    bandwidth, rate = limits["gemv_GB_per_s"] * 1e9, limits["sgemm_GFLOP_per_s"] * 1e9
    one = max(n * d * item / bandwidth, 2 * 17 * n * d / rate)
    return {"full Gram": n * n * d / rate, "k/10 passes of 17 columns": k / 10 * one}
