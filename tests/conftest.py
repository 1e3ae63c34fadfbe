"""The process that tests run in, put in order before NumPy is loaded; and what the tests of the command line share."""

import os
import signal

import pytest

# The references do many tiny factorisations, which a threaded BLAS slows down; NumPy's reads this once.
for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ.setdefault(name, "1")

# A shell starts background jobs with Ctrl-C ignored, and children would inherit that: the tests of Ctrl-C need it.
signal.signal(signal.SIGINT, signal.default_int_handler)

import strategies  # noqa: E402, F401  (loads the hypothesis profile, for every test file)
from emulation import device  # noqa: E402, F401  (a fixture)


@pytest.fixture
def one_torch_thread():
    """Torch on one thread, its random numbers from the start."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A small problem in the current folder: G.npy, t.npy, and the labels in every form."""
    import numpy as np

    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(1)
    np.save("G.npy", rng.standard_normal((40, 12)).astype(np.float32))
    np.save("t.npy", rng.standard_normal(12))
    labels = ["math", "code", "chat", "spam"] * 10
    np.save("labels.npy", np.array(labels))
    np.save("codes.npy", np.arange(40) % 4)
    (tmp_path / "labels.txt").write_text("\n".join(labels) + "\n")
    rows = "".join(f"{i},{label},x{i}\n" for i, label in enumerate(labels))
    (tmp_path / "labels.csv").write_text("row,domain,id\n" + rows, encoding="utf-8-sig")
    return tmp_path
