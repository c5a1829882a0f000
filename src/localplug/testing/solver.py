"""Checks that every solver must pass: a network from the whole data set at once, of the hook `localplug_solvers`."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from localplug.testing.bowl import elements
from localplug.testing.conformance import Documented, pickled

Make = Callable[[], Callable[..., Any]]


class SolverTests(Documented):
    """Subclass it, and give the fixture `make`: a function that makes your solver, with options that suit small data.

    The data are `data`: 40 examples of two features and a target that is no linear function of them.
    """

    dtype = torch.float64
    """Of the data that the checks use; a solver for float32 alone sets it."""

    def network(self, solution: Any) -> nn.Module:
        """The network in what a call returns: that itself, or its `network`."""
        found = solution if isinstance(solution, nn.Module) else getattr(solution, "network", None)
        assert isinstance(found, nn.Module), f"a solver gives a module, or something with a `network`, got {solution!r}"
        return found

    def data(self) -> tuple[Tensor, Tensor]:
        """Inputs (N, D) and targets (N, 1)."""
        x_ND = torch.randn(40, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        y_N1 = x_ND[:, :1].abs() - 0.5 * x_ND[:, 1:]
        return x_ND.to(self.dtype), y_N1.to(self.dtype)

    def test_fits_better_than_the_best_linear_function(self, make: Make) -> None:
        x_ND, y_N1 = self.data()
        error = (self._fitted(make(), x_ND, y_N1)(x_ND) - y_N1).square().mean()
        ones = torch.cat([x_ND, torch.ones_like(y_N1)], 1)
        linear = (ones @ torch.linalg.lstsq(ones, y_N1).solution - y_N1).square().mean()
        assert float(error) < 0.5 * float(linear), f"squared error {float(error):.3f}; a line's is {float(linear):.3f}"

    def test_gives_a_network_of_the_datas_shape_and_dtype(self, make: Make) -> None:
        x_ND, y_N1 = self.data()
        for dtype in {torch.float32, self.dtype}:
            found = self._fitted(make(), x_ND.to(dtype), y_N1.to(dtype))(x_ND.to(dtype))
            assert found.shape == y_N1.shape and found.dtype == dtype and torch.isfinite(found).all()

    def test_the_same_data_give_the_same_network(self, make: Make) -> None:
        """By another solver of the same options, and by one that has solved something else before."""
        x_ND, y_N1 = self.data()
        one = make()
        first = self._fitted(one, x_ND, y_N1)(x_ND)
        one(x_ND.flip(1), -y_N1)
        assert torch.equal(self._fitted(one, x_ND, y_N1)(x_ND), first)
        assert torch.equal(self._fitted(make(), x_ND, y_N1)(x_ND), first)

    def test_does_not_change_the_data(self, make: Make) -> None:
        x_ND, y_N1 = self.data()
        make()(x_ND, y_N1)
        again = self.data()
        assert torch.equal(x_ND, again[0]) and torch.equal(y_N1, again[1])

    def test_leaves_no_graph(self, make: Make) -> None:
        """The network can be trained on; and gradients are on again afterwards."""
        network = self._fitted(make(), *self.data())
        assert torch.is_grad_enabled()
        assert all(p.is_leaf and p.grad is None for p in network.parameters())

    def test_wrong_data_are_refused(self, make: Make) -> None:
        """ValueError or TypeError, which says what is wrong: lengths that differ, numbers that are not finite."""
        x_ND, y_N1 = self.data()
        nan = x_ND.clone()
        nan[3, 1] = float("nan")
        for inputs, targets, what in (
            (x_ND[:-1], y_N1, "lengths that differ"),
            (nan, y_N1, "inputs that are not finite"),
        ):
            try:
                make()(inputs, targets)
            except (ValueError, TypeError) as error:
                assert str(error).strip(), f"{what}: refused without a word"
            except Exception as error:
                pytest.fail(f"{what}: {type(error).__name__} instead of a ValueError: {error}")
            else:
                pytest.fail(f"{what} are taken without a word")

    def test_leaves_the_global_random_state_alone(self, make: Make) -> None:
        before = torch.get_rng_state()
        make()(*self.data())
        assert torch.equal(before, torch.get_rng_state())

    def test_memory_does_not_grow(self, make: Make) -> None:
        solver, sizes = make(), []
        for _ in range(2):
            solver(*self.data())
            sizes.append(elements(dict(vars(solver)) if hasattr(solver, "__dict__") else {}))
        assert sizes[1] <= sizes[0], f"it grew from {sizes[0]} to {sizes[1]} elements"

    def test_can_be_pickled(self, make: Make) -> None:
        x_ND, y_N1 = self.data()
        one, two = (self._fitted(solver, x_ND, y_N1)(x_ND) for solver in (make(), pickled(make())))
        assert torch.equal(one, two)

    def _fitted(self, solver: Callable[..., Any], inputs: Tensor, targets: Tensor) -> nn.Module:
        network = self.network(solver(inputs, targets))
        return network.requires_grad_(False)
