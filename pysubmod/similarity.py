"""How alike tasks are: from what their models predict, or from gradients. The input of `pysubmod.mixture`.

``divergence_matrix`` compares models that were each trained on one task (arXiv 2507.12612); ``to_similarity`` gives its
result the sign that `task_mixture` expects; ``gradient_similarity`` needs no such models.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ._divergence import LN2, expected, observed
from ._energy import as_symmetric
from ._validation import as_array, as_choice, as_groups, as_rows, as_scalar, shown, type_name, widen

__all__ = ["divergence_matrix", "gradient_similarity", "to_similarity"]

FloatArray = npt.NDArray[np.float64]
_GRADIENTS = 1 << 21  # gradient entries that are held as float64 at a time: 16 MB


def divergence_matrix(log_probs: Any, kind: str = "jsd", *, over: str = "pair") -> FloatArray:
    """How differently the models of n tasks predict, in nats.

    Parameters
    ----------
    log_probs : mapping {task: samples} or sequence of samples, n of them
        What **all n models say about each task's samples**, models in the order of the tasks. `samples` is an array or,
        so that not all of it needs to be in memory, an iterable of such arrays, which is read once. The first axis of
        each array is the model:

        * kind "jsd" and "kl": (n, positions, V), the log-probability of every token at every position (of a sample's
          answer, say), normalised over the last axis. Any V: 150,000 is fine, a chunk may be as short as one position.
        * kind "pmi": (n, samples), the log-probability that each model gives to the observed answer, ``log p(y | x)``.

        float16, bfloat16, float32 or float64; -inf is allowed for "jsd", and where a "kl" does not need it.
    kind : {"jsd", "kl", "pmi"}
        With D_A the samples of task A, p_A its model:

        * "jsd": the Jensen-Shannon divergence of p_A and p_B, the mean of its means over D_A and D_B. 0 to ln 2.
        * "kl": ``1/2 (mean over D_A of KL(p_A || p_B) + mean over D_B of KL(p_B || p_A))``. At least 0, no upper end.
        * "pmi": the same with the observed answer in place of the expectation,
          ``1/2 (mean over D_A of [log p_A - log p_B] + mean over D_B of [log p_B - log p_A])``: minus the S of the
          paper. It is negative where a model does better on the other's samples than the other itself.
    over : {"pair", "all"}
        "jsd" only: average over the samples of the two tasks, as above, or over those of all n tasks alike. The former
        reads each chunk for n - 1 pairs, the latter for n (n - 1) / 2; its negative is accepted by
        `task_mixture`, up to rounding (the root of a Jensen-Shannon divergence is a Euclidean distance, Fuglede and
        Topsoe 2004).

    Returns
    -------
    (n, n) float64 array
        Symmetric, zeros on the diagonal. A *divergence*: `to_similarity` turns it round.

    Raises
    ------
    ValueError, TypeError
        For shapes that do not fit, NaN, a task without samples, probabilities that do not sum to 1 (logits, mostly),
        and an infinite divergence.

    Notes
    -----
    Everything is computed from differences of log-probabilities in float64, each term of a "jsd" being at least 0, and
    each distribution normalised again, which takes out the rounding of half precision. Beside the chunk that is being
    read it takes some 20 MB, or what one position takes for all models, if that is more.
    """
    kind, over = as_choice("kind", kind, ("jsd", "kl", "pmi")), as_choice("over", over, ("pair", "all"))
    if over == "all" and kind != "jsd":
        raise ValueError(
            f"over: 'all' is for kind 'jsd'; {kind!r} compares a task's model with others on its own samples"
        )
    tasks = _as_tasks(log_probs)
    n = len(tasks)
    total = np.zeros((n, n))
    for b, (name, samples) in enumerate(tasks):
        sums, count = np.zeros((n, n)), 0
        for chunk, dtype in _chunks(name, samples):
            array = _as_chunk(name, chunk, dtype, n, kind)
            sums += observed(name, array, dtype, b) if kind == "pmi" else expected(name, array, dtype, b, kind, over)
            count += array.shape[1]
        if count == 0:
            raise ValueError(f"{name}: has no samples; a mean needs at least one")
        total += sums / count
    D: FloatArray = (total + total.T) / (n if over == "all" else 2)
    return np.minimum(D, LN2) if kind == "jsd" else D


def to_similarity(divergence: Any, how: str = "difference", *, scale: float | None = None) -> FloatArray:
    """A divergence turned round, so that larger is more alike: what `task_mixture` expects.

    Parameters
    ----------
    divergence : (n, n) array
        Symmetric and finite.
    how : {"difference", "exponential"}
        "difference": its largest entry minus it. (Which constant it is taken from changes no mixture; this one makes
        all similarities at least 0.) "exponential": ``exp(-divergence / scale)``, which lets far tasks count as equally
        far, and is positive semidefinite wherever minus the divergence is so on the complement of the ones vector.
    scale : float, optional
        For "exponential": by default the median divergence of two tasks.

    Returns
    -------
    (n, n) float64 array

    Raises
    ------
    ValueError, TypeError
        For a matrix that `task_mixture` would not take either, and an exponential that overflows.
    """
    how = as_choice("how", how, ("difference", "exponential"))
    D = as_symmetric("divergence", divergence)
    if how == "difference":
        if scale is not None:
            raise ValueError(
                "scale: only how='exponential' has one; a factor of the similarity belongs into beta and lam"
            )
        largest: FloatArray = D.max() - D
        return largest
    if scale is None:
        off = D[~np.eye(len(D), dtype=bool)]
        scale = float(np.median(off)) if off.size and np.median(off) > 0 else 1.0
    width = as_scalar("scale", scale)
    if not width > 0:
        raise ValueError(f"scale: expected a positive number, got {shown(scale)}")
    with np.errstate(over="ignore", under="ignore"):
        similarity: FloatArray = np.exp(-D / width)
    if not np.isfinite(similarity).all():
        raise ValueError(
            f"divergence: exp({-float(D.min()):.3g} / {width:.3g}) overflows; a larger scale, or how='difference', does"
            " not"
        )
    return similarity


def gradient_similarity(G: Any, groups: Any = None) -> FloatArray:
    """Mean cosine between the gradients of two domains: a similarity that needs no trained task models.

    Parameters
    ----------
    G : (n, d) array, or mapping {label: (n_p, d) array}
        One sample's gradient per row, as for `omp_partition`: float16, bfloat16, float32 or float64, a memory map too;
        it is read once, in blocks.
    groups : (n,) array of int or str
        The label of each row; not with a mapping.

    Returns
    -------
    (P, P) float64 array
        Aligned with the sorted labels, ``np.unique(groups)``. Entry (A, B) is the mean of the cosine over all pairs of
        a row of A and a row of B: ``M M'``, M the means of the rows at unit length, and so positive semidefinite. On
        the diagonal that includes each row with itself: 1 where all rows of A point the same way, and
        about 1/n_A where they have nothing in common.

    Raises
    ------
    ValueError
        For NaN or infinity, and a group without rows or all of whose rows are 0. Other rows of zeros have no
        direction: they are left out.
    """
    rows = as_rows(G)
    if (rows.labels is None) == (groups is None):
        raise ValueError(
            "groups: needed, unless G is a mapping from labels to rows" if groups is None else "groups: G is a mapping"
            " and has labels of its own; leave groups out"
        )  # fmt: skip
    labels = as_groups(groups, rows.shape[0]) if rows.labels is None else rows.labels
    if rows.labels is not None:
        for name, own in zip(G, rows.blocks, strict=True):
            if len(own) == 0:
                raise ValueError(f"G: group {shown(name)} has no rows; leave it out")
    if len(labels) == 0:
        raise ValueError("G: has no rows; a similarity needs at least one group")
    names, codes = np.unique(labels, return_inverse=True)
    sums, counts, first = np.zeros((len(names), rows.shape[1])), np.zeros(len(names)), 0
    step = max(1, _GRADIENTS // rows.shape[1])
    for block in rows.blocks:
        dtype = "bfloat16" if block.dtype == np.uint16 else block.dtype.name
        for begin in range(0, len(block), step):
            part = widen(block[begin : begin + step], dtype)
            own = codes.reshape(-1)[first : first + len(part)]
            unit, kept = _unit_rows(part, first)
            np.add.at(counts, own[kept], 1.0)
            for p in np.unique(own[kept]):
                sums[p] += unit[own[kept] == p].sum(axis=0)
            first += len(part)
    if not (counts > 0).all():
        empty = names[np.flatnonzero(counts == 0)[0]].item()
        raise ValueError(f"G: all rows of group {shown(empty)} are 0; it has no direction. Leave it out")
    means = sums / counts[:, None]
    product: FloatArray = means @ means.T
    return (product + product.T) / 2


def _unit_rows(part: FloatArray, first: int) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
    """The rows that are not 0, scaled to length 1 without overflow, and which they are."""
    largest = np.abs(part).max(axis=1)
    if not np.isfinite(largest).all():
        raise ValueError(f"G: row {first + int(np.flatnonzero(~np.isfinite(largest))[0])} is NaN or infinite")
    kept = largest > 0
    unit = part[kept] / largest[kept, None]
    unit /= np.sqrt(np.square(unit).sum(axis=1))[:, None]
    return unit, kept


# ---- log-probabilities -----------------------------------------------------------------------------------------------


def _as_tasks(log_probs: Any) -> list[tuple[str, Any]]:
    if isinstance(log_probs, Mapping):
        tasks = [(f"log_probs[{shown(task)}]", samples) for task, samples in log_probs.items()]
    elif isinstance(log_probs, (Sequence, np.ndarray)) and not isinstance(log_probs, str):
        tasks = [(f"log_probs[{b}]", samples) for b, samples in enumerate(log_probs)]
    else:
        raise TypeError(
            "log_probs: expected a mapping {task: samples} or a sequence with an entry a task, each what all models say"
            f" about its samples; got {type_name(log_probs)}"
        )
    if not tasks:
        raise ValueError("log_probs: has no tasks; expected at least one")
    return tasks


def _chunks(name: str, samples: Any) -> Iterator[tuple[npt.NDArray[Any], str]]:
    """The arrays of one task: it is one, or it yields them."""
    if hasattr(samples, "shape") or hasattr(samples, "__array__") or hasattr(samples, "__dlpack__"):
        yield as_array(name, samples)
        return
    if not isinstance(samples, Iterable) or isinstance(samples, (str, bytes, Mapping)):
        raise TypeError(f"{name}: expected an array or an iterable of arrays, got {type_name(samples)}")
    for number, chunk in enumerate(samples):
        yield as_array(f"{name}, chunk {number}", chunk)


def _as_chunk(name: str, array: npt.NDArray[Any], dtype: str, n: int, kind: str) -> npt.NDArray[Any]:
    if dtype not in ("float16", "bfloat16", "float32", "float64"):
        raise TypeError(f"{name}: dtype {dtype} is not a real floating-point type; expected log-probabilities")
    shape = f"({n}, samples)" if kind == "pmi" else f"({n}, positions, V)"
    if array.ndim != (2 if kind == "pmi" else 3) or array.shape[0] != n:
        raise ValueError(
            f"{name}: expected shape {shape} for kind {kind!r}, the first axis being the model of each of the {n}"
            f" tasks; got {array.shape}"
        )
    if kind != "pmi" and array.shape[2] == 0:
        raise ValueError(f"{name}: the vocabulary is empty, shape {array.shape}")
    return array
