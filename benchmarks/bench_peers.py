"""Orthogonal matching pursuit against its peers, interleaved, with the machine's limits and floors beside.

    python benchmarks/bench_peers.py                 everything, ten minutes or a little more
    python benchmarks/bench_peers.py s1 s2           these sizes alone
    python benchmarks/bench_peers.py --quick         s1 and s2, two rounds, gradient-like rows

Whoever of the peers is installed takes part (peers.py), each in a process of its own, all on the same rows. In a round
everybody solves the problem once, in turn; a line gives the median seconds, the ratio to pysubmod round by round
(median), how its picks compare with float64 orthogonal matching pursuit (truth.py), what a solve adds to the process's
memory, and the rates of reading and arithmetic that this means. Who takes longer than --patience is run once.

Writes results/peers.json (all of it) and results/peers.md (tables; peer_report.py).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import machine

if __name__ == "__main__":  # not in the processes of the competitors, which import this file too
    machine.set_threads(machine.cores())  # for the float64 reference, before NumPy is loaded

import numpy as np
import peer_report
from peer_plan import FLOORS, ITEM, plan, volume
from peers import COMPETITORS, MIDDLE, Competitor, is_installed, versions
from problems import SIZES, family, gaussian
from truth import agreement, float64_picks
from worker import Failed, Worker

import pysubmod

RESULTS = Path(__file__).resolve().parent / "results"
MIN_ROUNDS = 3
LARGEST_GRAM = 2e9  # bytes


class Bench:
    """Runs blocks one after another; keeps the processes, and the problem while it stays the same."""

    def __init__(self, folder, args):
        self.folder, self.args = folder, args
        self.deadline = time.monotonic() + 60 * args.minutes
        self.workers = {}
        self.problem, self.truths = None, {}

    def worker(self, name, threads):
        if (name, threads) not in self.workers:
            self.workers[name, threads] = Worker(name, threads)
        return self.workers[name, threads]

    def set_problem(self, size, kind):
        """Make and save the problem, unless it is the one at hand."""
        if self.problem and self.problem[0] == (size, kind):
            return
        n, d, _ = SIZES[size]
        G, target, groups = gaussian(n, d, 0) if kind == "gaussian" else family(kind, n, d, 0)
        target = target.astype(np.float32)  # some peers would widen every product otherwise
        many = np.random.default_rng(0).permutation(np.arange(n) % 256)
        for name, array in {"G": G, "target": target, "groups8": groups, "groups256": many}.items():
            np.save(self.folder / f"{name}.npy", array)
        self.problem, self.truths = ((size, kind), G, target, {8: groups, 256: many}), {}

    def budgets(self, solves, size):
        k = SIZES[size][2]
        return {"grouped": dict.fromkeys(range(8), k // 8), "many": dict.fromkeys(range(256), -(-k // 256))}.get(
            solves, {}
        )

    def truth(self, competitor, storage, size):
        """The picks in float64 of what it solves, in its storage type; None where that is not worth the time."""
        rounded = storage if storage in ("float16", "bfloat16") else ""
        key = competitor.solves, rounded
        if key not in self.truths:
            if competitor.solves not in ("omp", "many") and volume(size) > MIDDLE:
                return None
            _, G, target, groups = self.problem
            if rounded == "float16":
                G = G.astype(np.float16)
            elif rounded == "bfloat16":
                import torch

                G = torch.from_numpy(G).to(torch.bfloat16).float().numpy()
            if competitor.solves == "unit":
                G = G / np.linalg.norm(G.astype(float), axis=1, keepdims=True).astype(G.dtype)
            budgets = self.budgets(competitor.solves, size)
            known = {"groups": groups[len(budgets)], "budgets": list(budgets.values())} if budgets else {}
            k = sum(budgets.values()) if budgets else SIZES[size][2]
            grouped = competitor.solves == "grouped"
            self.truths[key] = float64_picks(G, target, k, nonneg=grouped, gains=competitor.solves == "ols", **known)
        return self.truths[key]

    def refusal(self, name, competitor, size):
        """Why a competitor is not even tried, or None."""
        n, d, k = SIZES[size]
        if not is_installed(competitor):
            return f"not installed: {competitor.module}"
        if competitor.reads == "gram" and 4 * n * n > LARGEST_GRAM:
            return f"left out: a Gram matrix of {4 * n * n / 1e9:.0f} GB"
        if n * d * k > competitor.most and not self.args.all:
            return "left out at this size (--all runs it)"
        if competitor.solves == "ols" and name.startswith("pysubmod") and volume(size) > MIDDLE:
            return "left out at this size"
        return None

    def run(self, block):
        """One block, as a dict for the report."""
        self.set_problem(block.size, block.family)
        n, d, k = SIZES[block.size]
        if any(name in FLOORS for name, _ in block.entries):
            np.save(self.folder / "truth.npy", self.truth(COMPETITORS["pysubmod"], "float32", block.size))
        rows = {}
        for name, storage in block.entries:
            competitor = COMPETITORS.get(name, Competitor(None))
            row = {"name": name, "storage": storage, "runs": {}, "error": self.refusal(name, competitor, block.size)}
            rows[name, storage] = row
            if row["error"] is None:
                row["error"] = self._load(block, row, competitor)
        seconds = self.args.seconds * (1.0 if len(rows) > 8 else 0.3)
        started, count = time.perf_counter(), 0
        most = self.args.rounds if time.monotonic() < self.deadline else 1
        while count < most and (count < MIN_ROUNDS or time.perf_counter() - started < seconds):
            for row in rows.values():
                first = row["runs"].get(0, {}).get("seconds", 0.0)
                if row["error"] is None and (count == 0 or first < self.args.patience):
                    self._one(block, row, count, n * d * k)
            count += 1
        for name, _ in block.entries:
            self._drop(name, block.threads)
        entries = [self._judge(block, row) for row in rows.values()]
        _ratios(entries)
        found = {"size": block.size, "n": n, "d": self.problem[1].shape[1], "k": k, "family": block.family}
        return found | {"threads": block.threads, "rounds": count, "entries": entries}

    def _load(self, block, row, competitor):
        worker = self.worker(row["name"], block.threads)
        budgets = self.budgets(competitor.solves, block.size)
        with_truth = row["name"] in FLOORS
        try:
            worker.ask("load", self.folder, row["storage"], SIZES[block.size][2], budgets, with_truth)
            if volume(block.size) < 2e9:  # what is compiled, planned or allocated at the first call: not in the times
                worker.ask("run", row["storage"], 1)
        except Failed as error:
            self._drop(row["name"], block.threads)
            return str(error)
        return None

    def _one(self, block, row, count, volume):
        loops = max(1, int(0.02 / (volume * 1e-10)))  # tiny sizes: several calls to one reading
        try:
            worker = self.worker(row["name"], block.threads)
            time.sleep(0.1)  # a BLAS's threads spin on for a while after its last call: not into the next one's time
            row["runs"][count] = worker.ask("run", row["storage"], loops, seconds=self.args.limit)
        except Failed as error:
            row["error"] = str(error)

    def _drop(self, name, threads):
        try:
            if (name, threads) in self.workers:
                self.workers[name, threads].ask("drop")
        except Failed:
            self.workers.pop((name, threads)).close()

    def _judge(self, block, row):
        """Medians, agreement and rates of one line, and print it."""
        competitor, runs = COMPETITORS.get(row["name"], Competitor(None, reads="")), row.pop("runs")
        n, _, k = SIZES[block.size]
        row["seconds"] = {count: run["seconds"] for count, run in runs.items()}
        if runs and row["error"] is None:
            last = runs[max(runs)]
            row |= {key: last[key] for key in ("stats", "status", "residual") if key in last}
            for part in ("product", "updates"):
                if part in last:
                    row[part] = statistics.median(run[part] for run in runs.values())
            row["median"] = seconds = statistics.median(row["seconds"].values())
            added = [run["added_bytes"] for run in runs.values() if run["added_bytes"] is not None]
            row["added_bytes"] = max(added) if added else None
            size = n * self.problem[1].shape[1]
            read = (last.get("stats") or {}).get("bytes_read") or 0
            if competitor.reads == "k":
                read, row["GFLOP_per_s"] = k * size * ITEM[row["storage"]], 2e-9 * k * size / seconds
            elif competitor.reads == "gram":
                row["GFLOP_per_s"] = 1e-9 * n * size / seconds
            if read:
                row["GB_per_s"] = 1e-9 * read / seconds
            if "picks" in last:
                truth = self.truth(competitor, row["storage"], block.size)
                row["picks"] = None if truth is None else agreement(truth, last["picks"], competitor.ordered)
                row["peer"] = competitor.exact
        return row

    def close(self):
        for worker in self.workers.values():
            worker.close()


def _ratios(entries):
    """Seconds over those of the first line, round by round: the median."""
    base = entries[0]["seconds"]
    for row in entries:
        shared = [row["seconds"][count] / base[count] for count in row["seconds"] if count in base]
        row["ratio"] = statistics.median(shared) if shared and row["error"] is None else None


def limits(threads):
    """`machine.limits` in a process with that many threads."""
    worker = Worker("floor: one pass", threads)
    try:
        return worker.ask("limits")
    finally:
        worker.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", nargs="*", metavar="SIZE", help="s1 .. s5; default: all")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--all", action="store_true", help="run everybody and every family at every size: an hour")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=8.0, help="no round but the first three starts later")
    parser.add_argument("--minutes", type=float, default=10.0, help="blocks that start later are run for one round")
    parser.add_argument("--patience", type=float, default=8.0, help="run once who takes longer")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds a single solve may take")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "peers.json")
    args = parser.parse_args()
    for size in args.sizes:
        if size not in SIZES:
            parser.error(f"SIZE: expected one of {', '.join(SIZES)}, got {size!r}")
    if args.quick:
        args.rounds = min(args.rounds, 2)
    started = time.time()
    config = pysubmod.show_config(mode="dicts")
    report = {"machine": machine.name(), "date": time.strftime("%Y-%m-%d"), "command": " ".join(sys.argv)}
    report |= {"config": config, "versions": versions(), "limits": {}, "blocks": []}
    for threads in sorted({1, machine.cores()}):
        report["limits"][str(threads)] = limits(threads)
    print(f"{report['machine']}; {report['limits']}")
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        bench = Bench(Path(folder), args)
        try:
            for block in plan(args.sizes or (("s1", "s2") if args.quick else SIZES), args.quick, args.all):
                report["blocks"].append(found := bench.run(block))
                print(peer_report.block_text(found), flush=True)
                report["seconds"] = time.time() - started
                args.output.write_text(json.dumps(report, indent=1), encoding="utf-8")
        finally:
            bench.close()
    args.output.with_suffix(".md").write_text(peer_report.markdown(report), encoding="utf-8")
    print(f"{args.output} and .md, after {report['seconds']:.0f} s")


if __name__ == "__main__":
    main()
