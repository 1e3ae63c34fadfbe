"""Orthogonal matching pursuit under a partition matroid, by the compiled core."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any

import numpy as np
import numpy.typing as npt

from .._backends import core
from .._random import as_seed, check_seed
from .._validation import as_choice, as_count, as_flag, as_indices, as_mask, as_scalar, as_threads, is_integer, shown
from ..matroid import PartitionMatroid
from ..problem import GradientMatching
from ..result import Selection, Status

__all__ = [
    "RULES",
    "Progress",
    "check_device",
    "greedy",
    "normalized_omp",
    "omp",
    "partition_sel",
    "pursue",
    "pursue_each",
    "residual_random",
    "swap",
]

RULES = ("omp", "normalized", "greedy")
PICKS = ("argmax", "random")
RANKINGS = ("relu", "signed")
ROUTES = ("auto", "plain", "columns", "draft")
REFINEMENTS = ("swap",)
DEFAULT_SWAP_TOL = 1e-9
SMALLEST_SWAP_TOL = 1e-12  # below it what a swap gains is rounding


@dataclass(frozen=True, slots=True)
class Progress:
    """What a callback is told after each pick."""

    n_selected: int
    rank: int  # the most picks that budgets and pools allow
    index: int
    gain: float
    objective: float
    residual_norm: float  # NaN if the target is not known


Callback = Callable[[Progress], bool | None]


def pursue_each(
    problems: Sequence[GradientMatching],
    matroid: PartitionMatroid,
    *,
    rule: str = "omp",
    pick: str = "argmax",
    ranking: str = "relu",
    refine: str | None = None,
    swap_tol: float = DEFAULT_SWAP_TOL,
    max_swaps: int | None = None,
    fill: bool = False,
    release_zeros: bool = False,
    tol: float = 0.0,
    candidates: npt.NDArray[np.bool_] | None = None,
    initial: Any = None,
    route: str = "auto",
    device: str = "auto",
    n_threads: int | None = None,
    random_state: Any = None,
    verbose: int = 0,
    callback: Callback | None = None,
) -> list[Selection]:
    """Run the pursuit on problems that differ in nothing but the target, all on the same passes over their rows.

    Arguments: those of `pysubmod.omp_partition`, and what `solvers.solve` says of methods. Several problems have rows,
    no callback and no verbose.
    """
    started = time.perf_counter()
    problem = problems[0]
    check_device(device)
    check_seed(random_state)
    options = problem._core_options() | {
        "rule": as_choice("rule", rule, RULES),
        "pick": as_choice("pick", pick, PICKS),
        "ranking": as_choice("ranking", ranking, RANKINGS),
        "random_state": as_seed(random_state) if pick == "random" else None,
        "tol": as_scalar("tol", tol, minimum=0.0),
        "refine": None if refine is None else as_choice("refine", refine, REFINEMENTS),
        "swap_tol": as_scalar("swap_tol", swap_tol, minimum=SMALLEST_SWAP_TOL),
        "max_swaps": None if max_swaps is None else as_count("max_swaps", max_swaps),
        "fill": as_flag("fill", fill),
        "release_zeros": as_flag("release_zeros", release_zeros),
        "route": as_choice("route", route, ROUTES),
    }
    if route != "auto" and problem._is_gram:
        raise ValueError(f"route: {route!r} reads rows, but only a Gram matrix was given; leave route out")
    if ranking != "relu" and not (pick == "random" and fill):
        raise ValueError("ranking: orders rows that do not help, which only pick='random' with fill=True draws from")
    if refine is None and (swap_tol != DEFAULT_SWAP_TOL or max_swaps is not None):
        raise ValueError("swap_tol, max_swaps: say how swaps are searched for; pass refine='swap' too")
    if options["tol"] > 0 and problem.route == "gram" and math.isnan(problem._target_norm):
        raise ValueError("tol: the residual is not known from K and c alone; give from_gram(..., target_norm=||t||)")
    mask = as_mask(candidates, problem.n)
    start = _check_initial(initial, matroid)
    results = core.solve(
        **problem._core_matrix(),
        vectors=np.array([each._vector for each in problems]),
        group_of=matroid.codes,
        budgets=matroid.budgets,
        candidates=None if mask is None else mask.view(np.uint8),
        initial=start,
        options=options,
        n_threads=as_threads(n_threads),
        kernels=None,
        callback=_listener(callback, verbose),
    )
    config = options | {
        "budgets": dict(zip(matroid.labels, matroid.budgets.tolist(), strict=True)),
        "n": problem.n,
        "d": problem.d,
        "dtype": problem._rows.dtype,
        "candidates": problem.n if mask is None else int(mask.sum()),
        "initial": start.tolist(),
    }
    seconds = time.perf_counter() - started
    return [_selection(result, results, matroid, config, seconds) for result in results]


@wraps(pursue_each, assigned=())  # `solve` reads the names of the options off it
def pursue(problem: GradientMatching, matroid: PartitionMatroid, **options: Any) -> Selection:
    """Run the pursuit on one problem."""
    (selection,) = pursue_each([problem], matroid, **options)
    return selection


omp = partial(pursue, rule="omp")
normalized_omp = partial(pursue, rule="normalized")
greedy = partial(pursue, rule="greedy")


def swap(problem: GradientMatching, matroid: PartitionMatroid, **options: Any) -> Selection:
    """Normalised OMP (or what it makes of `initial`), then `omp_partition`'s ``refine="swap"``.

    Parameters
    ----------
    swap_tol : float, default 1e-9
        A swap has to gain more than this share of the objective.
    max_swaps : int, optional
        Default: no limit.
    **options
        Those of `omp_partition` but rule and refine.
    """
    if "refine" in options:
        raise TypeError("refine: is what method='swap' says; leave it out")
    return pursue(problem, matroid, rule="normalized", refine="swap", **options)


def residual_random(
    problem: GradientMatching, matroid: PartitionMatroid, *, rule: str = "normalized", **options: Any
) -> Selection:
    """Draw each pick uniformly from a heaviest base of the matroid that is left (`omp_partition`'s ``pick="random"``).

    The residual random greedy of Buchbinder, Feldman, Naor and Schwartz (2014), for weakly submodular objectives of
    Chen, Feldman and Karbasi (2018). With r the rank, gamma_r and beta_r the submodularity ratios, its expected
    objective is at least gamma_r / (gamma_r + beta_r) of the optimum with exact gains (Thiery and Ward 2022).

    Parameters
    ----------
    rule : {"normalized", "omp", "greedy"}
        The weights of the base: correlations over the rows' norms, raw correlations, or exact gains.
    **options
        Those of `omp_partition`; `random_state` repeats a run.
    """
    return pursue(problem, matroid, rule=rule, pick="random", **options)


def partition_sel(
    problem: GradientMatching, matroid: PartitionMatroid, *, ranking: str = "relu", **options: Any
) -> Selection:
    """PartitionSel (arXiv 2606.07954): every round draws one of the shortlist of all groups; it always fills.

    The paper maximises ``<w, eta s + eta^2/2 diag K> - eta^2/2 w' K w`` over ``w >= 0``. This is solved in the variable
    ``v = eta * w``, which frees the numbers from a tiny learning rate: the problem's `tilt` is eta, the `weights`
    returned are v, and w is v / eta.

    Parameters
    ----------
    problem : GradientMatching
        With ``nonneg=True``.
    ranking : {"relu", "signed"}
        What orders a group's candidates whose correlation g is not positive: "relu" as the paper has it, max(0, g), so
        that they tie (the lowest row first); "signed" as its released code, g itself.
    **options
        Those of `omp_partition` but rule, pick and fill.
    """
    for name in ("rule", "pick", "fill"):
        if name in options:
            raise TypeError(f"{name}: is what partition-sel says; leave it out, or use method='residual-random'")
    if not problem.nonneg:
        raise ValueError("problem: partition-sel has weights >= 0; make the problem with nonneg=True")
    return pursue(problem, matroid, rule="omp", pick="random", fill=True, ranking=ranking, **options)


def _selection(
    result: dict[str, Any],
    results: list[dict[str, Any]],
    matroid: PartitionMatroid,
    config: dict[str, Any],
    seconds: float,
) -> Selection:
    """One of the core's `results` as a selection. What the call as a whole took stands in the last of them."""
    from .. import __version__

    if not math.isfinite(result["objective"]):  # what was read was finite when it was read first
        name = "K" if result["route"] == "gram" else "G"
        raise ValueError(f"{name}: is no longer finite; nothing may write to it during a solve")
    norm = float(result["target_norm"])
    known = not math.isnan(norm)
    in_core = result["seconds_prepare"] + result["seconds_pursuit"] + result["seconds_swap"]
    stats: dict[str, Any] = {
        "route": result["route"],
        "device": "cpu",
        "kernels": core.build_info()["kernels"],
        "threads": results[-1]["threads"],
        "passes": result["passes"],
        "bytes_read": int(results[-1]["bytes_read"]),
        "seconds": {
            "total": seconds,
            "check": seconds - in_core,
            "prepare": result["seconds_prepare"],
            "pursuit": result["seconds_pursuit"],
        },
        "target_norm": norm if known else None,
        "n_filled": result["n_filled"],
        "n_targets": len(results),
    }
    if config["refine"] is not None:
        stats["n_swaps"], stats["swap_local_optimum"] = result["n_swaps"], result["swap_local_optimum"]
        stats["seconds"]["swap"] = result["seconds_swap"]
    return Selection(
        indices=result["indices"],
        weights=result["weights"],
        gains=result["gains"],
        objective=float(result["objective"]),
        residual_norms=result["residual_norms"] if known else None,
        counts=matroid._counts(result["indices"]),
        status=Status(result["status"]),
        stats=stats,
        config=config | {"version": __version__},
    )


def check_device(device: Any) -> None:
    if isinstance(device, str) and device == "cuda":
        raise ValueError("device: this version has no CUDA solver; use device='cpu' (or 'auto')")
    as_choice("device", device, ("auto", "cpu"))


def _check_initial(initial: Any, matroid: PartitionMatroid) -> npt.NDArray[np.int64]:
    start = as_indices(initial, matroid.n, "initial")
    if not len(start):
        return start
    if not matroid.is_feasible(start):
        over = {label: n for (label, n), b in zip(matroid.counts(start).items(), matroid.budgets, strict=True) if n > b}
        raise ValueError(f"initial: more rows than the budget allows in {over}")
    return start


def _listener(callback: Callback | None, verbose: int) -> Callable[..., bool] | None:
    if callback is not None and not callable(callback):
        raise TypeError(f"callback: expected a function, got {type(callback).__name__}")
    if not isinstance(verbose, bool) and not is_integer(verbose):
        raise TypeError(f"verbose: expected 0 or 1, got {shown(verbose)}")
    if callback is None and not verbose:
        return None

    def listen(*values: Any) -> bool:
        progress = Progress(*values)
        if verbose:
            print(
                f"pysubmod: {progress.n_selected}/{progress.rank} picked row {progress.index}, "
                f"objective {progress.objective:.6g}, residual {progress.residual_norm:.6g}",
                file=sys.stderr,
            )
        return bool(callback(progress)) if callback is not None else False

    return listen
