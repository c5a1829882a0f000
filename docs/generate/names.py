"""The public names of the host and of its members, a page for each module: signatures, docstrings, methods, attributes."""

import ast
import functools
import importlib
import inspect
import itertools
import textwrap
from types import ModuleType
from typing import Any

from generate import docstrings, signatures

PACKAGES = (
    "localplug",
    "localplug_transformers",
    "localplug_lightning",
    "localplug_ternary",
    "localplug_select",
    "localplug_credit",
    "localplug_experts",
    "localplug_blackbox",
)


@functools.cache
def homes(package: str) -> dict[str, list[str]]:
    """{module, without the package: its public names}, in alphabetical order."""
    found: dict[str, list[str]] = {}
    for name in importlib.import_module(package).__all__:
        found.setdefault(_home(package, name), []).append(name)
    return {home: sorted(found[home], key=str.lower) for home in sorted(found)}


def _home(package: str, name: str) -> str:
    known = getattr(importlib.import_module(package), "_HOME", {})
    if name in known:
        return str(known[name])
    if package == "localplug":
        return "hookspecs"  # hookimpl, imported at once
    module: str = getattr(importlib.import_module(package), name).__module__
    return module.split(".", 1)[1] if "." in module else "strategy"


def page_name(package: str, home: str) -> str:
    return f"api/{package}/{home}.md"


def pages() -> dict[str, str]:
    found = {"api/index.md": index()}
    for package in PACKAGES:
        for home, names in homes(package).items():
            found[page_name(package, home)] = page(package, home, names)
    return found


def nav() -> list[Any]:
    return [
        "api/index.md",
        *({package: [{home: page_name(package, home)} for home in homes(package)]} for package in PACKAGES),
    ]


def index() -> str:
    shown = [
        "# Public names",
        "What is written here is public; all else may change between versions. `import localplug` imports neither torch nor a "
        "plugin: a name is imported when it is first used.",
    ]
    for package in PACKAGES:
        rows = []
        for home, names in homes(package).items():
            for name in names:
                value = getattr(importlib.import_module(package), name)
                what = docstrings.sentence(docstrings.parse(_doc(package, home, name, value)).text)
                place = page_name(package, home) + ("" if name == home else f"#{package}.{name}")
                rows.append((name.lower(), f"| [`{name}`](/docs/{place}) | {docstrings.escaped(what)} |"))
        table = "\n".join(row for _, row in sorted(rows))
        shown += [f"## {package}", f"| name | what it is |\n| --- | --- |\n{table}"]
    return "\n\n".join(shown) + "\n"


def _module(package: str, home: str) -> ModuleType:
    return importlib.import_module(f"{package}.{home}")


def page(package: str, home: str, names: list[str]) -> str:
    module = _module(package, home)
    shown = [f"# {package}.{home}", docstrings.prose(inspect.getdoc(module) or "")]
    if names == [home]:  # the module itself is the name
        names = [n for n, v in vars(module).items() if not n.startswith("_") and _is_own(v, module)]
        return "\n\n".join([*shown, *(_entry(f"{package}.{home}", home, n, getattr(module, n)) for n in names)]) + "\n"
    entries = [_entry(package, home, n, getattr(importlib.import_module(package), n)) for n in names]
    return "\n\n".join([*shown, *entries]) + "\n"


def _is_own(value: Any, module: ModuleType) -> bool:
    return (inspect.isfunction(value) or inspect.isclass(value)) and value.__module__ == module.__name__


def _entry(package: str, home: str, name: str, value: Any) -> str:
    shown = [f"## {name} {{#{package}.{name}}}"]
    doc = _doc(package, home, name, value)
    if inspect.isclass(value) or inspect.isfunction(value):
        shown.append(f"```python\n{signatures.written(name, value)}\n```")
    elif _assignment(package, home, name):
        shown.append(f"```python\n{_assignment(package, home, name)}\n```")
    parsed = docstrings.parse(doc)
    shown += [docstrings.prose(parsed.text), docstrings.sections(parsed)]
    if inspect.isclass(value):
        shown += [_attributes(value), *(_method(package, name, n, member) for n, member in members(value))]
    return "\n\n".join(part for part in shown if part)


def members(value: Any) -> list[tuple[str, Any]]:
    """Public methods and properties that a class itself defines, as their functions."""
    found = []
    for name, member in vars(value).items():
        if isinstance(member, property):
            member = member.fget  # noqa: PLW2901
        elif isinstance(member, staticmethod | classmethod):
            member = member.__func__  # noqa: PLW2901
        if inspect.isfunction(member) and not name.startswith("_") and inspect.getdoc(getattr(value, name)):
            found.append((name, member))
    return found


def _method(package: str, owner: str, name: str, function: Any) -> str:
    value = getattr(importlib.import_module(package), owner)
    is_property = isinstance(inspect.getattr_static(value, name), property)
    said = signatures.annotations(function).get("return", "Any")
    code = f"{name}: {said}" if is_property else signatures.written(name, function, method=True)
    doc = docstrings.parse(inspect.getdoc(getattr(value, name)) or "")
    shown = [
        f"### {owner}.{name} {{#{package}.{owner}.{name}}}",
        f"```python\n{code}\n```",
        docstrings.prose(doc.text),
        docstrings.sections(doc),
    ]
    return "\n\n".join(part for part in shown if part)


def _attributes(value: Any) -> str:
    """Annotated attributes of a class body, with the string below each."""
    try:
        body = ast.parse(textwrap.dedent(inspect.getsource(value))).body[0].body  # type: ignore[attr-defined]
    except OSError:  # a class that a function made
        return ""
    heads, told = {}, {}
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and not node.target.id.startswith("_"):
            name = node.target.id
            known = f" = `{ast.unparse(node.value)}`" if node.value else ""
            heads[name] = f"`{name}` : `{ast.unparse(node.annotation)}`{known}"
            told[name] = _string(after)
    above = docstrings.of(value)
    elsewhere = above.entries("Attributes") | docstrings.entries(above.text)
    told = {name: text for name, text in told.items() if text or name not in elsewhere}
    if not told:
        return ""
    return "**Attributes**\n\n" + docstrings.definitions({n: t or "\u2013" for n, t in told.items()}, heads)


def _doc(package: str, home: str, name: str, value: Any) -> str:
    if inspect.ismodule(value) or inspect.isclass(value) or inspect.isfunction(value):
        return inspect.getdoc(value) or ""
    return _alias_docs(package, home).get(name) or inspect.getdoc(value) or ""


@functools.cache
def _alias_docs(package: str, home: str) -> dict[str, str]:
    """{name: the string after its assignment}: a type alias has no docstring of its own."""
    body = ast.parse(inspect.getsource(_module(package, home))).body
    return {
        before.targets[0].id: _string(after)
        for before, after in itertools.pairwise(body)
        if isinstance(before, ast.Assign) and isinstance(before.targets[0], ast.Name)
    }


def _string(node: ast.stmt | None) -> str:
    """What a statement says that is nothing but a string; else nothing."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
        return inspect.cleandoc(node.value.value)
    return ""


def _assignment(package: str, home: str, name: str) -> str:
    for node in ast.parse(inspect.getsource(_module(package, home))).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == name:
            return ast.unparse(node).replace("'", '"')
    return ""


def num_names() -> int:
    """How many public names there are in all."""
    return sum(len(names) for package in PACKAGES for names in homes(package).values())
