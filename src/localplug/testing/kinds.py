"""Which class of checks is for which hook, and what it is given when nobody has written a test."""

import inspect
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch

from localplug.local import LocalMethod
from localplug.parts import Update
from localplug.testing.command import CommandTests
from localplug.testing.conformance import Conformance
from localplug.testing.distribution import DistributionTests
from localplug.testing.estimator import EstimatorTests
from localplug.testing.local import LocalLossTests, TargetGeneratorTests
from localplug.testing.local_method import LocalMethodTests
from localplug.testing.method import MethodTests
from localplug.testing.objective import ObjectiveTests
from localplug.testing.quantizer import QuantizerTests
from localplug.testing.selector import SelectorTests
from localplug.testing.solver import SolverTests
from localplug.testing.task import TaskTests
from localplug.testing.update import UpdateTests
from localplug.testing.update_rule import UpdateRuleTests

CLASSES: dict[str, tuple[type[Conformance], ...]] = {
    "methods": (MethodTests, LocalMethodTests),
    "estimators": (EstimatorTests,),
    "perturbations": (DistributionTests,),
    "selectors": (SelectorTests,),
    "update_rules": (UpdateRuleTests, UpdateTests),
    "objectives": (ObjectiveTests,),
    "target_generators": (TargetGeneratorTests,),
    "local_losses": (LocalLossTests,),
    "solvers": (SolverTests,),
    "quantizers": (QuantizerTests,),
    "tasks": (TaskTests,),
    "commands": (CommandTests,),
}
"""{what follows localplug_ in the hook's name: the classes for what it gives}."""


def listing() -> list[tuple[str, str, str, str]]:
    """(hook, class, check, what it asks in a line) of every check; those that a class shares with another are in both."""
    rows = []
    for kind, classes in CLASSES.items():
        for kit in classes:
            for name in checks_of(kit):
                told = (inspect.getdoc(getattr(kit, name)) or "").split("\n\n")[0].replace("\n", " ")
                rows.append((f"localplug_{kind}", kit.__name__, title(name), told))
    return rows


def checks_of(kit: type[Conformance]) -> list[str]:
    """Names of the functions, in the order in which they stand."""
    found = [name for base in reversed(kit.__mro__) for name in vars(base) if name.startswith("test_")]
    return [name for name in dict.fromkeys(found) if callable(getattr(kit, name))]


def title(check: str) -> str:
    """test_lowers_the_loss -> "lowers the loss"."""
    return check.removeprefix("test_").replace("_", " ")


def kind_of(tests: type) -> str | None:
    """The hook that a class of tests is for; None for one that is no class of the kit."""
    found = [kind for kind, classes in CLASSES.items() if issubclass(tests, classes)]
    return found[0] if found else None


def tests_of(kind: str, name: str, factory: Callable[..., Any], options: Mapping[str, Any]) -> type[Conformance]:
    """A class of checks for what a plugin gives under a name, made with its default options and these.

    Raises:
        TypeError, ValueError: it cannot be made with these options; the message says what is missing.
    """
    given = dict(options)
    kit, space = _kit(kind, factory, given)
    space.setdefault("documented", pytest.fixture(lambda self: factory))
    space["__module__"], space["names"] = __name__, (name,)
    return type(f"Test {kind} {name}", (kit,), space)


def _kit(kind: str, factory: Any, options: dict[str, Any]) -> tuple[type[Conformance], dict[str, Any]]:
    """The class, and the fixtures that it wants."""
    if kind in ("objectives", "commands"):
        if options:
            raise TypeError(f"it takes no options, got {', '.join(options)}")
        return CLASSES[kind][0], {"make": pytest.fixture(lambda self: lambda: factory)}
    if kind == "local_losses":
        is_module = inspect.isclass(factory)
        if options and not is_module:
            raise TypeError(f"it takes no options, got {', '.join(options)}")
        return LocalLossTests, {"loss": pytest.fixture(lambda self: factory(**options) if is_module else factory)}
    if kind == "update_rules" and not (inspect.isclass(factory) and issubclass(factory, Update)):
        _complete(factory, options, 1)
        factory([torch.nn.Parameter(torch.zeros(1))], **options)
        return UpdateRuleTests, {"make": pytest.fixture(lambda self: lambda parameters: factory(parameters, **options))}
    if kind == "quantizers":
        _complete(factory, options, 1)
        factory(group_size=None, **options)
        make = pytest.fixture(lambda self: lambda group_size: factory(group_size=group_size, **options))
        return QuantizerTests, {"make": make}
    _complete(factory, options, 0)
    if kind == "tasks" and options.get("data") is not None:
        options["data"] = pathlib.Path(options["data"])  # as localplug.task gives it
    made, fixture = factory(**options), pytest.fixture(lambda self: lambda: factory(**options))
    kit = UpdateTests if kind == "update_rules" else CLASSES[kind][0]
    return LocalMethodTests if isinstance(made, LocalMethod) else kit, {"make": fixture}


def _complete(factory: Callable[..., Any], options: Mapping[str, Any], num_given: int) -> None:
    """Refuse options that it has not, and ask for those without a default.

    Args:
        num_given: of its first parameters, which the kit fills.
    """
    parameters = list(inspect.signature(factory).parameters.values())[num_given:]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    if not takes_any and (unknown := set(options) - {p.name for p in parameters}):
        raise TypeError(f"it has no option {', '.join(sorted(unknown))}, but {', '.join(p.name for p in parameters)}")
    fixed = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    missing = [p.name for p in parameters if p.default is p.empty and p.kind not in fixed and p.name not in options]
    if missing:
        raise TypeError(f"it has no default for {', '.join(missing)}; give one with --option NAME.{missing[0]}=VALUE")
