"""A small model, its pool in three domains, and its gradients by a backward pass each."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from pysubmod._random import random_bits

DOMAINS = ["code", "law", "maths"]


def loss(model, batch):
    return F.cross_entropy(model(batch["x"]), batch["y"], reduction="none")


def make(n=24, m=12, seed=0):
    """A model in float64, a pool and validation samples in three domains."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()

    def batch(size, label):
        return {
            "x": torch.randn(size, 5, dtype=torch.float64),
            "y": torch.randint(3, (size,)),
            "domain": label,
        }

    pool = batch(n, [DOMAINS[i * 7 % 11 % 3] for i in range(n)])
    return model, pool, batch(m, torch.arange(m).remainder(3))


def rows_of(model, batch, rows=None):
    """Gradients by a backward pass each, float64."""
    found = []
    for i in range(len(batch["y"])) if rows is None else rows:
        one = {"x": batch["x"][i : i + 1], "y": batch["y"][i : i + 1]}
        found.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss(model, one).sum(), model.parameters())]))
    return torch.stack(found).numpy()


def unit(G):
    return G / np.linalg.norm(G, axis=1, keepdims=True)


def step_seed(seed, step):
    return int(random_bits(seed, step)) & (2**63 - 1)
