"""The plugin answers its names, and the examples of its docstrings run."""

import doctest
import importlib

import pytest

import localplug

MODULES = [
    "distribution",
    "mapped",
    "problems",
    "reading",
    "solved",
    "solving",
    "tokens",
    "transport",
    "verifying",
    "writing",
]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_the_docstrings_run(name):
    outcome = doctest.testmod(importlib.import_module(f"localplug_rewards.{name}"))
    assert outcome.attempted and not outcome.failed


def test_everything_is_found_by_name():
    assert localplug.objective("ot-samples").__module__ == "localplug_rewards.distribution"
    assert localplug.objective("ot-tokens").__module__ == "localplug_rewards.tokens"
    assert localplug.task("linear-models", width=4).metric == "solved share"
    with pytest.raises(ValueError, match="must be at least 1, got 0, 300 and 32"):
        localplug.task("linear-models", num_train=0)
