"""The rival selectors: each against a plain statement of its rule, and what all of them promise."""

from __future__ import annotations

import importlib
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import check_selection, same, units_of_gram, units_of_rows
from strategies import EXAMPLES, problems, random_problem, seeds

import pysubmod
from pysubmod import GradientMatching, PartitionMatroid, Selection, available_methods, solve
from pysubmod.solvers import METHODS

RANDOMISED = ("stochastic-greedy", "divbs", "random", "random-per-group")
PURSUITS = ("omp", "omp-normalized", "greedy")
BASELINES = (
    "stochastic-greedy",
    "grad-match",
    "greats",
    "divbs",
    "craig",
    "per-group",
    "top-k",
    "top-k-per-group",
    "random",
    "random-per-group",
)
ALWAYS_FULL = ("greats", "top-k", "top-k-per-group", "random", "random-per-group")
flags = st.booleans()


def setup(problem, gram=False):
    if gram:
        made = GradientMatching.from_gram(
            problem.G @ problem.G.T,
            problem.G @ problem.target,
            ridge=problem.ridge,
            nonneg=problem.nonneg,
            target_norm=float(np.linalg.norm(problem.target)),
        )
    else:
        made = GradientMatching(problem.G, problem.target, ridge=problem.ridge, nonneg=problem.nonneg)
    return made, PartitionMatroid(np.append(problem.groups, []).astype(int), labelled(problem))


def labelled(problem):
    """Budgets of the labels that rows have."""
    return {int(p): int(problem.budgets[p]) for p in np.unique(problem.groups)}


def run(problem, method, gram=False, **options):
    return solve(*setup(problem, gram), method, **options)


def greedily(problem, score):
    """The naive loop: while a row is allowed, take the first one with the largest score(picks)[i], up to rounding."""
    picks = []
    while True:
        counts = np.bincount(problem.groups[picks], minlength=len(problem.budgets))
        left = [
            i
            for i in range(len(problem.G))
            if i not in picks and counts[problem.groups[i]] < problem.budgets[problem.groups[i]]
        ]
        if not left:
            return picks
        values = score(picks)
        largest = max(values[i] for i in left)
        picks.append(next(i for i in left if values[i] >= largest - 1e-12 * np.abs(values).max()))


def feasible_sets(problem):
    by_group = [np.flatnonzero(problem.groups == p) for p in range(len(problem.budgets))]
    choices = [
        list(itertools.combinations(rows, min(len(rows), b))) for rows, b in zip(by_group, problem.budgets, strict=True)
    ]
    for parts in itertools.product(*choices):
        yield sorted(int(i) for part in parts for i in part)


# ---- what all of them promise ---------------------------------------------------------------------------------------


def test_every_baseline_is_there():
    assert set(BASELINES) <= set(available_methods())


@pytest.mark.parametrize("method", BASELINES)
@settings(max_examples=max(EXAMPLES // 2, 1))
@given(problem=problems(ridge=None), gram=flags, data=st.data())
def test_selections_are_feasible_and_refitted(method, problem, gram, data):
    n = len(problem.G)
    mask = np.array(data.draw(st.lists(flags, min_size=n, max_size=n))) if data.draw(flags) else None
    size = np.einsum("ij,ij->i", problem.G, problem.G)
    if gram and size.max() > 0 and size[size > 0].min() < 1e-12 * size.max():
        problem = problem.but(G=problem.G / np.sqrt(np.where(size > 0, size, 1.0))[:, None], ridge=0.0)
    selection = run(problem, method, gram, random_state=3, candidates=mask)
    if gram:
        K = problem.G @ problem.G.T
        units = units_of_gram(K, problem.G @ problem.target, problem.ridge)
    else:
        units = units_of_rows(problem.G, problem.target, problem.ridge)
    check_selection(
        selection,
        n,
        problem.groups.tolist(),
        labelled(problem),
        nonneg=problem.nonneg,
        candidates=mask,
        units=units,
        exact=False,
    )
    if method in ALWAYS_FULL:
        assert selection.status in ("budget", "exhausted")
    own = selection.stats.get("method_weights")
    assert own is None or (len(own) == len(selection) and np.isfinite(own).all())


@pytest.mark.parametrize("method", BASELINES)
@pytest.mark.parametrize("nonneg", [True, False])
def test_values_are_those_of_the_problem(method, nonneg):
    problem, matroid = setup(random_problem(5, n=20, d=30, k=3, ridge=0.3, nonneg=nonneg))
    selection = solve(problem, matroid, method, random_state=1)
    assert selection.status == "budget" and len(selection) == matroid.rank
    assert selection.objective == pytest.approx(problem.value(selection.indices), rel=1e-12)
    assert selection.weights == pytest.approx(problem.weights(selection.indices), rel=1e-9)
    values = [problem.value(selection.indices[:j]) for j in range(len(selection) + 1)]
    assert selection.gains == pytest.approx(np.diff(values), rel=1e-9, abs=1e-12 * values[-1])
    norms = [problem.residual_norm(selection.indices[: j + 1]) for j in range(len(selection))]
    assert selection.residual_norms == pytest.approx(norms, rel=1e-9)


@pytest.mark.parametrize("method", BASELINES)
def test_masked_rows_and_closed_groups_are_never_read(method):
    problem = random_problem(2, n=24, n_groups=4, k=2, ridge=0.1)
    mask = np.ones(24, bool)
    mask[[1, 5]] = False
    open_rows = mask & (problem.groups != 2)
    budgets = {p: 0 if p == 2 else 2 for p in range(4)}
    G = problem.G.copy()
    first = solve(
        GradientMatching(G, problem.target, ridge=0.1),
        PartitionMatroid(problem.groups, budgets),
        method,
        candidates=mask,
        random_state=4,
    )
    G[~open_rows] = np.nan
    again = solve(
        GradientMatching(G, problem.target, ridge=0.1),
        PartitionMatroid(problem.groups, budgets),
        method,
        candidates=mask,
        random_state=4,
    )
    same(first, again)
    assert open_rows[first.indices].all() and first.status == "budget"


@pytest.mark.parametrize("method", BASELINES)
def test_rows_in_several_arrays_and_types(method):
    """A mapping's blocks, of several number types, with rows left out of each and all of one."""
    problem = random_problem(4, n=24, n_groups=2)
    G = problem.G.astype(np.float16)
    blocks = {"a": G[:10].astype(np.float32), "b": G[10:12], "c": np.asfortranarray(G[12:].astype(float))}
    matroid = PartitionMatroid(np.repeat(["a", "b", "c"], [10, 2, 12]), [2, 1, 3])
    mask = np.arange(24) % 5 != 0
    mask[10:12] = False
    apart = GradientMatching(blocks, problem.target, ridge=0.1)
    whole = GradientMatching(G.astype(float), problem.target, ridge=0.1)
    first = solve(apart, matroid, method, candidates=mask, random_state=5)
    again = solve(whole, matroid, method, candidates=mask, random_state=5)
    assert first.indices.tolist() == again.indices.tolist() and first.status == "exhausted"
    assert first.objective == pytest.approx(again.objective, rel=1e-12)


@pytest.mark.parametrize("method", [m for m in BASELINES if not m.startswith("random")])
def test_bad_rows_are_named_by_their_own_number(method):
    problem = random_problem(2, n=10, k=3)
    G = problem.G.copy()
    G[7, 0] = np.inf
    mask = np.arange(10) != 3
    with pytest.raises(ValueError, match="row 7"):
        solve(GradientMatching(G, problem.target), 10, method, candidates=mask, random_state=0)


@pytest.mark.parametrize("method", [m for m in BASELINES if m not in (*RANDOMISED, "craig")])
@given(seed=seeds, ridge=st.sampled_from([0.0, 0.5]), nonneg=flags)
@settings(max_examples=max(EXAMPLES // 4, 1))
def test_reordering_rows_reorders_picks(method, seed, ridge, nonneg):
    """Without ties, that is; of two rows that are each other's nearest, `craig` may well gain the same."""
    problem = random_problem(seed, n=14, ridge=ridge, nonneg=nonneg)
    order = np.random.default_rng(seed).permutation(14)
    moved = problem.but(G=problem.G[order], groups=problem.groups[order])
    assert order[run(moved, method).indices].tolist() == run(problem, method).indices.tolist()


@pytest.mark.parametrize("method", BASELINES)
def test_short_groups_are_taken_whole(method):
    problem = random_problem(8, n=12, d=20, n_groups=2, k=30, ridge=0.1, nonneg=False)
    selection = run(problem, method, random_state=2)
    assert selection.status == "exhausted" and sorted(selection.indices.tolist()) == list(range(12))


@pytest.mark.parametrize("method", BASELINES)
@pytest.mark.parametrize("budget", [0, 3])
def test_nothing_to_choose_from(method, budget):
    problem = GradientMatching(np.eye(4), np.ones(4))
    empty = solve(problem, budget, method, candidates=np.zeros(4, bool), random_state=0)
    assert len(empty) == 0 and empty.objective == 0 and empty.status == ("exhausted" if budget else "budget")
    none = solve(GradientMatching(np.empty((0, 4)), np.ones(4)), budget, method, random_state=0)
    assert len(none) == 0


@pytest.mark.parametrize("method", BASELINES)
def test_selections_can_be_saved_and_repeated(method, tmp_path):
    problem, matroid = setup(random_problem(1, n=20, ridge=0.2))
    selection = solve(problem, matroid, method, random_state=np.random.default_rng(3))
    selection.save(tmp_path / "selection.json")
    again = Selection.load(tmp_path / "selection.json")
    assert again.config == json.loads(json.dumps(selection.config)) or again.config == selection.config
    assert again.config["method"] == method
    options = {"random_state": again.config["random_state"]} if "random_state" in again.config else {}
    same(selection, solve(problem, matroid, method, **options))
    assert ("random_state" in again.config) == (method in RANDOMISED)


@pytest.mark.parametrize("method", RANDOMISED)
def test_seeds_decide(method):
    problem = random_problem(4, n=40, n_groups=2, k=4, ridge=0.1)
    picks = [tuple(run(problem, method, random_state=s).indices) for s in (0, 0, 1, 2, 3)]
    assert picks[0] == picks[1] and len(set(picks)) > 2
    fresh = run(problem, method)
    same(fresh, run(problem, method, random_state=fresh.config["random_state"]))


def test_random_choices_are_the_same_on_every_machine():
    problem, matroid = setup(random_problem(0, n=20, ridge=0.1))
    drawn = {method: solve(problem, matroid, method, random_state=7).indices.tolist() for method in RANDOMISED}
    assert drawn == {
        "stochastic-greedy": [13, 18, 10, 6, 3, 1],
        "divbs": [10, 0, 19, 12, 6, 1],
        "random": [12, 9, 5, 13, 11, 1],
        "random-per-group": [12, 9, 5, 13, 11, 1],
    }


@pytest.mark.parametrize("method", BASELINES)
@pytest.mark.parametrize("option", ["tol", "fill", "initial", "callback", "pick", "nonsense"])
def test_options_of_other_methods_are_refused(method, option):
    problem, matroid = setup(random_problem(0))
    message = f"{option}: not an option of method=" if method != "per-group" else option
    if method == "per-group" and option in ("tol", "fill", "pick"):
        return  # its base takes them
    with pytest.raises(TypeError, match=message):
        solve(problem, matroid, method, **{option: None})


def test_a_base_refuses_what_it_does_not_take():
    problem, matroid = setup(random_problem(0))
    with pytest.raises(
        TypeError, match=r"tol: not an option of method='craig'; it takes candidates, device, n_threads"
    ):
        solve(problem, matroid, "per-group", base="craig", tol=0.5)


@pytest.mark.parametrize("method", available_methods())
def test_random_state_is_taken_by_all_and_checked(method):
    problem, matroid = setup(random_problem(0))
    solve(problem, matroid, method, random_state=3)
    with pytest.raises(TypeError, match="random_state: expected an integer"):
        solve(problem, matroid, method, random_state="3")


@pytest.mark.parametrize(
    ("method", "options", "error"),
    [
        ("stochastic-greedy", {"epsilon": 0.0}, "epsilon: expected a number between 0 and 1"),
        ("stochastic-greedy", {"epsilon": 1}, "epsilon: expected a number between 0 and 1"),
        ("stochastic-greedy", {"epsilon": "small"}, "epsilon: expected a real number"),
        ("grad-match", {"eps": 1.0}, "eps: expected a number of at least 0 and below 1"),
        ("grad-match", {"eps": -0.1}, "eps: expected a number that is at least 0"),
        ("greats", {"eta": -1}, "eta: expected a number that is at least 0"),
        ("divbs", {"target": "median"}, "target: expected one of 'mean', 'problem'"),
        ("per-group", {"base": "per-group"}, "base: expected one of"),
        ("per-group", {"base": "best-of-all"}, "base: expected one of"),
        ("top-k", {"normalize": 1}, "normalize: expected True or False"),
        ("craig", {"device": "tpu"}, "device: expected one of"),
        ("random", {"device": "cuda"}, "device: this method runs on the CPU"),
        ("random", {"verbose": "yes"}, "verbose: expected 0 or 1"),
        ("top-k", {"n_threads": 0}, "n_threads: expected 1"),
        ("top-k", {"candidates": [0, 1]}, "candidates: expected a boolean mask"),
    ],
)
def test_bad_options(method, options, error):
    with pytest.raises((TypeError, ValueError), match=error):
        solve(*setup(random_problem(0)), method, **options)


def test_verbose_tells_each_pick(capsys):
    selection = run(random_problem(0), "craig", verbose=1)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(selection)
    assert f"{len(selection)}/{len(selection)} picked row {selection.indices[-1]}" in lines[-1]


def test_the_table_of_methods_is_complete():
    page = (Path(__file__).parents[1] / "docs" / "solvers.md").read_text()
    for name, method in METHODS.items():
        assert f"| `{name}` |" in page
        row = " ".join([name, method.summary, method.source]).split()
        assert any(line.split() == row for line in solve.__doc__.splitlines()), row


# ---- by score, or at random -----------------------------------------------------------------------------------------


@given(seeds, flags, flags)
def test_top_k_is_greedy_by_score(seed, nonneg, normalize):
    problem = random_problem(seed, n=12, ridge=0.4, nonneg=nonneg)
    score = problem.G @ problem.target
    score = score if nonneg else np.abs(score)
    if normalize:
        score = score / np.sqrt((problem.G**2).sum(axis=1) + 0.4)
    expected = greedily(problem, lambda picks: score)
    by_score = run(problem, "top-k", normalize=normalize)
    assert by_score.indices.tolist() == expected
    rounds = run(problem, "top-k-per-group", normalize=normalize)
    places = [sum(problem.groups[j] == problem.groups[i] for j in expected[:at]) for at, i in enumerate(expected)]
    assert rounds.indices.tolist() == [
        i for _, i in sorted(zip(places, expected, strict=True), key=lambda pair: pair[0])
    ]
    assert rounds.stats["method_weights"] == [1 / len(expected)] * len(expected)


def test_top_k_per_group_is_that_of_the_demo():
    from pysubmod.datasets import load_demo
    from pysubmod.demo import equal_budgets, per_domain_top_k

    data = load_demo()
    budgets = equal_budgets(20, data.domains)
    scores = data.gradients.astype(np.float64) @ data.target
    selection = solve(
        GradientMatching(data.gradients, data.target), PartitionMatroid(data.groups, budgets), "top-k-per-group"
    )
    assert selection.indices.tolist() == per_domain_top_k(scores, data.groups, budgets).tolist()


def test_random_draws_every_selection_equally_often():
    problem = random_problem(3, n=7, n_groups=2, k=2)
    made, matroid = setup(problem.but(groups=np.array([0, 0, 0, 0, 1, 1, 1])))
    counts: dict = {}
    for seed in range(1800):
        drawn = solve(made, matroid, "random", random_state=seed).indices
        counts[tuple(sorted(drawn))] = counts.get(tuple(sorted(drawn)), 0) + 1
        if seed < 50:
            rounds = solve(made, matroid, "random-per-group", random_state=seed).indices
            assert sorted(rounds) == sorted(drawn)
            assert len({int(i) // 4 for i in rounds[:2]}) == 2  # one of each group first
    assert len(counts) == 18
    assert sum((c - 100) ** 2 / 100 for c in counts.values()) < 50  # chi-square, 17 degrees of freedom: 1e-5


# ---- greedy, in its kinds -------------------------------------------------------------------------------------------


@given(problems(rule="greedy", strict=True))
def test_stochastic_greedy_with_whole_samples_is_greedy(problem):
    whole = run(problem, "stochastic-greedy", epsilon=1e-300, random_state=0)
    greedy = run(problem, "greedy")
    assert whole.objective == pytest.approx(greedy.objective, rel=1e-6)
    assert whole.status == greedy.status or "rank_deficient" in (whole.status, greedy.status)
    assert whole.indices.tolist() == greedy.indices.tolist()


@pytest.mark.parametrize("nonneg", [True, False])
def test_stochastic_greedy_takes_the_best_of_its_sample(nonneg, monkeypatch):
    module = importlib.import_module("pysubmod.solvers.stochastic_greedy")
    samples = []
    best = module._best

    def watched(trial, picks, sample):
        samples.append((list(picks), sample.tolist()))
        return best(trial, picks, sample)

    monkeypatch.setattr(module, "_best", watched)
    problem = random_problem(6, n=40, d=60, n_groups=4, k=2, ridge=0.2, nonneg=nonneg)
    made, matroid = setup(problem)
    selection = solve(made, matroid, "stochastic-greedy", epsilon=0.2, random_state=5)
    assert selection.stats["sample_size"] == math.ceil(40 / 8 * math.log(5))
    for (picks, sample), pick in zip(samples, selection.indices, strict=True):
        gains = [made.value([*picks, i]) for i in sample]
        assert sample[int(np.argmax(gains))] == pick
        assert all(matroid.is_feasible([*picks, i]) for i in sample)
    assert selection.stats["evaluations"] == sum(len(sample) for _, sample in samples)


@pytest.mark.parametrize("gram", [True, False])
def test_grad_match_is_omp_with_weights_of_at_least_zero(gram):
    for seed in range(20):
        problem = random_problem(seed, n=20, shared=1.0, ridge=0.3)
        omp, match = run(problem, "omp", gram), run(problem, "grad-match", gram)
        assert match.indices.tolist() == omp.indices.tolist() and match.status == omp.status
        assert match.weights == pytest.approx(omp.weights, rel=1e-12, abs=1e-300)
        assert match.stats["method_weights"] == pytest.approx(omp.weights, rel=1e-12, abs=1e-300)
        free = run(problem.but(nonneg=False), "grad-match", gram)
        assert free.indices.tolist() == omp.indices.tolist()
        assert free.stats["method_weights"] == pytest.approx(omp.weights, rel=1e-12, abs=1e-300)


@given(seeds, st.floats(0.01, 0.9), flags)
def test_grad_match_stops_at_the_first_error_within_eps(seed, eps, gram):
    problem = random_problem(seed, n=20, k=4, shared=1.0, ridge=0.3)
    whole, part = run(problem, "grad-match", gram), run(problem, "grad-match", gram, eps=eps)
    errors = 1 - 2 * np.cumsum(whole.gains) / (problem.target @ problem.target)
    within = np.flatnonzero(errors <= eps)
    count = int(within[0]) + 1 if len(within) else len(whole)
    assert part.indices.tolist() == whole.indices[:count].tolist()
    if count < len(whole):
        assert part.status == "tolerance"
        r = problem.target - part.weights @ problem.G[part.indices]
        error = r @ r + 0.3 * part.weights @ part.weights
        assert error <= eps * problem.target @ problem.target * (1 + 1e-9)


def test_grad_match_needs_an_error_to_compare():
    problem = random_problem(0)
    with pytest.raises(ValueError, match="eps: with a tilt"):
        solve(GradientMatching(*problem.args[:2], tilt=0.5, ridge=1.0), 3, "grad-match", eps=0.1)
    with pytest.raises(ValueError, match=r"eps: .* is not known from K and c alone"):
        solve(GradientMatching.from_gram(np.eye(3), np.ones(3)), 3, "grad-match", eps=0.1)


@given(seeds, st.sampled_from([0.0, 1e-3, 0.1, 1.0]), st.sampled_from([0.0, 0.7]), flags)
def test_greats_is_its_update_rule(seed, eta, tilt, nonneg):
    problem = random_problem(seed, n=15, shared=1.0, ridge=0.3, nonneg=nonneg)
    K, s = problem.G @ problem.G.T, problem.G @ problem.target
    expected = greedily(problem, lambda picks: s - eta * K[:, picks].sum(axis=1))
    made = GradientMatching(problem.G, problem.target, ridge=0.3, nonneg=nonneg, tilt=tilt)
    selection = solve(made, setup(problem)[1], "greats", eta=eta)
    assert selection.indices.tolist() == expected
    assert selection.stats["equals_top_k"] == (set(expected) == set(greedily(problem, lambda picks: s)))
    assert selection.stats["method_weights"] == [1.0] * len(expected)
    rate = tilt or 1 / len(expected)
    assert solve(made, setup(problem)[1], "greats").config["eta"] == pytest.approx(rate)


def test_greats_with_a_tiny_learning_rate_is_top_k():
    problem = random_problem(1, n=40, d=50)
    assert run(problem, "greats", eta=1e-7).stats["equals_top_k"]
    assert not run(problem, "greats", eta=1.0).stats["equals_top_k"]


# ---- DivBS ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["mean", "problem"])
@pytest.mark.parametrize("gram", [True, False])
def test_divbs_draws_by_the_residual_of_a_projection(target, gram):
    from pysubmod._random import uniform

    for seed in range(20):
        problem = random_problem(seed, n=15, d=12, ridge=0.5)
        t = problem.G.mean(axis=0) if target == "mean" else problem.target
        picks: list = []
        for step in range(100):
            counts = np.bincount(problem.groups[picks], minlength=3)
            left = (counts < problem.budgets)[problem.groups]
            left[picks] = False
            if not left.any():
                break
            r = t - problem.G[picks].T @ np.linalg.lstsq(problem.G[picks].T, t, rcond=None)[0] if picks else t
            edges = np.cumsum(np.where(left, np.abs(problem.G @ r), 0.0))
            picks.append(int(np.searchsorted(edges, uniform(9, step) * edges[-1], side="right")))
        selection = run(problem, "divbs", gram, target=target, random_state=9)
        assert selection.indices.tolist() == picks


def test_divbs_probabilities():
    """The first pick of many seeds: proportional to |<g_i, mean>|."""
    problem = random_problem(12, n=6, n_groups=1, k=1)
    made, matroid = setup(problem)
    share = np.abs(problem.G @ problem.G.mean(axis=0))
    share /= share.sum()
    counts = np.bincount([solve(made, matroid, "divbs", random_state=s).indices[0] for s in range(2000)], minlength=6)
    assert ((counts - 2000 * share) ** 2 / (2000 * share)).sum() < 30  # chi-square, 5 degrees of freedom: 1e-5


def test_divbs_ends_when_nothing_is_left_to_explain():
    G = np.array([[1.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 0], [2, 0, 0]])
    for seed in range(20):
        selection = solve(GradientMatching(G, np.ones(3)), 5, "divbs", random_state=seed)
        assert len(selection) == 2 and selection.status == "no_gain" and 2 in selection.indices


# ---- CRAIG ----------------------------------------------------------------------------------------------------------


def facility_location(problem, picks):
    distances = np.linalg.norm(problem.G[:, None] - problem.G[None], axis=2)
    return (distances.max() - distances[:, picks].min(axis=1)).sum() if len(picks) else 0.0


@given(seeds, flags)
def test_craig_is_naive_greedy_and_at_least_half_of_the_best(seed, gram):
    problem = random_problem(seed, n=9, d=4)
    naive = greedily(problem, lambda picks: [facility_location(problem, [*picks, i]) for i in range(9)])
    selection = run(problem, "craig", gram)
    assert selection.indices.tolist() == naive
    value = facility_location(problem, naive)
    assert selection.stats["facility_location"] == pytest.approx(value, rel=1e-9)
    best = max(facility_location(problem, picks) for picks in feasible_sets(problem))
    assert best >= value * (1 - 1e-9) and value >= best / 2


@given(problems(max_n=12))
def test_craig_weights_are_cluster_sizes(problem):
    selection = run(problem, "craig")
    sizes = np.array(selection.stats["method_weights"])
    pool = np.flatnonzero(problem.budgets[problem.groups] > 0)
    assert sizes.sum() == len(pool) and (sizes > 0).all()
    if not len(pool):
        return
    G, gap = problem.G, selection.stats["distance_sum"]
    scale = np.abs(G).max(initial=0.0)
    distances = np.linalg.norm(G[pool, None] - G[None, selection.indices], axis=2)
    assert gap == pytest.approx(distances.min(axis=1).sum(), rel=1e-6, abs=1e-5 * scale)
    error = np.linalg.norm(G[pool].sum(axis=0) - sizes @ G[selection.indices])
    assert error <= gap + 1e-5 * scale


def test_craig_on_many_rows_is_naive_greedy():
    rng = np.random.default_rng(0)
    G = rng.normal(size=(300, 10))
    groups = rng.integers(0, 5, size=300)
    distances = np.linalg.norm(G[:, None] - G[None], axis=2)
    similarity, best, picks = distances.max() - distances, np.zeros(300), []
    while len(picks) < 30:
        left = (np.bincount(groups[picks], minlength=5) < 6)[groups]
        left[picks] = False
        gains = np.where(left, np.maximum(similarity - best, 0).sum(axis=1), -1)
        picks.append(int(np.argmax(gains)))
        best = np.maximum(best, similarity[picks[-1]])
    matroid = PartitionMatroid(groups, dict.fromkeys(range(5), 6))
    for scale in (1.0, 1e-3):
        selection = solve(GradientMatching(scale * G, G[0], ridge=2.0), matroid, "craig")
        assert selection.indices.tolist() == picks


def test_craig_stops_when_every_row_is_a_copy_of_a_pick():
    G = np.repeat(np.random.default_rng(0).normal(size=(3, 1000)), 4, axis=0)
    selection = solve(GradientMatching(G, G[0]), 12, "craig")
    assert sorted(selection.indices.tolist()) == [0, 4, 8] and selection.status == "no_gain"
    assert selection.stats["method_weights"] == [4, 4, 4]
    alike = solve(GradientMatching(np.ones((5, 3)), np.ones(3)), 2, "craig")
    assert alike.indices.tolist() == [0] and alike.stats["method_weights"] == [5]


# ---- each group alone -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "base", [m for m in BASELINES if m not in RANDOMISED and m != "per-group"] + ["omp", "omp-normalized", "greedy"]
)
@given(seed=seeds, nonneg=flags)
@settings(max_examples=max(EXAMPLES // 4, 1))
def test_per_group_is_the_base_on_each_group(base, seed, nonneg):
    problem = random_problem(seed, n=15, ridge=0.2, nonneg=nonneg)
    selection = run(problem, "per-group", base=base)
    keys, own = [], {}
    for p in np.unique(problem.groups):
        rows = np.flatnonzero(problem.groups == p)
        part = solve(
            GradientMatching(problem.G[rows], problem.target, ridge=0.2, nonneg=nonneg), int(problem.budgets[p]), base
        )
        keys += [(j, -gain, int(row)) for j, (gain, row) in enumerate(zip(part.gains, rows[part.indices], strict=True))]
        own |= dict(zip(rows[part.indices].tolist(), part.stats.get("method_weights", [None] * len(part)), strict=True))
    assert selection.indices.tolist() == [row for _, _, row in sorted(keys)]
    assert selection.config["base"] == base
    if "method_weights" in selection.stats:
        assert selection.stats["method_weights"] == pytest.approx(
            [own[i] for i in selection.indices.tolist()], rel=1e-9
        )


@pytest.mark.parametrize("base", RANDOMISED)
def test_per_group_gives_every_group_a_seed_of_its_own(base):
    problem = random_problem(0, n=60, n_groups=3, k=3)
    G = np.tile(problem.G[:20], (3, 1)) + 1e-6 * problem.G
    made = GradientMatching(G, problem.target, ridge=0.1)
    matroid = PartitionMatroid(np.repeat([0, 1, 2], 20), [3, 3, 3])
    selection = solve(made, matroid, "per-group", base=base, random_state=1)
    assert selection.config["random_state"] == 1
    places = [tuple(sorted(i % 20 for i in selection.indices.tolist() if i // 20 == p)) for p in range(3)]
    assert len(set(places)) > 1
    same(selection, solve(made, matroid, "per-group", base=base, random_state=1))


def test_per_group_passes_options_on():
    problem, matroid = setup(random_problem(3, n=20))
    selection = solve(problem, matroid, "per-group", base="greats", eta=0.25)
    assert selection.config["options"] == {"eta": 0.25}
    same(selection, solve(problem, matroid, "per-group", base="greats", eta=0.25, n_threads=1))


def test_the_package_does_not_import_the_methods_names():
    assert not hasattr(pysubmod, "random")
