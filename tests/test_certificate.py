"""Certificates: every upper bound is one, by enumeration; and what a certificate says is true."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math

import check_bounds
import numpy as np
import pytest
from hypothesis import given, settings
from oracles import best_value, units_of_rows
from strategies import EXAMPLES, random_problem, seeds

import pysubmod
from pysubmod import _nodes, _proof, _relaxation
from pysubmod.certificate import Certificate, _above, _below

GRADIENTS = pysubmod.datasets.load_demo()


def problem_of(p):
    """The GradientMatching and the PartitionMatroid of a test problem."""
    problem = pysubmod.GradientMatching(p.G, p.target, ridge=p.ridge, nonneg=p.nonneg)
    return problem, pysubmod.PartitionMatroid(p.groups, dict(enumerate(p.budgets.tolist())))


def optimum(p):
    """The best objective and one support that attains it, by enumeration."""
    problem, _ = problem_of(p)
    C, c = check_bounds.exact_terms(problem, p.G, p.target)
    return check_bounds.brute_force(C, c, p.groups, p.budgets, p.nonneg)


# ---- bounds ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nonneg", [True, False])
def test_enumeration_finds_what_scipy_finds(nonneg):
    """The oracle of this file, against SciPy's refits of every feasible support."""
    for seed in range(10):
        p = random_problem(seed, n=6, n_groups=2, k=2, shared=1.0, nonneg=nonneg, ridge=0.1)
        units = units_of_rows(p.G, p.target, p.ridge)
        supports = [[i for i in range(6) if bits >> i & 1] for bits in range(64)]
        fits = [S for S in supports if (np.bincount(p.groups[S], minlength=2) <= 2).all()]
        want = max(best_value(units, S, nonneg)[0] for S in fits)
        assert units.value(optimum(p)[0]) == pytest.approx(want, rel=1e-12)


@given(seeds)
@settings(max_examples=max(60, EXAMPLES // 2))
def test_every_bound_holds(seed):
    """Random problems of every awkward kind, all levels, and the formulas at random w0, D and prices."""
    record = check_bounds.Record()
    check_bounds.check(seed, record)
    assert record.violations == 0


def test_the_check_notices_violations(monkeypatch, capsys):
    """A bound that is too low by one part in 10^9 is counted."""
    record = check_bounds.Record()
    instance = next(i for i, _ in map(check_bounds.random_instance, range(9)) if i.optimum > 0)
    record.add(instance, "right", instance.optimum, True)
    assert record.violations == 0
    record.add(instance, "low", instance.optimum * (1 - 1e-9), True)
    record.add(instance, "false", math.inf, False)
    record.add(instance, "nan", math.nan, True)
    assert record.violations == 3
    assert "VIOLATED: low" in capsys.readouterr().out


@pytest.mark.parametrize("seed", [12, 57, 150, 349, 444, 569, 974])
def test_corners_next_to_singular(seed):
    """Huge weights, near-singular C - D, nodes that lose all their covers: found by a search, kept."""
    record = check_bounds.Record()
    check_bounds.check(seed, record)
    assert record.violations == 0


def test_a_lopsided_D_makes_no_bound():
    """A factorisation reads one triangle of D and the products both: R - D must be positive semidefinite in both."""
    two = np.zeros(2, np.int64)
    node, state = _nodes.root(np.eye(2), np.ones(2), np.zeros(2), two, np.array([2]), False, np.ones(2), np.ones(1))
    assert _relaxation.bound(node, state) is not None
    lopsided = np.array([[0.5, 10.0], [0.0, 0.5]])
    node = dataclasses.replace(node, cluster=two, covers=((np.array([[0], [1]]), np.zeros(1, np.int64)),))
    assert _relaxation.bound(node, _relaxation.State(state.w, lopsided, state.price)) is None


@pytest.mark.parametrize("nonneg", [True, False])
def test_proofs_of_optimality(nonneg):
    """Gap 0 on enumerable problems: proved, equal to the optimum, and a worse selection is not proved."""
    proved = 0
    for seed in range(10):
        p = random_problem(seed, n=9, d=6, n_groups=2, k=2, ridge=0.3, nonneg=nonneg)
        problem, matroid = problem_of(p)
        best, support = optimum(p)
        found = pysubmod.certify(problem, matroid, support, gap=0.0)
        proved += found.proven_optimal
        assert found.upper >= best * (1 - 1e-12)
        if found.proven_optimal:
            assert found.objective == pytest.approx(best, rel=1e-9)
        worse = pysubmod.certify(problem, matroid, support[1:], gap=0.0)
        if problem.value(support[1:]) < best * (1 - 1e-8):
            assert not worse.proven_optimal
            assert worse.ratio <= problem.value(support[1:]) / best * (1 + 1e-9)
    assert proved == 10


@pytest.mark.parametrize("nonneg", [True, False])
@pytest.mark.parametrize("gram", [True, False])
def test_orthogonal_rows_leave_no_gap(nonneg, gram):
    """K diagonal: normalised OMP is optimal, and one shot at its weights proves it."""
    rng = np.random.default_rng(0)
    norms = 10.0 ** rng.uniform(-2, 2, 12)
    G, t = np.diag(norms), rng.uniform(0.5, 2, 12)
    make = pysubmod.GradientMatching
    problem = make.from_gram(G @ G, G @ t, 0.1, nonneg) if gram else make(G, t, 0.1, nonneg)
    matroid = pysubmod.PartitionMatroid(np.arange(12) % 3, {0: 2, 1: 2, 2: 1})
    selection = pysubmod.solve(problem, matroid, "omp-normalized")
    found = pysubmod.certify(problem, matroid, selection, gap=0.0, method="one-shot")
    assert found.method == "one-shot"
    assert found.proven_optimal
    assert found.gap < 1e-11


@pytest.mark.parametrize("gram", [True, False])
def test_no_alignment_means_that_nothing_is_optimal(gram):
    """c <= 0 with w >= 0: OPT = UB = 0, and the empty selection is proved optimal."""
    G = np.abs(np.random.default_rng(1).normal(size=(6, 4)))
    make = pysubmod.GradientMatching
    problem = make.from_gram(G @ G.T, G @ -np.ones(4), 1e-3) if gram else make(G, -np.ones(4), 1e-3)
    for rows in ([], [0, 3]):
        found = pysubmod.certify(problem, 3, np.array(rows, np.int64))
        assert (found.objective, found.upper, found.ratio, found.gap) == (0.0, 0.0, 1.0, 0.0)
        assert found.proven_optimal
        assert found.sentence == "Optimal: no selection improves on the empty one."


@pytest.mark.parametrize("nonneg", [True, False])
def test_the_matroid_is_what_it_says(nonneg):
    """A budget of the whole group, of 0, one group for a cardinality, renamed groups: the same bounds."""
    p = random_problem(4, n=8, n_groups=1, k=3, ridge=0.2, nonneg=nonneg)
    problem, matroid = problem_of(p)
    selection = pysubmod.solve(problem, 3, "greedy")
    plain = pysubmod.certify(problem, 3, selection, gap=0.0)
    assert plain.upper == pysubmod.certify(problem, matroid, selection, gap=0.0).upper
    named = pysubmod.PartitionMatroid(["a"] * 8, {"a": 3})
    assert plain.upper == pysubmod.certify(problem, named, selection, gap=0.0).upper
    everything = pysubmod.certify(problem, 8, np.arange(8), gap=0.0)
    assert everything.proven_optimal
    assert everything.method in ("all rows", "one-shot")
    halves = np.arange(8) // 4
    excluded = pysubmod.PartitionMatroid(halves, {0: 2, 1: 0})
    alone = dataclasses.replace(p, G=p.G[:4], groups=p.groups[:4], budgets=np.array([2]))
    best, rows = optimum(alone)
    found = pysubmod.certify(problem, excluded, rows, gap=0.0)
    assert found.proven_optimal
    assert found.upper == pytest.approx(best, rel=1e-8)
    with pytest.raises(ValueError, match="selection"):
        pysubmod.certify(problem, excluded, [5])


def test_masks_are_kept():
    """Only rows in the mask, and those of the selection, count."""
    p = random_problem(9, n=9, n_groups=1, k=2, ridge=0.1)
    problem, _ = problem_of(p)
    mask = np.arange(9) < 5
    selection = pysubmod.solve(problem, 2, "greedy", candidates=mask)
    by_mask = selection.certify(gap=0.0)
    part = dataclasses.replace(p, G=p.G[:5], groups=p.groups[:5], budgets=np.array([2]))
    best, _ = optimum(part)
    assert by_mask.upper == pytest.approx(best, rel=1e-8)
    assert by_mask.upper <= pysubmod.certify(problem, 2, selection, gap=0.0).upper
    assert by_mask.upper == pysubmod.certify(problem, 2, selection, gap=0.0, candidates=mask).upper


# ---- large and special problems --------------------------------------------------------------------------------------


@pytest.mark.parametrize("nonneg", [True, False])
def test_without_the_matrix_the_bound_is_the_same(nonneg, monkeypatch):
    """n > 4000, d = 6: D = ridge I is used without C; the dense formula with the same D and w0 agrees."""
    rng = np.random.default_rng(5)
    n = _proof.MOST_DENSE + 200
    G = rng.normal(size=(n, 6))
    problem = pysubmod.GradientMatching(G, rng.normal(size=6), ridge=5.0, nonneg=nonneg)
    matroid = pysubmod.PartitionMatroid(np.arange(n) % 4, [2, 2, 2, 2])
    selection = pysubmod.solve(problem, matroid, "omp-normalized")
    one_shot = pysubmod.certify(problem, matroid, selection, method="one-shot", gap=0.0)
    C = G @ G.T + 5.0 * np.eye(n)
    w = selection.sample_weight(n)
    q = G @ problem._vector - (C @ w - 5.0 * w)
    a = np.square(np.maximum(q, 0.0) if nonneg else q) / 10.0
    largest = sum(np.sort(a[np.arange(n) % 4 == g])[-2:].sum() for g in range(4))
    assert one_shot.bounds["one-shot"] == pytest.approx((w @ C @ w - 5.0 * w @ w) / 2 + largest, rel=1e-9)
    better = pysubmod.certify(problem, matroid, selection, gap=0.0)
    assert better.bounds["diagonal"] <= one_shot.upper * (1 + 1e-12)
    monkeypatch.setattr(pysubmod._quadratic.Quadratic, "matrix", property(lambda _: pytest.fail("C was made")))
    pysubmod.certify(problem, matroid, selection)


def test_levels_tighten():
    """On real gradients each level is at least as tight as the one before, and the answer says which it was."""
    mean_square = float(np.square(GRADIENTS.gradients.astype(float)).sum(axis=1).mean())
    rows = np.arange(len(GRADIENTS.groups)) % 30 < 6
    problem = pysubmod.GradientMatching(GRADIENTS.gradients[rows], GRADIENTS.target, ridge=0.01 * mean_square)
    matroid = pysubmod.PartitionMatroid(GRADIENTS.groups[rows], dict.fromkeys(GRADIENTS.domains, 1))
    selection = pysubmod.solve(problem, matroid, "greedy")
    levels = [selection.certify(method=name, gap=0.0, time_limit=1.0) for name in _proof.LEVELS[1:]]
    uppers = [found.upper for found in levels]
    assert uppers == sorted(uppers, reverse=True)
    assert uppers[2] < uppers[1] < uppers[0]
    assert [found.method for found in levels[1:]] == ["diagonal", "block"]
    early = selection.certify(gap=0.5)
    assert early.gap <= 0.5
    assert "block" not in early.bounds


def test_nothing_useful_is_said_so():
    """More rows than columns and no ridge: only the trivial bound is left."""
    rng = np.random.default_rng(2)
    problem = pysubmod.GradientMatching(rng.normal(size=(30, 3)), rng.normal(size=3))
    found = pysubmod.certify(problem, 2, [int(np.argmin(np.abs(problem.gains([]))))])
    assert not found.useful
    assert found.method == "target norm"
    assert "No useful certificate" in str(found)
    assert list(pysubmod.solve(problem, 2).certify().bounds) == ["target norm"]
    gram = pysubmod.GradientMatching.from_gram(np.ones((3, 3)), np.ones(3))
    nothing = pysubmod.solve(gram, 1).certify()
    assert nothing.upper == math.inf
    assert nothing.ratio == 0.0
    assert not nothing.useful
    assert "No useful certificate" in str(nothing)
    assert json.dumps(nothing.to_dict())


def test_zero_rows_and_zero_targets():
    G = np.zeros((5, 3))
    G[0] = [1.0, 2.0, 0.0]
    problem = pysubmod.GradientMatching(G, [1.0, 1.0, 1.0])
    assert pysubmod.solve(problem, 3).certify(gap=0.0).proven_optimal
    nothing = pysubmod.solve(pysubmod.GradientMatching(G, np.zeros(3)), 3).certify()
    assert nothing.proven_optimal
    assert nothing.objective == nothing.upper == 0.0
    across = pysubmod.solve(pysubmod.GradientMatching(G, [0.0, 0.0, 1.0]), 3).certify()
    assert across.objective == 0.0
    assert across.upper <= 1e-12  # c is 0 up to rounding


def test_what_the_first_pass_gives_up_is_not_forgotten(monkeypatch):
    """Covers that the root loses to a loose gap stay in the bound of every later pass."""
    monkeypatch.setattr(_nodes, "FIRST_COVERS", 5)
    monkeypatch.setattr(_nodes, "FIRST_BLOCK", 3)
    rng = np.random.default_rng(1000073)
    G = rng.normal(size=(8, 8)) + rng.normal(size=8)
    target = G.T @ rng.normal(size=8) + rng.normal(size=8)
    problem = pysubmod.GradientMatching(G, target, ridge=0.01 * float(np.square(G).sum() / 8), nonneg=False)
    values = {S: problem.value(list(S)) for S in itertools.combinations(range(8), 3)}
    best = max(values.values())
    for S in list(values)[::9]:
        for gap in np.linspace(0.005, 0.3, 12):
            found = pysubmod.certify(problem, 3, list(S), gap=float(gap), method="block", time_limit=2.0)
            assert found.upper >= best * (1 - 1e-12), (S, gap)


def test_a_gram_matrix_that_is_not_positive_semidefinite(monkeypatch):
    """Beyond the dense sizes nothing shows that K + ridge I - ridge I is one, so nothing is claimed."""
    monkeypatch.setattr(_proof, "MOST_DENSE", 3)
    K = np.eye(5)
    K[0, 1] = K[1, 0] = 1.05
    problem = pysubmod.GradientMatching.from_gram(K, [1.0, -1.0, 1.0, 0.0, 0.0], ridge=0.1, nonneg=False)
    found = pysubmod.certify(problem, 2, [0])
    assert found.upper >= problem.value([0, 1])


def test_an_unbounded_problem_has_no_bound():
    problem = pysubmod.GradientMatching.from_gram(np.diag([0.0, 1.0, 1.0]), np.ones(3))
    assert pysubmod.certify(problem, 2, [1]).upper == math.inf


def test_weights_that_cannot_be_squared():
    problem = pysubmod.GradientMatching(np.eye(3), np.ones(3))
    huge = dataclasses.replace(pysubmod.solve(problem, 1), weights=np.array([1e200]))
    with pytest.raises(ValueError, match="selection: a weight is too large"):
        pysubmod.certify(problem, 1, huge)


# ---- what it takes and says ------------------------------------------------------------------------------------------


def test_row_numbers_are_a_selection():
    p = random_problem(0, n=9, n_groups=2, k=2, ridge=0.1)
    problem, matroid = problem_of(p)
    selection = pysubmod.solve(problem, matroid)
    by_rows = pysubmod.certify(problem, matroid, selection.indices.tolist())
    assert by_rows.objective == pytest.approx(selection.objective, rel=1e-12)
    assert by_rows.objective <= selection.objective * (1 + 1e-15)
    assert by_rows.upper == pytest.approx(pysubmod.certify(problem, matroid, selection).upper, rel=1e-9)


def test_a_better_selection_is_shown():
    """Of a bad selection the search finds a better one, feasible and with the objective that it claims."""
    p = random_problem(1, n=9, d=5, n_groups=3, k=1, ridge=0.3)
    problem, matroid = problem_of(p)
    best, _ = optimum(p)
    draws = [pysubmod.solve(problem, matroid, "random", random_state=seed).indices for seed in range(30)]
    rows = next(rows for rows in draws if 0.6 * best < problem.value(rows) < 0.95 * best)
    found = pysubmod.certify(problem, matroid, rows, gap=0.0)
    assert found.better is not None
    assert matroid.is_feasible(found.better)
    assert problem.value(found.better) == pytest.approx(found.better_objective, rel=1e-9)
    assert found.better_objective == pytest.approx(best, rel=1e-9)
    assert "A better selection is known" in found.sentence


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"selection": [0, 1, 2, 3]}, ValueError, "selection: .*budget"),
        ({"selection": [0, 0]}, ValueError, "selection"),
        ({"selection": [9]}, ValueError, "selection"),
        ({"selection": [0.5]}, TypeError, "selection"),
        ({"selection": "abc"}, TypeError, "selection"),
        ({"gap": -0.1}, ValueError, "gap"),
        ({"gap": math.nan}, ValueError, "gap"),
        ({"gap": "small"}, TypeError, "gap"),
        ({"time_limit": -1}, ValueError, "time_limit"),
        ({"method": "best"}, ValueError, "method.*one-shot"),
        ({"candidates": np.ones(3, bool)}, ValueError, "candidates"),
        ({"problem": np.eye(3)}, TypeError, "problem"),
        ({"matroid": pysubmod.PartitionMatroid([0, 0], [1])}, ValueError, "matroid"),
        ({"matroid": 1.5}, ValueError, "budget"),
    ],
)
def test_errors_name_the_argument(changes, error, message):
    problem, _ = problem_of(random_problem(0, n=9))
    given = {"problem": problem, "matroid": 3, "selection": [0, 1]} | changes
    with pytest.raises(error, match=message):
        pysubmod.certify(given.pop("problem"), given.pop("matroid"), given.pop("selection"), **given)


def test_weights_must_be_the_problems():
    """A selection of a free problem is refused by one with w >= 0 if a weight is negative."""
    p = random_problem(3, n=9, d=5, nonneg=False)
    free, matroid = problem_of(p)
    selection = pysubmod.solve(free, matroid)
    assert (selection.weights < 0).any()
    problem, _ = problem_of(p.but(nonneg=True))
    with pytest.raises(ValueError, match="selection: its weights must be finite, and >= 0"):
        pysubmod.certify(problem, matroid, selection)


def test_a_loaded_selection_does_not_know_its_problem(tmp_path):
    problem, matroid = problem_of(random_problem(0, n=9, n_groups=2))
    selection = pysubmod.solve(problem, matroid)
    assert selection.certify(gap=0.0).upper > 0
    selection.save(tmp_path / "s.json")
    loaded = pysubmod.Selection.load(tmp_path / "s.json")
    with pytest.raises(ValueError, match=r"pysubmod\.certify\(problem, matroid, selection\)"):
        loaded.certify()
    assert pysubmod.certify(problem, matroid, loaded).objective > 0


def test_percent_is_rounded_up():
    for share, text in ((0.0, "0"), (0.05, "5"), (0.0501, "5.1"), (0.12341, "13"), (1.0, "100"), (0.000999, "0.1")):
        assert _above(100 * share, 2) == text
    for share in np.random.default_rng(0).uniform(1e-8, 1, 200):
        printed = float(_above(100 * float(share), 2)) / 100
        assert share <= printed * (1 + 1e-13)
        assert printed <= share * 1.11
        assert float(_below(float(share), 6)) <= share <= float(_above(float(share), 6))


def test_sentences_are_true():
    sure = Certificate(1.0, 1.25, 0.8, 0.2, False, True, "block", {"block": 1.25}, None, None, 3, 1, 0.5)
    assert sure.sentence == "Within 20 % of optimal (proved): objective 1, optimum at most 1.25."
    assert str(sure) == sure.sentence + " [block bound, 0.5 s]"
    better = dataclasses.replace(sure, better=np.array([1]), better_objective=1.1)
    assert better.sentence.endswith("A better selection is known: objective 1.1.")
    assert better.to_dict()["better"] == [1]
    assert "up to rounding" in dataclasses.replace(sure, proven_optimal=True).sentence
    assert dataclasses.replace(sure, useful=False).sentence.startswith("No useful certificate")
