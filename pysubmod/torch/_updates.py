"""The products of updates instead of gradients (Filter-then-Weight, arXiv 2604.00001)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .optimizer_view import OptimizerView
from .per_sample import PerSampleGradients

__all__ = ["update_products"]


def update_products(
    pool: PerSampleGradients,
    gradients: Sequence[Mapping[str, Tensor]],
    view: OptimizerView,
    *,
    momentum: str,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, list[float]]:
    """``K = <D g_i, D g_j>``, ``<D g_i, u - a>`` for each of m gradients v (n, m), and the lengths of these ``u - a``.

    In the unit of `OptimizerView.apply`, parameter by parameter. With `momentum` "kept" ``u = a + D v`` is the step
    that the gradient v alone would make, so that ``u - a = D v``; with "corrected" ``u = D v``, and the picks also have
    to undo a (of m gradients, which are parts of one, a part of it each).
    """
    n, m, device = pool.n, len(gradients), pool.device
    largest = max(view.lr[name] for name in pool.shapes)
    K = torch.zeros(n, n, dtype=torch.float64, device=device)
    scores = torch.zeros(n, m, dtype=torch.float64, device=device)
    squares = torch.zeros(m, dtype=torch.float64, device=device)
    rows_scale = torch.ones(n, dtype=dtype, device=device) if pool._scale is None else pool._scale.to(dtype)
    for name, block in pool._blocks.items():
        ratio = view.lr[name] / largest if largest > 0 else 1.0
        scale = (view.scale[name].to(dtype) * ratio).reshape(block.shape[0], -1)
        given = torch.stack([gradient[name].to(block.device, dtype) for gradient in gradients])
        targets = given.reshape(m, block.shape[0], -1) * scale
        if momentum == "corrected":
            targets = targets - (view.offset[name].to(dtype) * ratio / m).reshape(block.shape[0], -1)
        for rows in block.chunks(n):  # the gradients are formed: an elementwise D leaves no factors
            part = block.part(rows, dtype) * scale[rows].flatten() * rows_scale.to(block.device)[:, None]
            K += (part @ part.T).to(device)
            scores += (part @ targets[:, rows].flatten(1).T).to(device)
        squares += targets.to(torch.float64).square().sum((1, 2)).to(device)
    return (K + K.T) / 2, scores, squares.sqrt().tolist()
