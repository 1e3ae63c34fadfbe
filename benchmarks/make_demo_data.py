"""Cut the small gradient set that pysubmod ships out of the larger one it comes from.

    python benchmarks/make_demo_data.py SOURCE_FOLDER [pysubmod/data]

SOURCE_FOLDER holds 2,000 candidates (250 of each of 8 domains) and their labels, as described in
``pysubmod/data/README.md``. The cut: the first 30 candidates of each domain, in the order of the source,
with every column and every bit kept. Nothing but its place decides whether a row is taken, and the same input
gives the same bytes.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
from pathlib import Path

import numpy as np

PER_DOMAIN = 30
COLUMNS = ["domain", "id", "task", "tokens", "response_tokens", "loss", "exact_norm"]


def read_labels(path: Path) -> list[dict[str, str]]:
    """The label rows of the candidates (split "train"), in file order."""
    with open(path, newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if row["split"] == "train"]


def cut(source: Path, out: Path) -> None:
    """Write gradients.npy, validation.npy and labels.csv into `out`."""
    gradients = np.load(source / "warm_candidates_sketch2048_f16.npy", allow_pickle=False)
    validation = np.load(source / "warm_validation_mean_sketch2048_f32.npy", allow_pickle=False)
    labels = read_labels(source / "warm_labels.csv")
    if len(labels) != len(gradients) or [int(row["row"]) for row in labels] != list(range(len(labels))):
        raise SystemExit("the labels do not match the candidates row by row")

    # Domains in order of first appearance: the order of the rows of the mean validation gradients.
    domains = list(dict.fromkeys(row["domain"] for row in labels))
    keep: list[int] = []
    for domain in domains:
        keep += [i for i, row in enumerate(labels) if row["domain"] == domain][:PER_DOMAIN]

    out.mkdir(parents=True, exist_ok=True)
    np.save(out / "gradients.npy", np.ascontiguousarray(gradients[keep]), allow_pickle=False)
    np.save(out / "validation.npy", validation, allow_pickle=False)
    with open(out / "labels.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["row", "source_row", *COLUMNS])
        for row, i in enumerate(keep):
            writer.writerow([row, i, *(labels[i][name] for name in COLUMNS)])


def describe(out: Path) -> None:
    """Print sizes, SHA-256s and the statistics quoted in the README."""
    for name in ("gradients.npy", "validation.npy", "labels.csv"):
        data = (out / name).read_bytes()
        print(f"{name:16s} {len(data):8d} bytes  sha256 {hashlib.sha256(data).hexdigest()}")
    rows = np.load(out / "gradients.npy").astype(np.float64)
    with open(out / "labels.csv", newline="", encoding="utf-8") as file:
        domain = np.array([row["domain"] for row in csv.DictReader(file)])
    norms = np.linalg.norm(rows, axis=1)
    unit = rows / norms[:, None]
    upper = np.triu_indices(len(rows), 1)
    cosines = (unit @ unit.T)[upper]
    same = (domain[:, None] == domain)[upper]
    print(f"norms: {norms.min():.2f} to {norms.max():.2f}, median {np.median(norms):.2f}")
    print(f"mean cosine {cosines[same].mean():.3f} within a domain, {cosines[~same].mean():.3f} between")
    print(f"negative pairs {np.mean(cosines[same] < 0):.3f} within, {np.mean(cosines[~same] < 0):.3f} between")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder of the larger set")
    parser.add_argument("out", type=Path, nargs="?", default=Path(__file__).parents[1] / "pysubmod" / "data")
    args = parser.parse_args()
    cut(args.source, args.out)
    describe(args.out)


if __name__ == "__main__":
    main()
