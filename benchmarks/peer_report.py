"""The tables of bench_peers.py: text while it runs, and Markdown.

python benchmarks/peer_report.py results/peers.json    writes results/peers.md once more
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

from floors import computed


def agreement_text(picks):
    """ "yes", or how far the order is that of float64 and how many picks are in common."""
    if picks is None:
        return "not checked"
    if picks["same"]:
        return "yes" if picks["lead"] is not None else "yes (set)"
    order = "" if picks["lead"] is None else f"first {picks['lead']} in order, "
    return f"{order}{picks['common']} of {picks['of']}"


def time_text(seconds):
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def best_peer(block):
    """The fastest peer that solves the same problem or a like one exactly, or None."""
    peers = [row for row in block["entries"] if row.get("peer") and row["error"] is None]
    return min(peers, key=lambda row: row["median"], default=None)


def advantage_text(block):
    """How many times as fast as the fastest peer pysubmod is, the median over rounds, and who that is."""
    best = best_peer(block)
    return f"**{best['ratio']:.2f}** ({best['name']})" if best and best["ratio"] is not None else ""


def block_text(block):
    """One block as it is printed while the benchmark runs."""
    lines = [
        f"{block['size']} {block['n']} x {block['d']}, {block['k']} picks, {block['family']}, "
        f"{block['threads']} thread(s), {block['rounds']} rounds"
    ]
    for row in block["entries"]:
        label = f"  {row['name']:32} {row['storage']:8}"
        if row["error"] is not None:
            lines.append(f"{label} {row['error']}")
            continue
        times = list(row["seconds"].values())
        line = f"{label} {time_text(row['median']):>9} ({time_text(min(times))} to {time_text(max(times))})"
        if row["ratio"] is not None:
            line += f"  x{row['ratio']:.2f}"
        if "picks" in row:
            line += f"  {agreement_text(row['picks'])}"
        if row["added_bytes"] is not None:
            line += f"  +{row['added_bytes'] / 1e6:.0f} MB"
        line += "".join(f"  {row[key]:.0f} {key[0:2]}" for key in ("GB_per_s",) if key in row)
        if row.get("stats"):
            line += f"  {row['stats']['route']}, {row['stats']['passes']} passes"
        lines.append(line)
    return "\n".join(lines)


# ---- Markdown --------------------------------------------------------------------------------------------------------


def markdown(report):
    """The page: how it was measured, one table for every kind of block, the floors, who is how right."""
    limits = "; ".join(
        f"{threads} thread(s): {found['gemv_GB_per_s']:.1f} GB/s (gemv of 268 MB), "
        f"{found['sgemm_GFLOP_per_s']:.0f} GFLOP/s"
        for threads, found in report["limits"].items()
    )
    known = {block["size"]: block for block in report["blocks"] if block["family"] == "gradient_like"}
    sizes = ", ".join(f"{b['size']} {b['n']} x {b['d']}, {b['k']} picks" for b in known.values())
    lines = [
        "# pysubmod and its peers",
        "",
        f"`{report['command']}`, {report['date']}, on {report['machine']}; {report['config']['kernels']} kernels. "
        f"NumPy's limits in the same run: {limits}.",
        "",
        f"Sizes: {sizes}. Seconds are medians over rounds in which everybody solves the same problem in turn; in "
        "brackets the time over pysubmod's, round by round (median): (3.0) took three times as long. `*`: the picks, "
        "or their order where it is told, are not those of float64 orthogonal matching pursuit on the same stored "
        "numbers (order-recursive least squares for spams and rule=greedy); `?`: not checked. spams and omp-gpu get "
        "rows of unit length, made beforehand. Slow competitors are run once.",
        "",
        "Versions: " + ", ".join(f"{name} {version}" for name, version in report["versions"].items()) + ".",
    ]
    groups: dict[tuple, list] = {}
    for block in report["blocks"]:
        groups.setdefault(_kind(block), []).append(block)
    for kind, blocks in groups.items():
        lines += ["", f"## {kind}", "", *_matrix(blocks)]
    lines += ["", "## Memory and rates", "", *_rates(report["blocks"])]
    lines += ["", "## Floors", "", *_floors(report)]
    lines += ["", "## Whose picks differ from float64", "", *_differences(report["blocks"])]
    return "\n".join(lines) + "\n"


def _kind(block):
    storages = list(dict.fromkeys(row["storage"] for row in block["entries"]))
    names = " ".join(row["name"] for row in block["entries"])
    what = "storage types" if len(storages) > 1 else storages[0]
    many = ", 256 groups" if "256 groups" in names else ""
    return f"{block['family']} rows{many}, {what}, {block['threads']} thread(s)"


def _label(row, several):
    return f"{row['name']}, {row['storage']}" if several else row["name"]


def _cell(row):
    if row is None:
        return ""
    if row["error"] is not None:
        return "failed" if not row["error"].startswith(("left out", "not installed")) else "-"
    mark = ""
    if "picks" in row:
        mark = "?" if row["picks"] is None else "" if row["picks"]["same"] else "*"
    ratio = f" ({row['ratio']:.2f})" if row["ratio"] is not None else ""
    return f"{time_text(row['median'])}{mark}{ratio}"


def _matrix(blocks):
    """Competitors down, sizes across."""
    several = len({row["storage"] for row in blocks[0]["entries"]}) > 1
    labels = list(dict.fromkeys(_label(row, several) for block in blocks for row in block["entries"]))
    lines = [
        "| | " + " | ".join(f"{b['size']}, {b['rounds']} rounds" for b in blocks) + " |",
        "|---" * (len(blocks) + 1) + "|",
    ]
    for label in labels:
        rows = [next((r for r in block["entries"] if _label(r, several) == label), None) for block in blocks]
        lines.append(f"| {label} | " + " | ".join(_cell(row) for row in rows) + " |")
    cells = [advantage_text(block) for block in blocks]
    if any(cells):
        lines.append("| pysubmod against the fastest peer | " + " | ".join(cells) + " |")
    return lines


def _rates(blocks):
    """What a solve adds to memory as a share of G, and what is read and computed a second, gradient-like float32."""
    lines = ["| | threads | | added memory, MB (share of G) | GB/s | GFLOP/s |", "|---|---|---|---|---|---|"]
    for block in blocks:
        if block["family"] != "gradient_like" or len({row["storage"] for row in block["entries"]}) > 1:
            continue
        for row in block["entries"]:
            if row["error"] is None and "picks" in row and row["storage"] == "float32":
                size = 4 * block["n"] * block["d"]
                added = row["added_bytes"]
                memory = "?" if added is None else f"{added / 1e6:.1f} ({100 * added / size:.0f} %)"
                rates = [f"{row[key]:.0f}" if key in row else "" for key in ("GB_per_s", "GFLOP_per_s")]
                lines.append(
                    f"| {block['size']} | {block['threads']} | {row['name']} | {memory} | {rates[0]} | {rates[1]} |"
                )
    return lines


def _floors(report):
    lines = [
        'Seconds; "columns known" is the product of G with the picks and the updates of the correlations, measured; '
        '"k passes" k times a measured product with a vector; the others are computed from the limits above.',
        "",
        "| | rows | threads | k passes | full Gram | columns known (product + updates) | k/10 passes of 17 columns "
        "| pysubmod | over columns known |",
        "|---" * 9 + "|",
    ]
    for block in report["blocks"]:
        rows = {row["name"]: row for row in block["entries"] if row["error"] is None}
        ours, known, one = (rows.get(name) for name in ("pysubmod", "floor: columns known", "floor: one pass"))
        if not (ours and known and one):
            continue
        rest = computed(block["n"], block["d"], block["k"], report["limits"][str(block["threads"])])
        parts = f"{time_text(known['median'])} ({time_text(known['product'])} + {time_text(known['updates'])})"
        shared = [s / known["seconds"][i] for i, s in ours["seconds"].items() if i in known["seconds"]]
        times = [
            block["k"] * one["median"],
            rest["full Gram"],
            parts,
            rest["k/10 passes of 17 columns"],
            ours["median"],
        ]
        cells = [time if isinstance(time, str) else time_text(time) for time in times]
        lines.append(
            f"| {block['size']} | {block['family']} | {block['threads']} | "
            + " | ".join(cells)
            + f" | {statistics.median(shared):.2f} |"
        )
    return lines


def _differences(blocks):
    """Every line that is not what float64 picks, and every failure."""
    lines, checked, right = [], 0, 0
    for block in blocks:
        for row in block["entries"]:
            where = f"{block['size']}, {block['family']}, {block['threads']} thread(s), {row['storage']}: {row['name']}"
            if row["error"] is not None:
                if not row["error"].startswith("left out"):
                    lines.append(f"* {where}: {row['error']}")
            elif row.get("picks"):
                if row["name"].startswith("pysubmod"):
                    checked, right = checked + 1, right + row["picks"]["same"]
                if not row["picks"]["same"]:
                    lines.append(f"* {where}: {agreement_text(row['picks'])}")
    return [f"pysubmod: {right} of {checked} runs as float64 has them, in order.", "", *dict.fromkeys(lines)]


def main():
    path = Path(sys.argv[1])
    report = json.loads(path.read_text(encoding="utf-8"))
    path.with_suffix(".md").write_text(markdown(report), encoding="utf-8")


if __name__ == "__main__":
    main()
