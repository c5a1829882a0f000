"""What a plugin implements, and what it is handed. Classes here are abstract or final."""

import abc
import dataclasses
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager
from typing import Any, final

import torch
from torch import Tensor, nn


@final
@dataclasses.dataclass
class Run:
    """What a method may know about the training it takes part in. One object lives as long as its engine."""

    model: nn.Module
    parameters: list[tuple[str, nn.Parameter]]
    """Every trainable parameter once, in registration order, under a name that does not depend on wrappers around the
    model: the longest prefix of dotted components that all of them share is left out."""
    seed: int
    step: int = 0
    """Optimizer steps done; the directions of a step are a function of it, and so a resumed run repeats them."""
    clipping: float = 0.0
    """The gradient norm that the trainer clips to; 0 if it does not clip."""
    accumulation: int = 1
    """Micro-batches in one optimizer step."""
    first_direction: int = 0
    """Number of the first direction that this worker draws; 0 unless each worker draws directions of its own."""
    num_workers_apart: int = 1
    """Workers that draw different directions; `Method.update` gets the coefficients of all of them, in order."""
    optimizer: torch.optim.Optimizer | None = None
    """The trainer's optimizer, where the engine was given it or while it applies a step; the learning rate is its."""
    targets: Any = None
    """The labels of the batch in work, for methods that need them; None where the trainer did not hand them over."""
    num_items: float | None = None
    """What the trainer divides the loss of the batch in work by, where it hands that to the model: the labels that count in all
    micro-batches of the step (`num_items_in_batch`)."""
    shape: tuple[int, ...] = ()
    """Of `input_ids`, or else of the first tensor, that the model is called with for the batch in work; () where a closure
    evaluates it."""
    goes_round: bool = False
    """Whether `shape` is known before each estimate, and several evaluations may be made in one forward pass of the model:
    it is attached, and its own loss is what counts."""
    is_compiled: bool = False
    """Whether torch.compile compiles the model, so that hooks on its modules would be compiled in."""
    num_forwards: int = 0
    num_dropped: int = 0
    """Steps whose estimate was not finite, and whose update therefore was left out."""


class Estimate(abc.ABC):
    """What a method hands back when its evaluations are over.

    `values` replaces the numbers in the tracked leaves of the model's output, one tensor for each leaf, or is empty to
    leave them as the last evaluation made them.
    """

    values: list[Tensor]

    @abc.abstractmethod
    def pull_back(self, leaf_gradients: Sequence[Tensor | None]) -> Tensor | None:
        """Take d loss / d leaf for each tracked leaf; give the method's coefficients, or None if it has none.

        Coefficients are float32, shape (method.num_coefficients,); those of several micro-batches are added.
        """


Around = Callable[[Callable[[], Any]], Any]
"""Gets a function that makes one evaluation of the model, and gives an output like it, or NOTHING; see Estimating."""

NOTHING = object()
"""What an Around gives for an evaluation that it broke off: the method is sent no leaves."""


@final
@dataclasses.dataclass
class Prediction:
    """How a method predicts where that is more than a forward pass of the model: evaluations before the one that counts,
    and what is round that one."""

    before: Sequence[Around]
    during: AbstractContextManager[Any]


Estimating = Generator[Any, Sequence[Tensor], Estimate]  # Any: so that a bare `yield` type-checks in a plugin
"""What `Method.estimate` returns: yields once for each evaluation, is sent its output leaves, and returns the Estimate.

It yields None for an evaluation as it is, or an Around that makes it in a way of its own (several weights in one batch).
"""


class Method(abc.ABC):
    """An algorithm that trains a model without a backward pass through it.

    The host drives `estimate` once for every forward call of the model and `update` once for every optimizer step.
    `setup` and `teardown` may do nothing.
    """

    @property
    @abc.abstractmethod
    def num_evaluations(self) -> int:
        """Forward passes that the next call of `estimate` asks for; at least 1."""

    @property
    @abc.abstractmethod
    def num_coefficients(self) -> int:
        """Scalars that an estimate comes down to (a zeroth-order method's projected gradients), 0 if it writes .grad."""

    @property
    def num_directions(self) -> int:
        """Random directions that this worker draws in a step; by default one for each coefficient."""
        return self.num_coefficients

    @property
    def goes_round(self) -> bool:
        """Whether `estimate` may yield an Around for its last evaluation."""
        return False

    @property
    def num_slopes(self) -> int:
        """How many of the coefficients, the first ones, are slopes, whose norm the trainer sees and clips."""
        return self.num_coefficients

    @property
    def is_scale_free(self) -> bool:
        """Whether an update stays the same when all coefficients are scaled, so that clipping changes nothing."""
        return False

    @property
    def cost(self) -> str:
        """What an estimate costs, in a few words."""
        passes = self.num_evaluations
        return f"{passes} forward pass{'es' if passes > 1 else ''} a batch"

    @property
    def needs_derivative(self) -> bool:
        """Whether a score that has no derivative cannot be its loss."""
        return self.num_coefficients == 0

    @property
    def backpropagates(self) -> str:
        """What of the model it makes backward passes through, in words; empty for nothing."""
        return ""

    @abc.abstractmethod
    def describe(self) -> str:
        """What a user should know at the start of training, in one line, with the options in force."""

    @abc.abstractmethod
    def problems(self, run: Run) -> list[str]:
        """Every reason why this method cannot train this model; each says what to do. Called before `setup`."""

    @abc.abstractmethod
    def setup(self, run: Run) -> None:
        """Called once, before the first step."""

    @abc.abstractmethod
    def estimate(self, run: Run) -> Estimating:
        """A generator. Each `yield` means: evaluate the model on this batch now, and hand me its tracked leaves.

        The host replays the same random numbers (dropout) in every evaluation and lets buffers (batch norm) advance
        once. Weights that are changed between two yields must be put back in a `finally` or a `with`: an evaluation
        that raises closes the generator.
        """

    @abc.abstractmethod
    def update(self, run: Run, coefficients: Sequence[float], groups: "Groups") -> None:
        """Change the weights, or write p.grad for the optimizer that steps next.

        Args:
            coefficients: finite; accumulated over micro-batches, and scaled by whatever clipped them. num_coefficients of
                them, or one after another those of all workers where each draws its own directions.
            groups: the parameter group of the trainer's optimizer (lr, weight_decay) for each trained parameter.
        """

    def replay(self, run: Run, coefficients: Sequence[float] | None, groups: "Groups") -> None:
        """What a step did to the weights, bit for bit, without its evaluations; `run` is as it was in that step.

        For a method whose evaluations themselves leave a trace in the weights; all others need not write it.

        Args:
            coefficients: as `update` got them; None of a step whose estimate was not finite, and which was not updated.
            groups: as `update` got them.
        """
        if coefficients is not None:
            self.update(run, coefficients, groups)

    def replay_problems(self, run: Run) -> list[str]:
        """Every reason why (seed, step, coefficients, lr, weight_decay) do not say what a step does to the weights."""
        return [] if self.num_coefficients else ["the method has no coefficients that could be logged; leave log out"]

    def predicting(self, run: Run) -> Prediction | None:
        """How an evaluation loop's forward pass is made; None for a forward pass of the model as it is."""
        return None

    @property
    def owned_parameters(self) -> list[nn.Parameter]:
        """Parameters that belong to the algorithm and not to the model; what they gather in .grad is averaged over workers."""
        return []

    @abc.abstractmethod
    def teardown(self) -> None:
        """Undo what `setup` did to the model."""

    @abc.abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """What the next step needs and (seed, step) do not give; numbers and tensors only."""

    @abc.abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""


Groups = dict[nn.Parameter, dict[str, Any]]
"""{parameter: its group of the optimizer}, with the learning rate under "lr" and, if it has one, "weight_decay"."""


def parameter_names(names: Sequence[str]) -> list[str]:
    """Names without the dotted components that wrappers put in front of all of them, so that noise ignores wrappers.

    Args:
        names: as `named_parameters` gives them.
    """
    split = [[part for part in name.split(".") if part != "_orig_mod"] for name in names]
    shared = 0
    while split and all(len(parts) > shared + 1 and parts[shared] == split[0][shared] for parts in split):
        shared += 1
    return [".".join(parts[shared:]) for parts in split]


def is_float(value: object) -> bool:
    """Whether this is a tensor that could carry a loss."""
    return isinstance(value, torch.Tensor) and value.is_floating_point()
