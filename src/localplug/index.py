"""The plugin index, index.toml beside this file: what there is to install. Read only when somebody asks."""

import dataclasses
import functools
import os
import pathlib
import re
import sys
from typing import Any, final

from localplug import hookspecs
from localplug.printable import printable

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILE = pathlib.Path(__file__).with_name("index.toml")
_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")
_GIVEN = re.compile(r"[a-z0-9][a-z0-9.-]*")
_DISTRIBUTION = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_RANGE = re.compile(r"(>=|<|!=|~=)[0-9.]+(,(>=|<|!=|~=)[0-9.]+)*")
_LICENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+ ()-]*")
_HOMEPAGE = re.compile(r"https://[A-Za-z0-9./_~%#?=&+-]+")
_FIELDS = {"name", "distribution", "summary", "licence", "requires", "homepage", "gives"}
_KINDS = {name.removeprefix("localplug_") for name in vars(hookspecs) if name.startswith("localplug_")}


@final
@dataclasses.dataclass(frozen=True)
class Entry:
    """One distribution of the index."""

    name: str
    """Of its entry point."""
    distribution: str
    """What pip installs."""
    summary: str
    licence: str
    """An SPDX identifier."""
    requires: str
    """Versions of localplug, such as ">=0.1,<0.2"."""
    homepage: str | None
    gives: dict[str, list[str]]
    """{kind: names}."""

    @property
    def kinds(self) -> list[str]:
        return list(self.gives)

    def as_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "kinds": self.kinds}


def read(path: str | os.PathLike[str] = FILE) -> list[Entry]:
    """The entries of an index, in the order of the file.

    Args:
        path: by default the index that came with localplug.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no TOML, or an entry breaks a rule that the file's head lists; lists every reason.

    Example:
        >>> from localplug import index
        >>> next(entry.distribution for entry in index.read() if "mezo" in entry.gives.get("methods", []))
        'localplug-zo'
    """
    try:
        content = tomllib.loads(pathlib.Path(path).read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is no TOML: {error or 'nested too deeply'}") from error
    rows = content.get("plugin")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows) or len(content) > 1:
        raise ValueError(f"{path} must consist of [[plugin]] tables")
    wrong = [problem for number, row in enumerate(rows, 1) for problem in _problems(row, number)]
    wrong = wrong or _clashes(rows)
    if wrong:
        raise ValueError(f"{path} is no index of plugins:\n" + "\n".join(f"  - {reason}" for reason in wrong))
    return [Entry(**{"homepage": None, **row}) for row in rows]


@functools.cache
def distributions() -> dict[str, str]:
    """{name of whatever kind: the distribution that gives it}."""
    return {name: entry.distribution for entry in read() for names in entry.gives.values() for name in names}


def commands() -> dict[str, str]:
    """{name of a command: the distribution that gives it}."""
    return {name: entry.distribution for entry in read() for name in entry.gives.get("commands", [])}


def normalized(distribution: str) -> str:
    """A distribution's name as pip compares it."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def _problems(row: dict[str, Any], number: int) -> list[str]:
    name = row.get("name")
    who = f"entry {number} ({printable(name)})" if isinstance(name, str) else f"entry {number}"
    wrong = [f"{who} has an unknown field {printable(field)!r}" for field in sorted(row.keys() - _FIELDS)]
    for field, rule, words in (
        ("name", _NAME, "lower-case letters, digits and dashes"),
        ("distribution", _DISTRIBUTION, "a name as pip knows it"),
        ("licence", _LICENCE, "an SPDX identifier such as Apache-2.0"),
        ("requires", _RANGE, 'a range of versions of localplug such as ">=0.1,<0.2"'),
        ("homepage", _HOMEPAGE, "an https:// address"),
    ):
        value = row.get(field)
        if value is None and field == "homepage":
            continue
        if not isinstance(value, str) or not rule.fullmatch(value):
            wrong.append(f"{who}: {field} must be {words}, got {value!r}")
    summary = row.get("summary")
    if not isinstance(summary, str) or not summary.strip() or len(summary) > 120 or not summary.isprintable():
        wrong.append(f"{who}: summary must be one line of 1 to 120 characters, got {summary!r}")
    gives = row.get("gives")
    if not isinstance(gives, dict) or not gives:
        wrong.append(f"{who}: gives must be a table of kinds and the names of each, got {gives!r}")
    for kind, names in gives.items() if isinstance(gives, dict) else ():
        if kind not in _KINDS:
            wrong.append(f"{who}: gives has no kind {printable(kind)!r}; there are {', '.join(sorted(_KINDS))}")
        elif not isinstance(names, list) or not names:
            wrong.append(f"{who}: gives.{kind} must be a list of names, got {names!r}")
        else:
            bad = [name for name in names if not isinstance(name, str) or not _GIVEN.fullmatch(name)]
            wrong += [
                f"{who}: gives.{kind} has {name!r}, and a name is letters, digits, dots and dashes" for name in bad
            ]
    return wrong


def _clashes(rows: list[dict[str, Any]]) -> list[str]:
    """What two entries both claim."""
    owners: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        claims = [("name", row["name"]), ("distribution", normalized(row["distribution"]))]
        claims += [(kind, name) for kind, names in row["gives"].items() for name in names]
        for claim in claims:
            owners.setdefault(claim, []).append(row["name"])
    return [
        f"{what} {value!r} is claimed by {' and by '.join(names)}"
        for (what, value), names in owners.items()
        if len(names) > 1
    ]
