"""What a user reads when a plugin is absent, broken, misspelt, blocked or doubled; the other plugins always go on."""

import importlib
import logging
import subprocess
import sys
import textwrap
import types

import pytest

import localplug
from localplug import plugins
from localplug.errors import DuplicateName, PluginFailed, UnknownName

GOOD = """
    import localplug

    @localplug.hookimpl
    def localplug_methods():
        return {"NAME": dict}
"""

pytestmark = pytest.mark.usefixtures("fresh_plugins")


@pytest.fixture
def install(tmp_path, monkeypatch):
    """install("bad", source) puts the distribution localplug-bad 1.0, whose module is the source, on the path."""

    def install(name, source, key=None, module=None):
        key, module = key or name, module or f"localplug_fake_{name}"
        folder = tmp_path / name
        metadata = folder / f"localplug_{name}-1.0.dist-info"
        metadata.mkdir(parents=True)
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: localplug-{name}\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_text(f"[localplug]\n{key} = {module}\n")
        (folder / f"localplug_fake_{name}.py").write_text(textwrap.dedent(source))
        monkeypatch.syspath_prepend(folder)
        importlib.invalidate_caches()
        plugins.reload()

    yield install
    for module in [m for m in sys.modules if m.startswith("localplug_fake_")]:
        del sys.modules[module]


def found(name):
    return next(p for p in localplug.installed() if p.name == name)


def assert_failed_alone(name, expected, caplog):
    """The plugin is left out, listed with its reason, warned about with its distribution; ours are all there."""
    with caplog.at_level(logging.WARNING, "localplug"):
        plugin = found(name)
    assert plugin.status == "failed" and not plugin.gives
    assert expected in plugin.reason
    assert f"plugin '{name}' (localplug-{name} 1.0) failed and is left out: {plugin.reason}" in caplog.messages
    assert localplug.get("mezo").__name__ == "MeZO" and localplug.get("tpsgd").__name__ == "TPSGD"
    with pytest.raises(PluginFailed, match=f"'{name}'.*is installed but failed") as raised:
        localplug.get(name)
    assert raised.value.__cause__ is plugin.error
    with pytest.raises(UnknownName, match=f"failed plugins: '{name}'"):
        localplug.get("something-else")


def test_a_good_plugin_is_found_by_its_name(install):
    install("good", GOOD.replace("NAME", "mine"))
    plugin = found("good")
    assert (plugin.status, plugin.distribution, plugin.version) == ("ok", "localplug-good", "1.0")
    assert localplug.get("mine") is dict and plugin.gives == {"methods": {"mine": dict}}


@pytest.mark.parametrize(
    "source, expected",
    [
        ("import a_package_that_nobody_has", "ModuleNotFoundError: No module named 'a_package_that_nobody_has'"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("def broken(:", "SyntaxError"),
        ("raise SystemExit('needs a GPU')", "SystemExit: needs a GPU"),
        ("", "answers none of localplug's hooks"),
        (GOOD.replace("localplug_methods", "localplug_method"), "unknown hook 'localplug_method'"),
        (GOOD.replace("localplug_methods()", "localplug_methods(trainer)"), "trainer"),
        (GOOD.replace('{"NAME": dict}', "1 / 0"), "ZeroDivisionError: division by zero"),
        (GOOD.replace('{"NAME": dict}', '["mine"]'), "must return a dictionary {name: class}, it returned ['mine']"),
        (GOOD.replace('{"NAME": dict}', "None"), "it returned None"),
        (GOOD.replace('{"NAME": dict}', '{"mine": 3}'), "'mine' must be a class, a callable or \"module:attribute\""),
        (GOOD.replace('{"NAME": dict}', '{"mine": "os.path"}'), "got 'os.path'"),
        (GOOD.replace('{"NAME": dict}', '{3: dict}'), "a name must be a non-empty string of printable characters, got 3"),
        (GOOD.replace('{"NAME": dict}', '{"": dict}'), "a name must be a non-empty string of printable characters, got ''"),
    ],
)  # fmt: skip
def test_a_broken_plugin_is_listed_warned_about_and_takes_nobody_down(install, caplog, source, expected):
    install("bad", source)
    assert_failed_alone("bad", expected, caplog)


def test_an_entry_point_without_a_module_is_a_broken_plugin(install, caplog):
    install("bad", GOOD, module="localplug_fake_gone")
    assert_failed_alone("bad", "No module named 'localplug_fake_gone'", caplog)


def test_one_misspelt_hook_does_not_spoil_the_plugins_that_load_after_it(install, caplog):
    """Two faults at once: what pluggy took in before it refused must not be held against the next plugin."""
    install(
        "a",
        GOOD.replace("localplug_methods", "localplug_method")
        + "\n    localplug_commands = localplug.hookimpl(lambda x: {})\n",
    )
    assert_failed_alone("a", "", caplog)
    assert [p.name for p in localplug.installed() if p.status != "ok"] == ["a"]


def test_strict_raises_at_the_first_broken_plugin(install, monkeypatch):
    install("bad", "1 / 0")
    monkeypatch.setenv("LOCALPLUG_STRICT", "1")
    for _ in range(2):  # at every question, not only at the first
        with pytest.raises(PluginFailed, match=r"'bad' \(localplug-bad 1.0\) failed: ZeroDivisionError") as raised:
            localplug.get("mezo")
        assert isinstance(raised.value.__cause__, ZeroDivisionError)
    monkeypatch.setenv("LOCALPLUG_STRICT", "0")
    assert localplug.get("mezo")


def test_a_blocked_plugin_is_listed_and_is_not_imported(install, monkeypatch):
    install("bad", "1 / 0")
    monkeypatch.setenv("LOCALPLUG_BLOCK", "bad, zo")
    assert (found("bad").status, found("bad").reason) == ("blocked", "by LOCALPLUG_BLOCK")
    assert "localplug_fake_bad" not in sys.modules
    with pytest.raises(UnknownName) as raised:
        localplug.get("mezo")
    assert "'zo' (localplug-zo 0.1.0) by LOCALPLUG_BLOCK" in str(raised.value)
    assert "pip install" not in str(raised.value)
    assert localplug.get("tpsgd")


def test_only_the_listed_plugins_are_loaded(install, monkeypatch):
    install("bad", "1 / 0")
    monkeypatch.setenv("LOCALPLUG_PLUGINS", "zo")
    statuses = {p.name: p.status for p in localplug.installed()}
    assert {"bad", "tpsgd", "transformers", "zo"} < set(statuses)
    assert {name for name, status in statuses.items() if status != "blocked"} == {"zo"} and statuses["zo"] == "ok"
    assert found("tpsgd").reason == "not in LOCALPLUG_PLUGINS"
    assert localplug.get("mezo")
    monkeypatch.setenv("LOCALPLUG_PLUGINS", "")
    plugins.reload()
    assert {p.status for p in localplug.installed()} == {"blocked"}


def test_an_entry_point_taken_twice_goes_to_the_distribution_of_that_name_and_names_both(install, caplog):
    """However the other is called, it cannot take the place of a plugin that somebody trains with."""
    install("azo", GOOD.replace("NAME", "mine"), key="zo")
    with caplog.at_level(logging.WARNING, "localplug"):
        first, second = (p for p in localplug.installed() if p.name == "zo")
    assert (first.distribution, first.status) == ("localplug-zo", "ok")
    assert (second.distribution, second.status) == ("localplug-azo", "failed")
    assert f"'zo' is already taken by localplug-zo {localplug.__version__}; uninstall one" in second.reason
    assert any("(localplug-azo 1.0) failed" in message for message in caplog.messages)
    assert "localplug_fake_azo" not in sys.modules
    assert localplug.get("mezo") and localplug.get("tpsgd")
    with pytest.raises(UnknownName, match=r"failed plugins: 'zo' \(localplug-azo 1.0\)"):
        localplug.get("mine")


def test_an_entry_point_taken_twice_by_others_goes_to_the_first(install):
    for name in ("b", "a"):
        install(name, GOOD.replace("NAME", f"from-{name}"), key="mine")
    first, second = (p for p in localplug.installed() if p.name == "mine")
    assert (first.distribution, first.status) == ("localplug-a", "ok")
    assert (second.distribution, second.status) == ("localplug-b", "failed")


def test_a_name_given_twice_answers_to_nobody_and_says_how_to_block_one(install, monkeypatch):
    install("twin", GOOD.replace("NAME", "mezo"))
    with pytest.raises(DuplicateName) as raised:
        localplug.method("mezo")
    message = str(raised.value)
    assert "'twin' (localplug-twin 1.0)" in message and "'zo' (localplug-zo 0.1.0)" in message
    assert "LOCALPLUG_BLOCK=<twin or zo>" in message
    assert localplug.get("tpsgd") and localplug.get("zo-sgd-sign", "update_rules")
    monkeypatch.setenv("LOCALPLUG_BLOCK", "twin")
    plugins.reload()
    assert localplug.get("mezo").__name__ == "MeZO"


@pytest.mark.parametrize("target", ["localplug_fake_gone:Rule", "localplug_fake_late:Gone", ":", "math:pi"])
def test_a_module_attribute_that_cannot_be_had_fails_when_it_is_asked_for(install, target):
    install("late", GOOD.replace('{"NAME": dict}', f'{{"mine": "{target}", "good": "math:floor"}}'))
    assert found("late").status == "ok"
    with pytest.raises(PluginFailed, match="'late'.*gives 'mine' as") as raised:
        localplug.get("mine")
    assert repr(target) in str(raised.value)
    assert localplug.get("good")(1.5) == 1 and localplug.get("mezo")


def test_what_a_plugin_answers_stays_the_plugins_own(install):
    install(
        "own",
        GOOD.replace("@localplug", "given = {'mine': 'math:floor'}\n\n    @localplug").replace(
            '{"NAME": dict}', "given"
        ),
    )
    localplug.get("mine")
    assert sys.modules["localplug_fake_own"].given == {"mine": "math:floor"}


def test_an_unknown_name_comes_with_near_matches_and_what_is_installed():
    with pytest.raises(UnknownName) as raised:
        localplug.get("mezzo")
    message = str(raised.value)
    assert message.startswith("no method named 'mezzo'; did you mean 'mezo'?")
    assert "installed: 1.5-spsa, " in message and "`localplug plugins --load`" in message
    assert "pip install" not in message  # no hint is made of what was typed


@pytest.mark.parametrize(
    "kind, what",
    [
        ("methods", "method"),
        ("target_generators", "target generator"),
        ("local_losses", "local loss"),
        ("update_rules", "update rule"),
        ("commands", "command"),
    ],
)
def test_an_unknown_name_is_said_in_the_words_of_its_kind(kind, what):
    with pytest.raises(UnknownName, match=f"^no {what} named 'nothing-like-it'; installed: [a-z0-9]"):
        localplug.get("nothing-like-it", kind)


def test_an_absent_distribution_of_ours_comes_with_its_pip_line(monkeypatch):
    monkeypatch.setattr(plugins, "entry_points", lambda group: [])
    assert localplug.installed() == []
    with pytest.raises(UnknownName, match=r"it comes with localplug-zo \(pip install localplug-zo\); installed: none"):
        localplug.method("mezo")


def test_a_module_of_ones_own_script_can_be_registered():
    module = types.ModuleType("my_script")

    @localplug.hookimpl
    def localplug_methods():
        return {"mine": dict}

    module.localplug_methods = localplug_methods
    localplug.register(module)
    assert localplug.get("mine") is dict and found("my_script").distribution == "registered by hand"
    plugins.reload()
    with pytest.raises(UnknownName):
        localplug.get("mine")
    assert localplug.get("mezo")


class Rules:
    @localplug.hookimpl
    def localplug_update_rules(self):
        return {"mine": list}


class Wrong:
    @localplug.hookimpl
    def localplug_methods(self):
        return ["mine"]


class Misspelt:
    @localplug.hookimpl
    def localplug_method(self):
        return {"mine": dict}


class Raises:
    @localplug.hookimpl
    def localplug_methods(self):
        raise RuntimeError("out of luck")


def test_a_plain_object_can_be_registered():
    localplug.register(Rules())
    localplug.register(Rules(), name="again")
    with pytest.raises(DuplicateName, match="'Rules'.*and by 'again'"):
        localplug.update_rule("mine")
    assert localplug.update_rule("zo-sgd-sign")


@pytest.mark.parametrize(
    "plugin, expected",
    [
        (object(), "answers none of localplug's hooks"),
        (Wrong(), r"must return a dictionary \{name: class\}, it returned \['mine'\]"),
        (Misspelt(), "unknown hook 'localplug_method'"),
        (Raises(), "out of luck"),
    ],
)
def test_registering_what_is_no_plugin_is_refused_and_leaves_no_trace(plugin, expected):
    before = localplug.installed()
    for _ in range(2):
        with pytest.raises(PluginFailed, match=expected):
            localplug.register(plugin, name="wrong")
    assert localplug.installed() == before
    localplug.register(Rules(), name="wrong")  # the name is free still


def test_registering_a_name_or_an_object_twice_is_refused_and_keeps_the_first():
    rules = Rules()
    localplug.register(rules)
    with pytest.raises(DuplicateName, match="'Rules' is already registered"):
        localplug.register(Rules())
    with pytest.raises(DuplicateName, match="'zo' is already registered"):
        localplug.register(Rules(), name="zo")
    with pytest.raises(DuplicateName, match="already registered"):
        localplug.register(rules, name="other")
    assert localplug.update_rule("mine") is list and localplug.get("mezo")


def test_reload_sees_what_was_installed_since(install):
    assert "late" not in [p.name for p in localplug.installed()]
    install("late", GOOD.replace("NAME", "mine"))
    assert localplug.get("mine") is dict


def test_a_failed_plugin_is_warned_about_on_the_console_of_a_plain_script(install, tmp_path):
    install("bad", "1 / 0")
    script = "import sys, localplug; sys.path.insert(0, sys.argv[1]); print(localplug.get('mezo').__name__)"
    command = [sys.executable, "-c", script, str(tmp_path / "bad")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "MeZO\n"
    assert done.stderr == (
        "localplug: plugin 'bad' (localplug-bad 1.0) failed and is left out: ZeroDivisionError: division by zero\n"
    )


@pytest.mark.parametrize(
    "code",
    [
        "import localplug",
        "import localplug; localplug.installed()",
        "from localplug.cli import main; assert main(['plugins']) == 0",
        "from localplug.cli import main; assert main(['plugins', '--json']) == 0",
        "from localplug.cli import main; assert main(['plugins', '--load']) == 0",
        "from localplug.cli import main; assert main(['plugins', '--available']) == 0",
        "from localplug.cli import main; assert main(['completion', 'bash']) == 0",
        "from localplug.cli import main; assert main(['hooks']) == 0",
    ],
)
def test_neither_the_import_nor_the_listings_import_a_framework(code):
    check = "; import sys; print(sorted({'torch', 'numpy', 'transformers', 'lightning'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code + check], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]" and not done.stderr
