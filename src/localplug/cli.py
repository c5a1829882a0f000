"""The command line: finds the command, one of localplug's own or of a plugin, and turns what it raises into an exit status."""

import importlib.metadata
import os
import sys
import traceback
from collections.abc import Callable, Sequence

from localplug import index, plugins
from localplug.commands import FILES, parsers, terminal
from localplug.errors import LocalPlugError, UnknownName

DONE, FAILED, WRONG_USE, INTERRUPTED, NO_READER = 0, 1, 2, 130, 141
_MISTAKES = (LocalPlugError, ValueError, ImportError, OSError)  # told in a line; all else is a fault of the code


def main(argv: Sequence[str] | None = None) -> int:
    """Run `localplug` with these arguments, by default those of the process.

    Returns: the exit status. 0: done. 1: it failed, or found what it looks for, such as a broken plugin. 2: wrong use (argparse
    raises SystemExit(2) for wrong arguments). 130: interrupted by Ctrl-C. 141: whoever read the output has gone.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    traces = os.environ.get("LOCALPLUG_TRACE", "") not in ("", "0")
    named = next((number for number, word in enumerate(words) if not word.startswith("-")), len(words))
    command = words[named] if named < len(words) else ""
    if command and command not in FILES:  # the words after a plugin's command are its own
        traces = traces or "--traceback" in words[:named]
        if words[:named] in ([], ["--traceback"]):
            return _guarded(lambda: _of_a_plugin(command, words[named + 1 :]), traces)
    traces = traces or "--traceback" in words
    return _guarded(lambda: _own(command, words), traces)


def _own(command: str, words: list[str]) -> int:
    version = importlib.metadata.version("localplug")
    if command in FILES:
        parser = parsers.parser_of([command], {}, version=version)
        options = parser.parse_args(words)
        status: int = parsers.file_of(command).run(options)
        return status
    there = {plugin.distribution for plugin in plugins.found()}
    brought = sorted(name for name, distribution in index.commands().items() if distribution in there)
    more = f"commands of installed plugins: {', '.join(brought)}\n" if brought else ""
    parser = parsers.parser_of(FILES, {}, version=version, epilog=more + parsers.STATUS)
    parser.parse_args(words)
    terminal.say(parser.format_help().rstrip())
    return WRONG_USE


def _of_a_plugin(command: str, words: list[str]) -> int:
    try:
        found = plugins.get(command, "commands")
    except UnknownName as error:
        terminal.complain(f"{error}; built in: {', '.join(FILES)}")
        return WRONG_USE
    return int(found(words))


def _guarded(run: Callable[[], int], traces: bool) -> int:
    try:
        return run()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        terminal.silence()
        return NO_READER
    except Exception as error:
        if traces:
            terminal.complain(traceback.format_exc().rstrip())
        elif isinstance(error, _MISTAKES):
            terminal.complain(str(error) or type(error).__name__)
        else:
            terminal.complain(
                f"{type(error).__name__}: {error}\nthis is a fault of the code, not yours; --traceback shows where it is"
            )
        return FAILED
