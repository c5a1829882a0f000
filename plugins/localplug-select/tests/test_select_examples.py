"""The plugin answers its names, and the examples of its docstrings run."""

import doctest
import importlib

import pytest

import localplug
import localplug_select


@pytest.mark.parametrize(
    "name", ["choosing", "chosen", "combination", "low_rank", "magnitude", "sara", "thresholds", "trial"]
)
def test_the_examples_of_the_docstrings_run(name):
    outcome = doctest.testmod(importlib.import_module(f"localplug_select.{name}"))
    assert outcome.attempted and not outcome.failed


def test_the_public_names_are_what_the_module_says():
    assert all(getattr(localplug_select, name) is not None for name in localplug_select.__all__)
    assert callable(localplug_select.choose) and set(localplug_select._HOME) == set(localplug_select.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = localplug_select.nothing


@pytest.mark.parametrize("name", ["sara", "magnitude"])
def test_a_selector_goes_by_name_and_says_what_options_it_has(name):
    made = localplug.selector(name, share=0.2)
    assert localplug.selector(made) is made
    with pytest.raises(TypeError, match="no option 'fraction'"):
        localplug.selector(name, fraction=0.2)
    with pytest.raises(TypeError, match="already made"):
        localplug.selector(made, share=0.2)
