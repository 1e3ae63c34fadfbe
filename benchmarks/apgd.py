"""Selection with a refit by accelerated projected gradients in the loop: the way PartitionSel's release refits.

Written from the description of the method (arXiv 2606.07954): in every round each group offers its best candidates, as
many as it has budget left; one of all those is drawn (or the best is taken); then all weights >= 0 are refitted by a
fixed number of Nesterov steps from a random start. Plain NumPy in float32, on K = G G'.
"""

from __future__ import annotations

import numpy as np


def apgd_refit(K, c, start, steps, lipschitz):
    """max <w, c> - 1/2 w'Kw over w >= 0 by `steps` accelerated projected gradient steps (FISTA) from `start`."""
    w = ahead = start
    momentum = 1.0
    for _ in range(steps):
        after = np.maximum(ahead + (c - K @ ahead) / lipschitz, 0)
        following = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        ahead = after + np.float32((momentum - 1) / following) * (after - w)
        w, momentum = after, following
    return w


def apgd_selection(K, c, groups, budgets, *, pick="random", steps=128, compact=False, seed=0):
    """Rows in pick order, and their weights.

    Parameters
    ----------
    K, c : (n, n) and (n,) float32 arrays
        Gram matrix and linear term.
    groups, budgets : (n,) and (P,) int arrays
    pick : {"random", "argmax"}
        Draw from the shortlist, as the method says, or take its best: so that refits can be compared on equal terms.
    steps : int
        Of a refit.
    compact : bool
        Refit on the rows that are selected alone, instead of on all n with a mask: what fixed shapes do not allow, and
        a fairer opponent.
    """
    n, rng, left = len(c), np.random.default_rng(seed), np.array(budgets)
    lipschitz = np.float32(_largest_eigenvalue(K, rng))
    chosen, picks, w = np.zeros(n, bool), [], np.zeros(n, np.float32)
    for _ in range(int(left.sum())):
        gradient = np.where(chosen, -np.inf, c - K @ w)
        offers = []
        for p in np.flatnonzero(left):
            rows = np.flatnonzero((groups == p) & ~chosen)
            offers += rows[np.argsort(-gradient[rows], kind="stable")[: left[p]]].tolist()
        if not offers:
            break
        i = int(rng.choice(offers)) if pick == "random" else max(offers, key=gradient.__getitem__)
        chosen[i] = True
        picks.append(i)
        left[groups[i]] -= 1
        start = rng.random(n, dtype=np.float32)
        w = np.zeros(n, np.float32)
        if compact:
            w[picks] = apgd_refit(K[np.ix_(picks, picks)], c[picks], start[picks], steps, lipschitz)
        else:  # c = -inf lets the projection keep the other rows at zero
            w = apgd_refit(K, np.where(chosen, c, np.float32(-np.inf)), start * chosen, steps, lipschitz)
    return np.array(picks), w[picks]


def _largest_eigenvalue(K, rng, rounds=30):
    """By power iteration, made 2 % larger: a step length has to be safe."""
    v = rng.random(len(K), dtype=np.float32)
    for _ in range(rounds):
        v = K @ v
        v /= np.linalg.norm(v)
    return 1.02 * float(v @ (K @ v))
