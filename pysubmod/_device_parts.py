"""The parts of a problem whose arrays are on a CUDA device, and on which device to solve."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NoReturn

import numpy as np

from . import _backends
from ._device import DeviceArray, check_contiguous, move_to_device, read_array
from ._validation import Rows, as_linear, as_target, as_targets, on_device, shown

__all__ = [
    "DeviceRows",
    "as_device",
    "as_device_gram",
    "as_device_linear",
    "as_device_rows",
    "as_device_target",
    "as_device_targets",
    "chosen_device",
    "uploaded",
]


@dataclass(frozen=True)
class DeviceRows:
    """The gradient or Gram matrix on a device; on the host its place has `_validation.Rows`."""

    array: DeviceArray
    labels = None

    @property
    def dtype(self) -> str:
        return self.array.dtype

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.array.shape
        return rows, columns

    @property
    def blocks(self) -> NoReturn:
        """Whoever asks for the numbers computes on the host."""
        raise ValueError(
            f"problem: its arrays are on {self.array.place}, and this is computed on the host; "
            "use problem.cpu(), a copy there (with omp_partition, pass G.cpu())"
        )


def as_device_rows(value: Any, name: str = "G") -> DeviceRows:
    """The counterpart of `as_rows`."""
    array = read_array(name, value)
    if len(array.shape) != 2:
        raise ValueError(f"{name}: expected shape (n, d), one gradient per row; got shape {array.shape}")
    if array.shape[1] == 0:
        raise ValueError(f"{name}: the rows have length d = 0; a gradient needs at least one entry")
    check_contiguous(name, array)
    return DeviceRows(array)


def as_device_gram(value: Any) -> DeviceRows:
    """K (n, n) on a device; its numbers are looked at there, when it is solved."""
    array = read_array("K", value)
    if len(array.shape) != 2 or array.shape[0] != array.shape[1]:
        raise ValueError(f"K: expected a square matrix (n, n); got shape {array.shape}")
    if array.dtype not in ("float32", "float64"):
        raise TypeError(
            f"K: expected float32 or float64, got {array.dtype}; a Gram matrix in half precision has no rank to trust"
        )
    if array.strides[1] != 1 and array.strides[0] == 1:  # its transpose, which is K
        array = replace(array, strides=array.strides[::-1])
    check_contiguous("K", array)
    return DeviceRows(array)


def as_device_target(value: Any, rows: DeviceRows) -> Any:
    """The target of rows on a device: there too, as it is, or on the host, checked and float64."""
    d = rows.shape[1]
    if not on_device(value):
        return as_target(value, d)
    array = read_array("target", value, ("G", rows.array))
    if array.shape[-1:] != (d,) or len(array.shape) > 2:
        raise ValueError(
            f"target: expected shape ({d},) or (m, {d}) to match the columns of G; got shape {array.shape}"
        )
    if array.shape[0] == 0:
        raise ValueError("target: has no rows; a mean needs at least one")
    check_contiguous("target", array)
    return array


def as_device_targets(value: Any, rows: DeviceRows) -> list[Any]:
    """m targets of shape (m, d), one by one."""
    if not on_device(value):
        return list(as_targets(value, rows.shape[1]))
    array = as_device_target(value, rows)
    if len(array.shape) != 2:
        raise ValueError(f"target: separate=True expects shape (m, d), a target in each row; got shape {array.shape}")
    return [array.row(i) for i in range(array.shape[0])]


def as_device_linear(value: Any, rows: DeviceRows) -> Any:
    """c for a K on a device: there too, or on the host."""
    n = rows.shape[0]
    if not on_device(value):
        return as_linear(value, n)
    array = read_array("c", value, ("K", rows.array))
    if array.shape != (n,):
        raise ValueError(f"c: expected shape ({n},) to match K; got shape {array.shape}")
    check_contiguous("c", array)
    return array


# ---- where to solve -------------------------------------------------------------------------------------------------


def as_device(device: Any) -> tuple[str, int | None]:
    """Check the name of a device, 'auto', 'cpu', 'cuda' or 'cuda:N': what kind it is, and N."""
    if isinstance(device, str):
        if device in ("auto", "cpu", "cuda"):
            return device, None
        kind, _, number = device.partition(":")
        if kind == "cuda" and number.isascii() and number.isdigit() and len(number) < 5:
            return kind, int(number)
    raise ValueError(f"device: expected one of 'auto', 'cpu', 'cuda', 'cuda:1' (say); got {shown(device)}")


def chosen_device(device: Any, rows: Any) -> int | None:
    """The index of the device to solve on, None for the CPU; `rows` are those of the problem."""
    kind, index = as_device(device)
    if isinstance(rows, DeviceRows):
        array = rows.array
        if kind == "cpu":
            raise ValueError(
                f"device: 'cpu', but the arrays are on {array.place}; pass them in host memory (G.cpu(), problem.cpu())"
            )
        if index not in (None, array.device):
            raise ValueError(
                f"device: {device!r}, but the arrays are on {array.place}; leave device out, or move the arrays"
            )
        _backends.cuda_module()  # there is one
        return array.device
    if kind != "cuda":
        return None
    found = [entry["index"] for entry in _backends.visible_devices()]
    if index is not None and index not in found:
        raise ValueError(f"device: {device!r} does not exist; there is {', '.join(f'cuda:{i}' for i in found)}")
    return found[0] if index is None else index


def uploaded(rows: Rows, device: int, name: str) -> DeviceRows:
    """A copy on a device."""
    if len({block.dtype for block in rows.blocks}) > 1:
        raise ValueError(f"device: the groups of {name} differ in type ({rows.dtype}), which the CPU alone reads")
    block = rows.blocks[0] if len(rows.blocks) == 1 else np.concatenate(rows.blocks)
    return DeviceRows(move_to_device(name, block, rows.dtype, device))
