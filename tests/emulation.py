"""A CUDA device made of host memory, for machines without one: arrays that say they lie on a device, a library that
makes them, and a module in place of `_cuda` whose `solve` runs the device's own algorithm on threads of the host."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from pysubmod import _backends, _device

DEVICE_OF: dict[int, int] = {}  # by address; what the driver would know


class Emulated:
    """Host memory behind `__cuda_array_interface__`."""

    def __init__(self, values, device=0, stream=None, version=3):
        self.values, self.extra, self.version = np.asarray(values), {"stream": stream}, version
        DEVICE_OF[self.values.ctypes.data] = device

    @property
    def __cuda_array_interface__(self):
        given = self.values.__array_interface__
        strides = None if self.values.flags.c_contiguous else self.values.strides
        own = {"data": (self.values.ctypes.data, False), "strides": strides, "version": self.version}
        return {"shape": given["shape"], "typestr": given["typestr"]} | own | self.extra

    def __getitem__(self, i):
        return Emulated(self.values[i], DEVICE_OF[self.values.ctypes.data])

    @property
    def shape(self):
        return self.values.shape


class EmulatedDLPack:
    """Host memory behind DLPack, bfloat16 too: a torch CPU tensor (or a NumPy array) whose capsules name a device."""

    def __init__(self, values, device=0, kind=2, versioned=True):
        self.values, self.device, self.kind, self.versioned = values, device, kind, versioned
        self.streams = []

    def __dlpack_device__(self):
        return self.kind, self.device

    def __dlpack__(self, *, stream, **options):
        if options and not self.versioned:
            raise TypeError("unexpected keyword argument 'max_version'")
        self.streams.append(stream)
        capsule = self.values.__dlpack__(**options)
        for word, value in ((2, self.kind), (3, self.device)):  # behind the pointer to the data
            ctypes.c_int32.from_address(tensor_address(capsule) + 4 * word).value = value
        return capsule

    def __getitem__(self, i):
        return EmulatedDLPack(self.values[i], self.device, self.kind, self.versioned)


def name_of(capsule):
    ctypes.pythonapi.PyCapsule_GetName.restype = ctypes.c_char_p
    ctypes.pythonapi.PyCapsule_GetName.argtypes = [ctypes.py_object]
    return ctypes.pythonapi.PyCapsule_GetName(capsule)


def address_of(capsule):
    """Of the managed tensor in a capsule."""
    ctypes.pythonapi.PyCapsule_GetPointer.restype = ctypes.c_void_p
    ctypes.pythonapi.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
    return ctypes.pythonapi.PyCapsule_GetPointer(capsule, name_of(capsule))


def tensor_address(capsule):
    """Of the DLTensor: first of all, or behind version, context, deleter and flags."""
    return address_of(capsule) + (32 if name_of(capsule).endswith(b"versioned") else 0)


class EmulatedLibrary(_device.Library):
    name = "emulation"
    current_stream = 0

    def stream(self, device):
        return self.current_stream

    def to_host(self, name, array):
        return array.values

    def empty(self, shape, dtype, device):
        return Emulated(np.full(shape, 77, dtype), device)

    def pointer(self, array):
        return array.values.ctypes.data


class EmulatedModule:
    """In place of `pysubmod._cuda`."""

    def __init__(self, n_devices=1, threads=1, blocks=1):
        self.n_devices, self.grid, self.calls = n_devices, {"threads": threads, "blocks": blocks}, []

    def devices(self):
        card = {"name": "emulated", "compute_capability": 90, "memory_bytes": 2**30, "multiprocessors": 4}
        return [{"index": i} | card for i in range(self.n_devices)]

    def driver_version(self):
        return 13000

    def cuda_version(self):
        return (13, 0)

    def device_of(self, pointer):
        return DEVICE_OF.get(pointer, -1)

    def solve(self, problems, device, stream, outputs):
        self.calls.append({"problems": problems, "device": device, "stream": stream, "outputs": outputs})
        return _backends.core.solve_emulated(problems, device, stream, outputs, **self.grid)


@pytest.fixture
def device(monkeypatch):
    """An emulated device; the module, whose `calls` are what the package asked of it."""
    module = EmulatedModule()
    monkeypatch.setattr(_backends, "device_module", lambda: module)
    monkeypatch.setitem(_device.LIBRARIES, "emulation", EmulatedLibrary())
    return module
