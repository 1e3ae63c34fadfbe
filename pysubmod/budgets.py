"""Whole numbers of samples from shares: exact totals, floors and caps kept; and the words other tools have for them.

``allocate(total, sizes)`` gives each group its budget. The two rules of apportionment are exact, which here means that
no other whole numbers within the bounds are closer, in the sense that each rule has of that:

* "largest-remainder": least ``sum (b_p - q_p)^2``, q_p = total * share;
* "webster" (Sainte-Laguë): least ``sum (b_p - q_p)^2 / q_p``; a larger total never lowers a budget.

"partition-sel" is the rule of PartitionSel (arXiv 2606.07954).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from ._apportion import MOST, apportion, partition_sel
from ._validation import as_array, as_choice, as_count, as_scalar, is_integer, shown, type_name, widen

__all__ = ["allocate", "export"]

IntArray = npt.NDArray[np.int64]
MODES = ("proportional", "balanced", "temperature", "mixture")
METHODS = ("largest-remainder", "webster", "partition-sel")
TOOLS = ("huggingface", "trl", "mosaicml", "torchdata", "megatron")


def allocate(
    total: int,
    sizes: Any,
    weights: Any = None,
    mode: str | None = None,
    *,
    lower: Any = None,
    upper: Any = None,
    method: str = "largest-remainder",
    temperature: float | None = None,
) -> Any:
    """Budgets that sum to `total`, as close to the shares as whole numbers get.

    Parameters
    ----------
    total : int
        Samples in all.
    sizes : mapping {label: int} or sequence of int
        Samples that each group has. No group is given more.
    weights : mapping or sequence of float, optional
        For mode "mixture": the shares, at least 0, of any positive sum.
    mode : {"proportional", "balanced", "temperature", "mixture"}, optional
        Shares in proportion to the sizes (the default); equal; in proportion to ``size ** (1 / temperature)``, as
        multilingual models are trained (1 is "proportional", infinity "balanced"); or `weights` (the default if given).
    lower, upper : int, mapping or sequence of int, optional
        Fewest and most samples of a group; 0 and its size by default. A mapping need not name every group.
    method : {"largest-remainder", "webster", "partition-sel"}
        How shares become whole numbers; ties go to the first group. Where a cap or a floor holds, "largest-remainder"
        shares out the difference evenly over the other groups (to one of weight 0, too; ``upper=0`` keeps it out),
        "webster" in proportion to their weights. "partition-sel" rounds each share down and then adds 1 to the
        smallest budget that has room until the total is reached; with mode "balanced" it starts from 0. It has no
        `lower`.
    temperature : float, optional
        For mode "temperature"; positive.

    Returns
    -------
    dict {label: int} in the order of `sizes` if that is a mapping, else (P,) int64 array

    Raises
    ------
    ValueError, TypeError
        For a total outside ``sum lower .. sum upper``, a floor above its cap or size, bad weights.

    Notes
    -----
    Units are given one by one, to the group that gains most from one more: both objectives are sums of convex functions
    of one budget each, for which that is optimal, floors and caps included. Keys are compared as fractions, so ties are
    ties; all but the last few units are given at once.
    """
    names, counts = _as_sizes(sizes)
    total = as_count("total", total)
    if total > MOST:
        raise ValueError(f"total: expected at most 2**50, got {shown(total)}")
    method = as_choice("method", method, METHODS)
    low, high = _bounds(names, counts, lower, upper, method)
    _check_total(total, names, low, high)
    shares = _shares(names, counts, weights, mode, temperature)
    if method == "partition-sel":
        given = partition_sel(total, shares, high, mode == "balanced")
    else:
        given = apportion(total, shares, low, high, method == "webster")
    if isinstance(sizes, Mapping):
        return dict(zip(names, given, strict=True))
    return np.array(given, dtype=np.int64)


# ---- what comes in ---------------------------------------------------------------------------------------------------


def _as_sizes(sizes: Any) -> tuple[list[Any], list[int]]:
    names = list(sizes) if isinstance(sizes, Mapping) else None
    values = list(sizes.values()) if isinstance(sizes, Mapping) else _as_list("sizes", sizes)
    names = list(range(len(values))) if names is None else names
    if not values:
        raise ValueError("sizes: has no groups; expected at least one")
    return names, [_as_whole(f"sizes[{shown(name)}]", value) for name, value in zip(names, values, strict=True)]


def _as_list(name: str, values: Any) -> list[Any]:
    if isinstance(values, (str, bytes)) or not (isinstance(values, Sequence) or hasattr(values, "__array__")):
        raise TypeError(f"{name}: expected a mapping or a sequence, a number a group; got {type_name(values)}")
    if isinstance(values, Sequence):
        return list(values)
    array, dtype = as_array(name, values)
    if array.ndim != 1:
        raise ValueError(f"{name}: expected shape (P,), a number a group; got shape {array.shape}")
    return cast("list[Any]", (widen(array, dtype) if dtype == "bfloat16" else array).tolist())


def _as_whole(name: str, value: Any) -> int:
    if not is_integer(value):
        raise TypeError(f"{name}: expected an integer, got {shown(value)}")
    if not 0 <= int(value) <= MOST:
        raise ValueError(f"{name}: expected 0 .. 2**50 samples, got {shown(value)}")
    return int(value)


def _by_group(name: str, values: Any, names: list[Any], check: Callable[[str, Any], Any], default: Any) -> list[Any]:
    """One value a group: of a mapping by name (`default`, if any, where it has none), of a sequence by position."""
    if isinstance(values, Mapping):
        unknown = [key for key in values if key not in names]
        if unknown:
            raise ValueError(f"{name}: there is no group {shown(unknown[0])}; the groups are {shown(names, 200)}")
        missing = [key for key in names if key not in values]
        if missing and default is None:
            raise ValueError(f"{name}: has no entry for group {shown(missing[0])}")
        return [check(f"{name}[{shown(k)}]", values[k]) if k in values else default[p] for p, k in enumerate(names)]
    given = _as_list(name, values)
    if len(given) != len(names):
        raise ValueError(f"{name}: expected {len(names)} entries, one a group in the order of sizes; got {len(given)}")
    return [check(f"{name}[{p}]", value) for p, value in enumerate(given)]


def _bounds(names: list[Any], counts: list[int], lower: Any, upper: Any, method: str) -> tuple[list[int], list[int]]:
    if method == "partition-sel" and lower is not None:
        raise ValueError("lower: method 'partition-sel' has no floors; use 'largest-remainder' or 'webster'")
    low, high = [0] * len(names), counts
    if lower is not None:
        every = is_integer(lower)
        low = [_as_whole("lower", lower)] * len(names) if every else _by_group("lower", lower, names, _as_whole, low)
    if upper is not None:
        every = is_integer(upper)
        most = (
            [_as_whole("upper", upper)] * len(names) if every else _by_group("upper", upper, names, _as_whole, counts)
        )
        high = [min(a, b) for a, b in zip(most, counts, strict=True)]
    for p, name in enumerate(names):
        if low[p] > high[p]:
            what = "has only" if high[p] == counts[p] else "may give only"
            raise ValueError(f"lower: group {shown(name)} {what} {high[p]} samples, {low[p]} are asked for")
    return low, high


def _check_total(total: int, names: list[Any], low: list[int], high: list[int]) -> None:
    if total < sum(low):
        raise ValueError(
            f"total: {total} is less than the floors together, {sum(low)}; raise it to that, or lower the floors"
        )
    if total > sum(high):
        raise ValueError(
            f"total: {total} is more than the {len(names)} groups may give together, {sum(high)} (the smaller of size"
            " and upper, summed); lower it to that, or raise the caps"
        )


def _shares(names: list[Any], counts: list[int], weights: Any, mode: str | None, temperature: Any) -> list[Fraction]:
    mode = as_choice("mode", mode or ("proportional" if weights is None else "mixture"), MODES)
    if (weights is not None) != (mode == "mixture"):
        raise ValueError(
            "weights: needed by mode 'mixture'" if weights is None else f"weights: mode {mode!r} has its own; leave"
            " them out, or mode"
        )  # fmt: skip
    if (temperature is not None) != (mode == "temperature"):
        raise ValueError(
            f"temperature: {'needed by' if temperature is None else 'only for'} mode 'temperature', got"
            f" {shown(temperature)} with mode {mode!r}"
        )
    if mode == "mixture":
        parts = [Fraction(w) for w in _by_group("weights", weights, names, _as_weight, None)]
        if not any(parts):
            raise ValueError("weights: are all 0; at least one must be positive")
    elif mode == "temperature":
        parts = _tempered(counts, temperature)
    else:
        parts = [Fraction(count if mode == "proportional" else 1) for count in counts]
    whole = sum(parts)
    return [part / whole for part in parts] if whole else [Fraction(1, len(parts))] * len(parts)


def _as_weight(name: str, value: Any) -> float:
    return as_scalar(name, value, minimum=0.0)


def _tempered(counts: list[int], temperature: Any) -> list[Fraction]:
    """``size ** (1 / T)``; an empty group has no share, whatever the temperature."""
    infinite = isinstance(temperature, (float, np.floating)) and math.isinf(temperature) and temperature > 0
    power = 0.0 if infinite else 1.0 / _positive(temperature)
    largest = max(counts)
    return [Fraction(math.exp(power * math.log(count / largest))) if count else Fraction(0) for count in counts]


def _positive(temperature: Any) -> float:
    value = as_scalar("temperature", temperature)
    if not value >= 1e-6:
        raise ValueError(f"temperature: expected a positive number, 1e-6 at least; got {shown(temperature)}")
    return value


# ---- what goes out ---------------------------------------------------------------------------------------------------


def export(shares: Any, to: str, *, paths: Any = None) -> Any:
    """Shares or budgets in the words of another tool.

    Parameters
    ----------
    shares : mapping {label: number} or sequence
        Shares of any positive sum (``mixture.to_dict()``) or budgets; at least 0.
    to : {"huggingface", "trl", "mosaicml", "torchdata", "megatron"}
    paths : mapping {label: str} or sequence of str, optional
        Where each group's data is, the labels by default. "huggingface" and "torchdata" have no place for it.

    Returns
    -------
    "huggingface"
        list of float, for ``datasets.interleave_datasets(..., probabilities=)``, in the order of `shares`. A share of 0
        stays in its place: the stopping strategy "all_exhausted" refuses it, so leave its data set out.
    "trl"
        list of ``{"path", "fraction"}``, the arguments of each ``trl.scripts.utils.DatasetConfig``: shares of the
        mixture, of which TRL makes the largest that repeats no sample.
    "mosaicml"
        list of ``{"remote", "proportion"}``, the arguments of each ``streaming.Stream``; ``{"remote", "choose"}`` where
        all of `shares` are integers: samples an epoch.
    "torchdata"
        dict {str: float}, the ``weights`` of ``torchdata.nodes.MultiNodeWeightedSampler``.
    "megatron"
        list of str, the blend ``[weight, path, weight, path, ...]`` of ``--data-path``.

    All but "huggingface" leave out groups without a share, which some of these tools refuse.
    """
    to = as_choice("to", to, TOOLS)
    if paths is not None and to in ("huggingface", "torchdata"):
        raise ValueError(f"paths: {to!r} has no place for them; leave them out")
    names = list(shares) if isinstance(shares, Mapping) else list(range(len(_as_list("shares", shares))))
    values = _by_group("shares", shares, names, _as_number, None)
    if not any(values):
        raise ValueError("shares: expected at least one that is positive")
    whole = float(sum(values))
    whole = 1.0 if abs(whole - 1.0) < 1e-12 else whole  # shares stay as they are
    parts = [float(value) / whole for value in values]
    if to == "huggingface":
        return parts
    places = names if paths is None else _by_group("paths", paths, names, _as_path, None)
    kept = [p for p, value in enumerate(values) if value > 0]
    if to == "torchdata":
        return {str(names[p]): parts[p] for p in kept}
    if to == "megatron":
        return [text for p in kept for text in (repr(values[p]), str(places[p]))]
    if to == "trl":
        return [{"path": str(places[p]), "fraction": parts[p]} for p in kept]
    word = "choose" if all(isinstance(value, int) for value in values) else "proportion"
    return [{"remote": str(places[p]), word: values[p] if word == "choose" else parts[p]} for p in kept]


def _as_number(name: str, value: Any) -> int | float:
    return int(value) if is_integer(value) and value >= 0 else as_scalar(name, value, minimum=0.0)


def _as_path(name: str, value: Any) -> str:
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"{name}: expected a path, got {type_name(value)}")
    return os.fspath(value)
