"""The constraint: at most so many picks from each group."""

from __future__ import annotations

import copy
import numbers
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ._validation import as_array, as_groups, as_indices, is_integer, shown, type_name

__all__ = ["PartitionMatroid", "checked_matroid"]

Label = int | str


class PartitionMatroid:
    """At most ``budgets[label]`` members from each group.

    Parameters
    ----------
    groups : (n,) array of int or str
        The label of each row.
    budgets : int, mapping, or sequence
        ``{label: int}``; or a sequence aligned with the sorted labels; or one int, a plain cardinality, if all rows
        have the same label. 0 excludes a group. A budget may exceed its group. A budget for a label that no row has
        is a warning and counts as 0 picks: pools do run short of a domain.

    Attributes
    ----------
    n : int
        Number of rows.
    labels : tuple of int or str
        All labels that rows or budgets name, sorted.
    codes : (n,) int32 array
        Position of each row's label in `labels`.
    budgets, sizes : (P,) int64 arrays
        Budget and number of rows of each label.
    rank : int
        Size of the largest feasible selection, ``sum(min(budgets, sizes))``.

    Raises
    ------
    ValueError, TypeError
        For a negative, fractional or boolean budget, a label without a budget, or labels that are neither int nor str.
    """

    def __init__(self, groups: Any, budgets: Any) -> None:
        labels = as_groups(groups, _length("groups", groups))
        self._set(labels, budgets, None)

    @classmethod
    def _masked(cls, groups: npt.NDArray[Any], budgets: Any, mask: npt.NDArray[np.bool_] | None) -> PartitionMatroid:
        """For checked groups; only rows in `mask` need a budget for their label."""
        matroid = cls.__new__(cls)
        matroid._set(groups, budgets, mask)
        return matroid

    @classmethod
    def _cardinality(cls, n: int, budget: Any) -> PartitionMatroid:
        matroid = cls.__new__(cls)
        matroid._put((0,), np.zeros(n, np.int32), [as_budget("budgets", budget)])
        return matroid

    def _set(self, groups: npt.NDArray[Any], budgets: Any, mask: npt.NDArray[np.bool_] | None) -> None:
        present, codes = _unique(groups)
        names: list[Label] = present.tolist()
        given = _budgets_by_label(budgets, names)
        _check_labels(names, given, codes if mask is None else codes[mask])
        labels = _sorted_labels({*names, *given})
        place = {label: p for p, label in enumerate(labels)}
        to_place = np.array([place[name] for name in names], dtype=np.int32)
        own_codes = to_place[codes.reshape(-1)] if names else np.empty(0, np.int32)
        self._put(tuple(labels), own_codes, [given.get(label, 0) for label in labels])

    def _put(self, labels: tuple[Label, ...], codes: npt.NDArray[np.int32], budgets: list[int]) -> None:
        self.n = len(codes)
        self.labels = labels
        self.codes = codes
        self.budgets: npt.NDArray[np.int64] = np.array(budgets, dtype=np.int64)
        self.sizes: npt.NDArray[np.int64] = np.bincount(self.codes, minlength=len(labels)).astype(np.int64)
        for array in (self.codes, self.budgets, self.sizes):
            array.setflags(write=False)

    @property
    def rank(self) -> int:
        return int(np.minimum(self.budgets, self.sizes).sum())

    def counts(self, indices: Any) -> dict[Label, int]:
        """Number of the given rows in each group, ``{label: n}``."""
        return self._counts(as_indices(indices, self.n, "indices"))

    def _counts(self, rows: npt.NDArray[np.int64]) -> dict[Label, int]:
        totals = np.bincount(self.codes[rows], minlength=len(self.labels))
        return dict(zip(self.labels, totals.tolist(), strict=True))

    def is_feasible(self, indices: Any) -> bool:
        """Whether no group gives more than its budget."""
        counts = np.array(list(self.counts(indices).values()), dtype=np.int64)
        return bool((counts <= self.budgets).all())

    def _restricted(self, rows: npt.NDArray[np.int64]) -> PartitionMatroid:
        """The constraint on some of its rows; labels and budgets stay."""
        part = copy.copy(self)
        part.n, part.codes = len(rows), self.codes[rows]
        part.sizes = np.bincount(part.codes, minlength=len(self.labels)).astype(np.int64)
        return part

    def __repr__(self) -> str:
        groups = zip(self.labels, self.budgets, self.sizes, strict=True)
        text = ", ".join(f"{shown(label)}: {budget}/{size}" for label, budget, size in groups)
        return f"PartitionMatroid(n={self.n}, rank={self.rank}, budget/size {{{text}}})"


def checked_matroid(problem: Any, matroid: Any, *, on_host: bool = True) -> PartitionMatroid:
    """The matroid of a problem, whose arrays must be on the host or not; an int is a plain cardinality."""
    # By its parts, not by its class: that would import the compiled core, which some who ask here judge.
    if not all(hasattr(problem, name) for name in ("n", "ridge", "nonneg", "tilt", "_rows")):
        raise TypeError(f"problem: expected a GradientMatching, got {type_name(problem)}")
    if on_host:
        _ = problem._rows.blocks  # which are nowhere else; the error says so
    checked = matroid if isinstance(matroid, PartitionMatroid) else PartitionMatroid._cardinality(problem.n, matroid)
    if checked.n != problem.n:
        raise ValueError(f"matroid: has {checked.n} rows but the problem has {problem.n}")
    return checked


def _unique(groups: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """The labels, sorted, and for each row the number of its own. Small numbers are counted, which sorts nothing."""
    if groups.dtype.kind in "iu" and groups.size:
        least, most = groups.min(), groups.max()
        if least >= 0 and most < len(groups):
            present = np.flatnonzero(np.bincount(groups.astype(np.int64, copy=False)))
            place = np.zeros(int(most) + 1, np.int32)
            place[present] = np.arange(len(present))
            return present.astype(groups.dtype), place[groups]
    return np.unique(groups, return_inverse=True)


def _length(name: str, value: Any) -> int:
    array, _ = as_array(name, value)
    if array.ndim != 1:
        raise ValueError(f"{name}: expected shape (n,), one label per row; got shape {array.shape}")
    return len(array)


def is_scalar(budgets: Any) -> bool:
    """Whether `budgets` is meant as one number (it may still be a bad one)."""
    return isinstance(budgets, (numbers.Number, np.generic)) or getattr(budgets, "ndim", None) == 0


def as_budget(name: str, value: Any) -> int:
    """Check one budget: a whole number, not negative."""
    if getattr(value, "ndim", None) == 0 and not isinstance(value, np.generic):  # an array or a tensor
        value = as_array(name, value)[0][()]
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: expected an integer, got the boolean {value!r}")
    if is_integer(value):
        number = int(value)
    elif isinstance(value, (float, np.floating)):
        if not float(value).is_integer():
            raise ValueError(f"{name}: expected a whole number, got {shown(value)}; round it as you mean it")
        number = int(value)
    else:
        raise TypeError(f"{name}: expected an integer, got {type_name(value)}")
    if number < 0:
        raise ValueError(f"{name}: expected a budget of at least 0, got {shown(number)}")
    return min(number, 2**31)  # more than any pool; sums stay far inside int64


def _budgets_by_label(budgets: Any, names: list[Label]) -> dict[Label, int]:
    if isinstance(budgets, Mapping):
        checked: dict[Label, int] = {}
        for label, value in budgets.items():
            if not isinstance(label, str) and not is_integer(label):
                raise TypeError(f"budgets: labels must be integers or strings, got the key {shown(label)}")
            key = str(label) if isinstance(label, str) else int(label)
            checked[key] = as_budget(f"budgets[{shown(key)}]", value)
        return checked
    if is_scalar(budgets):
        value = as_budget("budgets", budgets)
        if len(names) > 1:
            raise ValueError(
                f"budgets: one number, {value}, for {len(names)} groups could mean each or all; "
                f"pass {{label: {value} for each label}}, or leave groups out for a plain cardinality"
            )
        return dict.fromkeys(names, value)
    if isinstance(budgets, str) or not isinstance(budgets, (Sequence, np.ndarray)):
        raise TypeError(f"budgets: expected an int, a mapping {{label: int}}, or a sequence; got {type_name(budgets)}")
    values = budgets.tolist() if isinstance(budgets, np.ndarray) else list(budgets)
    if len(values) != len(names):
        raise ValueError(
            f"budgets: a sequence is aligned with the sorted labels, of which there are {len(names)} "
            f"({_shown(names)}); got {len(values)} budgets"
        )
    return {name: as_budget(f"budgets[{p}]", value) for p, (name, value) in enumerate(zip(names, values, strict=True))}


def _check_labels(names: list[Label], given: dict[Label, int], codes: npt.NDArray[np.int64]) -> None:
    missing = [name for p, name in enumerate(names) if name not in given and (codes == p).any()]
    if missing:
        hint = ""
        texts = {label if isinstance(label, str) else shown(label) for label in given}
        if any((name if isinstance(name, str) else shown(name)) in texts for name in missing):
            hint = " (labels are matched with their type: 1 is not '1')"
        raise ValueError(
            f"budgets: no budget for the label {shown(missing[0])}, which candidates have; "
            f"labels with budgets: {_shown(list(given))}; give it a budget, 0 to exclude it{hint}"
        )
    known = set(names)
    surplus = [name for name in given if name not in known]
    if surplus and names:
        text = f"budgets: no row has the label {_shown(surplus)}; nothing can be picked there"
        warnings.warn(text, UserWarning, stacklevel=_levels_to_caller())


def _levels_to_caller() -> int:
    """The `stacklevel` with which the function that asks warns about the line that called into this package."""
    package, level = __name__.partition(".")[0], 1
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == package:
        frame, level = frame.f_back, level + 1
    return level


def _sorted_labels(labels: set[Label]) -> list[Label]:
    # Integers before strings where a caller mixes them; within a kind, as NumPy sorts.
    return sorted(labels, key=lambda label: (isinstance(label, str), label))


def _shown(labels: list[Label], limit: int = 8) -> str:
    text = ", ".join(shown(label) for label in labels[:limit])
    return f"{text}, ... ({len(labels)} in all)" if len(labels) > limit else text
