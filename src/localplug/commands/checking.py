"""`localplug check`: the conformance kit on an installed distribution, without a test file."""

import argparse
import ast
import dataclasses
import importlib.util
import time
from typing import Any

from localplug import index, plugins
from localplug.commands import terminal

HELP = "run the conformance kit on everything that an installed distribution gives"
EXAMPLES = """\
localplug check localplug-zo
localplug check localplug-zo --kind estimators --kind perturbations
localplug check my-plugin -k "resume or dtype" --option my-rule.lr=0.01
localplug check my-plugin --json | jq '.checks[] | select(.result == "failed")'
localplug check --list
"""
LABELS = {"expected": "expected to fail"}


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Run the conformance kit on everything that an installed distribution gives, in a process of its own, with default "
        "options or those of its module `conformance`."
    )
    parser.add_argument("distribution", nargs="?", help="its name, as in `localplug plugins`")
    parser.add_argument(
        "--kind", action="append", default=[], choices=plugins.KINDS, help="only what this hook gives; may be repeated"
    )
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME.KEY=VALUE",
        help="make NAME with this option instead of its default; may be repeated",
    )
    parser.add_argument(
        "-k", dest="keyword", default="", metavar="EXPRESSION", help="only checks or names that match, as in pytest -k"
    )
    parser.add_argument(
        "--timeout", type=float, default=600.0, metavar="SECONDS", help="what a check may take (default: 600)"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="show only what did not pass")
    parser.add_argument("--list", action="store_true", help="print every check of the kit, and run none")
    parser.add_argument("--json", action="store_true", help="the same as JSON")


def run(options: argparse.Namespace) -> int:
    if importlib.util.find_spec("pytest") is None:
        raise ImportError(
            "`localplug check` runs the kit with pytest, which is not installed: python -m pip install pytest"
        )
    if options.list:
        return _list(as_json=options.json)
    if options.distribution is None:
        terminal.complain("which distribution? `localplug plugins` lists those that are installed")
        return 2
    there = sorted({plugin.distribution for plugin in plugins.found()})
    named = [
        distribution
        for distribution in there
        if index.normalized(distribution) == index.normalized(options.distribution)
    ]
    if not named:
        terminal.complain(
            f"no installed distribution {options.distribution!r} has a plugin; installed: {', '.join(there) or 'none'}"
        )
        return 2
    try:
        given = _options(options.option)
    except ValueError as error:
        terminal.complain(str(error))
        return 2
    from localplug.testing.check import results

    began = time.monotonic()
    running = results(named[0], kinds=options.kind, options=given, keyword=options.keyword, timeout=options.timeout)
    found = list(terminal.progress(running, f"checking {named[0]}"))
    counts = {result: sum(r.result == result for r in found) for result in ("passed", "failed", "expected", "skipped")}
    seconds = time.monotonic() - began
    if options.json:
        checks = [dataclasses.asdict(r) for r in found if not options.quiet or r.result != "passed"]
        terminal.as_json({"distribution": named[0], **counts, "seconds": round(seconds, 1), "checks": checks})
    else:
        rows = [
            (r.name, f"{r.check} ({r.case})" if r.case else r.check, LABELS.get(r.result, r.result), _line(r.reason))
            for r in found
            if not options.quiet or r.result != "passed"
        ]
        if rows:
            terminal.table(("name", "check", "result", "reason"), rows)
        told = ", ".join(f"{num} {LABELS.get(result, result)}" for result, num in counts.items() if num)
        terminal.say(f"{named[0]}: {told or 'no check was run'}, in {seconds:.0f} s")
    if not found:
        terminal.complain("nothing was checked: no name or check matches")
    return 1 if counts["failed"] or not found else 0


def _list(*, as_json: bool) -> int:
    from localplug.testing.kinds import listing

    rows = listing()
    if as_json:
        terminal.as_json([dict(zip(("hook", "class", "check", "asks"), row, strict=True)) for row in rows])
    else:
        terminal.table(("class", "check", "asks"), [row[1:] for row in rows])
    return 0


def _options(given: list[str]) -> dict[str, dict[str, Any]]:
    """{name: {option: value}} of NAME.KEY=VALUE, where a value that is no Python literal is text.

    Raises:
        ValueError: one is not of that form; names them all.
    """
    found: dict[str, dict[str, Any]] = {}
    wrong = []
    for text in given:
        left, equals, value = text.partition("=")
        name, dot, key = left.rpartition(".")
        if not (equals and dot and name and key.isidentifier()):
            wrong.append(text)
            continue
        try:
            found.setdefault(name, {})[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found.setdefault(name, {})[key] = value
    if wrong:
        raise ValueError(f"--option takes NAME.KEY=VALUE, such as mezo.eps=1e-2, got {', '.join(map(repr, wrong))}")
    return found


def _line(reason: str) -> str:
    """The first line of it that says something, at a length that a table can show."""
    lines = [line.strip() for line in reason.splitlines() if line.strip()]
    text = " ".join(lines[:2])
    return text if len(text) < 300 else f"{text[:297]}..."
