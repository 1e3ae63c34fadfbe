"""The device's algorithm, run by threads of the host, against the reference: by K, by K made of rows, by drafts."""

from __future__ import annotations

import numpy as np
import pytest
from emulation import Emulated, EmulatedLibrary, EmulatedModule
from hypothesis import given
from problems import FAMILIES, family, real
from strategies import problems, random_options, seeds
from test_backends_agree import assert_same

import pysubmod
from pysubmod import _backends, _device
from pysubmod._reference import gram_partition_reference, omp_partition_reference

METHODS = {"omp": "omp", "normalized": "omp-normalized", "greedy": "greedy"}


@pytest.fixture(autouse=True, scope="module")
def emulated():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_backends, "device_module", EmulatedModule)
        patch.setitem(_device.LIBRARIES, "emulation", EmulatedLibrary())
        yield


def solve_device(route, G, target, groups, budgets, **options):
    """The device's answer; route "given" is a K that is given, "gram" one that the device forms from the rows."""
    weights = {name: options.pop(name) for name in ("ridge", "nonneg", "tilt") if name in options}
    method = METHODS[options.pop("rule", "omp")]
    if route == "given":
        wide = G.astype(np.float64)
        K, c = wide @ wide.T, wide @ target
        norm = float(np.linalg.norm(target))
        problem = pysubmod.GradientMatching.from_gram(Emulated(K), Emulated(c), target_norm=norm, **weights)
    else:
        problem = pysubmod.GradientMatching(Emulated(G), Emulated(target), **weights)
        options["route"] = route
    matroid = pysubmod.PartitionMatroid(np.asarray(groups), {p: int(b) for p, b in enumerate(budgets)})
    return pysubmod.solve(problem, matroid, method, **options)


def solve_reference(route, G, target, groups, budgets, **options):
    """K made of rows has the rank tolerance of a K, and what it knows of the rows: that c is G t."""
    if route in ("given", "gram"):
        wide = G.astype(np.float64)
        norm = np.linalg.norm(target)
        return gram_partition_reference(wide @ wide.T, wide @ target, groups, budgets, target_norm=norm, **options)
    return omp_partition_reference(G, target, groups, budgets, **options)


@pytest.mark.filterwarnings("ignore:budgets")
@pytest.mark.parametrize("route", ["given", "gram", "draft"])
@given(problem=problems(), options=seeds)
def test_small_problems(route, problem, options):
    chosen = problem.options | random_options(problem, options)
    if route == "draft":
        chosen |= {"rule": "normalized" if chosen["rule"] == "greedy" else chosen["rule"]}
        chosen |= {"fill": False, "release_zeros": False}
    roots = np.sqrt((problem.G**2).sum(axis=1) + problem.ridge)
    expected = solve_reference(route, *problem.args, **chosen)
    assert_same(solve_device(route, *problem.args, **chosen), expected, rtol=1e-6, roots=roots)


@pytest.mark.parametrize("groups", ["one", "eight"])
@pytest.mark.parametrize("nonneg", [False, True])
@pytest.mark.parametrize("route", ["gram", "draft"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("name", [*FAMILIES, "real"])
def test_families(name, dtype, route, nonneg, groups):
    """Support and order of the float64 reference, on rows in half and in single precision."""
    G, target, codes = real() if name == "real" else family(name, 400, 256, seed=6)
    with np.errstate(over="ignore"):
        G = G.astype(dtype)
    if not np.isfinite(G).all():
        pytest.skip("norms beyond float16: the family does not exist in this type")
    codes = codes if groups == "eight" else np.zeros_like(codes)
    budgets = np.full(codes.max() + 1, 5 if groups == "eight" else 40)
    expected = omp_partition_reference(G, target, codes, budgets, nonneg=nonneg)
    got = solve_device(route, G, target, codes, budgets, nonneg=nonneg)
    assert_same(got, expected, rtol=1e-7)
    norm = np.linalg.norm(target)
    np.testing.assert_allclose(got.residual_norms, expected.residual_norms, rtol=0, atol=1e-6 * norm)
    if route == "draft":
        assert got.stats["passes"] < len(got)


@pytest.mark.parametrize("pick", [{"pick": "random"}, {"pick": "random", "fill": True}])
@pytest.mark.parametrize("rule", METHODS)
@pytest.mark.parametrize("nonneg", [False, True])
def test_random_picks_of_the_same_seed(pick, rule, nonneg):
    """The counter decides, so a device draws what the CPU draws."""
    G, target, codes = family("gradient_like", 150, 64, seed=7)
    K, c = G @ G.T, G @ target
    for seed in range(5):
        options = {"groups": codes, "nonneg": nonneg, "rule": rule, "random_state": seed, **pick}
        matroid = pysubmod.PartitionMatroid(codes, {p: 4 for p in range(8)})
        options = {"rule": rule, "random_state": seed, "fill": pick.get("fill", False)}
        on_cpu = pysubmod.GradientMatching.from_gram(K, c, nonneg=nonneg)
        on_device = pysubmod.GradientMatching.from_gram(Emulated(K), Emulated(c), nonneg=nonneg)
        expected = pysubmod.solve(on_cpu, matroid, "residual-random", **options)
        assert_same(pysubmod.solve(on_device, matroid, "residual-random", **options), expected, rtol=1e-7)
