"""Writing files whole or not at all, and a JSON form for results that loses nothing."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import secrets
from collections.abc import Mapping
from typing import Any

import numpy as np

PathLike = str | os.PathLike[str]


def _temporary(path: str) -> str:
    """A fresh name beside `path`: os.replace is atomic only within one file system."""
    folder, name = os.path.split(path)
    return os.path.join(folder, f".{name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")


def _create(path: str) -> int:
    # os.open rather than tempfile.mkstemp: the file gets the mode that the caller's umask asks for.
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)


def _is_special(path: str) -> bool:
    """Whether `path` is something to write into, not to replace: /dev/null, a pipe, a terminal."""
    return os.path.exists(path) and not os.path.isfile(path)


def check_writable(path: PathLike) -> None:
    """Raise OSError now if `write_atomic` could not write `path` later; leaves nothing behind."""
    target = os.path.realpath(os.fspath(path))
    if os.path.isdir(target):
        raise IsADirectoryError(f"{os.fspath(path)!r} is a folder; give the name of a file")
    if _is_special(target):
        return
    folder = os.path.dirname(target)
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"the folder {folder!r} does not exist")
    probe = _temporary(target)
    try:
        os.close(_create(probe))
    finally:
        with contextlib.suppress(OSError):
            os.unlink(probe)


def write_atomic(path: PathLike, data: bytes) -> None:
    """Write `data` to `path` so that a reader sees the old file or the whole new one, whatever happens.

    The bytes go to a temporary file in the same folder, are flushed to the disk, and the name is then moved.
    An exception of any kind, Ctrl-C included, removes the temporary file. A symbolic link is followed.
    """
    target = os.path.realpath(os.fspath(path))
    if _is_special(target):
        with open(target, "wb") as file:
            file.write(data)
        return
    folder = os.path.dirname(target)
    if not os.path.isdir(folder):
        raise FileNotFoundError(errno.ENOENT, "the folder does not exist", folder)
    temporary = _temporary(target)
    try:
        with os.fdopen(_create(temporary), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    _sync_folder(folder)


def _sync_folder(folder: str) -> None:
    """Make the new name itself survive a power cut, where the system lets a folder be opened for that."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def encode(value: Any) -> Any:
    """`value` as strict JSON: floats exact, and what JSON has no word for under a one-key tag.

    Non-finite floats, NumPy arrays and mappings with keys that are not text are tagged; `decode` undoes it. A
    tuple becomes a list, and an object of an unknown kind its ``repr``.
    """
    if value is None or isinstance(value, bool | str):
        return str(value) if isinstance(value, str) else value  # str(): a str-valued Enum or np.str_ as text
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        number = float(value)
        return number if math.isfinite(number) else {"__float__": repr(number)}
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value) and not any(key.startswith("__") for key in value):
            return {str(key): encode(item) for key, item in value.items()}
        return {"__pairs__": [[encode(key), encode(item)] for key, item in value.items()]}
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufU":
        return {
            "__array__": [encode(item) for item in value.ravel().tolist()],
            "dtype": value.dtype.str,
            "shape": list(value.shape),
        }
    if isinstance(value, list | tuple):
        return [encode(item) for item in value]
    return repr(value)


def decode(value: Any) -> Any:
    """The inverse of `encode`, for what `json.loads` returned."""
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "__float__" in value:
        return float(value["__float__"])
    if "__pairs__" in value:
        return {decode(key): decode(item) for key, item in value["__pairs__"]}
    if "__array__" in value:
        flat = np.array(decode(value["__array__"]), dtype=np.dtype(value["dtype"]))
        return flat.reshape(value["shape"])
    return {key: decode(item) for key, item in value.items()}
