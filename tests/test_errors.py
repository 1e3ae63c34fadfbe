"""Every bad input: the right exception, whose message names the argument, what was expected, what came, and the cure.

One table. The second half shows what is not an error.
"""

from __future__ import annotations

import fractions
import warnings

import numpy as np
import pytest

import pysubmod
from pysubmod import GradientMatching, PartitionMatroid, omp_partition, solve

NAN, INF = float("nan"), float("inf")
ROWS = np.array([[1.0, 0, 0], [1, 1, 0], [0, 1, 0], [0, 1, 1], [0, 0, 1], [1, 0, 1]])
TARGET = np.ones(3)
GROUPS = ["a", "a", "b", "b", "c", "c"]
BUDGETS = {"a": 1, "b": 2, "c": 1}
GOOD = {"G": ROWS, "target": TARGET, "budgets": BUDGETS, "groups": GROUPS}


def call(**changes):
    return omp_partition(**{**GOOD, **changes})


def plain(**changes):
    return omp_partition(**{"G": ROWS, "target": TARGET, "budgets": 2, **changes})


def rows_with(value, row=4, dtype=float):
    G = ROWS.astype(dtype)
    G[row, 1] = value
    return G


def gram(K=None, c=None, **options):
    K = ROWS @ ROWS.T if K is None else K
    return GradientMatching.from_gram(K, ROWS @ TARGET if c is None else c, **options)


def other(value, like=ROWS):
    K = like @ like.T
    K[1, 3] = value
    return K


MATCHING = GradientMatching(ROWS, TARGET)
MATROID = PartitionMatroid(GROUPS, BUDGETS)
DUPLICATES = np.array([[1.0, 0, 0], [1, 0, 0]])


class OnAnAccelerator:
    """What says of itself that it lies in another device's memory; tests/test_device_errors.py has whole ones."""

    __cuda_array_interface__ = {"shape": (6, 3)}  # noqa: RUF012


class Sparse:
    def tocsr(self):
        return self


# name: (call, exception, argument, what the message must say)
BAD = {
    # --- G
    "G NaN": (lambda: call(G=rows_with(NAN)), ValueError, "G", ["row 4", "NaN", "candidates"]),
    "G Inf": (lambda: call(G=rows_with(-INF)), ValueError, "G", ["row 4", "infinity"]),
    "G NaN float32": (lambda: call(G=rows_with(NAN, 2, "f4")), ValueError, "G", ["row 2", "NaN"]),
    "G Inf float16": (lambda: call(G=rows_with(INF, 5, "f2")), ValueError, "G", ["row 5", "infinity"]),
    "G first of several": (lambda: call(G=np.where(ROWS == 0, NAN, ROWS)), ValueError, "G", ["row 0"]),
    "G NaN strided": (lambda: call(G=np.asfortranarray(rows_with(NAN))), ValueError, "G", ["row 4", "NaN"]),
    "G NaN in a mapping": (
        lambda: omp_partition({"a": ROWS, "b": rows_with(NAN)}, TARGET, {"a": 1, "b": 1}),
        ValueError, "G", ["row 10", "NaN"],
    ),
    "G NaN in initial": (
        lambda: call(G=rows_with(NAN), initial=[4], candidates=np.arange(6) < 4), ValueError, "G", ["row 4"],
    ),
    "G too long": (lambda: call(G=ROWS * 1e150), ValueError, "G", ["row 0", "1e140", "rescale"]),
    "G too short": (lambda: call(G=ROWS * 1e-150), ValueError, "G", ["row 0", "1e-140", "rescale"]),
    "G one-dimensional": (lambda: call(G=ROWS[0]), ValueError, "G", ["(n, d)", "(3,)"]),
    "G three-dimensional": (lambda: call(G=ROWS[None]), ValueError, "G", ["(n, d)", "(1, 6, 3)"]),
    "G a number": (lambda: call(G=1.0), ValueError, "G", ["(n, d)", "()"]),
    "G without columns": (lambda: call(G=np.ones((6, 0)), target=[]), ValueError, "G", ["d = 0"]),
    "G complex": (lambda: call(G=ROWS + 0j), TypeError, "G", ["complex128", "float64"]),
    "G object": (lambda: call(G=ROWS.astype(object)), TypeError, "G", ["object", "float64"]),
    "G text": (lambda: call(G=ROWS.astype(str)), TypeError, "G", ["str", "float64"]),
    "G boolean": (lambda: call(G=ROWS > 0), TypeError, "G", ["bool", "float64"]),
    "G datetime": (lambda: call(G=ROWS.astype("M8[s]")), TypeError, "G", ["datetime64", "float64"]),
    "G structured": (lambda: call(G=np.zeros((6, 3), "f4,i4")), TypeError, "G", ["float64"]),
    "G ragged": (lambda: call(G=[[1.0], [1.0, 2.0]]), TypeError, "G", ["list"]),
    "G None": (lambda: call(G=None), TypeError, "G", ["object", "float64"]),
    "G sparse": (lambda: call(G=Sparse()), TypeError, "G", ["sparse", "toarray"]),
    "G on an accelerator": (lambda: call(G=OnAnAccelerator()), TypeError, "G", ["no 'typestr'"]),
    "G of a mapping on an accelerator": (
        lambda: omp_partition({"a": OnAnAccelerator()}, TARGET, {"a": 1}), ValueError, "G['a']", ["GPU", ".cpu()"],
    ),
    "target on an accelerator": (lambda: call(target=OnAnAccelerator()), ValueError, "target", ["GPU", ".cpu()"]),
    "groups on an accelerator": (lambda: call(groups=OnAnAccelerator()), ValueError, "groups", ["GPU", ".cpu()"]),
    "G masked entries": (lambda: call(G=np.ma.masked_equal(ROWS, 0)), TypeError, "G", ["masked", "candidates"]),
    "G empty mapping": (lambda: omp_partition({}, TARGET, {}), ValueError, "G", ["empty", "(n_group, d)"]),
    "G mapping of other widths": (
        lambda: omp_partition({"a": ROWS, "b": ROWS[:, :2]}, TARGET, {"a": 1, "b": 1}),
        ValueError, "G", ["same number of columns", "'a': 3", "'b': 2"],
    ),
    "G mapping of a vector": (
        lambda: omp_partition({"a": ROWS[0]}, TARGET, {"a": 1}), ValueError, "G['a']", ["(n, d)", "(3,)"],
    ),
    "G mapping of mappings": (
        lambda: omp_partition({"a": {"b": ROWS}}, TARGET, {"a": 1}), TypeError, "G['a']", ["mapping"],
    ),
    "G mapping keys mixed": (
        lambda: omp_partition({"1": ROWS, 1: ROWS}, TARGET, {"1": 1, 1: 1}),
        TypeError, "G", ["all integers or all strings"],
    ),
    "G mapping keys not labels": (
        lambda: omp_partition({1.5: ROWS}, TARGET, {1.5: 1}), TypeError, "G", ["all integers or all strings", "float"],
    ),
    # --- target
    "target NaN": (lambda: call(target=[1, NAN, 1]), ValueError, "target", ["entry 1", "NaN", "finite"]),
    "target Inf": (lambda: call(target=[1.0, 1, INF]), ValueError, "target", ["entry 2", "infinite"]),
    "target NaN row": (lambda: call(target=[[1.0, 1, 1], [1, 1, NAN]]), ValueError, "target", ["row 1", "NaN"]),
    "target length": (lambda: call(target=np.ones(4)), ValueError, "target", ["(3,)", "(m, 3)", "(4,)"]),
    "target columns": (lambda: call(target=np.ones((3, 4))), ValueError, "target", ["(m, 3)", "(3, 4)"]),
    "target a number": (lambda: call(target=1.0), ValueError, "target", ["(3,)", "()"]),
    "target three-dimensional": (lambda: call(target=np.ones((1, 1, 3))), ValueError, "target", ["(1, 1, 3)"]),
    "target no rows": (lambda: call(target=np.ones((0, 3))), ValueError, "target", ["no rows", "at least one"]),
    "target complex": (lambda: call(target=TARGET + 0j), TypeError, "target", ["complex128", "float64"]),
    "target text": (lambda: call(target="abc"), TypeError, "target", ["str", "float64"]),
    "target object": (lambda: call(target=[1.0, None, 1.0]), TypeError, "target", ["object", "float64"]),
    "target boolean": (lambda: call(target=[True, False, True]), TypeError, "target", ["bool"]),
    "target None": (lambda: call(target=None), TypeError, "target", ["object"]),
    "target too long": (lambda: call(target=TARGET * 1e200), ValueError, "target", ["1e140", "rescale"]),
    "target too long for a mean": (lambda: call(target=np.full((4, 3), 1.5e308)), ValueError, "target", ["rescale"]),
    "target too short": (lambda: call(target=TARGET * 1e-200), ValueError, "target", ["1e-140", "rescale"]),
    # --- budgets
    "budgets negative": (lambda: plain(budgets=-1), ValueError, "budgets", ["at least 0", "-1"]),
    "budgets fraction": (lambda: plain(budgets=2.5), ValueError, "budgets", ["whole number", "2.5", "round"]),
    "budgets NaN": (lambda: plain(budgets=NAN), ValueError, "budgets", ["whole number", "nan"]),
    "budgets Inf": (lambda: plain(budgets=INF), ValueError, "budgets", ["whole number", "inf"]),
    "budgets boolean": (lambda: plain(budgets=True), TypeError, "budgets", ["integer", "True"]),
    "budgets text": (lambda: plain(budgets="2"), TypeError, "budgets", ["integer", "str"]),
    "budgets None": (lambda: plain(budgets=None), TypeError, "budgets", ["integer", "NoneType"]),
    "budgets rational": (
        lambda: plain(budgets=fractions.Fraction(2)), TypeError, "budgets", ["integer", "Fraction"],
    ),
    "budgets complex": (lambda: plain(budgets=2 + 0j), TypeError, "budgets", ["integer", "complex"]),
    "budgets time span": (lambda: plain(budgets=np.timedelta64(2, "s")), TypeError, "budgets", ["timedelta64"]),
    "budgets very negative": (lambda: plain(budgets=-(10**5000)), ValueError, "budgets", ["at least 0"]),
    "budgets one negative": (lambda: call(budgets={**BUDGETS, "b": -2}), ValueError, "budgets['b']", ["-2"]),
    "budgets one fraction": (lambda: call(budgets={**BUDGETS, "b": 0.5}), ValueError, "budgets['b']", ["0.5"]),
    "budgets one boolean": (lambda: call(budgets={**BUDGETS, "b": False}), TypeError, "budgets['b']", ["False"]),
    "budgets one None": (lambda: call(budgets={**BUDGETS, "b": None}), TypeError, "budgets['b']", ["NoneType"]),
    "budgets one missing": (
        lambda: call(budgets={"a": 1, "c": 1}), ValueError, "budgets", ["'b'", "'a', 'c'", "0 to exclude"],
    ),
    "budgets several missing": (lambda: call(budgets={"b": 1}), ValueError, "budgets", ["'a'", "0 to exclude"]),
    "budgets of another type": (
        lambda: call(groups=[1] * 6, budgets={"1": 2}), ValueError, "budgets", ["1", "their type"],
    ),
    "budgets key": (lambda: call(budgets={**BUDGETS, 1.5: 1}), TypeError, "budgets", ["integers or strings", "1.5"]),
    "budgets key boolean": (lambda: call(budgets={**BUDGETS, True: 1}), TypeError, "budgets", ["True"]),
    "budgets sequence short": (lambda: call(budgets=[1, 2]), ValueError, "budgets", ["sorted labels", "3", "got 2"]),
    "budgets sequence long": (lambda: call(budgets=[1] * 4), ValueError, "budgets", ["'a', 'b', 'c'", "got 4"]),
    "budgets sequence entry": (lambda: call(budgets=[1, 2, -3]), ValueError, "budgets[2]", ["-3"]),
    "budgets sequence NaN": (lambda: call(budgets=np.array([1, NAN, 1])), ValueError, "budgets[1]", ["nan"]),
    "budgets matrix": (lambda: call(budgets=np.ones((3, 1), int)), TypeError, "budgets[0]", ["list"]),
    "budgets set": (lambda: call(budgets={1, 2, 3}), TypeError, "budgets", ["mapping", "sequence", "set"]),
    "budgets one for several groups": (
        lambda: call(budgets=2), ValueError, "budgets", ["2", "3 groups", "cardinality"],
    ),
    "budgets sequence for a mapping": (
        lambda: omp_partition({"a": ROWS}, TARGET, [1]), TypeError, "budgets", ["mapping", "same keys"],
    ),
    "budgets of other rows": (
        lambda: plain(budgets=PartitionMatroid([0] * 5, [2])), ValueError, "budgets", ["5 rows", "6"],
    ),
    # --- groups
    "groups missing": (lambda: plain(budgets=BUDGETS), ValueError, "groups", ["missing", "label of each row"]),
    "groups missing for a sequence": (lambda: plain(budgets=[1, 2]), ValueError, "groups", ["missing"]),
    "groups short": (lambda: call(groups=GROUPS[:5]), ValueError, "groups", ["(6,)", "(5,)"]),
    "groups matrix": (lambda: call(groups=[GROUPS]), ValueError, "groups", ["(6,)", "(1, 6)"]),
    "groups one label": (lambda: call(groups="a"), ValueError, "groups", ["(6,)", "()"]),
    "groups float": (lambda: call(groups=np.zeros(6)), TypeError, "groups", ["integers", "strings", "float64"]),
    "groups boolean": (lambda: call(groups=[True] * 6), TypeError, "groups", ["integers", "strings", "bool"]),
    "groups bytes": (lambda: call(groups=[b"a"] * 6), TypeError, "groups", ["integers", "strings", "|S1"]),
    "groups None inside": (lambda: call(groups=["a", None] * 3), TypeError, "groups", ["integers", "object"]),
    "groups mixed list": (lambda: call(groups=["a", 1] * 3), TypeError, "groups", ["all integers or all strings"]),
    "groups mixed objects": (
        lambda: call(groups=np.array(["a", 1] * 3, dtype=object)), TypeError, "groups", ["integers", "object"],
    ),
    "groups a truth among numbers": (
        lambda: call(groups=[1, True] * 3, budgets={1: 2}), TypeError, "groups", ["integers", "True"],
    ),
    "groups datetime": (lambda: call(groups=np.zeros(6, "M8[s]")), TypeError, "groups", ["datetime64"]),
    "groups too large": (lambda: call(groups=[2**70] * 6, budgets={2**70: 1}), ValueError, "groups", ["64 bits"]),
    "groups with a mapping": (
        lambda: omp_partition({"a": ROWS}, TARGET, {"a": 1}, groups=["a"] * 6), ValueError, "groups", ["keys"],
    ),
    "groups with a matroid": (lambda: call(budgets=MATROID), ValueError, "groups", ["PartitionMatroid", "its own"]),
    # --- numbers
    **{
        f"{name} {label}": (lambda name=name, value=value: call(**{name: value}), kind, name, says)
        for name in ("ridge", "tol")
        for label, value, kind, says in (
            ("negative", -1e-9, ValueError, ["at least 0", "-1e-09"]),
            ("NaN", NAN, ValueError, ["at least 0", "nan"]),
            ("Inf", INF, ValueError, ["inf", "1e280"]),
            ("too large", 10**5000, ValueError, ["1e280"]),
            ("None", None, TypeError, ["real number", "NoneType"]),
            ("text", "1", TypeError, ["real number", "str"]),
            ("boolean", True, TypeError, ["real number", "bool"]),
            ("complex", np.complex128(1 + 2j), TypeError, ["real number", "complex128"]),
            ("array", np.ones(2), TypeError, ["real number", "ndarray"]),
            ("time span", np.timedelta64(1, "s"), TypeError, ["real number", "timedelta64"]),
        )
    },
    "tilt NaN": (lambda: call(tilt=NAN), ValueError, "tilt", ["finite", "nan"]),
    "tilt Inf": (lambda: call(tilt=-INF), ValueError, "tilt", ["finite", "-inf"]),
    "tilt text": (lambda: call(tilt="0"), TypeError, "tilt", ["real number", "str"]),
    "tilt too large for G": (lambda: call(tilt=1e279), ValueError, "tilt", ["too large"]),
    "tilt whose square overflows": (lambda: call(tilt=1e200), ValueError, "tilt", ["too large"]),
    # --- choices
    "rule": (lambda: call(rule="best"), ValueError, "rule", ["'omp'", "'normalized'", "'greedy'", "'best'"]),
    "rule None": (lambda: call(rule=None), ValueError, "rule", ["'omp'", "None"]),
    "rule list": (lambda: call(rule=["omp"]), ValueError, "rule", ["'omp'"]),
    "pick": (lambda: call(pick="worst"), ValueError, "pick", ["'argmax'", "'worst'"]),
    "device": (lambda: call(device="tpu"), ValueError, "device", ["'cpu'", "'tpu'"]),
    "device number": (lambda: call(device=0), ValueError, "device", ["'cpu'", "0"]),
    "device index": (lambda: call(device="cuda:one"), ValueError, "device", ["'cuda:1'", "'cuda:one'"]),
    "output": (lambda: call(output="host"), ValueError, "output", ["'selection'", "'device'", "'host'"]),
    "output on the CPU": (lambda: call(output="device"), ValueError, "output", ["on a device", "leave output out"]),
    "nonneg": (lambda: call(nonneg=1), TypeError, "nonneg", ["True or False", "1"]),
    "nonneg None": (lambda: call(nonneg=None), TypeError, "nonneg", ["True or False", "None"]),
    "fill": (lambda: call(fill="yes"), TypeError, "fill", ["True or False", "'yes'"]),
    "release_zeros": (lambda: call(release_zeros=0), TypeError, "release_zeros", ["True or False", "0"]),
    "n_threads zero": (lambda: call(n_threads=0), ValueError, "n_threads", ["1 .. 1024", "0"]),
    "n_threads negative": (lambda: call(n_threads=-1), ValueError, "n_threads", ["-1"]),
    "n_threads many": (lambda: call(n_threads=10**5000), ValueError, "n_threads", ["1 .. 1024"]),
    "n_threads fraction": (lambda: call(n_threads=1.5), TypeError, "n_threads", ["positive integer", "1.5"]),
    "n_threads boolean": (lambda: call(n_threads=True), TypeError, "n_threads", ["positive integer", "True"]),
    "verbose": (lambda: call(verbose="loud"), TypeError, "verbose", ["0 or 1", "'loud'"]),
    "callback": (lambda: call(callback="print"), TypeError, "callback", ["function", "str"]),
    # --- candidates
    "candidates short": (lambda: call(candidates=[True] * 5), ValueError, "candidates", ["(6,)", "(5,)"]),
    "candidates matrix": (lambda: call(candidates=[[True] * 6]), ValueError, "candidates", ["(6,)", "(1, 6)"]),
    "candidates row numbers": (
        lambda: call(candidates=[0, 1]), TypeError, "candidates", ["boolean", "int64", "mask[rows] = True"],
    ),
    "candidates text": (lambda: call(candidates="all"), TypeError, "candidates", ["boolean mask"]),
    # --- initial
    "initial negative": (lambda: call(initial=[0, -1]), ValueError, "initial", ["row -1", "0 .. 5"]),
    "initial too large": (lambda: call(initial=[6]), ValueError, "initial", ["row 6", "0 .. 5"]),
    "initial huge": (lambda: call(initial=np.array([2**64 - 1], np.uint64)), ValueError, "initial", ["0 .. 5"]),
    "initial twice": (lambda: call(initial=[2, 0, 2]), ValueError, "initial", ["row 2", "twice", "once"]),
    "initial over the budget": (lambda: call(initial=[0, 1]), ValueError, "initial", ["budget", "'a': 2"]),
    "initial of an excluded group": (
        lambda: call(initial=[0], budgets={"a": 0, "b": 1, "c": 1}), ValueError, "initial", ["budget", "'a': 1"],
    ),
    "initial fraction": (lambda: call(initial=[0.0]), TypeError, "initial", ["integer row numbers", "float64"]),
    "initial mask": (lambda: call(initial=[True] * 6), TypeError, "initial", ["integer row numbers", "bool"]),
    "initial matrix": (lambda: call(initial=[[0, 1]]), ValueError, "initial", ["(k,)", "(1, 2)"]),
    "initial a number": (lambda: call(initial=0), ValueError, "initial", ["(k,)", "()"]),
    # --- a Gram matrix
    "K not square": (lambda: gram(K=ROWS), ValueError, "K", ["square", "(6, 3)"]),
    "K not symmetric": (lambda: gram(K=other(7.0)), ValueError, "K", ["symmetric", "K[1, 3] = 7.0", "K[3, 1]"]),
    "K float16": (lambda: gram(K=(ROWS @ ROWS.T).astype("f2")), TypeError, "K", ["float32", "float16"]),
    "K complex": (lambda: gram(K=np.eye(6) + 0j), TypeError, "K", ["complex128"]),
    "K NaN": (lambda: solve(gram(K=np.full((6, 6), NAN)), 2), ValueError, "K", ["row 0", "NaN"]),
    "K Inf": (lambda: solve(gram(K=np.diag([1.0, 1, INF, 1, 1, 1])), 2), ValueError, "K", ["row 2", "infinity"]),
    "K negative": (lambda: solve(gram(K=-np.eye(6)), 2), ValueError, "K", ["diagonal entry 0", "negative"]),
    "K indefinite": (
        lambda: solve(gram(K=[[1.0, 2.0], [2.0, 1.0]], c=[1.0, 1.0], nonneg=False), 2),
        ValueError, "K", ["positive semidefinite"],
    ),
    "c length": (lambda: gram(c=np.ones(5)), ValueError, "c", ["(6,)", "(5,)"]),
    "c NaN": (lambda: gram(c=np.full(6, NAN)), ValueError, "c", ["entry 0", "NaN"]),
    "c complex": (lambda: gram(c=np.ones(6) + 0j), TypeError, "c", ["complex128"]),
    "c too large": (lambda: gram(c=np.full(6, 1e200)), ValueError, "c", ["1e140", "rescale"]),
    "c too large for K": (lambda: solve(gram(K=[[1e-279]], c=[1e140]), 1), ValueError, "c", ["too large"]),
    "target_norm too large": (lambda: gram(target_norm=1e150), ValueError, "target_norm", ["1e140"]),
    "target_norm": (lambda: gram(target_norm=-1.0), ValueError, "target_norm", ["at least 0", "-1.0"]),
    "tol without target_norm": (lambda: solve(gram(), 2, tol=0.1), ValueError, "tol", ["target_norm"]),
    "tilt too large for K": (lambda: solve(gram(tilt=1e279), 2), ValueError, "tilt", ["too large"]),
    # --- unbounded problems
    "unbounded c on a zero row": (
        lambda: solve(gram(K=np.diag([1.0, 0.0]), c=[1.0, 1.0]), 1), ValueError, "c", ["entry 1", "unbounded"],
    ),
    "unbounded c": (
        lambda: solve(gram(K=DUPLICATES @ DUPLICATES.T, c=[1.0, 2.0], nonneg=False), 2),
        ValueError, "c", ["unbounded", "ridge"],
    ),
    "unbounded c, w >= 0": (
        lambda: solve(gram(K=[[1.0, -1.0], [-1.0, 1.0]], c=[1.0, 1.0]), 2), ValueError, "c", ["unbounded", "ridge"],
    ),
    "unbounded tilt": (
        lambda: omp_partition([[1.0, 0], [-1.0, 0]], [0.0, 1.0], 2, tilt=1.0),
        ValueError, "tilt", ["unbounded", "ridge"],
    ),
    "unbounded tilt, free": (
        lambda: omp_partition([[1.0, 0], [2.0, 0]], [1.0, 0.0], 2, tilt=1.0, nonneg=False),
        ValueError, "tilt", ["unbounded", "ridge"],
    ),
    # --- the problem as an object
    "GradientMatching nonneg": (lambda: GradientMatching(ROWS, TARGET, nonneg="no"), TypeError, "nonneg", ["'no'"]),
    "GradientMatching ridge": (lambda: GradientMatching(ROWS, TARGET, ridge=-1), ValueError, "ridge", ["-1"]),
    "value row": (lambda: MATCHING.value([0, 9]), ValueError, "S", ["row 9", "0 .. 5"]),
    "weights twice": (lambda: MATCHING.weights([1, 1]), ValueError, "S", ["row 1", "twice"]),
    "gains dtype": (lambda: MATCHING.gains([0.5]), TypeError, "S", ["integer row numbers", "float64"]),
    "value of NaN": (lambda: GradientMatching(rows_with(NAN), TARGET).value([4]), ValueError, "G", ["row 4", "NaN"]),
    # --- the constraint as an object
    "matroid groups": (lambda: PartitionMatroid([0.5], [1]), TypeError, "groups", ["float64"]),
    "matroid groups shape": (lambda: PartitionMatroid([["a"]], [1]), ValueError, "groups", ["(n,)", "(1, 1)"]),
    "matroid budgets": (lambda: PartitionMatroid(["a", "b"], [1]), ValueError, "budgets", ["'a', 'b'", "got 1"]),
    "matroid label": (lambda: PartitionMatroid(["a", "b"], {"a": 1}), ValueError, "budgets", ["'b'", "0 to exclude"]),
    "counts": (lambda: MATROID.counts([7]), ValueError, "indices", ["row 7", "0 .. 5"]),
    "is_feasible": (lambda: MATROID.is_feasible([1, 1]), ValueError, "indices", ["row 1", "twice"]),
    # --- solve and the rest
    "solve problem": (lambda: solve(ROWS, MATROID), TypeError, "problem", ["GradientMatching", "ndarray"]),
    "solve method": (lambda: solve(MATCHING, MATROID, "lasso"), ValueError, "method", ["'omp'", "'lasso'"]),
    "solve matroid": (lambda: solve(MATCHING, PartitionMatroid([0], [1])), ValueError, "matroid", ["1 rows", "6"]),
    "solve cardinality": (lambda: solve(MATCHING, -2), ValueError, "budgets", ["-2"]),
    "solve rule": (lambda: solve(MATCHING, 2, "omp", rule="greedy"), TypeError, "rule", ["method"]),
    "show_config": (lambda: pysubmod.show_config("json"), ValueError, "mode", ["'dicts'", "'json'"]),
    "estimate_memory n": (lambda: pysubmod.estimate_memory(-1, 2, 3), ValueError, "n", ["at least 0", "-1"]),
    "estimate_memory d": (lambda: pysubmod.estimate_memory(1, 2.5, 3), ValueError, "d", ["integer", "2.5"]),
    "estimate_memory k": (lambda: pysubmod.estimate_memory(1, 2, True), ValueError, "k", ["integer", "True"]),
    "estimate_memory dtype": (lambda: pysubmod.estimate_memory(1, 2, 3, dtype="q8"), TypeError, "dtype", ["'q8'"]),
    "estimate_memory route": (
        lambda: pysubmod.estimate_memory(1, 2, 3, route="gram"), ValueError, "route", ["'draft'", "'gram'"],
    ),
    "estimate_memory n_targets": (
        lambda: pysubmod.estimate_memory(1, 2, 3, n_targets=-1), ValueError, "n_targets", ["at least 0", "-1"],
    ),
    "estimate_memory rule": (lambda: pysubmod.estimate_memory(1, 2, 3, rule="x"), ValueError, "rule", ["'x'"]),
    "estimate_memory n_threads": (
        lambda: pysubmod.estimate_memory(1, 2, 3, n_threads="a"), TypeError, "n_threads", ["'a'"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    act, kind, argument, says = BAD[name]
    with pytest.raises(kind) as caught:
        act()
    message = str(caught.value)
    assert type(caught.value) is kind
    assert message.startswith(argument) and message[len(argument) :][:1] in {":", "[", " "}, message
    for piece in says:
        assert piece in message, f"{piece!r} is not in {message!r}"
    assert len(message) < 400


def test_the_good_call_is_good():
    assert call(fill=True).counts == BUDGETS
    assert len(plain()) == 2


@pytest.mark.parametrize("name", ["torch sparse", "torch complex", "torch boolean", "torch float8", "torch meta"])
def test_bad_tensors(name):
    torch = pytest.importorskip("torch")
    G = torch.tensor(ROWS)
    bad, kind, says = {
        "torch sparse": (G.to_sparse(), TypeError, ["sparse", "to_dense"]),
        "torch complex": (G.to(torch.complex64), TypeError, ["complex64", "bfloat16"]),
        "torch boolean": (G > 0, TypeError, ["bool"]),
        "torch float8": (G.to(torch.float8_e5m2), TypeError, ["float8", "bfloat16"]),
        "torch meta": (G.to("meta"), ValueError, ["meta", "cpu()"]),
    }[name]
    for argument in ("G", "target"):
        value = bad if argument == "G" else bad[0]
        with pytest.raises(kind, match=f"^{argument}: ") as caught:
            call(**{argument: value})
        assert all(piece in str(caught.value) for piece in says)


def test_a_bad_label_is_shown_whatever_it_is():
    class Silent:
        def __repr__(self):
            raise RuntimeError("no words")

    with pytest.raises(ValueError, match=r"^rule: .* got a .*Silent"):
        call(rule=Silent())
    with pytest.raises(TypeError, match=r"^budgets: .*\.\.\.$"):
        call(budgets={("x" * 1000,): 1})


def test_the_error_of_a_row_leaves_the_solver_usable():
    for _ in range(3):
        with pytest.raises(ValueError, match="row 4"):
            call(G=rows_with(NAN))
        assert len(call()) == 3


# ---- not errors -------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def strict_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


ABSENT = {
    "omp_partition": lambda: call(budgets={**BUDGETS, "z": 3}).counts,
    "mapping": lambda: omp_partition({"a": ROWS}, TARGET, {"a": 1, "z": 3}).counts,
    "matroid": lambda: PartitionMatroid(GROUPS, {**BUDGETS, "z": 3}).counts([]),
}


@pytest.mark.parametrize("name", ABSENT)
def test_a_budget_for_an_absent_label_warns_the_caller_and_counts_zero(name):
    with pytest.warns(UserWarning, match="^budgets: no row has the label 'z'") as caught:
        counts = ABSENT[name]()
    assert counts["z"] == 0
    assert [warning.filename for warning in caught] == [__file__]


def test_a_budget_larger_than_its_group_takes_what_there_is():
    selection = call(budgets={"a": 10**30, "b": 7, "c": 2}, fill=True)
    assert selection.counts == {"a": 2, "b": 2, "c": 2} and selection.status == "exhausted"
    assert len(plain(budgets=10**5000, fill=True)) == 6


@pytest.mark.parametrize("groups", [None, [], np.empty(0, int), np.empty(0, str)])
def test_no_rows_is_an_empty_selection(groups):
    budgets = 3 if groups is None else {"a": 3, "b": 0}
    selection = omp_partition(np.empty((0, 3)), TARGET, budgets, groups=groups)
    assert len(selection) == 0 and selection.objective == 0 and selection.status == "exhausted"
    assert not any(selection.counts.values())
    assert selection.indices.dtype == np.int64 and selection.weights.dtype == np.float64


def test_an_empty_problem_as_an_object():
    for problem in (GradientMatching(np.empty((0, 3)), TARGET), GradientMatching.from_gram(np.empty((0, 0)), [])):
        assert problem.n == 0 and problem.value([]) == 0
        assert problem.weights([]).shape == problem.gains([]).shape == (0,)
        assert len(solve(problem, 2)) == 0
    matroid = PartitionMatroid([], [])
    assert matroid.n == matroid.rank == 0 and matroid.labels == () and matroid.is_feasible([])


def test_empty_groups_of_a_mapping():
    with pytest.warns(UserWarning, match="^budgets: no row has the label 'a', 'c'"):
        selection = omp_partition({"a": ROWS[:0], "b": ROWS, "c": ROWS[:0]}, TARGET, {"a": 2, "b": 1, "c": 0})
    assert selection.counts == {"a": 0, "b": 1, "c": 0}


def test_budget_zero_excludes_a_group_and_never_reads_it():
    G = ROWS.copy()
    G[2:4] = NAN  # all of b
    selection = call(G=G, budgets={"a": 2, "b": 0, "c": 2})
    assert selection.counts["b"] == 0 and selection.counts["a"] > 0
    nothing = call(G=G * NAN, budgets=dict.fromkeys(BUDGETS, 0))
    assert len(nothing) == 0 and nothing.status == "budget"


def test_masked_rows_are_never_read_and_need_no_budget():
    mask = np.array([True, True, False, False, True, True])
    selection = call(G=rows_with(NAN, 3), candidates=mask, budgets={"a": 1, "c": 1})
    assert len(selection) == 2 and selection.counts == {"a": 1, "b": 0, "c": 1}
    assert len(call(candidates=np.zeros(6, bool))) == 0


def test_whole_numbers_of_any_type_are_budgets():
    expected = call(budgets=[1, 2, 1]).indices.tolist()
    for budgets in ((1, 2, 1), np.array([1, 2, 1], "i1"), np.array([1.0, 2.0, 1.0]), [1.0, np.uint8(2), np.int64(1)]):
        assert call(budgets=budgets).indices.tolist() == expected
    for budget in (2, 2.0, np.int8(2), np.float16(2), np.array(2)):
        assert plain(budgets=budget).indices.tolist() == plain().indices.tolist()


def test_strings_of_any_type_are_labels():
    expected = call().indices.tolist()
    for groups in (np.array(GROUPS), np.array(GROUPS, object), tuple(GROUPS), [np.str_(x) for x in GROUPS]):
        assert call(groups=groups).indices.tolist() == expected
    if hasattr(np, "dtypes") and hasattr(np.dtypes, "StringDType"):
        assert call(groups=np.array(GROUPS, np.dtypes.StringDType())).indices.tolist() == expected


def test_integers_of_any_type_are_labels():
    labels = [0, 0, 1, 1, 2, 2]
    expected = call().indices.tolist()
    for dtype in ("i1", "u2", "i8", "u8", ">i4", object):
        assert call(groups=np.array(labels, dtype), budgets={0: 1, np.int8(1): 2, 2: 1}).indices.tolist() == expected
    far = [-(2**63), 2**63 - 1]
    assert call(groups=np.repeat(far, 3), budgets=dict.fromkeys(far, 1)).counts == dict.fromkeys(far, 1)


def test_numbers_of_any_type_are_scalars():
    for ridge in (0, 0.0, np.float32(0), np.int64(0), fractions.Fraction(0)):
        assert call(ridge=ridge, tol=ridge, tilt=ridge).indices.tolist() == call().indices.tolist()


def test_a_zero_target_picks_nothing():
    selection = call(target=np.zeros(3))
    assert len(selection) == 0 and selection.objective == 0 and selection.status == "no_gain"
    assert len(call(target=np.zeros(3), fill=True)) == 4
    assert call(target=np.zeros(3), tol=0.5).status == "tolerance"


def test_zero_rows_are_never_worth_a_pick():
    G = ROWS.copy()
    G[::2] = 0
    for rule in ("omp", "normalized", "greedy"):
        assert not set(call(G=G, rule=rule).indices.tolist()) & {0, 2, 4}
    assert sorted(plain(G=G, budgets=6, fill=True).indices.tolist()) == list(range(6))
