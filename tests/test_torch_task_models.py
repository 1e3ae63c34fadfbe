"""`task_log_probs` on tiny Llamas of random weights: against logits taken by hand, a sample at a time, in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5.0")

from pysubmod.mixture import task_mixture  # noqa: E402
from pysubmod.similarity import divergence_matrix, to_similarity  # noqa: E402
from pysubmod.torch import task_log_probs, task_models  # noqa: E402

pytestmark = [pytest.mark.usefixtures("one_torch_thread"), pytest.mark.filterwarnings("ignore:Adapter name")]
V = 40
TASKS = ("a", "b", "c")


def llama(seed, vocabulary=V, **options):
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=vocabulary, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, pad_token_id=0, initializer_range=0.4, attention_dropout=0.3, **options,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def rows_of(seed, count=5):
    """Rows of several lengths; the prompt does not count, nor does one token in the middle of an answer."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for length in torch.randint(6, 12, (count,), generator=generator).tolist():
        ids = torch.randint(1, V, (length,), generator=generator).tolist()
        labels = [-100] * 3 + ids[3:]
        labels[4] = -100
        rows.append({"input_ids": ids, "labels": labels, "domain": "left alone"})
    return rows


@pytest.fixture
def datasets():
    return {task: rows_of(seed) for seed, task in enumerate(TASKS)}


@pytest.fixture
def models():
    return {task: llama(10 + seed) for seed, task in enumerate(TASKS)}


def by_hand(model, row):
    """(positions, V) log-probabilities of the tokens that count, and which tokens they are."""
    model.eval()
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0].double()
    logs = (logits - torch.logsumexp(logits, 1, keepdim=True)).numpy()
    places = [t for t, label in enumerate(row["labels"]) if label != -100 and t > 0]
    return np.array([logs[t - 1] for t in places]).reshape(-1, logs.shape[1]), [row["labels"][t] for t in places]


def dense(models, datasets):
    return {
        task: np.stack([np.concatenate([by_hand(model, row)[0] for row in rows]) for model in models])
        for task, rows in datasets.items()
    }


def joined(chunks, axis=1):
    return np.concatenate(list(chunks), axis=axis)


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_distributions_are_those_of_each_sample_alone(models, datasets, batch_size):
    wanted = dense(models.values(), datasets)
    found = task_log_probs(models, datasets, batch_size=batch_size)
    assert list(found) == list(TASKS)
    for task in reversed(TASKS):  # in any order
        array = joined(found[task])
        assert array.dtype == np.float32
        np.testing.assert_allclose(array, wanted[task], atol=2e-5)
        np.testing.assert_allclose(np.exp(array.astype(float)).sum(axis=2), 1.0, atol=1e-5)


@pytest.mark.parametrize("kind", ["jsd", "kl"])
def test_divergences_are_those_of_a_dense_computation(models, datasets, kind):
    logs = dense(models.values(), datasets)
    wanted = np.zeros((3, 3))
    for i, one in enumerate(TASKS):
        for j, other in enumerate(TASKS):
            for task, a, b in ((one, i, j), (other, j, i)):
                p, q = np.exp(logs[task][a]), np.exp(logs[task][b])
                m = (p + q) / 2
                each = (p * np.log(p / m) + q * np.log(q / m)) / 2 if kind == "jsd" else p * np.log(p / q)
                wanted[i, j] += each.sum(axis=1).mean() / 2
    found = divergence_matrix(task_log_probs(models, datasets, kind), kind)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    if kind == "jsd":
        assert (found <= math.log(2)).all()
        assert task_mixture(to_similarity(found, "exponential"), beta=0.1, lam=1).status == "optimal"


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_observed_answers(models, datasets, reduction):
    datasets["b"].insert(1, {"input_ids": [3, 4, 5], "labels": [-100] * 3})  # says nothing: left out
    for task, chunks in task_log_probs(models, datasets, "pmi", reduction=reduction, batch_size=2).items():
        found, wanted = joined(chunks), []
        for model in models.values():
            values = []
            for row in datasets[task]:
                logs, tokens = by_hand(model, row)
                if tokens:
                    each = logs[np.arange(len(tokens)), tokens]
                    values.append(each.sum() if reduction == "sum" else each.mean())
            wanted.append(values)
        np.testing.assert_allclose(found, wanted, atol=1e-4)
    D = divergence_matrix(task_log_probs(models, datasets, "pmi", reduction=reduction), "pmi")
    assert D.shape == (3, 3)


def test_chunks_are_short_and_change_nothing(models, datasets, monkeypatch):
    whole = {task: joined(chunks) for task, chunks in task_log_probs(models, datasets).items()}
    answers = {task: joined(chunks) for task, chunks in task_log_probs(models, datasets, "pmi").items()}
    for held, longest in ((1, 1), (3 * V * 4, 4)):
        monkeypatch.setattr(task_models, "_CHUNK", held)
        for task, chunks in task_log_probs(models, datasets).items():
            parts = list(chunks)
            assert max(part.shape[1] for part in parts) == longest
            np.testing.assert_allclose(joined(parts), whole[task], atol=1e-5)
        for task, chunks in task_log_probs(models, datasets, "pmi").items():
            np.testing.assert_allclose(joined(chunks), answers[task], atol=1e-4)


def test_a_wide_vocabulary_never_has_all_its_logits(models, monkeypatch):
    """150,000 tokens: no module returns more than a chunk of logits."""
    wide = 150_000
    models = {task: llama(seed, wide) for seed, task in enumerate(TASKS)}
    rows = {task: rows_of(seed, 3) for seed, task in enumerate(TASKS)}
    most = []
    for model in models.values():
        model.lm_head.register_forward_hook(lambda module, args, output: most.append(output.numel()))
    monkeypatch.setattr(task_models, "_CHUNK", 2 * 3 * wide)
    D = divergence_matrix(task_log_probs(models, rows), "jsd")
    assert max(most) <= 2 * wide  # two positions at a time
    assert (D[~np.eye(3, dtype=bool)] > 0).all()


def test_what_the_model_does_to_logits_is_done(datasets):
    """Gemma 2 caps its logits after the head."""
    torch.manual_seed(0)
    config = transformers.Gemma2Config(
        vocab_size=V, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, head_dim=8,
        num_key_value_heads=1, final_logit_softcapping=0.5, initializer_range=0.5, pad_token_id=0,
    )  # fmt: skip
    model = transformers.Gemma2ForCausalLM(config).eval()
    datasets = {"a": datasets["a"]}
    found = joined(task_log_probs([model], datasets)["a"])
    np.testing.assert_allclose(found, dense([model], datasets)["a"], atol=2e-5)
    assert np.ptp(found, axis=2).max() < 1.01  # capped at +- 0.5, so it was


def test_batches_and_other_collators(models, datasets):
    wanted = joined(task_log_probs(models, datasets)["a"])

    def collate(rows):  # padded on the left, as for generation
        longest = max(len(row["input_ids"]) for row in rows)
        columns = {"input_ids": 0, "labels": -100}
        batch = {
            key: torch.tensor([[pad] * (longest - len(row[key])) + row[key] for row in rows])
            for key, pad in columns.items()
        }
        lengths = torch.tensor([len(row["input_ids"]) for row in rows])
        batch["attention_mask"] = (torch.arange(longest) >= longest - lengths[:, None]).long()
        return batch | {"name": "no tensor"}

    loader = torch.utils.data.DataLoader(datasets["a"], batch_size=3, collate_fn=collate)
    for samples in (loader, [collate(datasets["a"])]):
        found = joined(task_log_probs(models, datasets | {"a": samples})["a"])
        np.testing.assert_allclose(found, wanted, atol=1e-4)
    found = joined(task_log_probs(models, datasets, collate=collate, batch_size=2)["a"])
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    found = joined(task_log_probs(models, datasets | {"a": iter(datasets["a"])})["a"])
    np.testing.assert_allclose(found, wanted, atol=1e-4)


class Bigrams(torch.nn.Module):
    """Logits of the last token alone, and no head that anybody could find."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.table = torch.nn.Embedding(V, V)

    def forward(self, input_ids, attention_mask=None):
        return self.table(input_ids)


@pytest.mark.parametrize("held", [1, 2**24])
def test_a_plain_module(datasets, monkeypatch, held):
    monkeypatch.setattr(task_models, "_CHUNK", held)
    two = {"a": Bigrams(0), "b": Bigrams(1)}
    datasets = {task: datasets[task] for task in two}
    for task, chunks in task_log_probs(two, datasets).items():
        places = [
            (row["input_ids"][t - 1])
            for row in datasets[task]
            for t, label in enumerate(row["labels"])
            if label != -100
        ]
        wanted = [model.table.weight[places].log_softmax(1).detach().numpy() for model in two.values()]
        np.testing.assert_allclose(joined(chunks), wanted, atol=1e-6)


# ---- adapters --------------------------------------------------------------------------------------------------------


def adapted(names=TASKS, **options):
    peft = pytest.importorskip("peft")
    lora = peft.LoraConfig(
        r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False, lora_dropout=0.5, **options
    )
    torch.manual_seed(5)
    model = peft.get_peft_model(llama(1), lora, adapter_name=names[0])
    for name in names[1:]:
        model.add_adapter(name, lora)
    return model


@pytest.mark.parametrize("options", [{}, {"modules_to_save": ["lm_head"]}], ids=["lora", "head-too"])
def test_adapters_are_as_good_as_models_of_their_own(datasets, options):
    model = adapted(**options)
    if options:
        for seed, name in enumerate(TASKS):
            torch.manual_seed(seed)
            torch.nn.init.normal_(model.base_model.model.lm_head.modules_to_save[name].weight)
    found = {task: joined(chunks) for task, chunks in task_log_probs(model, datasets, batch_size=2).items()}
    merged = []
    for name in TASKS:
        own = adapted(**options)
        own.load_state_dict(model.state_dict())
        own.set_adapter(name)
        merged.append(own.merge_and_unload())
    for task, wanted in dense(merged, datasets).items():
        np.testing.assert_allclose(found[task], wanted, atol=5e-5)
        assert np.abs(wanted[0] - wanted[1]).max() > 0.1


def test_equal_adapters_do_not_differ(datasets):
    model = adapted()
    state = model.state_dict()
    model.load_state_dict({key: state[key.replace(".b.", ".a.")] for key in state})
    D = divergence_matrix(task_log_probs(model, datasets), "jsd")
    assert D[0, 1] == 0.0
    assert D[0, 2] > 1e-3


def test_adapters_by_other_names(datasets):
    model = adapted(("x", "y", "z"))
    wanted = joined(task_log_probs(adapted(), datasets)["b"])
    for adapters in (["x", "y", "z"], {"c": "z", "a": "x", "b": "y"}):
        np.testing.assert_array_equal(joined(task_log_probs(model, datasets, adapters=adapters)["b"]), wanted)


@pytest.mark.parametrize("kind", ["jsd", "pmi"])
def test_the_model_is_left_as_it_was(datasets, kind, monkeypatch):
    monkeypatch.setattr(task_models, "_CHUNK", 4 * 3 * V)  # several chunks of a batch
    model = adapted()
    model.set_adapter("b")
    model.base_model.set_adapter(["b", "c"])  # two at once
    model.train()
    model.base_model.model.model.layers[0].eval()
    next(p for n, p in model.named_parameters() if "lora_A.a" in n).requires_grad_(True)
    next(p for n, p in model.named_parameters() if "lora_A.b" in n).requires_grad_(False)

    def state():
        return (
            model.active_adapter, model.active_adapters, [m.training for m in model.modules()],
            [p.requires_grad for p in model.parameters()], torch.get_rng_state().tolist(), torch.is_grad_enabled(),
            [len(m._forward_pre_hooks) for m in model.modules()],
        )  # fmt: skip

    before, weights = state(), [p.detach().clone() for p in model.parameters()]
    streams = task_log_probs(model, datasets, kind, batch_size=3)
    for _ in streams["a"]:
        assert state() == before  # between two arrays, too
    next(streams["b"])
    streams["b"].close()  # given up half way
    assert state() == before
    assert all(torch.equal(p, w) for p, w in zip(model.parameters(), weights, strict=True))


def test_the_model_is_left_as_it_was_after_an_error(datasets):
    model = adapted()
    model.set_adapter("c")
    model.train()
    bad = datasets | {"a": [{"input_ids": [1, V + 5, 2], "labels": [1, 2, 3]}]}
    with pytest.raises(IndexError):
        list(task_log_probs(model, bad)["a"])
    assert model.active_adapters == ["c"] and model.training
    assert not model.base_model.model.lm_head._forward_pre_hooks


# ---- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"kind": "cosine"}, ValueError, r"kind: expected one of 'jsd', 'kl', 'pmi'"),
        ({"reduction": "max"}, ValueError, r"reduction: expected one of"),
        ({"batch_size": 0}, ValueError, r"batch_size: expected a positive integer, got 0"),
        ({"datasets": []}, TypeError, r"datasets: expected a mapping"),
        ({"datasets": {}}, ValueError, r"datasets: is empty"),
        ({"reduction": "mean"}, ValueError, r"reduction: is for kind 'pmi' only"),
        ({"models": 3}, TypeError, r"models: expected a mapping by task or a sequence, got int"),
        ({"models": [1, 2]}, ValueError, r"models: expected 3, one a task in the order of datasets; got 2"),
        ({"models": {"a": 1}}, ValueError, r"models: expected one for each task, \['a', 'b', 'c'\]; got \['a'\]"),
        ({"models": [1, 2, 3]}, TypeError, r"models\['a'\]: expected a torch module, got int"),
        ({"adapters": ["a"]}, ValueError, r"adapters: only for one PEFT model"),
        ({"models": Bigrams(0)}, TypeError, r"models: expected a model for each task, or one PEFT model"),
    ],
)
def test_errors_come_before_any_work(models, datasets, change, kind, message):
    arguments = {"models": models, "datasets": datasets} | change
    with pytest.raises(kind, match=message):
        task_log_probs(arguments.pop("models"), arguments.pop("datasets"), **arguments)


@pytest.mark.parametrize(
    ("samples", "kind", "message"),
    [
        (3, TypeError, r"datasets\['a'\]: expected rows, or an iterable of batches; got int"),
        ([{"input_ids": [1]}], ValueError, r"datasets\['a'\]: a row needs input_ids and labels .* has \['input_ids'\]"),
        ([[1, 2]], ValueError, r"a row needs input_ids and labels .* has list"),
        ([{"input_ids": [1], "labels": [1, 2]}], ValueError, r"one length a row; got \(1,\) and \(2,\)"),
        ([{"input_ids": [], "labels": []}], ValueError, r"datasets\['a'\]: a row is empty"),
        ([{"input_ids": [1, 2], "labels": [1, -1]}], ValueError, r"datasets\['a'\]: has the label -1; .* -100"),
        ([{"input_ids": [1, 2], "labels": [1.0, 2.0]}], TypeError, r"labels are tokens, so integers; got dtype"),
        ([{"labels": torch.ones(1, 2)}], ValueError, r"a batch needs input_ids and labels \(rows, T\)"),
        ([{"labels": torch.ones(1, 2), "seq_idx": torch.ones(1, 2)}], ValueError, r"seq_idx says that rows are packed"),
    ],
)
def test_errors_of_samples(models, datasets, samples, kind, message):
    with pytest.raises(kind, match=message):
        list(task_log_probs(models, datasets | {"a": samples})["a"])


def test_a_label_beyond_the_vocabulary(models, datasets):
    datasets["a"] = [{"input_ids": [1, 2], "labels": [1, V]}]
    with pytest.raises(ValueError, match=rf"datasets\['a'\]: has the label {V}, and models\['a'\] {V} logits"):
        list(task_log_probs(models, datasets, "pmi")["a"])


def test_nothing_that_counts_is_an_error_of_the_matrix(models, datasets):
    datasets["c"] = [{"input_ids": [1, 2, 3], "labels": [-100] * 3}]
    for kind in ("jsd", "pmi"):
        with pytest.raises(ValueError, match=r"log_probs\['c'\]: has no samples"):
            divergence_matrix(task_log_probs(models, datasets, kind), kind)


def test_errors_of_vocabularies(models, datasets):
    with pytest.raises(ValueError, match=r"models\['b'\]: has 41 logits, models\['a'\] 40; divergences need one"):
        list(task_log_probs(models | {"b": llama(0, V + 1)}, datasets)["a"])


def test_errors_of_adapters(datasets):
    peft = pytest.importorskip("peft")
    model = adapted()
    with pytest.raises(ValueError, match=r"adapters: the model has no adapter 'd' for task 'b'; it has \['a', 'b'"):
        task_log_probs(model, datasets, adapters=["a", "d", "c"])
    model.base_model.disable_adapter_layers()
    with pytest.raises(ValueError, match=r"models: its adapters are disabled.*enable_adapter_layers"):
        task_log_probs(model, datasets)
    model.base_model.enable_adapter_layers()
    model.merge_adapter()
    with pytest.raises(ValueError, match=r"models: has merged adapters.*unmerge_adapter"):
        task_log_probs(model, datasets)
    prompts = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    prompted = peft.get_peft_model(llama(0), prompts, adapter_name="a")
    with pytest.raises(ValueError, match=r"adapters: 'a' is prompt learning"):
        task_log_probs(prompted, {"a": datasets["a"]})
    with pytest.raises(ValueError, match=r"models\['a'\]: its head \(Linear\) got hidden states of shapes"):
        list(task_log_probs([prompted], {"a": datasets["a"]})["a"])
