"""Arrays in the memory of a CUDA device: where they are, whose they are, and what is asked of their library.

Nothing here copies an array, and no library is imported: whoever hands over its array has loaded it.
"""

from __future__ import annotations

import math
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _backends
from ._validation import is_torch, plain_tensor, type_name

__all__ = [
    "LIBRARIES",
    "DeviceArray",
    "Library",
    "check_contiguous",
    "move_to_device",
    "read_array",
]

NUMBERS = ("float16", "bfloat16", "float32", "float64")
LEGACY_STREAM = 0  # cudaStreamLegacy; in the exchange protocols 0 means nothing and this one is called 1


# ---- libraries ------------------------------------------------------------------------------------------------------


class Library:
    """What is asked of an array library; of one without a name, no more than the exchange protocols promise."""

    name = "array"

    def stream(self, device: int) -> int:
        """The stream that its work is on, as a cudaStream_t."""
        return LEGACY_STREAM

    def made_current(self, device: int) -> AbstractContextManager[Any]:
        """A scope in which it lets arrays of that device go; some do so for the current one alone."""
        return nullcontext()

    def to_host(self, name: str, array: Any) -> Any:
        raise ValueError(
            f"{name}: a {type_name(array)} cannot be copied to the host here (a torch tensor and a CuPy array can); "
            "copy it with its own library, and make the problem from the copies"
        )

    def empty(self, shape: tuple[int, ...], dtype: str, device: int) -> Any:
        raise ValueError(
            "output: 'device' makes arrays of the library that G (or K) comes from, which must be torch or CuPy; "
            "leave output out for a Selection"
        )

    def pointer(self, array: Any) -> int:
        """The address of an array that `empty` made."""
        raise NotImplementedError


class Torch(Library):
    name = "torch"

    def stream(self, device: int) -> int:
        return int(sys.modules["torch"].cuda.current_stream(device).cuda_stream)

    def to_host(self, name: str, array: Any) -> Any:
        return array.cpu()

    def empty(self, shape: tuple[int, ...], dtype: str, device: int) -> Any:
        torch = sys.modules["torch"]
        return torch.empty(shape, dtype=getattr(torch, dtype), device=f"cuda:{device}")

    def pointer(self, array: Any) -> int:
        return int(array.data_ptr())


class CuPy(Library):
    name = "cupy"

    def stream(self, device: int) -> int:
        with self.made_current(device):
            return int(sys.modules["cupy"].cuda.get_current_stream().ptr)

    def made_current(self, device: int) -> AbstractContextManager[Any]:
        scope: AbstractContextManager[Any] = sys.modules["cupy"].cuda.Device(device)
        return scope

    def to_host(self, name: str, array: Any) -> Any:
        return array.get()

    def empty(self, shape: tuple[int, ...], dtype: str, device: int) -> Any:
        with self.made_current(device):
            return sys.modules["cupy"].empty(shape, dtype)

    def pointer(self, array: Any) -> int:
        return int(array.data.ptr)


LIBRARIES: dict[str, Library] = {"torch": Torch(), "cupy": CuPy()}
OTHER = Library()


def library_of(value: Any) -> Library:
    return LIBRARIES["torch"] if is_torch(value) else LIBRARIES.get(type(value).__module__.partition(".")[0], OTHER)


# ---- arrays ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class DeviceArray:
    """An array in device memory, as its library describes it. Strides count numbers, not bytes."""

    pointer: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str
    device: int
    source: Any  # the caller's array (a torch tensor without its history)
    owner: Any = None  # what else keeps the memory alive
    ready: int | None = None  # the stream that its interface says its work is on

    @property
    def place(self) -> str:
        return f"cuda:{self.device}"

    @property
    def library(self) -> Library:
        return library_of(self.source)

    @property
    def stream(self) -> int:
        """The stream on which a kernel that reads the array now is in order."""
        return self.library.stream(self.device) if self.ready is None else self.ready

    @property
    def view(self) -> tuple[int, tuple[int, ...], tuple[int, ...], str]:
        """What the compiled module is given."""
        return self.pointer, self.shape, self.strides, self.dtype

    def row(self, i: int) -> DeviceArray:
        """A row of a matrix, as a vector."""
        step = i * self.strides[0] * _item_size(self.dtype)
        source = self.source[i]
        return replace(self, pointer=self.pointer + step, shape=self.shape[1:], strides=self.strides[1:], source=source)

    def to_host(self, name: str) -> Any:
        return self.library.to_host(name, self.source)


def move_to_device(name: str, array: npt.NDArray[Any], dtype: str, device: int) -> DeviceArray:
    """A copy on a device, by torch if it is loaded."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        raise ValueError(
            f"device: {name} is in host memory, and torch, which would move it, is not loaded (or has no CUDA); pass "
            f"{name} as an array on the device, import torch first, or use device='cpu'"
        )
    array = np.require(array, requirements=["C", "W"])  # torch warns of what it must not write to
    tensor = torch.from_numpy(array.view(np.int16) if dtype == "bfloat16" else array)
    tensor = tensor.view(torch.bfloat16) if dtype == "bfloat16" else tensor
    return read_array(name, tensor.to(f"cuda:{device}"))


def read_array(name: str, value: Any, beside: tuple[str, DeviceArray] | None = None) -> DeviceArray:
    """Describe an array on a device, without a copy; `beside` is the name and the array of what it is used with."""
    if is_torch(value):
        array = _from_torch(name, value)
    elif hasattr(value, "__dlpack__") and hasattr(value, "__dlpack_device__"):
        array = _from_dlpack(name, value, None if beside is None else beside[1])
    else:
        array = _from_interface(name, value)
    if array.pointer % _item_size(array.dtype):
        raise ValueError(f"{name}: its numbers do not begin at a multiple of their size in memory; pass a copy")
    if beside is not None:
        _check_beside(name, array, *beside)
    return array


def _check_beside(name: str, array: DeviceArray, other: str, matrix: DeviceArray) -> None:
    if array.device != matrix.device:
        raise ValueError(f"{name}: is on {array.place} but {other} is on {matrix.place}; pass it on {matrix.place}")
    # The producer of a DLPack capsule makes the reader wait, and an interface without a stream has nothing to wait for.
    foreign = is_torch(array.source) and array.library is not matrix.library
    if (foreign or array.ready is not None) and array.stream != matrix.stream:
        raise ValueError(
            f"{name}: its work is on another stream than that of {other}; make both with one library, or synchronise "
            "and make the default stream the current one"
        )


def _from_torch(name: str, value: Any) -> DeviceArray:
    # Not by its __dlpack__, which takes longer than a small solve and refuses all devices but the current one.
    tensor = plain_tensor(name, value)
    dtype = str(tensor.dtype).removeprefix("torch.")
    _check_number(name, dtype)
    shape, strides = tuple(tensor.shape), tuple(tensor.stride())
    return DeviceArray(int(tensor.data_ptr()), shape, strides, dtype, tensor.device.index, tensor)


def _from_dlpack(name: str, value: Any, reader: DeviceArray | None) -> DeviceArray:
    library, device = library_of(value), int(value.__dlpack_device__()[1])
    # The stream that will read it: its own library's, or that of the matrix.
    stream = library.stream(device) if reader is None else reader.stream
    stream = 1 if stream == LEGACY_STREAM else stream
    try:
        with library.made_current(device):
            try:
                capsule = value.__dlpack__(stream=stream, max_version=(1, 0))
            except TypeError:  # an older producer
                capsule = value.__dlpack__(stream=stream)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise TypeError(f"{name}: {type_name(value)} cannot be read as a device array ({error})") from error
    try:
        pointer, shape, strides, dtype, kind, device, owner = _backends.core.read_dlpack(capsule)
    except TypeError as error:
        raise TypeError(f"{name}: {error}") from None
    if kind not in (2, 13):
        raise ValueError(f"{name}: expected memory of a CUDA device, got DLPack's device type {kind}")
    return DeviceArray(pointer, shape, strides, dtype, device, value, owner)


def _from_interface(name: str, value: Any) -> DeviceArray:
    face = value.__cuda_array_interface__
    missing = [key for key in ("shape", "typestr", "data", "version") if key not in face]
    if missing:
        raise TypeError(f"{name}: the __cuda_array_interface__ of {type_name(value)} has no {missing[0]!r}")
    if face["version"] < 2:
        raise TypeError(f"{name}: __cuda_array_interface__ is of version {face['version']}; 2 or 3 can be read")
    if face.get("mask") is not None:
        raise TypeError(f"{name}: masked entries have no value; fill them, or leave those rows out with candidates")
    number = np.dtype(face["typestr"])
    _check_number(name, number.name if number.isnative else str(number))
    shape = tuple(int(size) for size in face["shape"])
    steps = face.get("strides")
    if steps is None:
        steps = [math.prod(shape[axis + 1 :]) * number.itemsize for axis in range(len(shape))]
    if any(step % number.itemsize for step in steps):
        raise ValueError(f"{name}: strides {tuple(steps)} are no multiples of the {number.itemsize} bytes of a number")
    pointer = int(face["data"][0])
    stream = face.get("stream") if face["version"] > 2 else LEGACY_STREAM
    return DeviceArray(
        pointer,
        shape,
        tuple(step // number.itemsize for step in steps),
        number.name,
        _device_of(name, pointer),
        value,
        ready=LEGACY_STREAM if stream == 1 else stream,
    )


def _device_of(name: str, pointer: int) -> int:
    """Whose memory it is: the interface does not say."""
    device = int(_backends.cuda_module().device_of(pointer)) if pointer else 0
    if device < 0:
        raise ValueError(f"{name}: its __cuda_array_interface__ points to memory that belongs to no CUDA device")
    return device


def _item_size(dtype: str) -> int:
    return {"float64": 8, "float32": 4}.get(dtype, 2)


def _check_number(name: str, dtype: str) -> None:
    if dtype not in NUMBERS:
        raise TypeError(
            f"{name}: dtype {dtype} is not a real floating-point type; use float16, bfloat16, float32 or float64"
        )


def check_contiguous(name: str, array: DeviceArray) -> None:
    """Refuse what the kernels do not read: rows whose numbers lie apart, or rows that overlap."""
    *outer, length = array.shape
    apart = length > 1 and array.strides[-1] != 1
    overlapping = bool(outer) and outer[0] > 1 and array.strides[0] < length
    if apart or overlapping:
        raise ValueError(
            f"{name}: each row must be contiguous in the memory of the device, but shape {array.shape} has strides "
            f"{array.strides}; pass {name}.contiguous() (in CuPy, cupy.ascontiguousarray({name}))"
        )
