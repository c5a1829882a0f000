"""The numbers of a report as tables: cells with what is shown and what is sorted by."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, final

from localplug_bench.report.figures import BYTES, number_text
from localplug_bench.report.panels import Panel, Run, Spread

MAX_REASON = 300  # characters
PARTS = ("forward", "perturbation", "backward", "update", "data", "framework")


@final
@dataclasses.dataclass(frozen=True)
class Cell:
    """Text, and the number that it is sorted by; None: text is sorted by itself, and "" comes last."""

    text: str
    number: float | None = None


@final
@dataclasses.dataclass(frozen=True)
class Table:
    """One table.

    Args:
        title: what it shows.
        columns: (name, whether it holds numbers).
        rows: a cell for each column.
        about: a sentence on how to read it.
    """

    title: str
    columns: Sequence[tuple[str, bool]]
    rows: Sequence[Sequence[Cell]]
    about: str = ""


def _spread(value: Spread | None, unit: str = "", *, with_range: bool = False, scale: float = 1.0) -> Cell:
    if value is None:
        return Cell("")
    text = number_text(value.mean * scale, unit)
    if with_range and value.high > value.low:
        text += f" ({number_text(value.low * scale, unit)} to {number_text(value.high * scale, unit)})"
    return Cell(text, value.mean)


def overview(panels: Sequence[Panel]) -> Table:
    """A row for each task and way of training."""
    rows = []
    for panel in panels:
        for way, runs in panel.ways.items():
            tests = panel.spread(way, "quality_test")
            start = panel.spread(way, "quality_start")
            statuses = ", ".join(dict.fromkeys(str(run["status"]) for run in runs))
            rows.append(
                [
                    Cell(panel.task),
                    Cell(way),
                    Cell(str(len(runs)), len(runs)),
                    Cell(statuses),
                    Cell(str(panel.runs[0]["metric"] or "")),
                    _quality(start),
                    _quality(tests),
                    Cell("", None)
                    if tests is None or tests.num < 2
                    else Cell(f"{tests.high - tests.low:.4f}", tests.high - tests.low),
                    _spread(panel.spread(way, "budget_used")),
                    _spread(panel.spread(way, _measured)),
                    _spread(panel.spread(way, "seconds")),
                    _spread(panel.spread(way, "time_over_backprop"), with_range=True),
                    _spread(panel.spread(way, "peak_bytes"), BYTES),
                    _spread(panel.spread(way, "saved_bytes"), BYTES),
                    _spread(panel.spread(way, "stored_bytes"), BYTES),
                    _spread(panel.spread(way, "energy_joules")),
                ]
            )
    names = [
        *(
            "task",
            "way",
            "seeds",
            "status",
            "metric",
            "untrained",
            "test quality",
            "spread",
            "passes",
            "measured passes",
        ),
        *("seconds", "time over backprop's", "peak memory", "saved by autograd", "stored", "joules"),
    ]
    texts = {"task", "way", "metric", "status"}
    return Table(
        "All tasks",
        [(name, name not in texts) for name in names],
        rows,
        "Means over seeds. Spread: largest less smallest. Untrained: on validation examples. Passes: forward passes by the "
        "rule, a backward pass as two; measured: by the operations of a step over those of a forward pass. Time over "
        "backprop's: for the same budget, from laps that alternate in one process, with the smallest and the largest seed. "
        "Peak memory: of a step above the loaded model. Stored: the weights, and what the method needs to predict.",
    )


def _quality(value: Spread | None) -> Cell:
    return Cell("") if value is None else Cell(f"{value.mean:.4f}", value.mean)


def _measured(run: Run) -> float | None:
    steps, step, forward = run["steps"], run["flops_step"], run["flops_forward"]
    return steps * step / forward if steps is not None and step is not None and forward else None


def runs_of(panel: Panel) -> Table:
    """A row for each run of a task."""
    rows = []
    for way, runs in panel.ways.items():
        for run in runs:
            seconds = run["seconds"]
            shares = [run[f"seconds_{part}"] for part in PARTS]
            rows.append(
                [
                    Cell(way),
                    Cell(str(run["seed"]), run["seed"]),
                    *(_number(run[name], "{:.4f}") for name in ("quality_validation", "quality_test")),
                    _number(run["steps"], "{:,.0f}"),
                    _number(run["best_step"], "{:,.0f}"),
                    _number(seconds, "{:.3g}"),
                    *(
                        Cell("")
                        if share is None or not seconds
                        else Cell(f"{100 * share / seconds:.0f} %", share / seconds)
                        for share in shares
                    ),
                    _number(run["step_time_over_backprop"], "{:.3g}"),
                    Cell(str(run["status"])),
                ]
            )
    columns = [
        "way",
        "seed",
        "validation",
        "test",
        "steps",
        "tested step",
        "seconds",
        *PARTS,
        "step time over backprop's",
        "status",
    ]
    return Table(
        f"Runs of {panel.task}",
        [(name, name not in ("way", "status")) for name in columns],
        rows,
        "From forward to framework: the share of the seconds that went into it.",
    )


def _number(value: float | None, shape: str) -> Cell:
    return Cell("") if value is None else Cell(shape.format(value), float(value))


def untrained(runs: Iterable[Run]) -> Table | None:
    """What was refused or failed, and why."""
    rows = [
        [
            Cell(run["task"]),
            Cell(run["way"]),
            Cell(str(run["seed"]), run["seed"]),
            Cell(run["status"]),
            Cell(_short(run["reason"])),
        ]
        for run in runs
        if run["status"] in ("refused", "failed", "diverged")
    ]
    columns = [("task", False), ("way", False), ("seed", True), ("status", False), ("reason", False)]
    return Table("What did not train", columns, rows) if rows else None


def _short(text: str | None) -> str:
    words = " ".join((text or "").split())
    return words if len(words) <= MAX_REASON else f"{words[:MAX_REASON]}…"


def searches(trials: Iterable[Mapping[str, Any]]) -> Table | None:
    """The searches for options: how many trials, and the best one."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for trial in trials:
        groups.setdefault(trial["key"], []).append(trial)
    rows = []
    for found in groups.values():
        done = [trial for trial in found if trial["value"] is not None]
        best = max(done, key=lambda trial: trial["value"], default=None)
        rows.append(
            [
                Cell(_short(", ".join(found[0]["tasks"]))),
                Cell(found[0]["spec"]),
                Cell(str(len(found)), len(found)),
                Cell("") if best is None else Cell(f"{best['value']:.4f}", best["value"]),
                Cell("" if best is None else _short(", ".join(f"{k}={v}" for k, v in best["chosen"].items()))),
            ]
        )
    columns = [("tasks", False), ("way", False), ("trials", True), ("best share", True), ("its options", False)]
    about = "Share: how much of the way from the untrained model to a perfect one was made, on validation examples."
    return Table("Searches for options", columns, rows, about) if rows else None


def profile_scores(scores: Mapping[str, Mapping[str, float]]) -> Table | None:
    """The integrated performance profiles."""
    ways = list(dict.fromkeys(way for by_way in scores.values() for way in by_way))
    rows = [[Cell(way), *(_number(by_way.get(way), "{:.3f}") for by_way in scores.values())] for way in ways]
    columns = [("way", False), *((f"by {unit.replace('_', ' ')}", True) for unit in scores)]
    return Table("Integrated performance profile", columns, rows, "From 0 to 1; higher is better.") if rows else None


def made_on(runs: Iterable[Run]) -> Table:
    """Machines and versions."""
    names = ("machine", "cpu_capability", "device", "threads", "python", "torch", "localplug", "date")
    groups: dict[tuple[str, ...], int] = {}
    for run in runs:
        where = tuple("" if run[name] is None else str(run[name]) for name in names)
        groups[where] = groups.get(where, 0) + 1
    rows = [[*map(Cell, where), Cell(str(number), number)] for where, number in groups.items()]
    return Table("How it was made", [*((name.replace("_", " "), False) for name in names), ("runs", True)], rows)
