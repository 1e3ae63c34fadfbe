"""Orthogonal matching pursuit against its peers, interleaved, with the machine's own limits beside.

    python benchmarks/bench_peers.py [s1 s2 s3] [--repeats 5] [--threads 2] [-o results.json]

Every competitor solves the same float32 problem (free weights, no groups, since that is all the peers know), in turn,
`repeats` times; a line gives the median seconds, the ratio to NumPy Batch-OMP round by round (median; above 1 is faster
than NumPy), and how many of its picks are those of the float64 reference, in order. pysubmod is also timed as it is
meant: w >= 0 under 8 groups.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time

# Before NumPy is loaded: its BLAS reads this once.
_THREADS = sys.argv[sys.argv.index("--threads") + 1] if "--threads" in sys.argv else str(len(os.sched_getaffinity(0)))
for _name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ[_name] = _THREADS

import numpy as np  # noqa: E402
from problems import FAMILIES, SIZES, family, gaussian  # noqa: E402
from scipy.linalg import solve_triangular  # noqa: E402

import pysubmod  # noqa: E402


def batch_omp(G, target, k):
    """Batch-OMP with Gram columns on demand and a growing Cholesky factor, all in G's type: a good NumPy version."""
    alpha = c = G @ target
    columns = np.empty((k, len(G)), G.dtype)
    L = np.zeros((k, k), G.dtype)
    picks, weights = [], np.empty(0, G.dtype)
    for j in range(k):
        i = int(np.argmax(np.abs(c)))
        columns[j] = G @ G[i]
        if j:
            L[j, :j] = solve_triangular(L[:j, :j], columns[:j, i], lower=True, check_finite=False)
        L[j, j] = np.sqrt(max(columns[j, i] - L[j, :j] @ L[j, :j], np.finfo(G.dtype).tiny))
        picks.append(i)
        half = solve_triangular(L[: j + 1, : j + 1], alpha[picks], lower=True, check_finite=False)
        weights = solve_triangular(L[: j + 1, : j + 1], half, lower=True, trans=1, check_finite=False)
        c = alpha - weights @ columns[: j + 1]
        c[picks] = 0
    return np.array(picks), weights


def sklearn_omp(G, target, k):
    from sklearn.linear_model import orthogonal_mp

    return np.flatnonzero(orthogonal_mp(G.T, target, n_nonzero_coefs=k, precompute=False)), None


def exact_picks(G, target, k):
    """The picks in float64: Batch-OMP on float64 copies, correlations from the residual."""
    wide, t = G.astype(np.float64), target.astype(np.float64)
    picks: list[int] = []
    c = wide @ t
    for _ in range(k):
        c[picks] = 0
        picks.append(int(np.argmax(np.abs(c))))
        Q = np.linalg.qr(wide[picks].T)[0]
        c = wide @ (t - Q @ (Q.T @ t))
    return picks


def limits(threads):
    """What this machine can do now: GB/s of a matrix-vector product from memory, GFLOP/s of a matrix product."""
    A = np.ones((16384, 4096), np.float32)
    x = np.ones(4096, np.float32)
    B = np.ones((2048, 2048), np.float32)
    gemv, gemm = [], []
    for _ in range(5):
        start = time.perf_counter()
        A @ x
        gemv.append(A.nbytes / (time.perf_counter() - start) / 1e9)
        start = time.perf_counter()
        B @ B
        gemm.append(2 * 2048**3 / (time.perf_counter() - start) / 1e9)
    return {"gemv_GB_per_s": statistics.median(gemv), "sgemm_GFLOP_per_s": statistics.median(gemm), "threads": threads}


def run_size(name, problem, repeats, threads):
    n, d, k = SIZES[name]
    G, target, groups = gaussian(n, d, 0) if problem == "gaussian" else family(problem, n, d, 0)
    target = target.astype(np.float32)
    budgets = {p: k // 8 for p in range(8)}
    methods = {
        "numpy batch-omp": lambda: batch_omp(G, target, k)[0],
        "pysubmod": lambda: pysubmod.omp_partition(G, target, k, nonneg=False, n_threads=threads).indices,
        "pysubmod w>=0, 8 groups": lambda: (
            pysubmod.omp_partition(G, target, budgets, groups=groups, n_threads=threads).indices
        ),
    }
    try:
        import sklearn  # noqa: F401

        methods["scikit-learn"] = lambda: sklearn_omp(G, target, k)[0]
    except ImportError:
        print("scikit-learn is not installed: left out")
    seconds: dict[str, list[float]] = {label: [] for label in methods}
    picks = {}
    loops = max(1, int(0.02 / (n * d * k * 1e-10)))  # tiny sizes: several calls to one reading
    for _ in range(repeats):
        for label, call in methods.items():
            time.sleep(0.1)  # a BLAS's threads spin on for a while after its last call: not into the next one's time
            start = time.perf_counter()
            for _ in range(loops):
                picks[label] = call()
            seconds[label].append((time.perf_counter() - start) / loops)
    truth = exact_picks(G, target, k)
    base = seconds["numpy batch-omp"]
    rows = []
    for label, times in seconds.items():
        ratio = statistics.median(b / t for b, t in zip(base, times, strict=True))
        if label == "scikit-learn":  # it returns coefficients: order unknown
            agree = f"{len(set(truth) & set(picks[label].tolist()))}/{k} of the set"
        elif "groups" in label:
            agree = "-"
        else:
            agree = f"{sum(a == b for a, b in zip(truth, picks[label].tolist(), strict=False))}/{k}"
        row = {"size": name, "problem": problem, "method": label, "seconds": statistics.median(times), "ratio": ratio}
        row |= {"fastest": min(times), "slowest": max(times), "picks_as_float64": agree}
        rows.append(row)
        print(
            f"{name} {problem:16} {label:24} {row['seconds'] * 1e3:10.2f} ms  "
            f"({min(times) * 1e3:.2f} to {max(times) * 1e3:.2f})"
            f"  x{ratio:.2f}  picks {agree}",
            flush=True,
        )
    return rows


PEAK = """
import resource, sys
import numpy as np
import pysubmod
n, d, k = map(int, sys.argv[1:])
G = np.random.default_rng(0).standard_normal((n, d), dtype=np.float32)
t = G[:64].sum(axis=0)
pysubmod.omp_partition(G[:64], t, 2, n_threads=2)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
pysubmod.omp_partition(G, t, k, n_threads=2)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def peak_memory(name):
    """How much a solve adds to the process, as a share of G, beside what was estimated."""
    n, d, k = SIZES[name]
    out = subprocess.run(
        [sys.executable, "-c", PEAK, str(n), str(d), str(k)], check=True, capture_output=True, text=True
    ).stdout
    added = int(out) * 1024
    estimate = pysubmod.estimate_memory(n, d, k)
    print(
        f"{name} memory: a solve adds {added / 1e6:.1f} MB to G's {n * d * 4 / 1e6:.0f} MB; "
        f"estimated {estimate['solver'] / 1e6:.1f} MB"
    )
    return {"size": name, "added_bytes": added, "gradients_bytes": n * d * 4, "estimated_bytes": estimate["solver"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", nargs="*", default=["s1", "s2"], metavar="SIZE", help="s1 .. s5 (default: s1 s2)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=int(_THREADS))
    parser.add_argument("--problem", default="gradient_like", choices=("gaussian", *FAMILIES))
    parser.add_argument("-o", "--output")
    args = parser.parse_args()
    machine = {"platform": platform.platform(), "numpy": np.__version__, **pysubmod.show_config(mode="dicts")}
    report = {"machine": machine, "limits": limits(args.threads), "runs": [], "memory": []}
    print(f"{machine['kernels']} kernels, {args.threads} threads; now on this machine: {report['limits']}")
    for name in args.sizes:
        report["runs"] += run_size(name, args.problem, args.repeats, args.threads)
        report["memory"].append(peak_memory(name))
    if args.output:
        with open(args.output, "w", encoding="utf-8") as file:
            json.dump(report, file, indent=1)
    print(f"peak memory of this run: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")


if __name__ == "__main__":
    main()
