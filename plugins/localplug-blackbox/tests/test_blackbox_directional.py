"""Directional attacks: steps, radii and polls against the equations, and what the certificate promises on a known function."""

import math

import pytest
import torch

from localplug_blackbox import Box, DirectionalAttacks, gradient_attack, minimize
from localplug_blackbox.polling import cosine_measure, directions


def random(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("poll", ["n+1", "2n"])
def test_the_cosine_measure_is_that_of_the_directions(poll):
    """In the plane by looking at every angle; in three dimensions by many random vectors."""
    angles = torch.linspace(0, 2 * math.pi, 100_001).double()
    v = torch.stack([angles.cos(), angles.sin()], 1)
    assert float((v @ directions(2, poll, random()).T).amax(1).min()) == pytest.approx(
        cosine_measure(2, poll), abs=1e-4
    )
    v = torch.randn(200_000, 3, generator=random(1)).double()
    v = v / v.norm(dim=1, keepdim=True)
    found = float((v @ directions(3, poll, random(2)).T).amax(1).min())
    assert cosine_measure(3, poll) <= found + 1e-9 and found == pytest.approx(cosine_measure(3, poll), abs=0.02)


@pytest.mark.parametrize("poll, num", [("n+1", 6), ("2n", 10)])
def test_directions_are_unit_vectors_turned_at_random(poll, num):
    generator = random()
    first, second = directions(5, poll, generator), directions(5, poll, generator)
    assert first.shape == (num, 5) and not torch.equal(first, second)
    torch.testing.assert_close(first.norm(dim=1), torch.ones(num).double())


def test_the_attack_is_the_sign_of_the_pulled_slope():
    """Through a matrix M the pulled slope is M^T df, by hand."""
    M = torch.randn(3, 4, generator=random()).double()
    df = torch.tensor([1.0, -2.0, 0.5]).double()
    attack = gradient_attack(lambda X: X @ M.T, lambda output: df.expand_as(output))
    torch.testing.assert_close(attack(torch.zeros(4).double(), 0.3), -0.3 * (M.T @ df).sign())


def asked(search, objective):
    X = search.ask(100)
    search.tell(X, objective(X))
    return X


def test_the_attack_comes_first_and_its_radius_follows_the_gain():
    """f = x on the line from 0: a step of r gains r. 1e-3 of |value| decides between 1.3 and 1.1."""
    for value_at_0, factor, following in ((1.0, 1.3, "attack again"), (1000.0, 1.1, "cover")):
        search = DirectionalAttacks(Box.free(2), attack=lambda x, r: -r * torch.ones(2).double())
        f = lambda X, v=value_at_0: v + X.sum(1)  # noqa: E731
        asked(search, f)
        X = asked(search, f)
        torch.testing.assert_close(X, torch.full((1, 2), -0.1).double())
        assert search.radii[1] == pytest.approx(0.1 * factor)
        X = search.ask(1)
        is_attack = torch.allclose(X, -0.1 - 0.1 * factor * torch.ones(1, 2).double())
        assert is_attack == (following == "attack again")


def test_an_attack_without_a_gain_shrinks_its_radius_and_the_iteration_goes_on():
    search = DirectionalAttacks(
        Box.free(2), attack=lambda x, r: r * torch.ones(2).double(), covering_radius=0.5, num_line=3
    )
    f = lambda X: X.square().sum(1)  # noqa: E731
    start, attack, cover, line, poll = (asked(search, f) for _ in range(5))
    assert search.radii[1] == pytest.approx(0.1 / 1.3)
    assert [len(X) for X in (start, attack, cover, line, poll)] == [1, 1, 1, 3, 3]
    assert float(cover.norm()) <= 0.5 and float(line.norm(dim=1).max()) <= 0.5 * 2
    assert torch.linalg.matrix_rank(line) == 1
    torch.testing.assert_close(poll.norm(dim=1), torch.ones(3).double())
    assert search.radii[0] == 0.5  # nothing is better than the start


def test_an_attack_without_a_slope_costs_no_evaluation():
    for bad in (torch.zeros(2), torch.full((2,), math.nan)):
        search = DirectionalAttacks(Box.free(2), attack=lambda x, r, bad=bad: bad, covering_radius=0)
        f = lambda X: X.square().sum(1)  # noqa: E731
        asked(search, f)
        assert len(asked(search, f)) == 3 and search.radii[1] == pytest.approx(0.1 / 1.3)
    search = DirectionalAttacks(Box.free(2), attack=lambda x, r: torch.zeros(5))
    asked(search, f)
    with pytest.raises(ValueError, match="a step of 2 numbers"):
        search.ask()


def test_a_poll_takes_the_first_gain_and_doubles_its_step_and_halves_it_without_one():
    search = DirectionalAttacks(Box.free(3), start=[5.0, 0, 0], attack=None, covering_radius=0, poll="2n")
    f = lambda X: X.norm(dim=1)  # noqa: E731
    asked(search, f)
    num_polled = 0
    while search.radii[0] == 1.0:
        X = search.ask(1)
        before = search.best.value
        search.tell(X, f(X))
        num_polled += 1
    assert search.best.value < before and search.radii[0] == 2.0 and num_polled < 6
    flat = DirectionalAttacks(Box.free(3), attack=None, covering_radius=0, poll="2n")
    asked(flat, lambda X: X[:, 0] * 0)
    assert len(asked(flat, lambda X: X[:, 0] * 0)) == 6 and flat.radii[0] == 0.5


def test_the_zeroth_order_attack_aims_by_pairs_of_values():
    """On a linear function the differences are exact: d = -r sign(sum over u of <g, u> u)."""
    g = torch.tensor([1.0, -3.0, 2.0, 0.5, -1.0]).double()
    f = lambda X: X @ g  # noqa: E731
    search = DirectionalAttacks(Box.free(5), attack="zeroth-order", num_probes=4, attack_radius=0.2, probe_share=0.5)
    asked(search, f)
    probes = search.ask(100)
    u = (probes.view(4, 2, 5)[:, 0] - probes.view(4, 2, 5)[:, 1]) / (2 * 0.1)
    assert set(u.round(decimals=9).unique().tolist()) == {-1.0, 1.0}
    torch.testing.assert_close(probes.view(4, 2, 5).sum(1), torch.zeros(4, 5).double())
    search.tell(probes, f(probes))
    aimed = search.ask(1)
    torch.testing.assert_close(aimed[0] - probes[f(probes).argmin()], -0.2 * ((u @ g) @ u).sign())


@pytest.mark.parametrize("poll", ["n+1", "2n"])
def test_the_certificate_bounds_the_slope_of_a_function_whose_curvature_is_known(poll):
    """A quadratic: L is its largest eigenvalue, and the slope at the end is computed by hand."""
    H = torch.diag(torch.tensor([1.0, 3.0, 10.0, 0.5]).double())
    f = lambda X: 0.5 * ((X - 1) @ H * (X - 1)).sum(1)  # noqa: E731
    search = DirectionalAttacks(Box.free(4), poll=poll, smallest_step=1e-3, attack=None)
    best = minimize(f, search, 20_000)
    assert search.finished and search.certificate.complete and search.certificate.step == pytest.approx(1e-3)
    slope = float((H @ (best.x - 1)).norm())
    assert 0 < slope <= search.certificate.slope_bound(lipschitz=10.0) < 0.05
    with pytest.raises(ValueError, match="the search is over: no point of a poll"):
        search.ask()
    search.fit(best.x[None] + 1e-4, [best.value - 1])
    assert not search.finished and len(search.ask()) == 1


def test_a_poll_that_the_box_cuts_off_certifies_no_slope():
    search = DirectionalAttacks(Box([0.0, 0.0], [1.0, 1.0]), smallest_step=1e-3, step=0.5)
    best = minimize(lambda X: X.sum(1), search, 5000)
    assert search.finished and not search.certificate.complete and search.certificate.slope_bound(1.0) == math.inf
    assert best.value < 0.05


def test_a_start_without_a_value_is_left_as_soon_as_there_is_one():
    f = lambda X: torch.where(X[:, 0] < 0.5, float("nan"), X[:, 0])  # noqa: E731
    best = minimize(f, DirectionalAttacks(Box([-2.0, -2.0], [2.0, 2.0]), smallest_step=1e-2), 1000)
    assert 0.5 <= best.value < 0.6


def test_an_attack_through_a_network_needs_fewer_evaluations_than_direct_search():
    generator = random(5)
    W, V = (torch.randn(*shape, generator=generator).double() / shape[0] ** 0.5 for shape in ((20, 32), (32, 10)))
    network = lambda X: (X @ W).tanh() @ V  # noqa: E731
    target = network(torch.randn(1, 20, generator=generator).double())
    start = torch.randn(20, generator=generator)
    f = lambda X: (network(X) - target).square().sum(1)  # noqa: E731
    attack = gradient_attack(network, lambda output: 2 * (output - target))
    values = [
        minimize(f, DirectionalAttacks(Box.free(20), start=start, attack=a, covering_radius=c), 250).value
        for a, c in ((attack, 1.0), (None, 0.0))
    ]
    assert values[0] < 0.3 * values[1]
