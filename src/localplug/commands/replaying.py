"""`localplug replay`: a run's weights from those it began with and its log."""

import argparse
import functools

from localplug.commands import terminal

HELP = "make a run's weights from those it began with and its log"
EXAMPLES = """\
localplug replay base out/trajectory.lplog --out tuned
localplug replay base out/checkpoint-500 --out out/checkpoint-500
localplug replay base out/trajectory.lplog --out tuned-100 --until 100 --json
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Repeat a run that was logged (log=...) on the weights it began with: the same weights, bit for bit."
    )
    parser.add_argument("base", help="the checkpoint that the run began with: a folder, or a file of a state dict")
    parser.add_argument("log", help="the run's .lplog file, or a folder that holds one")
    parser.add_argument("--out", required=True, metavar="DIR", help="gets the weights and base's other files")
    parser.add_argument("--until", type=int, metavar="STEP", help="stop before this step")
    parser.add_argument("--json", action="store_true", help="the result as JSON")


def run(options: argparse.Namespace) -> int:
    from localplug.rebuild import replay_checkpoint  # imports torch

    progress = functools.partial(terminal.progress, what="replaying")
    done = replay_checkpoint(options.base, options.log, options.out, until=options.until, progress=progress)
    if done.ignored:
        terminal.complain(f"the last {done.ignored} bytes of {options.log} are no whole record: left out")
    if options.json:
        terminal.as_json(
            {
                "steps": done.num_steps,
                "weights": done.num_weights,
                "seconds": done.seconds,
                "ignored_bytes": done.ignored,
                "files": [str(file) for file in done.files],
            }
        )
    else:
        terminal.say(
            f"replayed {done.num_steps:,} steps onto {done.num_weights:,} weights in {done.seconds:.1f} s: {options.out}"
        )
    return 0
