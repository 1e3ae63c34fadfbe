"""`diagnose`: comparisons against hand computations, flags that fire and do not, and the report."""

from __future__ import annotations

import dataclasses
import json
from math import inf, isclose, sqrt

import numpy as np
import pytest
from hypothesis import given
from small_instances import FEW, assert_best, flagged
from strategies import problems, random_problem, seeds

import pysubmod
from pysubmod import GradientMatching, PartitionMatroid, Selection, certify, diagnose, omp_partition, solve
from pysubmod._comparison import Pool
from pysubmod._guarantees import rounded
from pysubmod._quadratic import Quadratic
from pysubmod.datasets import load_demo

# ---- comparisons ----------------------------------------------------------------------------------------------------


def test_comparison_by_hand():
    """Orthogonal rows: f(S) is the sum of c_i^2 / 2 C_ii, and every selection can be worked out by hand."""
    G = np.diag([1.0, 2.0, 1.0, 4.0, 1.0])
    target = np.array([3.0, 1.0, -2.0, 0.5, 1.0])
    worth = np.square(target) / 2
    problem = GradientMatching(G, target, nonneg=False)
    matroid = PartitionMatroid(["a", "a", "b", "b", "c"], {"a": 1, "b": 1, "c": 0})
    diagnosis = diagnose(problem, matroid, [1, 2], n_random=400)
    table = diagnosis.comparison
    assert table["selection"]["objective"] == pytest.approx(worth[1] + worth[2])
    # |c| = (3, 2, 2, 2, 1): row 2 before row 3, as the lower of two equal scores.
    assert table["top_k"]["objective"] == pytest.approx(worth[0] + worth[2]) and not table["top_k"]["same_set"]
    assert table["per_group"]["objective"] == pytest.approx(worth[0] + worth[2])
    left = 1 - (worth[1] + worth[2]) / worth.sum()
    assert table["selection"]["relative_residual"] == pytest.approx(sqrt(left))
    possible = sorted(worth[i] + worth[j] for i in (0, 1) for j in (2, 3))
    draws = np.array(table["random"]["objectives"])
    assert {round(x, 9) for x in draws} == {round(x, 9) for x in possible}
    assert table["random"]["objective"]["mean"] == pytest.approx(np.mean(possible), rel=0.1)
    assert table["random"]["objective"]["std"] == pytest.approx(draws.std())
    # A tie is no defeat.
    assert table["random"]["reached_share"] == pytest.approx(np.mean(draws <= worth[1] + worth[2] + 1e-9))
    assert diagnosis.conditioning == {"picks": pytest.approx(4.0), "picks_unit_diagonal": pytest.approx(1.0)}
    assert diagnosis.norms["pool"] == {"min": 1.0, "median": 1.5, "max": 4.0}
    assert diagnosis.norms["picks"] == {"min": 1.0, "median": 1.5, "max": 2.0}


def test_conflicts_and_cosines_by_hand():
    G = np.array([[1.0, 0.0], [1.0, 1.0], [-1.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
    problem = GradientMatching(G, [1.0, 1.0])
    diagnosis = diagnose(problem, PartitionMatroid([0, 0, 1, 1, 1], {0: 2, 1: 2}), [0, 1, 2, 3])
    assert diagnosis.comparison["selection"]["conflicting_pairs"] == 2  # (0, 2) and (1, 2)
    assert diagnosis.comparison["selection"]["pairs"] == 6
    r = 1 / sqrt(2)
    within, between = diagnosis.cosines["picks"]["within"], diagnosis.cosines["picks"]["between"]
    assert within["mean"] == pytest.approx(r / 2) and within["negative_share"] == 0.0 and within["pairs"] == 2
    assert between["mean"] == pytest.approx((-1 + 0 - r + r) / 4) and between["negative_share"] == 0.5
    assert diagnosis.cosines["pool"]["all"]["pairs"] == 6  # the zero row has no angle
    assert diagnosis.informative == {"zero_rows": 1, "zero_columns": 0}
    assert diagnosis.problem["against_target"] == 1
    near = diagnose(GradientMatching([[1.0, 0.0], [-0.1, 1.0], [0.0, 1.0]], [1.0, 1.0]), 3, [0, 1, 2])
    assert near.comparison["selection"]["conflicting_pairs"] == 1


@pytest.mark.filterwarnings("ignore:budgets. no row has:UserWarning")
@FEW
@given(problems(max_n=10, rule="omp"), seeds)
def test_everything_compared_is_feasible_and_worth_what_it_says(p, seed):
    problem = GradientMatching(p.G, p.target, ridge=p.ridge, nonneg=p.nonneg)
    matroid = PartitionMatroid(p.groups, dict(enumerate(p.budgets.tolist())))
    pool = Pool(Quadratic(problem), matroid, problem.tilt)
    for members in (pool.top_k(), pool.per_group(), pool.at_random(seed, 0)):
        assert matroid.is_feasible(members)
        assert_best(problem, p, members, pool.facts(members).objective)
    assert len(pool.top_k()) == len(pool.at_random(seed, 1)) == matroid.rank
    assert len(set(pool.top_k().tolist())) == matroid.rank


def test_per_group_is_normalised_omp_on_each_group():
    p = random_problem(7, n=24, d=15, n_groups=3, k=3)
    problem, matroid = GradientMatching(p.G, p.target), PartitionMatroid(p.groups, {0: 3, 1: 3, 2: 3})
    alone = []
    for label in range(3):
        rows = np.flatnonzero(p.groups == label)
        part = solve(GradientMatching(p.G[rows], p.target), 3, "omp-normalized")
        alone += rows[part.indices].tolist()
    expected = problem.value(alone)
    table = diagnose(problem, matroid, alone, eigen_limit=0).comparison
    assert table["per_group"]["objective"] == pytest.approx(expected, rel=1e-9)
    assert table["selection"]["objective"] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("nonneg", [True, False])
def test_a_float32_gram_matrix_without_full_rank(nonneg):
    """K's rounding is 1e-7: what it cannot see of c is noise, no unbounded direction."""
    G = np.random.default_rng(3).normal(size=(30, 4))
    problem = GradientMatching.from_gram((G @ G.T).astype(np.float32), G @ np.ones(4), nonneg=nonneg, target_norm=2.0)
    exact = GradientMatching(G, np.ones(4), nonneg=nonneg)
    diagnosis = diagnose(problem, 12, np.arange(12))
    assert diagnosis.problem["objective"] == pytest.approx(exact.value(np.arange(12)), rel=1e-4)
    assert diagnosis.certified["lambda_min"]["value"] == 0.0 and flagged(diagnosis, "no Gram matrix") == 0


# ---- flags ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def demo():
    data = load_demo()
    matroid = PartitionMatroid(data.groups, dict.fromkeys(data.domains, 4))
    return data, matroid


def test_a_sound_selection_has_no_flags(demo):
    data, matroid = demo
    problem = GradientMatching(data.gradients, data.target, ridge=1e-2)
    selection = solve(problem, matroid)
    diagnosis = diagnose(problem, matroid, selection)
    assert diagnosis.flags == ()
    assert diagnosis.comparison["selection"]["objective"] == pytest.approx(selection.objective, rel=1e-10)
    assert diagnosis.problem["relative_residual"] == pytest.approx(selection.relative_residuals[-1], rel=1e-6)
    assert diagnosis.problem["objective_at_own_weights"] == pytest.approx(selection.objective, rel=1e-10)


def test_flag_top_k(demo):
    data, matroid = demo
    problem = GradientMatching(data.gradients, data.target)
    rows = [i for d in data.domains for i in _best_aligned(data, d, 4)]
    top = diagnose(problem, matroid, rows)
    assert top.comparison["top_k"]["same_set"] and flagged(top, "exactly the top-k") == 1
    # Nothing but what is there to take: no flag.
    assert flagged(diagnose(problem, problem.n, np.arange(problem.n), n_random=1), "exactly the top-k") == 0


def _best_aligned(data, domain, k):
    rows = np.flatnonzero(data.groups == domain)
    score = data.gradients[rows].astype(float) @ data.target
    return rows[np.argsort(-score, kind="stable")[:k]].tolist()


def test_flag_top_k_speaks_of_the_method():
    """Orthogonal rows: every sensible method takes the top-k."""
    problem = GradientMatching(np.eye(6), np.arange(1.0, 7.0))
    for method in ("omp", "swap", "best", "exact", "greats"):
        assert flagged(diagnose(problem, 3, solve(problem, 3, method)), "quadratic term is too small") == 1
    for method in ("top-k", "top-k-per-group"):
        diagnosis = diagnose(problem, 3, solve(problem, 3, method))
        assert flagged(diagnosis, f"Method '{method}' looks at each row alone") == 1
        assert flagged(diagnosis, "quadratic") == 0
    bare = diagnose(problem, 3, [5, 4, 3])
    assert flagged(bare, "exactly the top-k") == 1 and flagged(bare, "quadratic") == 0


def test_advice_fits_how_the_selection_was_made():
    G = np.vstack([[[1.0, 0.1, 0.0], [1.0, 0.0, 0.1], [1.0, 0.11, 0.0]], np.diag([0.9, 1.0, 1.0])[[1, 2, 0]]])
    problem = GradientMatching(G, [3.0, 1.0, 1.0], ridge=1e-3)
    worse = "larger objective"
    cases = {
        "solve(problem, matroid, method='best')": {},
        "refine='swap' or refine='best'": {"rule": "omp", "refine": None},
        "try refine='best'": {"rule": "omp", "refine": "swap"},
        "method='swap' or method='best'": {"method": "craig"},
        "try method='best'": {"method": "swap", "rule": "normalized", "refine": "swap"},
        "try method='exact'": {"method": "best"},
        "larger time_limit": {"method": "exact"},
    }
    poor = solve(problem, 2, "random", random_state=0)
    poor = dataclasses.replace(poor, indices=[4, 5], weights=problem.weights([4, 5]), objective=problem.value([4, 5]))
    for text, config in cases.items():
        flags = diagnose(problem, 2, dataclasses.replace(poor, config=config)).flags
        found = [flag for flag in flags if worse in flag and "random draw" not in flag]
        assert found and all(text in flag for flag in found)
    # Advice names options that the method takes.
    made = {"rule": "omp"}
    for config, takes in (({}, 0), ({"method": "craig"}, 0), (made | {"method": "omp"}, 1), (made, 1)):
        short = dataclasses.replace(poor, indices=[5, 3], weights=[1.0, 0.0], config=config, status="stopped")
        diagnosis = diagnose(problem, 3, short)
        assert flagged(diagnosis, "weights are zero") == flagged(diagnosis, "Only 2 of the 3 picks") == 1
        assert flagged(diagnosis, "release_zeros=True") == flagged(diagnosis, "fill=True") == takes
    filled = dataclasses.replace(short, config={"rule": "omp", "fill": True, "release_zeros": True})
    assert flagged(diagnose(problem, 3, filled), "release_zeros=True") == 0


def test_advice_for_long_rows_can_be_followed(demo):
    data, matroid = demo
    G = data.gradients.astype(float)
    G[7] *= 1000
    problem = GradientMatching(G, data.target)
    assert flagged(diagnose(problem, matroid, solve(problem, matroid)), "use method='omp-normalized'") == 1
    direct = omp_partition(G, data.target, matroid)
    assert flagged(diagnose(problem, matroid, direct), "use rule='normalized'") == 1
    drawn = solve(problem, matroid, "partition-sel", random_state=0)
    flags = [flag for flag in diagnose(problem, matroid, drawn).flags if "prefers long rows" in flag]
    assert flags and all("use " not in flag for flag in flags)


# ---- candidates -----------------------------------------------------------------------------------------------------


def test_rivals_have_the_candidates_of_the_selection(demo):
    data, matroid = demo
    G = data.gradients.astype(float)
    mask = np.random.default_rng(0).random(240) < 0.3
    mask[data.groups == data.domains[0]] = False
    mask[np.flatnonzero(data.groups == data.domains[0])[:2]] = True  # two candidates, budget 4
    inside = GradientMatching(G[mask], data.target, ridge=1e-2)
    part = PartitionMatroid(data.groups[mask], dict.fromkeys(data.domains, 4))
    expected = diagnose(inside, part, solve(inside, part))
    G[~mask] = np.nan  # never read
    problem = GradientMatching(G, data.target, ridge=1e-2)
    selection = solve(problem, matroid, candidates=mask)
    for diagnosis in (
        diagnose(problem, matroid, selection),
        selection.diagnose(),
        diagnose(problem, matroid, dataclasses.replace(selection), candidates=mask),
        omp_partition(G, data.target, matroid, ridge=1e-2, candidates=mask).diagnose(),
    ):
        assert diagnosis.comparison == expected.comparison and diagnosis.guarantees == expected.guarantees
        assert diagnosis.groups == expected.groups and diagnosis.flags == expected.flags
        assert diagnosis.problem["n"] == 240 and diagnosis.problem["candidates"] == mask.sum()
        assert f"{mask.sum()} candidates (240 rows)" in str(diagnosis)
    assert diagnosis.groups[0]["shortfall"] == 0


def test_candidates_that_are_not_known_are_not_guessed(demo, tmp_path):
    data, matroid = demo
    problem = GradientMatching(data.gradients, data.target, ridge=1e-2)
    mask = np.arange(240) % 4 == 0
    selection = solve(problem, matroid, candidates=mask)
    selection.save(tmp_path / "selection.json")
    loaded = Selection.load(tmp_path / "selection.json")
    diagnosis = diagnose(problem, matroid, loaded)
    assert flagged(diagnosis, "The run saw 60 of the 240 rows") == 1
    assert flagged(diagnosis, "Fewer picks") == flagged(diagnosis, "larger objective") == 0
    assert diagnosis.comparison["top_k"] is diagnosis.comparison["per_group"] is None
    assert diagnosis.comparison["random"]["draws"] == 0 and "top-k by" not in str(diagnosis)
    assert diagnosis.guarantees == () and all(group["shortfall"] is None for group in diagnosis.groups)
    json.dumps(diagnosis.to_dict(), allow_nan=False)
    assert diagnose(problem, matroid, loaded, candidates=mask).flags == selection.diagnose().flags
    pytest.importorskip("matplotlib")
    diagnosis.plot().canvas.draw()


def test_given_rows_outside_the_candidates_stay(demo):
    data, matroid = demo
    problem = GradientMatching(data.gradients, data.target, ridge=1e-2)
    mask = np.arange(240) % 4 != 0
    diagnosis = solve(problem, matroid, candidates=mask, initial=[0, 4]).diagnose()
    assert diagnosis.problem["candidates"] == 182 and diagnosis.problem["picks"] == 32
    with pytest.raises(TypeError, match="candidates: expected a boolean mask"):
        diagnose(problem, matroid, [0], candidates=[0, 1])


def test_flags_of_uninformative_rows_and_columns():
    G = np.random.default_rng(0).normal(size=(20, 16))
    problem = GradientMatching(G, G.mean(axis=0))
    clean = diagnose(problem, 4, solve(problem, 4))
    assert flagged(clean, "columns of G are zero") == flagged(clean, "rows are zero") == 0
    G[:, ::2] = 0.0
    G[3] = 0.0
    problem = GradientMatching(G, np.ones(16))
    dirty = diagnose(problem, 4, solve(problem, 4))
    assert flagged(dirty, "8 of 16 columns of G are zero") == flagged(dirty, "1 of 20 rows are zero") == 1
    assert "LoRA" in "".join(dirty.flags)
    # From the products alone columns are not known.
    gram = diagnose(GradientMatching.from_gram(G @ G.T, G @ np.ones(16)), 4, [0, 1])
    assert gram.informative["zero_columns"] is None and flagged(gram, "columns") == 0 and flagged(gram, "rows are") == 1


def test_flags_of_the_picks(demo):
    data, matroid = demo
    problem = GradientMatching(data.gradients, data.target)
    worst = [i for d in data.domains for i in np.flatnonzero(data.groups == d)[:3].tolist()]
    short = diagnose(problem, matroid, worst)
    assert flagged(short, "Fewer picks") == 1 and "(3 of 4) and 3 more groups" in "".join(short.flags)
    assert flagged(diagnose(problem, 3, [0, 1]), "Only 2 of the 3 picks") == 1
    assert diagnose(problem, 3, []).flags == ("The selection is empty.",)
    assert [group["shortfall"] for group in short.groups] == [1] * 8
    assert flagged(short, "top-k by alignment reaches a larger") == 1
    small = PartitionMatroid([0] * 238 + [1] * 2, {0: 3, 1: 5})
    assert [group["shortfall"] for group in diagnose(problem, small, [1, 239]).groups] == [2, 1]
    doubled = np.vstack([data.gradients, data.gradients[:1]])
    twice = diagnose(GradientMatching(doubled, data.target), 2, [0, 240])
    assert flagged(twice, "linearly dependent") == 1 and twice.conditioning["picks"] == inf
    assert twice.certified["beta_r"]["value"] == inf


def test_flags_of_weights_and_target(demo):
    data, matroid = demo
    problem = GradientMatching(data.gradients, data.target, ridge=1e-2)
    selection = solve(problem, matroid)
    equal = dataclasses.replace(selection, weights=np.full(32, 1 / 32))
    assert flagged(diagnose(problem, matroid, equal), "not the best ones") == 1
    away = GradientMatching(np.ones((5, 3)) + np.eye(5, 3), -np.ones(3))
    nothing = diagnose(away, 2, [0, 1])
    assert flagged(nothing, "aligned with the target") == 1 and flagged(nothing, "weights are zero") == 1
    assert nothing.problem["objective"] == 0.0
    one = np.array([1.0, *[1e-3] * 7])
    skew = dataclasses.replace(
        selection, indices=np.arange(8), weights=one, gains=one, residual_norms=one, config={}, stats={}
    )
    assert flagged(diagnose(problem, 8, skew), "A few picks carry") == 1


def test_flags_of_norms_and_k(demo):
    data, matroid = demo
    G = data.gradients.astype(float)
    G[7] *= 1000
    problem = GradientMatching(G, data.target)
    assert flagged(diagnose(problem, matroid, solve(problem, matroid)), "prefers long rows") == 1
    assert flagged(diagnose(problem, matroid, solve(problem, matroid, "omp-normalized")), "prefers long rows") == 0
    broken = GradientMatching.from_gram([[1.0, 2.0], [2.0, 1.0]], [1.0, 0.0])
    assert flagged(diagnose(broken, 1, [0]), "no Gram matrix") == 1
    fine = GradientMatching.from_gram([[1.0, 1.0], [1.0, 1.0]], [1.0, 1.0])
    assert flagged(diagnose(fine, 1, [0]), "no Gram matrix") == 0


def test_flag_conflicts():
    rng = np.random.default_rng(1)
    G = np.abs(rng.normal(size=(60, 5)))
    G[:3] = [[1, -9, 0, 0, 0], [1, 9, -9, 0, 0], [1, 0, 9, -1, 0]]
    diagnosis = diagnose(GradientMatching(G, np.ones(5)), 3, [0, 1, 2], n_random=20)
    assert flagged(diagnosis, "2 of 3 pairs of picks conflict") == (
        diagnosis.comparison["random"]["conflicting_pairs"]["max"] < 2
    )


# ---- the report -----------------------------------------------------------------------------------------------------


def test_bounds_and_estimates_are_kept_apart(demo):
    data, matroid = demo
    problem = GradientMatching(data.gradients, data.target, ridge=1e-2, nonneg=False)
    selection = solve(problem, matroid, "greedy")
    few, many = (diagnose(problem, matroid, selection, n_pairs=n, random_state=n) for n in (0, 40))
    assert few.certified == many.certified and few.guarantees == many.guarantees
    assert set(many.estimates) == {"lambda_2r", "gamma_r", "beta_r"} and set(few.estimates) == {"lambda_2r"}
    assert all("sampled" not in item["how"] and "at most" not in item["how"] for item in many.certified.values())
    assert many.certified["gamma_r"]["value"] <= many.estimates["gamma_r"]["value"]
    assert many.certified["beta_r"]["value"] >= many.estimates["beta_r"]["value"]
    assert many.certified["lambda_2r"]["value"] <= many.estimates["lambda_2r"]["value"]
    text = str(many)
    certified, estimates = text.index("Curvature, certified"), text.index("Curvature, estimates")
    assert certified < estimates < text.index("sampled pairs")
    assert set(many.to_dict()) >= {"certified", "estimates"}


def test_bounds_are_printed_rounded_to_the_safe_side():
    assert rounded(0.32972, 3, up=False) == "0.329" and rounded(0.32972, 2, up=True) == "0.33"
    assert rounded(1.0, 3, up=False) == "1" and rounded(inf, 4, up=True) == "inf" and rounded(0.0, 4, up=True) == "0"
    assert rounded(7.93e-06, 2, up=False) == "7.9e-06"


def test_exact_values_of_a_singular_problem_are_no_certificates():
    G = np.array([[1.0, 0.0], [1.0, 1e-7], [0.0, 1.0]])
    diagnosis = diagnose(GradientMatching(G, [1.0, 1.0]), 2, [0, 2])
    assert "gamma_r_exact" in diagnosis.estimates and "gamma_r_exact" not in diagnosis.certified
    # Six rows of length 4 are dependent, any two of them are not.
    G = np.random.default_rng(0).normal(size=(6, 4))
    diagnosis = diagnose(GradientMatching(G, G[0] + G[1]), 2, [0, 1])
    assert "gamma_r_exact" in diagnosis.certified and "gamma_r_exact" not in diagnosis.estimates


CASES = {
    "empty": lambda G: (GradientMatching(G, G[0]), 3, []),
    "no budget": lambda G: (GradientMatching(G, G[0]), 0, []),
    "no candidates": lambda G: (GradientMatching(G[:0], G[0]), 2, []),
    "one row": lambda G: (GradientMatching(G[:1], G[0]), 1, [0]),
    "gram": lambda G: (GradientMatching.from_gram(G @ G.T, G @ G[0], ridge=0.1, nonneg=False), 3, [4, 1, 0]),
    "gram and norm": lambda G: (GradientMatching.from_gram(G @ G.T, G @ G[0], target_norm=2.0), 3, [4, 1]),
    "tilt": lambda G: (GradientMatching(G, G[0], ridge=1.0, tilt=0.1), 3, [2, 3, 1]),
    "zero group": lambda G: (GradientMatching(G, G[0]), PartitionMatroid([0] * 9 + [1] * 3, {0: 2, 1: 0}), [3, 4]),
    "zeros": lambda G: (GradientMatching(0 * G, G[0]), 3, [0, 1]),
    "zero target": lambda G: (GradientMatching(G, 0 * G[0]), 3, [0, 1, 2]),
    "duplicates": lambda G: (GradientMatching(np.repeat(G[:4], 3, axis=0), G[0], nonneg=False), 3, [0, 1, 2]),
    "half": lambda G: (GradientMatching(G.astype(np.float16), G[0]), 3, [0, 1, 2]),
    "mapping": lambda G: (
        GradientMatching({"x": G[:5], "y": G[5:]}, G[0]),
        PartitionMatroid(["x"] * 5 + ["y"] * 7, {"x": 1, "y": 3}),
        [0, 9],
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("eigen_limit", [1500, 3])
def test_every_case_reports_and_survives_json(name, eigen_limit):
    G = np.random.default_rng(0).normal(size=(12, 6))
    problem, matroid, picks = CASES[name](G)
    diagnosis = diagnose(problem, matroid, picks, n_random=5, n_pairs=4, eigen_limit=eigen_limit)
    document = diagnosis.to_dict()
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert str(diagnosis).startswith("Diagnosis of") and "Diagnosis:" in repr(diagnosis)
    assert all(line == line.rstrip() for line in str(diagnosis).splitlines())
    if len(picks):
        assert isclose(diagnosis.problem["objective"], problem.value(picks), rel_tol=1e-9, abs_tol=1e-12)
        residual = problem.residual_norm(picks)
        if residual is not None and diagnosis.problem["relative_residual"] is not None:
            norm = Quadratic(problem).target_norm
            assert diagnosis.problem["relative_residual"] == pytest.approx(residual / norm, abs=1e-7)


def test_without_the_matrix_nothing_else_changes(demo):
    data, matroid = demo
    problem = GradientMatching(data.gradients, data.target, ridge=1e-2)
    selection = solve(problem, matroid)
    small, large = (diagnose(problem, matroid, selection, eigen_limit=limit) for limit in (1500, 0))
    for name in ("top_k", "per_group", "selection"):
        assert large.comparison[name]["objective"] == pytest.approx(small.comparison[name]["objective"], rel=1e-9)
    assert large.comparison["random"]["objectives"] == pytest.approx(small.comparison["random"]["objectives"], rel=1e-9)
    assert large.certified["lambda_min"]["value"] <= small.certified["lambda_min"]["value"]
    assert diagnose(problem, matroid, selection).to_dict() == small.to_dict()


def test_a_certificate_is_printed(demo):
    data, matroid = demo
    problem = GradientMatching(data.gradients, data.target)

    certificate = certify(problem, matroid, [0, 1], method="one-shot")
    diagnosis = diagnose(problem, matroid, [0, 1], certificate=certificate, n_random=1, n_pairs=0)
    assert certificate.sentence[:40] in str(diagnosis)
    assert json.loads(json.dumps(diagnosis.to_dict()))["certificate"]["objective"] == certificate.objective
    with pytest.raises(ValueError, match="certificate: belongs to a selection with objective"):
        diagnose(problem, matroid, [0, 2], certificate=certificate, n_random=1, n_pairs=0)
    with pytest.raises(TypeError, match="certificate: expected a Certificate, got str"):
        diagnose(problem, matroid, [0, 1], certificate="within 1 %", n_random=1, n_pairs=0)
    nothing = GradientMatching(data.gradients, 0 * data.target)
    empty = certify(nothing, matroid, [0, 1], method="one-shot")
    assert diagnose(nothing, matroid, [0, 1], certificate=empty, n_random=1, n_pairs=0).certificate is empty


@pytest.mark.parametrize("name", ["empty", "one row", "gram", "zero group", "zero target", "mapping"])
def test_plot(name):
    pytest.importorskip("matplotlib")
    G = np.random.default_rng(0).normal(size=(12, 6))
    problem, matroid, picks = CASES[name](G)
    for n_random in (0, 7):
        figure = diagnose(problem, matroid, picks, n_random=n_random).plot()
        figure.canvas.draw()


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (("problem", 2, [0]), {}, TypeError, "problem: expected a GradientMatching, got str"),
        ((None, PartitionMatroid([0, 0], {0: 1}), [0]), {}, ValueError, "matroid: has 2 rows"),
        ((None, -1, [0]), {}, ValueError, "budgets"),
        ((None, 2, [0, 0]), {}, ValueError, "selection: row 0 comes twice"),
        ((None, 2, [8]), {}, ValueError, "selection: row 8 does not exist"),
        ((None, 2, [0.5]), {}, TypeError, "selection: expected integer"),
        ((None, 2, [0]), {"n_random": -1}, ValueError, "n_random: expected at least 0"),
        ((None, 2, [0]), {"n_random": 1.5}, TypeError, "n_random: expected an integer"),
        ((None, 2, [0]), {"n_pairs": True}, TypeError, "n_pairs"),
        ((None, 2, [0]), {"exact_limit": 15}, ValueError, "exact_limit: expected 0 .. 14"),
        ((None, 2, [0]), {"eigen_limit": "all"}, TypeError, "eigen_limit"),
        ((None, 2, [0]), {"random_state": -1}, ValueError, "random_state"),
    ],
)
def test_bad_inputs(arguments, options, error, message):
    p = random_problem(0)
    problem = GradientMatching(p.G, p.target) if arguments[0] is None else arguments[0]
    with pytest.raises(error, match=message):
        diagnose(problem, *arguments[1:], **options)


def test_unbounded_problems_are_refused():
    problem = GradientMatching.from_gram(np.zeros((2, 2)), [1.0, 1.0])
    with pytest.raises(ValueError, match="unbounded"):
        diagnose(problem, 1, [0])


def test_exported():
    assert pysubmod.diagnose is diagnose and "Diagnosis" in pysubmod.__all__
