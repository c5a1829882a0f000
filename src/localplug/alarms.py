"""Watch the coefficients and say what is wrong: a zero, a coarse, a non-finite or a diverging estimate. Warns, never acts."""

import logging
import math
from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

logger = logging.getLogger("localplug")

ZERO_STEPS = 10  # estimates in a row that are exactly zero before anybody is told
COARSE_STEPS = 20  # estimates to look back on; an alarm if half of them were hardly more than rounding
COARSE = 4.0  # units in the last place that the losses of one estimate must differ by, to be more than rounding
DIVERGED = 100.0  # times the running median of |estimate|
WINDOW = 50  # estimates that the running median looks back on


class Alarms:
    """Diagnostics of one run. Each alarm speaks once, then counts."""

    def __init__(self) -> None:
        self.num_zero = 0
        self.num_coarse = 0
        self.num_diverged = 0
        self._zeros_in_a_row = 0
        self._coarse: deque[bool] = deque(maxlen=COARSE_STEPS)
        self._losses: list[Tensor] = []
        self._recent: deque[float] = deque(maxlen=WINDOW)
        self._spoken: set[str] = set()

    def begin(self) -> None:
        """A new estimate: its losses are compared with each other."""
        self._losses = []

    def losses(self, leaves: Sequence[Tensor]) -> None:
        """Look at one evaluation. A loss in half precision moves in steps coarser than most finite differences."""
        self._losses += [leaf.detach().clone() for leaf in leaves if leaf.dim() == 0]
        for leaf in leaves:
            if leaf.dim() == 0 and leaf.dtype in (torch.float16, torch.bfloat16):
                leaf = leaf.detach()  # noqa: PLW2901
                quantum = torch.finfo(leaf.dtype).eps * abs(float(leaf)) / 2
                self._say(
                    "half",
                    f"the model returns its loss as {leaf.dtype}: near {float(leaf):.3g} it moves in steps of about "
                    f"{quantum:.2g}, so that small differences between two evaluations are lost; compute the loss in "
                    "float32 (load the model in float32 and use bf16 autocast, or upcast the logits)",
                )

    def wasted_buckets(self, num_elements: int) -> None:
        """A DistributedDataParallel round the model keeps gradients that nothing will ever fill, and sends buffers round."""
        if num_elements > 0:
            self._say(
                "buckets",
                f"DistributedDataParallel holds gradient buckets of {num_elements:,} elements that nothing uses; attach "
                "before the model is wrapped (transformers: pass the callback to the Trainer's constructor)",
            )

    def coefficients(self, values: Sequence[float], slopes: Sequence[float], step: int) -> bool:
        """Look at one step's coefficients, and those of them that are slopes; False if one is not finite."""
        if not all(map(math.isfinite, values)):
            logger.warning("step %d: the estimate is %s; its update is left out", step, list(values))
            self._say(
                "finite",
                "the loss is not finite at the perturbed weights: lower the learning rate or eps, or train in float32",
            )
            return False
        size = math.sqrt(sum(v * v for v in slopes) / len(slopes))
        if size == 0.0:
            self.num_zero += 1
            self._zeros_in_a_row += 1
            if self._zeros_in_a_row == ZERO_STEPS:
                self._say(
                    "zero",
                    f"step {step}: the last {ZERO_STEPS} estimates were exactly zero, nothing is learned. The loss does "
                    "not feel the perturbation: raise eps or compute the loss in float32; of an objective that moves in steps, "
                    "such as accuracy, take larger batches and more directions, or a loss that is not a step function of "
                    "the weights",
                )
            return True
        self._zeros_in_a_row = 0
        self._resolution(step)
        if len(self._recent) == WINDOW and size > DIVERGED * sorted(self._recent)[WINDOW // 2]:
            self.num_diverged += 1
            self._say(
                "diverged",
                f"step {step}: the estimate {size:.3g} is more than {DIVERGED:g} times its running median; the learning "
                "rate may be too high (max_grad_norm clips the estimate)",
            )
        self._recent.append(size)
        return True

    def _resolution(self, step: int) -> None:
        """Whether the losses of the last estimate differ by more than their own rounding."""
        if len(self._losses) < 2:
            return
        dtype = self._losses[0].dtype
        low, high = torch.stack(self._losses).double().aminmax()
        unit = torch.finfo(dtype).eps * max(abs(float(low)), abs(float(high)))
        self._coarse.append(float(high - low) < COARSE * unit)
        self.num_coarse += self._coarse[-1]
        if sum(self._coarse) > COARSE_STEPS // 2:
            self._say(
                "coarse",
                f"step {step}: in most of the last steps the loss, {float(high):.3g} in {dtype}, moved by less than "
                f"{COARSE:g} times its resolution of {unit:.2g}, so that the estimates are mostly rounding; raise eps, or "
                "compute the loss in a finer precision",
            )

    def _say(self, key: str, message: str) -> None:
        if key not in self._spoken:
            self._spoken.add(key)
            logger.warning(message)
