"""Is it exact? Picks, their order and the weights against the float64 reference, on every family and on real gradients.

    python benchmarks/check_exactness.py                     the synthetic families and the gradients that ship
    python benchmarks/check_exactness.py G.npy TARGET.npy LABELS.csv [--column domain]

For every storage type, free and non-negative weights, with and without ridge, one group and all groups. "weights" is
the largest difference from the reference's weights (QR of the rows in float64) over the largest weight; "kkt" the
largest violation of the optimality conditions, relative to ||t|| times the row's norm. Exit status 1 if any support or
order differs.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time

import numpy as np
from problems import families, real

import pysubmod
from pysubmod._reference import omp_partition_reference


def compare(name, G, target, groups, per_group, nonneg, ridge, rule="omp"):
    """One line of the table; True if support and order agree."""
    budgets = np.full(int(groups.max()) + 1, per_group)
    options = {"nonneg": nonneg, "ridge": ridge, "rule": rule}
    started = time.perf_counter()
    expected = omp_partition_reference(G, target, groups, budgets, **options)
    seconds = time.perf_counter() - started
    labels = np.unique(groups)
    got = pysubmod.omp_partition(G, target, {int(p): per_group for p in labels}, groups=groups, **options)
    same = got.indices.tolist() == expected.indices.tolist() and got.status == expected.status
    weights = kkt = np.nan
    if same and len(got):
        weights = np.abs(got.weights - expected.weights).max() / np.abs(expected.weights).max()
        rows = G[got.indices].astype(np.float64)
        g = rows @ (target - rows.T @ got.weights) - ridge * got.weights
        unit = np.linalg.norm(target) * np.sqrt((rows**2).sum(axis=1) + ridge)
        violated = np.where(got.weights != 0, np.abs(g), np.maximum(g, 0.0) if nonneg else 0.0)
        kkt = (violated / unit).max()
    print(
        f"{name:16} {G.dtype!s:8} {len(labels)} groups {'w>=0' if nonneg else 'free'} ridge {ridge:<8.2g} {rule:10} "
        f"{len(expected.indices):4} picks {got.status!s:14} {'same' if same else 'DIFFERENT'}  "
        f"weights {weights:.0e}  kkt {kkt:.0e}  "
        f"reference {seconds:.1f} s, pysubmod {got.stats['seconds']['total']:.3f} s",
        flush=True,
    )
    return same


def load(args):
    G = np.load(args.gradients)
    target = np.load(args.target).astype(np.float64)
    with open(args.labels, newline="", encoding="utf-8") as file:
        labels = [row[args.column] for row in csv.DictReader(file)][: len(G)]
    target = target.mean(axis=0) if target.ndim == 2 else target
    return {args.gradients.rsplit("/", 1)[-1][:16]: (G, target, np.unique(labels, return_inverse=True)[1])}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gradients", nargs="?")
    parser.add_argument("target", nargs="?")
    parser.add_argument("labels", nargs="?")
    parser.add_argument("--column", default="domain")
    parser.add_argument("--per-group", type=int, default=12, help="budget of each of the groups (default 12)")
    args = parser.parse_args()
    problems = load(args) if args.gradients else families(1024, 1024, 7) | {"real": real()}
    wrong = runs = 0
    for name, (G, target, groups) in problems.items():
        few = args.per_group
        mean_square = float((G.astype(np.float64) ** 2).sum(axis=1).mean())
        types = [G] if G.dtype == np.float64 else [G.astype(np.float32), G.astype(np.float16)]
        for rows in types:
            if not np.isfinite(rows).all():
                continue  # norms beyond float16
            for nonneg in (True, False):
                for ridge in (0.0, 0.01 * mean_square):
                    for codes, budget in ((groups, few), (np.zeros_like(groups), few * (int(groups.max()) + 1))):
                        runs += 1
                        wrong += not compare(name, rows, target, codes, budget, nonneg, ridge)
        for rule in ("normalized", "greedy") if len(G) <= 300 else ("normalized",):
            runs += 1
            wrong += not compare(name, types[0], target, groups, few, True, 0.0, rule)
    print(f"{runs} runs, {wrong} with another support or order")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
