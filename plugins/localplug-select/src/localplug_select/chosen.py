"""The units that were chosen, and how every way of training is told of them."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import final

from torch import nn

from localplug.checks import trainable


@final
@dataclasses.dataclass(frozen=True)
class ChosenUnits:
    """Some of a model's units, to be trained alone.

    For a zeroth-order method: `parameters=chosen.parameters`. For layer-local methods, for backpropagation and for whatever
    else asks a parameter whether it is trained: `with chosen.alone(model):` round the making of the optimizer and the training.

    Attributes:
        units: names of the modules that start them, in the order of the model.
        parameters: names of their trainable parameters, as a zeroth-order method's `parameters=` takes them.
        table: {score: {unit: its value}} of all units that could have been chosen.
        weights: {score: its weight in the combination}; one score has the weight 1.
        observed: {units: what their training alone gained}, of those that were tried.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 2))
        >>> chosen = ChosenUnits(("1",), ("1.weight", "1.bias"))
        >>> with chosen.alone(model):
        ...     [name for name, p in model.named_parameters() if p.requires_grad]
        ['1.weight', '1.bias']
    """

    units: tuple[str, ...]
    parameters: tuple[str, ...]
    table: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    weights: dict[str, float] = dataclasses.field(default_factory=dict)
    observed: dict[tuple[str, ...], float] = dataclasses.field(default_factory=dict)

    @contextlib.contextmanager
    def alone(self, model: nn.Module) -> Iterator[None]:
        """While this context is open, no other parameter of the model is trainable.

        Raises:
            ValueError: the model has not all of these parameters.
        """
        named = trainable(model)
        if missing := set(self.parameters) - {name for name, _ in named}:
            raise ValueError(f"the model has no trainable {sorted(missing)[:3]}; the units are of another model")
        others = [p for name, p in named if name not in self.parameters]
        try:
            for p in others:
                p.requires_grad_(False)
            yield
        finally:
            for p in others:
                p.requires_grad_(True)
