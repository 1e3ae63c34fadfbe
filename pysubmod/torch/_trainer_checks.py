"""What stands in the way of selection in a trainer, found before training begins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from .selectors import BLIND

if TYPE_CHECKING:
    from .trainers import SelectionConfig

__all__ = ["check_budgets", "check_trainer"]


def check_trainer(trainer: Any, config: SelectionConfig, mixin: type) -> None:
    """Refuse what would select other rows, or train on another loss, than the trainer's settings say."""
    args = trainer.args
    if getattr(args, "packing", False) or getattr(trainer, "padding_free", False):
        raise ValueError("args: packed rows are not samples any more; use packing=False, padding_free=False")
    if args.n_gpu > 1:
        raise ValueError("args: DataParallel splits batches between GPUs; use torchrun, a process for each GPU")
    if args.fp16:
        raise ValueError("args: in float16 the gradients of single samples overflow where a batch's do not; use bf16")
    parallel = getattr(trainer.accelerator, "parallelism_config", None)
    if parallel is not None and (parallel.cp_enabled or parallel.sp_enabled or parallel.tp_enabled):
        raise ValueError(
            "args: under context, sequence or tensor parallelism no rank has whole samples; use DDP or FSDP2"
        )
    if config.pool_factor > 1 and getattr(args, "train_sampling_strategy", "") == "batch_rebalance":
        raise ValueError(
            "args: train_sampling_strategy='batch_rebalance' makes batches of its own, not pools; use another"
        )
    scattered = args.accelerator_config.dispatch_batches is not False and config.group_column is not None
    if args.world_size > 1 and scattered and isinstance(trainer.train_dataset, torch.utils.data.IterableDataset):
        raise ValueError(
            "args: labels of groups cannot be dispatched from the first rank to the others; use "
            "accelerator_config={'dispatch_batches': False}"
        )
    if config.loss is None and config.method not in BLIND:
        owner = next(c for c in type(trainer).__mro__ if "compute_loss" in vars(c) and c is not mixin)
        own = owner.__module__ not in ("transformers.trainer", "trl.trainer.sft_trainer")
        own = own or trainer.compute_loss_func is not None or trainer.label_smoother is not None
        if own or getattr(args, "loss_type", "nll") != "nll" or not trainer._loss_shifts_labels:
            raise ValueError(
                "loss: this trainer's loss is not known to be next-token cross-entropy; give SelectionConfig(loss=...),"
                " a function of model and inputs that returns a loss per sample (causal_lm_loss, if it is that)"
            )
    check_budgets(config, args.per_device_train_batch_size)
    names = getattr(trainer.train_dataset, "column_names", None)
    if config.group_column is not None and isinstance(names, list) and config.group_column not in names:
        raise ValueError(
            f"group_column: train_dataset has no column {config.group_column!r}; it has {', '.join(names)}"
        )


def check_budgets(config: SelectionConfig, batch_size: int) -> None:
    """A mapping says how many rows by itself: as many as the trainer expects."""
    if isinstance(config.budgets, Mapping) and (total := sum(config.budgets.values())) != batch_size:
        raise ValueError(f"budgets: sum to {total}, but batches have {batch_size} rows")
