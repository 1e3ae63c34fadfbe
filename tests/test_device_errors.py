"""What cannot be solved on a device, or is not there: the right exception, which names the argument and the cure."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from emulation import Emulated, EmulatedDLPack, EmulatedLibrary, EmulatedModule
from strategies import random_problem

import pysubmod
from pysubmod import GradientMatching, PartitionMatroid, _backends, _device, omp_partition, solve, solve_batch

P = random_problem(3, n=12, d=6, n_groups=2, k=2)
TWO = PartitionMatroid(P.groups, P.budgets)


class NotThere:
    """An array of device `where` that nobody can reach."""

    def __init__(self, shape=(12, 6), typestr="<f4", where=0, **other):
        self.face = {"shape": shape, "typestr": typestr, "data": (4096, False), "version": 3, "strides": None} | other

    @property
    def __cuda_array_interface__(self):
        return self.face


def there(**changes):
    return omp_partition(**{"G": Emulated(P.G), "target": P.target, "budgets": 2} | changes)


def problem():
    return GradientMatching(Emulated(P.G), P.target)


def gram(K, c):
    return GradientMatching.from_gram(K, c)


K, C = P.G @ P.G.T, P.G @ P.target
WIDE = np.ones((12, 12))

# name: (call, exception, argument, what the message must say)
BAD = {
    # --- what an array says of itself
    "G one-dimensional": (lambda: there(G=Emulated(P.G[0])), ValueError, "G", ["(n, d)", "(6,)"]),
    "G without columns": (lambda: there(G=Emulated(P.G[:, :0].copy()), target=[]), ValueError, "G", ["d = 0"]),
    "G integers": (lambda: there(G=Emulated(P.G.astype("i4"))), TypeError, "G", ["int32", "bfloat16"]),
    "G integers in DLPack": (lambda: there(G=EmulatedDLPack(P.G.astype("i8"))), TypeError, "G", ["int64", "bfloat16"]),
    "G complex": (lambda: there(G=Emulated(P.G + 0j)), TypeError, "G", ["complex128"]),
    "G other byte order": (lambda: there(G=Emulated(P.G.astype(">f4"))), TypeError, "G", [">f4"]),
    "G columns apart": (
        lambda: there(G=Emulated(np.asfortranarray(P.G))), ValueError, "G", ["each row", "G.contiguous()"],
    ),
    "G every second column": (
        lambda: there(G=Emulated(P.G[:, ::2]), target=P.target[::2]), ValueError, "G", ["(6, 2)", "G.contiguous()"],
    ),
    "G one row, many times": (
        lambda: there(G=Emulated(np.broadcast_to(P.G[0], (12, 6)))), ValueError, "G", ["(0, 1)", "G.contiguous()"],
    ),
    "G strides between numbers": (
        lambda: there(G=NotThere(strides=(26, 4))), ValueError, "G", ["(26, 4)", "4 bytes"],
    ),
    "G unaligned": (
        lambda: there(G=Emulated(np.frombuffer(b"x" * 41, "i1")[1:].view("f8").reshape(5, 1)), target=[1.0]),
        ValueError, "G", ["multiple", "copy"],
    ),
    "G masked": (lambda: there(G=NotThere(mask=P.G > 0)), TypeError, "G", ["masked", "candidates"]),
    "G of version 1": (lambda: there(G=NotThere(version=1)), TypeError, "G", ["version 1", "2 or 3"]),
    "G of nobody's memory": (lambda: there(G=NotThere()), ValueError, "G", ["no CUDA device"]),
    "G whose capsule is of the host": (
        lambda: there(G=EmulatedDLPack(P.G, kind=2), target=Lying(P.target)), ValueError, "target", ["device type 1"],
    ),
    "G that makes no capsule": (lambda: there(G=Mute(P.G)), TypeError, "G", ["Mute", "no capsule today"]),
    "G in a mapping": (
        lambda: omp_partition({"a": Emulated(P.G)}, P.target, {"a": 1}), ValueError, "G['a']", ["groups=", ".cpu()"],
    ),
    "G of torch": (lambda: there(G=P.G, target=Emulated(P.target)), ValueError, "target", ["GPU", "target.cpu()"]),
    "target length": (lambda: there(target=Emulated(np.ones(5))), ValueError, "target", ["(6,)", "(5,)"]),
    "target host length": (lambda: there(target=np.ones(5)), ValueError, "target", ["(6,)", "(5,)"]),
    "target host NaN": (lambda: there(target=[1, 2, 3, 4, 5, np.nan]), ValueError, "target", ["entry 5", "NaN"]),
    "target three-dimensional": (lambda: there(target=Emulated(np.ones((1, 2, 6)))), ValueError, "target", ["(m, 6)"]),
    "target no rows": (lambda: there(target=Emulated(np.ones((0, 6)))), ValueError, "target", ["no rows"]),
    "target a column": (
        lambda: there(target=Emulated(np.ones((6, 2))[:, 0])), ValueError, "target", ["target.contiguous()"],
    ),
    "target on another device": (
        lambda: there(target=Emulated(P.target, device=1)), ValueError, "target", ["cuda:1", "G is on cuda:0"],
    ),
    "target on another stream": (
        lambda: there(target=Emulated(P.target, stream=7)), ValueError, "target", ["stream", "G", "one library"],
    ),
    "target one for separate": (
        lambda: there(target=Emulated(P.target), separate=True), ValueError, "target", ["(m, d)", "(6,)"],
    ),
    "K not square": (lambda: gram(Emulated(P.G), C), ValueError, "K", ["square", "(12, 6)"]),
    "K float16": (lambda: gram(Emulated(K.astype("f2")), C), TypeError, "K", ["float32", "float16"]),
    "K apart": (lambda: gram(Emulated(np.ones((24, 24))[::2, ::2]), C), ValueError, "K", ["K.contiguous()"]),
    "c length": (lambda: gram(Emulated(K), Emulated(C[:5])), ValueError, "c", ["(12,)", "(5,)"]),
    "c host length": (lambda: gram(Emulated(K), C[:5]), ValueError, "c", ["(12,)", "(5,)"]),
    "c matrix": (lambda: gram(Emulated(K), Emulated(WIDE)), ValueError, "c", ["(12,)", "(12, 12)"]),
    "c on another device": (
        lambda: gram(Emulated(K), Emulated(C, device=1)), ValueError, "c", ["cuda:1", "K is on cuda:0"],
    ),
    "c there, K here": (lambda: gram(K, Emulated(C)), ValueError, "c", ["GPU", "c.cpu()"]),
    # --- what a device does not do
    "refine": (lambda: there(refine="swap"), ValueError, "refine", ["CPU", "G.cpu()"]),
    "refine best": (lambda: there(refine="best"), ValueError, "refine", ["CPU", "G.cpu()"]),
    "callback": (lambda: there(callback=print), ValueError, "callback", ["CPU", "G.cpu()"]),
    "verbose": (lambda: there(verbose=1), ValueError, "verbose", ["CPU", "G.cpu()"]),
    "route plain": (lambda: there(route="plain"), ValueError, "route", ["'gram', 'draft'", "'plain'", "of the CPU"]),
    "route columns": (lambda: there(route="columns"), ValueError, "route", ["'gram'", "'columns'"]),
    "route unknown": (lambda: there(route="fast"), ValueError, "route", ["'gram'", "'fast'"]),
    "route draft for K": (
        lambda: solve(gram(Emulated(K), C), 2, route="draft"), ValueError, "route", ["'draft' reads rows"],
    ),
    "route gram on the CPU": (
        lambda: there(G=P.G, route="gram"), ValueError, "route", ["'plain'", "'gram', which is a route of a device"],
    ),
    "tol without target_norm": (
        lambda: solve(gram(Emulated(K), C), 2, tol=0.1), ValueError, "tol", ["target_norm"],
    ),
    "method swap": (lambda: solve(problem(), 2, "swap"), ValueError, "method", ["'swap'", "problem.cpu()", "'omp'"]),
    "method craig": (lambda: solve(problem(), 2, "craig"), ValueError, "method", ["'craig'", "problem.cpu()"]),
    "method of the CPU, device named": (
        lambda: solve(GradientMatching(P.G, P.target), 2, "top-k", device="cuda"), ValueError, "device", ["CPU"],
    ),
    **{
        f"problem {name}": (act, ValueError, "problem", ["cuda:0", "problem.cpu()", "G.cpu()"])
        for name, act in {
            "value": lambda: problem().value([1]),
            "weights": lambda: problem().weights([1]),
            "gains": lambda: problem().gains([1]),
            "residual_norm": lambda: problem().residual_norm([1]),
            "certify": lambda: pysubmod.certify(problem(), 2, [0, 1]),
            "diagnose": lambda: pysubmod.diagnose(problem(), 2, [0, 1]),
            "compare": lambda: pysubmod.compare(problem(), 2),
            "selection certify": lambda: there().certify(),
            "selection diagnose": lambda: there().diagnose(),
            "selection of solve": lambda: solve(problem(), 2).certify(),
        }.items()
    },
    # --- which device
    "device cpu": (lambda: there(device="cpu"), ValueError, "device", ["'cpu'", "cuda:0", "G.cpu()"]),
    "device another": (lambda: there(device="cuda:1"), ValueError, "device", ["'cuda:1'", "cuda:0", "move"]),
    "device too many": (
        lambda: there(G=P.G, device="cuda:9"), ValueError, "device", ["'cuda:9'", "there is cuda:0"],
    ),
    "device host arrays": (
        lambda: there(G=P.G, device="cuda"), ValueError, "device", ["G is in host memory", "torch", "device='cpu'"],
    ),
    "device mixed mapping": (
        lambda: omp_partition({"a": P.G, "b": P.G.astype("f4")}, P.target, {"a": 1, "b": 1}, device="cuda"),
        ValueError, "device", ["float32+float64", "CPU"],
    ),
    # --- what stays there
    "output of the host": (lambda: there(G=P.G, output="device"), ValueError, "output", ["host", "leave output out"]),
    "output without a library": (
        lambda: there(G=Foreign(P.G), output="device"), ValueError, "output", ["torch or CuPy", "leave output out"],
    ),
    "cpu without a library": (
        lambda: GradientMatching(Foreign(P.G), P.target).cpu(), ValueError, "G", ["errors.Foreign", "copies"],
    ),
    "K cpu without a library": (lambda: gram(Foreign(K), C).cpu(), ValueError, "K", ["test_device_errors.Foreign"]),
    "estimate route": (
        lambda: pysubmod.estimate_memory(1, 2, 3, route="plain", device="cuda"), ValueError, "route", ["'gram'"],
    ),
    "estimate device": (
        lambda: pysubmod.estimate_memory(1, 2, 3, device="tpu"), ValueError, "device", ["'cuda'", "'tpu'"],
    ),
    "estimate refine": (
        lambda: pysubmod.estimate_memory(1, 2, 3, refine="swap", device="cuda"), ValueError, "refine", ["CPU"],
    ),
    # --- from the compiled part
    "rule greedy in draft": (lambda: there(rule="greedy", route="draft"), ValueError, "r", ["draft"]),
}  # fmt: skip


class Lying(EmulatedDLPack):
    """Whose capsule says otherwise than `__dlpack_device__`."""

    def __dlpack__(self, *, stream, **options):
        return self.values.__dlpack__(**options)


class Mute(EmulatedDLPack):
    def __dlpack__(self, **options):
        raise BufferError("no capsule today")


class Foreign(Emulated):
    """Of a library that is not known."""


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name, device):
    act, kind, argument, says = BAD[name]
    with pytest.raises(kind) as caught:
        act()
    message = str(caught.value)
    assert message.startswith(argument) and (len(argument) == 1 or message[len(argument)] in ":["), message
    for piece in says:
        assert piece in message, f"{piece!r} is not in {message!r}"
    assert len(message) < 400


def test_faults_that_the_device_finds(device):
    for value in (np.nan, np.inf):
        G = P.G.copy()
        G[4, 2] = value
        with pytest.raises(ValueError, match=r"^G: row 4 .*NaN or infinity"):
            there(G=Emulated(G))
        target = P.target.copy()
        target[2] = value
        with pytest.raises(ValueError, match=r"target.* NaN or infinity"):
            there(target=Emulated(target))
    with pytest.raises(ValueError, match=r"^c: .*unbounded.*ridge"):
        solve(GradientMatching.from_gram(Emulated(np.ones((2, 2))), Emulated(np.array([1.0, 2.0])), nonneg=False), 2)
    assert len(there()) == 2  # and it goes on


# ---- no device ------------------------------------------------------------------------------------------------------


def test_a_build_without_cuda(monkeypatch):
    monkeypatch.setattr(_backends, "device_module", lambda: None)
    assert _backends.cuda_devices() is None and [e["device"] for e in pysubmod.available_devices()] == ["cpu"]
    assert pysubmod.show_config("dicts")["cuda"] == {"built": False, "devices": [], "solver": False}
    for act in (lambda: there(G=P.G, device="cuda"), lambda: there(G=NotThere())):
        with pytest.raises(ValueError, match=r"^device: this build .* has no CUDA part; build it .*nvcc.*device='cpu'"):
            act()
    assert len(there(G=P.G)) == 2


@pytest.mark.parametrize(
    ("driver", "says"),
    [
        (0, "this machine has no NVIDIA driver; install one"),
        (11080, "the NVIDIA driver is too old for CUDA 13; install a newer one"),
        (13010, "shows no device .CUDA_VISIBLE_DEVICES hides some.; make one visible"),
    ],
)
def test_a_machine_without_a_device(driver, says, monkeypatch):
    module = EmulatedModule(n_devices=0)
    module.driver_version = lambda: driver
    monkeypatch.setattr(_backends, "device_module", lambda: module)
    with pytest.raises(ValueError, match=rf"^device: no CUDA device can be used: .*{says}, or use device='cpu'"):
        there(G=P.G, device="cuda")
    assert there(G=P.G, device="auto").stats["device"] == "cpu"
    assert [entry["device"] for entry in pysubmod.available_devices()] == ["cpu"]


def test_the_real_module_says_what_is_missing():
    module = _backends.device_module()
    if module is None or module.devices():
        pytest.skip("this build has no CUDA part, or this machine has a device")
    with pytest.raises(ValueError, match=r"^device: no CUDA device can be used: "):
        there(G=P.G, device="cuda")


def test_what_there_is(device):
    device.n_devices = 2
    cpu, *cards = pysubmod.available_devices()
    assert cpu["device"] == "cpu" and cpu["threads"] >= 1
    assert [card["device"] for card in cards] == ["cuda:0", "cuda:1"]
    assert cards[0] | {"device": 0} == {
        "device": 0, "name": "emulated", "compute_capability": 90, "memory_bytes": 2**30, "multiprocessors": 4,
    }  # fmt: skip
    assert pysubmod.show_config("dicts")["cuda"]["solver"] is True


def test_what_is_printed(device, monkeypatch, capsys):
    pysubmod.show_config()
    assert "cuda       built, devices: emulated (sm_90)\n" in capsys.readouterr().out
    monkeypatch.setattr(_backends, "device_module", lambda: None)
    pysubmod.show_config()
    assert "cuda       not built\n" in capsys.readouterr().out


def test_torch_without_cuda_moves_nothing(device, monkeypatch):
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("torch has CUDA here")
    for module in (torch, None):
        monkeypatch.setitem(sys.modules, "torch", module)
        with pytest.raises(ValueError, match=r"^device: G is in host memory, and torch"):
            there(G=P.G, device="cuda")


# ---- faults of the device -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [MemoryError("needs 3 GB"), RuntimeError("cudaErrorIllegalAddress"), KeyboardInterrupt()]
)
def test_what_the_device_raises_arrives(error, device, monkeypatch):
    def fail(*_):
        raise error

    monkeypatch.setattr(device, "solve", fail, raising=False)
    with pytest.raises(type(error)) as caught:
        there()
    assert caught.value is error
    monkeypatch.undo()


def test_problems_that_do_not_go_together(device, monkeypatch):
    class Other(Emulated):
        __module__ = "other"

    library = EmulatedLibrary()
    library.current_stream, library.name = 8, "other"
    monkeypatch.setitem(_device.LIBRARIES, "other", library)
    with pytest.raises(ValueError, match=r"^problems\[1\]: is on cuda:0 \(other\) but problems\[0\] is on cuda:0"):
        solve_batch([problem(), GradientMatching(Other(P.G), P.target)], 2)
    with pytest.raises(ValueError, match=r"^target: its work is on another stream than that of G"):
        # Only a torch tensor, or an interface that names a stream, has nobody who would wait.
        GradientMatching(Other(P.G), Emulated(P.target, stream=5))
