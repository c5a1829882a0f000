"""The classes of the conformance kit for this distribution: what needs options, or fails a check for a reason."""

import pytest
import torch

from localplug.testing import LocalLossTests, LocalMethodTests, MethodTests, TargetGeneratorTests
from localplug_tpsgd import losses
from localplug_tpsgd.dfa import DFA
from localplug_tpsgd.drtp import DRTP
from localplug_tpsgd.fa import FA
from localplug_tpsgd.feedback import Feedback
from localplug_tpsgd.projection import TargetProjection
from localplug_tpsgd.tpsgd import TPSGD


def compared(activity, run, loss):
    y_BK = torch.nn.functional.one_hot(run.targets, 2).float()
    return loss(activity.output, TargetProjection().generate(y_BK, activity.output, unit=activity.unit, seed=run.seed))


class TestTPSGD(LocalMethodTests):
    names = ("tpsgd",)

    @pytest.fixture
    def make(self):
        return lambda: TPSGD(loss="l2")

    local_loss = staticmethod(lambda activity, run: compared(activity, run, losses.l2))


class TestTPSGDWithL1(LocalMethodTests):
    @pytest.fixture
    def make(self):
        return lambda: TPSGD(loss="l1")

    local_loss = staticmethod(lambda activity, run: compared(activity, run, losses.l1))


def inner_product(activity, run, feedback, e_BK):
    """<B^T e, y>, whose gradient with respect to y the rules give; a mean over the batch."""
    dy = feedback.carried(e_BK, activity.output.detach(), unit=activity.unit, seed=run.seed)
    return (dy * activity.output).sum() / len(dy)


class TestDRTP(LocalMethodTests):
    names = ("drtp",)

    @pytest.fixture
    def make(self):
        return lambda: DRTP()

    def local_loss(self, activity, run):
        return inner_product(activity, run, Feedback(1.0), torch.nn.functional.one_hot(run.targets, 2).float())


class TestDRTPWithTheReleasedReduction(TestDRTP):
    reduction = "sum"
    learning_rate = 1e-3

    @pytest.fixture
    def make(self):
        return lambda: DRTP(reduction="sum")

    def local_loss(self, activity, run):
        return len(activity.output) * super().local_loss(activity, run)


class TestDFA(LocalMethodTests):
    names = ("dfa",)

    @pytest.fixture
    def make(self):
        return lambda: DFA()

    def local_loss(self, activity, run):
        with torch.no_grad():
            y = run.model.forward(self.problem(DFA()).inputs[0])  # the same inputs at every call
        e_BK = y.softmax(-1) - torch.nn.functional.one_hot(run.targets, 2)
        return inner_product(activity, run, Feedback(1.0), e_BK)


class TestSignDFA(LocalMethodTests):
    @pytest.fixture
    def make(self):
        return lambda: DFA(sign=True)

    def local_loss(self, activity, run):
        return inner_product(activity, run, Feedback(1.0), 1.0 - 2 * torch.nn.functional.one_hot(run.targets, 2))


class TestFA(MethodTests):
    names = ("fa",)

    @pytest.fixture
    def make(self):
        return lambda: FA()


class TestFAWithSignsAndRandomSizes(MethodTests):
    @pytest.fixture
    def make(self):
        return lambda: FA(feedback="sign-batch-random")


class TestFAWithSigns(MethodTests):
    uses_seed = False

    @pytest.fixture
    def make(self):
        return lambda: FA(feedback="sign")


class TestTargetProjection(TargetGeneratorTests):
    names = ("projection",)

    @pytest.fixture
    def make(self):
        return lambda: TargetProjection(scale=1.0)


class TestL2(LocalLossTests):
    names = ("l2",)

    @pytest.fixture
    def loss(self):
        return losses.l2


class TestL1(LocalLossTests):
    names = ("l1",)

    @pytest.fixture
    def loss(self):
        return losses.l1
