"""The methods of the literature as selectors, each with the settings of its paper."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .._validation import as_choice
from ._layers import unwrapped
from ._targets import Targets
from ._updates import update_products
from .optimizer_view import optimizer_view
from .per_sample import PerSampleGradients
from .selectors import BatchSelector

__all__ = ["FilterThenWeight", "GradMatch", "Greats", "PartitionSel", "RandomSelector", "TopK"]

Loss = Callable[[Any, Any], Any]


class PartitionSel(BatchSelector):
    """PartitionSel (arXiv 2606.07954): draws from the shortlists of all groups, weights that only steer the picks.

    Gradients of length 1, the mean of 4 validation gradients as the target, budgets proportional to the pool's groups.
    The paper's weights w enter as ``v = eta * w``: the utility is the same number, and any eta down to 0 is harmless.
    Batches are trained on with uniform weights; ``selection.weights`` are v.

    Parameters
    ----------
    compute_loss, **options
        As of `BatchSelector`, but method, weights, unit_norm and tilt.
    eta : float, or callable without arguments
        The learning rate, such as ``lambda: optimizer.param_groups[0]["lr"]``.
    validation
        As of `BatchSelector`; required.
    ranking : {"relu", "signed"}
        Of candidates that do not help: "relu" as in the paper, "signed" as in its released code.
    """

    def __init__(
        self,
        compute_loss: Loss,
        *,
        eta: float | Callable[[], float],
        validation: Any,
        ranking: str = "relu",
        **options: Any,
    ) -> None:
        _fixed("PartitionSel", options, "method", "weights", "unit_norm", "tilt")
        if validation is None:
            raise TypeError("validation: PartitionSel matches validation gradients; give batches of them")
        super().__init__(
            compute_loss, method="partition-sel", weights="uniform", unit_norm=True, tilt=eta, ranking=ranking,
            validation=validation, **options,
        )  # fmt: skip


class FilterThenWeight(BatchSelector):
    """Filter-then-Weight (arXiv 2604.00001): picks whose weighted *updates* add up to a desired one.

    A gradient g is worth ``D g`` to the optimizer's next step (`optimizer_view`). Stage 1 filters greedily by
    redundancy-aware gain; stage 2 fits the exact weights >= 0 of the survivors, to be used in the loss.

    Parameters
    ----------
    compute_loss, **options
        As of `BatchSelector`, but method, unit_norm and tilt.
    optimizer : torch.optim.SGD, Adam or AdamW
        The one of the loop, read at each step and never changed; its parameters include those of `layers`.
    rule : {"omp-normalized", "greedy"}
        Of stage 1: the correlation with what is missing over the update's length, or the exact gain.
    at : {"pool", "target"}
        At which mean gradient Adam's second moment is taken. Without one, D would be ``1 / eps`` wherever the moment is
        0 (in the first step everywhere). The gradient of a balanced target is no longer of a gradient's size: "pool".
    momentum : {"kept", "corrected"}
        The desired update u for a validation gradient v: "kept", ``u = a + D v``, the step v would make, whose target
        ``u - a`` is D v; "corrected", ``u = D v``: the picks also undo the momentum and the decays, a.
    variant : {"torch", "frozen", "less"}
        As of `optimizer_view`; "frozen" takes no `at`.
    """

    def __init__(
        self,
        compute_loss: Loss,
        *,
        optimizer: torch.optim.Optimizer,
        rule: str = "omp-normalized",
        at: str = "pool",
        momentum: str = "kept",
        variant: str = "torch",
        **options: Any,
    ) -> None:
        _fixed("FilterThenWeight", options, "method", "unit_norm", "tilt")
        self._optimizer, self._variant = optimizer, variant
        self._at = as_choice("at", at, ("pool", "target"))
        self._momentum = as_choice("momentum", momentum, ("kept", "corrected"))
        optimizer_view(optimizer, [], variant)  # its errors now rather than in the loop
        super().__init__(compute_loss, method=as_choice("rule", rule, ("omp-normalized", "greedy")), **options)

    def _products(
        self, model: nn.Module, pool: PerSampleGradients, targets: Targets
    ) -> tuple[Tensor, Tensor, list[float]]:
        parameters = dict(unwrapped(model).named_parameters())
        inner = self._optimizer
        while isinstance(further := getattr(inner, "optimizer", None), torch.optim.Optimizer):
            inner = further
        at = None
        parts = list(targets.values())
        if not isinstance(inner, torch.optim.SGD) and self._variant != "frozen":
            if self._at == "pool":
                at = pool.mean(self._dtype)
            else:  # those of groups are parts of their mean
                at = {name: torch.stack([part[name] for part in parts]).sum(0) for name in pool.shapes}
        view = optimizer_view(inner, {name: parameters[name] for name in pool.shapes}, self._variant, at=at)
        return update_products(pool, parts, view, momentum=self._momentum, dtype=self._dtype)


class GradMatch(BatchSelector):
    """GRAD-MATCH (ICML 2021): orthogonal matching pursuit with weights >= 0; may stop short of the budgets.

    Parameters are those of `BatchSelector` but method; `ridge` is the paper's lambda, ``eps=`` its tolerance.
    """

    def __init__(self, compute_loss: Loss, **options: Any) -> None:
        _fixed("GradMatch", options, "method")
        super().__init__(compute_loss, method="grad-match", **options)


class Greats(BatchSelector):
    """GREATS (NeurIPS 2024): the largest score, less eta times the overlap with the picks; uniform weights.

    Parameters are those of `BatchSelector` but method and tilt, and `eta`: the learning rate of a step on the *sum* of
    the picks, a number or a function without arguments. 0, the default, stands for one over the number of picks. When
    the overlap changed nothing ``diagnostics["equals_top_k"]`` says so: with small rates that is the rule.
    """

    def __init__(self, compute_loss: Loss, *, eta: float | Callable[[], float] = 0.0, **options: Any) -> None:
        _fixed("Greats", options, "method", "tilt")
        super().__init__(compute_loss, method="greats", tilt=eta, **options)


class TopK(BatchSelector):
    """The largest inner products with the target within the budgets; with ``normalize=True`` cosines.

    Parameters are those of `BatchSelector` but method.
    """

    def __init__(self, compute_loss: Loss, **options: Any) -> None:
        _fixed("TopK", options, "method")
        super().__init__(compute_loss, method="top-k", **options)


class RandomSelector(BatchSelector):
    """Uniform draws within the budgets; gradients are looked at for diagnostics only, if there is a `compute_loss`.

    Parameters are those of `BatchSelector` but method.
    """

    def __init__(self, compute_loss: Loss | None = None, **options: Any) -> None:
        _fixed("RandomSelector", options, "method")
        super().__init__(compute_loss, method="random", **options)


def _fixed(what: str, options: dict[str, Any], *names: str) -> None:
    for name in names:
        if name in options:
            raise TypeError(f"{name}: is what {what} says; leave it out, or use BatchSelector")
