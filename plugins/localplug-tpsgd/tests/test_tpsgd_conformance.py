import pytest

from localplug.testing import LocalLossTests, MethodTests, TargetGeneratorTests
from localplug_tpsgd import losses
from localplug_tpsgd.projection import TargetProjection
from localplug_tpsgd.tpsgd import TPSGD


class TestTPSGD(MethodTests):
    @pytest.fixture
    def make(self):
        return lambda: TPSGD(loss="l2")


class TestTPSGDWithL1(MethodTests):
    @pytest.fixture
    def make(self):
        return lambda: TPSGD(loss="l1")


class TestTargetProjection(TargetGeneratorTests):
    @pytest.fixture
    def make(self):
        return lambda: TargetProjection(scale=1.0)


class TestL2(LocalLossTests):
    @pytest.fixture
    def loss(self):
        return losses.l2


class TestL1(LocalLossTests):
    @pytest.fixture
    def loss(self):
        return losses.l1
