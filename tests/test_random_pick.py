"""`pick="random"`: the same draws as the reference, the shortlist it draws from, and what it is worth on average."""

from __future__ import annotations

import itertools
import math
from functools import cache

import numpy as np
import pytest
import scipy.optimize
from hypothesis import given
from problems import FAMILIES, family, real
from strategies import RULES, problems, random_problem, seeds
from test_backends_agree import assert_same, solve_core, solve_reference

import pysubmod
from pysubmod._random import random_bits
from pysubmod._reference import _draw

METHOD = "residual-random"


def draw_core(route, args, seed, *, rule="normalized", ranking="relu", fill=False, **options):
    """The core's answer by `solve`, where `ranking` is to be had."""
    G, target, groups, budgets = args
    weights = {name: options.pop(name) for name in ("ridge", "nonneg", "tilt") if name in options}
    wide = G.astype(float)
    norm = np.linalg.norm(target)
    if route == "gram":
        problem = pysubmod.GradientMatching.from_gram(wide @ wide.T, wide @ target, target_norm=norm, **weights)
    else:
        problem = pysubmod.GradientMatching(G, target, **weights)
    matroid = pysubmod.PartitionMatroid(np.asarray(groups), {p: int(b) for p, b in enumerate(budgets)})
    options |= {"rule": rule, "ranking": ranking, "fill": fill, "random_state": seed}
    return pysubmod.solve(problem, matroid, METHOD, **options)


# ---- the same draws as the reference --------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:budgets")
@pytest.mark.parametrize("route", ["dense", "gram"])
@given(problem=problems(), options=seeds)
def test_small_problems(route, problem, options):
    rng = np.random.default_rng(options)
    chosen = {"rule": problem.rule, "nonneg": problem.nonneg, "ridge": problem.ridge, "fill": bool(rng.integers(2))}
    if chosen["fill"]:
        chosen["ranking"] = str(rng.choice(["relu", "signed"]))
    if rng.integers(2):
        chosen["candidates"] = rng.random(len(problem.G)) < 0.8
    seed = int(rng.integers(2**40))
    expected = solve_reference(route, *problem.args, pick="random", seed=seed, **chosen)
    roots = np.sqrt((problem.G**2).sum(axis=1) + problem.ridge)
    assert_same(draw_core(route, problem.args, seed, **chosen), expected, rtol=1e-6, roots=roots)


@pytest.mark.filterwarnings("ignore:budgets")
@pytest.mark.parametrize("nonneg", [False, True])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", [*FAMILIES, "real"])
def test_families(name, rule, nonneg):
    G, target, codes = real() if name == "real" else family(name, 100, 64, seed=6)
    some = np.random.default_rng(0).permutation(len(G))[:100]
    args = (G[some], target, codes[some], np.full(8, 2))
    for fill, ranking, release in ((False, "relu", False), (False, "relu", True), (True, "relu", False),
                                   (True, "signed", False)):  # fmt: skip
        options = {"rule": rule, "nonneg": nonneg, "fill": fill, "ranking": ranking, "release_zeros": release}
        expected = solve_reference("dense", *args, pick="random", seed=11, **options)
        assert_same(draw_core("dense", args, 11, **options), expected, rtol=1e-6)


def test_draws_are_the_high_bits_of_the_product():
    for seed in (0, 1, 2**62 + 12345):
        bits = random_bits(seed, np.arange(200))
        for counter, length in itertools.product(range(200), (1, 2, 3, 7, 1000, 2**32 - 1)):
            assert _draw(range(length), seed, counter) == (int(bits[counter]) * length) >> 64


def test_the_core_draws_as_numpy_does():
    """Orthogonal rows of one length and one target: every pick is a draw among all that is left."""
    n, seed = 40, 123456789012345
    core = pysubmod.omp_partition(np.eye(n), np.ones(n), n, pick="random", random_state=seed, nonneg=False)
    left = list(range(n))
    for m in range(n):
        expected = (int(random_bits(seed, m)) * len(left)) >> 64
        assert core.indices[m] == left.pop(expected)


# ---- the shortlist --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fill", [False, True])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("seed", range(6))
def test_every_pick_is_among_the_best_of_its_group(seed, rule, fill):
    problem = random_problem(seed, n=24, d=12, k=4, shared=1.0)
    G, target, groups, budgets = problem.args
    sel = draw_core("dense", problem.args, seed, rule=rule, fill=fill)
    norms = np.linalg.norm(G, axis=1)

    def value(S):
        r = scipy.optimize.nnls(G[S].T, target)[1] if S else np.linalg.norm(target)
        return (target @ target - r * r) / 2

    picked: list[int] = []
    for i in sel.indices.tolist():
        w = scipy.optimize.nnls(G[picked].T, target)[0] if picked else np.zeros(0)
        g = G @ (target - G[picked].T @ w)
        score = {"omp": g, "normalized": g / norms}.get(rule)
        if score is None:
            score = np.array([value([*picked, j]) - value(picked) if j not in picked else 0.0 for j in range(len(G))])
        eligible = [j for j in np.flatnonzero(groups == groups[i]).tolist() if j not in picked]
        left = budgets[groups[i]] - sum(groups[j] == groups[i] for j in picked)
        above = sum(max(score[j], 0.0) > max(score[i], 0.0) + 1e-9 for j in eligible)
        assert left > above
        assert fill or score[i] > 0
        picked.append(i)
    assert not fill or len(sel) == np.minimum(budgets, np.bincount(groups, minlength=len(budgets))).sum()


# ---- what it is worth -----------------------------------------------------------------------------------------------


class Enumerated:
    """f, its ratios and the expectation of the residual random rule, all by brute force; at most 8 rows."""

    def __init__(self, seed, nonneg, n=8, d=7):
        rng = np.random.default_rng(seed)
        self.n, self.nonneg = n, nonneg
        self.G = rng.normal(size=(n, d)) + 0.7 * rng.normal(size=d)
        self.target = self.G.mean(axis=0) + 0.5 * rng.normal(size=d)
        self.groups = np.arange(n) % 2
        self.budgets = [2, 1]
        self.ridge = 0.05
        self.A = np.vstack([self.G.T, np.sqrt(self.ridge) * np.eye(n)])
        self.b = np.concatenate([self.target, np.zeros(n)])
        self.fit = cache(self._fit)

    def _fit(self, S):
        A = self.A[:, sorted(S)]
        w = scipy.optimize.nnls(A, self.b)[0] if self.nonneg else np.linalg.lstsq(A, self.b, rcond=None)[0]
        return float(self.b @ (A @ w)) / 2, self.A.T @ (self.b - A @ w)  # f = <w, c> / 2

    def value(self, S):
        return self.fit(frozenset(S))[0] if S else 0.0

    def g(self, S):
        return self.fit(frozenset(S))[1] if S else self.A.T @ self.b

    def left(self, S):
        return [b - sum(self.groups[i] == p for i in S) for p, b in enumerate(self.budgets)]

    def optimum(self):
        bases = itertools.product(*(itertools.combinations(np.flatnonzero(self.groups == p), b)
                                    for p, b in enumerate(self.budgets)))  # fmt: skip
        return max(self.value([*a, *b]) for a, b in bases)

    def ratios(self, k):
        """gamma_k and beta_k over all disjoint A, B of together at most k rows."""
        gamma, beta = math.inf, 0.0
        sets = [frozenset(S) for size in range(k + 1) for S in itertools.combinations(range(self.n), size)]
        for A, B in itertools.product(sets, sets):
            if not B or A & B or len(A | B) > k:
                continue
            together = self.value(A | B) - self.value(A)
            if together <= 1e-9 * self.value(range(self.n)):
                continue
            gamma = min(gamma, sum(self.value(A | {e}) - self.value(A) for e in B) / together)
            beta = max(beta, sum(self.value(A | B) - self.value((A | B) - {e}) for e in B) / together)
        return gamma, beta

    def shortlist(self, S, rule):
        g = self.g(S) if self.nonneg else np.abs(self.g(S))
        if rule == "greedy":
            score = np.array([self.value({*S, i}) - self.value(S) for i in range(self.n)]) * (g > 1e-12)
        else:
            score = g / (1.0 if rule == "omp" else np.sqrt((self.A**2).sum(axis=0)))
        rows = []
        for p, left in enumerate(self.left(S)):
            open_ = [i for i in np.flatnonzero(self.groups == p).tolist() if i not in S and score[i] > 1e-12]
            rows += sorted(open_, key=lambda i: -score[i])[:left]
        return rows

    def expectation(self, rule):
        """(mean, mean square) of the value at the end."""

        @cache
        def after(S):
            rows = self.shortlist(S, rule)
            if not rows:
                return np.array([self.value(S), self.value(S) ** 2])
            return sum(after(S | {i}) for i in rows) / len(rows)

        return after(frozenset())


@pytest.mark.parametrize("nonneg", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_the_expectation_has_its_guarantee(seed, nonneg):
    instance = Enumerated(seed, nonneg)
    gamma, beta = instance.ratios(sum(instance.budgets))
    mean = instance.expectation("greedy")[0]
    assert mean >= gamma / (gamma + beta) * instance.optimum() * (1 - 1e-9)
    C = instance.A.T @ instance.A
    R = C / np.sqrt(np.outer(C.diagonal(), C.diagonal()))
    kappa = 1 / min(np.linalg.eigvalsh(R[np.ix_(S, S)])[0] for S in itertools.combinations(range(8), 3))
    assert instance.expectation("normalized")[0] >= instance.optimum() / (1 + kappa**2) * (1 - 1e-9)


@pytest.mark.parametrize("nonneg", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_the_mean_over_seeds_is_the_expectation(rule, nonneg):
    instance = Enumerated(9, nonneg)
    mean, square = instance.expectation(rule)
    problem = pysubmod.GradientMatching(instance.G, instance.target, ridge=instance.ridge, nonneg=nonneg)
    matroid = pysubmod.PartitionMatroid(instance.groups, instance.budgets)
    runs = 500
    values = [
        pysubmod.solve(problem, matroid, METHOD, rule=rule, random_state=s, n_threads=1).objective for s in range(runs)
    ]
    error = math.sqrt(max(square - mean**2, 0.0) / runs)
    assert error > 0
    assert abs(np.mean(values) - mean) <= 5 * error


@pytest.mark.parametrize("seed", range(3))
def test_partition_sel_has_its_guarantee(seed):
    """Raw correlations as weights: E f >= OPT / (1 + (M1 / m_r) / lambda_r(R)), here with 500 seeds."""
    instance = Enumerated(seed, nonneg=True)
    C = instance.A.T @ instance.A
    R = C / np.sqrt(np.outer(C.diagonal(), C.diagonal()))
    triples = list(itertools.combinations(range(instance.n), sum(instance.budgets)))
    least, least_scaled = (min(np.linalg.eigvalsh(M[np.ix_(S, S)])[0] for S in triples) for M in (C, R))
    bound = instance.optimum() / (1 + C.diagonal().max() / least / least_scaled)
    problem = pysubmod.GradientMatching(instance.G, instance.target, ridge=instance.ridge)
    matroid = pysubmod.PartitionMatroid(instance.groups, instance.budgets)
    values = [pysubmod.solve(problem, matroid, "partition-sel", random_state=s).objective for s in range(500)]
    assert np.mean(values) >= bound
    assert min(values) > 0


# ---- the door -------------------------------------------------------------------------------------------------------


def some():
    problem = random_problem(3, n=40, d=20, k=5)
    return problem.args[:2], dict(enumerate(problem.budgets.tolist())), problem.groups


def test_a_seed_repeats_a_run():
    args, budgets, groups = some()
    first = pysubmod.omp_partition(*args, budgets, groups=groups, pick="random")
    seed = first.config["random_state"]
    assert isinstance(seed, int) and first.config["pick"] == "random"
    again = pysubmod.omp_partition(*args, budgets, groups=groups, pick="random", random_state=seed, n_threads=2)
    assert again.indices.tolist() == first.indices.tolist()
    assert again.weights.tobytes() == first.weights.tobytes()
    others = {
        tuple(pysubmod.omp_partition(*args, budgets, groups=groups, pick="random", random_state=s).indices.tolist())
        for s in range(10)
    }
    assert len(others) == 10
    generated = [
        pysubmod.omp_partition(*args, budgets, groups=groups, pick="random", random_state=np.random.default_rng(5))
        for _ in range(2)
    ]
    assert generated[0].indices.tolist() == generated[1].indices.tolist()


def test_argmax_is_not_random():
    args, budgets, groups = some()
    plain = pysubmod.omp_partition(*args, budgets, groups=groups)
    seeded = pysubmod.omp_partition(*args, budgets, groups=groups, random_state=4)
    assert seeded.indices.tolist() == plain.indices.tolist()
    assert plain.config["random_state"] is None
    with pytest.raises(TypeError, match="random_state: expected an integer"):
        pysubmod.omp_partition(*args, budgets, groups=groups, random_state="4")


def test_ranking_needs_something_to_rank():
    args, budgets, groups = some()
    problem, matroid = pysubmod.GradientMatching(*args), pysubmod.PartitionMatroid(groups, budgets)
    with pytest.raises(ValueError, match="ranking: orders rows that do not help"):
        pysubmod.solve(problem, matroid, "residual-random", ranking="signed")
    with pytest.raises(ValueError, match="ranking: expected one of 'relu', 'signed'"):
        pysubmod.solve(problem, matroid, "partition-sel", ranking="abs")
    with pytest.raises(ValueError, match="problem: partition-sel has weights >= 0"):
        pysubmod.solve(pysubmod.GradientMatching(*args, nonneg=False), matroid, "partition-sel")
    with pytest.raises(TypeError, match="fill: is what partition-sel says"):
        pysubmod.solve(problem, matroid, "partition-sel", fill=True)
    with pytest.raises(TypeError, match="rule: is what method says"):
        pysubmod.solve(problem, matroid, "partition-sel", rule="greedy")


# ---- PartitionSel ---------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:budgets")
@pytest.mark.parametrize("ranking", ["relu", "signed"])
@pytest.mark.parametrize("tilt", [0.0, 0.5])
@pytest.mark.parametrize("name", [*FAMILIES, "real"])
def test_partition_sel_always_fills(name, tilt, ranking):
    G, target, codes = real() if name == "real" else family(name, 120, 96, seed=2)
    some = np.random.default_rng(0).permutation(len(G))[:120]
    G, codes = G[some], codes[some]
    sizes = np.bincount(codes, minlength=8)
    tilt = tilt / float(np.abs(G.astype(float) ** 2).sum(axis=1).max())
    problem = pysubmod.GradientMatching(G, target, ridge=1e-6, tilt=tilt)
    for budget in (3, int(sizes.max())):
        matroid = pysubmod.PartitionMatroid(codes, dict.fromkeys(range(8), budget))
        sel = pysubmod.solve(problem, matroid, "partition-sel", ranking=ranking, random_state=1)
        assert len(sel) == np.minimum(budget, sizes).sum() == matroid.rank
        assert sel.objective == pytest.approx(problem.value(sel.indices), rel=1e-9)
        assert (sel.weights >= 0).all()


def test_partition_sel_on_duplicates_and_zero_rows():
    G = np.array([[1.0, 0, 0], [1, 0, 0], [0, 0, 0], [-1, 0, 0], [0, 2, 0], [0, 4, 0]])
    groups = [0, 0, 0, 0, 1, 1]
    for seed, ranking in itertools.product(range(20), ("relu", "signed")):
        problem = pysubmod.GradientMatching(G, [1.0, 1.0, 1.0])
        matroid = pysubmod.PartitionMatroid(groups, [4, 2])
        sel = pysubmod.solve(problem, matroid, "partition-sel", random_state=seed, ranking=ranking)
        assert sorted(sel.indices.tolist()) == list(range(6))
        assert sel.status == "budget"
        assert sel.objective == pytest.approx(1.0)


def test_ranking_orders_those_that_do_not_help():
    """One useful row, then two places for rows of negative correlation: the first two, or the least negative."""
    G = np.array([[0.0, 1.0], [-3.0, 0.0], [-2.0, 0.0], [-1.0, 0.0]])
    problem, matroid = pysubmod.GradientMatching(G, [1.0, 1.0]), pysubmod.PartitionMatroid(np.zeros(4, int), 2)
    picks = {"relu": set(), "signed": set()}
    for ranking, seen in picks.items():
        for seed in range(60):
            sel = pysubmod.solve(problem, matroid, "partition-sel", random_state=seed, ranking=ranking)
            seen.add(tuple(sel.indices.tolist()))
    # The list has two places: row 0 and the first of the others; whichever comes first, the next list has one place.
    assert picks["relu"] == {(0, 1), (1, 0)}
    assert picks["signed"] == {(0, 3), (3, 0)}


def test_solving_in_v_is_the_paper_in_w():
    """U(w) = <w, eta s + eta^2/2 diag K> - eta^2/2 w'Kw at w = v / eta has the objective's value."""
    rng = np.random.default_rng(0)
    G, target, eta = rng.normal(size=(20, 9)), rng.normal(size=9), 1e-3
    sel = pysubmod.solve(
        pysubmod.GradientMatching(G, target, tilt=eta), pysubmod.PartitionMatroid(np.arange(20) % 4, [2, 2, 2, 2]),
        "partition-sel", random_state=0,
    )  # fmt: skip
    S, w = sel.indices, sel.weights / eta
    K = G @ G.T
    U = w @ (eta * (G @ target) + eta**2 / 2 * K.diagonal())[S] - eta**2 / 2 * w @ K[np.ix_(S, S)] @ w
    assert pytest.approx(U, rel=1e-10) == sel.objective


@pytest.mark.filterwarnings("ignore:budgets")
@given(problem=problems(strict=False), options=seeds)
def test_stress(problem, options):
    """Duplicates, zero rows, wide norms: budgets are filled, weights are those of the support."""
    rng = np.random.default_rng(options)
    sel = draw_core("dense", problem.args, int(rng.integers(2**40)), rule=problem.rule, fill=True, nonneg=True)
    sizes = np.bincount(problem.groups, minlength=len(problem.budgets))
    assert len(sel) == np.minimum(problem.budgets, sizes).sum()
    assert len(set(sel.indices.tolist())) == len(sel)
    assert np.isfinite(sel.weights).all() and (sel.weights >= 0).all() and (sel.gains >= 0).all()
    value = pysubmod.GradientMatching(problem.G, problem.target).value(sel.indices)
    assert sel.objective == pytest.approx(value, rel=1e-6, abs=1e-9 * float(problem.target @ problem.target))


def test_the_method_and_the_front_door_agree():
    args, budgets, groups = some()
    by_door = pysubmod.omp_partition(*args, budgets, groups=groups, rule="normalized", pick="random", random_state=8)
    by_method = pysubmod.solve(
        pysubmod.GradientMatching(*args), pysubmod.PartitionMatroid(groups, budgets), METHOD, random_state=8
    )
    assert by_door.indices.tolist() == by_method.indices.tolist()
    core = solve_core("dense", *args, groups, list(budgets.values()), rule="normalized", pick="random", random_state=8)
    assert core.indices.tolist() == by_door.indices.tolist()
