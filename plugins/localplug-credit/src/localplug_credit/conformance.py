"""The classes of the conformance kit for this distribution."""

import pytest

from localplug.testing import MethodTests
from localplug_credit.lfp import LFP


class TestLFP(MethodTests):
    names = ("lfp",)
    uses_seed = False  # it draws nothing

    @pytest.fixture
    def make(self):
        return lambda: LFP()
