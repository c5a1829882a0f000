"""What passes between the layer-local mechanism and an algorithm: views, activities, targets and signals.

Shapes: B examples of the batch, D features of a unit's output, K classes.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from localplug.units import Unit


@final
@dataclasses.dataclass(frozen=True)
class View:
    """One forward pass of a step, or of a prediction.

    name:   for the algorithm, which tells its views apart by it.
    learns: whether the units are asked for a signal in it; otherwise the algorithm only observes.
    ends:   "loss" is a whole pass, which the last view of a step has to be; "output" breaks off where the last unit's module
            gives its output, "hidden" before that module is called, so that the model may see more examples than the batch has.
    """

    name: str = "clean"
    learns: bool = True
    ends: Literal["loss", "output", "hidden"] = "loss"


@final
@dataclasses.dataclass
class Activity:
    """What a unit did in one view.

    inputs: the positional inputs of the unit's module, detached; kwargs: its keyword inputs, detached.
    output: what arrives at the next unit, (B, ...); attached to the unit's graph where it learns and needs a graph.
    """

    unit: Unit
    view: View
    inputs: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Tensor

    @property
    def input(self) -> Tensor:
        """The first tensor that entered the unit's module, detached."""
        found = first_tensor((self.inputs, self.kwargs))
        assert found is not None
        return found


@final
@dataclasses.dataclass
class Signal:
    """What a unit learns from. Exactly one of the first four fields is given.

    loss:        scalar; the host differentiates it inside the unit, and in the modules that the algorithm owns there.
    grad_output: d loss / d output, shaped like the unit's output; the host takes the vector-Jacobian product.
    delta:       {parameter: d loss / d parameter} in closed form.
    closure:     () -> the unit's loss at its present weights, as a number or a scalar tensor, evaluated without a graph; the
                 host estimates the gradient from `num_directions` pairs of evaluations at the distance eps (two-sided SPSA).
    eps:         in parameter units, > 0; for closure.
    num_directions: >= 1; for closure.

    The gradients are of a mean over the examples, not of a sum.
    """

    loss: Tensor | None = None
    grad_output: Tensor | None = None
    delta: dict[nn.Parameter, Tensor] | None = None
    closure: Callable[[], Tensor | float] | None = None
    eps: float = 1e-3
    num_directions: int = 1

    def __post_init__(self) -> None:
        fields = ("loss", "grad_output", "delta", "closure")
        given = [name for name in fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"a Signal has exactly one of {', '.join(fields)}, got {given or 'none'}")
        if not (self.eps > 0 and self.num_directions >= 1):
            raise ValueError(
                f"eps must be positive and num_directions at least 1, got {self.eps}, {self.num_directions}"
            )


class TargetGenerator(nn.Module, abc.ABC):
    """Makes local targets: what a hidden unit should produce for a label."""

    @abc.abstractmethod
    def generate(self, targets_BK: Tensor, output: Tensor, *, unit: Unit, seed: int) -> Tensor:
        """The local target of one unit, shaped like its output.

        Args:
            targets_BK: one row for each example: one-hot labels, or the regression target. float32.
            output: the unit's output, (B, D), (B, T, D), or (B, C, H, W) for a convolution.
            seed: of the run; the target must be a function of (seed, unit, targets) alone.
        """


LocalLoss = Callable[[Tensor, Tensor], Tensor]
"""(output, target) -> scalar: summed over features, averaged over examples and positions."""


def first_tensor(tree: Any) -> Tensor | None:
    """The first tensor in nested tuples, lists and dictionaries; None if there is none."""
    return next((leaf for leaf in torch.utils._pytree.tree_leaves(tree) if isinstance(leaf, Tensor)), None)
