"""The machine a benchmark runs on: its name, its limits measured now, and what a call adds to a process's memory."""

from __future__ import annotations

import contextlib
import os
import platform
import statistics
import time


def cores():
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0))


def name():
    """The processor and how many cores of it this process may use."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        model = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), model)
    return f"{model}, {cores()} cores"


def set_threads(threads):
    """Tell the BLAS libraries that load from now on (here, and in processes started from here) their threads."""
    for variable in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[variable] = str(threads)


def limits():
    """What this machine can do now with NumPy's BLAS, float32: medians of seven.

    GB/s of a matrix-vector product with 268 MB from memory, GFLOP/s of a product of square matrices.
    """
    import numpy as np

    tall, x = np.ones((16384, 4096), np.float32), np.ones(4096, np.float32)
    square = np.ones((2048, 2048), np.float32)
    gemv, gemm = [], []
    for _ in range(7):
        started = time.perf_counter()
        tall @ x
        gemv.append(tall.nbytes / (time.perf_counter() - started) / 1e9)
        started = time.perf_counter()
        square @ square
        gemm.append(2 * 2048**3 / (time.perf_counter() - started) / 1e9)
    return {"gemv_GB_per_s": statistics.median(gemv), "sgemm_GFLOP_per_s": statistics.median(gemm)}


def status_kb(field):
    """A line of /proc/self/status in kB, such as VmRSS; None where there is no such file."""
    with contextlib.suppress(OSError), open("/proc/self/status", encoding="ascii") as file:
        return next((int(line.split()[1]) for line in file if line.startswith(field + ":")), None)
    return None


class PeakMemory:
    """What the body of a ``with`` adds to the resident memory at most: `added` bytes, None if that cannot be told."""

    def __enter__(self):
        self.added = None
        self._before = None
        # 5 sets the high-water mark back to what is resident now.
        with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")
            self._before = status_kb("VmRSS")
        return self

    def __exit__(self, *_):
        if self._before is not None:
            self.added = max(0, status_kb("VmHWM") - self._before) * 1024
