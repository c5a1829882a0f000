"""What an estimate is worth, while it trains: its variance and size, the loss of each unit, its angle to the true gradient.

An observer looks on by hooks that torch's optimizers have, in any loop and any trainer: `transformers_log` and `lightning_log`
put what it finds into those trainers' own logs, and so into TensorBoard, Weights & Biases or whatever they report to. Nobody
observes unless somebody asks for it.
"""

import logging
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, final

import torch
from torch import Tensor, nn

from localplug import Engine, LocalMethod
from localplug.loop import innermost
from localplug.replay import random_state, restore_random_state

logger = logging.getLogger("localplug")


@final
class Observer:
    """Finds, after a step:

        projected_gradient   root mean square of the step's slopes, after whatever clipped them
        estimate_variance    tr Cov[g_hat], as the method estimates it
        loss/UNIT            the local loss of each unit of a layer-local method, where it has one
        alignment            cosine between the estimate and the true gradient; of a method that moves the weights itself
                             between its step and the negative gradient
        true_gradient        length of the true gradient

    The last two need a probe, and BACKPROPAGATION through the whole model for it: an observer with a probe costs the time and
    memory of a backward pass and two copies of the weights. It changes nothing in the training: no weight, no .grad, no random
    state.

    Args:
        probe: gives the loss of a probe batch, as a tensor that autograd knows; called in evaluation mode (no dropout).
        every: the first step, and each of which this number is a divisor, is observed; at least 1.
        within: makes a context that all work of the observer runs in, for whoever measures time.

    Raises:
        ValueError: every is less than 1.

    Example:
        >>> import torch, localplug
        >>> model, x = torch.nn.Linear(4, 1), torch.ones(8, 4)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        >>> engine = localplug.Engine(model, localplug.method("mezo"), optimizer)
        >>> observer = Observer(probe=lambda: model(x).square().mean())
        >>> observer.attach(model, optimizer, engine)
        >>> loss = engine.step(lambda: model(x).square().mean(), optimizer)
        >>> sorted(observer.found)
        ['alignment', 'estimate_variance', 'projected_gradient', 'true_gradient']
        >>> observer.detach()
    """

    def __init__(
        self,
        probe: Callable[[], Tensor] | None = None,
        *,
        every: int = 1,
        within: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        self._probe, self.every, self._within = probe, every, within
        self.found: dict[str, float] = {}
        """What the last step that was observed has shown; empty after one that was not."""
        self._handles: list[Any] = []
        self._engine: Engine | None = None
        self._step = 0

    # ---- on and off -----------------------------------------------------------------------------------------------------

    def attach(self, model: nn.Module, optimizer: Any, engine: Engine | None = None) -> None:
        """Look on from now on.

        Args:
            model: unwrapped.
            optimizer: whose step ends each training step.
            engine: that trains; None where backpropagation does, so that only the probe has something to say.

        Raises:
            ValueError: there is a probe, and the method predicts in a way of its own, whose gradient is not the model's.
        """
        self.detach()
        method = None if engine is None else engine.method
        if self._probe is not None and engine is not None and engine.method.predicting(engine.run) is not None:
            raise ValueError(
                "the method predicts by more than a forward pass of the model, so that a probe's gradient is not of what it "
                "learns; leave probe out"
            )
        self._model, self._engine, self._step, self.found = model, engine, 0, {}
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._units: dict[str, list[Tensor]] = {}
        inner = innermost(optimizer)
        self._handles = [inner.register_step_pre_hook(self._before), inner.register_step_post_hook(self._after)]
        if isinstance(method, LocalMethod):
            self._watch(method)
        if self._probe is not None:
            logger.warning(
                "observer: BACKPROPAGATION through the whole model on a probe batch, every %d step(s), to compare estimates "
                "with the true gradient; nothing is trained by it",
                self.every,
            )
        self._prepare()

    def detach(self) -> None:
        """Look on no more."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if self._engine is not None:
            vars(self._engine.method).pop("signal", None)
        self._engine = None

    def _watch(self, method: LocalMethod) -> None:
        """Keep the losses in the signals that a layer-local method gives."""
        signal = method.signal

        def observed(activity: Any, run: Any) -> Any:
            given = signal(activity, run)
            if given is not None and given.loss is not None and self._is_observed:
                self._units.setdefault(activity.unit.name, []).append(given.loss.detach())
            return given

        method.signal = observed  # type: ignore[method-assign]

    # ---- a step ---------------------------------------------------------------------------------------------------------

    @property
    def _is_observed(self) -> bool:
        return self._step == 0 or (self._step + 1) % self.every == 0

    def _prepare(self) -> None:
        """Before a step that is observed: the true gradient, and the weights."""
        self._units = {}
        self._estimate: list[Tensor] | None = None
        self._true: list[Tensor] | None = None
        self._weights: list[Tensor] | None = None
        if self._probe is None or not self._is_observed:
            return
        state, was_training = random_state(), self._model.training
        self._model.eval()
        try:
            with torch.enable_grad():
                gradients = torch.autograd.grad(self._probe(), self._parameters, allow_unused=True)
        finally:
            self._model.train(was_training)
            restore_random_state(state)
        pairs = zip(gradients, self._parameters, strict=True)
        self._true = [torch.zeros_like(p) if g is None else g for g, p in pairs]
        self._weights = [p.detach().clone() for p in self._parameters]

    @torch.no_grad()
    def _before(self, *_: Any) -> None:
        """The optimizer is about to step: what it finds in .grad is the estimate."""
        if self._true is not None and any(p.grad is not None for p in self._parameters):
            with self._within():
                grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._parameters]
                self._estimate = [g.detach().clone() for g in grads]

    @torch.no_grad()
    def _after(self, *_: Any) -> None:
        with self._within():
            self.found = {}
            if self._is_observed:
                self._look()
            self._step += 1
            self._prepare()

    def _look(self) -> None:
        if self._engine is not None:
            if self._engine.gradient_norm is not None:
                self.found["projected_gradient"] = self._engine.gradient_norm
            variance = getattr(self._engine.method, "variance", math.nan)
            if math.isfinite(variance):
                self.found["estimate_variance"] = variance
        for name, losses in self._units.items():
            self.found[f"loss/{name}"] = float(torch.stack(losses).mean())
        if self._true is not None and self._weights is not None:
            moved = [w - p for w, p in zip(self._weights, self._parameters, strict=True)]
            estimate = moved if self._estimate is None else self._estimate
            self.found["true_gradient"] = _length(self._true)
            lengths = _length(estimate) * self.found["true_gradient"]
            if lengths:
                products = (float((a.float() * b.float()).sum()) for a, b in zip(estimate, self._true, strict=True))
                self.found["alignment"] = sum(products) / lengths


def _length(tensors: list[Tensor]) -> float:
    return math.sqrt(sum(float(t.float().square().sum()) for t in tensors))
