"""The tables of bench_cuda.py: text while it runs, and Markdown.

python benchmarks/cuda_report.py results/cuda.json    writes results/cuda.md once more
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from peer_report import agreement_text

FACTS = ("driver", "most_MHz", "watts", "torch", "cuda")


def limits_text(report):
    """The card, and what it was measured to do."""
    limits, card = report["limits"], report["card"]
    size = card.get("memory_bytes")
    lines = [
        f"{card['name']}, {card['multiprocessors']} multiprocessors"
        + (f", {size / 2**30:.0f} GiB" if size else "")
        + (f", L2 {card['L2_bytes'] / 2**20:.0f} MiB" if card.get("L2_bytes") else "")
        + "".join(f", {name} {card[name]}" for name in FACTS if name in card),
        f"copy {limits['copy_GB_per_s']:.0f} GB/s, read {limits['read_GB_per_s']:.0f} GB/s, second-level cache "
        f"{limits['L2_read_GB_per_s']:.0f} GB/s; matrix products "
        + ", ".join(f"{name} {limits[f'{name}_TFLOP_per_s']:.3g}" for name in ("bfloat16", "float32", "float64"))
        + f" TFLOP/s; a torch call {limits['launch_us']:.1f} us, one that is waited for {limits['wait_us']:.1f} us",
    ]
    return "\n".join(lines)


def _picks(row):
    return agreement_text(row["picks"]) if row.get("picks") else "-"


def _ms(value):
    return "-" if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"


def block_text(block):
    """One block as it is printed while the benchmark runs."""
    lines = ["", block["title"]]
    for row in block["rows"]:
        if row["error"]:
            lines.append(f"  {row['name']:46} {row['error']}")
            continue
        lines.append(
            f"  {row['name']:46} {_ms(row['ms']):>8} ms  alone {_ms(row['alone']):>7}  x{row['ratio']:<8.2f}"
            f" {_picks(row)}  {row['note']}"
        )
    lines += [f"  floor {_ms(ms)} ms: {what}" for what, ms in block["floors"].items()]
    lines += [f"  kernel {name}: {count} launches, {ms:.3f} ms" for name, (count, ms) in block["kernels"].items()]
    return "\n".join(lines)


def _target(target):
    sign = ">=" if target["least"] else "<="
    met = {True: "yes", False: "**no**", None: "not measured"}[target["met"]]
    return target["what"], f"{sign} {target['limit']:g}", _ms(target["found"]), met


def targets_text(report):
    return "\n".join(["", "Targets"] + ["  {}: {}, found {}: {}".format(*_target(t)) for t in report["targets"]])


def markdown(report):
    """The page."""
    first, second = limits_text(report).split("\n")
    lines = [
        "# The CUDA solver",
        "",
        f"`{report['command']}`, {report['date']}, at commit {report['commit']}. {first}; {second}. Host: "
        f"{report['cpu']}. orthogonal-matching-pursuit-gpu: {report['omp_gpu']}.",
        "",
        f"Medians of up to {report['repeats']} interleaved rounds (at least three), by CUDA events. ms: from an idle "
        "device to a result that lies there, the host's work included. alone: of the device only. Ratio: over the "
        "first line. Picks: are they those of our CPU solver on the same numbers, in order? (Drawn picks: -.)",
    ]
    if report["targets"]:
        lines += ["", "| target | | found | met |", "|---|---|---|---|"]
        lines += ["| {} | {} | {} | {} |".format(*_target(target)) for target in report["targets"]]
    for block in report["blocks"]:
        lines += ["", f"## {block['title']}", "", "| | ms | least, most | alone | ratio | picks | |", "|---" * 7 + "|"]
        for row in block["rows"]:
            if row["error"]:
                lines.append(f"| {row['name']} | | | | | | {row['error']} |")
                continue
            lines.append(
                f"| {row['name']} | {_ms(row['ms'])} | {_ms(row['low'])}, {_ms(row['high'])} | {_ms(row['alone'])} | "
                f"{row['ratio']:.2f} | {_picks(row)} | {row['note']} |"
            )
        if block["floors"]:
            lines += ["", "Floors: " + "; ".join(f"{_ms(ms)} ms, {what}" for what, ms in block["floors"].items()) + "."]
        if block["kernels"]:
            parts = (f"{name} {ms:.3f} ({count})" for name, (count, ms) in list(block["kernels"].items())[:16])
            lines += ["", "Kernels of one call, ms (launches), by torch's profiler: " + ", ".join(parts) + "."]
    return "\n".join(lines) + "\n"


def main():
    path = Path(sys.argv[1])
    report = json.loads(path.read_text(encoding="utf-8"))
    path.with_suffix(".md").write_text(markdown(report), encoding="utf-8")


if __name__ == "__main__":
    main()
