"""`pysubmod mixture`: what it reads, writes and says, and with which code it exits."""

from __future__ import annotations

import json
import os
import re
import shlex

import numpy as np
import pytest
from test_cli import run

from pysubmod.budgets import export
from pysubmod.cli import build_parser, main
from pysubmod.mixture import task_mixture

NAMES = ["math", "code", "chat"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    M = np.random.default_rng(4).random((3, 5))
    np.save("sim.npy", M @ M.T)
    np.save("div.npy", np.square(M[:, None] - M[None]).sum(axis=2))
    np.save("unary.npy", np.array([1.0, 2.0, 3.0]))
    (tmp_path / "names.txt").write_text("\n".join(NAMES) + "\n")
    (tmp_path / "sizes.json").write_text(json.dumps({"math": 40, "code": 800, "chat": 900}))
    return tmp_path


def args(*more, similarity="sim.npy"):
    return ["mixture", similarity, "--beta", "0.1", "--lam", "2", *more]


def test_table_json_and_pictures(folder, capsys):
    pytest.importorskip("matplotlib")
    more = ["--labels", "math,code,chat", "--total", "1000", "--sizes", "math=40,code=800,chat=900"]
    assert main(args(*more, "-o", "m.json", "--plot", "m.png", "--path", "p.svg")) == 0
    out, err = capsys.readouterr()
    assert err == ""
    want = task_mixture(np.load("sim.npy"), beta=0.1, lam=2, labels=NAMES)
    assert "A mixture of 3 tasks" in out
    assert "Budgets (1000 in all): math=40" in out
    assert "Saved as m.json\nThe picture is in m.png\nThe picture is in p.svg" in out
    with open("m.json") as file:
        got = json.load(file)
    assert got["probabilities"] == want.to_dict()
    assert got["budgets"] == want.budgets(1000, {"math": 40, "code": 800, "chat": 900})
    assert got["gap"] == want.gap
    assert got["status"] == "optimal"
    assert (folder / "m.png").read_bytes()[:4] == b"\x89PNG"
    assert b"<svg" in (folder / "p.svg").read_bytes()[:500]
    assert not [name for name in os.listdir() if name.endswith(".tmp")]


def test_files_in_place_of_lists(folder, capsys):
    more = ["--labels", "names.txt", "--total", "1000", "--sizes", "sizes.json", "-o", "-", "--method", "webster"]
    assert main(args(*more)) == 0
    out, err = capsys.readouterr()
    want = task_mixture(np.load("sim.npy"), beta=0.1, lam=2, labels=NAMES)
    assert json.loads(out)["budgets"] == want.budgets(1000, [40, 800, 900], method="webster")
    assert "A mixture of 3 tasks" in err


def test_options_reach_the_problem(folder, capsys):
    more = ["--unary", "unary.npy", "--lower", "0=0.2", "--upper", "0.6", "--quiet", "-o", "-", "--total", "7"]
    assert main([*args(*more, similarity="div.npy"), "--divergence"]) == 0
    got = json.loads(capsys.readouterr().out)
    want = task_mixture(-np.load("div.npy"), beta=0.1, lam=2, unary=[1, 2, 3], lower={0: 0.2}, upper=0.6)
    np.testing.assert_allclose(list(got["probabilities"].values()), want.probabilities, atol=1e-9)
    assert sum(got["budgets"].values()) == 7
    assert list(got["budgets"]) == ["0", "1", "2"]


def test_shift(folder, capsys):
    assert main(args("--quiet", similarity="div.npy")) == 2
    assert "on_indefinite='shift'" in capsys.readouterr().err
    assert main(args("--quiet", "-o", "-", "--on-indefinite", "shift", similarity="div.npy")) == 0
    assert json.loads(capsys.readouterr().out)["shift"] > 0


@pytest.mark.parametrize("tool", ["huggingface", "trl", "mosaicml", "torchdata", "megatron"])
def test_export(folder, capsys, tool):
    assert main(args("--quiet", "--export", tool, "--labels", "names.txt")) == 0
    want = task_mixture(np.load("sim.npy"), beta=0.1, lam=2, labels=NAMES)
    assert json.loads(capsys.readouterr().out) == export(want.to_dict(), tool)


@pytest.mark.parametrize("tool", ["huggingface", "mosaicml"])
def test_export_beside_budgets(folder, capsys, tool):
    """Shares, but for the tool that counts samples."""
    assert main(args("--quiet", "--export", tool, "--total", "7")) == 0
    want = task_mixture(np.load("sim.npy"), beta=0.1, lam=2)
    given = want.budgets(7) if tool == "mosaicml" else want.to_dict()
    assert json.loads(capsys.readouterr().out) == export(given, tool)


def test_in_its_own_process(folder):
    done = run(*args("--quiet"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--labels", "math,code"], r"labels: expected shape \(3,\)"),
        (["--labels", "none.txt"], r"--labels: cannot read 'none.txt'"),
        (["--lower", "x"], r"--lower: expected a number, got 'x'"),
        (["--lower", "0=0.1,0=0.2"], r"--lower: a task is named twice"),
        (["--lower", "9=0.1"], r"lower: there is no task '9'"),
        (["--upper", "0.2"], r"upper: the upper bounds sum to 0.6"),
        (["--sizes", "0=3"], r"--total: needed"),
        (["--total", "5", "--sizes", "0=3"], r"sizes: expected one a task"),
        (["--total", "5", "--sizes", "7"], r"--sizes: expected \"task=integer"),
        (["--total", "5", "--sizes", "0=1,1=1,2=1"], r"total: 5 is more than"),
        (["--total", "5", "--sizes", "0=1.5"], r"--sizes: expected an integer, got '1.5'"),
        (["--total", "5", "--sizes", "none.json"], r"--sizes: cannot read 'none.json'"),
        (["--total=-5"], r"total: expected an integer of at least 0"),
        (["--beta=-1"], r"beta: expected a number that is at least 0"),
        (["--plot", "m.txt"], r"--plot: expected a name that ends in"),
        (["--unary", "none.npy"], r"--unary: cannot read"),
        (["-o", "sim.npy"], r"--output: .*also an input"),
        (["--labels", "a,,b"], r"--labels: a name is empty"),
        (["--total", "0", "--export", "mosaicml"], r"shares: expected at least one that is positive"),
        (["--plot", "a.png", "--path", "./a.png"], r"--path: './a.png' is also --plot"),
        (["-o", "a.png", "--plot", "a.png"], r"--plot: 'a.png' is also --output"),
    ],
)
def test_bad_input(folder, capsys, more, message):
    before = sorted(os.listdir())
    assert main(args(*more)) == 2
    out, err = capsys.readouterr()
    assert re.search(message, err), err
    assert err.startswith("pysubmod: error: ")
    assert err.count("\n") == 1
    assert out == ""
    assert sorted(os.listdir()) == before


def test_a_matrix_that_is_none(folder, capsys):
    np.save("row.npy", np.ones(3))
    assert main(args(similarity="row.npy")) == 2
    assert "similarity: expected a square matrix" in capsys.readouterr().err
    assert main(args("--divergence", similarity="row.npy")) == 2
    assert "divergence: expected a square matrix" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["-o", "--plot", "--path"])
def test_output_is_checked_before_the_work(folder, capsys, option):
    assert main(args(option, "none/c.png")) == 4
    assert "cannot write 'none/c.png'" in capsys.readouterr().err


def test_help_teaches(capsys):
    assert main(["mixture", "--help"]) == 0
    out = capsys.readouterr().out
    for word in ("examples:", "exit codes:", "--beta", "--export"):
        assert word in out
    examples = [line.strip() for line in out.splitlines() if line.strip().startswith("pysubmod mixture ")]
    assert len(examples) == 4
    for line in examples:
        build_parser().parse_args(shlex.split(line)[1:])
