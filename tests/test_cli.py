"""The command line: what it reads, writes, says, and with which code it exits."""

import json
import os
import re
import select
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import pysubmod
from pysubmod.cli import main
from pysubmod.result import Selection

N, D = 40, 12  # of the problem in `files`


def select_args(*more, budgets="math=2,code=1,chat=1,spam=0", groups="labels.csv", output="sel.json"):
    grouped = [] if groups is None else ["--groups", groups]
    return ["select", "G.npy", "--target", "t.npy", *grouped, "--budgets", budgets, "-o", output, *more]


def run(*args, **kwargs):
    command = [sys.executable, "-m", "pysubmod", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **kwargs)


def expected(budgets, groups=None, **options):
    return pysubmod.omp_partition(np.load("G.npy"), np.load("t.npy"), budgets, groups=groups, **options)


# -- select -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", ["labels.csv", "labels.txt", "labels.npy"])
def test_select_writes_what_the_function_returns(files, capsys, groups):
    assert main(select_args(groups=groups)) == 0
    sel = Selection.load("sel.json")
    want = expected({"math": 2, "code": 1, "chat": 1, "spam": 0}, np.load("labels.npy"))
    assert sel.indices.tolist() == want.indices.tolist()
    assert sel.weights.tobytes() == want.weights.tobytes()
    assert sel.counts == {"chat": 1, "code": 1, "math": 2, "spam": 0}
    assert sel.config["files"] == {"gradients": "G.npy", "target": "t.npy", "groups": groups}
    out, err = capsys.readouterr()
    assert "Selection of 4 candidates" in out
    assert "saved as   sel.json" in out
    assert err == ""


def test_select_in_its_own_process(files):
    done = run(*select_args())
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # no terminal, no progress bar
    assert "Every budget is used up." in done.stdout
    assert len(Selection.load("sel.json")) == 4
    assert not [name for name in os.listdir() if name.endswith(".tmp")]


def test_one_budget_without_groups(files):
    assert main(select_args("--quiet", budgets="6", groups=None)) == 0
    assert Selection.load("sel.json").indices.tolist() == expected(6).indices.tolist()


def test_integer_labels(files):
    assert main(select_args("--quiet", budgets="0=1,1=1,*=2", groups="codes.npy")) == 0
    assert Selection.load("sel.json").counts == {0: 1, 1: 1, 2: 2, 3: 2}


def test_star_is_every_label_not_named(files):
    assert main(select_args("--quiet", budgets="spam=0,*=2")) == 0
    assert Selection.load("sel.json").counts == {"chat": 2, "code": 2, "math": 2, "spam": 0}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("b.json", '{"math": 2, "code": 1, "*": 0}'),
        ("b.yaml", "math: 2\ncode: 1\n'*': 0\n"),
        ("b.json", "[0, 1, 2, 0]"),  # in the order of the sorted labels
    ],
)
def test_budgets_from_a_file(files, name, text):
    if name.endswith(".yaml"):
        pytest.importorskip("yaml")
    (files / name).write_text(text)
    assert main(select_args("--quiet", budgets=name)) == 0
    assert Selection.load("sel.json").counts == {"chat": 0, "code": 1, "math": 2, "spam": 0}


def test_options_reach_the_solver(files):
    np.save("mask.npy", np.arange(N) % 3 > 0)
    (files / "start.csv").write_text("index\n1\n2\n")
    options = ["--free", "--rule", "normalized", "--ridge", "0.5", "--tol", "1e-3", "--candidates", "mask.npy",
               "--initial", "start.csv", "--n-threads", "1", "--route", "draft", "--fill", "--quiet"]  # fmt: skip
    assert main(select_args(*options)) == 0
    sel = Selection.load("sel.json")
    want = expected(
        {"math": 2, "code": 1, "chat": 1, "spam": 0}, np.load("labels.npy"), nonneg=False, rule="normalized",
        ridge=0.5, tol=1e-3, candidates=np.load("mask.npy"), initial=[1, 2], n_threads=1, fill=True,
    )  # fmt: skip
    assert sel.indices.tolist() == want.indices.tolist()
    assert sel.indices[:2].tolist() == [1, 2]
    assert sel.stats["route"] == "draft"
    assert sel.weights.tobytes() == want.weights.tobytes()


def test_starts_from_an_earlier_selection(files):
    assert main(select_args("--quiet", budgets="3", groups=None)) == 0
    assert main(select_args("--quiet", "--initial", "sel.json", budgets="6", groups=None, output="more.json")) == 0
    first, more = Selection.load("sel.json"), Selection.load("more.json")
    assert more.indices[:3].tolist() == first.indices.tolist()


def test_targets_are_averaged(files):
    np.save("t.npy", np.stack([np.load("t.npy"), np.ones(D)]))
    assert main(select_args("--quiet")) == 0


def test_json_on_standard_output_is_all_there_is(files):
    done = run(*select_args(output="-"))
    assert done.returncode == 0
    assert json.loads(done.stdout)["format"] == "pysubmod.Selection"
    assert "Selection of 4 candidates" in done.stderr
    assert not os.path.exists("-")


def test_quiet(files):
    done = run(*select_args("--quiet"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_unknown_labels_warn_in_one_line(files, capsys):
    assert main(select_args("--quiet", budgets="rare=3,*=1")) == 0
    err = capsys.readouterr().err
    assert re.fullmatch(r"pysubmod: warning: .*rare.*\n", err), err


def test_a_short_selection_is_reported(files, capsys):
    budgets = "math=2,code=90,chat=0,spam=0"
    assert main(select_args("--free", "--ridge", "1", budgets=budgets)) == 0
    out = capsys.readouterr().out
    assert re.search(r"shorter than the budgets: code \d+ of 90", out), out
    assert main(select_args("--free", "--require-full", budgets=budgets)) == 3
    assert main(select_args("--require-full")) == 0
    assert os.path.exists("sel.json")


# -- bad input: exit 2, one line, no traceback, no output --------------------------------------------------------


def refuse(capsys, args, message):
    assert main(args) == 2
    out, err = capsys.readouterr()
    assert re.search(message, err), err
    assert err.startswith("pysubmod: error: ")
    assert "Traceback" not in err
    assert err.count("\n") == 1
    assert out == ""
    assert not os.path.exists("sel.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"budgets": "math=2,code"}, "--budgets: expected label=integer, got 'code'"),
        ({"budgets": "math=2.5"}, "--budgets: expected label=integer"),
        ({"budgets": "many"}, "--budgets: expected an integer"),
        ({"budgets": "math=1,math=2"}, "--budgets: 'math' is named twice"),
        ({"budgets": "none.json"}, "--budgets: cannot read 'none.json'"),
        ({"budgets": "math=1"}, "budgets"),  # the other labels have no budget
        ({"budgets": "*=-1"}, "budgets"),
        ({"budgets": "math=1", "groups": None}, "--groups: needed"),
        ({"budgets": "a=1", "groups": "codes.npy"}, "--budgets: the labels are integers"),
        ({"groups": "none.csv"}, "--groups: cannot read 'none.csv'"),
        ({"groups": "labels.xlsx"}, "--groups: expected a .npy"),
        ({"groups": "G.npy"}, "--groups: expected integer or text labels"),
    ],
)
def test_bad_budgets_and_groups(files, capsys, change, message):
    refuse(capsys, select_args(**change), message)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("b.json", '{"math": 1, "math": 2}', "named twice"),
        ("b.json", "{", "not JSON"),
        ("b.json", '"math"', "expected a mapping"),
        ("b.json", '{"math": 1.5, "*": 1}', "budgets"),
        ("b.json", '{"math": true, "*": 1}', "budgets"),
        ("b.yaml", "a: [", "not YAML"),
    ],
)
def test_bad_budget_files(files, capsys, name, content, message):
    if name.endswith(".yaml"):
        pytest.importorskip("yaml")
    (files / name).write_text(content)
    refuse(capsys, select_args(budgets=name), message)


@pytest.mark.parametrize(
    ("name", "content", "more", "message"),
    [
        ("g.csv", "a,b\n1,2\n", (), "--group-column; it has a, b"),
        ("g.csv", "a,b\n1,2\n", ("--group-column", "c"), "no column 'c'"),
        ("g.csv", 'domain\nx\n""\n', (), "row 1 .* has no value"),
        ("g.txt", "a\n\nb\n", (), "line 2 .* is empty"),
        ("g.txt", "math\n", (), "groups"),  # one label for forty rows
    ],
)
def test_bad_label_files(files, capsys, name, content, more, message):
    (files / name).write_text(content)
    refuse(capsys, select_args(*more, groups=name, budgets="*=1"), message)


def test_bad_arrays(files, capsys):
    G = np.load("G.npy")
    np.savez("G.npz", G=G)
    np.save("object.npy", np.array([{}], dtype=object), allow_pickle=True)
    (files / "cut.npy").write_bytes((files / "G.npy").read_bytes()[:300])
    np.save("nan.npy", np.where(np.arange(D) == 3, np.nan, G))
    np.save("wide.npy", np.ones(D + 1))
    np.save("mask.npy", np.ones(N - 1, bool))
    for name, message in [("none.npy", "G: cannot read"), ("G.npz", "G: 'G.npz' is an .npz archive.*np.save"),
                          ("labels.csv", "G: .* is not a .npy file"), ("object.npy", "G: cannot read"),
                          ("cut.npy", "G: cannot read"), ("nan.npy", "G"), ("t.npy", "G")]:  # fmt: skip
        args = select_args()
        args[1] = name
        refuse(capsys, args, message)
    refuse(capsys, [*select_args(), "--target", "wide.npy"], "target")
    refuse(capsys, [*select_args(), "--candidates", "mask.npy"], "candidates")
    refuse(capsys, [*select_args(), "--initial", "labels.txt"], "--initial: expected row numbers")
    refuse(capsys, [*select_args(), "--ridge=-1"], "ridge")
    refuse(capsys, [*select_args(), "--tol", "nan"], "tol")
    refuse(capsys, [*select_args(), "--n-threads", "0"], "n_threads")


@pytest.mark.parametrize("args", [["select"], ["nope"], ["select", "G.npy", "--rule", "best"], [], ["demo", "-k", "x"]])
def test_wrong_usage(args, capsys):
    assert main(args) == 2
    assert "usage: pysubmod" in capsys.readouterr().err


# -- output -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("output", ["none/sel.json", ".", "G.npy/sel.json"])
def test_output_is_checked_before_the_work(files, capsys, monkeypatch, output):
    monkeypatch.setattr(pysubmod, "omp_partition", lambda *_, **__: pytest.fail("the work was started"))
    before = sorted(os.listdir())
    assert main(select_args(output=output)) == 4
    assert f"--output: cannot write '{output}'" in capsys.readouterr().err
    assert sorted(os.listdir()) == before


def test_output_never_overwrites_an_input(files, capsys):
    before = (files / "labels.csv").read_bytes()
    assert main(select_args(output="labels.csv")) == 2
    assert "also an input" in capsys.readouterr().err
    assert (files / "labels.csv").read_bytes() == before


def test_disk_full_at_the_end(files, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pysubmod._files.os.fsync", full)
    assert main(select_args()) == 4
    assert "No space left" in capsys.readouterr().err
    assert not [name for name in os.listdir() if "sel.json" in name]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_standard_output_that_cannot_take_it(files):
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "pysubmod", *select_args("--quiet", output="-")]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode == 4
    assert "cannot write standard output" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("args", [select_args("--quiet", output="-"), select_args(), ["demo", "-k", "1"], ["info"]])
def test_the_other_end_of_the_pipe_is_gone(files, args):
    command = [sys.executable, "-m", "pysubmod", *args]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        err = process.stderr.read()
        assert process.wait(timeout=120) == 4
    assert "Traceback" not in err
    assert "Exception ignored" not in err
    if "sel.json" in args:
        assert len(Selection.load("sel.json")) == 4  # only the summary was lost


# -- Ctrl-C -----------------------------------------------------------------------------------------------------


def test_interrupt_through_main(files, capsys, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(pysubmod, "omp_partition", interrupt)
    assert main(select_args()) == 130
    assert "interrupted" in capsys.readouterr().err
    assert not os.path.exists("sel.json")


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_ctrl_c_in_a_long_select_leaves_nothing(tmp_path):
    """On a terminal: the progress bar comes up after a second; then SIGINT."""
    import pty

    rng = np.random.default_rng(0)
    n, d = 20_000, 2_000
    block = rng.standard_normal((1_000, d)).astype(np.float16)
    G = np.lib.format.open_memmap(tmp_path / "G.npy", mode="w+", dtype=np.float16, shape=(n, d))
    for start in range(0, n, len(block)):
        G[start : start + len(block)] = np.roll(block, start // 1_000, axis=1)
    G.flush()
    del G
    np.save(tmp_path / "t.npy", rng.standard_normal(d))
    before = sorted(os.listdir(tmp_path))
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "pysubmod", *select_args(budgets="1900", groups=None)]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=theirs)
    os.close(theirs)
    try:
        assert b"selecting" in read_until(ours, b"selecting", seconds=60)
        sent = time.monotonic()
        process.send_signal(signal.SIGINT)
        rest = read_until(ours, b"left behind", seconds=60)
        code = process.wait(timeout=60)
        took = time.monotonic() - sent
    finally:
        process.kill()
        process.communicate()
        os.close(ours)
    assert code == 130
    assert b"interrupted" in rest
    assert b"Traceback" not in rest
    assert took < 10
    assert sorted(os.listdir(tmp_path)) == before


def read_until(handle, word, seconds):
    """What comes from a terminal until `word` is in it, its other end is closed, or time is up."""
    seen, end = b"", time.monotonic() + seconds
    while word not in seen and time.monotonic() < end:
        if not select.select([handle], [], [], 0.1)[0]:
            continue
        try:
            part = os.read(handle, 4096)
        except OSError:  # Linux: the other end is closed
            break
        if not part:
            break
        seen += part
    return seen


# -- the rest ---------------------------------------------------------------------------------------------------


def test_version_and_info():
    done = run("--version")
    assert (done.returncode, done.stdout.strip()) == (0, f"pysubmod {pysubmod.__version__}")
    done = run("info")
    assert done.returncode == 0
    assert done.stdout.strip()


@pytest.mark.parametrize("command", [[], ["select"], ["demo"]])
def test_help_teaches(command, capsys):
    assert main([*command, "--help"]) == 0
    out = capsys.readouterr().out
    assert "exit codes:" in out
    if command == ["select"]:
        for word in ("examples:", "--budgets", "memory-mapped", "pysubmod.Selection.load"):
            assert word in out


def test_examples_in_the_help_parse(capsys):
    """Every example in the help is a command line the parser accepts."""
    import shlex

    from pysubmod.cli import build_parser

    main(["select", "--help"])
    text = capsys.readouterr().out.replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.strip().startswith("pysubmod select")]
    assert len(lines) == 4
    for line in lines:
        build_parser().parse_args(shlex.split(line.split(" | ")[0])[1:])


def test_big_input_is_not_read_into_memory(files, monkeypatch):
    seen = []
    monkeypatch.setattr(pysubmod, "omp_partition", lambda G, *_, **__: seen.append(G) or sys.exit(0))
    with pytest.raises(SystemExit):
        main(select_args())
    assert isinstance(seen[0], np.memmap)
    assert not seen[0].flags.writeable


def test_progress_bar_only_after_a_second(monkeypatch, capsys):
    from collections import namedtuple

    from pysubmod import _progress

    progress = namedtuple("progress", "rank n_selected")
    clock = [0.0]
    monkeypatch.setattr(_progress.time, "monotonic", lambda: clock[0])
    monkeypatch.setitem(sys.modules, "tqdm", None)  # the plain bar
    with _progress.ProgressBar(enabled=True) as bar:
        bar.callback(progress(9, 1))
        assert capsys.readouterr().err == ""
        clock[0] = 1.5
        bar.callback(progress(9, 2))
        bar.callback(progress(9, 3))
    err = capsys.readouterr().err
    assert "2 of 9" in err
    assert "3 of 9" in err
    assert _progress.ProgressBar(enabled=False).callback is None


def test_select_by_other_ways(files):
    """What `omp_partition` offers beside its argmax."""
    for extra in (
        ["--refine", "swap"],
        ["--refine", "best", "--ridge", "0.5"],
        ["--pick", "random", "--random-state", "3"],
    ):
        given = ["select", "G.npy", "--target", "t.npy", "--budgets", "6", "-o", "s.json", "--quiet", *extra]
        assert main(given) == 0
        first = Selection.load("s.json")
        assert len(first) <= 6
        assert main(given) == 0
        assert Selection.load("s.json").indices.tolist() == first.indices.tolist()


def test_refine_best_takes_nothing_else(files, capsys):
    given = ["select", "G.npy", "--target", "t.npy", "--budgets", "6", "-o", "s.json"]
    assert main([*given, "--refine", "best", "--fill"]) == 2
    assert "fill: refine='best' makes its own way" in capsys.readouterr().err
