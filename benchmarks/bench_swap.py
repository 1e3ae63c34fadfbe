"""What swap search costs beside the pursuit that it improves, and what it gains.

    python benchmarks/bench_swap.py [n d k] [--repeats 15] [--threads 1]

float32 rows in 8 groups, k / 8 picks of each, normalised OMP; from the rows and from their Gram matrix (float64), free
weights and w >= 0. Pursuit and swap search are timed inside the same solves, one problem after another, `repeats`
times: medians, so that what disturbs the machine disturbs both.
"""

from __future__ import annotations

import argparse
import statistics
import warnings

import numpy as np
from problems import FAMILIES, family

import pysubmod


def cases(n, d, k):
    for name in FAMILIES:
        G, target, codes = family(name, n, d, seed=1)
        G = G.astype(np.float32)
        matroid = pysubmod.PartitionMatroid(codes, dict.fromkeys(range(8), k // 8))
        wide = G.astype(np.float64)
        K, c, norm = wide @ wide.T, wide @ target, float(np.linalg.norm(target))
        for nonneg in (True, False):
            yield name, matroid, pysubmod.GradientMatching(G, target, nonneg=nonneg)
            yield name, matroid, pysubmod.GradientMatching.from_gram(K, c, nonneg=nonneg, target_norm=norm)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("size", nargs="*", type=int, default=[512, 4096, 64], metavar="n d k")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # groups that a family leaves empty
    todo = list(cases(*args.size))
    seconds = [([], []) for _ in todo]
    found = [None] * len(todo)
    for _ in range(args.repeats):
        for which, (_, matroid, problem) in enumerate(todo):
            sel = pysubmod.solve(problem, matroid, "swap", n_threads=args.threads)
            seconds[which][0].append(sel.stats["seconds"]["pursuit"])
            seconds[which][1].append(sel.stats["seconds"]["swap"])
            found[which] = sel
    print(f"n={args.size[0]} d={args.size[1]} k={args.size[2]}, {args.threads} thread(s), {args.repeats} rounds")
    for (name, matroid, problem), (pursuit, swap), sel in zip(todo, seconds, found, strict=True):
        start = pysubmod.solve(problem, matroid, "omp-normalized").objective
        weights = "w >= 0" if problem.nonneg else "free"
        a, b = statistics.median(pursuit) * 1e3, statistics.median(swap) * 1e3
        print(
            f"{name:15} {weights:6} {problem.route:5} pursuit {a:7.2f} ms, swap {b:7.2f} ms "
            f"({b / a:4.2f}), {sel.stats['n_swaps']:3} swaps, objective +{sel.objective / start - 1:.1e}, "
            f"local optimum {sel.stats['swap_local_optimum']}"
        )


if __name__ == "__main__":
    main()
