"""Many small problems in one call: `solve_batch`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, overload

import numpy as np

from ._random import as_seed, random_bits
from ._validation import as_choice, type_name
from .device_selection import DeviceSelection
from .matroid import checked_matroid
from .problem import GradientMatching
from .result import Selection
from .solvers import calls_of, solve
from .solvers._on_device import run_on_device, start_on_device

__all__ = ["solve_batch"]


@overload
def solve_batch(
    problems: Sequence[GradientMatching], matroids: Any, method: str = ..., *,
    output: Literal["selections"] = ..., device: str = ..., **options: Any,
) -> list[Selection]: ...  # fmt: skip
@overload
def solve_batch(
    problems: Sequence[GradientMatching], matroids: Any, method: str = ..., *,
    output: Literal["device"], device: str = ..., **options: Any,
) -> DeviceSelection: ...  # fmt: skip
def solve_batch(
    problems: Sequence[GradientMatching],
    matroids: Any,
    method: str = "omp",
    *,
    output: str = "selections",
    device: str = "auto",
    **options: Any,
) -> list[Selection] | DeviceSelection:
    """Solve independent problems, of any sizes: on a device in one launch, on the CPU one after another.

    Parameters
    ----------
    problems : sequence of GradientMatching
        All on one device, or all on the host: one a layer, a micro-batch, or a target.
    matroids : PartitionMatroid or int, or a sequence of them
        The constraint of each problem; one alone is that of all.
    method : str, default "omp"
        As in `solve`.
    output : {"selections", "device"}, default "selections"
        "device", for problems on a device: one `DeviceSelection`, whose arrays have a row for each problem; nothing is
        waited for.
    device : str, default "auto"
        As in `omp_partition`.
    **options
        Those of `solve`, the same for all problems, but for `candidates` and `initial`: a sequence with the mask and
        the rows of each problem (None: all may be picked; none stands). `random_state` may be a sequence of integers,
        the seed of each; of one integer s, problem i is given random number i of stream s (as `per-group` does with its
        groups): ``config["random_state"]`` says which it was.

    Returns
    -------
    list of Selection, or DeviceSelection

    Raises
    ------
    TypeError, ValueError
        Naming the argument. The first faulty problem ends the call.

    Examples
    --------
    >>> import numpy as np, pysubmod
    >>> problems = [pysubmod.GradientMatching(np.eye(n), np.arange(n)) for n in (3, 5)]
    >>> [sel.indices.tolist() for sel in pysubmod.solve_batch(problems, 2)]
    [[2, 1], [4, 3]]
    """
    as_choice("output", output, ("selections", "device"))
    problems = _as_list("problems", problems)
    one_for_all = not isinstance(matroids, Sequence)
    each = [matroids] * len(problems) if one_for_all else _as_list("matroids", matroids, len(problems))
    checked = [
        checked_matroid(problem, matroid, on_host=False) for problem, matroid in zip(problems, each, strict=True)
    ]
    _check_together(problems)
    own = _options_of_each(problems, {"device": device} | options)
    if not problems:
        if output == "device":
            raise ValueError("problems: is empty, and so has no device; expected at least one for output='device'")
        return []
    if problems[0].device == "cpu" and device in ("auto", "cpu") and output == "selections":
        return [solve(p, m, method, **given) for p, m, given in zip(problems, checked, own, strict=True)]
    calls = calls_of(problems, checked, method, own)
    if output == "device":
        return start_on_device(calls, method, one=False)
    found = zip(run_on_device(calls), calls, problems, strict=True)
    return [selection._made_from(problem, call.matroid, call.mask, method) for selection, call, problem in found]


def _as_list(name: str, value: Any, count: int | None = None) -> list[Any]:
    """A list, of as many as there are problems."""
    if isinstance(value, str) or not isinstance(value, (Sequence, np.ndarray)):
        raise TypeError(f"{name}: expected a sequence, one for each problem; got {type_name(value)}")
    if count is not None and len(value) != count:
        raise ValueError(f"{name}: expected {count}, one for each problem; got {len(value)}")
    return list(value)


def _check_together(problems: list[GradientMatching]) -> None:
    for p, problem in enumerate(problems):
        if problem.device != problems[0].device:
            raise ValueError(
                f"problems[{p}]: is on {problem.device} but problems[0] is on {problems[0].device}; "
                "a batch has one device"
            )


def _options_of_each(problems: list[GradientMatching], options: dict[str, Any]) -> list[dict[str, Any]]:
    """The options of every problem: those of all, and its own."""
    own: list[dict[str, Any]] = [dict(options) for _ in problems]
    for name in ("candidates", "initial"):
        if options.get(name) is not None:
            for given, value in zip(own, _as_list(name, options[name], len(problems)), strict=True):
                given[name] = value
    seeds = options.get("random_state")
    if isinstance(seeds, (Sequence, np.ndarray)):
        seeds = _as_list("random_state", seeds, len(problems))
    else:
        bits = random_bits(as_seed(seeds), np.arange(len(problems)))
        seeds = (bits >> np.uint64(1)).tolist()
    for given, seed in zip(own, seeds, strict=True):
        given["random_state"] = seed
    return own
