"""Problems whose arrays are on a device: how they are described, on which stream they are solved, and what comes back.

The device is host memory (tests/emulation.py): all but the GPU itself runs here. tests/test_cuda.py runs on one.
"""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest
from emulation import Emulated, EmulatedDLPack, EmulatedLibrary, EmulatedModule
from strategies import random_problem

import pysubmod
from pysubmod import DeviceSelection, GradientMatching, PartitionMatroid, _device, omp_partition, solve

pytestmark = pytest.mark.usefixtures("device")

P = random_problem(3, n=40, d=24, n_groups=4, k=3, shared=0.7)
G32 = P.G.astype("f4")
MATROID = PartitionMatroid(P.groups, P.budgets)


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


def same(found, expected, weights=1e-9):
    """Picks in order, and the same numbers up to the rounding of another order of summation."""
    assert found.indices.tolist() == expected.indices.tolist()
    assert found.status == expected.status and found.counts == expected.counts
    for name in ("weights", "gains"):
        np.testing.assert_allclose(
            getattr(found, name), getattr(expected, name), rtol=0, atol=weights * (1 + np.abs(expected.weights).max())
        )
    assert found.objective == pytest.approx(expected.objective, rel=1e-10)
    if expected.residual_norms is not None:
        norm = expected.stats["target_norm"]
        np.testing.assert_allclose(found.residual_norms, expected.residual_norms, rtol=1e-9, atol=1e-12 * norm)


# ---- what an array may be -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nonneg", [True, False])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_rows_behind_the_array_interface(dtype, nonneg):
    G = P.G.astype(dtype)
    for groups, budgets in ((P.groups, P.budgets), (None, 6)):
        expected = omp_partition(G, P.target, budgets, groups=groups, nonneg=nonneg)
        found = omp_partition(Emulated(G), Emulated(P.target), budgets, groups=groups, nonneg=nonneg)
        same(found, expected)
        assert found.stats["device"] == "cuda:0 emulated" and found.stats["route"] in ("gram", "draft")
        assert found.config == expected.config


@pytest.mark.parametrize("versioned", [True, False])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_rows_behind_dlpack(dtype, versioned, torch):
    G = torch.tensor(P.G, dtype=getattr(torch, dtype))
    target = torch.tensor(P.target, dtype=torch.float32)
    expected = omp_partition(G, target, P.budgets, groups=P.groups)
    there = EmulatedDLPack(G, versioned=versioned)
    same(omp_partition(there, EmulatedDLPack(target), P.budgets, groups=P.groups), expected)
    assert GradientMatching(there, target)._rows.dtype == dtype
    same(omp_partition(EmulatedDLPack(G, kind=13), target, P.budgets, groups=P.groups), expected)


LAYOUTS = {
    "contiguous": lambda a: np.ascontiguousarray(a),
    "every second row": lambda a: np.repeat(a, 2, axis=0)[::2],
    "the left columns of wider rows": lambda a: np.hstack([a, np.ones((len(a), 5), a.dtype)])[:, : a.shape[1]],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_that_are_read_in_place(layout):
    G = LAYOUTS[layout](G32)
    problem = GradientMatching(Emulated(G), P.target)
    assert problem._rows.array.pointer == G.ctypes.data
    same(solve(problem, MATROID), solve(GradientMatching(G32, P.target), MATROID))
    K = LAYOUTS[layout](P.G @ P.G.T)
    same(
        solve(GradientMatching.from_gram(Emulated(K), P.G @ P.target), MATROID),
        solve(GradientMatching.from_gram(P.G @ P.G.T, P.G @ P.target), MATROID),
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_gram_matrix_in_either_order(dtype):
    K, c = (P.G @ P.G.T).astype(dtype), P.G @ P.target
    norm = float(np.linalg.norm(P.target))
    expected = solve(GradientMatching.from_gram(K, c, ridge=0.1, target_norm=norm), MATROID, tol=0.01)
    for there in (K, np.asfortranarray(K), np.asfortranarray(np.pad(K, ((0, 3), (0, 0))))[:-3]):
        for linear in (c, Emulated(c), Emulated(c.astype("f4"))):
            problem = GradientMatching.from_gram(Emulated(there), linear, ridge=0.1, target_norm=norm)
            if not isinstance(linear, np.ndarray) and linear.values.dtype == "f4":
                continue
            same(solve(problem, MATROID, tol=0.01), expected)
            assert problem.device == "cuda:0" and problem.route == "gram" and problem.d is None


def test_targets_on_the_device_or_the_host():
    anchors = P.target + 0.1 * np.random.default_rng(0).normal(size=(5, P.target.size))
    expected = omp_partition(G32, anchors, P.budgets, groups=P.groups)
    for target in (anchors, anchors.tolist(), Emulated(anchors), Emulated(np.repeat(anchors, 2, axis=0)[::2])):
        same(omp_partition(Emulated(G32), target, P.budgets, groups=P.groups), expected)


def test_several_targets_are_one_batch(device):
    anchors = P.target + 0.3 * np.random.default_rng(1).normal(size=(3, P.target.size))
    expected = omp_partition(G32, anchors, P.budgets, groups=P.groups, separate=True)
    for targets in (anchors, Emulated(anchors)):
        found = omp_partition(Emulated(G32), targets, P.budgets, groups=P.groups, separate=True)
        for one, other in zip(found, expected, strict=True):
            same(one, other)
            assert one.stats["n_targets"] == 3
    assert [len(call["problems"]) for call in device.calls] == [3, 3]
    (given,) = {problem["rows"] for problem in device.calls[1]["problems"]}
    assert given[0] == GradientMatching(Emulated(G32), P.target)._rows.array.pointer or given[1] == G32.shape
    assert len({problem["target"][0] for problem in device.calls[1]["problems"]}) == 3


def test_no_rows():
    found = omp_partition(Emulated(np.empty((0, 3), "f4")), [1.0, 2, 3], 2)
    assert len(found) == 0 and found.status == "exhausted" and found.objective == 0


# ---- the options ----------------------------------------------------------------------------------------------------

OPTIONS = {
    "normalized": {"rule": "normalized"},
    "greedy": {"rule": "greedy"},
    "random": {"pick": "random", "random_state": 5},
    "fill": {"fill": True, "budgets": 50, "groups": None},
    "release_zeros": {"release_zeros": True},
    "ridge and tilt": {"ridge": 0.5, "tilt": 0.1},
    "tol": {"tol": 0.5},
    "candidates": {"candidates": np.arange(40) % 3 > 0},
    "initial": {"initial": [7, 1]},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options(name):
    options = {"budgets": P.budgets, "groups": P.groups} | OPTIONS[name]
    same(omp_partition(Emulated(G32), P.target, **options), omp_partition(G32, P.target, **options))


@pytest.mark.parametrize("method", ["omp", "omp-normalized", "greedy", "residual-random", "partition-sel"])
def test_methods(method):
    found = solve(GradientMatching(Emulated(G32), P.target), MATROID, method, random_state=3)
    expected = solve(GradientMatching(G32, P.target), MATROID, method, random_state=3)
    same(found, expected)
    assert found.config["method"] == method and found.config == expected.config


# ---- streams --------------------------------------------------------------------------------------------------------


def test_the_stream_of_the_library(device, monkeypatch):
    monkeypatch.setattr(EmulatedLibrary, "current_stream", 4711)
    problem = GradientMatching(Emulated(G32), P.target)
    solve(problem, 2)
    monkeypatch.setattr(EmulatedLibrary, "current_stream", 4712)
    solve(problem, 2)  # the stream that is current when it is solved
    assert [call["stream"] for call in device.calls] == [4711, 4712]


@pytest.mark.parametrize(("current", "asked"), [(0, 1), (2, 2), (4711, 4711)])
def test_the_stream_that_a_producer_is_told(current, asked, device, monkeypatch, torch):
    monkeypatch.setattr(EmulatedLibrary, "current_stream", current)
    G, target = EmulatedDLPack(torch.tensor(G32)), EmulatedDLPack(torch.tensor(P.target))
    solve(GradientMatching(G, target), 2)
    assert G.streams == target.streams == [asked]
    assert device.calls[-1]["stream"] == current


def test_a_producer_of_another_library_waits_for_the_stream_of_the_matrix(device, monkeypatch, torch):
    monkeypatch.delitem(_device.LIBRARIES, "emulation")
    monkeypatch.setattr(EmulatedLibrary, "current_stream", 4711)

    class Foreign(EmulatedDLPack):
        __module__ = "foreign"

    monkeypatch.setitem(_device.LIBRARIES, "foreign", EmulatedLibrary())
    target = EmulatedDLPack(torch.tensor(P.target))
    solve(GradientMatching(Foreign(torch.tensor(G32)), target), 2)
    assert target.streams == [4711] and device.calls[-1]["stream"] == 4711


@pytest.mark.parametrize(("named", "used"), [(None, 0), (1, 0), (2, 2), (4711, 4711)])
def test_the_stream_that_an_interface_names(named, used, device):
    solve(GradientMatching(Emulated(G32, stream=named), Emulated(P.target, stream=named)), 2)
    assert device.calls[-1]["stream"] == used


# ---- devices --------------------------------------------------------------------------------------------------------


def test_the_device_of_the_arrays(device):
    device.n_devices = 2
    G = Emulated(G32, device=1)
    for name in ("auto", "cuda", "cuda:1"):
        found = omp_partition(G, P.target, 3, device=name)
        assert device.calls[-1]["device"] == 1 and found.stats["device"] == "cuda:1 emulated"
    assert GradientMatching(G, P.target).device == "cuda:1"


def test_the_name_of_the_card_is_in_what_is_printed_and_saved(tmp_path):
    found = omp_partition(Emulated(G32), P.target, 3)
    assert "cuda:0 emulated" in str(found)
    found.save(tmp_path / "sel.json")
    assert pysubmod.Selection.load(tmp_path / "sel.json").stats == found.stats


def test_host_arrays_stay_on_the_cpu(device):
    for name in ("auto", "cpu"):
        assert omp_partition(G32, P.target, 3, device=name).stats["device"] == "cpu"
    assert device.calls == []


def test_host_arrays_are_moved_when_a_device_is_named(device, monkeypatch):
    moved = []

    def move(name, array, dtype, index):
        moved.append((name, array.shape, dtype, index))
        return _device.read_array(name, Emulated(np.ascontiguousarray(array), index))

    monkeypatch.setattr(pysubmod._device_parts, "move_to_device", move)
    device.n_devices = 2
    same(omp_partition(G32, P.target, 3, device="cuda:1"), omp_partition(G32, P.target, 3))
    same(omp_partition({"a": G32, "b": G32}, P.target, {"a": 2, "b": 1}, device="cuda"),
         omp_partition({"a": G32, "b": G32}, P.target, {"a": 2, "b": 1}))  # fmt: skip
    problem = GradientMatching.from_gram(P.G @ P.G.T, P.G @ P.target)
    found = solve(problem, 3, device="cuda")
    same(found, solve(problem, 3))
    assert moved == [("G", (40, 24), "float32", 1), ("G", (80, 24), "float32", 0), ("K", (40, 40), "float64", 0)]
    assert found._origin[0] is problem and problem.device == "cpu"
    separate = omp_partition(G32, np.stack([P.target, -P.target]), 3, separate=True, device="cuda")
    assert len(separate) == 2 and len(moved) == 4
    assert isinstance(omp_partition(G32, P.target, 3, device="cuda", output="device"), DeviceSelection)


# ---- back to the host -----------------------------------------------------------------------------------------------


def test_the_same_problem_on_the_host():
    for target in (P.target, Emulated(P.target)):
        there = GradientMatching(Emulated(G32), target, ridge=0.3, nonneg=False, tilt=0.1)
        here = there.cpu()
        assert here.device == "cpu" and here.cpu() is here
        assert (here.ridge, here.nonneg, here.tilt) == (0.3, False, 0.1)
        expected = GradientMatching(G32, P.target, ridge=0.3, nonneg=False, tilt=0.1)
        assert here.value([3, 1]) == expected.value([3, 1])
    gram = GradientMatching.from_gram(Emulated(P.G @ P.G.T), Emulated(P.G @ P.target), ridge=0.2, target_norm=3.0)
    here = gram.cpu()
    assert here.route == "gram" and here._target_norm == 3.0 and here.ridge == 0.2
    assert np.isnan(GradientMatching.from_gram(Emulated(np.eye(3)), np.ones(3)).cpu()._target_norm)


def test_a_selection_of_a_device_is_judged_on_the_host():
    problem = GradientMatching(Emulated(G32), P.target, ridge=0.5)
    found = solve(problem, MATROID)
    here = problem.cpu()
    assert here.value(found.indices) == pytest.approx(found.objective)
    assert pysubmod.certify(here, MATROID, found).ratio > 0.5
    assert pysubmod.diagnose(here, MATROID, found).problem["n"] == 40


# ---- results that stay there ----------------------------------------------------------------------------------------


def test_a_selection_that_stays_on_the_device(device):
    mask = np.arange(40) % 5 > 0
    there = omp_partition(Emulated(G32), P.target, P.budgets, groups=P.groups, candidates=mask, output="device")
    expected = omp_partition(Emulated(G32), P.target, P.budgets, groups=P.groups, candidates=mask)
    assert isinstance(there, DeviceSelection) and isinstance(there.indices, Emulated)
    k, width = len(expected), there.indices.shape[0]
    assert width == MATROID.rank and there.weights.shape == (width,) and there.status.shape == ()
    assert there.indices.values[:k].tolist() == expected.indices.tolist()
    assert (there.indices.values[k:] == -1).all() and (there.weights.values[k:] == 0).all()
    assert int(there.n_selected.values) == k and float(there.objective.values) == expected.objective
    assert device.calls[-2]["outputs"] is not None and device.calls[-1]["outputs"] is None
    found = there.result()
    assert found.indices.tolist() == expected.indices.tolist() and found.weights.tolist() == expected.weights.tolist()
    assert (found.objective, found.status, found.counts) == (expected.objective, expected.status, expected.counts)
    assert np.isnan(found.gains).all() and found.residual_norms is None and found.config == expected.config
    assert "DeviceSelection(indices=" in repr(there) and "_finish" not in repr(there)


def test_several_selections_that_stay_on_the_device():
    anchors = np.stack([P.target, -P.target])
    there = omp_partition(Emulated(G32), anchors, P.budgets, groups=P.groups, separate=True, output="device")
    assert there.indices.shape == (2, MATROID.rank) and there.status.shape == (2,)
    expected = omp_partition(G32, anchors, P.budgets, groups=P.groups, separate=True)
    assert [s.indices.tolist() for s in there.result()] == [s.indices.tolist() for s in expected]


def test_room_for_all_that_can_be_picked():
    # Of initial rows that are masked, and of budgets beyond their groups.
    mask = np.zeros(40, bool)
    mask[:2] = True
    for budgets, initial in ((50, [5, 6, 7]), (3, [5, 6, 7]), (0, []), (50, [])):
        there = omp_partition(Emulated(G32), P.target, budgets, candidates=mask, initial=initial, output="device")
        expected = omp_partition(G32, P.target, budgets, candidates=mask, initial=initial)
        assert there.result().indices.tolist() == expected.indices.tolist()
        assert there.indices.shape[0] >= max(1, len(expected))


def test_a_fault_is_raised_when_the_result_is_asked_for():
    there = omp_partition(Emulated(G32), P.target, 3, output="device")
    for code, text in ((-1, "NaN or infinity"), (-7, "unbounded: pass ridge > 0"), (-10, "report")):
        there.status.values[...] = code
        with pytest.raises(ValueError, match=f"^problem: .*{text}.*output='selection' names the row"):
            there.result()


# ---- libraries that are not here ------------------------------------------------------------------------------------


def test_cupy(monkeypatch, device):
    """CuPy's words, spoken by a module of the same name."""
    device.n_devices = 2
    current = []

    class Array(EmulatedDLPack):
        __module__ = "cupy"

        @property
        def data(self):
            return types.SimpleNamespace(ptr=self.values.ctypes.data)

        @property
        def shape(self):
            return self.values.shape

        def get(self):
            return self.values

        def __dlpack__(self, **options):
            assert current == [self.device], "made current"
            return super().__dlpack__(**options)

        def __getitem__(self, i):
            return Array(self.values[i], self.device)

    class Device:
        def __init__(self, index):
            self.index = index

        def __enter__(self):
            current.append(self.index)

        def __exit__(self, *_):
            current.pop()

    stream = types.SimpleNamespace(ptr=99)
    cupy = types.ModuleType("cupy")
    cupy.cuda = types.SimpleNamespace(Device=Device, get_current_stream=lambda: stream)
    cupy.empty = lambda shape, dtype: Array(np.full(shape, 77, dtype), current[-1])
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    problem = GradientMatching(Array(G32, 1), Array(P.target, 1))
    same(solve(problem, MATROID), solve(GradientMatching(G32, P.target), MATROID))
    assert device.calls[-1]["stream"] == 99 and device.calls[-1]["device"] == 1
    assert problem.cpu().value([1]) == GradientMatching(G32, P.target).value([1])
    there = omp_partition(Array(G32, 1), P.target, P.budgets, groups=P.groups, output="device")
    assert isinstance(there.indices, Array) and there.indices.device == 1
    assert there.result().indices.tolist() == solve(problem, MATROID).indices.tolist()


def test_numbers_of_threads_change_nothing(monkeypatch):
    expected = omp_partition(Emulated(G32), P.target, P.budgets, groups=P.groups)
    for threads, blocks in ((3, 1), (2, 2), (1, 4)):
        monkeypatch.setattr(pysubmod._backends, "device_module", lambda t=threads, b=blocks: EmulatedModule(1, t, b))
        found = omp_partition(Emulated(G32), P.target, P.budgets, groups=P.groups)
        assert found.indices.tolist() == expected.indices.tolist()
        assert found.weights.tolist() == expected.weights.tolist() and found.objective == expected.objective


@pytest.mark.parametrize("rule", ["omp", "greedy"])
@pytest.mark.parametrize("route", ["gram", "draft"])
@pytest.mark.parametrize(("n", "d", "k"), [(40, 24, 12), (900, 60, 3), (300, 5000, 40), (2000, 8, 150)])
def test_the_estimate_of_memory(n, d, k, route, rule):
    if route == "draft" and rule == "greedy":
        pytest.skip("not on this route")
    G = np.random.default_rng(0).normal(size=(n, d)).astype("f4")
    found = omp_partition(Emulated(G), G.mean(axis=0), k, rule=rule, route=route)
    estimate = pysubmod.estimate_memory(n, d, k, rule=rule, route=route, device="cuda")
    assert estimate["gradients"] == G.nbytes and estimate["total"] == G.nbytes + estimate["solver"]
    assert found.stats["device_bytes"] <= estimate["solver"] <= 4 * found.stats["device_bytes"] + 2**22
    twice = pysubmod.estimate_memory(n, d, k, rule=rule, route=route, device="cuda", n_targets=2)
    assert twice["solver"] == 2 * estimate["solver"]
