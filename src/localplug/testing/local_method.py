"""Checks that every layer-local method must pass, besides those of every method: the audits of what "local" claims."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from localplug.contract import Run
from localplug.local import LocalMethod
from localplug.predictor import Predictor
from localplug.signals import Activity
from localplug.testing.method import MethodTests
from localplug.testing.problem import CurvedProblem, Problem

DEPTH = 3
Gradients = dict[str, Tensor]


class LocalMethodTests(MethodTests):
    """Subclass it, and give the fixture `make`: a function that makes your method with options that suit small data."""

    curved_problem: type[CurvedProblem] = CurvedProblem
    """What training the last layer alone is not enough for."""
    learning_rate = 1e-2
    """Of Adam, on the curved problem."""
    learning_steps = 300
    """On the curved problem."""
    depths: tuple[int, ...] = (2, 4, 8, 16)
    """Hidden layers at which memory is compared; the first must have as many units as the method needs."""
    draws_per_example = False
    """Whether an example's number in the batch decides what is drawn for it (noise, negatives)."""
    reduction = "mean"
    """What a gradient is over the examples of a batch: their "mean" or their "sum"."""

    @pytest.fixture
    def make(self) -> Callable[[], LocalMethod]:
        raise NotImplementedError("the fixture `make` must return a function that makes your method")

    def local_loss(self, activity: Activity, run: Run) -> Tensor | None:
        """The scalar whose gradient a closed-form signal is; None for a unit to leave out. Write it for such a method.

        activity.output carries the unit's graph, unless the method's `needs_graph` says that it goes without.
        """
        raise NotImplementedError

    # ---- locality ---------------------------------------------------------------------------------------------------

    def test_a_unit_learns_without_the_units_above(self, make: Callable[[], LocalMethod]) -> None:
        """Other weights above unit k leave its gradients as they are, bit for bit; or `reads_above` says what it reads."""
        usual = self._gradients(self.problem(make(), depth=DEPTH))
        names = self._units(make)
        changed = []
        for k in range(len(names) - 1):
            problem = self.problem(make(), depth=DEPTH)
            above = [p for unit in self._partition(problem)[k + 1 :] for p in unit.parameters]
            _move(above)
            found = self._gradients(problem)
            assert any(found[n].any() for n in found if n in names[k]), f"unit {k} has no gradient at all"
            changed += [k for n in names[k] if not torch.equal(found[n], usual[n])]
        if make().reads_above:
            assert changed, "reads_above is declared, and nothing depends on the units above"
        else:
            assert not changed, (
                f"units {sorted(set(changed))} depend on the weights above them; declare it in reads_above"
            )

    def test_a_step_reads_no_label_of_another_batch(self, make: Callable[[], LocalMethod]) -> None:
        """The gradients of a batch are the same, whatever batch was evaluated and given up before."""
        plain, disturbed = self.problem(make(), depth=DEPTH), self.problem(make(), depth=DEPTH)
        labels = disturbed.labels_B
        disturbed.labels_B = torch.where(labels >= 0, 1 - labels.clamp(0, 1), labels)
        with self._own_state_kept(disturbed):
            self._gradients(disturbed)
        for p in [*disturbed.model.parameters(), *disturbed.engine.method.owned_parameters]:
            p.grad = None
        disturbed.labels_B = labels
        first, second = self._gradients(plain), self._gradients(disturbed)
        assert first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)

    def test_an_evaluation_leaves_every_weight_bit_for_bit(self, make: Callable[[], LocalMethod]) -> None:
        problem = self.problem(make(), depth=DEPTH)
        before = copy.deepcopy(problem.model.state_dict())
        self._gradients(problem)
        assert all(torch.equal(before[n], w) for n, w in problem.model.state_dict().items())

    def test_saved_tensors_do_not_grow_with_depth(self, make: Callable[[], LocalMethod]) -> None:
        """Elements that autograd holds at one time, weights left out: at most 1.1 times those of the smallest network."""
        peaks = {}
        for depth in self.depths:
            problem = self.problem(make(), depth=depth)
            with saved_elements(problem.model, problem.inputs) as peak:
                self._gradients(problem)
            peaks[depth] = peak[0]
        first, *_, last = peaks.values()
        assert last <= 1.1 * first, f"elements saved at one time, by hidden layers: {peaks}"

    # ---- what a gradient is -----------------------------------------------------------------------------------------

    def test_a_batch_twice_over_gives_the_gradient_of_its_reduction(self, make: Callable[[], LocalMethod]) -> None:
        """A mean over the examples stays as it is, a sum doubles."""
        once, twice = self.problem(make(), depth=DEPTH), self.problem(make(), depth=DEPTH)
        num = len(once.labels_B)
        two_times = torch.arange(num).repeat(2)
        twice.inputs, twice.labels_B = twice.rows(twice.inputs, two_times), twice.labels_B[two_times]
        one, two = self._gradients(once), self._gradients(twice)
        factor = 2.0 if self.reduction == "sum" else 1.0
        last = {id(p) for p in self._partition(once)[-1].parameters}
        heads = {n for n, p in once.model.named_parameters() if id(p) in last}  # the trainer's own loss
        for name, gradient in one.items():
            wanted = gradient * (1.0 if name in heads else factor)
            if not self.draws_per_example:
                torch.testing.assert_close(
                    two[name], wanted, atol=1e-5, rtol=1e-3, msg=f"{name}: not a {self.reduction}"
                )
            elif float(wanted.norm()) > 0:
                ratio = float(two[name].norm() / wanted.norm())
                assert 0.5 < ratio < 1.5, (
                    f"{name}: {ratio:.2f} times as long for a batch twice over; not a {self.reduction}"
                )

    def test_a_closed_form_is_the_gradient_of_its_local_loss(self, make: Callable[[], LocalMethod]) -> None:
        """Of `local_loss`, which a test class writes for a method that gives grad_output or delta."""
        problem = self.problem(make(), depth=DEPTH)
        method, wanted, is_closed = _method(problem), {}, []
        original = method.signal

        def compared(activity: Activity, run: Run) -> Any:
            signal = original(activity, run)
            if signal is None or (signal.grad_output is None and signal.delta is None):
                return signal
            is_closed.append(activity.unit.index)
            J = self.local_loss(activity, run)
            if J is not None:
                parameters = activity.unit.parameters
                found = torch.autograd.grad(J, parameters, retain_graph=True, allow_unused=True)
                wanted.update({id(p): g for p, g in zip(parameters, found, strict=True) if g is not None})
            return signal

        method.signal = compared  # type: ignore[method-assign]
        try:
            self._gradients(problem)
        except NotImplementedError:
            pytest.fail(f"{type(method).__name__} gives closed forms: write local_loss in its class of tests")
        if not is_closed:
            pytest.skip("every signal is a loss or a closure, which the host differentiates")
        assert wanted, "local_loss left every unit out"
        for name, p in problem.model.named_parameters():
            if id(p) in wanted:
                assert p.grad is not None, name
                torch.testing.assert_close(p.grad, wanted[id(p)], atol=1e-6, rtol=1e-4, msg=f"{name}: not the gradient")

    # ---- what is learned ----------------------------------------------------------------------------------------------

    def test_beats_training_the_last_layer_alone(self, make: Callable[[], LocalMethod]) -> None:
        """On examples that no training has seen, after as many steps of Adam at the same learning rate."""
        method = self._trained(make)
        local = self._accuracy(Predictor(method[0].model, method[1]) if method[1].prediction else method[0].model)
        shallow = self._shallow(make)
        assert local > shallow + 0.02, f"accuracy {local:.3f}; with the last layer alone {shallow:.3f}"

    def test_prediction_sees_no_label_and_no_other_example(self, make: Callable[[], LocalMethod]) -> None:
        """Scores follow the examples in any order, are the same for a part of the batch, and ignore labels that lie about."""
        problem, method = self._trained(make, steps=3)
        model = Predictor(problem.model, method) if method.prediction else problem.model
        model.eval()
        labelled = torch.arange(len(problem.labels_B))
        order = labelled.roll(7)
        with torch.no_grad():
            scores = model(*problem.inputs)
            method_run = problem.engine.run
            method_run.targets = problem.labels_B.flip(0)
            assert torch.equal(model(*problem.inputs), scores), "a prediction depends on labels, or is not repeatable"
            method_run.targets = None
            torch.testing.assert_close(model(*problem.rows(problem.inputs, order)), scores[order], atol=1e-5, rtol=1e-4)
        assert scores.shape[0] == len(problem.labels_B)

    def test_an_evaluation_loop_predicts_by_itself(self, make: Callable[[], LocalMethod]) -> None:
        """The attached model in evaluation mode gives what the wrapped one gives; training goes on after it."""
        problem, method = self._trained(make, steps=3)
        detach = problem.engine.attach()
        problem.model.eval()
        with torch.no_grad():
            attached = problem.model(*problem.inputs)
        problem.model.train()
        detach()
        model = Predictor(problem.model, method).eval() if method.prediction else problem.model.eval()
        with torch.no_grad():
            assert torch.equal(model(*problem.inputs), attached)
        problem.model.train()
        problem.step()

    def test_what_is_owned_is_saved_with_the_method_and_not_with_the_model(
        self, make: Callable[[], LocalMethod]
    ) -> None:
        problem, method = self._trained(make, steps=3)
        assert set(problem.model.state_dict()) == set(self.curved_problem(make(), depth=2).model.state_dict())
        if not method.prediction:
            return
        trained, fresh = Predictor(problem.model, method), Predictor(self.curved_problem(make(), depth=2).model, make())
        trained.eval()
        fresh.eval()
        fresh.load_state_dict(copy.deepcopy(trained.state_dict()))
        with torch.no_grad():
            assert torch.equal(fresh(*problem.inputs), trained(*problem.inputs))

    # ---- parts ----------------------------------------------------------------------------------------------------------

    def _trained(self, make: Callable[[], LocalMethod], steps: int | None = None) -> tuple[Problem, LocalMethod]:
        problem = self.curved_problem(make(), depth=2)
        problem.optimizer = torch.optim.Adam(problem.model.parameters(), lr=self.learning_rate)
        for _ in range(self.learning_steps if steps is None else steps):
            problem.step()
        return problem, _method(problem)

    def _shallow(self, make: Callable[[], LocalMethod]) -> float:
        problem = self.curved_problem(make(), depth=2)
        head = list(problem.model.parameters())[-2:]
        optimizer = torch.optim.Adam(head, lr=self.learning_rate)
        for _ in range(self.learning_steps):
            for p, g in zip(head, torch.autograd.grad(problem.loss(), head), strict=True):
                p.grad = g
            optimizer.step()
        problem.engine.close()
        return self._accuracy(problem.model)

    def _accuracy(self, model: nn.Module) -> float:
        model.eval()
        sample = self.curved_problem.__new__(self.curved_problem)
        inputs, labels_B = sample.split(3, 1000)
        with torch.no_grad():
            return float((model(*inputs).argmax(-1) == labels_B).float().mean())

    def _gradients(self, problem: Problem) -> Gradients:
        """Of one estimate: the model's parameters by name, and those of the owned modules."""
        problem.engine.evaluate(problem.loss, targets=problem.labels_B)
        found = {n: p.grad.clone() for n, p in problem.model.named_parameters() if p.grad is not None}
        for name, module in _method(problem).owned_modules.modules.items():
            found |= {f"owned {name}.{n}": p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}
        return found

    def _partition(self, problem: Problem) -> list[Any]:
        return _method(problem).partition(problem.engine.run)

    def _units(self, make: Callable[[], LocalMethod]) -> list[set[str]]:
        """The names of each unit's gradients."""
        problem = self.problem(make(), depth=DEPTH)
        found = self._gradients(problem)
        names = {id(p): n for n, p in problem.model.named_parameters()}
        return [
            ({names[id(p)] for p in unit.parameters} | {n for n in found if n.startswith(f"owned {unit.key}.")})
            & found.keys()
            for unit in self._partition(problem)
        ]

    @contextmanager
    def _own_state_kept(self, problem: Problem) -> Iterator[None]:
        before = copy.deepcopy(_method(problem).own_state())
        yield
        _method(problem).load_own_state(before)


@contextmanager
def saved_elements(model: nn.Module, inputs: tuple[Any, ...] = ()) -> Iterator[list[int]]:
    """How many elements autograd holds at one time inside the `with`, those of weights and inputs left out: [peak]."""
    tensors = [*model.parameters(), *model.buffers(), *(x for x in inputs if isinstance(x, Tensor))]
    own, live, peak = {t.data_ptr() for t in tensors}, [0], [0]

    class Kept:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor.detach()  # a saved output would hold its own graph
            live[0] += tensor.numel()
            peak[0] = max(peak[0], live[0])

        def __del__(self) -> None:
            live[0] -= self.tensor.numel()

    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: t if t.data_ptr() in own else Kept(t), lambda k: k.tensor if isinstance(k, Kept) else k
    ):
        yield peak


def _method(problem: Problem) -> LocalMethod:
    method = problem.engine.method
    assert isinstance(method, LocalMethod)
    return method


@torch.no_grad()
def _move(parameters: list[nn.Parameter]) -> None:
    generator = torch.Generator().manual_seed(5)
    for p in parameters:
        p.add_(torch.randn(p.shape, generator=generator).to(p.device, p.dtype) * 0.3)
