"""Self-Tuning Networks: hyper-parameters that follow the validation loss while the network trains, one run in all.

    train, every step:      u ~ N(mean, spread^2), values(u) set; a training step of w(u), localplug_updates.response
    tune, every few steps:  g = (L_V(w(mean + delta z)) - L_V(w(mean - delta z))) / (2 delta) z,  mean <- Adam(mean, g)

L_V is the validation loss in evaluation mode. It depends on u by the response of the weights alone, and two forward passes give
its slope along random signs z: nothing is differentiated.

MacKay, Vicol, Lorraine, Duvenaud, Grosse: Self-Tuning Networks, 2019, arXiv:1903.03088. There u is drawn for each example and
the spread is tuned as well; here u is drawn for each step, so that any attribute of any module can be one, and the spread is
given. The slope by two points is new here.
"""

import fnmatch
import math
from collections.abc import Callable, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from localplug import noise
from localplug.loop import innermost
from localplug_updates.response import ResponseLinear, Settings


@final
class HyperParameter:
    """A number that is tuned, and where it is written to.

        value = low + (high - low) sigmoid(u)       high finite
        value = low + exp(u)                        high infinite

    Args:
        name: for `SelfTuning.values`.
        places: (object, attribute) or (dictionary, key) of each place that it is written to: `(dropout, "p")`,
            `(optimizer.param_groups[0], "weight_decay")`.
        start: the first value, inside the range.
        low, high: the range; high may be infinite.
        spread: standard deviation of what is tried round the mean, in units of u, > 0.

    Raises:
        ValueError: start is not inside the range, spread is not positive, or a place has no such attribute; says all.

    Example:
        >>> import torch
        >>> dropout = torch.nn.Dropout(0.1)
        >>> HyperParameter("dropout", [(dropout, "p")], start=0.3, high=0.9).write(0.0)
        >>> round(dropout.p, 2)
        0.45
    """

    def __init__(
        self,
        name: str,
        places: Sequence[tuple[Any, str]],
        start: float,
        low: float = 0.0,
        high: float = math.inf,
        spread: float = 0.5,
    ) -> None:
        wrong = [] if low < start < high else [f"start must be between {low!r} and {high!r}, got {start!r}"]
        if not spread > 0:
            wrong.append(f"spread must be positive, got {spread!r}")
        if not places:
            wrong.append("places is empty, so that it would have no effect")
        for owner, key in places:
            if not (key in owner if isinstance(owner, dict) else hasattr(owner, key)):
                wrong.append(f"{type(owner).__name__} has no {key!r}")
        if wrong:
            raise ValueError(f"hyper-parameter {name}: " + "; ".join(wrong))
        self.name, self.places, self.low, self.high, self.spread = name, list(places), low, high, float(spread)
        share = (start - low) if math.isinf(high) else (start - low) / (high - start)
        self.start = math.log(share)
        """u_0."""

    def value(self, u: float) -> float:
        """The value at u; what lies beyond the largest number is cut off there."""
        if math.isinf(self.high):
            return self.low + math.exp(min(u, 700.0))
        return self.low + (self.high - self.low) / (1 + math.exp(min(-u, 700.0)))

    def write(self, u: float) -> None:
        """Set the value at u in every place."""
        for owner, key in self.places:
            if isinstance(owner, dict):
                owner[key] = self.value(u)
            else:
                setattr(owner, key, self.value(u))


@final
class SelfTuning:
    """Tunes hyper-parameters of a training that goes on as it is: in a plain loop, transformers' Trainer or Lightning.

    It puts layers that respond to the hyper-parameters into the model, and then counts the steps of its optimizer by a hook on
    it. So make it before the optimizer, and `attach` it to the optimizer before training:

        tuner = SelfTuning(model, [dropout], validation_loss)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        with tuner.attach(optimizer):
            ...                                 # the loop; or Trainer(model, args, optimizers=(optimizer, None)).train()
        tuner.fold()                            # plain layers again, at the values found

    With `localplug.attach` or a trainer's integration beside it the weights and their response are trained by that method. The
    layers that respond hold twice their weights. Only what acts through training can be tuned (dropout, smoothing, weight
    decay, the scale of a local target, eps): at validation the model is in evaluation mode.

    Args:
        model: its torch.nn.Linear layers are replaced in place.
        hyper_parameters: what is tuned, one to some ten.
        validation_loss: gets the number of the tuning step and gives a scalar loss of the model on held-out examples, which it
            may choose by that number; called twice with each, without gradients, in evaluation mode.
        layers: names of the linear layers that respond, as fnmatch patterns.
        every: training steps for each tuning step, >= 1.
        warmup: training steps before the first tuning step, >= 0: the response is learned first.
        lr: of Adam on u, in units of u, > 0.
        delta: half-width of the difference, in units of each spread, > 0.
        seed: of what is drawn.

    Raises:
        ValueError: one of them is out of range, two hyper-parameters share a name, or no layer matches; says all that is wrong.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(), torch.nn.Linear(8, 1))
        >>> dropout = HyperParameter("dropout", [(model[1], "p")], start=0.5, high=0.9)
        >>> x, y = torch.randn(32, 4), torch.randn(32, 1)
        >>> tuner = SelfTuning(model, [dropout], lambda step: (model(x) - y).square().mean(), warmup=0)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        >>> with tuner.attach(optimizer):
        ...     for _ in range(4):
        ...         (model(x) - y).square().mean().backward()
        ...         optimizer.step()
        ...         optimizer.zero_grad()
        >>> 0 < tuner.values["dropout"] < 0.9
        True

    Reference: MacKay et al., 2019, arXiv:1903.03088.
    """

    def __init__(
        self,
        model: nn.Module,
        hyper_parameters: Sequence[HyperParameter],
        validation_loss: Callable[[int], Tensor | float],
        layers: str | Sequence[str] = "*",
        every: int = 2,
        warmup: int = 50,
        lr: float = 0.03,
        delta: float = 1.0,
        seed: int = 0,
    ) -> None:
        names = [h.name for h in hyper_parameters]
        patterns = [layers] if isinstance(layers, str) else list(layers)
        replaced = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and any(fnmatch.fnmatch(name, pattern) for pattern in patterns)
        }
        wrong = [] if names else ["there is no hyper-parameter"]
        if len(set(names)) < len(names):
            wrong.append(f"two hyper-parameters share a name: {names}")
        if not replaced or "" in replaced:
            wrong.append(
                f"no torch.nn.Linear inside the model matches layers={layers!r}; put it into a torch.nn.Sequential"
            )
        if not (isinstance(every, int) and every >= 1) or not (isinstance(warmup, int) and warmup >= 0):
            wrong.append(f"every must be at least 1 and warmup at least 0, integers, got {every!r} and {warmup!r}")
        if not lr > 0 or not delta > 0:
            wrong.append(f"lr and delta must be positive, got {lr!r} and {delta!r}")
        if wrong:
            raise ValueError("self-tuning: " + "; ".join(wrong))
        self.model, self.hyper_parameters, self.validation_loss = model, list(hyper_parameters), validation_loss
        self.every, self.warmup, self.delta, self.seed = every, warmup, float(delta), seed
        self.step = 0
        self._spread = torch.tensor([h.spread for h in self.hyper_parameters])
        self._mean = nn.Parameter(torch.zeros(len(names)))  # u - u_0
        self._adam = torch.optim.Adam([self._mean], lr=lr)
        self.settings = Settings(torch.zeros(len(names)), torch.zeros(len(names)))
        generator = torch.Generator().manual_seed(seed)
        for name, linear in replaced.items():
            _replace(model, name, ResponseLinear(linear, self.settings, generator).train(linear.training))
        self._hook: RemovableHandle | None = None

    @property
    def values(self) -> dict[str, float]:
        """{name: the value at the mean}."""
        return {h.name: h.value(h.start + m) for h, m in zip(self.hyper_parameters, self._mean.tolist(), strict=True)}

    def attach(self, optimizer: Any) -> "SelfTuning":
        """Follow the steps of this optimizer, a torch optimizer or Accelerate's or Fabric's wrapper of one.

        Raises:
            ValueError: it does not hold the layers' responses, as it was made before them.
        """
        inner = innermost(optimizer)
        held = {p for group in inner.param_groups for p in group["params"]}
        if missing := [n for n, p in self.model.named_parameters() if p.requires_grad and p not in held and _is_own(n)]:
            raise ValueError(
                f"the optimizer does not hold {missing[:3]}, so that the response would not be learned; make the optimizer "
                "after SelfTuning"
            )
        self.detach()
        self._hook = inner.register_step_post_hook(lambda *_: self._after_step())
        self._draw()
        return self

    def detach(self) -> None:
        """Let go of the optimizer, and leave the values at the mean in every place."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
        self._set(self._mean.detach())

    def fold(self) -> dict[str, float]:
        """Detach, and put plain linear layers back, at the weights' response to the mean. Gives the values found."""
        self.detach()
        for name, module in list(self.model.named_modules()):
            if isinstance(module, ResponseLinear) and module.settings is self.settings:
                _replace(self.model, name, module.folded())
        return self.values

    def __enter__(self) -> "SelfTuning":
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    def state_dict(self) -> dict[str, Any]:
        """What the next step needs beside the model's and the optimizer's own states; numbers and tensors only."""
        return {"step": self.step, "mean": self._mean.detach().clone(), "adam": self._adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.step = int(state["step"])
        with torch.no_grad():
            self._mean.copy_(state["mean"])
        self._adam.load_state_dict(state["adam"])
        self._draw() if self._hook is not None else self._set(self._mean.detach())

    def _after_step(self) -> None:
        self.step += 1
        if self.step > self.warmup and self.step % self.every == 0:
            self._tune()
        self._draw()

    @torch.no_grad()
    def _draw(self) -> None:
        z = noise.normal(noise.stream(self.seed, self.step, 0, "self-tuning"), 0, len(self._mean), self._mean.device)
        self._set(self._mean + self._spread * z)

    def _set(self, drawn: Tensor) -> None:
        self.settings.drawn, self.settings.mean = drawn.detach().clone(), self._mean.detach().clone()
        for h, u in zip(self.hyper_parameters, drawn.tolist(), strict=True):
            h.write(h.start + u)

    @torch.no_grad()
    def _tune(self) -> None:
        z = noise.signs(noise.stream(self.seed, self.step, 1, "self-tuning"), 0, len(self._mean), self._mean.device)
        step = self.delta * self._spread * z
        plus, minus = self._validated(self._mean + step), self._validated(self._mean - step)
        slope = (plus - minus) / 2
        if math.isfinite(slope):
            self._mean.grad = slope / step
            self._adam.step()

    def _validated(self, mean: Tensor) -> float:
        """The validation loss of the weights' response to these hyper-parameters."""
        modes = [(module, module.training) for module in self.model.modules()]
        self.settings.mean = mean.detach().clone()
        try:
            self.model.eval()
            return float(self.validation_loss(self.step // self.every))
        finally:
            for module, training in modes:
                module.training = training
            self.settings.mean = self._mean.detach().clone()


def _is_own(name: str) -> bool:
    return name.rsplit(".", 1)[-1] in ("response", "gate", "response_bias", "gate_bias")


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    *path, last = name.split(".")
    parent = model.get_submodule(".".join(path))
    setattr(parent, last, module)
