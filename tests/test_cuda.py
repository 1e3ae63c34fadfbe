"""On a CUDA device, where there is one (`make test-cuda`): the CPU's picks, streams, repeats, memory, faults.

What of this needs no device is tested everywhere, on an emulated one: tests/test_device_arrays.py and its neighbours.
"""

from __future__ import annotations

import _thread
import contextlib
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest
from problems import FAMILIES, family, real
from strategies import random_problem

import pysubmod
from pysubmod import GradientMatching, PartitionMatroid, omp_partition, solve, solve_batch
from pysubmod._reference import omp_partition_reference


def cards():
    """The CUDA devices, or why there is none."""
    try:
        found = [entry for entry in pysubmod.available_devices() if entry["device"] != "cpu"]
    except RuntimeError as error:
        return [], f"the CUDA driver fails: {error}"
    return found, "this build has no CUDA part" if pysubmod._backends.device_module() is None else "no CUDA device"


CARDS, REASON = cards()
pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not CARDS, reason=REASON)]

STORAGES = ("float16", "bfloat16", "float32", "float64")
ROUTES = ("gram", "draft")


@pytest.fixture(scope="module")
def torch():
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this torch has no CUDA")
    return torch


@pytest.fixture(scope="module")
def problem():
    return random_problem(11, n=600, d=96, n_groups=8, k=5, shared=0.7)


def same(found, expected):
    """The same picks in the same order, and the weights up to the rounding of K."""
    assert found.indices.tolist() == expected.indices.tolist()
    assert found.status.value == str(getattr(expected.status, "value", expected.status))
    scale = np.abs(expected.weights).max(initial=1e-300)
    np.testing.assert_allclose(found.weights, expected.weights, rtol=0, atol=1e-6 * scale)
    assert found.objective == pytest.approx(expected.objective, rel=1e-9)


def bits(selection):
    return [getattr(selection, name).tobytes() for name in ("indices", "weights", "gains", "residual_norms")]


# ---- the same picks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nonneg", [True, False])
@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("storage", STORAGES)
def test_picks(storage, route, grouped, nonneg, problem, torch):
    G = torch.tensor(problem.G).to(getattr(torch, storage))
    groups, budgets = (problem.groups, problem.budgets) if grouped else (np.zeros(len(G), int), np.array([40]))
    options = {"groups": groups, "nonneg": nonneg}
    there = omp_partition(G.cuda(), torch.tensor(problem.target).cuda(), budgets, route=route, **options)
    same(there, omp_partition(G, problem.target, budgets, **options))
    exact = G.double().numpy()
    same(there, omp_partition_reference(exact, problem.target, groups, budgets, nonneg=nonneg))
    assert there.stats["route"] == route and there.stats["device"].startswith("cuda:0 ")
    assert there.stats["device"].endswith(CARDS[0]["name"])


@pytest.mark.parametrize("nonneg", [True, False])
@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("storage", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", [*FAMILIES, "real"])
def test_picks_on_gradients(name, storage, route, nonneg, torch):
    data = real() if name == "real" else family(name, 1024, 2048, seed=0)
    G, target, groups = data[:3]
    G = torch.tensor(np.asarray(G, "f4")).to(getattr(torch, storage))
    budgets = dict.fromkeys(np.unique(groups).tolist(), 6)
    options = {"groups": groups, "nonneg": nonneg}
    same(omp_partition(G.cuda(), target, budgets, route=route, **options), omp_partition(G, target, budgets, **options))


OPTIONS = {
    "normalized": {"rule": "normalized"},
    "greedy": {"rule": "greedy"},
    "greedy, free": {"rule": "greedy", "nonneg": False},
    "random": {"pick": "random", "random_state": 5},
    "random, filled": {"pick": "random", "random_state": 6, "fill": True},
    "fill": {"fill": True, "rule": "normalized"},
    "release_zeros": {"release_zeros": True},
    "ridge": {"ridge": 2.5},
    "ridge and tilt": {"ridge": 0.5, "tilt": 0.1},
    "tol": {"tol": 0.5},
    "candidates": {"candidates": np.arange(600) % 3 > 0},
    "initial": {"initial": [7, 1, 33]},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options(name, problem, torch):
    G = torch.tensor(problem.G).float()
    for budgets, groups in ((problem.budgets, problem.groups), (30, None)):
        options = {"groups": groups} | OPTIONS[name]
        same(
            omp_partition(G.cuda(), problem.target, budgets, **options),
            omp_partition(G, problem.target, budgets, **options),
        )
        if name in ("normalized", "ridge", "ridge and tilt", "tol", "candidates", "initial"):
            draft = omp_partition(G.cuda(), problem.target, budgets, route="draft", **options)
            same(draft, omp_partition(G, problem.target, budgets, **options))


@pytest.mark.parametrize("method", ["omp", "omp-normalized", "greedy", "residual-random", "partition-sel"])
def test_gram_matrices(method, problem, torch):
    matroid = PartitionMatroid(problem.groups, problem.budgets)
    for dtype in ("float32", "float64"):
        K = torch.tensor(problem.G @ problem.G.T).to(getattr(torch, dtype))
        c = torch.tensor(problem.G @ problem.target)
        expected = solve(GradientMatching.from_gram(K, c, ridge=1.0), matroid, method, random_state=3)
        for there in (K.cuda(), K.cuda().T):
            found = solve(GradientMatching.from_gram(there, c.cuda(), ridge=1.0), matroid, method, random_state=3)
            same(found, expected)


def test_rows_that_are_alike(torch):
    rng = np.random.default_rng(3)
    G = rng.normal(size=(40, 24)).astype("f4")[rng.integers(0, 40, 300)]
    G[::17] = 0
    G[5::31] *= 1e3
    target = G.mean(axis=0)
    for nonneg in (True, False):
        for route in ROUTES:
            found = omp_partition(torch.tensor(G).cuda(), target, 30, nonneg=nonneg, route=route)
            same(found, omp_partition(G, target, 30, nonneg=nonneg))


def test_several_targets(problem, torch):
    targets = problem.target + np.random.default_rng(0).normal(size=(5, problem.target.size))
    G = torch.tensor(problem.G).float()
    found = omp_partition(G.cuda(), torch.tensor(targets).cuda(), 12, separate=True)
    for one, other in zip(found, omp_partition(G, targets, 12, separate=True), strict=True):
        same(one, other)


# ---- batches --------------------------------------------------------------------------------------------------------


def test_batches_of_any_sizes(torch):
    pools = [random_problem(seed, n=n, d=32, n_groups=4, k=3) for seed, n in enumerate((256, 64, 700, 9, 256, 1))]
    here = [GradientMatching(torch.tensor(p.G).float(), p.target, ridge=0.1) for p in pools]
    there = [GradientMatching(torch.tensor(p.G).float().cuda(), p.target, ridge=0.1) for p in pools]
    found = solve_batch(there, 12)
    for one, problem, other in zip(found, there, solve_batch(here, 12), strict=True):
        same(one, other)
        assert bits(one) == bits(solve(problem, 12)), "alone and in company: the same bits"
    stays = solve_batch(there, 12, output="device")
    assert stays.indices.shape == (6, 12) and stays.indices.is_cuda
    for one, other in zip(stays.result(), found, strict=True):
        assert one.indices.tolist() == other.indices.tolist() and one.weights.tolist() == other.weights.tolist()


# ---- the same bits --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nonneg", [True, False])
@pytest.mark.parametrize("route", ROUTES)
def test_a_hundred_runs_have_the_same_bits(route, nonneg, problem, torch):
    G = torch.tensor(problem.G).bfloat16().cuda()
    options = {"groups": problem.groups, "route": route, "nonneg": nonneg}
    first = bits(omp_partition(G, problem.target, problem.budgets, **options))
    assert all(bits(omp_partition(G, problem.target, problem.budgets, **options)) == first for _ in range(99))


# ---- streams --------------------------------------------------------------------------------------------------------

LONG = 10**9  # cycles, about half a second


@pytest.mark.parametrize("route", ROUTES)
def test_work_on_the_callers_stream_comes_first(route, problem, torch):
    expected = omp_partition(torch.tensor(problem.G).float(), problem.target, 20)
    source = torch.tensor(problem.G).float().cuda()
    target = torch.tensor(problem.target).cuda()
    torch.cuda.synchronize()
    for stream in (torch.cuda.Stream(), torch.cuda.default_stream()):
        with torch.cuda.stream(stream):
            G = torch.zeros_like(source)
            torch.cuda._sleep(LONG)
            G.copy_(source)  # what comes too early reads zeros
            same(omp_partition(G, target, 20, route=route), expected)


def test_nothing_is_waited_for_when_results_stay(problem, torch):
    G, target = torch.tensor(problem.G).float().cuda(), torch.tensor(problem.target).cuda()
    K, c = G.double() @ G.double().T, G.double() @ target
    expected = omp_partition(G, target, 20)
    for start in (
        lambda: omp_partition(G, target, 20, output="device"),
        lambda: solve_batch([GradientMatching.from_gram(K, c)], 20, output="device"),
    ):
        start()  # loads the kernels, which may wait
        torch.cuda.synchronize()
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(LONG)
            busy = torch.cuda.Event()
            busy.record()
            there = start()
            assert not busy.query(), "the call has waited for the stream"
            indices = there.indices.reshape(-1).clone()  # in order on the stream
        stream.synchronize()
        assert indices.tolist()[: len(expected)] == expected.indices.tolist()
        found = there.result()
        found = found[0] if isinstance(found, list) else found
        assert found.indices.tolist() == expected.indices.tolist()
        np.testing.assert_allclose(found.weights, expected.weights, rtol=1e-6)


def test_threads_with_a_stream_each(torch):
    pools = [random_problem(seed, n=300, d=64, n_groups=3, k=6) for seed in range(4)]
    expected = [omp_partition(torch.tensor(p.G).cuda(), p.target, 18) for p in pools]
    found = [None] * len(pools)

    def work(i):
        with torch.cuda.stream(torch.cuda.Stream()):
            G = torch.tensor(pools[i].G).cuda()
            for _ in range(20):
                found[i] = omp_partition(G, pools[i].target, 18)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(pools))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [bits(s) for s in found] == [bits(s) for s in expected]


# ---- in and out -----------------------------------------------------------------------------------------------------


class Only:
    """A tensor of which one protocol shows."""

    def __init__(self, tensor):
        self.tensor = tensor


class OnlyDLPack(Only):
    def __dlpack__(self, **options):
        return self.tensor.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.tensor.__dlpack_device__()


class OnlyInterface(Only):
    @property
    def __cuda_array_interface__(self):
        return self.tensor.__cuda_array_interface__


def test_protocols(problem, torch):
    G = torch.tensor(problem.G).float()
    expected = omp_partition(G, problem.target, 20)
    target = torch.tensor(problem.target).cuda()
    for wrap in (OnlyDLPack, OnlyInterface):
        same(omp_partition(wrap(G.cuda()), wrap(target), 20), expected)
        assert GradientMatching(wrap(G.cuda()), target)._rows.array.device == 0
    half = OnlyDLPack(G.bfloat16().cuda())
    same(omp_partition(half, target, 20), omp_partition(G.bfloat16(), problem.target, 20))
    with pytest.raises(ValueError, match=r"^G: its __cuda_array_interface__ points to memory that belongs to no CUDA"):
        face = {"shape": G.shape, "typestr": "<f4", "data": (G.data_ptr(), False), "version": 3}
        omp_partition(type("Face", (), {"__cuda_array_interface__": face})(), target, 20)


def test_tensors_as_they_come(problem, torch):
    G = torch.tensor(problem.G).float()
    expected = omp_partition(G, problem.target, 20)
    wide = torch.ones(1200, 100, device="cuda")
    wide[::2, 2:98] = G.cuda()
    target = torch.tensor(problem.target, requires_grad=True, device="cuda")
    for there in (G.cuda().requires_grad_(), torch.nn.Parameter(G.cuda()), wide[::2, 2:98], G.cuda() * 1):
        same(omp_partition(there, target, 20), expected)
    before = wide.clone()
    omp_partition(wide[::2, 2:98], target, 20)
    assert torch.equal(wide, before)
    with pytest.raises(ValueError, match=r"^G: each row must be contiguous .*G\.contiguous\(\)"):
        omp_partition(G.T.contiguous().cuda().T, target, 20)
    with pytest.raises(TypeError, match=r"^G: a torch tensor of layout torch.sparse"):
        omp_partition(G.to_sparse().cuda(), target, 20)


def test_cupy(problem):
    cupy = pytest.importorskip("cupy")
    G, target = problem.G.astype("f4"), problem.target
    expected = omp_partition(G, target, 20)
    there = GradientMatching(cupy.asarray(G), cupy.asarray(target))
    same(solve(there, 20), expected)
    assert isinstance(there.cpu()._rows.blocks[0], np.ndarray)
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        stays = omp_partition(cupy.asarray(G), target, 20, output="device")
        assert isinstance(stays.indices, cupy.ndarray)
        assert stays.result().indices.tolist() == expected.indices.tolist()
    with pytest.raises(ValueError, match=r"^G: .*cupy\.ascontiguousarray"):
        omp_partition(cupy.asfortranarray(cupy.asarray(G)), target, 20)


def test_cupy_and_torch_together(problem, torch):
    cupy = pytest.importorskip("cupy")
    G = torch.tensor(problem.G).float().cuda()
    expected = omp_partition(G, problem.target, 20)
    same(omp_partition(G, cupy.asarray(problem.target), 20), expected)
    same(omp_partition(cupy.from_dlpack(G), torch.tensor(problem.target).cuda(), 20), expected)


def test_host_arrays_are_moved_when_asked(problem, torch):
    G = problem.G.astype("f4")
    expected = omp_partition(G, problem.target, 20)
    for given in (G, np.asfortranarray(G), torch.tensor(G), G.tolist()):
        found = omp_partition(given, problem.target, 20, device="cuda")
        assert found.stats["device"].startswith("cuda:0") and found.indices.tolist() == expected.indices.tolist()
    same(omp_partition(torch.tensor(G).bfloat16(), problem.target, 20, device="cuda"),
         omp_partition(torch.tensor(G).bfloat16(), problem.target, 20))  # fmt: skip
    assert omp_partition(G, problem.target, 20).stats["device"] == "cpu"


def test_back_on_the_host(problem, torch):
    there = GradientMatching(torch.tensor(problem.G).float().cuda(), torch.tensor(problem.target).cuda(), ridge=5.0)
    found = solve(there, 20)
    assert there.cpu().value(found.indices) == pytest.approx(found.objective)
    assert pysubmod.certify(there.cpu(), 20, found).ratio > 0


# ---- devices --------------------------------------------------------------------------------------------------------


def test_the_card_is_named(problem, torch):
    found = omp_partition(torch.tensor(problem.G).cuda(), problem.target, 5)
    assert found.stats["device"] == f"cuda:0 {CARDS[0]['name']}" and CARDS[0]["name"] in str(found)
    assert found.stats["product"] in ("cublas", "built-in") and found.stats["product_type"] in ("float32", "float64")
    assert pysubmod.show_config("dicts")["cuda"]["solver"] is True


def test_a_device_that_is_not_there(problem, torch):
    with pytest.raises(ValueError, match=r"^device: 'cuda:99' does not exist; there is cuda:0"):
        omp_partition(problem.G, problem.target, 5, device="cuda:99")
    with pytest.raises(ValueError, match=r"^device: 'cuda:99', but the arrays are on cuda:0"):
        omp_partition(torch.tensor(problem.G).cuda(), problem.target, 5, device="cuda:99")


@pytest.mark.skipif(len(CARDS) < 2, reason="one CUDA device")
def test_the_device_of_the_arrays_and_not_the_current_one(problem, torch):
    G, target = torch.tensor(problem.G).to("cuda:1"), torch.tensor(problem.target).to("cuda:1")
    found = omp_partition(G, target, 20)
    assert found.stats["device"].startswith("cuda:1") and torch.cuda.current_device() == 0
    same(found, omp_partition(problem.G, problem.target, 20))
    same(omp_partition(OnlyInterface(G), target, 20), found)
    with pytest.raises(ValueError, match=r"^target: is on cuda:0 but G is on cuda:1"):
        omp_partition(G, target.to("cuda:0"), 20)


# ---- what goes wrong ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("route", ROUTES)
def test_numbers_that_are_none(route, problem, torch):
    for value in (float("nan"), float("inf")):
        G = torch.tensor(problem.G).float().cuda()
        G[44, 3] = value
        with pytest.raises(ValueError, match=r"^G: row 44 .*NaN or infinity"):
            omp_partition(G, problem.target, 5, route=route)
        same(omp_partition(G, problem.target, 5, route=route, candidates=np.arange(600) != 44),
             omp_partition(G.cpu(), problem.target, 5, candidates=np.arange(600) != 44))  # fmt: skip
        target = torch.tensor(problem.target).cuda()
        target[3] = value
        with pytest.raises(ValueError, match=r"target.* NaN or infinity"):
            omp_partition(torch.tensor(problem.G).cuda(), target, 5, route=route)


def test_gram_matrices_that_are_none(torch):
    K = torch.eye(200, dtype=torch.float64, device="cuda")
    c = torch.ones(200, device="cuda")
    K[3, 150] = 0.5
    with pytest.raises(ValueError, match=r"^K: .*K\[3, 150\]"):
        solve(GradientMatching.from_gram(K, c), 3)
    K[150, 3] = 2.0
    K[3, 150] = 2.0
    with pytest.raises(ValueError, match=r"^K: .*positive semidefinite"):
        solve(GradientMatching.from_gram(K, c, nonneg=False), 200)
    with pytest.raises(ValueError, match=r"^c: .*unbounded.*ridge"):
        solve(GradientMatching.from_gram(torch.ones(2, 2).cuda(), torch.tensor([1.0, 2.0]).cuda(), nonneg=False), 2)
    stays = solve_batch([GradientMatching.from_gram(K * float("nan"), c)], 3, output="device")
    with pytest.raises(ValueError, match=r"^problem: .*NaN or infinity"):
        stays.result()


def test_too_little_memory(problem, torch):
    G = torch.ones(20000, 8, device="cuda")  # K takes 3.2 GB
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    hog = torch.empty(free - 2**29, dtype=torch.uint8, device="cuda")
    try:
        with pytest.raises(MemoryError) as caught:
            omp_partition(G, [1.0] * 8, 5, route="gram")
        message = str(caught.value)
        assert all(word in message for word in ("MiB were asked for", "are free", "CPU")), message
    finally:
        del hog
        torch.cuda.empty_cache()
    same(omp_partition(torch.tensor(problem.G).cuda(), problem.target, 9), omp_partition(problem.G, problem.target, 9))


def in_a_process(program):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_after_a_fork(torch):
    said = in_a_process(
        """
        import os, numpy as np, torch, pysubmod

        class Only:
            def __init__(self, tensor):
                self.__cuda_array_interface__ = tensor.__cuda_array_interface__

        G = torch.eye(8, device="cuda")
        pysubmod.omp_partition(G, [1.0] * 8, 3)
        given = Only(G)
        if os.fork() == 0:
            for act in (
                lambda: pysubmod.omp_partition(given, [1.0] * 8, 3),
                lambda: pysubmod.omp_partition(np.eye(8), [1.0] * 8, 3, device="cuda"),
                pysubmod.available_devices,
            ):
                try:
                    act()
                except RuntimeError as error:
                    print("fork" in str(error), flush=True)
            print(len(pysubmod.omp_partition(np.eye(8), [1.0] * 8, 3)), flush=True)
            os._exit(0)
        os.wait()
        print(len(pysubmod.omp_partition(G, [1.0] * 8, 3)))
        """
    )
    assert said.split() == ["True", "True", "True", "3", "3"]


def test_a_fault_of_the_device_leaves_the_process_usable(torch):
    said = in_a_process(
        """
        import numpy as np, torch, pysubmod

        G = torch.ones(64, 64, device="cuda")

        class Beyond:  # says that it is far larger than it is
            __cuda_array_interface__ = G.__cuda_array_interface__ | {"shape": (4000, 10**7), "strides": None}

        for _ in range(2):
            try:
                pysubmod.omp_partition(Beyond(), np.ones(10**7), 3)
            except RuntimeError as error:
                print("cuda" in str(error))
        print(len(pysubmod.omp_partition(np.eye(8), [1.0] * 8, 3)))
        """
    )
    assert said.split() == ["True", "True", "3"]


def test_ctrl_c_between_rounds(torch):
    # The draft route asks between its rounds; the other is one launch.
    rng = np.random.default_rng(0)
    G = torch.tensor(rng.normal(size=(200_000, 256)), dtype=torch.bfloat16, device="cuda")
    timer = threading.Timer(0.02, _thread.interrupt_main)
    with contextlib.suppress(KeyboardInterrupt):  # it may come too late
        timer.start()
        omp_partition(G, rng.normal(size=256), 200, route="draft", nonneg=False)
        timer.join()
    assert len(omp_partition(G, rng.normal(size=256), 3, route="draft")) == 3
