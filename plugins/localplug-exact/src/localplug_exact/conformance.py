"""The classes of the conformance kit for this distribution."""

import pytest

import localplug
from localplug.testing import SolverTests, TaskTests


class UpdateTests(TaskTests):
    @pytest.fixture
    def make(self):
        return lambda: localplug.task(self.names[0], num_graphs=12, test_nodes=12)


class TestBellmanFord(UpdateTests):
    names = ("bellman-ford",)


class TestBreadthFirst(UpdateTests):
    names = ("bfs",)


class TestInfinitelyWide(SolverTests):
    names = ("relu-ntk",)

    @pytest.fixture
    def make(self):
        return lambda: localplug.solver("relu-ntk", ridge=1e-6)


class TestReadouts(SolverTests):
    names = ("relu-readout",)

    @pytest.fixture
    def make(self):
        return lambda: localplug.solver("relu-readout", width=256, num_models=2, ridge=1e-6)
