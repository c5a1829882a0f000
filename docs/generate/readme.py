"""What the README's tables of methods say of each: equation or source of learning, memory, paper."""

import functools
import re

from generate.repository import ROOT

METHODS = ("equation", "a unit learns from")  # the second column of the tables that list methods


@functools.cache
def rows() -> dict[str, dict[str, str]]:
    """{method: {column: cell, as Markdown with links relative to the repository's root}}."""
    found: dict[str, dict[str, str]] = {}
    columns: list[str] = []
    for line in (ROOT / "README.md").read_text().splitlines():
        if not line.startswith("| "):
            columns = []
            continue
        cells = [cell.strip() for cell in line.strip()[1:-1].split("|")]
        if not columns:
            columns = cells
        elif len(columns) > 1 and columns[1] in METHODS and re.fullmatch(r"`[^`]+`", cells[0]):
            found[cells[0].strip("`")] = dict(zip(columns[1:], cells[1:], strict=False))
    return found


def start() -> str:
    """The README from below its title to its first section, with links from the repository's root."""
    text = (ROOT / "README.md").read_text().split("\n", 1)[1].split("\n## ", 1)[0].strip()
    return re.sub(r"\]\((?![a-z]+:|[#/])", "](/", text)
