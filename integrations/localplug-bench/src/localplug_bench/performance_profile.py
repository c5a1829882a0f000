"""One setting for all tasks, scored: AlgoPerf's performance profiles and their integral.

With t_mw what method m needs to reach the target of task w (inf if it does not), over n tasks:

    r_mw     = t_mw / min over methods of t_mw
    rho_m(r) = (number of w with r_mw <= r) / n                        the profile, Dolan and More, 2002
    B_m      = 1 / (r_max - 1) * integral of rho_m from 1 to r_max     in [0, 1]; r_max = 4

as mlcommons/algorithmic-efficiency scores, docs/DOCUMENTATION.md. Since rho_m is a sum of steps, the integral is a sum:
B_m = (1/n) * sum over w of max(0, r_max - r_mw) / (r_max - 1).
"""

import math
import statistics
from collections.abc import Iterable, Mapping
from typing import Any, Literal

R_MAX = 4.0
TARGET = 0.9  # of the way from the untrained model to backpropagation's best
Unit = Literal["forward_passes", "seconds"]


def ratios(times: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """{method: {task: its time over the best time on that task}}; inf where a target is not reached.

    Args:
        times: {method: {task: time to the target, or inf}}, in any unit; every method has the same tasks.

    Raises:
        ValueError: the methods have different tasks, or a time is not positive.
    """
    tasks = {frozenset(by_task) for by_task in times.values()}
    if len(tasks) > 1:
        raise ValueError(f"every method needs a time on every task, got {[sorted(t) for t in tasks]}")
    if any(not t > 0 for by_task in times.values() for t in by_task.values()):
        raise ValueError("times must be positive; inf for a target that is not reached")
    best = {task: min(by_task[task] for by_task in times.values()) for task in next(iter(tasks), frozenset())}
    return {
        method: {task: math.inf if math.isinf(t) else t / best[task] for task, t in by_task.items()}
        for method, by_task in times.items()
    }


def profile(ratios_of_method: Iterable[float], r: float) -> float:
    """rho(r): the share of the tasks on which a method is within r times the best."""
    found = list(ratios_of_method)
    return sum(ratio <= r for ratio in found) / len(found)


def scores(times: Mapping[str, Mapping[str, float]], r_max: float = R_MAX) -> dict[str, float]:
    """{method: B}, in [0, 1]; higher is better.

    Args:
        times: see `ratios`.
        r_max: above 1.

    Example:
        >>> scores({"a": {"x": 1.0, "y": 2.0}, "b": {"x": 2.5, "y": 1.0}})
        {'a': 0.8333333333333334, 'b': 0.75}
    """
    if not r_max > 1:
        raise ValueError(f"r_max must be above 1, got {r_max}")
    return {
        method: sum(max(0.0, r_max - ratio) for ratio in by_task.values()) / (r_max - 1) / len(by_task)
        for method, by_task in ratios(times).items()
    }


def times_to_targets(
    lines: Iterable[Mapping[str, Any]], target: float = TARGET, unit: Unit = "forward_passes"
) -> dict[str, dict[str, float]]:
    """{way of training: {task: what it needs to reach the task's target}}, medians over seeds, from lines of the file of runs.

    The target of a task is the validation quality `target` of the way from the untrained model to the median over seeds of what
    backpropagation reaches, by the best of its settings if there are several. Tasks without backpropagation, and ways that lack
    a task, are left out.

    Args:
        target: in (0, 1].
        unit: forward passes as the budget counts them, or seconds of training.
    """
    runs = [line for line in lines if line.get("kind") == "run" and line.get("status") in ("done", "diverged")]
    goals = {}
    for task in {line["task"] for line in runs}:
        twins: dict[str, list[Mapping[str, Any]]] = {}
        for line in runs:
            if line["task"] == task and line["is_backprop"]:
                twins.setdefault(line["way"], []).append(line)
        sign = next((1 if line["higher_is_better"] else -1 for line in runs if line["task"] == task), 1)
        reached = [
            (sign * statistics.median(line["quality_validation"] for line in lines_of), lines_of)
            for lines_of in twins.values()
        ]
        if reached:
            best, lines_of = max(reached, key=lambda pair: pair[0])
            start = statistics.median(line["quality_start"] for line in lines_of)
            goals[task] = (start + target * (sign * best - start), sign)
    found: dict[str, dict[str, float]] = {}
    for way in dict.fromkeys(line["way"] for line in runs):
        mine: dict[str, list[float]] = {}
        for line in runs:
            if line["way"] == way and line["task"] in goals:
                mine.setdefault(line["task"], []).append(_reached(line["curve"], *goals[line["task"]], unit))
        if set(mine) == set(goals):
            found[way] = {task: statistics.median(times) for task, times in mine.items()}
    return found


def _reached(curve: Iterable[Mapping[str, Any]], goal: float, sign: int, unit: Unit) -> float:
    for point in curve:
        if point["step"] and point["quality"] is not None and sign * point["quality"] >= sign * goal:
            return float(point[unit])
    return math.inf
