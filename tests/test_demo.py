"""The demo: its numbers, its words and its picture."""

import os
import re

import numpy as np
import pytest

from pysubmod import GradientMatching, omp_partition, plot
from pysubmod._demo_text import explain, format_table
from pysubmod.cli import main
from pysubmod.datasets import load_demo
from pysubmod.demo import compare, equal_budgets, per_domain_top_k, random_draw, top_k


@pytest.fixture(scope="module")
def comparison():
    return compare(32, draws=50)


@pytest.fixture(scope="module")
def data():
    return load_demo()


def rows_and_target(data):
    return data.gradients.astype(np.float64), data.target


def test_budgets_are_even():
    assert equal_budgets(32, ("a", "b")) == {"a": 16, "b": 16}
    assert equal_budgets(5, ("a", "b", "c")) == {"a": 2, "b": 2, "c": 1}


def test_ours_is_what_omp_partition_picks(comparison, data):
    budgets = dict.fromkeys(data.domains, 4)
    sel = omp_partition(data.gradients, data.target, budgets, groups=data.groups)
    ours = comparison.methods[0]
    assert ours.picks.tolist() == sel.indices.tolist()
    assert ours.curve[-1] == pytest.approx(sel.relative_residuals[-1], rel=1e-6)
    assert np.allclose(ours.curve, sel.relative_residuals, rtol=1e-6)


def test_baselines_choose_what_they_say(comparison, data):
    G, t = rows_and_target(data)
    scores = G @ t
    _, plain, by_domain = comparison.methods
    assert set(plain.picks) == set(np.argsort(-scores)[:32])
    for domain in data.domains:
        mine = np.flatnonzero(data.groups == domain)
        assert {i for i in by_domain.picks if data.groups[i] == domain} == set(mine[np.argsort(-scores[mine])[:4]])


def test_per_domain_goes_in_rounds():
    groups = np.array(["a", "a", "a", "b", "b"])
    picks = per_domain_top_k(np.array([5.0, 4.0, 3.0, 2.0, 1.0]), groups, {"a": 2, "b": 2})
    assert picks.tolist() == [0, 3, 1, 4]
    assert top_k(np.array([1.0, 3.0, 2.0, 3.0]), 3).tolist() == [1, 3, 2]


def test_random_draws_keep_the_budgets(data):
    budgets = equal_budgets(19, data.domains)
    draw = random_draw(np.random.default_rng(0), data.groups, budgets)
    assert len(set(draw)) == 19
    assert {domain: int((data.groups[draw] == domain).sum()) for domain in data.domains} == budgets


def test_scores_by_hand(comparison, data):
    """Every number of the table again, straight from the rows and with another solver."""
    nnls = pytest.importorskip("scipy.optimize").nnls
    G, t = rows_and_target(data)
    norm = np.linalg.norm(t)
    for method in comparison.methods:
        rows, score = G[method.picks], method.score
        mean = rows.mean(axis=0)
        scale = max(mean @ t, 0.0) / (mean @ mean)
        assert score.uniform_residual == pytest.approx(np.linalg.norm(t - scale * mean) / norm, rel=1e-9)
        assert score.uniform_cosine == pytest.approx(mean @ t / np.linalg.norm(mean) / norm, rel=1e-9)
        weights, residual = nnls(rows.T, t)
        fit = weights @ rows
        assert score.refit_residual == pytest.approx(residual / norm, rel=1e-6)
        assert score.refit_cosine == pytest.approx(fit @ t / np.linalg.norm(fit) / norm, rel=1e-6)
        assert method.shares.sum() == pytest.approx(score.refit_cosine**2, rel=1e-6)
        unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        assert score.conflicts == np.sum(np.triu(unit @ unit.T, 1) < 0)
        own = data.validation.astype(np.float64)
        cosines = own @ fit / np.linalg.norm(own, axis=1) / np.linalg.norm(fit)
        assert np.allclose(score.domain_cosines, cosines, rtol=1e-5, atol=1e-9)
    assert comparison.floor == pytest.approx(nnls(G.T, t)[1] / norm, rel=1e-6)


def test_weights_never_hurt_and_the_floor_is_one(comparison):
    for score in [*comparison.random, *(method.score for method in comparison.methods)]:
        assert comparison.floor <= score.refit_residual <= score.uniform_residual + 1e-12 <= 1 + 1e-9


def test_what_the_demo_claims(comparison):
    """The picture's message; the exact numbers are the data's."""
    ours, plain, by_domain = (method.score for method in comparison.methods)
    draws = [score.refit_residual for score in comparison.random]
    assert ours.refit_residual < min(plain.refit_residual, by_domain.refit_residual, *draws)
    assert ours.refit_residual == pytest.approx(0.513, abs=2e-3)


def test_curves_fall(comparison):
    for method in comparison.methods:
        assert (np.diff(method.curve) < 1e-9).all()
        assert len(method.curve) == 32
    assert comparison.random_curves.shape == (50, 32)
    assert comparison.random_curves[7, -1] == pytest.approx(comparison.random[7].refit_residual, rel=1e-6)


def test_same_seed_same_table():
    first, second = compare(8, draws=5, seed=3), compare(8, draws=5, seed=3)
    assert [score.refit_residual for score in first.random] == [score.refit_residual for score in second.random]


def test_normalized_rule(data):
    G, t = rows_and_target(data)
    comparison = compare(16, draws=3, rule="normalized")
    cosines = G @ t / np.linalg.norm(G, axis=1)
    assert set(comparison.methods[1].picks) == set(np.argsort(-cosines)[:16])
    assert comparison.methods[1].name == "top-k by cosine"


@pytest.mark.parametrize("k", [1, 7, 16, 32, 240])
def test_table_and_words_fit_and_hold_for_any_k(k):
    comparison = compare(k, draws=3)
    text = format_table(comparison) + "\n" + explain(comparison)
    assert max(map(len, text.splitlines())) <= 100
    assert "nan" not in text
    assert f"choose {k} of 240" in text
    assert f"{comparison.methods[0].score.refit_residual:.3f}" in text
    assert text.isascii()  # any terminal can show it


@pytest.mark.parametrize(
    ("options", "message"),
    [({"k": 0}, "k: expected 1 to 240"), ({"k": 241}, "k: expected 1 to 240"), ({"draws": 0}, "draws: expected"),
     ({"rule": "best"}, "rule: expected")],
)  # fmt: skip
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        compare(**options)


@pytest.mark.parametrize("k", [1, 5, 32, 64])
def test_picture(tmp_path, k):
    """Nothing is cut off or written over: every text lies inside the picture, and the names at the curves apart."""
    pytest.importorskip("matplotlib")
    figure = plot.demo_figure(compare(k, draws=5))
    path = tmp_path / "demo.png"
    plot.save_figure(figure, path)
    assert path.read_bytes()[:4] == b"\x89PNG"
    assert os.listdir(tmp_path) == ["demo.png"]
    figure.draw_without_rendering()  # saving had another resolution
    width, height = figure.canvas.get_width_height()
    for ax in figure.axes:
        texts = [*ax.texts, ax.title, ax._left_title, ax.xaxis.label, ax.yaxis.label, *ax.get_yticklabels()]
        for text in texts:
            if text.get_text():
                box = text.get_window_extent()
                assert box.x0 >= -1, text
                assert box.y0 >= -1, text
                assert box.x1 <= width + 1, text
                assert box.y1 <= height + 1, text
    names = [text.get_window_extent() for text in figure.axes[0].texts if text.get_fontweight() == "bold"]
    assert len(names) == 4
    for i, box in enumerate(names):
        assert not any(box.overlaps(other) for other in names[i + 1 :])


def test_picture_formats(tmp_path, comparison):
    pytest.importorskip("matplotlib")
    plot.save_figure(plot.demo_figure(comparison), tmp_path / "demo.svg")
    assert b"<svg" in (tmp_path / "demo.svg").read_bytes()[:1000]


def test_command(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "-k", "16", "--draws", "20"]) == 0
    out = capsys.readouterr().out
    for word in ("pysubmod", "top-k by score", "per-domain top-k", "random, mean of 20 draws", "conflicting", "time",
                 "mol_retrosynthesis", "What it does not show", "demo.png"):  # fmt: skip
        assert word in out
    assert re.search(r"^pysubmod +0\.\d+ +0\.\d+ +0\.\d+ +0\.\d+ +\d+ \(\d+%\) +[\d.]+ ms$", out, re.MULTILINE), out
    assert os.listdir() == ["demo.png"]


def test_command_errors(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "-k", "500"]) == 2
    assert "k: expected 1 to 240" in capsys.readouterr().err
    assert main(["demo", "-o", "none/demo.png"]) == 4
    assert os.listdir() == []


def test_command_without_matplotlib(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    assert main(["demo", "-k", "8", "--draws", "3"]) == 0
    assert "pip install pysubmod[plot]" in capsys.readouterr().out
    assert main(["demo", "-k", "8", "-o", "x.png"]) == 2
    assert "pip install pysubmod[plot]" in capsys.readouterr().err


def test_the_judge_agrees_with_the_library(data):
    problem = GradientMatching(data.gradients, data.target)
    picks = compare(8, draws=2).methods[0].picks
    weights = problem.weights(picks)
    assert (np.asarray(weights) >= 0).all()
    residual = data.target - weights @ data.gradients[picks].astype(np.float64)
    assert problem.value(picks) == pytest.approx((data.target @ data.target - residual @ residual) / 2, rel=1e-9)
