"""The file of runs: one JSON object a line, only ever added to. docs/bench.md lists the fields.

A line that a kill has cut off is ignored, and the next one starts on a line of its own.
"""

import hashlib
import json
import math
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, final

SCHEMA = 1
DONE = ("done", "diverged", "refused")
"""Statuses of runs that are not made again; "failed" is."""


@final
class Records:
    """A file of runs.

    Args:
        path: of the file; it and its folder are made when the first line is written.

    Example:
        >>> import tempfile, pathlib
        >>> records = Records(pathlib.Path(tempfile.mkdtemp()) / "runs.jsonl")
        >>> records.add({"key": "a", "status": "done"})
        >>> [line["key"] for line in records], records.is_done("a"), records.is_done("b")
        (['a'], True, False)
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = pathlib.Path(path)
        self.num_ignored = 0
        """Lines that were no JSON object, when the file was read last."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self.num_ignored = 0
        if not self.path.exists():
            return
        for line in self.path.read_bytes().split(b"\n"):
            try:
                value = json.loads(line) if line.strip() else None
            except ValueError:
                value = ()
            if isinstance(value, dict):
                yield value
            elif value is not None:
                self.num_ignored += 1

    def find(self, key: str, kind: str = "run") -> dict[str, Any] | None:
        """The line of a run that is done, if there is one."""
        for line in self:
            if line.get("key") == key and line.get("kind", "run") == kind and line.get("status") in DONE:
                return line
        return None

    def is_done(self, key: str) -> bool:
        """Whether a run need not be made again."""
        return self.find(key) is not None

    def add(self, line: Mapping[str, Any]) -> None:
        """Write a line at the end, in one piece, and see that it is on the disk. NaN and infinity become null."""
        text = json.dumps({"schema": SCHEMA, **_finite(line)}, allow_nan=False).encode() + b"\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            size = os.fstat(descriptor).st_size
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                text = b"\n" + text
            os.write(descriptor, text)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def key_of(**what: Any) -> str:
    """A name for everything that makes a run what it is."""
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value if isinstance(value, str | int | bool | None) else str(value)
