"""The examples of the docstrings run, every option is described, and the public names are all there."""

import doctest
import importlib
import inspect
import subprocess
import sys

import pytest

import localplug_blackbox
from localplug_blackbox.search import SEARCHERS

MODULES = sorted({*localplug_blackbox._HOME.values(), "infinite_width", "gaussian_process", "past_runs"})


@pytest.mark.parametrize("name", [m for m in MODULES if m not in ("polling",)])
def test_the_examples_of_the_docstrings_run(name):
    outcome = doctest.testmod(importlib.import_module(f"localplug_blackbox.{name}"))
    assert outcome.attempted and not outcome.failed


@pytest.mark.parametrize("where", SEARCHERS.values())
def test_every_option_is_described(where):
    module, name = where.split(":")
    cls = getattr(importlib.import_module(f"localplug_blackbox.{module}"), name)
    options = list(inspect.signature(cls).parameters)
    assert options and all(f" {option}: " in cls.__doc__ for option in options)


def test_every_public_name_is_there_and_importing_the_package_imports_no_torch():
    assert sorted(localplug_blackbox.__all__) == sorted(localplug_blackbox._HOME)
    assert all(getattr(localplug_blackbox, name).__doc__ for name in localplug_blackbox.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Searchers'"):
        _ = localplug_blackbox.Searchers
    line = "import sys, localplug_blackbox; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", line]).returncode == 0
