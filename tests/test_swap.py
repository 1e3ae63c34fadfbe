"""Swap search: what it ends at, by brute force; that it repairs what the pursuit gets wrong; its door."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.optimize
from hypothesis import given
from oracles import same
from problems import FAMILIES, family, real
from strategies import problems, seeds

import pysubmod


class Values:
    """f by SciPy and NumPy, for problems of rows without a tilt."""

    def __init__(self, G, target, ridge=0.0, nonneg=True):
        self.A = np.vstack([np.asarray(G, float).T, np.sqrt(ridge) * np.eye(len(G))])
        self.b = np.concatenate([target, np.zeros(len(G))])
        self.nonneg = nonneg

    def __call__(self, S):
        A = self.A[:, sorted(S)]
        w = scipy.optimize.nnls(A, self.b)[0] if self.nonneg else np.linalg.lstsq(A, self.b, rcond=1e-7)[0]
        fit = A @ w
        return float(self.b @ fit - fit @ fit / 2)


def neighbours(S, groups, budgets):
    """Every feasible set that one swap, or one addition, makes of S."""
    S = set(S)
    counts = np.bincount(groups[sorted(S)], minlength=len(budgets))
    for i in set(range(len(groups))) - S:
        if counts[groups[i]] < budgets[groups[i]]:
            yield S | {i}
        for j in S:
            if (groups[j] == groups[i] and budgets[groups[i]] > 0) or counts[groups[i]] < budgets[groups[i]]:
                yield (S - {j}) | {i}


def bases(groups, budgets):
    """All maximal feasible sets."""
    per_group = [
        itertools.combinations(rows.tolist(), min(b, len(rows)))
        for p, b in enumerate(budgets)
        for rows in [np.flatnonzero(groups == p)]
    ]
    for parts in itertools.product(*per_group):
        yield [i for part in parts for i in part]


def random_instance(seed, n=12, d=9, shared=1.0, nonneg=True):
    rng = np.random.default_rng(seed)
    G = rng.normal(size=(n, d)) + shared * rng.normal(size=d)
    groups, budgets = np.arange(n) % 3, rng.integers(1, 3, size=3)
    ridge = float(rng.choice([0.0, 0.1]))
    return G, G.mean(axis=0) + 0.7 * rng.normal(size=d), groups, budgets, {"ridge": ridge, "nonneg": nonneg}


def make(route, G, target, ridge=0.0, nonneg=True, **options):
    if route == "dense":
        return pysubmod.GradientMatching(G, target, ridge=ridge, nonneg=nonneg, **options)
    G = np.asarray(G, float)
    norm = np.linalg.norm(target)
    return pysubmod.GradientMatching.from_gram(G @ G.T, G @ target, ridge, nonneg, target_norm=norm, **options)


def matroid_of(groups, budgets):
    return pysubmod.PartitionMatroid(groups, {p: int(b) for p, b in enumerate(budgets)})


def check_improves(sel, start, value):
    """The contract of a Selection, and that nothing got lost."""
    assert sel.objective >= start.objective
    assert sel.objective == pytest.approx(value(sel.indices), rel=1e-8, abs=1e-12)
    assert sel.gains.sum() == pytest.approx(sel.objective, rel=1e-8, abs=1e-12)
    assert len(set(sel.indices.tolist())) == len(sel) == len(sel.residual_norms)
    assert (sel.stats["n_swaps"] == 0) == (sel.indices.tolist() == start.indices.tolist())


# ---- local optima ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("route", ["dense", "gram"])
@pytest.mark.parametrize("nonneg", [True, False])
@pytest.mark.parametrize("seed", range(25))
def test_no_single_swap_improves(seed, nonneg, route):
    G, target, groups, budgets, options = random_instance(seed, shared=(0.0, 1.0, 3.0)[seed % 3], nonneg=nonneg)
    value = Values(G, target, **options)
    problem, matroid = make(route, G, target, **options), matroid_of(groups, budgets)
    for method in ("omp", "omp-normalized"):
        start = pysubmod.solve(problem, matroid, method)
        sel = pysubmod.solve(problem, matroid, method, refine="swap")
        check_improves(sel, start, value)
        assert sel.stats["swap_local_optimum"]
        best = max(value(S) for S in neighbours(sel.indices.tolist(), groups, budgets))
        assert best <= sel.objective * (1 + 2e-9)


@pytest.mark.parametrize("nonneg", [True, False])
@pytest.mark.parametrize("seed", range(20))
def test_the_bound_of_a_local_optimum(seed, nonneg):
    G, target, groups, budgets, options = random_instance(seed, n=9, d=14, shared=0.3, nonneg=nonneg)
    value = Values(G, target, **options)
    sel = pysubmod.solve(make("dense", G, target, **options), matroid_of(groups, budgets), "swap")
    optimum = max(value(S) for S in bases(groups, budgets))
    C = G @ G.T + options["ridge"] * np.eye(len(G))
    R = C / np.sqrt(np.outer(C.diagonal(), C.diagonal()))
    k = min(2 * int(np.minimum(budgets, 3).sum()), len(G))
    smallest = min(np.linalg.eigvalsh(R[np.ix_(S, S)])[0] for S in itertools.combinations(range(len(G)), k))
    inside = groups[:, None] == groups
    mu = np.abs(R[inside & ~np.eye(len(G), dtype=bool)]).max()
    assert sel.objective >= (smallest / (1 + mu)) ** 2 * optimum * (1 - 1e-8)
    assert sel.objective <= optimum * (1 + 1e-9)


@pytest.mark.parametrize("nonneg", [True, False])
@pytest.mark.parametrize("cosine", [0.3, 0.9, 0.999])
def test_the_counterexample_to_argmax(cosine, nonneg):
    """a, almost c again, wins its group by 1e-6, and <b, c> = -s: argmax reaches gamma / 2 of the optimum {b, c}."""
    s = cosine
    b, c = np.array([1.0, 0.0, 0.0]), np.array([-s, np.sqrt(1 - s * s), 0.0])
    a = np.array([-s, np.sqrt(1 - s * s), 1e-4]) / np.sqrt(1 + 1e-8)
    target = np.linalg.lstsq(np.array([b, c, a]), np.array([1.0, 1.0, 1 + 1e-6]), rcond=None)[0]
    G, budgets, groups = np.array([a, b, c]), {"one": 1, "two": 1}, ["one", "one", "two"]
    options = {"nonneg": nonneg, "rule": "normalized"}
    start = pysubmod.omp_partition(G, target, budgets, groups=groups, **options)
    value = Values(G, target, nonneg=nonneg)
    optimum = value([1, 2])
    assert start.indices[0] == 0
    assert start.objective / optimum == pytest.approx((1 - s) / 2, rel=1e-3)
    sel = pysubmod.omp_partition(G, target, budgets, groups=groups, refine="swap", **options)
    assert sorted(sel.indices.tolist()) == [1, 2]
    assert sel.objective == pytest.approx(optimum, rel=1e-9)


@pytest.mark.parametrize("nonneg", [True, False])
def test_diagonal_problems_are_solved(nonneg):
    rng = np.random.default_rng(0)
    G = np.diag(rng.uniform(0.1, 10, size=20))
    target, groups, budgets = rng.normal(size=20), np.arange(20) % 4, np.array([1, 2, 3, 0])
    problem, matroid = make("dense", G, target, nonneg=nonneg), matroid_of(groups, budgets)
    score = np.maximum(target, 0) ** 2 / 2 if nonneg else target**2 / 2
    best = sum(np.sort(score[groups == p])[::-1][:b].sum() for p, b in enumerate(budgets))
    for start in ("omp", "swap"):
        options = {"refine": "swap"} if start == "omp" else {}
        assert pysubmod.solve(problem, matroid, start, **options).objective == pytest.approx(best, rel=1e-12)


# ---- where zero weights and dependent rows are in play --------------------------------------------------------------


@pytest.mark.parametrize("seed", range(15))
def test_idle_members_make_way(seed):
    """Full budgets of which many picks have weight 0: they leave for whatever helps."""
    rng = np.random.default_rng(seed)
    G = rng.normal(size=(14, 5)) + 2 * rng.normal(size=5)
    groups, budgets = np.arange(14) % 2, np.array([4, 4])
    target = rng.normal(size=5)
    problem, matroid, value = make("dense", G, target), matroid_of(groups, budgets), Values(G, target)
    initial = rng.permutation(14)
    initial = [i for p in (0, 1) for i in initial[groups[initial] == p][:4].tolist()]
    for options in ({"initial": initial}, {"initial": initial[:3], "fill": True}, {"fill": True}):
        sel = pysubmod.solve(problem, matroid, "swap", **options)
        assert sel.stats["swap_local_optimum"]
        assert sel.objective >= value(options.get("initial", [])[:8] or [0]) * (1 - 1e-12) or "initial" not in options
        best = max(value(S) for S in neighbours(sel.indices.tolist(), groups, budgets))
        assert best <= sel.objective * (1 + 1e-8)
        if "fill" in options:
            assert len(sel) == 8


@pytest.mark.filterwarnings("ignore:budgets")
@pytest.mark.parametrize("route", ["dense", "gram"])
@given(problem=problems(max_n=9, max_d=8), options=seeds)
def test_stress(route, problem, options):
    """Duplicates, zero rows, wide norms: never below the start, feasible, the weights those of the support."""
    rng = np.random.default_rng(options)
    G, target, groups, budgets = problem.args
    made = make(route, G, target, ridge=problem.ridge, nonneg=problem.nonneg)
    mask = rng.random(len(G)) < 0.8 if rng.integers(2) else None
    chosen = {"candidates": mask, "fill": bool(rng.integers(2)), "release_zeros": bool(rng.integers(2))}
    method = {"omp": "omp", "normalized": "omp-normalized", "greedy": "greedy"}[problem.rule]
    matroid = matroid_of(groups, budgets)
    try:
        start = pysubmod.solve(made, matroid, method, **chosen)
        sel = pysubmod.solve(made, matroid, method, refine="swap", **chosen)
    except ValueError as error:
        assert route == "gram" and "unbounded" in str(error)
        return
    assert sel.objective >= start.objective
    assert len(set(sel.indices.tolist())) == len(sel)
    assert (np.bincount(groups[sel.indices], minlength=len(budgets)) <= budgets).all()
    assert mask is None or mask[sel.indices].all()
    assert np.isfinite(sel.weights).all() and (not problem.nonneg or (sel.weights >= 0).all())
    assert sel.stats["swap_local_optimum"] or sel.objective == start.objective
    zero = (G**2).sum(axis=1) + problem.ridge == 0
    assert (sel.weights[zero[sel.indices]] == 0).all()


@pytest.mark.filterwarnings("ignore:budgets")
@given(problem=problems(max_n=9, max_d=8, ridge=0.05), options=seeds)
def test_local_optima_of_awkward_rows(problem, options):
    G, target, groups, budgets = problem.args
    norms = np.linalg.norm(G, axis=1, keepdims=True)
    G = np.divide(G, norms, out=np.zeros_like(G), where=norms > 0)  # a ridge tells duplicates apart
    target = target / (np.linalg.norm(target) or 1.0)
    problem = problem.but(G=G, ridge=0.05)
    sel = pysubmod.solve(make("dense", G, target, 0.05, problem.nonneg), matroid_of(groups, budgets), "swap")
    value = Values(G, target, 0.05, problem.nonneg)
    best = max((value(S) for S in neighbours(sel.indices.tolist(), groups, budgets)), default=0.0)
    assert best <= sel.objective * (1 + 2e-9) + 1e-15


# ---- the door -------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:budgets")
@pytest.mark.parametrize("nonneg", [True, False])
@pytest.mark.parametrize("name", [*FAMILIES, "real"])
def test_threads_routes_and_repeated_search(name, nonneg):
    G, target, codes = real() if name == "real" else family(name, 160, 128, seed=5)
    some = np.random.default_rng(0).permutation(len(G))[:160]
    G, codes = G[some], codes[some]
    matroid = matroid_of(codes, np.full(8, 3))
    problem = make("dense", G, target, nonneg=nonneg)
    start = pysubmod.solve(problem, matroid, "omp-normalized")
    runs = [pysubmod.solve(problem, matroid, "swap", n_threads=t) for t in (1, 2, 5)]
    for run in runs[1:]:
        same(runs[0], run)
    sel = runs[0]
    assert sel.objective >= start.objective
    assert sel.objective == pytest.approx(problem.value(sel.indices), rel=1e-9)
    again = pysubmod.solve(problem, matroid, "swap", initial=sel.indices)
    assert again.stats["n_swaps"] == 0 and again.stats["swap_local_optimum"]
    kept = [i for i in start.indices.tolist() if i in set(sel.indices.tolist())]
    if len(sel) - len(kept) == sel.stats["n_swaps"]:  # nobody came back, nobody came only for a while
        assert sel.indices.tolist()[: len(kept)] == kept  # old picks in their order, then the new ones


def example(**options):
    G, target, codes = family("gradient_like", 120, 64, seed=9)
    return pysubmod.omp_partition(G, target, dict.fromkeys(range(8), 3), groups=codes, **options)


def test_stats_and_limits():
    full = example(refine="swap")
    assert full.stats["n_swaps"] > 2 and full.stats["swap_local_optimum"] and full.stats["seconds"]["swap"] > 0
    assert full.config["refine"] == "swap" and full.config["swap_tol"] == 1e-9
    assert "n_swaps" not in example().stats and example().config["refine"] is None
    G, target, codes = family("gradient_like", 120, 64, seed=9)
    problem, matroid = pysubmod.GradientMatching(G, target), matroid_of(codes, np.full(8, 3))
    objectives = []
    for limit in (0, 1, 2, None):
        sel = pysubmod.solve(problem, matroid, "omp", refine="swap", max_swaps=limit)
        assert sel.stats["n_swaps"] == (full.stats["n_swaps"] if limit is None else limit)
        assert sel.stats["swap_local_optimum"] == (limit is None)
        objectives.append(sel.objective)
    assert objectives == sorted(objectives) and objectives[0] < objectives[1]
    coarse = pysubmod.solve(problem, matroid, "omp", refine="swap", swap_tol=0.5)
    assert coarse.stats["n_swaps"] == 0 and coarse.stats["swap_local_optimum"]


def test_what_stays_out():
    """Groups of budget 0 and masked rows never come in; a start that `tol` made short keeps its size."""
    G, target, codes = family("gradient_like", 120, 64, seed=9)
    budgets = np.array([3, 0, 3, 3, 0, 3, 3, 3])
    mask = np.random.default_rng(1).random(120) < 0.5
    sel = pysubmod.solve(
        pysubmod.GradientMatching(G, target), matroid_of(codes, budgets), "swap", candidates=mask, max_swaps=50
    )
    assert mask[sel.indices].all() and not np.isin(codes[sel.indices], [1, 4]).any()
    start = example(tol=0.7)
    sel = example(tol=0.7, refine="swap")
    assert start.status == sel.status == "tolerance"
    assert len(sel) == len(start) < 24 and sel.objective >= start.objective


def test_a_callback_sees_swaps_and_may_stop_them():
    seen = []
    full = example(refine="swap", callback=seen.append)
    picks = len(full)
    assert len(seen) == picks + full.stats["n_swaps"]
    objectives = [progress.objective for progress in seen]
    assert objectives == sorted(objectives)
    stopped = example(refine="swap", callback=lambda progress: progress.objective > seen[picks].objective * (1 - 1e-12))
    assert stopped.status == "stopped" and stopped.stats["n_swaps"] == 1
    assert not stopped.stats["swap_local_optimum"]
    early = example(refine="swap", callback=lambda progress: progress.n_selected == 5)
    assert early.status == "stopped" and len(early) == 5 and early.stats["n_swaps"] == 0


def test_errors_in_a_callback_come_through():
    def fail(progress):
        if progress.n_selected == 24 and len(calls) > 24:
            raise RuntimeError("enough")
        calls.append(progress)

    calls = []
    with pytest.raises(RuntimeError, match="enough"):
        example(refine="swap", callback=fail)


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"refine": "best-of-all"}, ValueError, "refine: expected one of 'swap'"),
        ({"refine": True}, ValueError, "refine: expected one of"),
        ({"refine": "swap", "swap_tol": 0.0}, ValueError, "swap_tol: expected a number that is at least 1e-12"),
        ({"refine": "swap", "max_swaps": -1}, ValueError, "max_swaps: expected an integer of at least 0"),
        ({"refine": "swap", "max_swaps": 1.5}, TypeError, "max_swaps: expected an integer"),
    ],
)
def test_wrong_options(options, kind, words):
    problem, matroid = pysubmod.GradientMatching(np.eye(3), np.ones(3)), pysubmod.PartitionMatroid(np.zeros(3, int), 2)
    with pytest.raises(kind, match=words):
        pysubmod.solve(problem, matroid, "omp", **options)


def test_with_random_picks_and_tilts():
    G, target, codes = family("gradient_like", 120, 64, seed=9)
    matroid = matroid_of(codes, np.full(8, 3))
    for seed, tilt in itertools.product(range(4), (0.0, 0.05)):
        problem = pysubmod.GradientMatching(G, target, ridge=1.0, tilt=tilt)
        start = pysubmod.solve(problem, matroid, "residual-random", random_state=seed)
        sel = pysubmod.solve(problem, matroid, "residual-random", random_state=seed, refine="swap")
        assert sel.objective > start.objective or sel.stats["n_swaps"] == 0
        assert tilt or sel.objective > start.objective
        assert sel.objective == pytest.approx(problem.value(sel.indices), rel=1e-9)


def test_memory_of_swaps_is_estimated():
    plain, swap = (pysubmod.estimate_memory(1000, 100, 10, refine=refine) for refine in (None, "swap"))
    assert swap["solver"] > plain["solver"] + 8 * 1000 * 10 * 3
    with pytest.raises(ValueError, match="refine: expected one of 'swap'"):
        pysubmod.estimate_memory(1000, 100, 10, refine="all")
