"""Rounding, the best of what is quick, and the exact solver, against enumeration."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pysubmod
from pysubmod import GradientMatching, PartitionMatroid, omp_partition, solve


def optimum(problem, matroid):
    """By brute force over all supports within the budgets."""
    best = 0.0
    for size in range(matroid.rank + 1):
        for support in itertools.combinations(range(problem.n), size):
            if matroid.is_feasible(np.array(support, np.int64)):
                best = max(best, problem.value(np.array(support, np.int64)))
    return best


@st.composite
def instances(draw, most=9):
    """Small problems of all kinds with a nonsingular C."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, d = draw(st.integers(1, most)), draw(st.integers(1, 12))
    G = rng.normal(size=(n, d))
    kind = draw(st.sampled_from(["plain", "duplicates", "near", "zero", "norms"]))
    if kind == "duplicates" and n > 1:
        G[n // 2] = G[0]
    elif kind == "near" and n > 1:
        G[1:] = G[:1] + 0.1 * G[1:]
    elif kind == "zero":
        G[rng.integers(n)] = 0.0
    elif kind == "norms":
        G *= 10.0 ** rng.uniform(-3, 3, size=(n, 1))
    ridge = draw(st.sampled_from([1e-6, 1e-3, 0.1, 1.0])) * float(np.square(G).sum() / n + 1e-9)
    problem = GradientMatching(G, rng.normal(size=d), ridge=ridge, nonneg=draw(st.booleans()))
    groups = rng.integers(0, draw(st.integers(1, 3)), size=n)
    budgets = {int(p): draw(st.integers(0, 3)) for p in np.unique(groups)}
    return problem, PartitionMatroid(groups, budgets)


@given(instances())
def test_exact_equals_brute_force(instance):
    problem, matroid = instance
    found = solve(problem, matroid, "exact", time_limit=20)
    assert matroid.is_feasible(found.indices)
    value = optimum(problem, matroid)
    assert found.objective >= value * (1 - 1e-8)
    assert found.stats["upper"] >= value * (1 - 1e-12)
    assert found.stats["proven_optimal"]


@given(instances())
def test_best_is_never_below_what_it_starts_from(instance):
    problem, matroid = instance
    best = solve(problem, matroid, "best")
    for method in ("omp", "omp-normalized", "swap", "relax-round"):
        assert best.objective >= solve(problem, matroid, method).objective * (1 - 1e-9)
    assert best.stats["upper"] >= optimum(problem, matroid) * (1 - 1e-12)
    assert 0 <= best.stats["ratio"] <= 1
    assert matroid.is_feasible(best.indices)


def real_pool(n, budget, ridge=0.01, nonneg=True):
    data = pysubmod.datasets.load_demo()
    rows = np.concatenate([np.flatnonzero(data.groups == label)[: n // 8] for label in data.domains])
    G = np.asarray(data.gradients[rows], np.float32)
    ridge *= float(np.square(G.astype(float)).sum() / len(G))
    problem = GradientMatching(G, data.target, ridge=ridge, nonneg=nonneg)
    return problem, PartitionMatroid(data.groups[rows], {label: budget for label in data.domains})


@pytest.mark.parametrize("nonneg", [True, False])
def test_exact_proves_real_pools(nonneg):
    problem, matroid = real_pool(48, 2, nonneg=nonneg)
    found = solve(problem, matroid, "exact")
    assert found.stats["proven_optimal"]
    assert found.objective >= solve(problem, matroid, "best").objective


def test_out_of_time_the_bound_is_honest():
    problem, matroid = real_pool(160, 3)
    found = solve(problem, matroid, "exact", time_limit=0.05)
    assert not found.stats["proven_optimal"]
    assert found.stats["upper"] > found.objective
    longer = solve(problem, matroid, "exact", time_limit=2.0)
    assert found.stats["upper"] >= longer.objective * (1 - 1e-12)


def test_refine_best_is_the_method():
    data = pysubmod.datasets.load_demo()
    budgets = {label: 2 for label in data.domains}
    refined = omp_partition(data.gradients, data.target, budgets, groups=data.groups, ridge=1e-3, refine="best")
    problem = GradientMatching(data.gradients, data.target, ridge=1e-3)
    named = solve(problem, PartitionMatroid(data.groups, budgets), "best")
    assert refined.indices.tolist() == named.indices.tolist()
    assert refined.config["method"] == "best" and "upper" in refined.stats


@pytest.mark.parametrize("option", [{"rule": "greedy"}, {"pick": "random"}, {"tol": 0.1}, {"fill": True}])
def test_refine_best_makes_its_own_way(option):
    with pytest.raises(ValueError, match=f"{next(iter(option))}: refine='best' makes its own way"):
        omp_partition(np.eye(4), np.ones(4), 2, refine="best", **option)


def test_no_relaxation_without_a_ridge():
    rng = np.random.default_rng(0)
    problem = GradientMatching(rng.normal(size=(12, 4)), rng.normal(size=4))
    with pytest.raises(ValueError, match=r"ridge: .* singular"):
        solve(problem, 3, "relax-round")
    best = solve(problem, 3, "best")
    assert best.stats["relaxation"].startswith("none: G G' + ridge I is singular") and "upper" not in best.stats
    exact = solve(problem, 3, "exact", time_limit=1)
    assert not exact.stats["proven_optimal"]
    assert exact.stats["upper"] == pytest.approx(0.5 * float(np.square(problem._vector).sum()))


def test_masks_and_empty_budgets():
    problem, matroid = real_pool(32, 2)
    mask = np.arange(problem.n) % 2 == 0
    for method in ("relax-round", "best", "exact"):
        found = solve(problem, matroid, method, candidates=mask)
        assert mask[found.indices].all()
        assert len(solve(problem, 0, method)) == 0
        assert len(solve(problem, matroid, method, candidates=np.zeros(problem.n, bool))) == 0


def test_nearly_dependent_rows_do_not_fool_exact():
    """Rows 8e-6 apart pass for dependent in a refit: what is returned is judged by that, not by float64's optimum."""
    G = np.array([[1.0, 0, 0, 0], [1.0, 8e-6, 0, 0], [0, 0, 1.0, 0], [0, 0, 0.3, 1.0]])
    problem = GradientMatching(G, [0.3, 1.0, 0.5, 0.2], nonneg=False)
    found = solve(problem, 2, "exact", gap=0.01)
    assert found.objective >= solve(problem, 2, "best").objective
    assert found.stats["ratio"] == pytest.approx(found.objective / found.stats["upper"])
    judged = pysubmod.certify(problem, 2, [2, 1], gap=0.01)
    if judged.better is not None:
        assert problem.value(judged.better) == pytest.approx(judged.better_objective)


def test_why_there_is_no_bound_is_said_truly():
    met = pysubmod.certify(GradientMatching(np.eye(6), [3.0, 2, 2, 2, 2, 2], ridge=0.5), 3, [1, 2], gap=0.9)
    assert "singular" not in met.sentence
    thin = np.random.default_rng(0).normal(size=(12, 3))
    singular = pysubmod.certify(GradientMatching(thin, np.ones(3)), 1, [0])
    assert "singular" in singular.note
