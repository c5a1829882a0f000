"""The argument parsers of localplug's own commands, made from their files."""

import argparse
import importlib
import shutil
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

from localplug.commands import FILES

STATUS = "exit status: 0 done, 1 failed, 2 wrong use, 130 interrupted"


def file_of(command: str) -> Any:
    """The module of one of localplug's own commands."""
    return importlib.import_module(f"localplug.commands.{FILES[command]}")


def parser_of(commands: Iterable[str], brought: Mapping[str, str], *, version: str, epilog: str = STATUS) -> Any:
    """The parser of `localplug`, with some of its commands.

    Args:
        commands: of FILES; the file of each is imported.
        brought: commands of plugins, with a line of help; their arguments are not known here.
        version: what --version prints.
        epilog: the end of the help.
    """
    width = max(shutil.get_terminal_size().columns - 2, 40)
    parser = argparse.ArgumentParser(
        prog="localplug",
        description="Train and fine-tune without backpropagation, inside the trainer you already use.",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"localplug {version}")
    _add_traceback(parser, default=False)
    added = parser.add_subparsers(dest="command", metavar="COMMAND")
    for command in commands:
        file = file_of(command)
        own = added.add_parser(command, help=file.HELP, formatter_class=argparse.RawDescriptionHelpFormatter)
        file.arguments(own)
        own.description = textwrap.fill(own.description or f"{file.HELP[0].upper()}{file.HELP[1:]}.", width)
        own.epilog = f"examples:\n{textwrap.indent(file.EXAMPLES.rstrip(), '  ')}\n\n{STATUS}"
        _add_traceback(own, default=argparse.SUPPRESS)
    for command, line in brought.items():
        added.add_parser(command, help=line)
    return parser


def _add_traceback(parser: argparse.ArgumentParser, default: Any) -> None:
    parser.add_argument(
        "--traceback",
        action="store_true",
        default=default,
        help="show where an error came from; so does LOCALPLUG_TRACE=1",
    )
