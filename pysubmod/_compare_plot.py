"""Quality against time: the picture of a comparison. Matplotlib is imported only when it is drawn."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ._compare_text import percent_down, time_text
from .plot import BLUE, GREY, ORANGE, _plain, require_matplotlib

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .compare import Comparison, Row

__all__ = ["compare_figure"]

SIZE = 9  # of the names, in points
# Where a name may stand beside its marker, best first: (dx, dy) in points, and how it is aligned.
SIDES = [(9, 0, "left"), (-9, 0, "right"), (0, 12, "center"), (0, -12, "center")]
RING = 11  # points further out for every round without a free place


def compare_figure(comparison: Comparison) -> Figure:
    """The proved share of the optimum over the median time, a marker and a name a method."""
    require_matplotlib()
    from matplotlib.figure import Figure

    # A bare Figure, not pyplot: nothing to close, and no display is asked for.
    figure = Figure(figsize=(10.5, 6.0))
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.1)
    ax = figure.subplots()
    proved = math.isfinite(comparison.certificate.upper)
    points = [_point(row, proved) for row in comparison.rows if not row.problem]
    _scales(ax, points)
    for point in points:
        _mark(ax, *point)
    _ceiling(ax, comparison, proved)
    ax.set_xlabel("time to choose and refit (median)")
    what = "of the certified upper bound" if proved else "of the best found (no bound could be proved)"
    ax.set_ylabel(f"objective, % {what}")
    ax.set_title(f"Quality against time: {comparison.problem}", fontsize=11, loc="left")
    ax.grid(alpha=0.25, lw=0.6)
    _plain(ax)
    figure.draw_without_rendering()  # fixes the layout, from which places in points follow
    _name(ax, points)
    return figure


Point = tuple[str, float, float, float, bool]  # name, seconds, height and its spread in percent, random


def _point(row: Row, proved: bool) -> Point:
    share = row.share if proved else row.of_best
    spread = 100 * share * row.spread / row.objective if row.objective > 0 else 0.0
    return row.method, row.seconds, 100 * share, spread, row.random


def _scales(ax: Axes, points: list[Point]) -> None:
    """Room for names around the markers; ticks with units."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    ax.set_xscale("log")
    times = [seconds for _, seconds, _, _, _ in points]
    ax.set_xlim(min(times) / 5, max(times) * 5)
    low = min(height - spread for _, _, height, spread, _ in points)
    ax.set_ylim(low - max(1.0, 0.06 * (100 - low)), 100 + max(0.6, 0.09 * (100 - low)))
    ax.xaxis.set_major_locator(LogLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: time_text(value)))
    ax.xaxis.set_minor_formatter(NullFormatter())


def _mark(ax: Axes, _: str, seconds: float, height: float, spread: float, random: bool) -> None:
    colour = ORANGE if random else BLUE
    bar: dict[str, Any] = {"yerr": spread, "capsize": 3, "elinewidth": 1.2} if random else {}
    ax.errorbar(seconds, height, fmt="D" if random else "o", ms=7, color=colour, mec="white", mew=0.8, zorder=3, **bar)


def _ceiling(ax: Axes, comparison: Comparison, proved: bool) -> None:
    """The line of the bound, and the key."""
    from matplotlib.lines import Line2D

    if proved:
        certificate = comparison.certificate
        ax.axhline(100.0, color="black", lw=1.2)
        best = f"; the best is within {100 - float(percent_down(certificate.ratio)):.2g} % of optimal"
        text = f"proved: no feasible selection is above this line{'' if certificate.proven_optimal else best}"
        ax.annotate(text, (0.005, 100.0), xycoords=("axes fraction", "data"), xytext=(0, 4),
                    textcoords="offset points", fontsize=SIZE, va="bottom")  # fmt: skip
    keys = [Line2D([], [], ls="", marker="o", color=BLUE, label="deterministic")]
    random = [row for row in comparison.rows if row.random]
    if random:
        label = f"random: mean and standard deviation, {len(random[0].objectives)} seeds"
        keys.append(Line2D([], [], ls="", marker="D", color=ORANGE, label=label))
        ax.legend(handles=keys, loc="lower right", fontsize=SIZE, frameon=False)


def _name(ax: Axes, points: list[Point]) -> None:
    """Write every name where it covers neither another one nor a marker; a thin line leads to those further off."""
    from matplotlib.transforms import Bbox

    figure = ax.figure
    unit = figure.dpi / 72
    taken = []
    for _, seconds, height, spread, _random in points:
        x, low = ax.transData.transform((seconds, height - spread))
        high = ax.transData.transform((seconds, height + spread))[1]
        taken.append(Bbox.from_extents(x - 5 * unit, low - 5 * unit, x + 5 * unit, high + 5 * unit))
    if (legend := ax.get_legend()) is not None:
        taken.append(legend.get_window_extent())
    taken += [text.get_window_extent() for text in ax.texts]
    top = ax.transData.transform((1.0, 100.0))[1]
    taken.append(Bbox.from_extents(ax.bbox.x0, top - unit, ax.bbox.x1, top + unit))
    for name, seconds, height, _, random in points:
        colour = ORANGE if random else BLUE
        place: dict[str, Any] = {"xytext": (0, 0), "textcoords": "offset points", "va": "center"}
        text = ax.annotate(name, (seconds, height), fontsize=SIZE, color=colour, **place)
        for ring in range(12):
            if _placed(ax, text, ring, taken):
                break
        if ring:
            place["xytext"] = text.get_position()
            line = {"arrowstyle": "-", "color": GREY, "lw": 0.6, "shrinkA": 0, "shrinkB": 3}
            ax.annotate("", (seconds, height), zorder=1, arrowprops=line, **place)
        taken.append(text.get_window_extent())


def _placed(ax: Axes, text: Any, ring: int, taken: list[Any]) -> bool:
    """Try the places of one round."""
    places = [(dx, dy, side) for dx, dy, side in SIDES] if ring == 0 else _around(ring)
    for dx, dy, side in places:
        text.set_position((dx, dy))
        text.set_ha(side)
        box = text.get_window_extent()
        inside = ax.bbox.x0 <= box.x0 and box.x1 <= ax.bbox.x1 and ax.bbox.y0 <= box.y0 and box.y1 <= ax.bbox.y1
        if inside and not any(box.overlaps(other) for other in taken):
            return True
    return False


def _around(ring: int) -> list[tuple[float, float, str]]:
    """Places on a ring: to the right first, then to the left."""
    radius = 9 + RING * ring
    angles = (30, -30, 60, -60, 0)
    right = [(radius * math.cos(math.radians(a)), radius * math.sin(math.radians(a)), "left") for a in angles]
    return [*right, *((-x, y, "right") for x, y, _ in right)]
