"""What each plot shows, as numbers; drawing.py draws it.

Points are means over seeds, with bars from the smallest to the largest. A front is the Pareto front of the means.
"""

import dataclasses
import math
import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any, final

from localplug_bench import performance_profile
from localplug_bench.report.panels import Panel, Run, Spread, front, till_tested

PASSES, SECONDS, BYTES, JOULES = "forward passes", "seconds", "bytes", "joules"
Values = Sequence[tuple[float, float]]
_DEPTH = re.compile(r"(?<=[:,])depth=(\d{1,6})(?:,|$)")  # an option of a task


@final
@dataclasses.dataclass(frozen=True)
class Series:
    """What one way of training shows.

    Args:
        way: its name, which decides colour, marker and dashes in all figures.
        points: (x, y), in order of x where a line joins them.
        x_spread, y_spread: of each point, (low, high).
        threads: thin lines beside, one for each seed.
    """

    way: str
    points: Values
    x_spread: Values = ()
    y_spread: Values = ()
    threads: Sequence[Values] = ()


@final
@dataclasses.dataclass(frozen=True)
class Figure:
    """One plot.

    Args:
        name: of its files; letters, digits and dashes.
        title: what it shows.
        heading: of what; above the plot.
        about: a sentence on how to read it.
        x, y: what the axes are called; units among them.
        joined: whether a line joins the points of a series; "steps" for one that jumps.
        front: of (x, y), drawn in steps.
        categories: what whole numbers of y stand for.
        at: x of an upright line to compare with.
        x_log, y_log: whether an axis is in proportion.
        from_zero: whether y begins at 0.
    """

    name: str
    title: str
    heading: str
    about: str
    x: str
    y: str
    series: Sequence[Series]
    joined: bool | str = False
    front: Values = ()
    categories: Sequence[str] = ()
    at: float | None = None
    x_log: bool = False
    y_log: bool = False
    from_zero: bool = False

    def rows(self) -> list[tuple[str, str, str]]:
        """(way, x, y) of each series' last point, or of all where they are not joined, for whoever does not see the plot."""
        found = []
        for one in self.series:
            for number, (x, y) in enumerate(one.points):
                if self.joined and number < len(one.points) - 1:
                    continue
                shown = self.categories[int(y)] if self.categories else number_text(y, self.y)
                found.append((one.way, number_text(x, self.x), shown))
        return found


def number_text(value: float, unit: str = "") -> str:
    """A number to read: bytes in kB, MB, GB; others with three significant digits, or whole."""
    if BYTES in unit:
        for size, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
            if abs(value) >= size:
                return f"{value / size:.1f} {name}"
        return f"{value:.0f} B"
    if abs(value) >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.3g}"


def of_panel(panel: Panel, number: int) -> list[Figure]:
    """All plots of the runs of one task; those that have nothing to show are left out."""
    found = [
        _against(panel, number, "passes", f"{PASSES}, a backward pass counting as two", _till("forward_passes")),
        _against(panel, number, "seconds", f"{SECONDS} of training", _till("seconds")),
        _against(
            panel, number, "memory", f"peak {BYTES} of a step above the loaded model", lambda run: run["peak_bytes"]
        ),
        _against(panel, number, "energy", f"{JOULES} of the run{_kinds(panel)}", lambda run: run["energy_joules"]),
        _learning(panel, number, "forward_passes", PASSES),
        _learning(panel, number, "seconds", SECONDS),
        _ratios(panel, number),
        _observed(panel, number, "alignment", "cosine to the true gradient", y_log=False),
        _observed(panel, number, "estimate_variance", "tr Cov of the estimate", y_log=True),
    ]
    return [figure for figure in found if figure is not None]


def _till(unit: str) -> Callable[[Run], float | None]:
    return lambda run: till_tested(run, unit)


def _kinds(panel: Panel) -> str:
    kinds = dict.fromkeys(run["energy_kind"] for run in panel.runs if run["energy_kind"])
    return f" ({', '.join(kinds)})" if kinds else ""


ABOUT = {
    "passes": "Cost is counted until the weights that were tested; where training brought nothing, it is the whole run. A bar "
    "goes from the smallest to the largest seed. The grey "
    "steps are the Pareto front of the means: what no other beats in both.",
    "seconds": "Seconds until the weights that were tested, on the machine below. Bars and front as before.",
    "memory": "What a step needs on top of the model and the process. Bars and front as before.",
    "energy": "Energy of the whole run. Bars and front as before.",
}


def _against(panel: Panel, number: int, name: str, x: str, cost: Callable[[Run], float | None]) -> Figure | None:
    series, means = [], {}
    for way in panel.trained():
        c, q = panel.spread(way, cost), panel.spread(way, "quality_test")
        if c is not None and q is not None:
            series.append(Series(way, [(c.mean, q.mean)], [(c.low, c.high)], [(q.low, q.high)]))
            means[way] = c.mean, q.mean
    if not series:
        return None
    costs = [c for c, _ in means.values()]
    return Figure(
        f"{number:02}-quality-{name}",
        f"Quality against {name.replace('passes', 'forward passes').replace('seconds', 'time')}",
        panel.heading,
        ABOUT[name],
        x,
        f"test {panel.metric}",
        series,
        front=[means[way] for way in front(means, panel.higher_is_better)],
        x_log=min(costs) > 0 and max(costs) > 20 * min(costs),
    )


def _learning(panel: Panel, number: int, unit: str, x: str) -> Figure | None:
    series: list[Series] = []
    for way, runs in panel.trained().items():
        threads = [
            [(float(p[unit]), float(p["quality"])) for p in run["curve"] if p["quality"] is not None] for run in runs
        ]
        series += _curve(way, threads)
    if not series:
        return None
    return Figure(
        f"{number:02}-learning-{x.replace(' ', '-')}",
        f"Learning, by {x.replace('seconds', 'time')}",
        panel.heading,
        "Validation quality at equal shares of the budget. The thick line is the mean over seeds, as far as all of them go; "
        "the thin ones are the seeds.",
        x,
        f"validation {panel.metric}",
        series,
        joined=True,
    )


def _curve(way: str, threads: Sequence[Sequence[tuple[float, float]]]) -> list[Series]:
    """The mean over the seeds, as far as all of them go, and each by itself; nothing where no seed has a point."""
    threads = [thread for thread in threads if thread]
    if not threads:
        return []
    means = [_mean(points) for points in zip(*threads, strict=False)]
    return [Series(way, means, threads=threads if len(threads) > 1 else ())]


def _mean(points: Iterable[tuple[float, float]]) -> tuple[float, float]:
    xs, ys = zip(*points, strict=True)
    return statistics.fmean(xs), statistics.fmean(ys)


def _ratios(panel: Panel, number: int) -> Figure | None:
    series: list[Series] = []
    ways = [way for way in panel.trained() if not panel.ways[way][0]["is_backprop"]]
    shown = [way for way in ways if panel.spread(way, "time_over_backprop")]
    for place, way in enumerate(shown):
        both = [panel.spread(way, name) for name in ("time_over_backprop", "step_time_over_backprop")]
        found: list[Spread] = [spread for spread in both if spread is not None and spread.low > 0]
        if found:
            series.append(
                Series(
                    way, [(s.mean, float(place)) for s in found], [(s.low, s.high) for s in found], [(place, place)] * 2
                )
            )
    if not series:
        return None
    return Figure(
        f"{number:02}-time-ratios",
        "Time over backpropagation's",
        panel.task,
        "Left of 1 is faster. Filled: for the same budget; hollow: for a step. Each is a median over laps that alternate with "
        "backpropagation's in one process; the mark is the mean over seeds, the bar goes from the smallest to the largest.",
        "filled: same budget; hollow: one step",
        "",
        series,
        categories=shown,
        at=1.0,
        x_log=True,
    )


def _observed(panel: Panel, number: int, name: str, y: str, *, y_log: bool) -> Figure | None:
    series: list[Series] = []
    for way, runs in panel.trained().items():
        threads = []
        for run in runs:
            seen = [(p["forward_passes"], (p.get("observed") or {}).get(name)) for p in run["curve"]]
            threads.append([(float(x), float(v)) for x, v in seen if v is not None and not (y_log and v <= 0)])
        series += _curve(way, threads)
    if not series:
        return None
    return Figure(
        f"{number:02}-{name.replace('_', '-')}",
        {"alignment": "What an estimate is worth", "estimate_variance": "Variance of the estimate"}[name],
        panel.task,
        "Means of what the observer saw since the point before.",
        PASSES,
        y,
        series,
        joined=True,
        y_log=y_log,
    )


# ---- over several tasks -----------------------------------------------------------------------------------------------------


def by_depth(panels: Sequence[Panel]) -> list[Figure]:
    """Memory against the depth of a task's model, where there are runs of several depths."""
    families: dict[Any, dict[int, Panel]] = {}
    for panel in panels:
        said = _DEPTH.search(panel.task)
        if said is not None:
            rest = _DEPTH.sub("", panel.task).rstrip(":")
            setting = tuple((name, value) for name, value in panel.setting.items() if name != "budget")
            families.setdefault((rest, setting), {})[int(said[1])] = panel
    found = []
    for number, ((task, _), by) in enumerate((family for family in families.items() if len(family[1]) > 1), 1):
        for field, what in (("saved_bytes", "saved by autograd"), ("peak_bytes", "peak of a step")):
            series = []
            for way in dict.fromkeys(way for panel in by.values() for way in panel.trained()):
                at = [(depth, panel.spread(way, field)) for depth, panel in sorted(by.items())]
                there = [(depth, spread) for depth, spread in at if spread is not None]
                if there:
                    points = [(float(depth), spread.mean) for depth, spread in there]
                    series.append(Series(way, points, y_spread=[(spread.low, spread.high) for _, spread in there]))
            if series:
                found.append(
                    Figure(
                        f"depth-{number}-{field.replace('_', '-')}",
                        f"Memory against depth: {what}",
                        task,
                        "What stays flat does not grow with the depth of the model.",
                        "depth",
                        BYTES,
                        series,
                        joined=True,
                        from_zero=True,
                    )
                )
    return found


def profiles(runs: Sequence[Run], target: float) -> tuple[list[Figure], dict[str, dict[str, float]], list[str]]:
    """Performance profiles of the runs with one setting for all tasks, by forward passes and by seconds.

    Args:
        target: in (0, 1]; see performance_profile.times_to_targets.

    Returns: the figures; {unit: {way: integrated profile}}; why there is none where there might have been one.
    """
    there = [
        run
        for run in runs
        if run["protocol"] == "fixed"
        and run["status"] in ("done", "diverged")
        and run["curve"]
        and run["quality_start"] is not None
        and run["quality_validation"] is not None
    ]
    figures: list[Figure] = []
    scores: dict[str, dict[str, float]] = {}
    remarks: list[str] = []
    units: tuple[performance_profile.Unit, ...] = ("forward_passes", "seconds")
    for unit in units if there else ():
        lines = [{**run, "kind": "run"} for run in there]
        times = performance_profile.times_to_targets(lines, target, unit)
        try:
            ratios = performance_profile.ratios(times)
            scores[unit] = performance_profile.scores(times)
        except ValueError as error:
            remarks.append(f"no performance profile by {unit.replace('_', ' ')}: {error}")
            continue
        series = [_profile(way, by_task.values()) for way, by_task in ratios.items() if by_task]
        if series:
            what = unit.replace("_", " ")
            figures.append(
                Figure(
                    f"profile-{what.replace(' ', '-')}",
                    f"Performance profile, by {what.replace('seconds', 'time')}",
                    "all tasks, one setting for each way",
                    f"The share of the tasks on which a way of training reaches the target within r times the {what} of the "
                    f"quickest. The further up and to the left, the better.",
                    f"r, times the {what} of the quickest",
                    "share of the tasks",
                    series,
                    joined="steps",
                    from_zero=True,
                )
            )
    return figures, scores, remarks


def _profile(way: str, ratios: Iterable[float]) -> Series:
    found, r_max = list(ratios), performance_profile.R_MAX
    steps = sorted({1.0, r_max, *(r for r in found if not math.isinf(r) and r <= r_max)})
    return Series(way, [(r, performance_profile.profile(found, r)) for r in steps])
