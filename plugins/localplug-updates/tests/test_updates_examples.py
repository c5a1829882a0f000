"""The plugin answers its names, and the examples of its docstrings run."""

import doctest
import importlib

import pytest

import localplug


@pytest.mark.parametrize(
    "name", ["lion", "seed_lion", "schedule_free", "m_fac", "learning_rate_free", "response", "self_tuning"]
)
def test_the_examples_of_the_docstrings_run(name):
    outcome = doctest.testmod(importlib.import_module(f"localplug_updates.{name}"))
    assert outcome.attempted and not outcome.failed


@pytest.mark.parametrize(("name", "kind"), [("lion", "Lion"), ("schedule-free", "ScheduleFree"), ("m-fac", "MFAC")])
def test_the_optimizers_are_found_by_name(name, kind):
    assert localplug.update_rule(name).__name__ == kind


@pytest.mark.parametrize(
    ("name", "kind"), [("lion-seeds", "SeedLion"), ("prodigy", "Prodigy"), ("d-adaptation", "DAdaptation")]
)
def test_the_updates_are_found_by_name_and_say_what_options_they_have(name, kind):
    assert type(localplug.update(name)).__name__ == kind
    with pytest.raises(TypeError, match="learning_rate"):
        localplug.update(name, learning_rate=0.1)
