"""Losses per sample, in the form that `per_sample_gradients` takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["causal_lm_loss", "packing_of", "reduced"]


def causal_lm_loss(model: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Next-token cross-entropy of a causal language model.

    Parameters
    ----------
    model : nn.Module
        Called with all of `batch` but ``labels``; returns logits (n, T, vocabulary), or has them as ``.logits``.
    batch : mapping
        ``labels`` (n, T): -100 is ignored; not yet shifted. One sample a row: packed rows are refused
        (``cu_seq_lens_q``, ``seq_idx``, or ``position_ids`` that begin anew where there is no ``attention_mask``).

    Returns
    -------
    losses : (n, T - 1) tensor
        Of each predicted token; 0 where it is ignored.
    mask : (n, T - 1) tensor of bool
        Which tokens count.
    """
    if sign := packing_of(batch):
        raise ValueError(f"batch: {sign} says that its rows are packed; per-sample gradients need packing=False")
    if "labels" not in batch:
        raise ValueError("batch: has no labels (n, T); use -100 for tokens that do not count")
    labels = batch["labels"][:, 1:]
    output = model(**{key: value for key, value in batch.items() if key != "labels"})
    logits, mask = getattr(output, "logits", output)[:, :-1], labels != -100
    if logits.shape[:2] != labels.shape:
        raise ValueError(
            f"model: gives logits for {logits.shape[1] + 1} positions of {labels.shape[1] + 1} labels; with virtual "
            "tokens (prompt tuning) or labels of a decoder a loss of your own has to line them up"
        )
    # Of the tokens that count alone: a vocabulary is wide, and half of a batch may be prompts and padding.
    counted = nn.functional.cross_entropy(logits[mask].float(), labels[mask], reduction="none")
    return counted.new_zeros(labels.shape).masked_scatter(mask, counted), mask


def packing_of(batch: Mapping[str, Any]) -> str | None:
    """The column that says that rows hold several samples, if one does."""
    for key in batch:
        if key.startswith("cu_seq_lens") or key == "seq_idx":
            return str(key)
    positions = batch.get("position_ids")
    if batch.get("attention_mask") is None and isinstance(positions, Tensor) and positions.ndim == 2:
        return "position_ids" if bool((positions[:, 1:] < positions[:, :-1]).any()) else None
    return None


def reduced(returned: Any, reduction: str) -> tuple[Tensor, Tensor | None]:
    """(n,) losses of what `compute_loss` returned, and how many tokens count, if it is of tokens."""
    losses, mask = returned if isinstance(returned, tuple) and len(returned) == 2 else (returned, None)
    if not isinstance(losses, Tensor):
        raise TypeError(f"compute_loss: expected a tensor (n,), or (n, T) with a mask, got {type(losses).__name__}")
    if losses.ndim == 0:
        raise ValueError("compute_loss: returned a scalar; return one loss per sample, (n,) (reduction='none')")
    if losses.ndim == 1 and mask is None:
        if reduction == "mean":
            raise ValueError("compute_loss: reduction='mean' needs (losses, mask) of tokens, (n, T), got (n,)")
        return losses, None
    if mask is None:
        if reduction != "sum":
            raise ValueError(f"compute_loss: reduction={reduction!r} needs (losses, mask), to know which tokens count")
        return losses.flatten(1).sum(1), None
    if mask.shape != losses.shape:
        raise ValueError(f"compute_loss: the mask has shape {tuple(mask.shape)}, the losses {tuple(losses.shape)}")
    losses = torch.where(mask.bool(), losses, losses.new_zeros(()))
    losses = losses.flatten(1) if losses.ndim > 1 else losses[:, None]
    tokens = mask.bool().reshape(len(losses), -1).sum(1)
    sums = losses.sum(1)
    return sums / tokens.clamp(min=1) if reduction == "mean" else sums, tokens.sum()
