"""What the log of a run says before its steps: the run's method, seed and parameters; read as strictly as it was written."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any, final

from localplug import strict_json
from localplug.encoding import from_text

CODES = {"float32": "f", "float64": "d"}
MOST_GROUPS = 0xFFFF
"""Of the optimizer: a record counts them in two bytes."""


@final
@dataclasses.dataclass
class LoggedParameter:
    """A trained parameter, as the run knew it."""

    name: str
    """In run.parameters: what its noise is a function of."""
    full_names: list[str]
    """In model.named_parameters(), all of a tied one."""
    shape: list[int]
    dtype: str
    group: int
    """Number of its group of the optimizer; -1 if not known yet."""
    checksum: int | None
    """CRC-32 of its bytes at the first step; None of a sharded one."""


@final
@dataclasses.dataclass
class Header:
    """What a run is made of besides its steps."""

    version: str
    """Of localplug."""
    method: str | None
    """Its name; None of a method object that was made by hand, or with options that are no plain values."""
    options: dict[str, Any]
    description: str
    seed: int
    step: int
    """The first one of the log."""
    state: str
    """Of the method at that step, as localplug.encoding writes it; empty where it has none."""
    precision: str
    """Of the coefficients: "float32" or "float64"."""
    num_coefficients: int
    num_groups: int
    parameters: list[LoggedParameter]

    def method_state(self) -> dict[str, Any]:
        """The method's state at the first step.

        Raises:
            ValueError: it is damaged.
        """
        return from_text(self.state)

    def recipe(self) -> str:
        """The method in words."""
        if self.method is None:
            return self.description
        return f"{self.method}({', '.join(f'{k}={v!r}' for k, v in sorted(self.options.items()))})"

    def as_json(self) -> bytes:
        return json.dumps(dataclasses.asdict(self), separators=(",", ":")).encode()


def parse(data: bytes, what: str) -> Header:
    """The header that `as_json` wrote.

    Args:
        data: its text.
        what: names it in errors.

    Raises:
        ValueError: it is anything else; lists what is wrong.
    """
    fields = strict_json.parse(data, what)
    wrong = _misfits(fields, _HEADER, "it")
    if not wrong:
        for number, given in enumerate(fields["parameters"]):
            wrong += _misfits(given, _PARAMETER, f"parameter {number}")
            if len(wrong) > 5:
                break
    if not wrong:
        names = [given["name"] for given in fields["parameters"]]
        if len(set(names)) < len(names):
            wrong.append("two parameters have one name")
        if any(given["group"] >= fields["num_groups"] for given in fields["parameters"]):
            wrong.append(f"a parameter's group is none of the {fields['num_groups']}")
    if wrong:
        raise ValueError(f"{what} is damaged: {'; '.join(wrong)}")
    parameters = [LoggedParameter(**given) for given in fields.pop("parameters")]
    return Header(parameters=parameters, **fields)


def _misfits(given: Any, rules: dict[str, Callable[[Any], bool]], who: str) -> list[str]:
    if not isinstance(given, dict):
        return [f"{who} is no object"]
    found = [f"{who} has no {name}" for name in rules.keys() - given.keys()]
    found += [f"{who} has an unknown field {name!r}" for name in given.keys() - rules.keys()]
    return found or [f"{who} has a wrong {name}" for name, is_right in rules.items() if not is_right(given[name])]


def _whole(least: int, most: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and least <= value <= most


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


_HEADER: dict[str, Callable[[Any], bool]] = {
    "version": _is_text,
    "method": lambda value: value is None or isinstance(value, str),
    "options": lambda value: isinstance(value, dict),
    "description": _is_text,
    "seed": _whole(-(2**64), 2**64),
    "step": _whole(0, 2**63),
    "state": _is_text,
    "precision": lambda value: isinstance(value, str) and value in CODES,
    "num_coefficients": _whole(0, 2**32 - 1),
    "num_groups": _whole(0, MOST_GROUPS),
    "parameters": lambda value: isinstance(value, list),
}
_PARAMETER: dict[str, Callable[[Any], bool]] = {
    "name": _is_text,
    "full_names": lambda value: isinstance(value, list) and bool(value) and all(map(_is_text, value)),
    "shape": lambda value: isinstance(value, list) and all(map(_whole(0, 2**63 - 1), value)),
    "dtype": _is_text,
    "group": _whole(-1, MOST_GROUPS),
    "checksum": lambda value: value is None or _whole(0, 2**32 - 1)(value),
}
