"""What the commands show: tables and progress on a terminal, plain text in a pipe, a file or a log.

Colour and width are rich's business (NO_COLOR, FORCE_COLOR, COLUMNS). It is imported on a terminal only.
"""

import contextlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TextIO, TypeVar

from localplug.printable import printable

Item = TypeVar("Item")


def say(text: str) -> None:
    """Print a result to standard output; characters that it cannot show are escaped, line breaks are kept."""
    _write(text, sys.stdout)


def complain(text: str) -> None:
    """Print what went wrong, or a remark, to standard error, as "localplug: ..."."""
    _write(f"localplug: {text}", sys.stderr)


def as_json(value: Any) -> None:
    """Print a result for a script, as indented JSON in ASCII."""
    print(json.dumps(value, indent=2))


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under their columns' names: drawn and wrapped to the width of a terminal, aligned plain text elsewhere.

    Args:
        columns: names; plain text leaves them out, so that a line is a row.
        rows: cells, as many as columns. Nothing in them is markup, and nothing in them can steer the terminal.
    """
    cells = [[printable(cell) for cell in row] for row in rows]
    if _is_terminal(sys.stdout):
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        drawn = Table(box=None, pad_edge=False, header_style="bold")
        for number, name in enumerate(columns):
            drawn.add_column(name, overflow="fold", no_wrap=number == 0)
        for row in cells:
            drawn.add_row(*map(Text, row))
        Console().print(drawn)
        return
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def progress(items: Iterable[Item], what: str, total: int | None = None) -> Iterator[Item]:
    """The items, one after another, with a bar on standard error while they are gone through, if that is a terminal.

    Args:
        what: a few words before the bar.
        total: how many there are; by default what `len` says, if it can.
    """
    if not _is_terminal(sys.stderr):
        yield from items
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import track

    shown = Console(stderr=True)
    yield from track(items, escape(printable(what)), total=total, console=shown, transient=True)


def their_output_aside() -> contextlib.AbstractContextManager[Any]:
    """A context in which what others print, such as a plugin while it is imported, goes to standard error."""
    return contextlib.redirect_stdout(sys.stderr)


def silence() -> None:
    """Standard output's reader has gone: make the interpreter's last flush go nowhere, so that it does not complain."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())


def _write(text: str, stream: TextIO) -> None:
    lines = "\n".join(map(printable, text.split("\n")))
    encoding = stream.encoding or "utf-8"
    print(lines.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)


def _is_terminal(stream: TextIO) -> bool:
    return stream.isatty()
