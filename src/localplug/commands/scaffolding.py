"""`localplug new`: a distribution of your own, to put an algorithm into."""

import argparse
import shlex

from localplug.commands import terminal

HELP = "write a plugin of your own: a distribution with an example, its tests and its CI"
EXAMPLES = """\
localplug new my-rule --kind update-rule
localplug new my-method --kind local-method --out ~/src/my-method --author "Ada L. <ada@example.org>"
localplug new my-quantizer --kind quantizer --json
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    from localplug.scaffold.project import KINDS

    parser.description = (
        "Write a distribution localplug-NAME: pyproject.toml, one module, tests, README and a CI workflow. It installs, "
        "passes localplug's tests for its kind and trains at once; put your algorithm in the place of the example. "
        "Nothing is overwritten."
    )
    parser.add_argument("name", help="what a user will type, such as my-rule; the distribution is localplug-NAME")
    parser.add_argument("--kind", required=True, help="; ".join(f"{name}: {kind.what}" for name, kind in KINDS.items()))
    parser.add_argument("--out", metavar="DIR", help="the folder to write, new or empty (default: localplug-NAME)")
    parser.add_argument("--author", metavar="TEXT", help='"Name" or "Name <e-mail>", for pyproject.toml')
    parser.add_argument("--json", action="store_true", help="what was written, as JSON")


def run(options: argparse.Namespace) -> int:
    from localplug.scaffold.project import Project
    from localplug.scaffold.writing import rendered, write

    try:
        project = Project(options.name, options.kind, options.out, options.author)
    except ValueError as error:
        terminal.complain(str(error))
        return 2
    folder = write(project)
    if options.json:
        terminal.as_json(
            {
                "name": project.name,
                "kind": project.kind,
                "distribution": project.distribution,
                "folder": str(folder),
                "files": sorted(rendered(project)),
            }
        )
        return 0
    files = "\n".join(f"  {path}" for path in sorted(rendered(project)))
    terminal.say(f"written to {shlex.quote(str(folder))}:\n{files}\n\n{_next(str(folder), project.module)}")
    return 0


def _next(folder: str, module: str) -> str:
    """Nothing in it installs a package by a name: what is installed is the folder that was written."""
    return f"""next:
  cd {shlex.quote(folder)}
  python -m pip install -e ".[test]"
  python -m pytest

Then put your algorithm in the place of the example in {module}.py. README.md says how to publish and list it."""
