"""SoftHebb against its equations, neuron by neuron; norms that go to 1; clusters that it finds without labels."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from localplug import Engine, Unsupported
from localplug_forward.softhebb import SoftHebb, start_softhebb


def gradient(module, x, method, net=None):
    net = net or nn.Sequential(module, nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))
    net(x)
    engine = Engine(net, method)
    engine.evaluate(lambda: net(x).square().mean())
    engine.close()
    return module.weight.grad


def by_hand(rows, w, temperature):
    """sum_n y_k (x - u_k w_k), neuron by neuron and row by row."""
    dw = torch.zeros_like(w)
    for x in rows:
        u = [float(w[k] @ x) for k in range(len(w))]
        e = torch.tensor([v / temperature for v in u], dtype=torch.double).exp()
        for k in range(len(w)):
            y = float(e[k] / e.sum()) * (1 if u[k] == max(u) else -1)
            dw[k] += y * (x - u[k] * w[k])
    return dw


@pytest.mark.parametrize("temperature", [0.3, 1.0])
@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("power", [0.0, 0.5])
def test_linear_layers_follow_the_rule(temperature, normalised, power):
    torch.manual_seed(0)
    layer, x = nn.Linear(6, 5), torch.randn(9, 6)
    start_softhebb(layer, norm=2.0, seed=0)
    found = gradient(layer, x, SoftHebb(temperature=temperature, power=power, normalised=normalised))
    w = layer.weight.detach()
    dw = by_hand(x, w, temperature)
    dw = dw / dw.abs().max() if normalised else dw / 9
    torch.testing.assert_close(found, -((w.norm(dim=1, keepdim=True) - 1).abs() ** power) * dw, atol=1e-5, rtol=1e-4)
    assert layer.bias.grad is None


@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_convolutions_learn_from_the_patches_that_positions_see(mode):
    torch.manual_seed(0)
    layer, x = nn.Conv2d(2, 4, 3, stride=2, padding=1, padding_mode=mode, bias=False), torch.randn(3, 2, 6, 6)
    found = gradient(layer, x, SoftHebb(power=0.0, normalised=False))
    padded = F.pad(x, (1, 1, 1, 1), mode="constant" if mode == "zeros" else mode)
    rows = [
        padded[b, :, i : i + 3, j : j + 3].flatten() for b in range(3) for i in range(0, 6, 2) for j in range(0, 6, 2)
    ]
    dw = by_hand(rows, layer.weight.detach().flatten(1), 1.0) / 27
    torch.testing.assert_close(found.flatten(1), -dw, atol=1e-5, rtol=1e-4)


def test_the_winner_learns_its_input_and_the_others_unlearn_it():
    layer, x = nn.Linear(3, 2, bias=False), torch.tensor([[2.0, 0.0, 0.0]])
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.5, 0.1, 0.0], [0.4, 0.0, 0.1]]))
    step = -gradient(layer, x, SoftHebb(power=0.0))
    assert step[0, 0] > 0 and step[1, 0] < 0


def clusters(n=600, dims=40):
    centre = 4 * F.normalize(torch.randn(5, dims, generator=torch.Generator().manual_seed(0)), dim=1)
    g = torch.Generator().manual_seed(1)
    which = torch.randint(0, 5, (n,), generator=g)
    return centre, centre[which] + 0.5 * torch.randn(n, dims, generator=g)


def test_norms_go_to_one_and_neurons_to_clusters_without_any_label():
    centre, x = clusters()
    net = nn.Sequential(nn.Linear(40, 12, bias=False), nn.ReLU(), nn.Linear(12, 2))
    start_softhebb(net[0], norm=5.0, seed=0)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    engine = Engine(net, SoftHebb(), optimizer)
    before = F.cosine_similarity(centre[:, None], net[0].weight[None].detach(), dim=2).amax(1)
    for rows in torch.randint(0, 600, (400, 32), generator=torch.Generator().manual_seed(2)):
        engine.step(lambda rows=rows: net(x[rows]).square().mean(), optimizer)
    w = net[0].weight.detach()
    found = F.cosine_similarity(centre[:, None], w[None], dim=2).amax(1)  # of each cluster, with the nearest neuron
    assert before.max() < 0.5 and found.min() > 0.9, found
    assert ((w.norm(dim=1) - 1).abs() < 0.05).sum() >= 5


def test_one_unit_after_the_other_and_then_the_read_out():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    engine = Engine(net, SoftHebb(unit_steps=2), optimizer)
    x, moved = torch.randn(8, 6), []
    for _ in range(6):
        before = [net[i].weight.detach().clone() for i in (0, 2, 4)]
        engine.step(lambda: net(x).square().mean(), optimizer)
        moved.append([not torch.equal(net[i].weight, w) for i, w in zip((0, 2, 4), before, strict=True)])
    assert moved == [[True, False, False]] * 2 + [[False, True, False]] * 2 + [[False, False, True]] * 2


def test_start():
    one, two = nn.Linear(50, 200), nn.Linear(50, 200)
    before = torch.get_rng_state()
    start_softhebb(one, norm=25.0, seed=3)
    start_softhebb(two, norm=25.0, seed=3)
    assert torch.equal(one.weight, two.weight) and torch.equal(before, torch.get_rng_state())
    assert float(one.weight.detach().norm(dim=1).mean()) == pytest.approx(25, rel=0.05)
    start_softhebb(two, norm=25.0, seed=4)
    assert not torch.equal(one.weight, two.weight)


def test_a_frozen_weight_stays():
    net = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    net[0].weight.requires_grad_(False)
    engine = Engine(net, SoftHebb())
    engine.evaluate(lambda: net(torch.ones(3, 6)).square().mean())
    assert net[0].weight.grad is None and net[2].weight.grad is not None


def test_the_door():
    with pytest.raises(ValueError) as wrong:
        SoftHebb(temperature=0, power=-1, unit_steps=0)
    assert all(word in str(wrong.value) for word in ("temperature", "power", "unit_steps"))
    with pytest.raises(Unsupported, match="'0' has 2 groups"):
        Engine(nn.Sequential(nn.Conv2d(2, 2, 1, groups=2), nn.Linear(4, 2)), SoftHebb())
    with pytest.raises(Unsupported, match="'0' is a Bilinear"):
        Engine(nn.Sequential(nn.Bilinear(2, 2, 4), nn.Linear(4, 2)), SoftHebb())
