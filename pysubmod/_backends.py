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

__all__ = ["core", "cuda_devices", "cuda_module", "device_module", "visible_devices"]


def device_module() -> Any:
    """The compiled CUDA module; None if this build has none."""
    try:
        from . import _cuda
    except ImportError:
        return None
    return _cuda


def cuda_module() -> Any:
    """The compiled CUDA module, which the caller has asked for."""
    module = device_module()
    if module is None:
        raise ValueError(
            "device: this build of pysubmod has no CUDA part; build it where nvcc is on PATH (pip install . "
            "--config-settings=cmake.define.PYSUBMOD_CUDA=ON), or use device='cpu' with arrays in host memory"
        )
    return module


def cuda_devices() -> list[dict[str, Any]] | None:
    """The CUDA devices that the driver reports; None if this build has no CUDA part."""
    module = device_module()
    return None if module is None else list(module.devices())


def visible_devices() -> list[dict[str, Any]]:
    """The CUDA devices, one of which the caller has asked for: at least one."""
    module = cuda_module()
    found: list[dict[str, Any]] = list(module.devices())
    if found:
        return found
    if module.driver_version() == 0:
        what = "this machine has no NVIDIA driver; install one"
    elif module.driver_version() // 1000 < module.cuda_version()[0]:
        what = f"the NVIDIA driver is too old for CUDA {module.cuda_version()[0]}; install a newer one"
    else:
        what = "the NVIDIA driver shows no device (CUDA_VISIBLE_DEVICES hides some); make one visible"
    raise ValueError(f"device: no CUDA device can be used: {what}, or use device='cpu'")
