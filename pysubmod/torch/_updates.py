"""The matching problem of updates instead of gradients (Filter-then-Weight, arXiv 2604.00001)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..problem import GradientMatching
from .optimizer_view import OptimizerView
from .per_sample import PerSampleGradients

__all__ = ["update_matching"]


def update_matching(
    pool: PerSampleGradients,
    gradient: Mapping[str, Tensor],
    view: OptimizerView,
    *,
    momentum: str,
    ridge: float,
    dtype: torch.dtype,
) -> GradientMatching:
    """``K = <D g_i, D g_j>`` and ``c = <D g_i, u - a>``, parameter by parameter; in the unit of `OptimizerView.apply`.

    With `momentum` "kept" ``u = a + D v`` is the step that the gradient v alone would make, so that ``u - a = D v``;
    with "corrected" ``u = D v``, and the picks also have to undo a.
    """
    n, device = pool.n, pool.device
    largest = max(view.lr[name] for name in pool.shapes)
    K = torch.zeros(n, n, dtype=torch.float64, device=device)
    c = torch.zeros(n, dtype=torch.float64, device=device)
    square = torch.zeros((), dtype=torch.float64, device=device)
    for name, block in pool._blocks.items():
        ratio = view.lr[name] / largest if largest > 0 else 1.0
        scale = (view.scale[name].to(dtype) * ratio).reshape(block.shape[0], -1)
        target = gradient[name].to(block.device, dtype).reshape(block.shape[0], -1) * scale
        if momentum == "corrected":
            target = target - (view.offset[name].to(dtype) * ratio).reshape(block.shape[0], -1)
        for rows in block.chunks(n):  # the gradients are formed: an elementwise D leaves no factors
            part = block.part(rows, dtype) * scale[rows].flatten()
            K += (part @ part.T).to(device)
            c += (part @ target[rows].flatten()).to(device)
        square += target.to(torch.float64).square().sum().to(device)
    K = (K + K.T) / 2
    return GradientMatching.from_gram(K.to(dtype), c, ridge=ridge, target_norm=float(square.sqrt()))
