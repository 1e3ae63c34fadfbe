"""`solve_batch`: the same selections as one call for each, on the CPU and on a device."""

from __future__ import annotations

import numpy as np
import pytest
from emulation import Emulated
from strategies import random_problem

import pysubmod
from pysubmod import DeviceSelection, GradientMatching, PartitionMatroid, solve, solve_batch
from pysubmod._random import random_bits

SHAPES = [(20, 8), (7, 30), (33, 12), (1, 4)]
POOLS = [random_problem(seed, n=n, d=d, n_groups=3, k=2) for seed, (n, d) in enumerate(SHAPES)]
MATROIDS = [PartitionMatroid(p.groups, dict.fromkeys(np.unique(p.groups).tolist(), 2)) for p in POOLS]
PLACES = ("cpu", "device")


def problems(place, **options):
    put = Emulated if place == "device" else np.asarray
    return [GradientMatching(put(p.G), p.target, **options) for p in POOLS]


def same(found, expected):
    assert found.indices.tolist() == expected.indices.tolist()
    np.testing.assert_allclose(found.weights, expected.weights, rtol=1e-9)
    assert (found.status, found.counts, found.config) == (expected.status, expected.counts, expected.config)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("method", ["omp", "omp-normalized", "greedy"])
def test_each_is_what_it_is_alone(method, place, device):
    options = {"fill": True, "tol": 0.01}
    found = solve_batch(problems(place, ridge=0.2), MATROIDS, method, **options)
    expected = [
        solve(problem, m, method, **options) for problem, m in zip(problems("cpu", ridge=0.2), MATROIDS, strict=True)
    ]
    for one, other in zip(found, expected, strict=True):
        same(one, other)
    assert len(device.calls) == (place == "device")


@pytest.mark.parametrize("place", PLACES)
def test_one_constraint_for_all(place, device):
    for constraint in (3, PartitionMatroid([0, 1] * 10, [1, 2])):
        pools = [GradientMatching(Emulated(p) if place == "device" else p, np.ones(5)) for p in
                 np.random.default_rng(0).normal(size=(4, 20, 5))]  # fmt: skip
        found = solve_batch(pools, constraint)
        assert [s.indices.tolist() for s in found] == [solve(p, constraint).indices.tolist() for p in pools]


@pytest.mark.parametrize("place", PLACES)
def test_problems_of_rows_and_of_gram_matrices(place, device):
    put = Emulated if place == "device" else np.asarray
    mixed = [
        GradientMatching(put(POOLS[0].G), POOLS[0].target),
        GradientMatching.from_gram(put(POOLS[2].G @ POOLS[2].G.T), put(POOLS[2].G @ POOLS[2].target), ridge=0.1),
        GradientMatching(put(POOLS[1].G.astype("f4")), POOLS[1].target, nonneg=False),
    ]
    found = solve_batch(mixed, 4)
    for one, problem in zip(found, mixed, strict=True):
        same(one, solve(problem.cpu(), 4))


@pytest.mark.parametrize("place", PLACES)
def test_masks_and_initial_rows_of_each(place, device):
    masks = [np.arange(len(p.G)) % 2 == 0 for p in POOLS]
    starts = [[3], None, [5, 1], None]
    found = solve_batch(problems(place), MATROIDS, candidates=[None, *masks[1:]], initial=starts)
    for p, problem in enumerate(problems("cpu")):
        same(found[p], solve(problem, MATROIDS[p], candidates=None if p == 0 else masks[p], initial=starts[p]))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("method", ["residual-random", "partition-sel"])
def test_every_problem_has_a_seed_of_its_own(method, place, device):
    found = solve_batch(problems(place), MATROIDS, method, random_state=7)
    seeds = [int(bits >> np.uint64(1)) for bits in random_bits(7, np.arange(4))]
    assert [s.config["random_state"] for s in found] == seeds and len(set(seeds)) == 4
    for one, problem, matroid, seed in zip(found, problems("cpu"), MATROIDS, seeds, strict=True):
        same(one, solve(problem, matroid, method, random_state=seed))
    given = solve_batch(problems(place), MATROIDS, method, random_state=seeds)
    assert [s.indices.tolist() for s in given] == [s.indices.tolist() for s in found]
    fresh = solve_batch(problems(place), MATROIDS, method)
    assert len({s.config["random_state"] for s in fresh}) == 4


@pytest.mark.parametrize("place", PLACES)
def test_nothing_to_solve(place, device):
    assert solve_batch([], 3) == [] and solve_batch((), []) == []
    assert device.calls == []


def test_results_that_stay_on_the_device(device):
    there = solve_batch(problems("device"), MATROIDS, "omp-normalized", output="device")
    assert isinstance(there, DeviceSelection) and len(device.calls) == 1
    width = max(m.rank for m in MATROIDS)
    assert there.indices.shape == there.weights.shape == (4, width) and there.status.shape == (4,)
    found, expected = there.result(), solve_batch(problems("device"), MATROIDS, "omp-normalized")
    for p, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert one.indices.tolist() == other.indices.tolist() and one.weights.tolist() == other.weights.tolist()
        assert one.objective == other.objective and one.config == other.config
        k = len(one)
        assert (there.indices.values[p, k:] == -1).all() and (there.weights.values[p, k:] == 0).all()
    there.status.values[2] = -1
    with pytest.raises(ValueError, match=r"NaN or infinity; problem 2 of the call"):
        there.result()


def test_the_first_faulty_problem_ends_the_call(device):
    for place in PLACES:
        pools = problems(place)
        bad = POOLS[2].G.copy()
        bad[4] = np.nan
        pools[2] = GradientMatching(Emulated(bad) if place == "device" else bad, POOLS[2].target)
        with pytest.raises(ValueError, match=r"^G: row 4 .*NaN"):
            solve_batch(pools, MATROIDS)


def test_other_methods_on_the_cpu():
    found = solve_batch(problems("cpu"), MATROIDS, "swap", max_swaps=3)
    assert [s.config["method"] for s in found] == ["swap"] * 4
    assert solve_batch(problems("cpu"), MATROIDS, "random", random_state=1)[0].config["random_state"] >= 0


def test_selections_know_their_problem(device):
    pools = problems("cpu", ridge=0.5)
    assert solve_batch(pools, MATROIDS)[1].certify().ratio > 0
    there = problems("device", ridge=0.5)
    found = solve_batch(there, MATROIDS)
    assert all(s._origin[0] is problem for s, problem in zip(found, there, strict=True))


BAD = {
    "problems one": (lambda: solve_batch(problems("cpu")[0], 2), TypeError, "problems", ["sequence", "Matching"]),
    "problems of something": (lambda: solve_batch([POOLS[0].G], 2), TypeError, "problem", ["GradientMatching"]),
    "problems on both": (
        lambda: solve_batch([*problems("cpu"), *problems("device")], 1),
        ValueError, "problems[4]", ["cuda:0", "problems[0] is on cpu", "one device"],
    ),
    "problems none": (lambda: solve_batch([], 2, output="device"), ValueError, "problems", ["at least one"]),
    "matroids too few": (lambda: solve_batch(problems("cpu"), MATROIDS[:2]), ValueError, "matroids", ["4", "got 2"]),
    "matroids of other rows": (
        lambda: solve_batch(problems("cpu"), MATROIDS[0]), ValueError, "matroid", ["20 rows", "7"],
    ),
    "candidates too few": (
        lambda: solve_batch(problems("cpu"), 2, candidates=[None]), ValueError, "candidates", ["4", "got 1"],
    ),
    "candidates one": (lambda: solve_batch(problems("cpu"), 2, candidates=3), TypeError, "candidates", ["sequence"]),
    "initial too many": (lambda: solve_batch(problems("cpu"), 2, initial=[None] * 5), ValueError, "initial", ["got 5"]),
    "random_state too few": (
        lambda: solve_batch(problems("cpu"), 2, random_state=[1, 2]), ValueError, "random_state", ["4", "got 2"],
    ),
    "random_state": (
        lambda: solve_batch(problems("cpu"), 2, random_state="x"), TypeError, "random_state", ["one for each"],
    ),
    "output": (lambda: solve_batch(problems("cpu"), 2, output="host"), ValueError, "output", ["'selections'"]),
    "output of the CPU": (
        lambda: solve_batch(problems("cpu"), 1, output="device"), ValueError, "output", ["on the host"],
    ),
    "method": (lambda: solve_batch(problems("device"), 2, "swap"), ValueError, "method", ["'swap'", "problem.cpu()"]),
    "method unknown": (lambda: solve_batch(problems("device"), 2, "lasso"), ValueError, "method", ["'lasso'"]),
    "device": (lambda: solve_batch(problems("device"), 2, device="cpu"), ValueError, "device", ["problem.cpu()"]),
    "option": (lambda: solve_batch(problems("device"), 2, epsilon=1), TypeError, "epsilon", ["not an option"]),
    "callback": (lambda: solve_batch(problems("device"), 2, callback=print), ValueError, "callback", ["CPU"]),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name, device):
    act, kind, argument, says = BAD[name]
    with pytest.raises(kind) as caught:
        act()
    message = str(caught.value)
    assert message.startswith(f"{argument}:") and all(piece in message for piece in says), message


def test_the_names_are_public():
    for name in ("solve_batch", "DeviceSelection", "available_devices"):
        assert name in pysubmod.__all__
