"""Where the time of the dense route goes: its kernels by torch's profiler, for each pass.

    python benchmarks/kernels/study_dense.py

Milliseconds a pass (a round: draft, pass, verification). "predicted" is for a pass alone, with as many vectors as
picks came of a pass and half as many again.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import card
from bench_cuda import RowsCase
from cuda_model import pass_us

from pysubmod import omp_partition

SHAPES = [(1_000_000, 1024, k, 16) for k in (32, 64, 128, 256)] + [(65_536, 8192, 256, 16)]
TINY = [(400, 32, 16, 4)]


def study(place, shapes):
    rows, names = [], {}
    for n, d, k, n_groups in shapes:
        if 2.5 * n * d > place.free_bytes():
            continue
        case = RowsCase(place, (n, d, k, n_groups), check=False)
        options = {"route": "draft"} if place.output else {}

        def call(case=case, options=options):
            return omp_partition(*case.there, **case.options, **options)

        passes = call().stats["passes"]
        parts = {name: ms / passes for name, (_, ms) in place.parts(call).items()}
        names |= dict.fromkeys(list(parts)[:10])
        whole = place.median(call)
        rows.append((n, d, k, passes, 1e-3 * pass_us(n, d, 1.5 * k / passes + 1), whole, whole / passes, parts))
    head = ("rows", "columns", "picks", "passes", "predicted", "call", "call a pass", *names)
    card.say(card.table(head, [(*row[:-1], *(row[-1].get(name) for name in names)) for row in rows]))


if __name__ == "__main__":
    where = card.from_command_line(__doc__)
    study(where, TINY if where.is_rehearsal else SHAPES)
