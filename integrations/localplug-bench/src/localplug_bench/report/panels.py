"""The runs of one task under one setting, by way of training: what a reader compares with each other.

Runs of other budgets, batches or rules of stopping are panels of their own, since they are not comparable.
"""

import dataclasses
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, final

SETTING = ("budget", "count", "batch_size", "evaluations", "patience", "keep", "protocol", "trials", "device")
Run = Mapping[str, Any]


@final
@dataclasses.dataclass(frozen=True)
class Spread:
    """A number for each seed: their mean, smallest and largest."""

    mean: float
    low: float
    high: float
    num: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> "Spread | None":
        """None where there is no number.

        Example:
            >>> Spread.of([1.0, None, 3.0])
            Spread(mean=2.0, low=1.0, high=3.0, num=2)
        """
        found = [float(value) for value in values if value is not None]
        return cls(statistics.fmean(found), min(found), max(found), len(found)) if found else None


@final
@dataclasses.dataclass(frozen=True)
class Panel:
    """Comparable runs.

    Args:
        task: what the user typed for it.
        setting: budget, rule of stopping and what else all runs have in common.
        ways: {way of training: its runs, one for each seed}, backpropagation first.
    """

    task: str
    setting: Mapping[str, Any]
    ways: Mapping[str, list[Run]]

    @property
    def runs(self) -> list[Run]:
        """All of them."""
        return [run for runs in self.ways.values() for run in runs]

    @property
    def higher_is_better(self) -> bool:
        """Of the task's quality."""
        return bool(self.runs[0]["higher_is_better"])

    @property
    def metric(self) -> str:
        """What the quality is called."""
        return self.runs[0]["metric"] or "quality"

    @property
    def heading(self) -> str:
        """Which way the quality is better, and the task."""
        return f"{self.metric}, {'higher' if self.higher_is_better else 'lower'} is better: {self.task}"

    def trained(self) -> dict[str, list[Run]]:
        """{way: runs that came to a quality}."""
        found = {way: [r for r in runs if r["status"] in ("done", "diverged")] for way, runs in self.ways.items()}
        return {way: runs for way, runs in found.items() if runs}

    def spread(self, way: str, value: str | Callable[[Run], float | None]) -> Spread | None:
        """Of a field, or of what a function finds, over the seeds of a way that trained."""
        get = value if callable(value) else lambda run: run[value]
        return Spread.of(get(run) for run in self.trained().get(way, []))


def panels(runs: Sequence[Run]) -> list[Panel]:
    """All of them, in the order in which their first runs came; of a run that was made again the last one counts."""
    latest: dict[Any, Run] = {}
    for run in runs:
        where = (run["task"], *(run[name] for name in SETTING), run["way"], run["seed"])
        latest[where] = run
    order = list(dict.fromkeys(run["task"] for run in runs))
    groups: dict[Any, dict[str, list[Run]]] = {}
    for (*setting, way, _), run in sorted(latest.items(), key=lambda item: not item[1]["is_backprop"]):
        groups.setdefault(tuple(setting), {}).setdefault(way, []).append(run)
    made = [
        Panel(task, dict(zip(SETTING, setting, strict=True)), {w: _by_seed(r) for w, r in ways.items()})
        for (task, *setting), ways in groups.items()
    ]
    return sorted(made, key=lambda panel: order.index(panel.task))


def _by_seed(runs: Iterable[Run]) -> list[Run]:
    return sorted(runs, key=lambda run: run["seed"])


def till_tested(run: Run, unit: str) -> float | None:
    """Forward passes, as the budget counts them, or seconds, until the weights that were tested; of a run that brought nothing,
    and was tested as it began, the whole of them."""
    for point in run["curve"]:
        if point["step"] and point["step"] == run["best_step"]:
            return float(point[unit])
    return run["budget_used"] if unit == "forward_passes" else run["seconds"]


def front(points: Mapping[str, tuple[float, float]], higher_is_better: bool) -> list[str]:
    """The Pareto front of {name: (cost, quality)}: those that no other beats in one and equals or beats in the other.

    Returns: their names, the cheapest first.

    Example:
        >>> front({"a": (1.0, 0.5), "b": (2.0, 0.9), "c": (3.0, 0.8)}, higher_is_better=True)
        ['a', 'b']
    """
    sign = 1 if higher_is_better else -1
    found: list[str] = []
    best: tuple[float, float] | None = None  # (cost, signed quality) of the last one that was taken
    for name, (cost, quality) in sorted(points.items(), key=lambda item: (item[1][0], -sign * item[1][1])):
        if best is None or sign * quality > best[1] or (cost, sign * quality) == best:
            found.append(name)
            best = cost, sign * quality
    return found
