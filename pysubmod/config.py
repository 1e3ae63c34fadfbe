"""What this installation is, and what a solve will need."""

from __future__ import annotations

import platform
from typing import Any, Literal, overload

import numpy as np

from ._backends import core, cuda_devices
from ._proof import MOST_DENSE
from ._validation import as_choice, as_threads, default_threads, is_integer, shown
from .solvers.pursuit import DEVICE_ROUTES, ROUTES, RULES, not_on_device

__all__ = ["available_devices", "estimate_memory", "show_config"]


def available_devices() -> list[dict[str, Any]]:
    """Where this installation can solve: the CPU, and the CUDA devices that the driver shows.

    Returns
    -------
    list of dict
        ``device`` is what `omp_partition` calls it: "cpu", then "cuda:0" and so on, which have ``name``,
        ``compute_capability`` (90 for sm_90), ``memory_bytes`` and ``multiprocessors``; the CPU has ``kernels`` and
        ``threads``.

    Raises
    ------
    RuntimeError
        The CUDA driver fails; no driver and no device are no failure.
    """
    here = {"device": "cpu", "kernels": core.build_info()["kernels"], "threads": default_threads()}
    found = [{"device": f"cuda:{entry['index']}"} | entry for entry in cuda_devices() or []]
    return [here, *({name: value for name, value in entry.items() if name != "index"} for entry in found)]


@overload
def show_config(mode: Literal["stdout"] = "stdout") -> None: ...
@overload
def show_config(mode: Literal["dicts"]) -> dict[str, Any]: ...
def show_config(mode: str = "stdout") -> dict[str, Any] | None:
    """Print the version, compiler, vector kernels, threads and devices; with ``mode="dicts"`` return them.

    Parameters
    ----------
    mode : {"stdout", "dicts"}
        As in `numpy.show_config`.
    """
    from . import __version__

    as_choice("mode", mode, ("stdout", "dicts"))
    devices = cuda_devices()
    config = {
        "pysubmod": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "platform": platform.platform(),
        "compiler": core.build_info()["compiler"],
        "kernels": core.build_info()["kernels"],
        "threads": default_threads(),
        "cuda": {"built": devices is not None, "devices": devices or [], "solver": devices is not None},
    }
    if mode == "dicts":
        return config
    for key, value in config.items():
        if key != "cuda":
            print(f"{key:10} {value}")
    names = ", ".join(f"{d['name']} (sm_{d['compute_capability']})" for d in devices or []) or "none"
    print(f"{'cuda':10} {f'built, devices: {names}' if devices is not None else 'not built'}")
    return None


def _item_size(dtype: Any) -> int:
    try:
        name = str(dtype) if str(dtype) in ("bfloat16", "torch.bfloat16") else np.dtype(dtype).name
        return {"float16": 2, "bfloat16": 2, "torch.bfloat16": 2, "float32": 4, "float64": 8}[name]
    except (KeyError, TypeError, ValueError):
        raise TypeError(f"dtype: expected float16, bfloat16, float32 or float64, got {shown(dtype)}") from None


def _reading(route: str, n: int, d: int, k: int, m: int, gradients: int, greedy: bool) -> int:
    """What a route keeps in order to read less, in bytes."""
    if route == "columns":  # of K, in float32
        return max(48 * 4 * n, gradients // 4) + m * 8 * 8 * n
    if route != "draft":
        return 0
    # For each of up to 31 drafted picks: the residual, its products, and a float32 copy of it, whose room grows by
    # doubling; greedy: the products are float64, stand beside a column of K, and are made twice.
    step = 16 * d + 16 * n if greedy else 12 * d + 4 * n
    most = max(2, gradients // (4 * m * step) + 1) if m * step else 0
    steps = m * min(most, 32, k + 1) * (step + (16 * n if greedy else 8 * d))
    vectors = 8 * 8 * n  # factors, units, what is open, who may be picked
    refit = 4 * 8 * k * (k + 1) // 2 + 32 * 3 * 8 * k  # a copy to run ahead with; members and weights of every step
    return steps + m * (vectors + refit)


GRAM_ROWS = 4096  # up to so many a device forms G G' where the route is its own choice
GRAM_PIECES = 2 << 27  # of a large product, and what is widened for it
BLAS_WORKSPACE = 32 << 20


def _device_bytes(route: str, n: int, d: int, k: int, greedy: bool) -> int:
    """What a problem takes on a device, beside G."""
    slabs = -(-d // 2048)
    vectors = (100 + (16 * slabs if slabs > 1 else 0)) * n + 16 * d
    factor = 8 * k * (k + 1)
    if route == "gram" or (route == "auto" and (n <= GRAM_ROWS or greedy)):
        blocks = max(1, min(8, n // 256)) if k <= 1024 else 1  # each has its own factor, and two to go back to
        product = GRAM_PIECES + BLAS_WORKSPACE if n * n * d >= 2**30 else 0
        return 8 * n * n + product + vectors + blocks * (3 * factor + 512 * k) + (8 * n * k if greedy else 0)
    # Of 32 steps: products, residuals and directions in d, weights, rows between which float64 decides. The pool: the
    # members, what may come next, and their Gram matrix.
    steps = 32 * (4 * n + 14 * d + 8 * k + 16 * 1024)
    pool = k + 512 + 33
    return vectors + steps + 8 * pool * pool + 13 * factor + 4096 * k + 8192 * 8


def estimate_memory(
    n: int,
    d: int,
    k: int,
    *,
    dtype: Any = "float32",
    rule: str = "omp",
    route: str = "auto",
    n_targets: int = 1,
    n_threads: int | None = None,
    refine: str | None = None,
    device: str = "cpu",
) -> dict[str, int]:
    """Estimate the memory of ``omp_partition`` in bytes.

    Parameters
    ----------
    n, d, k : int
        Candidates, length of a gradient, picks.
    dtype : str or dtype, default "float32"
        Storage type of G ("bfloat16" is known too).
    rule : {"omp", "normalized", "greedy"}
        "greedy" keeps n x k float64 numbers more.
    route : {"auto", "plain", "columns", "draft"}, or {"auto", "gram", "draft"} on a device
        "plain" keeps a few vectors; "columns" and "draft" up to a quarter of G more, or what their first step takes.
        "auto" is the most of all. On a device "gram" keeps G G' in float64, and "auto" is "gram" up to 4,096 rows.
    n_targets : int, default 1
        How many of them share a call (``separate=True``).
    n_threads : int, optional
        Default: the CPUs this process may use.
    refine : {"swap", "best"}, optional
        "swap" keeps up to 6 n x k float64 numbers more; "best" a few n x n matrices as well, up to 4,000 rows.
    device : {"cpu", "cuda"}
        Whose memory is meant: the host's for a solve there, or the device's for one on it.

    Returns
    -------
    dict
        ``gradients`` (G itself, which is the caller's and never copied), ``solver`` (all that is allocated beside it,
        at most; rows that are not contiguous are packed in small pieces, which is counted), ``total``.
    """
    as_choice("rule", rule, RULES)
    if refine is not None:
        as_choice("refine", refine, ("swap", "best"))
    threads = as_threads(n_threads)
    on_device = as_choice("device", device, ("cpu", "cuda")) == "cuda"
    as_choice("route", route, DEVICE_ROUTES if on_device else ROUTES)
    if on_device:
        not_on_device(refine=refine is not None)
    for name, value in (("n", n), ("d", d), ("k", k), ("n_targets", n_targets)):
        if not is_integer(value) or value < 0:
            raise ValueError(f"{name}: expected an integer of at least 0, got {shown(value)}")
    item = _item_size(dtype)
    n, d, k, m = int(n), int(d), min(int(k), int(n)), int(n_targets)
    if on_device:
        solver = m * _device_bytes(route, n, d, k, rule == "greedy")
        return {"gradients": n * d * item, "solver": solver, "total": n * d * item + solver}
    # Linear term, diagonal, its root, squares, correlations, products, scores, weights, row lists, marks, groups.
    by_row = 18 * 8 * n
    by_column = 4 * 8 * d  # target, residual, one widened row
    factor = 4 * 8 * k * (k + 1) // 2  # Gram and Cholesky triangles, with room to grow
    packing = threads * 640 * 1024
    greedy = 8 * (n * k + 2 * n) + factor if rule == "greedy" else 0
    # Columns at the members, those read ahead, coefficients, and a second table where members are idle.
    swap = 8 * n * (6 * k + 16) + threads * 12 * 1024 * k + 4 * factor if refine is not None else 0
    if refine == "best":  # C, its scaled copy, its inverse, and what a factorisation works in
        swap += 6 * 8 * n * n if n <= MOST_DENSE else 0
    routes = ROUTES if route == "auto" else (route,)
    reading = max(_reading(name, n, d, k, m, n * d * item, rule == "greedy") for name in routes)
    solver = m * (by_row + by_column + factor + greedy) + packing + swap + reading
    return {"gradients": n * d * item, "solver": solver, "total": n * d * item + solver}
