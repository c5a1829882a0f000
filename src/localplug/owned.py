"""Modules that a layer-local algorithm owns beside the model: heads, embeddings, decoders; and how they learn.

They are no part of the model: exporting it drops them. They learn by an optimizer of the trainer's own kind, with its
options and its present learning rate (those of its first parameter group), and are saved with the method's state.
"""

import inspect
from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor, nn

from localplug import noise
from localplug.errors import Unsupported


@final
class Owned:
    """The owned modules of one method, by the name of the unit that each belongs to."""

    def __init__(self) -> None:
        self.modules: dict[str, nn.Module] = {}
        self._saved: dict[str, dict[str, Tensor]] = {}  # of modules that are not made yet
        self._optimizer: torch.optim.Optimizer | None = None
        self._saved_optimizer: dict[str, Any] = {}
        self._num_batches = 0

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Those that are trained."""
        return [p for module in self.modules.values() for p in module.parameters() if p.requires_grad]

    def of(self, name: str, make: Callable[[], nn.Module | None]) -> nn.Module | None:
        """The module of one unit, made on the first call and taken from a checkpoint where one was loaded."""
        if name not in self.modules:
            made = make()
            if made is None:
                return None
            if name in self._saved:
                made.load_state_dict(self._saved.pop(name))
            self.modules[name] = made
        return self.modules[name]

    def gather(self, gradients: dict[nn.Parameter, Tensor], share: float | None = None) -> None:
        """Add one micro-batch's gradients to those before it in this step.

        Args:
            share: what the micro-batch counts; by default micro-batches are averaged.
        """
        if all(p.grad is None for p in gradients):
            self._num_batches = 0  # whatever came before was given up
        self._num_batches += 1
        n = self._num_batches
        before, now = ((n - 1) / n, 1 / n) if share is None else (1.0, share)
        for parameter, gradient in gradients.items():
            if parameter.grad is None:
                parameter.grad = gradient * now
            else:
                parameter.grad.mul_(before).add_(gradient, alpha=now)

    def step(self, optimizer: torch.optim.Optimizer | None) -> None:
        """One optimizer step with what was gathered; none if that is not finite.

        Args:
            optimizer: the trainer's.
        """
        self._num_batches = 0
        parameters = self.parameters
        gradients = [p.grad for p in parameters if p.grad is not None]
        if not gradients:
            return
        assert optimizer is not None
        if self._optimizer is None:
            self._optimizer = twin(optimizer, parameters)
            if self._saved_optimizer:
                self._optimizer.load_state_dict(self._saved_optimizer)
                self._saved_optimizer = {}
        known = {p for group in self._optimizer.param_groups for p in group["params"]}
        if new := [p for p in parameters if p not in known]:
            self._optimizer.add_param_group({"params": new})
        for group in self._optimizer.param_groups:
            group["lr"] = optimizer.param_groups[0]["lr"]
        if all(bool(torch.isfinite(g).all()) for g in gradients):
            self._optimizer.step()
        self._optimizer.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        """The modules' weights and the optimizer's state; empty if nothing is owned."""
        modules = {name: dict(module.state_dict()) for name, module in self.modules.items()} | self._saved
        if not modules:
            return {}
        optimizer = self._saved_optimizer if self._optimizer is None else self._optimizer.state_dict()
        return {"modules": modules, "optimizer": optimizer}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave; modules that are not made yet take it when they are."""
        for name, saved in state.get("modules", {}).items():
            if name in self.modules:
                self.modules[name].load_state_dict(saved)
            else:
                self._saved[name] = saved
        self._optimizer, self._saved_optimizer = None, state.get("optimizer", {})


def twin(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """An optimizer of the same kind and options for other parameters.

    Raises:
        Unsupported: its class cannot be made from its own options.
    """
    kind = type(optimizer)
    accepted = inspect.signature(kind.__init__).parameters
    options = {**optimizer.defaults, **optimizer.param_groups[0]}
    options = {k: v for k, v in options.items() if k in accepted and k != "params"}
    try:
        return kind([{"params": parameters}], **options)
    except Exception as error:
        raise Unsupported(
            f"this method trains modules of its own, by an optimizer like yours, and a second {kind.__name__} cannot be made "
            f"({error}); use an optimizer of torch.optim"
        ) from error


@torch.no_grad()
def seeded(make: Callable[[], nn.Module], like: Tensor, *, seed: int, name: str) -> nn.Module:
    """A module whose first weights are a function of (seed, name), made without the global random state.

    Matrices and their biases are uniform in +-1/sqrt(fan in), as torch's Linear and Conv begin; normalisations begin as ever.

    Args:
        make: gives the module; called with "meta" as the default device.
        like: a tensor on the device and of the dtype that the module shall have.
        name: different for each module of a run.
    """
    with torch.device("meta"):
        made = make()
    made = made.to_empty(device=like.device)
    for part_name, part in made.named_modules():
        weight = part._parameters.get("weight")
        if weight is not None and weight.dim() > 1:
            bound = weight[0].numel() ** -0.5
            for key, p in part._parameters.items():
                if p is not None:
                    stream = noise.stream(seed, 0, 0, f"owned {name}.{part_name}.{key}")
                    p.copy_(noise.uniform(stream, 0, p.numel(), p.device).view(p.shape).mul_(2).sub_(1).mul_(bound))
        elif callable(reset := getattr(part, "reset_parameters", None)):
            reset()
    return made.to(like.dtype)
