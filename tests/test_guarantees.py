"""A-priori guarantees: kept by brute force, the right one for every rule, and none where none holds."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from math import e, sqrt

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from small_instances import FEW, METHODS, bases, best_of_all, conditioned, matroids, spectrum_of
from strategies import random_problem

from pysubmod import GradientMatching, PartitionMatroid, diagnose, solve
from pysubmod._curvature import enumerated_ratios, subset_values
from pysubmod._guarantees import guarantees
from pysubmod._quadratic import Quadratic
from pysubmod._refit import refit
from pysubmod._spectrum import Spectrum


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


def _guarantees(spectrum, config, stats, *, k, n_groups, nonneg=True, rank=None, forced=False, **known):
    rank = k if rank is None else rank
    return guarantees(config, stats, spectrum, k=k, rank=rank, n_groups=n_groups, nonneg=nonneg, forced=forced, **known)


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
    ({"method": "grad-match", "eps": 0.0}, 1, True, lambda x: 1 - np.exp(-x["C2"] / x["M1"]), False, "Elenberg"),
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
    # Without a proof: no less than normalised OMP, where it starts.
    for method in ("exact", "best"):
        (start,), _ = _guarantees(spectrum, {"method": method}, {}, k=2, n_groups=1)
        assert start.value == pytest.approx(1 - np.exp(-x["R2"])) and "never falls below" in start.rule


@pytest.mark.parametrize(
    ("config", "stats", "k", "why"),
    [
        ({}, {}, 2, "without a record"),
        ({"rule": "greedy", "initial": [1]}, {}, 2, "initial"),
        ({"rule": "greedy"}, {"n_filled": 1}, 2, "only fill"),
        ({"rule": "greedy"}, {}, 1, "only 1 of the 2"),
        ({"method": "stochastic-greedy"}, {}, 2, "'stochastic-greedy'"),
        ({"rule": "unheard of"}, {}, 2, "None"),
        *(({"method": name}, {}, 2, f"'{name}'") for name in ("top-k", "craig", "random", "per-group", "relax-round")),
    ],
)
def test_no_guarantee_where_none_holds(numbers, config, stats, k, why):
    found, note = _guarantees(numbers[0], config, stats, k=k, rank=2, n_groups=1)
    assert found == () and note.startswith("None") and why in note


def test_weights_of_another_sign_and_filling_up(numbers):
    spectrum = numbers[0]
    # GRAD-MATCH selects with w >= 0 whatever the problem says.
    assert _guarantees(spectrum, {"method": "grad-match"}, {}, k=2, n_groups=1, nonneg=False)[0] == ()
    # PartitionSel always fills; the pursuit does so only where nothing helps.
    assert len(_guarantees(spectrum, RANDOM_RAW | {"rule": "omp"}, {"n_filled": 1}, k=2, n_groups=2)[0]) == 1


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


def test_a_problem_of_the_same_shape_is_told_by_the_objective():
    p, other = random_problem(1, n=12), random_problem(2, n=12)
    for nonneg in (True, False):
        problem = GradientMatching(p.G, p.target, ridge=0.1, nonneg=nonneg)
        selection = solve(problem, 3)
        assert diagnose(problem, 3, selection).guarantees
        diagnosis = diagnose(GradientMatching(other.G, other.target, ridge=0.1, nonneg=nonneg), 3, selection)
        assert diagnosis.guarantees == () and "another problem (objective" in diagnosis.guarantee_note
        assert any("made for another problem: objective" in flag for flag in diagnosis.flags)
        # The same numbers in another type, layout or form are the same problem.
        K = p.G @ p.G.T
        for same in (
            GradientMatching(np.asfortranarray(p.G, np.float32), p.target, ridge=0.1, nonneg=nonneg),
            GradientMatching.from_gram(K, p.G @ p.target, ridge=0.1, nonneg=nonneg),
            GradientMatching.from_gram(K.astype(np.float32), p.G @ p.target, ridge=0.1, nonneg=nonneg),
        ):
            assert diagnose(same, 3, selection).guarantees


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_rounding_is_not_taken_for_another_problem(scale):
    rng = np.random.default_rng(0)
    G = rng.normal(size=(40, 6)) * scale
    G[20:] = G[:20] + 1e-4 * scale * rng.normal(size=(20, 6))  # weights cancel
    for nonneg in (True, False):
        problem = GradientMatching(G, rng.normal(size=6) * scale, nonneg=nonneg)
        for method in ("omp", "greedy", "random"):
            assert "another problem" not in diagnose(problem, 5, solve(problem, 5, method)).guarantee_note


@pytest.mark.parametrize("nonneg", [True, False])
@FEW
@given(data=st.data())
def test_what_kkt_calls_optimal_is(nonneg, data):
    """f(S) = f(V): against the values of all subsets, for runs that stop short and for sets that nobody selected."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    n, d = data.draw(st.integers(2, 8)), data.draw(st.integers(1, 4))
    problem = GradientMatching(rng.normal(size=(n, d)), rng.normal(size=d), nonneg=nonneg, ridge=1e-3)
    most = GradientMatching(problem._rows.blocks[0], problem._vector, nonneg=nonneg, ridge=1e-3).value(np.arange(n))
    selection = solve(problem, n, data.draw(st.sampled_from(METHODS)))
    sets = [selection, rng.permutation(n)[: data.draw(st.integers(0, n))]]
    for S in sets:
        optimal = diagnose(problem, n, S, n_random=0, n_pairs=0, exact_limit=0).problem["optimal"]
        if optimal:
            assert problem.value(S) >= most * (1 - 1e-9)


@pytest.mark.parametrize("nonneg", [True, False])
def test_a_run_that_ends_for_want_of_gain_is_optimal(nonneg):
    rng = np.random.default_rng(4)
    G = rng.normal(size=(30, 5))
    problem = GradientMatching(G, np.abs(G[:5]).sum(axis=0) if nonneg else G[:3].sum(axis=0), nonneg=nonneg)
    selection = solve(problem, 20)
    assert len(selection) < 20 and selection.status == "no_gain"
    diagnosis = diagnose(problem, 20, selection)
    assert [g.value for g in diagnosis.guarantees] == [1.0] and "optimal over all" in diagnosis.guarantee_note
    assert not any("Only" in flag for flag in diagnosis.flags)
    # Stopped early it is neither.
    short = diagnose(problem, 20, solve(problem, 20, callback=lambda progress: progress.n_selected == 2))
    assert short.guarantees == () and any("Only 2 of the 20" in flag for flag in short.flags)


def test_short_residual_random_runs_keep_their_guarantee(numbers):
    config = {"rule": "normalized", "pick": "random"}
    full, _ = _guarantees(numbers[0], config, {}, k=2, n_groups=2)
    short, _ = _guarantees(numbers[0], config, {}, k=1, rank=2, n_groups=2, status="no_gain")
    assert short == full and short[0].in_expectation
    for status in ("stopped", "tolerance", None):
        assert _guarantees(numbers[0], config, {}, k=1, rank=2, n_groups=2, status=status)[0] == ()
    assert _guarantees(numbers[0], {"rule": "normalized"}, {}, k=1, rank=2, n_groups=2, status="no_gain")[0] == ()


def test_the_guarantee_is_against_the_candidates():
    p = random_problem(5, n=12)
    problem = GradientMatching(p.G, p.target, ridge=0.5)
    mask = np.arange(12) % 3 != 0
    selection = solve(problem, 3, candidates=mask)
    inside = GradientMatching(p.G[mask], p.target, ridge=0.5)
    (mine,) = diagnose(problem, 3, selection).guarantees
    (expected,) = diagnose(inside, 3, solve(inside, 3)).guarantees
    assert mine == expected
    wider = diagnose(problem, 3, selection, candidates=np.ones(12, bool))
    assert wider.guarantees == () and "candidates" in wider.guarantee_note
    other = mask.copy()
    other[[0, np.setdiff1d(np.flatnonzero(mask), selection.indices)[0]]] = True, False  # as many, but others
    assert diagnose(problem, 3, selection, candidates=other).guarantees == ()
    unknown = diagnose(problem, 3, replace(selection))
    assert unknown.guarantees == () and "candidates" in unknown.guarantee_note
    assert diagnose(problem, 3, replace(selection), candidates=mask).guarantees == (mine,)


@pytest.mark.parametrize("method", ["exact", "best"])
@pytest.mark.parametrize("seed", range(3))
def test_unproven_exact_search_keeps_what_it_starts_from(method, seed):
    p = random_problem(seed, n=9)
    problem, matroid = GradientMatching(p.G, p.target, ridge=1.0), PartitionMatroid(p.groups, {0: 1, 1: 1, 2: 2})
    selection = solve(problem, matroid, method, time_limit=0.0)
    start = solve(problem, matroid, "omp-normalized")
    assert selection.objective >= start.objective * (1 - 1e-12)
    for guarantee in diagnose(problem, matroid, selection).guarantees:
        assert selection.objective >= guarantee.value * best_of_all(problem, matroid) * (1 - 1e-9)


def test_epsilon_form_of_the_literature_is_implied():
    """1 - exp(-(1 - epsilon) gamma) >= 1 - exp(-gamma) - epsilon for gamma <= 1."""
    gamma, epsilon = np.meshgrid(np.linspace(0, 1, 101), np.linspace(0, 1, 101))
    assert (1 - np.exp(-(1 - epsilon) * gamma) >= 1 - np.exp(-gamma) - epsilon - 1e-15).all()
