"""`localplug check`: tiny distributions that pass, fail, crash and hang, each told by name, check and reason."""

import importlib.util
import json
import textwrap

import pytest

from localplug import plugins
from localplug.cli import main
from localplug.testing import LocalLossTests
from localplug.testing.check import results
from localplug.testing.kinds import CLASSES, checks_of, listing

find = importlib.util.find_spec

LOSSES = '''
    """Local losses (new here)."""

    import os
    import time

    import localplug


    @localplug.hookimpl
    def localplug_local_losses():
        return NAMES


    def l2(output, target):
        """Half of the squared distance.

        Args:
            output, target: (B, ...), averaged over examples and positions.

        Example:
            >>> import torch
            >>> float(l2(torch.ones(2, 3), torch.zeros(2, 3)))
            1.5
        """
        features = output.shape[1] if output.dim() > 3 else output.shape[-1]
        return 0.5 * (output - target).square().sum() / (output.numel() // features)


    def uphill(output, target):
        return -l2(output, target)


    def exits(output, target):
        os._exit(3)


    def hangs(output, target):
        time.sleep(600)

'''
CONFORMANCE = '''
    import pytest
    from localplug.testing import LocalLossTests

    from localplug_tiny_losses import l2, uphill


    class TestUphill(LocalLossTests):
        names = ("uphill",)

        @pytest.fixture
        def loss(self):
            return uphill

        expected_failures = {"test_is_smaller_at_the_target": "it rises, as its paper says"}

        def test_can_be_pickled(self, loss):
            """Replaced without a word."""
'''


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Puts distributions on the path of this process and of those that it starts, which see no other plugin."""

    def made(name, entries, **modules):
        folder = tmp_path / f"{name.replace('-', '_')}-0.1.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n")
        (folder / "entry_points.txt").write_text(
            "[localplug]\n" + "".join(f"{entry} = {module}\n" for entry, module in entries.items())
        )
        for module, text in modules.items():
            (tmp_path / f"{module}.py").write_text(textwrap.dedent(text))
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        monkeypatch.setenv("LOCALPLUG_PLUGINS", ",".join(entries))
        return name

    monkeypatch.syspath_prepend(tmp_path)
    yield made
    plugins.reload()


def of(*names):
    return LOSSES.replace("NAMES", "{" + ", ".join(f"{name!r}: {name}" for name in names) + "}")


def test_every_check_is_told_and_those_of_the_kit_are_all_run(install, capsys):
    name = install("localplug-tiny", {"tiny": "localplug_tiny"}, localplug_tiny=of("l2"))
    assert main(["check", name, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["distribution"], said["failed"], said["expected"], said["skipped"]) == (name, 0, 0, 0)
    told = {"test_" + row["check"].replace(" ", "_") for row in said["checks"]}
    assert told == set(checks_of(LocalLossTests))
    assert {(row["kind"], row["name"], row["result"]) for row in said["checks"]} == {("local_losses", "l2", "passed")}
    assert {row["case"] for row in said["checks"] if row["check"] == "is an average over positions"} == {
        "time steps",
        "feature map",
    }


def test_what_fails_and_what_was_expected_to_are_told_with_their_reasons(install, capsys):
    """By a module `localplug_x_conformance`; what it does not name is checked as it is."""
    install(
        "localplug-tiny",
        {"tiny": "localplug_tiny", "broken": "localplug_broken"},
        localplug_tiny=of("l2", "uphill").replace('"""Local losses (new here)."""', ""),
        localplug_tiny_conformance=CONFORMANCE.replace("localplug_tiny_losses", "localplug_tiny"),
        localplug_broken="raise RuntimeError('no such library')\n",
    )
    assert main(["check", "LocalPlug_Tiny", "-q"]) == 1  # as package indexes compare names
    text = capsys.readouterr().out
    rows = {tuple(cell.strip() for cell in line.split("  ") if cell.strip()) for line in text.splitlines()}
    rows = {row[:3]: row[-1] for row in rows if len(row) > 3}
    assert rows["uphill", "is smaller at the target (feature map)", "expected to fail"] == "it rises, as its paper says"
    assert "replaced without a reason" in rows["uphill", "overrides no check without a reason", "failed"]
    assert "no docstring" in rows["uphill", "its docstring has a summary and every option", "failed"]
    assert "no such library" in rows["broken", "loads", "failed"]
    failed_of_l2 = [row for row in rows if row[0] == "l2"]
    assert failed_of_l2 == [("l2", "names its source", "failed")]


def test_a_plugin_that_ends_the_process_or_hangs_fails_that_check_alone(install):
    name = install("localplug-tiny", {"tiny": "localplug_tiny"}, localplug_tiny=of("exits", "hangs", "l2"))
    found = list(results(name, keyword="does_not_change or overrides", timeout=6))
    rows = {(row.name, row.check): row for row in found}
    check, other = "does not change what it compares", "overrides no check without a reason"
    assert rows["exits", check].result == "failed" and "ended itself with status 3" in rows["exits", check].reason
    assert rows["hangs", check].result == "failed" and "took more than 6 s" in rows["hangs", check].reason
    assert rows["l2", check].result == "passed"
    assert all(rows[loss, other].result == "passed" for loss in ("exits", "hangs", "l2"))
    assert len(found) == 6


def test_options_make_what_has_no_default_for_them(install):
    rule = '''
        """An update rule (new here)."""

        import localplug
        import torch


        @localplug.hookimpl
        def localplug_update_rules():
            return {"given": Plain, "left": Plain}


        class Plain(torch.optim.SGD):
            def __init__(self, params, rate):
                super().__init__(params, lr=rate)
    '''
    name = install("localplug-tiny", {"tiny": "localplug_tiny"}, localplug_tiny=rule)
    found = results(name, keyword="quadratic or made", options={"given": {"rate": 0.01}, "strange": {"rate": 1}})
    rows = {(row.name, row.check): row for row in found}
    assert rows.pop(("given", "lowers a quadratic")).result == "passed"
    left = rows.pop(("left", "can be made"))
    assert left.result == "failed" and "no default for rate" in left.reason
    assert "--option left.rate=VALUE" in left.reason
    ((what, strange),) = rows.items()
    assert what == ("strange", "is given") and strange.result == "failed" and "no such name" in strange.reason


def test_a_task_without_its_data_is_skipped_and_says_what_to_fetch(install, tmp_path):
    """And the folder that an option names comes as a path."""
    task = '''
        """A task (new here)."""

        import localplug
        from localplug.tasks import located


        @localplug.hookimpl
        def localplug_tasks():
            return {"rows": Rows}


        class Rows(localplug.Task):
            def __init__(self, data=None):
                self.file = data and data / "rows" / "rows.csv"
                self.data = data

            def model(self):
                raise AssertionError("nobody needs one without data")

            def parts(self, seed):
                located(self.data, "rows", ["rows.csv"], get_it="It is at https://example.org/rows.csv.")
    '''
    name = install("localplug-tiny", {"tiny": "localplug_tiny"}, localplug_tiny=task)
    for options, said in (({}, "no folder of data sets was given"), ({"data": str(tmp_path)}, f"not in {tmp_path}")):
        rows = {r.check: r for r in results(name, keyword="apart or missing", options={"rows": options})}
        assert rows["parts are apart"].result == "skipped"
        assert (
            said in rows["parts are apart"].reason and "It is at https://example.org" in rows["parts are apart"].reason
        )
        assert rows["what is missing is told with what to fetch"].result == "passed"


@pytest.mark.parametrize(
    "words, told",
    [
        (["no-such-thing"], "no installed distribution 'no-such-thing' has a plugin; installed: "),
        ([], "which distribution?"),
        (["localplug-zo", "--option", "eps=1"], "--option takes NAME.KEY=VALUE, such as mezo.eps=1e-2, got 'eps=1'"),
    ],
)
def test_wrong_use_is_told_in_a_line(words, told, capsys):
    assert main(["check", *words]) == 2
    said = capsys.readouterr()
    assert told in said.err and "Traceback" not in said.err and not said.out
    assert "pip install" not in said.err


def test_without_pytest_it_says_how_to_get_it(monkeypatch, capsys):
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "pytest" else find(name, *rest)
    )
    assert main(["check", "localplug-zo"]) == 1
    assert "not installed: python -m pip install pytest" in capsys.readouterr().err


def test_every_hook_has_a_class_and_every_check_of_it_is_listed(capsys):
    assert set(CLASSES) == set(plugins.KINDS)
    assert main(["check", "--list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == len(listing()) == sum(len(checks_of(kit)) for kits in CLASSES.values() for kit in kits)
    assert {"hook", "class", "check", "asks"} == set(rows[0])
