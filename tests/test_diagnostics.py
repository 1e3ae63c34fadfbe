"""`diagnose`: bounds against enumeration, guarantees against brute force, comparisons against hand computations."""

from __future__ import annotations

import dataclasses
import json
from functools import cache
from itertools import combinations
from math import e, inf, isclose, sqrt

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from oracles import best_value, units_of_rows
from strategies import EXAMPLES, problems, random_problem, seeds

import pysubmod
from pysubmod import GradientMatching, PartitionMatroid, diagnose, solve
from pysubmod._comparison import Pool
from pysubmod._curvature import enumerated_ratios, ratio_at, sampled_ratios, subset_values
from pysubmod._guarantees import guarantees
from pysubmod._quadratic import Quadratic
from pysubmod._refit import refit
from pysubmod._spectrum import Spectrum
from pysubmod.datasets import load_demo

FEW = settings(max_examples=max(1, EXAMPLES // 2))
METHODS = ("omp", "omp-normalized", "greedy")


def spectrum_of(problem, eigen_limit=3000):
    q = Quadratic(problem)
    return Spectrum(q, np.arange(q.n), np.zeros(q.n, np.int64), eigen_limit)


@st.composite
def conditioned(draw, max_n=8):
    """Rows whose submatrices are well enough conditioned for the values of all subsets to be right to 1e-10."""
    n, d = draw(st.integers(2, max_n)), draw(st.integers(2, 12))
    rng = np.random.default_rng(draw(seeds))
    G = rng.normal(size=(n, d)) + draw(st.sampled_from([0.0, 0.5, 2.0])) * rng.normal(size=d)
    if draw(st.booleans()):
        G[draw(st.integers(0, n - 1))] = G[0] + 0.1 * rng.normal(size=d)
    if draw(st.booleans()):
        G *= 10.0 ** rng.uniform(-2, 2, size=(n, 1))
    ridge = draw(st.sampled_from([1e-2, 1e-1, 1.0])) * float(np.median(np.square(G).sum(axis=1)))
    target = rng.normal(size=d) if draw(st.booleans()) else G.mean(axis=0)
    problem = GradientMatching(G, target, ridge=ridge, nonneg=draw(st.booleans()))
    assume(np.linalg.eigvalsh(spectrum_of(problem).R)[0] > 1e-4)
    return problem


@st.composite
def matroids(draw, n, n_groups=None):
    P = draw(st.integers(1, 3)) if n_groups is None else n_groups
    groups = np.array(draw(st.lists(st.integers(0, P - 1), min_size=n, max_size=n)))
    return PartitionMatroid(groups, {p: draw(st.integers(0, 3)) for p in np.unique(groups).tolist()})


def bases(matroid):
    """All feasible sets of largest size."""
    room = np.minimum(matroid.budgets, matroid.sizes)
    for S in combinations(range(matroid.n), matroid.rank):
        if (np.bincount(matroid.codes[list(S)], minlength=len(room)) == room).all():
            yield S


def best_of_all(problem, matroid):
    q = Quadratic(problem)
    assert q.diagonal.min() > 0
    f = subset_values(q.matrix, q.c, q.nonneg)
    return max(f[sum(1 << i for i in S)] for S in bases(matroid))


# ---- values and ratios ----------------------------------------------------------------------------------------------


def assert_best(problem, p, members, value):
    """`value` is that of the core, and no less than SciPy finds (whose nnls may stop 1e-5 short of the optimum)."""
    units = units_of_rows(p.G, p.target, p.ridge)
    expected = units.value(value)
    assert expected == pytest.approx(units.value(problem.value(members)), rel=1e-7, abs=1e-9)
    assert expected >= best_value(units, members, p.nonneg)[0] * (1 - 1e-7) - 1e-9


@given(problems(max_n=8, rule="omp"))
def test_refit_finds_the_best_weights(p):
    problem = GradientMatching(p.G, p.target, ridge=p.ridge, nonneg=p.nonneg)
    q = Quadratic(problem)
    w, value = refit(q.matrix, q.c, q.nonneg)
    assert_best(problem, p, np.arange(q.n), value)
    assert not q.nonneg or (w >= 0).all()


@pytest.mark.parametrize("nonneg", [True, False])
def test_refit_with_dependent_rows(nonneg):
    C, c = np.ones((3, 3)), np.full(3, 2.0)
    w, value = refit(C, c, nonneg)
    assert value == pytest.approx(2.0) and w.sum() == pytest.approx(2.0)
    with pytest.raises(ValueError, match="unbounded"):
        refit(np.diag([1.0, 0.0]), np.ones(2), nonneg)
    assert refit(np.diag([1.0, 0.0]), np.array([1.0, 0.0]), nonneg)[1] == pytest.approx(0.5)


@FEW
@given(conditioned(max_n=6))
def test_subset_values_equal_the_core(problem):
    q = Quadratic(problem)
    f = subset_values(q.matrix, q.c, q.nonneg)
    for mask in range(len(f)):
        S = [i for i in range(q.n) if mask >> i & 1]
        assert f[mask] == pytest.approx(problem.value(S), rel=1e-9, abs=1e-12 * f[-1])


def naive_ratios(f, n, k):
    """gamma_k and beta_k by the definition, set by set."""
    subsets = [frozenset(S) for size in range(n + 1) for S in combinations(range(n), size)]
    value = {S: f[sum(1 << i for i in S)] for S in subsets}
    gamma, beta = [], []
    for A in subsets:
        for B in subsets:
            step = value[A | B] - value[A]
            if A & B or not B or len(A | B) > k or step <= 1e-9 * f[-1]:
                continue
            gamma.append(sum(value[A | {i}] - value[A] for i in B) / step)
            beta.append(sum(value[A | B] - value[(A | B) - {i}] for i in B) / step)
    return min(gamma, default=np.nan), max(beta, default=np.nan)


@settings(max_examples=max(1, EXAMPLES // 5))
@given(conditioned(max_n=6))
def test_enumeration_equals_the_definition(problem):
    q = Quadratic(problem)
    f = subset_values(q.matrix, q.c, q.nonneg)
    gamma, beta = enumerated_ratios(f)
    for k in range(1, q.n + 1):
        expected = naive_ratios(f, q.n, k)
        np.testing.assert_allclose((gamma[k - 1], beta[k - 1]), expected, rtol=1e-9)


@pytest.mark.parametrize(("step", "gamma"), [(1e-8, 0.0), (1e-10, 1.0)])
def test_negligible_increments_are_left_out(step, gamma):
    """a and b gain nothing alone, `step` together; c is worth 1 beside anything."""
    together, c = np.array([0, 0, 0, 1] * 2), np.repeat([0, 1], 4)
    assert enumerated_ratios(c + step * together)[0][2] == pytest.approx(gamma, abs=1e-9)


@given(conditioned())
def test_certified_curvature_holds(problem):
    spectrum = spectrum_of(problem)
    gamma, beta = enumerated_ratios(subset_values(spectrum.C, spectrum.quadratic.c, problem.nonneg))
    assume(np.isfinite(gamma).all())
    rough = Spectrum(spectrum.quadratic, spectrum.rows, spectrum.codes, 0)  # the ridge alone
    for k in range(1, spectrum.n + 1):
        low = spectrum.low("R", k).value
        assert 0 < rough.low("R", k).value <= low * (1 + 1e-9)
        assert gamma[k - 1] >= low - 1e-6
        assert beta[k - 1] <= (1 + 1e-6) / low
        assert gamma[k - 1] >= spectrum.low("C", k).value / spectrum.largest - 1e-6


@FEW
@given(conditioned(), seeds)
def test_sampled_ratios_lie_on_their_side(problem, seed):
    spectrum = spectrum_of(problem)
    gamma, beta = enumerated_ratios(subset_values(spectrum.C, spectrum.quadratic.c, problem.nonneg))
    k = min(4, spectrum.n)
    sampled = sampled_ratios(spectrum, np.array([0]), k, 20, seed)
    if sampled is not None:
        assert sampled[0] >= gamma[k - 1] * (1 - 1e-6) and sampled[1] <= beta[k - 1] * (1 + 1e-6)


@FEW
@given(conditioned(), st.data())
def test_ratio_at_a_set_holds(problem, data):
    problem = GradientMatching(problem._rows.blocks[0], problem._vector, ridge=problem.ridge, nonneg=False)
    spectrum = spectrum_of(problem)
    S = data.draw(st.lists(st.integers(0, spectrum.n - 1), unique=True, max_size=spectrum.n - 1))
    bound = ratio_at(spectrum, np.array(S, np.int64))
    assert bound is not None and bound.value >= spectrum.low("R").value
    f = subset_values(spectrum.C, spectrum.quadratic.c, False)
    here = sum(1 << i for i in S)
    for mask in range(1, len(f)):
        if mask & here == 0 and f[mask | here] - f[here] > 1e-6 * f[-1]:
            rise = sum(f[here | 1 << i] - f[here] for i in range(spectrum.n) if mask >> i & 1)
            assert rise >= bound.value * (f[mask | here] - f[here]) * (1 - 1e-6)


@given(problems(max_n=8, rule="omp"), st.integers(1, 8))
def test_sparse_eigenvalues_are_bounds(p, k):
    """On duplicates, zero rows, norms from 1e-12 to 1e12: in exact arithmetic the numbers are those of longdouble."""
    spectrum = spectrum_of(GradientMatching(p.G, p.target, ridge=p.ridge, nonneg=p.nonneg))
    assume(spectrum.n > 0)
    k = min(k, spectrum.n)
    for which in ("R", "C"):
        matrix = spectrum.R if which == "R" else spectrum.C
        blocks = [matrix[np.ix_(S, S)] for S in combinations(range(spectrum.n), k)]
        values = np.array([np.linalg.eigvalsh(block)[[0, -1]] for block in blocks])
        size = 1.0 if which == "R" else spectrum.largest
        assert 0 <= spectrum.low(which, k).value <= max(0.0, values[:, 0].min()) + 1e-13 * size
        assert spectrum.high(which, k) >= values[:, 1].max() * (1 - 1e-13)
        assert spectrum.low(which, k).value >= spectrum.low(which).value * (1 - 1e-12)
    above = spectrum.sparse_from_above(k)
    if above is not None:
        assert above >= spectrum.low("R", k).value - 1e-9


def test_sparse_eigenvalues_of_many_rows_are_pruned():
    G = np.random.default_rng(0).normal(size=(60, 100))
    spectrum = spectrum_of(GradientMatching(G, G[0]))
    assert spectrum.low("R", 2).how == "largest correlation"
    assert spectrum.low("R", 58).how == "exact: all 1770 submatrices"
    assert spectrum.low("R", 30).how == "smallest eigenvalue"


def test_a_ridge_needs_no_eigenvalues():
    G = np.random.default_rng(0).normal(size=(30, 5))
    spectrum = spectrum_of(GradientMatching(G, G[0], ridge=0.5), eigen_limit=10)
    assert spectrum.low("C").value == pytest.approx(0.5) and "ridge" in spectrum.low("C").how
    assert "matrix" not in spectrum.quadratic.__dict__
    assert spectrum.low("R").value == pytest.approx(0.5 / np.max(0.5 + np.square(G).sum(axis=1)))
    assert spectrum_of(GradientMatching(G, G[0]), eigen_limit=10).low("R").value == 0.0


# ---- guarantees -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@FEW
@given(data=st.data())
def test_guarantees_are_kept(method, data):
    problem = data.draw(conditioned(max_n=7))
    matroid = data.draw(matroids(problem.n, n_groups=data.draw(st.sampled_from([1, 2, 3]))))
    selection = solve(problem, matroid, method)
    diagnosis = diagnose(problem, matroid, selection, n_random=0, n_pairs=0, exact_limit=0)
    assume(diagnosis.guarantees)
    best = best_of_all(problem, matroid)
    for guarantee in diagnosis.guarantees:
        assert not guarantee.in_expectation
        assert selection.objective >= guarantee.value * best - 1e-9 * best


@FEW
@given(conditioned(max_n=7), st.data())
def test_swap_guarantee_is_kept_by_every_swap_local_optimum(problem, data):
    matroid = data.draw(matroids(problem.n, n_groups=2))
    q = Quadratic(problem)
    f = subset_values(q.matrix, q.c, q.nonneg)
    value = {frozenset(S): f[sum(1 << i for i in S)] for S in bases(matroid)}
    best = max(value.values())
    room = int((np.minimum(matroid.budgets, matroid.sizes) > 0).sum())
    spectrum = Spectrum(q, *_pool(matroid), 3000)
    (guarantee,), _ = _guarantees(
        spectrum, {"method": "swap"}, {"swap_local_optimum": True}, k=matroid.rank, n_groups=room, nonneg=q.nonneg
    )
    for S, worth in value.items():
        if all(worth >= other for T, other in value.items() if len(S - T) == 1):
            assert worth >= guarantee.value * best * (1 - 1e-9)


def expected_value(q, matroid, rule):
    """E f of the residual random rule: the shortlist is each group's best by weight, as many as its budget is left."""
    f = subset_values(q.matrix, q.c, q.nonneg)

    @cache
    def expected(S):
        w = np.zeros(q.n)
        w[list(S)] = refit(q.matrix[np.ix_(S, S)], q.c[list(S)], q.nonneg)[0]
        g = q.c - q.matrix @ w
        weight = np.maximum(g, 0) if q.nonneg else np.abs(g)
        if rule == "normalized":
            weight = weight / np.sqrt(q.diagonal)
        elif rule == "greedy":
            here = sum(1 << i for i in S)
            weight = np.array([f[here | 1 << i] - f[here] for i in range(q.n)])
        shortlist = []
        for code, budget in enumerate(matroid.budgets):
            rows = [i for i in range(q.n) if matroid.codes[i] == code and i not in S]
            left = budget - sum(matroid.codes[i] == code for i in S)
            shortlist += sorted(rows, key=lambda i: -weight[i])[:left]
        if not shortlist:
            return f[sum(1 << i for i in S)]
        return sum(expected(tuple(sorted((*S, i)))) for i in shortlist) / len(shortlist)

    return expected(())


@pytest.mark.parametrize("rule", ["omp", "normalized", "greedy"])
@FEW
@given(data=st.data())
def test_random_guarantees_are_kept_on_average(rule, data):
    problem = data.draw(conditioned(max_n=6))
    matroid = data.draw(matroids(problem.n))
    q = Quadratic(problem)
    spectrum = Spectrum(q, *_pool(matroid), 3000)
    (guarantee,), _ = _guarantees(
        spectrum, {"rule": rule, "pick": "random"}, {}, k=matroid.rank, n_groups=2, nonneg=q.nonneg
    )
    assert guarantee.in_expectation
    best = best_of_all(problem, matroid)
    assert expected_value(q, matroid, rule) >= guarantee.value * best * (1 - 1e-9)


def _pool(matroid):
    rows = np.flatnonzero(matroid.budgets[matroid.codes] > 0)
    return rows, matroid.codes[rows].astype(np.int64)


def _guarantees(spectrum, config, stats, *, k, n_groups, nonneg=True, rank=None, forced=False):
    rank = k if rank is None else rank
    return guarantees(config, stats, spectrum, k=k, rank=rank, n_groups=n_groups, nonneg=nonneg, forced=forced)


def counterexample(s=0.5):
    """a is nearly c, <b, c> = -s, and a scores a little higher than b: argmax takes a, and c adds nothing."""
    K = np.array([[1, -s, 1 - 1e-9], [-s, 1, -s], [1 - 1e-9, -s, 1]])
    problem = GradientMatching.from_gram(K, [1 + 1e-6, 1.0, 1.0], ridge=1e-7, nonneg=True)
    return problem, PartitionMatroid(["V1", "V1", "V2"], {"V1": 1, "V2": 1})


@pytest.mark.parametrize("method", METHODS)
def test_argmax_gets_no_gamma_guarantee(method):
    s = 0.5
    problem, matroid = counterexample(s)
    selection = solve(problem, matroid, method)
    best = best_of_all(problem, matroid)
    ratio = selection.objective / best
    assert ratio == pytest.approx((1 - s) / 2, rel=1e-5)
    gamma = enumerated_ratios(subset_values(Quadratic(problem).matrix, problem._vector, True))[0][1]
    assert gamma == pytest.approx(1 - s, rel=1e-5)
    assert ratio < gamma / (1 + gamma)  # what argmax is often said to reach
    diagnosis = diagnose(problem, matroid, selection)
    assert all(g.value <= ratio and "gamma" not in g.formula for g in diagnosis.guarantees)
    # The bound that does hold, from the same gamma, for the random rule.
    assert diagnosis.certified["gamma_2r"]["value"] < 1e-5


def test_diagonal_k_is_solved_exactly():
    problem = GradientMatching(np.diag([3.0, 1.0, 0.5, 2.0]), [1.0, 2.0, 1.0, 0.5])
    matroid = PartitionMatroid([0, 0, 1, 1], {0: 1, 1: 1})
    best = best_of_all(problem, matroid)
    for method in ("omp-normalized", "greedy"):
        selection = solve(problem, matroid, method)
        assert selection.objective == pytest.approx(best, rel=1e-12)
    diagnosis = diagnose(problem, matroid, selection)
    for name in ("gamma_r_exact", "gamma_2r_exact", "beta_r_exact"):
        assert diagnosis.certified[name]["value"] == pytest.approx(1.0)
    assert diagnosis.certified["lambda_min"]["value"] == pytest.approx(1.0)
    single = diagnose(problem, 2, solve(problem, 2, "greedy"))
    assert single.guarantees[0].value == pytest.approx(1 - 1 / e) and "Das and Kempe" in single.guarantees[0].citation


@pytest.fixture
def numbers():
    G = np.random.default_rng(5).normal(size=(12, 40)) * np.linspace(0.7, 1.4, 12)[:, None]
    spectrum = spectrum_of(GradientMatching(G, G.sum(axis=0)))
    return spectrum, {
        "R2": spectrum.low("R", 4).value,
        "R": spectrum.low("R", 2).value,
        "C2": spectrum.low("C", 4).value,
        "C": spectrum.low("C", 2).value,
        "M1": spectrum.largest,
        "L": spectrum.high("R", 2),
        "LC": spectrum.high("C", 2),
        "mu": spectrum.coherence_within,
    }


RANDOM_RAW = {"method": "partition-sel"}
# config, number of groups, nonneg, value from the numbers above (r = 2), in expectation, part of the citation
TABLE = [
    ({"rule": "greedy", "pick": "argmax"}, 1, True, lambda x: 1 - np.exp(-x["R2"]), False, "Das and Kempe"),
    ({"rule": "normalized"}, 1, True, lambda x: 1 - np.exp(-x["R2"]), False, "Elenberg"),
    ({"rule": "omp"}, 1, False, lambda x: 1 - np.exp(-x["C2"] / x["M1"]), False, "Elenberg"),
    ({"method": "omp"}, 1, False, lambda x: 1 - np.exp(-x["C2"] / x["M1"]), False, "Elenberg"),
    ({"method": "grad-match", "rule": "omp"}, 1, True, lambda x: 1 - np.exp(-x["C2"] / x["M1"]), False, "Elenberg"),
    ({"method": "stochastic-greedy", "epsilon": 0.2}, 1, True, lambda x: 1 - np.exp(-0.8 * x["R2"]), True, "Khanna"),
    ({"rule": "greedy", "pick": "random"}, 2, True, lambda x: 1 / (1 + x["R"] ** -2), True, "Thiery and Ward"),
    ({"rule": "normalized", "pick": "random"}, 2, True, lambda x: 1 / (1 + x["R"] ** -2), True, "Chen"),
    ({"rule": "omp", "pick": "random"}, 2, False, lambda x: 1 / (1 + x["M1"] / x["C"] / x["R"]), True, "Chen"),
    (RANDOM_RAW, 2, True, lambda x: 1 / (1 + x["M1"] / x["C"] / x["R"]), True, "Chen"),
    ({"rule": "normalized"}, 2, True, lambda x: 1 / (1 + (1 + sqrt(2)) ** 2 / x["R2"]), False, "pysubmod"),
    (
        {"rule": "greedy"},
        2,
        False,
        lambda x: 1 / (1 + (1 + min(2 * sqrt(x["L"]), sqrt(2))) ** 2 / x["R2"]),
        False,
        "pysubmod",
    ),
    (
        {"rule": "omp"},
        2,
        False,
        lambda x: 1 / (1 + (sqrt(x["M1"]) + min(2 * sqrt(x["LC"]), sqrt(2 * x["M1"]))) ** 2 / x["C2"]),
        False,
        "pysubmod",
    ),
]


@pytest.mark.parametrize(("config", "n_groups", "nonneg", "expected", "random", "citation"), TABLE)
def test_table_of_guarantees(numbers, config, n_groups, nonneg, expected, random, citation):
    spectrum, x = numbers
    (guarantee,), note = _guarantees(spectrum, config, {}, k=2, n_groups=n_groups, nonneg=nonneg)
    assert guarantee.value == pytest.approx(expected(x), rel=1e-9)
    assert guarantee.value <= expected(x)
    assert guarantee.in_expectation is random and citation in guarantee.citation and note


def test_the_logarithmic_form_is_for_free_weights():
    spectrum, r = spectrum_of(GradientMatching(np.eye(150), np.ones(150))), 64
    for nonneg, tau in ((False, 7.0), (True, 8.0)):
        (guarantee,), _ = _guarantees(spectrum, {"rule": "greedy"}, {}, k=r, n_groups=2, nonneg=nonneg)
        assert guarantee.value == pytest.approx(1 / (1 + (1 + tau) ** 2))


def test_swap_and_exact_search_have_theirs(numbers):
    spectrum, x = numbers
    found, _ = _guarantees(spectrum, {"rule": "omp", "refine": "swap"}, {"swap_local_optimum": True}, k=2, n_groups=2)
    assert len(found) == 2 and found[0].value >= found[1].value
    (swap,) = (g for g in found if "swap" in g.rule)
    assert swap.value == pytest.approx((x["R2"] / (1 + x["mu"])) ** 2)
    # A swap-local optimum is one from any start.
    found, _ = _guarantees(spectrum, {"initial": [3], "rule": "omp"}, {"swap_local_optimum": True}, k=2, n_groups=2)
    assert found == (swap,)
    stats = {"swap_local_optimum": True, "swap_tol": 0.1}
    (loose,), _ = _guarantees(spectrum, {"method": "swap"}, stats, k=2, n_groups=2)
    ratio = (1 + x["mu"]) / x["R2"]
    assert loose.value == pytest.approx(1 / (ratio**2 + 2 * 0.1 * ratio))
    (proof,), _ = _guarantees(spectrum, {"method": "exact"}, {"proven_optimal": True}, k=2, n_groups=2)
    assert proof.value == 1.0


@pytest.mark.parametrize(
    ("config", "stats", "k", "why"),
    [
        ({"rule": "greedy", "candidates": [True] * 11 + [False], "n": 12}, {}, 2, "candidates"),
        ({}, {}, 2, "without a record"),
        ({"rule": "greedy", "initial": [1]}, {}, 2, "initial"),
        ({"rule": "greedy", "candidates": 9, "n": 12}, {}, 2, "candidates"),
        ({"rule": "greedy"}, {"n_filled": 1}, 2, "only fill"),
        ({"rule": "greedy"}, {}, 1, "only 1 of the 2"),
        ({"method": "exact"}, {}, 2, "'exact'"),
        ({"method": "stochastic-greedy"}, {}, 2, "'stochastic-greedy'"),
        ({"method": "grad-match"}, {}, 2, "'grad-match'"),
        ({"rule": "unheard of"}, {}, 2, "None"),
        *(({"method": name}, {}, 2, f"'{name}'") for name in ("top-k", "craig", "random", "per-group", "relax-round")),
    ],
)
def test_no_guarantee_where_none_holds(numbers, config, stats, k, why):
    found, note = _guarantees(numbers[0], config, stats, k=k, rank=2, n_groups=1)
    assert found == () and note.startswith("None") and why in note


def test_releasing_picks_voids_the_guarantee_under_a_matroid_alone(numbers):
    config = {"rule": "greedy", "release_zeros": True, "candidates": 12, "n": 12, "initial": []}
    assert _guarantees(numbers[0], config, {}, k=2, n_groups=1)[0]
    found, note = _guarantees(numbers[0], config, {}, k=2, n_groups=2)
    assert found == () and "release_zeros" in note


def test_no_choice_is_optimal():
    p = random_problem(3)
    problem = GradientMatching(p.G, p.target)
    matroid = PartitionMatroid(p.groups, dict.fromkeys(np.unique(p.groups).tolist(), 99))
    diagnosis = diagnose(problem, matroid, np.arange(problem.n))
    assert [g.value for g in diagnosis.guarantees] == [1.0]
    assert diagnose(problem, matroid, np.arange(problem.n - 1)).guarantees == ()


def test_no_guarantee_for_another_problem():
    p = random_problem(1, n=12)
    problem, matroid = GradientMatching(p.G, p.target), PartitionMatroid(p.groups, {0: 2, 1: 2, 2: 2})
    selection = solve(problem, matroid)
    other = diagnose(GradientMatching(p.G, p.target, ridge=1.0), matroid, selection)
    assert other.guarantees == () and "another problem" in other.guarantee_note
    assert any("made for another problem: ridge" in flag for flag in other.flags)
    over = diagnose(problem, PartitionMatroid(p.groups, {0: 1, 1: 1, 2: 1}), selection.indices)
    assert over.guarantees == () and not over.problem["feasible"]
    assert any("break budgets" in flag for flag in over.flags)


# ---- comparisons ----------------------------------------------------------------------------------------------------


def test_comparison_by_hand():
    """Orthogonal rows: f(S) is the sum of c_i^2 / 2 C_ii, and every selection can be worked out by hand."""
    G = np.diag([1.0, 2.0, 1.0, 4.0, 1.0])
    target = np.array([3.0, 1.0, -2.0, 0.5, 1.0])
    worth = np.square(target) / 2
    problem = GradientMatching(G, target, nonneg=False)
    matroid = PartitionMatroid(["a", "a", "b", "b", "c"], {"a": 1, "b": 1, "c": 0})
    diagnosis = diagnose(problem, matroid, [1, 2], n_random=400)
    table = diagnosis.comparison
    assert table["selection"]["objective"] == pytest.approx(worth[1] + worth[2])
    # |c| = (3, 2, 2, 2, 1): row 2 before row 3, as the lower of two equal scores.
    assert table["top_k"]["objective"] == pytest.approx(worth[0] + worth[2]) and not table["top_k"]["same_set"]
    assert table["per_group"]["objective"] == pytest.approx(worth[0] + worth[2])
    left = 1 - (worth[1] + worth[2]) / worth.sum()
    assert table["selection"]["relative_residual"] == pytest.approx(sqrt(left))
    possible = sorted(worth[i] + worth[j] for i in (0, 1) for j in (2, 3))
    draws = np.array(table["random"]["objectives"])
    assert {round(x, 9) for x in draws} == {round(x, 9) for x in possible}
    assert table["random"]["objective"]["mean"] == pytest.approx(np.mean(possible), rel=0.1)
    assert table["random"]["objective"]["std"] == pytest.approx(draws.std())
    assert table["random"]["beaten_share"] == pytest.approx(np.mean(draws < worth[1] + worth[2]))
    assert diagnosis.conditioning == {"picks": pytest.approx(4.0), "picks_unit_diagonal": pytest.approx(1.0)}
    assert diagnosis.norms["pool"] == {"min": 1.0, "median": 1.5, "max": 4.0}
    assert diagnosis.norms["picks"] == {"min": 1.0, "median": 1.5, "max": 2.0}


def test_conflicts_and_cosines_by_hand():
    G = np.array([[1.0, 0.0], [1.0, 1.0], [-1.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
    problem = GradientMatching(G, [1.0, 1.0])
    diagnosis = diagnose(problem, PartitionMatroid([0, 0, 1, 1, 1], {0: 2, 1: 2}), [0, 1, 2, 3])
    assert diagnosis.comparison["selection"]["conflicting_pairs"] == 2  # (0, 2) and (1, 2)
    assert diagnosis.comparison["selection"]["pairs"] == 6
    r = 1 / sqrt(2)
    within, between = diagnosis.cosines["picks"]["within"], diagnosis.cosines["picks"]["between"]
    assert within["mean"] == pytest.approx(r / 2) and within["negative_share"] == 0.0 and within["pairs"] == 2
    assert between["mean"] == pytest.approx((-1 + 0 - r + r) / 4) and between["negative_share"] == 0.5
    assert diagnosis.cosines["pool"]["all"]["pairs"] == 6  # the zero row has no angle
    assert diagnosis.informative == {"zero_rows": 1, "zero_columns": 0}
    assert diagnosis.problem["against_target"] == 1
    near = diagnose(GradientMatching([[1.0, 0.0], [-0.1, 1.0], [0.0, 1.0]], [1.0, 1.0]), 3, [0, 1, 2])
    assert near.comparison["selection"]["conflicting_pairs"] == 1


@pytest.mark.filterwarnings("ignore:budgets. no row has:UserWarning")
@FEW
@given(problems(max_n=10, rule="omp"), seeds)
def test_everything_compared_is_feasible_and_worth_what_it_says(p, seed):
    problem = GradientMatching(p.G, p.target, ridge=p.ridge, nonneg=p.nonneg)
    matroid = PartitionMatroid(p.groups, dict(enumerate(p.budgets.tolist())))
    pool = Pool(Quadratic(problem), matroid, problem.tilt)
    for members in (pool.top_k(), pool.per_group(), pool.at_random(seed, 0)):
        assert matroid.is_feasible(members)
        assert_best(problem, p, members, pool.facts(members).objective)
    assert len(pool.top_k()) == len(pool.at_random(seed, 1)) == matroid.rank
    assert len(set(pool.top_k().tolist())) == matroid.rank


def test_per_group_is_normalised_omp_on_each_group():
    p = random_problem(7, n=24, d=15, n_groups=3, k=3)
    problem, matroid = GradientMatching(p.G, p.target), PartitionMatroid(p.groups, {0: 3, 1: 3, 2: 3})
    alone = []
    for label in range(3):
        rows = np.flatnonzero(p.groups == label)
        part = solve(GradientMatching(p.G[rows], p.target), 3, "omp-normalized")
        alone += rows[part.indices].tolist()
    expected = problem.value(alone)
    table = diagnose(problem, matroid, alone, eigen_limit=0).comparison
    assert table["per_group"]["objective"] == pytest.approx(expected, rel=1e-9)
    assert table["selection"]["objective"] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("nonneg", [True, False])
def test_a_float32_gram_matrix_without_full_rank(nonneg):
    """K's rounding is 1e-7: what it cannot see of c is noise, no unbounded direction."""
    G = np.random.default_rng(3).normal(size=(30, 4))
    problem = GradientMatching.from_gram((G @ G.T).astype(np.float32), G @ np.ones(4), nonneg=nonneg, target_norm=2.0)
    exact = GradientMatching(G, np.ones(4), nonneg=nonneg)
    diagnosis = diagnose(problem, 12, np.arange(12))
    assert diagnosis.problem["objective"] == pytest.approx(exact.value(np.arange(12)), rel=1e-4)
    assert diagnosis.certified["lambda_min"]["value"] == 0.0 and flagged(diagnosis, "no Gram matrix") == 0


# ---- flags ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def demo():
    data = load_demo()
    matroid = PartitionMatroid(data.groups, dict.fromkeys(data.domains, 4))
    return data, matroid


def test_a_sound_selection_has_no_flags(demo):
    data, matroid = demo
    problem = GradientMatching(data.gradients, data.target, ridge=1e-2)
    selection = solve(problem, matroid)
    diagnosis = diagnose(problem, matroid, selection)
    assert diagnosis.flags == ()
    assert diagnosis.comparison["selection"]["objective"] == pytest.approx(selection.objective, rel=1e-10)
    assert diagnosis.problem["relative_residual"] == pytest.approx(selection.relative_residuals[-1], rel=1e-6)
    assert diagnosis.problem["objective_at_own_weights"] == pytest.approx(selection.objective, rel=1e-10)


def flagged(diagnosis, text):
    return sum(text in flag for flag in diagnosis.flags)


def test_flag_top_k(demo):
    data, matroid = demo
    problem = GradientMatching(data.gradients, data.target)
    rows = [i for d in data.domains for i in _best_aligned(data, d, 4)]
    top = diagnose(problem, matroid, rows)
    assert top.comparison["top_k"]["same_set"] and flagged(top, "exactly the top-k") == 1
    # Nothing but what is there to take: no flag.
    assert flagged(diagnose(problem, problem.n, np.arange(problem.n), n_random=1), "exactly the top-k") == 0


def _best_aligned(data, domain, k):
    rows = np.flatnonzero(data.groups == domain)
    score = data.gradients[rows].astype(float) @ data.target
    return rows[np.argsort(-score, kind="stable")[:k]].tolist()


def test_flags_of_uninformative_rows_and_columns():
    G = np.random.default_rng(0).normal(size=(20, 16))
    problem = GradientMatching(G, G.mean(axis=0))
    clean = diagnose(problem, 4, solve(problem, 4))
    assert flagged(clean, "columns of G are zero") == flagged(clean, "rows are zero") == 0
    G[:, ::2] = 0.0
    G[3] = 0.0
    problem = GradientMatching(G, np.ones(16))
    dirty = diagnose(problem, 4, solve(problem, 4))
    assert flagged(dirty, "8 of 16 columns of G are zero") == flagged(dirty, "1 of 20 rows are zero") == 1
    assert "LoRA" in "".join(dirty.flags)
    # From the products alone columns are not known.
    gram = diagnose(GradientMatching.from_gram(G @ G.T, G @ np.ones(16)), 4, [0, 1])
    assert gram.informative["zero_columns"] is None and flagged(gram, "columns") == 0 and flagged(gram, "rows are") == 1


def test_flags_of_the_picks(demo):
    data, matroid = demo
    problem = GradientMatching(data.gradients, data.target)
    worst = [i for d in data.domains for i in np.flatnonzero(data.groups == d)[:3].tolist()]
    short = diagnose(problem, matroid, worst)
    assert flagged(short, "Fewer picks") == 1 and "(3 of 4) and 3 more groups" in "".join(short.flags)
    assert flagged(diagnose(problem, 3, [0, 1]), "Only 2 of the 3 picks") == 1
    assert diagnose(problem, 3, []).flags == ("The selection is empty.",)
    assert [group["shortfall"] for group in short.groups] == [1] * 8
    assert flagged(short, "top-k by alignment reaches a larger") == 1
    small = PartitionMatroid([0] * 238 + [1] * 2, {0: 3, 1: 5})
    assert [group["shortfall"] for group in diagnose(problem, small, [1, 239]).groups] == [2, 1]
    doubled = np.vstack([data.gradients, data.gradients[:1]])
    twice = diagnose(GradientMatching(doubled, data.target), 2, [0, 240])
    assert flagged(twice, "linearly dependent") == 1 and twice.conditioning["picks"] == inf
    assert twice.certified["beta_r"]["value"] == inf


def test_flags_of_weights_and_target(demo):
    data, matroid = demo
    problem = GradientMatching(data.gradients, data.target, ridge=1e-2)
    selection = solve(problem, matroid)
    equal = dataclasses.replace(selection, weights=np.full(32, 1 / 32))
    assert flagged(diagnose(problem, matroid, equal), "not the best ones") == 1
    away = GradientMatching(np.ones((5, 3)) + np.eye(5, 3), -np.ones(3))
    nothing = diagnose(away, 2, [0, 1])
    assert flagged(nothing, "aligned with the target") == 1 and flagged(nothing, "weights are zero") == 1
    assert nothing.problem["objective"] == 0.0
    one = np.array([1.0, *[1e-3] * 7])
    skew = dataclasses.replace(
        selection, indices=np.arange(8), weights=one, gains=one, residual_norms=one, config={}, stats={}
    )
    assert flagged(diagnose(problem, 8, skew), "A few picks carry") == 1


def test_flags_of_norms_and_k(demo):
    data, matroid = demo
    G = data.gradients.astype(float)
    G[7] *= 1000
    problem = GradientMatching(G, data.target)
    assert flagged(diagnose(problem, matroid, solve(problem, matroid)), "prefers long rows") == 1
    assert flagged(diagnose(problem, matroid, solve(problem, matroid, "omp-normalized")), "prefers long rows") == 0
    broken = GradientMatching.from_gram([[1.0, 2.0], [2.0, 1.0]], [1.0, 0.0])
    assert flagged(diagnose(broken, 1, [0]), "no Gram matrix") == 1
    fine = GradientMatching.from_gram([[1.0, 1.0], [1.0, 1.0]], [1.0, 1.0])
    assert flagged(diagnose(fine, 1, [0]), "no Gram matrix") == 0


def test_flag_conflicts():
    rng = np.random.default_rng(1)
    G = np.abs(rng.normal(size=(60, 5)))
    G[:3] = [[1, -9, 0, 0, 0], [1, 9, -9, 0, 0], [1, 0, 9, -1, 0]]
    diagnosis = diagnose(GradientMatching(G, np.ones(5)), 3, [0, 1, 2], n_random=20)
    assert flagged(diagnosis, "2 of 3 pairs of picks conflict") == (
        diagnosis.comparison["random"]["conflicting_pairs"]["max"] < 2
    )


# ---- the report -----------------------------------------------------------------------------------------------------


def test_bounds_and_estimates_are_kept_apart(demo):
    data, matroid = demo
    problem = GradientMatching(data.gradients, data.target, ridge=1e-2, nonneg=False)
    selection = solve(problem, matroid, "greedy")
    few, many = (diagnose(problem, matroid, selection, n_pairs=n, random_state=n) for n in (0, 40))
    assert few.certified == many.certified and few.guarantees == many.guarantees
    assert set(many.estimates) == {"lambda_2r", "gamma_r", "beta_r"} and set(few.estimates) == {"lambda_2r"}
    assert all("sampled" not in item["how"] and "at most" not in item["how"] for item in many.certified.values())
    assert many.certified["gamma_r"]["value"] <= many.estimates["gamma_r"]["value"]
    assert many.certified["beta_r"]["value"] >= many.estimates["beta_r"]["value"]
    assert many.certified["lambda_2r"]["value"] <= many.estimates["lambda_2r"]["value"]
    text = str(many)
    certified, estimates = text.index("Curvature, certified"), text.index("Curvature, estimates")
    assert certified < estimates < text.index("sampled pairs")
    assert set(many.to_dict()) >= {"certified", "estimates"}


def test_exact_values_of_a_singular_problem_are_no_certificates():
    G = np.array([[1.0, 0.0], [1.0, 1e-7], [0.0, 1.0]])
    diagnosis = diagnose(GradientMatching(G, [1.0, 1.0]), 2, [0, 2])
    assert "gamma_r_exact" in diagnosis.estimates and "gamma_r_exact" not in diagnosis.certified
    # Six rows of length 4 are dependent, any two of them are not.
    G = np.random.default_rng(0).normal(size=(6, 4))
    diagnosis = diagnose(GradientMatching(G, G[0] + G[1]), 2, [0, 1])
    assert "gamma_r_exact" in diagnosis.certified and "gamma_r_exact" not in diagnosis.estimates


CASES = {
    "empty": lambda G: (GradientMatching(G, G[0]), 3, []),
    "no budget": lambda G: (GradientMatching(G, G[0]), 0, []),
    "no candidates": lambda G: (GradientMatching(G[:0], G[0]), 2, []),
    "one row": lambda G: (GradientMatching(G[:1], G[0]), 1, [0]),
    "gram": lambda G: (GradientMatching.from_gram(G @ G.T, G @ G[0], ridge=0.1, nonneg=False), 3, [4, 1, 0]),
    "gram and norm": lambda G: (GradientMatching.from_gram(G @ G.T, G @ G[0], target_norm=2.0), 3, [4, 1]),
    "tilt": lambda G: (GradientMatching(G, G[0], ridge=1.0, tilt=0.1), 3, [2, 3, 1]),
    "zero group": lambda G: (GradientMatching(G, G[0]), PartitionMatroid([0] * 9 + [1] * 3, {0: 2, 1: 0}), [3, 4]),
    "zeros": lambda G: (GradientMatching(0 * G, G[0]), 3, [0, 1]),
    "zero target": lambda G: (GradientMatching(G, 0 * G[0]), 3, [0, 1, 2]),
    "duplicates": lambda G: (GradientMatching(np.repeat(G[:4], 3, axis=0), G[0], nonneg=False), 3, [0, 1, 2]),
    "half": lambda G: (GradientMatching(G.astype(np.float16), G[0]), 3, [0, 1, 2]),
    "mapping": lambda G: (
        GradientMatching({"x": G[:5], "y": G[5:]}, G[0]),
        PartitionMatroid(["x"] * 5 + ["y"] * 7, {"x": 1, "y": 3}),
        [0, 9],
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("eigen_limit", [3000, 3])
def test_every_case_reports_and_survives_json(name, eigen_limit):
    G = np.random.default_rng(0).normal(size=(12, 6))
    problem, matroid, picks = CASES[name](G)
    diagnosis = diagnose(problem, matroid, picks, n_random=5, n_pairs=4, eigen_limit=eigen_limit)
    document = diagnosis.to_dict()
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert str(diagnosis).startswith("Diagnosis of") and "Diagnosis:" in repr(diagnosis)
    assert all(line == line.rstrip() for line in str(diagnosis).splitlines())
    if len(picks):
        assert isclose(diagnosis.problem["objective"], problem.value(picks), rel_tol=1e-9, abs_tol=1e-12)
        residual = problem.residual_norm(picks)
        if residual is not None and diagnosis.problem["relative_residual"] is not None:
            norm = Quadratic(problem).target_norm
            assert diagnosis.problem["relative_residual"] == pytest.approx(residual / norm, abs=1e-7)


def test_without_the_matrix_nothing_else_changes(demo):
    data, matroid = demo
    problem = GradientMatching(data.gradients, data.target, ridge=1e-2)
    selection = solve(problem, matroid)
    small, large = (diagnose(problem, matroid, selection, eigen_limit=limit) for limit in (3000, 0))
    for name in ("top_k", "per_group", "selection"):
        assert large.comparison[name]["objective"] == pytest.approx(small.comparison[name]["objective"], rel=1e-9)
    assert large.comparison["random"]["objectives"] == pytest.approx(small.comparison["random"]["objectives"], rel=1e-9)
    assert large.certified["lambda_min"]["value"] <= small.certified["lambda_min"]["value"]
    assert diagnose(problem, matroid, selection).to_dict() == small.to_dict()


def test_a_certificate_is_printed(demo):
    data, matroid = demo
    problem = GradientMatching(data.gradients, data.target)

    class Certificate:
        def __str__(self):
            return "within 1 % of optimal"

        def to_dict(self):
            return {"ratio": np.float64(0.99)}

    diagnosis = diagnose(problem, matroid, [0, 1], certificate=Certificate(), n_random=1, n_pairs=0)
    assert "within 1 % of optimal" in str(diagnosis)
    assert diagnosis.to_dict()["certificate"] == {"ratio": 0.99}


@pytest.mark.parametrize("name", ["empty", "one row", "gram", "zero group", "zero target", "mapping"])
def test_plot(name):
    pytest.importorskip("matplotlib")
    G = np.random.default_rng(0).normal(size=(12, 6))
    problem, matroid, picks = CASES[name](G)
    for n_random in (0, 7):
        figure = diagnose(problem, matroid, picks, n_random=n_random).plot()
        figure.canvas.draw()


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (("problem", 2, [0]), {}, TypeError, "problem: expected a GradientMatching, got str"),
        ((None, PartitionMatroid([0, 0], {0: 1}), [0]), {}, ValueError, "matroid: has 2 rows"),
        ((None, -1, [0]), {}, ValueError, "budgets"),
        ((None, 2, [0, 0]), {}, ValueError, "selection: row 0 comes twice"),
        ((None, 2, [8]), {}, ValueError, "selection: row 8 does not exist"),
        ((None, 2, [0.5]), {}, TypeError, "selection: expected integer"),
        ((None, 2, [0]), {"n_random": -1}, ValueError, "n_random: expected at least 0"),
        ((None, 2, [0]), {"n_random": 1.5}, TypeError, "n_random: expected an integer"),
        ((None, 2, [0]), {"n_pairs": True}, TypeError, "n_pairs"),
        ((None, 2, [0]), {"exact_limit": 15}, ValueError, "exact_limit: expected 0 .. 14"),
        ((None, 2, [0]), {"eigen_limit": "all"}, TypeError, "eigen_limit"),
        ((None, 2, [0]), {"random_state": -1}, ValueError, "random_state"),
    ],
)
def test_bad_inputs(arguments, options, error, message):
    p = random_problem(0)
    problem = GradientMatching(p.G, p.target) if arguments[0] is None else arguments[0]
    with pytest.raises(error, match=message):
        diagnose(problem, *arguments[1:], **options)


def test_unbounded_problems_are_refused():
    problem = GradientMatching.from_gram(np.zeros((2, 2)), [1.0, 1.0])
    with pytest.raises(ValueError, match="unbounded"):
        diagnose(problem, 1, [0])


def test_exported():
    assert pysubmod.diagnose is diagnose and "Diagnosis" in pysubmod.__all__
