"""What a selection is to match: where validation batches come from, and the gradient that stands for one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .._random import random_order
from .._validation import type_name
from .per_sample import PerSampleGradients

__all__ = ["Targets", "ValidationSource", "anchor_rows", "length_of", "targets_of"]

Targets: TypeAlias = dict[Any, dict[str, Tensor]]  # label -> gradient by parameter; None -> that of all

_STREAM = 1 << 40  # of the anchors; the solver takes numbers 0 .. rank of the same seed


class ValidationSource:
    """Batches, one a request, from whatever was given as `validation`."""

    def __init__(self, given: Any) -> None:
        self._batch: Any = None
        self._call: Callable[[int], Any] | None = None
        self._iterable: Iterable[Any] | None = None
        self._iterator: Iterator[Any] | None = None
        self.position = 0  # batches taken from the present pass over an iterable
        if isinstance(given, (Tensor, Mapping, tuple)):
            self._batch = given
        elif callable(given):
            self._call = given
        elif isinstance(given, Iterable):
            self._iterable = given
        else:
            raise TypeError(
                "validation: expected a batch (tensor, mapping, tuple), a function of the step that gives one, or an "
                f"iterable of batches; got {type_name(given)}"
            )

    def next(self, step: int) -> Any:
        if self._call is not None:
            return self._call(step)
        if self._iterable is None:
            return self._batch
        with torch.random.fork_rng([]):  # a DataLoader draws a number whenever it begins
            if self._iterator is None:
                self._iterator, skip = iter(self._iterable), self.position
                for _ in range(skip):
                    next(self._iterator, None)
            nothing = object()
            batch = next(self._iterator, nothing)
            if batch is nothing:
                self._iterator, self.position = iter(self._iterable), 0
                batch = next(self._iterator, nothing)
        if batch is nothing:
            raise ValueError("validation: the iterable is empty, or it cannot be gone through twice; give a list")
        self.position += 1
        return batch

    def seek(self, position: int) -> None:
        self.position, self._iterator = position, None


def anchor_rows(labels: npt.NDArray[Any], anchors: int | None, each: bool, seed: int) -> list[int]:
    """Rows drawn without replacement, ascending: `anchors` of all, or of each label; all of them for None."""
    if anchors is None:
        return list(range(len(labels)))
    order = random_order(seed, len(labels), stream=_STREAM)
    if not each:
        return sorted(order[:anchors].tolist())
    drawn = [order[labels[order] == label][:anchors] for label in np.unique(labels)]
    return sorted(np.concatenate(drawn).tolist())


def length_of(gradient: Mapping[str, Tensor]) -> float:
    return math.sqrt(sum(float(part.to(torch.float64).square().sum()) for part in gradient.values()))


def targets_of(gradients: PerSampleGradients, labels: npt.NDArray[Any], kind: str, dtype: torch.dtype) -> Targets:
    """What to match, of the gradients of some samples and their labels.

    "mean": their mean. "balanced": the mean over labels of the mean gradient of each, scaled to length 1 (one of length
    0 stays so). "per-group": for each label its mean, divided by the number of labels: these sum to the labels' mean.
    """
    if kind == "mean":
        return {None: gradients.mean(dtype)}
    names = np.unique(labels)
    targets: Targets = {}
    for label in names:
        members = torch.from_numpy(labels == label).to(torch.float64)
        mean = gradients.sum(members / members.sum() / len(names), dtype)
        if kind == "per-group":
            targets[label.item()] = mean
            continue
        length = length_of(mean) * len(names)
        total = targets.setdefault(None, {name: torch.zeros_like(part) for name, part in mean.items()})
        for name, part in mean.items():
            total[name] += part * (1 / length if length > 0 else 0.0)
    return targets
