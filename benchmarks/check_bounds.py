"""Do the certificates hold? Random upper bounds against the optimum found by enumeration.

    python benchmarks/check_bounds.py                    20,000 (problem, bound) pairs
    python benchmarks/check_bounds.py --pairs 2000 --seed 7
    python benchmarks/check_bounds.py --one 12345        the problem of one seed, every bound

Problems of at most nine rows: duplicates, near-duplicates, zero rows, norms spread over 1e+-4, rank deficiency, ridges
down to 1e-8 of the mean squared norm; free and non-negative weights, rows and Gram matrices, tilts. Bounds: every level
of `pysubmod.certify`, and the formulas below it at random points: w0, diagonal and block D scaled until C - D is only
just positive semidefinite, prices, merged, split and screened nodes. Sizes from which on the library cuts groups into
clusters, branches or does without C are lowered at random, so that small problems go the way of large ones.

A violation is an upper bound below the optimum by more than 1e-12 of it, an objective that is not there, a proof of
optimality for a selection that is not optimal, or an exception. Exit status 1 if there is one.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
import traceback
from collections import defaultdict
from dataclasses import dataclass

import numpy as np

import pysubmod
from pysubmod import _diagonal, _nodes, _proof, _relaxation, _search

RELATIVE = 1e-12  # an upper bound this far below the optimum is a violation
KINDS = ("gaussian", "shared", "duplicates", "near-duplicates", "zero rows", "spread norms", "rank deficient", "short")


@dataclass(frozen=True)
class Instance:
    """A problem with its C and c in extended precision, and the optimum that enumeration finds."""

    name: str
    problem: pysubmod.GradientMatching
    matroid: pysubmod.PartitionMatroid
    C: np.ndarray
    c: np.ndarray
    optimum: float
    best: np.ndarray  # rows that attain it


def exact_terms(problem, rows, vector):
    """C and c of a problem in extended precision, from its rows and target, or from its Gram matrix and c."""
    wide, vector = rows.astype(np.longdouble), vector.astype(np.longdouble)
    K = wide if problem.d is None else wide @ wide.T
    linear = vector if problem.d is None else wide @ vector
    return K + np.longdouble(problem.ridge) * np.eye(len(K)), linear + np.longdouble(problem.tilt) / 2 * np.diagonal(K)


def value(C, c, members, weights):
    """The objective at these weights, in extended precision: at most f of these rows, whatever the weights."""
    w = np.asarray(weights, np.longdouble)
    return float(w @ c[members] - w @ C[np.ix_(members, members)] @ w / 2)


def brute_force(C, c, codes, budgets, nonneg, size=0.0):
    """The optimum by enumeration of all feasible supports, and one that attains it.

    Never above the optimum: the weights of a support are clipped to what the problem allows and then evaluated in
    extended precision. (A best support has a subset with independent rows and positive weights of the same value,
    so clipping does not hide it.) `size` is the target's norm, where it is known: c is a sum of terms of that size.
    """
    n = len(c)
    root = np.sqrt(np.where(np.diagonal(C) > 0, np.diagonal(C), 1.0))
    R, linear = C / np.multiply.outer(root, root), c / root
    size = max(float(np.abs(linear).max()), size)
    bits = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
    feasible = np.all([bits[:, codes == p].sum(axis=1) <= b for p, b in enumerate(budgets)], axis=0)
    sizes, best, support = bits.sum(axis=1), 0.0, np.empty(0, np.int64)
    for k in range(1, n + 1):
        rows = np.nonzero(bits[feasible & (sizes == k)])[1].reshape(-1, k)
        if not len(rows):
            continue
        matrices, right = R[rows[:, :, None], rows[:, None, :]], linear[rows]
        values, vectors = np.linalg.eigh(matrices.astype(float))
        inverse = np.where(values > 1e-15 * values[:, -1:], 1.0 / np.where(values > 0, values, 1.0), 0.0)
        w = np.zeros_like(right)
        for _ in range(3):  # refinement: residuals in extended precision
            residual = (right - np.einsum("mij,mj->mi", matrices, w)).astype(float)
            w = w + np.einsum("mij,mj,mkj,mk->mi", vectors, inverse, vectors, residual)
        if nonneg:
            w = np.maximum(w, 0.0)
        f = np.einsum("mi,mi->m", w, right) - np.einsum("mi,mij,mj->m", w, matrices, w) / 2
        # |R_ij| <= 1; what rounding may have added where large weights cancel.
        f = f - 64 * np.finfo(np.longdouble).eps * np.abs(w).sum(axis=1) * (np.abs(w).sum(axis=1) + size)
        j = int(f.argmax())
        if f[j] > best:
            best, support = float(f[j]), rows[j]
    return best, support


def random_rows(rng, kind, n, d):
    """Rows of one awkward kind."""
    G = rng.normal(size=(n, d))
    if kind == "shared":
        G += 2 * rng.normal(size=d)
    elif kind in ("duplicates", "near-duplicates"):
        G = G[rng.integers(0, max(1, n // 2), size=n)] * rng.choice([1.0, 1.0, -1.0, 2.0], size=(n, 1))
        if kind == "near-duplicates":
            G = G + 10.0 ** rng.uniform(-7, -1, size=(n, 1)) * rng.normal(size=(n, d))
    elif kind == "zero rows":
        G[rng.random(n) < 0.4] = 0.0
    elif kind == "rank deficient":
        rank = int(rng.integers(1, max(2, min(n, d))))
        G = rng.normal(size=(n, rank)) @ rng.normal(size=(rank, d))
    if kind == "spread norms" or rng.random() < 0.25:
        G = G * 10.0 ** rng.uniform(-4, 4, size=(n, 1))
    return G


def random_instance(seed):
    """A problem of at most nine rows and a partition matroid; the same for the same seed."""
    rng = np.random.default_rng([20, seed])
    kind = KINDS[int(rng.integers(len(KINDS)))]
    n = int(rng.choice([1, 2, 3, 4, 5, 6, 7, 7, 8, 8, 8, 9, 9]))
    d = int(rng.integers(1, 5)) if kind == "short" else int(rng.integers(2, 20))
    G = random_rows(rng, kind, n, d)
    unit = G / np.maximum(np.linalg.norm(G, axis=1, keepdims=True), 1e-300)
    targets = (rng.normal(size=d), unit.mean(axis=0), rng.uniform(0.2, 2, n) @ unit, -unit.mean(axis=0), G.sum(axis=0))
    t = targets[int(rng.integers(len(targets)))] * 10.0 ** rng.choice([-6.0, 0.0, 0.0, 6.0])
    mean_square = float(np.square(G).sum(axis=1).mean()) or 1.0
    ridge = float(rng.choice([0.0, 1e-8, 1e-6, 1e-4, 1e-2, 1e-1, 1.0])) * mean_square
    gram = bool(rng.random() < 0.3) and ridge > 0
    # A tilt that rewards what a tiny ridge cannot see comes close to an unbounded problem, which is refused.
    tilt = float(rng.choice([0.0, 0.0, 0.1, -0.1])) if ridge > (1e-3 if gram else 0.0) * mean_square else 0.0
    nonneg = bool(rng.random() < 0.5)
    codes = np.unique(rng.integers(0, int(rng.integers(1, 5)), size=n), return_inverse=True)[1]
    budgets = rng.choice([0, 1, 1, 2, 2, 3, 4], size=int(codes.max()) + 1)
    if gram:
        rows, vector = G @ G.T, G @ t
        rows = (rows + rows.T) / 2
        norm = {"target_norm": float(np.linalg.norm(t))} if rng.random() < 0.5 else {}
        problem = pysubmod.GradientMatching.from_gram(rows, vector, ridge=ridge, nonneg=nonneg, tilt=tilt, **norm)
    else:
        rows, vector = G.astype(rng.choice([np.float16, np.float32, np.float64, np.float64])), t
        if not np.isfinite(rows).all():
            rows = G
        problem = pysubmod.GradientMatching(rows, vector, ridge=ridge, nonneg=nonneg, tilt=tilt)
    matroid = pysubmod.PartitionMatroid(codes, dict(enumerate(budgets.tolist())))
    C, c = exact_terms(problem, rows, vector)
    optimum, best = brute_force(C, c, codes, budgets, nonneg, float(np.linalg.norm(t)))
    name = f"seed {seed}: {kind}, n={n}, {'Gram' if gram else f'd={d} {rows.dtype}'}, ridge {ridge:g}, tilt {tilt:g}, "
    name += f"{'w>=0' if nonneg else 'free'}, groups {codes.tolist()}, budgets {budgets.tolist()}"
    return Instance(name, problem, matroid, C, c, optimum, best), rng


@contextlib.contextmanager
def lowered_sizes(rng):
    """Send a small problem the way of a large one, at random."""
    choices = {
        (_nodes, "FIRST_COVERS"): (1, 6, 600),
        (_nodes, "FIRST_BLOCK"): (1, 2, 3, 8),
        (_nodes, "MOST_NUMBERS"): (8, 400, 400_000),
        (_search, "FEW"): (0, 0, 20_000),
        (_proof, "MOST_DENSE"): (0, 4000, 4000, 4000),
    }
    kept = {place: getattr(*place) for place in choices}
    try:
        for (module, name), values in choices.items():
            setattr(module, name, values[int(rng.integers(len(values)))])
        yield
    finally:
        for (module, name), old in kept.items():
            setattr(module, name, old)


# ---- the bounds ------------------------------------------------------------------------------------------------------


def random_selection(rng, instance):
    """A selection to be judged: the best one, a random one, the pursuit's, or none."""
    how = rng.choice(["best", "random", "random", "omp", "empty"])
    if how == "omp":
        return pysubmod.solve(instance.problem, instance.matroid, n_threads=1)
    if how == "best":
        return instance.best
    order = rng.permutation(instance.problem.n)[: 0 if how == "empty" else None]
    taken = np.zeros(len(instance.matroid.budgets), int)
    rows = []
    for i in order.tolist():
        p = instance.matroid.codes[i]
        if taken[p] < instance.matroid.budgets[p]:
            taken[p] += 1
            rows.append(i)
    return np.array(rows[: int(rng.integers(0, len(rows) + 1))], np.int64)


def certified(rng, instance):
    """Bounds of `certify` at every level: (name, upper bound), and what else it claims: (name, holds)."""
    nonneg = instance.problem.nonneg
    for method, limit in (("one-shot", 0.0), ("diagonal", 0.01), ("block", 0.0), ("block", rng.choice([0.01, 0.1, 1]))):
        selection = random_selection(rng, instance)
        with lowered_sizes(rng):
            gap = float(rng.choice([0.0, 1e-3, 1e-2, rng.uniform(0.0, 0.3)]))
            got = pysubmod.certify(
                instance.problem, instance.matroid, selection, gap=gap, time_limit=limit, method=method
            )
        for name, bound in got.bounds.items():
            yield f"certify: {name}", bound, True
        yield "certify: upper", got.upper, True
        members = selection.indices if isinstance(selection, pysubmod.Selection) else selection
        weights = instance.problem.weights(members) if isinstance(selection, np.ndarray) else selection.weights
        there = value(instance.C, instance.c, members, weights)
        yield "objective", np.inf, got.objective <= max(there, 0.0) * (1 + 1e-15)
        yield "proven optimal", np.inf, not got.proven_optimal or there >= instance.optimum * (1 - 1.1e-9)
        if got.better is not None:
            rows, one = got.better, np.zeros(len(got.better), np.int64)
            known, _ = brute_force(instance.C[np.ix_(rows, rows)], instance.c[rows], one, [len(rows)], nonneg)
            fits = instance.matroid.is_feasible(rows) and got.better_objective <= known * (1 + 1e-12)
            yield "better", np.inf, bool(fits and got.better_objective > got.objective)


def random_point(rng, proof, R):
    """A w0 near the maximiser over all rows, or anywhere."""
    n = len(proof.c)
    free = np.linalg.lstsq(R, proof.c, rcond=1e-12)[0]
    return free * rng.uniform(0, 1, size=n) ** rng.choice([0, 1, 3]) + 10.0 ** rng.uniform(-6, 1) * rng.normal(size=n)


def largest_scale(R, D):
    """The largest s with R - s D positive semidefinite, from below; None where R is singular."""
    try:
        half = np.linalg.solve(np.linalg.cholesky(R), D)
        ratio = np.linalg.solve(np.linalg.cholesky(R), half.T)
    except np.linalg.LinAlgError:
        return None
    s = 1.0 / max(float(np.linalg.eigvalsh((ratio + ratio.T) / 2)[-1]), 1e-300)
    n = len(R)
    for shrink in (1.0, 1 - 1e-12, 1 - 1e-9, 1 - 1e-6, 0.9):
        A = R - s * shrink * D
        with contextlib.suppress(np.linalg.LinAlgError):
            np.linalg.cholesky(A - (n + 2) * _diagonal.EPS * np.trace(A) * np.eye(n))
            return s * shrink
    return None


def diagonal_bounds(rng, proof, R):
    """The diagonal formula at random w0, for the library's D and for random ones."""
    n, nonneg = len(proof.c), proof.quadratic.nonneg
    if proof.quadratic.ridge > 0:
        free = proof._matrix_free()
        if free is not None:
            yield "diagonal: ridge", free.bound(random_point(rng, proof, R)), True
    chosen = _diagonal.choose_diagonal(R)
    options = [] if chosen is None else [("library's D", chosen[0])]
    D = np.exp(2 * rng.normal(size=n))
    s = largest_scale(R, np.diag(D))
    if s is not None:
        options.append(("random D", s * D))
    for name, D in options:
        bound = _diagonal.Diagonal(R.__matmul__, D, proof.c, proof.error, 0, proof.group, proof.budget, nonneg)
        for _ in range(2):
            yield f"diagonal: {name}", bound.bound(random_point(rng, proof, R)), True


def random_state(rng, proof, node, state):
    """Random w0, block D that is only just feasible, and prices."""
    n = len(node.c)
    X = rng.normal(size=(n, n + 1))
    D = np.where(node.cluster[:, None] == node.cluster, X @ X.T if rng.random() < 0.5 else node.R, 0.0)
    s = largest_scale(node.R, D)
    if s is None:
        return state
    price = state.price * np.exp(2 * rng.normal(size=len(state.price)))
    return _relaxation.State(random_point(rng, proof, node.R), s * D * rng.choice([1.0, 0.9, 0.3]), price)


def block_bounds(rng, proof, R):
    """The block formula at random points of a root node, merged ones, and after a split and a screening."""
    with lowered_sizes(rng):
        price = np.exp(rng.normal(size=len(proof.budget)) - 3)
        start = _nodes.root(R, proof.c, proof.error, proof.group, proof.budget, proof.quadratic.nonneg, proof.w, price)
        while start is not None:
            node, state = start
            state = random_state(rng, proof, node, state)
            found = _relaxation.bound(node, state)
            if found is not None:
                yield "block: random", found.value, True
                children = _nodes.split(node, state) if sum(r.shape[1] for r, _ in node.covers) > 1 else []
                parts = [_relaxation.bound(*child) for child in children if len(child[0].covers)]
                if parts and all(part is not None for part in parts):
                    yield "block: split", max(part.value for part in parts), True
                target = found.value * rng.uniform(0.3, 1.0)
                smaller, after, struck, dead = _nodes.screen(node, state, found, target)
                left = None if dead else _relaxation.bound(smaller, after)
                if dead or left is not None:
                    yield "block: screened", max(struck, 0.0 if dead else left.value), True
            start = _nodes.merge(node, state)


def bounds_below(rng, instance):
    """The formulas of the certificates at random points, in the problem's units."""
    none = np.empty(0, np.int64)
    members = instance.best if rng.random() < 0.5 else none
    proof = _proof.Proof(
        instance.problem, instance.matroid, None, members, np.asarray(instance.problem.weights(members))
    )
    if len(proof.pool) == 0:
        return
    R = proof._dense()[0]
    for bounds in (diagonal_bounds, block_bounds):
        for name, bound, holds in bounds(rng, proof, R):
            yield name, bound * proof.scale, holds


# ---- the count -------------------------------------------------------------------------------------------------------


class Record:
    """How many bounds of each kind were met, how tight the tightest was, and what was violated."""

    def __init__(self):
        self.problems = self.pairs = self.claims = self.violations = 0
        self.margins = defaultdict(list)

    def add(self, instance, name, bound, holds):
        optimum = instance.optimum
        if np.isinf(bound):
            self.claims += 1
        else:
            self.pairs += 1
            holds = holds and bound >= optimum * (1 - RELATIVE) and not np.isnan(bound)
            if optimum > 0:
                self.margins[name].append(bound / optimum - 1.0)
        if not holds:
            self.fail(instance, f"{name}: upper {bound!r}, optimum {optimum!r}")

    def fail(self, instance, what):
        self.violations += 1
        print(f"VIOLATED: {what}; {instance.name}", flush=True)

    def report(self):
        print(f"{'bound':24}{'pairs':>9}{'tightest':>12}{'5 %':>12}{'median':>12}   (upper / optimum - 1)")
        for name in sorted(self.margins):
            margins = np.array(self.margins[name])
            low, middle = np.quantile(margins, [0.05, 0.5])
            print(f"{name:24}{len(margins):9}{margins.min():12.1e}{low:12.1e}{middle:12.1e}")
        print(
            f"{self.pairs} bounds on {self.problems} problems, {self.claims} other claims "
            f"(objectives, proofs of optimality, better selections): {self.violations} violated"
        )


def check(seed, record):
    """All bounds of one problem."""
    instance, rng = random_instance(seed)
    record.problems += 1
    seen = set()
    for source in (certified, bounds_below):
        try:
            for name, bound, holds in source(rng, instance):
                if (name, bound) not in seen or np.isinf(bound):
                    seen.add((name, bound))
                    record.add(instance, name, bound, holds)
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)
            place = [frame for frame in frames if "numpy" not in frame.filename][-1]
            what = f"{type(error).__name__}: {error} ({place.name}: {place.line})"
            record.fail(instance, what)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=20_000, help="go on until so many bounds are checked")
    parser.add_argument("--seed", type=int, default=0, help="of the first problem; the others count up from it")
    parser.add_argument("--one", type=int, metavar="SEED", help="only the problem of this seed")
    args = parser.parse_args()
    record, started = Record(), time.perf_counter()
    if args.one is not None:
        print(random_instance(args.one)[0].name)
        check(args.one, record)
    else:
        while record.pairs < args.pairs:
            check(args.seed + record.problems, record)
    record.report()
    print(f"{time.perf_counter() - started:.0f} s")
    sys.exit(1 if record.violations else 0)


if __name__ == "__main__":
    main()
