"""How long the pursuit on a Gram matrix takes on the device: by rows, picks, type of K, weights, and problems at once.

    python benchmarks/kernels/study_gram.py

Milliseconds. "alone" is all that a call has the device do (uploads, the check of K, the pursuit), "kernel" the pursuit
by torch's profiler, "predicted" that of cuda_model.py. How many blocks a problem has follows from rows and problems.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import card
from bench_cuda import GramCase
from cuda_model import gram_us

from pysubmod import solve, solve_batch

HEAD = ("rows", "picks", "problems", "K", "weights", "blocks", "predicted", "kernel", "alone", "us a pick")
SIZES = [(n, k) for n in (256, 512, 1024, 2048, 4096) for k in (16, 32, 64, 128, 152, 160, 256) if 4 * k <= n]
AT_ONCE = [(n, k, count) for n, k in ((256, 32), (1024, 128)) for count in (1, 16, 33, 64, 66, 132, 133, 264)]
TINY = [(64, 16)], [(64, 16, 2)]


def line(place, case, n, k, problems, storage):
    """One row of a table."""
    there = [case.there] * problems
    blocks = solve(case.there, case.matroid).stats.get("launch", {}).get("blocks")
    if problems > 1:
        blocks = solve_batch(there, case.matroid)[0].stats.get("launch", {}).get("blocks")

    def call():
        return solve_batch(there, case.matroid, **place.output)

    alone = place.alone(call)
    kernel = place.parts(call).get("GramPursuitBody", (0, None))[1]
    found = kernel or alone or place.median(call)
    weights = "w >= 0" if case.nonneg else "free"
    predicted = 1e-3 * gram_us(n, k, problems)
    return n, k, problems, storage, weights, blocks, predicted, kernel, alone, 1e3 * found / k


def study(place, sizes, at_once):
    def case(n, k, storage="float32", nonneg=True):
        return GramCase(place, n, k, 2048 if n >= 256 else 48, storage, nonneg=nonneg, grouped=True)

    card.say("Rows and picks\n")
    card.say(card.table(HEAD, [line(place, case(n, k), n, k, 1, "float32") for n, k in sizes]))
    card.say("The type of K, and free weights\n")
    n, k = max(sizes[: len(sizes) // 2 + 1], key=lambda size: size[0] * size[1])
    kinds = [(storage, nonneg) for storage in ("float32", "float64") for nonneg in (True, False)]
    card.say(card.table(HEAD, [line(place, case(n, k, *kind), n, k, 1, kind[0]) for kind in kinds]))
    card.say("Problems at once\n")
    card.say(card.table(HEAD, [line(place, case(n, k), n, k, count, "float32") for n, k, count in at_once]))


if __name__ == "__main__":
    where = card.from_command_line(__doc__)
    study(where, *(TINY if where.is_rehearsal else (SIZES, AT_ONCE)))
