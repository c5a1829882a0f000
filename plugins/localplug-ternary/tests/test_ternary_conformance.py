"""The conformance kit on the five quantizers, and on ternary-signs, whose class the distribution ships."""

import pytest

from localplug.testing import QuantizerTests
from localplug_ternary.absmean import Absmean
from localplug_ternary.annealed import Annealed
from localplug_ternary.conformance import *  # noqa: F403
from localplug_ternary.sherry import Sherry
from localplug_ternary.tequila import Tequila
from localplug_ternary.twn import TWN


class TestTequila(QuantizerTests):
    @pytest.fixture
    def make(self):
        return Tequila


class TestAbsmean(QuantizerTests):
    @pytest.fixture
    def make(self):
        return Absmean


class TestTWN(QuantizerTests):
    is_idempotent = True

    @pytest.fixture
    def make(self):
        return TWN


class TestSherry(QuantizerTests):
    is_idempotent = True

    @pytest.fixture
    def make(self):
        return Sherry


class TestAnnealed(QuantizerTests):
    @pytest.fixture
    def make(self):
        return Annealed
