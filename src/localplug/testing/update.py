"""Checks that every update along directions must pass: localplug.Update, of the hook `localplug_update_rules`."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from localplug.contract import Run
from localplug.directions import Directions
from localplug.parts import Update
from localplug.selection import Selection
from localplug.testing.bowl import Bowl, elements, gradient, reloaded, run_of, weights
from localplug.testing.conformance import Documented, in_one_line, pickled

Make = Callable[[], Update]
Q = 8  # directions of a step


class UpdateTests(Documented):
    """Subclass it, and give the fixture `make`: a function that makes your update.

    For a torch.optim.Optimizer, which the same hook gives, there is UpdateRuleTests.
    """

    learning_rate = 0.02
    """On the bowl, whose curvature is between 0.5 and 1.5."""

    def test_lowers_a_quadratic(self, make: Make) -> None:
        step = _Stepping(make(), lr=self.learning_rate)
        first = float(step.run.model().detach()) - 1
        for _ in range(100):
            step.along_the_gradient()
        last = float(step.run.model().detach()) - 1
        assert last < 0.6 * first, f"the loss above its minimum went from {first:.2f} to {last:.2f}"

    def test_moves_every_parameter_against_the_estimate(self, make: Make) -> None:
        """By the mean over all coefficients, also where they are those of several workers."""
        for q in (1, Q, 2 * Q):
            step = _Stepping(make(), lr=self.learning_rate)
            estimate = step.estimate(cs := _coefficients(q))
            moved = step(cs)
            for g, m in zip(step.by_parameter(estimate), step.by_parameter(moved), strict=True):
                cosine = float(torch.nn.functional.cosine_similarity(-g, m, dim=0))
                assert cosine > 0.5, (
                    f"with {q} coefficients a parameter moves at cosine {cosine:.2f} to the step downhill"
                )

    def test_takes_the_learning_rate_of_each_group(self, make: Make) -> None:
        step = _Stepping(make(), lr=self.learning_rate)
        step.optimizer.param_groups[0]["lr"] = 0.0
        matrix, vector = step.by_parameter(step(_coefficients(Q)))
        assert not matrix.any() and vector.any()

    def test_weight_decay_is_decoupled(self, make: Make) -> None:
        """Coefficients of zero leave (1 - lr weight_decay) w."""
        step = _Stepping(make(), lr=0.1, weight_decay=0.2)
        before = torch.cat([p.detach().flatten().clone() for _, p in step.run.parameters])
        step([0.0] * Q)
        after = torch.cat([p.detach().flatten() for _, p in step.run.parameters])
        torch.testing.assert_close(after, (1 - 0.1 * 0.2) * before)

    def test_changes_what_is_selected_alone(self, make: Make) -> None:
        """And neither the coefficients nor the optimizer's groups."""
        step = _Stepping(make(), lr=self.learning_rate, parameters="matrix")
        cs, groups = _coefficients(Q), [dict(g) for g in step.optimizer.param_groups]
        before, still = list(cs), step.run.model.still.detach().clone()  # type: ignore[operator]
        matrix, vector = step.by_parameter(step(cs))
        assert matrix.any() and not vector.any()
        assert torch.equal(step.run.model.still.detach(), still)  # type: ignore[operator]
        assert cs == before, "it writes the coefficients"
        for now, then in zip(step.optimizer.param_groups, groups, strict=True):
            assert {k: v for k, v in now.items() if k != "params"} == {k: v for k, v in then.items() if k != "params"}
            assert [id(p) for p in now["params"]] == [id(p) for p in then["params"]]

    def test_leaves_gradients_or_can_be_replayed(self, make: Make) -> None:
        """What is left to the trainer's optimizer is in no log: `replay_problems` says so."""
        update = make()
        step = _Stepping(update, lr=self.learning_rate)
        step.apply(_coefficients(Q))
        leaves = any(p.grad is not None for _, p in step.run.parameters)
        by_optimizer = leaves or step.optimizer.steps > 0
        said = update.replay_problems(step.run)
        assert bool(said) or not by_optimizer, "the trainer's optimizer does the update, and replay_problems is silent"

    def test_the_same_coefficients_make_the_same_steps(self, make: Make) -> None:
        rows = []
        for _ in range(2):
            step = _Stepping(make(), lr=self.learning_rate)
            rows.append(torch.stack([step(_coefficients(Q, k)) for k in range(4)]))
        assert torch.equal(rows[0], rows[1])

    def test_resumes_from_its_state_dict(self, make: Make) -> None:
        update = make()
        whole = _Stepping(update, lr=self.learning_rate)
        for k in range(4):
            whole(_coefficients(Q, k))
        resumed = _Stepping(again := make(), lr=self.learning_rate)
        resumed.run.model.load_state_dict(whole.run.model.state_dict())
        resumed.run.step = whole.run.step
        again.load_state_dict(reloaded(update.state_dict()))
        for k in range(4, 8):
            whole(_coefficients(Q, k))
            resumed(_coefficients(Q, k))
        assert torch.equal(weights(whole.run), weights(resumed.run))

    def test_small_steps_of_half_precision_are_not_lost(self, make: Make) -> None:
        """An update of its own rounds stochastically (localplug.Directions does): in the mean it goes the whole way."""
        step = _Stepping(make(), lr=1e-4, dtype=torch.bfloat16)
        with torch.no_grad():
            for _, p in step.run.parameters:
                p.copy_(torch.ones_like(p))
        step.apply(_coefficients(Q))
        if step.optimizer.steps or any(p.grad is not None for _, p in step.run.parameters):
            return  # the trainer's optimizer rounds as it does
        for k in range(1, 40):
            step.apply(_coefficients(Q, k))
            step.run.step += 1
        moved = torch.cat([p.detach().float().flatten() - 1 for _, p in step.run.parameters])
        assert moved.any(), "no step below the rounding unit changed a weight"
        assert {p.dtype for _, p in step.run.parameters} == {torch.bfloat16} and torch.isfinite(moved).all()

    def test_leaves_the_global_random_state_alone(self, make: Make) -> None:
        before = torch.get_rng_state()
        _Stepping(make(), lr=self.learning_rate)(_coefficients(Q))
        assert torch.equal(before, torch.get_rng_state())

    def test_memory_does_not_grow(self, make: Make) -> None:
        """Beyond a window of steps, which `state_dict` shows."""
        update, sizes = make(), []
        step = _Stepping(update, lr=self.learning_rate)
        for k in range(60):
            step(_coefficients(Q, k))
            sizes.append(elements([vars(update), update.state_dict()]))
        assert sizes[-1] <= max(sizes[:30]), f"it grew from {max(sizes[:30])} to {sizes[-1]} elements"

    def test_can_be_pickled(self, make: Make) -> None:
        one, two = (_Stepping(update, lr=self.learning_rate) for update in (make(), pickled(make())))
        assert torch.equal(one(_coefficients(Q)), two(_coefficients(Q)))

    def test_describes_itself_in_one_line(self, make: Make) -> None:
        assert in_one_line(make().describe())


class _Counting(torch.optim.SGD):
    """The trainer's optimizer."""

    steps = 0

    def step(self, closure: Any = None) -> Any:
        self.steps += 1
        return super().step(closure)


class _Stepping:
    """Takes steps of an update on a bowl."""

    def __init__(
        self,
        update: Update,
        *,
        lr: float,
        weight_decay: float = 0.0,
        parameters: str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.update, self.run = update, run_of(Bowl(dtype))
        groups = [{"params": [p]} for _, p in self.run.parameters]
        self.optimizer = _Counting(groups, lr=lr, weight_decay=weight_decay)
        self.run.optimizer = self.optimizer
        if found := update.problems(self.run):
            pytest.fail(f"it cannot be used on a small model: {'; '.join(found)}")
        self.directions = Directions(self.run, selection=Selection(parameters))
        update.setup(self.run, self.directions)

    @torch.no_grad()
    def apply(self, coefficients: Sequence[float]) -> None:
        groups = {p: group for group in self.optimizer.param_groups for p in group["params"]}
        self.update.apply(self.run, self.directions, coefficients, groups)

    def __call__(self, coefficients: Sequence[float]) -> Tensor:
        """One step, as the engine and the trainer make it; gives what it changed."""
        before = self._trained(self.run)
        self.apply(coefficients)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.run.step += 1
        return self._trained(self.run) - before

    def along_the_gradient(self) -> None:
        """A step whose coefficients are the true slopes along its directions."""
        g = gradient(self.run)
        self([float(self._z(j) @ g) for j in range(Q)])

    def estimate(self, coefficients: Sequence[float]) -> Tensor:
        """(1/q) sum_j c_j z_j."""
        rows = [c * self._z(j) for j, c in enumerate(coefficients)]
        return torch.stack(rows).mean(0)

    def by_parameter(self, flat: Tensor) -> list[Tensor]:
        return list(flat.split([p.numel() for _, p in self.run.parameters]))

    def _z(self, direction: int) -> Tensor:
        return torch.cat([self.directions.values(i, direction).flatten() for i in self.directions.indices])

    @staticmethod
    def _trained(run: Run) -> Tensor:
        return torch.cat([p.detach().float().flatten().clone() for _, p in run.parameters])


def _coefficients(q: int, step: int = 0) -> list[float]:
    """Of changing signs, so that the past matters if it is kept."""
    return torch.randn(q, generator=torch.Generator().manual_seed(step)).tolist()
