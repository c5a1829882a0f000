"""The lines of the file of runs as a table of a row for each task and way of training, means over seeds."""

import statistics
from collections.abc import Iterable, Mapping
from typing import Any

COLUMNS = ("task", "way", "seeds", "quality", "spread", "passes", "measured", "time", "peak", "saved", "status")
EXPLAINED = (
    "quality: on test examples, mean over seeds; spread: largest less smallest. passes: forward passes counted by the rule, a "
    "backward pass as two; measured: by the operations of a step over those of a forward pass. time: seconds for the same "
    "budget over backpropagation's, from laps that alternate. peak: memory of a step above the loaded model; saved: what "
    "autograd holds of it."
)


def rows(lines: Iterable[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """A row for each task and way, in the order in which they came."""
    lines = sorted(lines, key=lambda line: not line.get("is_backprop"))  # stable: each task's twin comes first
    order = list(dict.fromkeys(line["task"] for line in lines if line.get("kind") == "run"))
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for line in lines:
        if line.get("kind") == "run":
            groups.setdefault((line["task"], line["way"]), []).append(line)
    return [_row(task, way, group) for (task, way), group in sorted(groups.items(), key=lambda g: order.index(g[0][0]))]


def _row(task: str, way: str, group: list[Mapping[str, Any]]) -> tuple[str, ...]:
    latest = {line["seed"]: line for line in group}.values()  # of a run that failed and was made again
    statuses = ", ".join(dict.fromkeys(line["status"] for line in latest))

    def mean(name: str) -> float | None:
        found = [line[name] for line in latest if line.get(name) is not None]
        return statistics.fmean(found) if found else None

    tests = [line["quality_test"] for line in latest if line.get("quality_test") is not None]
    steps, forward, step = mean("steps"), mean("flops_forward"), mean("flops_step")
    measured = None if not (steps and forward) or step is None else steps * step / forward
    reason = next((line["reason"] for line in latest if line["status"] in ("refused", "failed")), "")
    quality, passes, time = mean("quality_test"), mean("budget_used"), mean("time_over_backprop")
    return (
        task,
        way.replace("backprop", "BACKPROP", 1) if group[0]["is_backprop"] else way,
        str(len(latest)),
        "-" if quality is None else f"{quality:.4f}",
        f"{max(tests) - min(tests):.4f}" if len(tests) > 1 else "-",
        "-" if passes is None else f"{passes:,.0f}",
        "-" if measured is None else f"{measured:,.0f}",
        "-" if time is None else f"{time:.2f}",
        _size(mean("peak_bytes")),
        _size(mean("saved_bytes")),
        f"{statuses}: {' '.join(reason.split())}" if reason else statuses,
    )


def _size(num_bytes: float | None) -> str:
    if num_bytes is None:
        return "-"
    return f"{num_bytes / 1e6:.1f} MB" if num_bytes >= 1e5 else f"{num_bytes / 1e3:.1f} kB"
