"""Searches by past values: the process and its slope against dense algebra, ROOT's bridge against its equations."""

import math

import pytest
import torch

from localplug_blackbox import ROOT, BayesianSearch, Box, MeanDescent, infinite_width_kernel, minimize
from localplug_blackbox.gaussian_process import GaussianProcess, fitted
from localplug_blackbox.past_values import PastValues, spread


def uniform(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)).double()


def branin(X):
    x, y = X.unbind(1)
    return (y - 5.1 / (4 * math.pi**2) * x**2 + 5 / math.pi * x - 6) ** 2 + 10 * (1 - 1 / (8 * math.pi)) * x.cos() + 10


BRANIN = Box([-5.0, 0.0], [10.0, 15.0])


def test_the_process_is_the_conditional_mean_of_a_gaussian():
    """Against the formula with an explicit inverse, and the density of torch.distributions."""
    X, y, Z = uniform(12, 3), uniform(12, seed=1) - 0.5, uniform(4, 3, seed=2)
    process = GaussianProcess(X, y, length=0.7, variance=1.3, noise=0.05)
    kernel = lambda a, b: 1.3 * torch.exp(-(a[:, None] - b[None]).square().sum(2) / (2 * 0.7**2))  # noqa: E731
    covariance = kernel(X, X) + 0.05 * torch.eye(12)
    torch.testing.assert_close(process.mean(Z), kernel(Z, X) @ torch.linalg.inv(covariance) @ y)
    density = torch.distributions.MultivariateNormal(torch.zeros(12).double(), covariance).log_prob(y)
    assert process.log_likelihood() == pytest.approx(float(density))


def test_the_slope_of_the_mean_is_that_of_finite_differences():
    process = GaussianProcess(uniform(9, 2), uniform(9, seed=1), length=0.4)
    Z, h = uniform(5, 2, seed=3), 1e-5
    for i in range(2):
        step = torch.zeros(2).double()
        step[i] = h
        difference = (process.mean(Z + step) - process.mean(Z - step)) / (2 * h)
        torch.testing.assert_close(process.slope(Z)[:, i], difference, rtol=1e-6, atol=1e-8)


def test_the_process_with_the_greatest_likelihood_is_taken():
    X = uniform(30, 1)
    assert fitted(X, torch.randn(30, generator=torch.Generator().manual_seed(0)).double()).noise == 0.1
    assert fitted(X, (6 * X[:, 0]).sin()).noise == 1e-4


def test_past_values_are_scaled_and_leave_out_what_is_not_finite():
    past = PastValues(Box([0.0, -10.0], [2.0, 10.0]))
    past.add(
        torch.tensor([[0.0, 0.0], [1.0, 10.0], [2.0, -10.0]]).double(), torch.tensor([1.0, math.inf, 3.0]).double()
    )
    assert past.unit().tolist() == [[0.0, 0.5], [1.0, 0.0]]
    assert past.standard().mean() == 0 and past.standard().std() == pytest.approx(1)


def test_proposals_keep_a_distance_while_there_are_enough():
    points = torch.tensor([[0.0], [0.01], [0.5], [0.9]], dtype=torch.float64)
    scores = torch.tensor([0.0, 0.1, 0.3, 0.2]).double()
    assert spread(points, scores, 3, 0.1).flatten().tolist() == [0.0, 0.9, 0.5]
    assert spread(points, scores, 4, 0.1).flatten().tolist() == [0.0, 0.9, 0.5, 0.01]


def known(num=80):
    """Points of the worse 60 %, as an offline search is tried."""
    X = BRANIN.from_unit(uniform(num, 2))
    y = branin(X)
    worse = y > y.quantile(0.4)
    return X[worse], y[worse]


def test_an_offline_search_finds_better_points_than_it_was_given():
    X, y = known()
    for search in (MeanDescent(BRANIN), ROOT(BRANIN, num_rounds=6, num_functions=2, width=32, num_sampling_steps=30)):
        search.fit(X, y)
        found = branin(search.ask(8))
        assert float(found.min()) < float(y.min())


def test_mean_descent_ends_where_the_mean_is_flat_and_lower_than_at_its_starts():
    X = uniform(40, 2)
    y = (X - torch.tensor([0.3, 0.6])).square().sum(1)
    search = MeanDescent(Box([0, 0], [1, 1]))
    search.fit(X, y)
    found = search.ask()
    process = fitted(X, (y - y.mean()) / y.std())
    assert float(process.slope(found).norm()) < 0.05
    assert float(process.mean(found)) <= float(process.mean(X).min()) + 1e-3


def test_roots_pairs_go_from_worse_to_better_on_their_function():
    X, y = uniform(30, 2), uniform(30, seed=5)
    search = ROOT(Box([0, 0], [1, 1]), num_starts=10)
    better, worse, better_value, worse_value = search._pairs(GaussianProcess(X, y - y.mean(), 0.3), X, y)
    assert len(better) == len(worse) and bool((worse_value - better_value > 1e-3).all())
    assert float(better.min()) >= 0 and float(worse.max()) <= 1


def test_roots_bridge_is_the_published_one_and_its_way_back_needs_the_right_answer():
    """With a network that knows the better end, the bridge run backwards arrives there, from wherever it starts."""
    target = torch.tensor([0.25, 0.75])
    starts, values = uniform(6, 2), torch.zeros(6).double()
    search = ROOT(Box([0, 0], [1, 1]), num_sampling_steps=200)
    found = search._back(lambda inputs: inputs[:, :2] - target, starts, values, -1.0)
    torch.testing.assert_close(found, target.double().expand(6, 2), atol=0.15, rtol=0)
    wrong = search._back(lambda inputs: 0 * inputs[:, :2], starts, values, -1.0)
    assert float((wrong - target).norm(dim=1).max()) > 0.3

    seen = {}

    def network(inputs):
        seen["x"], seen["m"] = inputs[:, :2], inputs[:, 2:3]
        return torch.zeros_like(seen["x"])

    better, worse = torch.zeros(50_000, 2), torch.ones(50_000, 2)
    loss = search._loss(network, better, worse, torch.zeros(50_000), torch.ones(50_000))
    way = seen["x"] - better  # what the network is to say: m (worse - better) + sigma e
    torch.testing.assert_close(loss, way.abs().mean())
    middle = (seen["m"] - 0.5).abs().squeeze(1) < 0.05
    noise = (way - seen["m"]) / (2 * (seen["m"] - seen["m"] ** 2)).sqrt()
    assert abs(float(noise[middle].mean())) < 0.03 and float(noise[middle].std()) == pytest.approx(1, abs=0.03)


def test_values_that_are_all_alike_are_refused_by_root():
    search = ROOT(Box([0, 0], [1, 1]), num_rounds=1)
    search.fit(uniform(10, 2), torch.ones(10))
    with pytest.raises(ValueError, match="too alike"):
        search.ask()


def test_the_infinite_width_kernel_is_the_covariance_of_wide_random_networks():
    X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).double()
    exact = infinite_width_kernel(X, X, depth=2, weight_variance=2.0, bias_variance=0.5)
    generator, total, width, num = torch.Generator().manual_seed(1), torch.zeros(3, 3).double(), 512, 400
    normal = lambda *shape: torch.randn(*shape, generator=generator).double()  # noqa: E731
    for _ in range(num):
        h = X
        for fan_out in (width, width, 8):
            inside = h if h is X else h.relu()
            h = inside @ normal(inside.shape[1], fan_out) * (2.0 / inside.shape[1]) ** 0.5 + normal(fan_out) * 0.5**0.5
        total += h @ h.T / 8 / num
    torch.testing.assert_close(total, exact, rtol=0.12, atol=0.05)


def test_the_infinite_width_kernel_is_botorchs():
    kernels = pytest.importorskip("botorch.models.kernels.infinite_width_bnn")
    X, Z = uniform(5, 3), uniform(4, 3, seed=1)
    theirs = kernels.InfiniteWidthBNNKernel(depth=3).double()
    theirs.weight_var, theirs.bias_var = 10.0, 1.3
    torch.testing.assert_close(infinite_width_kernel(X, Z), theirs(X, Z).to_dense().detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kernel", ["matern", "infinite-width"])
def test_bayesian_search_finds_branins_floor(kernel):
    best = minimize(branin, BayesianSearch(BRANIN, kernel=kernel, num_initial=6), 14)
    assert best.value < 2.0  # the least is 0.398; Sobol's 14 points do not come near


def test_bayesian_search_uses_what_it_was_given_and_spreads_a_batch():
    pytest.importorskip("botorch")
    search = BayesianSearch(BRANIN, num_initial=6)
    X = BRANIN.from_unit(uniform(10, 2))
    search.fit(X, branin(X))
    found = BRANIN.to_unit(search.ask(3))
    assert len(found) == 3 and float(torch.pdist(found).min()) > 1e-3
