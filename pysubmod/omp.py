"""The front door: `omp_partition`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, overload

import numpy as np
import numpy.typing as npt

from ._validation import as_choice, as_flag, as_groups, as_mask, as_scalar
from .device_selection import DeviceSelection
from .matroid import PartitionMatroid
from .problem import GradientMatching
from .result import Selection
from .solvers import solve
from .solvers._on_device import start_on_device
from .solvers.pursuit import DEVICE_ROUTES, PICKS, ROUTES, RULES, Callback, checked, not_on_device, run

__all__ = ["omp_partition"]


@overload
def omp_partition(
    G: Any, target: Any, budgets: Any, *, groups: Any = ..., ridge: float = ..., nonneg: bool = ..., rule: str = ...,
    pick: str = ..., tilt: float = ..., refine: str | None = ..., fill: bool = ..., release_zeros: bool = ...,
    tol: float = ..., candidates: Any = ..., initial: Any = ..., separate: Literal[False] = ..., route: str = ...,
    device: str = ..., output: Literal["selection"] = ..., n_threads: int | None = ..., random_state: Any = ...,
    verbose: int = ..., callback: Callback | None = ...,
) -> Selection: ...  # fmt: skip
@overload
def omp_partition(
    G: Any, target: Any, budgets: Any, *, groups: Any = ..., ridge: float = ..., nonneg: bool = ..., rule: str = ...,
    pick: str = ..., tilt: float = ..., refine: str | None = ..., fill: bool = ..., release_zeros: bool = ...,
    tol: float = ..., candidates: Any = ..., initial: Any = ..., separate: Literal[True], route: str = ...,
    device: str = ..., output: Literal["selection"] = ..., n_threads: int | None = ..., random_state: Any = ...,
) -> list[Selection]: ...  # fmt: skip
@overload
def omp_partition(
    G: Any, target: Any, budgets: Any, *, groups: Any = ..., ridge: float = ..., nonneg: bool = ..., rule: str = ...,
    pick: str = ..., tilt: float = ..., fill: bool = ..., release_zeros: bool = ..., tol: float = ...,
    candidates: Any = ..., initial: Any = ..., separate: bool = ..., route: str = ..., device: str = ...,
    output: Literal["device"], n_threads: int | None = ..., random_state: Any = ...,
) -> DeviceSelection: ...  # fmt: skip
def omp_partition(
    G: Any,
    target: Any,
    budgets: Any,
    *,
    groups: Any = None,
    ridge: float = 0.0,
    nonneg: bool = True,
    rule: str = "omp",
    pick: str = "argmax",
    tilt: float = 0.0,
    refine: str | None = None,
    fill: bool = False,
    release_zeros: bool = False,
    tol: float = 0.0,
    candidates: Any = None,
    initial: Any = None,
    separate: bool = False,
    route: str = "auto",
    device: str = "auto",
    output: str = "selection",
    n_threads: int | None = None,
    random_state: Any = None,
    verbose: int = 0,
    callback: Callback | None = None,
) -> Selection | list[Selection] | DeviceSelection:
    """Select rows of G whose weighted sum matches a target, with a budget for each group.

    Orthogonal matching pursuit (Pati, Rezaiifar and Krishnaprasad 1993) with an exact refit after every pick, free or
    with non-negative weights, under a partition matroid. All arithmetic is float64 on the stored numbers; the picks do
    not depend on the number of threads, the processor or the layout of G. Ties go to the lowest row number.

    Parameters
    ----------
    G : (n, d) array, or mapping {group: (n_g, d) array}
        One candidate's gradient per row: NumPy float16, float32 or float64 in any layout, memory-mapped, a torch tensor
        (bfloat16 too), or anything with ``__array__`` or ``__dlpack__``. Read in place, never modified. Of a mapping,
        rows are numbered through in its order; its keys are the groups. One array on a CUDA device (torch, CuPy,
        anything with ``__dlpack__`` or ``__cuda_array_interface__``; its rows contiguous) is solved there, on the
        current stream of its library.
    target : (d,) or (m, d) array
        The gradient to match, e.g. the mean validation gradient; the mean of m rows is taken, unless `separate`. With
        a G on a device it may be there or on the host.
    budgets : int, mapping {label: int}, sequence, or PartitionMatroid
        At most so many picks from each group. An int is a plain cardinality (no groups); a sequence is aligned with
        the sorted labels; 0 excludes a group; a budget may exceed its group.
    groups : (n,) array of int or str, optional
        The label of each row.
    ridge : float, default 0
        Added to the diagonal of G G', in units of a squared row norm.
    nonneg : bool, default True
        Weights >= 0 (what a loss can use). A pick whose weight a later refit sets to zero keeps its place.
    rule : {"omp", "normalized", "greedy"}, default "omp"
        What ranks the candidates, g being the correlations with the residual: g (\\|g\\| for free weights); the same
        over the row's norm; or the exact gain of the objective.
    pick : {"argmax", "random"}, default "argmax"
        How one is taken from the ranking: the best of all; or any, with the same chance, of the best of every group, as
        many of a group as it has budget left (the residual random rule, whose expected objective has a guarantee). With
        `fill` the list is made up to that length with candidates that do not help.
    tilt : float, default 0
        eta of ``c = G t + eta/2 diag(G G')`` (PartitionSel).
    refine : {"swap", "best"}, optional
        What improves the pursuit's selection. "swap": picks are exchanged for other rows of their group (and rows are
        added where budget is left) while that gains more than 1e-9 of the objective. A selection that no single swap
        improves is within (lambda / (1 + mu))^2 of the optimum, lambda being the smallest eigenvalue of the normalised
        Gram matrix over twice the rank rows, mu the largest absolute cosine within a group. ``stats`` has ``n_swaps``
        and ``swap_local_optimum``. Rows that came in stand last; rows of `initial` may leave. "best": the method of
        that name (`solve`), which rounds a relaxation as well and brings a bound, ``stats["upper"]``; it makes its own
        way, so rule, pick, fill, release_zeros, tol, initial and callback must be left out.
    fill : bool, default False
        When no pick improves the objective, use up the budgets with the best-ranked candidates, at weight 0. They
        are the last ``stats["n_filled"]`` picks (no longer counted once a swap was made). Without it a short
        selection is returned short.
    release_zeros : bool, default False
        Drop picks whose weight a refit sets to zero, and give their budget back. `gains` then no longer sum to the
        objective.
    tol : float, default 0
        Stop once the residual's norm is at most `tol` times the target's.
    candidates : (n,) bool array, optional
        Which rows may be picked. Others, and those of groups with budget 0, are never read (on a device they are, and
        what comes of it is left alone).
    initial : (k,) int array, optional
        Rows that stand in the selection from the start, whatever `candidates` says; they count against the budgets and
        come first in the result.
    separate : bool, default False
        Solve for each of the m rows of `target` by itself, all on the same passes over G (on a device: on the same
        G G'; by route "draft" one after another). The m selections are, to the
        bit, those of m calls with these arguments: every one has all the budgets, `initial` and ``random_state`` (one
        seed for all). Not with ``refine="best"``, `verbose` or `callback`.
    route : {"auto", "plain", "columns", "draft", "gram"}, default "auto"
        How G is read. "plain": one pass over the eligible rows for each pick. "columns": products of two rows are kept
        in float32. "draft": several picks to a pass: they are drafted on the rows of largest score, and one pass in
        float32 shows how far the draft was right. In both, the few rows that can be the best are looked at in float64:
        all routes of the CPU give the same picks and weights, to the bit. "auto" chooses by a model of their cost;
        ``stats["route"]`` says which ran. "columns" and "draft" need ``pick="argmax"`` and norms of rows between 1e-20
        and 1e20; "columns" is not for ``rule="greedy"``. On a device there are two: "gram" forms G G' and makes all
        picks in one launch; "draft" (n too large for that; rules "omp" and "normalized", ``pick="argmax"``) reads the
        rows as above. Its sums are float64, but for a large G G' of half precision (``stats["product_type"]``); rows
        within 2.4e-4 (then 3.7e-2) of their norm of the span of the picks count as dependent, on the CPU 1e-5.
    device : {"auto", "cpu", "cuda", "cuda:1", ...}, default "auto"
        Where to solve; "auto" is where G is. With a G on the host "cuda" copies it to the device (torch must be
        loaded); a G on a device is never copied to the host. A device takes neither `refine` nor `verbose` nor
        `callback`, and ignores `n_threads`. ``stats["device"]`` says what ran.
    output : {"selection", "device"}, default "selection"
        "device", for a G on a device: a `DeviceSelection`, arrays of G's library (torch or CuPy) that are ready in
        stream order; nothing is waited for.
    n_threads : int, optional
        Threads for this call; default: the CPUs this process may use. The result is the same for any number.
    random_state : int, NumPy Generator or RandomState, optional
        The seed of ``pick="random"``; None draws a fresh one. It is in the result's ``config["random_state"]``.
    verbose : int, default 0
        1 prints a line for each pick to stderr.
    callback : callable, optional
        Called with a `Progress` after each pick; returning True stops there, with status "stopped".

    Returns
    -------
    Selection, or list of Selection with `separate`, or DeviceSelection
        ``indices, weights = selection`` works. A short selection is reported by `status`, never padded. ``stats`` has
        ``passes`` over G, and ``n_targets`` that shared them; ``bytes_read``, ``threads`` and ``seconds`` are those of
        the whole call.

    Raises
    ------
    TypeError, ValueError
        Naming the argument, what was expected and what came. A non-finite number in G names its first row.
    MemoryError, RuntimeError
        A device has too little memory (the message says how much was needed), or failed.

    Notes
    -----
    A pass reads the eligible rows. The plain route makes one for each pick (two products in the same pass for
    ``rule="greedy"``, which also keeps n x k float64 numbers), "draft" one for several picks, and m targets share
    theirs. A draft that is wrong costs a pass and nothing else. ``rule="greedy"`` with ``nonneg=True`` refits for each
    candidate that could be best.

    Examples
    --------
    >>> import numpy as np, pysubmod
    >>> G = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
    >>> sel = pysubmod.omp_partition(G, [1.0, 1.0], {"maths": 1, "code": 1}, groups=["maths", "maths", "code", "code"])
    >>> sel.indices, sel.counts
    (array([0, 2]), {'code': 1, 'maths': 1})
    """
    separate = as_flag("separate", separate)
    best = refine is not None and as_choice("refine", refine, ("swap", "best")) == "best"
    if separate:
        loud = isinstance(verbose, int) and verbose != 0
        _not_separate(refine=best, verbose=loud, callback=callback is not None)
        problems = GradientMatching._separate(G, target, ridge=ridge, nonneg=nonneg, tilt=tilt)
    else:
        problems = [GradientMatching(G, target, ridge=ridge, nonneg=nonneg, tilt=tilt)]
    mask = as_mask(candidates, problems[0].n)
    matroid = _matroid(G, problems[0], budgets, groups, mask)
    if best:
        not_on_device(refine=problems[0].device != "cpu")
        _nothing_else(
            rule=as_choice("rule", rule, RULES) != "omp",
            pick=as_choice("pick", pick, PICKS) != "argmax",
            tol=as_scalar("tol", tol) != 0.0,
            fill=fill is not False,
            release_zeros=release_zeros is not False,
            initial=initial is not None,
            route=as_choice("route", route, sorted({*ROUTES, *DEVICE_ROUTES})) != "auto",
            output=output != "selection",
            callback=callback is not None,
        )
        own: dict[str, Any] = {"candidates": mask, "device": device, "n_threads": n_threads, "verbose": verbose}
        return solve(problems[0], matroid, "best", random_state=random_state, **own)
    call = checked(
        problems,
        matroid,
        rule=rule,
        pick=pick,
        refine=refine,
        fill=fill,
        release_zeros=release_zeros,
        tol=tol,
        candidates=mask,
        initial=initial,
        route=route,
        device=device,
        n_threads=n_threads,
        random_state=random_state,
        verbose=verbose,
        callback=callback,
    )
    if as_choice("output", output, ("selection", "device")) == "device":
        return start_on_device([call], one=not separate)
    selections = run(call)
    for problem, selection in zip(problems, selections, strict=True):
        selection._made_from(problem, matroid, mask)
    return selections if separate else selections[0]


def _not_separate(**given: bool) -> None:
    for name, is_given in given.items():
        if is_given:
            what = "refine='best'" if name == "refine" else name
            raise ValueError(f"separate: True does not go with {what}; leave it out, or call once for each target")


def _nothing_else(**given: bool) -> None:
    for name, is_given in given.items():
        if is_given:
            raise ValueError(f"{name}: refine='best' makes its own way; leave {name} out, or use refine='swap'")


def _matroid(
    G: Any, problem: GradientMatching, budgets: Any, groups: Any, mask: npt.NDArray[np.bool_] | None
) -> PartitionMatroid:
    if isinstance(G, Mapping):
        if groups is not None:
            raise ValueError("groups: not with a mapping G, whose keys are the groups")
        if not isinstance(budgets, Mapping):
            raise TypeError("budgets: with a mapping G expected a mapping over the same keys {group: int}")
        labels = problem._rows.labels
        assert labels is not None  # a mapping always has them
        return PartitionMatroid._masked(labels, budgets, mask)
    if isinstance(budgets, PartitionMatroid):
        if groups is not None:
            raise ValueError("groups: not with a PartitionMatroid, which has its own")
        if budgets.n != problem.n:
            raise ValueError(f"budgets: the PartitionMatroid has {budgets.n} rows but G has {problem.n}")
        return budgets
    if groups is None:
        if not isinstance(budgets, str) and (isinstance(budgets, (Mapping, Sequence)) or np.ndim(budgets) > 0):
            raise ValueError("groups: missing; budgets by group need the label of each row")
        return PartitionMatroid._cardinality(problem.n, budgets)
    return PartitionMatroid._masked(as_groups(groups, problem.n), budgets, mask)
