"""Checks that every method must pass. They drive it as the engine does, and look only from outside."""

import copy
import io
from collections.abc import Callable

import pytest
import torch
from torch import nn

from localplug.contract import Method
from localplug.errors import Unsupported
from localplug.testing.conformance import Documented, in_one_line, pickled
from localplug.testing.problem import Problem

STEPS = 150


class MethodTests(Documented):
    """Subclass it, and give the fixture `make`: a function that makes your method with options that suit small data."""

    resting_steps = 0
    """Steps at the start that only measure, and move no weight."""
    moves_everything = True
    """Whether each step moves every trained weight; set it to False for a method that takes a part of them in turn."""
    problem: type[Problem] = Problem
    """What the method is tried on; a subclass of localplug.testing.Problem for one that needs other inputs or models."""
    uses_seed = True
    """Whether a run depends on its seed; set it to False for a method that draws nothing."""
    is_linear = True
    """Whether an update is linear in its coefficients; set it to False for one that divides them by their own size."""

    @pytest.fixture
    def make(self) -> Callable[[], Method]:
        raise NotImplementedError("the fixture `make` must return a function that makes your method")

    def test_lowers_the_loss(self, make: Callable[[], Method]) -> None:
        problem = self.problem(make())
        first = problem.clean_loss()
        for _ in range(STEPS):
            problem.step()
        assert problem.clean_loss() < 0.7 * first, "the loss did not fall by a third"

    def test_evaluates_as_often_as_it_says(self, make: Callable[[], Method]) -> None:
        method = make()
        problem = self.problem(method)
        said = 0
        for _ in range(2):
            said += method.num_evaluations  # of the next estimate
            problem.step()
        assert problem.engine.run.num_forwards == said

    def test_an_evaluation_does_not_write_the_weights(self, make: Callable[[], Method]) -> None:
        problem = self.problem(make())
        before = problem.weights()
        problem.engine.evaluate(problem.loss, targets=problem.labels_B)
        assert torch.allclose(problem.weights(), before, rtol=0, atol=1e-6)

    def test_reports_the_loss_of_the_batch(self, make: Callable[[], Method]) -> None:
        problem = self.problem(make())
        clean = problem.clean_loss()
        reported = float(problem.step())
        assert abs(reported - clean) < 0.1 * clean, f"the step reports the loss {reported}, which is {clean}"

    def test_changes_the_weights_or_leaves_gradients_and_never_both(self, make: Callable[[], Method]) -> None:
        """Gradients beside an update of the method's own would be a second update, by the optimizer that steps next."""
        problem = self.problem(make(), frozen=(self.problem.frozen_name,))
        self._rest(problem)
        before = problem.weights()
        problem.engine.evaluate(problem.loss, targets=problem.labels_B)
        problem.engine.apply(problem.optimizer)
        changed = not torch.allclose(problem.weights(), before, rtol=0, atol=1e-6)
        trained = [p.grad is not None for p in problem.model.parameters() if p.requires_grad]
        assert changed != any(trained), f"update changed the weights: {changed}; it left gradients: {any(trained)}"
        assert all(trained) or not any(trained) or not self.moves_everything, (
            "some of the trained parameters have a gradient, and some have none"
        )
        assert all(p.grad is None for p in problem.model.parameters() if not p.requires_grad)

    def test_the_same_seed_repeats_the_run(self, make: Callable[[], Method]) -> None:
        one, two = self.problem(make(), seed=3, dropout=0.2), self.problem(make(), seed=3, dropout=0.2)
        for problem in (one, two):
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(7)
                for _ in range(3):
                    problem.step()
        assert torch.equal(one.everything(), two.everything())

    def test_another_seed_makes_another_run(self, make: Callable[[], Method]) -> None:
        one, two = self.problem(make(), seed=3), self.problem(make(), seed=4)
        for problem in (one, two):
            self._rest(problem)
            problem.step()
        differ = not torch.equal(one.everything(), two.everything())
        assert differ == self.uses_seed, f"uses_seed is {self.uses_seed}, and runs of two seeds differ: {differ}"

    def test_steps_differ(self, make: Callable[[], Method]) -> None:
        """Two steps from the same weights and the same batch draw different directions, unless nothing is drawn."""
        method = make()
        if method.num_coefficients == 0:
            return
        problem = self.problem(method)
        self._rest(problem)
        start = problem.weights()
        problem.step()
        first = problem.weights() - start
        with torch.no_grad():
            torch.nn.utils.vector_to_parameters(start.clone(), problem.model.parameters())
        problem.step()
        second = problem.weights() - start
        cosine = torch.nn.functional.cosine_similarity(first, second, dim=0)
        assert abs(float(cosine)) < 0.9, "the second step went along the first one's direction"

    def test_a_resumed_run_equals_the_uninterrupted_one(self, make: Callable[[], Method]) -> None:
        whole = self.problem(make(), seed=5)
        for _ in range(4):
            whole.step()
        saved = copy.deepcopy((whole.model.state_dict(), whole.optimizer.state_dict()))
        checkpoint = io.BytesIO()
        torch.save(whole.engine.state_dict(), checkpoint)
        for _ in range(3):
            whole.step()
        resumed = self.problem(make(), seed=5)
        resumed.model.load_state_dict(saved[0])
        resumed.optimizer.load_state_dict(saved[1])
        checkpoint.seek(0)
        resumed.engine.load_state_dict(torch.load(checkpoint, weights_only=True))  # numbers and tensors only
        for _ in range(3):
            resumed.step()
        assert torch.equal(whole.everything(), resumed.everything())

    def test_a_failing_evaluation_leaves_weights_and_gradients_as_they_were(self, make: Callable[[], Method]) -> None:
        for failing in range(1, make().num_evaluations + 1):
            problem = self.problem(make())
            before, calls = problem.weights(), [0]

            def fails(problem: Problem = problem, calls: list[int] = calls, failing: int = failing) -> torch.Tensor:
                calls[0] += 1
                try:
                    return problem.loss()
                finally:  # also of an evaluation that the method breaks off
                    if calls[0] == failing:
                        raise RuntimeError("out of memory")

            with pytest.raises(RuntimeError, match="out of memory"):
                problem.engine.step(fails, problem.optimizer, targets=problem.labels_B)
            assert torch.allclose(problem.weights(), before, rtol=0, atol=1e-6), f"evaluation {failing} of the step"
            assert all(p.grad is None for p in problem.model.parameters())
            assert torch.is_grad_enabled()
            assert all(module.training for module in problem.model.modules())
            problem.step()  # and it goes on

    def test_leaves_the_global_random_state_as_one_forward_pass_would(self, make: Callable[[], Method]) -> None:
        stepped, forward = self.problem(make(), dropout=0.5), self.problem(make(), dropout=0.5)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(11)
            stepped.step()
            after_step = torch.get_rng_state()
            torch.default_generator.manual_seed(11)
            forward.clean_loss()
            assert torch.equal(after_step, torch.get_rng_state())

    def test_frozen_parameters_stay(self, make: Callable[[], Method]) -> None:
        problem = self.problem(make(), frozen=(self.problem.frozen_name,))
        self._rest(problem)
        before = problem.weights()
        problem.step()
        moved = (problem.weights() != before).split([p.numel() for p in problem.model.parameters()])
        names = [name for name, _ in problem.model.named_parameters()]
        still = [name for name, m in zip(names, moved, strict=True) if not m.any()]
        frozen = self.problem.frozen_name
        assert still == [frozen] if self.moves_everything else frozen in still

    def test_the_optimizers_learning_rate_scales_the_step(self, make: Callable[[], Method]) -> None:
        slow, fast = self.problem(make(), lr=1e-3), self.problem(make(), lr=2e-3)
        self._rest(slow)
        self._rest(fast)
        start = slow.weights()
        slow.step()
        fast.step()
        torch.testing.assert_close(fast.weights() - start, 2 * (slow.weights() - start), atol=1e-6, rtol=1e-3)

    def test_the_learning_rate_is_taken_by_parameter_group(self, make: Callable[[], Method]) -> None:
        try:
            problem = self.problem(make())
            self._rest(problem)
            for group in problem.optimizer.param_groups[::2]:
                group["lr"] = 0.0
            if make().problems(problem.engine.run):
                return  # it takes one learning rate, and says so
        except Unsupported:
            return
        before = problem.weights()
        problem.step()
        moved = (problem.weights() - before).abs().split([p.numel() for p in problem.model.parameters()])
        moving = [float(m.max()) > 1e-6 for m in moved]
        should = [i % 2 == 1 for i in range(len(moving))]
        assert moving == should if self.moves_everything else not any(moving[::2])

    def test_the_optimizers_weight_decay_shrinks_the_weights(self, make: Callable[[], Method]) -> None:
        """By lr * weight_decay of each matrix that it moves; whether vectors are decayed is the method's own choice."""
        try:
            plain, decayed = self.problem(make(), lr=0.05), self.problem(make(), lr=0.05, weight_decay=0.1)
        except Unsupported:
            return  # it says so
        if not self.moves_everything:
            return
        before = [p.detach().clone() for p in plain.model.parameters()]
        plain.step()
        decayed.step()
        for w, p, d in zip(before, plain.model.parameters(), decayed.model.parameters(), strict=True):
            if w.dim() > 1:
                torch.testing.assert_close(d.detach(), p.detach() - 0.05 * 0.1 * w, atol=1e-5, rtol=1e-4)

    def test_two_halves_of_a_step_equal_the_step(self, make: Callable[[], Method]) -> None:
        """Micro-batches: both estimates of one optimizer step are along the same directions, and add up."""
        whole, halves = self.problem(make()), self.problem(make())
        whole.step()
        for _ in range(2):
            halves.engine.evaluate(halves.loss, scale=0.5, targets=halves.labels_B)
        halves.engine.apply(halves.optimizer)
        halves.optimizer.step()
        torch.testing.assert_close(halves.weights(), whole.weights(), atol=1e-4, rtol=1e-4)

    def test_directions_of_several_workers_are_drawn_and_applied_or_refused(self, make: Callable[[], Method]) -> None:
        """Two workers, each with directions of its own: run.first_direction numbers them, update gets all coefficients."""
        q, num = make().num_directions, make().num_coefficients
        if not num:
            return
        together = self.problem(make())
        together.engine.run.num_workers_apart = 2
        if make().problems(together.engine.run):
            return
        losses = {}
        for first in (0, q):
            problem = self.problem(make())
            problem.engine.run.num_workers_apart, problem.engine.run.first_direction = 2, first
            losses[first] = _losses(problem)
        assert losses[0] != losses[q], "the second worker evaluates the first one's directions"
        if not self.is_linear:
            return
        alone = _moved_by(self.problem(make()), [0.5] * num)
        first_half = _moved_by(together, [1.0] * num + [0.0] * num)
        torch.testing.assert_close(first_half, alone, atol=1e-6, rtol=1e-4, msg="a mean over all coefficients is wrong")
        other = self.problem(make())
        other.engine.run.num_workers_apart = 2
        second_half = _moved_by(other, [0.0] * num + [1.0] * num)
        cosine = float(torch.nn.functional.cosine_similarity(first_half, second_half, dim=0))
        assert second_half.any() and abs(cosine) < 0.9, "the second worker's directions are not applied"

    def test_memory_of_the_method_does_not_grow(self, make: Callable[[], Method]) -> None:
        problem = self.problem(make())
        sizes = []
        for _ in range(12):
            problem.step()
            sizes.append(_elements(problem.engine.method.state_dict()) + _elements(vars(problem.engine.method)))
        first, second = max(sizes[:6]), max(sizes[6:])
        assert second <= first, f"state_dict and attributes grew from {first} to {second} elements"

    def test_teardown_takes_its_hooks_off_the_model(self, make: Callable[[], Method]) -> None:
        problem = self.problem(make())
        problem.step()
        problem.engine.close()
        for name, module in problem.model.named_modules():
            assert not (module._forward_pre_hooks or module._forward_hooks or module._backward_hooks), name
            assert "forward" not in vars(module), name

    def test_leaves_no_gradient_and_no_graph_behind(self, make: Callable[[], Method]) -> None:
        """After a step the weights are what they were: leaves without a gradient that ask for one, unless frozen."""
        problem = self.problem(make(), frozen=(self.problem.frozen_name,))
        asked = [p.requires_grad for p in problem.model.parameters()]
        parameters = list(problem.model.parameters())
        for _ in range(2):
            problem.step()
        left = [n for n, p in problem.model.named_parameters() if p.grad is not None]
        assert not left, f"gradients are left on {left}"
        assert all(p.is_leaf and p.grad_fn is None for p in problem.model.parameters())
        assert [p.requires_grad for p in problem.model.parameters()] == asked
        assert all(p is q for p, q in zip(problem.model.parameters(), parameters, strict=True)), (
            "a parameter was replaced"
        )

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_is_kept_or_refused(self, make: Callable[[], Method], dtype: torch.dtype) -> None:
        """An evaluation leaves no rounding in the weights, bit for bit, and steps are finite; or `problems` says why not."""
        try:
            problem = self.problem(make(), dtype=dtype)
        except Unsupported:
            return
        before, dtypes = problem.weights(), [p.dtype for p in problem.model.parameters()]
        problem.engine.evaluate(problem.loss, targets=problem.labels_B)
        assert torch.equal(problem.weights(), before), f"an evaluation leaves its rounding in weights of {dtype}"
        problem.engine.apply(problem.optimizer)
        problem.optimizer.step()
        problem.optimizer.zero_grad()
        for _ in range(2):
            problem.step()
        assert [p.dtype for p in problem.model.parameters()] == dtypes, "parameters have another dtype than before"
        assert torch.isfinite(problem.weights()).all(), f"weights of {dtype} are not finite after three steps"
        self._rest(problem)
        assert not torch.equal(problem.weights(), before), f"weights of {dtype} do not move"

    def test_a_wrapper_round_the_model_changes_nothing(self, make: Callable[[], Method]) -> None:
        """Directions and projections go by names without what all of them begin with, so that every worker has the same."""
        kind = self.problem

        class Wrapped(kind):  # type: ignore[misc, valid-type]
            def network(self, depth: int, dropout: float) -> nn.Module:
                return _Wrapper(super().network(depth, dropout))

        try:
            plain, wrapped = self.problem(make()), Wrapped(make())
        except Unsupported:
            return  # it wants the model as it is, and says so
        for _ in range(2):
            plain.step()
            wrapped.step()
        assert torch.equal(plain.weights(), wrapped.weights())

    def test_can_be_pickled(self, make: Callable[[], Method]) -> None:
        """For workers that are started with it; the copy trains as the original does."""
        one, two = self.problem(make()), self.problem(pickled(make()))
        one.step()
        two.step()
        assert torch.equal(one.everything(), two.everything())

    def test_describes_itself_in_one_line(self, make: Callable[[], Method]) -> None:
        assert in_one_line(make().describe())

    def _rest(self, problem: Problem) -> None:
        for _ in range(self.resting_steps):
            problem.step()


class _Wrapper(nn.Module):
    """What a trainer puts round a model."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.module(*inputs)
        return found


def _losses(problem: Problem) -> list[float]:
    """The losses of one estimate's evaluations, and what it comes down to."""
    estimating, found = problem.engine.method.estimate(problem.engine.run), []
    with torch.no_grad():
        next(estimating)
        try:
            while True:
                loss = problem.loss()
                found.append(float(loss))
                estimating.send([loss])
        except StopIteration as stop:
            coefficients = stop.value.pull_back([torch.ones(())])
            return found + ([] if coefficients is None else coefficients.tolist())


def _moved_by(problem: Problem, coefficients: list[float]) -> torch.Tensor:
    """What one update by these coefficients changes."""
    before = problem.weights()
    groups = {p: group for group in problem.optimizer.param_groups for p in group["params"]}
    with torch.no_grad():
        problem.engine.method.update(problem.engine.run, coefficients, groups)
    problem.optimizer.step()
    return problem.weights() - before


def _elements(tree: object) -> int:
    """How many numbers and other things lie in nested dictionaries and lists."""
    leaves = torch.utils._pytree.tree_leaves(tree)
    return sum(leaf.numel() if isinstance(leaf, torch.Tensor) else 1 for leaf in leaves)
