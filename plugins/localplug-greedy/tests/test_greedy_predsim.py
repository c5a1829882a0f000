"""predsim against its equations; its pooling; degenerate features; language models."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from localplug import Engine
from localplug_greedy.predsim import PredSim, similarity, similarity_matching


def cnn():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(6 * 16, 3),
    )  # fmt: skip


def images(n=7):
    return torch.randn(n, 1, 8, 8), torch.randint(0, 3, (n,))


def gradients(model, x, y, method):
    Engine(model, method).evaluate(lambda: F.cross_entropy(model(x), y), targets=y)
    return method.owned_modules.modules, {n: p.grad for n, p in model.named_parameters()}


def cosines(rows):
    """S of the paper, one pair at a time: rows about their own means."""
    rows = [r - r.mean() for r in rows]
    return torch.stack([torch.stack([a @ b / (a.norm() * b.norm()) for b in rows]) for a in rows])


@pytest.mark.parametrize("beta", [0.0, 0.3, 0.99, 1.0])
def test_layers_follow_the_mixture_of_both_losses(beta):
    model, (x, y) = (
        nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 3)),
        (torch.randn(9, 8), torch.arange(9) % 3),
    )
    owned, found = gradients(model, x, y, PredSim(beta=beta))
    (W, b), C = owned["0"].W.parameters(), owned["0"].C.weight
    H = torch.tanh(model[0](x))
    pred = F.cross_entropy(H @ W.T + b, y)
    sim = (cosines(H @ C.T) - cosines(F.one_hot(y, 3).float())).square().mean()
    J = (1 - beta) * pred + beta * sim
    expected = torch.autograd.grad(J, [model[0].weight, W, C], allow_unused=True)
    for got, wanted in zip((found["0.weight"], W.grad, C.grad), expected, strict=True):
        if got is None:  # its weight in the mixture is 0
            assert wanted is None or not wanted.any()
        else:
            torch.testing.assert_close(got, wanted, atol=1e-6, rtol=1e-4)


def test_a_feature_map_enters_by_its_channels_deviations_and_an_average_of_its_parts():
    model, (x, y) = cnn(), images()
    owned, found = gradients(model, x, y, PredSim(beta=0.5, max_features=16))
    head = owned["0"]
    W, b = head.W.parameters()
    assert W.shape == (3, 16) and head.C.weight.shape == (4, 4, 3, 3)
    H = model[:3](x)  # (B, 4, 4, 4): 64 features, 2x2 parts of which leave 16
    pooled = H.view(7, 4, 2, 2, 2, 2).mean((3, 5)).flatten(1)
    projected = F.conv2d(H, head.C.weight, padding=1)
    mean = projected.mean((2, 3), keepdim=True)
    deviations = ((projected - mean).square().sum((2, 3)) / 15).sqrt()
    J = 0.5 * F.cross_entropy(pooled @ W.T + b, y)
    J = J + 0.5 * (cosines(deviations) - cosines(F.one_hot(y, 3).float())).square().mean()
    (expected,) = torch.autograd.grad(J, [model[0].weight])
    torch.testing.assert_close(found["0.weight"], expected, atol=1e-6, rtol=1e-4)


def test_the_classifier_sees_at_most_max_features():
    for limit, left in ((2048, 96), (95, 54), (6, 6), (1, 6)):  # of 6 channels on 4x4 positions
        model, (x, y) = cnn(), images()
        owned, _ = gradients(model, x, y, PredSim(max_features=limit))
        assert owned["3"].W[1].in_features == left, limit


def test_without_projection_the_features_themselves_are_compared():
    model, x, y = nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 3)), torch.randn(9, 8), torch.arange(9) % 3
    _, found = gradients(model, x, y, PredSim(beta=1.0, projection=False))
    J = (cosines(torch.tanh(model[0](x))) - cosines(F.one_hot(y, 3).float())).square().mean()
    (expected,) = torch.autograd.grad(J, [model[0].weight])
    torch.testing.assert_close(found["0.weight"], expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 3, 3)])
def test_dead_features_have_the_similarity_0_and_a_finite_gradient(shape):
    h = torch.zeros(shape, requires_grad=True)
    S = similarity(h)
    S.sum().backward()
    assert not S.any() and torch.isfinite(h.grad).all()


def test_positions_are_compared_inside_their_groups_alone():
    h, y = torch.randn(7, 5), torch.tensor([0, 1, 0, 2, 2, 0, 1])
    y_hot = F.one_hot(y, 4).float()
    squares = (cosines(h) - cosines(y_hot)).square()
    expected = (squares[:3, :3].sum() + squares[3:6, 3:6].sum() + squares[6:, 6:].sum()) / 19
    torch.testing.assert_close(similarity_matching(h, y, 4, group=3), expected)
    torch.testing.assert_close(similarity_matching(h, y, 4, group=7), squares.mean())


def test_all_wrong_options_are_told_at_once():
    with pytest.raises(ValueError) as caught:
        PredSim(beta=1.5, max_features=0, group=1, num_classes=0, kind="layers")
    for part in ("beta", "max_features", "group", "num_classes", "kind must be"):
        assert part in str(caught.value)
