"""Which rows of a pool to train on in this step: selectors for any training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from .._random import as_seed, random_bits
from .._validation import as_choice, as_flag, as_scalar, is_integer, shown, type_name
from ..certificate import certify
from ..problem import GradientMatching
from ..solvers import ON_DEVICE, available_methods, solve
from ._batches import Groups, budgets_of, labels_of, take_rows, without_column
from ._layers import Layers
from ._selected import SelectedBatch, check_finite, matching
from ._targets import Targets, ValidationSource, anchor_rows, length_of, targets_of
from .per_sample import PerSampleGradients, per_sample_gradients

__all__ = ["BatchSelector", "SelectedBatch"]

_FILLING = ("omp", "omp-normalized", "greedy", "residual-random")  # which fill when told to
_UNIFORM = ("partition-sel", "greats", "divbs", "top-k", "top-k-per-group", "random", "random-per-group")
BLIND = ("random", "random-per-group")  # methods that look at no gradients
_ANCHORS = 1 << 41  # the stream of their masks
_STATE = ("version", "seed", "step", "target_step", "position", "target")


class BatchSelector:
    """Select rows of a pool whose gradients match a target, before each step of a training loop.

    The loop's ``.grad``, optimizer and random states are not touched (`per_sample_gradients`). Selections are
    repeatable: they depend on `random_state`, the number of the call, and the arguments. Under DDP every rank selects
    from its own pool.

    Parameters
    ----------
    compute_loss : callable
        As `per_sample_gradients` takes it. It is given batches without the column of `groups`. None for random methods
        is no look at gradients, and no diagnostics of them.
    method : str
        Of `pysubmod.solve`. Pursuits are told to fill the budgets, so that batches have one size.
    ratio, size : float in (0, 1], or int
        How much of the pool to select, one of the two: ``floor(ratio * n)`` rows, at least 1; or `size` of them.
    budgets : "proportional", "balanced", mapping {label: int}, or None
        Proportional to the pool's groups, rounded down; or equal; then 1 more for the smallest budgets (of groups with
        rows left) until the total fits. A mapping stands instead of ratio and size. None: no budgets by group.
    groups : str, int or callable, optional
        The labels, integers or strings: the name of a column (its place, of a tuple), or a function of the batch. A
        column is for the selector alone: neither `compute_loss` nor the selected batch has it.
    validation : batch, callable or iterable, optional
        Where the target comes from: one batch (a tensor, mapping or tuple); a function of the step's number that gives
        one; or an iterable of batches, a list or DataLoader, begun anew when it ends. None: the pool itself.
    anchors : int or None, default 4
        Rows drawn from the validation batch for each target (of each group, if balanced); None takes all.
    target : {"mean", "balanced", "per-group"}
        The mean gradient of the anchors; or the mean over their groups of each one's mean gradient scaled to length 1,
        so that no group is drowned. The latter's length is at most 1, and fitted weights follow: with an optimizer that
        minds the scale, use ``weights="normalized"``. "per-group": rows match the mean gradient of their own group
        (divided by the number of groups), ``sum_p ||t_p - sum_{i in p} w_i g_i||^2``; rows of different groups then
        do not interact, and every group of a pool needs validation rows.
    refresh : int, default 1
        Make a new target every so many steps; a target some steps old can be worse than random picks.
    weights : {"fitted", "normalized", "uniform"}, optional
        The solver's weights >= 0 for the rows' own gradients; the same scaled to sum 1 (zeros stay zeros); or 1/k.
        Default: uniform for partition-sel, greats, divbs, top-k and random, else fitted. With
        ``reduction="token-mean"`` all of them are divided by the pool's mean number of tokens: they multiply sums.
    layers, reduction, micro_batch, eval_mode, loss_scale
        Those of `per_sample_gradients`; loss_scale may be a function without arguments.
    unit_norm : bool
        Match gradients (also the anchors') scaled to length 1. Fitted weights are those of the unscaled losses.
    ridge : float
    tilt : float or callable
        Of `GradientMatching`; a function without arguments is asked at each step.
    dtype : torch.float64 or torch.float32
        In which products are made.
    certified : bool
        Add ``diagnostics["certified_share"]``: the selection's objective is proved to be at least this share of the
        largest that the budgets allow (`certify`, its first and cheapest bound).
    random_state : int, NumPy Generator or RandomState, optional
        None draws a seed, which `state_dict` holds.
    **options
        Of the method.

    Raises
    ------
    TypeError, ValueError
        Naming the argument.
    """

    def __init__(
        self,
        compute_loss: Callable[[Any, Any], Any] | None,
        *,
        method: str = "omp-normalized",
        ratio: float | None = None,
        size: int | None = None,
        budgets: Any = "proportional",
        groups: Groups = None,
        validation: Any = None,
        anchors: int | None = 4,
        target: str = "mean",
        refresh: int = 1,
        weights: str | None = None,
        layers: Layers = None,
        reduction: str = "sum",
        micro_batch: int | None = None,
        eval_mode: bool = False,
        loss_scale: float | Callable[[], float] = 1.0,
        unit_norm: bool = False,
        ridge: float = 0.0,
        tilt: float | Callable[[], float] = 0.0,
        dtype: torch.dtype = torch.float64,
        certified: bool = False,
        random_state: Any = None,
        **options: Any,
    ) -> None:
        self.method = as_choice("method", method, available_methods())
        if compute_loss is None and method not in BLIND:
            raise TypeError(f"compute_loss: {method!r} looks at gradients; only random methods do without")
        if compute_loss is not None and not callable(compute_loss):
            raise TypeError(f"compute_loss: expected a function of model and batch, got {type_name(compute_loss)}")
        if isinstance(budgets, Mapping):
            if ratio is not None or size is not None:
                raise ValueError("ratio, size: a mapping of budgets says how many; leave them out")
        elif (ratio is None) == (size is None):
            raise ValueError("ratio, size: give one of them (or a mapping of budgets)")
        if ratio is not None and not 0 < as_scalar("ratio", ratio) <= 1:
            raise ValueError(f"ratio: expected a number above 0 and at most 1, got {shown(ratio)}")
        for name, count in {"size": size, "anchors": anchors, "refresh": refresh}.items():
            if (count is None and name == "refresh") or (count is not None and not (is_integer(count) and count >= 1)):
                raise ValueError(f"{name}: expected an integer of at least 1, got {shown(count)}")
        if not isinstance(budgets, Mapping):
            if budgets is not None:
                as_choice("budgets", budgets, ("proportional", "balanced"))
        elif groups is None:
            raise ValueError("groups: missing; budgets by group need the label of each row")
        self._loss, self._ratio, self._size, self._budgets, self._groups = compute_loss, ratio, size, budgets, groups
        self._source = None if validation is None else ValidationSource(validation)
        if validation is None and refresh != 1:
            raise ValueError("refresh: without validation the target is the pool's own, new at every step")
        self._kind = as_choice("target", target, ("mean", "balanced", "per-group"))
        if self._kind != "mean" and groups is None:
            raise ValueError(f"groups: missing; target={target!r} needs the label of each row")
        self._anchors, self._refresh = anchors, refresh
        default = "uniform" if method in _UNIFORM else "fitted"
        self.weights = as_choice(
            "weights", default if weights is None else weights, ("fitted", "normalized", "uniform")
        )
        if compute_loss is None and self.weights != "uniform":
            raise ValueError(f"weights: {self.weights!r} ones are fitted to gradients; give compute_loss")
        self._capture: dict[str, Any] = {
            "layers": layers, "reduction": reduction, "micro_batch": micro_batch, "eval_mode": eval_mode,
        }  # fmt: skip
        self._loss_scale = loss_scale
        self._unit_norm, self._certified = as_flag("unit_norm", unit_norm), as_flag("certified", certified)
        self._ridge, self._tilt, self._dtype = ridge, tilt, dtype
        for name in ("candidates", "initial", "device"):
            if name in options:
                raise TypeError(f"{name}: is not an option of a selector, whose pools change")
        base = options.get("base", "omp-normalized") if method == "per-group" else method
        self._options = {"fill": True} | options if base in _FILLING else options
        solve(GradientMatching.from_gram([[1.0]], [1.0], target_norm=1.0), 1, method, random_state=0, **self._options)
        self._seed, self._step = as_seed(random_state), 0
        self._target: Targets | None = None
        self._target_step = 0

    def select(self, model: nn.Module, pool_batch: Any) -> SelectedBatch:
        """Select from a pool.

        Parameters
        ----------
        model : nn.Module
            As it stands before the step; it is not changed.
        pool_batch : tensor, mapping or tuple of columns
            Tensors, arrays and lists with a sample in each row. Strings, flags and None are passed on.

        Returns
        -------
        SelectedBatch
        """
        started = time.perf_counter()
        labels = labels_of(pool_batch, self._groups)
        n = len(labels)
        size = self._size if self._ratio is None else max(1, int(self._ratio * n + 1e-9))
        matroid = budgets_of(labels, self._budgets, size)
        batch = without_column(pool_batch, self._groups)
        seed = int(random_bits(self._seed, self._step)) & (2**63 - 1)
        pool, device = None, torch.device("cpu")
        if self._loss is None:
            problem = GradientMatching.from_gram(np.eye(n), np.zeros(n))
        else:
            pool = self._gradients(model, batch, seed)
            if pool.n != n:
                raise ValueError(f"compute_loss: returned {pool.n} losses for a pool of {n} rows")
            check_finite(pool.losses, "loss", "the pool")
            device = pool.losses.device
            problem = self._problem(model, pool, self._current_target(model, pool, labels, seed), labels)
        if self.method not in ON_DEVICE:
            problem = problem.cpu()
        captured = time.perf_counter()
        selection = solve(problem, matroid, self.method, random_state=seed, **self._options)
        selected = time.perf_counter()
        if not len(selection):
            raise RuntimeError(
                f"method: {self.method!r} picked nothing from this pool (status {str(selection.status)!r}); a method "
                "that fills the budgets always does, such as 'omp'"
            )
        order = np.argsort(selection.indices)
        rows = selection.indices[order]
        scale = np.ones(n) if pool is None or pool._scale is None else pool._scale.cpu().numpy()
        divisor = 1.0 if pool is None else pool.divisor
        weights = self._weights_of(selection.weights[order] * scale[rows] * divisor) / divisor
        report = {} if pool is None else matching(problem, rows, weights, scale, selection)
        diagnostics = {"relative_residual": None, "cosine": None, "conflicts": None} | report
        names, counts = np.unique(labels, return_inverse=True)
        counts = np.bincount(counts.ravel()[rows], minlength=len(names))
        diagnostics |= {"counts": dict(zip(names.tolist(), counts.tolist(), strict=True))}
        diagnostics |= {"status": str(selection.status), "step": self._step}
        diagnostics |= {"staleness": self._step - self._target_step if self._target is not None else 0}
        diagnostics |= {"seconds_capture": captured - started, "seconds_select": selected - captured}
        if "equals_top_k" in selection.stats:
            diagnostics["equals_top_k"] = selection.stats["equals_top_k"]
        if self._certified and pool is not None:
            found = certify(problem.cpu(), matroid, selection, method="one-shot")
            diagnostics |= {"certified_share": found.ratio, "seconds_certify": found.seconds}
        self._step += 1
        return SelectedBatch(
            batch=take_rows(batch, rows.tolist()),
            indices=torch.from_numpy(rows.copy()),
            weights=torch.from_numpy(weights).to(device, torch.float32),
            groups=labels[rows],
            diagnostics=diagnostics,
            selection=selection,
        )

    def state_dict(self) -> dict[str, Any]:
        """All that later picks depend on, beside the arguments: integers, and the target if it will be used again.

        An iterable of validation batches must give the same ones again (a shuffled DataLoader does not).
        """
        kept = self._target is not None and self._refresh > 1
        return {
            "version": 1,
            "seed": self._seed,
            "step": self._step,
            "target_step": self._target_step,
            "position": 0 if self._source is None else self._source.position,
            "target": dict(self._target) if kept and self._target is not None else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        if set(state) != set(_STATE) or state["version"] != 1:
            raise ValueError(f"state: expected what state_dict() gives ({', '.join(_STATE)}); got {shown(list(state))}")
        self._seed, self._step, self._target_step = (
            as_seed(state["seed"]),
            int(state["step"]),
            int(state["target_step"]),
        )
        self._target = None if state["target"] is None else dict(state["target"])
        if self._source is not None:
            self._source.seek(int(state["position"]))

    def _gradients(self, model: nn.Module, batch: Any, seed: int) -> PerSampleGradients:
        assert self._loss is not None
        scale = self._loss_scale() if callable(self._loss_scale) else self._loss_scale
        # Masks of dropout that the loop's random state has no part in, so that a restored loop draws them again.
        devices = sorted({parameter.device.index for parameter in model.parameters() if parameter.is_cuda})
        with torch.random.fork_rng(devices):
            for generator in [torch.default_generator, *(torch.cuda.default_generators[i] for i in devices)]:
                generator.manual_seed(seed)  # torch.manual_seed would seed the other devices as well
            found = per_sample_gradients(model, self._loss, batch, loss_scale=scale, **self._capture)
        return found.normalized() if self._unit_norm else found

    def _current_target(
        self, model: nn.Module, pool: PerSampleGradients, labels: npt.NDArray[Any], seed: int
    ) -> Targets:
        if self._source is None:
            return targets_of(pool, labels, self._kind, self._dtype)
        if self._target is None or self._step - self._target_step >= self._refresh:
            batch = self._source.next(self._step)
            grouped = self._kind != "mean"
            labels = labels_of(batch, self._groups if grouped else None, "groups (of validation)")
            rows = anchor_rows(labels, self._anchors, grouped, seed)
            other = int(random_bits(seed, _ANCHORS)) & (2**63 - 1)  # or rows of the pool would share the anchors' masks
            gradients = self._gradients(model, take_rows(without_column(batch, self._groups), rows), other)
            check_finite(gradients.losses, "loss", "the anchors")
            self._target = targets_of(gradients, labels[rows], self._kind, self._dtype)
            self._target_step = self._step
        return self._target

    def _problem(
        self, model: nn.Module, pool: PerSampleGradients, targets: Targets, labels: npt.NDArray[Any]
    ) -> GradientMatching:
        K, scores, norms = self._products(model, pool, targets)
        check_finite(K.diagonal(), "gradient", "the pool")
        check_finite(torch.tensor(norms), "gradient", "the target")
        if self._kind == "per-group":
            if absent := set(labels.tolist()) - set(targets):
                raise ValueError(
                    f"validation: has no row of group {min(absent)!r}, which is in the pool; target='per-group' needs "
                    "rows of every group"
                )
            member = torch.from_numpy(labels[:, None] == np.array(list(targets))).to(K.device)
            same = torch.from_numpy(labels[:, None] == labels).to(K.device)
            K, scores = K * same, (scores * member).sum(1, keepdim=True)
        tilt = self._tilt() if callable(self._tilt) else self._tilt
        return GradientMatching.from_gram(
            K.to(self._dtype), scores[:, 0].contiguous(), ridge=self._ridge, tilt=tilt, target_norm=math.hypot(*norms)
        )

    def _products(
        self, model: nn.Module, pool: PerSampleGradients, targets: Targets
    ) -> tuple[Tensor, Tensor, list[float]]:
        """K (n, n), the products with each target (n, m), and the targets' lengths."""
        parts = list(targets.values())
        scores = torch.stack([pool.dot(target, self._dtype) for target in parts], 1)
        return pool.gram(self._dtype), scores, [length_of(target) for target in parts]

    def _weights_of(self, fitted: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        if self.weights == "uniform":
            return np.full(len(fitted), 1 / len(fitted))
        total = float(fitted.sum())
        return fitted / total if self.weights == "normalized" and total > 0 else fitted
