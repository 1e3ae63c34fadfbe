"""What one call costs on minibatches, from Python: K given, and G in cache.

    OMP_NUM_THREADS=1 python benchmarks/bench_small.py [--rounds 300] [--threads 1]

gradient_like rows, float32, d = 1024, in 8 groups; n / 8 picks. Free weights without groups; w >= 0 with n / 64 picks
from each group. Every call of every case comes once a round, in turn; medians in microseconds. `from_gram` and
`GradientMatching` make the problem (checks of K or G included), `solve` takes one that is made, `omp_partition` does
everything.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
from problems import family

import pysubmod

WAYS = ("from_gram", "solve, K", "in the core", "solve, G", "in the core", "omp_partition")


def calls(n, nonneg, threads):
    """The ways to solve one problem: functions that return a selection, or nothing."""
    G, target, codes = family("gradient_like", n, 1024, seed=1)
    G = G.astype(np.float32)
    wide = G.astype(np.float64)
    K, c, norm = wide @ wide.T, wide @ target, float(np.linalg.norm(target))
    budgets = dict.fromkeys(range(8), n // 64) if nonneg else n // 8
    groups = codes if nonneg else None
    matroid = pysubmod.PartitionMatroid(codes, budgets) if nonneg else budgets
    of_gram = pysubmod.GradientMatching.from_gram(K, c, nonneg=nonneg, target_norm=norm)
    of_rows = pysubmod.GradientMatching(G, target, nonneg=nonneg)
    return (
        lambda: pysubmod.GradientMatching.from_gram(K, c, nonneg=nonneg, target_norm=norm),
        lambda: pysubmod.solve(of_gram, matroid, n_threads=threads),
        lambda: pysubmod.solve(of_rows, matroid, n_threads=threads),
        lambda: pysubmod.omp_partition(G, target, budgets, groups=groups, nonneg=nonneg, n_threads=threads),
    )


def measure(call):
    """Seconds of a call, and those of them in the compiled core (None if it makes no selection)."""
    start = time.perf_counter()
    selection = call()
    seconds = time.perf_counter() - start
    if not isinstance(selection, pysubmod.Selection):
        return seconds, None
    return seconds, selection.stats["seconds"]["prepare"] + selection.stats["seconds"]["pursuit"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--rounds", type=int, default=300, help="of n = 256; four times as many of 64, a quarter of 1024"
    )
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    print(f"{args.threads} thread(s), {pysubmod.__version__}; medians in microseconds\n")
    print(f"| n, k | weights | {' | '.join(WAYS)} |\n|{'---|' * (len(WAYS) + 2)}")
    for n in (64, 256, 1024):
        cases = [(nonneg, calls(n, nonneg, args.threads)) for nonneg in (False, True)]
        times = {(nonneg, way): [] for nonneg, ways in cases for way in range(len(ways))}
        for _ in range(3 + args.rounds * 256 // n):
            for nonneg, ways in cases:
                for way, call in enumerate(ways):
                    times[nonneg, way].append(measure(call))
        for nonneg, _ in cases:
            outer = [statistics.median(s for s, _ in times[nonneg, way][3:]) for way in range(4)]
            core = [statistics.median(s for _, s in times[nonneg, way][3:]) for way in (1, 2)]
            row = (outer[0], outer[1], core[0], outer[2], core[1], outer[3])
            weights = "w >= 0, 8 groups" if nonneg else "free"
            print(f"| {n}, {n // 8} | {weights} | {' | '.join(f'{1e6 * x:.0f}' for x in row)} |", flush=True)


if __name__ == "__main__":
    main()
