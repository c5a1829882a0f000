"""The layer-local mechanism: stream through the units, so that only one unit's graph is alive at any time.

A step is one or more views of the batch, each of them a forward pass. In each view a unit is handed to the algorithm as soon
as its output is complete, gives its Signal, learns, and frees its graph before the next unit starts (localplug.stream). The
last unit learns from the trainer's own loss, in the last view. What the algorithm owns beside the model learns by an
optimizer like the trainer's (localplug.owned).

Shapes: B examples of the batch, K classes.
"""

import abc
from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from localplug.contract import Estimating, Groups, Method, Prediction, Run
from localplug.errors import Unsupported
from localplug.owned import Owned, twin
from localplug.signals import Activity, Signal, View
from localplug.stream import Stream
from localplug.units import Kind, Unit, partition


class LocalMethod(Method, abc.ABC):
    """A method whose units learn one by one while forward passes go by.

    An algorithm writes `signal` and `describe`, and as many of the hooks below them as it needs, each of which has a default;
    all else is final.

    Args:
        units: names of the modules that start a unit (* and ? match), in the order of their calls; see localplug.partition.
        kind: "layer", "block" or "model": where units start if `units` does not say so.
        joins_head: whether the head belongs to the last hidden unit; see localplug.partition.
        num_classes: K; by default the number of outputs of the last layer that says how many it has.

    Attributes:
        views: the passes of a step, in order. The last one is the trainer's own and ends in the loss; the others break off.
        prediction: the passes of a prediction, where that is more than a forward pass of the model; the last is the evaluation
            loop's own. Their units are observed, and `scores` stands in the place of the last unit's output.
        reads_above: what of the units above a unit's step depends on, in words; empty for an algorithm that is local.
        needs_targets: whether labels must reach the method.
        min_units: how many units it needs.
    """

    views: tuple[View, ...] = (View(),)
    prediction: tuple[View, ...] = ()
    reads_above: str = ""
    needs_targets: bool = True
    min_units: int = 2

    def __init__(
        self,
        *,
        units: Sequence[str] | None = None,
        kind: Kind = "layer",
        joins_head: bool = False,
        num_classes: int | None = None,
    ) -> None:
        self.units, self.kind, self.joins_head, self._num_classes = units, kind, joins_head, num_classes
        self.owned_modules = Owned()
        self._stream: Stream | None = None
        self.K: int | None = num_classes

    # ---- what an algorithm writes -----------------------------------------------------------------------------------------

    @abc.abstractmethod
    def signal(self, activity: Activity, run: Run) -> Signal | None:
        """What a unit that is not the last learns from; None for nothing. Gradients are on while this is called."""

    # ---- hooks, each with a default -----------------------------------------------------------------------------------------

    def local_input(self, unit: Unit, x: Tensor, view: View, run: Run) -> Tensor:
        """What enters a unit's module in the place of x, its first tensor, which is detached. By default x.

        Called without gradients. Unit 0 gets the model's own input: here a view changes it.
        """
        return x

    def local_inputs(
        self, unit: Unit, inputs: tuple[Any, ...], kwargs: dict[str, Any], view: View, run: Run
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What enters a unit's module in the place of all that it was called with, detached: a graph's edges, a mask.

        By default its first tensor goes through `local_input`, and the rest stays. Called without gradients.
        """
        for place, value in enumerate(inputs):
            if isinstance(value, Tensor):
                return (*inputs[:place], self.local_input(unit, value, view, run), *inputs[place + 1 :]), kwargs
        for key, value in kwargs.items():
            if isinstance(value, Tensor):
                return inputs, {**kwargs, key: self.local_input(unit, value, view, run)}
        return inputs, kwargs

    def learns(self, unit: Unit, view: View, run: Run) -> bool:
        """Whether a unit learns in this step, in a view that learns; one that does not runs without a graph."""
        return True

    def needs_graph(self, unit: Unit, view: View) -> bool:
        """Whether autograd should record a hidden unit's forward; False if its signal does without."""
        return True

    def owns(self, unit: Unit, output: Tensor, run: Run) -> nn.Module | None:
        """A module that belongs to the algorithm and to this hidden unit: a head, a decoder; see localplug.seeded.

        Asked once, with the unit's first output; the same module is `unit.owned` from then on.
        """
        return None

    def observe(self, activity: Activity, run: Run) -> None:
        """A hidden unit that does not learn in this view has its output. Called without gradients."""

    def top(self, unit: Unit, output: Tensor, run: Run) -> None:
        """The last unit's module has given its output, in a view that ends there. Called without gradients."""

    def scores(self, output: Tensor, run: Run) -> Tensor | None:
        """What takes the place of the last unit's output in a prediction; None leaves it. Called without gradients."""
        return None

    def stepped(self, run: Run) -> None:
        """An optimizer step is done with what the units have learned. Called without gradients."""

    def unit_names(self, run: Run) -> Sequence[str] | None:
        """Names of the modules that start a unit, in the order of their calls; None where `kind` says it. By default `units`.

        Raises:
            ValueError: the model is none that the algorithm is for; the message says which it needs.
        """
        return self.units

    def unit_problems(self, units: Sequence[Unit], run: Run) -> list[str]:
        """Every reason why these units cannot learn by this algorithm; each says what to do."""
        return []

    def own_state(self) -> dict[str, Any]:
        """What the next step needs and (seed, step) do not give, besides what is owned; numbers and tensors only."""
        return {}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Take back what `own_state` gave."""

    # ---- for algorithms ---------------------------------------------------------------------------------------------------

    @final
    def one_hot(self, run: Run, device: torch.device) -> Tensor:
        """The labels as y* (B, K) in float32: one-hot, or the targets of a regression as they are.

        Raises:
            TypeError, ValueError: they are no tensor, of another shape, or outside of [0, K).
        """
        labels = run.targets
        if not isinstance(labels, Tensor):
            raise TypeError(f"local targets need the labels as a tensor, got {type(labels).__name__}")
        if labels.is_floating_point():
            return labels.to(device).float().view(labels.shape[0], -1)
        assert self.K is not None
        return nn.functional.one_hot(self.class_labels(run, device), self.K).float()

    @final
    def class_labels(self, run: Run, device: torch.device) -> Tensor:
        """The labels as integers (B,).

        Raises:
            TypeError, ValueError: they are no integer tensor, of another shape, or outside of [0, K).
        """
        labels = run.targets
        if not isinstance(labels, Tensor) or labels.is_floating_point():
            found = f"{labels.dtype}" if isinstance(labels, Tensor) else type(labels).__name__
            raise TypeError(f"this method needs class labels as an integer tensor, got {found}")
        labels = labels.to(device)
        if labels.dim() != 1:
            raise ValueError(
                f"the method needs class labels of shape (B,) or float targets (B, K), got {tuple(labels.shape)}; "
                "tokens of a language model are not covered"
            )
        assert self.K is not None
        if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < self.K:
            raise ValueError(f"labels must be in [0, {self.K}), got {int(labels.min())} to {int(labels.max())}")
        return labels

    # ---- the host's -------------------------------------------------------------------------------------------------------

    @final
    def partition(self, run: Run) -> list[Unit]:
        """The units in the order in which the forward pass reaches them; the last one learns from the trainer's loss."""
        units = partition(run.model, self.unit_names(run), kind=self.kind, joins_head=self.joins_head)
        if self._num_classes is None:
            end = run.model if self.joins_head else units[-1].module
            widths = [w for m in end.modules() if isinstance(w := _width(m), int)]
            self.K = widths[-1] if widths else None
        return units

    @final
    def owned_of(self, unit: Unit, output: Tensor, run: Run) -> nn.Module | None:
        """The module that the algorithm owns in a unit, made when it is first asked for."""
        return self.owned_modules.of(unit.key, lambda: self.owns(unit, output, run))

    @property
    def owned_parameters(self) -> list[nn.Parameter]:
        return self.owned_modules.parameters

    @property
    def num_evaluations(self) -> int:
        return len(self.views)

    @property
    def num_coefficients(self) -> int:
        return 0

    @final
    def problems(self, run: Run) -> list[str]:
        try:
            units = self.partition(run)
        except ValueError as error:
            return [str(error)]
        found = []
        if len(units) < self.min_units:
            found.append(
                f"the method needs at least {self.min_units} units, the model has {len(units)}; name smaller ones with units="
            )
        if left := uncovered(run, units):
            found.append(f"parameters {left[:5]} belong to no unit and would never learn; name more units with units=")
        if self.K is None and self.needs_targets:
            found.append("the number of classes does not follow from the last unit; pass num_classes=")
        if type(self).owns is not LocalMethod.owns and run.optimizer is not None:
            try:
                twin(run.optimizer, [nn.Parameter(torch.zeros(1))])
            except Unsupported as error:
                found.append(str(error))
        return found + self.unit_problems(units, run)

    @final
    def setup(self, run: Run) -> None:
        *others, last = self.views
        assert last.ends == "loss" and all(view.ends != "loss" for view in others), (
            "only the last view ends in the loss"
        )
        if self._stream is None:
            self._stream = Stream(self, self.partition(run), run)

    @final
    def estimate(self, run: Run) -> Estimating:
        if run.targets is None and self.needs_targets:
            raise ValueError(
                "local targets need the labels, and none reached the model's forward call: pass labels= to the model, "
                "or targets= to the callback, the strategy or attach (label smoothing and compute_loss_func take the "
                "labels away before the model is called)"
            )
        stream = self._stream
        assert stream is not None
        *others, last = self.views
        stream.begin()
        try:
            for view in others:
                yield stream.broken_off(view)
            stream.open(last)
            leaves = yield
            return stream.finished(leaves)
        finally:
            stream.shut()

    @final
    def update(self, run: Run, coefficients: Sequence[float], groups: Groups) -> None:
        assert self._stream is not None
        self._stream.micro_batches = 0
        with torch.enable_grad():
            self.owned_modules.step(run.optimizer)
        self.stepped(run)

    @final
    def predicting(self, run: Run) -> Prediction | None:
        if not self.prediction:
            return None
        self.setup(run)
        assert self._stream is not None
        *others, last = self.prediction
        before = [self._stream.broken_off(view, is_predicting=True) for view in others]
        return Prediction(before, self._stream.predicting(last))

    @final
    def teardown(self) -> None:
        if self._stream is not None:
            self._stream.remove()
            self._stream = None

    @final
    def state_dict(self) -> dict[str, Any]:
        return {k: v for k, v in (("owned", self.owned_modules.state_dict()), ("own", self.own_state())) if v}

    @final
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.owned_modules.load_state_dict(state.get("owned", {}))
        if "own" in state:
            self.load_own_state(state["own"])


def _width(module: nn.Module) -> object:
    """How many outputs a layer has, as torch's and torch-geometric's layers say."""
    return getattr(module, "out_features", None) or getattr(module, "out_channels", None)


def uncovered(run: Run, units: Sequence[Unit]) -> list[str]:
    """Names of trainable parameters that belong to no unit, and would never learn."""
    covered = {p for unit in units for p in unit.parameters}
    return [n for n, p in run.parameters if p not in covered]
