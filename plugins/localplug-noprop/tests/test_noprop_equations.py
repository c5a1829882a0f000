"""Each algorithm's gradient against that of its loss, written out; the samples; the inference; what is refused."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import localplug
from localplug import Engine
from localplug_noprop.blocks import Block
from localplug_noprop.ct import NoPropCT
from localplug_noprop.dt import NoPropDT
from localplug_noprop.embeddings import one_hot, orthogonal
from localplug_noprop.fm import NoPropFM
from localplug_noprop.network import NoPropCTNet, NoPropFMNet, NoPropNet

K, D, T = 3, 5, 4


def block(takes_time=False, z_dim=D):
    return Block(nn.Linear(6, 7), embedded=7, z_dim=z_dim, num_classes=K, width=8, takes_time=takes_time)


def net(kind, is_learned=True, **options):
    torch.manual_seed(0)
    W = orthogonal(K, D)
    W = nn.Parameter(W) if is_learned else W
    return kind([block() for _ in range(T)] if kind is NoPropNet else block(takes_time=True), W, **options)


def data(n=9):
    g = torch.Generator().manual_seed(1)
    return torch.randn(n, 6, generator=g), torch.randint(0, K, (n,), generator=g)


def seen_by(module, found):
    """Takes down the inputs of a module's calls."""
    return module.register_forward_pre_hook(lambda _, args: found.append([a.detach().clone() for a in args]))


def evaluated(model, method, x, y, step=0):
    """The reported loss, the gradients by name, and what entered each unit."""
    engine = Engine(model, method, seed=3)
    engine.run.step = step
    entered = {name: [] for name in model.noprop}
    handles = [seen_by(model.noprop[name].linear if name == "out" and hasattr(model.noprop[name], "linear") else m, found)
               for (name, m), found in zip(model.noprop.items(), entered.values(), strict=True)
               if name not in ("posterior", "extrapolation")]  # fmt: skip
    loss = engine.evaluate(lambda: F.cross_entropy(model(x), y), targets=y)
    for handle in handles:
        handle.remove()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    engine.close()
    return float(loss), gradients, {name: calls[0] for name, calls in entered.items() if calls}


def wanted(model, loss):
    names, parameters = zip(*((n, p) for n, p in model.named_parameters() if p.requires_grad), strict=True)
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return {n: g for n, g in zip(names, found, strict=True) if g is not None}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-4, msg=name)


def again(z, ab, u):
    """The sample once more, as a function of u_y: z = sqrt(ab) u + sqrt(1 - ab) eps."""
    eps = (z - math.sqrt(ab) * u.detach()) / math.sqrt(1 - ab)
    return math.sqrt(ab) * u + math.sqrt(1 - ab) * eps


@pytest.mark.parametrize("is_learned", [False, True])
@pytest.mark.parametrize("turn", [None, 2])
def test_discrete_time_has_the_gradient_of_its_loss(is_learned, turn):
    """Of the mean of L_1 ... L_T, or of L_3 where it is block 3's turn; nothing leads from one block to another."""
    model, (x, y) = net(NoPropNet, is_learned), data()
    method = NoPropDT(eta=0.3, block_steps=None if turn is None else 5)
    loss, found, entered = evaluated(model, method, x, y, step=0 if turn is None else 5 * turn)
    W, ab = model.embedding, model.alpha_bar
    u_y = W[y]
    z_T = again(entered["out"][0], ab[T], u_y)
    p_out = F.cross_entropy(model.noprop["out"].linear(z_T), y)
    assert loss == pytest.approx(p_out.item())
    kl = sum(
        torch.distributions.kl_divergence(
            torch.distributions.MultivariateNormal(math.sqrt(ab[0]) * u, (1 - ab[0]) * torch.eye(D)),
            torch.distributions.MultivariateNormal(torch.zeros(D), torch.eye(D)),
        )
        for u in u_y
    ) / len(y)  # fmt: skip
    L = p_out + kl
    for t in range(1, T + 1) if turn is None else [turn + 1]:
        z = again(entered[f"t{t:03d}"][0], ab[t - 1], u_y)
        assert torch.equal(entered[f"t{t:03d}"][1], x)
        u = F.softmax(model.noprop[f"t{t:03d}"].block(z, x), -1) @ W
        rise = ab[t] / (1 - ab[t]) - ab[t - 1] / (1 - ab[t - 1])
        factor = T / 2 if turn is not None else 1 / 2  # the mean over t
        L = L + factor * 0.3 * rise * (u - u_y).square().sum(1).mean()
    assert_same(found, wanted(model, L))


@pytest.mark.parametrize("is_learned", [False, True])
def test_continuous_time_has_the_gradient_of_its_loss(is_learned):
    model, (x, y) = net(NoPropCTNet, is_learned, max_signal=0.97, min_signal=0.002), data()
    loss, found, entered = evaluated(model, NoPropCT(eta=0.3), x, y)
    z, seen_x, t = entered["denoiser"]
    W, schedule = model.embedding, model.noprop["denoiser"].schedule
    u_y = W[y]
    z_1 = again(entered["out"][0], 0.97, u_y)
    p_out = F.cross_entropy(model.noprop["out"].linear(z_1), y)
    assert loss == pytest.approx(p_out.item()) and torch.equal(seen_x, x) and ((t > 0) & (t < 1)).all()
    t = t.requires_grad_()
    ab = torch.sigmoid(-schedule(t)[0])
    (rise,) = torch.autograd.grad((ab / (1 - ab)).sum(), t, create_graph=True)  # SNR'(t)
    eps = ((z - ab.sqrt()[:, None] * u_y) / (1 - ab).sqrt()[:, None]).detach()
    z_t = ab.sqrt()[:, None] * u_y + (1 - ab).sqrt()[:, None] * eps
    u = F.softmax(model.noprop["denoiser"].block(z_t, x, t.detach()), -1) @ W
    L = p_out + 0.002 / 2 * u_y.square().sum(1).mean() + (0.3 / 2 * rise * (u - u_y).square().sum(1)).mean()
    assert_same(found, wanted(model, L))


@pytest.mark.parametrize("is_learned", [False, True])
def test_flow_matching_has_the_gradient_of_its_loss(is_learned):
    model, (x, y) = net(NoPropFMNet, is_learned), data()
    loss, found, entered = evaluated(model, NoPropFM(anchor=0.7), x, y)
    z, _, t = entered["velocity"]
    W = model.embedding
    u_y, t = W[y], t[:, None]
    z_0 = ((z - t * u_y) / (1 - t)).detach()
    z_t = t * u_y + (1 - t) * z_0
    v = model.noprop["velocity"].block(z_t, x, t[:, 0]) @ W
    z_1 = z_t + (1 - t) * v
    anchor = F.cross_entropy(-torch.cdist(z_1, W).square() / 2, y)
    assert loss == pytest.approx(anchor.item(), rel=1e-4)
    L = (v - (u_y - z_0)).square().sum(1).mean()
    assert_same(found, wanted(model, L + 0.7 * anchor if is_learned else L))


def test_samples_are_those_of_q():
    """Mean sqrt(ab) u_y and variance 1 - ab, another draw for each block and each step; of times the whole of (0, 1)."""
    model, (x, y) = net(NoPropNet, is_learned=False), data(4000)
    _, _, entered = evaluated(model, NoPropDT(), x, y)
    _, _, later = evaluated(model, NoPropDT(), x, y, step=1)
    noises = []
    for t in range(T + 1):
        z, ab = entered["out" if t == T else f"t{t + 1:03d}"][0], model.alpha_bar[t]
        for k in range(K):
            torch.testing.assert_close(z[y == k].mean(0), math.sqrt(ab) * model.embedding[k], atol=0.12, rtol=0)
        noises.append((z - math.sqrt(ab) * model.embedding[y]) / math.sqrt(1 - ab))
        assert noises[-1].var() == pytest.approx(1.0, abs=0.03)
    assert torch.stack(noises).flatten(1).corrcoef().fill_diagonal_(0).abs().max() < 0.05
    assert not torch.equal(entered["t001"][0], later["t001"][0])
    _, _, entered = evaluated(net(NoPropFMNet, is_learned=False), NoPropFM(), x, y)
    t = entered["velocity"][2].sort().values
    torch.testing.assert_close(t, torch.linspace(0, 1, 4000), atol=1e-3, rtol=0)


def test_blocks_take_turns():
    model, (x, y) = net(NoPropNet, is_learned=False), data()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    engine, moved = Engine(model, NoPropDT(block_steps=2), optimizer), []
    for _ in range(2 * T + 2):
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        engine.step(lambda: F.cross_entropy(model(x), y), optimizer, targets=y)
        names = {n.split(".")[1] for n, p in model.named_parameters() if not torch.equal(p, before[n])}
        assert "out" in names
        moved += names - {"out"}
    assert moved == [f"t{t:03d}" for t in (1, 1, 2, 2, 3, 3, 4, 4, 1, 1)]


class Oracle(nn.Module):
    """Says class 1 with certainty, whatever enters it."""

    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([0.0, 100.0]))

    def forward(self, z, x, t=None):
        return self.logits.expand(len(z), -1)


def test_inference_in_discrete_time_arrives_at_q():
    """With blocks that know u_y, z_T is distributed as q(z_T | y): mean sqrt(ab_T) u_y, variance 1 - ab_T."""
    W = torch.stack([torch.zeros(20_000), torch.full((20_000,), 2.0)])
    model, found = NoPropNet([Oracle() for _ in range(6)], W, max_signal=0.8), []
    seen_by(model.noprop["out"], found)
    model.eval()(torch.zeros(1, 3))
    z_T = found[0][0]
    assert z_T.mean() == pytest.approx(2 * math.sqrt(0.8), abs=0.01) and z_T.var() == pytest.approx(0.2, abs=0.01)


def test_inference_in_continuous_time_solves_its_equation():
    """With a block that knows u_y: sqrt(ab) u_y + sqrt(1 - ab) eps with one and the same eps, from t = 0 to t = 1."""
    W, found = torch.stack([torch.zeros(50), torch.full((50,), 2.0)]), []
    model = NoPropCTNet(Oracle(), W, num_steps=2000, max_signal=0.8, min_signal=0.01).eval()
    seen_by(model.noprop["out"], found)
    z_0 = model._start(torch.zeros(1, 3))
    model(torch.zeros(1, 3))
    eps = (z_0 - 0.1 * 2.0) / math.sqrt(0.99)
    torch.testing.assert_close(found[0][0], math.sqrt(0.8) * 2.0 + math.sqrt(0.2) * eps, atol=5e-3, rtol=0)


def test_inference_by_flow_is_eulers():
    model, (x, _) = net(NoPropFMNet, num_steps=5).eval(), data()
    z = model._start(x)
    for i in range(5):
        z = z + 0.2 * (model.noprop["velocity"].block(z, x, torch.full((len(x),), i / 5)) @ model.embedding)
    scores = model(x)
    torch.testing.assert_close(scores.softmax(-1), (-torch.cdist(z, model.embedding).square() / 2).softmax(-1))
    assert torch.equal(scores.argmax(-1), torch.cdist(z, model.embedding).argmin(-1))


@pytest.mark.parametrize("kind", [NoPropCTNet, NoPropFMNet])
def test_a_prediction_in_continuous_time_embeds_the_input_once(kind):
    model, (x, _) = net(kind, num_steps=6).eval(), data()
    calls = []
    seen_by(model.noprop[next(iter(model.noprop))].block.embed, calls)
    with torch.no_grad():
        model(x)
    assert len(calls) == 1


@pytest.mark.parametrize("kind", [NoPropNet, NoPropCTNet, NoPropFMNet])
def test_noise_of_predictions_follows_from_the_seed(kind):
    one, other, (x, _) = net(kind, seed=1), net(kind, seed=2), data()
    other.load_state_dict(one.state_dict())
    with torch.no_grad():
        assert torch.equal(one.eval()(x), one(x)) and not torch.equal(one(x), other.eval()(x))
        torch.testing.assert_close(one(x[4:5]), one(x)[4:5])  # an example by itself


def test_embeddings_are_one_tensor_that_is_saved_and_tied():
    model = net(NoPropNet)
    assert sum(p is model.embedding for p in model.parameters()) == 1
    fresh = net(NoPropNet)
    with torch.no_grad():
        model.embedding.add_(1.0)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh.embedding, model.embedding) and fresh.noprop["out"].embedding is fresh.embedding
    fixed = net(NoPropNet, is_learned=False)
    assert not any(p is fixed.embedding for p in fixed.parameters()) and "noprop.t001.embedding" in fixed.state_dict()


def test_a_larger_model_round_the_network():
    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.frozen = nn.Linear(6, 6).requires_grad_(False)
            self.head = net(NoPropNet)

        def forward(self, x):
            return self.head(self.frozen(x))

    model, (x, y) = Whole(), data()
    engine = Engine(model, NoPropDT())
    engine.evaluate(lambda: F.cross_entropy(model(x), y), targets=y)
    assert all((p.grad is None) == n.startswith("frozen") for n, p in model.named_parameters())


def test_bfloat16_autocast():
    for kind, method in ((NoPropNet, NoPropDT()), (NoPropCTNet, NoPropCT()), (NoPropFMNet, NoPropFM())):
        model, (x, y) = net(kind), data()
        _, exact, _ = evaluated(model, method, x, y)
        with torch.autocast("cpu", torch.bfloat16):
            _, rough, _ = evaluated(model, type(method)(), x, y)
        for name, gradient in exact.items():
            assert F.cosine_similarity(gradient.flatten(), rough[name].flatten(), dim=0) > 0.9, name


def test_what_is_refused():
    (x, y) = data()
    with pytest.raises(ValueError) as wrong:
        NoPropDT(eta=0, block_steps=0)
    assert "eta" in str(wrong.value) and "block_steps" in str(wrong.value)
    with pytest.raises(ValueError, match="eta must be positive"):
        NoPropCT(eta=-1.0)
    with pytest.raises(ValueError, match="anchor must be positive"):
        NoPropFM(anchor=0.0)
    for method in (NoPropDT(), NoPropCT(), NoPropFM()):
        with pytest.raises(localplug.Unsupported, match="noprop"):
            Engine(nn.Sequential(nn.Linear(6, 4), nn.Linear(4, K)), method)
    with pytest.raises(localplug.Unsupported, match="trains one localplug_noprop.network.NoPropNet, the model has 0"):
        Engine(net(NoPropCTNet), NoPropDT())
    with pytest.raises(localplug.Unsupported, match="trains one localplug_noprop.network.NoPropNet, the model has 2"):
        Engine(nn.ModuleList([net(NoPropNet), net(NoPropNet)]), NoPropDT())
    nested = net(NoPropNet)
    nested.noprop["t002"].block.noprop = nn.ModuleDict({"out": nn.Linear(2, 2)})
    engine = Engine(nested, NoPropDT())  # an attribute of the same name inside a block is the block's own
    assert [unit.module for unit in engine.method.partition(engine.run)] == list(nested.noprop.values())
    for kind, method in ((NoPropCTNet, NoPropCT()), (NoPropFMNet, NoPropFM())):
        model = net(kind).eval()
        with pytest.raises(localplug.Unsupported, match=r"call model.train\(\)"):
            Engine(model, method).evaluate(lambda m=model: F.cross_entropy(m(x), y), targets=y)
    model = net(NoPropNet)
    engine = Engine(model, NoPropDT())
    with pytest.raises(ValueError, match="local targets need the labels"):
        engine.evaluate(lambda: F.cross_entropy(model(x), y))
    with pytest.raises(ValueError, match=r"labels must be in \[0, 3\)"):
        engine.evaluate(lambda: F.cross_entropy(model(x), y), targets=y + 3)
    with pytest.raises(TypeError, match="class labels as an integer tensor"):
        engine.evaluate(lambda: F.cross_entropy(model(x), y), targets=torch.randn(9, K))
    assert one_hot(K).equal(torch.eye(K))
