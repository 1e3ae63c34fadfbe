"""How the time grows with n, d, k and threads: curves, fitted exponents, and the picture of the README.

    python benchmarks/bench_scaling.py                two minutes
    python benchmarks/bench_scaling.py --rounds 1 --quick

Gradient-like float32 rows, free weights, no groups: what the peers can do too. One of n, d, k varies, the others stay
at n = 4096, d = 2048, k = 64; everybody solves each problem in turn, `rounds` times, in a process of its own. An
exponent is the slope of the least-squares line through the logarithms of the larger half of the points. Writes
results/scaling.json, results/scaling.md and results/scaling.png.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import machine

if __name__ == "__main__":  # not in the processes of the competitors, which import this file too
    machine.set_threads(machine.cores())

import numpy as np
from peers import COMPETITORS, is_installed
from problems import family
from worker import Failed, Worker

RESULTS = Path(__file__).resolve().parent / "results"
BASE = {"n": 4096, "d": 2048, "k": 64}
POINTS = {
    "n": (512, 1024, 2048, 4096, 8192, 16384, 32768),
    "d": (256, 512, 1024, 2048, 4096, 8192, 16384),
    "k": (16, 32, 64, 128, 256, 512),
}
METHODS = ("pysubmod", "NumPy, columns on demand", "NumPy, full Gram", "spams")
LARGEST_GRAM = 8192  # rows


class Scaling:
    """Problems cut out of the largest one of their axis, and a process for each method."""

    def __init__(self, folder, rounds):
        self.folder, self.rounds = folder, rounds
        self.workers = {}

    def points(self, axis, values, methods, threads):
        """Seconds (median, and all) of every method at every value of an axis."""
        largest = BASE | {axis: max(values)} if axis != "threads" else BASE
        G, target, _ = family("gradient_like", largest["n"], largest["d"], 0)
        found = []
        for value in values:
            size = BASE | ({axis: value} if axis != "threads" else {})
            np.save(self.folder / "G.npy", np.ascontiguousarray(G[: size["n"], : size["d"]]))
            np.save(self.folder / "target.npy", target[: size["d"]].astype(np.float32))
            on = value if axis == "threads" else threads
            times = self.point([m for m in methods if size["n"] <= LARGEST_GRAM or "Gram" not in m], size["k"], on)
            for method, seconds in times.items():
                found.append({"axis": axis, "value": value, "method": method, "threads": on, **size})
                found[-1] |= {"seconds": statistics.median(seconds), "all": seconds}
                print(f"{axis} = {value:6} {method:28} {1e3 * found[-1]['seconds']:10.3f} ms", flush=True)
        return found

    def point(self, methods, k, threads):
        times = {}
        for method in methods:
            if (method, threads) not in self.workers:
                self.workers[method, threads] = Worker(method, threads)
            worker = self.workers[method, threads]
            worker.ask("load", self.folder, "float32", k, {}, False)
            worker.ask("run", "float32", 1)
            times[method] = []
        for _ in range(self.rounds):
            for method, seconds in times.items():
                time.sleep(0.1)  # a BLAS's threads spin on for a while after its last call
                loops = 1 if not seconds or seconds[0] > 0.02 else 5
                seconds.append(self.workers[method, threads].ask("run", "float32", loops)["seconds"])
        for method in methods:
            self.workers[method, threads].ask("drop")
        return times

    def close(self):
        for worker in self.workers.values():
            worker.close()


def exponent(values, seconds):
    """The slope of log seconds over log size through the larger half of the points; None for fewer than three."""
    few = max(3, (len(values) + 1) // 2)
    if len(values) < 3:
        return None
    return float(np.polyfit(np.log(values[-few:]), np.log(seconds[-few:]), 1)[0])


def curves(points, axis):
    """{method: (values, seconds)} of an axis."""
    found = {}
    for point in points:
        if point["axis"] == axis:
            values, seconds = found.setdefault(point["method"], ([], []))
            values.append(point["value"])
            seconds.append(point["seconds"])
    return found


# ---- picture and table -----------------------------------------------------------------------------------------------


def draw(points, path):
    """Seconds against n, d and k on logarithmic axes, every curve labelled at its end."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullLocator

    from pysubmod.plot import BLUE, GREEN, GREY, ORANGE, save_figure

    styles = dict(
        zip(METHODS, ((BLUE, "-", "o"), (ORANGE, "--", "s"), (GREEN, "-.", "^"), (GREY, ":", "D")), strict=True)
    )
    figure, panels = plt.subplots(1, 3, figsize=(12.5, 4.0), layout="constrained", sharey=True)
    titles = {"n": "candidates n", "d": "length d of a gradient", "k": "picks k"}
    for panel, (axis, title) in zip(panels, titles.items(), strict=True):
        ends = []
        for method, (values, seconds) in curves(points, axis).items():
            colour, line, mark = styles[method]
            panel.plot(values, seconds, line, color=colour, marker=mark, markersize=4, linewidth=1.8)
            slope = exponent(values, seconds)
            label = method.replace(", ", ",\n") + ("" if slope is None else f"  ${axis}^{{{slope:.2f}}}$")
            ends.append([np.log(seconds[-1]), values[-1], seconds[-1], label, colour])
        ticks = sorted({point["value"] for point in points if point["axis"] == axis})
        fixed = ", ".join(f"{name} = {value}" for name, value in BASE.items() if name != axis)
        panel.set(xscale="log", yscale="log", xlabel=f"{title}   ({fixed})")
        panel.set_xticks(ticks[::-2], [f"{tick:,}" for tick in ticks[::-2]])
        panel.xaxis.set_minor_locator(NullLocator())
        _label_ends(panel, ends, ticks[-1])
        for side in ("top", "right"):
            panel.spines[side].set_visible(False)
        panel.grid(True, which="major", color="#DDDDDD", linewidth=0.6)
    panels[0].set_ylabel("seconds")
    save_figure(figure, path)
    plt.close(figure)


def _label_ends(panel, ends, right):
    """Labels at the right of the curves' ends, moved apart where they would overlap."""
    low, high = np.log(panel.get_ylim())
    apart = 0.1 * (high - low)
    ends.sort(key=lambda end: end[0])
    for below, above in pairwise(ends):
        above[0] = max(above[0], below[0] + apart)
    for height, x, y, label, colour in ends:
        panel.annotate(
            label,
            xy=(x, y),
            xytext=(right * 1.25, np.exp(height)),
            color=colour,
            fontsize=8.5,
            va="center",
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.5, "alpha": 0.5},
            annotation_clip=False,
        )
    panel.set_xlim(right=right * 1.15)


def markdown(report):
    lines = [
        "# Scaling",
        "",
        f"`{report['command']}`, {report['date']}, on {report['machine']}, {report['threads']} thread(s) unless said; "
        "gradient-like float32 rows, free weights; milliseconds, medians of "
        f"{report['rounds']} interleaved rounds; base n = 4096, d = 2048, k = 64.",
    ]
    for axis in dict.fromkeys(point["axis"] for point in report["points"]):
        found = curves(report["points"], axis)
        values = sorted({value for xs, _ in found.values() for value in xs})
        lines += ["", f"| {axis} | " + " | ".join(map(str, values)) + " | exponent |", "|---" * (len(values) + 2) + "|"]
        for method, (xs, seconds) in found.items():
            at = dict(zip(xs, seconds, strict=True))
            cells = [f"{1e3 * at[value]:.3g}" if value in at else "" for value in values]
            slope = exponent(xs, seconds)
            lines.append(f"| {method} | " + " | ".join(cells) + f" | {'' if slope is None else f'{slope:.2f}'} |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="four points an axis, no larger than 8192")
    parser.add_argument("--draw", action="store_true", help="draw the picture of the saved results again")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "scaling.json")
    args = parser.parse_args()
    if args.draw:
        report = json.loads(args.output.read_text(encoding="utf-8"))
    else:
        report = {"machine": machine.name(), "date": time.strftime("%Y-%m-%d"), "command": " ".join(sys.argv)}
        report |= {"rounds": args.rounds, "threads": machine.cores(), "points": measure(args)}
        args.output.write_text(json.dumps(report, indent=1), encoding="utf-8")
    args.output.with_suffix(".md").write_text(markdown(report), encoding="utf-8")
    draw(report["points"], args.output.with_suffix(".png"))


def measure(args):
    methods = [name for name in METHODS if is_installed(COMPETITORS[name])]
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        scaling, points = Scaling(Path(folder), args.rounds), []
        try:
            for axis, values in POINTS.items():
                few = [value for value in values if value <= 8192][-4:] if args.quick else values
                points += scaling.points(axis, few, methods, machine.cores())
            threads = sorted({2**i for i in range(machine.cores().bit_length())} | {machine.cores()})
            points += scaling.points("threads", threads, methods, None)
        except Failed as failure:
            raise SystemExit(f"a method failed: {failure}") from None
        finally:
            scaling.close()
    return points


if __name__ == "__main__":
    main()
