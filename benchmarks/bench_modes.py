"""Weights >= 0 under budgets against refits by accelerated gradients, and many targets in one call.

    python benchmarks/bench_modes.py [--size 1024 8192 128] [--rounds 5] [--targets 16]

Rows of unit length in 8 groups, float32, all cores. Everybody solves the same problem in turn, `rounds` times; ratios
are medians of the rounds'. "residual" is ||t - G_S' w|| / ||t|| with a method's own weights, in float64; "refitted"
with the optimal weights >= 0 of its rows. Writes results/modes.json and results/modes.md.
"""

from __future__ import annotations

import argparse
import inspect
import json
import statistics
import sys
import time
from pathlib import Path

import machine

machine.set_threads(machine.cores())  # before NumPy is loaded

import numpy as np  # noqa: E402
from apgd import apgd_selection  # noqa: E402
from problems import SIZES, family, gaussian  # noqa: E402

import pysubmod  # noqa: E402

RESULTS = Path(__file__).resolve().parent / "results"
PATIENCE = 2.0


def interleaved(calls, rounds, loops=None):
    """{name: seconds of each round} and {name: last result}; `loops`: calls of the quick ones to one reading.

    Who takes more than PATIENCE seconds is run once.
    """
    seconds, results = {name: [] for name in calls}, {}
    for _ in range(rounds):
        for name, call in calls.items():
            if seconds[name] and seconds[name][0] > PATIENCE:
                continue
            time.sleep(0.1)  # a BLAS's threads spin on for a while after its last call: not into the next one's time
            count = (loops or {}).get(name, 1)
            started = time.perf_counter()
            for _ in range(count):
                results[name] = call()
            seconds[name].append((time.perf_counter() - started) / count)
    return seconds, results


def ratio(seconds, name, base):
    """Seconds of `name` over those of `base`, round by round: the median."""
    return statistics.median(a / b for a, b in zip(seconds[name], seconds[base], strict=False))


def unit_problem(kind, n, d):
    """Rows and target of unit length, float32; groups."""
    G, target, groups = gaussian(n, d, 0) if kind == "gaussian" else family(kind, n, d, 0)
    G = G / np.linalg.norm(G.astype(float), axis=1, keepdims=True).astype(np.float32)
    return G, (target / np.linalg.norm(target)).astype(np.float32), groups


# ---- w >= 0 ----------------------------------------------------------------------------------------------------------


def nonnegative(kind, n, d, k, rounds):
    """One table: from the rows (Gram matrix included, where one is wanted), and with the Gram matrix at hand."""
    G, t, groups = unit_problem(kind, n, d)
    K, c = G @ G.T, G @ t
    each = np.full(8, k // 8)
    problem = pysubmod.GradientMatching(G, t)
    gram = pysubmod.GradientMatching.from_gram(K, c)
    matroid = pysubmod.PartitionMatroid(groups, dict.fromkeys(range(8), k // 8))
    free = pysubmod.GradientMatching(G, t, nonneg=False)
    free_gram = pysubmod.GradientMatching.from_gram(K, c, nonneg=False)
    calls = {
        "pysubmod, w >= 0": lambda: pysubmod.solve(problem, matroid, "omp"),
        "pysubmod, free weights": lambda: pysubmod.solve(free, matroid, "omp"),
        "pysubmod, partition-sel": lambda: pysubmod.solve(problem, matroid, "partition-sel", random_state=0),
        "APGD refits, drawn": lambda: apgd_selection(G @ G.T, G @ t, groups, each),
        "APGD refits, argmax": lambda: apgd_selection(G @ G.T, G @ t, groups, each, pick="argmax"),
        "APGD refits on k rows, argmax": lambda: apgd_selection(
            G @ G.T, G @ t, groups, each, pick="argmax", compact=True
        ),
        "K given: pysubmod, w >= 0": lambda: pysubmod.solve(gram, matroid, "omp"),
        "K given: pysubmod, free weights": lambda: pysubmod.solve(free_gram, matroid, "omp"),
        "K given: APGD refits, argmax": lambda: apgd_selection(K, c, groups, each, pick="argmax"),
        "K given: APGD refits on k rows, argmax": lambda: apgd_selection(
            K, c, groups, each, pick="argmax", compact=True
        ),
    }
    seconds, results = interleaved(calls, rounds, {name: 20 for name in calls if name.startswith("K given: pysubmod")})
    rows = []
    for name in calls:
        picks, weights = results[name]
        left = t.astype(float) - np.asarray(weights, float) @ G[picks].astype(float)
        row = {"rows": kind, "method": name, "seconds": statistics.median(seconds[name]), "all": seconds[name]}
        base = "K given: pysubmod, w >= 0" if name.startswith("K given") else "pysubmod, w >= 0"
        row |= {"ratio": ratio(seconds, name, base), "picks": len(picks)}
        row |= {"residual": np.linalg.norm(left) / np.linalg.norm(t)}
        row |= {"refitted": problem.residual_norm(picks) / float(np.linalg.norm(t))}
        rows.append(row)
        print(
            f"{kind:14} {name:40} {1e3 * row['seconds']:9.2f} ms  x{row['ratio']:<8.2f} residual {row['residual']:.5f},"
            f" refitted {row['refitted']:.5f}, {row['picks']} picks",
            flush=True,
        )
    return rows


# ---- many targets ----------------------------------------------------------------------------------------------------


def many_targets(size, count, rounds):
    """m targets in one call against m calls; None where this version cannot."""
    if "separate" not in inspect.signature(pysubmod.omp_partition).parameters:
        return None
    n, d, k = SIZES[size]
    G, _, groups = family("gradient_like", n, d, 0)
    rng = np.random.default_rng(1)
    targets = np.stack([G[rng.choice(n, 64, replace=False)].mean(axis=0, dtype=float) for _ in range(count)])
    budgets = dict.fromkeys(range(8), k // 8)
    calls = {
        "one call": lambda: pysubmod.omp_partition(G, targets, budgets, groups=groups, separate=True),
        "separate calls": lambda: [pysubmod.omp_partition(G, t, budgets, groups=groups) for t in targets],
    }
    seconds, results = interleaved(calls, rounds)
    same = all(
        np.array_equal(a.indices, b.indices)
        for a, b in zip(results["one call"], results["separate calls"], strict=True)
    )
    found = {"size": size, "targets": count, "same_picks": same, "ratio": ratio(seconds, "separate calls", "one call")}
    found |= {name: statistics.median(times) for name, times in seconds.items()}
    print(found, flush=True)
    return found


def markdown(report):
    n, d, k = report["size"]
    lines = [
        "# Weights >= 0, and many targets",
        "",
        f"`{report['command']}`, {report['date']}, on {report['machine']}; unit rows, {n} x {d}, {k} picks in 8 "
        f"groups, float32, {report['rounds']} rounds. Ratio: time over that of pysubmod with weights >= 0, on the "
        "same input (rows, or K). APGD: 128 accelerated projected gradient steps after every pick from a random start.",
        "",
        "| rows | | ms | ratio | residual | refitted exactly | picks |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in report["nonnegative"]:
        lines.append(
            f"| {row['rows']} | {row['method']} | {1e3 * row['seconds']:.2f} | {row['ratio']:.2f} | "
            f"{row['residual']:.5f} | {row['refitted']:.5f} | {row['picks']} |"
        )
    if not report["targets"]:
        return "\n".join([*lines, "", "Many targets in one call: not in this version."]) + "\n"
    lines += ["", "| | targets | one call | separate calls | times as fast | same picks |", "|---|---|---|---|---|---|"]
    for found in report["targets"]:
        same = "yes" if found["same_picks"] else "no"
        lines.append(
            f"| {found['size']} | {found['targets']} | {1e3 * found['one call']:.1f} ms | "
            f"{1e3 * found['separate calls']:.1f} ms | {found['ratio']:.2f} | {same} |"
        )
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", nargs=3, type=int, default=[1024, 8192, 128], metavar=("N", "D", "K"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--targets", type=int, default=16)
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "modes.json")
    args = parser.parse_args()
    report = {"machine": machine.name(), "date": time.strftime("%Y-%m-%d"), "command": " ".join(sys.argv)}
    report |= {"size": args.size, "rounds": args.rounds, "nonnegative": [], "targets": []}
    for kind in ("gradient_like", "gaussian"):
        report["nonnegative"] += nonnegative(kind, *args.size, args.rounds)
    for size in ("s1", "s2", "s3"):
        found = many_targets(size, args.targets, min(args.rounds, 3))
        report["targets"] += [found] if found else []
    if not report["targets"]:
        print("many targets in one call: not in this version")
    args.output.write_text(json.dumps(report, indent=1), encoding="utf-8")
    args.output.with_suffix(".md").write_text(markdown(report), encoding="utf-8")


if __name__ == "__main__":
    main()
