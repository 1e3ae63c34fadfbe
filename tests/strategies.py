"""Small problems that every test draws from; those of realistic size are in benchmarks/problems.py."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

# For a long search: PYSUBMOD_EXAMPLES=5000 python -m pytest
EXAMPLES = int(os.environ.get("PYSUBMOD_EXAMPLES", "100"))
# Without it the examples are the same on every run.
SAME = "PYSUBMOD_EXAMPLES" not in os.environ
settings.register_profile("pysubmod", deadline=None, max_examples=EXAMPLES, derandomize=SAME)
settings.load_profile("pysubmod")


@dataclass(frozen=True)
class Problem:
    """One selection problem, `groups` as codes 0..len(budgets)-1."""

    G: np.ndarray
    target: np.ndarray
    groups: np.ndarray
    budgets: np.ndarray
    ridge: float = 0.0
    nonneg: bool = True
    rule: str = "omp"

    @property
    def args(self):
        return self.G, self.target, self.groups, self.budgets

    @property
    def options(self):
        return {"ridge": self.ridge, "nonneg": self.nonneg, "rule": self.rule}

    def but(self, **changes):
        return replace(self, **changes)


RULES = ("omp", "normalized", "greedy")
seeds = st.integers(0, 2**32 - 1)


def random_problem(seed, n=8, d=10, n_groups=3, k=2, shared=0.0, **changes):
    """Gaussian rows, a target near their mean: no ties, nothing degenerate.

    With `shared` around 2 the rows point one way, and nonnegative weights often fall back to zero.
    """
    rng = np.random.default_rng(seed)
    G = rng.normal(size=(n, d)) + shared * rng.normal(size=d)
    groups = rng.integers(0, n_groups, size=n)
    target = G.mean(axis=0) + 0.1 * rng.normal(size=d)
    return Problem(G, target, groups, np.full(n_groups, k), **changes)


# How far a near-duplicate is from its row, relative to it. RANK_TOL calls a row dependent below about 1e-5:
# the strict distances are well above that, the others well below, for a test must not hang on the edge.
STRICT_DISTANCES = (1e-1, 1e-2, 1e-3)
TINY_DISTANCES = (1e-8, 1e-9)


@st.composite
def adversarial_rows(draw, n, d, strict=True):
    """n rows with duplicates of every kind, zero rows, rank deficiency and norms from 1e-12 to 1e+12.

    With `strict`, every subset of rows is either well conditioned (after scaling) or exactly dependent.
    """
    rng = np.random.default_rng(draw(seeds))
    integers = draw(st.booleans())
    kinds = ["fresh", "fresh", "duplicate", "negated", "scaled", "near", "zero", "combination"]
    rows = np.zeros((n, d))
    for i in range(n):
        kind = draw(st.sampled_from(kinds if i else ["fresh", "zero"]))
        old = rows[draw(st.integers(0, i - 1))] if i else rows[0]
        if kind == "fresh":
            rows[i] = rng.integers(-2, 3, size=d) if integers else rng.normal(size=d)
        elif kind == "duplicate":
            rows[i] = old
        elif kind == "negated":
            rows[i] = -old
        elif kind == "scaled":
            rows[i] = old * draw(st.sampled_from([-4.0, 0.25, 0.5, 2.0, 3.0]))
        elif kind == "near":
            distance = draw(st.sampled_from(STRICT_DISTANCES + (() if strict else TINY_DISTANCES)))
            noise = rng.normal(size=d)
            rows[i] = old + noise * (distance * np.linalg.norm(old) / np.linalg.norm(noise))
        elif kind == "combination":
            rows[i] = rng.integers(-1, 2, size=i) @ rows[:i]
    if draw(st.booleans()):
        rows *= 10.0 ** rng.integers(-12, 13, size=(n, 1))
    return rows


@st.composite
def targets(draw, G):
    """A target: any, the mean of the unit rows, in the span of two of them, on an integer grid, or zero."""
    n, d = G.shape
    rng = np.random.default_rng(draw(seeds))
    kind = draw(st.sampled_from(["any", "any", "mean", "span", "grid", "zero"]))
    norms = np.linalg.norm(G, axis=1, keepdims=True)
    unit = np.divide(G, norms, out=np.zeros_like(G), where=norms > 0)
    if kind == "mean":
        return unit.mean(axis=0)
    if kind == "span":
        return rng.uniform(0.5, 2, size=2) @ unit[rng.integers(0, n, size=2)]
    if kind == "grid":
        return rng.integers(-2, 3, size=d).astype(float)
    return np.zeros(d) if kind == "zero" else rng.normal(size=d)


@st.composite
def problems(draw, max_n=12, max_d=12, strict=True, ridge=None, nonneg=None, rule=None, n_groups=None):
    """Small problems of every awkward kind; an argument that is given is fixed, the others are drawn."""
    n, d = draw(st.integers(1, max_n)), draw(st.integers(1, max_d))
    G = draw(adversarial_rows(n, d, strict))
    P = draw(st.integers(1, 4)) if n_groups is None else n_groups
    groups = np.array(draw(st.lists(st.integers(0, P - 1), min_size=n, max_size=n)), dtype=np.int64)
    budgets = np.array(draw(st.lists(st.integers(0, 5), min_size=P, max_size=P)), dtype=np.int64)
    if ridge is None:
        # Relative to the rows, so that it matters: a ridge of 1 is nothing beside a row of norm 1e12.
        scale = float(np.median(np.einsum("ij,ij->i", G, G)))
        ridge = draw(st.sampled_from([0.0, 0.0, 1e-3, 1.0])) * (scale or 1.0)
    return Problem(
        G,
        draw(targets(G)),
        groups,
        budgets,
        ridge,
        draw(st.booleans()) if nonneg is None else nonneg,
        draw(st.sampled_from(RULES)) if rule is None else rule,
    )


def random_options(problem, seed):
    """Options for both the core and the reference: fill, release_zeros, and sometimes candidates and initial."""
    rng = np.random.default_rng(seed)
    n = len(problem.G)
    options = {"fill": bool(rng.integers(2)), "release_zeros": bool(rng.integers(2))}
    if rng.integers(2):
        options["candidates"] = rng.random(n) < 0.8
    if rng.integers(2):
        left = np.array(problem.budgets)
        start = []
        for i in rng.permutation(n)[:2].tolist():
            if left[problem.groups[i]] > 0:
                left[problem.groups[i]] -= 1
                start.append(i)
        options["initial"] = start
    return options
