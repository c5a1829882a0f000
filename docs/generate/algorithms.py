"""A page for each algorithm: how it is called, what it computes, what it costs, its options, and what it reached."""

import functools
import importlib
import inspect
import pathlib
import re
import textwrap
from typing import Any

import localplug
from generate import docstrings, readme, results, signatures
from generate.repository import ROOT
from localplug import plugins

KINDS = {"methods": "localplug.method", "solvers": "localplug.solver", "quantizers": "localplug.quantizer"}
FAMILIES = {
    "localplug-zo": "Zeroth order",
    "localplug-tpsgd": "Projected targets and feedback",
    "localplug-forward": "The Forward-Forward family",
    "localplug-greedy": "Heads of their own",
    "localplug-noprop": "NoProp",
    "localplug-graph": "Graphs",
    "localplug-convex": "Convex solvers",
    "localplug-credit": "Relevance",
    "localplug-select": "What to train",
    "localplug-exact": "Rules or tables",
    "localplug-experts": "Codebooks",
    "localplug-blackbox": "Black boxes",
    "localplug-ternary": "Ternary models",
}
BELOW = {
    "Raises": "errors",
    "Example": "example",
    "Reference": "source",
    "Attributes": "attributes",
    "Returns": "result",
}
_SHARED = re.compile(r"see the head of this file\.?|as in localplug\.LocalMethod\.?")
_SEE = re.compile(r"see (localplug_\w+\.\w+)")


def algorithms(kind: str) -> dict[str, Any]:
    """{name: class or factory} of what installed in-tree plugins give, in their order."""
    return {
        n: localplug.get(n, kind) for n in plugins.names(kind) if plugins.names(kind)[n][0].distribution in FAMILIES
    }


def distribution(name: str, kind: str) -> str:
    return plugins.names(kind)[name][0].distribution


def page_name(name: str) -> str:
    return f"algorithms/{name}.md"


def pages() -> dict[str, str]:
    """{page: Markdown}, the index among them."""
    found = {page_name(n): page(n, kind, value) for kind in KINDS for n, value in algorithms(kind).items()}
    return {"algorithms/index.md": index(), **found}


def nav() -> list[Any]:
    """The navigation's entries, by family."""
    families: dict[str, list[Any]] = {}
    for kind in KINDS:
        for name in algorithms(kind):
            families.setdefault(FAMILIES[distribution(name, kind)], []).append({name: page_name(name)})
    return ["algorithms/index.md", *({family: families[family]} for family in FAMILIES.values() if family in families)]


def index() -> str:
    """All of them in tables, by family."""
    shown = [
        "# Algorithms",
        "Every algorithm that the distributions of this repository give. Each page is made from its docstring and from the "
        "files of results. [How to choose one](/docs/choosing.md).",
    ]
    for dist, family in FAMILIES.items():
        lines = []
        for kind in KINDS:
            for name, value in algorithms(kind).items():
                if distribution(name, kind) == dist:
                    what = _without_title(docstrings.sentence(docstrings.of(value).text))
                    cost = passes(value) if kind == "methods" else ""
                    lines.append(f"| [`{name}`](/docs/{page_name(name)}) | {docstrings.escaped(what)} | {cost} |")
        if lines:
            head = "| name | what it does | passes a batch |\n| --- | --- | --- |"
            shown += [f"## {family}", f"`pip install {dist}`", "\n".join([head, *lines])]
    return "\n\n".join(shown) + "\n"


def _without_title(text: str) -> str:
    return re.split(r" \((?=[A-Z][\w-]+,|arXiv)", text)[0].rstrip(".")


def passes(factory: Any) -> str:
    """Forward passes of an estimate at the default options, in the method's own words."""
    return re.sub(r",? a batch", "", factory().cost)


def page(name: str, kind: str, value: Any) -> str:
    doc = docstrings.of(value)
    shown = [
        f"# {name}",
        docstrings.prose(doc.text),
        f"```python\n{signatures.call(KINDS[kind], value, _quoted(name))}\n```",
    ]
    if kind == "methods":
        shown.append(
            f'Under a trainer: `LocalPlugCallback("{name}")`, `strategy="localplug_{name}"`, '
            f'`localplug.attach(model, "{name}", optimizer)`.'
        )
    elif kind == "quantizers":
        shown.append(f'In `localplug-ternary`: `TernaryConfig("{name}")`. [Ternary models](/docs/ternary.md).')
    shown += ["## At a glance", _facts(name, kind, value), "## Measured", _measured(results.of(name), kind)]
    if signatures.parameters(value):
        shown += ["## Options", options(value, doc)]
    equations = _equations(value, doc)
    if equations:
        shown += ["## Equations", equations]
    rest = docstrings.sections(doc, without=("Args",))
    if rest:
        shown += [f"## {_listed([BELOW[part] for part in doc.sections if part in BELOW])}", rest]
    return "\n\n".join(shown) + "\n"


def _listed(words: list[str]) -> str:
    text = " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
    return text[0].upper() + text[1:]


def _quoted(name: str) -> str:
    return f'"{name}"'


def _facts(name: str, kind: str, value: Any) -> str:
    facts: dict[str, str] = {}
    if kind == "methods":
        made = value()
        facts["passes"] = f"{made.cost}, at the default options"
        facts["backward pass"] = made.backpropagates or "none through the model"
        facts["says at the start"] = docstrings.escaped(made.describe())
    for column, cell in readme.rows().get(name, {}).items():
        if cell and column not in ("source", "passes a step"):
            facts[column] = cell.replace("](", "](/") if "](http" not in cell else cell
    facts |= results.facts(name)
    facts["distribution"] = f"`{distribution(name, kind)}`"
    facts["source"] = source_link(value)
    return "\n".join(["| | |", "| --- | --- |", *(f"| {key} | {text} |" for key, text in facts.items() if text)])


def source_link(value: Any) -> str:
    """A link to the file that a class or function is written in, or the class of an instance."""
    if not (inspect.isclass(value) or inspect.isroutine(value)):
        value = type(value)
    path = pathlib.Path(inspect.getsourcefile(inspect.unwrap(value)) or "").resolve().relative_to(ROOT).as_posix()
    return f"[{path.rsplit('/', 1)[-1]}](/{path})"


def options(value: Any, doc: docstrings.Docstring | None = None) -> str:
    """Every option with its type, its default and what it is."""
    said, told = signatures.annotations(value), described(value, doc)
    heads = {}
    for p in signatures.parameters(value):
        note = f" : `{said[p.name]}`" if p.name in said else ""
        known = "" if p.default is p.empty else f" = `{signatures.default(p.default)}`"
        heads[p.name] = f"`{p.name}`{note}{known}"
    return docstrings.definitions({name: told.get(name, "") for name in heads}, heads)


def described(value: Any, doc: docstrings.Docstring | None = None) -> dict[str, str]:
    """{option: what its docstring says}; what it leaves to the head of its file or to LocalMethod is fetched from there."""
    found = (doc or docstrings.of(value)).options()
    for base in value.__mro__[1:-1] if inspect.isclass(value) else ():
        found = docstrings.of(base).options() | found
    for name, text in found.items():
        if _SHARED.fullmatch(text.strip()):
            above = _head(value) | docstrings.of(localplug.LocalMethod).options()
            found[name] = above.get(name, "")
    return found


@functools.cache
def _head_of(module: str) -> dict[str, str]:
    lines = (inspect.getdoc(importlib.import_module(module)) or "").splitlines()
    found = {}
    for line in lines:
        entry = re.fullmatch(r"    (\w+)\s{2,}(.*)", line) or re.fullmatch(r"    (\w+) (.*)", line)
        if entry:
            found[entry[1]] = entry[2]
    return found


def _head(value: Any) -> dict[str, str]:
    return _head_of(value.__module__)


def _equations(value: Any, doc: docstrings.Docstring) -> str:
    """The docstring of the module where the paper's equations stand: that of a class, or the one a recipe points to."""
    see = _SEE.search(doc.text)
    module = see[1] if see else value.__module__ if inspect.isclass(value) else ""
    text = inspect.getdoc(importlib.import_module(module)) if module else ""
    return docstrings.prose(textwrap.dedent(text)) if text else ""


def _measured(rows: list[results.Row], kind: str) -> str:
    if not rows:
        where = "[the benchmarks](/docs/benchmarks.md)"
        return (
            f"No result of its own is recorded in {where}; its tests pin it to its equations."
            if (kind != "quantizers")
            else f"See [ternary models](/docs/ternary.md) and {where}."
        )
    return f"{table(rows)}\n\n{LEGEND}"


LEGEND = (
    "*Backprop* is the same network trained by backpropagation, *last layer* the same network of which the last layer alone is "
    "trained. *Saved* is what autograd holds at most, *time* that of a step, both over backpropagation's. Blank cells were not "
    "measured. A task leads to its file of results; scripts, machine and versions: [the benchmarks](/docs/benchmarks.md)."
)


def table(rows: list[results.Row], *, named: bool = False) -> str:
    """Rows of results; columns that none of them fills are left out."""
    columns = {
        **({"method": lambda r: f"[`{r.method}`](/docs/{page_name(r.method)})"} if named else {}),
        "task": lambda r: f"[{r.task}]({results.place(r.file)})",
        "result": lambda r: f"**{r.result}**",
        "backprop": lambda r: r.backprop,
        "last layer": lambda r: r.last_layer,
        "saved": lambda r: r.saved,
        "time": lambda r: r.time,
    }
    kept = {name: cell for name, cell in columns.items() if any(cell(row) for row in rows)}
    lines = [f"| {' | '.join(kept)} |", f"| {' | '.join('---' for _ in kept)} |"]
    return "\n".join(lines + [f"| {' | '.join(cell(row) for cell in kept.values())} |" for row in rows])
