"""The command line: what each command says for --help."""

import contextlib
import importlib
import io
import os
import re
from collections.abc import Iterator

from generate.repository import members
from localplug import cli, plugins
from localplug.commands import FILES

WIDTH = "88"
START = """# Command line

`pip install localplug` brings the command `localplug`; plugins bring further subcommands. What follows is what each says for
`--help`.

Exit status: 0 done, 1 failed, 2 wrong use, 130 interrupted.

| variable | effect |
| --- | --- |
| `LOCALPLUG_PLUGINS=a,b` | only these plugins are loaded, by the names of their entry points |
| `LOCALPLUG_BLOCK=a,b` | these are left out |
| `LOCALPLUG_STRICT=1` | the first broken plugin is an error, instead of being left out with a warning |
| `LOCALPLUG_TRACE=1` | an error shows where it came from, as `--traceback` does |
"""


def page() -> str:
    shown = [START.strip(), f"```text\n{helped('')}\n```"]
    for name in every():
        origin = f"From `{brought()[name]}`.\n\n" if name in brought() else ""
        shown.append(f"## localplug {name} {{#{anchor(name)}}}\n\n{origin}```text\n{helped(name)}\n```")
    return "\n\n".join(shown) + "\n"


def every() -> list[str]:
    """All commands, each followed by its own subcommands, such as "export" and "export ternary"."""
    found = []
    for name in [*FILES, *brought()]:
        arguments = helped(name).partition("positional arguments:\n")[2].partition("\n\n")[0]
        found += [name, *(f"{name} {part}" for part in re.findall(r"^    ([a-z][\w-]*)\b", arguments, re.M))]
    return found


def anchor(command: str) -> str:
    return f"localplug-{command.replace(' ', '-')}"


def brought() -> dict[str, str]:
    """{command: distribution} of the commands that in-tree plugins bring."""
    givers = plugins.names("commands")
    return {name: by[0].distribution for name, by in sorted(givers.items()) if by[0].distribution in members()}


def helped(command: str) -> str:
    """What `localplug COMMAND --help` prints into a pipe; without a command, `localplug --help`."""
    words = [*command.split(), "--help"]
    out = io.StringIO()
    with _width(), contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        if command in FILES:
            importlib.import_module(f"localplug.commands.{FILES[command]}")  # one that is missing is an error here
        cli.main(words)
    return out.getvalue().rstrip()


@contextlib.contextmanager
def _width() -> Iterator[None]:
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = WIDTH
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before
