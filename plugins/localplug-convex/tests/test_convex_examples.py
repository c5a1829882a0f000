"""The plugin answers its names, and the examples of its docstrings run."""

import doctest
import importlib

import pytest

import localplug


@pytest.mark.parametrize("name", ["admm", "data", "patterns", "recover", "scp"])
def test_the_examples_of_the_docstrings_run(name):
    outcome = doctest.testmod(importlib.import_module(f"localplug_convex.{name}"))
    assert outcome.attempted and not outcome.failed


@pytest.mark.parametrize(("name", "kind"), [("relu-admm", "ADMM"), ("relu-scp", "SampledConvex")])
def test_the_solvers_are_found_by_name_and_say_what_options_they_have(name, kind):
    assert type(localplug.solver(name, beta=1.0)).__name__ == kind
    with pytest.raises(TypeError, match="learning_rate"):
        localplug.solver(name, beta=1.0, learning_rate=0.1)


@pytest.mark.parametrize("name", ["relu-admm", "relu-scp"])
def test_every_option_is_described(name):
    cls = type(localplug.solver(name, beta=1.0))
    options = [o for o in cls.__init__.__annotations__ if o != "return"]
    assert options and all(f" {option}: " in cls.__doc__ for option in options)
