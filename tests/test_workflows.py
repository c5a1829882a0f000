"""The workflows run the gate itself, and what they add to it agrees with what the distributions declare."""

import pathlib
import re
import subprocess
import sys

import pytest
import yaml
from packaging.requirements import Requirement

tomllib = pytest.importorskip("tomllib", reason="in the standard library since Python 3.11")

REPOSITORY = pathlib.Path(__file__).parent.parent
FILES = sorted((REPOSITORY / ".github" / "workflows").glob("*.yml"))
GATE = (REPOSITORY / ".ci" / "run").read_text()
MAKEFILE = (REPOSITORY / "Makefile").read_text()
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
every_workflow = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def read(path):
    workflow = yaml.safe_load(path.read_text())
    workflow["on"] = workflow.pop(True)  # what YAML 1.1 makes of the word
    return workflow


def steps(workflow):
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


def targets():
    """The names that make knows."""
    lines = re.findall(r"^([a-z][a-z ]*):(?!=)", MAKEFILE, re.M)
    return {name for line in lines for name in line.split()}


def test_there_are_two():
    assert [path.name for path in FILES] == ["ci.yml", "release.yml"]


@every_workflow
def test_it_is_a_workflow(path):
    """By GitHub's schema, a copy of which check-jsonschema has."""
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@every_workflow
def test_the_gate_is_run_whole(path):
    """One call of .ci/run, so that a step which the gate gains is a step of the workflow."""
    (job,) = (job for job in read(path)["jobs"].values() if any(s.get("run") == "bash .ci/run" for s in job["steps"]))
    assert job["timeout-minutes"] >= 90 and "container" not in job and "strategy" not in job
    assert not any("if" in step or "continue-on-error" in step for step in job["steps"])


def test_what_the_gate_and_the_workflows_ask_of_make_is_there():
    asked = set(re.findall(r"^step \".+\" make ([a-z]+)", GATE, re.M)) | set(
        re.findall(r"^ +make ([a-z]+)", GATE, re.M)
    )
    assert {"venv", "lint", "types", "test", "demo", "dist", "oldest"} <= asked <= targets()
    ends = read(FILES[0])["jobs"]["ends"]
    runs = " ".join(step.get("run", "") for step in ends["steps"]).replace("${{ matrix.end }}", "oldest newest")
    assert set(re.findall(r"make ([a-z]+)", runs)) <= targets()
    assert {row["end"] for row in ends["strategy"]["matrix"]["include"]} == {"oldest", "newest"} <= targets()


def test_every_version_of_python_that_is_declared_is_tested_and_both_ends_of_torch():
    rows = read(FILES[0])["jobs"]["ends"]["strategy"]["matrix"]["include"]
    declared = [c.rsplit(" ", 1)[1] for c in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", c)]
    assert {row["python"] for row in rows} == set(declared)
    assert PROJECT["requires-python"] == f">={min(declared, key=lambda v: int(v.split('.')[1]))}"
    (torch,) = (Requirement(line) for line in PROJECT["dependencies"] if Requirement(line).name == "torch")
    (lower,) = (s.version for s in torch.specifier if s.operator == ">=")
    assert f"{lower}.0" in {row["torch"] for row in rows if row["end"] == "oldest"}
    assert all(row["torch"] in torch.specifier for row in rows)
    pinned = re.search(r"^torch==(\S+)$", (REPOSITORY / "constraints.txt").read_text(), re.M)[1]
    assert f"TORCH ?= {pinned}\n" in MAKEFILE


@every_workflow
def test_it_may_do_no_more_than_it_must(path):
    workflow = read(path)
    assert workflow["permissions"] == {"contents": "read"} and "concurrency" in workflow
    assert "secrets." not in path.read_text() and "pull_request_target" not in workflow["on"]
    for name, job in workflow["jobs"].items():
        assert job["timeout-minutes"] <= 90
        assert job.get("permissions", {}) == ({"id-token": "write"} if name == "publish" else {})
    for step in steps(workflow):
        if "uses" in step:
            assert re.fullmatch(r"actions/[a-z-]+@v\d+|pypa/gh-action-pypi-publish@release/v1", step["uses"])
            if "checkout" in step["uses"]:
                assert step["with"]["persist-credentials"] is False
        assert "${{ github.event" not in step.get("run", ""), "what others typed would be run"


def test_a_release_publishes_what_the_gate_built_and_nothing_before_it_has_passed():
    jobs = read(FILES[1])["jobs"]
    assert set(jobs["publish"]["needs"]) == set(jobs) - {"publish"}
    names = [step["run"] for step in jobs["compiled"]["steps"] if "run" in step]
    compiled = {str(path.parent.parent.relative_to(REPOSITORY)) for path in REPOSITORY.glob("**/csrc/hatch_build.py")}
    (line,) = re.findall(r"for distribution in (.+); do", "\n".join(names))
    assert set(line.split()) == {path for path in compiled if not path.startswith((".venv", "dist"))}
