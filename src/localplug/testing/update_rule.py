"""Checks that every update rule, a torch.optim.Optimizer, must pass."""

import io
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from localplug.testing.conformance import Documented, pickled

Make = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


def _problem() -> tuple[nn.Parameter, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return nn.Parameter(torch.zeros(6)), torch.randn(6, generator=generator) * 2


def _descend(w: nn.Parameter, target: Tensor, rule: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        w.grad = 2 * (w.detach() - target)
        rule.step()
        rule.zero_grad()


def _elements(rule: torch.optim.Optimizer) -> int:
    leaves = torch.utils._pytree.tree_leaves([rule.state_dict(), vars(rule)])
    return sum(leaf.numel() if isinstance(leaf, Tensor) else 1 for leaf in leaves)


def _follow(w: nn.Parameter, gradients: Tensor, rule: torch.optim.Optimizer) -> None:
    for gradient in gradients:
        w.grad = gradient.clone()
        rule.step()


class UpdateRuleTests(Documented):
    """Subclass it, and give the fixture `make`: a function from parameters to your optimizer."""

    @pytest.fixture
    def make(self) -> Make:
        raise NotImplementedError("the fixture `make` must return a function from parameters to your optimizer")

    @pytest.fixture
    def documented(self, make: Make) -> Any:
        return type(make([_problem()[0]]))

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
        checkpoint = io.BytesIO()
        torch.save(rule.state_dict(), checkpoint)
        checkpoint.seek(0)
        again.load_state_dict(torch.load(checkpoint, weights_only=True))  # numbers and tensors only
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

    def test_takes_the_learning_rate_of_each_group(self, make: Make) -> None:
        w, v = _problem()[0], _problem()[0]
        rule = make([w])
        rule.add_param_group({"params": [v], "lr": 0.0})
        w.grad, v.grad = torch.ones(6), torch.ones(6)
        rule.step()
        assert w.detach().any() and not v.detach().any()

    def test_a_closure_that_raises_leaves_the_weights_alone(self, make: Make) -> None:
        """A closure is called once, with gradients on; what it gives is what `step` gives."""
        w, target = _problem()
        rule, calls, fails = make([w]), [0], [False]

        def closure() -> Any:
            calls[0] += 1
            assert torch.is_grad_enabled(), "the closure is called without gradients"
            loss = (w - target).square().sum()
            loss.backward()
            if fails[0]:
                raise RuntimeError("out of memory")
            return loss

        given = rule.step(closure)
        assert (
            calls == [1]
            and given is not None
            and float(torch.as_tensor(given).detach()) == pytest.approx(float(target.square().sum()))
        )
        before = w.detach().clone()
        w.grad, fails[0] = None, True
        with pytest.raises(RuntimeError, match="out of memory"):
            rule.step(closure)
        assert torch.equal(w.detach(), before)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_is_kept(self, make: Make, dtype: torch.dtype) -> None:
        w = nn.Parameter(torch.zeros(6, dtype=dtype))
        rule = make([w])
        w.grad = torch.tensor([1.0, -1.0, 0.5, -0.5, 2.0, 0.0], dtype=dtype)
        for _ in range(3):
            rule.step()
        assert w.dtype == dtype and torch.isfinite(w).all() and w.detach().any()
        assert all((w.detach() * w.grad <= 0).tolist()), "a step goes up the gradient"

    def test_memory_does_not_grow(self, make: Make) -> None:
        w, target = _problem()
        rule, sizes = make([w]), []
        for _ in range(12):
            _descend(w, target, rule, 1)
            sizes.append(_elements(rule))
        assert max(sizes[6:]) <= max(sizes[:6]), f"its state grew from {max(sizes[:6])} to {max(sizes[6:])} elements"

    def test_can_be_pickled(self, make: Make) -> None:
        w, target = _problem()
        rule = make([w])
        _descend(w, target, rule, 2)
        copy = pickled(rule)
        (v,) = copy.param_groups[0]["params"]
        _descend(v, target, copy, 2)
        _descend(w, target, rule, 2)
        assert torch.equal(v, w)
