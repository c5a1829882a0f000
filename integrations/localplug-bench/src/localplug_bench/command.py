"""`localplug bench`: train tasks by methods and by backpropagation, and write down what each costs and reaches."""

import argparse
import pathlib
from collections.abc import Sequence
from typing import Any

import localplug
from localplug import plugins
from localplug.commands import terminal

EXAMPLES = """\
examples:
  localplug bench digits mezo:lr=1e-2 tpsgd                       beside backpropagation, which always takes part
  localplug bench mnist vowels tpsgd drtp backprop:lr=3e-3 --seeds 0,1,2 --data DIR --out runs.jsonl
  localplug bench digits mezo:lr=1e-4..1e-1,eps=1e-3 tpsgd --tune 20          the same number of trials for all
  localplug bench digits vowels mezo tpsgd --tune 20 --protocol fixed         one setting for all tasks, scored
  localplug bench ring.py:Ring mezo:lr=0.05                       a task of your own
  localplug bench digits mezo --list                              what is not done yet

A run that is in the file already is not made again: stop it at any time, and start it again by the same line.
"""


def main(argv: Sequence[str]) -> int:
    """Run `localplug bench` with these arguments; gives the exit status."""
    parser = _parser()
    options = parser.parse_args(argv)
    try:
        setting, records = _asked(options)
    except ValueError as error:
        parser.error(str(error))
    from localplug_bench.bench import Bench

    bench = Bench(setting, records, terminal.complain)
    if options.list:
        for task, seed, way in bench.left():
            terminal.say(f"{task}, {way}, seed {seed}")
        return 0
    before = sum(1 for _ in records)
    if records.num_ignored:
        terminal.complain(f"{records.num_ignored} line(s) of {records.path} are cut off or no JSON, and are ignored")
    try:
        for _ in terminal.progress(bench.run(), "training", total=bench.num_laps):
            pass
    except KeyboardInterrupt:
        terminal.complain(f"interrupted; what was over is in {records.path}, and the same line goes on with the rest")
        raise
    lines = [line for line in records if line.get("kind") == "run" and line["task"] in setting.tasks]
    if options.json:
        terminal.as_json(list(records)[before:])
    else:
        _show(lines, setting, options.target)
    return int(any(line["status"] == "failed" for line in list(records)[before:] if line.get("kind") == "run"))


def _show(lines: Sequence[dict[str, Any]], setting: Any, target: float) -> None:
    from localplug_bench import performance_profile, table

    terminal.table(table.COLUMNS, [table.COLUMNS, *table.rows(lines)] if not _is_terminal() else table.rows(lines))
    terminal.say(table.EXPLAINED)
    if setting.protocol == "fixed":
        for unit in ("forward_passes", "seconds"):
            times = performance_profile.times_to_targets(lines, target, unit)
            scored = performance_profile.scores(times) if times else {}
            for way, score in sorted(scored.items(), key=lambda item: -item[1]):
                terminal.say(f"integrated performance profile by {unit.replace('_', ' ')}: {way}  {score:.3f}")


def _is_terminal() -> bool:
    import rich.console

    return rich.console.Console().is_terminal


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="localplug bench",
        description="Train each task by each method and by backpropagation, with the same budget of forward passes, and write "
        "a line of JSON for each run: quality, passes, time and its parts, memory, energy, what is stored.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "what",
        nargs="+",
        metavar="TASK|METHOD",
        help="names, with options as NAME:option=value,...; a task of your own is FILE.py:CLASS; options of every way are "
        "lr, weight_decay, optimizer and schedule, LOW..HIGH and a|b are left to --tune",
    )
    add("--budget", type=int, metavar="N", help="forward passes of a run, a backward pass counting as two (task's own)")
    add(
        "--count",
        choices=("passes", "operations"),
        default="passes",
        help="what the budget counts, by a rule or measured (passes)",
    )
    add("--seeds", default="0", help="of the runs, such as 0,1,2 or 0-4 (0)")
    add("--out", type=pathlib.Path, default=pathlib.Path("runs.jsonl"), help="file that runs are added to (runs.jsonl)")
    add("--data", type=pathlib.Path, metavar="DIR", help="folder of data sets")
    add("--batch-size", type=int, metavar="N", help="examples of a step (task's own)")
    add("--evaluations", type=int, default=10, metavar="N", help="measurements of quality during a run (10)")
    add("--patience", type=int, metavar="N", help="stop after N measurements without a better one (never)")
    add("--keep", choices=("best", "last"), default="best", help="which weights are tested (best)")
    add("--laps", type=int, default=2, metavar="N", help="turns between two measurements (2)")
    add("--tune", type=int, default=0, metavar="N", help="trials of a search for the options of each way (none)")
    add("--protocol", choices=("each", "fixed"), default="each", help="options for each task, or fixed for all (each)")
    add(
        "--target",
        type=float,
        default=0.9,
        help="share of backpropagation's gain that fixed settings are timed to (0.9)",
    )
    add("--device", default="cpu", help="cpu or cuda (cpu)")
    add("--threads", type=int, metavar="N", help="of torch")
    add("--watts", type=float, help="of a core, for an estimate of energy where there is no counter")
    add("--no-costs", action="store_true", help="leave out what a process of its own measures: memory, operations")
    add(
        "--observe",
        type=int,
        metavar="N",
        help="compare every N-th estimate with the true gradient, by backpropagation (none)",
    )
    add("--list", action="store_true", help="say what is not done, and do nothing")
    add("--json", action="store_true", help="print the new lines instead of a table")
    return parser


def _asked(options: argparse.Namespace) -> tuple[Any, Any]:
    """The setting, and the file of runs.

    Raises:
        ValueError: what was asked for does not fit together, or data is missing; lists every reason.
    """
    from localplug_bench.specs import parsed

    words = list({str(word): word for word in map(parsed, options.what)}.values())
    tasks_known, methods_known = set(plugins.names("tasks")), set(plugins.names("methods")) | {"backprop"}
    is_task = [".py:" in word.name or word.name in tasks_known for word in words]
    wrong = [f"{word.name!r} is both a task and a method" for word in words if word.name in tasks_known & methods_known]
    for word, so in zip(words, is_task, strict=True):
        if not so and word.name not in methods_known:
            wrong.append(
                f"no task or method named {word.name!r}; tasks: {', '.join(sorted(tasks_known))}; methods: "
                f"{', '.join(sorted(methods_known))}"
            )
    if not any(is_task):
        wrong.append("name at least one task")
    if options.threads is not None and options.threads < 1:
        wrong.append(f"--threads must be at least 1, got {options.threads}")
    if options.tune < 0:
        wrong.append(f"--tune must not be negative, got {options.tune}")
    if not 0 < options.target <= 1:
        wrong.append(f"--target must be in (0, 1], got {options.target}")
    if ranged := [str(word) for word in words if word.ranges and not options.tune]:
        wrong.append(f"{', '.join(ranged)}: ranges are for a search; pass --tune N")
    if ranged := [str(word) for word, so in zip(words, is_task, strict=True) if so and word.ranges]:
        wrong.append(f"{', '.join(ranged)}: a task's options are not searched for; give each one value")
    seeds: list[int] = []
    try:
        seeds = _seeds(options.seeds)
    except ValueError:
        wrong.append(f"--seeds must be like 0,1,2 or 0-4, got {options.seeds!r}")
    if wrong:
        raise ValueError("; ".join(wrong))
    return _made(options, words, is_task, seeds)


def _made(options: argparse.Namespace, words: Sequence[Any], is_task: Sequence[bool], seeds: list[int]) -> Any:
    import torch

    from localplug_bench.bench import Setting
    from localplug_bench.records import Records
    from localplug_bench.training import Plan

    wrong, tasks, plan = [], {}, None
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    for word, so in zip(words, is_task, strict=True):
        try:
            if so:
                tasks[str(word)] = localplug.task(word.name, data=options.data, **word.options)
                tasks[str(word)].parts(seeds[0])
            elif word.name != "backprop" and not word.ranges:
                localplug.method(word.name, **word.of_the_method)
        except (localplug.LocalPlugError, ImportError, OSError, TypeError, ValueError) as error:
            wrong.append(f"{word}: {error}")
    try:
        plan = Plan(
            options.budget,
            options.batch_size,
            options.evaluations,
            options.laps,
            options.patience,
            options.keep,
            options.device,
            options.observe,
            options.count,
        )
    except ValueError as error:
        wrong.append(str(error))
    if wrong or plan is None:
        raise ValueError("; ".join(wrong))
    setting = Setting(
        tasks,
        [word for word, so in zip(words, is_task, strict=True) if not so],
        seeds,
        plan,
        options.tune,
        options.protocol,
        None if options.data is None else str(options.data),
        not options.no_costs,
        options.watts,
        options.threads,
    )
    return setting, Records(options.out)


def _seeds(text: str) -> list[int]:
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        found += range(int(first), int(last) + 1) if dash else [int(first)]
    return list(dict.fromkeys(found))
