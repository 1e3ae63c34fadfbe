"""Selection inside Hugging Face's Trainer: the trainer's own loss, data and checkpoints, on selected rows."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from torch_trainer import Collate, Rows, arguments, losses_of, tiny_model, watch  # noqa: E402
from transformers import Trainer  # noqa: E402

from pysubmod._random import random_bits  # noqa: E402
from pysubmod.torch import BatchSelector, PartitionSel, SelectionConfig, causal_lm_loss, with_selection  # noqa: E402
from pysubmod.torch._trainer_data import trimmed  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_torch_thread")

METHODS = ["partition-sel", "filter-then-weight", "greats", "omp-normalized", "per-group", "top-k", "random"]


def config(method="partition-sel", **changes):
    options = {"group_column": "domain", "validation": Rows(30, seed=1), "layers": "*proj", "pool_factor": 4}
    return SelectionConfig(method, **options | changes)


def make(folder, selection=None, model=None, rows=None, collate=None, eval_dataset=None, **changes):
    given = {
        "model": tiny_model() if model is None else model, "args": arguments(folder, **changes),
        "train_dataset": Rows(200) if rows is None else rows, "data_collator": collate or Collate(),
        "eval_dataset": eval_dataset,
    }  # fmt: skip
    return Trainer(**given) if selection is None else with_selection(Trainer)(**given, selection=selection)


# ---- the loss is the trainer's ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("method", METHODS)
def test_a_pool_of_one_batch_trains_as_the_trainer_alone(tmp_path, method, accumulation):
    options = {"gradient_accumulation_steps": accumulation, "rows": Rows(30), "max_steps": 12 // accumulation}
    alone = make(tmp_path, **options)
    alone.train()
    selecting = make(tmp_path, config(method, pool_factor=1, use_weights=False), **options)
    selecting.train()
    assert losses_of(selecting) == losses_of(alone)
    for a, b in zip(selecting.model.parameters(), alone.model.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("accumulation", [1, 3])
def test_the_loss_on_picked_rows_is_that_of_a_batch_made_by_hand(tmp_path, accumulation):
    options = {"gradient_accumulation_steps": accumulation, "max_steps": 3, "model": tiny_model(dropout=0.0)}
    selecting = make(tmp_path, config(), **options)
    seen = watch(selecting)
    selecting.train()
    picked = []
    for _, batch in seen:
        for ids, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
            used = mask.bool()
            picked.append({"input_ids": ids[used].tolist(), "labels": labels[used].tolist()})
    assert len(picked) == 12 * accumulation
    alone = make(
        tmp_path, rows=Picked(picked), train_sampling_strategy="sequential", **options | {"model": tiny_model(0.0)}
    )
    alone.train()
    assert losses_of(selecting) == losses_of(alone)


class Picked(Rows):
    def __init__(self, rows):
        self.rows = rows


def test_weights_multiply_the_losses_of_their_rows(tmp_path):
    model = tiny_model(dropout=0.0)
    selecting = make(
        tmp_path, config("filter-then-weight"), model=model, gradient_accumulation_steps=2, max_steps=1,
        optim="sgd", learning_rate=1.0, max_grad_norm=0.0, lr_scheduler_type="constant",
    )  # fmt: skip
    seen = watch(selecting)
    reference = tiny_model(dropout=0.0)
    selecting.train()
    total = 0.0
    for pool, batch in seen:
        weights = batch["selection_weights"]
        losses, _ = causal_lm_loss(reference, {key: batch[key] for key in ("input_ids", "attention_mask", "labels")})
        total = total + (losses.sum(1) * weights).sum() / 2
        assert len(weights) == 4 and len(pool["labels"]) == 16 and (weights > 0).any()
    total.backward()
    assert losses_of(selecting)[0] == pytest.approx(float(total.detach()), rel=1e-5)
    for parameter, before in zip(model.parameters(), reference.parameters(), strict=True):
        expected = before.detach() - before.grad
        assert torch.allclose(parameter.detach(), expected, atol=1e-6)


def test_fitted_weights_make_the_step_that_of_the_target(tmp_path):
    # Everything may be picked, and the target lies in the span: the weighted gradient is the target's.
    rows = Rows(16)
    selecting = make(
        tmp_path, config("omp", validation=rows, anchors=None, pool_factor=1, layers=None),
        model=tiny_model(0.0), rows=rows, per_device_train_batch_size=16, max_steps=1,
    )  # fmt: skip
    seen = watch(selecting)
    selecting.train()
    weights = seen[0][1]["selection_weights"] * len(rows)
    tokens = sum(sum(label != -100 for label in row["labels"][1:]) for row in rows.rows) / len(rows)
    assert weights.numpy() * tokens == pytest.approx(np.ones(16), abs=1e-3)
    assert losses_of(selecting)[0] == pytest.approx(losses_of(_trained(tmp_path, rows))[0], rel=1e-4)


def _trained(folder, rows):
    alone = make(folder, model=tiny_model(0.0), rows=rows, per_device_train_batch_size=16, max_steps=1)
    alone.train()
    return alone


# ---- picks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["right", "left"])
def test_picks_are_those_of_the_selector_on_the_same_pool(tmp_path, side):
    model, validation = tiny_model(), Rows(30, seed=1)
    batch = Collate(side)([{key: row[key] for key in ("input_ids", "labels")} for row in validation.rows])
    selecting = make(
        tmp_path, config(validation=lambda step: batch, anchors=3, options={"eta": 0.1}), model=model, max_steps=1,
        collate=Collate(side),
    )  # fmt: skip
    seen = watch(selecting)
    selecting.train()
    pool, batch_of_step = seen[0]
    seed = int(random_bits(42, 0)) >> 1  # the trainer's seed, and this rank
    selector = PartitionSel(
        causal_lm_loss, eta=0.1, ratio=0.25, groups="domain", validation=batch, anchors=3, layers="*proj",
        random_state=seed,
    )  # fmt: skip
    expected = selector.select(tiny_model(), pool)
    assert len(pool["labels"]) == 16 and len(expected) == 4
    width = batch_of_step["labels"].shape[1]
    shown = expected.batch["labels"][:, :width] if side == "right" else expected.batch["labels"][:, -width:]
    assert torch.equal(shown, batch_of_step["labels"])
    assert batch_of_step["attention_mask"].any(0).all() and "domain" not in batch_of_step


def test_an_epoch_goes_through_the_rows_once(tmp_path):
    selecting = make(tmp_path, config("random"), rows=Rows(44), max_steps=-1, num_train_epochs=1)
    seen = watch(selecting)
    selecting.train()
    assert [len(pool["labels"]) for pool, _ in seen] == [16, 16, 12]
    assert [len(batch["labels"]) for _, batch in seen] == [4, 4, 3]


def test_budgets_by_label(tmp_path):
    chosen = config(budgets={"code": 1, "law": 3, "maths": 0})
    selecting = make(tmp_path, chosen)
    seen = watch(selecting)
    selecting.train()
    logs = [entry for entry in selecting.state.log_history if "loss" in entry]
    for (pool, _), entry in zip(seen, logs, strict=True):
        assert entry["selection/picks/law"] == min(3, pool["domain"].count("law"))
        assert entry["selection/picks/maths"] == 0


def test_what_is_logged(tmp_path):
    logged = []
    for steps in (1, 3):
        selecting = make(tmp_path, config("filter-then-weight", refresh_every=2), logging_steps=steps)
        selecting.train()
        logged.append([entry for entry in selecting.state.log_history if "loss" in entry])
    entry = logged[0][0]
    assert 0 < entry["selection/relative_residual"] < 1 and 0 < entry["selection/share"] <= 1
    assert entry["selection/cosine"] == pytest.approx((1 - entry["selection/relative_residual"] ** 2) ** 0.5, rel=1e-4)
    assert [entry["selection/staleness"] for entry in logged[1]] == pytest.approx([1 / 3, 2 / 3])
    for name in ("relative_residual", "conflicts", "share", "picks/law"):
        mean = np.mean([entry[f"selection/{name}"] for entry in logged[0][:3]])
        assert logged[1][0][f"selection/{name}"] == pytest.approx(mean)
    assert entry["selection/seconds"] > 0 and entry["selection/capture_seconds"] > 0
    assert sum(entry[f"selection/picks/{name}"] for name in ("code", "law", "maths")) == pytest.approx(4)
    assert entry["selection/conflicts"] >= 0


# ---- beside the trainer's other duties -------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["partition-sel", "filter-then-weight"])
@pytest.mark.parametrize("refresh", [1, 3])
def test_a_resumed_run_makes_the_same_picks(tmp_path, method, refresh):
    def run(folder, checkpoint=None):
        selecting = make(
            folder, config(method, refresh_every=refresh), rows=Rows(120), max_steps=10, save_strategy="steps",
            save_steps=4, gradient_accumulation_steps=2,
        )  # fmt: skip
        seen = watch(selecting)
        selecting.train(resume_from_checkpoint=checkpoint)
        return losses_of(selecting), seen

    whole, seen = run(tmp_path / "a")
    again, rest = run(tmp_path / "b", str(tmp_path / "a" / "checkpoint-4"))  # in the middle of an epoch
    assert again == whole
    for (_, a), (_, b) in zip(seen[-len(rest) :], rest, strict=True):
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_training_twice_starts_anew(tmp_path):
    selecting = make(tmp_path, config(), model=tiny_model(0.0), max_steps=2)
    seen = watch(selecting)
    start = {key: value.clone() for key, value in selecting.model.state_dict().items()}
    selecting.train()
    selecting.model.load_state_dict(start)
    selecting.optimizer = selecting.lr_scheduler = None
    selecting.train()
    assert all(torch.equal(seen[i][1]["labels"], seen[i + 2][1]["labels"]) for i in range(2))


def test_evaluation_is_not_touched(tmp_path):
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_list(Rows(40).rows)
    options = {"eval_strategy": "steps", "eval_steps": 2, "per_device_eval_batch_size": 4}
    options["eval_dataset"] = datasets.Dataset.from_list(Rows(20, seed=2).rows)
    alone = make(tmp_path, rows=table, **options)
    alone.train()
    selecting = make(tmp_path, config(pool_factor=1, use_weights=False), rows=table, **options)
    selecting.train()
    evaluations = [
        [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
        for trainer in (alone, selecting)
    ]
    assert evaluations[0] == evaluations[1] and len(evaluations[0]) == 3
    assert selecting.data_collator is selecting.get_eval_dataloader().collate_fn


@pytest.mark.parametrize("changes", [{"bf16": True}, {"gradient_checkpointing": True}, {"dataloader_num_workers": 1}])
def test_settings_of_the_trainer(tmp_path, changes):
    alone = make(tmp_path, **changes)
    alone.train()
    selecting = make(tmp_path, config(pool_factor=1), **changes)
    selecting.train()
    assert losses_of(selecting) == losses_of(alone)
    selecting = make(tmp_path, config("filter-then-weight", target="balanced"), **changes)
    selecting.train()
    assert np.isfinite(losses_of(selecting)).all()


def test_a_loss_of_ones_own(tmp_path):
    def per_row(model, inputs):
        logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
        return logits[:, -1].square().mean(1)

    def of_batch(outputs, labels, num_items_in_batch=None):
        return outputs.logits[:, -1].square().mean()

    given = {
        "model": tiny_model(0.0), "args": arguments(tmp_path, max_steps=1), "train_dataset": Rows(64),
        "data_collator": Collate(), "compute_loss_func": of_batch,
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"loss: this trainer's loss is not known to be next-token cross-entropy"):
        with_selection(Trainer)(**given, selection=config())
    selecting = with_selection(Trainer)(**given, selection=config("top-k", loss=per_row))
    seen = watch(selecting)
    selecting.train()
    pool, batch = seen[0]
    expected = BatchSelector(
        per_row, method="top-k", size=4, groups="domain", layers="*proj", anchors=None,
        validation=lambda step: Collate()([{k: row[k] for k in ("input_ids", "labels")} for row in drawn(30, step)]),
    ).select(tiny_model(0.0), pool)  # fmt: skip
    width = batch["labels"].shape[1]
    assert torch.equal(batch["labels"], expected.batch["labels"][:, :width])


def drawn(n, step, count=4):
    """The validation rows that a trainer with the default seed draws."""
    from pysubmod.torch._targets import anchor_rows

    seed = int(random_bits(int(random_bits(42, 0)) >> 1, step)) & (2**63 - 1)
    rows = anchor_rows(np.zeros(n, np.int64), count, False, seed)
    return [Rows(n, seed=1).rows[i] for i in rows]


def per_row(model, inputs):
    """A loss per sample that is a mean already."""
    losses, mask = causal_lm_loss(model, inputs)
    return losses.sum(1) / mask.sum(1).clamp(min=1)


@pytest.mark.parametrize("how", ["own", "mean", "token-mean"])
def test_weights_are_of_the_losses_that_are_trained_on(tmp_path, how):
    # Everything may be picked, and the target lies in the span: the loss is the target's, whatever a sample's is.
    rows = Rows(16)
    loss, options = (per_row, {}) if how == "own" else (None, {"reduction": how})
    selecting = make(
        tmp_path, config("omp", validation=rows, anchors=None, pool_factor=1, layers=None, loss=loss, options=options),
        model=tiny_model(0.0), rows=rows, per_device_train_batch_size=16, max_steps=1,
    )  # fmt: skip
    selecting.train()
    batch = Collate()([{key: row[key] for key in ("input_ids", "labels")} for row in rows.rows])
    losses, mask = causal_lm_loss(tiny_model(0.0), batch)
    expected = losses.sum() / mask.sum() if how == "token-mean" else (losses.sum(1) / mask.sum(1)).mean()
    assert losses_of(selecting)[0] == pytest.approx(float(expected.detach()), rel=1e-3)


def test_a_validation_that_ends_is_an_error(tmp_path):
    batch = Collate()([{key: row[key] for key in ("input_ids", "labels")} for row in Rows(8).rows])
    batches = iter([batch, batch])
    selecting = make(tmp_path, config(validation=lambda step: next(batches)))
    with pytest.raises(RuntimeError, match="StopIteration"):
        selecting.train()


def test_a_dataloader_asked_for_in_between_changes_nothing(tmp_path):
    class Asking(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            selecting.get_train_dataloader()

    selecting = make(tmp_path, config())
    seen = watch(selecting)
    selecting.train()
    selecting = make(tmp_path, config())
    again = watch(selecting)
    selecting.add_callback(Asking())
    selecting.train()
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for (_, a), (_, b) in zip(seen, again, strict=True))
    assert selecting._selector.state_dict()["step"] == 6


def test_greats_while_the_rate_is_zero(tmp_path):
    selecting = make(tmp_path, config("greats", options={"unit_norm": True}), max_steps=2, warmup_steps=2)
    selected = []
    original = BatchSelector.select
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BatchSelector, "select", lambda *a: selected.append(original(*a)) or selected[-1])
        selecting.train()
    assert [batch.diagnostics["equals_top_k"] for batch in selected] == [True, True]


def test_one_bad_sample_is_named(tmp_path):
    rows = Rows(16)

    def broken(model, inputs):
        losses, mask = causal_lm_loss(model, inputs)
        return losses.masked_fill((inputs["input_ids"][:, :1] == rows.rows[5]["input_ids"][0]), float("nan")), mask

    selecting = make(tmp_path, config(loss=broken, validation=Rows(30, seed=1)), rows=rows)
    with pytest.raises(ValueError, match=r"the loss of row \d+ of the (pool|anchors) is NaN or infinite"):
        selecting.train()


def test_rows_that_are_packed(tmp_path):
    collator = transformers.DataCollatorWithFlattening()
    plain = Picked([{key: row[key] for key in ("input_ids", "labels")} for row in Rows(40).rows])
    for method in ("random", "omp"):
        chosen = SelectionConfig(method, layers="*proj")
        with pytest.raises(ValueError, match="position_ids says that rows are packed"):
            make(tmp_path, chosen, rows=plain, collate=collator).train()


@pytest.mark.parametrize("kind", ["int", "class", "stream"])
def test_labels_of_datasets(tmp_path, kind):
    datasets = pytest.importorskip("datasets")
    rows = [dict(row, domain=["code", "law", "maths"].index(row["domain"])) for row in Rows(100).rows]
    table = datasets.Dataset.from_list(rows)
    if kind == "class":
        table = table.cast_column("domain", datasets.ClassLabel(names=["code", "law", "maths"]))
    if kind == "stream":
        table = table.to_iterable_dataset().with_format("torch")
    selecting = make(tmp_path, config(), rows=table, collate=Collate() if kind != "stream" else ToLists())
    selecting.train()
    assert {f"selection/picks/{label}" for label in range(3)} <= set(selecting.state.log_history[0])


class ToLists(Collate):
    def __call__(self, rows):
        return super().__call__([{key: torch.as_tensor(value).tolist() for key, value in row.items()} for row in rows])


def test_a_group_column_that_the_model_takes_too(tmp_path):
    config_of = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, num_labels=3
    )
    rows = Picked([{"input_ids": row["input_ids"][:4], "label": i % 3} for i, row in enumerate(Rows(60).rows)])

    def loss(model, inputs):
        return torch.nn.functional.cross_entropy(model(inputs["input_ids"]).logits, inputs["labels"], reduction="none")

    selecting = make(
        tmp_path, SelectionConfig("omp", group_column="label", loss=loss, layers="classifier"), rows=rows,
        model=transformers.BertForSequenceClassification(config_of), collate=transformers.default_data_collator,
    )  # fmt: skip
    selecting.train()
    assert {f"selection/picks/{label}" for label in range(3)} <= set(selecting.state.log_history[0])


def test_labels_of_a_decoder_keep_their_tokens():
    mask = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 0, 0]])
    labels = torch.tensor([[4, 4, 4, 4, -100], [4, -100, -100, -100, -100]])
    found = trimmed({"attention_mask": mask, "labels": labels}, 1)
    assert torch.equal(found["labels"], labels[:, :4]) and found["labels"].is_contiguous()


# ---- padding ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mask", "multiple", "kept"),
    [
        ([[1, 1, 0, 0, 0], [1, 1, 1, 0, 0]], 1, slice(0, 3)),
        ([[1, 1, 0, 0, 0], [1, 1, 1, 0, 0]], 2, slice(0, 4)),
        ([[1, 1, 0, 0, 0], [1, 1, 1, 0, 0]], 8, slice(0, 5)),
        ([[0, 0, 0, 1, 1], [0, 0, 1, 1, 1]], 1, slice(2, 5)),
        ([[0, 0, 0, 1, 1], [0, 0, 1, 1, 1]], 4, slice(1, 5)),
        ([[0, 1, 1, 0, 0], [0, 0, 1, 0, 0]], 4, slice(1, 5)),
        ([[1, 1, 1, 1, 1], [0, 0, 0, 0, 1]], 1, slice(0, 5)),
        ([[0, 0], [0, 0]], 1, slice(0, 2)),
    ],
)
def test_padding_that_no_row_needs(mask, multiple, kept):
    mask = torch.tensor(mask)
    embeddings, positions = torch.randn(*mask.shape, 3), torch.arange(mask.shape[1])
    batch = {"attention_mask": mask, "x": embeddings, "labels": torch.tensor([1, 2]), "positions": positions}
    found = trimmed(batch, multiple)
    assert torch.equal(found["attention_mask"], mask[:, kept]) and torch.equal(found["x"], embeddings[:, kept])
    assert torch.equal(found["labels"], batch["labels"]) and torch.equal(found["positions"], positions)
    assert trimmed({"x": embeddings}, 1)["x"] is embeddings


# ---- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "best-of"}, "method: expected one of 'omp'"),
        ({"pool_factor": 0}, "pool_factor: expected an integer of at least 1, got 0"),
        ({"use_weights": "sum"}, "use_weights: expected True, False, 'normalized' or None, got 'sum'"),
        ({"use_weights": True}, "use_weights: PartitionSel trains on uniform weights"),
        ({"group_column": None, "budgets": "balanced"}, "group_column: missing"),
        ({"group_column": None, "target": "per-group"}, "group_column: missing"),
        ({"options": [1]}, "options: expected a mapping, got list"),
    ],
)
def test_arguments_of_the_configuration(changes, message):
    with pytest.raises((TypeError, ValueError), match=message):
        config(**changes)


@pytest.mark.parametrize(
    ("selection", "changes", "message"),
    [
        (config(budgets={"code": 1, "law": 1}), {}, "budgets: sum to 2, but batches have 4 rows"),
        (config(refresh_every=0), {}, "refresh: expected an integer of at least 1"),
        (config(validation=[]), {}, "validation: expected a dataset with rows like train_dataset's"),
        (config(options={"epsilon": 1}), {}, "epsilon"),
        (config(group_column="topic"), {"table": True}, "train_dataset has no column 'topic'"),
        (config(), {"train_sampling_strategy": "batch_rebalance"}, "args: train_sampling_strategy='batch_rebalance'"),
        (config(options={"weights": "fitted"}), {}, "options: 'weights' is given by SelectionConfig's own arguments"),
        (config("random", use_weights=True), {}, "weights: 'fitted' ones are fitted to gradients; give compute_loss"),
        (config(), {"label_smoothing_factor": 0.1}, "loss: this trainer's loss is not known"),
    ],
)  # fmt: skip
def test_errors_of_a_trainer(tmp_path, selection, changes, message):
    if changes.pop("table", False):
        changes["rows"] = pytest.importorskip("datasets").Dataset.from_list(Rows(20).rows)
    with pytest.raises((TypeError, ValueError), match=message):
        make(tmp_path, selection, **changes)


def test_a_subclass_with_a_loss_of_its_own_is_not_overruled(tmp_path):
    class Scaled(Trainer):
        def compute_loss(self, *args, **kwargs):
            return 7 * super().compute_loss(*args, **kwargs)

    given = {"model": tiny_model(), "args": arguments(tmp_path), "train_dataset": Rows(20), "data_collator": Collate()}
    with pytest.raises(ValueError, match="loss: this trainer's loss is not known to be next-token cross-entropy"):
        with_selection(Scaled)(**given, selection=config())
    with_selection(Scaled)(**given, selection=config(loss=causal_lm_loss))


def test_errors_of_a_step(tmp_path):
    with pytest.raises(
        ValueError, match="group_column: a row of train_dataset has no column 'topic'; it has 'input_ids', 'labels'"
    ):
        make(tmp_path, config("omp", group_column="topic", validation=None)).train()
    kwargs = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
    with pytest.raises(ValueError, match="reentrant"):
        make(tmp_path, config(), **kwargs).train()
    with pytest.raises(ValueError, match=r"validation: has no row of group 'maths', which is in the pool"):
        rows = Picked([row for row in Rows(30, seed=1).rows if row["domain"] != "maths"])
        make(tmp_path, config(validation=rows, target="per-group")).train()
    bare = Picked([{key: row[key] for key in ("input_ids", "labels")} for row in rows.rows])
    with pytest.raises(ValueError, match="group_column: a row of validation has no column 'domain'"):
        make(tmp_path, config(validation=bare, target="balanced"))
    make(tmp_path, config(validation=bare), max_steps=1).train()  # the plain mean asks for no labels
    with pytest.raises(TypeError, match="selection: expected a SelectionConfig, got dict"):
        with_selection(Trainer)(model=tiny_model(), args=arguments(tmp_path), selection={})
    with pytest.raises(TypeError, match="trainer_class: SelectingTrainer selects already"):
        with_selection(with_selection(Trainer))
    with pytest.raises(TypeError, match=r"trainer_class: expected transformers.Trainer or a subclass"):
        with_selection(dict)
