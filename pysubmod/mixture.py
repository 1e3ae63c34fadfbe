"""How much of each task to train on, from how the tasks agree: TaskPGM mixtures.

``task_mixture(similarity, beta=..., lam=...)`` minimises the energy of arXiv 2507.12612 over all mixtures,

    E(p) = -h'p + 1/2 p'Jp,    h = beta * unary,    J = lam * similarity,    lower <= p <= upper,    sum p = 1.

The first term rewards tasks that are like the others (the unary term is the sum of a task's similarities, unless
given); the second one charges for taking the same thing twice. `pysubmod.similarity` computes similarities, and
`pysubmod.budgets` makes whole numbers of a mixture.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ._energy import TOLERANCE, Energy
from ._validation import as_choice, as_count, as_scalar, shown, type_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Mixture", "MixturePath", "mixture_path", "task_mixture"]

FloatArray = npt.NDArray[np.float64]
Label = int | str


@dataclass(frozen=True, eq=False, repr=False)
class Mixture:
    """The mixture of least energy, and what is proved about it. ``print(mixture)`` says it in words.

    Attributes
    ----------
    probabilities : (n,) float64 array
        The share of each task, within its bounds; they sum to 1.
    energy : float
        E(p), in units of ``beta * unary``. With a `shift`, of the energy that was solved, shift included.
    gap : float
        E(p) is at most this far above the least energy. It holds for every p, however found: ``g'p - min g'q`` over all
        mixtures q, g the gradient, and what rounding may have hidden.
    scale : float
        The natural scale of the energy: how far h, or the entries of J without what is common to their rows, are apart.
        Neither a constant added to all similarities nor one added to h changes it. At least the `shift`; where all
        mixtures are equally good, the size of the largest coefficient.
    status : str
        "optimal": the gap is at most ``1e-9 * scale``. "gap": it is not; entries of J that all but their last digits
        have in common can cause that.
    active : (n,) int8 array
        -1 for a task at its lower bound, 1 at its upper one, 0 between them.
    closed_form : (n,) float64 array or None
        ``p = J^-1 (h - nu 1)``, ``nu = (1'J^-1 h - 1) / (1'J^-1 1)``, where that lies within the bounds: it is then the
        mixture. None where it does not, or where J is singular.
    unique : bool
        Whether the mixture is proved to be the only one of least energy. If not (tasks that are the same, say),
        others are as good; this one is about as even as they get.
    shift : float
        What ``on_indefinite="shift"`` added to the diagonal of J. 0 where nothing had to be.
    beta, lam : float
    unary, lower, upper : (n,) float64 arrays
    similarity : (n, n) float64 array
    labels : tuple of int or str
        Names of the tasks; 0 .. n-1 where none were given.
    """

    probabilities: FloatArray
    energy: float
    gap: float
    scale: float
    status: str
    active: npt.NDArray[np.int8]
    closed_form: FloatArray | None
    unique: bool
    shift: float
    beta: float
    lam: float
    unary: FloatArray
    lower: FloatArray
    upper: FloatArray
    similarity: FloatArray
    labels: tuple[Label, ...]
    _model: Energy = field(repr=False)

    def __len__(self) -> int:
        return len(self.probabilities)

    def to_dict(self) -> dict[Label, float]:
        """``{task: share}``."""
        return dict(zip(self.labels, self.probabilities.tolist(), strict=True))

    @property
    def uniform_weight(self) -> float | None:
        """The t of ``t * uniform + (1 - t) * minimum variance``, which the closed form is: ``n * beta / lam``.

        Minimum variance here is without bounds, ``S^-1 1 / (1'S^-1 1)``, which may have negative shares:
        `minimum_variance`, which is within them, only where no bound holds there. Between 0 and 1 the stationary point
        lies between it and uniform, beyond 1 on the far side of uniform; so does the mixture itself where the
        stationary point is within the bounds. (p there solves ``Jp = h - nu 1`` with h = beta S1, J = lam S,
        so p = beta/lam 1 + a multiple of ``S^-1 1``.)
        None where it does not hold: a unary term of its own, a shift, or lam = 0.
        """
        if self._model.own_unary or self.shift or self.lam == 0.0:
            return None
        return len(self) * self.beta / self.lam

    @cached_property
    def minimum_variance(self) -> FloatArray:
        """The mixture of least ``p'Jp`` within the same bounds: what beta = 0 gives."""
        return self._model.without_unary().solve().p

    @property
    def distance_to_uniform(self) -> float:
        """Total variation, ``1/2 sum |p - 1/n|``: the share that would have to move. 0 to 1."""
        return float(np.abs(self.probabilities - 1.0 / len(self)).sum() / 2)

    @property
    def distance_to_minimum_variance(self) -> float:
        """The same to `minimum_variance`."""
        return float(np.abs(self.probabilities - self.minimum_variance).sum() / 2)

    def budgets(
        self,
        total: int,
        sizes: Any = None,
        *,
        lower: Any = None,
        upper: Any = None,
        method: str = "largest-remainder",
    ) -> dict[Label, int]:
        """Whole numbers of samples, ``{task: int}``, that sum to `total`; for `omp_partition` and its kin.

        Parameters
        ----------
        total : int
        sizes : mapping or sequence of int, optional
            Samples that each task has; none is asked for more. Without it there is no such limit.
        lower, upper, method
            As of `pysubmod.budgets.allocate`: fewest and most samples of a task, and how shares become whole numbers.
        """
        from .budgets import _as_list, allocate

        total = as_count("total", total)
        if sizes is None:
            sizes = [total] * len(self)
        elif isinstance(sizes, Mapping):
            if set(sizes) != set(self.labels):
                raise ValueError(
                    f"sizes: expected one a task, {shown(list(self.labels), 200)}; got {shown(list(sizes), 200)}"
                )
            sizes = [sizes[label] for label in self.labels]
        else:
            sizes = _as_list("sizes", sizes)
            if len(sizes) != len(self):
                raise ValueError(f"sizes: expected {len(self)} integers, one a task; got {shown(sizes)}")
        named = dict(zip(self.labels, sizes, strict=True))
        given: dict[Label, int] = allocate(
            total, named, self.probabilities, "mixture", lower=lower, upper=upper, method=method
        )
        return given

    def plot(self) -> Figure:
        """The similarities, and beside each row the share of its task; needs Matplotlib."""
        from ._mixture_plot import mixture_figure

        return mixture_figure(self)

    def __repr__(self) -> str:
        return f"Mixture(n={len(self)}, status={self.status!r}, energy={self.energy:.6g}, gap={self.gap:.2g})"

    def __str__(self) -> str:
        from ._mixture_text import mixture_text

        return mixture_text(self)


def task_mixture(
    similarity: Any,
    *,
    beta: float,
    lam: float,
    unary: Any = None,
    lower: Any = None,
    upper: Any = None,
    labels: Sequence[Label] | None = None,
    on_indefinite: str = "raise",
) -> Mixture:
    """The mixture of tasks of least TaskPGM energy (arXiv 2507.12612), exactly, with a proof.

    Parameters
    ----------
    similarity : (n, n) array
        Symmetric; larger is more alike. A divergence has the opposite sign: `pysubmod.similarity.to_similarity`.
        A constant added to all of it changes no mixture, so -JSD and ln 2 - JSD are the same.
    beta : float
        At least 0: what being like the other tasks is worth.
    lam : float
        At least 0: the charge for taking the same twice. The mixture depends on ``beta / lam`` alone.
    unary : (n,) array, optional
        The worth of each task, in place of the sums of `similarity`'s rows.
    lower, upper : float, (n,) array or mapping, optional
        Bounds of the shares, 0 and 1 by default; in a mapping, of the tasks that it names.
    labels : sequence of int or str, optional
        Names of the tasks.
    on_indefinite : {"raise", "shift"}
        What to do where J is not positive semidefinite on the complement of the ones vector, so that a stationary
        point proves nothing: refuse, or add to the diagonal of J the least that makes it so. That is another
        problem, one which rewards even mixtures; the amount is `Mixture.shift`.

    Returns
    -------
    Mixture

    Raises
    ------
    ValueError, TypeError
        For a similarity that is not square, symmetric and finite, or not semidefinite as above; for bounds that no
        mixture meets; for a negative beta or lam, and ones that make coefficients above 1e150.

    Notes
    -----
    Accelerated projected gradients, then a primal active set method (`pysubmod._capped_simplex`). The gap at which the
    answer counts as "optimal" is 1e-9 of `Mixture.scale`, since energies have the units of the similarity; in practice
    it is near the rounding of float64. 1,000 tasks take a fraction of a second.
    """
    on_indefinite = as_choice("on_indefinite", on_indefinite, ("raise", "shift"))
    beta, lam = as_scalar("beta", beta, minimum=0.0), as_scalar("lam", lam, minimum=0.0)
    return _mixture(Energy.checked(similarity, beta, lam, unary, lower, upper, labels, on_indefinite == "shift"))


def _mixture(model: Energy, start: FloatArray | None = None) -> Mixture:
    found = model.solve(start)
    scale = model.scale
    model.forget()
    return Mixture(
        probabilities=found.p, energy=found.energy, gap=found.gap, scale=scale,
        status="optimal" if found.gap <= TOLERANCE * scale else "gap",
        active=found.active, closed_form=found.closed_form, unique=found.unique, shift=model.shift,
        beta=model.beta, lam=model.lam, unary=model.unary, lower=model.lower, upper=model.upper,
        similarity=model.similarity, labels=model.labels, _model=model,
    )  # fmt: skip


@dataclass(frozen=True, eq=False, repr=False)
class MixturePath:
    """The mixtures along ``beta / lam``, on which alone they depend.

    Attributes
    ----------
    ratios : (k,) float64 array
        ``beta / lam``, ascending. 0 is the mixture of minimum variance; large ones take the most central task alone.
    probabilities : (k, n) float64 array
        The shares at each ratio.
    mixtures : tuple of Mixture
        Everything else about them, with lam = 1.
    labels : tuple of int or str
    """

    ratios: FloatArray
    probabilities: FloatArray
    mixtures: tuple[Mixture, ...]
    labels: tuple[Label, ...]

    def __len__(self) -> int:
        return len(self.ratios)

    def plot(self) -> Figure:
        """Shares over the ratio, stacked, a band a task; needs Matplotlib."""
        from ._mixture_plot import path_figure

        return path_figure(self)

    def __repr__(self) -> str:
        return (
            f"MixturePath({len(self)} ratios, {self.ratios[0]:.3g} to {self.ratios[-1]:.3g}, {len(self.labels)} tasks)"
        )


def mixture_path(
    similarity: Any,
    ratios: Any = None,
    *,
    unary: Any = None,
    lower: Any = None,
    upper: Any = None,
    labels: Sequence[Label] | None = None,
    on_indefinite: str = "raise",
) -> MixturePath:
    """`task_mixture` for many ratios ``beta / lam``, to choose one by its mixture.

    Parameters
    ----------
    similarity, unary, lower, upper, labels, on_indefinite
        As of `task_mixture`.
    ratios : (k,) array, optional
        At least 0. By default 0 and 80 ratios from 1/100 to 100 times 1/n, at which the stationary point is uniform.

    Returns
    -------
    MixturePath
    """
    on_indefinite = as_choice("on_indefinite", on_indefinite, ("raise", "shift"))
    model = Energy.checked(similarity, 1.0, 1.0, unary, lower, upper, labels, on_indefinite == "shift")
    if ratios is None:
        ratios = np.concatenate([[0.0], np.geomspace(0.01, 100.0, 80) / len(model.labels)])
    if not isinstance(ratios, Iterable) or isinstance(ratios, (str, bytes)) or getattr(ratios, "ndim", 1) != 1:
        raise TypeError(f"ratios: expected a sequence of numbers, as in [0.5, 1]; got {type_name(ratios)}")
    values = np.sort([as_scalar(f"ratios[{k}]", value, minimum=0.0) for k, value in enumerate(ratios)])
    if len(values) == 0:
        raise ValueError("ratios: expected at least one, got none")
    mixtures: list[Mixture] = []
    for ratio in values.tolist():
        step = replace(model, beta=ratio)
        step.check_size("ratios")
        mixtures.append(_mixture(step, mixtures[-1].probabilities if mixtures else None))
    return MixturePath(values, np.array([m.probabilities for m in mixtures]), tuple(mixtures), model.labels)
