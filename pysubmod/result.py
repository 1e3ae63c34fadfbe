"""What a solver returns: `Selection`, and `Status`, the reason why it stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, fields
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from ._files import PathLike, decode, encode, write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .certificate import Certificate
    from .diagnostics import Diagnosis
    from .matroid import PartitionMatroid
    from .problem import GradientMatching

__all__ = ["Selection", "Status"]

FORMAT = "pysubmod.Selection"
FORMAT_VERSION = 1
_LARGE = 8  # up to so many groups are listed one by one in a summary


class Status(str, Enum):
    """Why a selection ended. Compares equal to its own text: ``sel.status == "budget"``."""

    BUDGET = "budget"
    TOLERANCE = "tolerance"
    NO_GAIN = "no_gain"
    RANK_DEFICIENT = "rank_deficient"
    EXHAUSTED = "exhausted"
    STOPPED = "stopped"

    @property
    def explanation(self) -> str:
        """One sentence that says what the status means."""
        return _EXPLANATIONS[self.value]

    def __str__(self) -> str:
        return str(self.value)


_EXPLANATIONS = {
    "budget": "Every budget is used up.",
    "tolerance": "The residual is within the tolerance that was asked for.",
    "no_gain": "No eligible candidate would improve the objective any further.",
    "rank_deficient": "Every eligible candidate that still scores depends linearly on the picks, up to rounding.",
    "exhausted": "No eligible candidate is left: the budgets exceed what there is to pick.",
    "stopped": "The callback asked to stop.",
}


@dataclass(frozen=True, eq=False, repr=False)
class Selection:
    """The picks of a solver, their weights, and how it got there.

    Attributes
    ----------
    indices : (k,) int64 array
        Row numbers of the picks in the caller's `G`, unique, in the order in which they were picked.
    weights : (k,) float64 array
        Refitted weight of each pick (zero for a pick that the final refit does not use).
    gains : (k,) float64 array
        What each pick added to the objective; they sum to `objective` up to rounding.
    objective : float
        The objective at `weights`. Without ridge and tilt it is half of ``||t||^2 - ||residual||^2``.
    residual_norms : (k,) float64 array or None
        ``||t - G_S' w||`` after each pick. None when the target itself is unknown (a Gram matrix was given).
    counts : dict
        Number of picks of each label.
    status : Status
        Why it stopped; ``status.explanation`` says it in a sentence.
    stats : dict
        How it ran: route, device, threads, passes over `G`, number of targets that shared them, bytes read, seconds
        by phase, target norm, number of picks that only fill the budget. Of a device, its card ("cuda:0 NVIDIA H100"),
        and what formed G G' and in what type it summed (product, product_type), the launch and the memory taken.
    config : dict
        The options that it ran with, and the shape and type of the problem.

    Notes
    -----
    ``indices, weights = selection`` unpacks the two things most callers want; ``len(selection)`` is the
    number of picks. The arrays are read-only.
    """

    indices: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float64]
    gains: npt.NDArray[np.float64]
    objective: float
    residual_norms: npt.NDArray[np.float64] | None
    counts: dict[int | str, int]
    status: Status
    stats: dict[str, Any]
    config: dict[str, Any]

    # Set by `_made_from`: a class variable to the dataclass, so it is neither saved, nor compared, nor an argument.
    _origin: ClassVar[tuple[GradientMatching, PartitionMatroid, npt.NDArray[np.bool_] | None] | None] = None

    def __post_init__(self) -> None:
        put = object.__setattr__  # the dataclass is frozen
        put(self, "indices", _frozen_vector("indices", self.indices, np.int64))
        for name in ("weights", "gains", "residual_norms"):
            if name == "residual_norms" and self.residual_norms is None:
                continue
            vector = _frozen_vector(name, getattr(self, name), np.float64)
            if len(vector) != len(self.indices):
                raise ValueError(f"{name}: expected {len(self)} values, one a pick, got {len(vector)}")
            put(self, name, vector)
        put(self, "objective", float(self.objective))
        put(self, "counts", {_plain_label(label): int(count) for label, count in dict(self.counts).items()})
        put(self, "status", Status(self.status))
        put(self, "stats", dict(self.stats))
        put(self, "config", dict(self.config))

    def __iter__(self) -> Iterator[npt.NDArray[Any]]:
        yield self.indices
        yield self.weights

    def __len__(self) -> int:
        return len(self.indices)

    def __reduce__(self) -> tuple[Any, ...]:
        # Through the constructor, so that the arrays of a copy or an unpickled selection are read-only too.
        return type(self), tuple(getattr(self, field.name) for field in fields(self))

    def __repr__(self) -> str:
        return f"<Selection: {len(self)} picks, objective {self.objective:.6g}, status {self.status.value!r}>"

    def __str__(self) -> str:
        lines = [self._headline(), f"  status     {self.status}: {self.status.explanation}"]
        lines.append(f"  objective  {self.objective:.6g}{self._residual_text()}")
        if len(self.counts) > 1:
            lines.append(f"  picks      {self._counts_text()}")
        ran = [str(self.stats[name]) for name in ("device", "route") if self.stats.get(name) is not None]
        if self.stats.get("threads"):
            ran.append(f"{self.stats['threads']} thread{'s' * (self.stats['threads'] != 1)}")
        total = (self.stats.get("seconds") or {}).get("total")
        if total is not None:
            ran.append(f"{total * 1e3:.3g} ms" if total < 1 else f"{total:.3g} s")
        if ran:
            lines.append(f"  ran on     {', '.join(ran)}")
        return "\n".join(lines)

    def _headline(self) -> str:
        used = int(np.count_nonzero(self.weights))
        text = f"Selection of {len(self)} candidate{'s' * (len(self) != 1)}, {used} with a nonzero weight"
        filled = self.stats.get("n_filled") or 0
        return text + (f" ({filled} only fill the budgets)" if filled else "")

    def _residual_text(self) -> str:
        relative = self.relative_residuals
        if relative is None or len(relative) == 0:
            return ""
        return f"   residual {relative[-1]:.4g} of the target's norm"

    def _counts_text(self) -> str:
        parts = [f"{label} {count}" for label, count in self.counts.items()]
        if len(parts) > _LARGE:
            parts = [*parts[: _LARGE - 1], f"... ({len(self.counts)} groups)"]
        return ", ".join(parts)

    @property
    def relative_residuals(self) -> npt.NDArray[np.float64] | None:
        """`residual_norms` over the target's norm, or None where either is unknown or the target is zero."""
        norm = self.stats.get("target_norm")
        if self.residual_norms is None or not norm:
            return None
        return self.residual_norms / float(norm)

    def sample_weight(self, n: int) -> npt.NDArray[np.float64]:
        """The weights as one float64 vector over all `n` candidates, zero off the picks.

        Parameters
        ----------
        n : int
            Number of candidates (rows of `G`).

        Returns
        -------
        (n,) float64 array
            What scikit-learn's ``fit(..., sample_weight=...)`` takes.

        Raises
        ------
        TypeError
            `n` is not an integer.
        ValueError
            `n` is too small to hold the picks.
        """
        if isinstance(n, bool | np.bool_) or not isinstance(n, int | np.integer):
            raise TypeError(f"n: expected an integer, the number of candidates, got {type(n).__name__}")
        need = int(self.indices.max()) + 1 if len(self) else 0
        if n < need:
            raise ValueError(f"n: expected at least {need}, as row {need - 1} is among the picks, got {n}")
        full = np.zeros(int(n))
        full[self.indices] = self.weights
        return full

    def save(self, path: PathLike) -> None:
        """Write the selection to `path` as JSON, whole or not at all.

        Floats are written so that they come back bit for bit; int and str labels stay apart. Nothing is
        pickled.

        Raises
        ------
        OSError
            The file cannot be written; an older file of that name is then untouched.
        """
        write_atomic(path, self.to_json().encode())

    def to_json(self) -> str:
        """The text that `save` writes."""
        from . import __version__

        residuals = None if self.residual_norms is None else encode(self.residual_norms.tolist())
        document = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "pysubmod_version": __version__,
            "status": self.status.value,
            "objective": encode(self.objective),
            "counts": [[label, count] for label, count in self.counts.items()],
            "indices": self.indices.tolist(),
            "weights": encode(self.weights.tolist()),
            "gains": encode(self.gains.tolist()),
            "residual_norms": residuals,
            "stats": encode(self.stats),
            "config": encode(self.config),
        }
        # One key a line: short enough to read, and a diff shows which part changed.
        lines = [f'  "{key}": {json.dumps(item, allow_nan=False)}' for key, item in document.items()]
        return "{\n" + ",\n".join(lines) + "\n}\n"

    @classmethod
    def load(cls, path: PathLike) -> Selection:
        """Read a selection that `save` wrote.

        Raises
        ------
        OSError
            The file cannot be read.
        ValueError
            It is not a saved selection, is damaged, or comes from a newer pysubmod.
        """
        name = os.fspath(path)
        with open(path, "rb") as file:
            data = file.read()
        try:
            document = json.loads(data)
        except ValueError as error:
            raise ValueError(f"path: {name!r} is not a saved selection (not JSON: {error})") from None
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise ValueError(f'path: {name!r} is not a saved selection (no "format": "{FORMAT}" in it)')
        version = document.get("format_version")
        if version != FORMAT_VERSION:
            raise ValueError(
                f"path: {name!r} has format version {version!r}; this pysubmod reads version "
                f"{FORMAT_VERSION} (written by pysubmod {document.get('pysubmod_version')})"
            )
        try:
            values = {field.name: decode(document[field.name]) for field in fields(cls)}
            values["counts"] = {label: count for label, count in values["counts"]}
            return cls(**values)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"path: {name!r} is a damaged selection file ({error!r})") from None

    def _made_from(
        self,
        problem: GradientMatching,
        matroid: PartitionMatroid,
        candidates: npt.NDArray[np.bool_] | None,
        method: str | None = None,
    ) -> Selection:
        """Remember what was solved, for `certify` and `diagnose`; not saved, pickled or copied with the selection.

        A `method` is written into its `config`, first, unless it has one. For the maker of a selection alone.
        """
        if method is not None:
            object.__setattr__(self, "config", {"method": method} | self.config)
        object.__setattr__(self, "_origin", (problem, matroid, candidates))
        return self

    def _known_origin(self, asked: str) -> tuple[GradientMatching, PartitionMatroid, npt.NDArray[np.bool_] | None]:
        if self._origin is None:
            raise ValueError(
                f"{asked}: this selection was loaded or copied and does not know its problem; "
                f"use pysubmod.{asked}(problem, matroid, selection)"
            )
        return self._origin

    def certify(self, **options: Any) -> Certificate:
        """Prove how close to optimal this selection is; the options are those of `pysubmod.certify`.

        Raises
        ------
        ValueError
            The selection was loaded, copied or made by hand: it does not know its problem. Use
            ``pysubmod.certify(problem, matroid, selection)``.
        """
        from .certificate import certify

        problem, matroid, candidates = self._known_origin("certify")
        return certify(problem, matroid, self, **({"candidates": candidates} | options))

    def diagnose(self, **options: Any) -> Diagnosis:
        """Report how far this selection can be trusted; the options are those of `pysubmod.diagnose`.

        Raises
        ------
        ValueError
            The selection was loaded, copied or made by hand: it does not know its problem. Use
            ``pysubmod.diagnose(problem, matroid, selection)``.
        """
        from .diagnostics import diagnose

        problem, matroid, candidates = self._known_origin("diagnose")
        return diagnose(problem, matroid, self, **({"candidates": candidates} | options))

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the relative residual against the number of picks and, beside it, the picks of each group.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Where to draw; the panel of the groups is cut from its right side. Default: a new figure.

        Returns
        -------
        matplotlib Axes
            The axes of the residual curve (its ``figure`` has ``savefig``).

        Raises
        ------
        ImportError
            Matplotlib is not installed; the message says how to get it.
        """
        from .plot import plot_selection

        return plot_selection(self, ax)


def _frozen_vector(name: str, values: Any, dtype: type) -> npt.NDArray[Any]:
    """A read-only copy of `values`: nobody who holds the original can change the result."""
    given = np.asarray(values)
    if dtype is np.int64 and given.size and given.dtype.kind not in "iu":
        raise ValueError(f"{name}: expected integers, got {given.dtype}")
    vector: npt.NDArray[Any] = np.array(given, dtype=dtype)
    if vector.ndim != 1:
        raise ValueError(f"{name}: expected one dimension, got shape {vector.shape}")
    vector.flags.writeable = False
    return vector


def _plain_label(label: Any) -> int | str:
    """A group label as a plain int or str (NumPy scalars come from np.unique)."""
    if type(label) is int or type(label) is str:
        return label
    if isinstance(label, int | np.integer) and not isinstance(label, bool):
        return int(label)
    return str(label)
