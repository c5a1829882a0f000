"""`localplug hooks`: the contract."""

import argparse
import inspect
import textwrap

from localplug import hookspecs, plugins
from localplug.commands import terminal

HELP = "the questions that localplug asks a plugin"
EXAMPLES = """\
localplug hooks
localplug hooks --json | jq '.[].name'
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="the same as JSON: name, signature and doc of each")


def run(options: argparse.Namespace) -> int:
    hooks = [getattr(hookspecs, f"localplug_{kind}") for kind in plugins.KINDS]
    if options.json:
        terminal.as_json(
            [
                {"name": hook.__name__, "signature": str(inspect.signature(hook)), "doc": inspect.getdoc(hook) or ""}
                for hook in hooks
            ]
        )
        return 0
    for hook in hooks:
        doc = textwrap.indent(inspect.getdoc(hook) or "", "    ")
        terminal.say(f"{hook.__name__}{inspect.signature(hook)}\n{doc}\n")
    return 0
