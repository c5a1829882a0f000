"""Every page of the site, as {place in the site: Markdown}; mkdocs only turns them into HTML."""

import pathlib
import re
from collections.abc import Callable
from typing import Any

from generate import algorithms, commands, costs, hooks, kit, names, plugin_index, readme, versions
from generate.repository import PLACES, ROOT, moved, place, source_pages

DOCS = ROOT / "docs"
INSERTS: dict[str, Callable[[], str]] = {
    "readme": readme.start,
    "decisions": costs.decisions,
    "step-times": costs.step_times,
    "memory": costs.memory,
    "reached": costs.reached,
    "kit": kit.section,
}
"""What a page gets in the place of a line `<!-- insert: NAME -->`."""
BELOW: dict[str, tuple[str, Callable[[], str]]] = {
    "benchmarks.md": ("How each was made", costs.recorded),
    "compatibility.md": ("What each distribution declares", versions.table),
}
"""What a page gets at its end: (heading, text)."""
WIDE = ("doors.md",)
"""Pages whose tables need the room of the columns beside."""
_FILE = re.compile(r"`([\w/]+\.(?:py|json))`")
_LINE = re.compile(
    r"^```(?:text)?\n([^\n]+)\n```$", re.M
)  # a message or a command alone: it may be longer than a page is wide
_INSERT = re.compile(r"^<!-- insert: ([\w-]+) -->$", re.M)
_TITLES = {"README.md": "The README", "CHANGELOG.md": "Changelog", "CONTRIBUTING.md": "Contributing"}


def by_hand() -> list[pathlib.Path]:
    """The pages that are written by hand."""
    return sorted(DOCS.rglob("*.md"))


def pages() -> dict[str, str]:
    """All of them.

    Raises:
        FileNotFoundError: a link leads to nothing.
        KeyError: a page asks for an insert that there is not.
    """
    wanted: set[str] = set()
    found = {}
    for path in [*by_hand(), *(ROOT / name for name in PLACES if name.endswith(".md"))]:
        origin = path.relative_to(ROOT).as_posix()
        page = place(origin)
        found[page] = moved(_completed(page, path.read_text()), origin, page, wanted)
    made = {
        **algorithms.pages(),
        **hooks.pages(),
        **names.pages(),
        "command-line.md": commands.page(),
        "plugins.md": plugin_index.page(),
    }
    found |= {page: moved(text, f"docs/{page}", page, wanted) for page, text in made.items()}
    return found | source_pages(wanted)


def nav() -> list[Any]:
    """The navigation; a page by hand that is named nowhere here is a guide."""
    start = [
        {"Fine-tune a language model": "first-steps/fine-tune.md"},
        {"Study learning without backpropagation": "first-steps/research.md"},
        {"A small model for a small device": "first-steps/edge.md"},
    ]
    guides = [
        {"Choose a method": "choosing.md"},
        {"Methods": "methods.md"},
        {"Layer-local methods": "local.md"},
        {"Your own loop": "loops.md"},
        {"Many workers": "many-machines.md"},
        {"Ternary models": "ternary.md"},
        {"Every feature, through every door": "doors.md"},
        {"Troubleshooting": "troubleshooting.md"},
    ]
    authors = [
        {"Publish an algorithm": "publishing.md"},
        {"The conformance kit": "kit.md"},
        {"Hooks": hooks.nav()},
    ]
    reference = [
        {"Command line": "command-line.md"},
        {"Public names": names.nav()},
        {"Supported versions": "compatibility.md"},
        {"Measured claims": "benchmarks.md"},
    ]
    named = [*re.findall(r"[\w/-]+\.md", repr([start, guides, authors, reference])), "index.md"]
    for path in by_hand():
        page = path.relative_to(DOCS).as_posix()
        if page not in named:
            guides.append({_title(path): page})
    return [
        {"Home": "index.md"},
        {"First steps": start},
        {"Guides": guides},
        {"Algorithms": algorithms.nav()},
        {"Write a plugin": authors},
        {"Plugin index": "plugins.md"},
        {"Reference": reference},
        {"Project": [{title: PLACES[path]} for path, title in _TITLES.items()]},
    ]


def _completed(page: str, text: str) -> str:
    """A page by hand with what is made for it."""
    text = _INSERT.sub(lambda match: INSERTS[match[1]](), text)
    if page == "benchmarks.md":
        text = _FILE.sub(_linked, text)
    if page in BELOW:
        heading, made = BELOW[page]
        text += f"\n## {heading}\n\n{made()}\n"
    text = _LINE.sub(r"```{ .text .wrap }\n\1\n```", text)
    return f"---\nhide: [navigation, toc]\n---\n\n{text}" if page in WIDE else text


def _linked(match: re.Match[str]) -> str:
    path = f"tests/benchmarks/{match[1]}"
    return f"[{match[1]}](/{path})" if (ROOT / path).exists() else match[0]


def _title(path: pathlib.Path) -> str:
    found = re.search(r"^# (.+)$", path.read_text(), re.M)
    return found[1].split(":")[0] if found else path.stem
