"""Measures what docs/how-good.md, which-solver.md and budgets.md show: pictures, and the tables between their markers.

    make docs-pictures              or: python docs/make_pictures.py [--time-limit 10] [--only budgets]

All of it on the real gradients that come with pysubmod, but for the times of large mixtures.
"""

from __future__ import annotations

import argparse
import re
import time
from pathlib import Path

import numpy as np

import pysubmod
from pysubmod._compare_text import percent_down, time_text
from pysubmod.plot import BLUE, GREEN, GREY, ORANGE, save_figure

DOCS = Path(__file__).resolve().parent
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1)  # of the mean squared norm of the rows
LEVELS = {
    "one-shot": (GREY, ":", "one shot"),
    "diagonal": (ORANGE, "--", "diagonal, optimised"),
    "block": (BLUE, "-", "blocks"),
}
DEMO = pysubmod.datasets.load_demo()


def pool_problem(each, picks, ridge, nonneg=True):
    """The first `each` rows of every domain, `picks` a domain, a ridge over the mean squared norm."""
    rows = np.concatenate([np.flatnonzero(DEMO.groups == domain)[:each] for domain in DEMO.domains])
    G = DEMO.gradients[rows]
    mean_square = float(np.square(G.astype(float)).sum(axis=1).mean())
    problem = pysubmod.GradientMatching(G, DEMO.target, ridge=ridge * mean_square, nonneg=nonneg)
    return problem, pysubmod.PartitionMatroid(DEMO.groups[rows], dict.fromkeys(DEMO.domains, picks))


def good_method():
    """The best solver there is."""
    return "best" if "best" in pysubmod.available_methods() else "omp-normalized"


def fill(page, name, text):
    """Replace what stands between the markers of that name in a page."""
    path = DOCS / page
    old = path.read_text(encoding="utf-8")
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    new, count = re.subn(re.escape(begin) + ".*?" + re.escape(end), lambda _: f"{begin}{text}\n{end}", old, flags=re.S)
    if count != 1:
        raise SystemExit(f"{path}: expected the markers {begin.strip()} and {end} once")
    path.write_text(new, encoding="utf-8")


# ---- how good is my selection? ---------------------------------------------------------------------------------------


def certified_shares(each, picks, ridge, limit):
    """The certified share at each level, its seconds, and the share that a random selection is proved to have."""
    problem, matroid = pool_problem(each, picks, ridge)
    selection = pysubmod.solve(problem, matroid, good_method())
    found = {}
    for level in LEVELS:
        found[level] = selection.certify(method=level, gap=1e-3, time_limit=limit)
    upper = min(certificate.upper for certificate in found.values())
    random = [pysubmod.solve(problem, matroid, "random", random_state=seed).objective for seed in range(5)]
    return found, float(np.mean(random)) / upper


def draw_levels(ax, results, title):
    """Certified share against the ridge, a line a level, and random selections by the tightest bound."""
    for level, (colour, style, name) in LEVELS.items():
        shares = [100 * found[level].ratio for found, _ in results]
        ax.plot(RIDGES, shares, style, color=colour, marker="o", ms=5, lw=2, label=name)
    ax.plot(RIDGES, [100 * share for _, share in results], "-.", color=GREEN, marker="D", ms=5, lw=1.5,
            label="random selections, by the tightest bound")  # fmt: skip
    ax.axhline(100, color="black", lw=1)
    ax.set_xscale("log")
    ax.set_xlabel("ridge, over the mean squared norm of the rows")
    ax.set_title(title, fontsize=11, loc="left")
    ax.grid(alpha=0.25, lw=0.6)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)


def how_good(limit):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.5, 4.8))
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.1)
    axes = figure.subplots(1, 2, sharey=True)
    lines = ["| pool | ridge | one shot | diagonal | blocks | says |", "|---|---|---|---|---|---|"]
    for ax, (each, picks) in zip(axes, ((8, 2), (30, 4)), strict=True):
        results = [certified_shares(each, picks, ridge, limit) for ridge in RIDGES]
        name = f"{8 * picks} of {8 * each}"
        draw_levels(ax, results, f"{name} candidates, 8 domains")
        for ridge, (found, _) in zip(RIDGES, results, strict=True):
            cells = [f"{percent_down(c.ratio)} % ({time_text(c.seconds)})" for c in found.values()]
            best = min(found.values(), key=lambda c: c.gap)
            says = best.sentence.split(":")[0] + ("; a better one is known" if best.better is not None else "")
            lines.append("| " + " | ".join([name, f"{ridge:g}", *cells, says]) + " |")
    axes[0].set_ylabel("share of the optimum that is proved, %")
    axes[0].set_ylim(top=101.5)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=9.5, frameon=False)
    save_figure(figure, DOCS / "how-good.png")
    fill("how-good.md", "levels", "\n".join(lines))


# ---- which solver? ---------------------------------------------------------------------------------------------------


def which_solver(limit):
    comparison = pysubmod.compare(*pool_problem(30, 4, 1e-2), time_limit=limit, gap=1e-3)
    save_figure(comparison.plot(), DOCS / "which-solver.png")
    text = str(comparison).split("\n\nHow to read it")[0].split("\n", 2)[2]
    fill("which-solver.md", "comparison", f"```\n{text.strip()}\n```")


# ---- how much from each domain? --------------------------------------------------------------------------------------


def large_similarities(n):
    """Similarities as they come: of full rank, smooth, minus a distance, with duplicates; and one close to singular."""
    rng = np.random.default_rng(0)
    wide, narrow = rng.standard_normal((n, 2 * n)), rng.standard_normal((n, 20))
    apart = np.square(narrow).sum(axis=1)[:, None] + np.square(narrow).sum(axis=1) - 2 * narrow @ narrow.T
    apart = np.maximum((apart + apart.T) / 2, 0)
    yield "cosines of long vectors", wide @ wide.T / (2 * n)
    yield "e to minus a distance", np.exp(-apart / 40)
    yield "minus a distance", -apart
    half = np.repeat(wide[: n // 2], 2, axis=0)
    yield "every task twice", half @ half.T / (2 * n)
    Q, _ = np.linalg.qr(rng.standard_normal((n, n)))
    yield "eigenvalues 1 to 1e-12", (Q * np.geomspace(1.0, 1e-12, n)) @ Q.T


def budgets(limit):
    from pysubmod.mixture import mixture_path, task_mixture
    from pysubmod.similarity import gradient_similarity

    names = np.unique(DEMO.groups).tolist()
    similarity = gradient_similarity(DEMO.gradients, DEMO.groups)
    mixture = task_mixture(similarity, beta=0.5, lam=8.0, labels=names)
    save_figure(mixture.plot(), DOCS / "budgets.png")
    save_figure(mixture_path(similarity, labels=names).plot(), DOCS / "budgets-path.png")
    fill("budgets.md", "mixture", f"```\n{mixture}\n```")
    lines = ["| tasks | similarity | time | gap, of the scale |", "|---|---|---|---|"]
    for n in (100, 300, 1000):
        for name, S in large_similarities(n):
            seconds = []
            for _ in range(5):
                started = time.perf_counter()
                found = task_mixture(S, beta=0.3 / n, lam=1.0)
                seconds.append(time.perf_counter() - started)
            lines.append(f"| {n} | {name} | {time_text(min(seconds))} | {found.gap / found.scale:.0e} |")
    fill("budgets.md", "times", "\n".join(lines))


def main():
    pages = {"how-good": how_good, "which-solver": which_solver, "budgets": budgets}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--time-limit", type=float, default=10.0, help="seconds for each proof (default 10)")
    parser.add_argument("--only", choices=list(pages), help="this page alone (default: all)")
    args = parser.parse_args()
    for name, make in pages.items():
        if args.only in (None, name):
            started = time.perf_counter()
            make(args.time_limit)
            print(f"{time.perf_counter() - started:.0f} s: the pictures and tables of docs/{name}.md")


if __name__ == "__main__":
    main()
