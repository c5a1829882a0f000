"""The search for a latent program, where the best latent is known by algebra."""

import pytest
import torch

from localplug_blackbox import CMAES, search_latent

A = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
Y = A @ torch.tensor([0.5, -1.0, 0.8]) + 0.1 * torch.randn(6, generator=torch.Generator().manual_seed(1))
BEST = torch.linalg.lstsq(A, Y[:, None]).solution.squeeze(1)
GUESS = torch.zeros(3)


def loss(z_ND):
    """- log p of a linear Gaussian decoder, up to a constant."""
    return (z_ND @ A.T - Y).square().sum(1) / 2


@pytest.mark.parametrize("searcher", [None, lambda box, guess: CMAES(box, guess.double(), sigma=0.3)])
def test_the_latent_is_the_least_squares_solution(searcher):
    found = search_latent(loss, GUESS, searcher=searcher, max_evaluations=1200)
    floor = float(loss(BEST[None]))
    assert found.first_loss == pytest.approx(float(loss(GUESS[None])))
    assert found.loss - floor < 0.02 * (found.first_loss - floor)
    assert found.loss == pytest.approx(float(loss(found.z[None]))) and found.z.dtype == GUESS.dtype


def test_every_decoded_latent_is_counted_and_no_more_are_decoded_than_allowed():
    decoded = []
    found = search_latent(lambda z: decoded.append(len(z)) or loss(z), GUESS, max_evaluations=50, batch=7)
    assert sum(decoded) == found.num_evaluations == 50 and max(decoded) <= 7


def test_the_first_guess_is_kept_if_nothing_is_better_and_with_one_evaluation():
    assert torch.equal(search_latent(lambda z: z.norm(dim=1), GUESS, max_evaluations=40).z, GUESS)
    assert search_latent(loss, GUESS, max_evaluations=1).loss == pytest.approx(float(loss(GUESS[None])))


def test_pairs_kept_back_choose_among_the_visited_latents():
    """The searched loss goes down without end along a ray; what is held out has its least a little way along it."""
    held_out = lambda z: (z[:, 0] - 0.3).square() + 0.01 * z[:, 1:].square().sum(1)  # noqa: E731
    searched = lambda z: -z[:, 0]  # noqa: E731
    with_it = search_latent(searched, GUESS, max_evaluations=200, held_out=held_out)
    without = search_latent(searched, GUESS, max_evaluations=200)
    assert abs(float(with_it.z[0]) - 0.3) < 0.2 < 0.5 < float(without.z[0])


def test_no_graph_is_built_and_a_loss_without_a_gradient_serves():
    rounded = lambda z: ((z * 4).round() / 4 - BEST).square().sum(1)  # noqa: E731
    found = search_latent(rounded, GUESS, max_evaluations=400)
    assert found.loss < 0.3 * found.first_loss and not found.z.requires_grad


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda: search_latent(loss, torch.zeros(2, 3), max_evaluations=0, batch=0), 3),
        (lambda: search_latent(lambda z: z[:, 0] * float("nan"), GUESS), 1),
    ],
)
def test_bad_arguments_are_refused_all_at_once(call, said):
    with pytest.raises(ValueError) as error:
        call()
    assert len(str(error.value).split("; ")) == said, error.value
