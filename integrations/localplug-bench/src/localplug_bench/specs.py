"""What a user types for a task or a way of training: NAME or NAME:option=value,option=value, with ranges for a search."""

import ast
import dataclasses
import re
from collections.abc import Mapping
from typing import Any, final

OWN = ("lr", "weight_decay", "optimizer", "schedule")
"""Options of every way of training; all others are the method's own."""
DEFAULTS: dict[str, Any] = {"lr": 1e-3, "weight_decay": 0.0, "optimizer": None, "schedule": "linear"}
_OPTION = re.compile(r"[A-Za-z_]\w*")


@final
@dataclasses.dataclass(frozen=True)
class Range:
    """Values that a search may try: low to high, in proportion where both are positive floats; written low..high."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.low}..{self.high}"

    @property
    def is_log(self) -> bool:
        return self.low > 0

    @property
    def is_whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)


@final
@dataclasses.dataclass(frozen=True)
class Choice:
    """Values that a search may try, one by one; written a|b|c."""

    values: tuple[Any, ...]

    def __str__(self) -> str:
        return "|".join(map(str, self.values))


@final
@dataclasses.dataclass(frozen=True)
class Spec:
    """A name and its options.

    Example:
        >>> spec = parsed("mezo:lr=1e-3..1e-1,eps=1e-3,parameters=*.q_proj.*")
        >>> spec.name, str(spec.ranges["lr"]), spec.options["parameters"]
        ('mezo', '0.001..0.1', '*.q_proj.*')
    """

    name: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        options = ",".join(f"{name}={value}" for name, value in sorted(self.options.items()))
        return f"{self.name}:{options}" if options else self.name

    @property
    def ranges(self) -> dict[str, Range | Choice]:
        """What a search chooses."""
        return {name: value for name, value in self.options.items() if isinstance(value, Range | Choice)}

    @property
    def own(self) -> dict[str, Any]:
        """The options of every way of training, with their defaults."""
        return {**DEFAULTS, **{name: value for name, value in self.options.items() if name in OWN}}

    @property
    def of_the_method(self) -> dict[str, Any]:
        """The others."""
        return {name: value for name, value in self.options.items() if name not in OWN}

    def chosen(self, values: Mapping[str, Any]) -> "Spec":
        """The same with some options set."""
        return Spec(self.name, {**self.options, **values})


def parsed(text: str) -> Spec:
    """A spec from what was typed.

    Raises:
        ValueError: it is no NAME:option=value,...; says what is wrong.
    """
    name, colon, rest = _of_file(text) if ".py:" in text else text.partition(":")
    if not name or (colon and not rest):
        raise ValueError(f"expected NAME or NAME:option=value,option=value, got {text!r}")
    options: dict[str, Any] = {}
    for part in _parts(rest):
        option, equals, value = part.partition("=")
        if not equals or not _OPTION.fullmatch(option) or option in options:
            raise ValueError(f"expected option=value, each option once, got {part!r} in {text!r}")
        options[option] = _value(value)
    return Spec(name, options)


def _of_file(text: str) -> tuple[str, str, str]:
    """FILE.py:CLASS:option=value."""
    path, _, rest = text.partition(".py:")
    name, colon, options = rest.partition(":")
    return f"{path}.py:{name}", colon, options


def _parts(text: str) -> list[str]:
    """Split at the commas that are in no bracket."""
    found, depth = [""], 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and not depth:
            found.append("")
        else:
            found[-1] += character
    return [part for part in found if part]


def _value(text: str) -> Any:
    if ".." in text:
        low, _, high = text.partition("..")
        ends = (_plain(low), _plain(high))
        if not all(isinstance(end, int | float) for end in ends) or not ends[0] < ends[1]:
            raise ValueError(f"a range is LOW..HIGH with two numbers, got {text!r}")
        return Range(*ends)
    if "|" in text:
        return Choice(tuple(map(_plain, text.split("|"))))
    return _plain(text)


def _plain(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
