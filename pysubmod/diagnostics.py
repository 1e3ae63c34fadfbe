"""What to know about a selection before trusting it: `diagnose`.

Nothing here comes from the compiled core: values, weights and bounds are computed afresh from the numbers of the problem.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ._comparison import Facts, Pool, cosine_summary, cosines, norm_summary
from ._curvature import enumerated_ratios, ratio_at, sampled_ratios, subset_values
from ._flags import flags
from ._guarantees import Guarantee, guarantees
from ._quadratic import Quadratic
from ._random import as_seed, random_bits
from ._spectrum import Spectrum
from ._validation import as_indices, is_integer, shown, type_name
from .matroid import PartitionMatroid

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .problem import GradientMatching
    from .result import Selection

__all__ = ["Diagnosis", "diagnose"]

FloatArray = npt.NDArray[np.float64]
IndexArray = npt.NDArray[np.int64]
MOST_ENUMERATED = 14  # 3^14 pairs take seconds, and each row more three times as long
WELL_CONDITIONED = 1e-6  # below it the values of subsets carry too much rounding to be called exact


@dataclass(frozen=True, eq=False, repr=False)
class Diagnosis:
    """A report on one selection; ``print`` it.

    Attributes
    ----------
    problem : dict
        n, d, picks, rank, number of groups that can give, weight mode, whether the selection is feasible, the ridge, and
        the objective and relative residual of the picks at their best weights and at the selection's own weights.
    certified : dict of {"value": float or None, "how": str}
        Bounds (and exact values) that hold, rounding included. ``gamma_r`` is the submodularity ratio over sets of at
        most r = rank rows, and so on.
    estimates : dict of {"value": float or None, "how": str}
        Numbers that are on the wrong side for a guarantee; never used in one.
    guarantees : tuple of Guarantee
        The a-priori guarantees of the rule that ran, each with formula, number and citation; empty if there is none.
    guarantee_note : str
        What the first of them says, or why there is none.
    comparison : dict
        The selection, top-k, each group alone ("per_group") and random draws, under the same budgets, every one with its best
        weights: objective, relative residual, conflicting pairs.
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
    certificate : object or None
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
    certificate: Any = None
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
    random_state: Any = 0,
    n_random: int = 100,
    n_pairs: int = 32,
    exact_limit: int = 11,
    eigen_limit: int = 3000,
    certificate: Any = None,
) -> Diagnosis:
    """Report how trustworthy a selection is, what is promised of it, and how it compares with simpler ones.

    Parameters
    ----------
    problem : GradientMatching
        What was matched.
    matroid : PartitionMatroid or int
        The budgets; an int is a plain cardinality.
    selection : Selection, or (k,) int array
        The picks to judge. Without a `Selection` the rule that made them is unknown, and no guarantee is named.
    random_state : int, None, or NumPy Generator, default 0
        Seed of the random draws and of the sampled pairs.
    n_random : int, default 100
        Random feasible selections to compare with.
    n_pairs : int, default 32
        Random pairs (A, B) for the estimates of gamma and beta.
    exact_limit : int, default 11
        Up to so many candidates gamma and beta are computed exactly, from 3^n pairs; at most 14.
    eigen_limit : int, default 3000
        With more candidates than this no (n, n) matrix is made: eigenvalue bounds come from the ridge alone, and
        cosines of the pool from a sample of 1000 rows.
    certificate : object, optional
        A certificate of the same selection, to be printed with the rest.

    Returns
    -------
    Diagnosis

    Raises
    ------
    TypeError, ValueError
        Naming the argument; for an unbounded problem too.

    Notes
    -----
    Certified curvature: gamma_k >= lambda_k(R) >= lambda_min(R) >= m / max C_ii and beta_k <= 1 / lambda_k(R), R being C scaled to a
    unit diagonal, by the argument of Das and Kempe (JMLR 2018) and Elenberg et al. (Annals of Statistics 2018).

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
    matroid = _check_problem(problem, matroid)
    seed = as_seed(random_state)
    n_random, n_pairs = _count("n_random", n_random), _count("n_pairs", n_pairs)
    exact_limit = _count("exact_limit", exact_limit, MOST_ENUMERATED)
    eigen_limit = _count("eigen_limit", eigen_limit)
    members, own_weights, config, stats = _taken_apart(selection, problem.n)

    q = Quadratic(problem)
    pool = Pool(q, matroid, problem.tilt)
    spectrum = Spectrum(q, pool.rows, matroid.codes[pool.rows], eigen_limit)
    if spectrum.has_matrix and len(pool.rows) == q.n:
        _ = q.matrix  # every later block is then a piece of it
    chosen = pool.facts(members)
    certified, estimates = _curvature(spectrum, members, matroid.rank, exact_limit, n_pairs, seed)
    found, note = _guarantees(problem, matroid, spectrum, members, config, stats)
    cosine = cosines(q.block(members) - q.ridge * np.eye(len(members)))
    pool_cosine, pool_codes, sampled = pool.sampled(_stream(seed, 1))
    facts: dict[str, Any] = {
        "problem": _summary(problem, matroid, pool, chosen, own_weights),
        "certified": certified,
        "estimates": estimates,
        "guarantees": found,
        "guarantee_note": note,
        "comparison": _comparison(pool, chosen, n_random, seed),
        "norms": {"pool": norm_summary(pool.norms[pool.rows]), "picks": norm_summary(pool.norms[members])},
        "cosines": {
            "pool": cosine_summary(pool_cosine, pool_codes) | {"rows": len(pool_codes), "sampled": sampled},
            "picks": cosine_summary(cosine, matroid.codes[members]),
        },
        "conditioning": _conditioning(q, members),
        "groups": _groups(matroid, members),
        "weights": _weights(own_weights if own_weights is not None else chosen.weights),
        "informative": _informative(q),
    }
    sentences = flags(facts, config, not_psd=spectrum.indefinite, mismatch=_mismatch(problem, matroid, config))
    return Diagnosis(
        **facts, flags=sentences, certificate=certificate, _cosines=cosine, _codes=matroid.codes[members].astype(np.int64)
    )


def _check_problem(problem: Any, matroid: Any) -> PartitionMatroid:
    # By its parts, not by its class: importing that would load the compiled core, which this module judges.
    if not all(hasattr(problem, name) for name in ("n", "ridge", "nonneg", "tilt", "_rows")):
        raise TypeError(f"problem: expected a GradientMatching, got {type_name(problem)}")
    if not isinstance(matroid, PartitionMatroid):
        matroid = PartitionMatroid._cardinality(problem.n, matroid)
    if matroid.n != problem.n:
        raise ValueError(f"matroid: has {matroid.n} rows but the problem has {problem.n}")
    return matroid


def _count(name: str, value: Any, most: int | None = None) -> int:
    if not is_integer(value):
        raise TypeError(f"{name}: expected an integer, got {shown(value)}")
    if value < 0 or (most is not None and value > most):
        wanted = "at least 0" if most is None else f"0 .. {most}"
        raise ValueError(f"{name}: expected {wanted}, got {shown(value)}")
    return int(value)


def _taken_apart(
    selection: Any, n: int
) -> tuple[IndexArray, FloatArray | None, Mapping[str, Any], Mapping[str, Any]]:
    """Row numbers, weights if it has any, config and stats."""
    if hasattr(selection, "indices") and hasattr(selection, "weights"):
        members = as_indices(selection.indices, n, "selection")
        return members, selection.weights, getattr(selection, "config", {}), getattr(selection, "stats", {})
    return as_indices(selection, n, "selection"), None, {}, {}


def _stream(seed: int, number: int) -> int:
    return int(random_bits(seed, number)) >> 1


def _summary(
    problem: Any, matroid: PartitionMatroid, pool: Pool, chosen: Facts, own: FloatArray | None
) -> dict[str, Any]:
    members = chosen.indices
    given = None
    if own is not None:
        C = pool.q.block(members)
        given = float(own @ (2 * pool.q.c[members] - C @ own) / 2)
    return {
        "n": problem.n,
        "d": pool.q.width,
        "picks": len(members),
        "rank": matroid.rank,
        "groups": int((pool.room > 0).sum()),
        "nonneg": pool.q.nonneg,
        "ridge": pool.q.ridge,
        "feasible": matroid.is_feasible(members),
        "objective": chosen.objective,
        "objective_at_own_weights": given,
        "relative_residual": chosen.relative_residual,
        "against_target": int((pool.q.c[members] < 0).sum()),
        "aligned_candidates": int((pool.scores[pool.rows] > 0).sum()),
    }


def _curvature(
    spectrum: Spectrum, members: IndexArray, rank: int, exact_limit: int, n_pairs: int, seed: int
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """The two sections, never mixed."""
    certified, estimates = _bounds(spectrum, members, rank), {}
    two = min(2 * rank, spectrum.n)
    if rank and two >= 2:
        above = spectrum.sparse_from_above(two)
        if above is not None:
            estimates["lambda_2r"] = _item(above, "at most this: one badly conditioned submatrix (local search)")
    if 2 <= spectrum.n <= exact_limit and rank:
        gamma, beta = enumerated_ratios(subset_values(spectrum.C, spectrum.quadratic.c[spectrum.rows], _nonneg(spectrum)))
        sure = certified["lambda_min"]["value"] >= WELL_CONDITIONED
        where = certified if sure else estimates
        how = "all pairs of sets enumerated" if sure else "all pairs enumerated, but C is too near singular to call it exact"
        for name, values, k in (("gamma_r", gamma, rank), ("gamma_2r", gamma, two), ("beta_r", beta, rank)):
            where[f"{name}_exact"] = _item(float(values[min(k, spectrum.n) - 1]), how)
    elif n_pairs and rank >= 2:
        ratios = sampled_ratios(spectrum, members, rank, n_pairs, _stream(seed, 2))
        if ratios is not None:
            how = f"the {{}} of {n_pairs} sampled pairs: the true one is {{}}"
            estimates["gamma_r"] = _item(ratios[0], how.format("smallest", "at most this"))
            estimates["beta_r"] = _item(ratios[1], how.format("largest", "at least this"))
    return certified, estimates


def _bounds(spectrum: Spectrum, members: IndexArray, rank: int) -> dict[str, dict[str, Any]]:
    lowest, smallest = spectrum.low("R"), spectrum.low("C")
    sparse, double = spectrum.low("R", rank), spectrum.low("R", 2 * rank)
    ratio = smallest.value / spectrum.largest * (1 - 1e-12) if spectrum.n else 1.0
    bounds = {
        "lambda_min": _item(lowest.value, lowest.how),
        "m_over_M1": _item(ratio, f"C: {smallest.how}"),
        "lambda_r": _item(sparse.value, sparse.how),
        "lambda_2r": _item(double.value, double.how),
        "gamma_r": _item(sparse.value, "lambda_r(R)"),
        "gamma_2r": _item(double.value, "lambda_2r(R)"),
        "beta_r": _item((1 + 1e-12) / sparse.value if sparse.value > 0 else math.inf, "1 / lambda_r(R)"),
        "mu_within": _item(spectrum.coherence_within, "largest correlation inside a group"),
    }
    if not _nonneg(spectrum):
        here = ratio_at(spectrum, members)
        if here is not None:
            bounds["gamma_at_selection"] = _item(here.value, here.how)
    return bounds


def _nonneg(spectrum: Spectrum) -> bool:
    return spectrum.quadratic.nonneg


def _item(value: float, how: str) -> dict[str, Any]:
    return {"value": None if math.isnan(value) else value, "how": how}


def _guarantees(
    problem: Any,
    matroid: PartitionMatroid,
    spectrum: Spectrum,
    members: IndexArray,
    config: Mapping[str, Any],
    stats: Mapping[str, Any],
) -> tuple[tuple[Guarantee, ...], str]:
    if not matroid.is_feasible(members):
        return (), "None: the picks break a budget."
    mismatch = _mismatch(problem, matroid, config)
    if mismatch:
        return (), f"None: the selection was made for another problem ({mismatch})."
    room = np.minimum(matroid.budgets, matroid.sizes)
    return guarantees(
        config,
        stats,
        spectrum,
        k=len(members),
        rank=matroid.rank,
        n_groups=int((room > 0).sum()),
        nonneg=problem.nonneg,
        forced=len(members) == matroid.rank and bool((room == matroid.sizes)[room > 0].all()),
    )


def _mismatch(problem: Any, matroid: PartitionMatroid, config: Mapping[str, Any]) -> str:
    """What the selection's own record contradicts, or nothing."""
    for name in ("n", "ridge", "nonneg", "tilt"):
        if name in config and config[name] != getattr(problem, name):
            return f"{name} {config[name]!r}, here {getattr(problem, name)!r}"
    budgets = dict(zip(matroid.labels, matroid.budgets.tolist(), strict=True))
    if isinstance(config.get("budgets"), Mapping) and dict(config["budgets"]) != budgets:
        return "other budgets"
    return ""


def _comparison(pool: Pool, chosen: Facts, n_random: int, seed: int) -> dict[str, Any]:
    stream = _stream(seed, 3)
    top = pool.facts(pool.top_k())
    draws = [pool.facts(pool.at_random(stream, draw)) for draw in range(n_random)]
    objective = np.array([draw.objective for draw in draws])
    residuals = np.array([draw.relative_residual for draw in draws if draw.relative_residual is not None])
    conflicts = np.array([draw.conflicts for draw in draws], np.float64)
    return {
        "selection": chosen.as_dict(),
        "top_k": top.as_dict() | {"same_set": set(top.indices.tolist()) == set(chosen.indices.tolist())},
        "per_group": pool.facts(pool.per_group()).as_dict(),
        "random": {
            "draws": n_random,
            "picks": pool.matroid.rank,
            "pairs": draws[0].pairs if draws else 0,
            "objective": _spread(objective),
            "relative_residual": _spread(residuals),
            "conflicting_pairs": _spread(conflicts),
            "beaten_share": float((objective < chosen.objective).mean()) if n_random else None,
            "objectives": objective.tolist(),
            "conflicts": conflicts.astype(np.int64).tolist(),
        },
    }


def _spread(values: FloatArray) -> dict[str, float] | None:
    if not len(values):
        return None
    spread = {"mean": values.mean(), "std": values.std(), "min": values.min(), "max": values.max()}
    return {name: float(value) for name, value in spread.items()}


def _conditioning(q: Quadratic, members: IndexArray) -> dict[str, Any]:
    """Condition numbers; infinite where the smallest eigenvalue is rounding."""

    def condition(matrix: FloatArray) -> float | None:
        if not len(matrix):
            return None
        values = np.linalg.eigvalsh(matrix)
        if values[0] <= len(matrix) * np.finfo(float).eps * values[-1]:
            return math.inf
        return float(values[-1] / values[0])

    C = q.block(members)
    root = np.sqrt(np.where(C.diagonal() > 0, C.diagonal(), 1.0))
    return {"picks": condition(C), "picks_unit_diagonal": condition(C / np.multiply.outer(root, root))}


def _groups(matroid: PartitionMatroid, members: IndexArray) -> list[dict[str, Any]]:
    counts = np.bincount(matroid.codes[members], minlength=len(matroid.labels)).tolist()
    rows = zip(matroid.labels, matroid.sizes.tolist(), matroid.budgets.tolist(), counts, strict=True)
    return [
        {"label": label, "size": size, "budget": budget, "picks": count, "shortfall": max(0, min(size, budget) - count)}
        for label, size, budget, count in rows
    ]


def _weights(w: FloatArray) -> dict[str, Any]:
    squares = float(w @ w)
    return {
        "zeros": int((w == 0).sum()),
        "negative": int((w < 0).sum()),
        "min": float(w.min()) if len(w) else None,
        "max": float(w.max()) if len(w) else None,
        "effective": float(np.abs(w).sum() ** 2 / squares) if squares > 0 else 0.0,
    }


def _informative(q: Quadratic) -> dict[str, Any]:
    columns = None
    if q.has_rows:
        seen = np.zeros(q.width or 0, bool)
        for _, rows in q._pieces():
            seen |= rows.any(axis=0)
        columns = int((~seen).sum())
    return {"zero_rows": int((q.squares == 0).sum()), "zero_columns": columns}


def _plain(value: Any) -> Any:
    """Plain JSON values."""
    if isinstance(value, Guarantee):
        return dict(vars(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return _plain(value.to_dict()) if hasattr(value, "to_dict") else str(value)
