"""The words of `pysubmod demo`: its table, and what the table does and does not say."""

from __future__ import annotations

import textwrap

import numpy as np

from .demo import Comparison, FloatArray

_WIDTH = 98


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms" if seconds < 1 else f"{seconds:.2f} s"


def format_table(c: Comparison) -> str:
    """The comparison as plain text, at most 100 columns wide."""
    pairs = c.k * (c.k - 1) // 2
    each = sorted(set(c.budgets.values()))
    lines = [
        f"pysubmod demo: choose {c.k} of {c.n} real gradients ({c.d} columns, {len(c.domains)} domains, "
        f"{' or '.join(map(str, each))} a domain)",
        "to match the mean validation gradient t of all domains.",
        "",
        f"{'':<32}{'equal weights':>18}{'':4}{'own weights w >= 0':>18}{'conflicting':>14}",
        f"{'method':<32}{'residual':>9}{'cosine':>9}{'':4}{'residual':>9}{'cosine':>9}{'pairs':>14}{'time':>12}",
        "-" * _WIDTH,
    ]

    def line(name: str, values: list[str], conflict: str, seconds: str) -> str:
        a, b, p, q = values
        return f"{name:<32}{a:>9}{b:>9}{'':4}{p:>9}{q:>9}{conflict:>14}{seconds:>12}".rstrip()

    for m in c.methods:
        s = m.score
        numbers = [s.uniform_residual, s.uniform_cosine, s.refit_residual, s.refit_cosine]
        size = len(m.picks)  # fewer than k when nothing improves the match any more
        conflict = f"{s.conflicts} ({s.conflicts / max(size * (size - 1) // 2, 1):.0%})"
        name = m.name if size == c.k else f"{m.name} ({size} picks)"
        lines.append(line(name, [f"{x:.3f}" for x in numbers], conflict, _time(m.seconds)))
    table = random_table(c)
    mean, spread = table.mean(axis=0), table.std(axis=0)
    lines.append(
        line(
            f"random, mean of {len(c.random)} draws",
            [f"{x:.3f}" for x in mean[:4]],
            f"{mean[4]:.0f} ({mean[4] / max(pairs, 1):.0%})",
            _time(c.random_seconds),
        )
    )
    lines.append(line("  +- standard deviation", [f"{x:.3f}" for x in spread[:4]], f"{spread[4]:.0f}", ""))
    best = (1.0 - c.floor**2) ** 0.5
    lines.append(line(f"all {c.n} candidates, no budgets", ["", "", f"{c.floor:.3f}", f"{best:.3f}"], "", ""))
    return "\n".join([*lines, "", *_domain_lines(c)])


def random_table(c: Comparison) -> FloatArray:
    """The random draws as a (draws, 5) array: the four numbers of a score and the conflicts."""
    return np.array(
        [[s.uniform_residual, s.uniform_cosine, s.refit_residual, s.refit_cosine, s.conflicts] for s in c.random]
    )


def _domain_lines(c: Comparison) -> list[str]:
    """For each domain: its picks by method, and how the weighted batch points for that domain's gradient."""
    heads = "".join(f"{head:>9}" for head in ["pysubmod", "top-k", "per-dom.", "random"])
    own = "cosine with the domain's gradient"
    lines = [f"{'':<20}{'picks':^36}{'':6}{own:>36}", f"{'domain':<20}{heads}{'':6}{heads}", "-" * _WIDTH]
    random = np.mean([score.domain_cosines for score in c.random], axis=0)
    cosines = [*(method.score.domain_cosines for method in c.methods), random]
    for row, domain in enumerate(c.domains):
        counts = [int((c.groups[method.picks] == domain).sum()) for method in c.methods]
        left = "".join(f"{count:>9}" for count in [*counts, c.budgets[domain]])
        right = "".join(f"{_signed(values[row]):>9}" for values in cosines)
        lines.append(f"{domain:<20}{left}{'':6}{right}")
    return lines


def _signed(value: float) -> str:
    """Two digits and a sign, without a negative zero."""
    text = f"{value:+.2f}"
    return " 0.00" if text in ("+0.00", "-0.00") else text


def _entry(name: str, text: str, column: int = 22) -> str:
    """A named paragraph, wrapped, with its text in its own column."""
    return textwrap.fill(text, _WIDTH, initial_indent=f"  {name:<{column - 2}}", subsequent_indent=" " * column)


def explain(c: Comparison) -> str:
    """What the table says and what it does not, in plain words made from its own numbers."""
    return "\n".join(
        [
            "How to read it",
            *_columns(c),
            "",
            "What it shows",
            *_findings(c),
            "",
            "What it does not show",
            _entry("", _LIMITS, column=2),
            "",
        ]
    )


def _columns(c: Comparison) -> list[str]:
    return [
        _entry("residual", "the part of t that the batch does not reproduce: 0 is all of it, 1 is none of it."),
        _entry(
            "equal weights",
            "every pick counts the same, times the one factor that suits the batch best: this judges the choice alone.",
        ),
        _entry(
            "own weights w >= 0",
            "every pick gets its best weight, for every method alike: choice and weights together.",
        ),
        _entry(
            "conflicting pairs",
            f"of the {c.k * (c.k - 1) // 2} pairs of picks, those whose gradients point "
            "against each other (negative cosine).",
        ),
        _entry(
            "lower table",
            "where the weighted batch points as seen from each domain alone: above 0 a small step "
            "along it helps that domain, below 0 it hurts.",
        ),
    ]


def _findings(c: Comparison) -> list[str]:
    ours, others = c.methods[0].score, c.methods[1:]
    draws = random_table(c)
    alone = min(method.score.uniform_residual for method in others)
    weighted = min(method.score.refit_residual for method in others)
    lines = [
        _entry(
            "choice alone",
            f"pysubmod leaves {ours.uniform_residual:.3f}, the better top-k {alone:.3f}, a random "
            f"draw {draws[:, 0].mean():.3f}; {np.mean(draws[:, 0] > ours.uniform_residual):.1%} of the draws "
            "leave more than pysubmod.",
        ),
        _entry(
            "choice and weights",
            f"pysubmod leaves {ours.refit_residual:.3f}, the better top-k {weighted:.3f}, a "
            f"random draw {draws[:, 2].mean():.3f}; {np.mean(draws[:, 2] > ours.refit_residual):.1%} of the draws "
            f"leave more. With w >= 0 no choice among these candidates could leave less than {c.floor:.3f}.",
        ),
    ]
    calmest = min(c.methods, key=lambda method: method.score.conflicts)
    if calmest.score.conflicts < ours.conflicts:
        lines.append(
            _entry(
                "conflicts",
                f"{calmest.key} has the fewest, {calmest.score.conflicts} against "
                f"{ours.conflicts}. The objective rewards matching t, not agreement: t is the mean over "
                "domains that disagree, and picks that match it disagree too.",
            )
        )
    return lines


_LIMITS = (
    "The rows are random projections of the LoRA gradients of one small language model at one moment. The match"
    " is measured in that space and against the same t that steered the choice; whether training on the picks"
    " lowers a loss is another question. Times are the best of 5 on this machine, loading left out; each"
    " includes reading the gradients, pysubmod's includes the weights, and top-k is plain NumPy."
)
