"""Anything at all at the door: a clean error that names its argument, or an answer that is right. Never a crash.

A long search: PYSUBMOD_EXAMPLES=20000 python -m pytest tests/test_fuzz.py --timeout=0
"""

from __future__ import annotations

import os
import re
import warnings
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracles import check_selection, units_of_gram, units_of_rows
from strategies import EXAMPLES, RULES

import pysubmod
from pysubmod import GradientMatching, PartitionMatroid, Selection, omp_partition, solve

try:
    import torch
except ImportError:
    torch = None
try:
    import ml_dtypes
except ImportError:
    ml_dtypes = None

many = settings(
    max_examples=4 * EXAMPLES,
    deadline=None,
    derandomize="PYSUBMOD_EXAMPLES" not in os.environ,  # a long search is a new one every time
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
NAN, INF = float("nan"), float("inf")
NAMES = (
    *("G", "target", "budgets", "groups", "ridge", "nonneg", "rule", "pick", "tilt", "fill", "release_zeros", "tol"),
    *(
        "candidates",
        "initial",
        "separate",
        "route",
        "device",
        "n_threads",
        "verbose",
        "callback",
        "K",
        "c",
        "target_norm",
        "S",
        "indices",
    ),
    *("problem", "matroid", "method", "n", "d", "k", "dtype"),
)
NAMED = re.compile(rf"({'|'.join(NAMES)})(\[.*\]| \(its keys\))?: ", re.DOTALL)


# ---- garbage ----------------------------------------------------------------------------------------------------

SCALARS = [
    None, True, False, 0, 1, -1, 2, 3, 2**31, 2**63, -(2**63) - 1, 10**30, -(10**400), 10**5000,
    0.0, -0.0, 0.5, 2.0, -1.5, NAN, INF, -INF, 1e-300, 1e300, 5e-324, 1.8e308, 1j, NAN * 1j,
    "", "x", "omp", "cpu", "\0", "\ud800", b"x", bytearray(b"xyz"), memoryview(b"abcd"),
    [], (), {}, set(), frozenset({1}), range(3), slice(1), Ellipsis, NotImplemented, object(), int, len,
    Fraction(1, 3), Fraction(10**400), Decimal("1.5"), Decimal("NaN"),
    np.int8(3), np.uint64(2**64 - 1), np.float16(1.5), np.float32("nan"), np.longdouble("1e4000"), np.complex64(1),
    np.bool_(True), np.datetime64("2020-01-01"), np.datetime64("NaT"), np.timedelta64(2, "s"), np.timedelta64("NaT"),
    np.str_("a"), np.bytes_(b"a"), np.void(b"abcd"), np.array(2), np.array(NAN), np.array(None), np.array("x"),
    np.empty((0,)), np.empty((0, 0)), np.ma.masked, [[]], [[], [1]], [None], [[1, "a"]], ["a", 1], [1, True], [1.5],
    [2**70], [10**400, 1.0], [NAN], [[[[1]]]], {1: 2}, {"a": 1}, {None: 1}, {True: 1}, {1.5: 1}, {(): 1},
    {"a": {"b": 1}}, {"a": [[1.0]], 1: [[2.0]]}, {10**5000: 1}, {"a": -1}, {"a": 1.5}, {0: NAN},
    [np.ones(2), np.ones(3)],
]  # fmt: skip

DTYPES = [
    "f2", "f4", "f8", ">f2", ">f4", ">f8", "g", "c8", "c16", "?", "i1", "u2", "i4", "i8", "u8", ">i4",
    "O", "U3", ">U3", "S3", "M8[s]", "m8[ns]", "V4", "f4,i4",
]  # fmt: skip
FLOATS = ["f2", "f4", "f8", ">f4", ">f8"]
if ml_dtypes is not None:
    DTYPES += [ml_dtypes.bfloat16, ml_dtypes.float8_e5m2, ml_dtypes.int4]
    FLOATS += [ml_dtypes.bfloat16]
if hasattr(np, "dtypes") and hasattr(np.dtypes, "StringDType"):
    DTYPES += [np.dtypes.StringDType()]


@st.composite
def values(draw, shape, dtype):
    """An array of any numbers: ordinary, integers, huge, tiny, mixed scales, NaN or infinity somewhere, raw bits."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kinds = ["normal", "normal", "integers", "scales", "rows", "zeros", "duplicates", "huge", "tiny", "subnormal"]
    kind = draw(st.sampled_from([*kinds, "NaN", "Inf", "bits"]))
    numbers = np.asarray(rng.normal(size=shape))
    if kind in ("integers", "duplicates"):
        numbers = np.asarray(rng.integers(-2, 3, size=shape), dtype=float)
    elif kind == "scales":
        numbers *= 10.0 ** rng.integers(-300, 301, size=shape)
    elif kind == "rows" and len(shape) == 2:
        numbers *= 10.0 ** rng.integers(-139, 140, size=(shape[0], 1))
    elif kind in ("huge", "tiny", "subnormal"):
        numbers *= {"huge": 1e139, "tiny": 1e-139, "subnormal": 5e-324}[kind]
    elif kind == "zeros":
        numbers *= 0
    elif kind in ("NaN", "Inf") and numbers.size:
        numbers.flat[rng.integers(numbers.size)] = NAN if kind == "NaN" else -INF
    if kind == "duplicates" and len(shape) == 2 and shape[0] > 1:
        numbers[1::2] = numbers[: shape[0] // 2] * rng.choice([-2.0, 1.0, 0.25])
    dtype = np.dtype(dtype)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        if kind == "bits" and not dtype.hasobject and dtype.kind in "fciubVmMS":
            return np.frombuffer(rng.bytes(numbers.size * dtype.itemsize), dtype).reshape(shape)
        if dtype.kind == "V" and dtype.name.startswith("void"):
            return np.zeros(shape, dtype)
        if dtype.kind in "iuM":
            numbers = np.nan_to_num(numbers, posinf=0, neginf=0).clip(-100, 100)
        return np.asarray(numbers).astype("i8" if dtype.kind in "mM" else dtype).astype(dtype)


def unaligned(array):
    buffer = np.empty(array.nbytes + 1, np.uint8)
    view = buffer[1:].view(array.dtype).reshape(array.shape)
    view[...] = array
    return view


def every_other(array):
    wide = np.zeros(tuple(2 * size for size in array.shape), array.dtype)
    view = wide[tuple(slice(None, None, 2) for _ in array.shape)]
    view[...] = array
    return view


def read_only(array):
    array = np.array(array)
    array.flags.writeable = False
    return array


def as_tensor(array):
    if torch is None or array.dtype.str not in ("<f2", "<f4", "<f8", "<i4", "|u1", "|b1"):
        return array
    return torch.from_numpy(array.copy())


LAYOUTS = {
    "C": lambda a: a,
    "F": np.asfortranarray,
    "reversed": lambda a: np.flip(np.flip(a).copy()) if a.ndim else a,
    "reversed columns": lambda a: np.flip(np.flip(a, -1).copy(), -1) if a.ndim else a,
    "one row": lambda a: np.broadcast_to(a[:1], a.shape) if a.shape and a.shape[0] else a,
    "one column": lambda a: np.broadcast_to(a[..., :1], a.shape) if a.ndim > 1 and a.shape[-1] else a,
    "unaligned": lambda a: a if a.dtype.hasobject or a.dtype.kind == "T" or not a.size else unaligned(a),
    "every other": lambda a: a if a.dtype.kind == "T" or not a.ndim else every_other(a),
    "read-only": read_only,
    "list": lambda a: a.tolist(),
    "tensor": as_tensor,
    "matrix of objects": lambda a: a.astype(object),
    "masked": np.ma.asarray,
}


@st.composite
def arrays(draw, shape, dtypes=DTYPES, layouts=tuple(LAYOUTS)):
    return LAYOUTS[draw(st.sampled_from(layouts))](draw(values(shape, draw(st.sampled_from(dtypes)))))


sizes = st.integers(0, 7)


@st.composite
def anything(draw):
    """One piece of garbage."""
    if draw(st.booleans()):
        return draw(st.sampled_from(SCALARS))
    shape = tuple(draw(st.lists(sizes, min_size=0, max_size=3)))
    return draw(arrays(shape))


# ---- calls: good ones, some of whose arguments are replaced by garbage ------------------------------------------

good_floats = st.sampled_from([0.0, 0, 1e-3, 1.0, 7, 1e100, 1e279, 1e-279, np.float32(0.1), Fraction(1, 3)])


@st.composite
def labels_and_budgets(draw, n, alphabet=None):
    """Row labels in one of many forms, and budgets that fit them."""
    names = draw(st.sampled_from([["a", "b", ""], [0, 1, -5], ["ä\u4e00", "x" * 50, "1"], [2**63 - 1, -(2**63), 0]]))
    chosen = draw(st.lists(st.sampled_from(names), min_size=n, max_size=n))
    budget = st.sampled_from([0, 1, 2, 3, 10**30, 2.0, np.int8(2), np.float32(1)])
    form = draw(st.sampled_from(["mapping", "mapping", "sequence", "array", "more", "int", "matroid"]))
    if form == "int":
        return None, draw(budget)
    present = sorted(set(chosen))
    given_budgets = {name: draw(budget) for name in (names if form == "more" else present)}
    kind = "U60" if isinstance(names[0], str) else "i8"
    groups = draw(st.sampled_from([list, tuple, lambda x: np.array(x, kind), lambda x: np.array(x, object)]))(chosen)
    if form == "matroid":
        return None, PartitionMatroid(chosen, given_budgets)
    if form in ("sequence", "array"):
        given_budgets = list(given_budgets.values())
        if form == "array" and all(float(b) < 1e9 for b in given_budgets):
            given_budgets = np.array(given_budgets, dtype=float)
    return groups, given_budgets


@st.composite
def calls(draw):
    n, d = draw(sizes), draw(st.integers(1, 6))
    floats = st.sampled_from(FLOATS)
    layouts = [name for name in LAYOUTS if name != "matrix of objects"]
    call = {
        "G": draw(arrays((n, d), [draw(floats)], layouts)),
        "target": draw(arrays(draw(st.sampled_from([(d,), (d,), (1, d), (3, d)])), [draw(floats)], layouts)),
    }
    groups, call["budgets"] = draw(labels_and_budgets(n))
    if groups is not None:
        call["groups"] = groups
    elif not isinstance(call["budgets"], PartitionMatroid) and type(call["G"]) is np.ndarray and draw(st.booleans()):
        cut = draw(st.integers(0, n))
        call["G"] = {"first": call["G"][:cut], "second": call["G"][cut:]}
        call["budgets"] = {"first": call["budgets"], "second": 1}
    optional = {
        "ridge": good_floats,
        "nonneg": st.booleans(),
        "rule": st.sampled_from(RULES),
        "tilt": good_floats,
        "fill": st.booleans(),
        "release_zeros": st.booleans(),
        "tol": good_floats,
        "candidates": st.lists(st.booleans(), min_size=n, max_size=n).map(lambda x: np.array(x, bool)),
        "initial": st.lists(st.integers(0, max(n - 1, 0)), max_size=3, unique=True),
        "route": st.sampled_from(["auto", "plain", "draft"]),
        "separate": st.booleans(),
        "device": st.sampled_from(["auto", "cpu"]),
        "n_threads": st.sampled_from([None, 1, 2, 1024, np.int64(3)]),
        "verbose": st.just(0),
        "callback": st.sampled_from([None, lambda progress: None, lambda progress: progress.n_selected == 2]),
    }
    for name, strategy in optional.items():
        if draw(st.integers(0, 3)) == 0:
            call[name] = draw(strategy)
    for name in draw(st.lists(st.sampled_from([*call, *optional, "pick", "groups"]), max_size=2)):
        garbage = draw(anything())
        if name != "callback" or not callable(garbage):  # what `int` says of a Progress is its own affair
            call[name] = garbage
    return call


# ---- the judge --------------------------------------------------------------------------------------------------


def attempt(act):
    """What `act` returns, or None for a clean error; anything else that it raises or warns of is a failure."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="budgets: no row has the label")
        warnings.filterwarnings("ignore", category=DeprecationWarning)  # NumPy's own, about odd types
        try:
            return act()
        except (TypeError, ValueError) as error:
            assert type(error) in (TypeError, ValueError), repr(error)
            assert NAMED.match(str(error)), f"the message does not start with an argument: {error!r}"
            return None


def fingerprint(value):
    """The bits of every array inside an argument."""
    if isinstance(value, dict):
        return [fingerprint(part) for part in value.values()]
    if torch is not None and isinstance(value, torch.Tensor):
        return fingerprint(value.detach().numpy())
    if isinstance(value, np.ndarray) and value is not np.ma.masked:
        by_name = value.dtype.hasobject or value.dtype.kind == "T"
        return value.shape, value.strides, repr(value) if by_name else value.tobytes()
    return None


def as_float64(value):
    if isinstance(value, dict):
        return np.concatenate([as_float64(block) for block in value.values()])
    if torch is not None and isinstance(value, torch.Tensor):
        return value.double().numpy()
    with np.errstate(invalid="ignore"):  # signalling NaNs, in rows that nobody reads
        return np.asarray(value).astype(np.float64)


def labels_of(call, n):
    """The label of each row and {label: budget}, made from the arguments without the library."""
    budgets, groups = call["budgets"], call.get("groups")
    if isinstance(budgets, PartitionMatroid):
        by_label = dict(zip(budgets.labels, budgets.budgets.tolist(), strict=True))
        return [budgets.labels[p] for p in budgets.codes], by_label
    if isinstance(call["G"], dict):
        groups = [label for label, block in call["G"].items() for _ in range(len(block))]
    if groups is None:
        return [0] * n, {0: int(np.asarray(budgets)[()])}
    labels = np.asarray(groups).tolist()
    if isinstance(budgets, dict):
        given_budgets = {(str(k) if isinstance(k, str) else int(k)): int(b) for k, b in budgets.items()}
        return labels, {**dict.fromkeys(labels, 0), **given_budgets}  # masked rows need no budget
    if np.ndim(budgets) == 0:
        return labels, {label: int(budgets) for label in set(labels)}
    return labels, dict(zip(sorted(set(labels)), map(int, budgets), strict=True))


def judge(selection, call, units=None):
    assert isinstance(selection, Selection)
    n = selection.config["n"]
    labels, budgets = labels_of(call, n)
    candidates = call.get("candidates")
    initial = call.get("initial")
    check_selection(
        selection,
        n,
        labels,
        budgets,
        nonneg=bool(call.get("nonneg", True)),
        candidates=None if candidates is None else np.asarray(candidates),
        initial=() if initial is None else np.asarray(initial).tolist(),
        units=units,
        exact=False,
    )


@many
@given(calls())
def test_omp_partition(call):
    before = {name: fingerprint(value) for name, value in call.items()}
    found = attempt(lambda: omp_partition(**call))
    for name, value in call.items():
        assert fingerprint(value) == before[name], f"{name} was changed"
    if found is None:
        return
    G, target = as_float64(call["G"]), as_float64(call["target"])
    separate = isinstance(found, list)
    assert not separate or (target.ndim == 2 and len(found) == len(target))
    for p, selection in enumerate(found if separate else [found]):
        # What may not be selected may be anything, and has no part in the units.
        rows = np.where(np.isin(np.arange(len(G)), selection.indices)[:, None], G, 0.0)
        one = target[p] if separate else target.mean(axis=0) if target.ndim == 2 else target
        units = units_of_rows(rows, one, float(call.get("ridge", 0.0)), float(call.get("tilt", 0.0)))
        judge(selection, call, units)
        assert selection.sample_weight(len(G)).shape == (len(G),) and str(selection) and repr(selection)


@many
@given(st.data())
def test_gram(data):
    n = data.draw(sizes)
    dtype = data.draw(st.sampled_from(["f4", "f8"]))
    rows = data.draw(values((n, data.draw(st.integers(1, 6))), "f8"))
    with np.errstate(all="ignore"):
        rows = rows.clip(-1e60, 1e60) if dtype == "f8" else rows.clip(-1e15, 1e15)
        call = {"K": (rows @ rows.T).astype(dtype), "c": rows @ data.draw(values(rows.shape[1:], "f8"))}
    K_is_gram = data.draw(st.booleans())
    if not K_is_gram:
        call["K"] = data.draw(arrays((n, n)))
    if data.draw(st.booleans()):
        layout = data.draw(st.sampled_from(["C", "F", "reversed", "every other", "unaligned"]))
        call["K"] = LAYOUTS[layout](np.asarray(call["K"]))
    options = {"ridge": good_floats, "tilt": good_floats, "nonneg": st.booleans(), "target_norm": good_floats}
    for name, strategy in options.items():
        if data.draw(st.integers(0, 3)) == 0:
            call[name] = data.draw(strategy)
    for name in data.draw(st.lists(st.sampled_from([*call, *options]), max_size=1)):
        call[name] = data.draw(anything())
        K_is_gram &= name != "K"
    how = {"method": data.draw(st.sampled_from(pysubmod.available_methods()))}
    if how["method"] in ("omp", "omp-normalized", "greedy"):
        how["fill"] = data.draw(st.booleans())
    matroid = data.draw(st.one_of(sizes, anything()))
    before = {name: fingerprint(value) for name, value in call.items()}
    problem = attempt(lambda: GradientMatching.from_gram(**call))
    selection = attempt(lambda: solve(problem, matroid, **how))
    for name, value in call.items():
        assert fingerprint(value) == before[name], f"{name} was changed"
    if selection is None:
        return
    # Of a matrix that is not positive semidefinite nothing is promised but numbers.
    units = None
    if K_is_gram and np.asarray(call["K"]).dtype == np.float64:
        K, c = as_float64(call["K"]), as_float64(call["c"])
        units = units_of_gram(K, c, float(call.get("ridge", 0.0)), float(call.get("tilt", 0.0)))
    judge(selection, {"G": None, "budgets": matroid, "nonneg": call.get("nonneg", True)}, units)


@many
@given(st.data())
def test_values_of_supports(data):
    n, d = data.draw(sizes), data.draw(st.integers(1, 5))
    G, target = data.draw(arrays((n, d), FLOATS, ["C", "F", "reversed", "unaligned"])), data.draw(values((d,), "f8"))
    call = {"G": G, "target": target, "ridge": data.draw(good_floats), "nonneg": data.draw(st.booleans())}
    if data.draw(st.booleans()):
        call[data.draw(st.sampled_from([*call, "tilt"]))] = data.draw(anything())
    good_support = st.lists(st.integers(0, max(n - 1, 0)), unique=True, max_size=5)
    S = data.draw(st.one_of(good_support, good_support, anything()))
    problem = attempt(lambda: GradientMatching(**call))
    if problem is None:
        return
    value = attempt(lambda: problem.value(S))
    weights = attempt(lambda: problem.weights(S))
    norm = attempt(lambda: problem.residual_norm(S))
    gains = attempt(lambda: problem.gains(S))
    assert (value is None) == (weights is None) == (norm is None)
    if value is None:
        assert gains is None
        return
    assert (
        np.isfinite([value, norm]).all()
        and np.isfinite(weights).all()
        and len(weights) == (0 if S is None else np.size(S))
    )
    assert value >= 0 and norm >= 0 and (not problem.nonneg or (weights >= 0).all())
    assert gains is None or (gains.shape == (problem.n,) and np.isfinite(gains).all() and (gains >= 0).all())
    assert isinstance(repr(problem), str)


@many
@given(anything(), anything(), anything())
def test_matroid(groups, budgets, indices):
    matroid = attempt(lambda: PartitionMatroid(groups, budgets))
    if matroid is None:
        return
    assert 0 <= matroid.rank <= matroid.n and len(matroid.labels) == len(matroid.budgets) == len(matroid.sizes)
    assert matroid.sizes.sum() == matroid.n == len(matroid.codes) and (matroid.budgets >= 0).all()
    counts = attempt(lambda: matroid.counts(indices))
    feasible = attempt(lambda: matroid.is_feasible(indices))
    assert (counts is None) == (feasible is None)
    assert isinstance(repr(matroid), str)


@many
@given(st.lists(anything(), min_size=3, max_size=3), anything(), anything(), anything())
def test_estimate_memory(shape, dtype, rule, n_threads):
    good = {"dtype": "float32", "rule": "greedy", "n_threads": 2}
    for name, value in {"dtype": dtype, "rule": rule, "n_threads": n_threads}.items():
        attempt(lambda name=name, value=value: pysubmod.estimate_memory(5, 6, 7, **{**good, name: value}))
    for place in range(3):
        sizes = [5, 6, 7]
        sizes[place] = shape[place]
        attempt(lambda sizes=sizes: pysubmod.estimate_memory(*sizes, **good))


@many
@given(st.sampled_from(["S", "method", "matroid", "problem", "tol", "candidates", "initial"]), anything())
def test_solve_and_the_rest(name, garbage):
    problem = GradientMatching(np.eye(4), np.ones(4))
    if name == "S":
        for ask in (problem.value, problem.weights, problem.gains, problem.residual_norm):
            attempt(lambda ask=ask: ask(garbage))
        return
    call = {"problem": problem, "matroid": 2, "method": "omp", name: garbage}
    selection = attempt(lambda: solve(**call))
    if selection is not None and name != "matroid":
        assert len(selection) <= 2


@pytest.mark.parametrize("rule", RULES)
def test_a_callback_that_rewrites_the_rows_does_no_harm(rule):
    """Nobody should; the answer then means nothing, but the solver ends, and in order."""
    rng = np.random.default_rng(0)
    for nonneg in (True, False):
        for poison in (NAN, INF, 0.0, 1e300, -1.0):
            G = rng.normal(size=(60, 20))

            def spoil(progress, G=G, poison=poison):
                G[progress.index] = poison
                G[::7] = poison

            try:
                selection = omp_partition(G, G.sum(axis=0), 30, rule=rule, nonneg=nonneg, fill=True, callback=spoil)
            except ValueError:
                continue
            assert len(set(selection.indices.tolist())) == len(selection) <= 30
