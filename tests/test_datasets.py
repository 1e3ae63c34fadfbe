"""The gradients that come with the package."""

import csv
import hashlib
import re
import sys

import numpy as np
import pytest

from pysubmod.datasets import demo_folder, load_demo

FOLDER = demo_folder()


def test_shapes_and_types():
    data = load_demo()
    assert data.gradients.shape == (240, 2048)
    assert data.gradients.dtype == np.float16
    assert data.validation.shape == (8, 2048)
    assert data.validation.dtype == np.float32
    assert data.target.shape == (2048,)
    assert data.target.dtype == np.float64
    assert np.isfinite(data.gradients).all()
    assert np.isfinite(data.validation).all()
    assert "240 x 2048" in repr(data)
    assert "SmolLM2" in data.description


def test_thirty_candidates_of_each_domain():
    data = load_demo()
    assert data.domains[0] == "gsm8k"
    assert {domain: int((data.groups == domain).sum()) for domain in data.domains} == dict.fromkeys(data.domains, 30)
    assert len(data.domains) == 8


def test_target_is_the_mean_of_the_domains():
    data = load_demo()
    assert np.allclose(data.target, data.validation.astype(np.float64).mean(axis=0), rtol=1e-12, atol=0)


def test_arrays_are_read_only():
    data = load_demo()
    for array in (data.gradients, data.groups, data.validation, data.target):
        assert not array.flags.writeable


def test_norms_agree_with_those_of_the_full_gradients():
    data = load_demo()
    with open(FOLDER / "labels.csv", newline="") as file:
        exact = np.array([float(row["exact_norm"]) for row in csv.DictReader(file)])
    norms = np.linalg.norm(data.gradients.astype(np.float64), axis=1)
    assert np.abs(norms / exact - 1).max() < 0.05  # a random projection to 2,048 columns


def test_checksums_in_the_readme():
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    stated = dict(re.findall(r"^\| `([\w.]+)` .*`([0-9a-f]{64})` \|$", readme, flags=re.MULTILINE))
    assert set(stated) == {"gradients.npy", "validation.npy", "labels.csv"}
    for name, digest in stated.items():
        assert hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() == digest, name


def test_size_and_privacy_of_what_is_shipped():
    files = [path for path in FOLDER.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 1_200_000  # a wheel is to stay under 2 MB
    with open(FOLDER / "labels.csv", newline="") as file:
        columns = csv.DictReader(file).fieldnames
    assert not {"prompt", "response", "text"} & set(columns)  # ids only


def test_no_pickle_is_needed():
    for name in ("gradients.npy", "validation.npy"):
        assert not np.load(FOLDER / name, allow_pickle=False).dtype.hasobject


def test_the_script_cuts_as_it_says(tmp_path, monkeypatch):
    script = FOLDER.parents[1] / "benchmarks" / "make_demo_data.py"
    if not script.exists():
        pytest.skip("not in a checkout")
    rng = np.random.default_rng(0)
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    gradients = rng.standard_normal((80, 4)).astype(np.float16)
    np.save(source / "warm_candidates_sketch2048_f16.npy", gradients)
    np.save(source / "warm_validation_mean_sketch2048_f32.npy", np.ones((2, 4), np.float32))
    with open(source / "warm_labels.csv", "w") as file:
        file.write("row,split,domain,id,task,tokens,response_tokens,loss,exact_norm\n")
        for i in range(80):
            file.write(f"{i},train,{'ab'[i // 40]},x/{i},t,1,1,1,1\n")
        file.write("0,validation,a,v/0,t,1,1,1,1\n")
    monkeypatch.setattr(sys, "argv", [str(script), str(source), str(out)])
    exec(compile(script.read_text(), str(script), "exec"), {"__name__": "__main__", "__file__": str(script)})
    kept = [*range(30), *range(40, 70)]
    assert np.array_equal(np.load(out / "gradients.npy"), gradients[kept])
    with open(out / "labels.csv", newline="") as file:
        assert [int(row["source_row"]) for row in csv.DictReader(file)] == kept
