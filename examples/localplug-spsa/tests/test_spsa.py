import pytest
from localplug_spsa import SPSA

from localplug.testing import MethodTests


class TestSPSA(MethodTests):
    @pytest.fixture
    def make(self):
        return lambda: SPSA(c=1e-3)


def test_wrong_options_are_all_reported_at_once():
    with pytest.raises(ValueError, match=r"c must be positive.*gamma must be in"):
        SPSA(c=0, gamma=1)
