"""Many targets in one call: every selection is, to the bit, the one that its target gets alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from oracles import same
from problems import FAMILIES, family
from strategies import EXAMPLES, RULES, problems, random_options, seeds, targets
from test_backends_agree import assert_same
from test_routes import ROUTES, routes_for

import pysubmod
from pysubmod import Selection, omp_partition
from pysubmod._reference import omp_partition_reference


def several(target, m=4, seed=0):
    """`target`, others near it, one that has nothing to do with it, and zero."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(m, len(target))) * np.linalg.norm(target) / np.sqrt(len(target))
    near = target + 0.5 * noise
    near[0], near[-1] = target, noise[-1]
    return np.concatenate([near, np.zeros((1, len(target)))])


def check(G, each, budgets, **options):
    """The selections of one call, each that of its target alone."""
    got = omp_partition(G, each, budgets, separate=True, **options)
    assert isinstance(got, list) and len(got) == len(each)
    for selection, target in zip(got, each, strict=True):
        same(selection, omp_partition(G, target, budgets, **options))
        assert selection.stats["n_targets"] == len(each)
    return got


@pytest.mark.parametrize("nonneg", [False, True])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("route", ["auto", *ROUTES])
def test_every_route_and_rule(route, rule, nonneg):
    if route not in ("auto", *routes_for(rule)):
        pytest.skip("the route does not take the rule")
    for name in FAMILIES:
        G, target, groups = family(name, 200, 128, seed=1)
        options = {"groups": groups, "rule": rule, "nonneg": nonneg, "route": route}
        got = check(G, several(target), [3] * 8, **options)
        assert route == "auto" or {selection.stats["route"] for selection in got} == {route}


@pytest.mark.parametrize("rule", RULES)
def test_against_the_reference(rule):
    G, target, groups = family("gradient_like", 120, 96, seed=2)
    each = several(target)[:-1]
    for route in routes_for(rule):
        got = omp_partition(G, each, [2] * 8, groups=groups, rule=rule, route=route, separate=True)
        for selection, one in zip(got, each, strict=True):
            assert_same(selection, omp_partition_reference(G, one, groups, [2] * 8, rule=rule), rtol=1e-7)


OPTIONS = {
    "ridge": {"ridge": 0.3},
    "tilt": {"tilt": 0.2, "ridge": 0.1},
    "tolerance": {"tol": 0.6},
    "initial": {"initial": [17, 3, 90]},
    "initial alone": {"initial": [17, 3, 90], "candidates": np.zeros(150, bool)},
    "candidates": {"candidates": np.arange(150) % 3 > 0},
    "release_zeros": {"release_zeros": True},
    "fill": {"fill": True, "tilt": -1.0},
    "swap": {"refine": "swap"},
    "swap, free": {"refine": "swap", "nonneg": False, "fill": True},
    "threads": {"n_threads": 3},
}


@pytest.mark.parametrize("rule", ["omp", "normalized", "greedy"])
@pytest.mark.parametrize("name", OPTIONS)
def test_options(name, rule):
    G, target, groups = family("low_rank", 150, 96, seed=3)
    for route in routes_for(rule):
        check(G, several(target), [3] * 8, groups=groups, rule=rule, route=route, **OPTIONS[name])


@pytest.mark.parametrize("fill", [False, True])
def test_draws(fill):
    """One seed for all: an int is the same in separate calls, and a generator is asked once."""
    G, target, groups = family("gradient_like", 150, 96, seed=4)
    options = {"groups": groups, "pick": "random", "fill": fill}
    got = check(G, several(target), [3] * 8, random_state=5, **options)
    assert {selection.config["random_state"] for selection in got} == {5}
    asked, left = np.random.default_rng(6), np.random.default_rng(6)
    seed = int(left.integers(2**63 - 1))
    for first, second in zip(
        omp_partition(G, several(target), [3] * 8, separate=True, random_state=asked, **options),
        omp_partition(G, several(target), [3] * 8, separate=True, random_state=seed, **options),
        strict=True,
    ):
        same(first, second)
    assert asked.bit_generator.state == left.bit_generator.state


@pytest.mark.filterwarnings("ignore:budgets")
@settings(max_examples=max(1, EXAMPLES // 2))
@given(problem=problems(), options=seeds, other=targets(np.eye(12)))
def test_awkward_problems(problem, options, other):
    d = problem.G.shape[1]
    each = np.array([problem.target, other[:d], problem.target])
    for route in routes_for(problem.rule):
        chosen = problem.options | random_options(problem, options) | {"groups": problem.groups, "route": route}
        check(problem.G, each, dict(enumerate(problem.budgets.tolist())), **chosen)


# ---- what is shared ---------------------------------------------------------------------------------------------


def test_passes_are_shared():
    G, target, groups = family("gradient_like", 400, 256, seed=7)
    each = several(target, m=8)[:-1]
    for route in ROUTES:
        options = {"groups": groups, "route": route, "n_threads": 1}
        got = omp_partition(G, each, [4] * 8, separate=True, **options)
        alone = [omp_partition(G, one, [4] * 8, **options).stats["bytes_read"] for one in each]
        (together,) = {selection.stats["bytes_read"] for selection in got}
        assert together < 0.7 * sum(alone)
        assert len({selection.stats["seconds"]["total"] for selection in got}) == 1


def test_each_selection_knows_its_problem():
    G, target, groups = family("gradient_like", 60, 48, seed=8)
    each = several(target)[:-1]
    for selection, one in zip(omp_partition(G, each, 5, separate=True, ridge=0.1), each, strict=True):
        problem = pysubmod.GradientMatching(G, one, ridge=0.1)
        assert selection.objective == pytest.approx(problem.value(selection.indices), rel=1e-12)
        assert selection.certify(gap=0.9).upper >= selection.objective
        assert selection.diagnose().to_dict()
    by_label = omp_partition(G, each, [2] * 8, groups=groups, fill=True, separate=True)
    assert all(selection.counts == dict.fromkeys(range(8), 2) for selection in by_label)


def test_forms_of_targets_and_rows():
    G, target, groups = family("gradient_like", 60, 48, seed=9)
    each = several(target).astype(np.float32)
    expected = check(G, each, 6)
    for form in (np.asfortranarray(each), each.tolist(), each.astype(np.float64), each[::-1][::-1]):
        for one, other in zip(omp_partition(G, form, 6, separate=True), expected, strict=True):
            same(one, other)
    blocks = {p: G[groups == p] for p in range(8)}
    check(blocks, each, dict.fromkeys(range(8), 2))
    (alone,) = check(G, each[:1], 6)
    same(alone, expected[0])
    assert isinstance(omp_partition(G, each, 6), Selection)  # the mean
    assert [len(selection) for selection in check(np.empty((0, 48)), each, 3)] == [0] * len(each)


# ---- errors -----------------------------------------------------------------------------------------------------

ROWS = np.random.default_rng(10).normal(size=(9, 4))
BAD = {
    "one vector": ({"target": np.ones(4)}, ValueError, r"^target: separate=True expects shape \(m, 4\)"),
    "other columns": ({"target": np.ones((2, 3))}, ValueError, r"^target: separate=True expects shape \(m, 4\)"),
    "none": ({"target": np.ones((0, 4))}, ValueError, r"^target: has no rows; separate=True needs at least one"),
    "NaN": ({"target": [[1, 1, 1, 1], [1, 1, np.nan, 1]]}, ValueError, r"^target\[1\]: entry 2 is NaN or infinite"),
    "size": ({"target": [[1, 1, 1, 1], [0, 0, 0, 1e-150]]}, ValueError, r"^target\[1\]: its size 1e-150"),
    "strings": ({"target": [["a"] * 4]}, TypeError, r"^target: dtype"),
    "no flag": ({"separate": 1}, TypeError, r"^separate: expected True or False, got 1"),
    "callback": ({"callback": lambda progress: None}, ValueError, r"^separate: True does not go with callback"),
    "verbose": ({"verbose": 1}, ValueError, r"^separate: True does not go with verbose"),
    "no verbose": ({"verbose": "x"}, TypeError, r"^verbose: expected 0 or 1"),
    "best": ({"refine": "best"}, ValueError, r"^separate: True does not go with refine='best'"),
    "unbounded": ({"G": [[1.0, 0, 0, 0], [-1, 0, 0, 0]], "tilt": 1.0}, ValueError, r"^tilt: .*unbounded"),
}


@pytest.mark.parametrize("name", BAD)
def test_errors(name):
    changes, kind, message = BAD[name]
    call = {"G": ROWS, "target": np.ones((2, 4)), "budgets": 2, "separate": True, **changes}
    with pytest.raises(kind, match=message):
        omp_partition(**call)
    with pytest.raises(ValueError, match="G: row 3 contains NaN"):
        omp_partition(np.where(np.arange(9)[:, None] == 3, np.nan, ROWS), np.ones((2, 4)), 2, separate=True)
