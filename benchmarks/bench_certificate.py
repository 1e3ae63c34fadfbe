"""What a certificate costs beside the selection it judges, level by level.

    python benchmarks/bench_certificate.py [--repeats 15] [--threads 1]

The gradients that ship (240 of them, d = 2048, float32, 8 groups, w >= 0, ridge 0.01 of the mean squared norm) and
synthetic ones (256 x 4096), 32 picks by normalised OMP. Medians of interleaved rounds, on the threads that NumPy and
pysubmod take (set OMP_NUM_THREADS=1 and --threads 1 for one). The block level is given 10 s and stops at a gap of 1 %.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
from problems import family, real

import pysubmod


def timed(call):
    started = time.perf_counter()
    result = call()
    return time.perf_counter() - started, result


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=None)
    args = parser.parse_args()
    shipped = real()
    for name, (G, target, groups) in {
        "shipped 240 x 2048": (np.asarray(shipped[0], np.float32), *shipped[1:]),
        "gradient_like 256 x 4096": family("gradient_like", 256, 4096, seed=0),
    }.items():
        ridge = 0.01 * float(np.square(G.astype(float)).sum(axis=1).mean())
        problem = pysubmod.GradientMatching(G, target, ridge=ridge)
        matroid = pysubmod.PartitionMatroid(groups, dict.fromkeys(np.unique(groups).tolist(), 4))
        seconds: dict[str, list[float]] = {"selection": [], "one-shot": [], "diagonal": []}
        shares = {}
        for _ in range(args.repeats):
            took, selection = timed(
                lambda: pysubmod.solve(problem, matroid, "omp-normalized", n_threads=args.threads)  # noqa: B023
            )
            seconds["selection"].append(took)
            for level in ("one-shot", "diagonal"):
                took, found = timed(lambda: selection.certify(method=level, gap=0.0))  # noqa: B023
                seconds[level].append(took)
                shares[level] = found.ratio
        block = selection.certify()
        unit = statistics.median(seconds["selection"])
        print(f"{name}, {len(selection)} picks")
        for level, values in seconds.items():
            median = statistics.median(values)
            share = f"   proves {100 * shares[level]:.2f} %" if level in shares else ""
            print(f"  {level:10} {1e3 * median:8.2f} ms  {median / unit:6.1f} times the selection{share}")
        print(f"  {'block':10} {1e3 * block.seconds:8.0f} ms  {'':26}   proves {100 * block.ratio:.2f} %")


if __name__ == "__main__":
    main()
