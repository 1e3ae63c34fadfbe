"""What is kept of the per-sample gradients of one parameter.

A block is *formed* (the gradients themselves) or in *factors*: a Linear's gradient of sample i is
``sum_t delta_t a_t'`` over its tokens t, an Embedding's the same with one-hot a_t. No function here makes an
intermediate array of much more than BUDGET numbers, or than one sample needs.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

__all__ = ["Block", "Factors", "Formed", "Lookup", "Outer"]

BUDGET = 1 << 22  # 32 MiB in float64
ELEMENTWISE = 16  # what a number of a product costs beside its multiplications: written, multiplied, summed

Tile: TypeAlias = tuple[Tensor, Tensor]  # of tokens: deltas, and inputs or indices


def spans(size: int, step: int) -> list[slice]:
    step = max(step, 1)
    return [slice(first, min(first + step, size)) for first in range(0, size, step)]


@dataclass(frozen=True, eq=False)
class Block(ABC):
    name: str
    shape: tuple[int, ...]  # of the parameter

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def width(self) -> int:
        """Numbers in a row of the parameter; a vector's rows are single numbers."""
        return self.size // max(self.shape[0], 1)

    @property
    @abstractmethod
    def tensors(self) -> tuple[Tensor, ...]: ...

    @property
    def n(self) -> int:
        return int(self.tensors[0].shape[0])

    @property
    def device(self) -> torch.device:
        return self.tensors[0].device

    @abstractmethod
    def part(self, rows: slice, dtype: torch.dtype) -> Tensor:
        """The gradients of some rows of the parameter: (n, rows * width)."""

    @abstractmethod
    def squares(self, dtype: torch.dtype) -> Tensor:
        """Squared norms, (n,) float64."""

    @abstractmethod
    def dot(self, gradient: Tensor, dtype: torch.dtype) -> Tensor:
        """Products with one gradient of the parameter's shape, (n,) float64."""

    @abstractmethod
    def weighted_sum(self, weights: Tensor, dtype: torch.dtype) -> Tensor:
        """``sum_i weights_i g_i``, of the parameter's shape."""

    def chunks(self, n: int) -> list[slice]:
        """Rows of the parameter, so few that (n, rows * width) keeps within the budget."""
        return spans(self.shape[0], BUDGET // max(n * self.width, 1))

    def squares_of_parts(self, dtype: torch.dtype) -> Tensor:
        total = torch.zeros(self.n, dtype=torch.float64, device=self.device)
        for rows in self.chunks(self.n):
            total += self.part(rows, dtype).square().sum(1, dtype=torch.float64)
        return total


@dataclass(frozen=True, eq=False)
class Formed(Block):
    values: Tensor  # (n, size)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.values,)

    def part(self, rows: slice, dtype: torch.dtype) -> Tensor:
        return self.values[:, rows.start * self.width : rows.stop * self.width].to(dtype)

    def squares(self, dtype: torch.dtype) -> Tensor:
        return self.squares_of_parts(dtype)

    def dot(self, gradient: Tensor, dtype: torch.dtype) -> Tensor:
        total = torch.zeros(self.n, dtype=torch.float64, device=self.device)
        rows = gradient.reshape(self.shape[0], -1)
        for chunk in self.chunks(self.n):
            total += self.part(chunk, dtype) @ rows[chunk].flatten().to(dtype)
        return total

    def weighted_sum(self, weights: Tensor, dtype: torch.dtype) -> Tensor:
        parts = [weights.to(dtype) @ self.part(chunk, dtype) for chunk in self.chunks(self.n)]
        return torch.cat(parts).reshape(self.shape)


@dataclass(frozen=True, eq=False)
class Factors(Block):
    deltas: Tensor  # (n, T, q): gradients of the module's output

    @property
    def tokens(self) -> int:
        return int(self.deltas.shape[1])

    @abstractmethod
    def tile(self, samples: slice, tokens: slice, dtype: torch.dtype) -> Tile: ...

    @staticmethod
    @abstractmethod
    def products(left: Tile, right: Tile) -> Tensor:
        """``(delta . delta')(a . a')`` for each pair of tokens of two tiles."""

    @abstractmethod
    def cost_of_pairs(self, other: Factors) -> int:
        """Multiplications of `_by_pairs`."""

    @abstractmethod
    def cost_of_parts(self, other: Factors) -> int:
        """Multiplications of `_by_parts`."""

    def pairs(self, other: Factors) -> int:
        """Pairs of tokens; with itself only those of samples i <= j."""
        count = self.n * other.n * self.tokens * other.tokens
        return count // 2 if other is self else count

    def tiles(self) -> list[tuple[slice, slice]]:
        """Samples and tokens, so that the products of two tiles keep within the budget."""
        side = math.isqrt(BUDGET)
        tokens = max(min(self.tokens, side), 1)
        return [(s, t) for s in spans(self.n, side // tokens) for t in spans(self.tokens, tokens)]

    def few(self) -> list[slice]:
        """Samples whose factors keep within the budget."""
        return spans(self.n, BUDGET // max(self.tokens * sum(math.prod(t.shape[2:]) for t in self.tensors), 1))

    def squares_of_pairs(self, dtype: torch.dtype) -> Tensor:
        total = torch.zeros(self.n, dtype=torch.float64, device=self.device)
        side = math.isqrt(BUDGET)
        for i in range(self.n):
            row = slice(i, i + 1)
            for left in spans(self.tokens, side):
                here = self.tile(row, left, dtype)
                for right in spans(self.tokens, side):
                    total[i] += self.products(here, self.tile(row, right, dtype)).sum(dtype=torch.float64)
        return total


@dataclass(frozen=True, eq=False)
class Outer(Factors):
    """The weight (q, p) of a Linear."""

    inputs: Tensor  # (n, T, p)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.deltas, self.inputs

    def tile(self, samples: slice, tokens: slice, dtype: torch.dtype) -> Tile:
        return self.deltas[samples, tokens].to(dtype).flatten(0, 1), self.inputs[samples, tokens].to(dtype).flatten(
            0, 1
        )

    @staticmethod
    def products(left: Tile, right: Tile) -> Tensor:
        return (left[0] @ right[0].T).mul_(left[1] @ right[1].T)

    def cost_of_pairs(self, other: Factors) -> int:
        return self.pairs(other) * (sum(self.shape) + ELEMENTWISE)

    def cost_of_parts(self, other: Factors) -> int:
        formed = self.n * self.tokens + (0 if other is self else other.n * other.tokens)
        return self.size * (formed + self.n * other.n)

    def part(self, rows: slice, dtype: torch.dtype) -> Tensor:
        made = [
            torch.bmm(self.deltas[few, :, rows].to(dtype).transpose(1, 2), self.inputs[few].to(dtype)).flatten(1)
            for few in self.few()
        ]
        return torch.cat(made)

    def form(self) -> Formed:
        dtype = torch.promote_types(self.deltas.dtype, torch.float32)
        return Formed(self.name, self.shape, self.part(slice(0, self.shape[0]), dtype))

    def smaller(self) -> Block:
        """Formed, where that takes less memory: then it is also the cheaper of the two for every product."""
        return self.form() if self.size <= self.tokens * sum(self.shape) else self

    def squares(self, dtype: torch.dtype) -> Tensor:
        return (self.squares_of_pairs if self.tokens * sum(self.shape) < self.size else self.squares_of_parts)(dtype)

    def dot(self, gradient: Tensor, dtype: torch.dtype) -> Tensor:
        matrix = gradient.to(dtype)
        products = [
            ((self.deltas[few].to(dtype) @ matrix) * self.inputs[few].to(dtype)).sum((1, 2), dtype=torch.float64)
            for few in self.few()
        ]
        return torch.cat(products)

    def weighted_sum(self, weights: Tensor, dtype: torch.dtype) -> Tensor:
        total = torch.zeros(self.shape, dtype=dtype, device=self.device)
        for few in self.few():
            deltas = self.deltas[few].to(dtype) * weights[few, None, None].to(dtype)
            total += deltas.flatten(0, 1).T @ self.inputs[few].to(dtype).flatten(0, 1)
        return total


@dataclass(frozen=True, eq=False)
class Lookup(Factors):
    """The weight (rows, q) of an Embedding."""

    indices: Tensor  # (n, T)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.deltas, self.indices

    def tile(self, samples: slice, tokens: slice, dtype: torch.dtype) -> Tile:
        return self.deltas[samples, tokens].to(dtype).flatten(0, 1), self.indices[samples, tokens].flatten()

    @staticmethod
    def products(left: Tile, right: Tile) -> Tensor:
        return (left[0] @ right[0].T).mul_(left[1][:, None] == right[1])

    def cost_of_pairs(self, other: Factors) -> int:
        return self.pairs(other) * (self.width + ELEMENTWISE)

    def cost_of_parts(self, other: Factors) -> int:
        used = min(self.shape[0], self.n * self.tokens + (0 if other is self else other.n * other.tokens))
        return self.width * used * (self.n + other.n + self.n * other.n)

    def part(self, rows: slice, dtype: torch.dtype) -> Tensor:
        count = rows.stop - rows.start
        sample, token = ((self.indices >= rows.start) & (self.indices < rows.stop)).nonzero(as_tuple=True)
        places = sample * count + self.indices[sample, token] - rows.start
        made = torch.zeros(self.n * count, self.width, dtype=dtype, device=self.device)
        return made.index_add_(0, places, self.deltas[sample, token].to(dtype)).view(self.n, -1)

    def squares(self, dtype: torch.dtype) -> Tensor:
        return self.squares_of_pairs(dtype)

    def dot(self, gradient: Tensor, dtype: torch.dtype) -> Tensor:
        products = [
            (self.deltas[few].to(dtype) * gradient[self.indices[few]].to(dtype)).sum((1, 2), dtype=torch.float64)
            for few in self.few()
        ]
        return torch.cat(products)

    def weighted_sum(self, weights: Tensor, dtype: torch.dtype) -> Tensor:
        total = torch.zeros(self.shape, dtype=dtype, device=self.device)
        for few in self.few():
            deltas = self.deltas[few].to(dtype) * weights[few, None, None].to(dtype)
            total.index_add_(0, self.indices[few].flatten(), deltas.flatten(0, 1))
        return total
