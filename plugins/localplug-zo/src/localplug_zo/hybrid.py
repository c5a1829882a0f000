"""Zeroth order on one part, backpropagation on the rest: the only methods here that make a backward pass, and they say so.

    elastic   theta_early <- theta_early - lr g_zo        all but the last layers, by two-sided SPSA
              theta_last  <- theta_last  - lr grad L      the last layers and what follows them, by backpropagation
    addax     theta <- theta - lr (alpha g_zo + (1 - alpha) grad L)
              g_zo of the batches with more than `max_tokens` tokens a row, grad L of the others

What is backpropagated is updated in place, with the trainer's learning rate and weight decay and no optimizer state.

elastic: ElasticZO, arXiv:2501.04287, and the hybrid of ZO-Bench, arXiv:2402.11592. addax: arXiv:2410.06441, which draws both
kinds of batches in each step; here a step takes what the trainer's batches and micro-batches are.
"""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from typing import Any, final

import torch
from torch import Tensor

from localplug import Distribution, Estimate, Estimating, Groups, Method, Run, ZerothOrder, distribution
from localplug.workers import number_of_workers
from localplug_zo.losses import scalar
from localplug_zo.sparse import layer_of
from localplug_zo.two_sided import TwoSided
from localplug_zo.updates import SGD

logger = logging.getLogger("localplug")


class _Mixed(Method):
    """Backpropagated gradients beside a zeroth-order method's coefficients.

    They wait in a buffer of their own for the update. One more coefficient, the norm of what each micro-batch adds to it, is
    shown to the trainer, and its scaling (clipping, loss scaling) is done to the buffer.
    """

    def __init__(self, zeroth: ZerothOrder) -> None:
        self._zeroth = zeroth
        self._gradients: dict[int, Tensor] = {}
        self._shown = 0.0

    @property
    def num_coefficients(self) -> int:
        return self._zeroth.num_coefficients + 1

    @property
    def num_directions(self) -> int:
        return self._zeroth.num_directions

    def problems(self, run: Run) -> list[str]:
        found = []
        if run.num_workers_apart > 1 or number_of_workers() > 1:
            found.append("backpropagated gradients are not exchanged between workers; use one process")
        if run.is_compiled:
            found.append("a part of the model is back-propagated, and the rest is not; leave torch.compile out")
        return found

    def setup(self, run: Run) -> None:
        self._run = run
        self._zeroth.setup(run)
        logger.warning("%s: backpropagation through %s, with its memory", self._zeroth.name, self.backpropagates)

    def replay_problems(self, run: Run) -> list[str]:
        return ["backpropagated gradients are not in the log; leave log out"]

    @contextlib.contextmanager
    def _graph(self, indices: Sequence[int]) -> Iterator[None]:
        """While this is open, evaluations build the graph of these parameters, and of no others."""
        trained = set(indices)
        others = [p for i, (_, p) in enumerate(self._run.parameters) if i not in trained]
        try:
            for parameter in others:
                parameter.requires_grad_(False)
            with torch.enable_grad():
                yield
        finally:
            for parameter in others:
                parameter.requires_grad_(True)

    def _differentiated(self, leaves: Sequence[Tensor], indices: Sequence[int]) -> dict[int, Tensor]:
        scalar([leaf.detach() for leaf in leaves], "backpropagation beside zeroth order")
        parameters = [self._run.parameters[i][1] for i in indices]
        found = torch.autograd.grad(leaves[0], parameters, allow_unused=True)
        return {i: g for i, g in zip(indices, found, strict=True) if g is not None}

    def gathered(self, gradients: dict[int, Tensor], scale: float) -> float:
        """Add scale * gradient to the buffer; gives the norm of what was added."""
        for index, gradient in gradients.items():
            if index in self._gradients:
                self._gradients[index].add_(gradient, alpha=scale)
            else:
                self._gradients[index] = gradient.mul_(scale)
        norm = (
            abs(scale) * float(torch.stack([g.float().norm() for g in gradients.values()]).norm()) if gradients else 0.0
        )
        self._shown += norm
        return norm

    def _descend(self, run: Run, groups: Groups, shown: float, *, factor: float, decays: bool) -> None:
        """theta <- (1 - lr weight_decay) theta - lr factor gradient, of what was backpropagated; empties the buffer."""
        gradients, scale = self._gradients, factor * (shown / self._shown if self._shown else 1.0)
        self._gradients, self._shown = {}, 0.0
        for index, gradient in gradients.items():
            parameter = run.parameters[index][1]
            lr = float(groups[parameter]["lr"])
            decay = lr * float(groups[parameter].get("weight_decay", 0.0)) if decays else 0.0
            flat = gradient.contiguous().view(-1)

            def rule(value: Tensor, offset: int, flat: Tensor = flat, lr: float = lr, decay: float = decay) -> Tensor:
                part = flat[offset : offset + value.numel()].to(value.dtype)
                return value.mul_(1 - decay).sub_(part, alpha=lr * scale)

            self._zeroth.directions.rewrite_(parameter.data, index, rule)

    def teardown(self) -> None:
        self._zeroth.teardown()

    def state_dict(self) -> dict[str, Any]:
        return self._zeroth.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._zeroth.load_state_dict(state)


@final
class _Both(Estimate):
    """A zeroth-order estimate, or none, and backpropagated gradients, or none."""

    def __init__(self, owner: _Mixed, zeroth: Estimate | None, value: Tensor, gradients: dict[int, Tensor]) -> None:
        self.values = [value]
        self._owner, self._zeroth, self._gradients = owner, zeroth, gradients

    def pull_back(self, leaf_gradients: Sequence[Tensor | None]) -> Tensor:
        (gradient,) = leaf_gradients
        assert gradient is not None
        count = self._owner.num_coefficients - 1
        slopes = self._zeroth.pull_back(leaf_gradients) if self._zeroth is not None else None
        shown = self._owner.gathered(self._gradients, float(gradient))
        slopes = torch.zeros(count) if slopes is None else slopes
        return torch.cat([slopes.float(), slopes.new_tensor([shown], dtype=torch.float32)])


@final
class Elastic(_Mixed):
    """ElasticZO: the last layers by backpropagation, all before them by two-sided SPSA. 2 q + 1 forward passes a batch.

        theta_early <- theta_early - lr (1/q) sum_j c_j z_j,     theta_last <- theta_last - lr grad L

    The graph of one forward pass at the clean weights is held for the last layers alone.

    Args:
        layers: how many of the numbered layers ("layers.7") count as last, >= 1; with them goes every parameter that is
            registered after the first of them. 0 backpropagates only what comes after all layers (norm, head).
        eps: half-width of the finite difference, in parameter units, > 0.
        num_directions: q >= 1.
        directions: distribution of z; a name or a localplug.Distribution.

    Raises:
        ValueError: one of them is out of range.

    Example:
        >>> import localplug
        >>> localplug.method("elastic-zo").cost
        '3 forward passes a batch'

    Reference: ElasticZO, arXiv:2501.04287.
    """

    def __init__(
        self, layers: int = 1, eps: float = 1e-3, num_directions: int = 1, directions: str | Distribution = "gaussian"
    ) -> None:
        if not (isinstance(layers, int) and layers >= 0):
            raise ValueError(f"layers must be an integer of at least 0, got {layers!r}")
        self.layers = layers
        self._options = (TwoSided(eps, num_directions), SGD(), distribution(directions))
        super().__init__(ZerothOrder(*self._options, name="elastic-zo"))
        self._last: list[int] = []

    @property
    def num_evaluations(self) -> int:
        return self._zeroth.num_evaluations + 1

    @property
    def backpropagates(self) -> str:
        return (
            f"the last {self.layers} layer(s) and what follows them" if self.layers else "what follows the last layer"
        )

    def describe(self) -> str:
        return f"{self._zeroth.describe()}; BACKPROPAGATION through {self.backpropagates}"

    def problems(self, run: Run) -> list[str]:
        last = self._split(run)
        if not last or len(last) == len(run.parameters):
            names = [name for name, _ in run.parameters]
            return [
                f"layers={self.layers} leaves {'nothing to backpropagation' if not last else 'nothing to zeroth order'}; the "
                f"trained parameters are {', '.join(names[:3])}, ... {names[-1]}"
            ]
        return super().problems(run)

    def setup(self, run: Run) -> None:
        self._last = self._split(run)
        early = [name for i, (name, _) in enumerate(run.parameters) if i not in set(self._last)]
        self._zeroth = ZerothOrder(*self._options, parameters=early, name="elastic-zo")
        super().setup(run)

    def _split(self, run: Run) -> list[int]:
        """Numbers of the parameters that are backpropagated: from the first of the last layers on."""
        belongs = [layer_of(name) for name, _ in run.parameters]
        layers = list(dict.fromkeys(layer for layer in belongs if layer is not None))
        if self.layers:
            first = belongs.index(layers[-self.layers]) if len(layers) > self.layers else 0
        else:
            first = max((i + 1 for i, layer in enumerate(belongs) if layer is not None), default=0)
        return list(range(first, len(run.parameters)))

    def estimate(self, run: Run) -> Estimating:
        zeroth = yield from self._zeroth.estimate(run)
        with self._graph(self._last):
            leaves = yield
            gradients = self._differentiated(leaves, self._last)
        return _Both(self, zeroth, leaves[0].detach().clone(), gradients)

    def update(self, run: Run, coefficients: Sequence[float], groups: Groups) -> None:
        self._zeroth.update(run, coefficients[:-1], groups)
        self._descend(run, groups, coefficients[-1], factor=1.0, decays=True)


@final
class Addax(_Mixed):
    """Addax: zeroth order on batches of long sequences, backpropagation on the short ones, which cost little memory.

        theta <- theta - lr (alpha g_zo + (1 - alpha) grad L)

    2 q forward passes for a long batch, one with a backward pass for a short one. The gradient of a short batch is held until
    the update: the memory of the weights once more.

    Args:
        max_tokens: longest row of a batch that is backpropagated; >= 0.
        alpha: weight of the zeroth-order part, in (0, 1).
        eps: half-width of the finite difference, in parameter units, > 0.
        num_directions: q >= 1.
        directions: distribution of z; a name or a localplug.Distribution.

    Raises:
        ValueError: one of them is out of range.

    Example:
        >>> import localplug
        >>> localplug.method("addax", alpha=0.1).cost
        '2 forward passes, or 1, a batch'

    Reference: Li, Zhang, ...: Addax, arXiv:2410.06441.
    """

    def __init__(
        self,
        max_tokens: int = 128,
        alpha: float = 1e-3,
        eps: float = 1e-3,
        num_directions: int = 1,
        directions: str | Distribution = "gaussian",
    ) -> None:
        wrong = []
        if not (isinstance(max_tokens, int) and max_tokens >= 0):
            wrong.append(f"max_tokens must be an integer of at least 0, got {max_tokens!r}")
        if not 0 < alpha < 1:
            wrong.append(f"alpha must be in (0, 1), got {alpha!r}")
        if wrong:
            raise ValueError("; ".join(wrong))
        super().__init__(ZerothOrder(TwoSided(eps, num_directions), SGD(), distribution(directions), name="addax"))
        self.max_tokens, self.alpha = max_tokens, float(alpha)
        self._setting: Run | None = None
        self._long = False

    @property
    def num_evaluations(self) -> int:
        return 1 if self._is_short() else self._zeroth.num_evaluations

    @property
    def cost(self) -> str:
        return f"{self._zeroth.num_evaluations} forward passes, or 1, a batch"

    @property
    def backpropagates(self) -> str:
        return f"the whole model in batches of up to {self.max_tokens} tokens a row"

    def describe(self) -> str:
        return f"{self._zeroth.describe()}, alpha {self.alpha:g}; BACKPROPAGATION through {self.backpropagates}"

    def problems(self, run: Run) -> list[str]:
        return self._zeroth.problems(run) + super().problems(run)

    def _is_short(self) -> bool:
        return self._setting is not None and 0 < _tokens(self._setting) <= self.max_tokens

    def setup(self, run: Run) -> None:
        self._setting = run
        super().setup(run)

    def estimate(self, run: Run) -> Estimating:
        if not _tokens(run):
            raise ValueError(
                "addax goes by the length of a batch, and a closure does not show it; attach the engine to the model, or pass "
                "targets="
            )
        if not self._is_short():
            zeroth = yield from self._zeroth.estimate(run)
            self._long = True
            return _Both(self, zeroth, zeroth.values[0], {})
        everything = self._zeroth.directions.indices
        with self._graph(everything):
            leaves = yield
            gradients = self._differentiated(leaves, everything)
        return _Both(self, None, leaves[0].detach().clone(), gradients)

    def update(self, run: Run, coefficients: Sequence[float], groups: Groups) -> None:
        was_long, self._long = self._long, False
        if was_long:
            self._zeroth.update(run, [self.alpha * c for c in coefficients[:-1]], groups)
        self._descend(run, groups, coefficients[-1], factor=1 - self.alpha, decays=not was_long)


def _tokens(run: Run) -> int:
    """Of one row of the batch in work, as its inputs or else its labels show it; 0 if neither is known."""
    shape = run.shape or tuple(getattr(run.targets, "shape", ()))
    return int(shape[1] if len(shape) > 1 else sum(shape))
