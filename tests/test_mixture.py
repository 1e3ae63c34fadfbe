"""Task mixtures against enumerated active sets, a general solver, linear programming and formulas."""

from __future__ import annotations

import itertools
import math
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pysubmod import omp_partition
from pysubmod._capped_simplex import duality_gap, minimise, project
from pysubmod._energy import Energy
from pysubmod.datasets import load_demo
from pysubmod.mixture import mixture_path, task_mixture
from pysubmod.similarity import gradient_similarity


def energy(p, J, h):
    return -h @ p + 0.5 * p @ J @ p


def enumerated(J, h, lower, upper):
    """The least energy, by trying every choice of entries at their lower bound, at their upper one and free."""
    n, best, where = len(h), math.inf, None
    for kinds in itertools.product((-1, 0, 1), repeat=n):
        kinds = np.array(kinds)
        p = np.where(kinds < 0, lower, np.where(kinds > 0, upper, 0.0))
        free = kinds == 0
        k = int(free.sum())
        if k:
            system = np.zeros((k + 1, k + 1))
            system[:k, :k] = J[np.ix_(free, free)]
            system[:k, k] = system[k, :k] = 1.0
            sides = np.append(h[free] - J[np.ix_(free, ~free)] @ p[~free], 1.0 - p[~free].sum())
            p[free] = np.linalg.lstsq(system, sides, rcond=None)[0][:k]
        if abs(p.sum() - 1) > 1e-9 or (p < lower - 1e-12).any() or (p > upper + 1e-12).any():
            continue
        if energy(p, J, h) < best:
            best, where = energy(p, J, h), p
    return best, where


def instance(seed, n=None, rank=None, bounds=True):
    """A similarity, beta, lam and bounds that some mixture meets."""
    rng = np.random.default_rng(seed)
    n = n or int(rng.integers(2, 6))
    M = rng.standard_normal((n, rank or n + 2)) + rng.choice([0.0, 1.0])
    S = M @ M.T / M.shape[1]
    lower, upper = np.zeros(n), np.ones(n)
    if bounds and rng.random() < 0.7:
        lower, upper = rng.random(n) * 0.8 / n, 1.0 / n + rng.random(n) * rng.choice([0.2, 1.0])
        upper = np.minimum(upper, 1.0)
    return S, float(rng.choice([0.0, 0.05, 0.3, 1.0, 3.0]) / n), float(rng.choice([0.3, 1.0, 4.0])), lower, upper


@pytest.mark.parametrize("block", range(10))
def test_equals_enumeration(block):
    """200 random instances to 1e-8, in energy and in mixture."""
    for seed in range(20 * block, 20 * block + 20):
        S, beta, lam, lower, upper = instance(seed)
        found = task_mixture(S, beta=beta, lam=lam, lower=lower, upper=upper)
        J, h = lam * S, beta * S.sum(axis=1)
        best, where = enumerated(J, h, lower, upper)
        p = found.probabilities
        assert (p >= lower).all() and (p <= upper).all()
        assert abs(p.sum() - 1) < 1e-14
        assert energy(p, J, h) == pytest.approx(best, abs=1e-12 * max(1.0, found.scale))
        np.testing.assert_allclose(p, where, atol=1e-8)
        assert found.energy == pytest.approx(best, abs=1e-12 * max(1.0, found.scale))
        assert found.gap <= 1e-9
        assert found.status == "optimal"


@pytest.mark.parametrize("seed", range(40))
def test_singular_equals_enumeration(seed):
    S, beta, lam, lower, upper = instance(seed, n=5, rank=2)
    found = task_mixture(S, beta=beta, lam=lam, lower=lower, upper=upper)
    J, h = lam * S, beta * S.sum(axis=1)
    assert energy(found.probabilities, J, h) == pytest.approx(enumerated(J, h, lower, upper)[0], abs=1e-11)
    assert found.gap <= 1e-9


def general(J, h, lower, upper):
    """The minimiser that Clarabel finds, an interior point method for conic problems."""
    clarabel, sparse = pytest.importorskip("clarabel"), pytest.importorskip("scipy.sparse")
    n = len(h)
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = 1e-14
    # Without these it stops at "almost solved", 4e-7 off, in a few of 200.
    settings.iterative_refinement_abstol = settings.iterative_refinement_reltol = 1e-15
    settings.iterative_refinement_max_iter = 50
    rows = sparse.vstack([np.ones((1, n)), -sparse.eye(n), sparse.eye(n)], format="csc")
    sides = np.concatenate([[1.0], -lower, upper])
    cones = [clarabel.ZeroConeT(1), clarabel.NonnegativeConeT(2 * n)]
    found = clarabel.DefaultSolver(sparse.csc_matrix(np.triu(J)), -h, rows, sides, cones, settings).solve()
    assert found.status == clarabel.SolverStatus.Solved
    return np.array(found.x)


@pytest.mark.parametrize("block", range(10))
def test_equals_a_general_solver(block):
    """200 random instances to 1e-8, in energy, and in mixture where it is unique; a third of them are singular."""
    unique = 0
    for seed in range(20 * block, 20 * block + 20):
        n = 5 + seed % 36
        S, beta, lam, lower, upper = instance(5000 + seed, n=n, rank=n // 3 + 1 if seed % 3 == 0 else None)
        J, h = lam * S, beta * S.sum(axis=1)
        found = task_mixture(S, beta=beta, lam=lam, lower=lower, upper=upper)
        other = general(J, h, lower, upper)
        assert energy(found.probabilities, J, h) == pytest.approx(energy(other, J, h), abs=1e-8)
        assert found.gap <= 1e-9 * found.scale
        if found.unique:
            unique += 1
            np.testing.assert_allclose(found.probabilities, other, atol=1e-8)
    assert unique >= 10


@pytest.mark.parametrize("seed", range(20))
def test_never_above_a_general_solver(seed):
    optimize = pytest.importorskip("scipy.optimize")
    S, beta, lam, lower, upper = instance(1000 + seed, n=25)
    J, h = lam * S, beta * S.sum(axis=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other = optimize.minimize(
            energy, project(np.full(25, 0.04), lower, upper), (J, h), "SLSQP", lambda p, J, h: J @ p - h,
            bounds=list(zip(lower, upper, strict=True)), options={"maxiter": 500, "ftol": 1e-13},
            constraints={"type": "eq", "fun": lambda p: p.sum() - 1, "jac": lambda p: np.ones(25)},
        )  # fmt: skip
    found = task_mixture(S, beta=beta, lam=lam, lower=lower, upper=upper)
    # SLSQP stops early, and may leave the constraints by a little.
    assert energy(found.probabilities, J, h) <= other.fun + 1e-9
    assert other.fun - 1e-6 <= energy(found.probabilities, J, h)


@pytest.mark.parametrize("seed", range(30))
def test_gap_is_the_one_of_a_linear_programme(seed):
    optimize = pytest.importorskip("scipy.optimize")
    S, beta, lam, lower, upper = instance(2000 + seed, n=12)
    model = Energy.checked(S, beta, lam, None, lower, upper, None, False)
    rng = np.random.default_rng(seed)
    p = project(rng.random(12), lower, upper)
    g = lam * S @ p - beta * S.sum(axis=1)
    least = optimize.linprog(g, A_eq=np.ones((1, 12)), b_eq=[1], bounds=list(zip(lower, upper, strict=True))).fun
    assert duality_gap(g, p, lower, upper) == pytest.approx(g @ p - least, abs=1e-9)
    best = model.solve()
    # It holds for any p: energies differ by no more.
    assert energy(p, lam * S, beta * S.sum(axis=1)) - best.energy <= g @ p - least + 1e-12


def test_closed_form_is_the_answer_whenever_it_is_feasible():
    feasible = 0
    for seed in range(200):
        S, beta, lam, _, _ = instance(seed, n=6, rank=9)
        J, h, one = lam * S, beta * S.sum(axis=1), np.ones(6)
        nu = (one @ np.linalg.solve(J, h) - 1) / (one @ np.linalg.solve(J, one))
        formula = np.linalg.solve(J, h - nu * one)
        found = task_mixture(S, beta=beta, lam=lam)
        if formula.min() < -1e-9:
            assert found.closed_form is None
        elif formula.min() > 1e-9:
            feasible += 1
            np.testing.assert_allclose(found.closed_form, formula, atol=1e-9)
            # And what the solver finds without knowing of it.
            model = Energy.checked(S, beta, lam, None, None, None, None, False)
            A, b = model._centred
            solved = minimise(A / model.scale, b / model.scale, np.zeros(6), np.ones(6))
            np.testing.assert_allclose(solved, formula, atol=1e-8)
            assert found.unique
            assert (found.active == 0).all()
    assert feasible > 10


def test_closed_form_interpolates_between_uniform_and_minimum_variance():
    rng = np.random.default_rng(3)
    S = 0.1 * np.eye(5) + np.outer(*2 * [0.3 + 0.1 * rng.random(5)])
    found = task_mixture(S, beta=0.08, lam=1.0)
    variance = np.linalg.solve(S, np.ones(5))
    variance /= variance.sum()
    assert found.uniform_weight == pytest.approx(0.4)
    np.testing.assert_allclose(found.probabilities, 0.4 / 5 + 0.6 * variance, atol=1e-12)
    np.testing.assert_allclose(found.minimum_variance, variance, atol=1e-12)
    assert found.distance_to_uniform == pytest.approx(0.6 * np.abs(variance - 0.2).sum() / 2, rel=1e-9)
    assert found.distance_to_minimum_variance == pytest.approx(0.4 * np.abs(variance - 0.2).sum() / 2, rel=1e-9)
    np.testing.assert_allclose(task_mixture(S, beta=0.2, lam=1.0).probabilities, 0.2, atol=1e-12)
    assert task_mixture(S, beta=1, lam=0).uniform_weight is None
    assert task_mixture(S, beta=1, lam=1, unary=np.ones(5)).uniform_weight is None


@given(st.integers(0, 10**6), st.floats(-1e3, 1e3), st.floats(-1e3, 1e3))
def test_constants_change_nothing(seed, constant, worth):
    S, beta, lam, lower, upper = instance(seed)
    options = {"beta": beta, "lam": lam, "lower": lower, "upper": upper}
    plain = task_mixture(S, **options)
    moved = task_mixture(S + constant, **options)
    np.testing.assert_allclose(moved.probabilities, plain.probabilities, atol=1e-7)
    assert moved.scale == pytest.approx(plain.scale, rel=1e-9)
    u = S.sum(axis=1)
    options["unary"] = u + worth
    np.testing.assert_allclose(task_mixture(S, **options).probabilities, plain.probabilities, atol=1e-7)


@given(st.integers(0, 10**6), st.integers(-12, 12))
def test_units_change_nothing(seed, power):
    """The gap is relative to the energy's own scale: 1e12 times the similarity, 1e12 times the gap at most."""
    S, beta, lam, lower, upper = instance(seed)
    plain = task_mixture(S, beta=beta, lam=lam, lower=lower, upper=upper)
    scaled = task_mixture(S * 10.0**power, beta=beta, lam=lam, lower=lower, upper=upper)
    np.testing.assert_allclose(scaled.probabilities, plain.probabilities, atol=1e-9)
    assert scaled.status == "optimal"
    assert scaled.scale == pytest.approx(plain.scale * 10.0**power, rel=1e-9)


@given(st.integers(0, 10**6))
def test_bounds_are_kept_and_tasks_are_alike(seed):
    S, beta, lam, lower, upper = instance(seed, n=int(seed % 17) + 2, rank=1 + seed % 5)
    found = task_mixture(S, beta=beta, lam=lam, lower=lower, upper=upper)
    p = found.probabilities
    assert (p >= lower).all() and (p <= upper).all()
    assert abs(p.sum() - 1) < 1e-13
    assert found.gap <= 1e-9 * max(found.scale, 1.0)
    assert ((found.active == -1) == (p <= lower)).all()
    order = np.random.default_rng(seed).permutation(len(S))
    other = task_mixture(S[np.ix_(order, order)], beta=beta, lam=lam, lower=lower[order], upper=upper[order])
    assert other.energy == pytest.approx(found.energy, abs=1e-11 * max(found.scale, 1.0))
    # Of several minimisers the even one, up to what the last digits of the energy tell.
    np.testing.assert_allclose(other.probabilities, p[order], atol=1e-5)


def test_tasks_that_are_the_same_share_alike():
    rng = np.random.default_rng(5)
    M = rng.random((3, 4))
    which = [0, 1, 1, 2, 2, 2]
    S = M[which] @ M[which].T
    found = task_mixture(S, beta=0.02, lam=1.0)
    single = task_mixture(M @ M.T, beta=0.02, lam=1.0, unary=S.sum(axis=1)[[0, 1, 3]])
    assert found.gap <= 1e-9
    assert not found.unique
    assert single.unique
    p = found.probabilities
    np.testing.assert_allclose([p[0], p[1:3].sum(), p[3:].sum()], single.probabilities, atol=1e-9)
    np.testing.assert_allclose(p[1], p[2], atol=1e-6)
    np.testing.assert_allclose(p[3:], p[3], atol=1e-6)
    assert "Others may be as good" in str(found)


def test_without_a_charge_the_worthiest_take_all():
    S = np.diag([1.0, 3.0, 2.0])
    assert task_mixture(S, beta=1, lam=0).probabilities.tolist() == [0, 1, 0]
    capped = task_mixture(S, beta=1, lam=0, upper=0.5, lower={0: 0.25})
    np.testing.assert_allclose(capped.probabilities, [0.25, 0.5, 0.25])
    assert capped.active.tolist() == [-1, 1, 0]
    assert capped.gap <= 1e-12
    even = task_mixture(S, beta=0, lam=0)
    np.testing.assert_allclose(even.probabilities, 1 / 3)
    assert not even.unique


def test_one_task_and_no_choice():
    only = task_mixture([[2.0]], beta=1, lam=1)
    assert only.probabilities.tolist() == [1.0]
    assert only.energy == -1.0
    fixed = task_mixture(np.eye(3), beta=1, lam=1, lower=[0.2, 0.3, 0.5], upper=[0.2, 0.3, 1.0])
    np.testing.assert_allclose(fixed.probabilities, [0.2, 0.3, 0.5], atol=1e-15)
    assert fixed.gap <= 1e-12
    np.testing.assert_allclose(task_mixture(np.ones((4, 4)), beta=1, lam=1).probabilities, 0.25)


@pytest.mark.parametrize("n", [30, 120])
def test_close_to_singular(n):
    """Nothing tells these bounds apart: the interior point method has the last word, and the certificate."""
    rng = np.random.default_rng(n)
    Q, _ = np.linalg.qr(rng.standard_normal((n, n)))
    S = (Q * np.geomspace(1.0, 1e-12, n)) @ Q.T
    for beta in (0.0, 0.3 / n, 2.0 / n):
        found = task_mixture((S + S.T) / 2, beta=beta, lam=1.0)
        assert found.status == "optimal"
        assert found.gap <= 1e-9
        assert abs(found.probabilities.sum() - 1) < 1e-13
        for _ in range(20):
            other = rng.dirichlet(np.ones(n))
            assert energy(other, S, beta * S.sum(axis=1)) >= found.energy - found.gap


@pytest.mark.parametrize("seed", range(5))
def test_interior_point_method_agrees(seed):
    from pysubmod._capped_simplex import _interior_point, _on_bounds

    S, beta, lam, lower, upper = instance(3000 + seed, n=30)
    J = lam * S / np.abs(S).max()
    h = beta * S.sum(axis=1) / np.abs(S).max()
    lower, upper = lower * 0.9, np.minimum(upper * 1.1, 1.0)
    inner = _on_bounds(J, h, lower, upper, _interior_point(J, h, lower, upper))
    np.testing.assert_allclose(inner, minimise(J, h, lower, upper), atol=1e-6)


def test_an_interior_point_that_is_none_is_not_taken(monkeypatch):
    monkeypatch.setattr(
        "pysubmod._capped_simplex._interior_point", lambda J, h, lower, upper: project(-h, lower, upper)
    )
    test_close_to_singular(120)


@given(st.integers(0, 10**6))
def test_start_does_not_matter(seed):
    """From any corner: entries leave both kinds of bounds."""
    S, beta, lam, lower, upper = instance(seed, n=2 + seed % 9)
    model = Energy.checked(S, beta, lam, None, lower, upper, None, False)
    J, h = (part / model.scale for part in model._centred)
    corner = project(1e6 * np.random.default_rng(seed).standard_normal(len(S)), lower, upper)
    found = minimise(J, h, lower, upper, corner)
    np.testing.assert_allclose(found, minimise(J, h, lower, upper), atol=1e-7)
    best = minimise(J, h, lower, upper)
    assert energy(found, J, h) == pytest.approx(energy(best, J, h), abs=1e-13)


def distances(n, seed=0):
    X = np.random.default_rng(seed).standard_normal((n, 3))
    return np.square(X[:, None] - X[None]).sum(axis=2)


def test_minus_a_squared_distance_is_fine_and_the_distance_is_not():
    D = distances(8)
    assert task_mixture(-D, beta=0.05, lam=1).status == "optimal"
    basis = np.linalg.svd(np.ones((1, 8)))[2][1:]
    least = np.linalg.eigvalsh(basis @ (2.0 * D) @ basis.T)[0]
    with pytest.raises(ValueError, match=r"similarity: .*not positive semidefinite") as caught:
        task_mixture(D, beta=0.05, lam=2)
    assert f"{least:.6g}" in str(caught.value)
    assert "on_indefinite='shift'" in str(caught.value)


def test_shift_is_the_least_and_is_reported():
    D = distances(6, 1)
    basis = np.linalg.svd(np.ones((1, 6)))[2][1:]
    least = np.linalg.eigvalsh(basis @ (2.0 * D) @ basis.T)[0]
    found = task_mixture(D, beta=0.05, lam=2, on_indefinite="shift")
    assert found.shift == pytest.approx(-least, rel=1e-9)
    assert found.uniform_weight is None
    J = 2.0 * D - least * np.eye(6)
    best, _ = enumerated(J, 0.05 * D.sum(axis=1), np.zeros(6), np.ones(6))
    assert found.energy == pytest.approx(best, abs=1e-9)
    assert "indefinite" in str(found)
    assert task_mixture(-D, beta=0.05, lam=2, on_indefinite="shift").shift == 0.0


@given(st.integers(0, 10**6))
def test_projection(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 9))
    lower = rng.random(n) / n * rng.integers(0, 2)
    upper = np.minimum(lower + rng.random(n) * 2, 1.0)
    v = rng.standard_normal(n) * rng.choice([1e-3, 1.0, 1e3])
    if lower.sum() > 1 or upper.sum() < 1:
        upper = np.ones(n)
        lower = np.zeros(n)
    x = project(v, lower, upper)
    low, high = v.min() - 2, v.max() + 2  # the level by bisection
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.clip(v - middle, lower, upper).sum() > 1 else (low, middle)
    np.testing.assert_allclose(x, np.clip(v - low, lower, upper), atol=1e-11 * max(1.0, np.abs(v).max()))
    assert abs(x.sum() - 1) < 1e-12


def test_path_is_made_of_mixtures():
    S, _, _, _, _ = instance(7, n=5)
    path = mixture_path(S, [1.0, 0.0, 0.05], labels=list("abcde"), upper=0.9)
    assert path.ratios.tolist() == [0.0, 0.05, 1.0]
    for ratio, row in zip(path.ratios, path.probabilities, strict=True):
        alone = task_mixture(7 * S, beta=2 * ratio, lam=2, upper=0.9)
        np.testing.assert_allclose(row, alone.probabilities, atol=1e-9)
    default = mixture_path(S)
    assert len(default) == 81
    np.testing.assert_allclose(default.probabilities[0], default.mixtures[0].minimum_variance, atol=1e-9)
    assert all(m.status == "optimal" for m in default.mixtures)
    assert "81 ratios" in repr(default)


def test_budgets_of_a_mixture():
    S = np.eye(3)
    found = task_mixture(S, beta=0.0, lam=1, labels=["a", "b", "c"])
    assert found.budgets(10) == {"a": 4, "b": 3, "c": 3}
    assert found.budgets(10, {"c": 9, "a": 2, "b": 9}) == {"a": 2, "b": 4, "c": 4}
    assert found.budgets(10, [1, 9, 9], method="webster") == {"a": 1, "b": 5, "c": 4}
    with pytest.raises(ValueError, match=r"sizes: expected one a task"):
        found.budgets(10, {"a": 2})
    with pytest.raises(ValueError, match=r"sizes: expected 3 integers"):
        found.budgets(10, [2, 3])
    with pytest.raises(ValueError, match=r"total: 10 is more than"):
        found.budgets(10, [2, 3, 4])
    with pytest.raises(TypeError, match=r"total"):
        found.budgets(2.5)


def test_one_pipeline():
    """From gradients to a selection that keeps the mixture's budgets."""
    data = load_demo()
    names, counts = np.unique(data.groups, return_counts=True)
    similarity = gradient_similarity(data.gradients, data.groups)
    found = task_mixture(similarity, beta=0.5, lam=8.0, labels=names.tolist(), upper=0.2)
    budgets = found.budgets(32, counts)
    assert sum(budgets.values()) == 32
    assert max(abs(budgets[name] - 32 * share) for name, share in found.to_dict().items()) < 1
    chosen = omp_partition(data.gradients, data.target, budgets, groups=data.groups)
    assert all(chosen.counts[name] <= budget for name, budget in budgets.items())
    assert len(chosen) > 20


def test_words():
    S, _, _, _, _ = instance(11, n=40)
    found = task_mixture(S, beta=0.01, lam=1)
    text = str(found)
    assert "A mixture of 40 tasks" in text
    assert "and 10 more tasks" in text
    assert "Optimal: energy" in text
    assert "minimum variance" in text
    assert "status='optimal'" in repr(found)
    assert found.to_dict() == dict(enumerate(found.probabilities.tolist()))
    assert len(found) == 40


def bad(match, kind=ValueError, similarity=None, **options):
    options = {"beta": 1.0, "lam": 1.0, **options}
    return pytest.param(np.eye(3) if similarity is None else similarity, options, kind, match, id=match[:30])


@pytest.mark.parametrize(
    ("similarity", "options", "kind", "match"),
    [
        bad(r"similarity: expected a square matrix", similarity=np.ones((2, 3))),
        bad(r"similarity: has no tasks", similarity=np.ones((0, 0))),
        bad(r"similarity: entry \[0, 1\] is NaN", similarity=[[1.0, np.nan], [np.nan, 1.0]]),
        bad(r"similarity: expected a symmetric matrix; entry \(0, 1\) is 2", similarity=[[1.0, 2.0], [1.0, 1.0]]),
        bad(r"similarity: expected real numbers", TypeError, similarity=[["a"]]),
        bad(r"similarity: its largest entry", similarity=[[1e200]]),
        bad(r"beta: expected a number that is at least 0", beta=-1.0),
        bad(r"lam: expected a number that is at least 0", lam=-1.0),
        bad(r"unary: expected shape \(3,\)", unary=[1.0]),
        bad(r"unary: entry 1 is NaN", unary=[1.0, np.nan, 0.0]),
        bad(r"lower: the lower bounds sum to 1.2", lower=0.4),
        bad(r"upper: the upper bounds sum to 0.9", upper=0.3),
        bad(r"upper: expected shares between 0 and 1, got 2 for task 1", upper=[1.0, 2.0, 1.0]),
        bad(r"lower: 0.5 is above upper, 0.4, for task 'b'", lower={"b": 0.5}, upper={"b": 0.4}, labels=list("abc")),
        bad(r"lower: there is no task 'x'", lower={"x": 0.5}, labels=list("abc")),
        bad(r"labels: 'a' comes twice", labels=list("aab")),
        bad(r"labels: expected shape \(3,\)", labels=list("ab")),
        bad(r"on_indefinite: expected one of 'raise', 'shift'", on_indefinite="ignore"),
    ],
)
def test_bad_arguments(similarity, options, kind, match):
    with pytest.raises(kind, match=match):
        task_mixture(similarity, **options)


def test_bad_ratios():
    with pytest.raises(ValueError, match=r"ratios\[1\]: expected a number that is at least 0"):
        mixture_path(np.eye(2), [1.0, -1.0])
    with pytest.raises(ValueError, match="ratios: expected at least one"):
        mixture_path(np.eye(2), [])


def test_pictures_show_the_shares():
    pytest.importorskip("matplotlib")
    S, _, _, _, _ = instance(11, n=6)
    found = task_mixture(S, beta=0.02, lam=1, labels=[f"task {i}" for i in range(6)], upper={"task 2": 0.1}, lower=0.02)
    figure = found.plot()
    left, right = figure.axes[:2]
    np.testing.assert_array_equal(left.images[0].get_array(), found.similarity)
    np.testing.assert_allclose([bar.get_width() for bar in right.patches], 100 * found.probabilities)
    assert left.get_ylim() == right.get_ylim()  # the same rows
    assert [text.get_text() for text in right.get_yticklabels()] == list(found.labels)
    figure.draw_without_rendering()
    for n in (1, 2, 50):
        task_mixture(np.eye(n), beta=0, lam=1).plot().draw_without_rendering()


def test_picture_of_a_path():
    pytest.importorskip("matplotlib")
    S, _, _, _, _ = instance(12, n=14)
    path = mixture_path(S)
    axes = path.plot().axes[0]
    assert len(axes.collections) == 10  # nine tasks, and the others together
    assert "5 others" in [text.get_text() for text in axes.texts] or len(axes.texts) > 1
    for ratios in ([0.0], [0.1], [0.0, 0.1], np.linspace(0, 1, 30)):
        mixture_path(S[:3, :3], ratios).plot().draw_without_rendering()
    mixture_path(S[:3, :3], unary=np.arange(3.0)).plot().draw_without_rendering()


# ---- what rounding, storage and size do ------------------------------------------------------------------------------


def test_bfloat16_is_read_as_numbers():
    torch = pytest.importorskip("torch")
    S = np.array([[1.0, 0.5, 0.25], [0.5, 2.0, 0.0], [0.25, 0.0, 1.5]])
    vectors = {"unary": [1.0, 0.5, 2.0], "lower": [0.125, 0.25, 0.0], "upper": [0.5, 0.5, 0.75]}
    want = task_mixture(S, beta=0.5, lam=2.0, **vectors)
    half = {name: torch.tensor(value, dtype=torch.bfloat16) for name, value in vectors.items()}
    got = task_mixture(torch.tensor(S, dtype=torch.bfloat16), beta=0.5, lam=torch.tensor(2.0).bfloat16(), **half)
    assert (got.probabilities == want.probabilities).all()
    one = torch.tensor(0.25, dtype=torch.bfloat16)
    assert (task_mixture(S, beta=0.0, lam=1.0, lower=one).lower == 0.25).all()
    assert task_mixture(S, beta=0.0, lam=1.0, upper={1: one}).upper.tolist() == [1.0, 0.25, 1.0]
    assert mixture_path(S, torch.tensor([0.5], dtype=torch.bfloat16)).ratios.tolist() == [0.5]


def test_arguments_are_copied():
    S, unary, lower, upper = np.eye(3), np.ones(3), np.zeros(3), np.ones(3)
    found = task_mixture(S, beta=0.1, lam=1, unary=unary, lower=lower, upper=upper)
    for own, kept in ((S, found.similarity), (unary, found.unary), (lower, found.lower), (upper, found.upper)):
        assert not np.shares_memory(own, kept)


def test_formula_holds_for_minimum_variance_without_bounds():
    S = np.array([[1.0, 1.5, 0.1], [1.5, 4.0, 0.2], [0.1, 0.2, 1.0]])
    found = task_mixture(S, beta=0.3, lam=1)
    t = found.uniform_weight
    unbounded = np.linalg.solve(S, np.ones(3))
    unbounded /= unbounded.sum()
    assert unbounded.min() < 0 and t == pytest.approx(0.9)
    np.testing.assert_allclose(found.closed_form, t / 3 + (1 - t) * unbounded)
    assert np.abs(found.closed_form - (t / 3 + (1 - t) * found.minimum_variance)).max() > 0.01
    assert "0.9 uniform + 0.1 minimum variance without bounds" in str(found)


def test_words_name_the_true_reason():
    assert "similarity is singular" in str(task_mixture(np.ones((3, 3)), beta=0.1, lam=1))
    assert "similarity is singular" in str(task_mixture(np.kron(np.eye(2), np.ones((2, 2))), beta=0.1, lam=1))
    assert "bounds stand in the way" in str(task_mixture(np.diag([1.0, 2.0, 9.0]), beta=0, lam=1, lower=0.3))
    one = str(task_mixture([[2.0]], beta=0.1, lam=1))
    assert "closed form" not in one and "bounds" not in one


def test_rounding_to_float32_is_told_from_a_divergence():
    X = np.random.default_rng(0).standard_normal((6, 2)).astype("f4")
    with pytest.raises(ValueError, match="Rounding explains as much") as error:
        task_mixture(X @ X.T, beta=0.1, lam=1)
    assert "divergence" not in str(error.value)
    assert 0 < task_mixture(X @ X.T, beta=0.1, lam=1, on_indefinite="shift").shift < 1e-6
    with pytest.raises(ValueError, match="Is it a divergence"):
        task_mixture(-np.eye(3), beta=0.1, lam=1)


@pytest.mark.parametrize("S", [[[0, 0.3], [0.3, 0]], -np.eye(3)])
def test_shift_that_takes_the_similarity_away(S):
    found = task_mixture(S, beta=0.1, lam=1, on_indefinite="shift")
    assert found.status == "optimal" and found.scale >= found.shift > 0
    np.testing.assert_allclose(found.probabilities, 1 / len(found), atol=1e-9)
    str(found)


@pytest.mark.parametrize("size", [1e-30, 0.1, 1e20])
@pytest.mark.parametrize("n", [1, 3, 7, 50])
def test_constant_similarity(n, size):
    found = task_mixture(np.full((n, n), size), beta=0.1, lam=1)
    assert found.status == "optimal"
    assert found.unique == (n == 1)
    np.testing.assert_allclose(found.probabilities, 1 / n, rtol=1e-12)


@pytest.mark.parametrize("seed", range(8))
def test_constant_but_for_rounding(seed):
    rng = np.random.default_rng(seed)
    S = rng.random() * (1 + np.finfo(float).eps * rng.integers(-1, 2, (40, 40)))
    assert task_mixture(np.triu(S) + np.triu(S, 1).T, beta=0, lam=1).status == "optimal"


def test_sizes_that_would_overflow():
    with pytest.raises(ValueError, match="lam: 1e\\+250 times the largest entry of similarity"):
        task_mixture(np.eye(3) * 1e90, beta=0.1, lam=1e250)
    with pytest.raises(ValueError, match="beta: 1e\\+250 times the largest entry of unary"):
        task_mixture(np.eye(3), beta=1e250, lam=1)
    with pytest.raises(ValueError, match="ratios: 1e\\+200 times"):
        mixture_path(np.eye(3), [1.0, 1e200])
    found = task_mixture(np.diag([1.0, 2.0]) * 1e90, beta=0, lam=1e59)
    np.testing.assert_allclose(found.probabilities, [2 / 3, 1 / 3])


def test_a_path_keeps_one_matrix():
    path = mixture_path(np.diag([1.0, 2.0, 3.0]), [0.0, 0.1, 0.2])
    str(path.mixtures[1])
    matrices = {
        id(value) for m in path.mixtures for value in {**vars(m), **vars(m._model)}.values() if np.ndim(value) == 2
    }
    assert len(matrices) == 1
    assert not any(
        isinstance(value, tuple) and np.ndim(value[0]) == 2 for m in path.mixtures for value in vars(m._model).values()
    )


def test_bad_budgets_and_ratios():
    found = task_mixture(np.eye(3), beta=0.1, lam=1)
    with pytest.raises(TypeError, match=r"sizes\[1\]: expected an integer, got \[1\]"):
        found.budgets(10, [5, [1], 5])
    with pytest.raises(ValueError, match="sizes: expected 3 integers"):
        found.budgets(10, [5, 5])
    with pytest.raises(TypeError, match="sizes: expected a mapping or a sequence"):
        found.budgets(10, 5)
    with pytest.raises(TypeError, match="unexpected keyword argument 'mode'"):
        found.budgets(10, mode="balanced")
    with pytest.raises(TypeError, match=r"ratios: expected a sequence of numbers, .* got float"):
        mixture_path(np.eye(3), 0.5)
    with pytest.raises(ValueError, match=r"got 1\.000000000001 for task"):
        task_mixture(np.eye(3), beta=0.1, lam=1, upper=1 + 1e-12)


def test_budgets_of_a_tensor_of_sizes():
    torch = pytest.importorskip("torch")
    found = task_mixture(np.eye(3), beta=0.1, lam=1)
    assert found.budgets(10, torch.tensor([50, 50, 2])) == {0: 4, 1: 4, 2: 2}
    with pytest.raises(TypeError, match="expected an integer"):
        found.budgets(10, torch.tensor([50.0, 50.0, 2.0], dtype=torch.bfloat16))
