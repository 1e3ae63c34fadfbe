"""The torch loops that the CUDA solver is compared with do the work that they are said to do (here on CPU tensors), and
the benchmark itself runs: on an emulated device, at sizes that say nothing."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from emulation import EmulatedDLPack
from strategies import random_problem

from pysubmod import GradientMatching, omp_partition, solve

torch = pytest.importorskip("torch")
import bench_cuda  # noqa: E402
import card  # noqa: E402
import cuda_model  # noqa: E402
import cuda_peers  # noqa: E402
import cuda_report  # noqa: E402

SHARED = (0.0, 0.5, 2.0)  # with 2 the rows point one way, and weights fall back to zero


def problems(count=4, n=60, d=24, k=5):
    for seed in range(count):
        for shared in SHARED:
            yield random_problem(seed, n=n, d=d, n_groups=4, k=k, shared=shared)


def gram(problem):
    return torch.tensor(problem.G @ problem.G.T), torch.tensor(problem.G @ problem.target)


def same(found, expected):
    picks, weights = found
    assert picks.tolist() == expected.indices.tolist()
    scale = np.abs(expected.weights).max(initial=1e-300)
    np.testing.assert_allclose(weights, expected.weights, rtol=0, atol=1e-8 * scale)


@pytest.mark.parametrize("ridge", [0.0, 0.7])
@pytest.mark.parametrize("name", ["free_pursuit", "nonnegative_pursuit"])
def test_pursuits_on_a_gram_matrix(name, ridge):
    dropped = 0
    for p in [*problems(), *problems(d=40, k=8)]:
        options = {"groups": p.groups, "ridge": ridge, "nonneg": name == "nonnegative_pursuit"}
        expected = omp_partition(p.G, p.target, p.budgets, **options)
        found = getattr(cuda_peers, name)(*gram(p), torch.tensor(p.groups), p.budgets.tolist(), ridge=ridge)
        same(found, expected)
        dropped += int((expected.weights == 0).sum())
    assert name == "free_pursuit" or dropped > 10, "no weight became zero: the active set was not tried"


def test_without_groups_and_on_float32():
    for p in problems(1):
        K, c = gram(p)
        expected = solve(GradientMatching.from_gram(K.float().numpy(), c.numpy(), nonneg=False), 10)
        none = torch.zeros(len(c), dtype=torch.int64)
        picks, weights = cuda_peers.free_pursuit(K.float(), c.float(), none, torch.tensor([10]), k=10)
        assert picks.tolist() == expected.indices.tolist()
        np.testing.assert_allclose(weights, expected.weights, rtol=1e-3, atol=1e-3 * np.abs(expected.weights).max())


def test_rows_that_depend_on_others_are_left_out():
    p = random_problem(5, n=40, d=12, n_groups=2, k=5)
    G = np.vstack([p.G, p.G])  # every row twice
    groups = np.concatenate([p.groups, p.groups])
    K, c = torch.tensor(G @ G.T), torch.tensor(G @ p.target)
    found = cuda_peers.nonnegative_pursuit(K, c, torch.tensor(groups), [5, 5])
    same(found, omp_partition(G, p.target, [5, 5], groups=groups))


@pytest.mark.parametrize("nonneg", [True, False])
def test_batches(nonneg):
    pools = list(problems())
    K, c = (torch.stack(parts) for parts in zip(*map(gram, pools), strict=True))
    each = ((p.groups, p.budgets) for p in pools)
    groups, budgets = (torch.tensor(np.stack(parts)) for parts in zip(*each, strict=True))
    found = cuda_peers.batched_pursuit(K, c, groups, budgets, nonneg=nonneg)
    for p, picks, weights in zip(pools, *found, strict=True):
        same((picks, weights), omp_partition(p.G, p.target, p.budgets, groups=p.groups, nonneg=nonneg))


def test_a_pass_for_each_pick():
    for p in problems():
        expected = omp_partition(p.G, p.target, p.budgets, groups=p.groups)
        rows, codes = (torch.tensor(p.G), torch.tensor(p.target)), torch.tensor(p.groups)
        same(cuda_peers.stepwise_pursuit(*rows, codes, p.budgets.tolist()), expected)
        picks, _ = cuda_peers.stepwise_pursuit(*rows, codes, p.budgets.tolist(), most=5)
        assert picks.tolist() == expected.indices[:5].tolist()


def test_refits_by_accelerated_gradients():
    torch.manual_seed(0)
    for p in problems(2, k=3):
        K, c = gram(p)
        problem = GradientMatching(p.G, p.target)
        peer = cuda_peers.ApgdSelection(K, c, torch.tensor(p.groups), p.budgets.tolist(), pick="argmax", steps=128)
        picks, weights = (part.numpy() for part in peer.run())
        assert len(set(picks)) == 12 and (np.bincount(p.groups[picks]) == p.budgets).all()
        best = problem.value(picks)
        reached = weights @ c.numpy()[picks] - 0.5 * weights @ K.numpy()[np.ix_(picks, picks)] @ weights
        assert (1 - 1e-2) * best <= reached <= (1 + 1e-12) * best
        peer.momenta = cuda_peers.ApgdSelection(K, c, peer.groups, p.budgets.tolist(), steps=6000).momenta
        peer.refit()
        np.testing.assert_allclose(peer.w[picks], problem.weights(picks), atol=1e-4)


def test_the_shortlist_and_its_draws():
    p = random_problem(2, n=30, n_groups=3, k=2)
    K, c = gram(p)
    peer = cuda_peers.ApgdSelection(K, c, torch.tensor(p.groups), [1, 0, 3], steps=4)
    may = peer.left[peer.groups] > 0
    listed = peer.shortlist(torch.where(may, c, -torch.inf), may)
    for group, budget in enumerate([1, 0, 3]):
        rows = np.flatnonzero(p.groups == group)
        best = rows[np.argsort(-c.numpy()[rows])[:budget]]
        assert sorted(best) == np.flatnonzero(listed.numpy() & (p.groups == group)).tolist()
    torch.manual_seed(0)
    firsts = set()
    for _ in range(60):
        picks, _ = peer.run()
        assert np.bincount(p.groups[picks], minlength=3).tolist() == [1, 0, 3]
        firsts.add(int(picks[0]))
    assert firsts == set(np.flatnonzero(listed.numpy()))


def test_the_package_for_gpus():
    if not cuda_peers.has_omp_gpu():
        pytest.skip("orthogonal-matching-pursuit-gpu is not installed")
    p = random_problem(3, n=50, d=30)
    G = p.G / np.linalg.norm(p.G, axis=1, keepdims=True)
    K, c = torch.tensor(G @ G.T), torch.tensor(G @ p.target)
    same(cuda_peers.omp_gpu(K, c, 12), omp_partition(G, p.target, 12, nonneg=False))


def test_the_benchmark_runs(device, tmp_path):
    place = card.Rehearsal(put=EmulatedDLPack)
    report, wrong = bench_cuda.run(place, bench_cuda.TINY, repeats=1, seconds=0.02)
    assert not wrong
    assert len(report["blocks"]) == 9 and len(report["targets"]) == 7
    for block in report["blocks"]:
        for row in block["rows"]:
            needs_more = "CUDA graph" in row["name"] or "matching-pursuit-gpu" in row["name"]
            assert row["error"] is None or needs_more, row
            if row["name"].startswith(("pysubmod", "torch loop, float64")) and row.get("picks"):
                assert row["picks"]["same"], row
    (tmp_path / "cuda.json").write_text(json.dumps(report))
    page = cuda_report.markdown(json.loads((tmp_path / "cuda.json").read_text()))
    assert "| pysubmod |" in page and "| target |" in page


@pytest.mark.parametrize("emulated", [True, False])
@pytest.mark.parametrize("name", ["study_gram", "study_product", "study_dense"])
def test_the_studies_of_kernels_run(name, emulated, device, capsys):
    path = Path(bench_cuda.__file__).parent / "kernels" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    tiny = script.TINY if isinstance(script.TINY, tuple) else (script.TINY,)
    script.study(card.Rehearsal(EmulatedDLPack if emulated else None), *tiny)
    assert capsys.readouterr().out.count("\n|") >= 2


def test_the_model_of_the_kernels():
    assert [cuda_model.blocks_of(1024, count) for count in (1, 33, 34, 66, 67)] == [4, 4, 2, 2, 1]
    assert cuda_model.blocks_of(4096) == 8 and cuda_model.blocks_of(256) == cuda_model.blocks_of(4096, k=2000) == 1
    assert cuda_model.factor_is_fast(152) and not cuda_model.factor_is_fast(160)
    assert cuda_model.gram_us(256, 32, 132) < cuda_model.gram_us(256, 32, 133)


def test_a_wrong_pick_is_found(device, monkeypatch):
    counts = iter(range(99))
    monkeypatch.setattr(bench_cuda, "selection_picks", lambda result: ([next(counts)], [1.0]))
    _, wrong = bench_cuda.run(card.Rehearsal(), bench_cuda.TINY, ["gram"], repeats=1, seconds=0.02)
    assert wrong


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card here")
def test_without_a_card_nothing_is_written(capsys, tmp_path):
    bench_cuda.main(["-o", str(tmp_path / "cuda.json")])
    assert "no CUDA device" in capsys.readouterr().out and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("symbol", "name"),
    [
        ("void pysubmod::cuda::run_body<pysubmod::cuda::DraftBody>(pysubmod::cuda::DraftBody, int)", "DraftBody"),
        ("void a::run_body<a::VectorsBody<(a::Storage)1, 16> >(x)", "VectorsBody<1, 16>"),
        ("void at::native::reduce_kernel<512, 1>(int)", "at::native::reduce_kernel"),
    ],
)
def test_names_of_kernels(symbol, name):
    assert card.kernel_name(symbol) == name
