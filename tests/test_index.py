"""The plugin index: its rules, and that its entries of our own are true."""

import pathlib
import subprocess
import sys

import pytest
from packaging.requirements import Requirement

from localplug import index, plugins
from localplug.cli import main

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

pytestmark = pytest.mark.usefixtures("fresh_plugins")
REPOSITORY = pathlib.Path(__file__).parent.parent
ENTRIES = index.read()
PROJECTS = {
    project["name"]: project
    for path in [*REPOSITORY.glob("plugins/*/pyproject.toml"), *REPOSITORY.glob("integrations/*/pyproject.toml")]
    for project in [tomllib.loads(path.read_text())["project"]]
}
ENTRY = """
[[plugin]]
name = "a"
distribution = "localplug-a"
summary = "x"
licence = "MIT"
requires = ">=0.1,<0.2"
[plugin.gives]
methods = ["a"]
"""


def test_the_entries_are_in_the_order_of_the_alphabet():
    assert [entry.name for entry in ENTRIES] == sorted(entry.name for entry in ENTRIES)


def test_every_distribution_of_ours_with_a_plugin_is_in_the_index():
    ours = {name for name, project in PROJECTS.items() if "localplug" in project.get("entry-points", {})}
    assert ours == {entry.distribution for entry in ENTRIES} & PROJECTS.keys()


@pytest.mark.parametrize("entry", [e for e in ENTRIES if e.distribution in PROJECTS], ids=lambda entry: entry.name)
def test_an_entry_of_ours_says_what_the_distribution_says_and_gives(entry):
    project = PROJECTS[entry.distribution]
    assert list(project["entry-points"]["localplug"]) == [entry.name] and project["license"] == entry.licence
    (needed,) = [r for r in map(Requirement, project["dependencies"]) if r.name == "localplug"]
    assert needed.specifier == Requirement(f"localplug{entry.requires}").specifier
    (loaded,) = [p for p in plugins.installed() if p.distribution == entry.distribution]
    assert {kind: sorted(names) for kind, names in loaded.gives.items()} == {
        k: sorted(v) for k, v in entry.gives.items()
    }


@pytest.mark.parametrize(
    "change, said",
    [
        (('name = "a"', 'name = "A b"'), "entry 1 (A b): name must be lower-case letters"),
        (('"localplug-a"', '"localplug-a; touch x"'), "distribution must be a name as pip knows it"),
        (('"localplug-a"', '"-rf"'), "distribution must be a name as pip knows it"),
        (('summary = "x"', 'summary = ""'), "summary must be one line of 1 to 120 characters"),
        (('summary = "x"', 'summary = "' + "x" * 121 + '"'), "summary must be one line of 1 to 120 characters"),
        (('summary = "x"', 'summary = "x\\u202e"'), "summary must be one line"),
        (('">=0.1,<0.2"', '"latest"'), "requires must be a range"),
        (('licence = "MIT"', ""), "licence must be an SPDX identifier such as Apache-2.0, got None"),
        (('licence = "MIT"', 'licence = "MIT"\nhomepage = "http://a"'), "homepage must be an https:// address"),
        (('licence = "MIT"', 'licence = "MIT"\nmore = 1'), "has an unknown field 'more'"),
        (('methods = ["a"]', 'methods = "a"'), "gives.methods must be a list of names"),
        (('methods = ["a"]', 'methods = ["a b"]'), "gives.methods has 'a b'"),
        (('methods = ["a"]', 'spells = ["a"]'), "gives has no kind 'spells'"),
        (('methods = ["a"]', ""), "gives must be a table"),
    ],
)
def test_an_entry_that_breaks_a_rule_is_refused_with_the_rule(tmp_path, change, said):
    (tmp_path / "index.toml").write_text(ENTRY)
    assert [entry.kinds for entry in index.read(tmp_path / "index.toml")] == [["methods"]]
    (tmp_path / "index.toml").write_text(ENTRY.replace(*change))
    with pytest.raises(ValueError, match="is no index of plugins") as raised:
        index.read(tmp_path / "index.toml")
    assert said in str(raised.value)


def test_all_problems_are_told_at_once(tmp_path):
    (tmp_path / "index.toml").write_text("[[plugin]]\n[[plugin]]\nname = 3\n")
    with pytest.raises(ValueError) as raised:
        index.read(tmp_path / "index.toml")
    assert str(raised.value).count("\n") == 12  # six fields each


def test_names_that_two_entries_claim_are_refused(tmp_path):
    other = ENTRY.replace('name = "a"', 'name = "b"').replace("localplug-a", "LocalPlug_A")
    (tmp_path / "index.toml").write_text(ENTRY + other)
    with pytest.raises(ValueError) as raised:
        index.read(tmp_path / "index.toml")
    assert "distribution 'localplug-a' is claimed by a and by b" in str(raised.value)
    assert "methods 'a' is claimed by a and by b" in str(raised.value)


def test_available_marks_what_is_installed(capsys, monkeypatch):
    ours = plugins.entry_points(group="localplug")
    monkeypatch.setattr(plugins, "entry_points", lambda group: [e for e in ours if e.name != "tpsgd"])
    assert main(["plugins", "--available"]) == 0
    rows = {line.split()[0]: line.split()[1:3] for line in capsys.readouterr().out.splitlines()}
    assert list(rows) == [entry.name for entry in ENTRIES]
    assert rows["tpsgd"] == ["localplug-tpsgd", "-"] and rows["zo"][0] == "localplug-zo" and rows["zo"][1][0].isdigit()


def test_the_index_is_in_the_wheel(tmp_path):
    """Else there is nothing to read where localplug was installed from one."""
    command = [
        sys.executable,
        "-c",
        "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))",
    ]
    done = subprocess.run([*command, str(tmp_path)], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    import zipfile

    names = zipfile.ZipFile(tmp_path / done.stdout.splitlines()[-1]).namelist()
    assert "localplug/index.toml" in names
