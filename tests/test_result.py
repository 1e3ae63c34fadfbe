"""Selection and Status: what they hold, say, save and load."""

import copy
import json
import os
import pickle
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import random_problem

import pysubmod
from pysubmod.result import Selection, Status


def make(**changes):
    fields = {
        "indices": [5, 0, 9],
        "weights": [0.1, 0.0, 1 / 3],
        "gains": [2.0, 1e-300, 0.1 + 0.2],
        "objective": 2.3,
        "residual_norms": [3.0, 2.0, np.nextafter(1.0, 2.0)],
        "counts": {"math": 2, "code": 1},
        "status": "budget",
        "stats": {"route": "dense", "device": "cpu", "threads": 2, "seconds": {"total": 0.01}, "target_norm": 4.0},
        "config": {"ridge": 0.0, "budgets": {"math": 2, "code": 1}},
    }
    return Selection(**(fields | changes))


# -- Status -----------------------------------------------------------------------------------------------------


def test_status_is_its_text():
    assert Status("budget") is Status.BUDGET
    assert Status.NO_GAIN == "no_gain"
    assert str(Status.RANK_DEFICIENT) == f"{Status.RANK_DEFICIENT}" == "rank_deficient"
    assert {status.value for status in Status} == {
        "budget", "tolerance", "no_gain", "rank_deficient", "exhausted", "stopped"
    }  # fmt: skip


@pytest.mark.parametrize("status", Status)
def test_every_status_is_explained_in_a_sentence(status):
    assert status.explanation.endswith(".")
    assert status.explanation.count(".") == 1
    assert status.explanation[0].isupper()


# -- the fields -------------------------------------------------------------------------------------------------


def test_fields_have_their_types():
    sel = make()
    assert sel.indices.dtype == np.int64
    assert sel.weights.dtype == sel.gains.dtype == sel.residual_norms.dtype == np.float64
    assert sel.status is Status.BUDGET
    assert type(sel.objective) is float


def test_labels_become_plain_python():
    counts = make(counts={np.int64(3): np.int32(2), np.str_("a"): 1}).counts
    assert counts == {3: 2, "a": 1}
    assert [type(label) for label in counts] == [int, str]


def test_unpacks_into_indices_and_weights():
    indices, weights = sel = make()
    assert indices is sel.indices
    assert weights is sel.weights
    assert len(sel) == 3


def test_nothing_can_be_changed():
    source = np.array([5, 0, 9])
    sel = make(indices=source)
    source[0] = 7
    assert sel.indices[0] == 5
    for array in (sel.indices, sel.weights, sel.gains, sel.residual_norms):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
    with pytest.raises(FrozenInstanceError):
        sel.objective = 0.0


@pytest.mark.parametrize("clone", [copy.copy, copy.deepcopy, lambda sel: pickle.loads(pickle.dumps(sel))])
def test_copies_are_read_only_too(clone):
    sel = clone(make())
    assert sel.weights.tolist() == make().weights.tolist()
    assert not sel.weights.flags.writeable


@pytest.mark.parametrize("name", ["weights", "gains", "residual_norms"])
def test_lengths_must_agree(name):
    with pytest.raises(ValueError, match=f"{name}: expected 3 values"):
        make(**{name: [1.0]})


# -- what it says -----------------------------------------------------------------------------------------------


def test_repr_is_short_and_str_is_a_summary():
    sel = make()
    assert repr(sel) == "<Selection: 3 picks, objective 2.3, status 'budget'>"
    text = str(sel)
    for part in ("3 candidates, 2 with a nonzero weight", "Every budget", "math 2, code 1", "0.25 of", "2 threads"):
        assert part in text


def test_summary_of_many_groups_is_cut():
    assert "(30 groups)" in str(make(counts={f"g{i}": 1 for i in range(30)}))


def test_summary_without_residuals_or_stats():
    text = str(make(residual_norms=None, stats={}))
    assert "residual" not in text
    assert "ran on" not in text


def test_empty_selection():
    sel = make(indices=[], weights=[], gains=[], residual_norms=[], objective=0, counts={"a": 0}, status="no_gain")
    assert len(sel) == 0
    assert "0 candidates" in str(sel)
    assert sel.sample_weight(0).shape == (0,)
    assert sel.sample_weight(4).tolist() == [0.0] * 4


def test_relative_residuals():
    assert make().relative_residuals[:2].tolist() == [0.75, 0.5]
    assert make(residual_norms=None).relative_residuals is None
    assert make(stats={"target_norm": 0.0}).relative_residuals is None


# -- sample_weight ----------------------------------------------------------------------------------------------


def test_sample_weight():
    full = make().sample_weight(np.int64(12))
    assert full.shape == (12,)
    assert full.dtype == np.float64
    assert full[[5, 0, 9]].tolist() == [0.1, 0.0, 1 / 3]
    assert np.count_nonzero(full) == 2


def test_sample_weight_too_small():
    with pytest.raises(ValueError, match="n: expected at least 10, as row 9 is among the picks, got 9"):
        make().sample_weight(9)


@pytest.mark.parametrize("n", [10.0, True, "10", None])
def test_sample_weight_of_no_integer(n):
    with pytest.raises(TypeError, match="n: expected an integer"):
        make().sample_weight(n)


# -- save and load ----------------------------------------------------------------------------------------------


def assert_same(a, b):
    for name in ("indices", "weights", "gains", "residual_norms"):
        left, right = getattr(a, name), getattr(b, name)
        assert (left is None) == (right is None)
        if left is not None:
            assert left.dtype == right.dtype
            assert left.tobytes() == right.tobytes()
    assert a.objective == b.objective
    assert a.counts == b.counts
    assert list(a.counts) == list(b.counts)
    assert [type(label) for label in a.counts] == [type(label) for label in b.counts]
    assert a.status is b.status


def test_round_trip(tmp_path):
    sel = make()
    sel.save(tmp_path / "sel.json")
    back = Selection.load(tmp_path / "sel.json")
    assert_same(sel, back)
    assert back.stats == sel.stats
    assert back.config == sel.config
    assert not back.weights.flags.writeable
    assert os.listdir(tmp_path) == ["sel.json"]


floats = st.floats(allow_nan=False, width=64)
labels = st.one_of(st.integers(-(2**63), 2**63 - 1), st.text())


@given(st.lists(st.tuples(floats, floats, floats), max_size=8), st.dictionaries(labels, st.integers(0, 9)))
def test_round_trip_is_exact(tmp_path_factory, rows, counts):
    columns = [list(column) for column in zip(*rows, strict=True)] or [[], [], []]
    sel = make(indices=range(len(rows)), weights=columns[0], gains=columns[1], residual_norms=columns[2], counts=counts)
    path = tmp_path_factory.mktemp("round") / "s.json"
    sel.save(path)
    assert_same(sel, Selection.load(path))


def test_the_number_1_and_the_text_1_stay_apart(tmp_path):
    sel = make(counts={1: 2, "1": 1}, config={"budgets": {1: 2, "1": 1}})
    sel.save(tmp_path / "s.json")
    back = Selection.load(tmp_path / "s.json")
    assert back.counts == {1: 2, "1": 1}
    assert back.config == {"budgets": {1: 2, "1": 1}}


def test_config_may_hold_arrays_and_odd_floats(tmp_path):
    mask = np.array([[True, False], [False, True]])
    config = {"candidates": mask, "initial": np.array([3, 1]), "tol": float("inf"), "who": ("a", 1), "s": {"__x": 1}}
    make(config=config, gains=[np.inf, 0.0, -0.0], residual_norms=None).save(tmp_path / "s.json")
    back = Selection.load(tmp_path / "s.json")
    assert back.config["candidates"].dtype == bool
    assert np.array_equal(back.config["candidates"], mask)
    assert back.config["initial"].tolist() == [3, 1]
    assert back.config["tol"] == np.inf
    assert back.config["who"] == ["a", 1]
    assert back.config["s"] == {"__x": 1}
    assert back.gains[0] == np.inf
    assert np.signbit(back.gains[2])
    assert back.residual_norms is None


def test_the_file_is_strict_json(tmp_path):
    make(gains=[np.nan, 0.0, 1.0]).save(tmp_path / "s.json")

    def refuse(word):
        raise AssertionError(word)

    document = json.loads((tmp_path / "s.json").read_text(), parse_constant=refuse)
    assert document["format"] == "pysubmod.Selection"
    assert document["counts"] == [["math", 2], ["code", 1]]


def test_save_replaces_and_follows_links(tmp_path):
    (tmp_path / "real.json").write_text("old")
    os.symlink(tmp_path / "real.json", tmp_path / "link.json")
    make().save(tmp_path / "link.json")
    assert os.path.islink(tmp_path / "link.json")
    assert len(Selection.load(tmp_path / "real.json")) == 3


def test_saved_files_follow_the_umask(tmp_path):
    old = os.umask(0o027)
    try:
        make().save(tmp_path / "s.json")
    finally:
        os.umask(old)
    assert os.stat(tmp_path / "s.json").st_mode & 0o777 == 0o640


def test_a_device_is_written_to_and_not_replaced():
    make().save(os.devnull)
    assert not os.path.isfile(os.devnull)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_an_interrupted_save_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, error, step):
    path = tmp_path / "s.json"
    make().save(path)
    before = path.read_bytes()

    def fail(*_):
        raise error

    monkeypatch.setattr(f"pysubmod._files.os.{step}", fail)
    with pytest.raises(error):
        make(objective=99.0).save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["s.json"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x93NUMPY\x01\x00", "not JSON"),
        (b"", "not JSON"),
        (b"{\"indices\": [1, 2", "not JSON"),
        (b"[1, 2]", "not a saved selection"),
        (b"{\"indices\": [1]}", "not a saved selection"),
        (b'{"format": "pysubmod.Selection", "format_version": 99, "pysubmod_version": "9.9"}', "written by .* 9.9"),
        (b'{"format": "pysubmod.Selection"}', "version None"),
        (b'{"format": "pysubmod.Selection", "format_version": 1}', "damaged"),
    ],
)  # fmt: skip
def test_wrong_files(tmp_path, content, message):
    (tmp_path / "bad.json").write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        Selection.load(tmp_path / "bad.json")
    assert "bad.json" in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [{"status": "nope"}, {"indices": ["a", 0, 1]}, {"indices": [1.5, 0, 2]}, {"weights": [1.0]}, {"counts": [["a"]]},
     {"objective": None}],
)  # fmt: skip
def test_damaged_files(tmp_path, change):
    path = tmp_path / "s.json"
    make().save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match="damaged"):
        Selection.load(path)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        Selection.load(tmp_path / "none.json")


# -- plot -------------------------------------------------------------------------------------------------------


def labels_of(ax):
    return [text.get_text() for text in ax.get_yticklabels()]


def test_plot_draws_residual_and_groups():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    ax = make().plot()
    assert ax.get_lines()[0].get_ydata().tolist()[:3] == [1.0, 0.75, 0.5]
    main, panel = ax.figure.axes
    assert main is ax
    assert labels_of(panel) == ["math", "code"]
    assert [bar.get_width() for bar in panel.patches] == [2, 1]


def test_plot_into_given_axes_without_a_target():
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    ax = Figure().subplots()
    assert replace(make(), residual_norms=None, counts={0: 3}).plot(ax) is ax
    assert ax.get_ylabel() == "objective"
    assert ax.figure.axes == [ax]


def test_plot_of_an_empty_selection_and_of_many_groups():
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    counts = {i: 0 for i in range(50)}
    make(indices=[], weights=[], gains=[], residual_norms=[], counts=counts).plot(Figure().subplots())


def test_plot_without_matplotlib_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install pysubmod\[plot\]"):
        make().plot()


def test_diagnose_from_the_selection_itself():
    p = random_problem(0)
    problem = pysubmod.GradientMatching(p.G, p.target, ridge=0.1)
    selection = pysubmod.solve(problem, 3)
    assert selection.diagnose(n_random=7).to_dict() == pysubmod.diagnose(problem, 3, selection, n_random=7).to_dict()
    with pytest.raises(ValueError, match=r"diagnose: .* does not know its problem; use pysubmod.diagnose\("):
        copy.copy(selection).diagnose()
