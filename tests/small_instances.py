"""Problems small and well conditioned enough to enumerate all their subsets, and what enumeration says of them."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import assume, settings
from hypothesis import strategies as st
from oracles import best_value, units_of_rows
from strategies import EXAMPLES, seeds

from pysubmod import GradientMatching, PartitionMatroid
from pysubmod._curvature import subset_values
from pysubmod._quadratic import Quadratic
from pysubmod._spectrum import Spectrum

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


def assert_best(problem, p, members, value):
    """`value` is that of the core, and no less than SciPy finds (whose nnls may stop 1e-5 short of the optimum)."""
    units = units_of_rows(p.G, p.target, p.ridge)
    expected = units.value(value)
    assert expected == pytest.approx(units.value(problem.value(members)), rel=1e-7, abs=1e-9)
    assert expected >= best_value(units, members, p.nonneg)[0] * (1 - 1e-7) - 1e-9


def flagged(diagnosis, text):
    return sum(text in flag for flag in diagnosis.flags)
