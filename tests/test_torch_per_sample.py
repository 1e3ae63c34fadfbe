"""Per-sample gradients against a backward pass for each sample alone, and what must not change in passing."""

from __future__ import annotations

import copy
import subprocess
import sys

import numpy as np
import pytest

import pysubmod

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

from pysubmod.torch import (  # noqa: E402
    PerSampleGradients,
    _blocks,
    _products,
    causal_lm_loss,
    gradient_matching,
    per_sample_gradients,
)

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def one_by_one(model, compute_loss, batch, names):
    """Rows of G by a backward pass each, columns as in `matrix`."""
    parameters = dict(model.named_parameters())
    n = len(batch[0] if isinstance(batch, tuple) else next(iter(batch.values())))
    rows = []
    for i in range(n):
        one = (
            tuple(t[i : i + 1] for t in batch)
            if isinstance(batch, tuple)
            else {k: t[i : i + 1] for k, t in batch.items()}
        )
        loss = compute_loss(model, one)
        loss = loss[0][loss[1]] if isinstance(loss, tuple) else loss
        found = torch.autograd.grad(loss.sum(), [parameters[name] for name in names], allow_unused=True)
        flat = [torch.zeros_like(parameters[k]) if g is None else g for g, k in zip(found, names, strict=True)]
        rows.append(torch.cat([g.flatten() for g in flat]))
    return torch.stack(rows)


def close(found, expected, tolerance=1e-6):
    """To `tolerance` of the longest row."""
    scale = expected.double().norm(dim=-1).max()
    assert scale > 0
    assert (found.double() - expected.double()).norm(dim=-1).max() <= tolerance * scale


def verify(model, compute_loss, batch, **options):
    """Every product against the explicit rows, and these against single backward passes."""
    g = per_sample_gradients(model, compute_loss, batch, **options)
    G = one_by_one(model, compute_loss, batch, list(g.shapes))
    close(g.matrix(), G)
    exact = g.matrix(torch.float64)
    weights = torch.linspace(-1, 2, g.n)
    close(g.gram(), exact @ exact.T, 1e-10)
    assert torch.equal(g.gram(), g.gram().T)
    close(g.gram(torch.float32), exact @ exact.T, 1e-5)
    close(g.norms()[None], exact.norm(dim=1)[None], 1e-6)
    flat = torch.cat([t.flatten() for t in g.sum(weights).values()])
    close(flat[None], (weights.double() @ exact)[None])
    t = g.mean(torch.float64)
    close(g.dot(t)[None], (exact @ torch.cat([x.flatten() for x in t.values()]))[None], 1e-10)
    return g


def squares(model, batch):
    return (model(batch[0]) - batch[1]).square().flatten(1).sum(1)


def token_squares(model, batch):
    return model(*batch).square().flatten(1).sum(1)


class LoRA(nn.Module):
    def __init__(self, base, rank=2):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.lora_A = nn.Linear(base.in_features, rank, bias=False)
        self.lora_B = nn.Linear(rank, base.out_features, bias=False)

    def forward(self, x):
        return self.base(x) + 0.5 * self.lora_B(self.lora_A(x))


class RMSNorm(nn.Module):
    """As in transformers; `offset` 1 is Gemma's."""

    def __init__(self, d, offset=0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(d))
        self.offset = offset

    def forward(self, x):
        return (self.offset + self.weight) * x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()


class Tiny(nn.Module):
    """A causal transformer of one block, all parts named."""

    def __init__(self, vocabulary=13, d=8, checkpointing=None, dropout=0.0):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, d)
        self.place = nn.Embedding(16, d)
        self.norm1, self.norm2 = nn.LayerNorm(d), RMSNorm(d)
        self.q, self.k, self.v = (nn.Linear(d, d) for _ in range(3))
        self.up, self.down = nn.Linear(d, 2 * d), nn.Linear(2 * d, d)
        self.head = nn.Linear(d, vocabulary, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.checkpointing = checkpointing

    def block(self, x):
        y = self.norm1(x)
        attended = F.scaled_dot_product_attention(self.q(y), self.k(y), self.v(y), is_causal=True)
        x = x + self.dropout(attended)
        return x + self.down(F.relu(self.up(self.norm2(x)), inplace=True))

    def forward(self, input_ids):
        x = self.embed(input_ids) + self.place(torch.arange(input_ids.shape[1]).expand_as(input_ids))
        x = self.block(x) if self.checkpointing is None else checkpoint(self.block, x, use_reentrant=self.checkpointing)
        return self.head(x)


def text(n=6, T=7, seed=0):
    """Ragged: the labels of the padding are -100."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 13, (n, T), generator=generator)
    labels = ids.clone()
    for i in range(n):
        length = 3 + i % (T - 2)
        ids[i, length:], labels[i, length:] = 0, -100
    return {"input_ids": ids, "labels": labels}


# ---- exact ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 3), (5, 4, 3), (5, 40, 3), (5, 2, 3, 3), (1, 3)])
def test_linear(shape, bias):
    model = nn.Sequential(nn.Linear(3, 6, bias=bias), nn.Tanh(), nn.Linear(6, 2, bias=bias))
    verify(model, squares, (torch.randn(shape), torch.randn(*shape[:-1], 2)))


def test_only_the_bias_is_trained():
    model = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2))
    for layer in (model[0], model[2]):
        layer.weight.requires_grad_(False)
    g = verify(model, squares, (torch.randn(5, 3), torch.randn(5, 2)))
    assert list(g.shapes) == ["0.bias", "2.bias"]


def test_lora_and_its_start():
    model = nn.Sequential(LoRA(nn.Linear(6, 5)), nn.Tanh(), LoRA(nn.Linear(5, 4)))
    batch = torch.randn(4, 3, 6), torch.randn(4, 3, 4)
    g = verify(model, squares, batch)
    assert list(g.shapes) == [f"{i}.lora_{m}.weight" for i in (0, 2) for m in "AB"]
    for layer in (model[0], model[2]):
        nn.init.zeros_(layer.lora_B.weight)
    g = verify(model, squares, batch)
    G, columns = g.matrix(), g.columns
    assert not G[:, columns["0.lora_A.weight"]].any() and not G[:, columns["2.lora_A.weight"]].any()
    assert G[:, columns["2.lora_B.weight"]].any()


@pytest.mark.parametrize("padding_idx", [None, 2])
def test_embedding_with_repeated_tokens(padding_idx):
    model = nn.Sequential(nn.Embedding(5, 3, padding_idx=padding_idx), nn.Linear(3, 2))
    ids = torch.tensor([[1, 1, 2, 4], [2, 2, 2, 1], [0, 3, 0, 0]])
    verify(model, token_squares, (ids,))
    long = torch.randint(0, 5, (3, 200))  # each row many times: gradients in parts are cheaper
    verify(model, token_squares, (long,))


@pytest.mark.parametrize("norm", [nn.LayerNorm(4), nn.LayerNorm((3, 4)), nn.RMSNorm(4), RMSNorm(4), RMSNorm(4, 1.0)])
def test_norms(norm):
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    verify(nn.Sequential(norm, nn.Linear(4, 4)), token_squares, (torch.randn(5, 3, 4),))


@pytest.mark.parametrize("micro_batch", [None, 1, 4])
@pytest.mark.parametrize("checkpointing", [None, False])
def test_transformer_with_padding(checkpointing, micro_batch):
    g = verify(Tiny(checkpointing=checkpointing), causal_lm_loss, text(), micro_batch=micro_batch, check=True)
    assert g.n == 6 and g.d == sum(p.numel() for p in Tiny().parameters())
    assert list(g.shapes) == [name for name, _ in Tiny().named_parameters()]


def test_mean_over_the_tokens_of_a_sample():
    model, batch = Tiny(), text()
    total = per_sample_gradients(model, causal_lm_loss, batch)
    mean = per_sample_gradients(model, causal_lm_loss, batch, reduction="mean")
    counts = (batch["labels"][:, 1:] != -100).sum(1)
    close(mean.matrix(), total.matrix() / counts[:, None])
    close(mean.losses[None], (total.losses / counts)[None])


def test_peft():
    peft = pytest.importorskip("peft")
    inner = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4))
    model = peft.get_peft_model(inner, peft.LoraConfig(r=2, target_modules=["0", "2"], init_lora_weights=False))
    g = verify(model, squares, (torch.randn(4, 3, 6), torch.randn(4, 3, 4)))
    assert len(g.shapes) == 4 and all("lora_" in name for name in g.shapes)


def test_transformers():
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=13, hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=16, tie_word_embeddings=False, use_cache=False,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    model.train()
    expected = verify(model, causal_lm_loss, text(), check=True)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    close(per_sample_gradients(model, causal_lm_loss, text()).matrix(), expected.matrix())
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    with pytest.raises(ValueError, match="use_reentrant"):
        per_sample_gradients(model, causal_lm_loss, text())


def test_one_module_called_twice_and_tied_linears():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.f, self.g, self.norm = nn.Linear(4, 4), nn.Linear(4, 4), nn.LayerNorm(4)
            self.g.weight = self.f.weight

        def forward(self, x):
            return self.g(self.norm(self.f(self.norm(self.f(x).tanh())).tanh()))

    verify(Twice(), token_squares, (torch.randn(5, 3, 4),))


def test_layers_that_do_not_matter_have_zero_columns():
    class Extra(nn.Module):
        def __init__(self):
            super().__init__()
            self.f, self.unused, self.never = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(9, 9)
            self.norm, self.table = nn.LayerNorm((2, 4)), nn.Embedding(3, 4)

        def forward(self, x):
            self.unused(x)
            return self.f(x)

    verify(Extra(), token_squares, (torch.randn(5, 3, 4),))


def test_bfloat16_and_autocast():
    model, batch = Tiny(), text()
    reference = per_sample_gradients(model, causal_lm_loss, batch)
    with torch.autocast("cpu", torch.bfloat16):
        cast = per_sample_gradients(model, causal_lm_loss, batch)
    half = per_sample_gradients(copy.deepcopy(model).bfloat16(), causal_lm_loss, batch)
    for found in (cast, half):
        close(found.matrix(), reference.matrix(), 0.05)
        G = found.matrix(torch.float64)
        close(found.gram(), G @ G.T, 1e-6)
    scaled = per_sample_gradients(model, causal_lm_loss, batch, loss_scale=1024.0)
    close(scaled.matrix(), reference.matrix())


# ---- products -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [1, 64, 1 << 22])
@pytest.mark.parametrize(("T", "p", "q"), [(3, 20, 30), (16, 4, 3), (1, 4, 3)])
def test_routes_agree_whatever_the_blocks(T, p, q, budget, monkeypatch):
    monkeypatch.setattr(_blocks, "BUDGET", budget)
    x = _blocks.Outer("w", (q, p), torch.randn(5, T, q), torch.randn(5, T, p))
    y = _blocks.Outer("w", (q, p), torch.randn(3, T + 2, q), torch.randn(3, T + 2, p))
    ids = torch.randint(0, 7, (5, T)), torch.randint(0, 7, (3, T + 2))
    pairs = [(x, y), (_blocks.Lookup("e", (7, q), x.deltas, ids[0]), _blocks.Lookup("e", (7, q), y.deltas, ids[1]))]
    for left, right in pairs:
        rows = slice(0, left.shape[0])
        G, H = left.part(rows, torch.float64), right.part(rows, torch.float64)
        for route in (_products._by_pairs, _products._by_parts, _products.inner):
            close(route(left, right, torch.float64), G @ H.T, 1e-12)
        close(_products.inner(left, left, torch.float64), G @ G.T, 1e-12)
        close(left.squares_of_pairs(torch.float64)[None], left.squares_of_parts(torch.float64)[None], 1e-12)
    close(_products.inner(x.form(), y, torch.float64), _products.inner(x, y, torch.float64), 1e-5)
    close(x.form().weighted_sum(torch.ones(5), torch.float64), x.weighted_sum(torch.ones(5), torch.float64))


def test_concatenation_of_different_lengths():
    model = Tiny()
    parts = [per_sample_gradients(model, causal_lm_loss, text(3, T, T)) for T in (5, 9, 16)]
    whole = PerSampleGradients.concatenate([parts[0], parts[1].normalized(), parts[2]])
    G = torch.cat([parts[0].matrix(), parts[1].normalized().matrix(), parts[2].matrix()])
    close(whole.matrix(), G)
    close(whole.gram(), G.double() @ G.double().T, 1e-5)
    close(whole.inner(parts[2]), G.double() @ parts[2].matrix(torch.float64).T, 1e-5)


def test_unit_norm_is_over_all_parameters():
    g = per_sample_gradients(Tiny(), causal_lm_loss, text())
    unit, G = g.normalized(), g.matrix(torch.float64)
    close(unit.matrix(torch.float64), G / G.norm(dim=1, keepdim=True))
    assert torch.allclose(unit.norms(), torch.ones(6).double(), rtol=1e-12)
    assert torch.allclose(unit.gram().diagonal(), torch.ones(6).double(), rtol=1e-12)
    close(unit.normalized().gram(), unit.gram(), 1e-12)
    with torch.no_grad():
        batch = text()
        batch["labels"][0] = -100
    assert per_sample_gradients(Tiny(), causal_lm_loss, batch).normalized().norms()[0] == 0


@pytest.mark.parametrize("unit_norm", [False, True])
def test_selection_from_k_and_c_is_that_from_the_matrix(unit_norm):
    model = Tiny()
    train = per_sample_gradients(model, causal_lm_loss, text(24, 9, 1), micro_batch=8)
    validation = per_sample_gradients(model, causal_lm_loss, text(10, 6, 2))
    groups = np.arange(24) % 3
    rows = train.normalized() if unit_norm else train
    t = torch.cat([v.flatten() for v in validation.mean(torch.float64).values()])
    explicit = pysubmod.GradientMatching(rows.matrix(torch.float64), t, ridge=1e-3)
    matroid = pysubmod.PartitionMatroid(groups, {0: 3, 1: 3, 2: 3})
    expected = pysubmod.solve(explicit, matroid)
    for target in (validation, validation.mean(torch.float64)):
        problem = gradient_matching(train, target, unit_norm=unit_norm, ridge=1e-3)
        found = pysubmod.solve(problem, matroid)
        assert found.indices.tolist() == expected.indices.tolist()
        np.testing.assert_allclose(found.weights, expected.weights, rtol=1e-6)
        np.testing.assert_allclose(found.residual_norms, expected.residual_norms, rtol=1e-6)
    single = gradient_matching(train, validation, unit_norm=unit_norm, ridge=1e-3, dtype=torch.float32)
    assert pysubmod.solve(single, matroid).indices.tolist() == expected.indices.tolist()


# ---- nothing else changes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eval_mode", [False, True])
def test_training_goes_on_as_if_nothing_had_been(eval_mode):
    def train(captures):
        torch.manual_seed(3)
        model = Tiny(dropout=0.2)
        model.norm1.eval()
        optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
        for step in range(4):
            causal_lm_loss(model, text(seed=step))[0].sum().backward()
            if captures:
                before = [p.grad for p in model.parameters()]
                with torch.no_grad():
                    per_sample_gradients(model, causal_lm_loss, text(seed=9), micro_batch=4, eval_mode=eval_mode)
                assert all(p.grad is g for p, g in zip(model.parameters(), before, strict=True))
                assert not any(module._forward_hooks for module in model.modules())
            if step % 2:  # accumulation over two steps
                optimizer.step()
                optimizer.zero_grad()
        modes = [module.training for module in model.modules()]
        state = [t for s in optimizer.state.values() for t in s.values()]
        return [*model.parameters(), *state, torch.get_rng_state()], modes

    (with_captures, modes), (without, same_modes) = train(True), train(False)
    assert modes == same_modes
    assert all(torch.equal(a, b) for a, b in zip(with_captures, without, strict=True))


def test_the_batch_may_be_overwritten_afterwards():
    model = nn.Sequential(nn.Embedding(50, 30), nn.Linear(30, 20))
    ids = torch.randint(0, 50, (4, 3))
    g = per_sample_gradients(model, token_squares, (ids,))
    x = torch.randn(4, 3, 30)
    h = per_sample_gradients(model[1], token_squares, (x,))
    before = g.gram(), h.gram()
    ids.zero_()
    x.zero_()
    assert torch.equal(g.gram(), before[0]) and torch.equal(h.gram(), before[1])


def test_importing_the_package_does_not_import_torch():
    code = "import sys, pysubmod; assert 'torch' not in sys.modules and 'pysubmod.torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture(scope="module")
def gloo(tmp_path_factory):
    dist = torch.distributed
    if not dist.is_available() or not dist.is_gloo_available():
        pytest.skip("this torch has no gloo")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path_factory.mktemp('gloo')}/store", rank=0, world_size=1)
    yield dist
    dist.destroy_process_group()


def test_ddp(gloo):
    model = Tiny()
    expected = per_sample_gradients(model, causal_lm_loss, text()).matrix()
    wrapped = nn.parallel.DistributedDataParallel(model)
    for _ in range(2):
        found = per_sample_gradients(wrapped, causal_lm_loss, text())
        close(found.matrix(), expected)
        assert all(p.grad is None for p in model.parameters())
        causal_lm_loss(wrapped, text())[0].sum().backward()
        wrapped.zero_grad()


def test_fsdp2(gloo):
    fsdp = pytest.importorskip("torch.distributed.fsdp")
    model = Tiny()
    expected = per_sample_gradients(model, causal_lm_loss, text()).matrix()
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
    for layer in (model.down, model.norm2, model):
        fsdp.fully_shard(layer, mesh=mesh)
    for _ in range(2):
        found = per_sample_gradients(model, causal_lm_loss, text())
        close(found.matrix(), expected)
        assert all(p.grad is None for p in model.parameters())
        causal_lm_loss(model, text())[0].sum().backward()
        model.zero_grad()


# ---- refusals -------------------------------------------------------------------------------------------------------


class Broken(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.how = how
        self.f, self.table = nn.Linear(4, 4), nn.Embedding(5, 4)
        self.odd = nn.Parameter(torch.ones(4)) if how == "own parameter" else None
        self.norm = nn.BatchNorm1d(4) if how == "batchnorm" else nn.Identity()
        if how == "tied":
            self.head = nn.Linear(4, 5, bias=False)
            self.head.weight = self.table.weight
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x):
        y = self.f(x)
        if self.how == "fused":
            y = F.linear(y, self.table.weight)
        elif self.how == "used again":
            y = F.linear(y, self.f.weight)
        elif self.how == "view changed in place":
            y.relu_()
        elif self.how == "input changed in place":
            z = y * 1.0
            y = self.f(z)
            z.mul_(2.0)
        elif self.how == "no_grad":
            with torch.no_grad():
                y = self.f(x) + self.table(torch.zeros(len(x), 1, dtype=torch.long))[:, 0, :4]
            y = y + self.f(x)
        elif self.how == "buffer":
            self.count += 1
        elif self.how == "positions":
            y = y + self.table(torch.arange(x.shape[1]))
        elif self.how == "shared positions":
            y = (y[:, None] + self.table(torch.arange(5))).sum(1)
        elif self.how == "mixed":
            y = y + y.mean(0)
        return self.norm(y)


@pytest.mark.parametrize(
    ("how", "options", "error", "words"),
    [
        ("own parameter", {}, ValueError, "layers: only Linear.*odd \\(Broken\\).*leave them out with layers="),
        ("batchnorm", {}, ValueError, "layers: only Linear.*norm.weight \\(BatchNorm1d\\)"),
        ("batchnorm", {"layers": "f"}, ValueError, "model: norm \\(BatchNorm1d\\).*eval_mode=True"),
        ("tied", {}, ValueError, "layers: table.weight is tied between table .* and head"),
        ("fused", {}, ValueError, "layers: the loss uses table.weight 1 times, but 0 times"),
        ("used again", {}, ValueError, "layers: the loss uses f.weight 2 times, but 1 times"),
        ("input changed in place", {"layers": "f"}, RuntimeError, "in place"),
        ("no_grad", {}, ValueError, "layers: table ran without gradients"),
        ("buffer", {}, RuntimeError, "model: its forward pass writes to the buffer count"),
        ("shared positions", {}, ValueError, "layers: the loss of a sample depends on the output of table"),
        ("mixed", {"check": True}, ValueError, "layers: the loss of a sample depends on the output of f"),
        ("", {"layers": "nothing"}, ValueError, "layers: no module is called 'nothing'"),
        ("", {"layers": "tabel"}, ValueError, "did you mean 'table'"),
        ("", {"layers": 3}, TypeError, "layers: expected names"),
        ("", {"layers": "norm"}, ValueError, "layers: no module among the chosen"),
        ("", {"layers": "table"}, ValueError, "compute_loss: calls none"),
        ("", {"reduction": "max"}, ValueError, "reduction"),
        ("", {"reduction": "mean"}, ValueError, "compute_loss: reduction='mean' needs"),
        ("", {"loss_scale": 0}, ValueError, "loss_scale"),
        ("", {"micro_batch": 0}, ValueError, "micro_batch"),
    ],
)
def test_errors(how, options, error, words):
    with pytest.raises(error, match=words):
        per_sample_gradients(Broken(how), token_squares, (torch.randn(5, 4),), **options)


def test_more_errors():
    x = (torch.randn(5, 3, 4),)
    with pytest.raises(ValueError, match=r"layers: the output of table.*position embeddings"):
        per_sample_gradients(Broken("positions"), token_squares, x)
    good = Broken("")
    with pytest.raises(ValueError, match="compute_loss: returned a scalar"):
        per_sample_gradients(good, lambda m, b: m(*b).sum(), x)
    with pytest.raises(ValueError, match="compute_loss: the losses depend on no"):
        per_sample_gradients(good, lambda m, b: m(*b).detach().sum((1, 2)), x)
    with pytest.raises(ValueError, match="reentrant"):
        per_sample_gradients(Tiny(checkpointing=True), causal_lm_loss, text())
    with pytest.raises(ValueError, match="packing=False"):
        causal_lm_loss(Tiny(), {**text(), "cu_seq_lens_q": None})
    g = per_sample_gradients(good, token_squares, x)
    other = per_sample_gradients(Tiny(), causal_lm_loss, text())
    with pytest.raises(ValueError, match="same layers="):
        g.inner(other)
    with pytest.raises(ValueError, match="weights: expected shape"):
        g.sum([1.0])
    good.f.weight.ds_id = 0
    with pytest.raises(ValueError, match="ZeRO-3"):
        per_sample_gradients(good, token_squares, x)


@pytest.mark.parametrize("layers", ["f", ["f"], "*f*", lambda name, module: name == "f"])
def test_ways_to_name_layers(layers):
    g = per_sample_gradients(Broken("own parameter"), token_squares, (torch.randn(5, 4),), layers=layers)
    assert list(g.shapes) == ["f.weight", "f.bias"]
    assert g.columns == {"f.weight": slice(0, 16), "f.bias": slice(16, 20)}


def test_the_mean_over_tokens_is_that_of_a_trainer():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 9)).double()
    ids, mask = torch.randint(9, (6, 5)), torch.rand(6, 5) < 0.6

    def per_token(model, batch):
        logits = model(batch[0])
        losses = nn.functional.cross_entropy(logits.transpose(1, 2), batch[0].roll(1, 1), reduction="none")
        return losses, batch[1]

    losses, _ = per_token(model, (ids, mask))
    mean = (losses * mask).sum() / mask.sum()
    expected = torch.autograd.grad(mean, list(model.parameters()))
    for micro_batch in (None, 2):
        found = per_sample_gradients(model, per_token, (ids, mask), reduction="token-mean", micro_batch=micro_batch)
        for part, whole in zip(found.mean(torch.float64).values(), expected, strict=True):
            torch.testing.assert_close(part, whole)
        assert found.losses.mean().item() == pytest.approx(mean.item())
        assert found.divisor == pytest.approx(float(mask.sum()) / 6)
        assert found.normalized().norms().tolist() == pytest.approx([1.0] * 6)
    with pytest.raises(ValueError, match="parts: each has a divisor of its own"):
        halves = [(ids[:3], mask[:3]), (ids[3:], mask[3:])]
        type(found).concatenate(
            [per_sample_gradients(model, per_token, half, reduction="token-mean") for half in halves]
        )
