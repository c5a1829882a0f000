"""The examples of the docstrings run, the method goes by its name, and the script finds what it looks for."""

import doctest
import importlib
import pathlib
import re
import runpy

import pytest
import torch

import localplug

EXAMPLES = pathlib.Path(__file__).parents[3] / "examples"


@pytest.mark.parametrize("name", ["codebook", "embedding", "hard_constraint", "linear", "mip", "nonlinear", "vq"])
def test_the_examples_of_the_docstrings_run(name):
    if name == "mip":
        pytest.importorskip("highspy", reason="pip install localplug-experts[mip]")
    outcome = doctest.testmod(importlib.import_module(f"localplug_experts.{name}"))
    assert outcome.attempted and not outcome.failed


def test_the_method_is_found_by_its_name_and_says_what_it_does():
    assert "decay 0.8" in localplug.method("vq", decay=0.8).describe()


def test_the_example_finds_the_temperatures(capsys):
    with torch.random.fork_rng(devices=[]):
        runpy.run_path(str(EXAMPLES / "experts_rod.py"), run_name="__main__")
    before, after = (float(e) for e in re.findall(r"error (?:before|after) +([\d.]+)", capsys.readouterr().out))
    assert before > 0.2 and after < 0.02
