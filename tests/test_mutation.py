"""G is read in place: a caller who writes to it during a solve gets an error, never an endless loop."""

from __future__ import annotations

import numpy as np
import pytest

import pysubmod


@pytest.mark.timeout(60)
@pytest.mark.parametrize("rule", ["omp", "normalized", "greedy"])
@pytest.mark.parametrize("nonneg", [True, False])
def test_rows_that_turn_into_nan(rule, nonneg):
    for seed in range(15):
        rng = np.random.default_rng(seed)
        G = rng.standard_normal((60, 8))
        if seed % 2:
            G[30:] = G[:30]
        target = rng.standard_normal(8)

        def spoil(progress, G=G, rng=rng):
            if progress.n_selected == 2:
                G[rng.random(G.shape) < 0.3] = np.nan

        options = {"rule": rule, "nonneg": nonneg, "tilt": 0.1, "ridge": 1e-3, "fill": True, "callback": spoil}
        try:
            selection = pysubmod.omp_partition(G, target, 20, **options)
        except ValueError:
            continue
        assert len(set(selection.indices.tolist())) == len(selection)
