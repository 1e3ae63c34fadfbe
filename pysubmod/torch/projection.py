"""Seeded random projections of gradients: smaller rows whose inner products are right on average.

Every projection P here has ``E <P g, P h> = <g, h>`` over seeds. Its numbers are hashed from (seed, counter), in
integers (SplitMix64, as in `pysubmod._random`), so one seed is one P on every machine and device; only the products
are rounded as the device rounds them. `config` says which P it was: rows of different ones must not be mixed.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import torch
from torch import Tensor

from .._random import random_bits, random_order
from .._validation import is_integer, shown

__all__ = ["FactorProjection", "Projection"]

_KINDS = ("rademacher", "srht", "sparse")
_BLOCK = 2**22  # numbers made at a time; part of the order of summation, so it depends on the shape alone


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def _shift(x: Tensor, bits: int) -> Tensor:
    """A right shift that brings in zeros, which torch's of int64 does not."""
    shifted: Tensor = (x >> bits) & (2 ** (64 - bits) - 1)
    return shifted


def _hash(seed: int, counters: Tensor) -> Tensor:
    """`random_bits` as int64 on the counters' device: integer products wrap, as those of uint64 do."""
    x = (counters + 1) * _signed(0x9E3779B97F4A7C15) + seed
    x = (x ^ _shift(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shift(x, 31)


def _signs(seed: int, start: int, stop: int, k: int, like: Tensor) -> Tensor:
    """Rows start .. stop of a matrix of k random signs a row."""
    words = -(-k // 64)
    bits = _hash(seed, torch.arange(start * words, stop * words, device=like.device))
    # Byte by byte, each from its lowest bit (every machine that torch supports well is little-endian).
    masks = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=like.device)
    ones = (bits.view(torch.uint8)[:, None] & masks).ne(0).view(stop - start, 64 * words)[:, :k]
    return ones.to(like.dtype).mul_(2).sub_(1)


def _count(name: str, value: Any, most: int | None = None) -> int:
    if not is_integer(value):
        raise TypeError(f"{name}: expected an integer; got {shown(value)}")
    if value < 1 or (most is not None and value > most):
        raise ValueError(f"{name}: expected 1 .. {most or ''}; got {value}")
    return int(value)


def _wide(values: Tensor) -> Tensor:
    """In float32, or float64 if they are: no half precision and no integers in sums."""
    if not values.is_floating_point():
        raise TypeError(f"expected a tensor of floats; got {values.dtype}")
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _full_precision(values: Tensor) -> torch.autocast:
    return torch.autocast(values.device.type, enabled=False)


class _Seeded:
    """What the projections share: the seed, the shape and the measured distortion."""

    def __init__(self, d: int, k: int, seed: int, layer: str) -> None:
        if not is_integer(seed):
            raise TypeError(f"seed: expected an integer; got {shown(seed)}")
        if not 0 <= seed < 2**63:
            raise ValueError(f"seed: expected 0 .. 2**63 - 1; got {seed}")
        self.d, self.k = d, k
        # Layers of one shape get numbers of their own: their errors would add up otherwise.
        name = int.from_bytes(hashlib.sha256(layer.encode()).digest()[:7], "big") if layer else 0
        self._key = int(random_bits(int(seed), name)) & (2**63 - 1)
        self.config: dict[str, int | str] = {"scheme": 1, "seed": int(seed), "layer": layer, "d": d, "k": k}

    def _stream(self, number: int) -> int:
        return int(random_bits(self._key, number)) & (2**63 - 1)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.config.items())})"

    def _project(self, matrix: Tensor) -> Tensor:
        raise NotImplementedError

    def __call__(self, matrix: Tensor) -> Tensor:
        """Project the rows of an (n, d) matrix: (n, k), on its device, in float32 (float64 of float64)."""
        if matrix.ndim != 2 or matrix.shape[1] != self.d:
            raise ValueError(f"matrix: expected (n, {self.d}); got {tuple(matrix.shape)}")
        with torch.no_grad(), _full_precision(matrix):
            return self._project(matrix)

    def distortion(self, gradients: Tensor) -> dict[str, float]:
        """How far the projection moves the norms and inner products of these rows.

        Parameters
        ----------
        gradients : (n, d) tensor
            A sample of the rows; all pairs of it are compared, in float64. Rows of zeros stay zero and are left out.

        Returns
        -------
        dict
            ``norm_max`` and ``norm_rms`` of ``||P g|| / ||g|| - 1``; ``inner_max`` and ``inner_rms`` of ``(<P g, P h> -
            <g, h>) / (||g|| ||h||)`` over pairs of different rows (NaN without a pair); ``rows``, how many were
            compared.
        """
        rows = gradients.detach().to(torch.float64)
        images = self(rows)
        if not bool(torch.isfinite(rows).all()):
            raise ValueError("gradients: expected finite numbers")
        norms = torch.linalg.vector_norm(rows, dim=1)
        kept = norms > 0
        rows, images = rows[kept] / norms[kept, None], images[kept] / norms[kept, None]
        n = len(rows)
        upper = torch.ones(n, n, dtype=torch.bool, device=rows.device).triu(1)
        inner = (images @ images.T - rows @ rows.T)[upper]
        result = {"rows": float(n)}
        for name, error in (("norm", torch.linalg.vector_norm(images, dim=1) - 1), ("inner", inner)):
            result[f"{name}_max"] = float(error.abs().max()) if len(error) else math.nan
            result[f"{name}_rms"] = float(error.square().mean().sqrt())
        return result


class Projection(_Seeded):
    """A random projection of flat gradients, from d numbers to k.

    Parameters
    ----------
    d, k : int
        Length of a gradient, and of its projection; ``k <= d``.
    kind : {"rademacher", "srht", "sparse"}, default "rademacher"
        "rademacher": dense random signs over sqrt(k) (Achlioptas 2003, "Database-friendly random projections"); made a
        block at a time, never held. "srht": random signs, a Walsh-Hadamard transform, k coordinates drawn without
        replacement: the real one among the SRFTs (Ailon and Chazelle 2009, "The fast Johnson-Lindenstrauss transform";
        Tropp 2011, arXiv 1011.1595); time n d log d, whatever k. "sparse": `nonzeros` signs a column, one in each block
        of rows (OSNAP, Nelson and Nguyen 2013, arXiv 1211.1002): time n d nonzeros, whatever k.
    seed : int, default 0
        0 .. 2**63 - 1.
    layer : str, default ""
        Mixed into the seed; for a projection per layer.
    nonzeros : int, default 8
        Of "sparse", a divisor of k.

    Attributes
    ----------
    config : dict
        Kind, seed and shape: integers and strings, equal if and only if the projections are.
    """

    def __init__(
        self, d: int, k: int, kind: str = "rademacher", *, seed: int = 0, layer: str = "", nonzeros: int = 8
    ) -> None:
        d = _count("d", d)
        super().__init__(d, _count("k", k, d), seed, layer)
        if kind not in _KINDS:
            raise ValueError(f"kind: expected one of {', '.join(_KINDS)}; got {shown(kind)}")
        self.config["kind"] = self.kind = kind
        self._padded = 1 << (d - 1).bit_length()
        if kind == "sparse":
            self.config["nonzeros"] = self._nonzeros = _count("nonzeros", nonzeros, k)
            if self.k % self._nonzeros:
                raise ValueError(f"nonzeros: expected a divisor of k = {k}; got {nonzeros}")
        elif kind == "srht":
            self._picked = torch.from_numpy(random_order(self._stream(1), self._padded)[: self.k].copy()).sort().values

    def _project(self, matrix: Tensor) -> Tensor:
        result = torch.zeros(len(matrix), self.k, device=matrix.device, dtype=_wide(matrix[:0]).dtype)
        if self.kind == "srht":
            signs = _signs(self._stream(0), 0, 1, self.d, result)
            picked = self._picked.to(matrix.device)
            step = max(1, 4 * _BLOCK // self._padded)
            for start in range(0, len(matrix), step):
                block = torch.nn.functional.pad(_wide(matrix[start : start + step]) * signs, (0, self._padded - self.d))
                result[start : start + step] = _hadamard(block)[:, picked]
            return result.div_(math.sqrt(self.k))
        if self.kind == "sparse":
            return self._add_sparse(matrix, result).div_(math.sqrt(self._nonzeros))
        step = max(1, _BLOCK // self.k)
        for start in range(0, self.d, step):
            stop = min(start + step, self.d)
            result.addmm_(_wide(matrix[:, start:stop]), _signs(self._stream(0), start, stop, self.k, result))
        return result.div_(math.sqrt(self.k))

    def _add_sparse(self, matrix: Tensor, result: Tensor) -> Tensor:
        """One nonzero of every column at a time; over sorted columns, as atomic sums have no fixed order."""
        width, rows = self.k // self._nonzeros, _wide(matrix).T.contiguous()
        for block in range(self._nonzeros):
            numbers = _hash(self._stream(block), torch.arange(self.d, device=matrix.device))
            place = _shift(numbers, 1) % width
            order = torch.argsort(place, stable=True)
            signed = rows.index_select(0, order).mul_(((numbers & 1) * 2 - 1)[order, None])
            lengths = torch.bincount(place, minlength=width)
            sums: Tensor = torch.segment_reduce(signed, "sum", lengths=lengths, axis=0, unsafe=True)
            result[:, block * width : (block + 1) * width] = sums.T
        return result


def _hadamard(x: Tensor) -> Tensor:
    """The unscaled Walsh-Hadamard transform of every row, of a power of two; small dense ones along six bits a time."""
    n, size = x.shape
    done = 1
    while done < size:
        small = torch.ones(1, 1, device=x.device, dtype=x.dtype)
        while len(small) < min(64, size // done):
            small = torch.cat((torch.cat((small, small)), torch.cat((small, -small))), dim=1)
        x = small @ x.view(-1, len(small), done) if done > 1 else x.view(-1, len(small)) @ small
        done *= len(small)
    return x.view(n, size)


class FactorProjection(_Seeded):
    """A two-sided projection of the gradients of one linear layer, which keeps their factor form.

    The gradient of one sample is ``G = sum_t delta_t a_t'`` (out, in), over its tokens. Its image ``P_out G P_in' =
    sum_t (P_out delta_t)(P_in a_t)'`` comes from the projected factors without G ever being formed: the form of LoGra
    (Choe et al. 2024, arXiv 2405.13954), here with independent random signs over sqrt(k). The bias is another
    parameter: its gradient ``sum_t delta_t`` is not covered. An elementwise scale on G (Adam's) has no factor form: it
    must come before the projection, on the formed gradient.

    Parameters
    ----------
    in_features, out_features : int
        Of the layer.
    k_in, k_out : int
        The smaller sides; a projected gradient has ``k_out * k_in`` numbers.
    seed : int, default 0
        0 .. 2**63 - 1.
    layer : str, default ""
        The layer's name, mixed into the seed: give it, or layers of one shape share their errors.

    Attributes
    ----------
    config : dict
        Kind, seed, layer and shapes: integers and strings, equal if and only if the projections are.
    """

    def __init__(
        self, in_features: int, out_features: int, k_in: int, k_out: int, *, seed: int = 0, layer: str = ""
    ) -> None:
        sides = {
            "in_features": _count("in_features", in_features),
            "out_features": _count("out_features", out_features),
            "k_in": _count("k_in", k_in, in_features),
            "k_out": _count("k_out", k_out, out_features),
        }
        super().__init__(in_features * out_features, k_in * k_out, seed, layer)
        self.config |= {"kind": "two-sided", **sides}
        self._shape = (int(out_features), int(in_features))
        self._small = (int(k_out), int(k_in))
        self._made: dict[tuple[int, torch.device, torch.dtype], Tensor] = {}

    def _side(self, side: int, like: Tensor) -> Tensor:
        """P_out' (side 0) or P_in' (side 1): small, so kept."""
        key = (side, like.device, like.dtype)
        if key not in self._made:
            signs = _signs(self._stream(side), 0, self._shape[side], self._small[side], like)
            self._made[key] = signs.div_(math.sqrt(self._small[side]))
        return self._made[key]

    def project_factors(self, a: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
        """Project inputs and output gradients of the layer, token by token.

        Parameters
        ----------
        a : (..., in_features) tensor
            The layer's inputs.
        delta : (..., out_features) tensor
            The gradients of its outputs.

        Returns
        -------
        a, delta : (..., k_in) and (..., k_out) tensors
            In float32 (float64 of float64), under autocast too.
        """
        if a.shape[-1:] != self._shape[1:] or delta.shape[-1:] != self._shape[:1]:
            raise ValueError(
                f"expected a (..., {self._shape[1]}) and delta (..., {self._shape[0]}); "
                f"got {tuple(a.shape)} and {tuple(delta.shape)}"
            )
        with torch.no_grad(), _full_precision(a):
            a, delta = _wide(a), _wide(delta)
            return a @ self._side(1, a), delta @ self._side(0, delta)

    def _project(self, matrix: Tensor) -> Tensor:
        # Rows are formed gradients, flat as `weight.grad.flatten()`; so are those of the result.
        formed = _wide(matrix).reshape(len(matrix), *self._shape)
        return (self._side(0, formed).T @ formed @ self._side(1, formed)).flatten(1)
