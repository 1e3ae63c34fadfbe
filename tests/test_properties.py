"""What must hold whatever the numbers are: the compiled core through the public API, against independent truths."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from oracles import best_value, check_selection, optimality, same, units_of_gram, units_of_rows
from problems import FAMILIES, family
from strategies import RULES, Problem, problems, random_problem, seeds

import pysubmod
from pysubmod import GradientMatching, PartitionMatroid, omp_partition, solve

METHOD = {"omp": "omp", "normalized": "omp-normalized", "greedy": "greedy"}
flags = st.booleans()


def run(problem, **options):
    budgets = dict(enumerate(problem.budgets.tolist()))
    present = set(problem.groups.tolist())
    budgets = {label: b for label, b in budgets.items() if label in present}  # absent labels only warn
    return omp_partition(problem.G, problem.target, budgets, groups=problem.groups, **{**problem.options, **options})


def run_gram(problem, E=None, **options):
    """The same from K and c, both scaled by the diagonal E."""
    E = np.ones(len(problem.G)) if E is None else E
    K, c = problem.G @ problem.G.T + problem.ridge * np.eye(len(problem.G)), problem.G @ problem.target
    matching = GradientMatching.from_gram(
        E[:, None] * K * E, E * c, nonneg=problem.nonneg, target_norm=np.linalg.norm(problem.target)
    )
    return solve(matching, matroid_of(problem), METHOD[problem.rule], **options)


def matroid_of(problem):
    present = np.unique(problem.groups)
    return PartitionMatroid(problem.groups, problem.budgets[present])


def matching_of(problem):
    return GradientMatching(problem.G, problem.target, ridge=problem.ridge, nonneg=problem.nonneg)


def units(problem):
    return units_of_rows(problem.G, problem.target, problem.ridge)


def check(problem, selection, **options):
    budgets = {p: int(problem.budgets[p]) for p in np.unique(problem.groups).tolist()}
    labels = problem.groups.tolist()
    n = len(labels)
    check_selection(selection, n, labels, budgets, nonneg=problem.nonneg, units=units(problem), **options)


def subset(seed, n, at_most=6):
    rng = np.random.default_rng(seed)
    return rng.permutation(n)[: rng.integers(0, min(n, at_most) + 1)]


def clear_cut(problem, S):
    """No eigenvalue of the scaled Gram matrix of S is near RANK_TOL: all agree on which rows are dependent."""
    rows = units(problem).rows[S]
    size = np.linalg.norm(rows, axis=1, keepdims=True)
    rows = np.divide(rows, size, out=np.zeros_like(rows), where=size > 0)
    eigenvalues = np.linalg.eigvalsh(rows @ rows.T)
    return not ((eigenvalues > 1e-13) & (eigenvalues < 1e-8)).any()


# ---- oracle 1: values, weights, optimality ----------------------------------------------------------------------


@given(problems(), seeds)
def test_value_and_weights_equal_a_fresh_solve(problem, seed):
    S = subset(seed, len(problem.G))
    assume(clear_cut(problem, S))
    matching, scale = matching_of(problem), units(problem)
    value, _ = best_value(scale, S, problem.nonneg)
    w = scale.weights(matching.weights(S), S)
    active, idle, E = optimality(scale, S, w, problem.nonneg)
    assert active < 1e-10 and idle < 1e-10
    assert scale.value(matching.value(S)) == pytest.approx(value, rel=1e-10, abs=1e-13)
    assert float(w @ scale.C[np.ix_(S, S)] @ w) / 2 == pytest.approx(value, rel=1e-9, abs=1e-14 * E**2)
    assert (w >= 0).all() or not problem.nonneg
    d = problem.G.shape[1]
    r = np.linalg.norm(scale.target[:d] - w @ scale.rows[S][:, :d])
    assert scale.norm(matching.residual_norm(S)) == pytest.approx(r, rel=1e-9, abs=1e-14 * E)


@given(problems(), seeds)
def test_value_is_monotone_and_starts_at_zero(problem, seed):
    order = np.random.default_rng(seed).permutation(len(problem.G))[:7]
    assume(all(clear_cut(problem, order[:k]) for k in range(1, len(order) + 1)))
    matching, scale = matching_of(problem), units(problem)
    values = [scale.value(matching.value(order[:k])) for k in range(len(order) + 1)]
    assert values[0] == 0
    assert (np.diff(values) >= -1e-13).all()


@given(problems(), seeds)
def test_nonnegative_weights_are_worth_at_most_free_ones(problem, seed):
    S, scale = subset(seed, len(problem.G)), units(problem)
    assume(clear_cut(problem, S))
    bounded = scale.value(matching_of(problem.but(nonneg=True)).value(S))
    free = scale.value(matching_of(problem.but(nonneg=False)).value(S))
    assert 0 <= bounded <= free + 1e-13


@given(problems(max_n=8, max_d=8), seeds)
def test_gains_equal_the_difference_of_two_values(problem, seed):
    S = subset(seed, len(problem.G), 4)
    n, scale = len(problem.G), units(problem)
    supports = [np.append(S, i) for i in range(n) if i not in S]
    assume(all(clear_cut(problem, T) for T in (S, *supports)))
    gains = matching_of(problem).gains(S)
    assert gains.shape == (n,) and (gains >= 0).all() and (gains[S] == 0).all()
    value, _ = best_value(scale, S, problem.nonneg)
    for T in supports:
        more, _ = best_value(scale, T, problem.nonneg)
        assert scale.value(gains[T[-1]]) == pytest.approx(more - value, rel=1e-8, abs=1e-11)


@given(problems(), flags, flags)
def test_every_selection_is_feasible_refitted_and_optimal_on_its_support(problem, fill, release):
    check(problem, run(problem, fill=fill, release_zeros=release))


@given(problems(strict=False), flags)
def test_rows_closer_than_the_rank_test_can_see_do_no_harm(problem, fill):
    check(problem, run(problem, fill=fill), exact=False)


@given(problems(max_n=20, max_d=12))
def test_objective_is_that_of_scipy_on_the_same_support(problem):
    selection, scale = run(problem), units(problem)
    assume(clear_cut(problem, selection.indices))
    value, _ = best_value(scale, selection.indices, problem.nonneg)
    assert scale.value(selection.objective) >= value - 1e-12
    assert scale.value(selection.objective) == pytest.approx(value, rel=1e-10, abs=1e-12)
    w = scale.weights(selection.weights, selection.indices)
    E = optimality(scale, selection.indices, w, problem.nonneg)[2]  # gains are sums of terms of this size
    assert scale.value(selection.gains.sum()) == pytest.approx(value, rel=1e-10, abs=1e-14 * E**2)
    if problem.ridge == 0 and len(selection):
        t2 = float(scale.target @ scale.target)
        r2 = float(scale.norm(selection.residual_norms[-1])) ** 2
        assert (t2 - r2) / 2 == pytest.approx(value, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("nonneg", [True, False])
@pytest.mark.parametrize("ridge", [0.0, 0.1])
@pytest.mark.parametrize("name", FAMILIES)
def test_families(name, nonneg, ridge):
    G, target, groups = family(name, 300, 160, seed=3)
    problem = Problem(G.astype(float), target, groups, np.full(8, 4), ridge, nonneg)
    for rule in RULES:
        selection = omp_partition(G, target, np.full(8, 4), groups=groups, **problem.but(rule=rule).options)
        check(problem, selection)
        found = units(problem).weights(selection.weights, selection.indices)
        assert max(optimality(units(problem), selection.indices, found, nonneg)[:2]) < 1e-14
        value, w = best_value(units(problem), selection.indices, nonneg)
        assert units(problem).value(selection.objective) == pytest.approx(value, rel=1e-11)
        assert (np.diff(selection.residual_norms) <= 1e-12 * np.linalg.norm(target)).all() or ridge > 0
        if name != "short_rows":  # there 32 picks in 10 dimensions have many best weights
            np.testing.assert_allclose(found, w, rtol=1e-7, atol=1e-9 * np.abs(w).max())


@pytest.mark.parametrize("nonneg", [True, False])
@pytest.mark.parametrize("distance", [1e-2, 1e-3, 1e-4])
def test_weights_of_near_duplicates_are_as_good_as_by_orthogonal_factorisation(distance, nonneg):
    """A Cholesky factor alone would lose the square of the distance; one step of refinement wins it back."""
    rng = np.random.default_rng(4)
    G = rng.normal(size=(6, 50)).repeat(2, axis=0)
    G[1::2] += distance * rng.normal(size=(6, 50))
    weights = rng.uniform(1, 2, size=12)
    matching = GradientMatching(G, weights @ G, nonneg=nonneg)
    np.testing.assert_allclose(matching.weights(range(12)), weights, rtol=1e-14 / distance * 10)
    found = solve(matching, 12, "omp-normalized", fill=True)
    np.testing.assert_allclose(found.weights, weights[found.indices], rtol=1e-14 / distance * 10)


# ---- oracle 1: invariances --------------------------------------------------------------------------------------


@given(problems(strict=False), st.sampled_from(["normalized", "greedy"]), seeds)
def test_scaling_the_gram_matrix_by_powers_of_two_changes_no_bit(problem, rule, seed):
    problem = problem.but(rule=rule)
    E = 2.0 ** np.random.default_rng(seed).integers(-400, 401, size=len(problem.G))
    first, second = run_gram(problem), run_gram(problem, E)
    assert second.indices.tolist() == first.indices.tolist()
    assert second.status == first.status and second.objective == first.objective
    assert second.gains.tobytes() == first.gains.tobytes()
    assert (second.weights * E[first.indices]).tobytes() == first.weights.tobytes()


@given(seeds, flags, st.sampled_from(["normalized", "greedy"]), st.sampled_from([0.0, 0.5]))
def test_scaling_the_gram_matrix_changes_no_pick(seed, nonneg, rule, ridge):
    problem = random_problem(seed, nonneg=nonneg, rule=rule, ridge=ridge)
    E = np.exp(np.random.default_rng(seed).uniform(-15, 15, size=len(problem.G)))
    first, second = run_gram(problem), run_gram(problem, E)
    assert second.indices.tolist() == first.indices.tolist()
    assert second.objective == pytest.approx(first.objective, rel=1e-12)
    np.testing.assert_allclose(second.weights * E[first.indices], first.weights, rtol=1e-10, atol=1e-12)


@given(problems(ridge=0.0, strict=False), st.sampled_from(["normalized", "greedy"]), flags, seeds)
def test_row_norms_do_not_matter_to_rules_that_divide_by_them(problem, rule, fill, seed):
    problem = problem.but(rule=rule)
    E = 2.0 ** np.random.default_rng(seed).integers(-30, 31, size=len(problem.G))
    # Fillers are ranked by |g|, which does depend on the norms: only the picks before them are compared.
    first, second = run(problem, fill=fill), run(problem.but(G=problem.G * E[:, None]), fill=fill)
    k = len(first) - first.stats["n_filled"]
    assert second.stats["n_filled"] == first.stats["n_filled"]
    assert second.indices[:k].tolist() == first.indices[:k].tolist()
    assert second.status == first.status and second.objective == first.objective
    assert (second.weights[:k] * E[first.indices[:k]]).tobytes() == first.weights[:k].tobytes()


@given(problems(), st.sampled_from([1e-6, 1e6]), st.sampled_from(["target", "rows"]))
def test_common_scales_change_no_pick(problem, factor, what):
    """Not powers of two, so only up to rounding: exact duplicates and other ties must not be split by it."""
    assume(clear_cut(problem, np.arange(len(problem.G))))
    if what == "target":
        scaled, expected = problem.but(target=problem.target * factor), factor
    else:
        scaled, expected = problem.but(G=problem.G * factor, ridge=problem.ridge * factor**2), 1 / factor
    first, second = run(problem), run(scaled)
    assert second.indices.tolist() == first.indices.tolist()
    assert second.status == first.status
    unit = units(problem)
    w, v = (unit.weights(x, first.indices) for x in (first.weights, second.weights / expected))
    np.testing.assert_allclose(v, w, rtol=1e-8, atol=1e-8)


@given(problems(), st.integers(-300, 300))
def test_common_powers_of_two_change_no_bit(problem, exponent):
    first, second = run(problem), run(problem.but(target=np.ldexp(problem.target, exponent)))
    assert second.indices.tolist() == first.indices.tolist() and second.status == first.status
    assert second.weights.tobytes() == np.ldexp(first.weights, exponent).tobytes()


@given(seeds, flags, st.sampled_from(RULES), st.sampled_from([0.0, 0.5]))
def test_permuting_rows_permutes_the_picks(seed, nonneg, rule, ridge):
    problem = random_problem(seed, n=30, d=12, nonneg=nonneg, rule=rule, ridge=ridge)
    order = np.random.default_rng(seed).permutation(len(problem.groups))
    first, second = run(problem), run(problem.but(G=problem.G[order], groups=problem.groups[order]))
    assert order[second.indices].tolist() == first.indices.tolist()
    np.testing.assert_allclose(second.weights, first.weights, rtol=1e-9, atol=1e-12)
    assert second.counts == first.counts


@given(problems(strict=False), seeds, flags)
def test_relabelling_the_groups_changes_nothing(problem, seed, as_text):
    names = np.random.default_rng(seed).permutation(100)[: len(problem.budgets)] - 50
    names = np.array([f"group {name}" for name in names]) if as_text else names
    labels = names[problem.groups]
    budgets = {names[p].item(): int(problem.budgets[p]) for p in np.unique(problem.groups)}
    first = run(problem)
    second = omp_partition(problem.G, problem.target, budgets, groups=labels, **problem.options)
    same(first, second)
    assert second.counts == {names[p].item(): count for p, count in first.counts.items()}
    in_sorted_order = [budgets[label] for label in sorted(budgets)]
    same(first, omp_partition(problem.G, problem.target, in_sorted_order, groups=labels.tolist(), **problem.options))
    same(first, omp_partition(problem.G, problem.target, PartitionMatroid(labels, budgets), **problem.options))


@given(problems(strict=False), flags)
def test_a_mapping_is_the_array_with_its_groups(problem, fill):
    order = np.argsort(problem.groups, kind="stable")
    problem = problem.but(G=problem.G[order], groups=problem.groups[order])
    present = np.unique(problem.groups).tolist()
    blocks = {p: problem.G[problem.groups == p] for p in present}
    budgets = {p: int(problem.budgets[p]) for p in present}
    same(run(problem, fill=fill), omp_partition(blocks, problem.target, budgets, fill=fill, **problem.options))


@given(problems(strict=False))
def test_masked_rows_might_as_well_not_exist(problem):
    mask = np.random.default_rng(len(problem.groups)).random(len(problem.groups)) < 0.6
    G = np.where(mask[:, None], problem.G, np.nan)
    first = run(problem.but(G=G), candidates=mask)
    assume(mask.any())
    second = run(problem.but(G=problem.G[mask], groups=problem.groups[mask]))
    assert first.indices.tolist() == np.flatnonzero(mask)[second.indices].tolist()
    assert first.weights.tobytes() == second.weights.tobytes() and first.objective == second.objective
    assert first.status == second.status or {first.status, second.status} == {"budget", "exhausted"}


@given(seeds, flags, st.sampled_from(RULES), st.sampled_from([0.0, 0.5]))
def test_gram_equals_dense_on_well_conditioned_rows(seed, nonneg, rule, ridge):
    problem = random_problem(seed, n=25, d=30, n_groups=4, k=3, nonneg=nonneg, rule=rule, ridge=ridge)
    matching = GradientMatching.from_gram(
        problem.G @ problem.G.T, problem.G @ problem.target, ridge, nonneg, target_norm=np.linalg.norm(problem.target)
    )
    dense, gram = run(problem), solve(matching, matroid_of(problem), METHOD[rule])
    assert gram.indices.tolist() == dense.indices.tolist() and gram.status == dense.status
    np.testing.assert_allclose(gram.weights, dense.weights, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(gram.gains, dense.gains, rtol=1e-8, atol=1e-13)
    np.testing.assert_allclose(gram.residual_norms, dense.residual_norms, rtol=1e-6)
    assert gram.objective == pytest.approx(dense.objective, rel=1e-12)
    S = dense.indices[::2]
    rows = matching_of(problem)
    assert matching.value(S) == pytest.approx(rows.value(S), rel=1e-12)
    np.testing.assert_allclose(matching.gains(S), rows.gains(S), rtol=1e-8, atol=1e-12)


@given(seeds, flags, st.sampled_from(RULES), st.sampled_from([-0.3, 0.3, 5.0]), st.sampled_from([0.01, 1.0]))
def test_tilt_is_a_linear_term(seed, nonneg, rule, tilt, ridge):
    """c = G t + tilt/2 diag K, whether the solver makes it or the caller does."""
    problem = random_problem(seed, n=20, d=15, nonneg=nonneg, rule=rule, ridge=ridge)
    K = problem.G @ problem.G.T
    c = problem.G @ problem.target
    tilted = run(problem, tilt=tilt)
    given_tilt = GradientMatching.from_gram(K, c, ridge, nonneg, tilt=tilt)
    given_c = GradientMatching.from_gram(K, c + tilt / 2 * np.diag(K), ridge, nonneg)
    for matching in (given_tilt, given_c):
        again = solve(matching, matroid_of(problem), METHOD[rule])
        assert again.indices.tolist() == tilted.indices.tolist()
        np.testing.assert_allclose(again.weights, tilted.weights, rtol=1e-8, atol=1e-10)
    scale = units_of_gram(K, c, ridge, tilt)
    active, idle, _ = optimality(scale, tilted.indices, scale.weights(tilted.weights, tilted.indices), nonneg)
    assert active < 1e-10 and idle < 1e-10


# ---- oracle 7: a diagonal Gram matrix ---------------------------------------------------------------------------


@given(seeds, flags, st.sampled_from(["normalized", "greedy"]), st.sampled_from([0.0, 0.3]))
def test_orthogonal_rows_are_solved_exactly(seed, nonneg, rule, ridge):
    rng = np.random.default_rng(seed)
    G = np.diag(rng.uniform(0.1, 10, size=9))
    groups, budgets = rng.integers(0, 3, size=9), rng.integers(0, 4, size=3)
    problem = Problem(G, rng.normal(size=9), groups, budgets, ridge, nonneg, rule)
    c = G @ problem.target
    each = np.where((c > 0) | (not nonneg), c**2 / (2 * (np.diag(G) ** 2 + ridge)), 0.0)
    best = sum(np.sort(each[problem.groups == p])[::-1][: problem.budgets[p]].sum() for p in range(3))
    selection = run(problem)
    assert selection.objective == pytest.approx(best, rel=1e-12, abs=0)
    other = run(problem.but(rule="greedy" if rule == "normalized" else "normalized"))
    assert other.indices.tolist() == selection.indices.tolist()
    check(problem, selection)


def test_orthogonal_rows_can_mislead_raw_omp():
    G, target = np.diag([100.0, 1.0]), [0.1, 1.0]
    assert omp_partition(G, target, 1, rule="omp").indices.tolist() == [0]
    assert omp_partition(G, target, 1, rule="normalized").indices.tolist() == [1]
    assert omp_partition(G, target, 1, rule="greedy").indices.tolist() == [1]


# ---- oracle 9: budgets and groups -------------------------------------------------------------------------------


@given(problems(strict=False), flags)
def test_full_and_zero_budgets(problem, release):
    sizes = np.bincount(problem.groups, minlength=len(problem.budgets))
    full = run(problem.but(budgets=sizes), fill=True, release_zeros=release)
    assert sorted(full.indices.tolist()) == list(range(len(problem.groups))) and full.status == "budget"
    more = run(problem.but(budgets=sizes + 3), fill=True, release_zeros=release)
    assert more.indices.tolist() == full.indices.tolist() and more.status == "exhausted"
    none = run(problem.but(budgets=0 * sizes))
    assert len(none) == 0 and none.status == "budget" and none.objective == 0


@given(seeds, st.sampled_from(RULES))
def test_full_budgets_take_whole_groups_of_independent_rows(seed, rule):
    """Free weights, more dimensions than rows, a target in general position: every row still helps."""
    problem = random_problem(seed, n=8, d=20, nonneg=False, rule=rule)
    sizes = np.bincount(problem.groups, minlength=3)
    selection = run(problem.but(budgets=sizes))
    assert sorted(selection.indices.tolist()) == list(range(8)) and selection.status == "budget"
    half = run(problem.but(budgets=np.array([sizes[0], 0, sizes[2]])))
    assert sorted(half.indices.tolist()) == np.flatnonzero(problem.groups != 1).tolist()


@given(problems(strict=False), flags)
def test_one_group_is_a_plain_cardinality(problem, fill):
    budget = int(problem.budgets[0])
    options = problem.options | {"fill": fill}
    G, target = problem.G, problem.target
    plain = omp_partition(G, target, budget, **options)
    for label in ("all", 7):
        same(plain, omp_partition(G, target, {label: budget}, groups=[label] * len(G), **options))
    same(plain, omp_partition(G, target, PartitionMatroid(np.zeros(len(G), int), [budget]), **options))
    same(plain, solve(matching_of(problem), budget, METHOD[problem.rule], fill=fill))
    same(plain, omp_partition({"all": G}, target, {"all": budget}, **options))


@given(problems(strict=False), seeds)
def test_nothing_to_gain_gives_an_empty_selection(problem, seed):
    """c <= 0 with w >= 0: the optimum is the empty set, and is worth 0."""
    G = np.abs(problem.G)
    target = -np.abs(np.random.default_rng(seed).normal(size=G.shape[1]))
    empty = run(problem.but(G=G, target=target, nonneg=True))
    assert len(empty) == 0 and empty.objective == 0
    assert empty.status == ("no_gain" if problem.budgets[np.unique(problem.groups)].any() else "budget")
    matching = GradientMatching.from_gram(G @ G.T, G @ target)
    from_gram = solve(matching, 3, METHOD[problem.rule])
    assert len(from_gram) == 0 and from_gram.objective == 0
    assert (matching.gains([]) == 0).all()
    filled = run(problem.but(G=G, target=target, nonneg=True), fill=True)
    assert filled.objective == 0 and (filled.weights == 0).all() and filled.stats["n_filled"] == len(filled)


# ---- the path ---------------------------------------------------------------------------------------------------


@given(problems(strict=False), flags)
def test_a_callback_that_stops_leaves_the_first_picks(problem, release):
    whole = run(problem, release_zeros=release)
    reports = []
    run(problem, release_zeros=release, callback=reports.append)
    for stop in range(1, len(reports) + 1):
        part = _stopped_after(problem, stop, release)
        assert part.status == "stopped"
        check(problem, part, exact=False)
        if not release:
            assert part.indices.tolist() == whole.indices[:stop].tolist()
            assert part.gains.tobytes() == whole.gains[:stop].tobytes()
            assert part.residual_norms.tobytes() == whole.residual_norms[:stop].tobytes()


def _stopped_after(problem, stop, release):
    calls = []

    def callback(progress):
        calls.append(progress)
        return len(calls) >= stop

    return run(problem, release_zeros=release, callback=callback)


@given(problems())
def test_the_first_picks_as_a_start_lead_to_the_same_end(problem):
    whole = run(problem)
    half = whole.indices[: len(whole) // 2]
    again = run(problem, initial=half)
    assert again.indices.tolist() == whole.indices.tolist()
    assert again.status == whole.status
    scale = units(problem)
    assert scale.value(again.objective) == pytest.approx(scale.value(whole.objective), rel=1e-9, abs=1e-12)


@given(problems(strict=False), seeds, flags)
def test_any_start_is_kept_and_refitted(problem, seed, fill):
    start, used = [], np.zeros(len(problem.budgets), int)
    for i in np.random.default_rng(seed).permutation(len(problem.groups)).tolist():
        if used[problem.groups[i]] < problem.budgets[problem.groups[i]] and len(start) < 4:
            used[problem.groups[i]] += 1
            start.append(i)
    selection = run(problem, initial=start, fill=fill, candidates=np.zeros(len(problem.groups), bool))
    assert selection.indices.tolist() == start
    check(problem, selection, initial=start, candidates=np.zeros(len(problem.groups), bool), exact=False)
    selection = run(problem, initial=start, fill=fill)
    assert selection.indices[: len(start)].tolist() == start
    check(problem, selection, initial=start, exact=False)


@given(problems(), st.integers(0, 6), st.sampled_from([1 - 1e-9, 1 + 1e-9, 0.5]), flags)
def test_tolerance_stops_at_the_first_residual_within_it(problem, place, factor, fill):
    whole, target = run(problem), np.linalg.norm(problem.target)
    norms = np.array([target, *whole.residual_norms])
    tol = factor * norms[min(place, len(whole))] / (target or 1.0)
    part = run(problem, tol=tol, fill=fill)
    within = np.flatnonzero(norms <= tol * target)
    if tol > 0 and len(within) and len(whole) > within[0]:
        assert part.status == "tolerance" and len(part) == within[0]
        assert part.indices.tolist() == whole.indices[: len(part)].tolist()


def test_public_names_exist():
    for name in pysubmod.__all__:
        assert hasattr(pysubmod, name)
    assert set(pysubmod.available_methods()) >= set(METHOD.values())


# ---- found by search, kept ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
def test_a_row_within_rounding_of_others_is_no_unbounded_problem(rule):
    """Row 3 depends on the others by the rank test. To let it in, the weight of row 1 goes to zero first, and then the
    share of row 0 in it is too small to count: there is no way in, which is nothing to complain about.
    """
    e = np.eye(5)
    a, b, c = e[0], np.sqrt(0.75) * e[1] - 0.5 * e[0], e[2]
    G = np.array([a, b, c, 1.05e-5 * a + 1e-5 * b - c + 0.4e-5 * e[3]])
    target = 3 * a + b + 2 * c + e[3]
    problem = Problem(G, target, np.zeros(4, int), np.array([4]), rule=rule)
    selection = run(problem)
    assert sorted(selection.indices.tolist()) == [0, 1, 2] and selection.status == "rank_deficient"
    check(problem, selection)
    assert matching_of(problem).value([0, 1, 2, 3]) == pytest.approx(selection.objective, rel=1e-9)
    assert matching_of(problem).gains([0, 1, 2])[3] == pytest.approx(0, abs=1e-9)


def test_duplicates_of_very_different_norms_are_no_unbounded_problem():
    """Row 1 is worth more than its duplicate, row 0, by any measure of length: it takes its place."""
    for exponent in (0, 100, 300, 400):
        E = 2.0 ** np.array([exponent, -exponent])
        matching = GradientMatching.from_gram(np.outer(E, E), E * [1.0, 2.0])
        selection = solve(matching, 2, "omp", initial=[0])
        assert selection.objective == 2.0
        assert (selection.weights * E).tolist() == [0.0, 2.0]


def test_a_released_member_takes_its_residual_along():
    """The residual after the last pick is that of the weights returned."""
    rng = np.random.default_rng(0)
    released = 0
    for seed in range(60):
        problem = random_problem(rng.integers(2**32), n=30, d=20, n_groups=2, k=12)
        heard = []
        selection = run(problem, release_zeros=True, callback=heard.append)
        released += len(heard) > len(selection)
        residual = problem.target - selection.weights @ problem.G[selection.indices]
        assert selection.residual_norms[-1] == pytest.approx(np.linalg.norm(residual), rel=1e-9), seed
    assert released > 20
