"""Ways of training a task's model: by a method of localplug, or by backpropagation, which the bench does itself.

What a step costs is counted in forward passes over a batch, by one rule for all:

    a forward pass                                    1
    a backward pass through the model                 2
    backward passes inside units of several layers    2 for each view that learns
    backward passes inside units of one layer each    1 for each view that learns: gradients of weights, none of inputs
    tangents beside a forward pass (forward-grad)     2

A method that back-propagates through a part of the model is charged for the whole of it. A layer is counted by its matrix.
"""

import abc
import copy
import dataclasses
from typing import Any, final

import torch
from torch import Tensor, nn

import localplug
from localplug import LocalMethod, Predictor, Task
from localplug_bench.clock import Clock
from localplug_bench.specs import Spec

BACKPROP = "backprop"
BACKWARD, LOCAL, TANGENT = 2, 1, 2
OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
}


@final
@dataclasses.dataclass
class Passes:
    """How many passes over a batch there were."""

    forward: int = 0
    backward: int = 0
    local_backward: int = 0
    tangent: int = 0

    @property
    def counted(self) -> int:
        """In forward passes, as the budget counts."""
        return self.forward + BACKWARD * self.backward + LOCAL * self.local_backward + TANGENT * self.tangent


class Way(abc.ABC):
    """A model in training. `describe` says what by, in a line; what it is judged by is `predictor`."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    lr: float

    def __init__(self) -> None:
        self.passes = Passes()
        self.num_steps = 0

    @abc.abstractmethod
    def describe(self) -> str:
        """What trains, and what it must not be mistaken for."""

    @property
    @abc.abstractmethod
    def price(self) -> int:
        """What the next step costs, in forward passes."""

    @property
    def num_dropped(self) -> int:
        """Steps that were left out since their estimate was not finite."""
        return 0

    @property
    @abc.abstractmethod
    def predictor(self) -> nn.Module:
        """What evaluation calls for the model."""

    @abc.abstractmethod
    def step(self, batch: Any, clock: Clock) -> Tensor:
        """One step on a batch; gives its loss, detached."""

    @abc.abstractmethod
    def state(self) -> dict[str, Any]:
        """A copy of what was learned."""

    @abc.abstractmethod
    def load(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""

    @abc.abstractmethod
    def close(self) -> None:
        """Give the model back as it is."""

    @final
    def decay(self, factor: float) -> None:
        """Set the learning rate to a share of what it began at."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * factor


@final
class Backprop(Way):
    """BACKPROPAGATION: the twin that every method is held against. torch.autograd through the whole model."""

    def __init__(self, task: Task, spec: Spec, model: nn.Module) -> None:
        super().__init__()
        if unknown := spec.of_the_method:
            raise TypeError(
                f"backprop has no option {', '.join(unknown)}; it has lr, weight_decay, optimizer, schedule"
            )
        self._task, self.model, self.lr = task, model, float(spec.own["lr"])
        self.optimizer = _optimizer(spec, task.optimizer, model)

    def describe(self) -> str:
        return f"BACKPROPAGATION through the whole model, updates by {type(self.optimizer).__name__}"

    @property
    def price(self) -> int:
        return 1 + BACKWARD

    @property
    def predictor(self) -> nn.Module:
        return self.model

    def step(self, batch: Any, clock: Clock) -> Tensor:
        with clock("forward"):
            loss = self._task.loss(self.model, batch)
        with clock("backward"):
            loss.backward()
        with clock("update"):
            self.optimizer.step()
            self.optimizer.zero_grad()
        self.passes.forward += 1
        self.passes.backward += 1
        self.num_steps += 1
        return loss.detach()

    def state(self) -> dict[str, Any]:
        return copy.deepcopy(self.model.state_dict())

    def load(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state)

    def close(self) -> None:
        pass


@final
class ByMethod(Way):
    """By a method of a plugin, asked for by its name."""

    def __init__(self, task: Task, spec: Spec, model: nn.Module, seed: int, log: Any = None) -> None:
        super().__init__()
        self._task, self.model, self.lr = task, model, float(spec.own["lr"])
        self.method = localplug.method(spec.name, **spec.of_the_method)
        self.optimizer = _optimizer(spec, "sgd" if self.method.num_coefficients else task.optimizer, model)
        self.engine = localplug.Engine(model, self.method, self.optimizer, seed=seed, log=log)
        self._has_small_units = isinstance(self.method, LocalMethod) and all(
            sum(p.dim() > 1 for p in unit.parameters) <= 1 for unit in self.method.partition(self.engine.run)
        )
        self._predictor = model
        if self.method.predicting(self.engine.run) is not None:
            self._predictor = Predictor(model, self.method, seed=seed)

    def describe(self) -> str:
        also = f"; BACKPROPAGATION through {self.method.backpropagates}" if self.method.backpropagates else ""
        return f"{self.method.describe()}{also}"

    def _beside(self) -> Passes:
        """What one step costs beside its forward passes."""
        method = self.method
        if method.backpropagates:
            return Passes(backward=1)
        if isinstance(method, LocalMethod):
            num_views = sum(view.learns for view in method.views)
            return Passes(local_backward=num_views) if self._has_small_units else Passes(backward=num_views)
        if method.num_coefficients == 0:
            return Passes(backward=1)
        return Passes(tangent=method.num_evaluations) if method.needs_derivative else Passes()

    @property
    def price(self) -> int:
        return self.method.num_evaluations + self._beside().counted

    @property
    def num_dropped(self) -> int:
        return self.engine.run.num_dropped

    @property
    def predictor(self) -> nn.Module:
        return self._predictor

    def step(self, batch: Any, clock: Clock) -> Tensor:
        before, beside = self.engine.run.num_forwards, self._beside()

        def closure() -> Tensor:
            with clock("forward"):
                return self._task.loss(self.model, batch)

        loss = self.engine.evaluate(closure, targets=self._task.targets(batch))
        with clock("update"):
            self.engine.apply(self.optimizer)
            self.optimizer.step()
            self.optimizer.zero_grad()
        self.passes.forward += self.engine.run.num_forwards - before
        self.passes.backward += beside.backward
        self.passes.local_backward += beside.local_backward
        self.passes.tangent += beside.tangent
        self.num_steps += 1
        return loss

    def state(self) -> dict[str, Any]:
        return copy.deepcopy({"model": self.model.state_dict(), "method": self.method.state_dict()})

    def load(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.method.load_state_dict(state["method"])

    def close(self) -> None:
        self.engine.close()


def way(task: Task, spec: Spec, seed: int, device: str = "cpu", *, log: Any = None) -> Way:
    """A task's model, new, and what trains it.

    Args:
        spec: a method's name or "backprop", and options without ranges.
        seed: of the model's first weights and of the method.
        log: a file of the steps, for methods that have one; see localplug.Engine.

    Raises:
        Unsupported: the method cannot train this model; lists every reason.
        UnknownName, TypeError, ValueError: there is no such method, or it has no such option.
    """
    if spec.ranges:
        raise ValueError(f"{spec} leaves {', '.join(spec.ranges)} to a search; pass --tune N, or give each one value")
    model = task.fresh_model(seed).to(device).train()
    if spec.name == BACKPROP:
        return Backprop(task, spec, model)
    return ByMethod(task, spec, model, seed, log)


def _optimizer(spec: Spec, usual: str, model: nn.Module) -> torch.optim.Optimizer:
    own = spec.own
    name = own["optimizer"] or usual
    if name not in OPTIMIZERS:
        raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, got {name!r}")
    if own["schedule"] not in ("linear", "constant"):
        raise ValueError(f'schedule must be "linear" or "constant", got {own["schedule"]!r}')
    trained = [p for p in model.parameters() if p.requires_grad]
    make: Any = OPTIMIZERS[name]
    return make(trained, lr=float(own["lr"]), weight_decay=float(own["weight_decay"]))
