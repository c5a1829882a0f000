"""A pytest plugin that writes down each check as it begins and ends, so that a crash loses none: a line of JSON each."""

import json
import pathlib
from collections.abc import Generator
from typing import Any

import pytest

from localplug.testing.kinds import title


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--localplug-report", metavar="FILE", help="where the lines go")
    parser.addoption("--localplug-done", metavar="FILE", help="a JSON list of checks that are done already")


def pytest_configure(config: pytest.Config) -> None:
    if report := config.getoption("--localplug-report"):
        done = config.getoption("--localplug-done")
        config.pluginmanager.register(
            Recorder(pathlib.Path(report), json.loads(pathlib.Path(done).read_text()) if done else [])
        )


class Recorder:
    """Writes the lines.

    Args:
        done: node ids that are left out.
    """

    def __init__(self, path: pathlib.Path, done: list[str]) -> None:
        self._path, self._done = path, set(done)
        self._known: dict[str, dict[str, str]] = {}

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> Generator[None, None, None]:
        items[:] = [item for item in items if item.nodeid not in self._done]
        for item in items:
            self._known[item.nodeid] = known = described(item)
            item.extra_keyword_matches.add(known["name"])
        unloaded = [item for item in items if self._known[item.nodeid]["kind"] == "plugin"]
        yield
        items.extend(item for item in unloaded if item not in items)  # whatever -k says

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._write("collected", total=len(session.items))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._write("broken", reason=str(report.longrepr))

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._write("begins", id=nodeid, **self._known[nodeid])

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        result, reason = outcome(report)
        if report.when == "call" or result in ("failed", "skipped", "expected"):
            self._write(
                "ends", id=report.nodeid, result=result, reason=reason, seconds=round(report.duration, 3),
                **self._known[report.nodeid],
            )  # fmt: skip

    def pytest_sessionfinish(self) -> None:
        self._write("done")

    def _write(self, event: str, **values: Any) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps({"event": event, **values}) + "\n")


def described(item: pytest.Item) -> dict[str, str]:
    """The hook, the name that a plugin gives, the check, and its case if it has several."""
    kind, name = getattr(getattr(item, "cls", None), "checked", ("plugin", ""))
    call = getattr(item, "callspec", None)
    parameters = dict(call.params) if call is not None else {}
    if isinstance(made := parameters.pop("make", None), str):
        name = made
    case = "-".join(str(value).removeprefix("torch.") for value in parameters.values())
    return {"kind": kind, "name": name, "check": title(getattr(item, "originalname", item.name)), "case": case}


def outcome(report: pytest.TestReport) -> tuple[str, str]:
    """("passed", "failed", "expected" to fail, or "skipped"; why)."""
    expected = getattr(report, "wasxfail", None)
    if report.failed:
        crash = getattr(report.longrepr, "reprcrash", None)
        return "failed", str(crash.message if crash else report.longrepr).strip()
    if expected is not None:
        why = expected.removeprefix("reason: ")
        return ("expected", why) if report.skipped else ("passed", f"it was expected to fail: {why}")
    if report.skipped:
        why = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        return "skipped", why.removeprefix("Skipped: ")
    return "passed", ""
