"""What short calls save must not be seen: undone refits, scores by blocks of rows, checks made once."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
from test_backends_agree import assert_same, solve_core, solve_reference

import pysubmod
from pysubmod.matroid import PartitionMatroid


def value(G, target, S):
    """f(S) for w >= 0, by SciPy's own active set method."""
    residual = scipy.optimize.nnls(G[S].T, target)[1] if len(S) else np.linalg.norm(target)
    return (target @ target - residual**2) / 2


def rows_that_pull_against_each_other(rng, n, d):
    target = rng.normal(size=d)
    G = rng.normal(size=(n, d)) + rng.uniform(0, 4, (n, 1)) * rng.normal(size=d) + rng.uniform(0, 2, (n, 1)) * target
    return G, target


@pytest.mark.parametrize("route", ["dense", "gram"])
def test_trials_of_every_row(route):
    """`gains` tries each row on the same refit, one after another: members leave and come back, and all is undone."""
    rng = np.random.default_rng(1)
    tried = 0
    for _ in range(25):
        G, target = rows_that_pull_against_each_other(rng, 14, 9)
        problem = pysubmod.GradientMatching(G, target)
        if route == "gram":
            problem = pysubmod.GradientMatching.from_gram(G @ G.T, G @ target)
        S = rng.permutation(14)[:8]
        before = value(G, target, S)
        expected = [0.0 if i in S else value(G, target, [*S, i]) - before for i in range(14)]
        np.testing.assert_allclose(problem.gains(S), expected, rtol=1e-9, atol=1e-9)
        idle = problem.weights(S) == 0
        tried += int(idle.any())
    assert tried > 15  # members were idle, and might have come back


@pytest.mark.parametrize("route", ["dense", "gram"])
def test_exact_greedy(route):
    rng = np.random.default_rng(2)
    for _ in range(10):
        G, target = rows_that_pull_against_each_other(rng, 16, 10)
        S = []
        for _ in range(8):
            values = [-1.0 if i in S else value(G, target, [*S, i]) for i in range(16)]
            if max(values) > value(G, target, S) + 1e-9:
                S.append(int(np.argmax(values)))
        got = solve_core(route, G, target, np.zeros(16, int), [8], rule="greedy")
        assert got.indices.tolist() == S
        assert got.objective == pytest.approx(value(G, target, S), rel=1e-9)


@pytest.mark.parametrize("route", ["dense", "gram"])
@pytest.mark.parametrize("rule", ["omp", "normalized"])
def test_many_rows_in_groups_that_close(route, rule):
    """Numbers of rows around whole blocks; few different entries, so that scores tie; groups that close one by one."""
    rng = np.random.default_rng(3)
    for n in [*range(1, 20), 31, 32, 33, 63, 64, 65, 71]:
        G = rng.integers(-2, 3, (n, 12)).astype(float)
        target = G[rng.integers(0, n, 5)].sum(axis=0) + rng.integers(-1, 2, 12)
        options = {"rule": rule, "nonneg": bool(rng.integers(2)), "ridge": 0.5, "fill": bool(rng.integers(2))}
        if rng.integers(2):
            options["candidates"] = rng.random(n) < 0.8
        if rng.integers(2):
            options["release_zeros"] = True
        arguments = (G, target, np.arange(n) % 4, [0, 1, 2, 4])
        with np.errstate(all="ignore"):
            expected = solve_reference(route, *arguments, **options)
        if n < 4:
            with pytest.warns(UserWarning, match="no row has the label"):
                got = solve_core(route, *arguments, **options)
        else:
            got = solve_core(route, *arguments, **options)
        assert_same(got, expected, rtol=1e-8)


def gram_of(rng, n, dtype):
    G = rng.normal(size=(n, 2 * n + 1))
    return (G @ G.T).astype(dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float64, 1e-10)])
def test_a_gram_matrix_is_checked_when_it_is_given(dtype, tolerance):
    rng = np.random.default_rng(4)
    for n in (1, 2, 15, 16, 17, 50):
        K = gram_of(rng, n, dtype)
        K = np.tril(K) + np.tril(K, -1).T
        for _ in range(10):
            i, j = sorted(rng.integers(0, n, 2).tolist())
            for bad in (np.nan, np.inf, -np.inf):
                for at in ((i, j), (j, i)):
                    broken = K.copy()
                    broken[at] = bad
                    with pytest.raises(ValueError, match=rf"^K: row {at[0]} contains NaN or infinity"):
                        pysubmod.GradientMatching.from_gram(broken, np.ones(n))
            if i == j:
                continue
            moved = K.copy()
            moved[j, i] += 0.3 * tolerance * np.sqrt(K[i, i] * K[j, j])
            pysubmod.GradientMatching.from_gram(np.asfortranarray(moved), np.ones(n))
            moved[j, i] += 2 * tolerance * np.sqrt(K[i, i] * K[j, j])
            for layout in (moved, np.asfortranarray(moved), np.repeat(moved, 2, axis=1)[:, ::2]):
                with pytest.raises(ValueError, match=r"^K: not symmetric: K\[\d+, \d+\] = .* but K\["):
                    pysubmod.GradientMatching.from_gram(layout, np.ones(n))


@pytest.mark.parametrize("method", ["omp", "omp-normalized", "greedy", "swap", "residual-random"])
def test_a_gram_matrix_that_changes_afterwards(method):
    """Rows are checked again when they are read: no NaN comes out."""
    rng = np.random.default_rng(5)
    for trial in range(20):
        K = gram_of(rng, 12, [np.float32, np.float64][trial % 2])
        problem = pysubmod.GradientMatching.from_gram(K, rng.normal(size=12), ridge=0.1, target_norm=10.0)
        pysubmod.solve(problem, 4, method, random_state=trial)
        K[rng.random(K.shape) < 0.2] = [np.nan, np.inf][trial % 2]
        with pytest.raises(ValueError, match=r"^(K|G): "):
            pysubmod.solve(problem, 4, method, random_state=trial)


def test_a_plain_cardinality_is_one_group():
    for n, budget in ((5, 3), (4, 0), (1, 7)):
        short, long = PartitionMatroid._cardinality(n, budget), PartitionMatroid(np.zeros(n, np.int64), {0: budget})
        assert (short.n, short.labels, short.rank) == (long.n, long.labels, long.rank)
        for name in ("codes", "budgets", "sizes"):
            ours, theirs = getattr(short, name), getattr(long, name)
            assert ours.dtype == theirs.dtype and ours.tolist() == theirs.tolist() and not ours.flags.writeable
    assert PartitionMatroid._cardinality(0, 2).rank == 0


def test_sizes_of_targets():
    G = np.eye(200)
    for size in (1e-142, 9e-141, 1e-139, 1e99, 1e101, 9e138, 1e139, 1e141):
        target = np.full(200, size)
        for given in (target, np.array([target, target])):
            if 1e-140 <= size * np.sqrt(200) <= 1e140:
                assert pysubmod.GradientMatching(G, given).n == 200
            else:
                with pytest.raises(ValueError, match=r"^target: its size .* is outside 1e-140 .. 1e140"):
                    pysubmod.GradientMatching(G, given)


def test_the_name_of_the_method_comes_first():
    problem = pysubmod.GradientMatching(np.eye(3), np.ones(3))
    for method in ("omp", "greedy", "top-k", "per-group"):
        assert next(iter(pysubmod.solve(problem, 2, method).config.items())) == ("method", method)
