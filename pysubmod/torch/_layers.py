"""Which modules are followed, and how the gradient of each of their parameters is put together."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ._blocks import Block, Formed, Lookup, Outer

__all__ = ["Layer", "Layers", "choose", "normalized_input", "unwrapped"]

Layers: TypeAlias = "str | Iterable[str] | Callable[[str, nn.Module], bool] | None"

CURE = "leave them out with layers= (names, patterns, or a predicate of name and module), or freeze them"


@dataclass(frozen=True, eq=False)
class Layer:
    """A module of a supported kind with trainable parameters of its own."""

    name: str
    module: nn.Module
    kind: str  # "linear", "embedding", "norm"
    parameters: dict[str, str]  # attribute -> name in the model
    shapes: dict[str, tuple[int, ...]]

    def blocks(self, deltas: Tensor, kept: Tensor | None) -> dict[str, Block]:
        """From the gradient of the output (n, ..., q) and what the hook has kept, the block of each parameter."""
        blocks: dict[str, Block] = {}
        n = deltas.shape[0]
        width = self.shapes.get("weight", self.shapes.get("bias", ()))
        deltas = deltas.reshape(n, -1, *(width if self.kind == "norm" else deltas.shape[-1:]))
        if "weight" in self.parameters:
            assert kept is not None
            weight = self.parameters["weight"], self.shapes["weight"]
            if self.kind == "linear":
                blocks[weight[0]] = Outer(*weight, deltas, kept.reshape(n, -1, kept.shape[-1]))
            elif self.kind == "embedding":
                padding: Any = self.module.padding_idx
                indices = kept.reshape(n, -1)
                if padding is not None:
                    deltas = deltas.masked_fill((indices == padding).unsqueeze(-1), 0.0)
                blocks[weight[0]] = Lookup(*weight, deltas, indices)
            else:
                blocks[weight[0]] = self._summed("weight", deltas, kept.reshape(deltas.shape))
        if "bias" in self.parameters:
            blocks[self.parameters["bias"]] = self._summed("bias", deltas, None)
        return blocks

    def zeros(self, n: int) -> dict[str, Block]:
        """The blocks of a layer that was not called: no tokens."""
        blocks: dict[str, Block] = {}
        for key, name in self.parameters.items():
            parameter, shape = self.module._parameters[key], self.shapes[key]
            assert parameter is not None
            empty = torch.zeros(n, 0, shape[-1], dtype=parameter.dtype, device=parameter.device)
            if key == "bias" or self.kind == "norm":
                values = torch.zeros(n, math.prod(shape), dtype=parameter.dtype, device=parameter.device)
                blocks[name] = Formed(name, shape, values)
            elif self.kind == "linear":
                blocks[name] = Outer(name, shape, empty.new_zeros(n, 0, shape[0]), empty)
            else:
                blocks[name] = Lookup(name, shape, empty, torch.zeros(n, 0, dtype=torch.int64, device=empty.device))
        return blocks

    def _summed(self, which: str, deltas: Tensor, factor: Tensor | None) -> Formed:
        dtype = torch.promote_types(deltas.dtype, torch.float32)
        values = deltas.to(dtype) if factor is None else deltas.to(dtype) * factor.to(dtype)
        return Formed(self.parameters[which], self.shapes[which], values.sum(1).flatten(1))


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside DDP and torch.compile: neither has to know of this forward pass."""
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(inside := getattr(model, "_orig_mod", None), nn.Module):
            model = inside
        else:
            return model


def kind_of(module: nn.Module) -> str | None:
    # By their forward: a subclass with one of its own may do anything (that of fully_shard has not).
    forward = type(module).forward
    if isinstance(module, nn.Linear) and forward is nn.Linear.forward:
        return "linear"
    if isinstance(module, nn.Embedding) and forward is nn.Embedding.forward:
        return "embedding"
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        return "norm"
    own = {key: value for key, value in module._parameters.items() if value is not None}
    like = any(word in type(module).__name__.lower() for word in ("rmsnorm", "layernorm"))
    return "norm" if like and set(own) <= {"weight", "bias"} and all(p.ndim == 1 for p in own.values()) else None


def choose(model: nn.Module, layers: Layers) -> list[Layer]:
    """The layers to follow, in the order of the model's modules."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    modules = list(model.named_modules())
    wanted = _predicate(layers, [name for name, _ in modules])
    chosen, unsupported = [], []
    for name, module in modules:
        if "FullyShardedDataParallel" in {kind.__name__ for kind in type(module).__mro__}:
            raise ValueError("model: FSDP1 flattens its parameters; use FSDP2 (torch.distributed.fsdp.fully_shard)")
        own = {key: p for key, p in module._parameters.items() if p is not None and p.requires_grad}
        if not own or not wanted(name, module):
            continue
        if any(hasattr(parameter, "ds_id") for parameter in own.values()):
            raise ValueError(f"model: {name} has parameters partitioned by DeepSpeed ZeRO-3; use ZeRO-2, DDP or FSDP2")
        kind = kind_of(module)
        if kind is None:
            unsupported += [f"{names[id(p)]} ({type(module).__name__})" for p in own.values()]
            continue
        if isinstance(module, nn.Embedding) and (module.max_norm is not None or module.scale_grad_by_freq):
            option = "scale_grad_by_freq" if module.max_norm is None else "max_norm"
            raise ValueError(f"layers: {name} is an Embedding with {option}, which no single sample decides; {CURE}")
        if getattr(module, "_compiled_call_impl", None) is not None:
            raise ValueError(f"model: {name} was compiled in place and cannot be followed; use torch.compile(model)")
        shapes = {key: tuple(parameter.shape) for key, parameter in own.items()}
        chosen.append(Layer(name, module, kind, {key: names[id(p)] for key, p in own.items()}, shapes))
    if unsupported:
        raise ValueError(
            f"layers: only Linear, Embedding, LayerNorm and RMSNorm can be followed, not {_listed(unsupported)}; {CURE}"
        )
    if not chosen:
        raise ValueError("layers: no module among the chosen has a parameter that requires a gradient")
    _check_tied(chosen)
    return chosen


def _check_tied(chosen: list[Layer]) -> None:
    kinds: dict[str, Layer] = {}
    for layer in chosen:
        for name in layer.parameters.values():
            other = kinds.setdefault(name, layer)
            if other.kind != layer.kind:
                raise ValueError(
                    f"layers: {name} is tied between {other.name} ({other.kind}) and {layer.name} ({layer.kind}), "
                    "which cannot be followed together; leave both out with layers=, freeze it, or untie it"
                )


def _listed(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _predicate(layers: Layers, names: list[str]) -> Callable[[str, nn.Module], bool]:
    if layers is None:
        return lambda name, module: True
    if callable(layers):
        return layers
    if not isinstance(layers, Iterable):
        raise TypeError(f"layers: expected names, a predicate or None, got {type(layers).__name__}")
    patterns = [layers] if isinstance(layers, str) else list(layers)
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TypeError(f"layers: expected names or patterns of modules, got {type(pattern).__name__}")
        if not any(fnmatchcase(name, pattern) for name in names):
            near = difflib.get_close_matches(pattern, names, 3, 0.4)
            hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else "; see model.named_modules()"
            raise ValueError(f"layers: no module is called {pattern!r}{hint}")

    def wanted(name: str, module: nn.Module) -> bool:
        parts = name.split(".")
        above = [".".join(parts[:count]) for count in range(1, len(parts) + 1)]
        return any(fnmatchcase(place, pattern) for place in above for pattern in patterns)

    return wanted


def normalized_input(layer: Layer, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor) -> Tensor:
    """What a norm multiplies its weight with: the difference between its output at weight 1 and at weight 0.

    That is so for ``weight * x`` and for ``(1 + weight) * x``.
    """
    module = layer.module
    own = {key: value.detach() for key, value in module._parameters.items() if value is not None}
    with torch.no_grad():
        zero = _norm_with(module, {key: torch.zeros_like(value) for key, value in own.items()}, args, kwargs)
        ones = {key: torch.full_like(value, key == "weight") for key, value in own.items()}
        factor = _norm_with(module, ones, args, kwargs) - zero
        if not isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
            expected = zero + factor * own["weight"] + own.get("bias", 0.0)
            tolerance = 8 * torch.finfo(output.dtype).eps
            if not torch.allclose(expected.to(output.dtype), output, rtol=tolerance, atol=10 * tolerance):
                raise ValueError(
                    f"layers: {layer.name} ({type(module).__name__}) does not multiply by its weight alone; {CURE}"
                )
    return factor


def _norm_with(module: nn.Module, parameters: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    # Not by copy.copy, which fully_shard redefines; the module itself must not change.
    twin = object.__new__(type(module))
    twin.__dict__ = {**module.__dict__, "_parameters": parameters}
    result: Tensor = type(module).forward(twin, *args, **kwargs)
    return result
