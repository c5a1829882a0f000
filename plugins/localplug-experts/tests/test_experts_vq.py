"""Codebooks: the moving average is that of its equations, step by step; what a unit below learns; codes that nobody chooses."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import localplug
from localplug_experts import VQ, VectorQuantizer, place_codes_


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def net(seed=0):
    made = nn.Sequential(nn.Linear(5, 3), VectorQuantizer(6, 3, seed=seed), nn.Linear(3, 2))
    with torch.no_grad():
        for i, p in enumerate(made.parameters()):
            p.copy_(normal(*p.shape, seed=seed + i))
    return made


def test_at_learning_rate_one_the_codes_follow_the_moving_average():
    """N and the sums m of van den Oord et al., appendix A.1, kept apart, with the layer below held still."""
    model, decay = net(), 0.8
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    engine = localplug.Engine(model, VQ(decay=decay, revive=0.0), optimizer)
    N, m = torch.full((6,), 1 / 6), model[1].codes.detach().clone() / 6
    for step in range(5):
        x, y = normal(40, 5, seed=step + 10), torch.arange(40) % 2
        with torch.no_grad():
            z = model[0](x)
            k = torch.cdist(z, m / N[:, None]).argmin(1)
            for i in range(6):
                N[i] = decay * N[i] + (1 - decay) * (k == i).float().mean()
                m[i] = decay * m[i] + (1 - decay) * z[k == i].sum(0) / 40
        engine.step(lambda x=x, y=y: F.cross_entropy(model(x), y), optimizer, targets=y)
        torch.testing.assert_close(model[1].codes.detach(), m / N[:, None], atol=1e-5, rtol=1e-4)


def test_the_layer_below_learns_from_its_head_and_from_the_distance_to_the_codes():
    model, x, y = net(), normal(8, 5, seed=9), torch.arange(8) % 2
    found = {}
    for beta in (0.0, 0.5):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        engine = localplug.Engine(model, VQ(commitment=beta), optimizer)
        engine.evaluate(lambda: F.cross_entropy(model(x), y), targets=y)
        found[beta] = model[0].weight.grad.clone()
        optimizer.zero_grad()
    z = model[0](x)
    distance = (z - model[1](z).detach()).square().mean()
    (expected,) = torch.autograd.grad(distance, model[0].weight)
    torch.testing.assert_close(found[0.5] - found[0.0], 0.5 * expected)


def test_codes_that_nobody_chooses_move_to_inputs_of_the_batch():
    model = net()
    model[0].requires_grad_(False)
    with torch.no_grad():
        model[1].codes[3] = 100.0
    optimizer = torch.optim.SGD(
        [{"params": model[1].parameters(), "lr": 1.0}, {"params": model[2].parameters()}], lr=0.1
    )
    engine = localplug.Engine(model, VQ(decay=0.5, revive=0.2), optimizer)
    x, y = normal(40, 5, seed=1), torch.arange(40) % 2
    far = []
    for _ in range(4):
        engine.step(lambda: F.cross_entropy(model(x), y), optimizer, targets=y)
        far.append(float(model[1].codes[3].detach().abs().max()))
    assert far[0] > 99 and far[-1] < 10, far


def test_codes_are_placed_at_inputs_one_codebook_after_the_other():
    model = nn.Sequential(
        nn.Linear(5, 3), nn.Dropout(0.5), VectorQuantizer(4, 3), nn.Linear(3, 3), VectorQuantizer(2, 3)
    )
    x, before = normal(9, 5), torch.get_rng_state()
    place_codes_(model, x, seed=1)
    assert torch.equal(before, torch.get_rng_state()) and all(m.training for m in model.modules())
    with torch.no_grad():
        z = model[0](x)
        assert all((z == code).all(1).any() for code in model[2].codes)
        w = model[3](model[2](z))
        assert all(torch.isclose(w, code).all(1).any() for code in model[4].codes)
    first = model[2].codes.detach().clone()
    place_codes_(model, x, seed=1)
    assert torch.equal(first, model[2].codes)
    with pytest.raises(ValueError, match="no localplug_experts.VectorQuantizer"):
        place_codes_(nn.Linear(5, 3), x)


def test_models_without_codes_and_bad_options_are_refused():
    plain = nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 2))
    with pytest.raises(localplug.Unsupported, match="no hidden unit is a localplug_experts.VectorQuantizer"):
        localplug.Engine(plain, VQ(), torch.optim.SGD(plain.parameters(), lr=1.0))
    with pytest.raises(ValueError, match=r"decay .* got 1; revive .* got -1; commitment .* got -2"):
        VQ(decay=1, revive=-1, commitment=-2)
    with pytest.raises(ValueError, match=r"num_codes .* got 1; dim .* got 0"):
        VectorQuantizer(1, 0)
