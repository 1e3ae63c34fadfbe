"""The gradient of each sample of a batch, for chosen layers, beside a training loop that goes on as it was."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .._validation import as_choice
from ..problem import GradientMatching
from ._blocks import Block
from ._capture import batch_parts, capture, check_passes, undisturbed
from ._layers import Layers, choose, unwrapped
from ._products import concatenate, inner
from .losses import reduced

__all__ = ["PerSampleGradients", "gradient_matching", "per_sample_gradients"]


class PerSampleGradients:
    """The gradients g_i of n samples, in the smallest form that each parameter allows.

    `per_sample_gradients` makes them. All products are accumulated parameter by parameter in float64; only `matrix`
    makes an (n, d) array. `dtype`, where a method takes it, is the type in which products are made: with float32 those
    of one block of columns are rounded to float32, which is faster on most GPUs.

    Attributes
    ----------
    losses : (n,) tensor
        The loss of each sample.
    shapes : dict of str to tuple of int
        The shape of each parameter, in the order of ``model.named_parameters()``; the tied ones once.
    divisor : float
        What losses and gradients were divided by: the mean number of tokens with ``reduction="token-mean"``, else 1.
    """

    def __init__(
        self, blocks: Mapping[str, Block], losses: Tensor, scale: Tensor | None = None, divisor: float = 1.0
    ) -> None:
        self._blocks, self.divisor = dict(blocks), divisor
        self._scale = scale  # (n,) float64: what rows are multiplied with
        self.losses = losses
        self.shapes = {name: block.shape for name, block in self._blocks.items()}

    @property
    def n(self) -> int:
        """Number of samples."""
        return len(self.losses)

    @property
    def d(self) -> int:
        """Length of a gradient."""
        return sum(block.size for block in self._blocks.values())

    @property
    def nbytes(self) -> int:
        """Memory of what is kept."""
        return sum(t.nbytes for block in self._blocks.values() for t in block.tensors)

    @property
    def device(self) -> torch.device:
        """Where results are: the device of the first parameter."""
        return next(iter(self._blocks.values())).device

    @property
    def columns(self) -> dict[str, slice]:
        """Which columns of `matrix` belong to which parameter."""
        columns, first = {}, 0
        for name, block in self._blocks.items():
            columns[name] = slice(first, first + block.size)
            first += block.size
        return columns

    def gram(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """``K = G G'``, (n, n) float64, symmetric to the bit."""
        return self.inner(self, dtype)

    def inner(self, other: PerSampleGradients, dtype: torch.dtype = torch.float64) -> Tensor:
        """``<g_i, h_j>`` with the gradients of another batch, (n, m) float64."""
        self._check_same(other.shapes)
        total = torch.zeros(self.n, other.n, dtype=torch.float64, device=self.device)
        for name, block in self._blocks.items():
            total += inner(block, other._blocks[name], dtype).to(self.device)
        if self._scale is not None:
            total *= self._scale[:, None]
        if other._scale is not None:
            total *= other._scale
        if other is self and self._scale is not None:
            total = torch.triu(total) + torch.triu(total, 1).T
        return total

    def dot(self, gradient: Mapping[str, Tensor], dtype: torch.dtype = torch.float64) -> Tensor:
        """``<g_i, t>`` with one gradient, given by parameter as `mean` gives it; (n,) float64."""
        self._check_same({name: tuple(tensor.shape) for name, tensor in gradient.items()})
        total = torch.zeros(self.n, dtype=torch.float64, device=self.device)
        for name, block in self._blocks.items():
            total += block.dot(gradient[name].to(block.device), dtype).to(self.device)
        return self._scaled(total)

    def norms(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """``||g_i||``, (n,) float64."""
        total = torch.zeros(self.n, dtype=torch.float64, device=self.device)
        for block in self._blocks.values():
            total += block.squares(dtype).to(self.device)
        return self._scaled(total.clamp(min=0.0).sqrt())

    def sum(self, weights: Any = None, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        """``sum_i weights_i g_i`` by parameter, each of the parameter's shape; the plain sum without weights."""
        return {name: block.weighted_sum(w, dtype) for name, block, w in self._with_weights(weights)}

    def mean(self, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        """``1/n sum_i g_i`` by parameter."""
        return self.sum(torch.full((self.n,), 1 / max(self.n, 1), dtype=torch.float64), dtype)

    def matrix(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """G itself, (n, d), a row per sample; `columns` says whose its columns are."""
        matrix = torch.empty(self.n, self.d, dtype=dtype, device=self.device)
        for columns, block in zip(self.columns.values(), self._blocks.values(), strict=True):
            made = torch.promote_types(dtype, torch.float32)
            part = block.part(slice(0, block.shape[0]), made).to(self.device)
            matrix[:, columns] = part if self._scale is None else part * self._scale[:, None].to(made)
        return matrix

    def normalized(self) -> PerSampleGradients:
        """The same with rows of length 1 over all parameters together; a row of zeros stays one."""
        norms = self.norms()
        scale = torch.where(norms > 0, 1 / norms, torch.zeros_like(norms))
        scale = scale if self._scale is None else scale * self._scale
        return PerSampleGradients(self._blocks, self.losses, scale, self.divisor)

    def divided(self, divisor: float) -> PerSampleGradients:
        """Losses and gradients over a positive number, which `divisor` keeps."""
        scale = torch.full_like(self.losses, 1 / divisor, dtype=torch.float64)
        scale = scale if self._scale is None else scale * self._scale
        return PerSampleGradients(self._blocks, self.losses / divisor, scale, self.divisor * divisor)

    @classmethod
    def concatenate(cls, parts: Sequence[PerSampleGradients]) -> PerSampleGradients:
        """The samples of all parts, in order; sequences may differ in length."""
        first = parts[0]
        for part in parts[1:]:
            first._check_same(part.shapes)
            if part.divisor != first.divisor:
                raise ValueError(
                    "parts: each has a divisor of its own with reduction='token-mean'; use 'sum' or 'mean'"
                )
        blocks = {name: concatenate([part._blocks[name] for part in parts]) for name in first._blocks}
        scale = None
        if any(part._scale is not None for part in parts):
            scale = torch.cat([part._scaled(torch.ones_like(part.losses, dtype=torch.float64)) for part in parts])
        return cls(blocks, torch.cat([part.losses for part in parts]), scale, first.divisor)

    def _scaled(self, values: Tensor) -> Tensor:
        return values if self._scale is None else values * self._scale.to(values.device)

    def _with_weights(self, weights: Any) -> list[tuple[str, Block, Tensor]]:
        factors = torch.ones(self.n) if weights is None else weights
        factors = factors if isinstance(factors, Tensor) else torch.tensor(factors, dtype=torch.float64)
        if tuple(factors.shape) != (self.n,):
            raise ValueError(f"weights: expected shape ({self.n},), one per sample, got {tuple(factors.shape)}")
        factors = self._scaled(factors.to(self.device, torch.float64))
        return [(name, block, factors.to(block.device)) for name, block in self._blocks.items()]

    def _check_same(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        if dict(shapes) == self.shapes:
            return
        differing = sorted(name for name in {*shapes, *self.shapes} if shapes.get(name) != self.shapes.get(name))
        raise ValueError(
            f"other: its parameters differ from these, first in {differing[0]}; capture both with the same layers="
        )

    def __repr__(self) -> str:
        return f"PerSampleGradients(n={self.n}, d={self.d}, parameters={len(self.shapes)}, nbytes={self.nbytes})"


def per_sample_gradients(
    model: nn.Module,
    compute_loss: Callable[[Any, Any], Any],
    batch: Any,
    *,
    layers: Layers = None,
    micro_batch: int | None = None,
    reduction: str = "sum",
    eval_mode: bool = False,
    loss_scale: float = 1.0,
    check: bool | None = None,
) -> PerSampleGradients:
    """The gradient of each sample's loss, from one forward and one backward pass over the batch.

    Nothing is written to ``.grad``, the optimizer, buffers, train modes or torch's random states. Equal to a backward
    pass for each sample alone up to rounding, with dropout for the masks drawn in this pass.

    Parameters
    ----------
    model : nn.Module
        Also inside DDP or ``torch.compile`` (then the module inside is run), under FSDP2, or with non-reentrant
        checkpointing. FSDP1, ZeRO-3 and reentrant checkpointing are refused.
    compute_loss : callable
        ``compute_loss(model, batch)`` returns the losses, never averaged over the batch: (n,) per sample, or (n, T) per
        token, or ``(losses, mask)``, both (n, T). Must call the model that it is given. `causal_lm_loss` is one.
    batch : tensor, or mapping, tuple or list of tensors
        What `compute_loss` takes. One sample a row: of packed sequences each row is one sample.
    layers : str, iterable of str, callable, or None
        Names of modules (which include all below them) or patterns (``"*q_proj*"``), or a predicate of name and module.
        Of these the modules with trainable parameters of their own are followed: Linear (LoRA's too), Embedding,
        LayerNorm, RMSNorm. None: all parameters that are trainable.
    micro_batch : int, optional
        Samples in one pass; bounds the memory of the passes, not of the result.
    reduction : {"sum", "mean", "token-mean"}
        Of the losses of a sample's tokens. "mean" needs a mask; a sample without tokens has loss 0. "token-mean": the
        sum over the batch's mean number of tokens in a sample, so that the mean over samples is the mean over all
        tokens, which trainers minimise; it needs a mask, too, and leaves losses (n,) as they are.
    eval_mode : bool
        Run the passes in eval mode (no dropout, running statistics), and put the modes back.
    loss_scale : float
        The loss is multiplied with it before the backward pass and gradients divided after, for float16.
    check : bool, optional
        Verify that samples do not depend on each other, by a second backward pass. None: only where an Embedding's
        indices (n,) could be positions that all samples share. Worth one call with True for each new model.

    Returns
    -------
    PerSampleGradients

    Raises
    ------
    TypeError, ValueError
        Naming the argument: parameters of other modules among the chosen, layers without gradients, tied parameters of
        different kinds, parameters that the loss uses directly (fused losses), BatchNorm in train mode.
    RuntimeError
        The forward pass has changed a buffer, or a kept input in place.

    Notes
    -----
    For the hooks see Goodfellow, "Efficient per-example gradient computations", 2015; for products without forming
    the gradients, Wang et al. (GREATS), NeurIPS 2024.

    Examples
    --------
    >>> import torch
    >>> from pysubmod.torch import per_sample_gradients
    >>> model = torch.nn.Linear(3, 1)
    >>> x, y = torch.ones(2, 3), torch.zeros(2, 1)
    >>> def loss(model, batch):
    ...     return (model(batch[0]) - batch[1]).square().sum(1)
    >>> per_sample_gradients(model, loss, (x, y)).gram().shape
    torch.Size([2, 2])
    """
    as_choice("reduction", reduction, ("sum", "mean", "token-mean"))
    if not (isinstance(loss_scale, (int, float)) and math.isfinite(loss_scale) and loss_scale > 0):
        raise ValueError(f"loss_scale: expected a positive number, got {loss_scale!r}")
    module = unwrapped(model)
    chosen = choose(module, layers)
    followed = {name for layer in chosen for name in layer.parameters.values()}
    order = [name for name, _ in module.named_parameters() if name in followed]
    parts = batch_parts(batch, micro_batch)
    if micro_batch is not None:
        check_passes(module, len(parts))
    results, tokens = [], []

    def losses_of(part: Any) -> Tensor:
        losses, counted = reduced(compute_loss(module, part), reduction)
        if counted is not None:
            tokens.append(counted)
        return losses

    with undisturbed(module, eval_mode):
        for part in parts:
            losses, found = capture(module, chosen, partial(losses_of, part), loss_scale, check)
            results.append(PerSampleGradients({name: found[name] for name in order}, losses))
    result = PerSampleGradients.concatenate(results)
    if reduction == "token-mean" and tokens:
        result = result.divided(max(float(sum(tokens)) / result.n, 1.0))
    return result


def gradient_matching(
    train: PerSampleGradients,
    validation: PerSampleGradients | Mapping[str, Tensor],
    *,
    unit_norm: bool = False,
    ridge: float = 0.0,
    nonneg: bool = True,
    tilt: float = 0.0,
    dtype: torch.dtype = torch.float64,
) -> GradientMatching:
    """The problem of matching the mean validation gradient by a weighted sum of training gradients.

    Parameters
    ----------
    train : PerSampleGradients
        The candidates, n of them.
    validation : PerSampleGradients, or mapping of str to tensor
        Its mean is the target t (made in `dtype`, one parameter at a time); or the target itself, by parameter.
    unit_norm : bool
        Scale the candidates to length 1. The target is left as it is; ``validation.normalized()`` balances its samples.
    ridge, nonneg, tilt
        Those of `GradientMatching`.
    dtype : torch.dtype, float64 or float32
        In which products are made, and of K: the solver's tolerances are those of its type.

    Returns
    -------
    GradientMatching
        Of ``K = G G'``, ``c = G t`` and ``||t||``; on CUDA its arrays stay there.
    """
    if dtype not in (torch.float64, torch.float32):
        raise ValueError(f"dtype: expected torch.float64 or torch.float32, got {dtype}")
    if unit_norm:
        train = train.normalized()
    K = train.gram(dtype)
    c = torch.zeros(train.n, dtype=torch.float64, device=train.device)
    square = torch.zeros((), dtype=torch.float64, device=train.device)
    targets: Any = validation
    if isinstance(validation, PerSampleGradients):
        train._check_same(validation.shapes)
        share = torch.full((validation.n,), 1 / validation.n, dtype=torch.float64)
        weighted = validation._with_weights(share)
        targets = ((name, block.weighted_sum(weights, dtype)) for name, block, weights in weighted)
    else:
        train._check_same({name: tuple(tensor.shape) for name, tensor in validation.items()})
        targets = validation.items()
    for name, target in targets:
        block = train._blocks[name]
        c += block.dot(target.to(block.device), dtype).to(train.device)
        square += target.to(torch.float64).square().sum().to(train.device)
    return GradientMatching.from_gram(
        K.to(dtype), train._scaled(c), ridge=ridge, nonneg=nonneg, tilt=tilt, target_norm=float(square.sqrt())
    )
