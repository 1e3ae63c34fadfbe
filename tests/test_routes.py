"""Every way to read the rows gives the same answer: first that of the reference, then one another's, bit for bit."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from oracles import same
from problems import FAMILIES, family, real
from strategies import (
    EXAMPLES,
    RULES,
    Problem,
    adversarial_rows,
    problems,
    random_options,
    random_problem,
    seeds,
    targets,
)
from test_backends_agree import assert_same

import pysubmod
from pysubmod import omp_partition
from pysubmod._reference import omp_partition_reference

SCREENING = ("columns", "draft")  # float32 shows which rows can be the best, float64 decides
ROUTES = ("plain", *SCREENING)


def routes_for(rule="omp", routes=ROUTES):
    """Those that take the rule."""
    return [route for route in routes if rule != "greedy" or route != "columns"]


CODES = {"one": 1, "eight": 8, "many": 60}


def solve(route, G, target, groups, budgets, **options):
    by_label = {p: int(b) for p, b in enumerate(budgets)}
    return omp_partition(G, target, by_label, groups=groups, route=route, **options)


def every_route(*arguments, **options):
    """The answer, the same on all routes; of each its name and its passes are in the second part."""
    first, passes = None, {}
    for route in routes_for(options.get("rule", "omp")):
        got = solve(route, *arguments, **options)
        first = first or got
        same(got, first)
        assert got.stats["route"] == route
        passes[route] = got.stats["passes"]
    same(solve("auto", *arguments, **options), first)
    return first, passes


def check(*arguments, rtol=1e-7, roots=None, **options):
    got, passes = every_route(*arguments, **options)
    assert_same(got, omp_partition_reference(*arguments, **options), rtol=rtol, roots=roots)
    return got, passes


# ---- against the reference --------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:budgets")
@given(problem=problems(), options=seeds)
def test_small_problems(problem, options):
    chosen = problem.options | random_options(problem, options)
    roots = np.sqrt((problem.G**2).sum(axis=1) + problem.ridge)
    check(*problem.args, **chosen, rtol=1e-6, roots=roots)


@pytest.mark.filterwarnings("ignore:budgets")
@settings(max_examples=max(1, EXAMPLES // 4))
@given(G=adversarial_rows(60, 20), data=seeds, target=targets(np.eye(20)))
def test_more_rows_than_a_draft_looks_at(G, data, target):
    rng = np.random.default_rng(data)
    problem = Problem(G, target, rng.integers(0, 4, 60), rng.integers(0, 7, 4))
    chosen = random_options(problem, data) | {"rule": str(rng.choice(RULES[:2])), "nonneg": bool(rng.integers(2))}
    check(*problem.args, **chosen, rtol=1e-6, roots=np.sqrt((G**2).sum(axis=1)))


@pytest.mark.parametrize("groups", CODES)
@pytest.mark.parametrize("nonneg", [False, True])
@pytest.mark.parametrize("rule", ["omp", "normalized"])
@pytest.mark.parametrize("name", [*FAMILIES, "real"])
def test_families(name, rule, nonneg, groups):
    G, target, codes = real() if name == "real" else family(name, 400, 256, seed=3)
    codes = codes if groups == "eight" else np.arange(len(G)) % CODES[groups]
    budgets = np.full(CODES[groups], {"one": 32, "eight": 4, "many": 1}[groups])
    check(G, target, codes, budgets, rule=rule, nonneg=nonneg)


@pytest.mark.filterwarnings("ignore:budgets")
@pytest.mark.parametrize("nonneg", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_greedy(name, nonneg):
    G, target, codes = family(name, 120, 96, seed=4)
    check(G, target, codes, np.full(8, 2), rule="greedy", nonneg=nonneg)


@pytest.mark.parametrize("nonneg", [False, True])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("tilt", [-0.3, 0.0, 0.3])
def test_ridge_tilt_and_tolerance(tilt, rule, nonneg):
    G, target, codes = family("gradient_like", 120, 96, seed=5)
    ridge = 0.1 * float((G.astype(float) ** 2).sum(axis=1).mean())
    options = {"ridge": ridge, "nonneg": nonneg, "rule": rule}
    every_route(G, target, codes, np.full(8, 3), tilt=tilt, **options)
    expected = omp_partition_reference(G, target, codes, np.full(8, 3), tilt=tilt, **options)
    assert_same(solve("draft", G, target, codes, np.full(8, 3), tilt=tilt, **options), expected, rtol=1e-7)
    norms = expected.residual_norms / np.linalg.norm(target)
    got, _ = check(G, target, codes, np.full(8, 3), tol=float(norms[4:6].mean()), tilt=tilt, **options)
    assert tilt != 0 or (got.status == "tolerance" and len(got) == 6)


# ---- what a draft gets wrong, and what float32 cannot tell ------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
def test_drafts_do_save_passes(rule):
    G, target, codes = family("gradient_like", 1000, 256, seed=6)
    _, passes = every_route(G, target, codes, np.full(8, 6), rule=rule, nonneg=False)
    assert passes["draft"] <= passes["plain"] // 2


@pytest.mark.parametrize("nonneg", [False, True])
@pytest.mark.parametrize("rule", ["omp", "normalized"])
def test_drafts_that_look_at_the_wrong_rows(rule, nonneg):
    """Once the first of 400 like rows is in, the next pick is far down the list of those that a draft looks at."""
    rng = np.random.default_rng(7)
    for _ in range(5):
        centres = np.eye(40)[:8] * 0.6 ** np.arange(8)[:, None]
        rows = np.repeat(np.eye(40)[:8], 100, axis=0) + 0.05 * rng.normal(size=(800, 40))
        G = rows * rng.uniform(0.9, 1.1, size=(800, 1))
        check(G, centres.sum(axis=0), np.zeros(800, int), [20], rule=rule, nonneg=nonneg)


@pytest.mark.parametrize("n_alike", [20, 300])
@pytest.mark.parametrize("rule", ["omp", "normalized"])
@pytest.mark.parametrize("gap", [1e-9, 1e-11, 0.0])
def test_scores_that_only_float64_can_tell_apart(gap, rule, n_alike):
    """Rows at the same angle to the target, up to `gap`; at 0 up to rounding, where the lowest row has to win."""
    rng = np.random.default_rng(8)
    for _ in range(3):
        sideways = np.linalg.qr(rng.normal(size=(400, 301)))[0].T
        target = sideways[0]
        cosines = np.full(300, 0.3)
        cosines[:n_alike] = 0.5 + gap * rng.normal(size=n_alike)
        order = rng.permutation(300)
        G = (cosines[:, None] * target + np.sqrt(1 - cosines**2)[:, None] * sideways[1:])[order]
        for nonneg in (False, True):
            check(G, target, np.arange(300) % 3, [3, 3, 3], rule=rule, nonneg=nonneg)


@pytest.mark.parametrize("nonneg", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_rows_that_are_nearly_dependent(rule, nonneg):
    """Copies at 1e-6 of their norm score above rows that are short: barred, and free again after the next pick."""
    rng = np.random.default_rng(9)
    ends = []
    for _ in range(5 if rule == "greedy" else 20):
        G = rng.normal(size=(80, 40))
        G[30:] = G[rng.integers(0, 20, 50)] * rng.choice([-1, 0.5, 1, 3], (50, 1))
        G[30:] += 1e-6 * rng.normal(size=(50, 40))
        G[20:30] *= 1e-9
        order = rng.permutation(80)
        arguments = G[order], rng.normal(size=40), np.zeros(80, int), [60]
        # With exact gains of w >= 0 the reference itself resolves ties of such rows by rounding (docs/design.md, 7).
        run = every_route if nonneg and rule == "greedy" else partial(check, rtol=1e-4)
        ends.append(str(run(*arguments, rule=rule, nonneg=nonneg)[0].status))
    assert set(ends) == {"rank_deficient"}


@pytest.mark.parametrize("rule", ["omp", "normalized"])
def test_a_draft_may_not_say_that_a_problem_is_unbounded(rule):
    """With a tilt, dependent rows make a problem unbounded, once both are picked; a wrong draft picks both."""
    G = np.zeros((502, 16))
    G[:500, 0] = np.linspace(1, 2, 500)
    G[500, 1] = G[501, 2] = 1
    target = np.eye(16)[:3].T @ [8.0, 6.0, 4.0]
    check(G, target, np.zeros(502, int), [3], rule=rule, nonneg=False, tilt=0.5)
    with pytest.raises(ValueError, match=r"^tilt: the objective is unbounded") as first:
        solve("plain", G, target, np.zeros(502, int), [4], rule=rule, nonneg=False, tilt=0.5)
    for route in routes_for(rule, SCREENING):
        with pytest.raises(ValueError) as again:
            solve(route, G, target, np.zeros(502, int), [4], rule=rule, nonneg=False, tilt=0.5)
        assert str(again.value) == str(first.value)


# ---- rows that come back ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n_groups", "budget"), [(1, 20), (20, 1)])
@pytest.mark.parametrize("rule", RULES)
def test_members_that_leave(rule, n_groups, budget):
    """release_zeros: they may be picked again, and so may all of their group, which was closed when rows were read."""
    returned = left = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        G = rng.normal(size=(60, 6)) @ rng.normal(size=(6, 24)) + 0.05 * rng.normal(size=(60, 24))
        arguments = G, rng.normal(size=24), np.arange(60) % n_groups, [budget] * n_groups
        picked = []
        solve("plain", *arguments, rule=rule, release_zeros=True, callback=lambda p, to=picked: to.append(p.index))
        got, _ = check(*arguments, rule=rule, release_zeros=True)
        left += len(picked) > len(got)
        returned += len(picked) > len(set(picked))
    assert left > 10 and returned > 5


@pytest.mark.parametrize("nonneg", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_groups_that_close_one_by_one(rule, nonneg):
    G, target, _ = family("gradient_like", 150, 96, seed=10)
    rng = np.random.default_rng(10)
    for n_groups in (3, 30):
        codes = rng.integers(0, n_groups, 150)
        budgets = np.arange(n_groups) % 3
        allowed = rng.random(150) < 0.8
        start = [int(np.flatnonzero(codes == p)[0]) for p in range(n_groups) if budgets[p]][:2]
        options = {"rule": rule, "nonneg": nonneg, "candidates": allowed, "initial": start, "fill": n_groups == 30}
        check(G, target, codes, budgets, **options)


# ---- the same numbers, however they are stored ------------------------------------------------------------------


def stored(G, dtype):
    if dtype == "bfloat16":
        return G.astype(pytest.importorskip("ml_dtypes").bfloat16)
    return G.astype(dtype)


@pytest.mark.parametrize("rule", ["omp", "normalized"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_storage_and_layouts(dtype, rule, tmp_path):
    G, target, codes = family("near_duplicates", 300, 333, seed=11)
    G = stored(G, dtype)
    wide, order = G.astype(np.float64), np.argsort(codes, kind="stable")
    got, _ = every_route(G, target, codes, [3] * 8, rule=rule)
    assert_same(got, omp_partition_reference(wide, target, codes, [3] * 8, rule=rule), rtol=1e-7)
    np.save(tmp_path / "G.npy", G.view(np.uint16) if dtype == "bfloat16" else G)
    mapped = np.load(tmp_path / "G.npy", mmap_mode="r").view(G.dtype)
    blocks = {p: stored(wide[codes == p], dtype if p % 2 else "float64") for p in range(8)}
    for route in routes_for(rule, SCREENING):
        for other in (np.asfortranarray(G), G[::-1].copy()[::-1], np.repeat(G, 2, axis=1)[:, ::2], mapped, wide):
            same(solve(route, other, target, codes, [3] * 8, rule=rule), got)
        again = omp_partition(blocks, target, dict.fromkeys(range(8), 3), rule=rule, route=route)
        assert order[again.indices].tolist() == got.indices.tolist()
        assert again.weights.tobytes() == got.weights.tobytes()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ["gradient_like", "near_duplicates"])
def test_threads(name, rule):
    """Large enough that a pass is worth several threads."""
    G, target, codes = family(name, 500, 1600, seed=12)
    first = solve("plain", G, target, codes, [3] * 8, rule=rule, n_threads=1)
    for route in routes_for(rule):
        for threads in (1, 2, 7):
            got = solve(route, G, target, codes, [3] * 8, rule=rule, n_threads=threads)
            same(got, first)
            assert got.stats["threads"] == threads


# ---- the ends of the range --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1e-30, 1e-25, 1e25, 1e30])
def test_norms_that_float32_cannot_screen(size):
    problem = random_problem(13, n=50, d=20, n_groups=2, k=6)
    G = problem.G.copy()
    G[17] *= size
    arguments = G, problem.target, problem.groups, problem.budgets
    for route in SCREENING:
        with pytest.raises(ValueError, match=rf"^route: '{route}' needs .*norms of rows between 1e-20 and 1e20"):
            solve(route, *arguments)
        seen = np.arange(50) != 17
        same(solve(route, *arguments, candidates=seen), solve("plain", *arguments, candidates=seen))
    expected = omp_partition_reference(*arguments)
    assert_same(solve("auto", *arguments), expected, rtol=1e-7, roots=np.linalg.norm(G, axis=1))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("rows", [1e-18, 1e-9, 1e9, 1e18])
@pytest.mark.parametrize("size", [1e-135, 1e-29, 1e29, 1e100, 1e118])
def test_sizes_of_rows_and_target(rows, size, rule):
    """Picks follow neither; weights do."""
    problem = random_problem(14, n=50, d=20, n_groups=2, k=6, rule=rule)
    ours, _ = every_route(problem.G * rows, problem.target * size, problem.groups, problem.budgets, rule=rule)
    expected = omp_partition_reference(*problem.args, rule=rule)
    assert ours.indices.tolist() == expected.indices.tolist()
    np.testing.assert_allclose(ours.weights * (rows / size), expected.weights, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("nonneg", [False, True])
@pytest.mark.parametrize("rule", ["omp", "normalized"])
@pytest.mark.parametrize(("rows", "size"), [(1e-17, 1e-28), (1e-16, 1e-29), (1e-17, 1e46), (1e-18, 1e47), (1e12, 1e-8)])
def test_sizes_of_what_a_tilt_adds(rows, size, rule, nonneg):
    """The tilt's share of a score, about that of the target, may lie outside float32 where its parts do not."""
    for seed in range(20):
        problem = random_problem(seed, n=200, d=16, n_groups=1, k=8, nonneg=nonneg, rule=rule)
        scaled = problem.but(G=problem.G * rows, target=problem.target * size, ridge=rows**2)
        plain = solve("plain", *scaled.args, **scaled.options, tilt=0.3 * size / rows)
        same(solve("auto", *scaled.args, **scaled.options, tilt=0.3 * size / rows), plain)
        for route in routes_for(rule, SCREENING):
            try:
                got = solve(route, *scaled.args, **scaled.options, tilt=0.3 * size / rows)
            except ValueError as error:
                assert str(error).startswith(f"route: '{route}' needs")
            else:
                same(got, plain)


@pytest.mark.filterwarnings("ignore:budgets")
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (2, 1), (40, 1), (3, 2), (33, 16), (64, 17), (257, 15)])
def test_shapes(shape, rule):
    for seed in range(4):
        problem = random_problem(seed, *shape, n_groups=2, k=50 if seed % 2 else 3)
        check(*problem.args, rule=rule, nonneg=seed < 2)
        zero, _ = check(problem.G, np.zeros(shape[1]), problem.groups, problem.budgets, rule=rule)
        assert len(zero) == 0 and zero.status == "no_gain"
    nothing = solve("draft", np.empty((0, 3)), np.ones(3), np.empty(0, int), [], rule=rule)
    assert len(nothing) == 0


# ---- errors -----------------------------------------------------------------------------------------------------


def test_routes_that_cannot_be():
    problem = random_problem(15)
    with pytest.raises(ValueError, match=r"^route: 'draft' needs pick='argmax'"):
        solve("draft", *problem.args, pick="random")
    assert solve("auto", *problem.args, pick="random").stats["route"] == "plain"
    gram = pysubmod.GradientMatching.from_gram(problem.G @ problem.G.T, problem.G @ problem.target)
    assert pysubmod.solve(gram, 3).stats["route"] == "gram"
    for route in ("plain", "columns", "draft"):
        with pytest.raises(ValueError, match=rf"^route: '{route}' reads rows, but only a Gram matrix was given"):
            pysubmod.solve(gram, 3, route=route)
    with pytest.raises(ValueError, match=r"^route: expected one of 'auto', 'plain', 'columns', 'draft'; got 'gram'"):
        solve("gram", *problem.args)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("rule", RULES)
def test_rows_that_turn_into_nan(rule, route):
    """An error that names what is wrong, or an answer in order; never numbers that are none."""
    if route not in routes_for(rule):
        pytest.skip("the route does not take the rule")
    errors = 0
    for seed in range(30):
        problem = random_problem(seed, n=80, d=24, n_groups=2, k=8)
        rng = np.random.default_rng(seed)
        G, at, share = problem.G.copy(), int(rng.integers(1, 17)), rng.choice([0.01, 0.3, 1.0])

        def spoil(progress, G=G, rng=rng, at=at, share=share):
            if progress.n_selected == at:
                G[rng.random(G.shape) < share] = np.nan

        try:
            got = solve(route, G, *problem.args[1:], rule=rule, nonneg=bool(seed % 2), callback=spoil)
        except ValueError as error:
            errors += 1
            assert "G: " in str(error) or "K: " in str(error)
            continue
        assert len(set(got.indices.tolist())) == len(got)
        assert np.isfinite(got.weights).all() and np.isfinite(got.objective)
    assert errors > 10
