"""Files of runs that may come from anybody: each line is checked against docs/bench.md, and all faults are told at once.

A line that is no JSON object is what a kill leaves behind; it is left out with a remark. NaN and infinity, which are no JSON
but which some writers make, are read as null.
"""

import dataclasses
import math
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, final

from localplug import strict_json
from localplug.printable import printable
from localplug_bench.records import SCHEMA

MAX_TOLD = 20  # faults in one message
MAX_NUMBER = 1e30  # so that sums are finite
MAX_SHOWN = 60  # characters of a value that is wrong
STATUSES = ("done", "diverged", "refused", "failed")


@final
@dataclasses.dataclass(frozen=True)
class Lines:
    """What the files hold.

    Args:
        runs: lines of the kind "run"; every field of `RUN` is there, None where the line had none.
        trials: lines of the kind "trial", with every field of `TRIAL`.
        remarks: what was left out and why, for a reader of the report.
    """

    runs: list[dict[str, Any]]
    trials: list[dict[str, Any]]
    remarks: list[str]


def _text(value: Any) -> str:
    return "" if isinstance(value, str) else "a text"


def _flag(value: Any) -> str:
    return "" if isinstance(value, bool) else "true or false"


def _number(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "a number"
    return "" if abs(value) < MAX_NUMBER else f"a number below {MAX_NUMBER:g}"


def _amount(value: Any) -> str:
    return _number(value) or ("" if value >= 0 else "a number of at least 0")


def _whole(value: Any) -> str:
    return _amount(value) or ("" if isinstance(value, int) else "a whole number")


def _status(value: Any) -> str:
    return "" if value in STATUSES else f"one of {', '.join(STATUSES)}"


def _options(value: Any) -> str:
    return "" if isinstance(value, dict) else "an object"


def _texts(value: Any) -> str:
    return "" if isinstance(value, list) and all(isinstance(v, str) for v in value) else "a list of texts"


def _curve(value: Any) -> str:
    if not isinstance(value, list) or not all(isinstance(point, dict) for point in value):
        return "a list of objects"
    for number, point in enumerate(value):
        for name in ("step", "forward_passes", "seconds"):
            if wanted := _amount(point.get(name)):
                return f"a list of points whose {name} is {wanted} (point {number})"
        for name in ("quality", "loss"):
            if point.get(name) is not None and (wanted := _number(point[name])):
                return f"a list of points whose {name} is {wanted} or null (point {number})"
        seen = point.get("observed") or {}
        if not isinstance(seen, dict) or any(v is not None and _number(v) for v in seen.values()):
            return f"a list of points whose observed has numbers (point {number})"
    return ""


Check = Callable[[Any], str]
NEEDED: dict[str, Check] = {
    "task": _text,
    "way": _text,
    "is_backprop": _flag,
    "seed": _whole,
    "status": _status,
    "higher_is_better": _flag,
}
RUN: dict[str, Check] = {
    **NEEDED,
    **dict.fromkeys(
        (
            *("key", "method", "spec", "metric", "protocol", "device", "reason", "describes", "energy_kind", "date"),
            *("memory_kind", "machine", "cpu_capability", "python", "torch", "localplug", "count", "keep"),
        ),
        _text,
    ),
    **dict.fromkeys(("quality_start", "quality_validation", "quality_test", "perfect"), _number),
    **dict.fromkeys(
        (
            *(
                "budget",
                "batch_size",
                "evaluations",
                "patience",
                "trials",
                "threads",
                "budget_used",
                "best_step",
                "steps",
            ),
            *(
                "forward_passes",
                "backward_passes",
                "seconds",
                "seconds_forward",
                "seconds_perturbation",
                "seconds_backward",
            ),
            *("seconds_update", "seconds_data", "seconds_framework", "time_over_backprop", "step_time_over_backprop"),
            *("energy_joules", "weights", "loaded_bytes", "peak_bytes", "peak_bytes_inference", "saved_bytes"),
            *("flops_forward", "flops_step", "stored_bytes", "log_bytes", "paired_laps", "test_looks"),
        ),
        _amount,
    ),
    "options": _options,
    "curve": _curve,
}
TRIAL: dict[str, Check] = {
    "key": _text,
    "tasks": _texts,
    "spec": _text,
    "number": _whole,
    "chosen": _options,
    "value": _number,
}
TRIAL_NEEDED = ("key", "tasks", "spec", "number", "chosen")


def read(paths: Iterable[str | os.PathLike[str]]) -> Lines:
    """The runs and trials of files, in their order.

    Raises:
        ValueError: a file is missing, is of another schema, or has a field that is not what it should be, or there is no run in
            any of them; lists every fault, with file and line.
    """
    found, faults = Lines([], [], []), []
    for path in map(pathlib.Path, paths):
        try:
            data = path.read_bytes()
        except OSError as error:
            faults.append(f"{path}: {error.strerror or error}")
            continue
        before = len(found.runs), len(faults)
        _read(path, data, found, faults)
        if (len(found.runs), len(faults)) == before:
            what = "it is empty" if not data.strip() else "it has no line about a run"
            faults.append(f"{path}: {what}; `localplug bench` writes such files")
    if faults:
        more = [f"and {len(faults) - MAX_TOLD} more"] if len(faults) > MAX_TOLD else []
        raise ValueError("no report can be made:\n  - " + "\n  - ".join(map(printable, [*faults[:MAX_TOLD], *more])))
    return found


def _read(path: pathlib.Path, data: bytes, found: Lines, faults: list[str]) -> None:
    for number, text in enumerate(data.split(b"\n"), 1):
        if not text.strip():
            continue
        where = f"{path}, line {number}"
        try:
            line = _finite(strict_json.parse(text, "it"))
        except (ValueError, RecursionError) as error:
            found.remarks.append(f"{where} is left out: {error}")
            continue
        if not isinstance(line, dict):
            found.remarks.append(f"{where} is left out: it is no object")
            continue
        schema, kind = line.get("schema"), line.get("kind", "run")
        if schema != SCHEMA or isinstance(schema, bool):
            faults.append(
                f"{where} is of schema {_shown(schema)}, and this version of localplug-bench reads schema {SCHEMA}; use the "
                f"version that wrote it"
            )
        elif kind == "run":
            wrong = _faults(line, RUN, NEEDED)
            faults += [f"{where}: {fault}" for fault in wrong]
            if not wrong:
                points = [{"quality": None, "loss": None, **point} for point in line.get("curve") or ()]
                found.runs.append({**{name: line.get(name) for name in RUN}, "curve": points})
        elif kind == "trial":
            wrong = _faults(line, TRIAL, TRIAL_NEEDED)
            faults += [f"{where}: {fault}" for fault in wrong]
            if not wrong:
                found.trials.append({name: line.get(name) for name in TRIAL})
        else:
            found.remarks.append(
                f"{where} is left out: it is of the kind {_shown(kind)}, which this version does not know"
            )


def _faults(line: Mapping[str, Any], checks: Mapping[str, Check], needed: Iterable[str]) -> list[str]:
    found = []
    for name, check in checks.items():
        value = line.get(name)
        if value is None:
            if name in needed:
                found.append(f"{name} is missing")
        elif wanted := check(value):
            found.append(f"{name} must be {wanted}, got {_shown(value)}")
    return found


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # an integer of thousands of digits
        text = "a very large number"
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return value
