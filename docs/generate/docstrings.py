"""Docstrings of this project as Markdown: formulas stay as they are written, names and papers become links.

A docstring has paragraphs, blocks that are indented (formulas, kept letter by letter), and sections such as Args, whose entries
may name several options at once.
"""

import dataclasses
import inspect
import re
import textwrap
from typing import Any

import localplug

LINE = 84  # characters of a formula that a page's column holds
SECTIONS = ("Args", "Attributes", "Returns", "Raises", "Yields", "Example", "Reference")
_SECTION = re.compile(rf"({'|'.join(SECTIONS)}):\s*(.*)")
_ENTRY = re.compile(r"([*\w.]+(?:, [*\w.]+)*):(?:\s+(.*))?$")
_CODE = re.compile(r"(`+[^`]+`+)")
_NAME = re.compile(r"\blocalplug\.((?:[A-Za-z]|\\_)+)(?!\.?\w)")  # in escaped text
_PAPER = re.compile(r"\barXiv:(\d{4}\.\d{4,5})")


@dataclasses.dataclass
class Docstring:
    """What a docstring says: text around its sections, and the sections by name, dedented."""

    text: str
    sections: dict[str, str]

    def entries(self, section: str) -> dict[str, str]:
        """{names as written: text} of a section such as Args."""
        return entries(self.sections.get(section, ""))

    def options(self) -> dict[str, str]:
        """{option: text} of Args, one by one."""
        return {name.lstrip("*"): text for names, text in self.entries("Args").items() for name in names.split(", ")}


def parse(text: str) -> Docstring:
    """Split a cleaned docstring."""
    sections: dict[str, str] = {}
    kept: list[str] = []
    name = ""
    for line in text.splitlines():
        head = _SECTION.match(line)
        if head:
            name = head[1]
            sections[name] = head[2] + "\n"
        elif name and (not line.strip() or line.startswith(" ")):
            sections[name] += line + "\n"
        else:
            name = ""
            kept.append(line)
    dedented = {}
    for key, body in sections.items():
        first, _, rest = body.partition("\n")
        dedented[key] = f"{first}\n{textwrap.dedent(rest)}".strip("\n")
    return Docstring("\n".join(kept).strip(), dedented)


def of(value: Any) -> Docstring:
    return parse(text_of(value))


def text_of(value: Any) -> str:
    """A docstring, cleaned; also one that was put together from two, whose second is indented still."""
    text = inspect.getdoc(value) or ""
    return re.sub(r"^    ", "", text, flags=re.M) if re.search(r"^    (Args|Raises):$", text, re.M) else text


def entries(section: str) -> dict[str, str]:
    """{names as written: text} of lines such as "eps, q: text", each with the more indented lines below it."""
    found: dict[str, str] = {}
    names = ""
    for line in section.splitlines():
        head = _ENTRY.match(line)
        if head:
            names = head[1]
            found[names] = head[2] or ""
        elif names:
            found[names] += "\n" + line
    return {key: _first_and_rest(text) for key, text in found.items()}


def _first_and_rest(text: str) -> str:
    first, _, rest = text.partition("\n")
    return f"{first}\n{textwrap.dedent(rest)}".strip("\n")


def sentence(text: str) -> str:
    """The first paragraph, in one line."""
    return re.sub(r"\s+", " ", text.strip().split("\n\n")[0]).strip()


def escaped(text: str, above: str = "/docs") -> str:
    """Running text: what Markdown would take for markup is shown, public names and papers are links, `code` stays.

    Args:
        above: the folder that holds the pages, for links.
    """
    parts = _CODE.split(text)
    for number in range(0, len(parts), 2):
        plain = re.sub(r"([\\*_\[\]|#{}])", r"\\\1", parts[number]).replace("<", "&lt;").replace(">", "&gt;")
        plain = re.sub(r"^(\s*)([-+]|\d+\.)(?=\s)", r"\1\\\2", plain) if not plain.startswith("- ") else plain
        plain = _PAPER.sub(r"[arXiv:\1](https://arxiv.org/abs/\1)", plain)
        parts[number] = _NAME.sub(_linked, plain)
    return "".join(parts)


def _linked(match: re.Match[str]) -> str:
    name = match[1].replace("\\_", "_")
    if name not in localplug.__all__:
        return match[0]
    return f"[{match[0]}](/docs/{page_of_name(name)})"


def page_of_name(name: str) -> str:
    """Page and anchor of a public name of localplug."""
    home = localplug._HOME.get(name, "hookspecs")
    return f"api/localplug/{home}.md" + ("" if name == home else f"#localplug.{name}")


def prose(text: str) -> str:
    """Paragraphs and indented blocks; lists of "name: text" become definitions."""
    shown = []
    for block in _blocks(text):
        lines = block.splitlines()
        if lines[0].startswith("    ") or lines[0].startswith(">>>"):
            shown.append(code(block))
        elif len(entries(block)) > 1 and _ENTRY.match(lines[0]) and all(_ENTRY.match(x) or x[0] == " " for x in lines):
            shown.append(definitions(entries(block)))
        elif lines[0].startswith(("- ", "* ")):
            shown.append("\n".join(escaped(line) for line in lines))
        else:
            shown.append(escaped(sentence(block)))
    return "\n\n".join(shown)


def code(block: str) -> str:
    """A block as it is: Python where it is an example, plain text where it is a formula."""
    block = textwrap.dedent(block).strip("\n")
    if block.startswith(">>>"):
        return f"```pycon\n{block}\n```"
    if "\n" not in block:
        lines = re.sub(r",\s{3,}", ",\n", block) if len(block) > LINE else block
        return f"```{{ .text .wrap }}\n{lines}\n```"
    return f"```text\n{block}\n```"


def definitions(items: dict[str, str], heads: dict[str, str] | None = None) -> str:
    """A definition list; `heads` says how an item's head is shown, by default its name as code."""
    shown = []
    for name, text in items.items():
        head = (heads or {}).get(name) or ", ".join(f"`{part}`" for part in name.split(", "))
        body = textwrap.indent(prose(text) or "see above", "    ").lstrip()
        shown.append(f"{head}\n:   {body}")
    return "\n\n".join(shown)


def sections(doc: Docstring, *, without: tuple[str, ...] = ()) -> str:
    """Everything below the text of a docstring."""
    shown = []
    for name, text in doc.sections.items():
        if name in without:
            continue
        if name == "Example":
            body = code(text) if text.startswith(">>>") else f"```python\n{text}\n```"
        elif name in ("Args", "Attributes", "Raises"):
            body = definitions(entries(text)) if entries(text) else prose(text)
        else:
            body = prose(text)
        shown.append(f"**{'Arguments' if name == 'Args' else name}**\n\n{body}")
    return "\n\n".join(shown)


def whole(value: Any) -> str:
    """A whole docstring."""
    doc = of(value)
    return "\n\n".join(part for part in (prose(doc.text), sections(doc)) if part)


def _blocks(text: str) -> list[str]:
    """Paragraphs, each either indented or not: an indented block ends where the indentation does."""
    found: list[list[str]] = []
    indented = False
    for line in text.splitlines():
        if not line.strip():
            if found and indented:
                found[-1].append("")
            else:
                found.append([])
            continue
        now = line.startswith("    ")
        if not found or (found[-1] and now != indented and (now is False or not _ENTRY.match(found[-1][0]))):
            found.append([])
        elif found[-1] and now and not indented:
            now = False  # the rest of an entry
        found[-1].append(line)
        indented = now
    return ["\n".join(lines).strip("\n") for lines in found if any(line.strip() for line in lines)]
