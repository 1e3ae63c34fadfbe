"""Selection inside PyTorch training loops: an extra, pure Python, the only part of the package that imports torch."""

from __future__ import annotations

from .losses import causal_lm_loss
from .methods import FilterThenWeight, GradMatch, Greats, PartitionSel, RandomSelector, TopK
from .optimizer_view import OptimizerView, optimizer_view
from .per_sample import PerSampleGradients, gradient_matching, per_sample_gradients
from .projection import FactorProjection, Projection
from .selectors import BatchSelector, SelectedBatch
from .task_models import task_log_probs
from .trainers import SelectionConfig, with_selection

__all__ = [
    "BatchSelector",
    "FactorProjection",
    "FilterThenWeight",
    "GradMatch",
    "Greats",
    "OptimizerView",
    "PartitionSel",
    "PerSampleGradients",
    "Projection",
    "RandomSelector",
    "SelectedBatch",
    "SelectionConfig",
    "TopK",
    "causal_lm_loss",
    "gradient_matching",
    "optimizer_view",
    "per_sample_gradients",
    "task_log_probs",
    "with_selection",
]
