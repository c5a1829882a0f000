"""The classes of the conformance kit for this distribution: what needs options, or fails a check for a reason."""

import pytest

import localplug
from localplug.testing import UpdateRuleTests, UpdateTests
from localplug_updates.lion import Lion
from localplug_updates.m_fac import MFAC
from localplug_updates.schedule_free import ScheduleFree


class TestLion(UpdateRuleTests):
    names = ("lion",)

    @pytest.fixture
    def make(self):
        return lambda params: Lion(params, lr=1e-2)


class TestMFAC(UpdateRuleTests):
    names = ("m-fac",)

    @pytest.fixture
    def make(self):
        return lambda params: MFAC(params, lr=0.1, window=4, damping=1.0)


class TestScheduleFree(UpdateRuleTests):
    names = ("schedule-free",)
    expected_failures = {  # noqa: RUF012
        "test_does_not_change_the_gradient": "the library divides the gradient in place, to spare a copy of it"
    }

    @pytest.fixture
    def make(self):
        return lambda params: ScheduleFree(params, lr=1e-2, eps=1e-6)


class TestSeedLion(UpdateTests):
    names = ("lion-seeds",)

    @pytest.fixture
    def make(self):
        return lambda: localplug.update("lion-seeds", window=5)


class TestLearningRateFree(UpdateTests):
    """Steps of a length that counts from the first on, and estimates of any noise, as the kit makes them of one direction."""

    names = ("prodigy", "d-adaptation")

    @pytest.fixture(params=("prodigy", "d-adaptation"))
    def make(self, request):
        return lambda: localplug.update(request.param, d0=1.0, max_noise=float("inf"))
