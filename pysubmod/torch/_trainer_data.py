"""What goes in and out of a trainer whose batches are selected: labels, anchors, padding and metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._random import random_bits
from .._validation import as_groups, type_name
from ._targets import anchor_rows

__all__ = ["Anchors", "GroupCollator", "metrics_of", "trimmed"]


class Anchors:
    """Validation rows, drawn and collated anew for each target."""

    def __init__(self, dataset: Any, collator: Callable[[list[Any]], Any], trainer: Any, seed: int) -> None:
        config = trainer._selection
        if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__") and len(dataset)):
            raise TypeError(
                "validation: expected a dataset with rows like train_dataset's and a length, or a function of the step "
                f"that gives a batch; got {type_name(dataset)}"
            )
        self._dataset, self._collator, self._trainer, self._count = dataset, collator, trainer, config.anchors
        self._seed = seed
        self._grouped = config.target != "mean"
        column: list[Any] = [0] * len(dataset)
        if self._grouped:
            named = config.group_column in (getattr(dataset, "column_names", None) or ())
            rows = dataset[config.group_column] if named else (dataset[i] for i in range(len(dataset)))
            column = list(rows) if named else [label_of(row, config.group_column, "validation") for row in rows]
        self._labels = as_groups(column, len(column), "validation")

    def __call__(self, step: int) -> Any:
        seed = int(random_bits(self._seed, step)) & (2**63 - 1)
        rows = anchor_rows(self._labels, self._count, self._grouped, seed)
        with torch.random.fork_rng([]):  # of collators that draw, for masks of words
            torch.default_generator.manual_seed(seed)
            return self._trainer._prepare_inputs(self._collator([self._dataset[i] for i in rows]))


def label_of(row: Any, column: str, what: str) -> Any:
    if isinstance(row, Mapping) and column in row:
        return row[column].item() if hasattr(row[column], "item") else row[column]
    has = f"it has {', '.join(map(repr, row))}" if isinstance(row, Mapping) else f"it is {type_name(row)}"
    raise ValueError(f"group_column: a row of {what} has no column {column!r}; {has}")


class GroupCollator:
    """A collator that carries the rows' labels past the one inside, or drops them where nobody asks for them."""

    def __init__(self, inside: Callable[[list[Any]], Any], column: str, labelled: bool, shared: bool) -> None:
        self._inside, self._column, self._labelled = inside, column, labelled
        self._shared = shared  # the model takes this column as well

    def __call__(self, rows: list[Any]) -> Any:
        labels = [label_of(row, self._column, "train_dataset") for row in rows] if self._labelled else []
        batch = self._inside([{key: row[key] for key in row if key != self._column or self._shared} for row in rows])
        if self._labelled:
            batch[self._column] = labels
        return batch


def trimmed(batch: dict[str, Any], multiple: int) -> dict[str, Any]:
    """Without the columns of padding that no row needs any more, on either side."""
    mask = batch.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.ndim != 2:
        return batch
    needed, labels = mask.bool(), batch.get("labels")
    if isinstance(labels, Tensor) and labels.shape == mask.shape:  # of a decoder they have a padding of their own
        needed = needed | labels.ne(-100)
    used = needed.any(0).nonzero().flatten()
    if not len(used):
        return batch
    first, last = int(used[0]), int(used[-1]) + 1
    wanted = min(mask.shape[1], -(-(last - first) // multiple) * multiple)
    last = min(first + wanted, mask.shape[1])
    first = last - wanted
    return {
        key: value[:, first:last].contiguous() if isinstance(value, Tensor) and value.shape[:2] == mask.shape else value
        for key, value in batch.items()
    }


def metrics_of(records: Sequence[dict[str, Any]], labels: Iterable[Any]) -> dict[str, float]:
    """Means over selections, under the names that are logged."""
    names = {
        "relative_residual": "relative_residual", "cosine": "cosine", "conflicts": "conflicts",
        "certified_share": "share", "seconds_select": "seconds", "seconds_capture": "capture_seconds",
        "seconds_certify": "certify_seconds", "staleness": "staleness",
    }  # fmt: skip
    metrics = {}
    for key, name in names.items():
        values = [record[key] for record in records if record.get(key) is not None]
        if values:
            metrics[f"selection/{name}"] = float(np.mean(values))
    for label in sorted(labels, key=str):
        metrics[f"selection/picks/{label}"] = float(np.mean([record["counts"].get(label, 0) for record in records]))
    return metrics
