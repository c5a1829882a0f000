"""A page for each hook: what is asked, when, what is answered, an example, and every installed plugin that answers."""

import inspect
import re
from typing import Any

import localplug
from generate import algorithms, docstrings, signatures
from generate.repository import members
from localplug import hookspecs, plugins

CALLS = {  # how an answer is used; the rest is used by a command or as an option
    "methods": "localplug.method",
    "estimators": "localplug.estimator",
    "perturbations": "localplug.distribution",
    "selectors": "localplug.selector",
    "target_generators": "localplug.target_generator",
    "solvers": "localplug.solver",
    "quantizers": "localplug.quantizer",
    "tasks": "localplug.task",
}


def page_name(kind: str) -> str:
    return f"hooks/{kind.replace('_', '-')}.md"


def pages() -> dict[str, str]:
    return {"hooks/index.md": index(), **{page_name(kind): page(kind) for kind in plugins.KINDS}}


def nav() -> list[Any]:
    return ["hooks/index.md", *({kind.replace("_", " "): page_name(kind)} for kind in plugins.KINDS)]


def index() -> str:
    rows = "\n".join(
        f"| [`localplug_{kind}`](/docs/{page_name(kind)}) | {docstrings.escaped(docstrings.sentence(_doc(kind)))} "
        f"| {len(_given(kind))} |"
        for kind in plugins.KINDS
    )
    return (
        "# Hooks\n\n"
        "The questions that localplug asks a plugin. Each is asked once, at the first need; no hook is called inside a step. "
        'An answer is a dictionary `{name: value}`, and a value a class, a factory, or the string `"module:attribute"`, which '
        "is imported when the name is used. A name that two distributions give is refused when it is asked for.\n\n"
        "A plugin is a distribution with an entry point of the group `localplug`: "
        "[publish an algorithm in one file](/docs/publishing.md).\n\n"
        f"| hook | a plugin gives | names in-tree |\n| --- | --- | --- |\n{rows}\n"
    )


def _doc(kind: str) -> str:
    return inspect.getdoc(getattr(hookspecs, f"localplug_{kind}")) or ""


def _given(kind: str) -> dict[str, str]:
    """{name: distribution} of the in-tree plugins."""
    names = plugins.names(kind)
    return {n: p[0].distribution for n, p in names.items() if p[0].distribution in members()}


def page(kind: str) -> str:
    hook = getattr(hookspecs, f"localplug_{kind}")
    doc = docstrings.parse(_doc(kind))
    asked = re.split(r"\s*Used by ", doc.text)[0]
    returns = docstrings.prose(asked.split("\n\n", 1)[1] if "\n\n" in asked else "")
    returns = re.sub(r"(?m)(?<!^)(?=Asked )", "\n\n", returns, count=1)
    shown = [
        f"# localplug_{kind}",
        f"```python\n{signatures.laid_out(f'def {hook.__name__}(', _arguments(hook), '): ...')}\n```",
        docstrings.prose(docstrings.sentence(asked)),
        returns,
        "**Example**",
        f"```python\n{doc.sections['Example'].strip()}\n```",
        "## Who answers",
        _givers(kind),
    ]
    parts = [_part(name, kind) for name in _given(kind)] if kind not in (*algorithms.KINDS, "commands") else []
    return "\n\n".join([*shown, *parts]) + "\n"


def _arguments(hook: Any) -> list[str]:
    return [str(p) for p in inspect.signature(hook).parameters.values()]


def _givers(kind: str) -> str:
    by_distribution: dict[str, list[str]] = {}
    for name, dist in _given(kind).items():
        by_distribution.setdefault(dist, []).append(_mention(name, kind))
    rows = "\n".join(f"| `{dist}` | {', '.join(names)} |" for dist, names in by_distribution.items())
    return f"| distribution | names |\n| --- | --- |\n{rows}"


def _mention(name: str, kind: str) -> str:
    if kind in algorithms.KINDS:
        return f"[`{name}`](/docs/{algorithms.page_name(name)})"
    if kind == "commands":
        return f"[`{name}`](/docs/command-line.md#localplug-{name})"
    return f"[`{name}`](#{anchor(name)})"


def anchor(name: str) -> str:
    return f"name-{name}"


def _part(name: str, kind: str) -> str:
    value = localplug.get(name, kind)
    return "\n\n".join(
        part
        for part in (
            f"### {name} {{#{anchor(name)}}}",
            f"```python\n{_use(name, kind, value)}\n```",
            docstrings.prose(docstrings.of(value).text),
            algorithms.options(value) if _takes_options(kind, value) else "",
            docstrings.sections(docstrings.of(value), without=("Args",)),
            f"From {algorithms.source_link(value)} of `{_given(kind)[name]}`.",
        )
        if part
    )


def _takes_options(kind: str, value: Any) -> bool:
    return bool(signatures.parameters(value)) and kind not in ("objectives", "local_losses")


def _use(name: str, kind: str, value: Any) -> str:
    """How it is used by its name, with its options at their defaults."""
    if kind == "update_rules":
        if inspect.isclass(value) and issubclass(value, localplug.Update):
            return signatures.call("localplug.update", value, f'"{name}"')
        parts = [f"{p.name}={signatures.default(p.default)}" for p in signatures.parameters(value)[1:]]
        return signatures.laid_out(f'localplug.update_rule("{name}")(', ["model.parameters()", *parts], ")")
    if kind in CALLS:
        return signatures.call(CALLS[kind], value, f'"{name}"')
    if kind == "local_losses":
        return f'localplug.method("tpsgd", loss="{name}")'
    return f'LocalPlugCallback("mezo", objective="{name}")'
