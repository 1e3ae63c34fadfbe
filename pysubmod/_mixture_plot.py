"""Pictures of task mixtures. Matplotlib is imported only when one is drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .plot import BLUE, GREY, ORANGE, _plain, require_matplotlib

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .mixture import Mixture, MixturePath

__all__ = ["mixture_figure", "path_figure"]

FloatArray = npt.NDArray[np.float64]
LABELLED = 40  # tasks whose names can be read beside each other
WRITTEN = 12  # tasks whose similarities can be written into their cells
BANDS = 9  # tasks with a colour of their own in a path; the others share one


def mixture_figure(mixture: Mixture) -> Figure:
    """The similarities on the left, a row a task, and the tasks' shares on the same rows on the right."""
    require_matplotlib()
    from matplotlib.figure import Figure

    n = len(mixture)
    side = float(np.clip(1.2 + 0.42 * n, 2.4, 8.0))  # of the matrix, in inches
    figure = Figure(figsize=(side + 6.2, side + 1.9))  # a bare Figure: nothing to close, no display is asked for
    figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.08)
    left, right = figure.subplots(1, 2, width_ratios=[side, 3.8])
    _draw_similarity(mixture, left)
    _draw_shares(mixture, right)
    if n <= LABELLED:
        names = [str(label) for label in mixture.labels]
        left.set_xticks(np.arange(n), names, rotation=40, ha="right", rotation_mode="anchor", fontsize=9)
        left.set_yticks(np.arange(n), names, fontsize=9)
        right.set_yticks(np.arange(n), names, fontsize=9)
    else:
        left.set(xlabel="task", ylabel="task")
        right.set_ylabel("task")
    right.set_ylim(n - 0.5, -0.5)
    return figure


def _draw_similarity(mixture: Mixture, ax: Axes) -> None:
    """Darker is more alike; the colours span the entries off the diagonal, which tell the tasks apart."""
    n = len(mixture)
    S = mixture.similarity
    off = S[~np.eye(n, dtype=bool)] if n > 2 else S.ravel()
    low, high = float(off.min()), float(off.max())
    high = high if high > low else low + 1.0
    # As high as the bars beside it, so that each row is one task in both panels.
    image = ax.imshow(S, cmap="Blues", vmin=low, vmax=high, aspect="auto")
    if n <= WRITTEN:
        power = int(np.floor(np.log10(max(float(np.abs(S).max()), 1e-6))))
        digits = 1 - power if power < 0 else max(0, 2 - power)
        for i in range(n):
            for j in range(n):
                dark = (S[i, j] - low) / (high - low) > 0.55
                ax.text(j, i, f"{round(S[i, j], digits) + 0.0:.{digits}f}", ha="center", va="center", fontsize=7.5,
                        color="white" if dark else "black")  # fmt: skip
    ax.tick_params(length=0)
    for side in ax.spines.values():
        side.set_visible(False)
    ends = {(True, True): "both", (True, False): "min", (False, True): "max", (False, False): "neither"}
    beyond = ends[bool(S.min() < low), bool(S.max() > high)]
    bar = ax.figure.colorbar(image, ax=ax, location="bottom", shrink=0.8, aspect=45, pad=0.02, extend=beyond)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8)
    ax.set_title("How alike (darker: more)", fontsize=11, loc="left")


def _draw_shares(mixture: Mixture, ax: Axes) -> None:
    """One bar a task, its bounds where they are not 0 and 1, the uniform share as a line."""
    n = len(mixture)
    shares = 100 * mixture.probabilities
    held = (mixture.active != 0) & (mixture.probabilities > 0)
    ax.barh(np.arange(n), shares, color=np.where(held, ORANGE, BLUE), height=0.72)
    ax.axvline(100 / n, color="black", lw=1.0, ls=(0, (4, 3)), zorder=0)
    most = max(float(shares.max()), 100 / n)
    bounds = [(i, 100 * bound) for pair in (mixture.lower, mixture.upper) for i, bound in enumerate(pair.tolist())]
    drawn = [(i, bound) for i, bound in bounds if 0 < bound <= 1.15 * most and bound < 100 and n <= LABELLED]
    for i, bound in drawn:
        ax.plot([bound, bound], [i - 0.42, i + 0.42], color=GREY, lw=2)
    if n <= LABELLED:
        for i in range(n):
            ax.text(float(shares[i]) + 0.015 * most, i, f"{shares[i]:.1f}", va="center", fontsize=8.5,
                    color=GREY if shares[i] == 0 else "black",
                    bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6})  # fmt: skip
    ax.set_xlim(0, 1.18 * most)
    ax.set_xlabel(f"share of the mixture, %  (dashed: uniform, {100 / n:.3g} %)")
    ax.tick_params(axis="y", length=0)
    key = [text for text, there in (("orange: at a bound", held.any()), ("grey: bounds", bool(drawn))) if there]
    ax.set_title("What to take" + (f"\n({'; '.join(key)})" if key else ""), fontsize=11, loc="left")
    _plain(ax)


def path_figure(path: MixturePath) -> Figure:
    """Shares stacked over n beta / lam, from minimum variance through uniform to the most worthy task alone."""
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.0, 5.2))
    figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.1)
    ax = figure.subplots()
    n = len(path.labels)
    own = path.mixtures[0].uniform_weight is None
    x = path.ratios * (1 if own else n)
    positive = x[x > 0]
    # A ratio of 0 has no place on a logarithm's axis: it stands where the line of the smallest ratio begins.
    x = np.where(x > 0, x, positive[0] / 1.5 if positive.size else 1.0)
    _draw_bands(path, x, ax)
    if positive.size and positive[-1] > positive[0]:
        ax.set_xscale("log")
    if not own and x[0] < 1 < x[-1]:
        ax.axvline(1.0, color="black", lw=1.0, ls=(0, (4, 3)))
        ax.annotate("closed form is uniform", (1.0, 1.0), xycoords=("data", "axes fraction"), xytext=(4, 3),
                    textcoords="offset points", fontsize=9)  # fmt: skip
    ax.set(xlim=(x[0], x[-1] if x[-1] > x[0] else x[0] + 1), ylim=(0, 100), ylabel="share of the mixture, %")
    left, right = "tasks that are alike share one place", "the worthiest task takes over"
    ax.set_xlabel(f"←  {left}        {'beta / lam' if own else 'n beta / lam'}        {right}  →")
    ax.set_title("Mixtures along beta / lam", fontsize=11, loc="left", pad=16)
    _plain(ax)
    return figure


def _draw_bands(path: MixturePath, x: FloatArray, ax: Axes) -> None:
    """The tasks that are ever large get a colour and a name where their band is widest; the rest is one grey band."""
    from matplotlib import colormaps

    P = 100 * path.probabilities
    named = np.sort((-P.max(axis=0)).argsort(kind="stable")[:BANDS])
    rest = np.setdiff1d(np.arange(P.shape[1]), named)
    bands = [P[:, i] for i in named] + ([P[:, rest].sum(axis=1)] if rest.size else [])
    names = [str(path.labels[i]) for i in named] + ([f"{rest.size} others"] if rest.size else [])
    colours: list[Any] = [colormaps["tab10"](c if c < 7 else c + 1) for c in range(len(named))] + ["0.75"] * bool(
        rest.size
    )
    ax.stackplot(x, bands, colors=colours, lw=0.6, edgecolor="white", alpha=0.9)
    tops = np.cumsum(bands, axis=0)
    inside = slice(max(len(x) // 20, 1 if len(x) > 2 else 0), len(x) - max(len(x) // 12, 1 if len(x) > 2 else 0))
    for band, top, name in zip(bands, tops, names, strict=True):
        k = int(band[inside].argmax()) + inside.start
        if band[max(k - 2, 0) : k + 3].min() > 4.0:  # high and wide enough to be written on
            ax.text(float(x[k]), float(top[k] - band[k] / 2), name, ha="center", va="center", fontsize=9, color="white",
                    fontweight="bold")  # fmt: skip
