"""The package as others get it: sdist -> wheel -> import far from the sources; and what an import costs."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BUILT = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "*.so", "__pycache__", "demo.png")
MAX_WHEEL_BYTES = 5_000_000  # with the CUDA part: machine code for two kinds of card, and PTX
MAX_IMPORT_SECONDS = 0.2


def run(command: Sequence[str | Path], cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command} failed:\n{done.stdout[-8000:]}\n{done.stderr[-8000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An sdist, built from a copy without anything that an earlier build left, and the wheel built from that sdist."""
    pytest.importorskip("build")
    folder = tmp_path_factory.mktemp("packaging")
    shutil.copytree(ROOT, folder / "checkout", ignore=BUILT)
    for name in (".ci", ".clang-format"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / "checkout" / name)
    run([sys.executable, "-m", "build", "--outdir", folder / "dist", folder / "checkout"], cwd=folder)
    (sdist,) = (folder / "dist").glob("*.tar.gz")
    (wheel,) = (folder / "dist").glob("*.whl")
    return sdist, wheel


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_sdist_is_complete(built: tuple[Path, Path]) -> None:
    sdist, _ = built
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {"LICENSE", "Makefile", "CMakePresets.json", "requirements-test.txt", ".ci/run", ".clang-format"}
    for folder in ("csrc", "bindings", "pysubmod", "tests"):
        files = (file for file in (ROOT / folder).rglob("*") if file.is_file() and "__pycache__" not in file.parts)
        wanted |= {file.relative_to(ROOT).as_posix() for file in files if file.suffix != ".so"}
    assert sorted(wanted - names) == []
    assert [name for name in names if name.endswith((".so", ".pyc"))] == []


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_wheel_contents(built: tuple[Path, Path]) -> None:
    _, wheel = built
    assert wheel.stat().st_size < MAX_WHEEL_BYTES
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = (archive.read(name).decode() for name in names if name.endswith(".dist-info/METADATA"))
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"pysubmod"}
    assert "License-Expression: MIT\n" in metadata
    required = [line for line in metadata.splitlines() if line.startswith("Requires-Dist") and "extra ==" not in line]
    assert [line.split()[1].partition(">")[0] for line in required] == ["numpy"]
    assert "pysubmod/py.typed" in names
    package = {file.relative_to(ROOT).as_posix() for file in (ROOT / "pysubmod").rglob("*.py")}
    data = {file.relative_to(ROOT).as_posix() for file in (ROOT / "pysubmod/data").iterdir()}
    assert (package | data) - set(names) == set()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_wheel_works_in_a_fresh_environment(built: tuple[Path, Path], tmp_path: Path) -> None:
    _, wheel = built
    run([sys.executable, "-m", "venv", tmp_path / "venv"], cwd=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wheel], cwd=tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    code = (
        "import numpy as np, pysubmod, importlib.metadata as m;"
        "sel = pysubmod.omp_partition(np.eye(3), np.array([3.0, 2.0, 1.0]), 2);"
        "print(m.version('pysubmod'), pysubmod.__version__, sel.indices.tolist(), pysubmod.__file__)"
    )
    installed, stated, first, second, file = run([python, "-c", code], cwd=empty).split()
    assert installed == stated
    assert (first, second) == ("[0,", "1]")
    assert Path(file).is_relative_to(tmp_path / "venv")
    assert "select" in run([tmp_path / "venv" / "bin" / "pysubmod", "--help"], cwd=empty)


def test_import_is_light(tmp_path: Path) -> None:
    """Processor time beyond NumPy's import: a busy machine makes it longer only a little; the median drops outliers."""
    code = (
        "import time, sys, numpy; start = time.process_time(); import pysubmod; took = time.process_time() - start;"
        "heavy = {'torch', 'scipy', 'matplotlib', 'tqdm', 'yaml'} & set(sys.modules); assert not heavy, heavy;"
        "print(took)"
    )
    run([sys.executable, "-c", code], cwd=tmp_path)  # reads the files into memory, and writes the .pyc ones
    seconds = [float(run([sys.executable, "-c", code], cwd=tmp_path)) for _ in range(7)]
    assert statistics.median(seconds) < MAX_IMPORT_SECONDS, seconds
