"""How a release is made: one version written everywhere, a section of the changelog, and a look into what was built."""

import importlib.util
import pathlib
import re

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import localplug

tomllib = pytest.importorskip("tomllib", reason="in the standard library since Python 3.11")

REPOSITORY = pathlib.Path(__file__).parent.parent
ROOT = REPOSITORY / "pyproject.toml"
MEMBERS = sorted([*REPOSITORY.glob("plugins/*/pyproject.toml"), *REPOSITORY.glob("integrations/*/pyproject.toml")])


def read(path):
    return tomllib.loads(path.read_text())


def requirements(path):
    project = read(path)["project"]
    extras = [line for lines in project.get("optional-dependencies", {}).values() for line in lines]
    return [Requirement(line) for line in project.get("dependencies", []) + extras]


OWN = {read(path)["project"]["name"] for path in (ROOT, *MEMBERS)}


# ---- the version ------------------------------------------------------------------------------------------------------------


def script(name):
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / ".ci" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def copied(folder):
    """What holds a version, in another folder."""
    files = [ROOT, *MEMBERS, *REPOSITORY.glob("examples/*/pyproject.toml"), REPOSITORY / "CHANGELOG.md"]
    for file in [*files, REPOSITORY / "src" / "localplug" / "__init__.py"]:
        place = folder / file.relative_to(REPOSITORY)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(file.read_bytes())
    return folder


def test_one_command_gives_all_distributions_a_new_version(tmp_path):
    changed = script("set_version").set_version("0.7.3", copied(tmp_path))
    assert {p.relative_to(tmp_path).name for p in changed} == {"pyproject.toml", "__init__.py", "CHANGELOG.md"}
    for path in tmp_path.glob("**/pyproject.toml"):
        is_ours = "examples" not in path.parts
        assert read(path)["project"]["version"] == ("0.7.3" if is_ours else "0.1.0")
        before = read(REPOSITORY / path.relative_to(tmp_path))["project"]
        assert {**before, "version": ""}.keys() == read(path)["project"].keys()
        for requirement in requirements(path):
            if requirement.name in OWN:
                assert requirement.specifier == SpecifierSet(">=0.7,<0.8"), requirement
            else:
                assert requirement in requirements(REPOSITORY / path.relative_to(tmp_path))
    assert '__version__ = "0.7.3"' in (tmp_path / "src/localplug/__init__.py").read_text()
    assert sections((tmp_path / "CHANGELOG.md").read_text())[0] == ("0.7.3", "unreleased")


@pytest.mark.parametrize("version", ["", "0.7", "v0.7.0", "0.7.0rc1", "0.0.9", localplug.__version__])
def test_a_version_that_is_none_or_not_later_changes_nothing(version, tmp_path):
    copied(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()}
    with pytest.raises(ValueError, match=r"must be three numbers and later than"):
        script("set_version").set_version(version, tmp_path)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()}


def test_the_range_keeps_what_a_version_promises():
    bounds = script("set_version").bounds
    assert [bounds(v) for v in ("0.2.1", "0.10.0", "1.4.0")] == [">=0.2,<0.3", ">=0.10,<0.11", ">=1.4,<2"]


def sections(changelog):
    """[(version, its date or "unreleased")] of the headings."""
    headings = re.findall(r"^## (.*)$", changelog, re.M)
    found = [re.fullmatch(r"(\d+\.\d+\.\d+) \((\d{4}-\d\d-\d\d|unreleased)\)", heading) for heading in headings]
    assert all(found), headings
    return [match.groups() for match in found]


def test_the_changelog_has_a_section_for_this_version_and_only_it_may_be_unreleased():
    text = (REPOSITORY / "CHANGELOG.md").read_text()
    (version, _), *others = found = sections(text)
    assert text.startswith("# Changelog\n") and version == localplug.__version__
    numbers = [tuple(map(int, v.split("."))) for v, _ in found]
    assert numbers == sorted(set(numbers), reverse=True) and all(date != "unreleased" for _, date in others)
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.*)$", text, re.M)) <= kinds
    assert all(part.strip() for part in re.split(r"^##+ .*$", text, flags=re.M)), "a section is empty"


# ---- what is in the files ---------------------------------------------------------------------------------------------------

METADATA = b"""Metadata-Version: 2.4
Name: localplug-x
Version: 1.0
Summary: x
License-Expression: Apache-2.0
License-File: LICENSE
Requires-Python: >=3.10
Classifier: Typing :: Typed
Description-Content-Type: text/markdown

# localplug-x
"""
INFO = "localplug_x-1.0.dist-info"
WHEEL = {
    "localplug_x/__init__.py": b"",
    "localplug_x/py.typed": b"",
    f"{INFO}/licenses/LICENSE": b"free",
    f"{INFO}/METADATA": METADATA,
}
ARCHIVE = {
    "pyproject.toml": b"[project]",
    "README.md": b"# x",
    "LICENSE": b"free",
    "csrc/hatch_build.py": b"import os",
    "csrc/x.c": b"int x;",
    "src/localplug_x/__init__.py": b"import x",
    "src/localplug_x/py.typed": b"",
}


def without(content, name):
    return {key: value for key, value in content.items() if key != name}


@pytest.mark.parametrize(
    "content, said",
    [
        (WHEEL, []),
        (without(WHEEL, "localplug_x/py.typed"), ["localplug_x/py.typed is missing"]),
        (without(WHEEL, f"{INFO}/licenses/LICENSE"), [f"{INFO}/licenses/LICENSE is missing"]),
        ({**WHEEL, "tests/test_x.py": b""}, ["tests/test_x.py does not belong there", "tests/test_x.py is a test"]),
        ({**WHEEL, "localplug_x/test_x.py": b""}, ["localplug_x/test_x.py is a test"]),
        ({**WHEEL, f"{INFO}/METADATA": METADATA.replace(b"Summary: x\n", b"")}, ["its metadata have no Summary"]),
        ({**WHEEL, f"{INFO}/METADATA": METADATA.split(b"# ")[0]}, ["its metadata have no description"]),
    ],
)  # fmt: skip
def test_a_fault_of_a_wheel_is_found(content, said):
    assert script("check_dist").of_wheel(content, "localplug_x", "1.0") == said


@pytest.mark.parametrize(
    "content, said",
    [
        (ARCHIVE, []),
        (without(ARCHIVE, "src/localplug_x/py.typed"), ["src/localplug_x/py.typed is missing"]),
        ({**ARCHIVE, "LICENSE": b""}, ["LICENSE is missing, or a link"]),
        (without(ARCHIVE, "csrc/x.c"), ["what the kernel is compiled from is missing"]),
        ({**ARCHIVE, "src/localplug_x/_x.so": b"ELF"}, ["src/localplug_x/_x.so is compiled"]),
    ],
)
def test_a_fault_of_a_source_archive_is_found(content, said):
    assert script("check_dist").of_archive(content, "localplug_x", True) == said


def test_a_path_of_the_building_machine_is_found():
    traces = script("check_dist").traces
    assert traces({"a.py": b"import os"}, REPOSITORY) == []
    assert len(traces({"a.so": f"x{REPOSITORY}/src/a.c".encode()}, REPOSITORY)) >= 1


def test_missing_and_strange_files_are_found(tmp_path):
    (tmp_path / "localplug_zo-0.0.1.tar.gz").write_bytes(b"")
    found = script("check_dist").faults(tmp_path)
    assert len(found) == 2 * len(OWN) + 1 and found[-1].startswith("localplug_zo-0.0.1.tar.gz: of no distribution")
