"""The reference against truths that share no code with it: SciPy's solvers, enumeration, invariances.

Every other solver is tested against the reference, so nothing here may be taken from it.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.optimize
from hypothesis import assume, given
from hypothesis import strategies as st
from problems import FAMILIES, family
from strategies import RULES, Problem, problems, random_problem, seeds

from pysubmod import _reference
from pysubmod._reference import gram_partition_reference, omp_partition_reference, refit_reference

STATUSES = {"budget", "tolerance", "no_gain", "rank_deficient", "exhausted"}


def solve(problem, **options):
    return omp_partition_reference(*problem.args, **{**problem.options, **options})


def solve_gram(problem, **options):
    G, target = problem.G, problem.target
    given = {**problem.options, "target_norm": np.linalg.norm(target), **options}
    return gram_partition_reference(G @ G.T, G @ target, problem.groups, problem.budgets, **given)


def roots(problem):
    """sqrt(C_ii)."""
    return np.sqrt(np.einsum("ij,ij->i", problem.G, problem.G) + problem.ridge)


def truth(problem, S):
    """f(S) and its weights by SciPy's nnls or NumPy's lstsq, on columns of unit norm."""
    S = np.asarray(S, dtype=int)
    root = roots(problem)[S]
    keep = root > 0
    scale = np.where(keep, root, 1.0)
    A = np.vstack([problem.G[S].T, np.sqrt(problem.ridge) * np.eye(len(S))]) / scale
    b = np.concatenate([problem.target, np.zeros(len(S))])
    if len(S) == 0 or not b.any():
        return 0.0, np.zeros(len(S))
    if problem.nonneg:
        z = scipy.optimize.nnls(A, b)[0]
    else:
        z = np.linalg.lstsq(A, b, rcond=1e-6)[0]
    # (b + r)'(b - r) rather than |b|^2 - |r|^2: the difference of the squares would cancel.
    r = b - A @ z
    return (b + r) @ (b - r) / 2, z / scale


def feasible_sets(problem):
    allowed = [i for i in range(len(problem.groups)) if problem.budgets[problem.groups[i]] > 0]
    for k in range(len(allowed) + 1):
        for S in itertools.combinations(allowed, k):
            counts = np.bincount(problem.groups[list(S)], minlength=len(problem.budgets))
            if (counts <= problem.budgets).all():
                yield S


def kkt_residual(problem, result):
    """The largest violation of the optimality conditions on the support, relative to ||t|| sqrt(C_ii)."""
    S, w = result.indices, result.weights.astype(np.longdouble)
    G = problem.G[S].astype(np.longdouble)
    g = G @ (problem.target - G.T @ w) - np.longdouble(problem.ridge) * w
    root = roots(problem)[S]
    g = np.divide(g, root, out=np.zeros_like(g), where=root > 0) / max(np.linalg.norm(problem.target), 1e-300)
    if problem.nonneg:
        assert (w >= 0).all()
        g = np.where(w > 0, np.abs(g), np.maximum(g, 0))
    return float(np.abs(g).max(initial=0.0))


def check_shape(problem, result, start=0):
    """What every answer satisfies."""
    S = result.indices
    assert S.dtype == np.int64 and len(set(S.tolist())) == len(S)
    assert len(result.weights) == len(result.gains) == len(result.residual_norms) == len(S)
    assert (np.bincount(problem.groups[S], minlength=len(problem.budgets)) <= problem.budgets).all()
    assert result.status in STATUSES
    assert np.isfinite(result.weights).all() and np.isfinite(result.gains).all()
    assert (result.gains[start:] > 0).all() or (result.gains >= 0).all()


# ---- the value and the weights -------------------------------------------------------------------


@given(problems(max_n=6, max_d=6))
def test_greedy_never_beats_brute_force(problem):
    result = solve(problem)
    best = max(truth(problem, S)[0] for S in feasible_sets(problem))
    E2 = problem.target @ problem.target
    assert result.objective <= best + 1e-12 * E2
    # ... and the first pick alone already helps, if anything does.
    assert (result.objective > 0) == (best > 1e-22 * E2) or best < 1e-12 * E2


@given(problems())
def test_value_equals_a_fresh_solve(problem):
    result = solve(problem)
    check_shape(problem, result)
    E2 = problem.target @ problem.target
    value, weights = truth(problem, result.indices)
    assert result.objective == pytest.approx(value, rel=1e-10, abs=1e-13 * E2)
    # Gains add the rounding of every weight on the way, and weights of rows 1e-3 apart are large.
    assert result.gains.sum() == pytest.approx(result.objective, rel=1e-10, abs=1e-7 * E2)
    # The weights, too, unless several are optimal.
    root = roots(problem)[result.indices]
    columns = problem.G[result.indices] / np.where(root > 0, root, 1)[:, None]
    if len(root) and np.linalg.eigvalsh(columns @ columns.T).min() > 1e-8:
        np.testing.assert_allclose(result.weights * root, weights * root, rtol=0, atol=1e-8 * np.sqrt(E2))


@given(problems(strict=False))
def test_tiny_distances_lose_next_to_nothing(problem):
    """Rows 1e-8 apart count as dependent, so SciPy may find more, never less than the search without them."""
    result = solve(problem)
    check_shape(problem, result)
    E2 = problem.target @ problem.target
    assert result.gains.sum() == pytest.approx(result.objective, rel=1e-9, abs=1e-7 * E2)
    active = result.indices[result.weights != 0]
    value = truth(problem, active)[0]
    assert result.objective == pytest.approx(value, rel=1e-7, abs=1e-12 * E2)


@given(problems(strict=False))
def test_kkt(problem):
    assert kkt_residual(problem, solve(problem)) < 1e-10


@given(problems())
def test_every_prefix_is_refitted(problem):
    """gains and residual_norms after each pick are those of a fresh solve on the picks so far."""
    result = solve(problem)
    E2 = problem.target @ problem.target
    for j in range(len(result.indices)):
        S = result.indices[: j + 1]
        value, weights = truth(problem, S)
        assert result.gains[: j + 1].sum() == pytest.approx(value, rel=1e-9, abs=1e-7 * E2)
        if problem.ridge == 0:
            norm = np.linalg.norm(problem.target - problem.G[S].T @ weights)
            assert result.residual_norms[j] == pytest.approx(norm, rel=1e-7, abs=1e-7 * np.sqrt(E2))


@given(problems(max_n=8, max_d=8))
def test_every_pick_is_the_best_by_its_rule(problem):
    result = solve(problem)
    E, root = np.linalg.norm(problem.target), roots(problem)
    for j, i in enumerate(result.indices):
        S = list(result.indices[:j])
        used = np.bincount(problem.groups[S], minlength=len(problem.budgets))
        eligible = (used < problem.budgets)[problem.groups] & (root > 0)
        eligible[S] = False
        value, weights = truth(problem, S)
        g = problem.G @ (problem.target - problem.G[S].T @ weights) if S else problem.G @ problem.target
        h = g if problem.nonneg else np.abs(g)
        if problem.rule == "omp":
            unit, score = E * root, h
        elif problem.rule == "normalized":
            unit, score = np.full(len(g), E), h / np.where(root > 0, root, np.inf)
        else:
            unit, score = np.full(len(g), E**2), np.full(len(g), -np.inf)
            for m in np.flatnonzero(eligible):
                score[m] = truth(problem, [*S, m])[0] - value
        best = np.argmax(np.where(eligible, score, -np.inf))
        assert eligible[i]
        # Loose, because lstsq and nnls are only so good at rows 1e-3 apart.
        assert score[i] >= score[best] - 1e-9 * (unit[i] + unit[best])


@pytest.mark.parametrize("nonneg", [True, False])
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("ridge", [0.0, 0.1])
def test_families(name, nonneg, ridge):
    G, target, groups = family(name, 300, 128, seed=1)
    problem = Problem(G.astype(float), target, groups, np.full(8, 3), ridge, nonneg)
    result, again = solve(problem), solve_gram(problem)
    check_shape(problem, result)
    assert kkt_residual(problem, result) < 1e-10
    value, _ = truth(problem, result.indices)
    assert result.objective == pytest.approx(value, rel=1e-10)
    assert result.objective >= value - 1e-12 * target @ target
    assert result.gains.sum() == pytest.approx(value, rel=1e-10)
    assert again.indices.tolist() == result.indices.tolist()
    np.testing.assert_allclose(again.weights, result.weights, rtol=1e-8, atol=1e-10)


# ---- oracle 1: monotone, nonnegative below free, invariances -------------------------------------


def scaled_gram(problem):
    """C and c with unit diagonal, zero rows left out: what refit_reference is given here."""
    root = roots(problem)
    keep = root > 0
    G = problem.G[keep] / root[keep][:, None]
    return G @ G.T + np.diag(problem.ridge / root[keep] ** 2), G @ problem.target


def clear_cut(C):
    """No eigenvalue near a rank tolerance, so that nobody need agree on which rows are dependent."""
    eigenvalues = np.linalg.eigvalsh(C)
    return not ((eigenvalues > 1e-13) & (eigenvalues < 2e-7)).any()


def meaningful(c, problem):
    """c is more than rounding: without the norm of the target a Gram problem cannot know."""
    return np.abs(c).max(initial=0) > 1e-9 * np.linalg.norm(problem.target) or not c.any()


def rounding(w):
    """What rounding C itself, of unit diagonal, does to f: (1/2) w' dC w."""
    return 1e-14 * np.abs(w).sum() ** 2


@given(problems(max_n=7), st.booleans())
def test_refit_is_monotone_and_matches_scipy(problem, nonneg):
    problem = problem.but(nonneg=nonneg)
    C, c = scaled_gram(problem)
    rows = np.flatnonzero(roots(problem) > 0)
    last = 0.0
    for k in range(1, len(c) + 1):
        assume(clear_cut(C[:k, :k]) and meaningful(c[:k], problem))
        w, value = refit_reference(C[:k, :k], c[:k], nonneg)
        slack = rounding(w) + 1e-13 * problem.target @ problem.target
        assert value == pytest.approx(truth(problem, rows[:k])[0], rel=1e-12, abs=slack)
        assert value == pytest.approx(w @ C[:k, :k] @ w / 2, rel=1e-12, abs=slack)
        assert (w >= 0).all() or not nonneg
        assert value >= last - slack
        last = value


@given(problems())
def test_nonnegative_is_at_most_free(problem):
    C, c = scaled_gram(problem)
    assume(len(c) and clear_cut(C) and meaningful(c, problem))
    (w, free), (_, value) = refit_reference(C, c, False), refit_reference(C, c, True)
    assert value <= free + rounding(w) + 1e-13 * problem.target @ problem.target


@given(problems(max_n=8), st.booleans(), seeds)
def test_refit_is_invariant_to_scaling(problem, nonneg, seed):
    """(c, C) -> (Ec, ECE) changes the weights alone, and by powers of two not even a bit of the value."""
    C, c = scaled_gram(problem)
    E = 2.0 ** np.random.default_rng(seed).integers(-20, 21, size=len(c))
    w, value = refit_reference(C, c, nonneg)
    w_scaled, value_scaled = refit_reference(E[:, None] * C * E, E * c, nonneg)
    assert value_scaled == value
    np.testing.assert_array_equal(w_scaled * E, w)


@given(seeds, st.booleans(), st.sampled_from(RULES), st.sampled_from([0.0, 0.5]))
def test_permuting_rows_permutes_the_picks(seed, nonneg, rule, ridge):
    problem = random_problem(seed, nonneg=nonneg, rule=rule, ridge=ridge)
    order = np.random.default_rng(seed).permutation(len(problem.groups))
    permuted = problem.but(G=problem.G[order], groups=problem.groups[order])
    result, again = solve(problem), solve(permuted)
    assert order[again.indices].tolist() == result.indices.tolist()
    np.testing.assert_allclose(again.weights, result.weights, rtol=1e-9, atol=1e-12)


@given(problems(ridge=0.0, rule="normalized", strict=False), seeds)
def test_normalized_ignores_row_norms(problem, seed):
    E = 2.0 ** np.random.default_rng(seed).integers(-30, 31, size=len(problem.groups))
    result, again = solve(problem), solve(problem.but(G=problem.G * E[:, None]))
    assert again.indices.tolist() == result.indices.tolist()
    assert again.status == result.status
    np.testing.assert_array_equal(again.weights * E[result.indices], result.weights)


@given(problems(), st.sampled_from([1e-6, 1e6]), st.sampled_from(["target", "rows"]))
def test_common_scales_change_no_pick(problem, factor, what):
    """Not by a power of two, so only up to rounding: exact duplicates and ties must not be split by it."""
    if what == "target":
        scaled = problem.but(target=problem.target * factor)
        expected = factor
    else:
        scaled = problem.but(G=problem.G * factor, ridge=problem.ridge * factor**2)
        expected = 1 / factor
    result, again = solve(problem), solve(scaled)
    assert again.indices.tolist() == result.indices.tolist()
    assert again.status == result.status
    scale = roots(problem)[result.indices] / max(np.linalg.norm(problem.target), 1e-300)
    # Loose, because rows that only just count as independent have weights that only just count as known.
    np.testing.assert_allclose(again.weights / expected * scale, result.weights * scale, rtol=0, atol=1e-5)
    objective = again.objective / (factor**2 if what == "target" else 1.0)
    assert objective == pytest.approx(result.objective, rel=1e-11)


@given(problems(strict=False))
def test_rows_that_are_masked_might_as_well_not_exist(problem):
    rng = np.random.default_rng(len(problem.groups))
    mask = rng.random(len(problem.groups)) < 0.6
    result = solve(problem, candidates=mask)
    alone = solve(problem.but(G=problem.G[mask], groups=problem.groups[mask]))
    assert result.indices.tolist() == np.flatnonzero(mask)[alone.indices].tolist()
    assert result.status == alone.status


# ---- oracle 7: a diagonal Gram matrix ------------------------------------------------------------


@given(seeds, st.booleans(), st.sampled_from(["normalized", "greedy"]), st.sampled_from([0.0, 0.3]))
def test_orthogonal_rows_are_solved_exactly(seed, nonneg, rule, ridge):
    rng = np.random.default_rng(seed)
    G = np.diag(rng.uniform(0.1, 10, size=9))
    groups, budgets = rng.integers(0, 3, size=9), rng.integers(0, 4, size=3)
    problem = Problem(G, rng.normal(size=9), groups, budgets, ridge, nonneg, rule)
    c = G @ problem.target
    each = np.where(c > 0 if nonneg else c != 0, c**2 / (2 * (np.diag(G) ** 2 + ridge)), 0.0)
    best = sum(np.sort(each[groups == p])[::-1][: budgets[p]].sum() for p in range(3))
    assert solve(problem).objective == pytest.approx(best, rel=1e-12, abs=0)


def test_orthogonal_rows_can_mislead_raw_omp():
    """|g| prefers the long row with the small share of the target."""
    G, target = np.diag([100.0, 1.0]), np.array([0.1, 1.0])
    groups, budgets = [0, 0], [1]
    assert omp_partition_reference(G, target, groups, budgets, rule="omp").indices.tolist() == [0]
    assert omp_partition_reference(G, target, groups, budgets, rule="normalized").indices.tolist() == [1]


# ---- oracle 9: budgets and groups ----------------------------------------------------------------


@given(problems(strict=False), st.booleans())
def test_full_and_zero_budgets(problem, release):
    sizes = np.bincount(problem.groups, minlength=len(problem.budgets))
    full = solve(problem.but(budgets=sizes), fill=True, release_zeros=release)
    assert sorted(full.indices.tolist()) == list(range(len(problem.groups)))
    assert full.status == "budget"
    more = solve(problem.but(budgets=sizes + 3), fill=True, release_zeros=release)
    assert more.indices.tolist() == full.indices.tolist()
    assert more.status == "exhausted"
    none = solve(problem.but(budgets=0 * sizes))
    assert len(none.indices) == 0 and none.status == "budget" and none.objective == 0


@given(problems(strict=False, n_groups=3))
def test_a_zero_budget_group_might_as_well_not_exist(problem):
    budgets = problem.budgets.copy()
    budgets[1] = 0
    result = solve(problem.but(budgets=budgets))
    keep = problem.groups != 1
    assume(keep.any())
    alone = solve(problem.but(G=problem.G[keep], groups=problem.groups[keep], budgets=budgets))
    assert result.indices.tolist() == np.flatnonzero(keep)[alone.indices].tolist()


@given(problems(strict=False))
def test_relabelling_groups_changes_nothing(problem):
    order = np.random.default_rng(0).permutation(len(problem.budgets))
    relabelled = problem.but(groups=order[problem.groups], budgets=problem.budgets[np.argsort(order)])
    result, again = solve(problem), solve(relabelled)
    assert again.indices.tolist() == result.indices.tolist() and again.status == result.status


@given(problems(strict=False, n_groups=1))
def test_one_group_is_plain_cardinality(problem):
    """k = 1, 2, ... give prefixes of one sequence, and so does a second group of rows of no use."""
    longest = solve(problem.but(budgets=np.array([12])))
    for k in range(1, len(longest.indices) + 1):
        result = solve(problem.but(budgets=np.array([k])))
        assert result.indices.tolist() == longest.indices[:k].tolist()
    useless = problem.but(
        G=np.vstack([problem.G, np.zeros((2, problem.G.shape[1]))]),
        groups=np.append(problem.groups, [1, 1]),
        budgets=np.array([12, 2]),
    )
    assert solve(useless).indices.tolist() == longest.indices.tolist()


@given(problems(max_n=8, nonneg=True))
def test_nothing_helps_when_every_row_opposes_the_target(problem):
    away = problem.but(G=problem.G * np.where(problem.G @ problem.target > 0, -1, 1)[:, None])
    result = solve(away)
    assert result.objective == 0 and len(result.indices) == 0


# ---- ties ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("nonneg", [True, False])
def test_ties_go_to_the_lowest_index(rule, nonneg):
    G, target = np.eye(6)[[3, 1, 5, 0, 2, 4]] * 0.1, np.ones(6)
    result = omp_partition_reference(G, target, [0, 1, 0, 1, 0, 1], [2, 1], rule=rule, nonneg=nonneg)
    assert result.indices.tolist() == [0, 1, 2]


@given(seeds, st.sampled_from(RULES), st.booleans(), st.sampled_from([0.0, 0.1]))
def test_copies_go_to_the_lowest_index(seed, rule, nonneg, ridge):
    """Every row three times: without ridge only the first copy is picked, with it the lowest one first."""
    problem = random_problem(seed, n=5, n_groups=1, k=4, rule=rule, nonneg=nonneg, ridge=ridge)
    order = np.random.default_rng(seed).permutation(np.repeat(np.arange(5), 3))
    tripled = problem.but(G=problem.G[order], groups=np.zeros(15, int))
    result = solve(tripled)
    seen = set()
    for i in result.indices:
        same = np.flatnonzero(order == order[i])
        assert i == min(set(same) - seen)
        seen.add(i)
    if ridge == 0:
        assert order[result.indices].tolist() == solve(problem).indices.tolist()


def test_rounding_of_a_long_row_decides_no_tie():
    """All that is left of row 4, a long copy of row 0, is rounding. It must not make row 1 tie with row 2."""
    G = np.array([[2e9, 1e9, 0.0], [0.0, -1e-4, 0.0], [0.0, -1e-12, 0.0], [0.0, -1e-10, 0.0], [2e9, 1e9, 0.0]])
    for target in np.random.default_rng(0).uniform(0.3, 1, size=(20, 3)):
        target[1] = 2 * target[0]  # rows 1 to 3 oppose what row 0 leaves over
        result = omp_partition_reference(G, target, [0] * 5, [5], fill=True)
        assert result.indices.tolist() == [0, 2, 3, 1, 4]


@pytest.mark.parametrize("nonneg", [True, False])
def test_gains_beside_a_near_dependent_row_tie_within_their_own_rounding(nonneg):
    """Copies 1e-3 from the selected row: rounding in C is worth 1e-10 of their gains, and decides nothing."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        row, noise = rng.normal(size=(2, 9))
        G = np.array([row] + [row + 1e-3 * noise] * 8)
        rounding = rng.integers(-1, 2, size=(9, 9)) * 2.0**-53
        K, c = G @ G.T * (1 + rounding + rounding.T), G @ (row + noise)
        options = {
            "rule": "greedy",
            "initial": [0],
            "nonneg": nonneg,
            "target_norm": np.linalg.norm(row + noise),
        }
        assert gram_partition_reference(K, c, [0] * 9, [2], **options).indices.tolist() == [0, 1]


@pytest.mark.parametrize("rule", RULES)
def test_like_rows_do_not_trade_places_for_a_rounding_error(rule):
    """A ridge of 1e-11 gives a copy a correlation, but nothing is gained by taking it instead."""
    rng = np.random.default_rng(0)
    for row, noise in rng.normal(size=(20, 2, 7)):
        target = row + 0.3 * noise
        G = np.outer([1.0, 1.0, 0.5, 1.0, 1.0, 0.9], row)
        result = omp_partition_reference(G, target, [0] * 6, [3], ridge=1e-11 * row @ row, rule=rule)
        assert result.indices.tolist() == [0] and result.status == "rank_deficient"


def test_a_tie_within_rounding_is_a_tie():
    G, target = np.eye(3), np.array([1.0, 1.0 + 1e-13, 1.0 + 1e-9])
    assert omp_partition_reference(G[:2], target, [0, 0], [1]).indices.tolist() == [0]
    assert omp_partition_reference(G, target, [0, 0, 0], [1]).indices.tolist() == [2]


# ---- the Gram form -------------------------------------------------------------------------------


@given(problems(rule="omp") | problems(rule="normalized"))
def test_gram_form_agrees(problem):
    C, _ = scaled_gram(problem)
    assume(not len(C) or clear_cut(C))
    result, again = solve(problem), solve_gram(problem)
    E = np.linalg.norm(problem.target)
    # Picks of a score that is all rounding may differ; those that matter may not.
    assume(not result.gains.size or result.gains.min() > 1e-12 * E**2)
    assume(not again.gains.size or again.gains.min() > 1e-12 * E**2)
    assert again.indices.tolist() == result.indices.tolist()
    slack = rounding(result.weights * roots(problem)[result.indices]) + 1e-13 * E**2
    assert again.objective == pytest.approx(result.objective, rel=1e-12, abs=slack)
    # Without a residual to look at, its norm is the root of a difference.
    np.testing.assert_allclose(again.residual_norms**2, result.residual_norms**2, rtol=0, atol=2 * slack)


@given(seeds, st.booleans(), st.sampled_from([0.0, 2.0]), st.sampled_from([0.0, 0.5]))
def test_gram_form_agrees_on_exact_gains(seed, nonneg, shared, ridge):
    """Well-conditioned rows only: beside near-dependent ones gains from a Gram matrix are rough."""
    problem = random_problem(seed, nonneg=nonneg, shared=shared, ridge=ridge, rule="greedy")
    result, again = solve(problem), solve_gram(problem)
    assert again.indices.tolist() == result.indices.tolist()
    np.testing.assert_allclose(again.weights, result.weights, rtol=1e-7, atol=1e-9)


def test_gram_form_without_a_target_norm():
    problem = random_problem(0)
    result = solve_gram(problem, target_norm=None)
    assert np.isnan(result.residual_norms).all() and len(result.indices)
    with pytest.raises(ValueError, match="target_norm"):
        solve_gram(problem, target_norm=None, tol=0.1)


def test_float32_gram_has_a_wider_rank_test():
    """Rows 1e-3 apart are independent in float64; float32 rounds their Schur complement of 1e-6 away."""
    rng = np.random.default_rng(0)
    row, noise = rng.normal(size=(2, 20))
    G = np.array([row, row + 1e-3 * noise])
    K, c = G @ G.T, G @ (row + noise)
    free = {"groups": [0, 0], "budgets": [2], "nonneg": False}
    assert (gram_partition_reference(K, c, **free).weights != 0).sum() == 2
    assert (gram_partition_reference(K.astype(np.float32), c, **free).weights != 0).sum() == 1


# ---- tilt, and problems without an optimum -------------------------------------------------------


def tilted_truth(K, c, ridge, nonneg, S):
    """max of <w, c> - 1/2 w'Cw on S by trying every active set; needs C_SS positive definite."""
    C = (K + ridge * np.eye(len(K)))[np.ix_(S, S)]
    c = c[list(S)]
    best = 0.0
    supports = [tuple(range(len(S)))] if not nonneg else itertools.product([0, 1], repeat=len(S))
    for A in supports:
        A = np.flatnonzero(A) if nonneg else np.array(A, int)
        w = np.linalg.solve(C[np.ix_(A, A)], c[A])
        if not nonneg or (w >= 0).all():
            best = max(best, w @ c[A] / 2)
    return best


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("ridge", [0.0, 0.5])
def test_weights_that_fall_back_to_zero(rule, ridge):
    """Members given in any order leave the active set and come back; the gains must account for it."""
    dropped = returned = 0
    for seed in range(30):
        problem = random_problem(seed, n=30, d=8, n_groups=1, k=15, shared=1.0, rule=rule, ridge=ridge)
        longest = solve(problem, initial=range(12))
        zero = np.zeros(30, bool)
        for k in range(1, len(longest.indices) + 1):
            S = longest.indices[:k]
            value, weights = truth(problem, S)
            assert longest.gains[:k].sum() == pytest.approx(value, rel=1e-9)
            now = np.isin(np.arange(30), S[weights <= 0])
            dropped += (now & ~zero).sum()
            returned += (zero[S] & ~now[S]).sum()
            zero = now
        assert longest.objective == pytest.approx(value, rel=1e-12)
        if ridge > 0:  # else 12 rows in 8 dimensions may fit the target in many ways
            np.testing.assert_allclose(longest.weights, weights, rtol=1e-7, atol=1e-10)
        assert kkt_residual(problem, longest) < 1e-12
    assert dropped > 10 and returned > 0


@given(seeds, st.booleans(), st.sampled_from(RULES), st.sampled_from([1e-7, 0.1, 3.0]), st.booleans())
def test_tilt(seed, nonneg, rule, tilt, ridged):
    ridge = 0.2 if ridged else 0.0
    problem = random_problem(seed, n=7, d=9, nonneg=nonneg, rule=rule, ridge=ridge)
    K = problem.G @ problem.G.T
    c = problem.G @ problem.target + tilt / 2 * np.diag(K)
    result, again = solve(problem, tilt=tilt), solve_gram(problem, tilt=tilt)
    best = max(tilted_truth(K, c, ridge, nonneg, S) for S in feasible_sets(problem))
    value = tilted_truth(K, c, ridge, nonneg, tuple(result.indices))
    assert result.objective == pytest.approx(value, rel=1e-10)
    assert result.objective <= best * (1 + 1e-10)
    C_SS = (K + ridge * np.eye(7))[np.ix_(result.indices, result.indices)]
    assert refit_reference(C_SS, c[result.indices], nonneg)[1] == pytest.approx(value, rel=1e-10)
    assert result.gains.sum() == pytest.approx(value, rel=1e-10)
    assert again.indices.tolist() == result.indices.tolist()
    np.testing.assert_allclose(again.weights, result.weights, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("tilt", [1e-5, 1.0])
@pytest.mark.parametrize("rule", RULES)
def test_tilt_prefers_the_longer_of_two_parallel_rows(tilt, rule):
    """Bounded for w >= 0 although K is singular: all the weight moves to the longer row."""
    rng = np.random.default_rng(0)
    G = np.vstack([rng.normal(size=(3, 6)), np.zeros(6)])
    G[3] = 2 * G[0]
    target = G[:3].sum(axis=0)
    c = G @ target + tilt / 2 * np.einsum("ij,ij->i", G, G)
    for initial in ([0, 1, 2, 3], [3, 2, 1, 0], [0]):
        result = omp_partition_reference(G, target, [0] * 4, [4], tilt=tilt, rule=rule, initial=initial)
        w = np.zeros(4)
        w[result.indices] = result.weights
        assert w[0] == 0
        np.testing.assert_allclose(w[1:], np.linalg.solve(G[1:] @ G[1:].T, c[1:]), rtol=1e-9)


@pytest.mark.parametrize("rule", RULES)
def test_unbounded(rule):
    G = np.array([[1.0, 0.0], [2.0, 0.0], [-3.0, 0.0], [0.0, 1.0]])
    target, tilt = np.array([1.0, 1.0]), {"tilt": 1.0, "rule": rule}
    # Free weights: any two parallel rows of different length. Nonnegative: two that oppose each other.
    with pytest.raises(ValueError, match="unbounded"):
        omp_partition_reference(G[:2], target, [0, 0], [2], nonneg=False, **tilt)
    assert omp_partition_reference(G[:2], target, [0, 0], [2], **tilt).status in ("no_gain", "budget")
    with pytest.raises(ValueError, match="unbounded"):
        omp_partition_reference(G, target, [0] * 4, [4], **tilt)
    # Not when the budget leaves no room for a second one, and not with a ridge.
    assert omp_partition_reference(G[:2], target, [0, 0], [1], nonneg=False, **tilt).status == "budget"
    assert omp_partition_reference(G, target, [0] * 4, [4], ridge=0.1, **tilt).objective > 0
    assert omp_partition_reference(G[:2], target, [0, 0], [2], ridge=0.1, nonneg=False, **tilt).objective > 0


def test_unbounded_gram():
    K = np.array([[1.0, 1.0], [1.0, 1.0]])
    with pytest.raises(ValueError, match="unbounded"):
        gram_partition_reference(K, [1.0, 2.0], [0, 0], [2], nonneg=False)
    assert gram_partition_reference(K, [1.0, 2.0], [0, 0], [2]).objective == pytest.approx(2.0)
    with pytest.raises(ValueError, match="unbounded"):
        gram_partition_reference(-K + 2 * np.eye(2), [1.0, 2.0], [0, 0], [2])
    with pytest.raises(ValueError, match="unbounded"):
        gram_partition_reference(np.diag([1.0, 0.0]), [5.0, 1.0], [0, 0], [1])
    with pytest.raises(ValueError, match="unbounded"):
        refit_reference(K, [1.0, 2.0], False)
    # c_i < 0 with w >= 0 is harmless, and so is a row that cannot be picked.
    assert gram_partition_reference(np.zeros((1, 1)), [-1.0], [0], [1]).status == "no_gain"
    assert gram_partition_reference(np.zeros((1, 1)), [1.0], [0], [0]).status == "budget"
    with pytest.raises(ValueError, match="positive semidefinite"):
        gram_partition_reference(-K, [1.0, 2.0], [0, 0], [2])


@given(problems(strict=False), st.sampled_from([1e-6, 1e6]))
def test_plain_matching_is_never_unbounded(problem, factor):
    solve(problem.but(target=factor * problem.target))
    solve_gram(problem.but(target=factor * problem.target))


# ---- status --------------------------------------------------------------------------------------


def test_each_status():
    rng = np.random.default_rng(0)
    G, target = rng.normal(size=(6, 4)), rng.normal(size=4)
    groups = np.zeros(6, int)

    def status(budget, G=G, **options):
        return omp_partition_reference(G, target, groups[: len(G)], [budget], nonneg=False, **options).status

    assert status(2) == "budget"
    assert status(0) == "budget"
    assert status(3, G[:2]) == "exhausted"
    assert status(3, candidates=np.arange(6) < 2) == "exhausted"
    assert status(3, G[:0]) == "exhausted"
    assert status(6) == "no_gain"  # four rows span the space, and then nothing is left to explain
    assert status(4, tol=0.99) == "tolerance"
    at_once = omp_partition_reference(G, target, groups, [4], tol=1.0)
    assert at_once.status == "tolerance" and len(at_once.indices) == 0
    assert status(3, 0 * G) == "no_gain"
    # Row 1 is row 0 and a sliver of the rest of the target: visible, but below what the rank test lets in.
    pair = np.array([G[0], G[0] + 1e-8 * target])
    assert status(2, pair) == "rank_deficient"
    assert status(2, pair, rule="greedy") == "rank_deficient"
    # A budget that is used up comes before an exhausted pool, and that before the tolerance.
    assert status(2, G[:2], tol=1.0, initial=[0, 1]) == "budget"
    assert status(3, G[:2], tol=1.0, initial=[0, 1]) == "exhausted"


@given(problems(), st.floats(1e-3, 1.0))
def test_tolerance_stops_at_the_first_pick_that_reaches_it(problem, tol):
    assume(problem.target.any())
    result, longest = solve(problem, tol=tol), solve(problem)
    E = np.linalg.norm(problem.target)
    reached = np.append(E, longest.residual_norms) <= tol * E
    if result.status == "tolerance":
        k = int(np.argmax(reached))
        assert reached.any() and result.indices.tolist() == longest.indices[:k].tolist()
    else:
        assert result.indices.tolist() == longest.indices.tolist()
        assert not reached[:-1].any()


def test_empty_and_smallest_problems():
    empty = omp_partition_reference(np.zeros((0, 3)), np.ones(3), [], [2])
    assert len(empty.indices) == len(empty.gains) == len(empty.residual_norms) == 0 and empty.objective == 0
    one = omp_partition_reference([[2.0]], [3.0], [0], [1])
    assert one.indices.tolist() == [0] and one.weights.tolist() == [1.5] and one.objective == 4.5
    assert one.residual_norms.tolist() == [0.0] and one.gains.tolist() == [4.5]
    assert omp_partition_reference([[-2.0]], [3.0], [0], [1]).status == "no_gain"
    assert omp_partition_reference([[-2.0]], [3.0], [0], [1], nonneg=False).weights.tolist() == [-1.5]


# ---- dependent rows ------------------------------------------------------------------------------


@given(problems(strict=False, nonneg=False))
def test_active_rows_are_independent(problem):
    result = solve(problem)
    active = result.indices[result.weights != 0]
    if len(active):
        G = problem.G[active] / roots(problem)[active][:, None]
        C = G @ G.T + np.diag(problem.ridge / roots(problem)[active] ** 2)
        assert np.linalg.eigvalsh(C).min() > 1e-13
        assert problem.ridge > 0 or len(active) <= problem.G.shape[1]


@pytest.mark.parametrize("shared", [0.0, 3.0])
def test_large_weights_do_not_turn_rounding_into_picks(shared):
    """Weights of 1e4 that cancel leave a residual of 1e-12, of which no other row is a part."""
    for seed in range(20):
        problem = random_problem(seed, n=30, d=20, n_groups=1, k=6, shared=shared, nonneg=False)
        G = problem.G.copy()
        step = G[1] - (G[1] @ G[0]) / (G[0] @ G[0]) * G[0]
        step *= np.linalg.norm(G[0]) / np.linalg.norm(step)
        G[1] = G[0] + 3e-5 * step
        result = solve(problem.but(G=G, target=step), initial=[0, 1])
        assert np.abs(result.weights).max() > 1e4
        assert result.indices.tolist() == [0, 1] and result.status == "no_gain"


@pytest.mark.parametrize("rule", RULES)
def test_near_duplicates_trade_places_when_weights_are_nonnegative(rule):
    """A member keeps its place with weight 0 when a row 1e-8 from it takes over; released, it does not."""
    rng = np.random.default_rng(3)
    row, other = rng.normal(size=(2, 8))
    target = row + 0.5 * other
    G = np.array([row, row + 1e-8 * target, other])
    result = omp_partition_reference(G, target, [0, 0, 0], [3], initial=[0], rule=rule)
    problem = Problem(G, target, np.zeros(3, int), np.array([3]))
    assert kkt_residual(problem, result) < 1e-10
    released = omp_partition_reference(G, target, [0, 0, 0], [2], initial=[0], rule=rule, release_zeros=True)
    assert (released.weights > 0).all()


# ---- initial, fill, release_zeros ----------------------------------------------------------------


@given(problems(), seeds)
def test_initial(problem, seed):
    order = np.random.default_rng(seed).permutation(len(problem.groups))
    taken = np.zeros(len(problem.budgets), int)
    initial = []
    for i in order[: 1 + seed % 4]:
        if taken[problem.groups[i]] < problem.budgets[problem.groups[i]]:
            taken[problem.groups[i]] += 1
            initial.append(int(i))
    result = solve(problem, initial=initial, candidates=np.arange(len(order)) % 2 == 0)
    check_shape(problem, result, start=len(initial))
    assert result.indices[: len(initial)].tolist() == initial
    assert (result.indices[len(initial) :] % 2 == 0).all()
    E2 = problem.target @ problem.target
    assert result.objective == pytest.approx(truth(problem, result.indices)[0], rel=1e-9, abs=1e-12 * E2)


@given(problems(strict=False))
def test_a_prefix_as_initial_gives_the_same_selection(problem):
    result = solve(problem)
    for k in range(len(result.indices) + 1):
        again = solve(problem, initial=result.indices[:k])
        assert again.indices.tolist() == result.indices.tolist() and again.status == result.status
        np.testing.assert_array_equal(again.weights, result.weights)


def test_free_initial_members_count_even_when_they_do_not_help_yet():
    """Row 1 is orthogonal to the target, and halves the residual once row 0 is in."""
    G, target = np.array([[1.0, 1.0, 1.0], [0.0, 1.0, 0.0]]), np.array([1.0, 0.0, 0.0])
    result = omp_partition_reference(G, target, [0, 0], [2], nonneg=False, initial=[1])
    assert result.indices.tolist() == [1, 0]
    assert result.objective == pytest.approx(truth(Problem(G, target, None, None, nonneg=False), [0, 1])[0])
    assert result.weights == pytest.approx([-0.5, 0.5])


def test_initial_must_be_feasible():
    problem = random_problem(0, n_groups=1, k=2)
    with pytest.raises(ValueError, match="initial"):
        solve(problem, initial=[0, 1, 2])
    with pytest.raises(ValueError, match="initial"):
        solve(problem, initial=[1, 1])
    with pytest.raises(ValueError, match="rule"):
        solve(problem, rule="best")


@given(problems())
def test_fill(problem):
    """Filling adds rows of weight 0 in the order of their correlation, and changes nothing else."""
    short, full = solve(problem), solve(problem, fill=True)
    k = len(short.indices)
    assert full.indices[:k].tolist() == short.indices.tolist()
    assert full.status in ("budget", "exhausted")
    np.testing.assert_array_equal(full.weights[:k], short.weights)
    assert not full.weights[k:].any() and not full.gains[k:].any()
    assert full.objective == short.objective
    sizes = np.bincount(problem.groups, minlength=len(problem.budgets))
    counts = np.bincount(problem.groups[full.indices], minlength=len(problem.budgets))
    assert counts.tolist() == np.minimum(sizes, problem.budgets).tolist()
    g = problem.G @ (problem.target - problem.G[short.indices].T @ short.weights)
    h = g if problem.nonneg else np.abs(g)
    unit = 1e-9 * np.linalg.norm(problem.target) * roots(problem)
    for j in range(k, len(full.indices)):
        i = full.indices[j]
        later = np.setdiff1d(np.flatnonzero(problem.groups == problem.groups[i]), full.indices[:j])
        assert (h[i] >= h[later] - unit[later] - unit[i]).all()


def test_fill_stops_at_the_tolerance():
    result = solve(random_problem(0), fill=True, tol=0.9)
    assert result.status == "tolerance"
    assert result.residual_norms[-1] <= 0.9 * np.linalg.norm(random_problem(0).target)


@given(problems(nonneg=True, strict=False))
def test_release_zeros(problem):
    kept, result = solve(problem), solve(problem, release_zeros=True)
    check_shape(problem, result)
    # All positive, but for members whose optimal weight is zero up to rounding.
    for j in np.flatnonzero(result.weights == 0):
        without = truth(problem, np.delete(result.indices, j))[0]
        assert without == pytest.approx(result.objective, rel=1e-9)
    assert kkt_residual(problem, result) < 1e-10
    if (kept.weights > 0).all():
        assert result.indices.tolist() == kept.indices.tolist()
    value = truth(problem, result.indices)[0]
    assert result.objective == pytest.approx(value, rel=1e-7, abs=1e-12 * problem.target @ problem.target)


def test_release_zeros_gives_the_budget_back():
    """Row 0 points best at the target; rows 1 and 2 together replace it."""
    G, target = np.eye(4)[[2, 0, 1, 3]], np.array([1.0, 1.0, -0.2, 0.05])
    G[0] = [1.0, 1.0, 0.3, 0.0]
    groups = [0, 0, 0, 0]
    kept = omp_partition_reference(G, target, groups, [3], rule="normalized")
    released = omp_partition_reference(G, target, groups, [3], rule="normalized", release_zeros=True)
    assert kept.indices[0] == 0 and kept.weights[0] == 0 and len(kept.indices) == 3
    assert sorted(released.indices.tolist()) == [1, 2, 3] and (released.weights > 0).all()
    assert released.objective == pytest.approx((2 + 0.05**2) / 2)
    assert len(released.gains) == 3 and released.residual_norms[-1] == pytest.approx(0.2)


def test_the_reference_stands_alone():
    """It is the independent check, so it may import nothing but NumPy."""
    with open(_reference.__file__) as file:
        imports = [line.split()[1] for line in file if line.startswith(("import ", "from "))]
    assert set(imports) == {"__future__", "dataclasses", "numpy"}
