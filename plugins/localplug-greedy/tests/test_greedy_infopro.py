"""InfoPro against its equations; what it keeps of the input, and for how long; what it refuses."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from localplug import Engine
from localplug_greedy.infopro import InfoPro, contrast


def mlp(depth=3):
    layers = [nn.Linear(8, 6), nn.Tanh()]
    for _ in range(depth - 1):
        layers += [nn.Linear(6, 6), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(6, 3))


def vectors(n=9):
    return torch.randn(n, 8), torch.arange(n) % 3


def gradients(model, x, y, method):
    engine = Engine(model, method)
    engine.evaluate(lambda: F.cross_entropy(model(x), y), targets=y)
    return method.owned_modules.modules, {n: p.grad for n, p in model.named_parameters()}


def test_units_follow_the_reconstruction_of_the_input_and_the_label_with_weights_that_go_over_depth():
    """The hidden units 0, 1, 2 at the ratios 0, 1/2, 1; every decoder makes the model's own input, not its unit's."""
    model, (x, y) = mlp(), vectors()
    owned, found = gradients(model, x, y, InfoPro(lambda1=(4.0, 1.0), lambda2=(0.5, 2.0), joins_head=False))
    h = x
    for i, (lambda1, lambda2) in enumerate(((4.0, 0.5), (2.5, 1.25), (1.0, 2.0))):
        layer, pair = model[2 * i], owned[str(2 * i)]
        out = torch.tanh(layer(h))
        D1, d1, D2, d2 = pair.decoder.parameters()
        A1, a1, A2, a2 = pair.aux.parameters()
        R = (F.relu(out @ D1.T + d1) @ D2.T + d2 - x).square().mean()
        label = F.cross_entropy(F.relu(out @ A1.T + a1) @ A2.T + a2, y)
        expected = torch.autograd.grad(lambda1 * R + lambda2 * label, [layer.weight, D2, A1])
        for got, wanted in zip((found[f"{2 * i}.weight"], D2.grad, A1.grad), expected, strict=True):
            torch.testing.assert_close(got, wanted, atol=1e-6, rtol=1e-4)
        h = out.detach()
    (last,) = torch.autograd.grad(F.cross_entropy(model[6](h), y), [model[6].weight])
    torch.testing.assert_close(found["6.weight"], last)


@pytest.mark.parametrize("reconstruction", ["mse", "bce"])
def test_a_feature_map_is_decoded_at_the_images_size(reconstruction):
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(64, 3),
    )  # fmt: skip
    x, y = torch.rand(5, 3, 8, 8), torch.randint(0, 3, (5,))
    method = InfoPro(lambda1=(2.0, 2.0), lambda2=(0.0, 0.0), reconstruction=reconstruction, width=5)
    owned, found = gradients(model, x, y, method)
    decoder = owned["0"].decoder
    K1, b1, K2, b2 = decoder.parameters()
    assert K1.shape == (5, 4, 3, 3) and K2.shape == (3, 5, 3, 3)
    large = F.interpolate(F.relu(model[0](x)), size=(8, 8), mode="bilinear", align_corners=True)
    made = F.conv2d(F.relu(F.conv2d(large, K1, b1, padding=1)), K2, b2, padding=1)
    if reconstruction == "mse":
        R = (made - x).square().mean()
    else:
        p = made.sigmoid()
        R = -(x * p.log() + (1 - x) * (1 - p).log()).mean()
    (expected,) = torch.autograd.grad(2 * R, [model[0].weight])
    torch.testing.assert_close(found["0.weight"], expected, atol=1e-6, rtol=1e-4)


def test_the_contrastive_loss_is_the_papers_sum():
    z, y, tau = torch.randn(6, 4), torch.tensor([0, 1, 0, 2, 1, 0]), 0.5
    u = z / z.norm(dim=1, keepdim=True)
    losses = []
    for i in range(6):
        others = [a for a in range(6) if a != i]
        bottom = sum(math.exp(float(u[i] @ u[a]) / tau) for a in others)
        alike = [p for p in others if y[p] == y[i]]
        if alike:  # the only example of class 2 has nothing to be near to
            losses.append(-sum(math.log(math.exp(float(u[i] @ u[p]) / tau) / bottom) for p in alike) / len(alike))
    assert len(losses) == 5
    assert float(contrast(z, y, tau)) == pytest.approx(sum(losses) / 5, rel=1e-5)


def test_a_batch_without_two_examples_of_a_class_moves_nothing_by_contrast():
    z = torch.randn(3, 4, requires_grad=True)
    contrast(z, torch.arange(3), 0.07).backward()
    assert not z.grad.any()


def test_contrast_trains_the_unit_and_its_projection():
    model, (x, y) = mlp(), vectors()
    method = InfoPro(lambda1=(0.0, 0.0), lambda2=(1.0, 1.0), supervision="contrast", feature_dim=5, temperature=0.2)
    owned, found = gradients(model, x, y, method)
    aux = owned["0"].aux
    (expected,) = torch.autograd.grad(contrast(aux(torch.tanh(model[0](x))), y, 0.2), [model[0].weight])
    torch.testing.assert_close(found["0.weight"], expected)
    assert aux[-1].out_features == 5 and all(p.grad is None for p in owned["0"].decoder.parameters())


def test_a_unit_whose_weights_are_both_0_does_not_learn():
    model, (x, y) = mlp(), vectors()
    _, found = gradients(model, x, y, InfoPro(lambda1=(1.0, 0.0), lambda2=(1.0, 0.0), joins_head=False))
    assert found["0.weight"] is not None and found["2.weight"] is not None and found["4.weight"] is None


def test_the_input_is_let_go_of_where_no_unit_asks_for_it_any_more():
    model, (x, y) = mlp(), vectors()
    method = InfoPro()
    seen = []
    model[-1].register_forward_hook(lambda *_: seen.append(method._x))
    gradients(model, x, y, method)
    assert seen == [None]


def test_inputs_outside_of_the_range_of_bce_are_refused():
    with pytest.raises(ValueError, match=r"needs inputs in \[0, 1\].*use 'mse'"):
        gradients(mlp(), *vectors(), InfoPro(reconstruction="bce"))


def test_all_wrong_options_are_told_at_once():
    with pytest.raises(ValueError) as caught:
        InfoPro(
            lambda1=(-1.0, 0.0), lambda2=1.0, reconstruction="l1", supervision="ce", temperature=0.0, feature_dim=0,
            width=0, num_classes=0, kind="x",
        )  # fmt: skip
    for part in (
        "lambda1", "lambda2", "reconstruction", "supervision must", "temperature must", "feature_dim", "width",
        "num_classes", "kind must", "belong to supervision='contrast'",
    ):  # fmt: skip
        assert part in str(caught.value), part
