"""Refits, values of subsets, submodularity ratios and eigenvalue bounds, against SciPy, the core and enumeration."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from small_instances import FEW, assert_best, conditioned, spectrum_of
from strategies import EXAMPLES, problems, seeds

from pysubmod import GradientMatching
from pysubmod._curvature import enumerated_ratios, ratio_at, sampled_ratios, subset_values
from pysubmod._quadratic import Quadratic
from pysubmod._refit import refit
from pysubmod._spectrum import Spectrum


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
