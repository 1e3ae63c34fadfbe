"""What `mixture_to_batch.py` asks a language model: gradients of texts, and how differently adapters predict."""

from __future__ import annotations

import argparse
import copy
import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from _finetune_data import collate, read_rows, tokenized
from _finetune_model import LastLayers, load, response_losses, with_stored_states
from torch import nn

from pysubmod.similarity import divergence_matrix
from pysubmod.torch import FactorProjection, per_sample_gradients, task_log_probs

__all__ = ["adapter_divergence", "adapters_of", "projected_gradients", "short_model", "texts"]

Row = dict[str, Any]
SPLITS = {"train": 0, "validation": 1}  # candidates, and what the target and the divergences are taken on


def texts(args: argparse.Namespace) -> tuple[nn.Module, LastLayers, dict[str, list[Row]]]:
    """The model, its last layers alone, and the texts as the hidden states that enter these: each text passes once."""
    kind = {"float32": torch.float32, "bfloat16": torch.bfloat16}[args.dtype]
    model, tokenizer = load(args.model, args.cache, kind)
    raw = read_rows(args.data, args.group_column, args.domains)
    lengths = {"max_tokens": args.max_tokens, "max_response": args.max_response, "system": ""}
    splits = {
        split: tokenized(tokenizer, raw[split], args.group_column, args.rows[place], **lengths)
        for split, place in SPLITS.items()
    }
    tasks = {row[args.group_column] for rows in raw.values() for row in rows}
    for split, rows in splits.items():
        if none := tasks - {row[args.group_column] for row in rows}:
            raise SystemExit(
                f"--data: no {split} text of {', '.join(sorted(none))} is short enough; raise --max-tokens and"
                " --max-response, or name other --domains"
            )
    upper, stored = with_stored_states(model, args.last_layers, splits | {"test": splits["validation"]})
    return model, upper, stored


def projected_gradients(upper: LastLayers, rows: Sequence[Row], side: int = 32) -> np.ndarray:
    """(n, side * side * Linears) float32: each row's gradient by the weights of all Linears in the last layers.

    Of the weights rather than of LoRA, half of whose gradient is 0 before training; projected from both sides, which
    keeps cosines.
    """
    linears = {
        name: module
        for name, module in upper.named_modules()
        if isinstance(module, nn.Linear) and ".layers." in name and module.weight.requires_grad is False
    }
    for module in linears.values():
        module.weight.requires_grad_(True)
    smaller = {
        name + ".weight": FactorProjection(
            module.in_features, module.out_features, min(side, module.in_features), min(side, module.out_features),
            layer=name,
        )
        for name, module in linears.items()
    }  # fmt: skip
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]["inputs_embeds"]))  # little padding
    parts = []
    for begin in range(0, len(rows), 4):  # few at a time: formed gradients are wide
        batch = collate([rows[i] for i in order[begin : begin + 4]])
        found = per_sample_gradients(upper, response_losses, batch, layers=list(linears), reduction="mean")
        matrix = found.matrix()
        parts.append(torch.cat([smaller[name](matrix[:, part]) for name, part in found.columns.items()], dim=1))
    for module in linears.values():
        module.weight.requires_grad_(False)
    gradients = np.empty((len(rows), sum(part.shape[1] for part in parts[:1])), np.float32)
    gradients[order] = torch.cat(parts).numpy()
    return gradients


def short_model(model: Any, upper: LastLayers) -> Any:
    """The whole causal language model as it is, but for the layers below the last ones; it takes hidden states."""
    short = copy.copy(model)
    short._modules = dict(model._modules)
    short.model = upper.model
    return short


def adapters_of(
    short: Any, upper: LastLayers, rows: Mapping[str, Sequence[Row]], args: argparse.Namespace
) -> tuple[Any, dict[str, list[float]]]:
    """A LoRA adapter for each task, trained on its rows; and the losses of their steps."""
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(r=args.rank, lora_alpha=2 * args.rank, target_modules=["q_proj", "v_proj", "o_proj", "down_proj"])
    adapted, losses = None, {}
    for number, (task, own) in enumerate(rows.items()):
        torch.manual_seed(args.seed)  # the same beginning for all: what differs later, the texts made differ
        name = f"task {number}"  # a task's own name may have dots, which no module's has
        if adapted is None:
            adapted = get_peft_model(short, lora, adapter_name=name)
        else:
            adapted.add_adapter(name, lora)
        adapted.set_adapter(name)
        optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=args.learning_rate)
        shuffled, losses[task] = random.Random(args.seed), []
        queue: list[Row] = []
        for _ in range(args.steps):
            while len(queue) < args.batch_size:
                queue += shuffled.sample(list(own), len(own))
            batch, queue = queue[: args.batch_size], queue[args.batch_size :]
            # `upper` has the same layers as `adapted`, adapters included, and makes no logits that do not count.
            loss = upper(**collate(batch))["loss"]
            loss.backward()
            optimizer.step(), optimizer.zero_grad()
            losses[task].append(float(loss.detach()))
        print(f"{task}: loss {losses[task][0]:.2f} -> {losses[task][-1]:.2f}", flush=True)
    return adapted, losses


def adapter_divergence(adapted: Any, rows: Mapping[str, Sequence[Row]], kind: str, over: str) -> np.ndarray:
    """How differently the adapters predict, (tasks, tasks), in nats."""
    whole = {task: [_whole(row) for row in own] for task, own in rows.items()}
    names = [f"task {number}" for number in range(len(rows))]
    reduction = "mean" if kind == "pmi" else "sum"
    return divergence_matrix(
        task_log_probs(adapted, whole, kind, adapters=names, collate=collate, reduction=reduction), kind, over=over
    )


def _whole(row: Row) -> Row:
    """A row with its labels at the places of their tokens."""
    return {
        "inputs_embeds": row["inputs_embeds"],
        "labels": [-100] * (len(row["inputs_embeds"]) - len(row["labels"])) + list(row["labels"]),
    }
