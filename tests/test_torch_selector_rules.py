"""PartitionSel's rule step by step, and exact weights, against NumPy and SciPy."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize

import pysubmod
from pysubmod._random import random_bits, random_order

torch = pytest.importorskip("torch")

from torch_selection import DOMAINS, loss, make, rows_of, step_seed, unit  # noqa: E402

from pysubmod.torch import (  # noqa: E402
    FilterThenWeight,
    PartitionSel,
    optimizer_view,
)
from pysubmod.torch._batches import budgets_of  # noqa: E402
from pysubmod.torch._targets import _STREAM  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_torch_thread")


# ---- PartitionSel ----------------------------------------------------------------------------------------------------


def nonnegative(K, c):
    """argmax <v, c> - v'Kv/2 over v >= 0, by the Cholesky factor."""
    L = np.linalg.cholesky(K + 1e-13 * np.trace(K) * np.eye(len(K)))
    return scipy.optimize.nnls(L.T, np.linalg.solve(L, c))[0]


def partition_sel_by_hand(K, s, eta, labels, budgets, seed, ranking):
    """The rule in the paper's w, round by round; draw m is number m of the stream."""
    left, picks = dict(budgets), []
    for m in range(sum(budgets.values())):
        v = np.zeros(len(K))
        if picks:
            v[picks] = nonnegative(K[np.ix_(picks, picks)], (s + eta / 2 * K.diagonal())[picks])
        w = v / eta
        g = eta * s + eta**2 / 2 * K.diagonal() - eta**2 * K @ w
        score = np.maximum(g, 0) if ranking == "relu" else g
        shortlist = []
        for label, room in left.items():
            rows = [i for i in range(len(K)) if labels[i] == label and i not in picks]
            shortlist += sorted(rows, key=lambda i: (-score[i], i))[:room]
        shortlist.sort()
        pick = shortlist[int(random_bits(seed, m)) * len(shortlist) >> 64]
        picks.append(pick)
        left[labels[pick]] -= 1
    return picks


@pytest.mark.parametrize("eta", [1e-7, 1e-3, 0.1])
@pytest.mark.parametrize("ranking", ["relu", "signed"])
def test_partition_sel_is_the_rule_step_by_step(ranking, eta):
    model, pool, validation = make()
    selector = PartitionSel(
        loss, eta=eta, ratio=0.5, groups="domain", validation=validation, ranking=ranking, random_state=7
    )
    K = unit(rows_of(model, pool))
    K, G = K @ K.T, K
    for step in range(4):
        seed = step_seed(7, step)
        anchors = sorted(random_order(seed, 12, stream=_STREAM)[:4].tolist())
        s = G @ unit(rows_of(model, validation, anchors)).mean(axis=0)
        sizes = {label: pool["domain"].count(label) for label in DOMAINS}
        budgets = {label: 12 * size // 24 for label, size in sizes.items()}
        while sum(budgets.values()) < 12:
            budgets[min(budgets, key=lambda label: (budgets[label], label))] += 1
        expected = partition_sel_by_hand(K, s, eta, pool["domain"], budgets, seed, ranking)
        selected = selector.select(model, pool)
        assert selected.selection.indices.tolist() == expected
        assert selected.indices.tolist() == sorted(expected)
        assert selected.diagnostics["counts"] == budgets
        assert torch.equal(selected.weights, torch.full((12,), 1 / 12))
        conflicts = sum(K[i, j] < 0 for i in expected for j in expected if i < j)
        assert selected.diagnostics["conflicts"] == conflicts
        assert torch.equal(selected.batch["x"], pool["x"][sorted(expected)])
        assert "domain" not in selected.batch
        assert selected.groups.tolist() == [pool["domain"][i] for i in sorted(expected)]


def fista(K, linear, rng, steps=128):
    """max <w, linear> - w'Kw/2 over w >= 0 as PartitionSel's release has it: so many steps from a random start."""
    L = np.linalg.eigvalsh(K)[-1]
    w = rng.random(len(K))
    y, t = w, 1.0
    for _ in range(steps):
        following = np.maximum(y + (linear - K @ y) / L, 0)
        after = (1 + np.sqrt(1 + 4 * t * t)) / 2
        y = following + (t - 1) / after * (following - w)
        w, t = following, after
    return w


@pytest.mark.parametrize("exponent", range(-7, 0))
def test_the_refit_is_never_below_fista(exponent):
    """In the paper's w, on the support after every round."""
    eta = 10.0**exponent
    model, pool, validation = make()
    selector = PartitionSel(
        loss, eta=lambda: eta, ratio=0.5, groups="domain", validation=validation, anchors=None, random_state=1
    )
    selection = selector.select(model, pool).selection
    G = unit(rows_of(model, pool))
    K = G @ G.T
    s = G @ unit(rows_of(model, validation)).mean(axis=0)
    linear, rng, better = eta * s + eta**2 / 2 * K.diagonal(), np.random.default_rng(0), 0

    def utility(w, S):
        return float(w @ linear[S] - eta**2 / 2 * w @ K[np.ix_(S, S)] @ w)

    for k in range(1, 13):
        S = selection.indices[:k]
        theirs = utility(fista(eta**2 * K[np.ix_(S, S)], linear[S], rng), S)
        ours = float(selection.gains[:k].sum())
        assert ours >= theirs - 1e-12 * abs(ours)
        better += ours > theirs + 1e-9 * abs(ours)
    assert utility(selection.weights / eta, selection.indices) == pytest.approx(selection.objective, rel=1e-9)
    assert better or eta > 1e-2


def test_the_refit_is_never_below_fista_in_small_weights():
    """The same with the start that a tiny eta punishes: w of order 1, where the optimum is of order 1 / eta."""
    rng = np.random.default_rng(3)
    G = unit(rng.normal(size=(40, 30)))
    K, s = G @ G.T, G @ unit(rng.normal(size=(4, 30))).mean(axis=0)
    for exponent in range(-7, 0):
        eta = 10.0**exponent
        problem = pysubmod.GradientMatching.from_gram(K, s, tilt=eta)
        matroid = pysubmod.PartitionMatroid(np.arange(40) % 4, [3, 3, 3, 3])
        picks = pysubmod.solve(problem, matroid, "partition-sel", random_state=exponent + 10)
        S = picks.indices
        linear = (eta * s + eta**2 / 2 * K.diagonal())[S]
        w = fista(eta**2 * K[np.ix_(S, S)], linear, rng)
        assert picks.objective >= w @ linear - eta**2 / 2 * w @ K[np.ix_(S, S)] @ w - 1e-15


# ---- Filter-then-Weight ----------------------------------------------------------------------------------------------


def trained(model, kind, groups=None, **options):
    optimizer = kind(groups or model.parameters(), **options)
    for seed in range(2):
        _, batch, _ = make(seed=10 + seed)
        loss(model, batch).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


@pytest.mark.parametrize("momentum", ["kept", "corrected"])
@pytest.mark.parametrize("at", ["pool", "target"])
@pytest.mark.parametrize("kind", ["adamw", "groups", "sgd", "fresh"])
def test_filter_then_weight_is_the_exact_optimum(kind, at, momentum):
    model, pool, validation = make()
    if kind == "sgd":
        optimizer = trained(model, torch.optim.SGD, lr=0.1, momentum=0.9)
    elif kind == "adamw":
        optimizer = trained(model, torch.optim.AdamW, lr=0.01)
    elif kind == "fresh":
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    else:
        groups = [{"params": model[0].parameters(), "lr": 0.05}, {"params": model[2].parameters()}]
        optimizer = trained(model, torch.optim.Adam, groups, lr=1e-3)
    selector = FilterThenWeight(
        loss, optimizer=optimizer, size=8, groups="domain", validation=validation, anchors=None, at=at,
        momentum=momentum, random_state=0,
    )  # fmt: skip
    selected = selector.select(model, pool)
    G, v = torch.from_numpy(rows_of(model, pool)), torch.from_numpy(rows_of(model, validation).mean(axis=0))
    columns, first, shaped = {}, 0, {}
    mean = G.mean(0) if at == "pool" else v
    for name, p in model.named_parameters():
        columns[name] = slice(first, first + p.numel())
        shaped[name] = mean[columns[name]].view(p.shape)
        first += p.numel()
    view = optimizer_view(optimizer, model.named_parameters(), at=None if kind == "sgd" else shaped)
    A = view.apply(G, columns).numpy()
    target = view.apply(v, columns)
    if momentum == "corrected":
        target = view.target(target, columns)
    target = target.numpy()
    rows = selected.indices.numpy()
    expected, error = scipy.optimize.nnls(A[rows].T, target)
    assert (selected.weights >= 0).all()
    found = selected.weights.numpy().astype(float)
    assert np.linalg.norm(target - A[rows].T @ found) <= error * (1 + 1e-6) + 1e-6 * np.linalg.norm(target)
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-4 * expected.max())
    assert selected.diagnostics["relative_residual"] == pytest.approx(error / np.linalg.norm(target), rel=1e-6)
    made = A[rows].T @ expected
    assert selected.diagnostics["cosine"] == pytest.approx(
        made @ target / np.linalg.norm(made) / np.linalg.norm(target), rel=1e-5
    )


def test_filter_then_weight_picks_by_redundancy():
    model, pool, validation = make()
    pool["x"][1], pool["y"][1] = pool["x"][0], pool["y"][0]
    pool["domain"] = ["law"] * 24
    selector = FilterThenWeight(
        loss, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), size=6, groups="domain", validation=validation
    )
    assert not {0, 1} <= set(selector.select(model, pool).indices.tolist())


# ---- budgets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "size", "rule", "expected"),
    [
        ([10, 10, 10], 6, "proportional", [2, 2, 2]),
        ([10, 10, 10], 7, "proportional", [3, 2, 2]),
        ([50, 30, 3], 16, "proportional", [9, 5, 2]),
        ([61, 1, 1, 1], 16, "proportional", [15, 1, 0, 0]),
        ([30, 1, 1], 31, "proportional", [29, 1, 1]),
        ([5, 5], 99, "proportional", [5, 5]),
        ([20, 2, 9], 12, "balanced", [5, 2, 5]),
    ],
)
def test_budgets(sizes, size, rule, expected):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    matroid = budgets_of(labels, rule, size)
    assert matroid.budgets.tolist() == expected
    assert matroid.rank == min(size, len(labels))
