"""Selection inside Hugging Face's Trainer and its subclasses, such as TRL's SFTTrainer."""

from __future__ import annotations

import inspect
import logging
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from .._random import as_seed, random_bits
from .._validation import as_choice, is_integer, shown, type_name
from ..solvers import available_methods
from ._batches import count_rows
from ._layers import Layers
from ._trainer_checks import check_budgets, check_trainer
from ._trainer_data import Anchors, GroupCollator, metrics_of, trimmed
from .losses import causal_lm_loss, packing_of, reduced
from .methods import FilterThenWeight, GradMatch, Greats, PartitionSel
from .selectors import BLIND, BatchSelector

__all__ = ["SelectionConfig", "with_selection"]

_Trainer: Any = object  # the class is put in front of a trainer's, whose methods super() finds
_logger = logging.getLogger(__name__)
_WEIGHTS = "selection_weights"  # the column that carries them from the selection to the loss
_SELECTORS: dict[str, type[BatchSelector]] = {
    "partition-sel": PartitionSel, "filter-then-weight": FilterThenWeight, "greats": Greats, "grad-match": GradMatch,
}  # fmt: skip


@dataclass(frozen=True)
class SelectionConfig:
    """What `with_selection`'s trainers select, and how.

    Parameters
    ----------
    method : str
        "partition-sel", "filter-then-weight", or any method of `pysubmod.solve`.
    pool_factor : int, default 4
        Batches are selected from pools of ``pool_factor * per_device_train_batch_size`` rows, one pool for each batch
        of each rank; an epoch goes through the dataset once, in fewer steps.
    budgets : "proportional", "balanced", mapping {label: int}, or None
        By group, of one batch, as of `BatchSelector`; a mapping sums to ``per_device_train_batch_size``. None: one
        budget for the whole batch.
    group_column : str, optional
        The column of the training (and validation) rows with each one's domain. The model and the trainer's collator
        do not see it.
    validation : map-style dataset or callable, optional
        Rows like those of ``train_dataset``, whose gradients are to be matched (SFTTrainer prepares them in the same
        way); or a function of the step's number that gives a collated batch. They steer the training: evaluate on
        others. None: the mean gradient of the pool itself.
    target, anchors, layers, micro_batch
        As of `BatchSelector`.
    refresh_every : int, default 1
        Make a new target every so many pools.
    use_weights : bool or "normalized", optional
        Train on ``sum_i w_i loss_i`` with the fitted weights w (or these scaled to sum 1) in place of the trainer's own
        loss. None: what the method means: weights for filter-then-weight and pursuits, none for partition-sel, greats,
        top-k and random. See Notes.
    loss : callable, optional
        ``loss(model, inputs)`` gives losses per sample as `per_sample_gradients` takes them; (n,) are taken as they
        are, (n, T) with a mask as sums over tokens. None: `causal_lm_loss`; a trainer with another loss needs one.
        Random methods look at gradients, for the logged metrics, only if it is given.
    random_state : int, optional
        None takes the trainer's seed.
    options : mapping
        Further arguments of the selector and options of the method, such as ``{"eta": 1e-3}`` or ``{"ridge": 1e-6}``.

    Notes
    -----
    Losses of samples are sums over their tokens, divided by the mean number of tokens of their batch
    (``reduction="token-mean"``), so that the pool's mean gradient is that of the trainer's own loss, a mean over
    tokens, and so is the target. For partition-sel eta is the optimizer's present learning rate unless `options` say
    otherwise; for greats, whose rate is one on the sum of the picks, it is that over the batch size.
    """

    method: str = "partition-sel"
    pool_factor: int = 4
    budgets: Any = "proportional"
    group_column: str | None = None
    validation: Any = None
    target: str = "mean"
    anchors: int | None = 4
    refresh_every: int = 1
    layers: Layers = None
    micro_batch: int | None = None
    use_weights: bool | str | None = None
    loss: Callable[[Any, Any], Any] | None = None
    random_state: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        as_choice("method", self.method, (*available_methods(), "filter-then-weight"))
        if not (is_integer(self.pool_factor) and self.pool_factor >= 1):
            raise ValueError(f"pool_factor: expected an integer of at least 1, got {shown(self.pool_factor)}")
        if self.use_weights not in (None, False, True, "normalized"):
            raise ValueError(f"use_weights: expected True, False, 'normalized' or None, got {shown(self.use_weights)}")
        if self.method == "partition-sel" and self.use_weights:
            raise ValueError("use_weights: PartitionSel trains on uniform weights; use another method")
        if self.group_column is None and (self.target != "mean" or self.budgets not in ("proportional", None)):
            raise ValueError("group_column: missing; budgets and targets by group need the label of each row")
        if not isinstance(self.options, Mapping):
            raise TypeError(f"options: expected a mapping, got {type_name(self.options)}")


def with_selection(trainer_class: type) -> type:
    """The same trainer, whose batches are selected.

    Parameters
    ----------
    trainer_class : type
        ``transformers.Trainer`` or a subclass, such as ``trl.SFTTrainer``.

    Returns
    -------
    type
        A subclass that takes one argument more, ``selection=SelectionConfig(...)``.

    Notes
    -----
    Pools come from the training dataloader, so that shuffling, sharding and skipping on resume are the trainer's own;
    the loss is normalised by the tokens of the *selected* rows. Every rank selects from its own pools, with draws of
    its own. ``trainer.log_history`` and reports get, as means over the selections since the last log and of this rank,
    ``selection/relative_residual``, ``cosine``, ``conflicts``, ``share`` (of the best objective under the budgets, at
    least, proved), ``seconds`` (the solver's), ``capture_seconds``, ``certify_seconds``, ``staleness``, and
    ``picks/<label>``.

    A checkpoint holds the selector's state (``selection_<rank>.pt``), so that a resumed run makes the same picks.
    Evaluation is not touched. Packed rows, DataParallel, context parallelism, reentrant checkpointing, FSDP1 and ZeRO-3
    are errors.

    Examples
    --------
    >>> from transformers import Trainer  # doctest: +SKIP
    >>> trainer = with_selection(Trainer)(  # doctest: +SKIP
    ...     model=model, args=args, train_dataset=train, data_collator=collator,
    ...     selection=SelectionConfig(group_column="domain", validation=validation, layers="*lora_*"),
    ... )
    """
    if not (isinstance(trainer_class, type) and hasattr(trainer_class, "get_batch_samples")):
        raise TypeError(
            f"trainer_class: expected transformers.Trainer or a subclass, got {shown(trainer_class)}; for loops of "
            "your own there are selectors (BatchSelector)"
        )
    if issubclass(trainer_class, _Selecting):
        raise TypeError(f"trainer_class: {trainer_class.__name__} selects already")
    if not hasattr(trainer_class, "loss_is_scaled_for_ga"):
        raise ImportError("transformers: this version's Trainer is too old; with_selection needs 5.23")
    return type(f"Selecting{trainer_class.__name__}", (_Selecting, trainer_class), {"__doc__": trainer_class.__doc__})


class _Selecting(_Trainer):  # type: ignore[misc]
    """What `with_selection` puts in front of a trainer's own methods."""

    _train_batch_size: int
    _selector: BatchSelector | None
    _records: deque[dict[str, Any]]
    _labels: set[Any]

    def __init__(self, *args: Any, selection: SelectionConfig, **kwargs: Any) -> None:
        if not isinstance(selection, SelectionConfig):
            raise TypeError(f"selection: expected a SelectionConfig, got {type_name(selection)}")
        super().__init__(*args, **kwargs)
        self._selection = selection
        self._start_anew()
        check_trainer(self, selection, _Selecting)
        validation = selection.validation
        if validation is not None and not callable(validation):
            if _prepares(self):
                validation = self._prepare_dataset(
                    validation, self.processing_class, self.args, False, self._formatting_func, "selection"
                )
            with _with_groups(self, labelled=selection.target != "mean"):
                collator = self._get_collator_with_removed_columns(self.data_collator)
            validation = Anchors(validation, collator, self, _seed(self))
        self._validation = validation
        self._selector = self._new_selector()  # its errors now rather than in the loop
        if self._selector.weights != "uniform":
            self.loss_is_scaled_for_ga = True  # compute_loss divides

    def _start_anew(self) -> None:
        self._selector, self._records, self._labels = None, deque(maxlen=4096), set()

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:  # train's, and each try of auto_find_batch_size
        self._start_anew()
        return super()._inner_training_loop(*args, **kwargs)

    # ---- data --------------------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> Any:
        """Pools, with their rows' groups."""
        size = self._train_batch_size
        self._train_batch_size = size * self._selection.pool_factor
        check_budgets(self._selection, size)
        try:
            with _with_groups(self):
                return super().get_train_dataloader()
        finally:
            self._train_batch_size = size

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: Any) -> Any:
        """Of each pool a batch; the trainer then counts the tokens of these."""
        # Not by map: a StopIteration out of the user's loss or validation would pass for the end of the data.
        return super().get_batch_samples((self._select(pool) for pool in epoch_iterator), num_batches, device)

    def _select(self, pool: Any) -> dict[str, Any]:
        if self._selector is None:
            self._selector = self._new_selector()
        pool = self._prepare_inputs(pool)
        self.model.train()  # as training_step does
        if callable(getattr(self.optimizer, "train", None)):
            self.optimizer.train()
        if sign := packing_of(pool):
            raise ValueError(f"data_collator: {sign} says that rows are packed; a row must be one sample")
        with self.compute_loss_context_manager():
            picked = self._selector.select(self.model, pool)
        self._records.append(picked.diagnostics)
        batch = dict(picked.batch)
        if len(picked) < count_rows(pool):
            batch = trimmed(batch, getattr(self.data_collator, "pad_to_multiple_of", None) or 1)
        if self._selector.weights != "uniform":
            batch[_WEIGHTS] = picked.weights
        return batch

    # ---- the loss ----------------------------------------------------------------------------------------------------

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        """The trainer's own, or the weighted sum of the selected rows' losses."""
        if _WEIGHTS not in inputs:
            return super().compute_loss(model, inputs, return_outputs=return_outputs, **kwargs)
        inputs = dict(inputs)
        weights = inputs.pop(_WEIGHTS)
        if return_outputs:
            raise ValueError("return_outputs: a weighted loss is computed from losses per sample; it has no outputs")
        reduction = "mean" if self._selection.options.get("reduction") == "mean" else "sum"
        losses, _ = reduced((self._selection.loss or causal_lm_loss)(model, inputs), reduction)
        # One target for each batch, of which the step takes the mean; that over ranks is DDP's.
        return (losses * weights).sum() / self.current_gradient_accumulation_steps

    # ---- the selector ------------------------------------------------------------------------------------------------

    def _new_selector(self) -> BatchSelector:
        config: SelectionConfig = self._selection
        options: dict[str, Any] = {
            "budgets": config.budgets, "groups": config.group_column, "validation": self._validation,
            "anchors": None if isinstance(self._validation, Anchors) else config.anchors,
            "refresh": config.refresh_every, "target": config.target, "layers": config.layers,
            "micro_batch": config.micro_batch, "random_state": _seed(self),
        }  # fmt: skip
        defaults: dict[str, Any] = {"certified": True, "reduction": "token-mean"}
        if not isinstance(config.budgets, Mapping):
            options["ratio"] = 1 / config.pool_factor
        kind = _SELECTORS.get(config.method, BatchSelector)
        if kind is BatchSelector:
            options["method"] = config.method
        if config.method == "partition-sel":
            defaults["eta"] = self._learning_rate
        if config.method == "greats":  # whose rate is one on the sum of the picks, and 0 means another
            defaults["eta"] = lambda: max(self._learning_rate() / self._train_batch_size, 1e-30)
        if config.method == "filter-then-weight":
            options["optimizer"] = self.optimizer if self.optimizer is not None else _unborn()
        if config.use_weights is not None and kind is not PartitionSel:
            weights = "fitted" if config.use_weights else "uniform"
            options["weights"] = config.use_weights if isinstance(config.use_weights, str) else weights
        if taken := sorted({*options, "ratio", "size", "weights", "compute_loss"} & {*config.options}):
            raise ValueError(f"options: {taken[0]!r} is given by SelectionConfig's own arguments; use these")
        loss = config.loss or (None if config.method in BLIND else causal_lm_loss)
        return kind(loss, **defaults | options | dict(config.options))

    def _learning_rate(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    # ---- checkpoints and logs ----------------------------------------------------------------------------------------

    def _save_rng_state(self, output_dir: str) -> None:  # on every rank, after the optimizer's
        super()._save_rng_state(output_dir)
        if self._selector is not None:
            torch.save(self._selector.state_dict(), self._state_file(output_dir))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        path = self._state_file(checkpoint)
        if not os.path.isfile(path):
            _logger.warning("%s is not there: the selection starts anew, and its picks are others", path)
            return
        self._selector = self._new_selector()
        self._selector.load_state_dict(torch.load(path, weights_only=True, map_location=self.args.device.type))

    def _state_file(self, folder: str) -> str:
        return os.path.join(folder, f"selection_{self.args.process_index}.pt")

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """The trainer's, with the means of the selections since the last."""
        if "loss" in logs and self._records:
            self._labels |= {label for record in self._records for label in record["counts"]}
            logs |= metrics_of(self._records, self._labels if self._selection.group_column is not None else ())
            self._records.clear()
        super().log(logs, *args, **kwargs)


@contextmanager
def _with_groups(trainer: Any, labelled: bool = True) -> Iterator[None]:
    """Let the column of groups through what removes unused columns, and through or past the collator."""
    column = trainer._selection.group_column
    if column is None:
        yield
        return
    trainer._set_signature_columns_if_needed()
    kept = trainer._signature_columns, trainer.data_collator
    trainer._signature_columns = [*kept[0], column]
    trainer.data_collator = GroupCollator(kept[1], column, labelled, column in kept[0])
    try:
        yield
    finally:
        trainer._signature_columns, trainer.data_collator = kept


def _prepares(trainer: Any) -> bool:
    """Whether it is an SFTTrainer that tokenises its datasets."""
    method = getattr(trainer, "_prepare_dataset", None)
    if method is None or getattr(trainer, "_skip_prepare_dataset", False):
        return False
    return "packing" in inspect.signature(method).parameters


def _seed(trainer: Any) -> int:
    """Of this rank."""
    state = trainer._selection.random_state
    return int(random_bits(as_seed(trainer.args.seed if state is None else state), trainer.args.process_index)) >> 1


def _unborn() -> torch.optim.Optimizer:
    # The trainer makes its optimizer when training begins; arguments are checked before.
    return torch.optim.AdamW([torch.zeros(1, requires_grad=True)])
