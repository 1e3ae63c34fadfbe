"""The models of `task_log_probs`: several, or the adapters of one PEFT model, switched and put back."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .._validation import shown, type_name
from ._capture import undisturbed
from ._layers import unwrapped

__all__ = ["Speaker", "evaluating", "speakers_of"]


@dataclass(frozen=True)
class Speaker:
    """A model, or one adapter of one."""

    name: str
    module: nn.Module
    adapter: str | None = None

    @property
    def head(self) -> nn.Module | None:
        get = getattr(self.module, "get_output_embeddings", None)
        found = get() if callable(get) else None
        return found if isinstance(found, nn.Module) else None

    def switch_on(self) -> None:
        if self.adapter is not None:
            self.module.set_adapter(self.adapter)  # type: ignore[operator]

    def states(self, batch: Mapping[str, Tensor], mask: Tensor) -> tuple[Tensor, int]:
        """What the head makes logits of, at the positions (rows, T - 1) that count; and V. Without a head: logits."""
        inputs = {key: column.to(self._device) for key, column in batch.items() if key != "labels"}
        head, mask = self.head, mask.to(self._device)
        if head is None:
            logits = _logits(self.module(**inputs))
            return logits[:, :-1][mask], logits.shape[-1]
        seen: list[Tensor] = []

        def keep(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            seen.append(args[0])
            return (args[0][:1, :1].contiguous(), *args[1:])  # the logits of one position are cheap, and tell V

        with head.register_forward_pre_hook(keep):
            logits = _logits(self.module(**inputs))
        if len(seen) != 1 or seen[0].shape[:2] != batch["labels"].shape:
            raise ValueError(
                f"{self.name}: its head ({type(head).__name__}) got hidden states of shapes"
                f" {[tuple(s.shape) for s in seen]}, expected once {tuple(batch['labels'].shape)} and a width; models"
                " that put tokens in front (prompt learning) or leave some out are not covered"
            )
        return seen[0][:, :-1][mask], logits.shape[-1]

    def log_probs(self, states: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """(positions, V) float32."""
        head, logits = self.head, states
        if head is not None:
            main = "input_ids" if "input_ids" in batch else "inputs_embeds"
            with head.register_forward_pre_hook(lambda _, args: (states[None], *args[1:])):
                logits = _logits(self.module(**{main: batch[main][:1, :1].to(self._device)}))[0]
        return logits.float().log_softmax(-1)

    @property
    def _device(self) -> torch.device:
        return next(self.module.parameters()).device


def _logits(output: Any) -> Tensor:
    logits = getattr(output, "logits", output)
    if not isinstance(logits, Tensor) or logits.ndim != 3:
        raise TypeError(
            f"models: expected logits (rows, T, V) from the model, or an output that has them; got {type_name(output)}"
        )
    return logits


def speakers_of(models: Any, adapters: Any, tasks: list[Any]) -> list[Speaker]:
    if isinstance(models, nn.Module) and not isinstance(models, (nn.ModuleList, nn.ModuleDict)):
        return _adapters(unwrapped(models), adapters, tasks)
    if adapters is not None:
        raise ValueError("adapters: only for one PEFT model; of several models each is a task's")
    if isinstance(models, nn.ModuleDict):
        models = dict(models.items())
    found = [unwrapped(model) for model in _by_task("models", models, tasks)]
    for task, module in zip(tasks, found, strict=True):
        if not isinstance(module, nn.Module):
            raise TypeError(f"models[{shown(task)}]: expected a torch module, got {type_name(module)}")
    return [Speaker(f"models[{shown(task)}]", module) for task, module in zip(tasks, found, strict=True)]


def _adapters(module: Any, adapters: Any, tasks: list[Any]) -> list[Speaker]:
    try:
        known = isinstance(module, importlib.import_module("peft").PeftModel)
    except ImportError:
        known = False
    if not known:
        raise TypeError(
            f"models: expected a model for each task, or one PEFT model (peft.PeftModel) whose adapters they are; got"
            f" one {type_name(module)}"
        )
    names = [str(task) for task in tasks] if adapters is None else _by_task("adapters", adapters, tasks)
    there = list(module.peft_config)
    for task, name in zip(tasks, names, strict=True):
        if name not in there:
            raise ValueError(
                f"adapters: the model has no adapter {shown(name)} for task {shown(task)}; it has"
                f" {shown(there, 200)}. adapters={{task: name}} says which is whose"
            )
        if module.peft_config[name].is_prompt_learning:
            raise ValueError(f"adapters: {shown(name)} is prompt learning, which puts tokens in front; use LoRA or kin")
    status = module.get_model_status()
    if status.merged_adapters:
        raise ValueError(f"models: has merged adapters, {status.merged_adapters}; call unmerge_adapter() before")
    if status.enabled is not True:
        raise ValueError("models: its adapters are disabled, in part at least; call enable_adapter_layers() before")
    return [Speaker(f"adapter {shown(name)}", module, name) for name in names]


def _by_task(name: str, values: Any, tasks: list[Any]) -> list[Any]:
    if isinstance(values, Mapping):
        if set(values) != set(tasks):
            raise ValueError(f"{name}: expected one for each task, {shown(tasks, 200)}; got {shown(list(values), 200)}")
        return [values[task] for task in tasks]
    if isinstance(values, str) or not isinstance(values, (Sequence, nn.ModuleList)):
        raise TypeError(f"{name}: expected a mapping by task or a sequence, got {type_name(values)}")
    if len(values) != len(tasks):
        raise ValueError(f"{name}: expected {len(tasks)}, one a task in the order of datasets; got {len(values)}")
    return list(values)


@contextmanager
def evaluating(speakers: list[Speaker]) -> Iterator[None]:
    """In eval mode, without gradients; all that it changes is put back."""
    with ExitStack() as stack:
        for module in {id(speaker.module): speaker.module for speaker in speakers}.values():
            stack.enter_context(undisturbed(module, True))
        if speakers[0].adapter is not None:
            stack.enter_context(_adapter_put_back(speakers[0].module))
        stack.enter_context(torch.no_grad())
        yield


@contextmanager
def _adapter_put_back(model: Any) -> Iterator[None]:
    active, several = model.active_adapter, list(model.active_adapters)
    # Switching an adapter on makes it trainable, and the others not.
    trainable = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        model.base_model.set_adapter(several)  # of several at once only the tuner knows
        model.active_adapter = active
        for parameter, flag in trainable:
            parameter.requires_grad_(flag)
