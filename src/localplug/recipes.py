"""From what a user types to the object: a method, a target generator, a local loss, an update rule, by name or as it is."""

import difflib
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from localplug.contract import LocalLoss, Method, TargetGenerator
from localplug.plugins import get


def method(name: str | Method, **options: Any) -> Method:
    """The method that a plugin gives under a name, made with its typed options; a Method object is passed on.

    Raises:
        UnknownName, DuplicateName, PluginFailed: see `localplug.get`.
        TypeError: an option that the method does not have; the message lists those it has.
        ValueError: an option out of its range.
    """
    if isinstance(name, Method):
        if options:
            raise TypeError(
                f"{type(name).__name__} is already made; the options {sorted(options)} would have no effect"
            )
        return name
    if not isinstance(name, str):
        raise TypeError(f"method must be a name such as 'mezo' or a localplug.Method, got {name!r}")
    made = _made(get(name, "methods"), name, options)
    if not isinstance(made, Method):
        raise TypeError(f"the plugin's {name!r} made {made!r}, which is not a localplug.Method")
    return made


def target_generator(name: str | TargetGenerator, **options: Any) -> TargetGenerator:
    """A local-target generator by name, made with its options; an object is passed on."""
    if isinstance(name, TargetGenerator):
        return name
    made = _made(get(name, "target_generators"), name, options)
    if not isinstance(made, TargetGenerator):
        raise TypeError(f"the plugin's {name!r} made {made!r}, which is not a localplug.TargetGenerator")
    return made


def local_loss(name: str | LocalLoss) -> LocalLoss:
    """A local loss by name; a callable(output, target) is passed on."""
    if not isinstance(name, str):
        if not callable(name):
            raise TypeError(f"a local loss is a name or a callable(output, target) -> scalar, got {name!r}")
        return name
    found = get(name, "local_losses")
    made: Callable[..., Any] = found() if inspect.isclass(found) and issubclass(found, nn.Module) else found
    return made


def update_rule(name: str) -> type[torch.optim.Optimizer]:
    """The torch.optim.Optimizer class that a plugin gives under a name."""
    found: type[torch.optim.Optimizer] = get(name, "update_rules")
    return found


def _made(factory: Callable[..., Any], name: str, options: dict[str, Any]) -> Any:
    known = list(inspect.signature(factory).parameters)
    unknown = [o for o in options if o not in known]
    if unknown:
        near = {o: difflib.get_close_matches(o, known, n=1) for o in unknown}
        hints = "".join(f" Did you mean {n[0]!r} for {o!r}?" for o, n in near.items() if n)
        raise TypeError(f"{name} has no option {', '.join(map(repr, unknown))}.{hints} It has: {', '.join(known)}")
    return factory(**options)
