"""Selection inside TRL's SFTTrainer: raw rows, LoRA, labels on completions, evaluation beside it."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
datasets = pytest.importorskip("datasets")
tokenizers = pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
trl = pytest.importorskip("trl")

from torch_trainer import DOMAINS, losses_of, watch  # noqa: E402

from pysubmod._random import random_bits  # noqa: E402
from pysubmod.torch import (  # noqa: E402
    BatchSelector,
    FilterThenWeight,
    PartitionSel,
    SelectionConfig,
    causal_lm_loss,
    per_sample_gradients,
    with_selection,
)

pytestmark = pytest.mark.usefixtures("one_torch_thread")

WORDS = [f"w{i}" for i in range(44)]
CHAT = (
    "{% for m in messages %}{{ m.role + ' ' }}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content + ' <eos>' }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}"
    "{{ ' ' }}{% endfor %}"
)


def tokenizer():
    names = ["<pad>", "<eos>", "<unk>", "user", "assistant", *WORDS]
    model = tokenizers.models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>")
    inside = tokenizers.Tokenizer(model)
    inside.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inside, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", chat_template=CHAT
    )


def table(n=96, seed=0, kind="prompt"):
    """Raw rows, of words."""
    draw = np.random.default_rng(seed)

    def words(low, high):
        return " ".join(draw.choice(WORDS, draw.integers(low, high)))

    def row(i):
        prompt, completion = words(1, 4) + " ", words(2, 7) + " "
        domain = {"domain": DOMAINS[i * 7 % 11 % 3]}
        if kind == "prompt":
            return {"prompt": prompt, "completion": completion} | domain
        if kind == "text":
            return {"text": prompt + completion} | domain
        turns = [("user", prompt), ("assistant", completion), ("user", words(1, 3)), ("assistant", words(1, 4))]
        return {"messages": [{"role": role, "content": content.strip()} for role, content in turns]} | domain

    return datasets.Dataset.from_list([row(i) for i in range(n)])


def llama():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=49, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, tie_word_embeddings=False, bos_token_id=None, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


LORA = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"], "lora_dropout": 0.1, "task_type": "CAUSAL_LM"}


def config(method="partition-sel", **changes):
    options = {"group_column": "domain", "validation": table(24, seed=1), "layers": "*lora_*"}
    return SelectionConfig(method, **options | changes)


def make(folder, selection=None, *, rows=None, kind="prompt", lora=LORA, evaluation=None, **changes):
    options = {
        "output_dir": str(folder), "per_device_train_batch_size": 4, "max_steps": 3, "logging_steps": 1,
        "report_to": [], "save_strategy": "no", "use_cpu": True, "learning_rate": 5e-2, "disable_tqdm": True,
        "max_length": 32, "bf16": False, "activation_checkpointing": False,
    }  # fmt: skip
    given = {
        "model": llama(), "args": trl.SFTConfig(**options | changes), "processing_class": tokenizer(),
        "train_dataset": table(kind=kind) if rows is None else rows, "eval_dataset": evaluation,
        "peft_config": peft.LoraConfig(**lora) if lora else None,
    }  # fmt: skip
    if selection is None:
        return trl.SFTTrainer(**given)
    return with_selection(trl.SFTTrainer)(**given, selection=selection)


def trained(*args, **kwargs):
    trainer = make(*args, **kwargs)
    trainer.train()
    return trainer


def logs_of(trainer):
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def same_parameters(left, right):
    pairs = zip(left.model.parameters(), right.model.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


# ---- the loss is the trainer's ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("prompt", {}),
        ("prompt", {"gradient_accumulation_steps": 2}),
        ("prompt", {"completion_only_loss": False}),
        ("prompt", {"activation_checkpointing": True}),
        ("prompt", {"pad_to_multiple_of": 8}),
        ("text", {}),
        ("chat", {"assistant_only_loss": True}),
        ("prompt", {"lora": None}),
    ],
)
def test_a_pool_of_one_batch_trains_as_the_trainer_alone(tmp_path, kind, changes):
    alone = trained(tmp_path, kind=kind, **changes)
    layers = "*proj" if "lora" in changes else "*lora_*"
    chosen = config(pool_factor=1, use_weights=False, validation=table(24, 1, kind), layers=layers)
    selecting = trained(tmp_path, chosen, kind=kind, **changes)
    assert losses_of(selecting) == losses_of(alone) and same_parameters(selecting, alone)
    for left, right in zip(logs_of(selecting), logs_of(alone), strict=True):
        assert {key: left[key] for key in right} == right  # the number of tokens seen, too
    assert selecting.model.training


@pytest.mark.parametrize("name", ["partition-sel", "filter-then-weight", "omp-normalized"])
def test_methods(tmp_path, name):
    selecting = make(tmp_path, config(name, target="per-group" if name == "omp-normalized" else "mean"))
    start = {key: value.clone() for key, value in selecting.model.state_dict().items()}
    seen = watch(selecting)
    selecting.train()
    for pool, batch in seen:
        assert len(pool["labels"]) == 16 and len(batch["labels"]) == 4 and "domain" not in batch
        assert ("selection_weights" in batch) == (name != "partition-sel")
    changed = [key for key, value in selecting.model.state_dict().items() if not torch.equal(value, start[key])]
    assert changed and all("lora_" in key for key in changed)
    for entry in logs_of(selecting):
        assert np.isfinite(entry["loss"])
        picks = {key.rpartition("/")[2]: entry[key] for key in entry if key.startswith("selection/picks/")}
        assert sum(picks.values()) == 4 and set(picks) <= set(DOMAINS)
        assert {"selection/cosine", "selection/conflicts", "selection/share", "selection/seconds"} <= entry.keys()
    assert {key for entry in logs_of(selecting) for key in entry if "picks" in key} == {
        f"selection/picks/{name}" for name in DOMAINS
    }


def test_the_weighted_loss_is_the_sum_of_weights_and_losses(tmp_path):
    selecting, reference = twins(tmp_path, config("filter-then-weight"))
    seen = watch(selecting)
    selecting.train()
    batch = seen[0][1]
    losses, _ = causal_lm_loss(reference, {key: batch[key] for key in ("input_ids", "attention_mask", "labels")})
    expected = (losses.sum(1) * batch["selection_weights"]).sum()
    assert losses_of(selecting)[0] == pytest.approx(expected.item(), rel=1e-5)


def twins(folder, selection, **changes):
    """A trainer of one step without dropout, and its model's twin as it is now."""
    lora = LORA | {"lora_dropout": 0.0}
    selecting, twin = (make(folder, chosen, lora=lora, max_steps=1, **changes) for chosen in (selection, None))
    assert same_parameters(selecting, twin)
    return selecting, twin.model.train()


def test_no_gradient_at_lora_a_in_the_first_step(tmp_path):
    selecting, reference = twins(tmp_path, config("filter-then-weight"))
    seen = watch(selecting)
    selecting.args.max_steps = 2
    selecting.train()
    pool = {key: value for key, value in seen[0][0].items() if key != "domain"}
    gradients = per_sample_gradients(reference, causal_lm_loss, pool, layers="*lora_*")
    norms = {name: gradients.matrix()[:, columns].norm() for name, columns in gradients.columns.items()}
    assert all((norm == 0) == ("lora_A" in name) for name, norm in norms.items())
    assert len(seen) == 2
    assert all(np.isfinite(entry["loss"]) and entry["selection/cosine"] > 0 for entry in logs_of(selecting))


# ---- picks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["partition-sel", "filter-then-weight", "omp-normalized"])
def test_picks_are_those_of_the_selectors_on_the_same_pool(tmp_path, name):
    selecting, model = twins(tmp_path, config(name))
    args = table(24, 1), selecting.processing_class, selecting.args, False, None, "selection"
    prepared = [{key: row[key] for key in ("input_ids", "labels")} for row in selecting._prepare_dataset(*args)]
    seen = watch(selecting)
    selecting.train()
    pool, picked = seen[0]
    tokens = float(pool["labels"][:, 1:].ne(-100).sum()) / 16

    def loss(model, batch):  # of a batch's samples, so that their mean is the mean over tokens
        losses, mask = causal_lm_loss(model, batch)
        return losses / (mask.sum() / len(mask)), mask

    common = {
        "ratio": 0.25, "groups": "domain", "layers": "*lora_*", "validation": selecting.data_collator(prepared),
        "random_state": int(random_bits(42, 0)) >> 1,  # the trainer's seed, and this rank
    }  # fmt: skip
    if name == "partition-sel":
        selector = PartitionSel(loss, eta=5e-2, **common)
    elif name == "filter-then-weight":
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        selector = FilterThenWeight(loss, optimizer=torch.optim.AdamW(trainable, 5e-2, weight_decay=0), **common)
    else:
        selector = BatchSelector(loss, method=name, **common)
    expected = selector.select(model, pool)
    width = picked["labels"].shape[1]
    assert torch.equal(expected.batch["input_ids"][:, :width], picked["input_ids"])
    assert not expected.batch["attention_mask"][:, width:].any() and picked["attention_mask"].any(0).all()
    if name != "partition-sel":
        assert (picked["selection_weights"] * tokens).tolist() == pytest.approx(expected.weights.tolist(), rel=1e-4)


@pytest.mark.parametrize(("kind", "changes"), [("prompt", {}), ("chat", {"assistant_only_loss": True})])
def test_only_the_tokens_of_completions_count(tmp_path, kind, changes):
    selecting, model = twins(tmp_path, config(validation=table(24, 1, kind)), kind=kind, **changes)
    seen, divisors = watch(selecting), []
    original = selecting._selector._gradients

    def gradients(*args):
        divisors.append(original(*args).divisor)
        return original(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(selecting), "_start_anew", lambda self: None)  # goes on with this selector
        selecting._selector._gradients = gradients
        selecting.train()
    counts, names = {}, tokenizer()
    for raw in table(kind=kind):
        if kind == "prompt":
            counted = len((raw["completion"] + "<eos>").split())
            words = (raw["prompt"] + raw["completion"] + "<eos>").split()
        else:
            counted = sum(len(m["content"].split()) + 1 for m in raw["messages"] if m["role"] == "assistant")
            words = names.apply_chat_template(raw["messages"], tokenize=False).split()
        counts[tuple(names.convert_tokens_to_ids(words))] = counted
    (pool, batch), *_ = seen
    for part in (pool, batch):
        found = part["labels"].ne(-100).sum(1).tolist()
        rows = zip(part["input_ids"], part["attention_mask"], strict=True)
        assert found == [counts[tuple(ids[mask.bool()].tolist())] for ids, mask in rows]
    total = int(pool["labels"].ne(-100).sum())
    assert divisors[0] == pytest.approx(total / 16)  # in the gradients
    losses, mask = causal_lm_loss(model, batch)  # and in the step
    assert losses_of(selecting)[0] == pytest.approx((losses.sum() / mask.sum()).item(), rel=1e-5)


def test_truncated_validation_rows_are_prepared_as_the_training_rows(tmp_path):
    selecting = make(tmp_path, config(anchors=None), max_length=6, max_steps=1)
    batch = selecting._validation(0)
    assert batch["input_ids"].shape == (24 - _lost(table(24, 1), 6), 6)
    selecting.train()


def _lost(rows, length):
    """Rows whose prompt alone is that long are dropped."""
    return sum(len(row["prompt"].split()) >= length for row in rows)


# ---- beside ----------------------------------------------------------------------------------------------------------


def test_evaluation_is_not_touched(tmp_path):
    options = {"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 4}
    runs = [
        trained(tmp_path, selection, evaluation=table(20, seed=2), **options)
        for selection in (None, config(pool_factor=1, use_weights=False))
    ]
    unlike = ("runtime", "per_second")
    evaluations = [
        [
            {key: value for key, value in entry.items() if not key.endswith(unlike)}
            for entry in [*(e for e in run.state.log_history if "eval_loss" in e), run.evaluate(table(12, seed=3))]
        ]
        for run in runs
    ]
    assert evaluations[0] == evaluations[1] and len(evaluations[0]) == 4
    weighted = trained(tmp_path, config("filter-then-weight"), evaluation=table(20, seed=2), **options)
    assert np.isfinite([entry["eval_loss"] for entry in weighted.state.log_history if "eval_loss" in entry]).all()


def test_a_resumed_run_makes_the_same_picks(tmp_path):
    chosen = config("filter-then-weight", refresh_every=2)

    def run(folder, checkpoint=None):
        selecting = make(folder, chosen, max_steps=5, save_strategy="steps", save_steps=3)
        seen = watch(selecting)
        selecting.train(resume_from_checkpoint=checkpoint)
        return losses_of(selecting), seen

    whole, seen = run(tmp_path / "a")
    again, rest = run(tmp_path / "b", str(tmp_path / "a" / "checkpoint-3"))
    assert again == whole and len(rest) == 2
    for (_, a), (_, b) in zip(seen[3:], rest, strict=True):
        assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"packing": True}, "args: packed rows are not samples"),
        ({"padding_free": True, "max_length": None}, "args: packed rows are not samples"),
        ({"loss_type": "dft"}, r"SelectionConfig\(loss="),
        ({"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": True}}, "reentrant"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_errors(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        trained(tmp_path, config(), **changes)


def test_a_loss_of_ones_own_instead_of_dft(tmp_path):
    def dft(model, inputs):
        losses, mask = causal_lm_loss(model, inputs)
        return losses * (-losses).exp().detach(), mask

    chosen = config(loss=dft, pool_factor=1, use_weights=False)
    alone, selecting = trained(tmp_path, loss_type="dft"), trained(tmp_path, chosen, loss_type="dft")
    assert losses_of(selecting) == losses_of(alone)
    weighted = trained(tmp_path, config("filter-then-weight", loss=dft), loss_type="dft")
    assert np.isfinite(losses_of(weighted)).all()
