"""Threads, processes, signals and callbacks: the answer never depends on them, and nothing hangs, leaks or is lost.

What could crash or hang the interpreter runs in a process of its own.
"""

from __future__ import annotations

import math
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
from oracles import same
from problems import FAMILIES, family
from strategies import RULES

from pysubmod import GradientMatching, PartitionMatroid, Progress, Selection, omp_partition, solve

METHOD = {"omp": "omp", "normalized": "omp-normalized", "greedy": "greedy"}
THREADS = (1, 2, 7)
BUDGETS = np.full(8, 2)


@pytest.fixture(scope="module", params=FAMILIES)
def data(request):
    """Large enough that a pass is worth several threads."""
    return family(request.param, 500, 1600, seed=5)


# ---- the number of threads --------------------------------------------------------------------------------------


@pytest.mark.parametrize("nonneg", [True, False])
@pytest.mark.parametrize("rule", RULES)
def test_rows_with_any_number_of_threads(data, rule, nonneg):
    G, target, groups = data
    answers = [
        omp_partition(
            G, target, BUDGETS, groups=groups, rule=rule, nonneg=nonneg, ridge=1e-3, fill=True, n_threads=threads
        )
        for threads in THREADS
    ]
    for other in answers[1:]:
        same(answers[0], other)
    if G.shape[1] > 1000:  # the short rows are not worth a second thread
        assert [answer.stats["threads"] for answer in answers] == list(THREADS)


@pytest.mark.parametrize("rule", RULES)
def test_strided_rows_with_any_number_of_threads(rule):
    G, target, groups = family("gradient_like", 300, 2500, seed=6)
    expected = omp_partition(G, target, BUDGETS, groups=groups, rule=rule, n_threads=1)
    for layout in (np.asfortranarray(G), G[::-1].copy()[::-1], {p: G[np.equal(groups, p)] for p in range(8)}):
        for threads in THREADS:
            if isinstance(layout, dict):
                order = np.argsort(groups, kind="stable")
                again = omp_partition(layout, target, dict.fromkeys(range(8), 2), rule=rule, n_threads=threads)
                assert order[again.indices].tolist() == expected.indices.tolist()
                assert again.weights.tobytes() == expected.weights.tobytes()
            else:
                again = omp_partition(layout, target, BUDGETS, groups=groups, rule=rule, n_threads=threads)
                same(again, expected)


@pytest.mark.parametrize("nonneg", [True, False])
@pytest.mark.parametrize("rule", RULES)
def test_gram_matrices_with_any_number_of_threads(data, rule, nonneg):
    G, target, groups = (np.asarray(x, dtype=float) for x in data)
    problem = GradientMatching.from_gram(G @ G.T, G @ target, ridge=1e-3, nonneg=nonneg)
    matroid = PartitionMatroid(groups.astype(int), BUDGETS)
    answers = [solve(problem, matroid, METHOD[rule], n_threads=threads, fill=True) for threads in THREADS]
    for other in answers[1:]:
        same(answers[0], other)


def test_more_threads_than_rows():
    G = np.random.default_rng(0).normal(size=(3, 40_000))
    same(omp_partition(G, G.sum(axis=0), 3, n_threads=1), omp_partition(G, G.sum(axis=0), 3, n_threads=1024))


# ---- calls at once ----------------------------------------------------------------------------------------------


def jobs():
    for seed, name in enumerate(FAMILIES):
        G, target, groups = family(name, 200, 700, seed)
        budgets = dict.fromkeys(set(groups.tolist()), 2)
        for rule in RULES:
            for nonneg in (True, False):
                options = {"groups": groups, "rule": rule, "nonneg": nonneg, "n_threads": 2}
                yield partial(omp_partition, G, target, budgets, **options)


def test_calls_from_many_threads_equal_those_from_one():
    work = list(jobs())
    alone = [act() for act in work]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda act: act(), work * 3))
    for place, answer in enumerate(together):
        same(answer, alone[place % len(work)])


def test_one_problem_may_be_shared_by_threads():
    G, target, groups = family("gradient_like", 200, 700, seed=9)
    problem, matroid = GradientMatching(G, target), PartitionMatroid(groups, BUDGETS)
    expected = solve(problem, matroid)
    value, gains = problem.value(expected.indices), problem.gains(expected.indices)
    with ThreadPoolExecutor(6) as pool:
        for answer in pool.map(lambda _: solve(problem, matroid), range(24)):
            same(answer, expected)
        assert set(pool.map(lambda _: problem.value(expected.indices), range(24))) == {value}
        for found in pool.map(lambda _: problem.gains(expected.indices), range(12)):
            assert found.tobytes() == gains.tobytes()


def test_errors_in_one_thread_leave_the_others_alone():
    work = list(jobs())[:6]
    alone = [act() for act in work]

    def bad():
        with pytest.raises(ValueError, match=r"^G: row 7 "):
            omp_partition(
                np.where(np.arange(300)[:, None] == 7, np.nan, np.ones((300, 900))), np.ones(900), 3, n_threads=4
            )

    with ThreadPoolExecutor(8) as pool:
        running = [pool.submit(act) for pair in zip(work, [bad] * 6, strict=True) for act in pair]
        answers = [future.result() for future in running][::2]
    for answer, expected in zip(answers, alone, strict=True):
        same(answer, expected)


# ---- callbacks --------------------------------------------------------------------------------------------------


def pursue(callback=None, **options):
    G, target, groups = family("gradient_like", 150, 300, seed=2)
    return omp_partition(G, target, BUDGETS, groups=groups, callback=callback, **options)


@pytest.mark.parametrize("nonneg", [True, False])
@pytest.mark.parametrize("rule", RULES)
def test_a_callback_hears_of_every_pick(rule, nonneg):
    heard = []
    selection = pursue(heard.append, rule=rule, nonneg=nonneg, ridge=0.1, fill=True)
    same(selection, pursue(rule=rule, nonneg=nonneg, ridge=0.1, fill=True))
    assert all(isinstance(progress, Progress) for progress in heard)
    assert [progress.n_selected for progress in heard] == list(range(1, len(selection) + 1))
    assert [progress.index for progress in heard] == selection.indices.tolist()
    assert [progress.gain for progress in heard] == selection.gains.tolist()
    assert [progress.residual_norm for progress in heard] == selection.residual_norms.tolist()
    assert {progress.rank for progress in heard} == {16}
    objectives = np.array([progress.objective for progress in heard])
    assert (np.diff(objectives) >= 0).all()
    assert objectives[-1] == pytest.approx(selection.objective, rel=1e-12)


def test_the_objective_rises_at_every_report_even_where_members_leave():
    heard = []
    pursue(heard.append, release_zeros=True)
    assert (np.diff([progress.objective for progress in heard]) > 0).all()


def test_a_callback_of_a_gram_matrix_does_not_know_the_residual():
    heard = []
    solve(GradientMatching.from_gram(np.eye(4), np.ones(4)), 2, callback=heard.append)
    assert len(heard) == 2 and all(math.isnan(progress.residual_norm) for progress in heard)


@pytest.mark.parametrize("stop", [1, 5])
@pytest.mark.parametrize("answer", [True, 1, "yes", np.bool_(True)])
def test_a_callback_can_stop(stop, answer):
    selection = pursue(lambda progress: answer if progress.n_selected == stop else None)
    assert selection.status == "stopped" and len(selection) == stop
    whole = pursue()
    assert selection.indices.tolist() == whole.indices[:stop].tolist()


@pytest.mark.parametrize("answer", [None, False, 0, ""])
def test_a_callback_can_go_on(answer):
    same(pursue(lambda progress: answer), pursue())


class Trouble(Exception):
    pass


@pytest.mark.parametrize("kind", [Trouble, ValueError, KeyboardInterrupt, SystemExit, StopIteration, MemoryError])
@pytest.mark.parametrize("when", [1, 4])
def test_an_error_in_a_callback_comes_out_as_it_is(kind, when):
    trouble = kind("mine")

    def callback(progress):
        if progress.n_selected == when:
            raise trouble

    with pytest.raises(kind) as caught:
        pursue(callback, n_threads=3)
    assert caught.value is trouble
    assert "callback" in [entry.name for entry in caught.traceback]
    same(pursue(), pursue())


def test_a_callback_whose_answer_has_no_truth():
    with pytest.raises(ValueError, match="truth value"):
        pursue(lambda progress: np.ones(2))


def test_a_solve_inside_a_callback():
    inner = []
    outer = pursue(lambda progress: inner.append(pursue(n_threads=2)), n_threads=2)
    assert len(inner) == len(outer) == 16
    for selection in (outer, *inner):
        same(selection, pursue())


def test_a_callback_may_wait_for_another_thread_that_solves():
    def callback(progress):
        with ThreadPoolExecutor(1) as pool:
            assert isinstance(pool.submit(pursue).result(), Selection)

    assert len(pursue(callback, n_threads=2)) == 16


def test_the_callback_runs_on_the_thread_that_called():
    threads = []
    pursue(lambda progress: threads.append(threading.get_ident()), n_threads=4)
    assert set(threads) == {threading.get_ident()}


def test_verbose_reports_on_stderr(capsys):
    pursue(verbose=1)
    shown = capsys.readouterr()
    assert shown.out == "" and len(shown.err.splitlines()) == 16 and "16/16" in shown.err


# ---- in a process of its own ------------------------------------------------------------------------------------

PRELUDE = """
import os, signal, sys, threading, time
import numpy as np
import pysubmod

def small(n_threads=2):
    rng = np.random.default_rng(3)
    G = rng.normal(size=(400, 600)).astype("f4")
    return pysubmod.omp_partition(G, G.mean(axis=0), 20, n_threads=n_threads)

def key(selection):
    return selection.indices.tolist(), selection.weights.tobytes(), selection.objective

def interrupt_after(seconds):
    def act():
        time.sleep(seconds)
        fired.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)
    threading.Thread(target=act, daemon=True).start()

fired = []
"""


def in_a_process(program, *, timeout=150):
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", PRELUDE + textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


FORK = pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="no fork here")


@FORK
def test_a_fork_after_a_solve():
    in_a_process(
        """
        before = key(small())
        for _ in range(3):
            child = os.fork()
            if child == 0:
                os._exit(0 if key(small()) == before and key(small(5)) == before else 17)
            assert key(small()) == before
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert key(small()) == before
        """
    )


@FORK
def test_a_pool_of_forked_processes():
    in_a_process(
        """
        import multiprocessing, warnings
        warnings.simplefilter("ignore")
        before = key(small())
        with multiprocessing.get_context("fork").Pool(3) as pool:
            assert all(key(answer) == before for answer in pool.map(small, [1, 2, 3, 4, 2, 1]))
        assert key(small()) == before
        """
    )


@FORK
def test_a_fork_while_another_thread_solves():
    in_a_process(
        """
        import warnings
        warnings.simplefilter("ignore")
        before = key(small())
        stop = threading.Event()
        worker = threading.Thread(target=lambda: [small() for _ in iter(stop.is_set, True)])
        worker.start()
        for _ in range(4):
            child = os.fork()
            if child == 0:
                os._exit(0 if key(small()) == before else 17)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        stop.set()
        worker.join()
        """
    )


@FORK
def test_a_fork_inside_a_callback():
    in_a_process(
        """
        import warnings
        warnings.simplefilter("ignore")
        before = key(small())

        def callback(progress):
            if progress.n_selected == 3:
                child = os.fork()
                if child == 0:
                    os._exit(0 if key(small()) == before else 17)
                assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

        rng = np.random.default_rng(3)
        G = rng.normal(size=(400, 600)).astype("f4")
        answer = pysubmod.omp_partition(G, G.mean(axis=0), 20, n_threads=2, callback=callback)
        assert key(answer) == before
        """
    )


# Each of these would run for many minutes. Some have one row again and again, which takes no memory.
LONG = {
    "many picks": ("np.random.default_rng(0).normal(size=(6000, 2000)).astype('f4')", 2000, {"nonneg": False}),
    "exact gains": ("np.random.default_rng(0).normal(size=(4000, 3000)) + 1", 2000, {"rule": "greedy"}),
    "one pass": ("np.broadcast_to(np.ones(2_000_000, 'f4'), (1_000_000, 2_000_000))", 1, {}),
    "one pass, one thread": ("np.broadcast_to(np.ones(2_000_000, 'f2'), (1_000_000, 2_000_000))", 1, {"n_threads": 1}),
    "one pass, packed": ("np.broadcast_to(np.ones((1, 1)), (1_000_000, 2_000_000))", 1, {}),
    "with a report": ("np.random.default_rng(0).normal(size=(6000, 2000))", 2000, {"verbose": 1}),
}


@pytest.mark.parametrize("name", LONG)
def test_ctrl_c_ends_a_long_solve(name):
    """The signal comes from a Python thread, which could not run if the solve held the interpreter's lock."""
    rows, k, options = LONG[name]
    in_a_process(
        f"""
        before = key(small())
        G = {rows}
        target = np.ones(G.shape[1])
        interrupt_after(1.0)
        try:
            pysubmod.omp_partition(G, target, {k}, **{options})
        except KeyboardInterrupt:
            waited = time.monotonic() - fired[0]
        else:
            sys.exit("the solve came to its end")
        assert key(small()) == before, "the next solve is not what it was"
        print("waited", waited)
        """
    )


def test_ctrl_c_ends_a_long_evaluation():
    in_a_process(
        """
        G = np.random.default_rng(0).normal(size=(20000, 600))
        problem = pysubmod.GradientMatching(G, np.ones(600))
        interrupt_after(1.0)
        try:
            problem.gains(np.arange(400))
        except KeyboardInterrupt:
            pass
        else:
            sys.exit("came to its end")
        assert problem.value([0]) >= 0
        """
    )


def test_ctrl_c_ends_a_long_solve_of_a_gram_matrix():
    in_a_process(
        """
        G = np.random.default_rng(0).normal(size=(2000, 2500)) + 1
        problem = pysubmod.GradientMatching.from_gram(G @ G.T, G.sum(axis=1))
        interrupt_after(1.0)
        try:
            for _ in range(1000):
                pysubmod.solve(problem, 1500, "greedy")
        except KeyboardInterrupt:
            pass
        else:
            sys.exit("came to its end")
        """
    )


def test_other_signals_reach_their_handlers_during_a_solve():
    in_a_process(
        """
        seen = []

        class Enough(Exception):
            pass

        def handler(number, frame):
            seen.append(number)
            if len(seen) == 3:
                raise Enough

        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.3, 0.1)
        G = np.broadcast_to(np.ones(2_000_000, 'f4'), (1_000_000, 2_000_000))
        try:
            pysubmod.omp_partition(G, np.ones(G.shape[1]), 1)
        except Enough:
            signal.setitimer(signal.ITIMER_REAL, 0)
        assert len(seen) == 3
        """
    )


def test_other_threads_run_during_a_pass():
    """A thread that sleeps and counts needs the lock for every step: held, it would be the solver's all the time."""
    in_a_process(
        """
        ticks = []

        def count():
            while len(ticks) < 200:
                time.sleep(0.001)
                ticks.append(None)
            os.kill(os.getpid(), signal.SIGINT)

        G = np.broadcast_to(np.ones(2_000_000, 'f4'), (1_000_000, 2_000_000))
        thread = threading.Thread(target=count)
        thread.start()
        try:
            pysubmod.omp_partition(G, np.ones(G.shape[1]), 1)
        except KeyboardInterrupt:
            thread.join()
        assert len(ticks) == 200
        """
    )


def test_ctrl_c_in_a_solve_on_another_thread_goes_to_the_main_one():
    """Python handles signals on its main thread only; a solve elsewhere is not disturbed."""
    in_a_process(
        """
        answers = []
        G = np.random.default_rng(0).normal(size=(2000, 2000)).astype("f4")
        work = lambda: answers.append(pysubmod.omp_partition(G, np.ones(2000), 60, n_threads=2))
        thread = threading.Thread(target=work)
        interrupt_after(0.2)
        try:
            thread.start()
            while True:
                time.sleep(0.05)
        except KeyboardInterrupt:
            thread.join()
        assert len(answers[0]) == 60
        """
    )
