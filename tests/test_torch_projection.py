"""Random projections: unbiased, the same for the same seed, and of factors what they are of formed gradients."""

import hashlib
import json
import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from pysubmod._random import random_bits  # noqa: E402
from pysubmod.torch.projection import FactorProjection, Projection, _hash  # noqa: E402

torch.set_num_threads(1)
KINDS = ("rademacher", "srht", "sparse")


def make(kind, d=24, k=8, **options):
    if kind == "two-sided":
        return FactorProjection(d // 4, 4, k // 2, 2, **options)
    return Projection(d, k, kind, **options, **({"nonzeros": 4} if kind == "sparse" else {}))


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def dense(projection):
    """Its matrix, (k, d)."""
    return projection(torch.eye(projection.d, dtype=torch.float64)).T


def test_hash_is_that_of_numpy():
    for seed in (0, 123, 2**63 - 1):
        ours = _hash(seed, torch.arange(100)).numpy().view(np.uint64)
        assert (ours == random_bits(seed, np.arange(100))).all()


@pytest.mark.parametrize("kind", [*KINDS, "two-sided"])
def test_unbiased(kind):
    rows = torch.nn.functional.normalize(randn(3, 24), dim=1)
    exact = rows @ rows.T
    draws = []
    for seed in range(3000):
        images = make(kind, seed=seed)(rows)
        draws.append(images @ images.T)
    draws = torch.stack(draws)
    error = draws.std(0) / math.sqrt(len(draws))
    assert bool(((draws.mean(0) - exact).abs() <= 4.5 * error).all())
    assert float(error.max()) < 0.03  # the test can see a bias


@pytest.mark.parametrize("kind", [*KINDS, "two-sided"])
def test_same_seed_same_numbers(kind):
    rows = randn(5, 24)
    first = make(kind, seed=7, layer="q")
    again = make(kind, seed=7, layer="q")
    assert torch.equal(first(rows), again(rows))
    assert first.config == again.config == json.loads(json.dumps(first.config))
    for other in (make(kind, seed=8, layer="q"), make(kind, seed=7, layer="v"), make(kind, seed=7)):
        assert other.config != first.config
        assert not torch.equal(other(rows), first(rows))
    state = torch.random.get_rng_state()
    make(kind)(rows)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(
    ("kind", "digest"),
    [
        ("rademacher", "c9bd21912672e76f"),
        ("srht", "e812edc5e8935d8d"),
        ("sparse", "a6cc7ad822eb0a9e"),
        ("two-sided", "22c077ca4cd946cb"),
    ],
)
def test_numbers_never_change(kind, digest):
    """Stored projections have to stay comparable: other numbers need another `scheme` in config."""
    signs = dense(make(kind, seed=5)).sign().to(torch.int8).contiguous()
    assert hashlib.sha256(signs.numpy().tobytes()).hexdigest()[:16] == digest


def test_the_matrices_are_what_they_are_called():
    p = dense(make("rademacher"))
    assert torch.allclose(p.abs(), torch.full_like(p, 8**-0.5))
    p = dense(make("sparse"))
    assert (p != 0).view(4, 2, 24).sum(1).eq(1).all()  # one in each block
    assert torch.allclose(p.abs().max(0).values, torch.full((24,), 0.5, dtype=p.dtype))
    p = dense(make("srht"))
    assert torch.allclose(p.abs(), torch.full_like(p, 8**-0.5))
    p = dense(make("srht", d=32, k=32))
    assert torch.allclose(p @ p.T, torch.eye(32, dtype=p.dtype))  # all coordinates kept: a rotation


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_and_rows_do_not_matter(kind, monkeypatch):
    rows = randn(6, 200)
    whole = make(kind, d=200, k=100)(rows)
    monkeypatch.setattr("pysubmod.torch.projection._BLOCK", 300)
    assert torch.allclose(make(kind, d=200, k=100)(rows), whole, rtol=1e-12, atol=1e-12)
    assert torch.allclose(make(kind, d=200, k=100)(rows.T.contiguous().T[2:3]), whole[2:3], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", [*KINDS, "two-sided"])
def test_types(kind):
    rows = randn(5, 24, dtype=torch.bfloat16).requires_grad_()
    projection = make(kind)
    assert projection(rows[:0]).shape == (0, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        image = projection(rows)
    assert image.dtype == torch.float32
    assert not image.requires_grad
    assert torch.allclose(image.double(), projection(rows.detach().double()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_factors_are_those_of_the_formed_gradient(dtype):
    a, delta = randn(5, 7, 12, dtype=dtype), randn(5, 7, 9, seed=1, dtype=dtype)
    projection = FactorProjection(12, 9, 4, 3, seed=2, layer="q")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        small_a, small_delta = projection.project_factors(a, delta)
    assert small_a.shape == (5, 7, 4)
    assert small_delta.shape == (5, 7, 3)
    formed = torch.einsum("nto,nti->noi", delta.double(), a.double()).flatten(1)
    from_factors = torch.einsum("nto,nti->noi", small_delta.double(), small_a.double()).flatten(1)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    assert torch.allclose(from_factors, projection(formed), rtol=tolerance, atol=tolerance * 10)


def test_factors_of_a_real_layer():
    layer = torch.nn.Linear(12, 9, bias=False).double()
    x = randn(7, 12)
    output = layer(x)
    loss = output.square().sum()
    (delta,) = torch.autograd.grad(loss, output, retain_graph=True)
    (gradient,) = torch.autograd.grad(loss, layer.weight)
    projection = FactorProjection(12, 9, 4, 3)
    small_a, small_delta = projection.project_factors(x, delta)
    assert torch.allclose((small_delta.T @ small_a).flatten(), projection(gradient.flatten()[None])[0])


def test_distortion():
    rotation = make("srht", d=32, k=32)
    found = rotation.distortion(torch.cat([randn(4, 32), torch.zeros(1, 32, dtype=torch.float64)]))
    assert found.pop("rows") == 4
    assert max(found.values()) < 1e-14
    rows = randn(4, 24) * torch.tensor([[1e-3], [1.0], [50.0], [1e4]])
    projection = make("rademacher")
    images, norms = projection(rows), rows.norm(dim=1)
    pairs = [(i, j) for i in range(4) for j in range(i)]
    inner = [float((images[i] @ images[j] - rows[i] @ rows[j]) / (norms[i] * norms[j])) for i, j in pairs]
    norm = (images.norm(dim=1) / norms - 1).tolist()
    found = projection.distortion(rows)
    assert found == pytest.approx(
        {
            "rows": 4,
            "norm_max": max(map(abs, norm)),
            "norm_rms": float(np.sqrt(np.mean(np.square(norm)))),
            "inner_max": max(map(abs, inner)),
            "inner_rms": float(np.sqrt(np.mean(np.square(inner)))),
        }
    )
    one = projection.distortion(rows[:1])
    assert math.isnan(one["inner_max"])
    assert math.isnan(one["inner_rms"])
    assert make("rademacher", d=4000, k=2000).distortion(randn(3, 4000))["inner_max"] < 0.1


def test_errors():
    projection, two_sided = make("rademacher"), make("two-sided")
    for wrong in (torch.zeros(3, 23), torch.zeros(24)):
        with pytest.raises(ValueError, match="matrix: expected"):
            projection(wrong)
    with pytest.raises(TypeError, match="floats"):
        projection(torch.zeros(3, 24, dtype=torch.int64))
    with pytest.raises(ValueError, match="finite"):
        projection.distortion(torch.full((2, 24), torch.nan))
    with pytest.raises(ValueError, match="expected a"):
        two_sided.project_factors(torch.zeros(2, 5), torch.zeros(2, 4))
    for arguments, options, error in [
        ((24, 25), {}, ValueError),
        ((24, 0), {}, ValueError),
        ((24, 2.0), {}, TypeError),
        ((24, 8), {"kind": "gauss"}, ValueError),
        ((24, 8), {"kind": "sparse", "nonzeros": 3}, ValueError),
        ((24, 8), {"seed": -1}, ValueError),
        ((24, 8), {"seed": None}, TypeError),
    ]:
        with pytest.raises(error):
            Projection(*arguments, **options)
    with pytest.raises(ValueError, match="k_out"):
        FactorProjection(6, 4, 2, 5)
