"""The shrinkage of singular values against the SVD, its optimality, and the gradient that it replaces."""

import itertools

import pytest
import torch
from torch import nn

import localplug
from localplug_select.low_rank import shrink

GENERATOR = torch.Generator().manual_seed(0)


@pytest.mark.parametrize("shape", [(9, 5), (5, 9), (6, 6), (7, 1)])
@pytest.mark.parametrize("by", [0.0, 0.5, 2.0, 100.0])
def test_singular_values_are_shrunk(shape, by):
    x = torch.randn(shape, generator=GENERATOR)
    u, s, vh = torch.linalg.svd(x.double(), full_matrices=False)
    torch.testing.assert_close(shrink(x, by), ((u * (s - by).clamp(min=0)) @ vh).float(), atol=1e-5, rtol=1e-5)


def test_it_minimizes_the_distance_and_the_nuclear_norm():
    x = torch.randn(8, 6, generator=GENERATOR)
    y = shrink(x, 0.7)

    def objective(z):
        return 0.5 * (z - x).square().sum() + 0.7 * torch.linalg.matrix_norm(z, "nuc")

    others = [y + 1e-2 * torch.randn(y.shape, generator=GENERATOR) for _ in range(50)]
    assert all(objective(y) < objective(z) for z in others)


class Zero:
    """One step whose estimate is zero, so that shrinking alone is left."""

    def __init__(self, net, **options):
        self.net, self.optimizer = net, torch.optim.SGD(net.parameters(), lr=0.5)
        parameters = options.pop("parameters", None)
        estimator = localplug.estimator("two-sided", eps=1e-3)
        update = localplug.update("low-rank", **options)
        made = localplug.method("zo", estimator=estimator, update=update, parameters=parameters)
        self.engine = localplug.Engine(net, made, self.optimizer, seed=4)

    def __call__(self):
        before = [p.detach().clone() for p in self.net.parameters()]
        self.engine.evaluate(lambda: torch.zeros(()))
        self.engine.apply(self.optimizer)
        return [p.detach() - b for p, b in zip(self.net.parameters(), before, strict=True)]


def matrices(*shapes):
    net = nn.Module()
    for number, shape in enumerate(shapes):
        net.register_parameter(f"w{number}", nn.Parameter(torch.randn(shape, generator=GENERATOR)))
    return net


def test_a_step_below_all_singular_values_is_one_along_the_nuclear_norms_gradient():
    net, mask = matrices((70, 80)), torch.rand(70, 80, generator=GENERATOR) < 0.3
    w = net.w0.detach().clone().double().requires_grad_()
    torch.linalg.matrix_norm(w * mask, "nuc").backward()
    (moved,) = Zero(net, weight=1e-2, parameters={"w0": mask})()
    torch.testing.assert_close(moved, (-0.5 * 1e-2 * w.grad).float(), atol=1e-6, rtol=1e-3)
    assert not moved[~mask].any()


def test_without_a_mask_it_is_the_proximal_step():
    net = matrices((66, 90))
    wanted = shrink(net.w0.detach().clone(), 0.5 * 3.0)
    Zero(net, weight=3.0)()
    torch.testing.assert_close(net.w0.detach(), wanted)


def test_one_matrix_of_a_step_is_drawn_among_the_large_ones():
    net = matrices((70, 70), (80, 66), (64, 200), (100,), (65, 65), (500, 100))
    zero, drawn = Zero(net, weight=1e-2, most=10_000), []
    for _ in range(12):
        moved = [bool(m.any()) for m in zero()]
        zero.optimizer.zero_grad()
        assert sum(moved) == 1
        drawn.append(moved.index(True))
    assert set(drawn) == {0, 1, 4}
    again = Zero(matrices((70, 70), (80, 66), (64, 200), (100,), (65, 65), (500, 100)), weight=1e-2, most=10_000)
    assert [[bool(m.any()) for m in again()].index(True) for _ in range(12)] == drawn


def test_it_lowers_the_nuclear_norm_of_what_is_trained():
    net, mask = matrices((70, 80)), torch.rand(70, 80, generator=GENERATOR) < 0.1
    zero = Zero(net, weight=0.2, parameters={"w0": mask})
    norms = []
    for _ in range(20):
        norms.append(float(torch.linalg.matrix_norm(net.w0.detach() * mask, "nuc")))
        zero()
    assert all(b < a for a, b in itertools.pairwise(norms)) and norms[-1] < 0.9 * norms[0]


@pytest.mark.parametrize("inner", ["momentum", "trainer"])
def test_it_follows_any_update(inner):
    def trained(update):
        net = nn.Linear(70, 70)
        with torch.no_grad():
            for p in net.parameters():
                p.copy_(torch.linspace(-1, 1, p.numel()).view_as(p))
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
        method = localplug.method("zo", estimator=localplug.estimator("two-sided", eps=1e-3), update=update)
        engine = localplug.Engine(net, method, optimizer)
        for _ in range(3):
            engine.step(lambda: net(torch.ones(2, 70)).square().mean(), optimizer)
        return net.weight.detach().clone()

    plain = trained(inner)
    assert torch.allclose(trained(localplug.update("low-rank", weight=1e-6, inner=inner)), plain, atol=1e-5)
    shrunk = trained(localplug.update("low-rank", weight=100.0, inner=inner))
    assert torch.linalg.matrix_norm(shrunk, "nuc") < 0.95 * torch.linalg.matrix_norm(plain, "nuc")


@pytest.mark.parametrize("options", [{"weight": 0.0}, {"weight": -1.0}, {"most": 0}])
def test_a_weight_of_nothing_is_refused(options):
    with pytest.raises(ValueError, match="weight and most must be positive"):
        localplug.update("low-rank", **options)


def test_the_method_has_the_update_where_a_weight_is_given():
    assert "singular values" not in localplug.method("sara").describe()
    assert "singular values shrunk by lr 0.0005" in localplug.method("sara", low_rank=5e-4).describe()


def test_it_sees_the_weights_that_the_update_before_it_has_left():
    """Also where a back-end lets updates of low rank wait."""

    def trained(backend):
        net = matrices((70, 70))
        with torch.no_grad():
            net.w0.copy_(torch.linspace(-1, 1, 4900).view(70, 70))
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-2)
        method = localplug.method(
            "zo",
            estimator=localplug.estimator("two-sided", eps=1e-3),
            update=localplug.update("low-rank", weight=10.0),
            directions="rank-1",
            backend=backend,
        )
        engine = localplug.Engine(net, method, optimizer)
        for _ in range(10):
            engine.step(lambda: (net.w0 @ torch.ones(70)).square().mean(), optimizer)
        return net.w0.detach().clone()

    torch.testing.assert_close(trained("auto"), trained("copy"), atol=1e-5, rtol=1e-4)
