"""Every solver on named problems: which share of the optimum each is proved to reach, and how long it takes.

    python benchmarks/bench_solvers.py --quick            under a minute: a few problems, a second for each proof
    python benchmarks/bench_solvers.py                    the gradients that ship, and seeded synthetic families
    python benchmarks/bench_solvers.py --gradients DIR    pools of 64, 256 and all rows of a larger set besides

DIR holds ``*candidates*.npy`` (n, d), ``*labels.csv`` with a column ``domain`` and ``*validation_mean*.npy``. Pools are
drawn evenly over the groups with a fixed seed; rows raw and of unit length (and the target with them); ridges over the
mean squared norm; weights >= 0 and free. Writes results/solvers.csv (a line a method and problem) and
results/solvers.md (the certified share of the main methods, a line a problem).
"""

from __future__ import annotations

import argparse
import csv
import glob
import os
import time
from pathlib import Path

import machine
import numpy as np
from problems import FAMILIES, family, real

import pysubmod
from pysubmod._random import random_order
from pysubmod.compare import COLUMNS

RESULTS = Path(__file__).resolve().parent / "results"
MAIN = ("omp", "omp-normalized", "greedy", "partition-sel", "swap", "best")  # columns of the table
RIDGES = (1e-4, 1e-2, 1e-1)
PER_GROUP = {64: (1, 2, 4), 256: (1, 2, 4, 8), 0: (1, 8)}  # picks a group by size of the pool; 0 stands for all rows


def pool(groups, size):
    """Row numbers of a pool with equally many rows of each group, ascending."""
    if not size or size >= len(groups):
        return np.arange(len(groups))
    labels = np.unique(groups)
    order = random_order(size, len(groups))
    rows = [order[groups[order] == label][: size // len(labels)] for label in labels]
    return np.sort(np.concatenate(rows))


def larger_set(folder):
    """G, the target and the groups of a folder with more gradients."""
    one = {}
    for name in ("*candidates*.npy", "*validation_mean*.npy", "*labels.csv"):
        found = sorted(glob.glob(os.path.join(folder, name)))
        if len(found) != 1:
            raise SystemExit(f"--gradients: expected one file {name} in {folder!r}, found {len(found)}")
        one[name] = found[0]
    G = np.load(one["*candidates*.npy"])
    target = np.load(one["*validation_mean*.npy"]).astype(float)
    with open(one["*labels.csv"], newline="", encoding="utf-8") as file:
        labels = [row["domain"] for row in csv.DictReader(file)][: len(G)]
    target = target.mean(axis=0) if target.ndim == 2 else target
    return G, target, np.unique(labels, return_inverse=True)[1]


def sources(args):
    """(name, G, target, groups, picks a group, ridges) of every set of rows."""
    data = [("shipped", *real(), {64: (1, 2), 0: (4,)})]
    if args.gradients:
        data.append((Path(args.gradients).name, *larger_set(args.gradients), PER_GROUP))
    for source, G, target, groups, sizes in data:
        for size, picks in sizes.items():
            rows = pool(groups, size)
            for each in picks[:1] if args.quick else picks:
                for unit in (False,) if args.quick else (True, False):
                    chosen = G[rows].astype(np.float32)
                    if unit:
                        chosen /= np.linalg.norm(chosen, axis=1, keepdims=True)
                    t = target / np.linalg.norm(target) if unit else target
                    name = f"{source} {len(rows)}, {'unit' if unit else 'raw'} rows"
                    yield name, chosen, t, groups[rows], each, (1e-2,) if args.quick else RIDGES
    for name in FAMILIES[:1] if args.quick else FAMILIES:
        for n, d, each in ((64, 256, 2),) if args.quick else ((64, 256, 2), (256, 1024, 4)):
            yield f"{name} {n} x {d}", *family(name, n, d, seed=0), each, (1e-2,)


def measured(args):
    """(problem, comparison) one after the other."""
    for name, G, target, groups, each, ridges in sources(args):
        mean_square = float(np.square(G.astype(float)).sum(axis=1).mean())
        matroid = pysubmod.PartitionMatroid(groups, dict.fromkeys(np.unique(groups).tolist(), each))
        for relative in ridges:
            for nonneg in (True,) if args.quick else (True, False):
                problem = pysubmod.GradientMatching(G, target, ridge=relative * mean_square, nonneg=nonneg)
                label = f"{name}, k={matroid.rank}, ridge {relative:g}, {'w>=0' if nonneg else 'free'}"
                yield (
                    label,
                    pysubmod.compare(
                        problem, matroid, args.methods, seeds=args.seeds, gap=args.gap, time_limit=args.time_limit
                    ),
                )


def summary(table, main):
    """The certified share of the main methods as markdown."""
    heads = ["problem", *(f"{name}, %" for name in main), "fastest within 1 % of the best", "bound", "proof, s"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for label, comparison in table:
        rows = {row.method: row for row in comparison.rows if not row.problem}
        shares = [f"{100 * rows[name].share:.2f}" if name in rows else "" for name in main]
        close = [row for row in rows.values() if row.of_best >= 0.99]
        quick = min(close, key=lambda row: row.seconds)
        fastest = f"{quick.method} ({quick.seconds * 1e3:.3g} ms)"
        proof = comparison.certificate
        bound = proof.method if proof.useful else f"{proof.method} (no useful certificate)"
        lines.append("| " + " | ".join([label, *shares, fastest, bound, f"{proof.seconds:.2f}"]) + " |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few problems, in under a minute")
    parser.add_argument("--gradients", metavar="DIR", help="a larger set of real gradients")
    parser.add_argument("--methods", type=lambda text: text.split(","), metavar="A,B,...", help="default: all")
    parser.add_argument("--seeds", type=int, default=5, help="of the random methods (default 5)")
    parser.add_argument("--gap", type=float, default=1e-3, help="enough is proved (default 1e-3)")
    parser.add_argument("--time-limit", type=float, help="seconds for each proof (default 10, with --quick 1)")
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="DIR", help="default: benchmarks/results")
    args = parser.parse_args()
    args.time_limit = args.time_limit if args.time_limit is not None else 1.0 if args.quick else 10.0
    started, table = time.perf_counter(), []
    args.output.mkdir(parents=True, exist_ok=True)
    with open(args.output / "solvers.csv", "w", newline="", encoding="utf-8") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(("problem", *COLUMNS))
        for label, comparison in measured(args):
            table.append((label, comparison))
            out.writerows([label, *row] for row in list(csv.reader(comparison.csv().splitlines()))[1:])
            file.flush()
            best = comparison.rows[0]
            print(
                f"{time.perf_counter() - started:6.0f} s  {label}: {best.method} {100 * best.share:.2f} %", flush=True
            )
    known = [name for name in MAIN if name in pysubmod.available_methods()]
    text = summary(table, known)
    head = f"# Solvers\n\nShare of the certified upper bound ({machine.name()}, pysubmod {pysubmod.__version__}, "
    head += f"`python benchmarks/bench_solvers.py{' --quick' if args.quick else ''}`, {args.time_limit:g} s a proof).\n"
    (args.output / "solvers.md").write_text(f"{head}\n{text}\n", encoding="utf-8")
    print(f"\n{text}\n\n{len(table)} problems, {time.perf_counter() - started:.0f} s; see {args.output}")


if __name__ == "__main__":
    main()
