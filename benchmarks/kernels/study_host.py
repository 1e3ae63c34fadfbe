"""What Python does before a kernel starts: calls with the compiled module replaced by one that does nothing.

    python benchmarks/kernels/study_host.py

Needs no card: the arrays are those of tests/emulation.py. Microseconds, medians. The compiled part (checks, one upload,
launches) comes on top.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "tests")]

import machine  # noqa: E402
import numpy as np  # noqa: E402
from emulation import Emulated, EmulatedLibrary, EmulatedModule  # noqa: E402

from pysubmod import GradientMatching, PartitionMatroid, _backends, _device, omp_partition, solve_batch  # noqa: E402


def microseconds(call, repeats=40):
    call()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return 1e6 * statistics.median(times)


def study(n=1024, tall=1_000_000, count=64):
    module = EmulatedModule()
    module.solve = lambda problems, device, stream, outputs: []
    _backends.device_module = lambda: module
    # An array of an unknown library has no place for results: as torch's, a pointer and a shape.
    _device.LIBRARIES["emulation"] = EmulatedLibrary()
    groups, K, c = np.arange(n) % 8, Emulated(np.eye(n, dtype=np.float32)), Emulated(np.ones(n))
    matroid = PartitionMatroid(groups, [n // 64] * 8)
    many = [GradientMatching.from_gram(K, c) for _ in range(count)]
    labels, G, t = np.arange(tall) % 16, Emulated(np.zeros((tall, 2), np.float32)), Emulated(np.zeros(2))
    made, queued = PartitionMatroid(labels, [16] * 16), {"output": "device"}
    cases = {
        "from_gram": lambda: GradientMatching.from_gram(K, c),
        "solve_batch, one problem": lambda: solve_batch(many[:1], matroid, **queued),
        f"solve_batch, {count} problems": lambda: solve_batch(many, matroid, **queued),
        f"omp_partition, {tall} rows, PartitionMatroid at hand": lambda: omp_partition(G, t, made, **queued),
        f"omp_partition, {tall} rows, labels": lambda: omp_partition(G, t, [16] * 16, groups=labels, **queued),
    }
    return {name: microseconds(call, 7 if str(tall) in name else 40) for name, call in cases.items()}


if __name__ == "__main__":
    print(machine.name())
    for name, found in study().items():
        print(f"| {name} | {found:.0f} |")
