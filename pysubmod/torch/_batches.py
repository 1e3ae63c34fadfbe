"""Batches by rows and columns, and how many rows of each group are wanted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .._apportion import partition_sel
from .._validation import as_groups, shown, type_name
from ..matroid import PartitionMatroid

__all__ = ["Groups", "budgets_of", "count_rows", "labels_of", "take_rows", "without_column"]

Groups: TypeAlias = str | int | Callable[[Any], Any] | None
_KEPT = (str, bool, type(None))  # values that say something of the whole batch


def _columns(batch: Any) -> dict[Any, Any]:
    """Its columns by name; one without a name is ""."""
    if isinstance(batch, Mapping):
        return dict(batch.items())
    if isinstance(batch, (tuple, list)):
        return dict(enumerate(batch))
    if isinstance(batch, Tensor):
        return {"": batch}
    raise TypeError(f"batch: expected a tensor, or a mapping or tuple of columns; got {type_name(batch)}")


def _name(key: Any) -> str:
    return "batch" if key == "" else f"batch[{key!r}]"


def _length(key: Any, column: Any) -> int:
    if not isinstance(column, (Tensor, np.ndarray, list, tuple)):
        raise TypeError(
            f"{_name(key)}: expected a tensor, array or list with a sample in each row; got {shown(column)}"
        )
    if not isinstance(column, (list, tuple)) and column.ndim == 0:
        raise ValueError(f"{_name(key)}: is a single number, not one a sample; leave it out of the pool's batch")
    return len(column)


def count_rows(batch: Any) -> int:
    """Samples in a batch, all of whose columns must agree."""
    lengths = {key: _length(key, column) for key, column in _columns(batch).items() if not isinstance(column, _KEPT)}
    if not lengths:
        raise ValueError("batch: has no column with a sample in each row")
    first, n = next(iter(lengths.items()))
    for key, length in lengths.items():
        if length != n:
            raise ValueError(f"{_name(key)}: has {length} rows, but {_name(first)} has {n}")
    if n == 0:
        raise ValueError("batch: has no rows")
    return n


def take_rows(batch: Any, rows: Sequence[int]) -> Any:
    """Some rows of every column, in the given order; strings, flags and None are of the whole batch and stay."""
    count_rows(batch)
    taken = {key: _taken(column, rows) for key, column in _columns(batch).items()}
    if isinstance(batch, Tensor):
        return taken[""]
    if isinstance(batch, Mapping):
        return taken
    return type(batch)(*taken.values()) if hasattr(batch, "_fields") else type(batch)(taken.values())


def _taken(column: Any, rows: Sequence[int]) -> Any:
    if isinstance(column, _KEPT):
        return column
    if isinstance(column, Tensor):
        return column[torch.tensor(rows, dtype=torch.int64, device=column.device)]
    if isinstance(column, np.ndarray):
        return column[np.asarray(rows, dtype=np.int64)]
    return type(column)(column[i] for i in rows)


def labels_of(batch: Any, groups: Groups, name: str = "groups") -> npt.NDArray[Any]:
    """The label of each row, integers or strings; one for all without `groups`."""
    n = count_rows(batch)
    if groups is None:
        return np.zeros(n, np.int64)
    if callable(groups):
        found = groups(batch)
    else:
        columns = _columns(batch)
        if groups not in columns:
            raise ValueError(f"{name}: the batch has no column {groups!r}; it has {', '.join(map(repr, columns))}")
        found = columns[groups]
    return as_groups(found.tolist() if isinstance(found, Tensor) else found, n, name)


def without_column(batch: Any, groups: Groups) -> Any:
    """The batch as losses are computed from it: without the column of labels."""
    if groups is None or callable(groups):
        return batch
    kept = {key: column for key, column in _columns(batch).items() if key != groups}
    return kept if isinstance(batch, Mapping) else (tuple if isinstance(batch, tuple) else list)(kept.values())


def budgets_of(labels: npt.NDArray[Any], budgets: Any, size: int | None) -> PartitionMatroid:
    """The constraint on one pool.

    "proportional" gives a group of n_p rows ``floor(size * n_p / n)``, "balanced" nothing to begin with; both then add
    1 to the smallest budget whose group has rows left (of equal ones to the first label's) until they sum to `size`.
    None is one budget for all rows.
    """
    if budgets is None:
        labels = np.zeros(len(labels), np.int64)
    names, sizes = np.unique(labels, return_counts=True)
    if isinstance(budgets, Mapping):
        return PartitionMatroid(labels, {name: budgets[name] for name in names.tolist() if name in budgets})
    assert size is not None
    size = min(size, len(labels))
    shares = [Fraction(own, len(labels)) for own in sizes.tolist()]
    counts = partition_sel(size, shares, sizes.tolist(), budgets == "balanced")
    return PartitionMatroid(labels, dict(zip(names.tolist(), counts, strict=True)))
