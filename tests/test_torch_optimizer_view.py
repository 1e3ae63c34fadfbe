"""The linearised step of an optimizer against the steps that torch itself makes."""

import copy

import pytest

torch = pytest.importorskip("torch")

from pysubmod.torch.optimizer_view import optimizer_view  # noqa: E402

torch.set_num_threads(1)


def tensor(value):
    """In float64: torch computes 1 - lr * weight_decay and beta ** step in the type it is given."""
    return torch.tensor(value, dtype=torch.float64)


SGD = [
    {},
    {"weight_decay": 0.1},
    {"momentum": 0.9},
    {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1},
    {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    {"momentum": 0.9, "dampening": 0.3, "maximize": True, "weight_decay": 0.1},
    {"momentum": 0.9, "fused": True},
    {"lr": tensor(0.05), "foreach": True, "momentum": 0.5},
]
ADAM = [
    {},
    {"betas": (0.8, 0.9), "eps": 1e-3},
    {"amsgrad": True, "betas": (0.8, 0.9)},
    {"maximize": True, "betas": (0.8, 0.9)},
    {"fused": True},
    {"foreach": True, "amsgrad": True, "fused": False},
    {"lr": tensor(0.05)},
    {"lr": tensor(0.05), "betas": (tensor(0.8), tensor(0.9)), "foreach": False},
]
DECAYING = [{"weight_decay": 0.1}, {"weight_decay": 0.1, "maximize": True, "amsgrad": True, "betas": (0.5, 0.7)}]
CASES = (
    [(torch.optim.SGD, options) for options in SGD]
    + [(torch.optim.Adam, {"weight_decay": 0.0, **options}) for options in ADAM]
    + [(torch.optim.AdamW, options) for options in [*ADAM, *DECAYING]]
)
COUPLED = [(torch.optim.Adam, options) for options in DECAYING]


def randn(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def trained(kind, options, steps=3, dtype=torch.float64):
    """A parameter (4, 3) and its optimizer after some steps of very different gradients."""
    p = torch.nn.Parameter(randn(4, 3, seed=1).to(dtype))
    optimizer = kind([p], **{"lr": 0.05, **options})
    for step in range(steps):
        p.grad = (randn(4, 3, seed=10 + step) * 10.0 ** (1 - step)).to(dtype)
        optimizer.step()
    p.grad = None
    return p, optimizer


def stepped(p, optimizer, gradient):
    """What one real step with this gradient adds to p; on copies."""
    q, copied = copy.deepcopy((p, optimizer))
    assert copied.param_groups[0]["params"][0] is q
    if optimizer.state:
        assert q in copied.state
    q.grad = gradient.clone()
    copied.step()
    return (q - p).detach()


def predicted(view, p, gradient):
    return -view.lr[p] * (view.offset[p] + view.scale[p] * gradient)


@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize(("kind", "options"), CASES)
def test_derivative(kind, options, steps):
    p, optimizer = trained(kind, options, steps)
    view = optimizer_view(optimizer)
    zero = torch.zeros_like(p)
    # The step is curved over |h| ~ sqrt(v) + eps, so h is small against that: 1 / D, up to a constant.
    h = 1e-4 * randn(4, 3, seed=3) / view.scale[p].abs()
    base = stepped(p, optimizer, zero)
    assert torch.allclose(base, predicted(view, p, zero), rtol=1e-12, atol=1e-14)
    change = stepped(p, optimizer, h) - base
    assert torch.allclose(change, -view.lr[p] * view.scale[p] * h, rtol=2e-3, atol=1e-13)
    assert float(change.abs().max()) > 1e-7


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize(("kind", "options"), [case for case in CASES if case[0] is torch.optim.SGD])
def test_sgd_is_exact(kind, options, steps):
    p, optimizer = trained(kind, options, steps)
    view = optimizer_view(optimizer)
    for seed in (5, 6):
        gradient = 100 * randn(4, 3, seed=seed)
        assert torch.allclose(stepped(p, optimizer, gradient), predicted(view, p, gradient), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize(("kind", "options"), [case for case in [*CASES, *COUPLED] if case[0] is not torch.optim.SGD])
def test_adam_is_exact_at_a_gradient(kind, options, steps):
    p, optimizer = trained(kind, options, steps)
    for gradient in (torch.zeros(4, 3, dtype=torch.float64), randn(4, 3, seed=5), 1e3 * randn(4, 3, seed=6)):
        view = optimizer_view(optimizer, at={p: gradient})
        assert torch.allclose(stepped(p, optimizer, gradient), predicted(view, p, gradient), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("options", DECAYING)
def test_coupled_decay_leaves_out_its_effect_on_v(options):
    """The documented exception: d divisor / d g = (1 - beta2) h / (bias2 sqrt(v_next / bias2)) is taken as 0."""
    p, optimizer = trained(torch.optim.Adam, {"eps": 1e-3, **options})
    view = optimizer_view(optimizer)
    group, state = optimizer.param_groups[0], optimizer.state[p]
    (_, beta2), sign = group["betas"], -1.0 if group["maximize"] else 1.0
    bias2, added = 1 - beta2**4, 0.1 * p.detach()
    v_next = beta2 * state["exp_avg_sq"] + (1 - beta2) * added**2
    used = torch.maximum(v_next, state["max_exp_avg_sq"]) if group["amsgrad"] else v_next
    root = (used / bias2).sqrt()
    slope = torch.where(used == v_next, sign * (1 - beta2) * added / (bias2 * root), 0.0)
    exact = view.scale[p] - view.offset[p] * slope / (root + 1e-3)
    h = 1e-5 * randn(4, 3, seed=3)
    change = stepped(p, optimizer, h) - stepped(p, optimizer, -h)
    assert torch.allclose(change, -0.05 * exact * 2 * h, rtol=1e-5, atol=1e-13)


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_variants(kind):
    p, optimizer = trained(kind, {"betas": (0.8, 0.9), "eps": 1e-2, "weight_decay": 0.0})
    state, gradient = optimizer.state[p], randn(4, 3, seed=5)
    m, v = state["exp_avg"], state["exp_avg_sq"]
    frozen = optimizer_view(optimizer, variant="frozen")
    divisor = (1 - 0.8**4) * ((v / (1 - 0.9**4)).sqrt() + 1e-2)
    assert torch.allclose(frozen.scale[p], 0.2 / divisor, rtol=1e-12)
    assert torch.allclose(frozen.offset[p], 0.8 * m / divisor, rtol=1e-12)
    # LESS: the moments with one sample's gradient, m / sqrt(v + eps), no bias correction.
    less = optimizer_view(optimizer, variant="less", at={p: gradient})
    update = (0.8 * m + 0.2 * gradient) / (0.9 * v + 0.1 * gradient**2 + 1e-2).sqrt()
    assert torch.allclose(less.offset[p] + less.scale[p] * gradient, update, rtol=1e-12)
    assert (less.variant, less.lr) == ("less", {p: 0.05})
    with pytest.raises(ValueError, match="no effect"):
        optimizer_view(optimizer, variant="frozen", at={p: gradient})


def test_fresh_parameters():
    p = torch.nn.Parameter(randn(4, 3, seed=1).float())
    optimizer = torch.optim.AdamW([p], lr=0.1, weight_decay=0.5)
    view = optimizer_view(optimizer)
    assert torch.allclose(view.scale[p], torch.full((4, 3), 1e8))
    assert torch.equal(view.offset[p], 0.5 * p.detach())
    gradient = randn(4, 3, seed=2).float()
    view = optimizer_view(optimizer, at={p: gradient})
    assert torch.allclose(view.scale[p] * gradient, gradient.sign())
    assert torch.allclose(optimizer_view(optimizer, variant="less").scale[p], torch.full((4, 3), 0.1 * 1e4))
    assert not optimizer.state
    with pytest.raises(ValueError, match="divides by 0"):
        optimizer_view(torch.optim.Adam([p], eps=0.0))


@pytest.mark.parametrize(("kind", "options"), [*CASES, *COUPLED])
def test_nothing_is_changed(kind, options):
    p, optimizer = trained(kind, options)
    fresh = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
    optimizer.add_param_group({"params": [fresh]})
    p.grad = randn(4, 3, seed=8)
    before = copy.deepcopy((p.detach(), p.grad, optimizer.state_dict()))
    view = optimizer_view(optimizer, [("p", p), ("fresh", fresh)])
    for tensor in (*view.scale.values(), *view.offset.values()):
        assert not tensor.requires_grad
        tensor.fill_(7.0)  # nor does the view share memory with it
    assert fresh not in optimizer.state
    assert fresh.grad is None
    after = (p.detach(), p.grad, optimizer.state_dict())
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[1], after[1])
    assert before[2]["param_groups"] == after[2]["param_groups"]
    assert before[2]["state"].keys() == after[2]["state"].keys()
    for key, state in before[2]["state"].items():
        assert state.keys() == after[2]["state"][key].keys()
        for name, value in state.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(after[2]["state"][key][name]))


def two_groups(first=0.1, second=0.02):
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)).double()
    model[0].bias.requires_grad_(False)
    optimizer = torch.optim.AdamW(
        [
            {"params": [model[0].weight], "lr": first, "betas": (0.5, 0.9)},
            {"params": list(model[1].parameters()), "lr": second},
        ]
    )
    columns = {"1.weight": slice(0, 8), "0.weight": slice(10, None), "1.bias": slice(8, 10)}
    return model, optimizer, columns


def test_groups_apply_and_target():
    model, optimizer, columns = two_groups()
    for seed in range(3):
        model(randn(5, 3, seed=seed)).square().sum().backward()
        optimizer.step()
    named = dict(model.named_parameters())
    gradient = randn(22, seed=9)
    parts = {name: gradient[columns[name]].view_as(named[name]) for name in columns}
    view = optimizer_view(optimizer, named.items(), at=parts)
    assert view.lr == {"0.weight": 0.1, "1.weight": 0.02, "1.bias": 0.02}
    before = {name: p.detach().clone() for name, p in named.items()}
    for name, part in parts.items():
        named[name].grad = part.clone()
    optimizer.step()
    moved = torch.cat([(named[name] - before[name]).flatten() for name in ("1.weight", "1.bias", "0.weight")])
    update = moved.detach() / -0.1
    # The update that a gradient makes, less what is made without it, is D g.
    assert torch.allclose(view.target(update, columns), view.apply(gradient, columns), rtol=1e-10)
    rows = randn(3, 22, seed=4)
    assert torch.allclose(view.apply(rows, columns)[1], view.apply(rows[1], columns))
    assert view.apply(rows.bfloat16(), columns).dtype == torch.float64
    # In proportion, whatever the schedule multiplies the rates by.
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    assert torch.equal(
        optimizer_view(optimizer, named).apply(rows, columns)[:, 10:],
        rows[:, 10:] * optimizer_view(optimizer).scale[model[0].weight].flatten(),
    )


def test_bfloat16_parameters_and_wrapped_optimizers():
    p, optimizer = trained(torch.optim.AdamW, {}, dtype=torch.bfloat16)
    view = optimizer_view(optimizer)
    assert view.scale[p].dtype == view.offset[p].dtype == torch.float32
    assert view.apply(torch.ones(2, 12, dtype=torch.float16), {p: slice(0, 12)}).dtype == torch.float32

    class Wrapper(torch.optim.Optimizer):  # as accelerate's
        def __init__(self):
            self.optimizer = optimizer

    assert torch.equal(optimizer_view(Wrapper()).scale[p], view.scale[p])


def test_errors():
    model, optimizer, columns = two_groups()
    p = torch.nn.Parameter(torch.ones(2))

    class Mine(torch.optim.Adam):
        pass

    for other in (torch.optim.NAdam([p]), torch.optim.RMSprop([p]), Mine([p]), None):
        with pytest.raises(TypeError, match="SGD, Adam, AdamW; got"):
            optimizer_view(other)
    with pytest.raises(ValueError, match="variant: expected one of torch, frozen, less"):
        optimizer_view(optimizer, variant="adam")
    with pytest.raises(ValueError, match="of Adam and AdamW only"):
        optimizer_view(torch.optim.SGD([p], lr=0.1), variant="less")
    with pytest.raises(ValueError, match="'p' needs a gradient but is not in the optimizer"):
        optimizer_view(optimizer, {"p": p})
    with pytest.raises(ValueError, match="complex"):
        optimizer_view(torch.optim.Adam([torch.nn.Parameter(torch.ones(2, dtype=torch.complex64))]))
    for at in ({"q": torch.ones(2)}, {"1.bias": torch.ones(3)}):
        with pytest.raises(ValueError, match="at: expected"):
            optimizer_view(optimizer, model.named_parameters(), at=at)
    view = optimizer_view(optimizer, model.named_parameters())
    with pytest.raises(KeyError, match=r"0\.bias"):
        view.apply(torch.zeros(2, 26), {**columns, "0.bias": slice(22, 26)})
    for wrong in (
        {**columns, "1.bias": slice(7, 9)},
        {**columns, "1.bias": slice(8, 9)},
        {"1.weight": slice(0, 8), "0.weight": slice(10, 22)},
        {"1.weight": slice(0, 8)},
    ):
        with pytest.raises(ValueError, match="columns"):
            view.apply(torch.zeros(2, 22), wrong)
    with pytest.raises(ValueError, match="update: expected"):
        view.target(torch.zeros(2, 22), columns)
