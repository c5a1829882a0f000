"""The parts of a zeroth-order method, each of which a plugin can give: distribution, estimator, update.

Sizes: d trained elements, q directions in one step. Direction j of step t is z_tj, and L the loss of the batch.
"""

import abc
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, final

from torch import Tensor

from localplug.contract import Estimate, Estimating, Groups, Run

if TYPE_CHECKING:
    from localplug.directions import Directions
    from localplug.perturbation import Perturbation


@final
class Term(NamedTuple):
    """factor * z of one direction."""

    direction: int
    factor: float
    step: int | None = None
    """None is the step in work."""


@final
@dataclasses.dataclass(frozen=True)
class Piece:
    """A run of elements of one direction: those of parameter number `index` from element `offset` on, row by row."""

    index: int
    offset: int
    step: int
    direction: int


class _Part(abc.ABC):
    """What all three have."""

    @abc.abstractmethod
    def describe(self) -> str:
        """The name and the options in force, in a few words."""

    def state_dict(self) -> dict[str, Any]:
        """What (seed, step) do not give; numbers and tensors only."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027 (most have no state)
        """Take back what `state_dict` gave."""


class Distribution(_Part):
    """How random directions are distributed: a pure function of (run.seed, step, direction, parameter name, element).

    Directions are scaled so that E[z z^T] is the identity on the elements that they reach, if the docstring does not say
    otherwise: then E[(1/q) sum_j <grad L, z_j> z_j] = grad L on them.
    """

    @abc.abstractmethod
    def setup(self, run: Run, indices: Sequence[int]) -> None:
        """Called once, before the first step.

        Args:
            indices: numbers of the parameters in run.parameters that are trained.
        """

    @abc.abstractmethod
    def add_(self, target: Tensor, piece: Piece, factor: float) -> None:
        """target += factor * z, chunk by chunk: the result must not depend on how a parameter is cut into pieces.

        Args:
            target: target.numel() elements from piece.offset on, one-dimensional, contiguous, float32 (float64 of a model in
                float64), on any device.
        """

    streams: bool = False
    """Whether `add_` needs no memory of its own where localplug.kernels are usable: whole parameters are handed to it then."""

    def add_to_(self, target: Tensor, source: Tensor, piece: Piece, factor: float) -> None:
        """target <- source + factor * z; the same bits as of `add_` on a copy."""
        self.add_(target.copy_(source), piece, factor)

    @abc.abstractmethod
    def kappa(self, num_elements: int) -> float:
        """kappa in E ||<g, z> z||^2 = kappa ||g||^2 for any fixed g: d + 2 of a Gaussian, d of random signs.

        Args:
            num_elements: d.
        """

    def reached(self, step: int, direction: int) -> Sequence[int] | None:
        """Numbers of the parameters that a direction moves, None for all of them. The others' z is zero."""
        return None

    def factors(self, index: int, step: int, direction: int) -> tuple[Tensor, Tensor] | None:
        """(A, B) with z = A B^T, for a z of low rank; None for any other.

        Shapes: A (m, r), B (n, r), where the parameter is read as a matrix of m = shape[0] rows and n columns. float32.
        """
        return None


class Estimator(_Part):
    """How probes become an estimate of the gradient, (1/q) sum_j c_j z_j.

    The losses of an estimate come down to num_fields * q numbers that are linear in them, so that those of several
    micro-batches and workers can be added; `coefficients` makes the c_j of the sum, and may be nonlinear.
    """

    num_directions: int
    """q."""

    needs_derivative: bool = False
    """Whether a score that has no derivative cannot be its loss."""
    is_scale_free: bool = False
    """Whether the c_j stay the same when the numbers of `estimate` are scaled."""

    @property
    @abc.abstractmethod
    def num_evaluations(self) -> int:
        """Forward passes that one call of `estimate` asks for."""

    @property
    @abc.abstractmethod
    def num_fields(self) -> int:
        """Numbers that an estimate comes down to for each direction; the first is its slope, which the trainer may clip."""

    @property
    def cost(self) -> str:
        """What an estimate costs, in a few words; empty for `num_evaluations` forward passes."""
        return ""

    @abc.abstractmethod
    def problems(self, run: Run) -> list[str]:
        """Every reason why this estimator cannot be used here; each says what to do."""

    @abc.abstractmethod
    def estimate(self, run: Run, perturbed: "Perturbation") -> Estimating:
        """The generator that localplug.Method.estimate returns; perturb by `with perturbed(j, eps): leaves = yield`."""

    @abc.abstractmethod
    def coefficients(self, run: Run, raw: Sequence[float]) -> list[float]:
        """c_j of each direction, from the added-up numbers of `estimate`.

        Args:
            raw: field by field, those of all directions; q here counts the directions of all workers.
        """

    @abc.abstractmethod
    def variance(self, coefficients: Sequence[float], kappa: float) -> float:
        """Estimate of tr Cov[(1/q) sum_j c_j z_j], the squared length of the estimate's error.

        Args:
            kappa: of the distribution.
        """


class Probing(Estimator):
    """An estimator whose evaluations are known beforehand: each at w + scale * z of one direction, in any order.

    They can then be made several at a time; see localplug.stacked.
    """

    @abc.abstractmethod
    def probes(self) -> list[tuple[int, float]]:
        """(number of the direction on this worker, scale) of each evaluation; scale 0 is the clean one."""

    @abc.abstractmethod
    def combined(self, outputs: Sequence[Sequence[Tensor]]) -> Estimate:
        """The estimate from the tracked leaves of each evaluation, in the order of `probes`; float32 or better."""

    @property
    def num_evaluations(self) -> int:
        return len(self.probes())

    def estimate(self, run: Run, perturbed: "Perturbation") -> Estimating:
        outputs: list[list[Tensor]] = []
        if perturbed.stack > 1:
            probes = self.probes()
            for start in range(0, len(probes), perturbed.stack):
                stack = perturbed.together(probes[start : start + perturbed.stack])
                outputs += [read(leaves) for leaves in stack.split((yield stack.evaluate))]
        else:
            for direction, scale in self.probes():
                with perturbed(direction, scale):
                    outputs.append(read((yield)))
        return self.combined(outputs)


def read(leaves: Sequence[Tensor]) -> list[Tensor]:
    """Tracked leaves in float32 or better, whatever the model computes in; copies, so that its output can be freed."""
    return [leaf.detach().clone() if leaf.element_size() >= 4 else leaf.detach().float() for leaf in leaves]


class Update(_Part):
    """How an estimate changes the weights, parameter by parameter and without a copy of the gradient."""

    is_linear: bool = False
    """Whether it adds multiples of directions to decayed weights, by `localplug.update_linearly` alone: such an update can wait
    until several are made in one sweep (back-end "deferred")."""

    @abc.abstractmethod
    def problems(self, run: Run) -> list[str]:
        """Every reason why this update cannot be used here; each says what to do."""

    @abc.abstractmethod
    def setup(self, run: Run, directions: "Directions") -> None:
        """Called once, before the first step."""

    @abc.abstractmethod
    def apply(self, run: Run, directions: "Directions", coefficients: Sequence[float], groups: Groups) -> None:
        """Change the weights along the estimate (1/q) sum_j c_j z_j of the step in work.

        Args:
            coefficients: c_j, of all q directions.
            groups: {parameter: its group of the trainer's optimizer}, with lr and weight_decay.
        """

    def replay_problems(self, run: Run) -> list[str]:
        """Every reason why (seed, step, coefficients, lr, weight_decay) do not say what a step does to the weights."""
        return []
