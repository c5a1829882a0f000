"""The plugin index, a table made from the file that `localplug plugins --available` reads."""

from generate import docstrings
from generate.repository import ROOT
from localplug import index

START = """# Plugin index

What there is to install. The table is made from [{name}](/{path}), which `localplug plugins --available` reads too. To add
yours, open a pull request with one entry: [how to publish](/docs/publishing.md). Nobody here vouches for a plugin by somebody
else: an entry says that it installed and passed the conformance kit when it was added.
"""


def page() -> str:
    path = index.FILE.resolve().relative_to(ROOT).as_posix()
    shown = [START.format(name=index.FILE.name, path=path).strip()]
    for entry in index.read():
        gives = "; ".join(
            f"{kind.replace('_', ' ')}: {', '.join(f'`{name}`' for name in names)}"
            for kind, names in entry.gives.items()
        )
        home = f"[homepage]({entry.homepage}), " if entry.homepage else ""
        shown += [
            f"## {entry.distribution}",
            f"{docstrings.escaped(entry.summary)}.",
            f"`pip install {entry.distribution}`",
            f"Gives {gives}.",
            f"{home}{docstrings.escaped(entry.licence)}, for localplug `{entry.requires}`.",
        ]
    return "\n\n".join(shown) + "\n"
