"""Files of the repository and their places in the site: pages keep theirs, all else that is linked becomes a page of source."""

import pathlib
import posixpath
import re
from collections.abc import Callable

ROOT = pathlib.Path(__file__).parents[2]
PLACES = {
    "README.md": "readme.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "tests/benchmarks/README.md": "benchmarks.md",
    "tests/benchmarks": "benchmarks.md",
}
LANGUAGES = {".py": "python", ".toml": "toml", ".json": "json", ".md": "markdown", ".yml": "yaml", ".sh": "bash"}
_LINK = re.compile(r"\]\((?![a-z]+:|#)([^()\s#]+)(#[^()\s]*)?\)")
_FENCE = re.compile(r"(^(?:```|~~~).*?^(?:```|~~~)[ \t]*$)", re.M | re.S)


def place(path: str) -> str:
    """Where in the site a file or folder of the repository is; all paths are relative to their roots, with slashes."""
    if path in PLACES:
        return PLACES[path]
    if path.startswith("docs/") and path.endswith(".md"):
        return path.removeprefix("docs/")
    return f"source/{path}.md"


def members() -> list[str]:
    """The distributions of this repository besides the host, by their folders' names."""
    return sorted(
        path.parent.name for room in ("plugins", "integrations") for path in ROOT.glob(f"{room}/*/pyproject.toml")
    )


def outside_fences(text: str, change: Callable[[str], str]) -> str:
    """The text, changed where it is not in a fenced block of code."""
    parts = _FENCE.split(text)
    return "".join(part if number % 2 else change(part) for number, part in enumerate(parts))


def moved(text: str, origin: str, page: str, wanted: set[str]) -> str:
    """A page's text, with its links turned from the repository's files to their places in the site.

    Args:
        origin: the file whose links these are; a link that begins with "/" is relative to the repository's root.
        page: the page that gets the text.
        wanted: gets the files and folders that need a page of source.

    Raises:
        FileNotFoundError: a link leads to nothing.
    """

    def turned(match: re.Match[str]) -> str:
        link, anchor = match[1], match[2] or ""
        target = link[1:] if link.startswith("/") else posixpath.join(posixpath.dirname(origin), link)
        target = posixpath.normpath(target)
        there = place(target)
        if there.startswith("source/"):
            if not (ROOT / target).exists():
                raise FileNotFoundError(f"{origin} links to {link}, which is not in the repository")
            wanted.add(target)
        return f"]({posixpath.relpath(there, posixpath.dirname(page) or '.')}{anchor})"

    return outside_fences(text, lambda part: _LINK.sub(turned, part))


def source_pages(wanted: set[str]) -> dict[str, str]:
    """A page for each file, and for each folder a page that lists its files, and those files' pages."""
    found: dict[str, str] = {}
    for path in sorted(wanted):
        there = ROOT / path
        if there.is_dir():
            files = sorted(f.relative_to(ROOT).as_posix() for f in there.rglob("*") if f.is_file() and _is_source(f))
            rows = "\n".join(f"- [{f.removeprefix(path + '/')}](/{f})" for f in files)
            more = {f for f in files if place(f).startswith("source/")}
            page = place(path)
            found[page] = moved(f"{_unsearched(path)}{rows}\n", path, page, set())
            found |= {place(f): _source(f) for f in more}
        else:
            found[place(path)] = _source(path)
    return found


def _is_source(path: pathlib.Path) -> bool:
    return "__pycache__" not in path.parts and path.suffix in {*LANGUAGES, ".c", ".h", ".txt"}


def _unsearched(path: str) -> str:
    return f"---\nsearch:\n  exclude: true\nhide: [toc]\n---\n\n# {path}\n\n"


def _source(path: str) -> str:
    text = (ROOT / path).read_text()
    fence = "~" * (3 + max(map(len, re.findall(r"^~+", text, re.M)), default=0))
    language = LANGUAGES.get(pathlib.Path(path).suffix, "text")
    return f'{_unsearched(path)}{fence}{language} linenums="1"\n{text.rstrip()}\n{fence}\n'
