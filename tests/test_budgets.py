"""Budgets against brute force in exact arithmetic, and the words of other tools."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pysubmod._capped_simplex import project
from pysubmod.budgets import allocate, export


def case(seed):
    """A total, sizes, weights and bounds that some whole numbers meet; small enough to try all."""
    rng = np.random.default_rng(seed)
    P = int(rng.integers(1, 5))
    sizes = rng.integers(0, 7, P)
    weights = rng.choice([rng.random(P), rng.integers(1, 4, P).astype(float), np.ones(P)])
    lower = rng.integers(0, 3, P) * rng.integers(0, 2)
    lower = np.minimum(lower, sizes)
    upper = np.maximum(lower, rng.integers(0, 8, P) if rng.random() < 0.5 else sizes)
    total = int(rng.integers(lower.sum(), np.minimum(upper, sizes).sum() + 1))
    return total, sizes.tolist(), weights.tolist(), lower.tolist(), upper.tolist()


def feasible(total, sizes, lower, upper):
    ranges = [range(low, min(high, size) + 1) for low, high, size in zip(lower, upper, sizes, strict=True)]
    return [b for b in itertools.product(*ranges) if sum(b) == total]


def best_of(candidates, cost):
    """The least cost; of several the one that gives most to the first group, then to the second, ..."""
    costs = [cost(b) for b in candidates]
    least = min(costs)
    return max(b for b, c in zip(candidates, costs, strict=True) if c == least)


def exact_shares(weights):
    whole = sum(map(Fraction, weights))
    return [Fraction(w) / whole for w in weights]


@pytest.mark.parametrize("block", range(10))
def test_largest_remainder_equals_brute_force(block):
    """1,000 random cases with floors and caps; ties, too."""
    for seed in range(100 * block, 100 * block + 100):
        total, sizes, weights, lower, upper = case(seed)
        quotas = [total * share for share in exact_shares(weights)]
        want = best_of(
            feasible(total, sizes, lower, upper),
            lambda b, quotas=quotas: sum((x - q) ** 2 for x, q in zip(b, quotas, strict=True)),
        )
        got = allocate(total, sizes, weights, lower=lower, upper=upper)
        assert got.tolist() == list(want), seed
        assert got.dtype == np.int64


@pytest.mark.parametrize("block", range(10))
def test_webster_equals_brute_force(block):
    for seed in range(100 * block, 100 * block + 100):
        total, sizes, weights, lower, upper = case(seed)
        shares = exact_shares(weights)
        want = best_of(
            feasible(total, sizes, lower, upper),
            lambda b, total=total, shares=shares: sum((x - total * s) ** 2 / s for x, s in zip(b, shares, strict=True)),
        )
        assert allocate(total, sizes, weights, lower=lower, upper=upper, method="webster").tolist() == list(want), seed


def test_projection_floors_and_remainders_are_the_same():
    """The textbook way: project the quotas on the bounds, round down, give the rest to the largest remainders."""
    for seed in range(500):
        total, sizes, weights, lower, upper = case(seed)
        cap = np.minimum(upper, sizes).astype(float)
        quotas = total * np.array(weights) / np.sum(weights)
        x = project(quotas, np.array(lower, float), cap, float(total))
        b = np.floor(x + 1e-9)
        order = np.argsort(-(x - b), kind="stable")
        for p in order[: total - int(b.sum())]:
            b[p] += 1
        got = allocate(total, sizes, weights, lower=lower, upper=upper)
        # Rounding may break ties otherwise, at the same cost.
        assert np.square(b - quotas).sum() == pytest.approx(np.square(got - quotas).sum(), abs=1e-9)


def slowly(total, shares, low, high, webster):
    """One unit after the other."""
    given = list(low)
    for _ in range(total - sum(low)):
        keys = [
            ((2 * b + 1) / share if webster else b - total * share, p)
            for p, (b, share) in enumerate(zip(given, shares, strict=True))
            if b < high[p]
        ]
        given[min(keys)[1]] += 1
    return given


@given(st.integers(0, 10**6), st.booleans())
def test_head_start_changes_nothing(seed, webster):
    """Totals at which most units are given at once."""
    rng = np.random.default_rng(seed)
    P = int(rng.integers(1, 8))
    weights = rng.random(P) ** rng.integers(1, 9) + 1e-12
    sizes = rng.integers(50, 400, P)
    lower = rng.integers(0, 50, P)
    upper = rng.integers(lower, sizes + 1)
    total = int(rng.integers(lower.sum(), upper.sum() + 1))
    method = "webster" if webster else "largest-remainder"
    got = allocate(total, sizes, weights, lower=lower, upper=upper, method=method)
    assert got.tolist() == slowly(total, exact_shares(weights.tolist()), lower.tolist(), upper.tolist(), webster)


@given(st.integers(0, 10**6), st.integers(1, 30))
def test_webster_never_takes_away(seed, total):
    rng = np.random.default_rng(seed)
    weights = rng.random(4)
    sizes = [10] * 4
    less, more = (allocate(b, sizes, weights, method="webster") for b in (total, total + 1))
    assert (more >= less).all()


def test_largest_remainder_may_take_away():
    """The Alabama paradox: why the other rule is there."""
    weights = [6, 6, 2]
    assert allocate(10, [99] * 3, weights).tolist() == [4, 4, 2]
    assert allocate(11, [99] * 3, weights).tolist() == [5, 5, 1]


def test_large_totals_are_exact():
    rng = np.random.default_rng(0)
    for method in ("largest-remainder", "webster", "partition-sel"):
        weights = rng.random(200) ** 20
        got = allocate(10**14, [10**14] * 200, weights, method=method)
        assert got.sum() == 10**14
        quotas = [10**14 * share for share in exact_shares(weights.tolist())]
        assert max(abs(int(b) - q) for b, q in zip(got, quotas, strict=True)) < (
            200 if method == "partition-sel" else 2
        )
    assert allocate(2**40, [2**40, 2**40], [1.0, 1e-300], method="webster").tolist() == [2**40, 0]
    assert allocate(2**40, [5, 2**40], [1.0, 0.0], method="webster").tolist() == [5, 2**40 - 5]


def test_who_gets_what_a_capped_group_cannot():
    sizes, weights = [10, 100, 100, 100], [0.7, 0.2, 0.1, 0.0]
    assert allocate(100, sizes, weights).tolist() == [10, 40, 30, 20]  # evenly
    assert allocate(100, sizes, weights, method="webster").tolist() == [10, 60, 30, 0]  # in proportion
    assert allocate(100, sizes, weights, upper={3: 0}).tolist() == [10, 50, 40, 0]


def test_weights_of_zero_under_webster():
    got = allocate(20, [5, 5, 9, 9], [1.0, 1.0, 0.0, 0.0], method="webster", lower=[0, 0, 1, 4])
    assert got.tolist() == [5, 5, 5, 5]
    assert allocate(8, [5, 5, 9, 9], [1.0, 1.0, 0.0, 0.0], method="webster", lower=[0, 0, 1, 2]).tolist() == [
        3,
        2,
        1,
        2,
    ]


def partition_sel(total, counts, balanced):
    """As docs/torch.md says it."""
    n = sum(counts)
    given = [0 if balanced else total * c // n for c in counts]
    while sum(given) < total:
        open_ = [p for p in range(len(counts)) if given[p] < counts[p]]
        given[min(open_, key=lambda p: (given[p], p))] += 1
    return given


@given(st.lists(st.integers(0, 40), min_size=1, max_size=7).filter(any), st.floats(0, 1), st.booleans())
def test_partition_sel(counts, part, balanced):
    total = int(part * sum(counts))
    mode = "balanced" if balanced else "proportional"
    got = allocate(total, counts, mode=mode, method="partition-sel")
    assert got.tolist() == partition_sel(total, counts, balanced)


def test_partition_sel_is_the_rule_of_the_selectors():
    pytest.importorskip("torch")
    from pysubmod.torch._batches import budgets_of

    rng = np.random.default_rng(0)
    for _ in range(50):
        labels = rng.integers(0, 5, int(rng.integers(1, 60)))
        size = int(rng.integers(0, len(labels) + 1))
        names, counts = np.unique(labels, return_counts=True)
        for mode in ("proportional", "balanced"):
            sizes = dict(zip(names.tolist(), counts.tolist(), strict=True))
            given = allocate(size, sizes, mode=mode, method="partition-sel")
            matroid = budgets_of(labels, mode, size)
            assert given == dict(zip(matroid.labels, matroid.budgets.tolist(), strict=True))


def test_modes():
    sizes = {"en": 8000, "de": 1000, "sw": 10}
    assert allocate(901, sizes) == {"en": 800, "de": 100, "sw": 1}
    assert allocate(30, sizes, mode="balanced") == {"en": 10, "de": 10, "sw": 10}
    assert allocate(301, sizes, mode="balanced") == {"en": 146, "de": 145, "sw": 10}
    got = allocate(1000, {**sizes, "sw": 1000}, mode="temperature", temperature=3)
    roots = np.array([20.0, 10.0, 10.0])
    np.testing.assert_allclose(list(got.values()), 1000 * roots / roots.sum())
    assert allocate(901, sizes, mode="temperature", temperature=1.0) == allocate(901, sizes)
    assert allocate(30, sizes, mode="temperature", temperature=math.inf) == allocate(30, sizes, mode="balanced")
    assert allocate(12, sizes, {"sw": 1.0, "de": 1.0, "en": 0.0}) == {"en": 0, "de": 6, "sw": 6}
    assert allocate(0, {"a": 0, "b": 0}) == {"a": 0, "b": 0}
    assert allocate(3, [5, 0], mode="temperature", temperature=2).tolist() == [3, 0]


def test_ties_go_to_the_first():
    for method in ("largest-remainder", "webster", "partition-sel"):
        assert allocate(2, [9, 9, 9], mode="balanced", method=method).tolist() == [1, 1, 0]
    # A third is no float; a tie all the same.
    assert allocate(1, [9, 9, 9], [1 / 3, 1 / 3, 1 / 3]).tolist() == [1, 0, 0]


def test_keys_and_bounds_by_name():
    got = allocate(10, {3: 9, 1: 9, "x": 9}, mode="balanced", lower={"x": 5}, upper={3: 1})
    assert got == {3: 1, 1: 4, "x": 5}
    assert list(got) == [3, 1, "x"]
    assert allocate(6, np.array([4, 4]), upper=3).tolist() == [3, 3]
    assert allocate(6, [4, 4, 4], lower=2).tolist() == [2, 2, 2]


@pytest.mark.parametrize(
    ("args", "options", "kind", "match"),
    [
        ((10, [3, 4]), {}, ValueError, r"total: 10 is more than the 2 groups may give together, 7"),
        ((10, [30, 40]), {"upper": 4}, ValueError, r"total: 10 is more than the 2 groups may give together, 8"),
        ((3, [30, 40]), {"lower": 2}, ValueError, r"total: 3 is less than the floors together, 4"),
        ((9, {"a": 3, "b": 9}), {"lower": 4}, ValueError, r"lower: group 'a' has only 3 samples, 4 are asked for"),
        ((9, {"a": 9}), {"lower": 4, "upper": 3}, ValueError, r"lower: group 'a' may give only 3 samples"),
        ((9, {"a": 9}), {"lower": {"b": 1}}, ValueError, r"lower: there is no group 'b'"),
        ((9, [9]), {"lower": [1, 1]}, ValueError, r"lower: expected 1 entries"),
        ((9, [9]), {"lower": [0.5]}, TypeError, r"lower\[0\]: expected an integer, got 0.5"),
        ((9, [9]), {"upper": True}, TypeError, r"upper: expected a mapping or a sequence"),
        ((9, []), {}, ValueError, r"sizes: has no groups"),
        ((9, 5), {}, TypeError, r"sizes: expected a mapping or a sequence"),
        ((9, [[9]]), {}, TypeError, r"sizes\[0\]: expected an integer"),
        ((9, np.ones((2, 2))), {}, ValueError, r"sizes: expected shape \(P,\)"),
        ((9, [-1]), {}, ValueError, r"sizes\[0\]: expected 0 .. 2\*\*50 samples, got -1"),
        ((9.0, [9]), {}, TypeError, r"total: expected an integer"),
        ((-1, [9]), {}, ValueError, r"total: expected an integer of at least 0"),
        ((2**51, [9]), {}, ValueError, r"total: expected at most 2\*\*50"),
        ((1, [9], [-1.0]), {}, ValueError, r"weights\[0\]: expected a number that is at least 0"),
        ((1, [9], [math.nan]), {}, ValueError, r"weights\[0\]"),
        ((1, [9, 9], [0.0, 0.0]), {}, ValueError, r"weights: are all 0"),
        ((1, {"a": 9, "b": 9}, {"a": 1.0}), {}, ValueError, r"weights: has no entry for group 'b'"),
        ((1, [9]), {"mode": "mixture"}, ValueError, r"weights: needed by mode 'mixture'"),
        ((1, [9], [1.0]), {"mode": "balanced"}, ValueError, r"weights: mode 'balanced' has its own"),
        ((1, [9]), {"mode": "temperature"}, ValueError, r"temperature: needed by mode 'temperature'"),
        ((1, [9]), {"temperature": 2.0}, ValueError, r"temperature: only for mode 'temperature'"),
        ((1, [9]), {"mode": "temperature", "temperature": 0.0}, ValueError, r"temperature: expected a positive number"),
        ((1, [9]), {"mode": "fair"}, ValueError, r"mode: expected one of"),
        ((1, [9]), {"method": "fair"}, ValueError, r"method: expected one of"),
        ((1, [9]), {"method": "partition-sel", "lower": 0}, ValueError, r"lower: method 'partition-sel' has no floors"),
    ],
)
def test_bad_arguments(args, options, kind, match):
    with pytest.raises(kind, match=match):
        allocate(*args, **options)


# ---- other tools' words ----------------------------------------------------------------------------------------------

SHARES = {"math": 0.5, "code": 0.0, "chat": 0.25}


def test_export_shares():
    assert export(SHARES, "huggingface") == [2 / 3, 0.0, 1 / 3]
    assert export(SHARES, "torchdata") == {"math": 2 / 3, "chat": 1 / 3}
    assert export(SHARES, "megatron") == ["0.5", "math", "0.25", "chat"]
    paths = {"math": "m.jsonl", "code": "c.jsonl", "chat": "org/chat"}
    assert export(SHARES, "trl", paths=paths) == [
        {"path": "m.jsonl", "fraction": 2 / 3}, {"path": "org/chat", "fraction": 1 / 3}
    ]  # fmt: skip
    assert export(SHARES, "mosaicml", paths=["s3://m", "s3://c", "s3://h"])[1] == {
        "remote": "s3://h", "proportion": 1 / 3
    }  # fmt: skip


def test_export_budgets():
    budgets = allocate(100, {"a": 300, "b": 100})
    assert export(budgets, "megatron") == ["75", "a", "25", "b"]
    assert export(budgets, "mosaicml") == [{"remote": "a", "choose": 75}, {"remote": "b", "choose": 25}]
    assert export(budgets, "huggingface") == [0.75, 0.25]
    assert export(np.array([0.1, 0.9]), "torchdata") == {"0": 0.1, "1": 0.9}


def test_what_hugging_face_takes():
    datasets = pytest.importorskip("datasets")
    parts = [datasets.Dataset.from_dict({"source": [i] * 2000}) for i in range(3)]
    mixed = datasets.interleave_datasets(parts, probabilities=export([0.6, 0.3, 0.1], "huggingface"), seed=0)
    counts = np.bincount(mixed["source"], minlength=3)
    np.testing.assert_allclose(counts / counts.sum(), [0.6, 0.3, 0.1], atol=0.03)


@pytest.mark.parametrize(
    ("shares", "options", "kind", "match"),
    [
        ({"a": -1.0}, {}, ValueError, r"shares\['a'\]: expected a number that is at least 0"),
        ({"a": -1}, {}, ValueError, r"shares\['a'\]: expected a number that is at least 0"),
        ({"a": 0}, {}, ValueError, r"shares: expected at least one that is positive"),
        ({"a": "b"}, {}, TypeError, r"shares\['a'\]: expected a real number"),
        (5, {}, TypeError, r"shares: expected a mapping or a sequence"),
        ({"a": 1}, {"paths": {"a": 5}}, TypeError, r"paths\['a'\]: expected a path"),
        ({"a": 1}, {"paths": {"b": "x"}}, ValueError, r"paths: there is no group 'b'"),
        ({"a": 1}, {"to": "excel"}, ValueError, r"to: expected one of"),
        ({"a": 1}, {"to": "huggingface", "paths": ["x"]}, ValueError, r"paths: 'huggingface' has no place for them"),
        ({"a": 1}, {"to": "torchdata", "paths": ["x"]}, ValueError, r"paths: 'torchdata' has no place for them"),
    ],
)
def test_bad_exports(shares, options, kind, match):
    with pytest.raises(kind, match=match):
        export(shares, options.pop("to", "megatron"), **options)


def test_bfloat16_is_read_as_numbers():
    torch = pytest.importorskip("torch")
    shares = torch.tensor([0.75, 0.25], dtype=torch.bfloat16)
    assert allocate(8, [9, 9], shares).tolist() == [6, 2]
    assert allocate(8, [9, 9], list(shares)).tolist() == [6, 2]
    assert export(shares, "huggingface") == [0.75, 0.25]
    with pytest.raises(TypeError, match="expected an integer"):
        allocate(8, torch.tensor([9, 9], dtype=torch.bfloat16))
