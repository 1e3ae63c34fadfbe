"""Choose which training samples to learn from, by their gradients.

``omp_partition(G, target, budgets, groups=labels)`` picks rows of the gradient matrix G whose weighted sum matches the
target gradient, at most ``budgets[label]`` from each group.
"""

from __future__ import annotations

from . import budgets, datasets, mixture, similarity
from .batch import solve_batch
from .certificate import Certificate, certify
from .compare import Comparison, compare
from .config import available_devices, estimate_memory, show_config
from .device_selection import DeviceSelection
from .diagnostics import Diagnosis, diagnose
from .matroid import PartitionMatroid
from .omp import omp_partition
from .problem import GradientMatching
from .result import Selection, Status
from .solvers import Progress, available_methods, solve

__version__ = "0.1.0"

__all__ = [
    "Certificate",
    "Comparison",
    "DeviceSelection",
    "Diagnosis",
    "GradientMatching",
    "PartitionMatroid",
    "Progress",
    "Selection",
    "Status",
    "__version__",
    "available_devices",
    "available_methods",
    "budgets",
    "certify",
    "compare",
    "datasets",
    "diagnose",
    "estimate_memory",
    "mixture",
    "omp_partition",
    "show_config",
    "similarity",
    "solve",
    "solve_batch",
]
