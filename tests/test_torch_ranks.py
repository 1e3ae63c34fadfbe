"""Two ranks: per-sample gradients, selectors and Hugging Face's Trainer under DDP and FSDP2, on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytest.importorskip("torch.distributed.fsdp")

from test_torch_per_sample import close, one_by_one  # noqa: E402
from torch_rank_worker import FACTOR, MODELS, PARTS, RANKS, ROWS, batch_of  # noqa: E402
from torch_trainer import Collate, Rows, tiny_model  # noqa: E402

from pysubmod._random import random_bits  # noqa: E402
from pysubmod.torch import FilterThenWeight, PartitionSel, causal_lm_loss  # noqa: E402

pytestmark = [pytest.mark.usefixtures("one_torch_thread"), pytest.mark.slow]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of what both ranks have written: one launch for all tests."""
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("this torch has no gloo")
    place = tmp_path_factory.mktemp("ranks")
    worker = Path(__file__).with_name("torch_rank_worker.py")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": "lo"}
    logs = [(place / f"log_{rank}.txt").open("w") for rank in range(RANKS)]
    processes = [
        subprocess.Popen([sys.executable, worker, str(rank), place, *PARTS], env=environment, stdout=log, stderr=log)
        for rank, log in enumerate(logs)
    ]
    try:
        for process, seconds in zip(processes, (200, 20), strict=True):
            process.wait(seconds)
    finally:
        for process, log in zip(processes, logs, strict=True):
            process.kill()
            process.wait()
            log.close()
    return place


@pytest.fixture
def found(folder):
    def load(part):
        """A part's results, of each rank."""
        files = [folder / f"{part}_{rank}.pt" for rank in range(RANKS)]
        for rank, file in enumerate(files):
            assert file.exists(), f"rank {rank}: " + (folder / f"log_{rank}.txt").read_text()[-3000:]
        return [torch.load(file, weights_only=False) for file in files]

    return load


def same(left, right):
    return len(left) == len(right) and all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def near(left, right, tolerance):
    return all((a - b).abs().max() <= tolerance * b.abs().max() for a, b in zip(left, right, strict=True))


# ---- captures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", range(RANKS))
@pytest.mark.parametrize("how", ["ddp", "fsdp2"])
@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_those_of_a_whole_model(found, name, how, rank):
    make, loss, _ = MODELS[name]
    names, matrices = found("captures")[rank][name, how]
    expected = one_by_one(make(), loss, batch_of(name, rank), names)
    for matrix in matrices:
        close(matrix, expected)


@pytest.mark.parametrize("how", ["ddp", "fsdp2"])
@pytest.mark.parametrize("name", MODELS)
def test_training_goes_on_as_if_nothing_had_been(found, name, how):
    ranks = found("captures")
    without, captured = ranks[0][name, how, "trained"]
    assert same(captured, without) and same(captured, ranks[1][name, how, "trained"][1])
    assert near(captured, ranks[0][name, "ddp", "trained"][0], 1e-4)
    start = list(MODELS[name][0]().parameters())
    assert any((a - b).abs().max() > 1e-3 for a, b in zip(captured, start, strict=True))


def test_accumulated_gradients_come_out_the_same(found):
    without, captured = found("captures")[0]["late"]
    assert near(captured, without, 1e-6)


@pytest.mark.parametrize("rank", range(RANKS))
@pytest.mark.parametrize("name", MODELS)
def test_selectors_on_shards(found, name, rank):
    results = found("selectors")[rank]
    for (rows, weights), (expected_rows, expected) in zip(results[name, "fsdp2"], results[name, "whole"], strict=True):
        assert rows == expected_rows and weights == pytest.approx(expected, rel=1e-3)


def test_ranks_of_fsdp2_must_make_as_many_passes(found):
    for message in found("uneven"):
        assert message.startswith("micro_batch: under FSDP2 ")


# ---- trainers --------------------------------------------------------------------------------------------------------

IDS = {tuple(row["input_ids"]): i for i, row in enumerate(Rows(200).rows)}


def ids(batch):
    """Which rows of the dataset a batch has."""
    rows = zip(batch["input_ids"], batch["attention_mask"], strict=True)
    return [IDS[tuple(tokens[mask.bool()].tolist())] for tokens, mask in rows]


def model_at(state):
    model = tiny_model(0.0)
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), state, strict=True):
            parameter.copy_(value)
    return model


def rank_seed(rank):
    return int(random_bits(42, rank)) >> 1  # 42 is the trainer's


def inputs_of(batch):
    return {key: batch[key] for key in ("input_ids", "attention_mask", "labels")}


def validation():
    return Collate()([{key: row[key] for key in ("input_ids", "labels")} for row in Rows(30, seed=1).rows])


def tokens_of(batch):
    return int(batch["labels"][:, 1:].ne(-100).sum())


def test_pools_are_what_the_trainer_gives_a_rank(found):
    assert len(IDS) == 200
    ranks = found("trainers")
    for step in range(4):
        pools = [ids(rank["partition-sel"]["pools"][step]) for rank in ranks]
        assert pools == [ids(rank["large batches"]["batches"][step]) for rank in ranks]
        assert all(len(pool) == ROWS * FACTOR for pool in pools) and not set(pools[0]) & set(pools[1])
        for rank, pool in zip(ranks, pools, strict=True):
            picked = ids(rank["partition-sel"]["batches"][step])
            assert len(picked) == ROWS and set(picked) <= set(pool)


@pytest.mark.parametrize("rank", range(RANKS))
def test_picks_are_those_of_a_selector_in_one_process(found, rank):
    run = found("trainers")[rank]["partition-sel"]
    selector = PartitionSel(
        causal_lm_loss, eta=1e-2, ratio=1 / FACTOR, groups="domain", validation=validation(),
        random_state=rank_seed(rank),
    )  # fmt: skip
    for pool, batch, state in zip(run["pools"], run["batches"], run["states"], strict=True):
        assert ids(selector.select(model_at(state), pool).batch) == ids(batch)


@pytest.mark.parametrize("rank", range(RANKS))
def test_weights_are_those_of_a_selector_in_one_process(found, rank):
    run = found("trainers")[rank]["weighted"]
    model = model_at(run["states"][0])

    def loss(model, batch):  # of a batch's samples, so that their mean is the mean over tokens
        losses, mask = causal_lm_loss(model, batch)
        return losses / (mask.sum() / len(mask)), mask

    optimizer = torch.optim.AdamW(model.parameters(), 1e-2, weight_decay=0.0)
    selector = FilterThenWeight(
        loss, optimizer=optimizer, ratio=1 / FACTOR, groups="domain", validation=validation(), layers="*proj",
        random_state=rank_seed(rank),
    )  # fmt: skip
    for pool, batch in zip(run["pools"][:2], run["batches"][:2], strict=True):
        tokens = tokens_of(pool) / len(pool["labels"])
        picked = selector.select(model, pool)
        assert ids(picked.batch) == ids(batch)
        # In Adam's first step D is about 1 over the mean gradient: rounding counts where that is small.
        assert (batch["selection_weights"] * tokens).tolist() == pytest.approx(picked.weights.tolist(), rel=1e-3)


@pytest.mark.parametrize(("name", "accumulated"), [("partition-sel", 1), ("accumulated", 2)])
def test_the_loss_is_a_mean_over_the_tokens_picked_by_all_ranks(found, name, accumulated):
    runs = [rank[name] for rank in found("trainers")]
    for step, state in enumerate(runs[0]["states"]):
        part = slice(step * accumulated, (step + 1) * accumulated)
        batches = [batch for run in runs for batch in run["batches"][part]]
        model = model_at(state)
        total = sum(causal_lm_loss(model, batch)[0].sum() for batch in map(inputs_of, batches))
        loss = total / sum(map(tokens_of, batches))
        loss.backward()
        by_hand = [parameter.grad for parameter in model.parameters()]
        for run in runs:
            assert run["losses"][step] == pytest.approx(loss.item(), rel=1e-5)
            assert near(run["gradients"][step], by_hand, 1e-4)


def test_the_weighted_gradient_is_the_mean_over_ranks(found):
    runs = [rank["weighted"] for rank in found("trainers")]
    for step, state in enumerate(runs[0]["states"]):
        batches = [batch for run in runs for batch in run["batches"][2 * step : 2 * step + 2]]
        model = model_at(state)
        losses = [(causal_lm_loss(model, inputs_of(batch))[0].sum(1), batch["selection_weights"]) for batch in batches]
        loss = sum((own * weights).sum() for own, weights in losses) / len(batches)
        loss.backward()
        by_hand = [parameter.grad for parameter in model.parameters()]
        for run in runs:
            assert run["losses"][step] == pytest.approx(loss.item(), rel=1e-5)
            assert near(run["gradients"][step], by_hand, 1e-4)


@pytest.mark.parametrize("name", ["partition-sel", "accumulated", "weighted", "resumed"])
def test_ranks_stay_the_same(found, name):
    left, right = (rank[name] for rank in found("trainers"))
    assert same(left["parameters"], right["parameters"])
    for key in ("states", "gradients"):
        assert all(same(a, b) for a, b in zip(left[key], right[key], strict=True))


@pytest.mark.parametrize("rank", range(RANKS))
def test_pools_of_one_batch_train_as_the_trainer_alone(found, rank):
    results = found("trainers")[rank]
    alone, selecting = results["alone"], results["pools of one batch"]
    assert selecting["losses"] == alone["losses"] and same(selecting["parameters"], alone["parameters"])
    assert all(same(a, b) for a, b in zip(selecting["gradients"], alone["gradients"], strict=True))


@pytest.mark.parametrize("rank", range(RANKS))
def test_a_resumed_run_makes_the_same_picks(found, folder, rank):
    whole, resumed = (found("trainers")[rank][name] for name in ("not interrupted", "resumed"))
    assert [entry["selection/staleness"] for entry in whole["logs"]] == [0, 1, 0, 1, 0, 1, 0, 1, 0]
    assert len(resumed["batches"]) == 6
    for old, new in zip(whole["batches"][3:], resumed["batches"], strict=True):
        assert old.keys() == new.keys() and all(torch.equal(old[key], new[key]) for key in old)
    assert resumed["losses"] == whole["losses"] and same(resumed["parameters"], whole["parameters"])
    assert sorted(file.name for file in (folder / "f" / "checkpoint-3").glob("selection_*")) == [
        "selection_0.pt",
        "selection_1.pt",
    ]


@pytest.mark.parametrize("rank", range(RANKS))
@pytest.mark.parametrize("method", ["partition-sel", "filter-then-weight"])
def test_a_trainer_on_shards(found, method, rank):
    results = found("sharding_trainers")[rank]
    ddp, fsdp2 = results[method, "Trainer"], results[method, "Sharding"]
    assert fsdp2["sharded"] and not ddp["sharded"]
    assert [ids(batch) for batch in fsdp2["batches"]] == [ids(batch) for batch in ddp["batches"]]
    assert fsdp2["losses"] == pytest.approx(ddp["losses"], rel=1e-3)
    assert near(fsdp2["parameters"], ddp["parameters"], 1e-2)


@pytest.mark.parametrize("rank", range(RANKS))
def test_a_run_on_shards_is_resumed(found, rank):
    results = found("sharding_trainers")[rank]
    whole, resumed = results["filter-then-weight", "Sharding"], results["resumed"]
    assert [ids(batch) for batch in resumed["batches"]] == [ids(batch) for batch in whole["batches"][4:]]
    assert resumed["losses"] == whole["losses"] and same(resumed["parameters"], whole["parameters"])
