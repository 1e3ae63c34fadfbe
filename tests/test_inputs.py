"""The same numbers, however they are stored, give the same answer bit for bit; G is read in place and never changed."""

from __future__ import annotations

import array
import json
import subprocess
import sys
import textwrap
import tracemalloc

import numpy as np
import pytest
from oracles import same
from strategies import RULES

from pysubmod import GradientMatching, PartitionMatroid, estimate_memory, omp_partition, solve

# Small integers: exact in every storage type. More columns than the core reads at a time, and an odd number of them.
N, D = 71, 2101
_rng = np.random.default_rng(7)
ROWS = _rng.integers(-100, 101, size=(N, D)).astype(float)
ROWS[40] = ROWS[3]  # a duplicate, and a zero row
ROWS[50] = 0
TARGET = ROWS[::5].mean(axis=0).round()
GROUPS = np.sort(_rng.integers(0, 4, size=N))
BUDGETS = [3, 4, 0, 5]


def run(G=ROWS, target=TARGET, **options):
    return omp_partition(G, target, BUDGETS, groups=GROUPS, **options)


@pytest.fixture(scope="module")
def expected():
    """The answer for contiguous float64."""
    return {rule: run(rule=rule) for rule in RULES}


def unaligned(a):
    view = np.empty(a.nbytes + 1, np.uint8)[1:].view(a.dtype).reshape(a.shape)
    view[...] = a
    assert not view.flags.aligned or a.itemsize == 1
    return view


def sliced(a, *steps):
    """`a` as a view with these steps into a larger array."""
    wide = np.full([size * abs(step) + 1 for size, step in zip(a.shape, steps, strict=True)], 99, a.dtype)
    view = wide[tuple(slice(None, size * step, step) if step > 0 else slice(-1, -1 + size * step, step)
                      for size, step in zip(a.shape, steps, strict=True))]  # fmt: skip
    view[...] = a
    assert np.shares_memory(view, wide)
    return view


def read_only(a):
    a = a.copy()
    a.flags.writeable = False
    return a


LAYOUTS = {
    "C": np.ascontiguousarray,
    "F": np.asfortranarray,
    "every second row": lambda a: sliced(a, 2, 1),
    "every third column": lambda a: sliced(a, 1, 3),
    "reversed rows": lambda a: sliced(a, -1, 1),
    "reversed columns": lambda a: sliced(a, 1, -1),
    "reversed in steps": lambda a: sliced(a, -2, -3),
    "transposed and sliced": lambda a: sliced(np.ascontiguousarray(a.T), 2, 2).T,
    "a plane of three dimensions": lambda a: np.stack([a + 1, a], axis=2)[:, :, 1],
    "unaligned": unaligned,
    "unaligned F": lambda a: unaligned(np.ascontiguousarray(a.T)).T,
    "read-only": read_only,
}


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, dtype, expected):
    G = LAYOUTS[layout](ROWS.astype(dtype))
    before, strides = G.copy(), G.strides
    for rule in RULES:
        same(run(G, rule=rule), expected[rule])
    assert G.strides == strides and G.tobytes() == before.tobytes()
    assert np.shares_memory(GradientMatching(G, TARGET)._rows.blocks[0], G)


@pytest.mark.parametrize("nonneg", [True, False])
@pytest.mark.parametrize("layout", ["F", "reversed in steps", "unaligned"])
def test_layouts_with_every_option(layout, nonneg):
    options = {
        "nonneg": nonneg,
        "ridge": 1e3,
        "tilt": 0.25,
        "fill": True,
        "initial": [60, 3],
        "candidates": GROUPS != 1,
    }
    for dtype in ("f2", "f4"):
        for rule in RULES:
            same(run(LAYOUTS[layout](ROWS.astype(dtype)), rule=rule, **options), run(rule=rule, **options))


@pytest.mark.parametrize("dtype", [">f2", ">f4", ">f8", "i1", "i2", "i4", "i8", ">i4"])
def test_other_byte_orders_and_integers(dtype, expected):
    same(run(ROWS.astype(dtype), TARGET.astype(dtype)), expected["omp"])
    same(run(np.asfortranarray(ROWS.astype(dtype)), TARGET[::-1].astype(dtype)[::-1]), expected["omp"])


def test_unsigned_integers_are_numbers_and_not_bits():
    """bfloat16 rows travel as uint16 inside; a caller's uint16 is what it says."""
    same(run(np.abs(ROWS).astype("u2")), run(np.abs(ROWS)))


@pytest.mark.parametrize("mode", ["r", "c", "r+"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_memory_maps(mode, order, tmp_path, expected):
    path = tmp_path / "G.npy"
    np.save(path, np.asarray(ROWS, dtype="f4", order=order))
    G = np.load(path, mmap_mode=mode)
    same(run(G), expected["omp"])
    same(run(G, rule="greedy"), expected["greedy"])
    raw = np.memmap(path, dtype="f4", mode=mode, offset=path.stat().st_size - 4 * N * D, shape=(N, D), order=order)
    same(run(raw), expected["omp"])
    assert np.shares_memory(GradientMatching(raw, TARGET)._rows.blocks[0], raw)


class WithArray:
    """As pandas and other containers offer their numbers."""

    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return self.values if dtype is None else self.values.astype(dtype)


class WithDLPack:
    """What speaks DLPack and nothing else."""

    def __init__(self, values):
        self.values = values

    def __dlpack__(self, **options):
        return self.values.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.values.__dlpack_device__()


class Subclass(np.ndarray):
    pass


CONTAINERS = {
    "list": lambda a: a.tolist(),
    "tuple of rows": lambda a: tuple(a),
    "list of lists of int": lambda a: a.astype(int).tolist(),
    "subclass": lambda a: a.view(Subclass),
    "masked array without a mask": np.ma.asarray,
    "memoryview": memoryview,
    "__array__": WithArray,
    "DLPack": WithDLPack,
    "DLPack, strided": lambda a: WithDLPack(sliced(a, 2, 3) if a.ndim == 2 else sliced(a, 2)),
}


@pytest.mark.parametrize("container", CONTAINERS)
def test_containers(container, expected):
    wrap = CONTAINERS[container]
    same(run(wrap(ROWS)), expected["omp"])
    same(run(wrap(ROWS), wrap(TARGET)), expected["omp"])
    same(run(ROWS, wrap(np.stack([TARGET - 1, TARGET + 1]))), expected["omp"])


@pytest.mark.parametrize("container", ["__array__", "DLPack", "DLPack, strided", "memoryview"])
def test_containers_are_read_in_place(container):
    G = CONTAINERS[container](ROWS)
    owner = getattr(G, "values", ROWS)
    assert np.shares_memory(GradientMatching(G, TARGET)._rows.blocks[0], owner)


def test_labels_budgets_masks_and_row_numbers_of_any_container(expected):
    given_groups = [
        GROUPS.tolist(),
        tuple(GROUPS),
        WithArray(GROUPS),
        WithDLPack(GROUPS),
        GROUPS.astype("u1"),
        GROUPS[::-1][::-1],
    ]
    for groups in given_groups:
        same(omp_partition(ROWS, TARGET, BUDGETS, groups=groups), expected["omp"])
    for budgets in (tuple(BUDGETS), np.array(BUDGETS), dict(enumerate(BUDGETS)), PartitionMatroid(GROUPS, BUDGETS)):
        groups = None if isinstance(budgets, PartitionMatroid) else GROUPS
        same(omp_partition(ROWS, TARGET, budgets, groups=groups), expected["omp"])
    mask, start = np.arange(N) % 3 > 0, np.array([70, 1])
    masked = run(candidates=mask, initial=start)
    for candidates in (mask.tolist(), WithArray(mask), mask[::-1].copy()[::-1]):
        same(run(candidates=candidates, initial=start), masked)
    for initial in (
        start.tolist(),
        tuple(start),
        start.astype("u1"),
        WithDLPack(start),
        array.array("q", start),
        start[::-1][::-1],
    ):
        same(run(candidates=mask, initial=initial), masked)


@pytest.mark.parametrize("order", ["C", "F"])
def test_gram_matrices(order):
    K, c = ROWS @ ROWS.T, ROWS @ TARGET
    exact = solve(GradientMatching.from_gram(K, c), PartitionMatroid(GROUPS, BUDGETS))
    for layout in LAYOUTS.values():
        stored = layout(np.asarray(K, order=order))
        again = solve(GradientMatching.from_gram(stored, c[::-1].copy()[::-1]), PartitionMatroid(GROUPS, BUDGETS))
        same(again, exact)
    for shape in (K[:1, :1], K[::2, ::3][:1, :1], K[:0, :0], K[3:4, 5:6]):
        problem = GradientMatching.from_gram(np.abs(shape), np.ones(len(shape)))
        assert problem.value(range(len(shape))) == pytest.approx((0.5 / np.abs(shape)).sum())


# ---- mappings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtypes", [["f8"], ["f4"], ["f2"], ["f2", "f8", "f4"]])
@pytest.mark.parametrize("layout", ["C", "F", "reversed in steps", "unaligned"])
def test_mappings(layout, dtypes, expected):
    blocks = {}
    for p in range(4):
        rows = ROWS[np.equal(GROUPS, p)]
        blocks[p] = LAYOUTS[layout](rows.astype(dtypes[p % len(dtypes)]))
    budgets = dict(enumerate(BUDGETS))
    for rule in RULES:
        same(omp_partition(blocks, TARGET, budgets, rule=rule), expected[rule])
    problem = GradientMatching(blocks, TARGET)
    assert problem.n == N and problem.d == D
    assert all(np.shares_memory(block, blocks[p]) for p, block in enumerate(problem._rows.blocks))
    S = expected["omp"].indices
    assert problem.value(S) == GradientMatching(ROWS, TARGET).value(S)


def test_rows_of_a_mapping_are_numbered_in_its_order():
    order = ["z", "a", "m"]
    blocks = {name: ROWS[20 * i : 20 * i + 20] for i, name in enumerate(order)}
    labels = np.repeat(order, 20)
    budgets = {"z": 3, "a": 2, "m": 1}
    selection = omp_partition(blocks, TARGET, budgets)
    same(selection, omp_partition(ROWS[:60], TARGET, budgets, groups=labels))
    assert selection.counts == budgets and list(selection.counts) == ["a", "m", "z"]


# ---- bfloat16 and torch -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ml_dtypes_bfloat16(layout, expected):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    G = LAYOUTS[layout](ROWS.astype(ml_dtypes.bfloat16))
    assert np.array_equal(G.astype(float), ROWS)
    same(run(G), expected["omp"])
    same(run(G, rule="greedy"), expected["greedy"])
    same(run(G, ROWS[3].astype(ml_dtypes.bfloat16)), run(ROWS, ROWS[3]))
    assert GradientMatching(G, TARGET)._rows.dtype == "bfloat16"
    assert np.shares_memory(GradientMatching(G, TARGET)._rows.blocks[0], G)


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


TENSORS = {
    "contiguous": lambda t: t,
    "transposed": lambda t: t.t().contiguous().t(),
    "every second row": lambda t: t.repeat_interleave(2, dim=0)[::2],
    "every third column": lambda t: t.repeat_interleave(3, dim=1)[:, ::3],
    "an offset into a larger one": lambda t: _inside(t),
    "requires a gradient": lambda t: t.clone().requires_grad_(),
    "has a gradient's history": lambda t: t.clone().requires_grad_() * 1,
    "a parameter": lambda t: _parameter(t),
}


def _inside(t):
    wide = t.new_ones(N + 5, D + 3)
    wide[5:, 2:-1] = t
    return wide[5:, 2:-1]


def _parameter(t):
    return sys.modules["torch"].nn.Parameter(t)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("layout", TENSORS)
def test_tensors(layout, dtype, torch, expected):
    tensor = TENSORS[layout](torch.tensor(ROWS, dtype=getattr(torch, dtype)))
    before, needs = tensor.detach().clone(), tensor.requires_grad
    for rule in RULES:
        same(run(tensor, rule=rule), expected[rule])
    problem = GradientMatching(tensor, torch.tensor(TARGET, requires_grad=True))
    assert problem._rows.dtype == dtype and problem.route == "dense"
    assert problem._rows.blocks[0].__array_interface__["data"][0] == tensor.data_ptr(), "copied"
    assert torch.equal(tensor.detach(), before) and tensor.requires_grad == needs
    assert not tensor.is_leaf or tensor.grad is None


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "int32"])
def test_targets_that_are_tensors(dtype, torch, expected):
    def tensor(a):
        return torch.tensor(a).to(getattr(torch, dtype))

    rows = np.clip(TARGET, -100, 100)
    same(run(ROWS, tensor(rows)), run(ROWS, rows))
    anchors = np.stack([rows, -rows, rows, 3 * np.sign(rows)])
    same(run(ROWS, tensor(anchors)), run(ROWS, anchors))
    same(run(ROWS, tensor(anchors)), run(ROWS, anchors.mean(axis=0)))
    same(run(ROWS, tensor(anchors).T.contiguous().T), run(ROWS, anchors))
    if dtype != "int32":  # the mean of a few validation gradients, still in the graph
        graph = tensor(np.stack([rows, rows])).requires_grad_()
        same(run(ROWS, graph.mean(dim=0)), run(ROWS, rows))


def test_labels_masks_and_row_numbers_that_are_tensors(torch, expected):
    groups = torch.tensor(GROUPS)
    same(omp_partition(ROWS, TARGET, BUDGETS, groups=groups), expected["omp"])
    mask, start = np.arange(N) % 3 > 0, [70, 1]
    same(run(candidates=torch.tensor(mask), initial=torch.tensor(start)), run(candidates=mask, initial=start))


def test_mappings_of_tensors_and_arrays(torch, expected):
    blocks = {
        0: torch.tensor(ROWS[GROUPS == 0]).bfloat16(),
        1: ROWS[GROUPS == 1].astype("f2"),
        2: torch.tensor(ROWS[GROUPS == 2]).half(),
        3: ROWS[GROUPS == 3].tolist(),
    }
    selection = omp_partition(blocks, TARGET, dict(enumerate(BUDGETS)))
    same(selection, expected["omp"])
    assert selection.config["dtype"] == "bfloat16+float16+float64"


def test_tensors_that_speak_dlpack_only(torch, expected):
    same(run(WithDLPack(torch.tensor(ROWS).float())), expected["omp"])


def in_a_process(program, *arguments):
    """Run `program` in a fresh interpreter; what it prints is JSON."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_nothing_heavy_is_imported_unless_it_is_given():
    loaded = in_a_process(
        """
        import json, sys
        import numpy as np
        import pysubmod
        G = np.eye(4)
        selection = pysubmod.omp_partition({"a": G, "b": G}, G.mean(axis=0), {"a": 1, "b": 2})
        pysubmod.GradientMatching(G, G[0]).gains([1]); pysubmod.GradientMatching.from_gram(G, G[0]).value([0])
        print(selection.to_json()[:0] + json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
        """
    )
    assert not {"torch", "scipy", "matplotlib", "pandas", "yaml", "tqdm", "ml_dtypes"} & set(loaded)


# ---- memory -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["C", "F", "reversed in steps"])
def test_python_makes_no_copy(layout):
    G = LAYOUTS[layout](np.tile(ROWS.astype("f4"), (20, 1)))
    groups = np.tile(GROUPS, 20)
    run_once = [
        lambda: omp_partition(G, TARGET, BUDGETS, groups=groups),
        lambda: GradientMatching(G, TARGET).value([0, 5]),
    ]
    for act in run_once:
        tracemalloc.start()
        act()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 0.1 * G.nbytes


PEAK = """
    import json, sys
    import numpy as np
    import pysubmod

    def peak():
        with open("/proc/self/status") as status:
            return next(1024 * int(line.split()[1]) for line in status if line.startswith("VmHWM"))

    path, dtype, order, n, d, k, rule, route, m = sys.argv[1:]
    n, d, k, m = int(n), int(d), int(k), int(m)
    pysubmod.omp_partition(np.eye(4), np.ones(4), 2, n_threads=2)  # whatever is loaded late
    G = np.memmap(path, dtype=dtype, mode="r", shape=(n, d), order=order)
    targets = np.ones((m, d))
    before = peak()
    selections = pysubmod.omp_partition(G, targets, k, rule=rule, route=route, separate=True, n_threads=2)
    print(json.dumps({"picks": len(selections[0]), "resident": peak() - before}))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(
    ("dtype", "order", "rule", "route", "k", "m"),
    [
        ("f4", "C", "omp", "auto", 4, 1),
        ("f2", "F", "normalized", "plain", 4, 1),
        ("f8", "C", "greedy", "plain", 4, 1),
        ("f4", "C", "omp", "draft", 60, 1),
        ("f2", "F", "normalized", "draft", 60, 1),
        ("f8", "C", "greedy", "draft", 20, 1),
        ("f4", "C", "omp", "plain", 20, 8),
        ("f4", "C", "omp", "draft", 60, 8),
    ],
)
def test_peak_memory_is_that_of_the_gradients(dtype, order, rule, route, k, m, tmp_path):
    """A 200 MB file: the peak is little above it, and what the solver allocates is what was estimated."""
    size, n = 200_000_000, 2000
    d = size // n // np.dtype(dtype).itemsize
    block = np.random.default_rng(0).normal(size=1_000_000).astype(dtype)
    path = tmp_path / "G"
    with open(path, "wb") as file:
        for _ in range(size // block.nbytes):
            file.write(block)
    found = in_a_process(PEAK, path, dtype, order, n, d, k, rule, route, m)
    path.unlink()
    assert found["picks"] > 0
    assert found["resident"] <= (1.1 if route == "plain" else 1.4) * size
    estimate = estimate_memory(n, d, k, dtype=dtype, rule=rule, route=route, n_targets=m, n_threads=2)
    assert estimate["gradients"] == size
    assert found["resident"] <= size + estimate["solver"] + 2**22


def test_one_bfloat16_number_is_read_as_a_number():
    torch = pytest.importorskip("torch")
    G = np.eye(3)
    ridge = torch.tensor(0.5, dtype=torch.bfloat16)
    found = omp_partition(G, [3.0, 2.0, 1.0], 2, ridge=ridge)
    assert found.weights.tolist() == omp_partition(G, [3.0, 2.0, 1.0], 2, ridge=0.5).weights.tolist()
