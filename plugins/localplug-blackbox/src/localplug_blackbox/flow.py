"""FlowOpt: the input of a process that gives a wanted output, by the residual alone. 2025, arXiv:2510.22010.

A process f takes z, such as the noise that a flow model starts from, to x of the same shape, such as an image, and may be a
sampler of many steps. Wanted is a z with f(z) = y. FlowOpt repeats

    z <- z - eta (f(z) - y)

One evaluation of the process a step; no derivative of it, no graph, no random direction. The residual stands where Newton or
gradient descent would have it multiplied by a Jacobian, which is right up to a factor as far as f is close to a multiple of the
identity, as flows along straight lines are.

The step contracts, |z+ - w+| < |z - w| for z+ = z - eta (f(z) - y) and w+ in the same way of w, exactly when

    eta < 2 <dz, df> / |df|^2,   dz = z - w, df = f(z) - f(w)

(expand |dz - eta df|^2). The smallest right side over pairs round the iterate is the bound that `step_bound` estimates; each
iterate and the one before it are one more pair, at no cost. A right side of 0 or less means that no step contracts there.

The early iterates change what is coarse, and the later ones what is fine: stop early to keep more of where it started.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import final

import torch
from torch import Tensor

from localplug_blackbox.generation import generator

Process = Callable[[Tensor], Tensor]


@final
@dataclasses.dataclass(frozen=True)
class FlowStep:
    """One iterate.

    Args:
        z: the input; float32 or wider.
        output: f(z), what the process gave, at no extra evaluation.
        error: mean square of f(z) - y.
        step_size: eta of the step that follows.
        bound: 2 <dz, df> / |df|^2 between this iterate and the one before; nan for the first one.
        num_evaluations: of the process so far, those of the estimate of the bound included.
    """

    z: Tensor
    output: Tensor
    error: float
    step_size: float
    bound: float
    num_evaluations: int


@final
@dataclasses.dataclass(frozen=True)
class FlowResult:
    """What `FlowOpt.run` found.

    Args:
        best: the iterate with the smallest error.
        errors: of all iterates, in order.
        num_evaluations: of the process.
        stopped: why: "the evaluations are spent", "the error is small enough", "the output is not finite",
            "no step contracts".
    """

    best: FlowStep
    errors: list[float]
    num_evaluations: int
    stopped: str


@torch.no_grad()
def step_bound(
    process: Process,
    z: Tensor,
    *,
    num_pairs: int = 4,
    radius: float = 0.1,
    output: Tensor | None = None,
    seed: int = 0,
) -> float:
    """The largest step of FlowOpt that contracts round z, estimated from pairs: min of 2 <dz, df> / |df|^2.

    It is an estimate from above: pairs that were not drawn may ask for less. Half of it is a usual choice.

    Args:
        process: f.
        z: the point; each pair is z and z + radius n, n normal.
        num_pairs: >= 1; one evaluation each, and one at z without `output`.
        radius: > 0, in the units of z.
        output: f(z), if it is known.
        seed: of n.

    Returns:
        The bound; 0 if no step contracts along one of the pairs, inf for a process that is constant there.

    Raises:
        ValueError: an option is outside its range, or the process gives another shape.

    Example:
        >>> import torch
        >>> round(step_bound(lambda z: 4 * z, torch.zeros(3)), 6)
        0.5
    """
    wrong = [] if num_pairs >= 1 else [f"num_pairs must be at least 1, got {num_pairs!r}"]
    if not 0 < radius < math.inf:
        wrong.append(f"radius must be positive and finite, got {radius!r}")
    if wrong:
        raise ValueError("; ".join(wrong))
    wide = _wide(z)
    output = _evaluated(process, z, wide) if output is None else _wide(output)
    random = generator(seed)
    bound = math.inf
    for _ in range(num_pairs):
        n = torch.randn(wide.shape, generator=random, dtype=wide.dtype).to(wide.device)
        other = wide + radius * n
        bound = min(bound, _pair(other - wide, _evaluated(process, z, other) - output))
    return max(bound, 0.0)


@final
class FlowOpt:
    """The input of a process that gives a wanted output, by z <- z - eta (f(z) - y): no Jacobian, one evaluation a step.

    Args:
        process: f, a callable of a tensor to one of the same shape. It is called under torch.no_grad, with z in the dtype of
            the start; sums are kept in float32 or wider.
        step_size: eta, > 0; by default half of `step_bound` at the start, lowered to half the bound of the last two iterates
            where that is smaller.
        num_pairs: for the default step size; each costs one evaluation.
        radius: of those pairs, > 0, in the units of z.
        seed: of those pairs.

    Raises:
        ValueError: an option is outside its range; lists all of them.

    Reference: arXiv:2510.22010.

    Example:
        >>> import torch
        >>> flow = FlowOpt(lambda z: 2 * z + 1)
        >>> result = flow.run(target=torch.full((4,), 7.0), start=torch.zeros(4))
        >>> result.best.z.round(decimals=3).tolist(), result.stopped
        ([3.0, 3.0, 3.0, 3.0], 'the error is small enough')
    """

    def __init__(
        self,
        process: Process,
        step_size: float | None = None,
        num_pairs: int = 2,
        radius: float = 0.1,
        seed: int = 0,
    ) -> None:
        wrong = [] if callable(process) else [f"process must be a callable, got {type(process).__name__}"]
        if step_size is not None and not 0 < step_size < math.inf:
            wrong.append(f"step_size must be positive and finite, or None for an estimate, got {step_size!r}")
        if not num_pairs >= 1:
            wrong.append(f"num_pairs must be at least 1, got {num_pairs!r}")
        if not 0 < radius < math.inf:
            wrong.append(f"radius must be positive and finite, got {radius!r}")
        if wrong:
            raise ValueError("; ".join(wrong))
        self.process, self.step_size, self.num_pairs, self.radius, self.seed = (
            process,
            step_size,
            num_pairs,
            radius,
            seed,
        )

    @torch.no_grad()
    def _iterate(self, target: Tensor, start: Tensor) -> Iterator[FlowStep]:
        y, z = _wide(target), _wide(start)
        output = _evaluated(self.process, start, z)
        num_evaluations, bound = 1, math.nan
        if self.step_size is None:
            eta = 0.5 * step_bound(
                self.process, start, num_pairs=self.num_pairs, radius=self.radius, output=output, seed=self.seed
            )
            num_evaluations += self.num_pairs
        else:
            eta = self.step_size
        while True:
            residual = output - y
            error = float(residual.square().mean())
            yield FlowStep(z.clone(), output.clone(), error, eta, bound, num_evaluations)
            moved = -eta * residual
            if not bool(torch.isfinite(moved).all()):
                return  # 0 times an inf, or a bound of inf: there is nowhere to go
            following = _evaluated(self.process, start, z + moved)
            num_evaluations += 1
            bound = _pair(moved, following - output)
            if self.step_size is None:
                eta = min(eta, 0.5 * max(bound, 0.0))
            z, output = z + moved, following

    def steps(self, target: Tensor, start: Tensor) -> Iterator[FlowStep]:
        """The iterates one after another, without end: look at each, and break when you like what you see.

        Args:
            target: y, of the start's shape.
            start: the first z, floating-point.

        Raises:
            ValueError: the shapes differ, or one of the two is not floating-point and finite; lists all of them.
        """
        wrong = []
        for name, value in (("target", target), ("start", start)):
            if not isinstance(value, Tensor) or not value.is_floating_point():
                wrong.append(f"{name} must be a floating-point tensor, got {getattr(value, 'dtype', type(value))}")
            elif not bool(torch.isfinite(value).all()):
                wrong.append(f"{name} has values that are not finite")
        if not wrong and target.shape != start.shape:
            wrong.append(f"target and start must have one shape, got {tuple(target.shape)} and {tuple(start.shape)}")
        if wrong:
            raise ValueError("; ".join(wrong))
        return self._iterate(target, start)

    def run(
        self,
        target: Tensor,
        start: Tensor,
        *,
        max_evaluations: int = 50,
        tolerance: float = 1e-8,
        watch: Callable[[FlowStep], bool | None] | None = None,
    ) -> FlowResult:
        """Iterate until the error is small enough, the evaluations are spent, or `watch` has seen enough.

        Args:
            target: y.
            start: the first z, such as the noise that an approximate inversion gives.
            max_evaluations: of the process, at least 1 and, with the default step size, num_pairs more.
            tolerance: stop at this mean square of f(z) - y, >= 0.
            watch: called with each iterate; stops where it gives True.

        Returns:
            The iterate with the smallest error, and why it stopped.

        Raises:
            ValueError: as `steps`; max_evaluations or tolerance is outside its range; or the first output is not finite.
        """
        least = 1 if self.step_size is not None else 1 + self.num_pairs
        wrong = (
            [] if max_evaluations >= least else [f"max_evaluations must be at least {least}, got {max_evaluations!r}"]
        )
        if not tolerance >= 0:
            wrong.append(f"tolerance must not be negative, got {tolerance!r}")
        if wrong:
            raise ValueError("; ".join(wrong))
        best: FlowStep | None = None
        errors: list[float] = []
        stopped, spent = "the output is not finite", 0
        for step in self.steps(target, start):
            spent = step.num_evaluations
            if not math.isfinite(step.error):
                break
            errors.append(step.error)
            if best is None or step.error < best.error:
                best = step
            if step.error <= tolerance:
                stopped = "the error is small enough"
            elif watch is not None and watch(step):
                stopped = "watch has seen enough"
            elif step.step_size == 0:
                stopped = "no step contracts"
            elif spent >= max_evaluations:
                stopped = "the evaluations are spent"
            else:
                continue
            break
        if best is None:
            raise ValueError("the process gives values that are not finite at the start; begin somewhere else")
        return FlowResult(best, errors, spent, stopped)


def _wide(x: Tensor) -> Tensor:
    """In float32 or wider: half precision would lose small steps."""
    return x.detach().to(torch.promote_types(x.dtype, torch.float32))


def _evaluated(process: Process, like: Tensor, z: Tensor) -> Tensor:
    output = process(z.to(like.dtype))
    if output.shape != z.shape:
        raise ValueError(f"the process must give the shape of its input, {tuple(z.shape)}, got {tuple(output.shape)}")
    return _wide(output)


def _pair(dz: Tensor, df: Tensor) -> float:
    """2 <dz, df> / |df|^2; inf where the process does not change."""
    square = float(df.square().sum())
    return 2 * float((dz * df).sum()) / square if square else math.inf
