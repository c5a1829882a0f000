"""What every class of the kit has: its checks count, unless there is a reason, and what it checks is documented."""

import inspect
import pickle
import re
from collections.abc import Callable
from typing import Any

import pytest

from localplug.testing import documentation


class Conformance:
    """The base of all classes of checks. A subclass of one of them gives the fixture `make`, and inherits the checks."""

    names: tuple[str, ...] = ()
    """Which of its distribution's names the class stands for when `localplug check` finds it in a module `conformance`."""

    expected_failures: dict[str, str] = {}  # noqa: RUF012 (a subclass gives its own)
    """{name of a check: why it fails}. One that passes all the same is a failure: take it out then."""

    @pytest.fixture(autouse=True)
    def _is_expected_to_fail(self, request: pytest.FixtureRequest) -> None:
        if reason := self.expected_failures.get(request.function.__name__):
            request.applymarker(pytest.mark.xfail(reason=reason, strict=True))

    @pytest.fixture
    def make(self) -> Callable[..., Any]:
        raise NotImplementedError("the fixture `make` must return a function that makes what is checked")

    def test_overrides_no_check_without_a_reason(self) -> None:
        """A check is replaced only under @pytest.mark.xfail(reason=...) or skip(reason=...), which a report then shows; the
        names in `expected_failures` are checks, and each has a reason."""
        wrong = [
            f"expected_failures[{name!r}]"
            for name, reason in self.expected_failures.items()
            if not (hasattr(self, name) and name.startswith("test_") and re.search(r"\w", reason))
        ]
        for name in (name for name in dir(type(self)) if name.startswith("test_")):
            givers = [c for c in type(self).__mro__ if name in vars(c)]
            of_kit = [c for c in givers if c.__module__.startswith("localplug.testing.")]
            if of_kit and givers[0] is not of_kit[0] and not _has_reason(vars(givers[0])[name]):
                wrong.append(f"{givers[0].__name__}.{name}")
        assert not wrong, (
            f"{', '.join(wrong)}: a check of the kit is replaced without a reason; name it in `expected_failures` with one, or "
            "mark it with @pytest.mark.skip(reason=...) and give a check of your own another name"
        )


class Documented(Conformance):
    """The base of the classes for what a user finds by name, and reads about in its docstring."""

    @pytest.fixture
    def documented(self, make: Callable[..., Any]) -> Any:
        """The class or function whose docstring it is; override it for what a function makes."""
        return type(make())

    def test_its_docstring_has_a_summary_and_every_option(self, documented: Any) -> None:
        _not_of_the_host(documented)
        assert not (missing := documentation.missing(documented)), "; ".join(missing)

    def test_the_example_in_its_docstring_runs(self, documented: Any) -> None:
        """Lines that begin with >>>, and what they print."""
        _not_of_the_host(documented)
        assert not (wrong := documentation.failing_example(documented)), wrong

    def test_names_its_source(self, documented: Any) -> None:
        """A paper, an address or a year, in its docstring or in that of its module."""
        _not_of_the_host(documented)
        assert documentation.has_source(documented), (
            f"neither {documented.__qualname__} nor its module says where it comes from: name the paper, or say that it is new"
        )


def pickled(given: Any) -> Any:
    """What a worker gets that is started with it."""
    try:
        return pickle.loads(pickle.dumps(given))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        pytest.fail(f"{type(given).__name__} cannot be handed to another process: {error}")


def in_one_line(line: object) -> bool:
    """Whether a description is one, and fits into the line at the start of training."""
    return isinstance(line, str) and bool(line.strip()) and "\n" not in line


def _has_reason(check: Any) -> bool:
    marks = [mark for mark in getattr(check, "pytestmark", []) if mark.name in ("xfail", "skip", "skipif")]
    return any(re.search(r"\w", str(mark.kwargs.get("reason", "") or "")) for mark in marks) or any(
        mark.name == "skip" and mark.args and str(mark.args[0]).strip() for mark in marks
    )


def _not_of_the_host(documented: Any) -> None:
    module = getattr(inspect.getmodule(documented), "__name__", "")
    if module.startswith("localplug."):
        pytest.skip("it is made of the host's own class; `localplug check` reads the docstring of the name's factory")
