"""What `localplug check` hands to pytest: a class of tests for everything that a distribution gives.

A plugin may ship a module `conformance` (of a single module `localplug_x`: a module `localplug_x_conformance`) with classes of
the kit, as in a test file: for what needs options, a problem of its own, or a check that is expected to fail. Their `names`
say what they stand for, and that is not checked with default options then.
"""

import importlib
import importlib.util
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import pytest

from localplug import plugins
from localplug.testing.conformance import Conformance
from localplug.testing.kinds import CLASSES, kind_of, tests_of


def classes(
    distribution: str, *, kinds: Sequence[str] = (), options: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, type]:
    """{name of the class: class of tests}, each with `checked`: (kind, name) of what it is for.

    Args:
        distribution: as its metadata spells it.
        kinds: only these hooks' answers; by default all.
        options: {name: {option: value}} of what is made with others than the defaults.
    """
    found: list[tuple[str, str, type]] = []
    written: set[tuple[str, str]] = set()
    left = dict(options or {})
    mine = [plugin for plugin in plugins.installed() if plugin.distribution == distribution]
    for plugin in mine:
        if plugin.status != "ok":
            found.append(("plugin", plugin.name, _failing("test_loads", f"{plugin.status}: {plugin.reason}")))
            continue
        try:
            module = _conformance_of(plugin.module)
        except Exception as error:
            reason = f"{plugin.module}'s module `conformance` cannot be imported: {type(error).__name__}: {error}"
            found.append(("plugin", plugin.name, _failing("test_loads", reason)))
            continue
        for tests in _tests_in(module) if module else ():
            kind = kind_of(tests)
            if kind and (not kinds or kind in kinds):
                found.append((kind, ", ".join(tests.names) or tests.__name__, tests))
                written |= {(kind, name) for name in tests.names}
    for plugin in mine:
        for kind, given in plugin.gives.items():
            for name in given if kind in CLASSES and (not kinds or kind in kinds) else ():
                own = left.pop(name, {})
                if (kind, name) not in written or own:
                    found.append((kind, name, _default(kind, name, own)))
    for name in left:
        reason = f"--option {name}...: {distribution} gives no such name"
        found.append(("plugin", name, _failing("test_is_given", reason)))
    made = {}
    for number, (kind, name, tests) in enumerate(found):
        word = re.sub(r"\W+", "_", f"{kind}_{name}")
        made[f"Test_{word}_{number}"] = type(f"Test_{word}", (tests,), {"checked": (kind, name)})
    return made


def _default(kind: str, name: str, options: Mapping[str, Any]) -> type:
    try:
        return tests_of(kind, name, plugins.get(name, kind), options)
    except Exception as error:
        return _failing("test_can_be_made", f"{type(error).__name__}: {str(error).replace('NAME.', f'{name}.')}")


def _failing(check: str, reason: str) -> type:
    def fails(self: Any) -> None:
        pytest.fail(reason, pytrace=False)

    return type("Failing", (), {check: fails})


def _conformance_of(module: str) -> ModuleType | None:
    plugin = importlib.import_module(module)
    name = f"{module}.conformance" if hasattr(plugin, "__path__") else f"{module}_conformance"
    if importlib.util.find_spec(name) is None:
        return None
    pytest.register_assert_rewrite(name)
    return importlib.import_module(name)


def _tests_in(module: ModuleType) -> list[type[Conformance]]:
    """Its own classes whose names begin with Test, in order."""
    is_test: Callable[[Any], bool] = lambda value: (  # noqa: E731
        inspect.isclass(value) and issubclass(value, Conformance) and value.__module__ == module.__name__
    )
    return [value for name, value in vars(module).items() if name.startswith("Test") and is_test(value)]
