"""The classes of the conformance kit for this distribution, whose solvers want a weight decay."""

import pytest

import localplug
from localplug.testing import SolverTests


class TestADMM(SolverTests):
    names = ("relu-admm",)

    @pytest.fixture
    def make(self):
        return lambda: localplug.solver("relu-admm", beta=1e-2, num_patterns=20, bias=True, tolerance=1e-3)


class TestSampledConvex(SolverTests):
    names = ("relu-scp",)

    @pytest.fixture
    def make(self):
        return lambda: localplug.solver("relu-scp", beta=1e-2, num_neurons=60, bias=True, tolerance=1e-3)
