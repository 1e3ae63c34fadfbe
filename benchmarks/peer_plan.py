"""What bench_peers.py runs: which competitors, on which rows, in which storage type, on how many threads."""

from __future__ import annotations

from dataclasses import dataclass

import machine
from peers import COMPETITORS, MIDDLE, forced_routes
from problems import FAMILIES, SIZES

FAST = ("NumPy, columns on demand", "NumPy, full Gram", "spams")
FLOORS = ("floor: columns known", "floor: one pass")
ITEM = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


@dataclass
class Block:
    """What is interleaved: (competitor, storage type) pairs on one problem. The first is what ratios are taken to."""

    size: str
    family: str
    threads: int
    entries: list[tuple[str, str]]


def plan(sizes, quick, everything):
    """The blocks, those of one problem together."""
    most, routes = machine.cores(), forced_routes()
    ours = ["pysubmod", *(f"pysubmod, route={route}" for route in routes)]
    plain = [name for name in ours if name.endswith(("pysubmod", "plain"))]
    peers = [name for name in COMPETITORS if not name.startswith("pysubmod")]
    extra = ["pysubmod, w >= 0, 8 groups", "pysubmod, rule=greedy"]
    many = ["pysubmod, free, 256 groups", *(["pysubmod, 256 groups, route=plain"] if "plain" in routes else [])]

    def block(kind, threads, names, storages=("float32",)):
        return Block(size, kind, threads, [(name, storage) for name in names for storage in storages])

    for size in sizes:
        large, largest = (not everything and volume(size) > bound for bound in (MIDDLE, 2 * MIDDLE))
        fast = [name for name in FAST if not (large and "Gram" in name)]
        yield block("gradient_like", most, ours + extra + peers + list(FLOORS))
        if quick:
            continue
        if most > 1:
            yield block("gradient_like", 1, plain + fast[: 1 if largest else None] + list(FLOORS))
        if not largest:
            yield block("gradient_like", most, plain + fast, ("float64",))
        yield block("gradient_like", most, ["pysubmod"], ("float32", "bfloat16", "float16"))
        yield block("gradient_like", most, many)
        yield block("gaussian", most, (ours + extra + peers if everything else ours + fast) + list(FLOORS))
        for kind in FAMILIES[1:] if not large else ():
            yield block(kind, most, plain)


def volume(size):
    """n * d * k, what a product with the residual at every pick costs."""
    n, d, k = SIZES[size]
    return n * d * k
