"""The pursuit on a CUDA device: several calls, whose problems are solved in one launch."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from .. import _backends
from .._device import DeviceArray
from .._device_parts import DeviceRows, uploaded
from ..device_selection import DeviceSelection
from ..matroid import PartitionMatroid
from ..problem import GradientMatching
from ..result import Selection
from ._call import Call, selection_of

__all__ = ["run_on_device", "start_on_device"]


def run_on_device(calls: Sequence[Call]) -> list[Selection]:
    """The selections of the problems of all calls, one after another."""
    calls = [_moved(call) for call in calls]
    entries, matrix = _entries(calls), _matrix(calls)
    results = _backends.cuda_module().solve(entries, matrix.device, matrix.stream, None)
    seconds = time.perf_counter() - calls[0].started
    selections: list[Selection] = []
    for call in calls:
        own_results = results[len(selections) : len(selections) + len(call.problems)]
        config = call.config
        for result in own_results:
            own = {
                "device": f"{matrix.place} {result['device']}",
                **{name: result[name] for name in ("product", "product_type", "launch", "device_bytes")},
                "bytes_read": int(own_results[-1]["bytes_read"]),
                "n_targets": len(own_results),
            }
            selections.append(selection_of(result, call.matroid, config, own, seconds))
    return selections


def start_on_device(calls: Sequence[Call], method: str | None = None, *, one: bool) -> DeviceSelection:
    """The same without waiting; `one`: of one problem, whose arrays have no first axis."""
    if any(call.device is None for call in calls):
        raise ValueError("output: 'device' is for arrays on a device, and these are on the host; leave output out")
    origins = [(call, problem) for call in calls for problem in call.problems]
    calls = [_moved(call) for call in calls]
    entries, matrix = _entries(calls), _matrix(calls)
    n_problems, width = len(entries), max(_most_members(call) for call in calls)
    shapes = {"indices": (n_problems, width), "weights": (n_problems, width)}
    library = matrix.library
    arrays = {
        name: library.empty(shapes.get(name, (n_problems,)), dtype, matrix.device)
        for name, dtype in (
            ("indices", "int64"),
            ("weights", "float64"),
            ("n_selected", "int64"),
            ("objective", "float64"),
            ("status", "int64"),
        )
    }
    outputs = {name: (library.pointer(array), tuple(array.shape)) for name, array in arrays.items()}
    _backends.cuda_module().solve(entries, matrix.device, matrix.stream, outputs)

    def finish(p: int, **known: Any) -> Selection:
        call, problem = origins[p]
        return Selection(
            **known,
            gains=np.full(len(known["indices"]), np.nan),
            residual_norms=None,
            counts=call.matroid._counts(known["indices"]),
            stats={"device": matrix.place, "n_targets": len(call.problems)},
            config=call.config,
        )._made_from(problem, call.matroid, call.mask, method)

    given = {name: array[0] for name, array in arrays.items()} if one else arrays
    return DeviceSelection(**given, _finish=finish, _to_host=lambda array: library.to_host("output", array))


def _moved(call: Call) -> Call:
    """The call with its matrix on the device; a copy is made where the caller has asked for a device."""
    rows = call.problems[0]._rows
    if isinstance(rows, DeviceRows):
        return call
    assert call.device is not None
    there = uploaded(rows, call.device, "K" if call.problems[0]._is_gram else "G")
    return replace(call, problems=[problem._on_device(there) for problem in call.problems])


def _entries(calls: Sequence[Call]) -> list[dict[str, Any]]:
    """What the compiled module is told of each problem."""
    return [
        _views(problem)
        | {
            "group_of": call.matroid.codes,
            "budgets": call.matroid.budgets,
            "candidates": None if call.mask is None else call.mask.view(np.uint8),
            "initial": call.start,
            "options": call.options,
        }
        for call in calls
        for problem in call.problems
    ]


def _views(problem: GradientMatching) -> dict[str, Any]:
    matrix, vector = _rows_of(problem).view, problem._vector
    on_host = isinstance(vector, np.ndarray)
    names = ("gram", "linear") if problem._is_gram else ("rows", "target")
    given = {names[0]: matrix, names[1]: None if on_host else vector.view, "host_vector": vector if on_host else None}
    nothing = dict.fromkeys(("rows", "target", "gram", "linear"))
    return nothing | given | {"target_norm": problem._target_norm}


def _rows_of(problem: GradientMatching) -> DeviceArray:
    assert isinstance(problem._rows, DeviceRows)
    return problem._rows.array


def _matrix(calls: Sequence[Call]) -> DeviceArray:
    """The first matrix, on whose device and stream all run."""
    first = _rows_of(calls[0].problems[0])
    for p, call in enumerate(calls):
        other = _rows_of(call.problems[0])
        if other.device != first.device or (other.library is not first.library and other.stream != first.stream):
            raise ValueError(
                f"problems[{p}]: is on {other.place} ({other.library.name}) but problems[0] is on {first.place} "
                f"({first.library.name}); a batch has one device and one stream"
            )
    return first


def _most_members(call: Call) -> int:
    """The most rows that a selection can have: budgets, and what there is to pick."""
    matroid: PartitionMatroid = call.matroid
    sizes = matroid.sizes
    if call.mask is not None:
        sizes = np.bincount(matroid.codes[call.mask], minlength=len(matroid.budgets))
    rank = int(np.minimum(matroid.budgets, sizes).sum())
    return max(1, min(int(matroid.budgets.sum()), rank + len(call.start)))
