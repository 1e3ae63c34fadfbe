"""The picture of a diagnosis. Matplotlib is imported only when one is drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ._diagnosis_text import ONE_GROUP
from .plot import BLUE, GREEN, GREY, ORANGE, _plain, require_matplotlib

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .diagnostics import Diagnosis

__all__ = ["diagnosis_figure"]

FloatArray = npt.NDArray[np.float64]
# key of the comparison -> what is written, colour, line style, height of its text
MARKS = {
    "selection": ("this selection", BLUE, "-", 0.95),
    "top_k": ("top-k", ORANGE, "--", 0.79),
    "per_group": ("each group alone", GREEN, "-.", 0.63),
}
NAMED_GROUPS = 24  # more names than that cannot be read beside the map


def diagnosis_figure(diagnosis: Diagnosis) -> Figure:
    """Objective and conflicts against random draws, top-k and per-group picks; the cosines among the picks by group."""
    require_matplotlib()
    from matplotlib.figure import Figure

    # A bare Figure, not pyplot: nothing to close, and no display is asked for.
    figure = Figure(figsize=(12.5, 6.2))
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.1)
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=[1.0, 1.12])[0]
    above, below = left.subplots(2, 1)
    draws = diagnosis.comparison["random"]
    best = diagnosis.comparison["selection"]["objective"]
    unit = best if best > 0 else 1.0
    others = {name: diagnosis.comparison[name] for name in MARKS if diagnosis.comparison[name]}
    objectives = {name: 100 * facts["objective"] / unit for name, facts in others.items()}
    _draw_against(diagnosis, above, 100 * np.array(draws["objectives"]) / unit, objectives)
    above.set_xlabel("objective, % of this selection's  (higher is better)")
    p = diagnosis.problem
    title = f"{len(diagnosis.flags)} flags" if diagnosis.flags else "no flags"
    above.set_title(
        f"{p['picks']} of {p['candidates']} candidates against the same budgets spent otherwise ({title})",
        fontsize=10,
        loc="left",
    )
    conflicts = {name: 100 * facts["conflicting_pairs"] / max(1, facts["pairs"]) for name, facts in others.items()}
    _draw_against(diagnosis, below, 100 * np.array(draws["conflicts"]) / max(1, draws["pairs"]), conflicts)
    below.set_xlabel("pairs of picks that conflict (negative cosine), %")
    _draw_cosines(diagnosis, right.subplots(1, 1), right)
    return figure


def _draw_against(diagnosis: Diagnosis, ax: Axes, draws: FloatArray, marks: dict[str, float]) -> None:
    """A histogram of the random draws and a line for each of the others."""
    from matplotlib.ticker import MaxNLocator

    if len(draws):
        ax.hist(draws, bins=min(16, max(5, len(draws) // 6)), color=GREY, alpha=0.45, lw=0)
    ax.set_ylabel(f"random draws (of {len(draws)})")
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    values = np.array([*marks.values(), *draws])
    low, high = float(values.min()), float(values.max())
    margin = 0.04 * (high - low) or 0.05
    ax.set_xlim(low - margin, high + margin)
    middle = (low + high) / 2
    ax.set_ylim(0, 1.45 * max(1.0, ax.get_ylim()[1]))
    for name, value in marks.items():
        text, colour, style, height = MARKS[name]
        if name == "per_group" and diagnosis.problem["groups"] < 2:
            text = ONE_GROUP
        ax.axvline(value, color=colour, ls=style, lw=2)
        right = value <= middle
        ax.annotate(
            f"{text} {value:.3g}",
            (value, height),
            xycoords=("data", "axes fraction"),
            xytext=(5 if right else -5, 0),
            textcoords="offset points",
            ha="left" if right else "right",
            va="center",
            fontsize=9,
            fontweight="bold",
            color=colour,
            bbox={"facecolor": "white", "alpha": 0.9, "lw": 0, "pad": 1},
        )
    _plain(ax)


def _draw_cosines(diagnosis: Diagnosis, ax: Axes, figure: Any) -> None:
    """The cosines among the picks, ordered by group."""
    codes, order = diagnosis._codes, np.argsort(diagnosis._codes, kind="stable")
    k = len(order)
    if k == 0:
        ax.text(0.5, 0.5, "no picks", ha="center", va="center")
        ax.set_axis_off()
        return
    cosine = diagnosis._cosines[np.ix_(order, order)]
    pairs = np.abs(cosine[np.triu_indices(k, 1)])
    # A few near-duplicates would make all else look white.
    limit = max(0.2, float(np.quantile(pairs, 0.98))) if len(pairs) else 1.0
    np.fill_diagonal(cosine, np.nan)
    image = ax.imshow(cosine, cmap="RdBu", vmin=-limit, vmax=limit, interpolation="nearest")
    ax.set_facecolor("0.75")  # of the diagonal
    bar = figure.colorbar(image, ax=ax, shrink=0.75, extend="both")
    bar.set_label("cosine  (red: they pull against each other)")
    present, starts = np.unique(codes[order], return_index=True)
    ends = np.append(starts[1:], k)
    for start in starts[1:]:
        ax.axhline(start - 0.5, color="black", lw=0.6)
        ax.axvline(start - 0.5, color="black", lw=0.6)
    if 1 < len(present) <= NAMED_GROUPS:
        labels = [str(diagnosis.groups[code]["label"])[:20] for code in present]
        ax.set_yticks((starts + ends - 1) / 2, labels, fontsize=8.5)
        ax.tick_params(axis="y", length=0)
    else:
        ax.set_yticks([])
    ax.set_xticks([])
    within = diagnosis.cosines["picks"]["within"]["mean"]
    between = diagnosis.cosines["picks"]["between"]["mean"]
    means = [
        f"{text} {value + 0.0:+.3f}"
        for text, value in (("inside a group", within), ("between groups", between))
        if value is not None
    ]
    if len(present) < 2:
        means = [f"{diagnosis.cosines['picks']['all']['mean'] or 0.0:+.3f}"]
    order_of = "by group" if len(present) > 1 else "in the order in which they were picked"
    ax.set_title(f"Cosines among the picks, {order_of}\n(mean {', '.join(means)})", fontsize=10, loc="left")
