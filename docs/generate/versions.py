"""The ranges of versions that the distributions of this repository declare, from their pyproject.toml files."""

import re
import sys
from typing import Any

from generate.repository import ROOT, members

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def projects() -> dict[str, dict[str, Any]]:
    """{distribution: its [project] table}, the host first."""
    paths = [ROOT, *(next(ROOT.glob(f"*/{name}")) for name in members())]
    tables = [tomllib.loads((path / "pyproject.toml").read_text())["project"] for path in paths]
    return {table["name"]: table for table in tables}


def table() -> str:
    """Distribution, version, Python and what else it needs, besides other distributions of this repository."""
    lines = ["| distribution | version | Python | needs |", "| --- | --- | --- | --- |"]
    for name, project in projects().items():
        needs = [_shown(r) for r in project.get("dependencies", []) if not r.startswith("localplug")]
        lines.append(
            f"| `{name}` | {project['version']} | `{project['requires-python']}` | {', '.join(needs) or 'nothing else'} |"
        )
    return "\n".join(lines)


def _shown(requirement: str) -> str:
    name, rest = re.match(r"([\w.-]+)(.*)", requirement).groups()  # type: ignore[union-attr]
    return f"{name} `{rest.strip()}`"
