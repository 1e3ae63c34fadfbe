"""`pysubmod.compare`: rows, shares, refusals, the table, the CSV and the picture."""

from __future__ import annotations

import csv
import dataclasses
import io
import math

import numpy as np
import pytest
from strategies import random_problem

import pysubmod
from pysubmod import solvers
from pysubmod._compare_text import percent_down, table, time_text
from pysubmod.compare import COLUMNS, Comparison


@pytest.fixture(scope="module")
def problem():
    p = random_problem(0, n=20, d=12, n_groups=3, k=2, ridge=0.5)
    return pysubmod.GradientMatching(p.G, p.target, ridge=p.ridge), pysubmod.PartitionMatroid(p.groups, p.budgets)


@pytest.fixture(scope="module")
def comparison(problem):
    """All methods, whatever they are, on a small problem."""
    return pysubmod.compare(*problem, seeds=3, time_limit=1.0)


def test_every_method_has_a_row(comparison):
    assert sorted(row.method for row in comparison.rows) == sorted(pysubmod.available_methods())
    ran = [row for row in comparison.rows if not row.problem]
    assert [row.objective for row in ran] == sorted((row.objective for row in ran), reverse=True)
    assert comparison.rows[: len(ran)] == tuple(ran)


def test_numbers_are_those_of_solve(problem, comparison):
    G = problem[0]._rows.blocks[0]
    for row in comparison.rows:
        if row.problem or row.random:
            continue
        selection = pysubmod.solve(*problem, row.method)
        assert row.objective == selection.objective
        assert row.objectives == (selection.objective,)
        assert row.picks == len(selection)
        assert row.residual == pytest.approx(
            problem[0].residual_norm(selection.indices) / selection.stats["target_norm"]
        )
        K = G[selection.indices] @ G[selection.indices].T
        assert row.conflicts == np.triu(K < 0, 1).sum()
        assert row.seconds > 0


def test_random_methods_are_run_on_every_seed(problem, comparison):
    rows = {row.method: row for row in comparison.rows}
    random = rows["random"]
    values = [pysubmod.solve(*problem, "random", random_state=seed).objective for seed in range(3)]
    assert random.objectives == tuple(values)
    assert random.objective == pytest.approx(np.mean(values))
    assert random.spread == pytest.approx(np.std(values, ddof=1))
    assert not rows["omp"].random
    assert rows["omp"].spread == 0.0


def test_shares(comparison):
    upper, best = comparison.certificate.upper, comparison.best.objective
    for row in comparison.rows:
        if not row.problem:
            assert row.share == pytest.approx(row.objective / upper)
            assert row.of_best == pytest.approx(row.objective / best)
            assert max(row.objectives) <= best
    assert comparison.certificate.objective == pytest.approx(best)


def test_a_method_that_cannot_run_is_a_row_that_says_why(problem, monkeypatch):
    def refuses(problem, matroid, **common):
        raise ValueError("nonneg: this method needs\nfree weights")

    method = solvers.Method(refuses, "never runs")
    monkeypatch.setitem(solvers.METHODS, "refuses", method)
    found = pysubmod.compare(*problem, ["refuses", "omp"])
    assert [row.method for row in found.rows] == ["omp", "refuses"]
    assert found.rows[1].problem == "nonneg: this method needs free weights"
    assert "cannot run here: nonneg: this method needs free weights" in str(found)
    line = list(csv.DictReader(io.StringIO(found.csv())))[1]
    assert line["why_not"] == found.rows[1].problem
    assert line["objective"] == line["seconds"] == ""
    with pytest.raises(ValueError, match="this method needs"):
        pysubmod.compare(*problem, ["refuses"])


def test_faults_are_raised(problem, monkeypatch):
    def broken(problem, matroid, **common):
        raise AssertionError("a fault")

    monkeypatch.setitem(solvers.METHODS, "broken", solvers.Method(broken, ""))
    with pytest.raises(AssertionError, match="a fault"):
        pysubmod.compare(*problem, ["omp", "broken"])


def test_time_limits_reach_the_methods_that_take_one(problem, monkeypatch):
    seen = []

    def slow(problem, matroid, *, time_limit=100.0, **common):
        seen.append(time_limit)
        return solvers.omp(problem, matroid)

    monkeypatch.setitem(solvers.METHODS, "slow", solvers.Method(slow, ""))
    pysubmod.compare(*problem, ["slow"], time_limit=0.25)
    assert set(seen) == {0.25}


def test_masks_reach_methods_and_certificate(problem):
    mask = np.arange(20) < 8
    found = pysubmod.compare(*problem, ["greedy", "random"], candidates=mask, gap=0.0)
    assert found.best.indices.max() < 8
    everything = pysubmod.compare(*problem, ["greedy"], gap=0.0)
    assert found.certificate.upper <= everything.certificate.upper


def test_gram_matrices_and_cardinalities():
    G = np.random.default_rng(0).normal(size=(15, 20))
    problem = pysubmod.GradientMatching.from_gram(G @ G.T, G.sum(axis=1), ridge=1.0)
    found = pysubmod.compare(problem, 4, seeds=1)
    assert all(row.residual is None for row in found.rows)
    assert all(row.problem or row.picks <= 4 for row in found.rows)
    assert "from a Gram matrix" in str(found)
    dense = pysubmod.compare(pysubmod.GradientMatching(G, G.mean(axis=0)), 4, ["top-k"])
    assert dense.rows[0].residual is not None


def test_nothing_to_gain_and_nothing_to_choose_from():
    problem = pysubmod.GradientMatching(np.eye(3), -np.ones(3))
    found = pysubmod.compare(problem, 2)
    assert all(row.problem or row.share == row.of_best == 1.0 for row in found.rows)
    assert "Optimal: no selection improves on the empty one." in str(found)
    empty = pysubmod.compare(pysubmod.GradientMatching(np.empty((0, 3)), np.ones(3)), 2, ["omp", "random"])
    assert [row.picks for row in empty.rows] == [0, 0]


def test_without_a_bound_there_is_no_share():
    problem = pysubmod.GradientMatching.from_gram(np.ones((3, 3)), np.ones(3))
    found = pysubmod.compare(problem, 1, ["omp", "top-k"])
    assert all(math.isnan(row.share) for row in found.rows)
    assert "No useful certificate" in str(found)
    assert next(csv.DictReader(io.StringIO(found.csv())))["certified_share"] == ""


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"methods": "omp"}, TypeError, "methods: .*pass \\['omp'\\]"),
        ({"methods": ["omp", "best of all"]}, ValueError, "methods: unknown 'best of all'.*there are omp"),
        ({"methods": []}, ValueError, "methods"),
        ({"seeds": 0}, ValueError, "seeds"),
        ({"seeds": 1.5}, ValueError, "seeds"),
        ({"seeds": True}, ValueError, "seeds"),
        ({"time_limit": -1.0}, ValueError, "time_limit"),
        ({"gap": math.nan}, ValueError, "gap"),
        ({"candidates": np.ones(3, bool)}, ValueError, "candidates"),
    ],
)
def test_errors_name_the_argument(problem, changes, error, message):
    with pytest.raises(error, match=message):
        pysubmod.compare(*problem, **({"methods": ["omp"]} | changes))


def test_progress_is_told(problem):
    seen = []
    pysubmod.compare(*problem, ["omp", "top-k"], progress=lambda *told: seen.append(told))
    assert seen == [(0, 3, "omp"), (1, 3, "top-k"), (2, 3, "the certificate"), (3, 3, "")]


# ---- text, CSV and picture -------------------------------------------------------------------------------------------


def test_table(comparison):
    text = str(comparison)
    assert text == table(comparison)
    assert max(map(len, text.splitlines())) <= 200
    for row in comparison.rows:
        assert f"\n{row.method} " in text
    assert comparison.certificate.sentence in text
    assert "3 seeds" in text


def test_csv(comparison, tmp_path):
    comparison.to_csv(tmp_path / "c.csv")
    lines = list(csv.DictReader(io.StringIO((tmp_path / "c.csv").read_text())))
    assert tuple(lines[0]) == COLUMNS
    assert [line["method"] for line in lines] == [row.method for row in comparison.rows]
    for line, row in zip(lines, comparison.rows, strict=True):
        if not row.problem:
            assert float(line["objective"]) == row.objective
            assert float(line["certified_share"]) == row.share
            assert int(line["runs"]) == len(row.objectives)


def test_percentages_are_rounded_down():
    assert [percent_down(s) for s in (0.98765, 0.9999, 1.0, 1 - 1e-10, 0.0)] == ["98.7", "99.9", "100", "100", "0.0"]
    for share in np.random.default_rng(0).uniform(0, 1, 200):
        assert share - 1e-3 <= float(percent_down(float(share))) / 100 <= share * (1 + 1e-15)


def test_times():
    assert [time_text(t) for t in (2.5e-5, 0.0123, 0.9999, 12.34)] == ["25 us", "12.3 ms", "1 s", "12.3 s"]


def names_of(figure):
    return [text for text in figure.axes[0].texts if text.get_text() in pysubmod.available_methods()]


def test_plot_names_every_method_and_nothing_overlaps(comparison):
    pytest.importorskip("matplotlib")
    figure = comparison.plot()
    figure.draw_without_rendering()
    names = names_of(figure)
    ran = [row.method for row in comparison.rows if not row.problem]
    assert sorted(text.get_text() for text in names) == sorted(ran)
    boxes = [text.get_window_extent() for text in names]
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:i])


def test_plot_of_many_methods_at_one_point(comparison):
    pytest.importorskip("matplotlib")
    same = dataclasses.replace(comparison.rows[0], method="omp", seconds=1e-3)
    crowd = dataclasses.replace(comparison, rows=(same,) * 20)
    boxes = [text.get_window_extent() for text in names_of(crowd.plot())]
    assert len(boxes) == 20
    assert not any(box.overlaps(other) for i, box in enumerate(boxes) for other in boxes[:i])


def test_plot_without_a_bound():
    pytest.importorskip("matplotlib")
    problem = pysubmod.GradientMatching.from_gram(np.ones((3, 3)), np.ones(3))
    figure = pysubmod.compare(problem, 1, ["omp"]).plot()
    assert "no bound could be proved" in figure.axes[0].get_ylabel()


def test_it_is_exported():
    assert isinstance(pysubmod.compare(pysubmod.GradientMatching(np.eye(2), [1.0, 2.0]), 1, ["omp"]), Comparison)
    assert {"compare", "Comparison"} <= set(pysubmod.__all__)
