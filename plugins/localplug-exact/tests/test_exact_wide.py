"""Kernels against integrals and wide networks, the closed form against the regression, ensembles against gradient descent."""

import math

import pytest
import torch
from torch import nn

import localplug
from localplug_exact import compiled, kernels, permutation


def bits(k):
    """All inputs of k bits with at least one, scaled to length 1, float64."""
    numbers = torch.arange(1, 2**k)
    x = (numbers[:, None] >> torch.arange(k) & 1).double()
    return x / x.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("degrees", [0, 30, 90, 135, 180])
def test_kernels_are_the_integrals_over_random_neurons(degrees):
    """2 E[relu(a x) relu(a x')], and with it u times twice the chance that both are active; by angle, radius being separate."""
    theta = math.radians(degrees)
    phi = torch.linspace(-math.pi, math.pi, 200_001, dtype=torch.float64)[:-1]
    one, other = phi.cos(), (phi - theta).cos()
    k1 = float(2 * 2 * (one.clamp(min=0) * other.clamp(min=0)).mean())  # E[r^2] = 2
    k0 = float(2 * ((one > 0) & (other > 0)).double().mean())
    u = torch.tensor(math.cos(theta), dtype=torch.float64)
    assert float(kernels.of_angle(u, "readout")) == pytest.approx(k1, abs=1e-4)
    assert float(kernels.of_angle(u, "ntk")) == pytest.approx(k1 + math.cos(theta) * k0, abs=1e-4)


def test_the_ntk_is_the_product_of_a_wide_networks_gradients():
    W = 20_000
    generator = torch.Generator().manual_seed(0)
    a, r = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((W, 3), (W,)))
    x = torch.tensor([[1.0, 2.0, 0.0], [0.5, -1.0, 1.0]], dtype=torch.float64)
    grads = []
    for row in x:
        weights = [a.clone().requires_grad_(), r.clone().requires_grad_()]
        ((2 / W) ** 0.5 * weights[1] @ (weights[0] @ row).relu()).backward()
        grads.append(torch.cat([w.grad.flatten() for w in weights]))
    found = torch.stack(grads) @ torch.stack(grads).T
    torch.testing.assert_close(kernels.gram(x, x, "ntk"), found, rtol=0.05, atol=0.05)


def test_an_input_of_zero_has_a_kernel_of_zero_and_unknown_kernels_are_refused():
    assert not kernels.gram(torch.zeros(1, 2), torch.eye(2), "ntk").any()
    with pytest.raises(ValueError, match="kernel must be one of readout, ntk, got 'rbf'"):
        kernels.of_angle(torch.zeros(1), "rbf")


# ---- permutations -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", ["ntk", "readout"])
def test_the_closed_form_is_the_kernel_regression_on_every_input(kernel):
    k, order = 6, torch.tensor([3, 0, 5, 1, 4, 2])
    eye, x = torch.eye(k, dtype=torch.float64), bits(6)
    network = localplug.solver("relu-ntk", kernel=kernel, ridge=0.0)(eye, eye[:, order])
    found = network(x)
    for row, given in zip(x, found, strict=True):
        said = permutation.answer(k, int((row > 0).sum()), kernel)
        wanted = torch.where(row[order] > 0, said.inside, said.outside).double()
        torch.testing.assert_close(given, wanted, atol=1e-7, rtol=0)  # the arc cosine near 1


@pytest.mark.parametrize("kernel", ["ntk", "readout"])
def test_the_sign_is_right_for_every_number_of_bits_and_ones(kernel):
    assert all(permutation.answer(k, s, kernel).is_right() for k in range(2, 31) for s in range(1, k + 1))
    for k in (2, 10, 30):
        one = permutation.answer(k, 1, kernel)
        assert one.inside == pytest.approx(1) and one.outside == pytest.approx(0, abs=1e-12)
    assert not permutation.Answer(0.1, 0.1, None).is_right() and not permutation.Answer(-0.1, -0.1, None).is_right()


def test_networks_with_trained_readouts_scatter_as_the_closed_form_says():
    k, M, W = 4, 400, 512
    network = localplug.solver("relu-readout", width=W, num_models=M, initial=1.0)(torch.eye(k), torch.eye(k))
    x = torch.tensor([[1.0, 1.0, 0.0, 0.0]]) / 2**0.5
    with torch.no_grad():
        hidden = (x @ network[0].weight.T).relu().view(M, 1, W)
        outputs_MK = (hidden @ (M * network[2].weight.T).view(M, W, k)).squeeze(1)
    said = permutation.answer(k, 2, "readout")
    assert float(outputs_MK[:, :2].mean()) == pytest.approx(said.inside, abs=0.06)
    assert float(outputs_MK[:, 2:].mean()) == pytest.approx(said.outside, abs=0.06)
    assert float(outputs_MK.var(0).mean()) == pytest.approx(said.variance, rel=0.1)
    one = permutation.share_right(k, 2, 1)
    right = ((outputs_MK > 0) == (x > 0)).all(1).float().mean()
    assert float(right) == pytest.approx(one, abs=0.07)


def test_the_ensemble_that_is_needed_is_the_smallest_that_is_enough():
    for k in (5, 10, 15):
        num = permutation.models_needed(k, 2, 0.9)
        assert permutation.share_right(k, 2, num) >= 0.9 > permutation.share_right(k, 2, num - 1)
        assert permutation.models_needed(k, 2, 0.9, initial=0.5) == -(-num // 4)  # a quarter of the variance
    for wrong in ((5, 1, 0.9), (5, 2, 1.0), (5, 2, 0.0)):
        with pytest.raises(ValueError, match="share must be in"):
            permutation.models_needed(*wrong)
    with pytest.raises(ValueError, match="at least 1 and initial positive, got 0 and 0"):
        permutation.share_right(3, 2, 0, 0)
    with pytest.raises(ValueError, match="num_ones must be in"):
        permutation.answer(3, 4)


# ---- readouts ---------------------------------------------------------------------------------------------------------------


def test_a_readout_is_where_gradient_descent_on_it_ends():
    """From the same random start, which `initial` makes and no step of the hidden layer changes."""
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = x[:, :1].abs()
    solved = localplug.solver("relu-readout", width=64, initial=0.5, ridge=0.0)(x, y)
    start = localplug.solver("relu-readout", width=64, initial=0.5, ridge=0.0)(x, torch.zeros_like(y))
    # the start differs from any solution in the span of the features alone: take that part out of both
    H = (x @ start[0].weight.T).relu().detach()
    r = (solved[2].weight - (torch.linalg.pinv(H) @ y).T).detach()
    assert torch.equal(solved[0].weight, start[0].weight)
    torch.testing.assert_close(r, start[2].weight.detach(), atol=1e-8, rtol=0)
    w = r.clone()  # what is left has no part in the span
    torch.testing.assert_close(H @ w.T, torch.zeros_like(y), atol=1e-8, rtol=0)
    lr = 1 / float(torch.linalg.matrix_norm(H, 2) ** 2)
    for _ in range(20_000):
        w -= lr * (H @ w.T - y).T @ H
    torch.testing.assert_close(w, solved[2].weight.detach(), atol=1e-5, rtol=0)


def test_an_ensemble_is_the_mean_of_its_models():
    x, y = torch.eye(3), torch.eye(3)[[1, 2, 0]]
    whole = localplug.solver("relu-readout", width=32, num_models=2, initial=1.0, seed=4)(x, y)
    one = localplug.solver("relu-readout", width=32, num_models=1, initial=1.0, seed=4)(x, y)
    second = nn.Sequential(nn.Linear(3, 32, bias=False), nn.ReLU(), nn.Linear(32, 3, bias=False))
    with torch.no_grad():
        second[0].weight.copy_(whole[0].weight[32:])
        second[2].weight.copy_(2 * whole[2].weight[:, 32:])
    query = torch.tensor([[1.0, 1.0, 0.0]])
    assert not torch.equal(one(query), second(query))
    torch.testing.assert_close(whole(query), (one(query) + second(query)) / 2)


# ---- compiled ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [3, 9])
def test_a_compiled_permutation_is_right_on_every_input_of_the_task(k):
    task = localplug.task("permutation", num_bits=k, width=16)
    parts = task.parts(3)
    order = parts.train.columns[1].argmax(0)
    model = compiled.permutation_(task.fresh_model(0), order)
    assert task.quality(model, parts.validation) == task.quality(model, parts.test.look()) == 1.0
    other = compiled.permutation_(task.fresh_model(0), order.roll(1))
    assert task.quality(other, parts.validation) < 1


@pytest.mark.parametrize(
    "network",
    [
        nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 4)),
        nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4)),
        nn.Sequential(nn.Linear(4, 8, bias=False), nn.ReLU(), nn.Linear(8, 4)),
        nn.Sequential(nn.Linear(4, 4)),
        nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 4)),
    ],
    ids=["narrow", "tanh", "no bias", "one layer", "other inputs"],
)
def test_a_network_without_room_is_refused(network):
    with pytest.raises(ValueError, match="written into Linear, ReLU, ..., Linear with biases, 4 inputs, 4 outputs"):
        compiled.permutation_(network, torch.arange(4))
