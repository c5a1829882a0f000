"""Checks that every target generator and every local loss must pass."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from localplug.signals import LocalLoss, TargetGenerator
from localplug.testing.conformance import Documented, pickled
from localplug.units import Unit

SHAPES = {"hidden units": (5, 7), "time steps": (5, 3, 7), "feature map": (5, 4, 3, 3)}


def _unit(shape: tuple[int, ...], name: str = "layer", index: int = 0) -> Unit:
    module = nn.Conv2d(1, shape[1], 1) if len(shape) == 4 else nn.Linear(2, shape[-1])
    return Unit(index, name, module, list(module.parameters()))


class TargetGeneratorTests(Documented):
    """Subclass it, and give the fixture `make`: a function that makes your target generator."""

    @pytest.fixture
    def make(self) -> Callable[[], TargetGenerator]:
        raise NotImplementedError("the fixture `make` must return a function that makes your target generator")

    @pytest.mark.parametrize("kind", SHAPES)
    def test_a_target_is_shaped_like_the_output(self, make: Callable[[], TargetGenerator], kind: str) -> None:
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
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

    def test_does_not_depend_on_the_output(self, make: Callable[[], TargetGenerator]) -> None:
        """It is a function of seed, unit and labels; of the output it takes the shape."""
        shape = SHAPES["hidden units"]
        y, generator = torch.eye(3)[[0, 1, 2, 0, 1]], make()
        zeros = generator.generate(y, torch.zeros(shape), unit=_unit(shape), seed=0).clone()
        assert torch.equal(zeros, generator.generate(y, torch.ones(shape), unit=_unit(shape), seed=0))

    def test_does_not_change_what_it_is_given(self, make: Callable[[], TargetGenerator]) -> None:
        shape = SHAPES["hidden units"]
        y, output = torch.eye(3)[[0, 1, 2, 0, 1]], torch.ones(shape)
        target = make().generate(y, output, unit=_unit(shape), seed=0)
        assert torch.equal(y, torch.eye(3)[[0, 1, 2, 0, 1]]) and torch.equal(output, torch.ones(shape))
        target.add_(1)  # nor shares memory with it, or with what is given next
        again = make()
        first = again.generate(y, output, unit=_unit(shape), seed=0)
        kept = first.clone()
        first.add_(1)
        assert torch.equal(again.generate(y, output, unit=_unit(shape), seed=0), kept)

    def test_a_target_has_no_graph(self, make: Callable[[], TargetGenerator]) -> None:
        """Also where the output has one: a unit learns towards its target, and not the target towards the unit."""
        shape = SHAPES["hidden units"]
        output = torch.zeros(shape, requires_grad=True) * 1.0
        target = make().generate(torch.eye(3)[[0, 1, 2, 0, 1]], output, unit=_unit(shape), seed=0)
        assert not target.requires_grad, "a gradient would flow through the target"

    def test_memory_does_not_grow(self, make: Callable[[], TargetGenerator]) -> None:
        shape, generator, sizes = SHAPES["hidden units"], make(), []
        for step in range(12):
            y = torch.eye(3)[torch.arange(5).roll(step) % 3]
            generator.generate(y, torch.zeros(shape), unit=_unit(shape), seed=0)
            sizes.append(_elements(generator))
        assert max(sizes[6:]) <= max(sizes[:6]), f"it grew from {max(sizes[:6])} to {max(sizes[6:])} elements"

    def test_can_be_pickled(self, make: Callable[[], TargetGenerator]) -> None:
        shape, generator = SHAPES["hidden units"], make()
        first = generator.generate(torch.eye(3), torch.zeros(3, shape[1]), unit=_unit(shape), seed=0)
        second = pickled(generator).generate(torch.eye(3), torch.zeros(3, shape[1]), unit=_unit(shape), seed=0)
        assert torch.equal(first, second)


class LocalLossTests(Documented):
    """Subclass it, and give the fixture `loss`: your callable(output, target) -> scalar."""

    @pytest.fixture
    def loss(self) -> LocalLoss:
        raise NotImplementedError("the fixture `loss` must return your local loss")

    @pytest.fixture
    def documented(self, loss: LocalLoss) -> Any:
        return type(loss) if isinstance(loss, nn.Module) else loss

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

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_is_close_to_float32(self, loss: LocalLoss, dtype: torch.dtype) -> None:
        output, target = _pair(SHAPES["hidden units"])
        whole = float(loss(output, target).detach())
        half = output.detach().to(dtype).requires_grad_()
        value = loss(half, target.to(dtype))
        (gradient,) = torch.autograd.grad(value, half)
        assert gradient.dtype == dtype and torch.isfinite(gradient).all()
        assert abs(float(value.detach()) - whole) < 0.03 * abs(whole)

    def test_has_one_value_and_leaves_the_global_random_state_alone(self, loss: LocalLoss) -> None:
        output, target = _pair(SHAPES["hidden units"])
        before = torch.get_rng_state()
        first = loss(output, target)
        assert torch.equal(loss(output, target), first)
        assert torch.equal(before, torch.get_rng_state())

    def test_can_be_pickled(self, loss: LocalLoss) -> None:
        output, target = _pair(SHAPES["hidden units"])
        assert torch.equal(pickled(loss)(output, target), loss(output, target))


def _elements(generator: TargetGenerator) -> int:
    kept = {**vars(generator), **generator.state_dict()}
    leaves = torch.utils._pytree.tree_leaves(kept)
    return sum(leaf.numel() if isinstance(leaf, Tensor) else 1 for leaf in leaves)


def _pair(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    output, target = torch.rand(shape, generator=generator), torch.rand(shape, generator=generator)
    return output.requires_grad_(), target
