import pytest
import torch

from localplug.testing import LocalLossTests, LocalMethodTests, TargetGeneratorTests
from localplug_tpsgd import losses
from localplug_tpsgd.projection import TargetProjection
from localplug_tpsgd.tpsgd import TPSGD


def compared(activity, run, loss):
    y_BK = torch.nn.functional.one_hot(run.targets, 2).float()
    return loss(activity.output, TargetProjection().generate(y_BK, activity.output, unit=activity.unit, seed=run.seed))


class TestTPSGD(LocalMethodTests):
    @pytest.fixture
    def make(self):
        return lambda: TPSGD(loss="l2")

    local_loss = staticmethod(lambda activity, run: compared(activity, run, losses.l2))


class TestTPSGDWithL1(LocalMethodTests):
    @pytest.fixture
    def make(self):
        return lambda: TPSGD(loss="l1")

    local_loss = staticmethod(lambda activity, run: compared(activity, run, losses.l1))


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
