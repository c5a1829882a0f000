"""The command line: its output, its hints and its exit status."""

import importlib.metadata
import inspect
import json
import logging
import subprocess
import sys

import pytest

import localplug
from localplug import hookspecs, index, plugins
from localplug.cli import main

pytestmark = pytest.mark.usefixtures("fresh_plugins")


class Shouts:
    @localplug.hookimpl
    def localplug_commands(self):
        return {"shout": lambda words: sys.stdout.write(" ".join(words)) and 3}


class Twin:
    @localplug.hookimpl
    def localplug_methods(self):
        return {"mezo": dict}


@pytest.fixture
def broken(monkeypatch, caplog):
    """An installed plugin whose module cannot be imported."""
    ours = plugins.entry_points(group="localplug")
    broken = plugins.EntryPoint("broken", "a_package_that_nobody_has", "localplug")
    monkeypatch.setattr(plugins, "entry_points", lambda group: [*ours, broken])
    caplog.set_level(logging.WARNING, "localplug")


NAMES = [entry.name for entry in index.read()]  # all of them are installed here


def test_plugins_lists_each_with_its_distribution_and_what_it_says_of_itself(capsys):
    assert main(["plugins"]) == 0
    lines = [line.split(maxsplit=3) for line in capsys.readouterr().out.splitlines()]
    assert [line[:3] for line in lines] == [[name, f"localplug-{name}", localplug.__version__] for name in NAMES]
    summaries = {name: summary for name, _, _, summary in lines}
    assert summaries["zo"] == importlib.metadata.metadata("localplug-zo")["Summary"]


def test_plugins_load_says_what_each_gives(capsys):
    assert main(["plugins", "--load"]) == 0
    lines = [line.split(maxsplit=3) for line in capsys.readouterr().out.splitlines()]
    gives = {name: given for name, _, _, given in lines}
    assert list(gives) == NAMES
    assert gives["tpsgd"] == "methods: dfa, drtp, fa, tpsgd; target generators: projection; local losses: l1, l2"
    assert gives["transformers"] == "commands: demo" and gives["convex"] == "solvers: relu-admm, relu-scp"
    assert gives["blackbox"] == "commands: propose"
    zo = gives["zo"]
    kinds = dict(part.split(": ") for part in zo.split("; "))
    assert list(kinds) == ["methods", "estimators", "perturbations", "update rules", "objectives"]
    assert {"mezo", "lozo"} < set(kinds["methods"].split(", ")) and "zo-sgd-sign" in kinds["update rules"].split(", ")


@pytest.mark.parametrize(
    "how, fine, status", [([], "not loaded", 0), (["--load"], "ok", 1)], ids=["without loading", "loading"]
)
def test_plugins_as_json_has_one_schema_for_every_plugin(capsys, monkeypatch, broken, how, fine, status):
    monkeypatch.setenv("LOCALPLUG_BLOCK", "tpsgd")
    assert main(["plugins", *how, "--json"]) == status
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(rows) == sorted([*NAMES, "broken"])
    for row in rows.values():
        assert list(row) == ["name", "distribution", "version", "summary", "status", "reason", "gives"]
        assert all(isinstance(row[key], str) for key in ("distribution", "version", "summary", "reason"))
        assert (row["status"] == fine) == (not row["reason"]) and (row["status"] == "ok") == bool(row["gives"])
    expected = {**dict.fromkeys(NAMES, fine), "broken": "failed" if how else fine, "tpsgd": "blocked"}
    assert {name: row["status"] for name, row in rows.items()} == expected
    if how:
        gives = rows["zo"]["gives"]
        assert list(gives) == ["methods", "estimators", "perturbations", "update_rules", "objectives"]
        assert "mezo" in gives["methods"] and gives["perturbations"] == sorted(gives["perturbations"])


def test_plugins_load_shows_a_broken_one_and_exits_with_1(capsys, broken):
    assert main(["plugins", "--load"]) == 1
    out = capsys.readouterr().out
    assert "FAILED  ModuleNotFoundError: No module named 'a_package_that_nobody_has'" in out
    assert "mezo, random-sparse-zo" in out


@pytest.mark.parametrize("how", [[], ["--load"]])
def test_plugins_shows_a_blocked_one_and_exits_with_0(capsys, monkeypatch, how):
    monkeypatch.setenv("LOCALPLUG_BLOCK", "zo")
    assert main(["plugins", *how]) == 0
    assert "BLOCKED  by LOCALPLUG_BLOCK" in capsys.readouterr().out


def test_plugins_load_under_strict_says_in_one_line_what_is_broken(capsys, monkeypatch, broken):
    monkeypatch.setenv("LOCALPLUG_STRICT", "1")
    assert main(["plugins", "--load"]) == 1
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.startswith("localplug: plugin 'broken'") and shown.err.count("\n") == 1


def test_plugins_shows_a_name_that_two_give(capsys):
    localplug.register(Twin())
    assert main(["plugins", "--load"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("methods 'mezo' is given by 'zo' (localplug-zo 0.1.0) and by 'Twin' (registered by hand)")


def test_plugins_without_any_says_what_could_be_installed(capsys, monkeypatch):
    monkeypatch.setattr(plugins, "entry_points", lambda group: [])
    assert main(["plugins"]) == 0
    assert "`localplug plugins --available`" in capsys.readouterr().out
    assert main(["plugins", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_hooks_as_json_has_each_with_its_docstring(capsys):
    assert main(["hooks", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == [f"localplug_{kind}" for kind in plugins.KINDS]
    assert rows[0] == {
        "name": "localplug_methods", "signature": "()", "doc": inspect.getdoc(hookspecs.localplug_methods)
    }  # fmt: skip


def test_hooks_prints_every_hook_with_its_docstring(capsys):
    assert main(["hooks"]) == 0
    out = capsys.readouterr().out
    for kind in plugins.KINDS:
        hook = getattr(hookspecs, f"localplug_{kind}")
        assert f"{hook.__name__}()\n" in out
        for line in inspect.getdoc(hook).splitlines():
            assert line.strip() in out
    assert all(line == line.rstrip() for line in out.splitlines())


def test_a_command_of_a_plugin_gets_the_words_after_it_and_gives_the_exit_status(capsys):
    localplug.register(Shouts())
    assert main(["shout", "--loud", "plugins"]) == 3
    assert capsys.readouterr().out == "--loud plugins"


@pytest.mark.parametrize(
    "word, hint",
    [
        ("demmo", "no command named 'demmo'; did you mean 'demo'?"),
        ("plugin", "built in: plugins, hooks"),
        (
            "xyz",
            f"installed: {', '.join(sorted(index.commands()))}; `localplug plugins --load` lists everything; built in: ",
        ),
    ],
)
def test_an_unknown_command_exits_with_2_and_a_hint(capsys, word, hint):
    assert main([word]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1
    assert shown.err.startswith("localplug: ") and hint in shown.err


def test_no_command_prints_the_help_and_exits_with_2(capsys):
    assert main([]) == 2
    assert capsys.readouterr().out.startswith("usage: localplug")


@pytest.mark.parametrize("words", [["--unknown"], ["plugins", "--unknown"], ["hooks", "word"]])
def test_wrong_arguments_exit_with_2(words, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(words)
    assert exit_.value.code == 2 and "unrecognized" in capsys.readouterr().err


def test_the_installed_command_is_this_one(monkeypatch):
    found = plugins.entry_points(group="console_scripts", name="localplug")
    assert [entry.load() for entry in found] == [main]
    script = "import sys; sys.argv = ['localplug', 'nothing']; from localplug.cli import main; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.startswith("localplug: no command named 'nothing'")
