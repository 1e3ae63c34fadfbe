"""The table and the pictures of `finetune_lora.py`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["mean_loss", "pictures", "seconds_of", "table"]

Row = dict[str, Any]
_BASE = "random"  # what the others are compared with, where it is there
_GEOMETRY = {"partition-sel": " ¹", "filter-then-weight": " ²"}  # notes on what these match, in the picture


def mean_loss(row: Row) -> float:
    """Every domain counts the same."""
    return float(np.mean(list(row["loss"].values())))


def seconds_of(row: Row) -> float:
    """On a CPU those of the process, which other users of the machine do not slow down."""
    return float(row["seconds"] if row["cpu_seconds"] is None else row["cpu_seconds"])


def _runs(rows: Sequence[Row], method: str) -> dict[int, list[Row]]:
    """The evaluations of each seed, in order of steps."""
    runs: dict[int, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row["step"]):
        if row["method"] == method:
            runs.setdefault(row["seed"], []).append(row)
    return runs


def _mean_se(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard error, which one value does not have (nan)."""
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return float(np.mean(values)), error


def _shown(values: Sequence[float | None], digits: int, sign: str = "") -> str:
    found = [value for value in values if value is not None]
    if not found:
        return "-"
    mean, error = _mean_se(found)
    text = f"{mean:{sign}.{digits}f}"
    return text if math.isnan(error) else f"{text} ± {error:.{digits}f}"


def _over_run(run: list[Row], name: str) -> float | None:
    """The mean of a logged quantity over a run's steps."""
    steps = np.diff([row["step"] for row in run])
    values = [row["selection"].get(name) for row in run[1:]]
    there = [(value, count) for value, count in zip(values, steps, strict=True) if value is not None]
    return sum(value * count for value, count in there) / sum(count for _, count in there) if there else None


def table(rows: Sequence[Row], methods: Sequence[str]) -> str:
    """Two tables: what each method reached and what it cost, and its last test loss in each domain."""
    domains = sorted({domain for row in rows for domain in row["loss"]})
    head = ["method", "test loss", "less random's", "s/step", "residual", "cosine", "conflicts", "share"]
    first, second = [head], [["test loss", *domains]]
    for method in methods:
        runs = _runs(rows, method)
        if not runs:
            continue
        cells = [method, _shown([mean_loss(run[-1]) for run in runs.values()], 3)]
        cells.append(_shown(_gaps(rows, method), 3, "+"))
        cells.append(_shown([seconds_of(run[-1]) / run[-1]["step"] for run in runs.values()], 2))
        for name, digits in {"relative_residual": 3, "cosine": 3, "conflicts": 1, "share": 3}.items():
            cells.append(_shown([_over_run(run, name) for run in runs.values()], digits))
        first.append(cells)
        second.append([method, *(_shown([run[-1]["loss"][d] for run in runs.values()], 3) for d in domains)])
    seeds = len({row["seed"] for row in rows})
    note = f"Mean ± standard error over {seeds} seeds" if seeds > 1 else "One seed"
    note += (
        ". Test loss: mean over the domains, after the last step. Residual, cosine, conflicts: in what is matched,\n"
    )
    note += "gradients; partition-sel: gradients of length 1; filter-then-weight: the optimizer's steps.\n"
    return f"{_aligned(first)}\n\n{_aligned(second)}\n\n{note}"


def _aligned(cells: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells
    )


def pictures(rows: Sequence[Row], methods: Sequence[str], folder: Path) -> list[Path]:
    """finetune.png, the comparison at a glance, and domains.png, every domain's test loss by steps and by seconds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [method for method in methods if _runs(rows, method)]
    colours = {method: ("0.25" if method == _BASE else f"C{number}") for number, method in enumerate(shown)}
    figure = pyplot.figure(figsize=(12.5, 8.6), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(1.15, 1))
    left, right = upper.subplots(1, 2, sharey=True)
    _curves(left, rows, shown, colours, lambda row: row["step"], mean_loss)
    left.set(title="Test loss at equal steps", xlabel="steps", ylabel="test loss, mean over domains")
    _curves(right, rows, shown, colours, seconds_of, mean_loss)
    unit = "seconds" if rows[0]["cpu_seconds"] is None else "CPU seconds"
    right.set(title="Test loss at equal time", xlabel=f"{unit} of training, selection included")
    right.legend(frameon=False, fontsize=9)
    gains, missed, conflicts = lower.subplots(1, 3, sharey=True)
    _bars(gains, shown, colours, {method: _gaps(rows, method) for method in shown})
    gains.set(title="Last test loss less random's", xlabel="left of 0 is better")
    gains.axvline(0, color="0.25", linewidth=1.5)
    for axes, name, title in (
        (missed, "relative_residual", "Share of the target that is missed"),
        (conflicts, "conflicts", "Pairs of picks in conflict"),
    ):
        found = {method: [_over_run(run, name) for run in _runs(rows, method).values()] for method in shown}
        _bars(axes, shown, colours, found)
        axes.set(title=title, xlabel="mean over steps*")
    gains.set_yticks(range(len(shown)), [method + _GEOMETRY.get(method, "") for method in shown])
    gains.invert_yaxis()
    note = "Points: seeds; bars and bands: mean ± standard error."
    lower.supxlabel(note + "   * In what is matched: gradients, ¹ of length 1, ² Adam's steps", fontsize=9)
    overview = folder / "finetune.png"
    figure.savefig(overview, dpi=110)
    pyplot.close(figure)

    domains = sorted({domain for row in rows for domain in row["loss"]})
    figure, grid = pyplot.subplots(
        2, len(domains), figsize=(2.3 * len(domains) + 1, 6), layout="constrained", squeeze=False, sharey="col"
    )
    for column, domain in enumerate(domains):
        for line, (x, name) in enumerate(((lambda row: row["step"], "steps"), (seconds_of, unit))):
            _curves(grid[line, column], rows, shown, colours, x, lambda row, domain=domain: row["loss"][domain])
            grid[line, column].set(xlabel=name)
        grid[0, column].set_title(domain)
    grid[0, 0].set_ylabel("test loss")
    grid[1, 0].set_ylabel("test loss")
    handles, names = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=min(len(shown), 7), frameon=False)
    each = folder / "domains.png"
    figure.savefig(each, dpi=100)
    pyplot.close(figure)
    return [overview, each]


def _curves(
    axes: Any, rows: Sequence[Row], methods: Sequence[str], colours: dict[str, str],
    x: Callable[[Row], float], y: Callable[[Row], float],
) -> None:  # fmt: skip
    """Means over seeds with a band of one standard error."""
    for method in methods:
        runs = list(_runs(rows, method).values())
        points = list(zip(*runs, strict=False))
        across = [float(np.mean([x(row) for row in point])) for point in points]
        means, errors = zip(*(_mean_se([y(row) for row in point]) for point in points), strict=True)
        axes.plot(across, means, color=colours[method], label=method, linewidth=2.4 if method == _BASE else 1.5)
        low, high = np.subtract(means, errors), np.add(means, errors)
        axes.fill_between(across, low, high, color=colours[method], alpha=0.15, linewidth=0)
    axes.grid(alpha=0.3)


def _gaps(rows: Sequence[Row], method: str) -> list[float | None]:
    """The last test loss less random's, seed by seed: both began alike and saw the same pools."""
    base = {seed: mean_loss(run[-1]) for seed, run in _runs(rows, _BASE).items()}
    last = {seed: mean_loss(run[-1]) for seed, run in _runs(rows, method).items()}
    return [last[seed] - base[seed] for seed in last if seed in base and method != _BASE]


def _bars(
    axes: Any, methods: Sequence[str], colours: dict[str, str], values: dict[str, list[float | None]]
) -> None:  # fmt: skip
    for place, method in enumerate(methods):
        found = [value for value in values[method] if value is not None]
        if found:
            mean, error = _mean_se(found)
            axes.barh(place, mean, color=colours[method], alpha=0.65)
            axes.errorbar(mean, place, xerr=None if math.isnan(error) else error, color="black", capsize=3)
            axes.plot(found, [place] * len(found), "o", color="black", markersize=3)
    axes.grid(alpha=0.3, axis="x")
