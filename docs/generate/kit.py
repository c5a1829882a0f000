"""The conformance kit: for each of its classes what it is for, what can be set, and every check by its name."""

import inspect
from typing import Any

from generate import docstrings
from localplug import testing


def classes() -> list[Any]:
    """The classes of checks, those for methods first."""
    found = [getattr(testing, name) for name in testing.__all__ if name.endswith("Tests")]
    return sorted(found, key=lambda c: (c.__name__ != "MethodTests", c.__name__ != "LocalMethodTests", c.__name__))


def checks(value: Any) -> dict[str, str]:
    """{check: its docstring, in a line} of a class, with those it inherits."""
    return {
        name: docstrings.sentence(inspect.getdoc(member) or "")
        for owner in reversed(value.__mro__)
        for name, member in vars(owner).items()
        if name.startswith("test_")
    }


def section() -> str:
    shown = []
    for value in [*_shared(), *classes()]:
        bases = {name for base in value.__bases__ for name in checks(base)}
        own = {name: text for name, text in checks(value).items() if name not in bases}
        also = [base.__name__ for base in value.__bases__ if checks(base)]
        shown += [
            f"### {value.__name__} {{#localplug.testing.{value.__name__}}}",
            docstrings.whole(value),
            f"All checks of {', '.join(f'`{name}`' for name in also)}, and:" if also else "",
            "\n".join(f"- **{_words(name)}**{_more(text)}" for name, text in own.items()),
        ]
    return "\n\n".join(part for part in shown if part)


def _shared() -> list[Any]:
    """Classes that are no kind of plugin, whose checks several of the others inherit."""
    public = set(classes())
    found = {
        base: None for value in classes() for base in value.__mro__ if base not in public and "test_" in str(vars(base))
    }
    return sorted(found, key=lambda base: len(base.__mro__))


def _words(check: str) -> str:
    return check.removeprefix("test_").replace("_", " ")


def _more(text: str) -> str:
    return f": {docstrings.escaped(text)}" if text else ""
