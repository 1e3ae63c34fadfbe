"""The words of a comparison: its table, and how to read it."""

from __future__ import annotations

import math
import textwrap
from typing import TYPE_CHECKING

from ._proof import PROVEN

if TYPE_CHECKING:
    from .compare import Comparison, Row

__all__ = ["percent_down", "table", "time_text"]

WIDTH = 104
READING = (
    ("proved", "at least this share of the optimum, whatever it is: the objective over the certified upper bound."),
    ("of best", "the share of the best objective in this table; the optimum may be higher."),
    ("residual", "what the picks at their best weights leave of the target: 0 is nothing, 1 is all of it."),
    ("conflicts", "pairs of picks whose gradients point against each other (negative cosine)."),
    ("time", "median; choosing and the exact refit together."),
)


def table(comparison: Comparison) -> str:
    """The comparison as plain text."""
    width = max(len("method"), *(len(row.method) for row in comparison.rows)) + 1
    heads = (
        f"{'objective':>10} {'':<10}{'proved':>8} {'':<7}{'of best':>8}{'residual':>10}{'conflicts':>11}{'picks':>7}"
    )
    lines = [f"pysubmod compare: {comparison.problem}", "", f"{'method':<{width}}{heads}{'time':>10}"]
    lines.append("-" * len(lines[-1]))
    lines += [_line(row, width) for row in comparison.rows]
    certificate = comparison.certificate
    lines += ["", f"{comparison.best.config['method']}: {certificate}"]
    random = [row for row in comparison.rows if row.random]
    if random:
        lines.append(f"Random methods: mean and standard deviation over {len(random[0].objectives)} seeds.")
    return "\n".join([*lines, "", "How to read it", *(_entry(name, text) for name, text in READING)])


def _line(row: Row, width: int) -> str:
    if row.problem:
        text = textwrap.fill(f"cannot run here: {row.problem}", WIDTH - width, break_long_words=False)
        return f"{row.method:<{width}}" + text.replace("\n", "\n" + " " * width)
    objective, spread = _objective(row)
    share = f"{percent_down(row.share)} %" if math.isfinite(row.share) else "-"
    residual = "-" if row.residual is None else f"{row.residual:.4f}"
    wide = f"+- {100 * row.spread * row.share / row.objective:.1f}" if row.random and row.objective > 0 else ""
    count = f"{row.conflicts:.1f}" if row.random else f"{row.conflicts:.0f}"
    picks = f"{row.picks:.0f}" if row.picks == round(row.picks) else f"{row.picks:.1f}"
    return (
        f"{row.method:<{width}}{objective:>10} {spread:<10}{share:>8} {'' if share == '-' else wide:<7}"
        f"{percent_down(row.of_best) + ' %':>8}{residual:>10}{count:>11}{picks:>7}{time_text(row.seconds):>10}"
    ).rstrip()


def _objective(row: Row) -> tuple[str, str]:
    return f"{row.objective:.5g}", f"+- {row.spread:.2g}" if row.random else ""


def percent_down(share: float) -> str:
    """One digit after the point, rounded down, for what is printed must hold as well; 100 up to rounding errors."""
    return "100" if share >= 1.0 - PROVEN else f"{math.floor(1000 * share) / 10:.1f}"


def time_text(seconds: float) -> str:
    """Three digits with a unit."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} us"
    return f"{seconds * 1e3:.3g} ms" if seconds < 0.9995 else f"{seconds:.3g} s"


def _entry(name: str, text: str) -> str:
    return textwrap.fill(text, WIDTH, initial_indent=f"  {name:<11}", subsequent_indent=" " * 13)
