"""`localplug plugins`: what is installed, by its metadata; what each gives, by loading it; what there is elsewhere."""

import argparse
from typing import Any

from localplug import index, plugins
from localplug.commands import terminal

HELP = "every installed plugin, without loading any; or what each gives, or what there is to install"
EXAMPLES = """\
localplug plugins                  # names, distributions, versions; no plugin is imported
localplug plugins --load           # and what each gives, or why it fails
localplug plugins --available      # what the index knows, and which of it is installed
LOCALPLUG_BLOCK=zo localplug plugins --load --json
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--load", action="store_true", help="import each and say what it gives; exit status 1 if one fails"
    )
    what.add_argument("--available", action="store_true", help="the plugins of the index that came with this version")
    parser.add_argument("--json", action="store_true", help="the same as JSON")


def run(options: argparse.Namespace) -> int:
    if options.available:
        return _available(as_json=options.json)
    if options.load:
        with terminal.their_output_aside():
            found = plugins.installed()
    else:
        found = plugins.found()
    if options.json:
        terminal.as_json([_row(plugin) for plugin in found])
    else:
        _show(found)
    return 1 if any(p.status == "failed" for p in found) else 0


def _row(p: plugins.Plugin) -> dict[str, Any]:
    return {
        "name": p.name,
        "distribution": p.distribution,
        "version": p.version,
        "summary": p.summary,
        "status": p.status,
        "reason": p.reason,
        "gives": {kind: sorted(given) for kind, given in p.gives.items()},
    }


def _show(found: list[plugins.Plugin]) -> None:
    if not found:
        terminal.say("no plugin is installed; `localplug plugins --available` lists what there is")
        return
    terminal.table(
        ("plugin", "distribution", "version", "gives" if any(p.gives for p in found) else "about"),
        [(p.name, p.distribution, p.version, _note(p)) for p in found],
    )
    for kind in plugins.KINDS:
        givers: dict[str, list[str]] = {}
        for p in found:
            for name in p.gives.get(kind, {}):
                givers.setdefault(name, []).append(p.label)
        for name, labels in givers.items():
            if len(labels) > 1:
                terminal.say(f"{kind} {name!r} is given by {' and by '.join(labels)}: nobody answers to it")


def _note(p: plugins.Plugin) -> str:
    if p.reason:
        return f"{p.status.upper()}  {p.reason}"
    gives = "; ".join(f"{kind.replace('_', ' ')}: {', '.join(sorted(given))}" for kind, given in p.gives.items())
    return gives or p.summary


def _available(*, as_json: bool) -> int:
    versions = {index.normalized(p.distribution): p.version for p in plugins.found()}
    rows = [(entry, versions.get(index.normalized(entry.distribution))) for entry in index.read()]
    if as_json:
        terminal.as_json([{**entry.as_dict(), "installed": version} for entry, version in rows])
        return 0
    terminal.table(
        ("plugin", "distribution", "installed", "kinds", "about"),
        [(e.name, e.distribution, v or "-", ", ".join(e.kinds).replace("_", " "), e.summary) for e, v in rows],
    )
    return 0
