"""Reading what the command line names: arrays, labels, budgets. Every error names the option it came from."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

_LABEL_COLUMNS = ("domain", "group", "label")
_EVERY_OTHER = "*"


class InputError(Exception):
    """A file or an option that cannot be used; the text is meant for the user as it is."""


def read_array(option: str, path: str, *, mapped: bool = False) -> npt.NDArray[Any]:
    """Load a .npy file, memory-mapped on request; pickled objects are never read."""
    try:
        with open(path, "rb") as file:
            magic = file.read(6)
        if magic[:4] == b"PK\x03\x04":
            raise InputError(
                f"{option}: {path!r} is an .npz archive, which cannot be memory-mapped; save the array you mean with"
                " np.save and give that .npy file"
            )
        if magic != b"\x93NUMPY":
            raise InputError(f"{option}: {path!r} is not a .npy file (write one with np.save)")
        return np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)  # type: ignore[no-any-return]
    except OSError as error:
        raise InputError(f"{option}: cannot read {path!r}: {error.strerror or error}") from None
    except (ValueError, EOFError) as error:
        raise InputError(f"{option}: cannot read {path!r}: {error}") from None


def _read_text(option: str, path: str) -> list[str]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            return list(file)
    except OSError as error:
        raise InputError(f"{option}: cannot read {path!r}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{option}: {path!r} is not UTF-8 text ({error})") from None


def read_groups(path: str, column: str | None) -> npt.NDArray[Any]:
    """One label a candidate, from .npy (integers or text), .csv or .tsv (a column), or .txt (a line each)."""
    ending = os.path.splitext(path)[1].lower()
    if ending == ".npy":
        labels = read_array("--groups", path)
        if labels.ndim != 1 or labels.dtype.kind not in "iuUS":
            raise InputError(
                f"--groups: expected integer or text labels of shape (n,), {path!r} holds {labels.dtype} of shape"
                f" {labels.shape}"
            )
        return np.char.decode(labels, "utf-8") if labels.dtype.kind == "S" else labels
    if ending in (".csv", ".tsv"):
        return _label_column(path, column, "," if ending == ".csv" else "\t")
    if ending == ".txt":
        lines = [line.rstrip("\r\n") for line in _read_text("--groups", path)]
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                raise InputError(f"--groups: line {number} of {path!r} is empty; expected one label a line")
        return np.array([line.strip() for line in lines], dtype=np.str_)
    raise InputError(f"--groups: expected a .npy, .csv, .tsv or .txt file, got {path!r}")


def _label_column(path: str, column: str | None, delimiter: str) -> npt.NDArray[Any]:
    reader = csv.DictReader(_read_text("--groups", path), delimiter=delimiter)
    names = [name for name in reader.fieldnames or [] if name]
    if column is None:
        known = [name for name in _LABEL_COLUMNS if name in names]
        if not known and len(names) != 1:
            raise InputError(f"--groups: say which column of {path!r} with --group-column; it has {', '.join(names)}")
        column = known[0] if known else names[0]
    if column not in names:
        raise InputError(f"--group-column: {path!r} has no column {column!r}; it has {', '.join(names)}")
    labels = [row[column] for row in reader]
    for row, label in enumerate(labels):
        if not label:
            raise InputError(f"--groups: row {row} of {path!r} has no value in column {column!r}")
    return np.array(labels, dtype=np.str_)


def read_budgets(text: str, groups: npt.NDArray[Any] | None) -> Any:
    """The budgets that `text` spells: an integer, "label=integer,...", or the name of a JSON or YAML file.

    The label "*" stands for every label of `groups` that is not named.
    """
    if re.fullmatch(r"[+-]?\d+", text.strip()):
        return int(text)
    if text.lower().endswith((".json", ".yaml", ".yml")):
        budgets = _budget_file(text)
    elif "=" in text:
        budgets = _unique(_budget_pair(part) for part in text.split(",") if part.strip())
    else:
        raise InputError(
            f'--budgets: expected an integer, "math=8,code=8", or a .json, .yaml or .yml file, got {text!r}'
        )
    if not isinstance(budgets, dict):
        if isinstance(budgets, list | int):
            return budgets
        raise InputError(f"--budgets: expected a mapping from label to integer in {text!r}, got {budgets!r}")
    if groups is None:
        raise InputError("--groups: needed, as --budgets names groups")
    return _fit_labels(budgets, groups)


def _budget_pair(part: str) -> tuple[str, int]:
    label, _, number = part.rpartition("=")  # a label may hold "=" itself
    if not label.strip() or not re.fullmatch(r"[+-]?\d+", number.strip()):
        raise InputError(f"--budgets: expected label=integer, got {part.strip()!r}")
    return label.strip(), int(number)


def _unique(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    """A dict that refuses what dict() would silently drop."""
    out: dict[Any, Any] = {}
    for key, value in pairs:
        if key in out:
            raise InputError(f"--budgets: {key!r} is named twice")
        out[key] = value
    return out


def _budget_file(path: str) -> Any:
    text = "".join(_read_text("--budgets", path))
    if path.lower().endswith(".json"):
        try:
            return json.loads(text, object_pairs_hook=_unique)
        except ValueError as error:
            raise InputError(f"--budgets: {path!r} is not JSON: {error}") from None
    try:
        import yaml
    except ImportError:
        raise InputError("--budgets: reading YAML needs PyYAML: pip install pysubmod[cli]") from None
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"--budgets: {path!r} is not YAML: {' '.join(str(error).split())}") from None


def _fit_labels(budgets: dict[Any, Any], groups: npt.NDArray[Any]) -> dict[int | str, Any]:
    """The keys in the type of the labels (a file or a shell knows only text), and "*" spelled out."""
    rest = budgets.pop(_EVERY_OTHER, None)
    out: dict[int | str, Any] = {}
    for key, value in budgets.items():
        label: int | str = str(key)
        if groups.dtype.kind in "iu":
            if not re.fullmatch(r"[+-]?\d+", str(key)):
                raise InputError(f"--budgets: the labels are integers, got {key!r}")
            label = int(key)
        out[label] = value
    if rest is not None:
        for label in np.unique(groups).tolist():
            out.setdefault(label, rest)
    return out


def read_rows(option: str, path: str) -> npt.NDArray[Any]:
    """Row numbers from .npy, from text (one a line, a header allowed), or the picks of a saved selection."""
    ending = os.path.splitext(path)[1].lower()
    if ending == ".npy":
        return read_array(option, path)
    if ending == ".json":
        from .result import Selection

        try:
            return Selection.load(path).indices
        except (OSError, ValueError) as error:
            raise InputError(f"{option}: {error}") from None
    if ending not in (".csv", ".txt"):
        raise InputError(f"{option}: expected a .npy, .csv, .txt or .json file, got {path!r}")
    cells = [line.strip().split(",")[0].strip() for line in _read_text(option, path) if line.strip()]
    if cells and not re.fullmatch(r"[+-]?\d+", cells[0]):
        cells = cells[1:]
    bad = next((cell for cell in cells if not re.fullmatch(r"[+-]?\d+", cell)), None)
    if bad is not None:
        raise InputError(f"{option}: expected row numbers, {path!r} holds {bad!r}")
    return np.array([int(cell) for cell in cells], dtype=np.int64)
