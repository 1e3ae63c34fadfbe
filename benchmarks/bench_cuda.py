"""The CUDA solver against torch loops, another package, our CPU solver, and what the card allows.

    python benchmarks/bench_cuda.py                  everything: some minutes
    python benchmarks/bench_cuda.py --quick          fewer cases, smaller rows, fewer rounds
    python benchmarks/bench_cuda.py --only gram      one part: gram, batch, rows or dense
    python benchmarks/bench_cuda.py --rehearse       tiny problems on the CPU, to try the script; writes nothing

Needs a CUDA device and torch with CUDA; without them it says so and ends well. `make bench-cuda` builds first.

Everybody solves the same problem in turn. "ms" is the median time from an idle device to a result that lies there, by
CUDA events, the work of the host included; "alone" is that of the device, for calls that do not wait for it (all of it
was queued before any of it ran). The loops are those of cuda_peers.py, which the tests hold against pysubmod.

Picks are compared with our CPU solver's on the same numbers. The program fails if ours are not those, weights included
(1e-6 of the largest). Writes results/cuda.json and results/cuda.md (cuda_report.py).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

try:
    import torch
except ImportError:
    torch = None
import numpy as np
from problems import family
from truth import agreement

import pysubmod
from pysubmod import GradientMatching, PartitionMatroid, omp_partition, solve, solve_batch

RESULTS = Path(__file__).resolve().parent / "results"
PARTS = ("gram", "batch", "rows", "dense")
CLOSE = 1e-6  # weights, relative to the largest


@dataclass
class Sizes:
    """What the parts run on: (n, k) with K given; (problems, n, k); and (n, d, k, groups) of rows, wide and tall."""

    gram: tuple = ((1024, 128), (256, 32), (4096, 256))
    columns: int = 2048  # of the rows that K is made of
    storages: tuple = ("float32", "float64")
    batch: tuple = (64, 256, 32)
    wide: tuple = (1024, 2_300_000, 128, 8)
    tall: tuple = (1_000_000, 1024, 256, 16)
    few_picks: int = 8  # of the loop that reads the tall rows for each pick


QUICK = Sizes(gram=((1024, 128), (256, 32)), storages=("float32",), wide=(1024, 262_144, 128, 8),
              tall=(131_072, 1024, 128, 16), few_picks=4)  # fmt: skip
TINY = Sizes(gram=((64, 16),), columns=48, batch=(3, 64, 16), wide=(48, 300, 16, 8), tall=(500, 32, 16, 4), few_picks=3)


@dataclass
class Entry:
    """One line of a table."""

    call: Callable
    picks: Callable | None = None  # of a result: its picks in order, and its weights or None
    ours: bool = False
    queues: bool = False  # returns before the device is done, so that the device can be timed alone
    share: float = 1.0  # of the work that is done: the time is divided by it
    note: str = ""


def once(make):
    """A call that is made when it is first wanted: what fails then is an entry's own failure."""
    made = []

    def call():
        if not made:
            made.append(make())
        return made[0]()

    return call


def selection_picks(result):
    """Of a Selection or a DeviceSelection, or a list of them (one behind the other)."""
    found = []
    for part in result if isinstance(result, list) else [result]:
        part = part.result() if isinstance(part, pysubmod.DeviceSelection) else part
        found += part if isinstance(part, list) else [part]
    return np.concatenate([s.indices for s in found]), np.concatenate([s.weights for s in found])


def tensor_picks(result):
    return tuple(part.detach().cpu().double().flatten().numpy() for part in result)


class Bench:
    """Runs blocks, judges their picks, and keeps the report."""

    def __init__(self, place, sizes, *, repeats, seconds, report):
        self.place, self.sizes, self.repeats, self.seconds = place, sizes, repeats, seconds
        self.report, self.wrong = report, []

    @property
    def limits(self):
        return self.report["limits"]

    def block(self, part, title, entries, expected, *, floors=None, kernels=None, derive=None):
        """Time the entries in turn; the first is what ratios are taken to. Returns {name: row}.

        `derive` makes another row of these; `kernels` is a call to be taken apart.
        """
        calls = {name: entry.call for name, entry in entries.items()}
        times, results = self.place.measure(calls, self.repeats, self.seconds)
        rows = {}
        for name, entry in entries.items():
            row = {"name": name, "error": times[name].error, "runs": len(times[name].runs), "note": entry.note}
            rows[name] = row
            if row["error"] is None:
                runs = [run / entry.share for run in times[name].runs]
                row |= {"ms": times[name].median / entry.share, "low": min(runs), "high": max(runs)}
                row["alone"] = self.place.alone(entry.call) if entry.queues else None
                row["picks"] = self._judge(entry, results[name], expected)
            if entry.ours and (row["error"] or (row["picks"] and not row["picks"]["same"])):
                self.wrong.append(f"{title}: {name}")
        if derive is not None and (row := derive(rows)):
            rows[row["name"]] = row
        base = next(iter(rows.values())).get("ms")
        for row in rows.values():
            row["ratio"] = row["ms"] / base if base and row.get("ms") else None
        block = {"part": part, "title": title, "rows": list(rows.values()), "floors": floors or {}}
        block["kernels"] = self.place.parts(kernels) if kernels else {}
        self.report["blocks"].append(block)
        say(cuda_report.block_text(block))
        return rows

    @staticmethod
    def _judge(entry, result, expected):
        if entry.picks is None or expected is None:
            return None
        picks, weights = entry.picks(result)
        judged = agreement(expected[0], picks)
        if entry.ours and judged["same"]:
            judged["same"] = bool(np.allclose(weights, expected[1], rtol=0, atol=CLOSE * np.abs(expected[1]).max()))
        return judged

    def target(self, what, found, limit, *, at_least=False):
        """A line of the table of targets; `found` is None where it could not be measured."""
        met = None if found is None else bool(found >= limit if at_least else found <= limit)
        self.report["targets"].append({"what": what, "found": found, "limit": limit, "least": at_least, "met": met})


# ---- K is given ------------------------------------------------------------------------------------------------------


class GramCase:
    """K of gradient-like rows of length one in 8 groups, on the device and on the host; c; budgets of k picks."""

    def __init__(self, place, n, k, columns, storage, *, nonneg, grouped, seed=0):
        G, target, codes = family("gradient_like", n, columns, seed)
        G = G.astype(np.float64)
        G /= np.linalg.norm(G, axis=1, keepdims=True)
        target = target / np.linalg.norm(target)
        kind = getattr(torch, storage)
        self.K = torch.tensor(G @ G.T).to(kind).to(place.device)
        self.c = torch.tensor(G @ target).to(place.device)
        self.groups = torch.tensor(codes if grouped else np.zeros(n, int)).to(place.device)
        self.budgets = [k // 8] * 8 if grouped else [k]
        self.matroid = PartitionMatroid(codes, dict.fromkeys(range(8), k // 8)) if grouped else k
        self.nonneg, self.k = nonneg, k
        self.there = GradientMatching.from_gram(place.put(self.K), place.put(self.c), nonneg=nonneg)
        self.here = GradientMatching.from_gram(self.K.cpu().numpy(), self.c.cpu().numpy(), nonneg=nonneg)

    def loop(self, storage):
        """A pursuit as torch calls, in that arithmetic; K is converted in the call."""
        kind = getattr(torch, storage)
        pursuit = cuda_peers.nonnegative_pursuit if self.nonneg else cuda_peers.free_pursuit
        return lambda: pursuit(self.K.to(kind), self.c.to(kind), self.groups, self.budgets)

    def apgd(self, place, pick, graphed):
        """PartitionSel's loop; of `graphed` a CUDA graph has the launches of a pick."""

        def make():
            peer = cuda_peers.ApgdSelection(self.K, self.c.to(self.K.dtype), self.groups, self.budgets, pick=pick)
            step = place.graphed(peer.step) if graphed else None
            return lambda: peer.run(step)

        return once(make)


def gram_entries(place, case, storage):
    result = {"picks": selection_picks, "ours": True}
    entries = {
        "pysubmod": Entry(lambda: solve_batch([case.there], case.matroid, **place.output), queues=True, **result),
        "pysubmod, to a Selection": Entry(lambda: solve(case.there, case.matroid), **result),
    }
    for arithmetic in dict.fromkeys(("float64", storage)):
        entries[f"torch loop, {arithmetic}"] = Entry(case.loop(arithmetic), tensor_picks)
    if not case.nonneg:
        budgets, kind = torch.tensor(case.budgets, device=place.device), case.K.dtype
        call = once(
            lambda: place.graphed(
                lambda: cuda_peers.free_pursuit(case.K, case.c.to(kind), case.groups, budgets, k=case.k)
            )
        )
        entries[f"torch loop, {storage}, one CUDA graph"] = Entry(call, tensor_picks, queues=True)
    if not case.nonneg and len(case.budgets) == 1 and cuda_peers.has_omp_gpu():
        entries["orthogonal-matching-pursuit-gpu, v0"] = Entry(
            lambda: cuda_peers.omp_gpu(case.K, case.c.to(case.K.dtype), case.k), tensor_picks
        )
    if case.nonneg and storage == "float32":
        for pick in ("argmax", "random"):
            name = f"APGD refits, {pick}, a CUDA graph a pick"
            entries[name] = Entry(case.apgd(place, pick, True), tensor_picks if pick == "argmax" else None)
        if len(case.c) <= 1024:
            entries["APGD refits, argmax"] = Entry(case.apgd(place, "argmax", False), tensor_picks)
    entries["pysubmod on the CPU"] = Entry(lambda: solve(case.here, case.matroid), selection_picks)
    entries["pysubmod on the CPU, K copied there"] = Entry(
        lambda: solve(case.there.cpu(), case.matroid), selection_picks
    )
    return entries


def gram_floors(n, k, item, limits, facts, blocks):
    """Milliseconds that the kernel cannot do without, each as if there were nothing else, on the blocks it runs on.

    The counts are those of the usual pick: w >= 0, nobody drops out (kernels/README.md).
    """
    share = blocks / facts["multiprocessors"]
    read = item * n * k * (k - 1) / 2
    additions = n * k * k / 2 + blocks * k**3 / 2
    across = cuda_model.CLUSTER_BARRIERS if blocks > 1 else 0
    clocks = cuda_model.BARRIERS * cuda_model.BARRIER_CLOCKS + across * cuda_model.CLUSTER_BARRIER_CLOCKS
    return {
        f"{read / 1e6:.3g} MB of K (members' rows, for each pick again), at this many multiprocessors' share of the "
        "measured rate of the second-level cache": 1e-6 * read / (limits["L2_read_GB_per_s"] * share),
        f"{additions / 1e6:.3g} M fused multiply-adds in float64, at their share of half the rate of a matrix product":
            4e-9 * additions / (limits["float64_TFLOP_per_s"] * share),
        f"{cuda_model.BARRIERS} barriers in a block and {across} across blocks for each pick, as long as "
        "cuda_model.py thinks them": 1e-3 * k * clocks / cuda_model.MHZ,
    }  # fmt: skip


def run_gram(bench):
    place, sizes = bench.place, bench.sizes
    for n, k in sizes.gram:
        for storage in sizes.storages:
            for nonneg, grouped in ((True, True), (False, True), (False, False)):
                case = GramCase(place, n, k, sizes.columns, storage, nonneg=nonneg, grouped=grouped)
                expected = selection_picks(solve(case.here, case.matroid))
                blocks = (solve(case.there, case.matroid).stats.get("launch") or {"blocks": 1})["blocks"]
                facts = bench.report["card"]
                floors = gram_floors(n, k, case.K.element_size(), bench.limits, facts, blocks)
                what = ("w >= 0" if nonneg else "free weights") + (", 8 groups" if grouped else ", no groups")
                title = f"K given, n = {n}, k = {k}, {storage}, {what} (on {blocks} multiprocessors)"
                entries = gram_entries(place, case, storage)
                kernels = entries["pysubmod"].call
                rows = bench.block("gram", title, entries, expected, floors=floors, kernels=kernels)
                if nonneg and (n, k) in ((1024, 128), (256, 32)) and storage == "float32":
                    ours, loop = rows["pysubmod"], rows["torch loop, float32"]
                    bench.target(f"K given, n={n}, k={k}, w >= 0, device alone, ms", ours.get("alone"),
                                 1.0 if n == 1024 else 0.2)  # fmt: skip
                    bench.target(
                        f"the same against the torch loop in float32, call to result, times (n={n})",
                        loop["ms"] / ours["ms"] if loop.get("ms") and ours.get("ms") else None, 15, at_least=True,
                    )  # fmt: skip


# ---- many problems ---------------------------------------------------------------------------------------------------


def run_batch(bench):
    place = bench.place
    count, n, k = bench.sizes.batch
    cases = [
        GramCase(place, n, k, bench.sizes.columns, "float32", nonneg=True, grouped=True, seed=seed)
        for seed in range(count)
    ]
    there, matroids = [case.there for case in cases], [case.matroid for case in cases]
    expected = selection_picks([solve(case.here, case.matroid) for case in cases])
    K, c, groups = (torch.stack([getattr(case, name) for case in cases]) for name in ("K", "c", "groups"))
    budgets = torch.tensor([case.budgets for case in cases], device=place.device)

    def each():
        return [solve_batch([one], matroid, **place.output) for one, matroid in zip(there, matroids, strict=True)]

    def batched(kind):
        return lambda: cuda_peers.batched_pursuit(K.to(kind), c.to(kind), groups, budgets)

    loop = cases[0].loop("float32")
    entries = {
        "pysubmod, one call": Entry(
            lambda: solve_batch(there, matroids, **place.output), selection_picks, ours=True, queues=True
        ),
        "pysubmod, a call for each": Entry(each, selection_picks, ours=True, queues=True),
        "torch loop, float32, all problems in step": Entry(batched(torch.float32), tensor_picks),
        "torch loop, float64, all problems in step": Entry(batched(torch.float64), tensor_picks),
        "torch loop, float32, one after another": Entry(loop, share=1 / count, note=f"one problem, times {count}"),
        "pysubmod on the CPU": Entry(
            lambda: [solve(case.here, case.matroid) for case in cases], selection_picks
        ),
    }  # fmt: skip
    title = f"{count} problems at once, K given, n = {n}, k = {k}, float32, w >= 0, 8 groups"
    rows = bench.block("batch", title, entries, expected, kernels=entries["pysubmod, one call"].call)
    ours = rows["pysubmod, one call"]
    bench.target(f"{count} problems of n={n}, k={k}, device alone, ms", ours.get("alone"), 1.0)
    bench.target(f"{count} problems of n={n}, k={k}, call to result, ms", ours.get("ms"), 1.0)


# ---- from rows -------------------------------------------------------------------------------------------------------


def rows_on(device, n, d, n_groups, kind, seed=0):
    """Gradient-like rows, 0.8 to 4 long, made on the device a slab at a time; a target; groups.

    The law of problems.py (domain means, low-rank variation inside a domain, noise), drawn by torch.
    """
    draw = torch.Generator(device=device).manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=draw, device=device)

    means = normal(n_groups, d).add_(normal(1, d)).div_(d**0.5)
    factors = [normal(6, d).div_((6 * d) ** 0.5) for _ in range(n_groups)]

    def law(codes):
        rows = normal(len(codes), d).mul_(0.5 / d**0.5).add_(means[codes])
        for p in range(n_groups):
            inside = (codes == p).nonzero()[:, 0]
            rows.index_add_(0, inside, normal(len(inside), 6) @ factors[p])
        return rows

    target = law(torch.arange(n_groups, device=device).repeat_interleave(8)).mean(0).double()
    groups = torch.randint(n_groups, (n,), generator=draw, device=device)
    G = torch.empty(n, d, dtype=kind, device=device)
    for codes, out in zip(groups.split(step := max(1, 2**25 // d)), G.split(step), strict=True):
        out.copy_(law(codes) * (1.6 * normal(len(codes), 1).clamp_(-1, 1) / 2).exp())
    return G, target, groups


class RowsCase:
    """bfloat16 rows on the device; the CPU solves the same where the host has room for a copy."""

    def __init__(self, place, shape, *, nonneg=True, check=True):
        n, d, k, n_groups = shape
        self.G, self.target, self.codes = rows_on(place.device, n, d, n_groups, torch.bfloat16)
        self.budgets = [k // n_groups] * n_groups
        self.labels, self.given = self.codes.cpu().numpy(), dict(enumerate(self.budgets))
        self.matroid, self.options = PartitionMatroid(self.labels, self.given), {"nonneg": nonneg}
        self.rows = (place.put(self.G), place.put(self.target))
        self.there = (*self.rows, self.matroid)
        self.cpu_seconds, self.expected = None, None
        if check and card.host_bytes() > 2.5 * self.G.nbytes:
            started = time.perf_counter()
            found = omp_partition(self.G.cpu(), self.target.cpu(), self.matroid, **self.options)
            self.cpu_seconds, self.expected = time.perf_counter() - started, selection_picks(found)

    def cpu_text(self):
        if self.cpu_seconds is None:
            return "picks not checked: the host has no room for a copy of the rows"
        return f"our CPU solver took {self.cpu_seconds:.2f} s, once, the copy included"


def fitting(place, shape, growth, axis):
    """The shape with fewer rows or columns where the device has no room for it (and `growth` times as much again)."""
    n, d, *rest = shape
    room = place.free_bytes() / (2 * n * d * (1 + growth) + 2**29)
    if room >= 1 or place.is_rehearsal:
        return shape, ""
    size = [n, d]
    size[axis] = int(size[axis] * room * 0.9) // 1024 * 1024
    return (*size, *rest), f" (cut from {n} x {d}: not enough memory)"


def run_rows(bench):
    """n rows and very many columns: K is one matrix product, and most of the time."""
    place = bench.place
    shape, cut = fitting(place, bench.sizes.wide, 0.2, 1)
    n, d, k, n_groups = shape
    case = RowsCase(place, shape)
    G, limits = case.G, bench.limits
    ran = omp_partition(*case.there, **case.options).stats
    entries = {
        "torch.matmul(G, G')": Entry(lambda: G @ G.T, queues=True, note="bfloat16 in and out: its K has three digits"),
        "pysubmod": Entry(
            lambda: omp_partition(*case.there, **case.options, **place.output),
            selection_picks, ours=True, queues=True, note=f"product: {ran.get('product')}, {ran.get('product_type')}",
        ),
        "pysubmod, to a Selection": Entry(
            lambda: omp_partition(*case.there, **case.options), selection_picks, ours=True, note=case.cpu_text()
        ),
    }  # fmt: skip
    floors = {
        f"{2e-12 * n * n * d:.2f} TFLOP at the measured rate in bfloat16":
            2e-9 * n * n * d / limits["bfloat16_TFLOP_per_s"],
        f"{2e-9 * n * d:.2f} GB read once": 2e-6 * n * d / limits["read_GB_per_s"],
    }  # fmt: skip
    title = f"From rows, {n} x {d} bfloat16, k = {k}, w >= 0, {n_groups} groups{cut}"
    rows = bench.block("rows", title, entries, case.expected, floors=floors, kernels=entries["pysubmod"].call)
    for name, which in (("device alone", "alone"), ("call to result", "ms")):
        product, ours = rows["torch.matmul(G, G')"].get(which), rows["pysubmod"].get(which)
        bench.target(f"from rows {n} x {d}, over the product's own time, {name}",
                     ours / product if ours and product else None, 1.3)  # fmt: skip


def run_dense(bench):
    """Very many rows: what counts is how often they are read."""
    place = bench.place
    shape, cut = fitting(place, bench.sizes.tall, 0.2, 0)
    n, d, k, n_groups = shape
    case = RowsCase(place, shape)
    few, options = bench.sizes.few_picks, {"route": "draft"} if place.output else {}

    def loop(most):
        return lambda: cuda_peers.stepwise_pursuit(case.G, case.target, case.codes, case.budgets, most=most)

    def all_picks(rows):
        first, several = (rows[name].get("ms") for name in ("torch loop, the first pick", f"torch loop, {few} picks"))
        if first is None or several is None:
            return None
        each = (several - first) / (few - 1)
        row = {"name": "torch loop, one pass a pick", "error": None, "runs": 0, "alone": None, "picks": None}
        row |= dict.fromkeys(("ms", "low", "high"), first + (k - 1) * each)
        return row | {"note": f"computed: the first pick, and {k - 1} at {each:.3g} ms as between the two lines above"}

    ran = omp_partition(*case.there, **case.options, **options).stats
    entries = {
        "pysubmod": Entry(
            lambda: omp_partition(*case.there, **case.options, **options), selection_picks, ours=True,
            note=f"route {ran['route']}, {ran['passes']} passes; {case.cpu_text()}",
        ),
        "pysubmod, labels and all": Entry(
            lambda: omp_partition(*case.rows, case.given, groups=case.labels, **case.options, **options),
            selection_picks, ours=True, note="the constraint made in the call, too; above it is at hand",
        ),
        "torch loop, the first pick": Entry(loop(1), note="norms and correlations of all rows included"),
        f"torch loop, {few} picks": Entry(loop(few), note="a pass for each, the residual rounded to bfloat16"),
        "torch: one product G r": Entry(
            lambda: case.G @ case.target.to(case.G.dtype), queues=True, note="a pass of the loop above"
        ),
    }  # fmt: skip
    bytes_, rate = 2 * n * d, bench.limits["read_GB_per_s"]
    floor = 1e-6 * ran["passes"] * bytes_ / rate
    floors = {
        f"{ran['passes']} passes over {1e-9 * bytes_:.2f} GB at the measured rate of reading": floor,
        f"{k} passes": 1e-6 * k * bytes_ / rate,
    }
    title = f"Dense route, {n} x {d} bfloat16, k = {k}, w >= 0, {n_groups} groups{cut}"
    rows = bench.block("dense", title, entries, case.expected, floors=floors, kernels=entries["pysubmod"].call,
                       derive=all_picks)  # fmt: skip
    ours, stepwise = rows["pysubmod"].get("ms"), rows.get("torch loop, one pass a pick", {}).get("ms")
    bench.target(f"dense {n} x {d}, k={k}, over the floor of its passes", ours / floor if ours else None, 3.0)
    bench.target(f"dense {n} x {d}, k={k}, passes", ran["passes"], 32)
    bench.target("dense, against one pass a pick in torch, times", stepwise / ours if ours and stepwise else None, 3.0,
                 at_least=True)  # fmt: skip


# ---- the program -----------------------------------------------------------------------------------------------------


def run(place, sizes, only=PARTS, *, repeats=20, seconds=2.0):
    """The report, and which lines of ours were wrong."""
    torch.backends.cuda.matmul.allow_tf32 = False  # float32 means float32
    report = {"card": place.facts(), "command": " ".join(sys.argv), "date": time.strftime("%Y-%m-%d")}
    report |= {"commit": card.commit(), "repeats": repeats, "cpu": machine.name()}
    report["omp_gpu"] = "installed" if cuda_peers.has_omp_gpu() else "not installed"
    report |= {"limits": card.limits(place, min(1.0, seconds)), "targets": [], "blocks": []}
    say(cuda_report.limits_text(report))
    bench = Bench(place, sizes, repeats=repeats, seconds=seconds, report=report)
    for part, function in zip(PARTS, (run_gram, run_batch, run_rows, run_dense), strict=True):
        if part in only:
            function(bench)
            place.free_bytes()  # gives back what torch keeps of this part
    return report, bench.wrong


def why_not():
    """What is missing, or None."""
    if torch is None:
        return "torch is not installed"
    place, reason = card.find()
    if place is None:
        return reason
    if not any(entry["device"] != "cpu" for entry in pysubmod.available_devices()):
        return "this build of pysubmod has no CUDA device (make bench-cuda builds it)"
    return None


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="NAME", help=", ".join(PARTS))
    parser.add_argument("--repeats", type=int, default=20, help="rounds")
    parser.add_argument("--seconds", type=float, default=2.0, help="who took so long drops out after three rounds")
    parser.add_argument("--rehearse", action="store_true", help="tiny problems on the CPU; nothing is written")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "cuda.json")
    args = parser.parse_args(argv)
    missing = None if args.rehearse and torch is not None else why_not()
    if missing:
        say(f"bench_cuda: not run, and nothing written: {missing}")
        return
    if args.rehearse:
        place, sizes, effort = card.Rehearsal(), TINY, {"repeats": 1, "seconds": 0.1}
    else:
        place, sizes = card.Card(), QUICK if args.quick else Sizes()
        effort = {"repeats": min(5, args.repeats) if args.quick else args.repeats, "seconds": args.seconds}
    report, wrong = run(place, sizes, args.only, **effort)
    say(cuda_report.targets_text(report))
    if not args.rehearse:
        args.output.write_text(json.dumps(report, indent=1), encoding="utf-8")
        args.output.with_suffix(".md").write_text(cuda_report.markdown(report), encoding="utf-8")
        say(f"{args.output} and .md")
    if wrong:
        sys.exit("not the CPU's picks: " + "; ".join(wrong))


def say(text):
    print(text, flush=True)


if torch is not None:
    import card
    import cuda_model
    import cuda_peers
    import cuda_report
    import machine

if __name__ == "__main__":
    main()
