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
from .._device_parts import as_device, chosen_device
from .._random import as_seed, check_seed
from .._validation import as_choice, as_count, as_flag, as_indices, as_mask, as_scalar, as_threads, is_integer, shown
from ..matroid import PartitionMatroid
from ..problem import GradientMatching
from ..result import Selection
from ._call import Call, selection_of
from ._on_device import run_on_device

__all__ = [
    "RULES",
    "Progress",
    "check_device",
    "checked",
    "greedy",
    "normalized_omp",
    "not_on_device",
    "omp",
    "partition_sel",
    "pursue",
    "residual_random",
    "run",
    "swap",
]

RULES = ("omp", "normalized", "greedy")
PICKS = ("argmax", "random")
RANKINGS = ("relu", "signed")
ROUTES = ("auto", "plain", "columns", "draft")
DEVICE_ROUTES = ("auto", "gram", "draft")
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


def checked(
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
) -> Call:
    """Check the arguments of a pursuit: those of `pysubmod.omp_partition`, and what `solvers.solve` says of methods.

    Several problems differ in nothing but the target; they have rows, no callback and no verbose.
    """
    started = time.perf_counter()
    problem = problems[0]
    chosen = chosen_device(device, problem._rows)
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
        "route": as_route(route, problem, on_cpu=chosen is None),
    }
    if ranking != "relu" and not (pick == "random" and fill):
        raise ValueError("ranking: orders rows that do not help, which only pick='random' with fill=True draws from")
    if refine is None and (swap_tol != DEFAULT_SWAP_TOL or max_swaps is not None):
        raise ValueError("swap_tol, max_swaps: say how swaps are searched for; pass refine='swap' too")
    if options["tol"] > 0 and problem.route == "gram" and math.isnan(problem._target_norm):
        raise ValueError("tol: the residual is not known from K and c alone; give from_gram(..., target_norm=||t||)")
    mask = as_mask(candidates, problem.n)
    start = _check_initial(initial, matroid)
    listener = _listener(callback, verbose)
    if chosen is not None:
        not_on_device(refine=refine is not None, verbose=bool(verbose), callback=callback is not None)
    return Call(problems, matroid, options, mask, start, chosen, as_threads(n_threads), listener, started)


def run(call: Call) -> list[Selection]:
    """The selection of each problem."""
    if call.device is not None:
        return run_on_device([call])
    problem = call.problems[0]
    results = core.solve(
        **problem._core_matrix(),
        vectors=np.array([each._vector for each in call.problems]),
        group_of=call.matroid.codes,
        budgets=call.matroid.budgets,
        candidates=None if call.mask is None else call.mask.view(np.uint8),
        initial=call.start,
        options=call.options,
        n_threads=call.n_threads,
        kernels=None,
        callback=call.listener,
    )
    config, seconds = call.config, time.perf_counter() - call.started
    # What the call as a whole took stands in the last result.
    own = {
        "device": "cpu",
        "kernels": core.build_info()["kernels"],
        "threads": results[-1]["threads"],
        "bytes_read": int(results[-1]["bytes_read"]),
        "n_targets": len(results),
    }
    return [selection_of(result, call.matroid, config, own, seconds) for result in results]


@wraps(checked, assigned=())  # `solve` reads the names of the options off it
def pursue(
    problem: GradientMatching, matroid: PartitionMatroid, *, then: Callable[[Call], list[Any]] = run, **options: Any
) -> Selection:
    """Run the pursuit on one problem. (A batch collects calls: its `then` gives something else back.)"""
    found: Selection = then(checked([problem], matroid, **options))[0]
    return found


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


def check_device(device: Any, method: str = "this method") -> None:
    """For what runs on the CPU alone."""
    if as_device(device)[0] == "cuda":
        raise ValueError(f"device: {method} runs on the CPU; use device='cpu' (or 'auto')")


def as_route(route: Any, problem: GradientMatching, on_cpu: bool) -> str:
    """Check a route, for where the problem is solved."""
    here, others = (ROUTES, DEVICE_ROUTES) if on_cpu else (DEVICE_ROUTES, ROUTES)
    if isinstance(route, str) and route in others and route not in here:
        names, elsewhere = ", ".join(map(repr, here)), "of a device" if on_cpu else "of the CPU"
        raise ValueError(f"route: expected one of {names}; got {route!r}, which is a route {elsewhere}")
    as_choice("route", route, here)
    if problem._is_gram and route not in ("auto", "gram"):
        raise ValueError(f"route: {route!r} reads rows, but only a Gram matrix was given; leave route out")
    return str(route)


def not_on_device(**given: bool) -> None:
    """Refuse what a device cannot do."""
    for name, is_given in given.items():
        if is_given:
            raise ValueError(
                f"{name}: is for the CPU, since a device makes all picks in one go; leave {name} out, or solve on the "
                "CPU (with G.cpu(), or problem.cpu(), or device='cpu')"
            )


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
