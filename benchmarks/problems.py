"""The problems that benchmarks and tests run on: named sizes, seeded synthetic families, real gradients.

``python benchmarks/problems.py`` prints what each family looks like.
"""

from __future__ import annotations

import numpy as np

# n candidates x d columns, k picks.
SIZES = {
    "s1": (256, 1024, 32),
    "s2": (1024, 8192, 128),
    "s3": (4096, 8192, 256),
    "s4": (16384, 4096, 512),
    "s5": (65536, 1024, 256),
}

# Synthetic families. A law maps group codes (m,) to rows (m, d); the target is drawn by the law of the rows.


def _domain_law(rng, d, n_groups, rank=6, noise=0.5):
    """Domain means that share a part, low-rank variation inside a domain, noise: each of norm about 1."""
    means = (rng.normal(size=d) + rng.normal(size=(n_groups, d))) / np.sqrt(d)
    factors = rng.normal(size=(n_groups, rank, d)) / np.sqrt(d * rank)

    def law(groups):
        inside = np.zeros((len(groups), d))
        for p in range(n_groups):
            rows = groups == p
            inside[rows] = rng.normal(size=(rows.sum(), rank)) @ factors[p]
        return means[groups] + inside + noise / np.sqrt(d) * rng.normal(size=(len(groups), d))

    return law


def _low_rank_law(rng, d, n_groups, rank):
    """Rows of one low rank, with 2 % noise."""
    basis = rng.normal(size=(rank, d)) / np.sqrt(d)
    centres = rng.normal(size=(n_groups, rank))

    def law(groups):
        exact = (centres[groups] + rng.normal(size=(len(groups), rank))) @ basis
        return _perturbed(rng, exact, np.full((len(groups), 1), 0.02))

    return law


def _perturbed(rng, rows, relative):
    """`rows` changed by random vectors of `relative` (m, 1) times their norms."""
    noise = rng.normal(size=rows.shape)
    norms = np.linalg.norm(rows, axis=1, keepdims=True) / np.linalg.norm(noise, axis=1, keepdims=True)
    return rows + relative * norms * noise


def _log_normal_norms(rng, n):
    """Factors of which 95 % are within 25x of each other."""
    return np.exp(np.log(25) / 4 * rng.normal(size=(n, 1)))


FAMILIES = ("gradient_like", "near_duplicates", "low_rank", "heavy_tailed", "short_rows")


def family(name, n, d, seed, n_groups=8):
    """One synthetic family: G (n, d') float32, target (d',) float64, groups (n,) int codes.

    gradient_like
        Domain means, low-rank variation inside a domain, noise; norms log-normal, 95 % of them within 25x.
    near_duplicates
        As gradient_like, but every row is one of n/10 originals changed by 0.1 % to 3 %.
    low_rank
        Rank min(n, d) / 16 plus 2 % noise.
    heavy_tailed
        As gradient_like, norms from a Pareto law with exponent 1.
    short_rows
        As gradient_like with d' = min(n, d) / 16, many more rows than dimensions; d' = d in the others.

    The target is the mean of held-out rows, eight from every domain.
    """
    rng = np.random.default_rng([seed, FAMILIES.index(name)])
    short = max(2, min(n, d) // 16)
    d = short if name == "short_rows" else d
    law = _low_rank_law(rng, d, n_groups, short) if name == "low_rank" else _domain_law(rng, d, n_groups)
    target = law(np.repeat(np.arange(n_groups), 8)).mean(axis=0)
    groups = rng.integers(0, n_groups, size=n)
    if name == "near_duplicates":
        original = rng.integers(0, max(1, n // 10), size=n)
        groups = groups[original]
        G = law(groups[: original.max() + 1] if n else groups)[original]
        G = _perturbed(rng, G, np.exp(rng.uniform(np.log(1e-3), np.log(3e-2), size=(n, 1))))
    else:
        G = law(groups)
    if name == "heavy_tailed":
        G *= 1 + rng.pareto(1.0, size=(n, 1))
    elif name != "low_rank":
        G *= _log_normal_norms(rng, n)
    return G.astype(np.float32), target, groups


def families(n, d, seed, n_groups=8):
    """All five: {name: (G, target, groups)}."""
    return {name: family(name, n, d, seed, n_groups) for name in FAMILIES}


def gaussian(n, d, seed, n_groups=8):
    """Independent normal rows, and a target that is a sparse combination of them plus noise."""
    rng = np.random.default_rng(seed)
    G = rng.standard_normal((n, d), dtype=np.float32)
    target = G[:: max(1, n // 64)].sum(axis=0, dtype=np.float64) + 3 * rng.standard_normal(d)
    return G, target, rng.integers(0, n_groups, size=n)


def real():
    """The gradients that ship with the package: G (240, 2048) float16, the mean validation gradient, 8 domains."""
    from pysubmod.datasets import load_demo

    demo = load_demo()
    return demo.gradients, np.asarray(demo.target, float), np.unique(demo.groups, return_inverse=True)[1]


if __name__ == "__main__":
    for name, (G, t, groups) in (
        families(1024, 1024, 0) | {"gaussian": gaussian(1024, 1024, 0), "real": real()}
    ).items():
        wide = G.astype(float)
        norms = np.linalg.norm(wide, axis=1)
        cosines = (wide / norms[:, None]) @ (wide / norms[:, None]).T
        inside = groups[:, None] == groups[None, :]
        np.fill_diagonal(inside, False)
        print(
            f"{name:16} {G.shape[0]} x {G.shape[1]} {G.dtype}: norms {norms.min():.2g} .. {norms.max():.2g}, "
            f"mean cosine inside a group {cosines[inside].mean():+.3f}, between {cosines[~inside].mean():+.3f}, "
            f"|t| {np.linalg.norm(t):.3g}"
        )
