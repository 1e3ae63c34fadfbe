"""`pysubmod compare`: what it reads, writes and says, and with which code it exits."""

from __future__ import annotations

import csv
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from test_cli import read_until, run

import pysubmod
from pysubmod.cli import build_parser, main
from pysubmod.datasets import load_demo


def compare_args(*more, budgets="*=2", groups="labels.csv"):
    grouped = [] if groups is None else ["--groups", groups]
    return ["compare", "G.npy", "--target", "t.npy", *grouped, "--budgets", budgets, "--methods", "omp,random,top-k",
            "--seeds", "2", "--time-limit", "0.5", *more]  # fmt: skip


def written(path):
    with open(path, newline="") as file:
        return {line["method"]: line for line in csv.DictReader(file)}


def test_table_csv_and_picture(files, capsys):
    pytest.importorskip("matplotlib")
    assert main(compare_args("--csv", "c.csv", "--plot", "c.png")) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "choose 8 of 40 candidates, 4 groups" in out
    assert "The table is in c.csv" in out
    assert re.search(r"^omp: (Optimal|Within .* of optimal|No useful certificate)", out, re.MULTILINE)
    assert (files / "c.png").read_bytes()[:4] == b"\x89PNG"
    lines = written("c.csv")
    assert sorted(lines) == ["omp", "random", "top-k"]
    want = pysubmod.omp_partition(
        np.load("G.npy"), np.load("t.npy"), dict.fromkeys(["math", "code", "chat", "spam"], 2),
        groups=np.load("labels.npy"),
    )  # fmt: skip
    assert float(lines["omp"]["objective"]) == want.objective
    assert lines["random"]["runs"] == "2"
    assert not [name for name in os.listdir() if name.endswith(".tmp")]


def test_demo_in_its_own_process(tmp_path):
    done = run("compare", "--demo", "--methods", "omp,top-k", "--time-limit", "0", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "choose 32 of 240 candidates, 8 groups" in done.stdout
    data = load_demo()
    mean_square = np.square(data.gradients.astype(float)).sum(axis=1).mean()
    assert f"ridge {0.01 * mean_square:.3g}," in done.stdout
    assert os.listdir(tmp_path) == []


def test_options_reach_the_problem(files):
    np.save("mask.npy", np.arange(40) < 20)
    G, t, mask = np.load("G.npy"), np.load("t.npy"), np.arange(40) < 20
    more = ["--free", "--ridge-relative", "0.5", "--candidates", "mask.npy", "--quiet", "--csv", "c.csv"]
    assert main(compare_args(*more, budgets="3", groups=None)) == 0
    ridge = 0.5 * np.square(G[mask].astype(float)).sum(axis=1).mean()
    want = pysubmod.omp_partition(G, t, 3, ridge=float(ridge), nonneg=False, candidates=mask)
    assert float(written("c.csv")["omp"]["objective"]) == pytest.approx(want.objective, rel=1e-12)
    assert main(compare_args("--ridge", "2", "--quiet", "--csv", "c.csv", budgets="3", groups=None)) == 0
    want = pysubmod.omp_partition(G, t, 3, ridge=2.0)
    assert float(written("c.csv")["omp"]["objective"]) == want.objective


def test_only_labels_that_may_be_picked_need_a_budget(files):
    np.save("mask.npy", np.load("labels.npy") == "math")
    assert main(compare_args("--candidates", "mask.npy", "--quiet", budgets="math=2")) == 0


def test_csv_on_standard_output_is_all_there_is(files):
    done = run(*compare_args("--csv", "-"))
    assert done.returncode == 0
    assert done.stdout.startswith("method,objective")
    assert len(done.stdout.splitlines()) == 4
    assert not os.path.exists("-")


def test_quiet(files):
    done = run(*compare_args("--quiet"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_methods_are_listed(capsys):
    assert main(["compare", "--methods", "help"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert tuple(names) == pysubmod.available_methods()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["compare"], "G.npy: needed, unless --demo is given"),
        (["compare", "G.npy"], "--target: needed"),
        (["compare", "G.npy", "--target", "t.npy"], "--budgets: needed"),
        (["compare", "G.npy", "--demo"], "--demo: .*leave G.npy out"),
        (["compare", "--demo", "--groups", "labels.csv"], "--demo: .*leave --groups out"),
        (["compare", "--demo", "--methods", "omp,nope"], "methods: unknown 'nope'"),
        (["compare", "--demo", "--methods", ","], "methods"),
        (["compare", "--demo", "--seeds", "0"], "seeds"),
        (["compare", "--demo", "--gap", "-1"], "gap"),
        (["compare", "--demo", "--time-limit=-1"], "time_limit"),
        (["compare", "--demo", "--ridge-relative=-1"], "ridge_relative"),
        (["compare", "--demo", "--ridge=-1"], "ridge"),
        (["compare", "--demo", "--budgets", "4"], "budgets"),
        (["compare", "--demo", "--plot", "c.txt"], "--plot: expected a name that ends in"),
        (compare_args(budgets="math=2"), "budgets"),
        (compare_args(groups="G.npy"), "--groups"),
        (compare_args("--csv", "labels.csv"), "--csv: .*also an input"),
    ],
)
def test_bad_input(files, capsys, args, message):
    before = sorted(os.listdir())
    assert main(args) == 2
    out, err = capsys.readouterr()
    assert re.search(message, err), err
    assert err.startswith("pysubmod: error: ")
    assert err.count("\n") == 1
    assert out == ""
    assert sorted(os.listdir()) == before


def test_two_ridges_are_one_too_many(capsys):
    assert main(["compare", "--demo", "--ridge", "1", "--ridge-relative", "1"]) == 2
    assert "not allowed with" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--csv", "--plot"])
def test_output_is_checked_before_the_work(files, capsys, monkeypatch, option):
    monkeypatch.setattr("pysubmod.solvers.solve", lambda *_, **__: pytest.fail("the work was started"))
    assert main(compare_args(option, "none/c.png")) == 4
    assert f"{option}: cannot write 'none/c.png'" in capsys.readouterr().err


def test_disk_full_at_the_end(files, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pysubmod._files.os.fsync", full)
    assert main(compare_args("--csv", "c.csv")) == 4
    assert "--csv: cannot write 'c.csv': No space left" in capsys.readouterr().err
    assert not [name for name in os.listdir() if "c.csv" in name]


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_ctrl_c_during_the_proof_leaves_nothing(tmp_path):
    """On a terminal: the bar names what is being done; SIGINT during the certificate."""
    import pty

    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "pysubmod", "compare", "--demo", "--methods", "omp", "--time-limit", "60",
               "--gap", "0", "--csv", "c.csv", "--plot", "c.png"]  # fmt: skip
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=theirs)
    os.close(theirs)
    try:
        assert b"the certificate" in read_until(ours, b"the certificate", seconds=60)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        rest = read_until(ours, b"left behind", seconds=60)
        code = process.wait(timeout=60)
    finally:
        process.kill()
        process.communicate()
        os.close(ours)
    assert code == 130
    assert b"Traceback" not in rest
    assert os.listdir(tmp_path) == []


def test_help_teaches(capsys):
    assert main(["compare", "--help"]) == 0
    out = capsys.readouterr().out
    for word in ("examples:", "exit codes:", "--ridge-relative", "--demo"):
        assert word in out


def test_examples_in_the_help_parse(capsys):
    import shlex

    main(["compare", "--help"])
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    examples = [line for line in lines if line.startswith("pysubmod compare ")]
    assert len(examples) == 3
    for line in examples:
        build_parser().parse_args(shlex.split(line)[1:])


def test_plain_bar_says_what_comes_next(monkeypatch, capsys):
    from pysubmod import _progress

    monkeypatch.setitem(sys.modules, "tqdm", None)
    with _progress.ProgressBar(enabled=True, unit=" methods", title="comparing", after=0.0) as bar:
        bar.show(1, 3, "omp")
    assert "comparing: 1 of 3 methods: omp" in capsys.readouterr().err
