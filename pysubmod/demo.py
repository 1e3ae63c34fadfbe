"""`pysubmod demo`: a selection on real gradients beside the simple ways of choosing."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .datasets import DemoData, load_demo

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

# The band of the picture: so many of the random draws (the table uses all), at so many sizes at most.
CURVE_DRAWS, CURVE_POINTS = 100, 32


@dataclass(frozen=True, eq=False)
class Score:
    """How well one batch matches the target, with one common weight and with its own best weights w >= 0.

    `domain_cosines` compares the weighted batch (best w >= 0) with each domain's own validation gradient.
    """

    uniform_residual: float
    uniform_cosine: float
    refit_residual: float
    refit_cosine: float
    conflicts: int
    domain_cosines: FloatArray


@dataclass(frozen=True, eq=False)
class Method:
    """One way of choosing, and what came of it.

    `curve` is the residual after each pick with the weights refitted each time; `shares` is each pick's part
    ``w_i <g_i, t> / ||t||^2`` in the match (they sum to the squared refit cosine).
    """

    key: str
    name: str
    picks: IntArray
    score: Score
    curve: FloatArray
    shares: FloatArray
    seconds: float


@dataclass(frozen=True, eq=False)
class Comparison:
    """Everything the table and the picture of the demo show."""

    k: int
    n: int
    d: int
    rule: str
    budgets: dict[str, int]
    domains: list[str]
    groups: npt.NDArray[np.str_]
    methods: list[Method]
    random: list[Score]
    random_steps: IntArray
    random_curves: FloatArray
    random_seconds: float
    floor: float


class _Judge:
    """Scores batches of one problem. Residuals and cosines are relative to the target's norm."""

    def __init__(self, data: DemoData) -> None:
        from . import GradientMatching

        rows = np.asarray(data.gradients, dtype=np.float64)
        validation = np.asarray(data.validation, dtype=np.float64)
        self.norm = float(np.linalg.norm(data.target))
        self.scores = rows @ data.target
        self.gram = rows @ rows.T
        self.domain_scores = rows @ (validation / np.linalg.norm(validation, axis=1, keepdims=True)).T
        # Thousands of small batches of the same rows: their inner products are made once.
        self.problem = GradientMatching.from_gram(self.gram, self.scores, target_norm=self.norm)

    def weights(self, picks: IntArray) -> FloatArray:
        """The best weights w >= 0."""
        return np.asarray(self.problem.weights(picks), dtype=np.float64)

    def shares(self, picks: IntArray) -> FloatArray:
        return self.weights(picks) * self.scores[picks] / self.norm**2

    def residual(self, picks: IntArray) -> float:
        return float(self.problem.residual_norm(picks) or 0.0) / self.norm

    def curve(self, picks: IntArray, steps: IntArray) -> FloatArray:
        """The residual of the first j picks for each j in `steps`, the weights refitted each time."""
        return np.array([self.residual(picks[:j]) for j in steps])

    def score(self, picks: IntArray) -> Score:
        gram, scores = self.gram[np.ix_(picks, picks)], self.scores[picks]
        weights = self.weights(picks)
        uniform_cosine = self._cosine(np.ones(len(picks)), gram, scores)
        refit_cosine = self._cosine(weights, gram, scores)
        length = float(np.sqrt(weights @ gram @ weights))
        domains = weights @ self.domain_scores[picks] / (length if length > 0 else 1.0)
        conflicts = int(np.triu(gram < 0, 1).sum())
        # The best common factor is >= 0 (a batch that points away from t is best left out), and at the best
        # weights, or factor, the residual is orthogonal to the fit: a cosine and a residual make one right triangle.
        uniform, refit = (float(np.sqrt(max(1.0 - max(c, 0.0) ** 2, 0.0))) for c in (uniform_cosine, refit_cosine))
        return Score(uniform, uniform_cosine, refit, refit_cosine, conflicts, domains)

    def _cosine(self, weights: FloatArray, gram: FloatArray, scores: FloatArray) -> float:
        length = float(np.sqrt(weights @ gram @ weights))
        return float(weights @ scores) / (length * self.norm) if length > 0 else 0.0


def equal_budgets(k: int, domains: tuple[str, ...]) -> dict[str, int]:
    """`k` picks over the domains as evenly as integers allow; the first ones get what is left over."""
    base, extra = divmod(k, len(domains))
    return {domain: base + (i < extra) for i, domain in enumerate(domains)}


def _best_first(scores: FloatArray) -> IntArray:
    return np.argsort(-scores, kind="stable").astype(np.int64)


def top_k(scores: FloatArray, k: int) -> IntArray:
    """The k best-scoring candidates, whatever their domain."""
    return _best_first(scores)[:k]


def per_domain_top_k(scores: FloatArray, groups: npt.NDArray[np.str_], budgets: Mapping[str, int]) -> IntArray:
    """The best of each domain, in rounds: the best one of every domain first, then the second best ones."""
    ranked = []
    for domain, budget in budgets.items():
        order = _best_first(np.where(groups == domain, scores, -np.inf))[:budget]
        ranked += [(rank, -scores[i], int(i)) for rank, i in enumerate(order)]
    return np.array([i for _, _, i in sorted(ranked)], dtype=np.int64)


def random_draw(rng: np.random.Generator, groups: npt.NDArray[np.str_], budgets: Mapping[str, int]) -> IntArray:
    """A batch drawn uniformly among those that use up the budgets, in random order."""
    parts = [rng.choice(np.flatnonzero(groups == name), size, replace=False) for name, size in budgets.items()]
    return rng.permutation(np.concatenate(parts)).astype(np.int64)


def _timed(call: Callable[[], Any], repeats: int = 5) -> tuple[Any, float]:
    """The result and the shortest of a few wall times: the first call pays for cold caches."""
    best = np.inf
    for _ in range(repeats):
        start = time.perf_counter()
        result = call()
        best = min(best, time.perf_counter() - start)
    return result, float(best)


def compare(
    k: int = 32, *, draws: int = 1000, seed: int = 0, rule: str = "omp", data: DemoData | None = None
) -> Comparison:
    """Run pysubmod and the simple methods on the shipped gradients.

    Parameters
    ----------
    k : int
        Number of picks, spread evenly over the eight domains.
    draws : int
        Random batches under the same budgets.
    seed : int
        Of the random batches; the other methods have nothing random.
    rule : {"omp", "normalized"}
        "omp" scores a candidate by ``<g_i, r>``, "normalized" by ``<g_i, r> / ||g_i||``; top-k uses the same
        score with the target in place of the residual `r`.
    data : DemoData, optional
        Default: `load_demo()`.

    Returns
    -------
    Comparison

    Raises
    ------
    ValueError
        `k`, `draws` or `rule` is out of range.
    """
    from . import omp_partition

    data = load_demo() if data is None else data
    n, d = data.gradients.shape
    _check(k, draws, rule, data)
    budgets = equal_budgets(k, data.domains)
    judge = _Judge(data)

    def scores() -> FloatArray:
        rows = data.gradients.astype(np.float64)
        return rows @ data.target / (np.linalg.norm(rows, axis=1) if rule == "normalized" else 1.0)

    def method(key: str, name: str, choose: Callable[[], IntArray]) -> Method:
        picks, seconds = _timed(choose)
        return Method(
            key, name, picks, judge.score(picks), judge.curve(picks, np.arange(1, k + 1)), judge.shares(picks), seconds
        )

    word = "cosine" if rule == "normalized" else "score <g, t>"
    methods = [
        method(
            "pysubmod",
            "pysubmod",
            lambda: omp_partition(data.gradients, data.target, budgets, groups=data.groups, rule=rule).indices,
        ),
        method("top-k", f"top-k by {word}", lambda: top_k(scores(), k)),
        method(
            "per-domain top-k",
            f"per-domain top-k by {word}",
            lambda: per_domain_top_k(scores(), data.groups, budgets),
        ),
    ]
    steps = np.unique(np.linspace(1, k, min(k, CURVE_POINTS)).round().astype(np.int64))
    rng = np.random.default_rng(seed)
    _, random_seconds = _timed(lambda: random_draw(np.random.default_rng(seed), data.groups, budgets))
    batches = [random_draw(rng, data.groups, budgets) for _ in range(draws)]
    return Comparison(
        k,
        n,
        d,
        rule,
        budgets,
        list(data.domains),
        data.groups,
        methods,
        [judge.score(batch) for batch in batches],
        steps,
        np.array([judge.curve(batch, steps) for batch in batches[:CURVE_DRAWS]]),
        random_seconds,
        judge.residual(np.arange(n, dtype=np.int64)),
    )


def _check(k: int, draws: int, rule: str, data: DemoData) -> None:
    smallest = min(int((data.groups == domain).sum()) for domain in data.domains)
    most = smallest * len(data.domains)
    if not 1 <= k <= most:
        raise ValueError(
            f"k: expected 1 to {most} picks ({smallest} candidates in each of {len(data.domains)} domains), got {k}"
        )
    if draws < 1:
        raise ValueError(f"draws: expected at least 1, got {draws}")
    if rule not in ("omp", "normalized"):
        raise ValueError(f"rule: expected 'omp' or 'normalized', got {rule!r}")
