"""The small real gradient set that comes with pysubmod."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

__all__ = ["DemoData", "demo_folder", "load_demo"]

_DESCRIPTION = (
    "LoRA gradients of 240 training samples (30 of each of 8 domains) of SmolLM2-135M-Instruct after 15 steps"
    " of warm-up, each a random projection of 460,800 numbers to 2,048, and the mean validation gradient of"
    " each domain."
)


@dataclass(frozen=True, eq=False, repr=False)
class DemoData:
    """A small real selection problem.

    Attributes
    ----------
    gradients : (240, 2048) float16 array
        One candidate a row.
    groups : (240,) str array
        The domain of each candidate.
    validation : (8, 2048) float32 array
        Mean validation gradient of each domain, in the order of `domains`.
    target : (2048,) float64 array
        Their mean: what a selection is asked to match.
    domains : tuple of str
        The eight domains, in order of appearance.
    description : str
        Where the numbers come from, in a sentence; the README beside the files has the whole story.
    """

    gradients: npt.NDArray[np.float16]
    groups: npt.NDArray[np.str_]
    validation: npt.NDArray[np.float32]
    target: npt.NDArray[np.float64]
    domains: tuple[str, ...]
    description: str

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.gradients.shape))
        return f"<DemoData: {shape} {self.gradients.dtype} gradients, {len(self.domains)} domains>"


def demo_folder() -> Path:
    """The folder of the shipped files (gradients.npy, validation.npy, labels.csv, README.md)."""
    return Path(__file__).with_name("data")


def load_demo() -> DemoData:
    """Load the gradients that come with pysubmod: 240 candidates in 8 domains, about 1 MB.

    Returns
    -------
    DemoData
        With read-only arrays.

    Examples
    --------
    >>> import pysubmod
    >>> from pysubmod.datasets import load_demo
    >>> data = load_demo()
    >>> budgets = {domain: 4 for domain in data.domains}
    >>> selection = pysubmod.omp_partition(data.gradients, data.target, budgets, groups=data.groups)
    >>> len(selection)
    32
    """
    folder = demo_folder()
    gradients = np.load(folder / "gradients.npy", allow_pickle=False)
    validation = np.load(folder / "validation.npy", allow_pickle=False)
    with open(folder / "labels.csv", newline="", encoding="utf-8") as file:
        labels = [row["domain"] for row in csv.DictReader(file)]
    groups = np.array(labels)
    target = validation.mean(axis=0, dtype=np.float64)
    for array in (gradients, groups, validation, target):
        array.flags.writeable = False
    return DemoData(gradients, groups, validation, target, tuple(dict.fromkeys(labels)), _DESCRIPTION)
