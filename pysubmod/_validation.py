"""Checks at the door: every message names the argument, what was expected, what came, and the cure."""

from __future__ import annotations

import math
import numbers
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "Rows",
    "as_choice",
    "as_count",
    "as_flag",
    "as_gram",
    "as_groups",
    "as_indices",
    "as_linear",
    "as_mask",
    "as_norm",
    "as_rows",
    "as_scalar",
    "as_target",
    "as_targets",
    "as_threads",
    "default_threads",
    "on_device",
    "widen",
]

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Rows:
    """The gradient matrix as the core reads it: blocks of rows in their own memory, one after another.

    bfloat16 rows are held as their 16 bits (uint16), since NumPy has no such type.
    """

    blocks: tuple[npt.NDArray[Any], ...]
    dtype: str
    shape: tuple[int, int]
    labels: npt.NDArray[Any] | None = None  # of the rows, when a mapping was given


def type_name(value: object) -> str:
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def shown(value: object, limit: int = 80) -> str:
    """`value` for a message: short, whatever it is (Python refuses to write out an integer of thousands of digits)."""
    try:
        text = repr(value)
    except Exception:
        text = f"a {type_name(value)}"
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def is_torch(value: object) -> bool:
    """Whether `value` is a torch tensor; torch is never imported to find out."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def on_device(value: object) -> bool:
    """Whether `value` says of itself that it lies in the memory of a CUDA device."""
    if isinstance(value, (np.ndarray, type)):
        return False
    if is_torch(value):
        return bool(value.is_cuda)  # type: ignore[attr-defined]
    if hasattr(value, "__cuda_array_interface__"):
        return True
    # 2 is memory of a device, 13 memory that host and device share.
    return hasattr(value, "__dlpack_device__") and value.__dlpack_device__()[0] in (2, 13)


def plain_tensor(name: str, tensor: Any) -> Any:
    """A torch tensor without its history, whose numbers lie in memory as they are."""
    torch = sys.modules["torch"]
    if tensor.layout is not torch.strided or tensor.is_nested:
        raise TypeError(f"{name}: a torch tensor of layout {tensor.layout} cannot be read; pass {name}.to_dense()")
    return tensor.detach().resolve_conj().resolve_neg()


def _from_torch(name: str, tensor: Any) -> npt.NDArray[Any]:
    torch = sys.modules["torch"]
    if tensor.device.type not in ("cpu", "cuda"):
        raise ValueError(f"{name}: the tensor is on {tensor.device}; pass {name}.cpu()")
    tensor = plain_tensor(name, tensor)
    if tensor.dtype is torch.bfloat16:
        return np.asarray(tensor.view(torch.int16).numpy()).view(np.uint16)
    try:
        return np.asarray(tensor.numpy())
    except (TypeError, RuntimeError):
        raise TypeError(
            f"{name}: dtype {tensor.dtype} cannot be read; use float16, bfloat16, float32 or float64"
        ) from None


# NumPy takes microseconds to spell out the name of a type.
_NAMES = {np.dtype(kind): np.dtype(kind).name for kind in ("f2", "f4", "f8", "i4", "i8", "?")}


def as_array(name: str, value: Any) -> tuple[npt.NDArray[Any], str]:
    """Return any array-like as a NumPy array (a view wherever possible) and the name of its number type."""
    if type(value) is np.ndarray and value.dtype in _NAMES:
        return value, _NAMES[value.dtype]
    if on_device(value):
        raise ValueError(f"{name}: is in the memory of a GPU but is read on the host; pass a copy there, {name}.cpu()")
    if is_torch(value):
        array = _from_torch(name, value)
        bits = str(value.dtype) == "torch.bfloat16"
        return array, "bfloat16" if bits else array.dtype.name
    if hasattr(value, "tocsr"):
        raise TypeError(f"{name}: sparse matrices cannot be read; pass {name}.toarray()")
    if isinstance(value, np.ma.MaskedArray) and value.dtype.names is None and np.ma.is_masked(value):
        raise TypeError(f"{name}: masked entries have no value; fill them, or leave those rows out with candidates")
    try:
        if not isinstance(value, np.ndarray) and not hasattr(value, "__array__") and hasattr(value, "__dlpack__"):
            array = np.from_dlpack(value)
        else:
            array = np.asarray(value)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise TypeError(f"{name}: {type_name(value)} cannot be read as an array ({error})") from error
    if array.dtype.name == "bfloat16":  # the ml_dtypes extension type, which JAX uses
        return array.view(np.uint16), "bfloat16"
    return array, array.dtype.name


def _as_float(name: str, value: Any) -> tuple[npt.NDArray[Any], str]:
    """An array of float16, bfloat16 (bits), float32 or float64; integers become float64, all else is refused."""
    array, dtype = as_array(name, value)
    if dtype == "bfloat16":
        return array, dtype
    if array.dtype.kind in "iu":
        return array.astype(np.float64), "float64"
    if dtype not in ("float16", "float32", "float64"):
        raise TypeError(
            f"{name}: dtype {dtype} is not a real floating-point type; use float16, bfloat16, float32 or float64"
        )
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    return array, dtype


def widen(array: npt.NDArray[Any], dtype: str) -> FloatArray:
    """The stored numbers as float64; `dtype` names their type, bfloat16 being held as bits."""
    if array.dtype == np.float64 and array.flags.c_contiguous and array.flags.aligned:
        return array
    with np.errstate(invalid="ignore"):  # a signalling NaN, which is reported later
        if dtype == "bfloat16":
            return (array.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
        return np.require(array, np.float64, ["C", "A"])  # the core reads it as doubles: aligned


def as_rows(value: Any, name: str = "G") -> Rows:
    """Check the gradient matrix, or a mapping of them, without copying it."""
    if isinstance(value, Mapping):
        return _rows_of_mapping(value, name)
    array, dtype = _as_float(name, value)
    if array.ndim != 2:
        raise ValueError(f"{name}: expected shape (n, d), one gradient per row; got shape {array.shape}")
    if array.shape[1] == 0:
        raise ValueError(f"{name}: the rows have length d = 0; a gradient needs at least one entry")
    return Rows((array,), dtype, (array.shape[0], array.shape[1]))


def _rows_of_mapping(value: Mapping[Any, Any], name: str) -> Rows:
    if not value:
        raise ValueError(f"{name}: the mapping is empty; expected {{group: (n_group, d) array}}")
    for key, block in value.items():
        if isinstance(block, Mapping):
            raise TypeError(f"{name}[{shown(key)}]: expected an array (n_group, d), got a mapping inside the mapping")
        if on_device(block):
            raise ValueError(
                f"{name}[{shown(key)}]: is on a GPU, where a mapping cannot be read; pass one array of all rows with "
                f"groups=..., or {name}[{shown(key)}].cpu()"
            )
    parts = {key: as_rows(block, f"{name}[{shown(key)}]") for key, block in value.items()}
    widths = {key: rows.shape[1] for key, rows in parts.items()}
    if len(set(widths.values())) > 1:
        raise ValueError(f"{name}: all groups must have the same number of columns d; got {shown(widths, 300)}")
    keys = as_groups(list(value), len(value), name=f"{name} (its keys)")
    sizes = [rows.shape[0] for rows in parts.values()]
    dtypes = sorted({rows.dtype for rows in parts.values()})
    return Rows(
        tuple(rows.blocks[0] for rows in parts.values()),
        "+".join(dtypes),
        (sum(sizes), next(iter(widths.values()))),
        np.repeat(keys, sizes),
    )


def as_target(value: Any, d: int, name: str = "target") -> FloatArray:
    """Check a target of shape (d,), or (m, d) whose mean is taken; float64."""
    array, dtype = _as_float(name, value)
    if array.ndim not in (1, 2) or array.shape[-1] != d:
        raise ValueError(
            f"{name}: expected shape ({d},) or (m, {d}) to match the columns of G; got shape {array.shape}"
        )
    if array.ndim == 2 and array.shape[0] == 0:
        raise ValueError(f"{name}: has no rows; a mean needs at least one")
    target = widen(array, dtype)
    largest = _largest(name, target)
    if largest > 1.0:  # too large for a mean to be taken; what is too small shows in the mean
        _check_size(name, largest)
    if target.ndim == 2:
        target = np.ascontiguousarray(target.mean(axis=0))
        largest = float(np.abs(target).max())
    if largest > 0.0 and not 1e-140 <= largest <= 1e100:  # else the norm is within bounds, whatever the length
        _check_size(name, float(np.sqrt(np.sum((target / largest) ** 2)) * largest))
    return target


def as_targets(value: Any, d: int, name: str = "target") -> list[FloatArray]:
    """Check m targets of shape (m, d), each of which is one by itself; float64."""
    array, dtype = _as_float(name, value)
    if array.ndim != 2 or array.shape[1] != d:
        raise ValueError(f"{name}: separate=True expects shape (m, {d}), a target in each row; got shape {array.shape}")
    if array.shape[0] == 0:
        raise ValueError(f"{name}: has no rows; separate=True needs at least one target")
    return [as_target(row, d, f"{name}[{p}]") for p, row in enumerate(widen(array, dtype))]


def as_gram(gram: Any, linear: Any) -> tuple[npt.NDArray[Any], FloatArray]:
    """Check K (n, n) and c (n,), but not K's numbers; K is copied only if it is contiguous in neither order."""
    k, dtype = _as_float("K", gram)
    if k.ndim != 2 or k.shape[0] != k.shape[1]:
        raise ValueError(f"K: expected a square matrix (n, n); got shape {k.shape}")
    if dtype not in ("float32", "float64"):
        raise TypeError(
            f"K: expected float32 or float64, got {dtype}; a Gram matrix in half precision has no rank to trust"
        )
    if k.strides[1] != k.itemsize:
        k = k.T if k.strides[0] == k.itemsize else np.ascontiguousarray(k)
    return k, as_linear(linear, k.shape[0])


def as_linear(value: Any, n: int) -> FloatArray:
    """Check c (n,); float64."""
    c, dtype = _as_float("c", value)
    if c.shape != (n,):
        raise ValueError(f"c: expected shape ({n},) to match K; got shape {c.shape}")
    c = widen(c, dtype)
    _check_size("c", _largest("c", c))
    return c


def _largest(name: str, array: FloatArray) -> float:
    """The largest absolute value of an array without NaN and infinity."""
    largest = float(np.abs(array).max(initial=0.0))
    if not math.isfinite(largest):
        first = np.argwhere(~np.isfinite(array))[0].tolist()
        place = f"entry {first[0]}" if len(first) == 1 else f"row {first[0]}"
        raise ValueError(f"{name}: {place} is NaN or infinite; all numbers must be finite")
    return largest


def _check_size(name: str, size: float) -> None:
    if size != 0.0 and not 1e-140 <= size <= 1e140:
        raise ValueError(
            f"{name}: its size {size:.3g} is outside 1e-140 .. 1e140, where squares leave float64; rescale it"
        )


def as_groups(value: Any, n: int, name: str = "groups") -> npt.NDArray[Any]:
    """Check labels of shape (n,): integers or strings."""
    array, _ = as_array(name, value)
    if isinstance(value, (list, tuple)):
        _check_one_kind(name, value, array)
    if array.dtype.kind == "T":  # NumPy's strings of any length
        array = array.astype(object)
    if array.dtype.kind == "O":
        kinds = {type(x) for x in array.ravel().tolist()}
        if kinds and all(issubclass(kind, str) for kind in kinds):
            array = array.astype(np.str_)
        elif kinds and all(issubclass(kind, numbers.Integral) and not issubclass(kind, bool) for kind in kinds):
            if not all(-(2**63) <= int(x) < 2**63 for x in array.ravel()):
                raise ValueError(f"{name}: an integer label does not fit into 64 bits; use strings")
            array = array.astype(np.int64)
    if array.size == 0 and array.ndim == 1:
        array = np.empty(0, np.int64)
    if array.dtype.kind not in "iuU":
        raise TypeError(f"{name}: labels must be all integers or all strings; got dtype {array.dtype}")
    if array.shape != (n,):
        raise ValueError(f"{name}: expected shape ({n},), one label per row; got shape {array.shape}")
    return array


def _check_one_kind(name: str, labels: Sequence[Any], array: npt.NDArray[Any]) -> None:
    """Refuse a list of several kinds of labels, which NumPy makes one kind without a word: 1 into "1", True into 1."""
    if array.ndim != 1 or array.dtype.kind not in "iuU":
        return
    strings = array.dtype.kind == "U"
    for label in labels:
        if isinstance(label, (bool, np.bool_)) or isinstance(label, str) != strings:
            raise TypeError(f"{name}: labels must be all integers or all strings; got {shown(label)} among others")


def as_mask(value: Any, n: int, name: str = "candidates") -> npt.NDArray[np.bool_] | None:
    """Check a boolean mask of shape (n,), or None."""
    if value is None:
        return None
    array, _ = as_array(name, value)
    if array.dtype.kind != "b":
        raise TypeError(
            f"{name}: expected a boolean mask of shape ({n},), got dtype {array.dtype}; "
            "from row numbers make one: mask = np.zeros(n, bool); mask[rows] = True"
        )
    if array.shape != (n,):
        raise ValueError(f"{name}: expected shape ({n},), one entry per row; got shape {array.shape}")
    return np.ascontiguousarray(array)


def as_indices(value: Any, n: int, name: str) -> npt.NDArray[np.int64]:
    """Check distinct row numbers in 0 .. n - 1; None is none, a selection its rows."""
    if value is None:
        return np.empty(0, np.int64)
    value = getattr(value, "indices", value) if type_name(value) == "pysubmod.result.Selection" else value
    array, _ = as_array(name, value)
    if array.size == 0 and array.ndim == 1:
        return np.empty(0, np.int64)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name}: expected integer row numbers, got dtype {array.dtype}")
    if array.ndim != 1:
        raise ValueError(f"{name}: expected shape (k,), row numbers; got shape {array.shape}")
    if int(array.min()) < 0 or int(array.max()) >= n:
        wrong = int(array.min()) if int(array.min()) < 0 else int(array.max())
        raise ValueError(f"{name}: row {wrong} does not exist; rows are numbered 0 .. {n - 1}")
    indices = np.require(array, np.int64, ["C", "A"])
    values, counts = np.unique(indices, return_counts=True)
    if (counts > 1).any():
        raise ValueError(f"{name}: row {int(values[counts > 1][0])} comes twice; each row may be named once")
    return indices


def as_scalar(name: str, value: Any, *, minimum: float = -math.inf) -> float:
    """Check a finite real number, at least `minimum` and at most 1e280 in size; an array of no dimension is one."""
    if type(value) is float and minimum <= value <= 1e280 and value >= -1e280:  # what nearly always comes
        return value
    if is_torch(value) or isinstance(value, np.ndarray):
        array, dtype = as_array(name, value)
        array = widen(array, dtype) if dtype == "bfloat16" else array
        value = array[()] if array.ndim == 0 else array
    if isinstance(value, (bool, np.timedelta64)) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: expected a real number, got {type_name(value)}")
    try:
        number = float(value)
    except OverflowError:  # an int or a fraction
        number = math.inf
    if not number >= minimum or abs(number) > 1e280:
        least = f"at least {minimum:g}" if minimum > -math.inf else "finite"
        raise ValueError(f"{name}: expected a number that is {least} and at most 1e280 in size; got {shown(value)}")
    return number


def is_integer(value: object) -> bool:
    """Whether `value` is one integer, of Python or NumPy; a boolean or a time span is none."""
    return type(value) is int or (isinstance(value, numbers.Integral) and not isinstance(value, (bool, np.timedelta64)))


def as_norm(name: str, value: Any) -> float:
    """Check the norm of a vector whose square float64 can hold."""
    number = as_scalar(name, value, minimum=0.0)
    _check_size(name, number)
    return number


def as_flag(name: str, value: Any) -> bool:
    """Check a boolean."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: expected True or False, got {shown(value)}")
    return bool(value)


def as_choice(name: str, value: Any, choices: Sequence[str]) -> str:
    """Check a name out of a list."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}; got {shown(value)}")
    return value


def default_threads() -> int:
    """The number of CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def as_count(name: str, value: Any) -> int:
    """Check an integer of at least 0 that 64 bits hold."""
    if not is_integer(value):
        raise TypeError(f"{name}: expected an integer, got {shown(value)}")
    if not 0 <= int(value) < 2**63:
        raise ValueError(f"{name}: expected an integer of at least 0, got {shown(value)}")
    return int(value)


def as_threads(value: Any) -> int:
    """Check a number of threads; None is the CPUs that this process may use."""
    if value is None:
        return default_threads()
    if not is_integer(value):
        raise TypeError(f"n_threads: expected a positive integer or None, got {shown(value)}")
    if not 1 <= int(value) <= 1024:
        raise ValueError(f"n_threads: expected 1 .. 1024, got {shown(value)}")
    return int(value)
