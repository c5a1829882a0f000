"""What training some parameters alone gains: a few zeroth-order steps, and the weights as they were afterwards."""

from collections.abc import Callable, Sequence
from typing import final

import torch
from torch import Tensor, nn

import localplug
from localplug.checks import trainable


@final
class Trial:
    """Train some parameters alone for a few steps by forward passes, and measure what that gains.

        gain = L_v(w) - L_v(w after `steps` steps)

    The weights are put back to the bit, at the memory of one copy of those that are tried. Needs localplug-zo for methods that
    go by name.

    Args:
        model: to be trained.
        loss: () -> the loss of a training batch, perhaps of another one in each call.
        validation: () -> the loss of the validation batch; by default `loss`.
        lr: learning rate of plain SGD, > 0.
        steps: of each trial, >= 1.
        method: name of a zeroth-order method that takes eps and parameters.
        eps: of the method, > 0.
        seed: of its directions.

    Raises:
        ValueError: one of them is out of range.

    Example:
        >>> import torch
        >>> model, x = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 1)), torch.ones(3, 4)
        >>> trial = Trial(model, lambda: model(x).square().mean(), lr=1e-2, steps=3)
        >>> trial(["1.weight", "1.bias"]) > 0
        True
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[], Tensor],
        *,
        lr: float,
        steps: int = 50,
        validation: Callable[[], Tensor] | None = None,
        method: str = "mezo",
        eps: float = 1e-3,
        seed: int = 0,
    ) -> None:
        if not (lr > 0 and steps >= 1 and eps > 0):
            raise ValueError(f"lr and eps must be positive and steps at least 1, got {lr!r}, {eps!r}, {steps!r}")
        self.model, self.loss, self.validation = model, loss, validation or loss
        self.lr, self.steps, self.method, self.eps, self.seed = lr, steps, method, eps, seed

    def __call__(self, parameters: Sequence[str]) -> float:
        """The gain; minus infinity if the loss is not finite any more.

        Args:
            parameters: names, as a zeroth-order method's `parameters=` takes them.
        """
        wanted = set(parameters)
        tried = [p for name, p in trainable(self.model) if name in wanted]
        kept = [p.detach().clone() for p in tried]
        optimizer = torch.optim.SGD([p for p in self.model.parameters() if p.requires_grad], lr=self.lr)
        before = self._validated()
        made = localplug.method(self.method, eps=self.eps, parameters=list(parameters))
        engine = localplug.Engine(self.model, made, optimizer, seed=self.seed)
        try:
            for _ in range(self.steps):
                engine.step(self.loss, optimizer)
            after = self._validated()
        except localplug.EngineError:  # too many estimates in a row that were not finite
            after = float("inf")
        finally:
            engine.close()
            with torch.no_grad():
                for p, w in zip(tried, kept, strict=True):
                    p.copy_(w)
        gain = before - after
        return gain if gain == gain else float("-inf")

    @torch.no_grad()
    def _validated(self) -> float:
        modes = [(module, module.training) for module in self.model.modules()]
        self.model.eval()
        try:
            return float(self.validation())
        finally:
            for module, mode in modes:
                module.training = mode
