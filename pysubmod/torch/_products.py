"""Products of two blocks of the same parameter, and one block made of several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ._blocks import Block, Factors, Formed, Lookup, Outer

__all__ = ["concatenate", "inner", "join_calls"]


def inner(x: Block, y: Block, dtype: torch.dtype) -> Tensor:
    """``<x_i, y_j>``, (n, m) float64; by pairs of tokens or by gradients formed in parts, whichever is cheaper."""
    by_pairs = False
    if isinstance(x, Factors) and isinstance(y, Factors):
        by_pairs = x.cost_of_pairs(y) < x.cost_of_parts(y)
    total = _by_pairs(x, y, dtype) if by_pairs else _by_parts(x, y, dtype)
    return torch.triu(total) + torch.triu(total, 1).T if x is y else total


def _by_pairs(x: Any, y: Any, dtype: torch.dtype) -> Tensor:
    """Where x is y, the lower triangle is left incomplete."""
    total = torch.zeros(x.n, y.n, dtype=torch.float64, device=x.device)
    for i, t in x.tiles():
        left = x.tile(i, t, dtype)
        for j, u in y.tiles():
            if x is y and j.start < i.start:
                continue
            products = x.products(left, y.tile(j, u, dtype))
            shape = (i.stop - i.start, t.stop - t.start, j.stop - j.start, u.stop - u.start)
            total[i, j] += products.view(shape).sum((1, 3), dtype=torch.float64)
    return total


def _by_parts(x: Block, y: Block, dtype: torch.dtype) -> Tensor:
    same = x is y
    total = torch.zeros(x.n, y.n, dtype=torch.float64, device=x.device)
    if isinstance(x, Lookup) and isinstance(y, Lookup):
        x, y = _with_used_rows(x, y)
    for rows in x.chunks(max(x.n, y.n)):
        left = x.part(rows, dtype)
        total += left @ (left if same else y.part(rows, dtype)).T
    return total


def _with_used_rows(x: Lookup, y: Lookup) -> tuple[Lookup, Lookup]:
    """The same products, on an Embedding that has only the rows that occur."""
    occurring = torch.cat([x.indices.flatten(), y.indices.flatten()])
    used, places = torch.unique(occurring, return_inverse=True)
    shape = (len(used), x.width)
    mine, others = places.split([x.indices.numel(), y.indices.numel()])
    return (
        replace(x, shape=shape, indices=mine.view_as(x.indices)),
        replace(y, shape=shape, indices=others.view_as(y.indices)),
    )


def join_calls(blocks: Sequence[Any]) -> Any:
    """The gradient of a parameter that was used several times: its sum over all uses."""
    first = blocks[0]
    if len(blocks) == 1:
        return first
    if isinstance(first, Formed):
        return replace(first, values=torch.stack([block.values for block in blocks]).sum(0))
    other = "inputs" if isinstance(first, Outer) else "indices"
    return replace(first, **{key: torch.cat([getattr(b, key) for b in blocks], 1) for key in ("deltas", other)})


def concatenate(blocks: Sequence[Any]) -> Any:
    """The samples of all blocks in one; shorter sequences get tokens with a zero delta."""
    first = blocks[0]
    if len(blocks) == 1:
        return first
    if any(isinstance(block, Formed) for block in blocks):
        values = [block.values if isinstance(block, Formed) else block.form().values for block in blocks]
        return Formed(first.name, first.shape, torch.cat(values))
    longest = max(block.tokens for block in blocks)
    other = "inputs" if isinstance(first, Outer) else "indices"
    fields = {key: torch.cat([_padded(getattr(b, key), longest) for b in blocks]) for key in ("deltas", other)}
    return replace(first, **fields)


def _padded(tensor: Tensor, tokens: int) -> Tensor:
    if tensor.shape[1] == tokens:
        return tensor
    padding = tensor.new_zeros(tensor.shape[0], tokens - tensor.shape[1], *tensor.shape[2:])
    return torch.cat([tensor, padding], 1)
