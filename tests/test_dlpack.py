"""DLPack capsules as the compiled core reads them: what they say, who owns the memory, and what is refused."""

from __future__ import annotations

import ctypes
import gc
import sys

import numpy as np
import pytest
from emulation import name_of, tensor_address

from pysubmod._backends import core

CPU = 1
VERSIONS = {"dltensor": {}, "dltensor_versioned": {"max_version": (1, 0)}}


def capsule_of(array, version="dltensor"):
    try:
        capsule = array.__dlpack__(**VERSIONS[version])
    except TypeError:
        pytest.skip("this NumPy makes no versioned capsules")
    assert name_of(capsule) == version.encode()
    return capsule


def word_at(capsule, offset, kind):
    """A number of the DLTensor in a capsule: data 0, device 8, ndim 16, dtype 20, shape 24, strides 32, offset 40."""
    return kind.from_address(tensor_address(capsule) + offset)


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_what_a_capsule_says(dtype, version):
    array = np.arange(24, dtype=dtype).reshape(4, 6)[1:, ::2]
    pointer, shape, strides, name, kind, device, _ = core.read_dlpack(capsule_of(array, version))
    assert (pointer, shape, strides) == (array.ctypes.data, (3, 3), (6, 2))
    assert (name, kind, device) == (dtype, CPU, 0)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_tensors(dtype, torch):
    tensor = torch.arange(24).reshape(4, 6).to(getattr(torch, dtype))
    for part in (tensor, tensor.T, tensor[1:, 2:], tensor[::2], tensor[0], tensor[0, 0], tensor[:0]):
        pointer, shape, strides, name, kind, _, _ = core.read_dlpack(part.__dlpack__())
        assert (shape, name, kind) == (tuple(part.shape), dtype, CPU)
        if part.numel():
            assert pointer == part.data_ptr()
            assert [step for size, step in zip(shape, strides, strict=True) if size > 1] == [
                step for size, step in zip(part.shape, part.stride(), strict=True) if size > 1
            ]


def test_no_strides_are_those_of_c_order():
    capsule = capsule_of(np.zeros((2, 3, 4)))
    word_at(capsule, 32, ctypes.c_void_p).value = None
    assert core.read_dlpack(capsule)[2] == (12, 4, 1)


def test_an_offset_in_bytes():
    array = np.arange(6.0)
    capsule = capsule_of(array)
    word_at(capsule, 40, ctypes.c_uint64).value = 16
    assert core.read_dlpack(capsule)[0] == array.ctypes.data + 16


def test_device_type_and_number():
    capsule = capsule_of(np.arange(6.0))
    word_at(capsule, 8, ctypes.c_int32).value, word_at(capsule, 12, ctypes.c_int32).value = 2, 3
    assert core.read_dlpack(capsule)[4:6] == (2, 3)


def test_arrays_that_must_not_be_written_to():
    array = np.arange(6.0)
    array.setflags(write=False)
    assert core.read_dlpack(capsule_of(array, "dltensor_versioned"))[0] == array.ctypes.data


# ---- whose memory it is -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_the_memory_lives_as_long_as_the_owner(version):
    array = np.arange(6.0)
    before = sys.getrefcount(array)
    capsule = capsule_of(array, version)
    owner = core.read_dlpack(capsule)[-1]
    assert name_of(capsule) == b"used_" + version.encode()
    del capsule  # which no longer owns it
    assert sys.getrefcount(array) == before + 1
    del owner
    assert sys.getrefcount(array) == before


@pytest.mark.parametrize("version", VERSIONS)
def test_nothing_leaks(version):
    array = np.arange(6.0)
    before = sys.getrefcount(array)
    for _ in range(1000):
        core.read_dlpack(capsule_of(array, version))
        capsule_of(array, version)  # that nobody reads
    gc.collect()
    assert sys.getrefcount(array) == before


@pytest.mark.parametrize("version", VERSIONS)
def test_a_capsule_is_read_once(version):
    capsule = capsule_of(np.arange(6.0), version)
    core.read_dlpack(capsule)
    with pytest.raises(TypeError, match=f"nobody has read yet, got one named 'used_{version}'"):
        core.read_dlpack(capsule)


# ---- what is refused stays the producer's --------------------------------------------------------------------------


def refused(capsule, message):
    name = name_of(capsule)
    with pytest.raises(TypeError, match=message):
        core.read_dlpack(capsule)
    assert name_of(capsule) == name


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("dtype", ["int8", "int64", "uint16", "complex64", "complex128", "bool"])
def test_other_types_are_refused_by_name(dtype, version):
    array = np.zeros(6, dtype)
    before = sys.getrefcount(array)
    capsule = capsule_of(array, version)
    refused(capsule, f"^dtype {dtype} is not a real floating-point type; use float16, bfloat16, float32 or float64$")
    assert sys.getrefcount(array) == before + 1
    del capsule
    assert sys.getrefcount(array) == before


def test_types_without_a_name():
    capsule = capsule_of(np.zeros(6))
    word_at(capsule, 20, ctypes.c_uint8).value, word_at(capsule, 21, ctypes.c_uint8).value = 12, 8
    refused(capsule, "^dtype type code 12 of bits 8 is not")
    word_at(capsule, 20, ctypes.c_uint8).value, word_at(capsule, 21, ctypes.c_uint8).value = 2, 32
    word_at(capsule, 22, ctypes.c_uint16).value = 4
    refused(capsule, "^dtype float32 x 4 is not")


def test_versions_of_another_binary_interface():
    capsule = capsule_of(np.zeros(6), "dltensor_versioned")
    ctypes.c_uint32.from_address(tensor_address(capsule) - 32).value = 2
    refused(capsule, "version above 1")


def test_what_is_no_capsule():
    for value in (None, 5, np.zeros(3)):
        with pytest.raises(TypeError, match=r"expected a DLPack capsule"):
            core.read_dlpack(value)
    ctypes.pythonapi.PyCapsule_New.restype = ctypes.py_object
    ctypes.pythonapi.PyCapsule_New.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    for name in (b"else", None):
        with pytest.raises(TypeError, match=r"nobody has read yet, got one named '(else)?'"):
            core.read_dlpack(ctypes.pythonapi.PyCapsule_New(1, name, None))
