"""The examples of the docstrings run, the method goes by its name, and the script that shows it does what it says."""

import doctest
import importlib
import pathlib
import runpy

import pytest
import torch

import localplug

EXAMPLES = pathlib.Path(__file__).parents[3] / "examples"


@pytest.mark.parametrize("name", ["attribution", "lfp", "rules", "tape"])
def test_the_examples_of_the_docstrings_run(name):
    outcome = doctest.testmod(importlib.import_module(f"localplug_credit.{name}"))
    assert outcome.attempted and not outcome.failed


def test_the_method_is_found_by_its_name_and_says_what_it_does():
    method = localplug.method("lfp", eps=1e-5)
    assert "eps 1e-05" in method.describe() and "RELEVANCE PASS" in method.describe() and method.backpropagates


def test_the_example_names_the_words_that_tell(capsys):
    with torch.random.fork_rng(devices=[]):
        runpy.run_path(str(EXAMPLES / "credit_words.py"), run_name="__main__")
    learned, because, spared = (
        line for line in capsys.readouterr().out.splitlines() if not line.startswith("localplug")
    )
    assert float(learned.split()[-2].rstrip("%")) > 95 and float(spared.split()[-1].rstrip("%")) > 90
    assert "is negative" in because and {"dull", "awful"} == set(because.split("because of ")[1].split(", "))
