"""A mixture in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .mixture import Mixture

__all__ = ["mixture_text"]

_LISTED = 30  # tasks that a summary lists one by one
_AT = {-1: "at its lower bound", 0: "", 1: "at its upper bound"}


def mixture_text(mixture: Mixture) -> str:
    """A table of the tasks, and what is proved."""
    n = len(mixture)
    order = (-mixture.probabilities).argsort(kind="stable")
    shown = order[:_LISTED]
    width = max(4, *(len(str(mixture.labels[i])) for i in shown))
    lines = [f"A mixture of {n} tasks (beta {mixture.beta:g}, lam {mixture.lam:g})", ""]
    lines.append(f"{'task':<{width}}    share      worth")
    for i in shown:
        row = f"{mixture.labels[i]!s:<{width}}  {100 * mixture.probabilities[i]:6.2f} %  {mixture.unary[i]:9.4g}"
        lines.append(f"{row}  {_AT[int(mixture.active[i])]}".rstrip())
    if n > _LISTED:
        rest = float(mixture.probabilities[order[_LISTED:]].sum())
        lines.append(f"and {n - _LISTED} more tasks with {100 * rest:.2f} % together")
    return "\n".join([*lines, "", *_proof(mixture), *_between(mixture)])


def _proof(mixture: Mixture) -> list[str]:
    within = f"within {mixture.gap:.1e} of the least (proved; the energy's scale is {mixture.scale:.3g})"
    first = "Optimal" if mixture.status == "optimal" else "Not solved to 1e-9 of its scale"
    lines = [f"{first}: energy {mixture.energy:.8g}, {within}."]
    if not mixture.unique:
        lines.append("Others may be as good; this is about the most even of them.")
    if mixture.shift:
        lines.append(
            f"The similarity is indefinite: {mixture.shift:.4g} was added to the diagonal of lam * similarity, which"
            " rewards even mixtures."
        )
    return lines


def _between(mixture: Mixture) -> list[str]:
    """Where the mixture stands between uniform and minimum variance."""
    away = (mixture.distance_to_uniform, mixture.distance_to_minimum_variance)
    lines = ["{:.1f} % of it would have to move to make it uniform, {:.1f} % to make it the one of minimum variance."]
    lines[0] = lines[0].format(100 * away[0], 100 * away[1])
    t = mixture.uniform_weight
    if t is None or len(mixture) == 1:
        return lines
    if not mixture._model.regular:
        mixture._model.forget()
        lines.append(
            f"n beta / lam = {t:.3g}; there is no closed form, as the similarity is singular (tasks that are the"
            " same, say)."
        )
        return lines
    mixture._model.forget()
    where = "it lies within the bounds" if mixture.closed_form is not None else "bounds stand in the way of it"
    lines.append(
        f"The closed form is {t:.3g} uniform {'+' if t <= 1 else '-'} {abs(1 - t):.3g} minimum variance without bounds"
        " (which may have negative shares),"
    )
    lines.append(f"n beta / lam = {t:.3g}; {where}.")
    return lines
