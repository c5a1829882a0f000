"""The command line: what is installed, what the contract is, and the subcommands that plugins bring."""

import argparse
import inspect
import json
import sys
import textwrap
from collections.abc import Sequence

from localplug import hookspecs, plugins
from localplug.errors import LocalPlugError


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, 1 if `plugins` found a broken one or `replay` failed, 2 for wrong arguments."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="localplug",
        description="Train and fine-tune without backpropagation, inside the trainer you already use.",
        epilog="Plugins bring further commands, such as: localplug demo (from localplug-transformers).",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    listing = commands.add_parser("plugins", help="every plugin: its distribution, what it gives, or why it failed")
    listing.add_argument("--json", action="store_true", help="the same as JSON")
    commands.add_parser("hooks", help="the questions that localplug asks a plugin")
    replaying = commands.add_parser(
        "replay",
        help="make a run's weights from those it began with and its log",
        description="Repeat a run that was logged (log=...) on the weights it began with: the same weights, bit for bit.",
    )
    replaying.add_argument("base", help="the checkpoint that the run began with: a folder, or a file of a state dict")
    replaying.add_argument("log", help="the run's .lplog file, or a folder that holds one")
    replaying.add_argument("--out", required=True, metavar="DIR", help="gets the weights and base's other files")
    replaying.add_argument("--until", type=int, metavar="STEP", help="stop before this step")
    if words and not words[0].startswith("-") and words[0] not in commands.choices:
        try:
            command = plugins.get(words[0], "commands")
        except LocalPlugError as error:
            print(f"localplug: {error}; built in: {', '.join(commands.choices)}", file=sys.stderr)
            return 2
        return int(command(words[1:]))
    options = parser.parse_args(words)
    if options.command == "plugins":
        return _plugins(as_json=options.json)
    if options.command == "hooks":
        return _hooks()
    if options.command == "replay":
        return _replay(options.base, options.log, options.out, options.until)
    parser.print_help()
    return 2


def _plugins(*, as_json: bool) -> int:
    try:
        found = plugins.installed()
    except LocalPlugError as error:  # LOCALPLUG_STRICT=1
        print(f"localplug: {error}", file=sys.stderr)
        return 1
    if as_json:
        rows = [
            {
                "name": p.name,
                "distribution": p.distribution,
                "version": p.version,
                "status": p.status,
                "reason": p.reason,
                "gives": {kind: sorted(given) for kind, given in p.gives.items()},
            }
            for p in found
        ]
        print(json.dumps(rows, indent=2))
    else:
        for p in found:
            gives = "; ".join(
                f"{kind.replace('_', ' ')}: {', '.join(sorted(given))}" for kind, given in p.gives.items()
            )
            note = gives if p.status == "ok" else f"{p.status.upper()}  {p.reason}"
            print(f"{p.name:14} {p.distribution} {p.version:8} {note}")
        for kind in plugins.KINDS:
            for name, givers in plugins.names(kind).items():
                if len(givers) > 1:
                    print(
                        f"{kind} {name!r} is given by {' and by '.join(p.label for p in givers)}: nobody answers to it"
                    )
        if not found:
            print("no plugin is installed; localplug-zo brings mezo, localplug-tpsgd brings tpsgd")
    return 1 if any(p.status == "failed" for p in found) else 0


def _replay(base: str, log: str, out: str, until: int | None) -> int:
    from localplug.rebuild import replay_checkpoint  # imports torch

    try:
        done = replay_checkpoint(base, log, out, until=until)
    except (LocalPlugError, OSError, ValueError, ImportError) as error:
        print(f"localplug: {error}", file=sys.stderr)
        return 1
    if done.ignored:
        print(f"localplug: the last {done.ignored} bytes of {log} are no whole record: left out", file=sys.stderr)
    print(f"replayed {done.num_steps:,} steps onto {done.num_weights:,} weights in {done.seconds:.1f} s: {out}")
    return 0


def _hooks() -> int:
    for kind in plugins.KINDS:
        hook = getattr(hookspecs, f"localplug_{kind}")
        print(f"{hook.__name__}{inspect.signature(hook)}\n{textwrap.indent(inspect.getdoc(hook) or '', '    ')}\n")
    return 0
