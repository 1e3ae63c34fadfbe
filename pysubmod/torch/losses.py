"""Losses per sample, in the form that `per_sample_gradients` takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["causal_lm_loss", "reduced"]


def causal_lm_loss(model: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Next-token cross-entropy of a causal language model.

    Parameters
    ----------
    model : nn.Module
        Called with all of `batch` but ``labels``; returns logits (n, T, vocabulary), or has them as ``.logits``.
    batch : mapping
        ``labels`` (n, T): -100 is ignored; not yet shifted. One sample a row: packed rows (``cu_seq_lens_q``,
        ``seq_idx``) are refused, and those that only ``position_ids`` betray are the caller's to avoid.

    Returns
    -------
    losses : (n, T - 1) tensor
        Of each predicted token; 0 where it is ignored.
    mask : (n, T - 1) tensor of bool
        Which tokens count.
    """
    packed = [key for key in batch if key.startswith("cu_seq_lens") or key == "seq_idx"]
    if packed:
        raise ValueError(f"batch: {packed[0]} says that its rows are packed; per-sample gradients need packing=False")
    if "labels" not in batch:
        raise ValueError("batch: has no labels (n, T); use -100 for tokens that do not count")
    labels = batch["labels"][:, 1:]
    output = model(**{key: value for key, value in batch.items() if key != "labels"})
    logits, mask = getattr(output, "logits", output)[:, :-1], labels != -100
    # Of the tokens that count alone: a vocabulary is wide, and half of a batch may be prompts and padding.
    counted = nn.functional.cross_entropy(logits[mask].float(), labels[mask], reduction="none")
    return counted.new_zeros(labels.shape).masked_scatter(mask, counted), mask


def reduced(returned: Any, reduction: str) -> Tensor:
    """(n,) losses of what `compute_loss` returned."""
    losses, mask = returned if isinstance(returned, tuple) and len(returned) == 2 else (returned, None)
    if not isinstance(losses, Tensor):
        raise TypeError(f"compute_loss: expected a tensor (n,), or (n, T) with a mask, got {type(losses).__name__}")
    if losses.ndim == 0:
        raise ValueError("compute_loss: returned a scalar; return one loss per sample, (n,) (reduction='none')")
    if losses.ndim == 1 and mask is None:
        if reduction == "mean":
            raise ValueError("compute_loss: reduction='mean' needs (losses, mask) of tokens, (n, T), got (n,)")
        return losses
    if mask is None:
        if reduction == "mean":
            raise ValueError("compute_loss: reduction='mean' needs (losses, mask), to know which tokens count")
        total: Tensor = losses.flatten(1).sum(1)
        return total
    if mask.shape != losses.shape:
        raise ValueError(f"compute_loss: the mask has shape {tuple(mask.shape)}, the losses {tuple(losses.shape)}")
    losses = torch.where(mask.bool(), losses, losses.new_zeros(()))
    losses = losses.flatten(1) if losses.ndim > 1 else losses[:, None]
    sums: Tensor = losses.sum(1)
    return sums if reduction == "sum" else sums / mask.bool().reshape(len(losses), -1).sum(1).clamp(min=1)
