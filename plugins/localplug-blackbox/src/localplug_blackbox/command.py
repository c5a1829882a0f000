"""`localplug propose`: the next run from a table of past ones, without training anything."""

import argparse
import ast
import pathlib
from collections.abc import Sequence
from typing import Any

from localplug.commands import terminal

EXAMPLES = """\
examples:
  localplug propose runs.csv --value loss --column lr=1e-5..1e-2:log --column eps=1e-4..1e-1:log
  localplug propose runs.jsonl --value quality --maximize --column options.lr:log --by bayesian --num 4
  localplug propose runs.csv --value loss --column lr:log --column layers=1..24:int --by root --option guidance=-0.5

A table is CSV with a head, or JSON lines. A run that failed may have nan as its value.

exit status: 0 done, 2 wrong use"""


def main(argv: Sequence[str]) -> int:
    """Run `localplug propose` with these arguments; gives the exit status."""
    parser = _parser()
    given = parser.parse_args(argv)
    from localplug_blackbox import past_runs
    from localplug_blackbox.search import searcher

    try:
        columns = [past_runs.Column.parsed(text) for text in given.column]
        runs = past_runs.read(given.runs, columns, given.value, maximize=given.maximize)
        search = searcher(given.by, runs.box, **_options(given.option))
        search.fit(runs.points, runs.values)
        found = search.ask(given.num)
    except (ValueError, TypeError, ImportError) as error:
        terminal.complain(str(error))
        return 2
    if runs.num_skipped:
        terminal.complain(
            f"{runs.num_skipped} row(s) without a number in every column, or outside a range, are left out"
        )
    rows = [{c.name: c.outer(v) for c, v in zip(columns, x, strict=True)} for x in found.tolist()]
    if given.json:
        terminal.as_json(rows)
    else:
        names = [column.name for column in columns]
        terminal.table(names, [[f"{row[name]:.6g}" for name in names] for row in rows])
    return 0


def _parser() -> argparse.ArgumentParser:
    from localplug_blackbox.search import SEARCHERS

    parser = argparse.ArgumentParser(
        prog="localplug propose",
        description="Propose the options of the next run from a table of past runs and what they reached.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", type=pathlib.Path, help="the table: .csv, or JSON lines")
    parser.add_argument("--value", required=True, metavar="COLUMN", help="what a run reached; less is better")
    parser.add_argument("--maximize", action="store_true", help="more is better")
    parser.add_argument(
        "--column",
        action="append",
        required=True,
        metavar="NAME[=LOW..HIGH][:log][:int]",
        help="an option to choose, with its range; by default that of the table; may be repeated",
    )
    parser.add_argument(
        "--by",
        default="mean-descent",
        choices=list(SEARCHERS),
        metavar="NAME",
        help=f"one of {', '.join(SEARCHERS)} (default: mean-descent)",
    )
    parser.add_argument("--num", type=int, default=1, help="how many runs, at most (default: 1)")
    parser.add_argument(
        "--option", action="append", default=[], metavar="KEY=VALUE", help="of the search; may be repeated"
    )
    parser.add_argument("--json", action="store_true", help="the same as JSON")
    return parser


def _options(given: list[str]) -> dict[str, Any]:
    """{option: value}; a value that is no Python literal is text."""
    found: dict[str, Any] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not (equals and key.isidentifier()):
            raise ValueError(f"--option takes KEY=VALUE, such as seed=1, got {text!r}")
        try:
            found[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[key] = value
    return found
