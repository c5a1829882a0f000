"""The semantics of MeZO's released code (princeton-nlp/MeZO, large_models, commit 552cb1b), bit for bit on CPU in float32.

Stated anew from the facts of that code; one step, with L in evaluation mode:

    s  = numpy.random.RandomState(seed).randint(10**9), the next number of that stream
    z  = torch.normal(0, 1) of a generator seeded with s, parameter after parameter in registration order, own dtype
    theta <- theta + (1 z) eps;  l+ = L;   theta <- theta + (-2 z) eps;  l- = L;   theta <- theta + (1 z) eps
    g  = (l+ - l-) / (2 eps)
    theta <- theta - lr (g z + wd theta)      unless the name holds "bias", "layer_norm" or "layernorm":
    theta <- theta - lr (g z)

The three in-place shifts leave a rounding trace in theta (about 1e-7 a step in float32); that is part of the semantics.
`localplug_zo.mezo` does without it.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, final

import numpy
import torch
from torch import Tensor

from localplug import Estimating, Groups, Method, Projection, Run

NOT_DECAYED = ("bias", "layer_norm", "layernorm")


@final
class StrictMeZO(Method):
    """The released code's method, as `MeZO(strict="mezo")` makes it.

    Args:
        eps: half-width of the finite difference, in parameter units.
    """

    def __init__(self, eps: float) -> None:
        self.eps = float(eps)

    @property
    def num_evaluations(self) -> int:
        return 2

    @property
    def num_coefficients(self) -> int:
        return 1

    def describe(self) -> str:
        return f"mezo, the released code's semantics, eps {self.eps:g}, 1 direction(s), updates by SGD in place"

    def problems(self, run: Run) -> list[str]:
        found = []
        if wrong := sorted({str(p.dtype) for _, p in run.parameters if p.dtype != torch.float32}):
            found.append(f"strict='mezo' is defined for float32 weights, the model has {wrong}; load it in float32")
        if wrong := sorted({str(p.device) for _, p in run.parameters if p.device.type != "cpu"}):
            found.append(f"strict='mezo' is defined on the CPU, the model is on {wrong}; leave strict out elsewhere")
        if run.num_workers_apart > 1:
            found.append(
                f"strict='mezo' has one direction a step, and here {run.num_workers_apart} workers would draw "
                "different ones; set worker_directions='same'"
            )
        if any(type(p.data) is not Tensor for _, p in run.parameters):
            found.append("strict='mezo' draws the noise of whole parameters, and these are sharded; leave strict out")
        if run.clipping:
            found.append(
                f"strict='mezo' does not clip, and this trainer clips the projected gradient to {run.clipping:g}; "
                "set max_grad_norm=0 (transformers) or gradient_clip_val=None (lightning)"
            )
        if run.accumulation != 1:
            found.append(
                f"strict='mezo' has one batch a step, got {run.accumulation} micro-batches; set accumulation to 1"
            )
        return found

    def setup(self, run: Run) -> None:
        self._draws: tuple[int, int, numpy.random.RandomState] | None = None
        self._step_seed: int | None = None
        self._full_names = {p: n for n, p in run.model.named_parameters()}

    def _next_seed(self, run: Run) -> int:
        """Number `run.step` of the seed stream; only the numbers passed over since the last call are drawn again."""
        seed, drawn, stream = self._draws or (None, 0, None)
        if stream is None or seed != run.seed or drawn > run.step:
            drawn, stream = 0, numpy.random.RandomState(run.seed % 2**32)
        while drawn < run.step:
            stream.randint(1000000000)
            drawn += 1
        position = stream.get_state()
        value = int(stream.randint(1000000000))
        stream.set_state(position)
        self._draws = (run.seed, drawn, stream)
        return value

    def _noise(self, run: Run) -> Iterator[tuple[Tensor, Tensor, str]]:
        """(parameter's data, z, full name), in registration order from one sequential stream."""
        generator = torch.Generator().manual_seed(self._next_seed(run))
        for _, p in run.parameters:
            z = torch.normal(mean=0, std=1, size=p.shape, dtype=p.dtype, generator=generator)
            yield p.data, z, self._full_names[p]

    def _shift(self, run: Run, factor: float) -> None:
        for theta, z, _ in self._noise(run):
            theta.add_(z.mul_(factor).mul_(self.eps))

    @contextlib.contextmanager
    def _shifted(self, run: Run) -> Iterator[list[float]]:
        """Yields the factors by which theta is shifted; brings theta back by shifting, as the original does."""
        at = [0.0]
        try:
            yield at
        finally:
            if at[0]:
                self._shift(run, -at[0])

    def estimate(self, run: Run) -> Estimating:
        training = [m for m in run.model.modules() if m.training]
        run.model.eval()
        try:
            with self._shifted(run) as at:
                self._shift(run, 1)
                at[0] = 1
                plus = [leaf.detach().clone() for leaf in (yield)]
                self._shift(run, -2)
                at[0] = -1
                minus = [leaf.detach().clone() for leaf in (yield)]
        finally:
            for module in training:
                module.training = True
        slope = [(p - m) / (2 * self.eps) for p, m in zip(plus, minus, strict=True)]
        return Projection(plus, [slope])

    def update(self, run: Run, coefficients: Sequence[float], groups: Groups) -> None:
        (g,) = coefficients
        wd = max(float(group.get("weight_decay", 0.0)) for group in groups.values())
        for (_, p), (theta, z, name) in zip(run.parameters, self._noise(run), strict=True):
            lr = float(groups[p]["lr"])
            step = z.mul_(g)
            if not any(word in name for word in NOT_DECAYED):
                step.add_(theta * wd)
            theta.sub_(step.mul_(lr))

    def replay(self, run: Run, coefficients: Sequence[float] | None, groups: Groups) -> None:
        """The rounding trace of one estimate, and the update."""
        for factor in (1, -2, 1):
            self._shift(run, factor)
        super().replay(run, coefficients, groups)

    def teardown(self) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {}  # everything follows from the engine's seed and step

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass
