"""Checks that every update rule, a torch.optim.Optimizer, must pass."""

import copy
from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor, nn

Make = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


def _problem() -> tuple[nn.Parameter, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return nn.Parameter(torch.zeros(6)), torch.randn(6, generator=generator) * 2


def _descend(w: nn.Parameter, target: Tensor, rule: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        w.grad = 2 * (w.detach() - target)
        rule.step()
        rule.zero_grad()


def _follow(w: nn.Parameter, gradients: Tensor, rule: torch.optim.Optimizer) -> None:
    for gradient in gradients:
        w.grad = gradient.clone()
        rule.step()


class UpdateRuleTests:
    """Subclass it, and give the fixture `make`: a function from parameters to your optimizer."""

    @pytest.fixture
    def make(self) -> Make:
        raise NotImplementedError("the fixture `make` must return a function from parameters to your optimizer")

    def test_is_an_optimizer_with_a_learning_rate(self, make: Make) -> None:
        rule = make([_problem()[0]])
        assert isinstance(rule, torch.optim.Optimizer)
        assert all("lr" in group for group in rule.param_groups)

    def test_lowers_a_quadratic(self, make: Make) -> None:
        w, target = _problem()
        first = float((w.detach() - target).square().sum())
        _descend(w, target, make([w]), 300)
        assert float((w.detach() - target).square().sum()) < 0.5 * first

    def test_a_learning_rate_of_zero_moves_nothing(self, make: Make) -> None:
        w, target = _problem()
        rule = make([w])
        for group in rule.param_groups:
            group["lr"] = 0.0
        _descend(w, target, rule, 1)
        assert torch.equal(w.detach(), torch.zeros(6))

    def test_leaves_parameters_without_a_gradient_alone(self, make: Make) -> None:
        w, target = _problem()
        other = nn.Parameter(torch.ones(3))
        _descend(w, target, make([w, other]), 3)
        assert torch.equal(other.detach(), torch.ones(3))

    def test_does_not_change_the_gradient(self, make: Make) -> None:
        w, target = _problem()
        rule = make([w])
        w.grad = 2 * (w.detach() - target)
        before = w.grad.clone()
        rule.step()
        assert torch.equal(w.grad, before)

    def test_the_same_gradients_make_the_same_steps(self, make: Make) -> None:
        one, target = _problem()
        two, _ = _problem()
        _descend(one, target, make([one]), 4)
        _descend(two, target, make([two]), 4)
        assert torch.equal(one, two)

    def test_resumes_from_its_state_dict(self, make: Make) -> None:
        generator = torch.Generator().manual_seed(0)
        gradients = torch.randn(8, 6, generator=generator)  # of changing signs, so that the past matters if it is kept
        w, _ = _problem()
        rule = make([w])
        _follow(w, gradients[:4], rule)
        v = nn.Parameter(w.detach().clone())
        again = make([v])
        again.load_state_dict(copy.deepcopy(rule.state_dict()))
        _follow(w, gradients[4:], rule)
        _follow(v, gradients[4:], again)
        assert torch.equal(w, v)

    def test_leaves_the_global_random_state_alone(self, make: Make) -> None:
        w, target = _problem()
        rule = make([w])
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(123)
            before = torch.get_rng_state()
            _descend(w, target, rule, 2)
            assert torch.equal(before, torch.get_rng_state())
