"""What bench_peers.py runs: which competitors, on which rows, in which storage type, on how many threads."""

from __future__ import annotations

from dataclasses import dataclass

import machine
from peers import COMPETITORS, STEPWISE, forced_routes
from problems import FAMILIES, SIZES

FAST = ("NumPy, columns on demand", "NumPy, full Gram", "scikit-learn", "spams")
FLOORS = ("floor: columns known", "floor: one pass")
ITEM = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


@dataclass
class Block:
    """What is interleaved: (competitor, storage type) pairs on one problem. The first is what ratios are taken to."""

    size: str
    family: str
    threads: int
    entries: list[tuple[str, str]]


def plan(sizes, quick, all_families):
    """The blocks, those of one problem together."""
    most, routes = machine.cores(), forced_routes()
    ours = ["pysubmod", *(f"pysubmod, route={route}" for route in routes)]
    peers = [name for name in COMPETITORS if not name.startswith("pysubmod")]
    plain = [name for name in ours if name.endswith(("pysubmod", "plain"))]
    extra = ["pysubmod, w >= 0, 8 groups", "pysubmod, rule=greedy"]
    for size in sizes:
        for kind in ("gradient_like",) if quick else ("gradient_like", "gaussian"):
            everybody = ours + extra + peers + list(FLOORS)
            yield Block(size, kind, most, [(name, "float32") for name in everybody])
            if kind == "gradient_like" and not quick:
                if most > 1:
                    yield Block(size, kind, 1, [(name, "float32") for name in (*plain, *FAST, *FLOORS)])
                yield Block(size, kind, most, [(name, "float64") for name in (*plain, *FAST)])
                yield Block(size, kind, most, [("pysubmod", storage) for storage in reversed(ITEM)][1:])
                many = "pysubmod, free, 256 groups"
                forced = [f"pysubmod, 256 groups, route={route}" for route in routes if route == "plain"]
                yield Block(size, kind, most, [(name, "float32") for name in (many, *forced)])
        for kind in FAMILIES if not quick and (all_families or volume(size) <= STEPWISE) else ():
            if kind != "gradient_like":
                yield Block(size, kind, most, [(name, "float32") for name in plain])


def volume(size):
    n, d, k = SIZES[size]
    return n * d * k
