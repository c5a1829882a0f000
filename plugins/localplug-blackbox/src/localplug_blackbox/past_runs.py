"""A table of past runs: which columns were options, and what each run reached.

Files are CSV with a head, or JSON lines; a key inside another is written with a dot, as in options.lr.
"""

import csv
import dataclasses
import json
import math
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor

from localplug_blackbox.box import Box

_SPEC = re.compile(r"(?P<name>[^=:]+)(?:=(?P<low>[^:]+?)\.\.(?P<high>[^:]+))?(?P<marks>(?::\w+)*)")


@final
@dataclasses.dataclass(frozen=True)
class Column:
    """An option of the runs, a number.

    Args:
        name: of the column.
        low: of its range; None for the lowest in the table.
        high: of its range; None for the highest in the table.
        log: whether it is searched by its logarithm.
        whole: whether it is a whole number.
    """

    name: str
    low: float | None = None
    high: float | None = None
    log: bool = False
    whole: bool = False

    @classmethod
    def parsed(cls, text: str) -> "Column":
        """Of NAME, NAME=LOW..HIGH, and :log or :int behind either.

        Raises:
            ValueError: it is not of that form; says everything that is wrong.

        Example:
            >>> Column.parsed("lr=1e-5..1e-2:log")
            Column(name='lr', low=1e-05, high=0.01, log=True, whole=False)
        """
        form = _SPEC.fullmatch(text)
        if form is None:
            raise ValueError(f"a column is NAME, NAME=LOW..HIGH, NAME:log or NAME:int, got {text!r}")
        marks = form["marks"].split(":")[1:]
        wrong = [f"{mark!r} of {text!r} is neither log nor int" for mark in marks if mark not in ("log", "int")]
        low = high = None
        if form["low"] is not None:
            try:
                low, high = float(form["low"]), float(form["high"])
            except ValueError:
                wrong.append(f"the range of {text!r} must be two numbers")
            else:
                if not (math.isfinite(low) and math.isfinite(high) and low < high):
                    wrong.append(f"the range of {text!r} must go from a number up to a greater one")
                if "log" in marks and not low > 0:
                    wrong.append(f"the range of {text!r} must be above 0 for a logarithm")
        if wrong:
            raise ValueError("; ".join(wrong))
        return cls(form["name"].strip(), low, high, "log" in marks, "int" in marks)

    def inner(self, value: float) -> float:
        """The number that is searched; nan for one that has no logarithm."""
        if not self.log:
            return value
        return math.log(value) if value > 0 else math.nan

    def outer(self, value: float) -> float | int:
        """The option of a searched number, inside its range."""
        found = math.exp(value) if self.log else value
        if self.low is not None and self.high is not None:
            found = min(max(found, self.low), self.high)
        return round(found) if self.whole else found


@final
@dataclasses.dataclass(frozen=True)
class PastRuns:
    """What a table says.

    Args:
        box: of the searched numbers.
        points: (N, D), a row for each run that has all columns, float64.
        values: (N,), what they reached, smaller is better; may be nan.
        num_skipped: rows without a number in some column, or outside a range.
    """

    box: Box
    points: Tensor
    values: Tensor
    num_skipped: int


def read(path: pathlib.Path, columns: Sequence[Column], value: str, *, maximize: bool = False) -> PastRuns:
    """The runs of a CSV file (.csv) or of JSON lines (any other name).

    Args:
        path: of the file.
        columns: the options, at least one.
        value: the column of what a run reached.
        maximize: whether more is better; values are negated then.

    Raises:
        ValueError: it is no such file, no row has all columns, or columns without a range have one value only; lists those.
    """
    rows, num_skipped = [], 0
    for row in _rows(path):
        numbers = [c.inner(_number(row, c.name)) for c in columns]
        inside = all(
            c.low is None or c.high is None or c.inner(c.low) <= n <= c.inner(c.high)
            for c, n in zip(columns, numbers, strict=True)
        )
        if not inside or not all(map(math.isfinite, numbers)) or _at(row, value) is None:
            num_skipped += 1
            continue
        reached = _number(row, value)
        rows.append((numbers, -reached if maximize else reached))
    if not rows:
        names = ", ".join([c.name for c in columns] + [value])
        raise ValueError(
            f"no row of {path} has a number inside its range in each of {names}; {num_skipped} were looked at"
        )
    X_ND = torch.tensor([numbers for numbers, _ in rows], dtype=torch.float64)
    lower, upper, wrong = [], [], []
    for place, column in enumerate(columns):
        seen_N = X_ND[:, place]
        lower.append(float(seen_N.min()) if column.low is None else column.inner(column.low))
        upper.append(float(seen_N.max()) if column.high is None else column.inner(column.high))
        if not lower[-1] < upper[-1]:
            wrong.append(f"column {column.name} has one value only; give its range, as in {column.name}=LOW..HIGH")
    if wrong:
        raise ValueError("; ".join(wrong))
    return PastRuns(Box(lower, upper), X_ND, torch.tensor([y for _, y in rows], dtype=torch.float64), num_skipped)


def _rows(path: pathlib.Path) -> Iterator[Mapping[str, Any]]:
    """Rows as {column: what stands there}; a line that is no row of the table is an empty one."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if path.suffix.lower() == ".csv":
        try:
            yield from csv.DictReader(text.splitlines())
        except csv.Error as error:
            raise ValueError(f"{path} is no CSV file: {error}") from error
        return
    for line in text.splitlines():
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = {}
        yield row if isinstance(row, dict) else {}


def _at(row: Mapping[str, Any], name: str) -> Any:
    """What stands in a column; a.b is b inside of a, where no column has that whole name."""
    if name in row:
        return row[name]
    found: Any = row
    for part in name.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def _number(row: Mapping[str, Any], name: str) -> float:
    found = _at(row, name)
    if isinstance(found, bool) or not isinstance(found, int | float | str):
        return math.nan
    try:
        return float(found)
    except (ValueError, OverflowError):
        return math.nan
