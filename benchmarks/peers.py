"""Every competitor of bench_peers.py: who can solve sparse approximation with k rows of a matrix, and how.

A competitor is a function that takes a `Problem`, does what a user would have done before (imports, another layout,
rows of unit length where the library asks for them: none of this is timed) and returns the call that is timed, which
returns row numbers. Nothing here is installed by the benchmark; what is missing is left out and said so. The versions
the committed results were taken with stand in results/peers.md.

The per-step baselines at the end are written from the published descriptions of the methods, in plain NumPy.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np


@dataclass
class Problem:
    """G (n, d) in its storage type, target (d,), k picks in all; groups and budgets of those who know them."""

    G: np.ndarray
    target: np.ndarray
    k: int
    threads: int
    groups: np.ndarray | None = None
    budgets: dict[int, int] = field(default_factory=dict)
    truth: np.ndarray | None = None  # the picks, for floors that know them in advance

    def unit_rows(self):
        """The rows, each of length one."""
        return self.G / np.linalg.norm(self.G.astype(np.float64), axis=1, keepdims=True).astype(self.G.dtype)


@dataclass(frozen=True)
class Competitor:
    """One line of the tables."""

    prepare: Callable[[Problem], Callable]
    module: str | None = None  # what must be installed
    solves: str = "omp"  # "omp", "unit" (OMP on rows of unit length), "ols" (ranks by exact gains), "nonneg", "grouped"
    ordered: bool = True  # it tells the order of its picks
    reads: str = "k"  # G once for each pick, "gram" (all products of rows first), "" (unknown, or told by stats)
    most: int = 10**12  # largest n * d * k it is run on
    exact: bool = True  # a peer that "fastest exact peer" may name


# ---- pysubmod --------------------------------------------------------------------------------------------------------


def pysubmod_free(**options):
    """The problem that the peers solve: free weights, no groups."""

    def prepare(p):
        import pysubmod

        return lambda: pysubmod.omp_partition(p.G, p.target, p.k, nonneg=False, n_threads=p.threads, **options)

    return prepare


def pysubmod_grouped(**options):
    """What it is for: budgets by group."""

    def prepare(p):
        import pysubmod

        more = {"groups": p.groups, "n_threads": p.threads, **options}
        return lambda: pysubmod.omp_partition(p.G, p.target, p.budgets, **more)

    return prepare


def forced_routes():
    """The names that `route=` may be tried with; none where this version has no such argument."""
    import inspect

    import pysubmod

    parameter = inspect.signature(pysubmod.omp_partition).parameters.get("route")
    return () if parameter is None else ("plain", "columns", "draft")


# ---- NumPy -----------------------------------------------------------------------------------------------------------


def _batch_omp(alpha, column, k):
    """Batch-OMP with a growing Cholesky factor, in the type of alpha = G t; `column(i)` is column i of G G'."""
    from scipy.linalg import solve_triangular

    n, kind = len(alpha), alpha.dtype
    columns, L, picks, c = np.empty((k, n), kind), np.zeros((k, k), kind), [], alpha
    for j in range(k):
        i = int(np.argmax(np.abs(c)))
        columns[j] = column(i)
        if j:
            L[j, :j] = solve_triangular(L[:j, :j], columns[:j, i], lower=True, check_finite=False)
        L[j, j] = np.sqrt(max(columns[j, i] - L[j, :j] @ L[j, :j], np.finfo(kind).tiny))
        picks.append(i)
        half = solve_triangular(L[: j + 1, : j + 1], alpha[picks], lower=True, check_finite=False)
        weights = solve_triangular(L[: j + 1, : j + 1], half, lower=True, trans=1, check_finite=False)
        c = alpha - weights @ columns[: j + 1]
        c[picks] = 0
    return np.array(picks)


def numpy_columns(p):
    """Batch-OMP, each column of the Gram matrix when it is wanted: the good NumPy version."""
    return lambda: _batch_omp(p.G @ p.target, lambda i: p.G @ p.G[i], p.k)


def numpy_gram(p):
    """Batch-OMP on the whole Gram matrix, computed first."""

    def call():
        K = p.G @ p.G.T
        return _batch_omp(p.G @ p.target, lambda i: K[i], p.k)

    return call


# ---- libraries -------------------------------------------------------------------------------------------------------


def scikit_learn(p):
    """`orthogonal_mp` on the columns of G'."""
    from sklearn.linear_model import orthogonal_mp

    return lambda: np.flatnonzero(orthogonal_mp(p.G.T, p.target, n_nonzero_coefs=p.k, precompute=False))


def scikit_learn_gram(p):
    """`orthogonal_mp_gram`, the Gram matrix included."""
    from sklearn.linear_model import orthogonal_mp_gram

    return lambda: np.flatnonzero(orthogonal_mp_gram(p.G @ p.G.T, p.G @ p.target, n_nonzero_coefs=p.k))


def spams(p):
    """spams.omp on rows of unit length, which it expects. It picks by exact gains (order-recursive least squares).

    The explicit eps is needed: without it version 2.6.14 returns no atoms at all in some processes.
    """
    import spams as library

    columns, signal = p.unit_rows().T, np.asfortranarray(p.target.astype(p.G.dtype)[:, None])
    return lambda: library.omp(signal, columns, L=p.k, eps=0.0, numThreads=p.threads).indices


def omp_gpu(algorithm, gram):
    """orthogonal-matching-pursuit-gpu (torch, here on the CPU) on rows of unit length: "v0" forms the Gram matrix.

    "naive" of version 0.1.3 returns other rows on the CPU when there is one target (with two it does not).
    """

    def prepare(p):
        import torch
        from orthogonal_matching_pursuit_gpu import run_omp

        torch.set_num_threads(p.threads)
        columns, signal = torch.from_numpy(p.unit_rows()).T, torch.from_numpy(p.target.astype(p.G.dtype))[None]
        options = {"precompute": gram, "tol": 0.0, "normalize": False, "fit_intercept": False, "alg": algorithm}
        return lambda: np.flatnonzero(run_omp(columns, signal, p.k, **options)[0].numpy())

    return prepare


def dictlearn(p):
    """dictlearn's Batch-OMP (numba), the Gram matrix included."""
    from dictlearn import sparse_encode

    return lambda: np.flatnonzero(sparse_encode(p.target[None], p.G, algorithm="omp", n_nonzero_coefs=p.k)[0])


# ---- per-step baselines ----------------------------------------------------------------------------------------------


def lstsq_refits(p):
    """CORDS-style: a product with the residual for each pick, and normal equations made and solved from scratch."""

    def call():
        picks, residual, c = [], p.target, None
        for _ in range(p.k):
            c = np.abs(p.G @ residual)
            c[picks] = -1
            picks.append(int(np.argmax(c)))
            rows = p.G[picks]
            weights = np.linalg.lstsq(rows @ rows.T, rows @ p.target, rcond=None)[0]
            residual = p.target - weights @ rows
        return np.array(picks)

    return call


# ---- who takes part --------------------------------------------------------------------------------------------------

MIDDLE = 4096 * 8192 * 256  # n * d * k of s3: whole Gram matrices of the slower peers go no further
STEPWISE = 1024 * 8192 * 128  # of s2: nor do baselines that are slow by design

COMPETITORS = {
    "pysubmod": Competitor(pysubmod_free(), reads="", exact=False),
    "pysubmod, w >= 0, 8 groups": Competitor(pysubmod_grouped(), solves="grouped", reads="", exact=False),
    "pysubmod, free, 256 groups": Competitor(pysubmod_grouped(nonneg=False), solves="many", reads="", exact=False),
    "pysubmod, rule=greedy": Competitor(pysubmod_free(rule="greedy"), solves="ols", reads="", exact=False),
    "NumPy, columns on demand": Competitor(numpy_columns),
    "NumPy, full Gram": Competitor(numpy_gram, reads="gram"),
    "scikit-learn": Competitor(scikit_learn, "sklearn", ordered=False),
    "scikit-learn, full Gram": Competitor(scikit_learn_gram, "sklearn", ordered=False, reads="gram", most=MIDDLE),
    "spams": Competitor(spams, "spams", solves="ols", ordered=False),
    "omp-gpu v0 (full Gram)": Competitor(
        omp_gpu("v0", True), "orthogonal_matching_pursuit_gpu", "unit", False, "gram", MIDDLE
    ),
    "omp-gpu naive": Competitor(
        omp_gpu("naive", None), "orthogonal_matching_pursuit_gpu", "unit", False, most=STEPWISE, exact=False
    ),
    "dictlearn (full Gram)": Competitor(dictlearn, "dictlearn", ordered=False, reads="gram", most=MIDDLE),
    "lstsq refits": Competitor(lstsq_refits, most=STEPWISE),
}
for _route in ("plain", "columns", "draft"):
    COMPETITORS[f"pysubmod, route={_route}"] = Competitor(pysubmod_free(route=_route), exact=False, reads="")
COMPETITORS["pysubmod, 256 groups, route=plain"] = Competitor(
    pysubmod_grouped(nonneg=False, route="plain"), solves="many", reads="", exact=False
)

# The distribution whose version the report gives.
PACKAGES = {
    "numpy": "numpy",
    "scipy": "scipy",
    "sklearn": "scikit-learn",
    "spams": "spams-bin",
    "torch": "torch",
    "orthogonal_matching_pursuit_gpu": "orthogonal-matching-pursuit-gpu",
    "dictlearn": "dictlearn",
    "numba": "numba",
}


def versions():
    """{distribution: version, or "not installed"} of everything that is compared with."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in PACKAGES.values():
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def is_installed(competitor):
    return competitor.module is None or importlib.util.find_spec(competitor.module) is not None
