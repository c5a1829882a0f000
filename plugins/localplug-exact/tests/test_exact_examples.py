"""The plugin answers its names, and the examples of its docstrings run."""

import doctest
import importlib

import pytest

import localplug


@pytest.mark.parametrize("name", ["compiled", "graphs", "kernels", "node_update", "permutation", "wide"])
def test_the_examples_of_the_docstrings_run(name):
    outcome = doctest.testmod(importlib.import_module(f"localplug_exact.{name}"))
    assert outcome.attempted and not outcome.failed


@pytest.mark.parametrize(("name", "kind"), [("relu-ntk", "InfinitelyWide"), ("relu-readout", "Readouts")])
def test_the_solvers_are_found_by_name_and_refuse_what_is_wrong_all_at_once(name, kind):
    assert type(localplug.solver(name)).__name__ == kind
    with pytest.raises(ValueError, match=r"must be .*; ridge must be at least 0, got -1"):
        localplug.solver(name, ridge=-1, **({"kernel": "rbf"} if name == "relu-ntk" else {"width": 0}))


@pytest.mark.parametrize("name", ["bfs", "bellman-ford"])
def test_the_tasks_are_found_by_name_and_refuse_what_is_wrong_all_at_once(name):
    assert localplug.task(name, width=7).fresh_model(0)[0].out_features == 7
    with pytest.raises(
        ValueError, match=r"train_nodes must be in \[3, 64\], got 2; max_length must be in \[1, 4\], got 9"
    ):
        localplug.task(name, train_nodes=2, max_length=9)
