"""Selectors in a training loop: one interface, a loop that goes on as it was, and what they refuse."""

from __future__ import annotations

import copy
import io
import itertools

import numpy as np
import pytest
import scipy.optimize

torch = pytest.importorskip("torch")

from torch_selection import loss, make, rows_of, unit  # noqa: E402

import pysubmod  # noqa: E402
from pysubmod.torch import (  # noqa: E402
    BatchSelector,
    FilterThenWeight,
    GradMatch,
    Greats,
    PartitionSel,
    RandomSelector,
    TopK,
)
from pysubmod.torch._batches import take_rows  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_torch_thread")


# ---- the family ------------------------------------------------------------------------------------------------------


def some(method, model, validation, **options):
    options = {"groups": "domain", "validation": validation, "random_state": 3, **options}
    if method == "partition-sel":
        return PartitionSel(loss, eta=1e-3, **options)
    if method == "filter-then-weight":
        return FilterThenWeight(loss, optimizer=torch.optim.AdamW(model.parameters()), **options)
    kinds = {"greats": Greats, "top-k": TopK, "random": RandomSelector, "grad-match": GradMatch}
    return kinds[method](loss, **options) if method in kinds else BatchSelector(loss, method=method, **options)


METHODS = ["partition-sel", "filter-then-weight", "greats", "top-k", "random", "grad-match"]


@pytest.mark.parametrize("method", [*METHODS, "swap", "divbs", "craig", "per-group"])
def test_every_method_leaves_the_loop_as_it_was(method):
    model, pool, validation = make()
    optimizer = torch.optim.AdamW(model.parameters())
    loss(model, pool).sum().backward()
    optimizer.step()
    before = copy.deepcopy([model.state_dict(), optimizer.state_dict(), [p.grad for p in model.parameters()]])
    random_state = torch.get_rng_state()
    selector = some(method, model, [validation], ratio=0.25)
    if method == "filter-then-weight":
        selector = FilterThenWeight(loss, optimizer=optimizer, groups="domain", validation=[validation], ratio=0.25)
    loader = torch.utils.data.DataLoader(range(3), shuffle=True)
    selected = selector.select(model, pool)
    BatchSelector(loss, size=3, validation=ThroughLoader(loader, validation)).select(model, pool | {"domain": None})
    assert torch.equal(random_state, torch.get_rng_state())
    after = [model.state_dict(), optimizer.state_dict(), [p.grad for p in model.parameters()]]
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    assert len(selected) == 6 or method == "grad-match"
    assert selected.weights.dtype == torch.float32 and (selected.weights >= 0).all()
    assert sum(selected.diagnostics["counts"].values()) == len(selected) == len(selected.batch["y"])
    assert selected.diagnostics["staleness"] == 0
    assert 0 <= selected.diagnostics["relative_residual"] <= 1.5
    assert selected.diagnostics["seconds_select"] > 0 and selected.diagnostics["seconds_capture"] > 0


class ThroughLoader:
    """Goes through a shuffled DataLoader, and gives one batch for whatever comes of it."""

    def __init__(self, loader, batch):
        self.loader, self.batch = loader, batch

    def __iter__(self):
        for _ in self.loader:
            yield self.batch


@pytest.mark.parametrize("method", ["partition-sel", "filter-then-weight", "greats", "top-k", "random"])
def test_ratio_one_selects_everything(method):
    model, pool, validation = make()
    selected = some(method, model, validation, ratio=1).select(model, pool)
    assert selected.indices.tolist() == list(range(24))
    assert torch.equal(selected.batch["x"], pool["x"])
    if method != "filter-then-weight":
        assert torch.equal(selected.weights, torch.full((24,), 1 / 24))


@pytest.mark.parametrize("refresh", [1, 3])
@pytest.mark.parametrize("given", ["batch", "list", "callable"])
@pytest.mark.parametrize("method", METHODS)
def test_a_restored_selector_makes_the_same_picks(method, given, refresh):
    model, pool, _ = make()
    batches = [make(seed=s)[2] for s in range(3)]
    validation = {"batch": batches[0], "list": batches, "callable": lambda step: batches[step % 3]}[given]
    first = some(method, model, validation, ratio=0.25, refresh=refresh)
    for _ in range(4):
        first.select(model, pool)
    stored = io.BytesIO()
    torch.save(first.state_dict(), stored)
    stored.seek(0)
    second = some(method, model, validation, ratio=0.25, refresh=refresh, random_state=99)
    second.load_state_dict(torch.load(stored, weights_only=True))
    for _ in range(4):
        a, b = first.select(model, pool), second.select(model, pool)
        assert a.selection.indices.tolist() == b.selection.indices.tolist()
        assert torch.equal(a.weights, b.weights)
        assert a.diagnostics["step"] == b.diagnostics["step"]
        assert a.diagnostics["staleness"] == b.diagnostics["staleness"] == a.diagnostics["step"] % refresh


def test_anchors_and_draws_differ_from_step_to_step():
    model, pool, validation = make()
    selector = some("partition-sel", model, validation, ratio=0.25)
    picks = {tuple(selector.select(model, pool).indices.tolist()) for _ in range(6)}
    assert len(picks) == 6


def test_unit_norm_weights_are_those_of_the_losses():
    model, pool, validation = make()
    options = {"size": 6, "validation": validation, "anchors": None}
    selected = BatchSelector(loss, method="omp", groups="domain", unit_norm=True, **options).select(model, pool)
    G = rows_of(model, pool)[selected.indices.numpy()]
    expected = scipy.optimize.nnls(G.T, unit(rows_of(model, validation)).mean(axis=0))[0]
    assert selected.weights.numpy() == pytest.approx(expected, rel=1e-4, abs=1e-6)
    uniform = BatchSelector(loss, method="omp", groups="domain", unit_norm=True, weights="uniform", **options)
    mean, target = G.mean(axis=0), unit(rows_of(model, validation)).mean(axis=0)
    cosine = mean @ target / np.linalg.norm(mean) / np.linalg.norm(target)
    assert uniform.select(model, pool).diagnostics["cosine"] == pytest.approx(cosine, rel=1e-6)
    one = BatchSelector(loss, method="omp", groups="domain", weights="normalized", **options).select(model, pool)
    assert float(one.weights.sum()) == pytest.approx(1)


@pytest.mark.parametrize("own", [False, True])
def test_the_balanced_target(own):
    model, pool, validation = make()
    source = pool if own else validation
    labels = np.array(list(source["domain"]))
    selector = BatchSelector(
        loss, size=6, groups="domain", target="balanced", validation=None if own else validation, anchors=None
    )
    selected = selector.select(model, pool)
    G, rows = rows_of(model, source), selected.indices.numpy()
    means = [G[labels == label].mean(axis=0) for label in np.unique(labels)]
    target = np.mean([m / np.linalg.norm(m) for m in means], axis=0)
    expected = scipy.optimize.nnls(rows_of(model, pool)[rows].T, target)[0]
    assert selected.weights.numpy() == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("updates", [False, True])
def test_a_target_for_each_group(updates):
    model, pool, validation = make()
    pool["domain"] = [i % 3 for i in range(24)]
    options = {"size": 9, "groups": "domain", "target": "per-group", "validation": validation, "anchors": None}
    if updates:  # plain SGD: an update is the gradient times the rate
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        selector = FilterThenWeight(loss, optimizer=optimizer, **options)
    else:
        selector = BatchSelector(loss, **options)
    selected = selector.select(model, pool)
    G, V = rows_of(model, pool), rows_of(model, validation)
    square = norm = 0.0
    for label in range(3):
        members = selected.groups == label
        target = V[validation["domain"].numpy() == label].mean(axis=0) / 3
        rows = selected.indices.numpy()[members]
        expected, missing = scipy.optimize.nnls(G[rows].T, target)
        assert selected.weights.numpy()[members] == pytest.approx(expected, rel=1e-4, abs=1e-6)
        square, norm = square + missing**2, norm + target @ target
        alone = pysubmod.omp_partition(G[label::3], target, 3, rule="normalized", nonneg=True)
        assert sorted(alone.indices * 3 + label) == rows.tolist()
    assert selected.diagnostics["relative_residual"] == pytest.approx((square / norm) ** 0.5, rel=1e-6)


def test_one_budget_for_all_groups():
    model, pool, validation = make()
    options = {"size": 6, "method": "top-k", "validation": validation, "anchors": None}
    free = BatchSelector(loss, groups="domain", budgets=None, **options).select(model, pool)
    scores = rows_of(model, pool) @ rows_of(model, validation).mean(axis=0)
    assert free.indices.tolist() == sorted(np.argsort(-scores)[:6].tolist())
    counts = {label: int((free.groups == label).sum()) for label in ("code", "law", "maths")}
    assert free.diagnostics["counts"] == counts


@pytest.mark.parametrize("method", ["partition-sel", "top-k", "omp-normalized"])
def test_the_certified_share_holds(method):
    model, pool, validation = make(n=9)
    options = {"size": 3, "budgets": None, "anchors": None, "certified": True}
    selected = some(method, model, validation, **options).select(model, pool)
    if method == "partition-sel":
        G, eta = unit(rows_of(model, pool)), 1e-3
        target = unit(rows_of(model, validation)).mean(axis=0)
    else:
        G, target, eta = rows_of(model, pool), rows_of(model, validation).mean(axis=0), 0.0
    C = G @ G.T
    c = G @ target + eta / 2 * np.diag(C)

    def value(S):
        S = list(S)
        root = np.linalg.cholesky(C[np.ix_(S, S)] + 1e-14 * np.eye(len(S)))
        inner = np.linalg.solve(root, c[S])
        return (inner @ inner - scipy.optimize.nnls(root.T, inner)[1] ** 2) / 2

    best = max(value(S) for S in itertools.combinations(range(9), 3))
    share = selected.diagnostics["certified_share"]
    assert 0 < share <= value(selected.indices.tolist()) / best + 1e-9


def test_anchors_and_pool_have_masks_of_their_own():
    model, pool, _ = make()
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(5, 3)).double()
    seen = []

    def watched(model, batch):
        seen.append(model[0](torch.ones_like(batch["x"])))
        return loss(model, batch)

    BatchSelector(watched, size=6, groups="domain", validation=pool, anchors=None, random_state=0).select(model, pool)
    assert len(seen) == 2 and not torch.equal(seen[0], seen[1])


def test_masks_of_dropout_are_the_selectors_own():
    _, pool, validation = make()
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Dropout(0.5), torch.nn.Linear(7, 3)).double()
    picks = []
    for seed in (1, 2):  # of the loop
        torch.manual_seed(seed)
        selected = some("omp", model, validation, size=6).select(model, pool)
        picks.append((selected.selection.indices.tolist(), selected.weights.tolist()))
    assert picks[0] == picks[1]
    other = some("omp", model, validation, size=6, random_state=4).select(model, pool)
    assert other.weights.tolist() != picks[0][1]


def test_balanced_anchors_are_of_every_group():
    model, pool, validation = make()
    seen = []

    def watched(model, batch):
        seen.append(batch["x"])
        return loss(model, batch)

    selector = BatchSelector(
        watched, size=6, groups="domain", target="balanced", validation=validation, anchors=2, random_state=0
    )
    selector.select(model, pool)
    rows = [int((validation["x"] == row).all(1).nonzero()) for row in seen[1]]
    assert sorted(int(validation["domain"][i]) for i in rows) == [0, 0, 1, 1, 2, 2]


def test_greats_with_a_small_rate_is_top_k():
    model, pool, validation = make()
    options = {"ratio": 0.5, "groups": "domain", "validation": validation, "random_state": 0, "unit_norm": True}
    small, large = Greats(loss, eta=1e-7, **options), Greats(loss, eta=0.5, **options)
    a, b = small.select(model, pool), TopK(loss, **options).select(model, pool)
    assert a.diagnostics["equals_top_k"] and a.indices.tolist() == b.indices.tolist()
    assert not large.select(model, pool).diagnostics["equals_top_k"]


def test_random_without_a_loss_looks_at_no_gradients():
    selected = RandomSelector(size=3, groups=2, random_state=0).select(
        None, (torch.arange(9.0), list("abcdefghi"), [0] * 9)
    )
    assert len(selected) == 3 and selected.diagnostics["cosine"] is None
    assert selected.batch[0].tolist() == selected.indices.tolist()
    assert selected.batch[1] == ["abcdefghi"[i] for i in selected.indices.tolist()] and len(selected.batch) == 2


def test_a_mapping_of_budgets_and_a_domain_that_a_pool_lacks(recwarn):
    model, pool, validation = make()
    selector = BatchSelector(
        loss, budgets={"code": 2, "law": 1, "maths": 0, "art": 5}, groups="domain", validation=validation
    )
    assert selector.select(model, pool).diagnostics["counts"] == {"code": 2, "law": 1, "maths": 0}
    assert not recwarn.list


# ---- batches ---------------------------------------------------------------------------------------------------------


def test_rows_of_batches():
    batch = {"x": torch.arange(6).view(3, 2), "text": ["a", "b", "c"], "z": np.arange(3), "flag": True, "none": None}
    taken = take_rows(batch, [2, 0])
    assert taken["x"].tolist() == [[4, 5], [0, 1]] and taken["text"] == ["c", "a"] and taken["z"].tolist() == [2, 0]
    assert taken["flag"] is True and taken["none"] is None
    assert take_rows(torch.arange(3), [1]).tolist() == [1]
    assert isinstance(take_rows((torch.arange(3), [1, 2, 3]), [1]), tuple)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"x": torch.zeros(3), "y": torch.zeros(2)}, r"batch\['y'\]: has 2 rows, but batch\['x'\] has 3"),
        ({"x": torch.zeros(3), "n": torch.tensor(3)}, r"batch\['n'\]: is a single number"),
        ({"x": torch.zeros(3), "n": 4}, r"batch\['n'\]: expected a tensor, array or list"),
        ({"x": torch.zeros(0)}, "batch: has no rows"),
        ({"x": "text"}, "batch: has no column"),
        ("text", "batch: expected a tensor, or a mapping or tuple"),
    ],
)
def test_batches_without_rows(batch, message):
    with pytest.raises((TypeError, ValueError), match=message):
        take_rows(batch, [0])


# ---- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (BatchSelector, {}, "ratio, size: give one of them"),
        (BatchSelector, {"ratio": 0.5, "size": 3}, "ratio, size: give one of them"),
        (BatchSelector, {"ratio": 1.5}, "ratio: expected a number above 0 and at most 1, got 1.5"),
        (BatchSelector, {"size": 0}, "size: expected an integer of at least 1, got 0"),
        (BatchSelector, {"size": 3, "refresh": 0}, "refresh: expected an integer of at least 1"),
        (BatchSelector, {"size": 3, "refresh": 2}, "refresh: without validation"),
        (BatchSelector, {"size": 3, "budgets": {"a": 1}}, "ratio, size: a mapping of budgets says how many"),
        (BatchSelector, {"budgets": {"a": 1}}, "groups: missing; budgets by group"),
        (BatchSelector, {"size": 3, "budgets": "equal"}, "budgets: expected one of 'proportional', 'balanced'"),
        (BatchSelector, {"size": 3, "target": "balanced"}, "groups: missing; target='balanced'"),
        (BatchSelector, {"size": 3, "method": "best-of"}, "method: expected one of 'omp'"),
        (BatchSelector, {"size": 3, "epsilon": 1}, "epsilon"),
        (BatchSelector, {"size": 3, "initial": [1]}, "initial: is not an option of a selector"),
        (BatchSelector, {"size": 3, "weights": "sum"}, "weights: expected one of 'fitted'"),
        (RandomSelector, {"size": 3, "weights": "fitted", "compute_loss": None}, "weights: 'fitted' ones are fitted"),
        (BatchSelector, {"size": 3, "validation": 3}, "validation: expected a batch"),
        (PartitionSel, {"size": 3, "eta": 1, "validation": None}, "validation: PartitionSel matches validation"),
        (PartitionSel, {"size": 3, "eta": 1, "validation": [], "unit_norm": False}, "unit_norm: is what PartitionSel"),
        (PartitionSel, {"size": 3, "eta": 1, "validation": [], "ranking": "abs"}, "ranking: expected one of 'relu'"),
        (FilterThenWeight, {"size": 3, "optimizer": None}, "optimizer: expected torch.optim's own"),
    ],
)
def test_arguments(kind, options, message):
    options = {"compute_loss": loss, **options}
    with pytest.raises((TypeError, ValueError), match=message):
        kind(**options)


def test_errors_of_a_step():
    model, pool, validation = make()
    with pytest.raises(TypeError, match="compute_loss: 'omp' looks at gradients"):
        BatchSelector(None, method="omp", size=3)
    with pytest.raises(ValueError, match=r"groups: the batch has no column 'topic'; it has 'x', 'y', 'domain'"):
        BatchSelector(loss, size=3, groups="topic").select(model, pool)
    with pytest.raises(ValueError, match="validation: the iterable is empty"):
        BatchSelector(loss, size=3, groups="domain", validation=[]).select(model, pool)
    del validation["domain"]
    with pytest.raises(ValueError, match=r"groups \(of validation\): the batch has no column 'domain'"):
        some("top-k", model, validation, size=3, target="balanced").select(model, pool)
    with pytest.raises(ValueError, match="compute_loss: returned 3 losses for a pool of 24 rows"):
        BatchSelector(lambda m, b: loss(m, take_rows(b, [0, 1, 2])), size=3, groups="domain").select(model, pool)
    with pytest.raises(RuntimeError, match="'omp' picked nothing from this pool"):
        BatchSelector(loss, method="omp", fill=False, size=3, groups="domain", validation=opposed(model, pool)).select(
            model, pool
        )
    with pytest.raises(ValueError, match="state: expected what state_dict"):
        some("top-k", model, validation, size=3).load_state_dict({"step": 1})


def opposed(model, pool):
    """A validation batch whose gradient no row of the pool has a positive product with: only if there is one."""
    pool["x"][:] = pool["x"][0]
    pool["y"][:] = 0
    return {"x": pool["x"][:1], "y": torch.tensor([1])}
