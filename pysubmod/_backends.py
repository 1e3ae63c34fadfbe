"""The only module that imports the compiled extension modules, and what they can do on this machine."""

from __future__ import annotations

from typing import Any

try:
    from . import _core as core
except ImportError as error:  # pragma: no cover - only a broken installation comes here
    raise ImportError(
        "pysubmod's compiled core cannot be loaded; build and install the package (pip install .) "
        f"for this Python version. The loader says: {error}"
    ) from error

__all__ = ["core", "cuda_devices"]


def cuda_devices() -> list[dict[str, Any]] | None:
    """The CUDA devices that the driver reports; None if this build has no CUDA part."""
    try:
        from . import _cuda
    except ImportError:
        return None
    return list(_cuda.devices())
