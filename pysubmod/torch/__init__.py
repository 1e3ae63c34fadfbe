"""Selection inside PyTorch training loops: an extra, pure Python, the only part of the package that imports torch."""

from __future__ import annotations

from .losses import causal_lm_loss
from .per_sample import PerSampleGradients, gradient_matching, per_sample_gradients

__all__ = ["PerSampleGradients", "causal_lm_loss", "gradient_matching", "per_sample_gradients"]
