"""Mutants of the conformance kit's subjects: sources with one thing broken, and how a check is run on them."""

import importlib.util
import inspect
import pathlib
import pickle
import sys
import types

import _pytest.outcomes
import pytest
import torch

from localplug.errors import LocalPlugError
from localplug.testing import LocalLossTests, UpdateRuleTests
from localplug.testing.kinds import checks_of

OVERRIDES = "test_overrides_no_check_without_a_reason"  # of a class of tests, not of what it tests


def source_of(module):
    return pathlib.Path(importlib.util.find_spec(module).origin).read_text()


def loaded(source, monkeypatch):
    module = types.ModuleType("a_subject_of_the_kit")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(source, module.__name__, "exec"), module.__dict__)
    return module


def changed(source, changes):
    for old, new in changes.items():
        assert old in source
        source = source.replace(old, new)
    return source


def documented(kit, made):
    """What the fixture of this name gives."""
    if issubclass(kit, LocalLossTests):
        return made
    made = made([torch.nn.Parameter(torch.zeros(1))]) if issubclass(kit, UpdateRuleTests) else made()
    return made if inspect.isfunction(made) else type(made)


def failure_of(kit, check, made, capsys=None):
    """The failure of one check on what the fixture `make` (or `loss`) gives, with its parametrization; None if it passes."""
    function = getattr(kit, check)
    cases = [{}]
    for mark in getattr(function, "pytestmark", []):
        assert mark.name == "parametrize"
        cases = [{**case, mark.args[0]: value} for case in cases for value in mark.args[1]]
    names = inspect.signature(function).parameters
    given = {name: made for name in ("make", "loss") if name in names}
    if "capsys" in names:
        given["capsys"] = capsys
    if "documented" in names:
        given["documented"] = documented(kit, made)
    for case in cases:
        try:
            with torch.enable_grad():  # whatever it does to the mode
                function(kit(), **given, **case)
        except _pytest.outcomes.Skipped:
            pass
        except (Exception, pytest.fail.Exception) as failure:
            return failure
    return None


def all_failures(kit, made, capsys=None):
    found = {check: failure_of(kit, check, made, capsys) for check in checks_of(kit)}
    return {check: failure for check, failure in found.items() if failure is not None}


def assert_killed(kit, check, made, capsys=None):
    """By the check's own assertion: a crash on the way there (a TypeError, say) is a bad mutant and not a good check."""
    failure = failure_of(kit, f"test_{check}", made, capsys)
    assert failure is not None, f"{kit.__name__}.test_{check} passes it"
    assert isinstance(failure, AssertionError | pytest.fail.Exception | LocalPlugError | pickle.UnpicklingError), (
        failure
    )


def unproved(subjects, mutants):
    """The checks that kill no mutant."""
    killers = {(subjects[subject][0], f"test_{killer}") for _, subject, killer, _ in mutants}
    every = {(kit, check) for kit, *_ in subjects.values() for check in checks_of(kit) if check != OVERRIDES}
    return every - killers


def counts(subjects, mutants):
    """{class of the kit: how many mutants it is tried on}."""
    kits = [subjects[subject][0].__name__ for _, subject, *_ in mutants]
    return {kit: kits.count(kit) for kit in sorted(set(kits))}
