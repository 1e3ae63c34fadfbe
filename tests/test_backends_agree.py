"""The compiled core against the reference, on every route: the same picks in the same order, the same weights."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from problems import FAMILIES, family, real
from strategies import RULES, problems, random_options, seeds

import pysubmod
from pysubmod._reference import gram_partition_reference, omp_partition_reference


def solve_core(route, G, target, groups, budgets, **options):
    """The core's answer by one route; budgets is an array by group code."""
    weights = {name: options.pop(name) for name in ("ridge", "nonneg", "tilt") if name in options}
    method = {"omp": "omp", "normalized": "omp-normalized", "greedy": "greedy"}[options.pop("rule", "omp")]
    wide = G.astype(np.float64)
    if route == "gram":
        problem = pysubmod.GradientMatching.from_gram(
            wide @ wide.T, wide @ target, target_norm=np.linalg.norm(target), **weights
        )
    else:
        problem = pysubmod.GradientMatching(G, target, **weights)
    matroid = pysubmod.PartitionMatroid(np.asarray(groups), {p: int(b) for p, b in enumerate(budgets)})
    return pysubmod.solve(problem, matroid, method, **options)


def solve_reference(route, G, target, groups, budgets, **options):
    wide = G.astype(np.float64)
    if route == "gram":
        return gram_partition_reference(
            wide @ wide.T, wide @ target, groups, budgets, target_norm=np.linalg.norm(target), **options
        )
    return omp_partition_reference(G, target, groups, budgets, **options)


def assert_same(got, expected, rtol=1e-9, roots=None):
    """`roots`: the norms of all rows, where they are too different for weights to be compared as they are."""
    assert got.indices.tolist() == expected.indices.tolist()
    assert got.status == expected.status
    unit = 1.0 if roots is None else roots[expected.indices]
    size = np.abs(expected.weights * unit).max(initial=0.0)
    np.testing.assert_allclose(got.weights * unit, expected.weights * unit, rtol=rtol, atol=rtol * size)
    np.testing.assert_allclose(got.objective, expected.objective, rtol=rtol)
    top = expected.gains.max(initial=0.0)
    np.testing.assert_allclose(got.gains, expected.gains, rtol=1e-6, atol=1e-9 * top)


@pytest.mark.filterwarnings("ignore:budgets")
@pytest.mark.parametrize("route", ["dense", "gram"])
@given(problem=problems(), options=seeds)
def test_small_problems(route, problem, options):
    chosen = problem.options | random_options(problem, options)
    arguments = problem.args
    roots = np.sqrt((problem.G**2).sum(axis=1) + problem.ridge)
    expected = solve_reference(route, *arguments, **chosen)
    assert_same(solve_core(route, *arguments, **chosen), expected, rtol=1e-6, roots=roots)


@pytest.mark.parametrize("groups", ["one", "eight"])
@pytest.mark.parametrize("nonneg", [False, True])
@pytest.mark.parametrize("ridge", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("name", [*FAMILIES, "real"])
def test_families(name, dtype, ridge, nonneg, groups):
    """Storage in half and single precision: support and order of the float64 reference, weights to 1e-9."""
    G, target, codes = real() if name == "real" else family(name, 400, 256, seed=3)
    with np.errstate(over="ignore"):
        G = G.astype(dtype)
    if not np.isfinite(G).all():
        pytest.skip("norms beyond float16: the family does not exist in this type")
    codes = codes if groups == "eight" else np.zeros_like(codes)
    budgets = np.full(codes.max() + 1, 5 if groups == "eight" else 40)
    options = {"ridge": ridge * float((G.astype(float) ** 2).sum(axis=1).mean()), "nonneg": nonneg}
    expected = omp_partition_reference(G, target, codes, budgets, **options)
    got = solve_core("dense", G, target, codes, budgets, **options)
    assert_same(got, expected)
    slack = 1e-12 * np.linalg.norm(target)
    np.testing.assert_allclose(got.residual_norms, expected.residual_norms, rtol=1e-9, atol=slack)
    rows = G[got.indices].astype(np.float64)
    g = rows @ (target - rows.T @ got.weights) - options["ridge"] * got.weights
    unit = np.linalg.norm(target) * np.sqrt((rows**2).sum(axis=1) + options["ridge"])
    assert (np.abs(g)[got.weights != 0] <= 1e-10 * unit[got.weights != 0]).all()
    if nonneg:
        assert (got.weights >= 0).all()
        assert (g <= 1e-10 * unit).all()


@pytest.mark.filterwarnings("ignore:budgets")
@pytest.mark.parametrize("nonneg", [False, True])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", [*FAMILIES, "real"])
def test_rules(name, rule, nonneg):
    G, target, codes = real() if name == "real" else family(name, 120, 96, seed=4)
    budgets = np.full(8, 2)
    options = {"rule": rule, "nonneg": nonneg}
    for route in ("dense", "gram"):
        expected = solve_reference(route, G, target, codes, budgets, **options)
        assert_same(solve_core(route, G, target, codes, budgets, **options), expected, rtol=1e-7)


def test_tilt():
    G, target, codes = family("gradient_like", 120, 256, seed=5)
    for nonneg in (False, True):
        options = {"tilt": 0.3, "nonneg": nonneg}
        expected = omp_partition_reference(G, target, codes, np.full(8, 3), **options)
        for route in ("dense", "gram"):
            assert_same(solve_core(route, G, target, codes, np.full(8, 3), **options), expected, rtol=1e-7)
