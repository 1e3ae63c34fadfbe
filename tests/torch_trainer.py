"""A tiny causal language model, rows in three domains, and a collator: what a Hugging Face trainer is given."""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback, TrainingArguments

DOMAINS = ["code", "law", "maths"]


class Rows(torch.utils.data.Dataset):
    """Random tokens; each row also says who it is, in a column that neither model nor collator knows."""

    def __init__(self, n, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.rows = []
        for i in range(n):
            length = int(torch.randint(4, 12, (), generator=generator))
            ids = torch.randint(1, 50, (length,), generator=generator).tolist()
            labels = [-100] * (1 + i % 2) + ids[1 + i % 2 :]
            self.rows.append({"input_ids": ids, "labels": labels, "domain": DOMAINS[i * 7 % 11 % 3]})

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return dict(self.rows[i])


class Collate:
    """Pads on one side; refuses columns that it does not know, as tokenizers' collators do."""

    def __init__(self, side="right", multiple=None):
        self.side, self.pad_to_multiple_of = side, multiple

    def __call__(self, rows):
        assert all(set(row) == {"input_ids", "labels"} for row in rows), rows[0].keys()
        width = max(len(row["input_ids"]) for row in rows)
        width += -width % (self.pad_to_multiple_of or 1)

        def padded(values, filler):
            missing = [filler] * (width - len(values))
            return values + missing if self.side == "right" else missing + values

        return {
            "input_ids": torch.tensor([padded(row["input_ids"], 0) for row in rows]),
            "attention_mask": torch.tensor([padded([1] * len(row["input_ids"]), 0) for row in rows]),
            "labels": torch.tensor([padded(row["labels"], -100) for row in rows]),
        }


def tiny_model(dropout=0.1):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, attention_dropout=dropout, tie_word_embeddings=False,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def arguments(folder, **changes):
    options = {
        "output_dir": str(folder), "per_device_train_batch_size": 4, "max_steps": 6, "logging_steps": 1,
        "report_to": [], "save_strategy": "no", "use_cpu": True, "learning_rate": 1e-2, "disable_tqdm": True,
    }  # fmt: skip
    return TrainingArguments(**options | changes)


class Steps(TrainerCallback):
    """What a trainer logs at each step, without the metrics of time."""

    def __init__(self):
        self.logs = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs:
            self.logs.append({key: value for key, value in logs.items() if "seconds" not in key})


def losses_of(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def watch(trainer):
    """The trainer's selections from now on: pools as they came, and what was selected."""
    seen, original = [], trainer._select

    def select(pool):
        batch = original(pool)
        seen.append((dict(pool), batch))
        return batch

    trainer._select = select
    return seen
