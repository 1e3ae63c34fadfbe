"""How far an objective is from submodular: exact ratios by enumeration, one along the path, and sampled estimates."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import numpy.typing as npt

from ._random import random_bits, random_order
from ._refit import RANK_TOL, refit
from ._spectrum import EPS, Bound, Spectrum

__all__ = ["enumerated_ratios", "ratio_at", "sampled_ratios", "subset_values"]

FloatArray = npt.NDArray[np.float64]
IndexArray = npt.NDArray[np.int64]
NOTHING = 1e-9  # an increment below this share of f(V) is left out of every ratio
LARGEST_SAMPLED_B = 6  # every element of B costs two refits


def subset_values(C: FloatArray, c: FloatArray, nonneg: bool) -> FloatArray:
    """f of all 2^n subsets, shape (2^n,), bit i of the position being row i. C has a positive diagonal.

    The optimum over a subset is attained on an independent one inside it, with weights of the right sign, so f is the
    largest value of such a one: nothing is iterated.
    """
    n = len(c)
    root = np.sqrt(C.diagonal())
    R, b = C / np.multiply.outer(root, root), c / root
    f = np.zeros(2**n)
    for k in range(1, n + 1):
        members = np.array(list(combinations(range(n), k)))
        blocks, sides = R[members[:, :, None], members[:, None, :]], b[members]
        keep = np.linalg.eigvalsh(blocks)[:, 0] > RANK_TOL
        members, blocks, sides = members[keep], blocks[keep], sides[keep]
        x = np.linalg.solve(blocks, sides[:, :, None])[:, :, 0]
        value = np.einsum("ij,ij->i", x, sides) / 2
        if nonneg:
            value[(x < 0).any(axis=1)] = 0.0
        f[(1 << members).sum(axis=1)] = value
    for i in range(n):
        pairs = f.reshape(-1, 2, 1 << i)
        np.maximum(pairs[:, 1], pairs[:, 0], out=pairs[:, 1])
    return f


def enumerated_ratios(f: FloatArray) -> tuple[FloatArray, FloatArray]:
    """gamma_k and beta_k for k = 1 .. n from the values of all subsets: 3^n pairs of disjoint sets A and B.

    Returns
    -------
    (n,) and (n,) float64 arrays
        The smallest ``sum of f(e|A) over B / f(B|A)`` and the largest ``sum of f(e|A u B - e) over B / f(B|A)`` over
        pairs with ``|A u B| <= k``; NaN where no increment exceeds 1e-9 of f(V).
    """
    n = int(np.log2(len(f)))
    sets = np.arange(len(f))
    sizes = ((sets[:, None] >> np.arange(n)) & 1).sum(axis=1)
    # losses[T, e] = f(T) - f(T - e) for e in T
    losses = np.stack([f - f[sets & ~(1 << e)] for e in range(n)], axis=1)
    gamma, beta = np.full(n + 1, np.inf), np.full(n + 1, -np.inf)
    for A in range(len(f) - 1):
        outside = [e for e in range(n) if not A >> e & 1]
        B, rise = np.zeros(1, np.int64), np.zeros(1)
        for e in outside:  # all subsets of the outside, by doubling
            B, rise = np.concatenate([B, B | 1 << e]), np.concatenate([rise, rise + f[A | 1 << e] - f[A]])
        T = A | B
        step = f[T] - f[A]
        keep = step > NOTHING * f[-1]
        T, step = T[keep], step[keep]
        np.minimum.at(gamma, sizes[T], rise[keep] / step)
        np.maximum.at(beta, sizes[T], losses[T][:, outside].sum(axis=1) / step)
    gamma, beta = np.minimum.accumulate(gamma)[1:], np.maximum.accumulate(beta)[1:]
    return np.where(np.isinf(gamma), np.nan, gamma), np.where(np.isinf(beta), np.nan, beta)


def ratio_at(spectrum: Spectrum, members: IndexArray) -> Bound | None:
    """A certified lower bound on ``sum of f(e|S) over B / f(B|S)`` for all B off S, weights free.

    It is the smallest eigenvalue of the normalised Schur complement of C on V - S. With an error E in R, of relative
    size ``eps = |E| / lambda_min(R)``, every Schur complement lies between 1 - eps and 1 + eps times the true one.

    Returns None where it cannot be certified (no matrix, R singular up to rounding, or nothing off S).
    """
    inside = np.isin(spectrum.rows, members)
    if not spectrum.has_matrix or inside.all() or spectrum.n == 0:
        return None
    k, rest = int(inside.sum()), int((~inside).sum())
    low = spectrum.low("R").value
    # Partial elimination is exact for a matrix within k roundings an entry; the entries themselves have their error.
    relative = spectrum.n * (spectrum.entry_error + 4 * (k + 2) * EPS) / low if low > 0 else np.inf
    if relative >= 0.1:
        return None
    R = spectrum.R
    if k:
        factor = np.linalg.cholesky(R[np.ix_(inside, inside)])
        half = np.linalg.solve(factor, R[np.ix_(inside, ~inside)])
        schur = R[np.ix_(~inside, ~inside)] - half.T @ half
    else:
        schur = np.array(R)
    root = np.sqrt(schur.diagonal())
    schur /= np.multiply.outer(root, root)
    values = np.linalg.eigvalsh(schur)
    value = float(values[0]) - 8 * rest * EPS * float(values[-1])
    value *= (1 - relative) / (1 + relative)
    return Bound(max(value, low), "smallest eigenvalue of the normalised Schur complement")


def sampled_ratios(
    spectrum: Spectrum, members: IndexArray, k: int, n_pairs: int, seed: int
) -> tuple[float, float] | None:
    """The smallest gamma ratio and the largest beta ratio among random pairs (A, B) with ``|A u B| <= k``.

    gamma is at most the first and beta at least the second: estimates, on the wrong side for a guarantee. Half of the A
    are parts of the selection, half of the B are rows that resemble each other, where the ratios are worst.
    Returns None where no pair has an increment.
    """
    k = min(k, spectrum.n)
    gamma, beta = np.inf, -np.inf
    q = spectrum.quadratic
    inside = np.flatnonzero(np.isin(spectrum.rows, members))
    scale = NOTHING * float(np.max(np.square(q.c[spectrum.rows]) / spectrum.diagonal, initial=0.0))
    for pair in range(n_pairs if k >= 2 else 0):
        bits = random_bits(seed, np.arange(4 * pair, 4 * pair + 4)).astype(object)
        order = random_order(seed, spectrum.n, stream=pair)
        n_b = 2 + int(bits[0] % (min(LARGEST_SAMPLED_B, k) - 1))
        B = order[:n_b]
        if pair % 2 and spectrum.has_matrix:
            B = np.argsort(-np.abs(spectrum.R[order[0]]), kind="stable")[:n_b]
        n_a = int(bits[1] % (k - n_b + 1))
        pool = inside[np.argsort(random_bits(int(bits[3]), inside), kind="stable")] if bits[2] % 2 else order
        A = pool[~np.isin(pool, B)][:n_a]
        ratios = _ratios(spectrum, A, B, scale)
        if ratios is not None:
            gamma, beta = min(gamma, ratios[0]), max(beta, ratios[1])
    return (float(gamma), float(beta)) if np.isfinite(gamma) else None


def _ratios(spectrum: Spectrum, A: IndexArray, B: IndexArray, least: float) -> tuple[float, float] | None:
    """Both ratios of one pair; None if f(B|A) <= least."""
    both = np.concatenate([B, A])
    q = spectrum.quadratic
    C, c = q.block(spectrum.rows[both]), q.c[spectrum.rows[both]]
    m = len(B)

    def value(kept: IndexArray) -> float:
        return refit(C[np.ix_(kept, kept)], c[kept], q.nonneg, q.rank_tol)[1]

    everything = np.arange(len(both))
    base, top = value(everything[m:]), value(everything)
    if top - base <= least:
        return None
    rise = sum(value(np.append(everything[m:], e)) - base for e in range(m))
    loss = sum(top - value(np.delete(everything, e)) for e in range(m))
    return rise / (top - base), loss / (top - base)
