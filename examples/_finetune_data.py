"""Texts of `finetune_lora.py`: rows of prompt, response and domain, in three splits, and their tokens."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

__all__ = ["SPLITS", "Rows", "collate", "read_rows", "tokenized"]

SPLITS = ("train", "validation", "test")


def read_rows(source: str, group_column: str, domains: Sequence[str] | None = None) -> dict[str, list[dict[str, str]]]:
    """The rows of each split, no text in two of them.

    A row's split is that of its column "split", else of its file's name (``NAME.train.jsonl``) or of its split in a
    dataset of the Hub; where no row says so, a hash of the text cuts 80 : 10 : 10. Rows are in the order of the hash,
    so that nothing depends on the order of files.
    """
    splits: dict[str, dict[str, str]] = {}  # text -> row; a text found twice keeps the last of SPLITS
    found = list(_raw(source))
    told = any(row.get("split") in SPLITS[1:] for row in found)
    for number, row in enumerate(found):
        for column in ("prompt", "response", group_column):
            if not isinstance(row.get(column), str):
                raise SystemExit(
                    f"--data: row {number + 1} of {source} has no text {column!r}; it has {', '.join(row)} "
                    "(--group-column names the column with the domain)"
                )
        if domains and row[group_column] not in domains:
            continue
        text = row["prompt"] + "\n" + row["response"]
        key = hashlib.sha256(text.encode()).hexdigest()
        split = row.get("split") if told else SPLITS[max(int(key[:8], 16) % 10 - 7, 0)]
        kept = splits.get(text)
        if split not in SPLITS or (kept and SPLITS.index(kept["split"]) >= SPLITS.index(split)):
            continue
        splits[text] = {
            "prompt": row["prompt"], "response": row["response"], group_column: row[group_column], "split": split,
            "key": key,
        }  # fmt: skip
    missing = set(domains or ()) - {row[group_column] for row in splits.values()}
    if missing:
        raise SystemExit(f"--domains: no rows of {', '.join(sorted(missing))} in {source}")
    chosen: dict[str, list[dict[str, str]]] = {split: [] for split in SPLITS}
    for row in sorted(splits.values(), key=lambda row: row["key"]):
        chosen[row["split"]].append(row)
    for split, rows in chosen.items():
        if not rows:
            raise SystemExit(
                f"--data: {source} has no {split} rows; mark some in a column 'split', or mark none at all and they "
                "are cut by a hash"
            )
    return chosen


def _raw(source: str) -> Iterable[dict[str, Any]]:
    path = Path(source)
    if path.exists():
        files = sorted(path.rglob("*.jsonl")) if path.is_dir() else [path]
        if not files:
            raise SystemExit(f"--data: no *.jsonl files in {source}")
        for file in files:
            named = next((split for split in SPLITS if f".{split}." in file.name), None)
            for number, line in enumerate(file.read_text(encoding="utf-8").split("\n")):
                if line.strip():
                    try:
                        yield {"split": named} | json.loads(line)
                    except (json.JSONDecodeError, TypeError):
                        raise SystemExit(f"--data: line {number + 1} of {file} is not a JSON object") from None
        return
    if source.endswith((".jsonl", ".json")):
        raise SystemExit(f"--data: no file {source}")
    try:
        from datasets import load_dataset
    except ImportError:
        raise SystemExit(
            f"--data: no file or folder {source}; for a dataset of the Hub: pip install datasets"
        ) from None
    for split, rows in load_dataset(source).items():
        for row in rows:
            yield {"split": split} | row


def tokenized(
    tokenizer: Any,
    rows: Sequence[dict[str, str]],
    group_column: str,
    limit: int,
    *,
    max_tokens: int,
    max_response: int,
    system: str | None = None,
) -> list[dict[str, Any]]:
    """Token ids of the first `limit` texts of each domain that are short enough, with labels of -100 in the prompt.

    In the model's chat format, if it has one. Longer texts are left out rather than cut: half an answer is another one.
    """
    ready = []
    count: Counter[str] = Counter()
    for row in rows:
        if count[row[group_column]] == limit:
            continue
        head = row["prompt"] + "\n"
        if tokenizer.chat_template:
            said = [] if system is None else [{"role": "system", "content": system}]
            said.append({"role": "user", "content": row["prompt"]})
            head = tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
        prompt = tokenizer(head, add_special_tokens=False)["input_ids"]
        response = tokenizer(row["response"] + (tokenizer.eos_token or ""), add_special_tokens=False)["input_ids"]
        if len(prompt) + len(response) <= max_tokens and 0 < len(response) <= max_response and prompt:
            labels = [-100] * len(prompt) + response
            ready.append({"input_ids": prompt + response, "labels": labels, group_column: row[group_column]})
            count[row[group_column]] += 1
    return ready


class Rows(Dataset):  # type: ignore[type-arg]
    """A dataset of rows that are ready."""

    def __init__(self, rows: Sequence[dict[str, Any]]) -> None:
        self._rows = list(rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._rows[index]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._rows)


def collate(rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """Columns padded on the right: ids with 0, labels with -100, stored hidden states with zeros."""
    pad = torch.nn.utils.rnn.pad_sequence
    batch: dict[str, Tensor] = {}
    for name in ("input_ids", "inputs_embeds", "positions", "labels"):
        if name in rows[0]:
            columns = [torch.as_tensor(row[name]) for row in rows]
            batch[name] = pad(columns, batch_first=True, padding_value=-100 if name == "labels" else 0)
    main = "inputs_embeds" if "inputs_embeds" in batch else "input_ids"
    batch["attention_mask"] = pad([torch.ones(len(row[main]), dtype=torch.long) for row in rows], batch_first=True)
    return batch
