"""Checks that every target generator and every local loss must pass."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from localplug.signals import LocalLoss, TargetGenerator
from localplug.units import Unit

SHAPES = {"hidden units": (5, 7), "time steps": (5, 3, 7), "feature map": (5, 4, 3, 3)}


def _unit(shape: tuple[int, ...], name: str = "layer", index: int = 0) -> Unit:
    module = nn.Conv2d(1, shape[1], 1) if len(shape) == 4 else nn.Linear(2, shape[-1])
    return Unit(index, name, module, list(module.parameters()))


class TargetGeneratorTests:
    """Subclass it, and give the fixture `make`: a function that makes your target generator."""

    @pytest.fixture
    def make(self) -> Callable[[], TargetGenerator]:
        raise NotImplementedError("the fixture `make` must return a function that makes your target generator")

    @pytest.mark.parametrize("kind", SHAPES)
    def test_a_target_is_shaped_like_the_output(self, make: Callable[[], TargetGenerator], kind: str) -> None:
        for dtype in (torch.float32, torch.bfloat16):
            output = torch.zeros(SHAPES[kind], dtype=dtype)
            target = make().generate(torch.eye(3)[[0, 1, 2, 0, 1]], output, unit=_unit(SHAPES[kind]), seed=0)
            assert target.shape == output.shape and target.dtype == output.dtype
            assert torch.isfinite(target).all()

    @pytest.mark.parametrize("kind", SHAPES)
    def test_examples_of_one_class_share_a_target_and_others_do_not(
        self, make: Callable[[], TargetGenerator], kind: str
    ) -> None:
        output = torch.zeros(SHAPES[kind])
        target = make().generate(torch.eye(3)[[0, 1, 2, 0, 1]], output, unit=_unit(SHAPES[kind]), seed=0)
        assert torch.allclose(target[0], target[3]) and torch.allclose(target[1], target[4])
        assert not torch.allclose(target[0], target[1]) and not torch.allclose(target[1], target[2])

    def test_is_a_function_of_seed_and_unit(self, make: Callable[[], TargetGenerator]) -> None:
        shape = SHAPES["hidden units"]
        y, output = torch.eye(3)[[0, 1, 2, 0, 1]], torch.zeros(shape)
        one = make()
        first = one.generate(y, output, unit=_unit(shape), seed=1).clone()
        for generator in (one, make()):  # whatever a generator has made before
            assert not torch.equal(first, generator.generate(y, output, unit=_unit(shape), seed=2))
            assert not torch.equal(first, generator.generate(y, output, unit=_unit(shape, "other", 1), seed=1))
            assert torch.equal(first, generator.generate(y, output, unit=_unit(shape), seed=1))

    def test_does_not_depend_on_the_rest_of_the_batch(self, make: Callable[[], TargetGenerator]) -> None:
        shape = SHAPES["hidden units"]
        generator = make()
        whole = generator.generate(torch.eye(3)[[0, 1, 2, 0, 1]], torch.zeros(shape), unit=_unit(shape), seed=0)
        part = generator.generate(torch.eye(3)[[2]], torch.zeros(1, shape[1]), unit=_unit(shape), seed=0)
        torch.testing.assert_close(whole[2:3], part)

    def test_leaves_the_global_random_state_alone(self, make: Callable[[], TargetGenerator]) -> None:
        shape = SHAPES["hidden units"]
        unit, generator = _unit(shape), make()
        before = torch.get_rng_state()
        generator.generate(torch.eye(3)[[0]], torch.zeros(1, shape[1]), unit=unit, seed=0)
        assert torch.equal(before, torch.get_rng_state())


class LocalLossTests:
    """Subclass it, and give the fixture `loss`: your callable(output, target) -> scalar."""

    @pytest.fixture
    def loss(self) -> LocalLoss:
        raise NotImplementedError("the fixture `loss` must return your local loss")

    @pytest.mark.parametrize("kind", SHAPES)
    def test_is_a_finite_scalar_with_a_gradient(self, loss: LocalLoss, kind: str) -> None:
        output, target = _pair(SHAPES[kind])
        value = loss(output, target)
        assert value.dim() == 0 and torch.isfinite(value)
        (gradient,) = torch.autograd.grad(value, output)
        assert torch.isfinite(gradient).all() and gradient.abs().sum() > 0

    @pytest.mark.parametrize("kind", SHAPES)
    def test_is_smaller_at_the_target(self, loss: LocalLoss, kind: str) -> None:
        output, target = _pair(SHAPES[kind])
        assert float(loss(target.clone(), target)) < float(loss(output, target).detach())

    @pytest.mark.parametrize("kind", SHAPES)
    def test_falls_along_its_gradient(self, loss: LocalLoss, kind: str) -> None:
        output, target = _pair(SHAPES[kind])
        value = loss(output, target)
        (gradient,) = torch.autograd.grad(value, output)
        step = 1e-3 / gradient.norm()
        assert float(loss(output - step * gradient, target).detach()) < float(value.detach())

    @pytest.mark.parametrize("kind", SHAPES)
    def test_is_an_average_over_examples(self, loss: LocalLoss, kind: str) -> None:
        output, target = _pair(SHAPES[kind])
        twice = loss(torch.cat([output, output]), torch.cat([target, target]))
        torch.testing.assert_close(twice, loss(output, target))

    @pytest.mark.parametrize("kind", ["time steps", "feature map"])
    def test_is_an_average_over_positions(self, loss: LocalLoss, kind: str) -> None:
        output, target = _pair(SHAPES[kind])
        positions = 1 if kind == "time steps" else 2
        twice = loss(torch.cat([output, output], positions), torch.cat([target, target], positions))
        torch.testing.assert_close(twice, loss(output, target))

    def test_does_not_change_what_it_compares(self, loss: LocalLoss) -> None:
        output, target = _pair(SHAPES["hidden units"])
        before = output.detach().clone(), target.clone()
        loss(output, target)
        assert torch.equal(output.detach(), before[0]) and torch.equal(target.detach(), before[1])


def _pair(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    output, target = torch.rand(shape, generator=generator), torch.rand(shape, generator=generator)
    return output.requires_grad_(), target
