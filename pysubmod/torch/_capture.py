"""One forward and backward pass in which the chosen layers are watched, and nothing else is touched.

Forward hooks keep a layer's input and the *edge* of its output in autograd's graph, so that what is done to the output
in place afterwards does not matter; gradients are asked for at those edges, so that no parameter accumulates any.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from ._blocks import Block, Outer
from ._layers import CURE, Layer, normalized_input
from ._products import join_calls

__all__ = ["batch_parts", "capture", "check_passes", "undisturbed"]


@dataclass(eq=False)
class Call:
    """One call of a layer in the forward pass."""

    layer: Layer
    edge: GradientEdge
    output: tuple[torch.Size, torch.dtype, torch.device]
    kept: Tensor | None
    version: int
    leaves: dict[str, Node]  # the parameters as they were then (fully_shard exchanges them)
    gradient: Tensor | None = None


class Watch:
    """The hooks, and what they have seen."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.calls: list[Call] = []
        self.without_gradient: set[str] = set()
        # In front of the hooks of others: these may change the output, or exchange the parameters.
        self._handles = [
            layer.module.register_forward_hook(self._hook(layer), prepend=True, with_kwargs=True) for layer in layers
        ]

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _hook(self, layer: Layer) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            if not output.requires_grad:
                self.without_gradient.add(layer.name)
                return
            kept = None
            if "weight" in layer.parameters:
                given = args[0] if args else next(iter(kwargs.values()))
                # What has no history may be the caller's batch, whose memory he may use again.
                kept = given.detach() if given.requires_grad else given.clone()
                if layer.kind == "norm":
                    kept = normalized_input(layer, args, kwargs, output.detach())
                elif layer.kind == "linear":
                    kept = kept.to(output.dtype)  # what autocast has multiplied
            leaves = {}
            for key, name in layer.parameters.items():
                parameter = module._parameters[key]
                assert parameter is not None
                leaves[name] = get_gradient_edge(parameter).node
            seen = output.shape, output.dtype, output.device
            version = 0 if kept is None else kept._version
            self.calls.append(Call(layer, _edge_of(output), seen, kept, version, leaves))

        return hook


def _edge_of(output: Tensor) -> GradientEdge:
    # A Linear's output may be a view: what changes it in place then leads the graph past it, to what it is a view of.
    base = output._base
    if base is not None and base.numel() == output.numel() and base.is_contiguous() and output.is_contiguous():
        return get_gradient_edge(base)
    return get_gradient_edge(output)


def capture(
    model: nn.Module,
    layers: Sequence[Layer],
    losses_of: Callable[[], Tensor],
    loss_scale: float,
    check: bool | None,
) -> tuple[Tensor, dict[str, Block]]:
    """The losses (n,) of one batch and the blocks of all parameters, by name."""
    buffers = {name: (buffer, buffer._version) for name, buffer in model.named_buffers()}
    with Watch(layers) as watch:
        losses = losses_of()
    for name, (buffer, version) in buffers.items():
        if buffer._version != version:
            raise RuntimeError(f"model: its forward pass writes to the buffer {name} in train mode; use eval_mode=True")
    if losses.grad_fn is None:
        raise ValueError(
            "compute_loss: the losses depend on no parameter that requires a gradient; compute them from what the "
            "model that it is given returns, without detach() or torch.no_grad()"
        )
    calls, n = watch.calls, len(losses)
    nodes, edges_to = _walk(losses.grad_fn)
    _check_graph(nodes, watch)
    for call in calls:
        if call.kept is not None and call.kept._version != call.version:
            raise RuntimeError(f"model: the input of {call.layer.name} is changed in place after its use; {CURE}")
        if not call.output[0] or call.output[0][0] != n or (call.kept is not None and call.kept.shape[0] != n):
            raise ValueError(
                f"layers: the output of {call.layer.name}, of shape {tuple(call.output[0])}, does not have the {n} "
                f"samples on its first axis (position embeddings: give them (n, T) indices; batch_first=True); {CURE}"
            )
    if not calls:
        raise ValueError("compute_loss: calls none of the chosen layers; it must call the model that it is given")
    edges = [call.edge for call in calls]
    if check or (check is None and any(_is_ambiguous(call) for call in calls)):
        _check_samples_are_apart(calls, losses)
    gradients = torch.autograd.grad(losses.sum() * loss_scale, edges, allow_unused=True)
    for call, gradient in zip(calls, gradients, strict=True):
        call.gradient = gradient
    del gradients, gradient, call
    _check_uses(layers, calls, nodes, edges_to)
    called = {call.layer.name for call in calls}
    blocks = {name: block for layer in layers if layer.name not in called for name, block in layer.zeros(n).items()}
    return losses.detach(), blocks | _blocks(calls, loss_scale)


def _blocks(calls: list[Call], loss_scale: float) -> dict[str, Block]:
    found: dict[str, list[Block]] = {}
    while calls:
        call = calls.pop(0)
        shape, dtype, device = call.output
        gradient = call.gradient
        gradient = torch.zeros(shape, dtype=dtype, device=device) if gradient is None else gradient.reshape(shape)
        if loss_scale != 1.0:
            gradient = gradient.to(torch.promote_types(gradient.dtype, torch.float32)) / loss_scale
        for name, block in call.layer.blocks(gradient, call.kept).items():
            found.setdefault(name, []).append(block)
    joined = {name: join_calls(blocks) for name, blocks in found.items()}
    return {name: block.smaller() if isinstance(block, Outer) else block for name, block in joined.items()}


# ---- what would make the gradients wrong ----------------------------------------------------------------------------


def _walk(root: Node) -> tuple[list[Node], Counter[Node]]:
    """All nodes of a graph, and how many edges lead to each."""
    nodes, edges = [root], Counter[Node]()
    seen = {root}
    for node in nodes:
        for following, _ in node.next_functions:
            if following is None:
                continue
            edges[following] += 1
            if following not in seen:
                seen.add(following)
                nodes.append(following)
    return nodes, edges


def _check_graph(nodes: list[Node], watch: Watch) -> None:
    if any(node.name() == "CheckpointFunctionBackward" for node in nodes):
        raise ValueError(
            "model: reentrant checkpointing hides the graph; use torch.utils.checkpoint(..., use_reentrant=False) "
            "(transformers: gradient_checkpointing_kwargs={'use_reentrant': False})"
        )
    hidden = sorted(watch.without_gradient - {call.layer.name for call in watch.calls})
    if hidden:
        raise ValueError(
            f"layers: {hidden[0]} ran without gradients, under torch.no_grad() or reentrant checkpointing (which needs "
            f"use_reentrant=False); {CURE}"
        )


def _check_uses(layers: Sequence[Layer], calls: list[Call], nodes: list[Node], edges: Counter[Node]) -> None:
    """Refuse parameters that the loss uses in other ways than by the calls that were seen."""
    expected = Counter[Node]()
    owner: dict[Node, tuple[str, str]] = {}
    for call in calls:
        for name, leaf in call.leaves.items():
            expected[leaf] += call.gradient is not None
            owner[leaf] = name, call.layer.name
    called = {call.layer.name for call in calls}
    for layer in layers:
        if layer.name not in called:
            for key, name in layer.parameters.items():
                parameter = layer.module._parameters[key]
                assert parameter is not None
                owner.setdefault(get_gradient_edge(parameter).node, (name, layer.name))
    found = Counter[Node]()
    for node in nodes:
        # Under autocast all uses share one cast.
        times = edges[node] if node.name() == "ToCopyBackward0" else 1
        for following, _ in node.next_functions:
            if following in owner:
                found[following] += times
    for leaf, (name, module) in owner.items():
        if found[leaf] != expected[leaf]:
            raise ValueError(
                f"layers: the loss uses {name} {found[leaf]} times, but {expected[leaf]} times through the forward "
                f"pass of {module} (a fused loss or a tied module uses it directly, or that output, a view, is changed "
                f"in place); {CURE}"
            )


def _is_ambiguous(call: Call) -> bool:
    """Whether indices (n,) might as well be the positions of n tokens, shared by all samples."""
    return call.layer.kind == "embedding" and call.kept is not None and call.kept.ndim == 1 and len(call.kept) > 1


def _check_samples_are_apart(calls: list[Call], losses: Tensor) -> None:
    """The losses of the first half may have no gradient at the outputs of the other."""
    half = len(losses) // 2
    if half == 0:
        return
    gradients = torch.autograd.grad(
        losses[:half].sum(), [call.edge for call in calls], allow_unused=True, retain_graph=True
    )
    for call, gradient in zip(calls, gradients, strict=True):
        if gradient is not None and gradient.reshape(call.output[0])[half:].count_nonzero():
            raise ValueError(
                f"layers: the loss of a sample depends on the output of {call.layer.name} for other samples (its first "
                f"axis is not that of the samples, or the samples are mixed); {CURE}"
            )


# ---- what the caller would notice -----------------------------------------------------------------------------------


@contextmanager
def undisturbed(model: nn.Module, eval_mode: bool) -> Iterator[None]:
    """With gradients; random states and modes are put back."""
    modes = [(module, module.training) for module in model.modules()]
    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices):
        try:
            if eval_mode:
                model.eval()
            for name, module in model.named_modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
                    raise ValueError(
                        f"model: {name} ({type(module).__name__}) in train mode mixes the samples; use eval_mode=True"
                    )
            yield
        finally:
            for module, mode in modes:
                module.training = mode


def batch_parts(batch: Any, micro_batch: int | None) -> list[Any]:
    """The batch in pieces of `micro_batch` samples; tensors, in mappings and lists too, are cut on their first axis."""
    if micro_batch is None:
        return [batch]
    if isinstance(micro_batch, bool) or not isinstance(micro_batch, int) or micro_batch < 1:
        raise ValueError(f"micro_batch: expected a positive integer or None, got {micro_batch!r}")
    sizes = {len(tensor) for tensor in _tensors(batch) if tensor.ndim}
    if len(sizes) != 1:
        raise ValueError(
            "micro_batch: needs a batch of tensors with the samples on their first axis; their lengths are "
            f"{sorted(sizes)}"
        )
    (n,) = sizes
    return [_cut(batch, slice(first, first + micro_batch), n) for first in range(0, n, micro_batch)]


def _tensors(batch: Any) -> list[Tensor]:
    if isinstance(batch, Tensor):
        return [batch]
    values = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, (tuple, list)) else ()
    return [tensor for value in values for tensor in _tensors(value)]


def _cut(batch: Any, rows: slice, n: int) -> Any:
    if isinstance(batch, Tensor):
        return batch[rows] if batch.ndim else batch
    if isinstance(batch, Mapping):
        return {key: _cut(value, rows, n) for key, value in batch.items()}
    if isinstance(batch, (tuple, list)) and _tensors(batch):
        values = [_cut(value, rows, n) for value in batch]
        return type(batch)(*values) if hasattr(batch, "_fields") else type(batch)(values)
    if isinstance(batch, list) and len(batch) == n:
        return batch[rows]  # labels, say
    return batch


def check_passes(model: nn.Module, passes: int) -> None:
    """Under FSDP2 a pass gathers parameters from all ranks: with fewer passes a rank would keep the others waiting."""
    shard: Any = next((p for p in model.parameters() if hasattr(p, "device_mesh")), None)
    for group in () if shard is None else shard.device_mesh.get_all_groups():
        extremes = torch.tensor([passes, -passes], device=shard.device)
        torch.distributed.all_reduce(extremes, torch.distributed.ReduceOp.MAX, group=group)
        most, fewest = int(extremes[0]), -int(extremes[1])
        if most != fewest:
            raise ValueError(
                f"micro_batch: under FSDP2 all ranks must make as many passes, but they make {fewest} to {most}; give "
                "them batches of the same number of samples"
            )
