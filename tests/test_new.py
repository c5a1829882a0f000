"""`localplug new`: one of each kind installs, passes the kit and trains; what is refused, and that no half is left."""

import email
import json
import os
import pathlib
import re
import subprocess
import sys
import xml.etree.ElementTree

import pytest
import yaml

from localplug import cli
from localplug.scaffold import writing
from localplug.scaffold.project import KINDS, Project

ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
every_kind = pytest.mark.parametrize("kind", KINDS)


def new(*words):
    return cli.main(["new", *map(str, words)])


def run(*words, cwd, site=None, **more):
    done = subprocess.run(
        [sys.executable, *map(str, words)], capture_output=True, text=True, cwd=cwd,
        env=ENVIRONMENT | ({"PYTHONPATH": str(site)} if site else {}), **more,
    )  # fmt: skip
    return done


def folder_of(made, kind):
    return made / f"localplug-my-{kind}"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """One of each kind, by the command line, in one folder."""
    folder = tmp_path_factory.mktemp("made")
    for kind in KINDS:
        assert new(f"my-{kind}", "--kind", kind, "--out", folder / f"localplug-my-{kind}") == 0
    return folder


@pytest.fixture(scope="module")
def site(made, tmp_path_factory):
    """All of them installed, by pip, where nothing else is."""
    site = tmp_path_factory.mktemp("site")
    options = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--no-compile", "--target", site]
    done = run("-m", "pip", "install", *options, *(folder_of(made, kind) for kind in KINDS), cwd=made)
    assert done.returncode == 0, done.stderr
    return site


@pytest.fixture(scope="module")
def kits(made, site):
    """{kind: what became of each of its tests}, of one run of pytest over all of them."""
    report = made / "report.xml"
    options = ["-q", "-W", "error", "-p", "no:cacheprovider", "--import-mode=importlib", "--rootdir", made]
    folders = [folder_of(made, kind) / "tests" for kind in KINDS]
    done = run("-m", "pytest", *options, "--junitxml", report, *folders, cwd=made, site=site, timeout=300)
    found = {kind: {} for kind in KINDS}
    for case in xml.etree.ElementTree.parse(report).iter("testcase"):
        (kind,) = (kind for kind in KINDS if f"localplug-my-{kind}.tests." in case.get("classname"))
        found[kind][case.get("name")] = [f"{child.tag}: {child.get('message')}" for child in case]
    return found, done.stdout


@every_kind
def test_what_it_writes_passes_the_kit_and_is_found(kits, kind):
    found, output = kits
    bad = {name: what for name, what in found[kind].items() if any(not w.startswith("skipped") for w in what)}
    assert not bad, output[-3000:]
    assert found[kind]["test_localplug_finds_it"] == []
    assert len(found[kind]) > 15, "the kit was not run"


@pytest.fixture(scope="module")
def losses(made, site):
    """{kind: the losses that the block of its README prints}, of one process for all."""
    script = made / "use.py"
    script.write_text(
        "import pathlib, re\n"
        f"for kind in {list(KINDS)!r}:\n"
        "    text = pathlib.Path(f'localplug-my-{kind}', 'README.md').read_text()\n"
        "    (block,) = re.findall(r'```python\\n(.*?)```', text, re.S)\n"
        "    print('kind', kind)\n"
        "    exec(block, {})\n"
    )
    done = run(script, cwd=made, site=site, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    parts = re.split(r"^kind ([a-z-]+)\n", done.stdout, flags=re.M)[1:]
    return {
        kind: [float(loss) for loss in re.findall(r"loss ([\d.]+)", text)]
        for kind, text in zip(parts[::2], parts[1::2], strict=True)
    }


@every_kind
def test_what_it_writes_trains_by_its_name_as_its_readme_says(losses, kind):
    assert len(losses[kind]) >= 3
    assert losses[kind][-1] < 0.5 * losses[kind][0]


@every_kind
def test_its_pyproject_is_short_and_complete(made, site, kind):
    tomllib = pytest.importorskip("tomllib", reason="in the standard library since Python 3.11")
    text = (folder_of(made, kind) / "pyproject.toml").read_text()
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    assert len(lines) <= 15
    project = tomllib.loads(text)["project"]
    assert project["name"] == f"localplug-my-{kind}"
    assert project["dependencies"] == ["localplug>=0.1,<0.2", "torch>=2.6,<3"]
    assert project["entry-points"] == {"localplug": {f"my-{kind}": project["name"].replace("-", "_")}}
    assert "license" not in project and "# license = " in text and "licence is your choice" in text
    (metadata,) = site.glob(f"{project['name'].replace('-', '_')}-*.dist-info/METADATA")
    assert email.message_from_string(metadata.read_text())["Summary"].startswith(f"my-{kind}: a")


@every_kind
def test_it_writes_these_files_and_its_ci_runs_its_tests(made, kind):
    folder = folder_of(made, kind)
    module = f"localplug_my_{kind.replace('-', '_')}"
    there = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and ".pyc" not in path.name}
    tests = f"tests/test_{module.removeprefix('localplug_')}.py"
    expected = {"pyproject.toml", "README.md", ".github/workflows/test.yml", f"{module}.py", tests}
    assert expected == there
    workflow = yaml.safe_load((folder / ".github/workflows/test.yml").read_text())
    steps = [step.get("run") for step in workflow["jobs"]["test"]["steps"]]
    assert "python -m pytest" in steps and 'python -m pip install ".[test]"' in steps
    assert workflow["permissions"] == {"contents": "read"}
    assert (folder / module).with_suffix(".py").read_text().count("\n") < 120


@every_kind
def test_the_index_entry_in_its_readme_is_one(made, kind, tmp_path):
    from localplug import index

    (entry,) = re.findall(r"```toml\n(.*?)```", (folder_of(made, kind) / "README.md").read_text(), re.S)
    file = tmp_path / "index.toml"
    file.write_text(entry.replace('summary = "..."', 'summary = "Mine"').replace('licence = "..."', 'licence = "MIT"'))
    (read,) = index.read(file)
    assert read.distribution == f"localplug-my-{kind}" and read.gives == {KINDS[kind].hook: [f"my-{kind}"]}


def test_what_it_writes_is_linted_and_formatted(made):
    for kind in KINDS:
        for words in (["check"], ["format", "--check", "--line-length", "120"]):
            done = run("-m", "ruff", *words, "--isolated", "--no-cache", ".", cwd=folder_of(made, kind))
            assert done.returncode == 0, done.stdout


def test_nothing_tells_to_install_what_somebody_typed(made, capsys, tmp_path):
    capsys.readouterr()
    assert new("my-rule", "--kind", "update-rule", "--out", tmp_path / "out") == 0
    texts = [capsys.readouterr().out, *(p.read_text() for p in made.rglob("*") if p.suffix in (".md", ".yml", ".toml"))]
    commands = {words for text in texts for words in re.findall(r"pip install ([^\n`]+)", text)}
    ours = {".", '".[test]"', '-e ".[test]"', "build twine"}
    assert commands == ours


def test_it_says_what_was_written_and_what_is_next(tmp_path, capsys):
    folder = tmp_path / "a folder"
    assert new("my-rule", "--kind", "update-rule", "--out", folder) == 0
    said = capsys.readouterr().out
    assert "  localplug_my_rule.py\n" in said and f"  cd '{folder}'\n" in said and "python -m pytest" in said
    assert new("his-rule", "--kind", "method", "--out", tmp_path / "b", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["distribution"] == "localplug-his-rule" and told["kind"] == "method"
    assert all((tmp_path / "b" / file).is_file() for file in told["files"]) and len(told["files"]) == 5


def test_it_imports_no_torch_and_no_plugin(site, tmp_path):
    program = (
        "import sys; from localplug.cli import main; "
        "assert main(['new', 'her-rule', '--kind', 'method']) == 0; "
        "print(sorted({'torch', 'numpy', 'localplug_zo', 'localplug_my_method'} & set(sys.modules)))"
    )
    done = run("-c", program, cwd=tmp_path, site=site)
    assert done.stdout.endswith("[]\n"), done.stdout + done.stderr
    assert (tmp_path / "localplug-her-rule" / "localplug_her_rule.py").is_file()


def test_a_name_that_is_installed_is_taken(site, tmp_path):
    program = "import sys; from localplug.cli import main; sys.exit(main(['new', 'my-method', '--kind', 'target']))"
    done = run("-c", program, cwd=tmp_path, site=site)
    assert done.returncode == 2 and "taken by the installed plugin 'my-method' (localplug-my-method" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("My-Rule", "must consist of lower-case letters"),
        ("my_rule", "must consist of"),
        ("my--rule", "must consist of"),
        ("my-rule-", "must consist of"),
        ("1-5-spsa", "a letter first"),
        ("my.rule", "must consist of"),
        ("../rule", "must consist of"),
        ("", "must consist of"),
        ("regel-ü", "must consist of"),
        ("x\x1b[2J; rm -rf", r"got 'x\\x1b[2J; rm -rf'"),
        ("localplug-rule", "is without the prefix"),
        ("mezo", "taken by localplug-zo"),
        ("zo", "taken by localplug-zo"),
        ("tequila", "taken by localplug-ternary"),
        ("lambda", "would become lambda in Python"),
        ("none", "would become None in Python"),
        ("abs", "would become abs"),
        ("torch", "would become torch"),
        ("test-rule", "begins with test"),
        ("r" * 41, "at most 40 characters"),
    ],
)
def test_a_name_that_cannot_be_is_refused(tmp_path, monkeypatch, capsys, name, words):
    monkeypatch.chdir(tmp_path)
    assert new("--kind", "local-loss", "--", name) == 2
    said = capsys.readouterr()
    assert words in said.err and not said.out and "\x1b" not in said.err
    assert not list(tmp_path.iterdir())


def test_everything_wrong_is_said_at_once(tmp_path, capsys):
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.tex").write_text("years of work")
    assert new("My Rule", "--kind", "optimizer", "--author", "<>", "--out", full) == 2
    said = capsys.readouterr().err
    assert all(word in said for word in ("the name must", "one of update-rule, target", "the author must", "not empty"))
    assert [p.name for p in full.iterdir()] == ["thesis.tex"] and (full / "thesis.tex").read_text() == "years of work"


def test_a_file_a_link_and_a_folder_in_no_folder_are_refused(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "empty").mkdir()
    for out, words in (("file", "is a file"), ("link", "is a link"), ("no/where", "make it first")):
        with pytest.raises(ValueError, match=words):
            Project("my-rule", "update-rule", tmp_path / out)
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(ValueError, match="is the folder that you are in"):
        Project("my-rule", "update-rule", ".")
    assert not (tmp_path / "elsewhere").exists()


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "empty").mkdir()
    assert writing.write(Project("my-rule", "update-rule", tmp_path / "empty")) == tmp_path / "empty"
    assert (tmp_path / "empty" / "localplug_my_rule.py").is_file()


def test_what_cannot_be_finished_leaves_nothing(tmp_path, monkeypatch):
    written, count = pathlib.Path.write_text, []

    def fails(path, *args, **kwargs):
        count.append(path)
        if len(count) == 4:
            raise OSError("no space left on device")
        return written(path, *args, **kwargs)

    monkeypatch.setattr(pathlib.Path, "write_text", fails)
    with pytest.raises(OSError, match="no space left"):
        writing.write(Project("my-rule", "update-rule", tmp_path / "out"))
    assert len(count) == 4 and not list(tmp_path.iterdir())


def test_what_came_in_the_meantime_stays(tmp_path):
    project = Project("my-rule", "update-rule", tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    with pytest.raises(OSError):
        writing.write(project)
    assert [p.name for p in tmp_path.rglob("*")] == ["out", "thesis.tex"]


@pytest.mark.parametrize(
    ("author", "fields"),
    [
        ("Ada Lovelace <ada@example.org>", {"name": "Ada Lovelace", "email": "ada@example.org"}),
        ('Ada "the first" \\ Löwe', {"name": 'Ada "the first" \\ Löwe'}),
        ("$name 😀", {"name": "$name 😀"}),
    ],
)
def test_the_author_is_written_as_given(tmp_path, author, fields):
    tomllib = pytest.importorskip("tomllib", reason="in the standard library since Python 3.11")
    writing.write(Project("my-rule", "update-rule", tmp_path / "out", author))
    text = (tmp_path / "out" / "pyproject.toml").read_text(encoding="utf-8")
    assert tomllib.loads(text)["project"]["authors"] == [fields]


@pytest.mark.parametrize("author", ["", "<a@b.org>", "Ada <nothing>", "Ada\nname = 1", "a@b.org"])
def test_an_author_that_is_none_is_refused(tmp_path, author):
    with pytest.raises(ValueError, match="the author must be"):
        Project("my-rule", "update-rule", tmp_path / "out", author)


def test_the_range_is_that_of_this_version():
    from localplug.scaffold import project

    assert project._range("0.1.0") == ">=0.1,<0.2" and project._range("2.3.1") == ">=2.3,<3"


def test_the_documentation_has_every_kind_with_its_hook_its_tests_and_its_example(made):
    page = pathlib.Path(__file__).parent.parent.joinpath("docs", "publishing.md").read_text()
    rows = {row[0]: row for row in re.findall(r"^\| `([a-z-]+)` \| (.*) \| `(\w+)` \| `(\w+)` \| (.*) \|$", page, re.M)}
    assert list(rows) == list(KINDS)
    for kind, (_, _, hook, tests, example) in rows.items():
        assert hook == f"localplug_{KINDS[kind].hook}" and example == KINDS[kind].example
        assert f"({tests}):" in next(folder_of(made, kind).joinpath("tests").glob("*.py")).read_text()
