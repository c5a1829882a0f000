"""What the docstring of an algorithm must have: a summary, every option, an example that runs, a source."""

import doctest
import inspect
import re
from typing import Any

import torch

SOURCE = re.compile(r"arXiv|https?://|doi\b|\bnew here\b|\b(1[89]|20)\d\d\b", re.IGNORECASE)


def missing(documented: Any) -> list[str]:
    """What a class's or a function's docstring says nothing about: each in a few words."""
    text, name = docstring(documented), documented.__qualname__
    if not text:
        return [f"{name} has no docstring"]
    summary = text.split("\n\n")[0]
    found = [] if re.search(r"[.:]$", summary.strip()) else [f"the summary of {name} is no sentence: {summary!r}"]
    options = [p.name for p in _parameters(documented) if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if options and (silent := [o for o in options if not re.search(rf"(?m)^\s*(\w+, )*{o}(, \w+)*:", text)]):
        found.append(f"the docstring of {name} says nothing about {', '.join(silent)}")
    return found


def failing_example(documented: Any) -> str:
    """Why the example in a docstring fails, or that there is none; empty if all that it prints is as it says."""
    name, module = documented.__qualname__, inspect.getmodule(documented)
    around = dict(vars(module)) if module else {}  # as doctest itself does
    test = doctest.DocTestParser().get_doctest(docstring(documented), around, name, None, None)
    if not test.examples:
        return f"the docstring of {name} has no example that can be run (lines that begin with >>>)"
    said: list[str] = []
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    with torch.random.fork_rng(devices=[]):
        failed = runner.run(test, out=said.append).failed
    return "".join(said) if failed else ""


def has_source(documented: Any) -> bool:
    """Whether it says where it comes from, or its module does for all that is in it."""
    module = inspect.getmodule(documented)
    return bool(SOURCE.search(docstring(documented)) or SOURCE.search(module.__doc__ or "" if module else ""))


def docstring(documented: Any) -> str:
    """Its own, and not one that it inherits."""
    own = documented.__dict__.get("__doc__") if inspect.isclass(documented) else documented.__doc__
    return inspect.cleandoc(own) if own else ""


def _parameters(documented: Any) -> list[inspect.Parameter]:
    return list(inspect.signature(documented).parameters.values())
