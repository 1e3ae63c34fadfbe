"""How long K = G G' and c = G t take on the device: our own product against cuBLAS, and both against torch's.

    python benchmarks/kernels/study_product.py

Milliseconds, by torch's profiler: "product" is what forms K, "c" the reading for c and the diagonal; "alone" a whole
call with one pick. Our own product is what runs below 2^30 multiplications, so the first table has the same work on
either side of that: the number of columns differs by a few.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import card
import torch
from cuda_model import built_in_product_us, cublas_product_us, linear_us

from pysubmod import omp_partition

HEAD = (
    "rows",
    "columns",
    "stored",
    "product by",
    "sums",
    "predicted",
    "product",
    "c, predicted",
    "c",
    "alone",
    "torch",
)
BORDER = [(n, 2**30 // n**2 - less) for n in (32, 64, 128, 256, 512, 1024) for less in (16, 0)]
LARGE = [(128, 2**20), (256, 2**20), (512, 2**20), (1024, 2**18), (1024, 2_300_000), (4096, 2**15)]
TINY = [(16, 64), (16, 63)], [(32, 80)]


def line(place, n, d, storage):
    """One row of a table; None where the device has no room."""
    if 3 * n * d * getattr(torch, storage).itemsize > place.free_bytes():
        return None
    G = torch.empty(n, d, dtype=getattr(torch, storage), device=place.device)
    for part in G.split(max(1, 2**26 // d)):
        part.normal_()
    target = G[0].double()
    rows = place.put(G), place.put(target)
    ran = omp_partition(*rows, 1, **({"route": "gram"} if place.output else {})).stats

    def call():
        return omp_partition(*rows, 1, route="gram" if place.output else "auto", **place.output)

    parts = place.parts(call)
    linear = sum(ms for name, (_, ms) in parts.items() if name.startswith(("LinearBody", "SumRowsBody")))
    other = ("LinearBody", "SumRowsBody", "GramPursuitBody", "TargetNormBody", "Mem")
    product = sum(ms for name, (_, ms) in parts.items() if not name.startswith(other))
    ours = ran.get("product") == "built-in"
    predicted = 1e-3 * (built_in_product_us(n, d) if ours else cublas_product_us(n, d))
    if not ours and G.element_size() != 2:
        predicted = None  # the model has half precision only
    torchs = place.median(lambda: G @ G.T)
    known = (n, d, storage, ran.get("product"), ran.get("product_type"), predicted, product or None)
    return *known, 1e-3 * linear_us(n, d, G.element_size()), linear or None, place.alone(call), torchs


def study(place, border, large):
    tables = {
        "Where cuBLAS takes over": [(*size, "bfloat16") for size in border],
        "Many columns": [(*size, "bfloat16") for size in large],
        "Other storage": [(*large[0], storage) for storage in ("float16", "float32", "float64")],
    }
    for title, cases in tables.items():
        card.say(f"{title}\n")
        card.say(card.table(HEAD, [row for case in cases if (row := line(place, *case))]))


if __name__ == "__main__":
    where = card.from_command_line(__doc__)
    study(where, *(TINY if where.is_rehearsal else (BORDER, LARGE)))
