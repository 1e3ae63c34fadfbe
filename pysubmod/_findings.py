"""The sections of a diagnosis, computed from the float64 view of a problem."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ._comparison import Facts, Pool, cosine_summary, cosines, norm_summary
from ._curvature import enumerated_ratios, ratio_at, sampled_ratios, subset_values
from ._flags import flags
from ._guarantees import Guarantee, guarantees
from ._quadratic import Quadratic
from ._random import random_bits
from ._spectrum import Spectrum
from .matroid import PartitionMatroid

__all__ = ["Given", "Limits", "findings"]

FloatArray = npt.NDArray[np.float64]
IndexArray = npt.NDArray[np.int64]
WELL_CONDITIONED = 1e-6  # below it the values of subsets carry too much rounding to be called exact
SAME_OBJECTIVE = 1e-6  # relative difference of objectives up to which a selection's problem may be this one
TIED = 1e-9  # relative difference of two objectives that is rounding

TOO_SINGULAR = "but C is too near singular for their values to be exact"


@dataclass(frozen=True)
class Given:
    """What is known of the selection and of the rows it came from."""

    members: IndexArray  # positions in `rows`
    weights: FloatArray | None  # its own, if it has any
    objective: float | None  # what its record says
    status: str | None
    config: Mapping[str, Any]
    stats: Mapping[str, Any]
    rows: IndexArray  # the rows that are judged, ascending
    rows_known: bool  # whether those are the ones that could be picked
    same_rows: bool  # whether the run had the same


@dataclass(frozen=True)
class Limits:
    """The parameters of `diagnose`."""

    seed: int
    n_random: int
    n_pairs: int
    exact_limit: int
    eigen_limit: int

    def stream(self, number: int) -> int:
        return int(random_bits(self.seed, number)) >> 1


def findings(problem: Any, matroid: PartitionMatroid, given: Given, limits: Limits) -> dict[str, Any]:
    """All fields of a `Diagnosis` but the certificate."""
    whole, matroid = matroid, matroid._restricted(given.rows)
    members, q = given.members, Quadratic(problem._restricted(given.rows), given.rows)
    pool = Pool(q, matroid, problem.tilt)
    codes = matroid.codes.astype(np.int64)
    spectrum = Spectrum(q, pool.rows, codes[pool.rows], limits.eigen_limit)
    if spectrum.has_matrix and len(pool.rows) == q.n:
        _ = q.matrix  # every later block is then a piece of it
    chosen = pool.facts(members)
    certified, estimates = _curvature(spectrum, members, matroid.rank, limits)
    summary = _summary(whole.n, matroid, pool, chosen, given.weights)
    summary["optimal"] = summary["feasible"] and not spectrum.indefinite and pool.is_optimal(chosen)
    mismatch = _mismatch(problem, matroid, given, summary)
    found, note = _guarantees(matroid, spectrum, given, mismatch, summary["optimal"])
    cosine = cosines(q.block(members) - q.ridge * np.eye(len(members)))
    pool_cosine, pool_codes, sampled = pool.sampled(limits.stream(1))
    facts: dict[str, Any] = {
        "problem": summary,
        "certified": certified,
        "estimates": estimates,
        "guarantees": found,
        "guarantee_note": note,
        "comparison": _comparison(pool, chosen, limits, given.rows_known),
        "norms": {"pool": norm_summary(pool.norms[pool.rows]), "picks": norm_summary(pool.norms[members])},
        "cosines": {
            "pool": cosine_summary(pool_cosine, pool_codes) | {"rows": len(pool_codes), "sampled": sampled},
            "picks": cosine_summary(cosine, codes[members]),
        },
        "conditioning": _conditioning(q, members),
        "groups": _groups(matroid, members, given.rows_known),
        "weights": _weights(chosen.weights if given.weights is None else given.weights),
        "informative": _informative(q),
    }
    sentences = flags(facts, given.config, given.status, not_psd=spectrum.indefinite, mismatch=mismatch)
    return facts | {"flags": sentences, "_cosines": cosine, "_codes": codes[members]}


def _summary(n: int, matroid: PartitionMatroid, pool: Pool, chosen: Facts, own: FloatArray | None) -> dict[str, Any]:
    members = chosen.indices
    given, rounding = pool.worth(members, chosen.weights if own is None else own)
    return {
        "n": n,
        "candidates": matroid.n,
        "d": pool.q.width,
        "picks": len(members),
        "rank": matroid.rank,
        "groups": int((pool.room > 0).sum()),
        "nonneg": pool.q.nonneg,
        "ridge": pool.q.ridge,
        "feasible": matroid.is_feasible(members),
        "objective": chosen.objective,
        "objective_at_own_weights": None if own is None else given,
        "rounding": rounding,
        "relative_residual": chosen.relative_residual,
        "against_target": int((pool.q.c[members] < 0).sum()),
        "aligned_candidates": int((pool.scores[pool.rows] > 0).sum()),
    }


def _curvature(
    spectrum: Spectrum, members: IndexArray, rank: int, limits: Limits
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """The two sections, never mixed."""
    certified, estimates = _bounds(spectrum, members, rank), {}
    two = min(2 * rank, spectrum.n)
    if rank and two >= 2:
        above = spectrum.sparse_from_above(two)
        if above is not None:
            estimates["lambda_2r"] = _item(above, "at most this: one badly conditioned submatrix (local search)")
    if 2 <= spectrum.n <= limits.exact_limit and rank:
        gamma, beta = enumerated_ratios(
            subset_values(spectrum.C, spectrum.quadratic.c[spectrum.rows], _nonneg(spectrum))
        )
        for name, values, k in (("gamma_r", gamma, rank), ("gamma_2r", gamma, two), ("beta_r", beta, rank)):
            sure = spectrum.low("R", k).value >= WELL_CONDITIONED
            how = "all pairs of sets enumerated"
            value = float(values[min(k, spectrum.n) - 1])
            (certified if sure else estimates)[f"{name}_exact"] = _item(
                value, how if sure else f"{how}, {TOO_SINGULAR}"
            )
    elif limits.n_pairs and rank >= 2:
        ratios = sampled_ratios(spectrum, members, rank, limits.n_pairs, limits.stream(2))
        if ratios is not None:
            how = f"the {{}} of {limits.n_pairs} sampled pairs: the true one is {{}}"
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
        "mu_within": _item(
            spectrum.coherence_within,
            "largest correlation inside a group" if spectrum.has_matrix else "true of any rows",
        ),
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
    matroid: PartitionMatroid, spectrum: Spectrum, given: Given, mismatch: str, optimal: bool
) -> tuple[tuple[Guarantee, ...], str]:
    if not matroid.is_feasible(given.members):
        return (), "None: the picks break a budget."
    if mismatch:
        return (), f"None: the selection was made for another problem ({mismatch})."
    k = len(given.members)
    room = np.minimum(matroid.budgets, matroid.sizes)
    return guarantees(
        given.config,
        given.stats,
        spectrum,
        k=k,
        rank=matroid.rank,
        n_groups=int((room > 0).sum()),
        nonneg=_nonneg(spectrum),
        forced=given.rows_known and k == matroid.rank and bool((room == matroid.sizes)[room > 0].all()),
        optimal=optimal,
        same_rows=given.same_rows,
        status=given.status,
    )


def _mismatch(problem: Any, matroid: PartitionMatroid, given: Given, summary: Mapping[str, Any]) -> str:
    """What the selection's own record contradicts, or nothing."""
    config, here = given.config, summary["objective_at_own_weights"]
    for name in ("n", "ridge", "nonneg", "tilt"):
        if name in config and config[name] != getattr(problem, name):
            return f"{name} {config[name]!r}, here {getattr(problem, name)!r}"
    budgets = dict(zip(matroid.labels, matroid.budgets.tolist(), strict=True))
    if isinstance(config.get("budgets"), Mapping) and dict(config["budgets"]) != budgets:
        return "other budgets"
    if given.objective is None or here is None:
        return ""
    if math.isclose(given.objective, here, rel_tol=SAME_OBJECTIVE, abs_tol=summary["rounding"]):
        return ""
    return f"objective {given.objective:.6g}, here its weights reach {here:.6g}"


def _comparison(pool: Pool, chosen: Facts, limits: Limits, rows_known: bool) -> dict[str, Any]:
    """The rivals; none where they might use rows that the selection could not."""
    stream, n_random = limits.stream(3), limits.n_random if rows_known else 0
    top = pool.facts(pool.top_k()) if rows_known else None
    draws = [pool.facts(pool.at_random(stream, draw)) for draw in range(n_random)]
    objective = np.array([draw.objective for draw in draws])
    residuals = np.array([draw.relative_residual for draw in draws if draw.relative_residual is not None])
    conflicts = np.array([draw.conflicts for draw in draws], np.float64)
    return {
        "selection": chosen.as_dict(),
        "top_k": top and top.as_dict() | {"same_set": set(top.indices.tolist()) == set(chosen.indices.tolist())},
        "per_group": pool.facts(pool.per_group()).as_dict() if rows_known else None,
        "random": {
            "draws": n_random,
            "picks": pool.matroid.rank,
            "pairs": draws[0].pairs if draws else 0,
            "objective": _spread(objective),
            "relative_residual": _spread(residuals),
            "conflicting_pairs": _spread(conflicts),
            "reached_share": float((objective <= chosen.objective * (1 + TIED)).mean()) if n_random else None,
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


def _groups(matroid: PartitionMatroid, members: IndexArray, rows_known: bool) -> list[dict[str, Any]]:
    """A shortfall is unknown (None) where it is unknown which rows could be picked."""
    counts = np.bincount(matroid.codes[members], minlength=len(matroid.labels)).tolist()
    rows = zip(matroid.labels, matroid.sizes.tolist(), matroid.budgets.tolist(), counts, strict=True)
    return [
        {
            "label": label,
            "size": size,
            "budget": budget,
            "picks": count,
            "shortfall": max(0, min(size, budget) - count) if rows_known else None,
        }
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
