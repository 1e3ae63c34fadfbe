"""What the models of n tasks say about each task's samples, in the form that `divergence_matrix` takes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .._validation import as_choice, is_integer, shown, type_name
from ._speakers import Speaker, evaluating, speakers_of

__all__ = ["task_log_probs"]

FloatArray = npt.NDArray[np.float32]
_CHUNK = 2**24  # log-probabilities of all models that are held at a time, 64 MB in float32; at least one position


def task_log_probs(
    models: Any,
    datasets: Mapping[Any, Iterable[Any]],
    kind: str = "jsd",
    *,
    adapters: Any = None,
    batch_size: int = 8,
    reduction: str = "sum",
    collate: Callable[[list[Any]], Mapping[str, Any]] | None = None,
) -> dict[Any, Iterator[FloatArray]]:
    """Log-probabilities of n causal language models, one a task, on the samples of each of the n tasks.

    ``divergence_matrix(task_log_probs(models, datasets, kind), kind)`` says how differently the tasks' models predict.

    Parameters
    ----------
    models : mapping {task: model} or sequence of models, or one PEFT model
        Causal language models with one vocabulary, in the order of `datasets`; called with a batch less its labels,
        they return logits (rows, T, V), or have them as ``.logits``. Of one PEFT model the adapters are the tasks'
        models: each is switched on in turn, the frozen base is there once.
    datasets : mapping {task: samples}
        Samples of each task: rows ``{"input_ids", "labels"}`` (lists or vectors; others of their columns are not used),
        which are padded here, or an iterable of whole batches (a DataLoader). Labels as in training: -100 does not
        count, not yet shifted. One sample a row, not packed.
    kind : {"jsd", "kl", "pmi"}
        Of `divergence_matrix`, which says what it needs.
    adapters : mapping {task: name} or sequence of names, optional
        The adapter of each task; by default those of the tasks' own names. For one PEFT model only.
    batch_size : int
        Rows that go through a model at a time; a DataLoader has its own.
    reduction : {"sum", "mean"}
        "pmi" only. "sum": the log-probability of the whole answer, ``log p(y | x)``, as the method has it; a long
        answer then weighs more. "mean": per token.
    collate : callable, optional
        Makes a batch of a list of rows (of whatever kind), in place of the padding here.

    Returns
    -------
    dict {task: iterator of float32 arrays}
        To be read once, in any order; nothing is computed before. "jsd" and "kl": (n, positions, V), the next-token
        distributions at the positions whose label counts; "pmi": (n, samples), samples in their order, those without
        a label that counts left out.

    Raises
    ------
    ValueError, TypeError
        For tasks without a model or adapter, adapters that are disabled or merged, batches without labels or packed,
        models of different vocabularies.

    Notes
    -----
    Models run in eval mode without gradients. Between two arrays, and so whenever the caller's code runs, train modes,
    the active adapter, ``requires_grad`` and torch's random states are as they were.

    Memory: an array is at most 64 MB (or one position). For that, only hidden states are kept of a batch, and the
    model's head (``get_output_embeddings()``) is run on a few positions at a time: as part of the model, on an input of
    one token whose hidden state is replaced, so that whatever the model does to logits is done. Of a model without such
    a head all logits of one batch are in memory. The log-softmax is float32's.
    """
    kind = as_choice("kind", kind, ("jsd", "kl", "pmi"))
    reduction = as_choice("reduction", reduction, ("sum", "mean"))
    if not is_integer(batch_size) or batch_size < 1:
        raise ValueError(f"batch_size: expected a positive integer, got {shown(batch_size)}")
    if kind != "pmi" and reduction != "sum":
        raise ValueError(f"reduction: is for kind 'pmi' only; {kind!r} is averaged over positions; leave it out")
    if not isinstance(datasets, Mapping):
        raise TypeError(f"datasets: expected a mapping {{task: samples}}, got {type_name(datasets)}")
    if not datasets:
        raise ValueError("datasets: is empty; expected a mapping {task: samples} with at least one task")
    tasks = list(datasets)
    speakers = speakers_of(models, adapters, tasks)

    def stream(task: Any) -> Iterator[FloatArray]:
        name = f"datasets[{shown(task)}]"
        for batch in _batches(name, datasets[task], int(batch_size), collate):
            if kind == "pmi":
                yield _observed(name, speakers, batch, reduction)
            else:
                yield from _expected(speakers, batch)

    return {task: stream(task) for task in tasks}


# ---- samples ---------------------------------------------------------------------------------------------------------


def _batches(name: str, samples: Any, batch_size: int, collate: Any) -> Iterator[dict[str, Tensor]]:
    indexed = hasattr(samples, "__getitem__") and hasattr(samples, "__len__")
    if isinstance(samples, (str, bytes, Mapping)) or not (indexed or isinstance(samples, Iterable)):
        raise TypeError(f"{name}: expected rows, or an iterable of batches; got {type_name(samples)}")
    # By index where there is one: iterating over a map-style Dataset of torch need not end.
    items = (samples[i] for i in range(len(samples))) if indexed else iter(samples)
    first = next(items, None)
    if first is None:
        return
    items = itertools.chain([first], items)
    if collate is None and isinstance(first, Mapping) and getattr(first.get("labels"), "ndim", 1) == 2:
        for batch in items:
            yield _checked(name, batch)
        return
    made = collate or (lambda rows: _padded(name, rows))
    while rows := list(itertools.islice(items, batch_size)):
        yield _checked(name, made(rows))


def _padded(name: str, rows: list[Any]) -> dict[str, Tensor]:
    """On the right, where causal attention does not see it."""
    columns: dict[str, list[Tensor]] = {"input_ids": [], "labels": [], "attention_mask": []}
    for row in rows:
        if not isinstance(row, Mapping) or "input_ids" not in row or "labels" not in row:
            has = shown(list(row), 200) if isinstance(row, Mapping) else type_name(row)
            raise ValueError(f"{name}: a row needs input_ids and labels (-100: does not count); one has {has}")
        ids, labels = torch.as_tensor(row["input_ids"]), torch.as_tensor(row["labels"])
        if ids.ndim != 1 or ids.shape != labels.shape:
            raise ValueError(
                f"{name}: expected input_ids and labels of one length a row; got {tuple(ids.shape)} and"
                f" {tuple(labels.shape)}"
            )
        if len(ids) == 0:
            raise ValueError(f"{name}: a row is empty; leave it out")
        mask = torch.as_tensor(row.get("attention_mask", torch.ones(len(ids), dtype=torch.long)))
        for column, value in zip(columns.values(), (ids, labels, mask), strict=True):
            column.append(value)
    pad = torch.nn.utils.rnn.pad_sequence
    return {key: pad(column, True, -100 if key == "labels" else 0) for key, column in columns.items()}


def _checked(name: str, batch: Any) -> dict[str, Tensor]:
    packed = [key for key in batch if str(key).startswith("cu_seq_lens") or key == "seq_idx"]
    if packed:
        raise ValueError(f"{name}: {packed[0]} says that rows are packed; a sample a row is needed")
    if "labels" not in batch or batch["labels"].ndim != 2 or not ("input_ids" in batch or "inputs_embeds" in batch):
        raise ValueError(
            f"{name}: a batch needs input_ids and labels (rows, T); this one has {shown(list(batch), 200)}"
        )
    labels = batch["labels"]
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"{name}: labels are tokens, so integers; got dtype {labels.dtype}")
    wrong = labels[(labels < 0) & (labels != -100)]
    if wrong.numel():
        raise ValueError(f"{name}: has the label {int(wrong[0])}; what does not count is -100")
    return {key: column for key, column in batch.items() if isinstance(column, Tensor)}


# ---- log-probabilities -----------------------------------------------------------------------------------------------


def _expected(speakers: list[Speaker], batch: Mapping[str, Tensor]) -> Iterator[FloatArray]:
    """(n, positions, V), a chunk of positions at a time."""
    mask = batch["labels"][:, 1:] != -100
    if not mask.any():
        return
    found = []
    with evaluating(speakers):
        for speaker in speakers:
            speaker.switch_on()
            found.append(speaker.states(batch, mask))
    V = found[0][1]
    for speaker, (_, width) in zip(speakers, found, strict=True):
        if width != V:
            raise ValueError(
                f"{speaker.name}: has {width} logits, {speakers[0].name} {V}; divergences need one vocabulary"
            )
    step = max(1, _CHUNK // (len(speakers) * V))
    for begin in range(0, int(mask.sum()), step):
        parts = [states[begin : begin + step] for states, _ in found]
        chunk = torch.empty(len(speakers), len(parts[0]), V)
        with evaluating(speakers):
            for row, speaker, part in zip(chunk, speakers, parts, strict=True):
                speaker.switch_on()  # the head may have an adapter, too
                row.copy_(speaker.log_probs(part, batch))
        yield chunk.numpy()


def _observed(name: str, speakers: list[Speaker], batch: Mapping[str, Tensor], reduction: str) -> FloatArray:
    """(n, samples), of the samples that have a label that counts."""
    mask = batch["labels"][:, 1:] != -100
    counts = mask.sum(1)
    owner, wanted = mask.nonzero()[:, 0], batch["labels"][:, 1:][mask]
    sums = torch.zeros(len(speakers), len(mask), dtype=torch.float64)
    with evaluating(speakers):
        for row, speaker in zip(sums, speakers, strict=True):
            speaker.switch_on()
            states, V = speaker.states(batch, mask)
            if wanted.numel() and int(wanted.max()) >= V:
                raise ValueError(
                    f"{name}: has the label {int(wanted.max())}, and {speaker.name} {V} logits; labels are tokens of"
                    " the models' vocabulary, or -100"
                )
            step = max(1, _CHUNK // V)
            for begin in range(0, len(states), step):
                part = slice(begin, begin + step)
                logs = speaker.log_probs(states[part], batch)
                chosen = logs.gather(1, wanted[part, None].to(logs.device, torch.long))[:, 0]
                row.index_add_(0, owner[part].cpu(), chosen.cpu().double())
    if reduction == "mean":
        sums /= counts.clamp(min=1).cpu()
    values: FloatArray = sums[:, counts.cpu() > 0].float().numpy()
    return values
