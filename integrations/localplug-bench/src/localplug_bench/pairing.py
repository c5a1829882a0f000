"""Runs that alternate in one process: a lap of each in turn, so that a machine that slows down slows all of them.

What compares their times is the ratio of laps that were next to each other, and not the ratio of two sums.
"""

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from localplug_bench.training import Plan, Training


def alternate(trainings: Sequence[Training], plan: Plan) -> Iterator[tuple[Training, int]]:
    """Train all of them to their end, taking turns, in an order that is turned round from lap to lap.

    Yields: (the run, number of the lap) after each lap, also for runs that are over, so that all laps are counted.
    """
    laps = plan.evaluations * plan.laps
    for number in range(1, laps + 1):
        for training in trainings if number % 2 else reversed(trainings):
            if not training.is_over:
                training.lap(training.budget * number / laps)
                if number % plan.laps == 0 or training.is_over:
                    training.measure()
            yield training, number


def ratios(training: Training, twin: Training) -> dict[str, Any]:
    """Seconds for the same budget, and seconds for a step, over those of the twin: medians over the laps of both.

    The first lap, in which code is compiled and memory is claimed, is left out where there are others.
    """
    both = list(zip(training.laps, twin.laps, strict=False))[1 if len(training.laps) > 1 else 0 :]
    whole = [a[1] / a[0] / (b[1] / b[0]) for a, b in both if a[0] and b[0] and b[1]]
    price = (training.used / max(training.way.num_steps, 1)) / (twin.used / max(twin.way.num_steps, 1) or 1)
    ratio = statistics.median(whole) if whole else None
    return {
        "time_over_backprop": ratio,
        "step_time_over_backprop": None if ratio is None else ratio * price,
        "paired_laps": len(whole),
    }
