"""Run the kit on an installed distribution, in a process of its own: a plugin that crashes or hangs fails one check."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

POLL = 0.05  # seconds between two looks at what the other process has written
LOADING = 300.0  # seconds that all plugins may take to be loaded, at least


@dataclasses.dataclass(frozen=True)
class Result:
    """What became of one check.

    Args:
        kind: of the hook, such as "methods"; "plugin" for what is no answer of a hook.
        name: that the plugin gives.
        check: in words.
        case: which of its cases; empty if it has one.
        result: "passed", "failed", "expected" (to fail, with a reason) or "skipped".
        reason: why, for all but most passed ones.
        seconds: it took.
    """

    kind: str
    name: str
    check: str
    case: str
    result: str
    reason: str = ""
    seconds: float = 0.0


def results(
    distribution: str,
    *,
    kinds: Sequence[str] = (),
    options: Mapping[str, Mapping[str, Any]] | None = None,
    keyword: str = "",
    timeout: float = 600.0,
) -> Iterator[Result]:
    """Each check of what a distribution gives, as it ends.

    Args:
        distribution: as its metadata spells it.
        kinds: only these hooks' answers; by default all.
        options: {name: {option: value}} of what is made with others than the defaults.
        keyword: pytest's -k: only checks and names that match this expression.
        timeout: seconds that a check may take.
    """
    with tempfile.TemporaryDirectory(prefix="localplug-check-") as folder:
        child = _Child(pathlib.Path(folder), keyword, timeout)
        child.describe(distribution, list(kinds), dict(options or {}))
        while True:
            yield from child.run()
            if child.is_done:
                return


class _Child:
    """A process that runs pytest on the plugin, and a new one where that crashed."""

    def __init__(self, folder: pathlib.Path, keyword: str, timeout: float) -> None:
        self._folder, self._keyword, self._timeout = folder, keyword, timeout
        self._ended: list[str] = []
        self.is_done = False

    def describe(self, distribution: str, kinds: list[str], options: dict[str, Any]) -> None:
        arguments = f"{distribution!r}, kinds={kinds!r}, options={options!r}"
        (self._folder / "test_distribution.py").write_text(
            f"from localplug.testing.collecting import classes\n\nglobals().update(classes({arguments}))\n"
        )
        (self._folder / "pytest.ini").write_text("[pytest]\n")

    def run(self) -> Iterator[Result]:
        """The results of one process. Sets `is_done` unless it ended before its last check."""
        report, said, done = (self._folder / name for name in ("report", "said", "done"))
        report.write_text("")
        done.write_text(json.dumps(self._ended))
        command = [
            sys.executable, "-m", "pytest", "test_distribution.py", "-c", "pytest.ini", "--rootdir", ".",
            "-p", "localplug.testing.recording", "-p", "no:cacheprovider", "-q", "--import-mode=importlib",
            "--localplug-report", str(report), "--localplug-done", str(done),
        ]  # fmt: skip
        if self._keyword:
            command += ["-k", self._keyword]
        with said.open("w") as out:
            process = subprocess.Popen(
                command, cwd=self._folder, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )
        begun: dict[str, Any] | None = None
        finished = hung = False
        try:
            for event in self._events(report, process):
                if event is None:
                    hung = True
                    break
                what = event.pop("event")
                if what == "begins":
                    begun = event
                elif what == "ends":
                    begun = None
                    self._ended.append(event.pop("id"))
                    yield Result(**event)
                elif what == "broken":
                    yield Result("plugin", "", "can be collected", "", "failed", event["reason"])
                elif what == "done":
                    finished = True
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            status = process.wait()
        self.is_done = True
        if finished:
            return
        why = "it took too long" if begun is None else f"it took more than {self._timeout:g} s"
        why = why if hung else f"the process {_ended(status)}"
        last = said.read_text(errors="replace").strip().splitlines()[-3:]
        reason = "; ".join([why, *last]) if not hung else why
        if begun is None:
            yield Result("plugin", "", "loads", "", "failed", reason)
            return
        self._ended.append(begun.pop("id"))
        self.is_done = False
        yield Result(**begun, result="failed", reason=reason)

    def _events(self, report: pathlib.Path, process: "subprocess.Popen[bytes]") -> Iterator[dict[str, Any] | None]:
        """What it writes, as it does; None if it has been silent for too long."""
        last, limit = time.monotonic(), max(self._timeout, LOADING)
        with report.open() as lines:
            text = ""
            while True:
                has_ended = process.poll() is not None
                text += lines.read()
                *whole, text = text.split("\n")
                for line in whole:
                    last, limit = time.monotonic(), self._timeout
                    yield json.loads(line)
                if whole:
                    continue
                if has_ended:
                    return
                if time.monotonic() - last > limit:
                    yield None
                time.sleep(POLL)


def _ended(status: int) -> str:
    return f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended itself with status {status}"
