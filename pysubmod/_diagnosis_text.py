"""A diagnosis as a page of text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from ._guarantees import rounded

if TYPE_CHECKING:
    from .diagnostics import Diagnosis

__all__ = ["report"]

WIDTH = 110
LISTED_GROUPS = 12
ONE_GROUP = "normalised OMP"  # what each group alone is where there is but one
LOWEST, HIGHEST = "  lowest of each", "  highest of each"
CERTIFIED_TITLE = "Curvature, certified (bounds that hold, rounding included; values after = are right up to rounding)"
LEGEND = "(r: most picks that the budgets allow; R: C with unit diagonal; M1: largest C_ii; OPT: best feasible f)"
# key -> (what is printed, the sign of the inequality)
CERTIFIED = {
    "lambda_min": ("lambda_min(R)", ">="),
    "m_over_M1": ("m / M1", ">="),
    "lambda_r": ("lambda_r(R)", ">="),
    "lambda_2r": ("lambda_2r(R)", ">="),
    "gamma_r": ("gamma_r", ">="),
    "gamma_2r": ("gamma_2r", ">="),
    "gamma_at_selection": ("gamma at the picks", ">="),
    "beta_r": ("beta_r", "<="),
    "mu_within": ("mu inside a group", "<="),
    "gamma_r_exact": ("gamma_r", "="),
    "gamma_2r_exact": ("gamma_2r", "="),
    "beta_r_exact": ("beta_r", "="),
}


def report(diagnosis: Diagnosis) -> str:
    """The text that ``print(diagnosis)`` shows."""
    sections = [
        ("", _head(diagnosis)),
        ("What deserves attention", _flags(diagnosis)),
        ("Against simpler selections (same budgets, each with its own best weights)", _comparison(diagnosis)),
        ("Rows and weights", _rows(diagnosis)),
        ("Groups", _groups(diagnosis)),
        ("Promised in advance (a-priori guarantees of the rule that ran)", _guarantees(diagnosis)),
        (
            CERTIFIED_TITLE,
            _certified(diagnosis),
        ),
        ("Curvature, estimates (no bounds; no guarantee uses them)", _estimates(diagnosis)),
    ]
    if diagnosis.certificate is not None:
        sections.insert(1, ("Certificate", iter(str(diagnosis.certificate).splitlines())))
    lines: list[str] = []
    for title, body in sections:
        content = [f"  {line}" if title else line for line in body]
        if content:
            lines += ["", title] if title else []
            lines += content
    return "\n".join(lines)


def _head(diagnosis: Diagnosis) -> Iterator[str]:
    p = diagnosis.problem
    groups = f" in {p['groups']} groups" if p["groups"] > 1 else ""
    picks = "pick" if p["picks"] == 1 else "picks"
    sign = "w >= 0" if p["nonneg"] else "free weights"
    pool = f"{p['candidates']} candidates" + (f" ({p['n']} rows)" if p["candidates"] < p["n"] else "")
    yield f"Diagnosis of {p['picks']} {picks} out of {pool}{groups} (at most {p['rank']}; {sign})"
    residual = p["relative_residual"]
    tail = "" if residual is None else f", residual {residual:.4g} of the target's norm"
    yield f"  objective {p['objective']:.6g}{tail}"


def _flags(diagnosis: Diagnosis) -> Iterator[str]:
    if not diagnosis.flags:
        yield "nothing"
    for flag in diagnosis.flags:
        yield from _wrapped("! ", flag)


def _wrapped(mark: str, text: str) -> list[str]:
    return wrap(text, WIDTH, initial_indent=mark, subsequent_indent=" " * len(mark))


def _comparison(diagnosis: Diagnosis) -> Iterator[str]:
    table = diagnosis.comparison
    mine, random = table["selection"], table["random"]
    yield f"{'':<22}{'objective':>13}{'of this':>9}{'residual':>10}   conflicting pairs"
    for name, facts in (
        ("this selection", mine),
        ("top-k by alignment", table["top_k"]),
        ("each group alone" if diagnosis.problem["groups"] > 1 else ONE_GROUP, table["per_group"]),
    ):
        if facts is None:
            continue
        yield _line(
            name,
            facts["objective"],
            mine["objective"],
            facts["relative_residual"],
            facts["conflicting_pairs"],
            facts["pairs"],
        )
    if random["objective"]:
        residual = random["relative_residual"]
        for name, text in (("mean", f"{random['draws']} random draws, mean"), ("min", LOWEST), ("max", HIGHEST)):
            yield _line(
                text,
                random["objective"][name],
                mine["objective"],
                residual and residual[name],
                random["conflicting_pairs"][name],
                random["pairs"],
            )
        spread, share = random["objective"]["std"], random["reached_share"]
        yield (
            f"standard deviation of their objectives {spread:.3g}; this selection is at least as good as "
            f"{100 * share:.4g} % of them"
        )


def _line(name: str, value: float, mine: float, residual: float | None, conflicts: float, pairs: int) -> str:
    share = f"{100 * value / mine:.1f} %" if mine > 0 else "-"
    left = "-" if residual is None else f"{residual:.4f}"
    part = f" ({100 * conflicts / pairs:.0f} %)" if pairs else ""
    return f"{name:<22}{value:>13.6g}{share:>9}{left:>10}   {conflicts:.0f} of {pairs}{part}"


def _rows(diagnosis: Diagnosis) -> Iterator[str]:
    for name in ("pool", "picks"):
        norms, cosines = diagnosis.norms[name], diagnosis.cosines[name]
        if not norms:
            continue
        sizes = "norms {min:.3g} / {median:.3g} / {max:.3g} (min, median, max)".format(**norms)
        sample = f" (pairs among {cosines['rows']} sampled rows)" if cosines.get("sampled") else ""
        yield f"{name:<8}{sizes}; cosines {_cosine(cosines['all'])}{sample}"
        if cosines["within"]["pairs"] and cosines["between"]["pairs"]:
            yield f"{'':<8}inside a group {_cosine(cosines['within'])}; between groups {_cosine(cosines['between'])}"
    p, weights = diagnosis.problem, diagnosis.weights
    if p["picks"]:
        yield (
            f"{'weights':<8}{weights['min']:.3g} to {weights['max']:.3g}, {weights['zeros']} zero; effective number "
            f"{weights['effective']:.1f}; {p['against_target']} of the picks point away from the target"
        )
        plain, unit = diagnosis.conditioning["picks"], diagnosis.conditioning["picks_unit_diagonal"]
        yield f"{'':<8}condition number of the picks {plain:.3g}, with rows scaled to unit length {unit:.3g}"


def _cosine(pairs: Mapping[str, Any]) -> str:
    if not pairs["pairs"]:
        return "none"
    return f"mean {pairs['mean']:+.3f}, {100 * pairs['negative_share']:.0f} % negative"


def _groups(diagnosis: Diagnosis) -> Iterator[str]:
    """The short ones a line each; the others in passing."""
    if len(diagnosis.groups) < 2 or diagnosis.groups[0]["shortfall"] is None:
        return
    short = [group for group in diagnosis.groups if group["shortfall"]]
    for group in short[:LISTED_GROUPS]:
        label = str(group["label"])[:30]
        yield f"{label:<30} {group['picks']} of {group['budget']} (pool {group['size']}): {group['shortfall']} short"
    if len(short) > LISTED_GROUPS:
        yield f"and {len(short) - LISTED_GROUPS} more that are short"
    full = [f"{str(g['label'])[:30]} {g['picks']}/{g['size']}" for g in diagnosis.groups if not g["shortfall"]]
    if full:
        more = f", and {len(full) - LISTED_GROUPS} more" if len(full) > LISTED_GROUPS else ""
        yield from _wrapped("", f"picks/pool: {', '.join(full[:LISTED_GROUPS])}{more}")


def _guarantees(diagnosis: Diagnosis) -> Iterator[str]:
    yield LEGEND
    yield from _wrapped("", diagnosis.guarantee_note)
    for g in diagnosis.guarantees:
        sign = "E f" if g.in_expectation else "f"
        yield f"{sign} >= {rounded(g.value, 3, up=False)} OPT   {g.rule}"
        yield from _wrapped("    ", f"{g.formula}")
        yield from _wrapped("    ", f"{g.citation}")


def _certified(diagnosis: Diagnosis) -> Iterator[str]:
    for key, item in diagnosis.certified.items():
        name, sign = CERTIFIED[key]
        value = item["value"]
        text = _number(value) if sign == "=" or value is None else rounded(value, 4, up=sign == "<=")
        yield f"{name:<19}{sign:>2} {text:<10} {item['how']}"


def _estimates(diagnosis: Diagnosis) -> Iterator[str]:
    for key, item in diagnosis.estimates.items():
        name = key.removesuffix("_exact").replace("lambda_2r", "lambda_2r(R)")
        yield f"{name:<19} ~ {_number(item['value']):<10} {item['how']}"


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4g}"
