"""The distributions are in step: versions, ranges, entry points, and nothing in a member that belongs to the root."""

import ast
import pathlib
import re
import sys

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import localplug

tomllib = pytest.importorskip("tomllib", reason="in the standard library since Python 3.11")

REPOSITORY = pathlib.Path(__file__).parent.parent
ROOT = REPOSITORY / "pyproject.toml"
PLUGINS = sorted(REPOSITORY.glob("plugins/*/pyproject.toml"))
INTEGRATIONS = sorted(REPOSITORY.glob("integrations/*/pyproject.toml"))
MEMBERS = PLUGINS + INTEGRATIONS


def read(path):
    return tomllib.loads(path.read_text())


OWN = {read(path)["project"]["name"] for path in (ROOT, *MEMBERS)}
every_member = pytest.mark.parametrize("path", MEMBERS, ids=lambda path: path.parent.name)
every_project = pytest.mark.parametrize("path", [ROOT, *MEMBERS], ids=lambda path: path.parent.name)


def requirements(path):
    project = read(path)["project"]
    extras = [line for lines in project.get("optional-dependencies", {}).values() for line in lines]
    return [Requirement(line) for line in project.get("dependencies", []) + extras]


ON_REQUEST = {  # what brings a large library, or no method for a trainer
    *("localplug-blackbox", "localplug-convex", "localplug-credit", "localplug-exact", "localplug-experts"),
    *("localplug-graph", "localplug-rewards", "localplug-select", "localplug-ternary", "localplug-updates"),
}


def test_make_installs_every_distribution():
    names = [
        "zo",
        "tpsgd",
        "forward",
        "noprop",
        "greedy",
        "graph",
        "convex",
        "credit",
        "select",
        "exact",
        "experts",
        "rewards",
        "blackbox",
        "ternary",
        "updates",
        "transformers",
        "lightning",
        "bench",
    ]
    assert {"localplug", *(f"localplug-{name}" for name in names)} == OWN
    (line,) = (x for x in (REPOSITORY / "Makefile").read_text().splitlines() if x.startswith("MEMBERS := "))
    assert set(line.split()[2:]) == {str(path.parent.relative_to(REPOSITORY)) for path in MEMBERS}


@every_project
def test_the_version_is_the_hosts(path):
    assert read(path)["project"]["version"] == localplug.__version__


@every_project
def test_python_licence_and_build_are_the_same_everywhere(path):
    ours, roots = read(path), read(ROOT)
    assert ours["build-system"] == roots["build-system"]
    for key in ("requires-python", "license", "classifiers", "readme"):
        assert ours["project"][key] == roots["project"][key]
    assert (path.parent / "LICENSE").read_bytes() == (REPOSITORY / "LICENSE").read_bytes()
    assert (path.parent / "README.md").read_text().startswith(f"# {ours['project']['name']}\n")


@every_member
def test_a_member_is_short_and_configures_no_tool(path):
    assert len(path.read_text().splitlines()) <= 15
    whole = read(path)
    hooks = whole.pop(
        "tool", {"hatch": {"build": {"hooks": {"custom": {}}}}}
    )  # what compiles a kernel is part of a build
    assert set(whole) == {"build-system", "project"} and set(hooks["hatch"]["build"]["hooks"]) == {"custom"}
    assert set(hooks) == {"hatch"} and set(hooks["hatch"]) == {"build"} and set(hooks["hatch"]["build"]) == {"hooks"}


@every_member
def test_the_folder_the_distribution_and_the_module_share_one_name(path):
    name = read(path)["project"]["name"]
    assert name == path.parent.name == canonicalize_name(name) and name.startswith("localplug-")
    assert [p.name for p in (path.parent / "src").iterdir() if (p / "__init__.py").exists()] == [name.replace("-", "_")]


@every_member
def test_the_entry_point_is_the_suffix_of_the_distribution(path):
    project = read(path)["project"]
    suffix, module = project["name"].removeprefix("localplug-"), project["name"].replace("-", "_")
    implements = "hookimpl" in (path.parent / "src" / module / "__init__.py").read_text()
    assert project.get("entry-points", {}) == ({"localplug": {suffix: module}} if implements else {})
    assert implements or path in INTEGRATIONS, "a plugin that answers no hook"


@every_project
def test_the_types_are_shipped(path):
    assert list(path.parent.glob("src/*/py.typed"))


@every_project
def test_ranges_are_bounded_and_never_pin(path):
    for requirement in requirements(path):
        operators = {s.operator for s in requirement.specifier}
        assert not operators & {"==", "==="}, requirement
        assert ">=" in operators, requirement
        if requirement.name in OWN:
            assert operators == {">=", "<"}, requirement
            assert localplug.__version__ in requirement.specifier, requirement
            assert "1.0" not in requirement.specifier, requirement


def test_nobody_needs_upwards():
    """plugins -> localplug <- integrations; an integration brings the default plugins; no cycle outside extras."""
    assert not {r.name for r in map(Requirement, read(ROOT)["project"]["dependencies"])} & OWN
    plugins = {path.parent.name for path in PLUGINS}
    for path in PLUGINS:
        assert {r.name for r in requirements(path)} & OWN == {"localplug"}
    for path in INTEGRATIONS:
        assert {r.name for r in requirements(path)} & OWN == {"localplug", *plugins} - ON_REQUEST


def test_the_extras_bring_the_integrations_and_the_file_format():
    extras = read(ROOT)["project"]["optional-dependencies"]
    names = {extra: {Requirement(line).name for line in lines} for extra, lines in extras.items()}
    optional = names.pop("replay")
    assert optional == {"safetensors"}
    assert names.pop("all") == {path.parent.name for path in INTEGRATIONS} | optional | ON_REQUEST
    assert names == {
        name.removeprefix("localplug-"): {name}
        for name in (*ON_REQUEST, "localplug-transformers", "localplug-lightning", "localplug-bench")
    }


@every_project
def test_what_is_imported_at_the_top_of_a_file_is_declared(path):
    """Inside functions stands what is optional; pytest is brought by whoever runs the conformance kit."""
    declared = {canonicalize_name(r.name) for r in requirements(path)}
    own = {p.name for p in (path.parent / "src").iterdir()}
    for file in (path.parent / "src").rglob("*.py"):
        for node in ast.parse(file.read_text()).body:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            roots = {name.split(".")[0] for name in names} - own - set(sys.stdlib_module_names)
            if "testing" in file.parts or file.name == "conformance.py":
                roots.discard("pytest")
            assert {canonicalize_name(root) for root in roots} <= declared, file


# ---- the oldest versions ----------------------------------------------------------------------------------------------------


def test_the_oldest_versions_that_are_tested_are_those_that_are_declared():
    """`make oldest` installs the file; torch has a version of its own there."""
    text = (REPOSITORY / "constraints-oldest.txt").read_text()
    pins = {r.name: r.specifier for r in map(Requirement, re.findall(r"^[a-z].*$", text, re.M))}
    declared = {}
    for requirement in (r for path in (ROOT, *MEMBERS) for r in requirements(path) if r.name not in OWN | {"torch"}):
        (lower,) = (s.version for s in requirement.specifier if s.operator == ">=")
        assert declared.setdefault(requirement.name, lower) == lower, f"{requirement.name} has two lower bounds"
        assert pins[requirement.name].contains(lower), requirement
    assert set(pins) == set(declared)
