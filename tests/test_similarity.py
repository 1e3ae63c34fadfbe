"""Similarities of tasks against dense computations in the textbook's form, and in rational arithmetic."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pysubmod.datasets import load_demo
from pysubmod.mixture import task_mixture
from pysubmod.similarity import divergence_matrix, gradient_similarity, to_similarity

LN2 = math.log(2.0)


def log_softmax(x):
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def predictions(n, V, seed=0, spread=3.0):
    """What n models say about the 3, 4, 5, ... positions of each task."""
    rng = np.random.default_rng(seed)
    return [log_softmax(spread * rng.standard_normal((n, 3 + b, V))) for b in range(n)]


def jensen_shannon(logs, other):
    p, q = np.exp(logs), np.exp(other)
    m = (p + q) / 2
    return (0.5 * p * np.log(p / m) + 0.5 * q * np.log(q / m)).sum(axis=-1)


def kullback_leibler(logs, other):
    return (np.exp(logs) * (logs - other)).sum(axis=-1)


def dense(data, measure):
    """Entry (a, b): half the mean over D_a of measure(p_a, p_b), and half that over D_b of measure(p_b, p_a)."""
    n = len(data)
    one = np.array([[measure(data[a][a], data[a][b]).mean() for b in range(n)] for a in range(n)])
    return (one + one.T) / 2


@pytest.mark.parametrize("V", [2, 17, 3000])
def test_equals_the_dense_computation(V):
    data = predictions(4, V)
    np.testing.assert_allclose(divergence_matrix(data), dense(data, jensen_shannon), atol=1e-14)
    np.testing.assert_allclose(divergence_matrix(data, "kl"), dense(data, kullback_leibler), rtol=1e-12, atol=1e-14)


def test_over_all_samples():
    data = predictions(3, 11)
    want = [[np.mean([jensen_shannon(d[a], d[b]).mean() for d in data]) for b in range(3)] for a in range(3)]
    got = divergence_matrix(data, over="all")
    np.testing.assert_allclose(got, want, atol=1e-14)
    # The negative of a mean of squared distances: no shift, whatever the models.
    assert task_mixture(to_similarity(got), beta=0.1, lam=1).shift == 0.0


def test_pmi_is_minus_the_paper_s_similarity():
    rng = np.random.default_rng(1)
    data = [-rng.random((3, 5 + b)) * 9 for b in range(3)]
    S = np.zeros((3, 3))
    for a in range(3):
        for b in range(3):
            S[a, b] = ((data[b][a] - data[b][b]).mean() + (data[a][b] - data[a][a]).mean()) / 2
    np.testing.assert_allclose(divergence_matrix(data, "pmi"), -S, atol=1e-14)


def test_pmi_of_samples_from_the_models_tends_to_kl():
    rng = np.random.default_rng(2)
    logs = log_softmax(rng.standard_normal((2, 6)))
    full, observed = [], []
    for b in range(2):
        y = rng.choice(6, size=200_000, p=np.exp(logs[b]))
        observed.append(logs[:, y])
        full.append(logs[:, None, :])
    np.testing.assert_allclose(divergence_matrix(observed, "pmi"), divergence_matrix(full, "kl"), rtol=0.02)


@given(st.integers(0, 10**6), st.sampled_from([0.0, 1e-9, 1e-3, 1.0, 30.0, 3e3]), st.sampled_from(["pair", "all"]))
def test_jensen_shannon_is_symmetric_bounded_and_zero_for_the_same(seed, spread, over):
    n = 2 + seed % 3
    data = predictions(n, 2 + seed % 9, seed, spread)
    for chunk in data:
        chunk[-1] = chunk[0]
    D = divergence_matrix(data, over=over)
    np.testing.assert_array_equal(D, D.T)
    assert (np.diag(D) == 0).all()
    assert (D >= 0).all()
    assert (D <= LN2).all()
    assert D[0, n - 1] == 0.0


def exact_jensen_shannon(p, q):
    """In fifty digits, from float64 probabilities."""
    with localcontext() as context:
        context.prec = 50
        p, q = [Decimal(float(x)) for x in p], [Decimal(float(x)) for x in q]
        p, q = [x / sum(p) for x in p], [x / sum(q) for x in q]
        parts = []
        for a, b in zip(p, q, strict=True):
            m = (a + b) / 2
            parts += [x * (x / m).ln() / 2 for x in (a, b) if x > 0]
        return float(sum(parts))


@pytest.mark.parametrize("apart", [1e-1, 1e-3, 1e-5, 1e-7])
def test_models_that_hardly_differ(apart):
    """LoRA models after a few steps: nothing is left of the divergence where large logarithms are subtracted."""
    rng = np.random.default_rng(3)
    p = rng.dirichlet(np.ones(40))
    q = p * np.exp(apart * rng.standard_normal(40))
    logs = np.log(np.stack([p, q / q.sum()]))[:, None, :]
    got = divergence_matrix([logs, logs])[0, 1]
    assert got == pytest.approx(exact_jensen_shannon(*np.exp(logs[:, 0])), rel=1e-6, abs=1e-16)


def test_no_overflow_far_out():
    far = np.full((2, 3, 5), -1e4)
    far[0, :, 0] = far[1, :, 1] = 0.0
    with np.errstate(all="raise"):
        np.testing.assert_allclose(divergence_matrix([far, far]), [[0, LN2], [LN2, 0]], rtol=1e-15)
        np.testing.assert_allclose(divergence_matrix([far, far], "kl"), [[0, 1e4], [1e4, 0]], rtol=1e-15)
    assert divergence_matrix([far[..., 0]] * 2, "pmi")[0, 1] == 0.0
    far[far < 0] = -np.inf
    np.testing.assert_allclose(divergence_matrix([far, far]), [[0, LN2], [LN2, 0]], rtol=1e-15)
    with pytest.raises(ValueError, match=r"log_probs\[0\]: model 1 gives probability 0 to what model 0 holds possible"):
        divergence_matrix([far, far], "kl")
    same = np.log([[[0.5, 0.5]], [[0.5, 0.5]]])
    assert divergence_matrix([same, same], "kl")[0, 1] == 0.0


def test_chunks_are_read_once_and_are_the_same():
    data = predictions(3, 50)
    whole = divergence_matrix(data)

    def positions(chunk):
        yield from (chunk[:, i : i + 1] for i in range(chunk.shape[1]))

    streams = {name: positions(chunk) for name, chunk in zip("abc", data, strict=True)}
    np.testing.assert_allclose(divergence_matrix(streams), whole, atol=1e-15)
    np.testing.assert_allclose(divergence_matrix([[d[:, :2], d[:, 2:]] for d in data]), whole, atol=1e-15)
    stacked = np.stack([data[0]] * 3)
    np.testing.assert_allclose(divergence_matrix(stacked), divergence_matrix([data[0]] * 3), atol=0)


def test_many_blocks(monkeypatch):
    data = predictions(3, 50)
    whole = divergence_matrix(data, over="all")
    monkeypatch.setattr("pysubmod._divergence._BLOCK", 1)
    np.testing.assert_allclose(divergence_matrix(data, over="all"), whole, atol=1e-15)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-6), (np.float16, 5e-3)])
def test_storage_types(dtype, tolerance):
    data = predictions(3, 500)
    got = divergence_matrix([d.astype(dtype) for d in data])
    np.testing.assert_allclose(got, divergence_matrix(data), atol=tolerance)
    assert (got <= LN2).all()


def test_distributions_are_normalised_again():
    data = predictions(3, 20)
    off = [d + 0.05 * np.sin(np.arange(d.shape[1]))[:, None] for d in data]
    for kind in ("jsd", "kl"):
        np.testing.assert_allclose(divergence_matrix(off, kind), divergence_matrix(data, kind), atol=1e-13)


def test_bfloat16_of_torch():
    torch = pytest.importorskip("torch")
    data = predictions(2, 300)
    got = divergence_matrix([torch.tensor(d, dtype=torch.bfloat16) for d in data])
    np.testing.assert_allclose(got, divergence_matrix(data), atol=2e-2)


def test_arguments_are_left_alone():
    data = predictions(2, 7)
    copies = [d.copy() for d in data]
    for kind in ("jsd", "kl"):
        divergence_matrix(data, kind)
    for mine, copy in zip(data, copies, strict=True):
        np.testing.assert_array_equal(mine, copy)


@pytest.mark.parametrize(
    ("log_probs", "options", "kind", "match"),
    [
        (5, {}, TypeError, r"log_probs: expected a mapping"),
        ([], {}, ValueError, r"log_probs: has no tasks"),
        ([np.zeros((2, 3, 4))], {}, ValueError, r"log_probs\[0\]: expected shape \(1, positions, V\)"),
        ([np.zeros((1, 3))], {}, ValueError, r"log_probs\[0\]: expected shape \(1, positions, V\)"),
        ([np.zeros((1, 3, 4))], {"kind": "pmi"}, ValueError, r"log_probs\[0\]: expected shape \(1, samples\)"),
        ({"a": np.zeros((1, 3, 4))}, {}, ValueError, r"log_probs\['a'\]: the probabilities at position 0.*logits"),
        ({"a": np.zeros((1, 0, 4))}, {}, ValueError, r"log_probs\['a'\]: has no samples"),
        ({"a": []}, {}, ValueError, r"log_probs\['a'\]: has no samples"),
        ({"a": np.zeros((1, 2, 0))}, {}, ValueError, r"log_probs\['a'\]: the vocabulary is empty"),
        ({"a": 7}, {}, TypeError, r"log_probs\['a'\]: expected an array or an iterable"),
        ({"a": np.zeros((1, 3, 4), int)}, {}, TypeError, r"log_probs\['a'\]: dtype int64"),
        ([np.full((1, 3, 4), np.nan)], {}, ValueError, r"log_probs\[0\]: position 0 of model 0 .* NaN"),
        ([np.full((1, 3, 4), -np.inf)], {}, ValueError, r"log_probs\[0\]: position 0 of model 0 .* infinite"),
        ([np.full((1, 3), -np.inf)], {"kind": "pmi"}, ValueError, r"log_probs\[0\]: sample 0 has the log-probability"),
        ([np.zeros((1, 3, 1))], {"kind": "cosine"}, ValueError, r"kind: expected one of"),
        ([np.zeros((1, 3, 1))], {"over": "none"}, ValueError, r"over: expected one of"),
        ([np.zeros((1, 3, 1))], {"kind": "kl", "over": "all"}, ValueError, r"over: 'all' is for kind 'jsd'"),
    ],
)
def test_bad_log_probs(log_probs, options, kind, match):
    with pytest.raises(kind, match=match):
        divergence_matrix(log_probs, **options)


# ---- divergence to similarity ----------------------------------------------------------------------------------------


def test_to_similarity():
    D = divergence_matrix(predictions(4, 9), over="all")
    S = to_similarity(D)
    np.testing.assert_allclose(S, D.max() - D)
    plain = task_mixture(S, beta=0.1, lam=1)
    for other in (-D, LN2 - D):
        np.testing.assert_allclose(task_mixture(other, beta=0.1, lam=1).probabilities, plain.probabilities, atol=1e-9)
    E = to_similarity(D, "exponential")
    np.testing.assert_allclose(E, np.exp(-D / np.median(D[np.triu_indices(4, 1)])))
    assert np.linalg.eigvalsh(E)[0] > 0
    np.testing.assert_allclose(to_similarity(D, "exponential", scale=0.5), np.exp(-2 * D))
    assert to_similarity(np.zeros((2, 2)), "exponential").tolist() == [[1, 1], [1, 1]]
    assert to_similarity([[0.0]], "exponential").tolist() == [[1.0]]


def test_the_sign_matters():
    """An outlier among alike tasks: by similarity it is worth little, by divergence it would be worth most."""
    X = np.array([0.0, 0.1, 0.2, 3.0])
    D = np.square(X[:, None] - X[None])
    assert task_mixture(to_similarity(D), beta=5.0, lam=1).probabilities[3] < 0.1
    assert task_mixture(D, beta=5.0, lam=1, on_indefinite="shift").probabilities[3] > 0.9


@pytest.mark.parametrize(
    ("args", "options", "match"),
    [
        ((np.ones((2, 3)),), {}, r"divergence: expected a square matrix"),
        ((np.triu(np.ones((2, 2))),), {}, r"divergence: expected a symmetric matrix"),
        ((-1000 * np.eye(2), "exponential"), {"scale": 1.0}, r"divergence: exp\(1e\+03 / 1\) overflows"),
        (([[np.inf]],), {}, r"divergence: entry \[0, 0\] is NaN or infinite"),
        (([[0.0]], "ratio"), {}, r"how: expected one of"),
        (([[0.0]],), {"scale": 1.0}, r"scale: only how='exponential'"),
        (([[0.0]], "exponential"), {"scale": 0.0}, r"scale: expected a positive number"),
    ],
)
def test_bad_divergences(args, options, match):
    with pytest.raises(ValueError, match=match):
        to_similarity(*args, **options)


@pytest.mark.parametrize("D", [np.eye(2) * 1j, [["a", "b"], ["b", "a"]], np.eye(2, dtype=bool)])
def test_divergences_that_are_no_real_numbers(D):
    with pytest.raises(TypeError, match="divergence: expected real numbers"):
        to_similarity(D)


def test_to_similarity_of_bfloat16():
    torch = pytest.importorskip("torch")
    D = np.array([[0.0, 0.5], [0.5, 0.0]])
    for how in ("difference", "exponential"):
        assert (to_similarity(torch.tensor(D, dtype=torch.bfloat16), how) == to_similarity(D, how)).all()


# ---- gradients -------------------------------------------------------------------------------------------------------


def mean_cosines(G, groups):
    """Pair by pair."""
    names = sorted(set(groups.tolist()))
    rows = [[g for g, label in zip(G, groups, strict=True) if label == name and np.any(g)] for name in names]
    return np.array(
        [[np.mean([a @ b / np.sqrt((a @ a) * (b @ b)) for a in one for b in other]) for other in rows] for one in rows]
    )


@given(st.integers(0, 10**6))
def test_gradient_similarity_is_the_mean_cosine(seed):
    rng = np.random.default_rng(seed)
    n, P = int(rng.integers(4, 15)), int(rng.integers(1, 4))
    groups = np.concatenate([np.arange(P), rng.integers(0, P, n - P)])
    G = rng.standard_normal((n, 5)) * 10.0 ** rng.integers(-4, 4, (n, 1))
    G[P:][rng.random(n - P) < 0.3] = 0.0
    S = gradient_similarity(G, groups)
    np.testing.assert_allclose(S, mean_cosines(G, groups), atol=1e-12)
    np.testing.assert_array_equal(S, S.T)
    assert np.linalg.eigvalsh(S)[0] > -1e-12
    scaled = G * np.exp(rng.standard_normal((n, 1)))
    np.testing.assert_allclose(gradient_similarity(scaled, groups), S, atol=1e-12)


def test_gradient_similarity_of_real_gradients(monkeypatch):
    data = load_demo()
    S = gradient_similarity(data.gradients, data.groups)
    np.testing.assert_allclose(S, mean_cosines(data.gradients.astype(float), data.groups), atol=1e-9)
    parts = {name: data.gradients[data.groups == name] for name in np.unique(data.groups).tolist()}
    np.testing.assert_allclose(gradient_similarity(parts), S, atol=1e-12)
    monkeypatch.setattr("pysubmod.similarity._GRADIENTS", 5000)
    np.testing.assert_allclose(gradient_similarity(data.gradients, data.groups), S, atol=1e-12)
    assert task_mixture(S, beta=0.05, lam=1, labels=np.unique(data.groups).tolist()).status == "optimal"


def test_extreme_norms():
    G = np.array([[1e-200, 1e-200], [1e200, 1e200], [1.0, 0.0]])
    np.testing.assert_allclose(gradient_similarity(G, [0, 0, 1]), [[1, 0.5**0.5], [0.5**0.5, 1]])


@pytest.mark.parametrize(
    ("G", "groups", "match"),
    [
        (np.zeros((2, 3)), ["a", "b"], r"G: all rows of group 'a' are 0"),
        (np.array([[1.0], [np.nan]]), [0, 1], r"G: row 1 is NaN or infinite"),
        (np.ones((2, 3)), None, r"groups: needed"),
        ({"a": np.ones((2, 3))}, ["a", "a"], r"groups: G is a mapping"),
        (np.ones((2, 3)), ["a"], r"groups: expected shape \(2,\)"),
        (np.ones(3), ["a"], r"G: expected shape \(n, d\)"),
    ],
)
def test_bad_gradients(G, groups, match):
    with pytest.raises(ValueError, match=match):
        gradient_similarity(G, groups)


def test_groups_without_rows():
    g = np.eye(3)
    with pytest.raises(ValueError, match="G: group 'b' has no rows"):
        gradient_similarity({"a": g, "b": g[:0]})
    with pytest.raises(ValueError, match="G: has no rows"):
        gradient_similarity(g[:0], np.zeros(0, int))
