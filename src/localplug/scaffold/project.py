"""What is to be written: a name, a kind, a folder; checked all at once, before anything exists."""

import builtins
import dataclasses
import importlib.metadata
import json
import keyword
import os
import pathlib
import re
from typing import NamedTuple, final

from localplug import index, plugins
from localplug.printable import printable


class Kind(NamedTuple):
    """What a plugin can be."""

    hook: str
    """Which of localplug's questions it answers, without "localplug_"."""
    what: str
    """With its article, in a sentence."""
    example: str
    """The algorithm that is written, to be replaced."""


KINDS = {
    "update-rule": Kind("update_rules", "an update rule", "heavy-ball momentum"),
    "target": Kind("target_generators", "a generator of local targets", "random projections of the label"),
    "local-loss": Kind("local_losses", "a local loss", "Huber's"),
    "method": Kind("methods", "a method that trains the whole model by evaluations", "SPSA"),
    "local-method": Kind("methods", "a layer-local method", "a linear head for each unit"),
    "quantizer": Kind("quantizers", "a ternary quantizer", "ternary weight networks"),
}

_NAME = re.compile(
    r"[a-z][a-z0-9]*(-[a-z0-9]+)*"
)  # PEP 503's normal form, with a letter first: it becomes an identifier
_AUTHOR = re.compile(r"(?P<name>[^<>@]*[^<>@\s])(?:\s*<(?P<email>[^<>@\s]+@[^<>@\s]+)>)?")
_IMPORTED = {"Any", "Iterable", "Sequence", "annotations", "localplug", "pytest", "torch"}  # by the templates
LONGEST = 40


@final
@dataclasses.dataclass(frozen=True)
class Project:
    """A distribution that does not exist yet.

    Args:
        name: what a user will type, in lower-case letters, digits and single dashes, at most 40 of them.
        kind: one of KINDS.
        out: the folder to write, new or empty; by default `localplug-NAME` in the present one.
        author: "Name" or "Name <e-mail>", for pyproject.toml.

    Raises:
        ValueError: lists everything that is wrong with them.

    Example:
        >>> from localplug.scaffold.project import Project
        >>> project = Project("my-rule", "update-rule")
        >>> project.distribution, project.module, project.class_name
        ('localplug-my-rule', 'localplug_my_rule', 'MyRule')
    """

    name: str
    kind: str
    out: str | os.PathLike[str] | None = None
    author: str | None = None

    def __post_init__(self) -> None:
        wrong = _problems_of_name(self.name)
        if self.kind not in KINDS:
            wrong.append(f"the kind must be one of {', '.join(KINDS)}, got {_told(self.kind)}")
        if self.author is not None and not (_AUTHOR.fullmatch(self.author) and self.author.isprintable()):
            wrong.append(f'the author must be "Name" or "Name <e-mail>", got {_told(self.author)}')
        if not wrong or self.out is not None:  # the default folder is made of the name
            wrong += _problems_of_folder(self.folder)
        if wrong:
            raise ValueError("nothing was written: " + "; ".join(wrong))

    @property
    def distribution(self) -> str:
        """What pip calls it."""
        return f"localplug-{self.name}"

    @property
    def module(self) -> str:
        """What Python imports."""
        return f"localplug_{self.function}"

    @property
    def function(self) -> str:
        """The name as an identifier."""
        return self.name.replace("-", "_")

    @property
    def class_name(self) -> str:
        """The name as a class's."""
        return _class_name(self.name)

    @property
    def folder(self) -> pathlib.Path:
        """Where it is written."""
        return pathlib.Path(self.distribution if self.out is None else self.out)

    @property
    def values(self) -> dict[str, str]:
        """What stands in the templates' places."""
        kind = KINDS[self.kind]
        return {
            "name": self.name,
            "distribution": self.distribution,
            "module": self.module,
            "class_name": self.class_name,
            "function": self.function,
            "hook": kind.hook,
            "what": kind.what,
            "example": kind.example,
            "range": _range(importlib.metadata.version("localplug")),
            "authors": _authors(self.author),
        }


def _problems_of_name(name: str) -> list[str]:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        rule = "lower-case letters, digits and single dashes, a letter first"
        return [f"the name must consist of {rule}, such as my-rule; got {_told(name)}"]
    wrong = []
    if name == "localplug" or name.startswith("localplug-"):
        wrong.append(f"the name {name!r} is without the prefix: localplug- is put before it")
    if name.startswith("test"):
        wrong.append(f"the name {name!r} begins with test: pytest would take it for one; choose another")
    if len(name) > LONGEST:
        wrong.append(f"the name must have at most {LONGEST} characters, {name!r} has {len(name)}")
    reserved = {*keyword.kwlist, *dir(builtins), *_IMPORTED}
    if taken := sorted({name.replace("-", "_"), _class_name(name)} & reserved):
        wrong.append(f"the name {name!r} would become {' and '.join(taken)} in Python, which is taken; choose another")
    return wrong + _clashes(name)


def _clashes(name: str) -> list[str]:
    """Who has the name already: by the index, and by what is installed, of which nothing is imported."""
    distribution = index.normalized(f"localplug-{name}")
    for entry in index.read():
        if name == entry.name or any(name in given for given in entry.gives.values()):
            return [f"the name {name!r} is taken by {entry.distribution}; choose another"]
        if distribution == index.normalized(entry.distribution):
            return [f"the distribution {distribution} exists; choose another name"]
    for plugin in plugins.found():
        if name == plugin.name or distribution == index.normalized(plugin.distribution):
            return [f"the name {name!r} is taken by the installed plugin {plugin.label}; choose another"]
    return []


def _problems_of_folder(folder: pathlib.Path) -> list[str]:
    shown = _told(str(folder))
    if folder.is_symlink():
        return [f"{shown} is a link; say what it points to"]
    if folder.is_dir() and folder.samefile(os.curdir):
        return [f"{shown} is the folder that you are in; run it from above, or leave the folder out"]
    if folder.is_dir():
        return [f"the folder {shown} is not empty; nothing is ever overwritten"] if any(folder.iterdir()) else []
    if folder.exists():
        return [f"{shown} is a file; nothing is ever overwritten"]
    if not folder.absolute().parent.is_dir():
        return [f"the folder {_told(str(folder.parent))} does not exist; make it first"]
    return []


def _told(value: object) -> str:
    return repr(printable(value)) if isinstance(value, str) else repr(value)


def _class_name(name: str) -> str:
    return "".join(part[:1].upper() + part[1:] for part in name.split("-"))


def _range(version: str) -> str:
    """The versions of localplug that a plugin made for this one works with: up to the next that may break it."""
    major, minor = (int(part) for part in version.split(".")[:2])
    return f">={major}.{minor},<{f'0.{minor + 1}' if major == 0 else major + 1}"


def _authors(author: str | None) -> str:
    """The line of pyproject.toml. A JSON string of printable characters is a TOML string too."""
    if author is None:
        return '# authors = [{ name = "...", email = "..." }]'
    found = _AUTHOR.fullmatch(author)
    assert found is not None
    fields = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in found.groupdict().items() if value]
    return f"authors = [{{ {', '.join(fields)} }}]"
