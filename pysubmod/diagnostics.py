"""What to know about a selection before trusting it: `diagnose`.

Nothing here comes from the compiled core: values, weights and bounds are computed afresh from the problem.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ._random import as_seed
from ._validation import as_indices, as_mask, is_integer, shown, type_name
from .matroid import PartitionMatroid, checked_matroid

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ._findings import Given
    from ._guarantees import Guarantee
    from .certificate import Certificate
    from .problem import GradientMatching
    from .result import Selection

__all__ = ["Diagnosis", "diagnose"]

FloatArray = npt.NDArray[np.float64]
IndexArray = npt.NDArray[np.int64]
MOST_ENUMERATED = 14  # 3^14 pairs take seconds, and each row more three times as long


@dataclass(frozen=True, eq=False, repr=False)
class Diagnosis:
    """A report on one selection; ``print`` it.

    Attributes
    ----------
    problem : dict
        n, rows that were candidates, d, picks, rank, number of groups that can give, weight mode, ridge, whether the
        selection is feasible, the objective and relative residual of the picks at their best weights and at the
        selection's own weights, and whether no candidate would improve on it (`optimal`).
    certified : dict of {"value": float or None, "how": str}
        Bounds that hold, rounding included, and values by enumeration (``..._exact``), which are right up to rounding.
        ``gamma_r`` is the submodularity ratio over sets of at most r = rank rows, and so on.
    estimates : dict of {"value": float or None, "how": str}
        Numbers that are on the wrong side for a guarantee; never used in one.
    guarantees : tuple of Guarantee
        The a-priori guarantees of the rule that ran, each with formula, number and citation; empty if there is none.
    guarantee_note : str
        What the first of them says, or why there is none.
    comparison : dict
        The selection, top-k, each group alone ("per_group") and random draws, under the same budgets, each with its
        best weights: objective, relative residual, conflicting pairs. The rivals are None where it is unknown which
        rows were candidates.
    norms, cosines : dict
        Of the rows that may be picked ("pool") and of the picks.
    conditioning : dict
        Condition numbers of C on the picks, and of the same with unit diagonal.
    groups : list of dict
        Label, size, budget, picks and shortfall of every group.
    weights : dict
        Number of zeros, smallest, largest, and the effective sample size ``(sum |w|)^2 / sum w^2``.
    informative : dict
        Zero rows, and zero columns (None where only a Gram matrix is known).
    flags : tuple of str
        What deserves attention, a sentence each.
    certificate : Certificate or None
        The certificate that `diagnose` was given.
    """

    problem: dict[str, Any]
    certified: dict[str, dict[str, Any]]
    estimates: dict[str, dict[str, Any]]
    guarantees: tuple[Guarantee, ...]
    guarantee_note: str
    comparison: dict[str, Any]
    norms: dict[str, Any]
    cosines: dict[str, Any]
    conditioning: dict[str, Any]
    groups: list[dict[str, Any]]
    weights: dict[str, Any]
    informative: dict[str, Any]
    flags: tuple[str, ...]
    certificate: Certificate | None = None
    # For the picture: cosines among the picks, and their groups.
    _cosines: FloatArray = field(default_factory=lambda: np.empty((0, 0)))
    _codes: IndexArray = field(default_factory=lambda: np.empty(0, np.int64))

    def __repr__(self) -> str:
        p = self.problem
        return f"<Diagnosis: {p['picks']} picks of {p['n']}, objective {p['objective']:.6g}, {len(self.flags)} flags>"

    def __str__(self) -> str:
        from ._diagnosis_text import report

        return report(self)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain dicts, lists, numbers and strings; `json.dumps` takes it (infinity is written "inf")."""
        names = [name for name in self.__dataclass_fields__ if not name.startswith("_")]
        plain: dict[str, Any] = _plain({name: getattr(self, name) for name in names})
        return plain

    def plot(self) -> Figure:
        """Draw the comparison with random draws, the conflicts, the weights, and the cosines among the picks.

        Returns
        -------
        matplotlib Figure

        Raises
        ------
        ImportError
            Matplotlib is not installed; the message says how to get it.
        """
        from ._diagnosis_plot import diagnosis_figure

        return diagnosis_figure(self)


def diagnose(
    problem: GradientMatching,
    matroid: PartitionMatroid | int,
    selection: Selection | Any,
    *,
    candidates: Any = None,
    random_state: Any = 0,
    n_random: int = 100,
    n_pairs: int = 32,
    exact_limit: int = 11,
    eigen_limit: int = 1500,
    certificate: Certificate | None = None,
) -> Diagnosis:
    """Report how trustworthy a selection is, what is promised of it, and how it compares with simpler ones.

    Parameters
    ----------
    problem : GradientMatching
        What was matched.
    matroid : PartitionMatroid or int
        The budgets; an int is a plain cardinality.
    selection : Selection, or (k,) int array
        The picks to judge. Without a `Selection` the rule that made them is unknown, and no guarantee is named; nor is
        one for a selection made for another problem, which its record and its objective at its own weights tell.
    candidates : (n,) bool array, optional
        The rows that rivals, budgets' shortfalls and guarantees count on (beside those of `selection`); others are
        never read. Default: those that `solve` or `omp_partition` was given, where the selection is fresh from there
        and `problem` is the same object. Of a loaded or copied one only their number is known; where that is not n,
        nothing is compared.
    random_state : int, None, or NumPy Generator, default 0
        Seed of the random draws and of the sampled pairs.
    n_random : int, default 100
        Random feasible selections to compare with.
    n_pairs : int, default 32
        Random pairs (A, B) for the estimates of gamma and beta.
    exact_limit : int, default 11
        Up to so many candidates gamma and beta are computed exactly, from 3^n pairs; at most 14.
    eigen_limit : int, default 1500
        With more candidates than this no (n, n) matrix is made: eigenvalue bounds come from the ridge alone, and
        cosines of the pool from a sample of 1000 rows. The eigenvalues cost n^3: on two cores 0.6 s for 1,500
        candidates (4 s while they were busy), half a minute for 3,000; without them 3,000 rows of 4,096 numbers take
        half a second.
    certificate : Certificate, optional
        Of the same selection (`certify`), to be printed with the rest.

    Returns
    -------
    Diagnosis

    Raises
    ------
    TypeError, ValueError
        Naming the argument; for an unbounded problem too, and for a certificate of another selection.

    Notes
    -----
    Certified curvature: gamma_k >= lambda_k(R) >= lambda_min(R) >= m / max C_ii and beta_k <= 1 / lambda_k(R), R being
    C scaled to a unit diagonal, by the argument of Das and Kempe (JMLR 2018) and Elenberg et al. (Annals of
    Statistics 2018).

    Examples
    --------
    >>> import pysubmod
    >>> from pysubmod.datasets import load_demo
    >>> data = load_demo()
    >>> matroid = pysubmod.PartitionMatroid(data.groups, {domain: 2 for domain in data.domains})
    >>> problem = pysubmod.GradientMatching(data.gradients, data.target)
    >>> diagnosis = pysubmod.diagnose(problem, matroid, pysubmod.solve(problem, matroid))
    >>> diagnosis.comparison["selection"]["objective"] > diagnosis.comparison["random"]["objective"]["max"]
    True
    """
    matroid = checked_matroid(problem, matroid)
    seed = as_seed(random_state)
    n_random, n_pairs = _count("n_random", n_random), _count("n_pairs", n_pairs)
    exact_limit = _count("exact_limit", exact_limit, MOST_ENUMERATED)
    eigen_limit = _count("eigen_limit", eigen_limit)
    given = _taken_apart(problem, selection, as_mask(candidates, problem.n))
    from ._findings import Limits, findings  # here, so that `import pysubmod` stays light

    limits = Limits(seed, n_random, n_pairs, exact_limit, eigen_limit)
    diagnosis = Diagnosis(**findings(problem, matroid, given, limits), certificate=certificate)
    if certificate is not None:
        _check_certificate(certificate, diagnosis.problem)
    return diagnosis


def _count(name: str, value: Any, most: int | None = None) -> int:
    if not is_integer(value):
        raise TypeError(f"{name}: expected an integer, got {shown(value)}")
    if value < 0 or (most is not None and value > most):
        wanted = "at least 0" if most is None else f"0 .. {most}"
        raise ValueError(f"{name}: expected {wanted}, got {shown(value)}")
    return int(value)


def _taken_apart(problem: GradientMatching, selection: Any, mask: npt.NDArray[np.bool_] | None) -> Given:
    """The selection as what is known of it, `mask` being the caller's candidates."""
    from ._findings import Given

    n, is_selection = problem.n, hasattr(selection, "indices") and hasattr(selection, "weights")
    members = as_indices(selection.indices if is_selection else selection, n, "selection")
    config = getattr(selection, "config", {}) if is_selection else {}
    origin = getattr(selection, "_origin", None)
    everything = np.ones(n, bool)
    saw, number = None, config.get("candidates", n)
    if origin is not None and origin[0] is problem:
        saw = everything if origin[2] is None else origin[2]
    elif number == config.get("n", n):
        saw = everything
    judged = mask if mask is not None else everything if saw is None else saw
    same = int(judged.sum()) == number if saw is None else np.array_equal(judged, saw)
    rows = np.flatnonzero(judged | np.isin(np.arange(n), members)).astype(np.int64)
    return Given(
        members=np.searchsorted(rows, members).astype(np.int64),
        weights=selection.weights if is_selection else None,
        objective=getattr(selection, "objective", None) if is_selection else None,
        status=getattr(selection, "status", None) if is_selection else None,
        config=config,
        stats=getattr(selection, "stats", {}) if is_selection else {},
        rows=rows,
        rows_known=saw is not None or mask is not None,
        same_rows=same,
    )


def _check_certificate(certificate: Any, facts: Mapping[str, Any]) -> None:
    from .certificate import Certificate

    if not isinstance(certificate, Certificate):
        raise TypeError(
            f"certificate: expected a Certificate, got {type_name(certificate)}; "
            "make one by pysubmod.certify(problem, matroid, selection)"
        )
    own = facts["objective_at_own_weights"]
    here = facts["objective"] if own is None else own
    if not math.isclose(certificate.objective, here, rel_tol=1e-6, abs_tol=facts["rounding"]):
        raise ValueError(
            f"certificate: belongs to a selection with objective {certificate.objective:.9g}, this one has {here:.9g}; "
            "make one by pysubmod.certify(problem, matroid, selection)"
        )


def _plain(value: Any) -> Any:
    """Plain JSON values."""
    if is_dataclass(value) and not hasattr(value, "to_dict"):
        return {entry.name: _plain(getattr(value, entry.name)) for entry in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return _plain(value.to_dict()) if hasattr(value, "to_dict") else str(value)
