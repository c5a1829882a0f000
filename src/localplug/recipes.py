"""From what a user types to the object: a method or a part of one, by name or as it is."""

import difflib
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from localplug.contract import Method
from localplug.parts import Distribution, Estimator, Update
from localplug.plugins import get
from localplug.quantizers import Quantizer
from localplug.selectors import Selector
from localplug.signals import LocalLoss, TargetGenerator


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
    """The torch.optim.Optimizer class that a plugin gives under a name.

    Raises:
        TypeError: the name is that of a localplug.Update, which a method takes by `update=`.
    """
    found: type[torch.optim.Optimizer] = get(name, "update_rules")
    if inspect.isclass(found) and issubclass(found, Update):
        raise TypeError(f"{name!r} is no torch optimizer; hand it to a zeroth-order method as update={name!r}")
    return found


def distribution(name: str | Distribution, **options: Any) -> Distribution:
    """A distribution of directions by name, made with its options; an object is passed on.

    Raises:
        TypeError: it is neither, or the plugin's is none.
    """
    return _part(name, "perturbations", Distribution, options)


def selector(name: str | Selector, **options: Any) -> Selector:
    """A selector of the trained elements by name, made with its options; an object is passed on.

    Raises:
        UnknownName, DuplicateName, PluginFailed: see `localplug.get`.
        TypeError: it is neither, or the plugin's is none, or has no such option.

    Example:
        >>> import localplug
        >>> localplug.selector("sara", share=0.1).describe()
        'sara:0.1'
    """
    return _part(name, "selectors", Selector, options)


def estimator(name: str | Estimator, **options: Any) -> Estimator:
    """An estimator by name, made with its options; an object is passed on.

    Raises:
        TypeError: it is neither, or the plugin's is none.
    """
    return _part(name, "estimators", Estimator, options)


def update(name: str | Update, **options: Any) -> Update:
    """A streamed update by name, made with its options; an object is passed on.

    Raises:
        TypeError: it is neither, or the plugin's is none.
    """
    return _part(name, "update_rules", Update, options)


def objective(name: str | Callable[..., Any]) -> Callable[..., Any]:
    """An objective by name; a callable is passed on.

    Raises:
        TypeError: it is neither.
    """
    if callable(name):
        return name
    if not isinstance(name, str):
        raise TypeError(f"objective must be a name or a callable, got {name!r}")
    found: Callable[..., Any] = get(name, "objectives")
    return found


def solver(name: str, **options: Any) -> Callable[..., Any]:
    """A solver by name, made with its options: a callable(inputs, targets) that fits a network to the whole data set.

    Raises:
        TypeError: an option that it does not have, or the plugin's is not callable.
    """
    made = _made(get(name, "solvers"), name, options)
    if not callable(made):
        raise TypeError(f"the plugin's {name!r} made {made!r}, which cannot be called with (inputs, targets)")
    return made


def quantizer(name: str | Quantizer, **options: Any) -> Quantizer:
    """A ternary quantizer by name, made with its options, `group_size` among them; an object is passed on.

    Raises:
        UnknownName, DuplicateName, PluginFailed: see `localplug.get`.
        TypeError: it is neither, or the plugin's is none, or has no such option.

    Example:
        >>> import localplug
        >>> localplug.quantizer("absmean", group_size=128).group_size
        128
    """
    return _part(name, "quantizers", Quantizer, options)


def _part(name: Any, kind: str, what: type[Any], options: dict[str, Any]) -> Any:
    if isinstance(name, what):
        if options:
            raise TypeError(f"{name!r} is already made; the options {sorted(options)} would have no effect")
        return name
    if not isinstance(name, str):
        raise TypeError(f"expected a name or a localplug.{what.__name__}, got {name!r}")
    found = get(name, kind)
    made = _made(found, name, options) if callable(found) else found
    if not isinstance(made, what):
        raise TypeError(f"the plugin's {name!r} is not a localplug.{what.__name__}: {made!r}")
    return made


def _made(factory: Callable[..., Any], name: str, options: dict[str, Any]) -> Any:
    known = list(inspect.signature(factory).parameters)
    unknown = [o for o in options if o not in known]
    if unknown:
        near = {o: difflib.get_close_matches(o, known, n=1) for o in unknown}
        hints = "".join(f" Did you mean {n[0]!r} for {o!r}?" for o, n in near.items() if n)
        raise TypeError(f"{name} has no option {', '.join(map(repr, unknown))}.{hints} It has: {', '.join(known)}")
    return factory(**options)
