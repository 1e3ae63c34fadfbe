"""The step an optimizer is about to make, as a linear function of the gradient it will be given."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._validation import shown, type_name

__all__ = ["OptimizerView", "optimizer_view"]

_SUPPORTED = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)
_VARIANTS = ("torch", "frozen", "less")


@dataclass(frozen=True)
class OptimizerView:
    """One parameter p with gradient g is about to change by ``-lr * (a + D * g)``.

    Attributes
    ----------
    scale : dict
        D of every parameter, of its shape; elementwise. Negative under ``maximize``.
    offset : dict
        a of every parameter: momentum and weight decay, all that does not depend on g.
    lr : dict
        The learning rate of every parameter's group.
    variant : str
        As given to `optimizer_view`.
    """

    scale: dict[Hashable, Tensor]
    offset: dict[Hashable, Tensor]
    lr: dict[Hashable, float]
    variant: str

    def apply(self, matrix: Tensor, columns: Mapping[Any, slice]) -> Tensor:
        """Per-sample gradients as the updates they make: the rows ``D * g_i`` of Filter-then-Weight.

        Where the learning rates of `columns` differ, D is times ``lr / max(lr)``, so that all columns are in one unit:
        the change of the parameters over ``-max(lr)``. (With one rate that is D, even if it is 0 in a warm-up.)

        Parameters
        ----------
        matrix : (n, d) or (d,) tensor
            One gradient a row, unprojected: D has to come before any projection.
        columns : mapping of names (or parameters) to slices
            The columns of each parameter, flat as ``p.grad.flatten()``; together all columns, each once.

        Returns
        -------
        (n, d) or (d,) tensor
            New, in float32 or wider.
        """
        return matrix * self._flat(self.scale, columns, matrix)

    def target(self, update: Tensor, columns: Mapping[Any, slice]) -> Tensor:
        """What the samples have to add up to, ``u - a``, for the step to be a desired `update` u.

        Then ``c = <D g_i, u - a>`` and ``K = <D g_i, D g_j>`` (Filter-then-Weight, arXiv 2604.00001): rows of `apply`,
        matched to this target. The weights multiply gradients in the sum that the optimizer is given.

        Parameters
        ----------
        update : (d,) tensor
            u, over the same columns and in the unit of `apply`: ``-max(lr) * u`` is added to the parameters. The update
            that a validation gradient v alone would make is ``a + D v``; its target is ``apply(v, columns)``, directly.
        columns : mapping of names (or parameters) to slices
            As in `apply`.

        Returns
        -------
        (d,) tensor
        """
        if update.ndim != 1:
            raise ValueError(f"update: expected (d,); got {tuple(update.shape)}")
        return update - self._flat(self.offset, columns, update)

    def _flat(self, parts: dict[Hashable, Tensor], columns: Mapping[Any, slice], like: Tensor) -> Tensor:
        """The parts in the order of the columns, each times its relative learning rate."""
        d = like.shape[-1]
        unknown = [key for key in columns if key not in parts]
        if unknown:
            raise KeyError(f"columns: no parameter {shown(unknown[0])} in this view")
        largest = max((self.lr[key] for key in columns), default=0.0)
        spans = sorted(((*columns[key].indices(d), key) for key in columns), key=lambda span: span[:2])
        flat, end = [], 0
        for start, stop, step, key in spans:
            part = parts[key].reshape(-1)
            if start != end or step != 1 or stop - start != len(part):
                raise ValueError(
                    f"columns: {shown(columns[key])} of {shown(key)}: expected its {len(part)} numbers from column "
                    f"{end} on, without gaps or overlaps"
                )
            ratio = self.lr[key] / largest if largest > 0 else 1.0
            flat.append(part if ratio == 1.0 else part * ratio)
            end = stop
        if end != d:
            raise ValueError(f"columns: {end} of the {d} columns are spoken for")
        return torch.cat(flat)


@torch.no_grad()
def optimizer_view(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]] | None = None,
    variant: str = "torch",
    *,
    at: Mapping[Any, Tensor] | None = None,
) -> OptimizerView:
    """Read D and a of the next step, ``p += -lr * (a + D * g)``, off an optimizer; nothing of it is changed.

    SGD is linear, so this is exact: momentum, dampening, Nesterov's, weight decay. Adam and AdamW divide by the root of
    a second moment v that g itself enters; a view fixes that divisor. With ``m, v`` the state after t steps, ``bias = 1
    - beta^(t+1)`` and h = g (-g to maximize; plus the coupled decay of Adam)::

        D = (1 - beta1) / bias1 / divisor          a = beta1 m / bias1 / divisor  (+ the decays)
        "torch"    divisor = sqrt(v_next / bias2) + eps    v_next = beta2 v + (1 - beta2) h(at)^2
        "frozen"   divisor = sqrt(v / bias2) + eps
        "less"     divisor = sqrt(v_next + eps)            and bias1 = 1

    With "torch", ``-lr (a + D at)`` is precisely the step that torch makes for the gradient `at`. At 0, the default, D
    is also the derivative of that step (but for Adam's coupled decay, whose effect on v is left out). "frozen" takes v
    as it stands before this step. "less" is the released code of LESS (Xia et al. 2024, arXiv 2402.04333;
    ``obtain_gradients_with_adam``), where every sample has its own v_next; here one `at` stands for all.

    Where v is 0 (a parameter not yet stepped, a row of an embedding not yet seen, lora_A after the first step), D at 0
    is as large as ``1 / eps``: correct for vanishing gradients alone, and it drowns all other columns. Give `at`, such
    as the mean gradient of the pool, and use "torch".

    Parameters
    ----------
    optimizer : torch.optim.SGD, Adam or AdamW
        Or a wrapper with one in its attribute ``optimizer`` (accelerate's). Every flag is understood: amsgrad,
        maximize, foreach, fused, capturable; tensors as learning rate or betas.
    parameters : mapping or iterable of (name, parameter), optional
        Such as ``model.named_parameters()``. Frozen ones that the optimizer does not have are left out. Without it
        the view has all parameters of the optimizer, and its keys are the parameters themselves.
    variant : {"torch", "frozen", "less"}, default "torch"
        Of Adam and AdamW, as above.
    at : mapping of names (or parameters, without `parameters`) to tensors, optional
        The gradient for v_next; of a missing one, 0.

    Returns
    -------
    OptimizerView
        In float32, or float64 for parameters in float64.

    Raises
    ------
    TypeError
        For any other optimizer, its subclasses included: their step may be another one.
    ValueError
        For a parameter that the optimizer does not have, a complex one, and a divisor of 0 (v and eps are 0).
    """
    while type(optimizer) not in _SUPPORTED and isinstance(
        inner := getattr(optimizer, "optimizer", None), torch.optim.Optimizer
    ):
        optimizer = inner
    if type(optimizer) not in _SUPPORTED:
        names = ", ".join(kind.__name__ for kind in _SUPPORTED)
        raise TypeError(f"optimizer: expected torch.optim's own {names}; got {type_name(optimizer)}")
    adam = not isinstance(optimizer, torch.optim.SGD)
    if variant not in _VARIANTS:
        raise ValueError(f"variant: expected one of {', '.join(_VARIANTS)}; got {shown(variant)}")
    if not adam and (variant != "torch" or at):
        raise ValueError("variant, at: of Adam and AdamW only; the step of SGD is linear as it is")
    if variant == "frozen" and at:
        raise ValueError("at: has no effect with variant='frozen'")

    groups = {p: group for group in optimizer.param_groups for p in group["params"]}
    named: dict[Any, Tensor] = {p: p for p in groups} if parameters is None else dict(parameters)
    named = {name: p for name, p in named.items() if p in groups or p.requires_grad}
    strangers = [name for name, p in named.items() if p not in groups]
    if strangers:
        raise ValueError(f"parameters: {shown(strangers[0])} needs a gradient but is not in the optimizer")
    for name, gradient in (at or {}).items():
        if name not in named or gradient.shape != named[name].shape:
            raise ValueError(f"at: expected gradients of the view's parameters, of their shape; got {shown(name)}")

    scale, offset, lr = {}, {}, {}
    for name, p in named.items():
        if p.is_complex():
            raise ValueError(f"parameters: {shown(name)} is complex, which is not supported")
        state = optimizer.state.get(p, {})  # not [p], which would make an entry
        if adam:
            scale[name], offset[name] = _adam(p, groups[p], state, variant, (at or {}).get(name))
        else:
            scale[name], offset[name] = _sgd(p, groups[p], state)
        lr[name] = float(groups[p]["lr"])
        if adam and groups[p]["eps"] == 0 and not bool(torch.isfinite(scale[name]).all()):
            raise ValueError(f"{shown(name)}: with eps=0 the step divides by 0; give `at`, or an eps above 0")
    return OptimizerView(scale, offset, lr, variant)


def _wide(tensor: Tensor) -> Tensor:
    if hasattr(tensor, "full_tensor"):  # a shard of FSDP2's; every rank asks for the same views in the same order
        tensor = tensor.full_tensor()
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))


def _sgd(p: Tensor, group: dict[str, Any], state: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """As `torch.optim.sgd._single_tensor_sgd`: the first buffer is the gradient itself, undampened."""
    momentum, buffer = float(group["momentum"]), state.get("momentum_buffer")
    entering, kept = 1.0, 0.0  # how much of the gradient enters the step, and of the buffer
    if momentum != 0:
        entering = 1.0 if buffer is None else 1.0 - float(group["dampening"])
        kept = momentum
        if group["nesterov"]:
            entering, kept = 1.0 + momentum * entering, momentum * momentum
    p = _wide(p)
    offset = p * (entering * float(group["weight_decay"]))
    if momentum != 0 and buffer is not None:
        offset += kept * _wide(buffer)
    return torch.full_like(p, -entering if group["maximize"] else entering), offset


def _adam(
    p: Tensor, group: dict[str, Any], state: Mapping[str, Any], variant: str, at: Tensor | None
) -> tuple[Tensor, Tensor]:
    """As `torch.optim.adam._single_tensor_adam`, with v_next at a fixed gradient."""
    beta1, beta2 = (float(beta) for beta in group["betas"])
    eps, decay = float(group["eps"]), float(group["weight_decay"])
    sign = -1.0 if group["maximize"] else 1.0
    decoupled = bool(group.get("decoupled_weight_decay", False))
    step = float(state.get("step", 0)) + 1.0
    p = _wide(p)
    zero = torch.zeros_like(p)
    m = _wide(state.get("exp_avg", zero))
    v = _wide(state.get("exp_avg_sq", zero))
    added = zero if decoupled else decay * p  # what the coupled decay adds to every gradient

    if variant != "frozen":
        v = beta2 * v + (1.0 - beta2) * (added if at is None else sign * _wide(at) + added).square()
    if group["amsgrad"]:
        v = torch.maximum(v, _wide(state.get("max_exp_avg_sq", zero)))
    if variant == "less":
        rate = 1.0 / (v + eps).sqrt()
    else:
        rate = 1.0 / (((v / (1.0 - beta2**step)).sqrt() + eps) * (1.0 - beta1**step))
    offset = (beta1 * m + (1.0 - beta1) * added) * rate
    if decoupled:
        offset += decay * p
    return sign * (1.0 - beta1) * rate, offset
