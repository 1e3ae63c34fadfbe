"""Pictures of a selection. Matplotlib is imported only when one is drawn."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING

import numpy as np

from ._files import PathLike, write_atomic

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .demo import Comparison
    from .result import Selection

# Okabe and Ito's palette: told apart under every common form of colour blindness. Line styles differ as well.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#7A7A7A"
_STYLES = {"pysubmod": (BLUE, "-"), "top-k": (ORANGE, "--"), "per-domain top-k": (GREEN, "-.")}
_TILED = ("pysubmod", "top-k")
_LISTED_GROUPS = 20  # more bars than that cannot be labelled in one panel


def require_matplotlib() -> None:
    """Raise an ImportError that carries the cure where Matplotlib is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError("drawing needs Matplotlib: pip install pysubmod[plot]") from error


def save_figure(figure: Figure, path: PathLike) -> None:
    """Write `figure` to `path` (the ending chooses the format), whole or not at all."""
    kind = os.path.splitext(os.fspath(path))[1].lstrip(".").lower() or "png"
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=160, facecolor="white")
    write_atomic(path, buffer.getvalue())


def _plain(ax: Axes) -> None:
    """Only the two spines that carry a scale."""
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)


def plot_selection(selection: Selection, ax: Axes | None = None) -> Axes:
    """Draw what `Selection.plot` documents."""
    require_matplotlib()
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator
    from mpl_toolkits.axes_grid1 import make_axes_locatable  # type: ignore[import-untyped, unused-ignore]

    several = len(selection.counts) > 1
    if ax is None:
        ax = plt.subplots(figsize=(9.0 if several else 6.0, 4.0), layout="constrained")[1]
    _draw_progress(selection, ax)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    _plain(ax)
    if several:
        panel = make_axes_locatable(ax).append_axes("right", size="55%", pad=1.35)
        _draw_counts(selection, panel)
        # The axis of the picks counts whole things; the other one has names, or numbers of groups.
        for axis in (panel.xaxis, panel.yaxis)[: 2 if len(selection.counts) > _LISTED_GROUPS else 1]:
            axis.set_major_locator(MaxNLocator(integer=True))
        _plain(panel)
    return ax


def _draw_progress(selection: Selection, ax: Axes) -> None:
    """The residual after each pick; the objective instead where the target is not known."""
    relative = selection.relative_residuals
    # `initial` members enter first; they have their gains and residuals like every other pick.
    steps = np.arange(len(selection) + 1)
    if relative is not None:
        ax.plot(steps, np.concatenate([[1.0], relative]), color=BLUE, lw=2, marker=".", ms=5)
        ax.set_ylim(0, 1.03)
        ax.set_ylabel("residual / norm of the target")
    else:
        ax.plot(steps, np.concatenate([[0.0], np.cumsum(selection.gains)]), color=BLUE, lw=2, marker=".", ms=5)
        ax.set_ylim(bottom=0)
        ax.set_ylabel("objective")
    ax.set_xlim(0, max(len(selection), 1))
    ax.set_xlabel("number of picks")
    ax.grid(alpha=0.25, lw=0.6)
    ax.set_title(f"{len(selection)} picks, status {selection.status}", fontsize=10, loc="left")


def _draw_counts(selection: Selection, ax: Axes) -> None:
    labels, counts = list(selection.counts), list(selection.counts.values())
    if len(labels) > _LISTED_GROUPS:
        ax.bar(np.arange(1, len(labels) + 1), counts, color=BLUE, width=1.0)
        ax.set_xlabel(f"group (1 to {len(labels)})")
        ax.set_ylabel("picks")
        return
    ax.barh(np.arange(len(labels)), counts, color=BLUE, height=0.7)
    ax.set_yticks(np.arange(len(labels)), [str(label) for label in labels], fontsize=8)
    ax.invert_yaxis()
    ax.set_xlabel("picks")


def demo_figure(comparison: Comparison) -> Figure:
    """The picture of `pysubmod demo`: residual against picks, and which domains the picks come from."""
    require_matplotlib()
    from matplotlib.figure import Figure

    # A bare Figure, not pyplot: nothing to close, and no display is asked for.
    figure = Figure(figsize=(12.5, 5.4))
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.1)
    left, right = figure.subplots(1, 2, width_ratios=[1.15, 1.0])
    _draw_curves(comparison, left)
    _draw_tiles(comparison, right)
    return figure


def _draw_curves(comparison: Comparison, ax: Axes) -> None:
    """Residual with refitted weights after each pick; names stand at the ends of the curves."""
    k = comparison.k
    steps = comparison.random_steps
    band = comparison.random_curves
    low, middle, high = np.quantile(band, [0.05, 0.5, 0.95], axis=0)
    ax.fill_between(steps, low, high, color=GREY, alpha=0.22, lw=0)
    ax.plot(steps, middle, color=GREY, lw=1.5, ls=":")
    ends = [(float(middle[-1]), "random draws\n(median, 5-95 %)", GREY)]
    for method in comparison.methods:
        colour, style = _STYLES[method.key]
        ax.plot(np.arange(1, len(method.curve) + 1), method.curve, color=colour, ls=style, lw=2.4)
        ends.append((float(method.curve[-1]), method.key, colour))
    ax.axhline(comparison.floor, color="black", lw=0.9, ls=(0, (1, 2)))
    ax.text(
        1 + 0.01 * k,
        comparison.floor - 0.012,
        f"all {comparison.n} candidates, no budgets: {comparison.floor:.2f}",
        fontsize=9,
        va="top",
        ha="left",
    )
    _label_ends(ax, k, ends)
    ax.set(xlim=(1, max(k, 2) * 1.5), ylim=(min(0.25, comparison.floor - 0.1), 1.0), xlabel="number of picks")
    ax.set_ylabel("residual / norm of the target  (lower is better)")
    ax.set_xticks(_ticks(k))
    ax.grid(alpha=0.25, lw=0.6)
    ax.set_title(
        "What the picks leave of the validation gradient\n(best non-negative weights for every curve)",
        fontsize=11,
        loc="left",
    )
    _plain(ax)


def _ticks(k: int) -> list[int]:
    step = max(1, k // 8)
    return [1, *range(step if step > 1 else 2, k + 1, step)]


def _label_ends(ax: Axes, k: int, ends: list[tuple[float, str, str]]) -> None:
    """Write each curve's name at its end, pushed apart where two ends are close."""
    apart = 0.052
    place: list[float] = []
    for value, name, colour in sorted(ends):
        tall = apart * (1.5 if "\n" in name else 1.0)
        y = value if not place else max(value, place[-1] + tall)
        place.append(y)
        ax.text(
            k * 1.03,
            y,
            f"{name}  {value:.2f}",
            color=colour,
            fontsize=9.5,
            va="center",
            ha="left",
            fontweight="bold",
            linespacing=1.1,
        )


def _draw_tiles(comparison: Comparison, ax: Axes) -> None:
    """One tile a pick, by domain: pysubmod above, top-k below; darker is a larger share of the match."""
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.patches import Rectangle

    shown = [method for method in comparison.methods if method.key in _TILED]
    largest = max(float(method.shares.max(initial=0.0)) for method in shown)
    widest = 1
    for offset, method in zip((0.0, 0.40), shown, strict=True):
        colour = _STYLES[method.key][0]
        shade = LinearSegmentedColormap.from_list(method.key, ["#F2F2F2", colour])
        taken = dict.fromkeys(comparison.domains, 0)
        for order, (pick, share) in enumerate(zip(method.picks, method.shares, strict=True), start=1):
            domain = comparison.groups[pick]
            x, y = taken[domain], comparison.domains.index(domain) + offset
            taken[domain] += 1
            # The square root: a few picks carry most of the match, and the others should still be seen.
            depth = float(np.sqrt(max(share, 0.0) / largest)) if largest > 0 else 0.0
            ax.add_patch(Rectangle((x + 0.04, y + 0.12), 0.92, 0.34, facecolor=shade(depth), edgecolor=colour, lw=0.8))
            if comparison.k <= 40:
                ax.text(
                    x + 0.5,
                    y + 0.30,
                    str(order),
                    ha="center",
                    va="center",
                    fontsize=6.5,
                    color="white" if depth > 0.55 else "black",
                )
        widest = max(widest, *taken.values())
    _finish_tiles(comparison, ax, widest)


def _finish_tiles(comparison: Comparison, ax: Axes, widest: int) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch
    from matplotlib.ticker import MaxNLocator

    budget = max(comparison.budgets.values())
    rows = len(comparison.domains)
    width = max(widest, budget) + 0.3
    ax.plot([budget, budget], [0, rows], color="black", lw=1.0, ls=(0, (4, 3)))
    ax.set(xlim=(0, width), ylim=(rows + 0.6, 0.0), xlabel="number of picks")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_yticks(np.arange(rows) + 0.5, comparison.domains, fontsize=9.5)
    ax.tick_params(axis="y", length=0)
    for y in range(1, rows):
        ax.axhline(y, color="0.88", lw=0.6, zorder=0)
    handles: list[Artist] = [Patch(facecolor=_STYLES[key][0], label=key) for key in _TILED]
    handles.append(Line2D([], [], color="black", lw=1.0, ls=(0, (4, 3)), label=f"budget: {budget} a domain"))
    # In the strip that `ylim` leaves free below the last domain, whatever the number of picks.
    ax.legend(handles=handles, loc="lower right", ncols=3, fontsize=9, frameon=False, borderaxespad=0.0)
    ax.set_title(
        "Where the picks come from\n(one tile a pick, numbered in pick order; darker: matches more)",
        fontsize=11,
        loc="left",
    )
    _plain(ax)
