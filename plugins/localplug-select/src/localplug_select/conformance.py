"""The classes of the conformance kit for this distribution, whose masks leave most of a small problem alone."""

import pytest

import localplug
from localplug.testing import MethodTests, SelectorTests, UpdateTests


class TestSaRA(SelectorTests):
    names = ("sara",)

    @pytest.fixture
    def make(self):
        return lambda: localplug.selector("sara", share=0.3, refresh=3)


class TestMagnitude(SelectorTests):
    names = ("magnitude",)

    @pytest.fixture
    def make(self):
        return lambda: localplug.selector("magnitude", share=0.3, refresh=3)


class TestLargest(SelectorTests):
    @pytest.fixture
    def make(self):
        return lambda: localplug.selector("magnitude", share=0.3, which="largest", by="parameter")


class TestLowRank(UpdateTests):
    names = ("low-rank",)

    @pytest.fixture
    def make(self):
        return lambda: localplug.update("low-rank", weight=1e-3)


class TestSaRAMethod(MethodTests):
    names = ("sara",)
    moves_everything = False

    @pytest.fixture
    def make(self):
        return lambda: localplug.method("sara", eps=1e-3, num_directions=8, share=0.5, refresh=50)

    @pytest.fixture
    def documented(self):
        return localplug.get("sara")
