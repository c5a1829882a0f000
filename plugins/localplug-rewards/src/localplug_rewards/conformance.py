"""The classes of the conformance kit for this distribution; objectives are tried on what they read."""

import pytest
import torch
from torch.nn import functional as F

import localplug
from localplug.testing import ObjectiveTests, TaskTests
from localplug.testing.objective import ModelOutput


class TestSampleTransport(ObjectiveTests):
    names = ("ot-samples",)

    @pytest.fixture
    def make(self):
        return lambda: localplug.objective("ot-samples")

    def example(self, quality):
        """Samples that are the examples, but for a step to the side."""
        examples = torch.arange(12.0).view(6, 2)
        samples = examples.flip(0) + 4 * (1 - quality)
        return ModelOutput(loss=torch.zeros(()), samples=samples), {"targets": examples}, torch.nn.Identity()


class TestTokenTransport(ObjectiveTests):
    names = ("ot-tokens",)

    @pytest.fixture
    def make(self):
        return lambda: localplug.objective("ot-tokens")

    def example(self, quality):
        """Texts of which a share is written as it should be, and the rest by a token that is nowhere wanted."""
        labels = torch.stack([torch.arange(1, 13), torch.arange(12, 0, -1)])
        written = torch.where(torch.arange(12) < round(12 * quality), labels, 0)
        logits = 4 * F.one_hot(written.roll(-1, 1), 13).float()
        return ModelOutput(loss=torch.zeros(()), logits=logits), {"labels": labels}, torch.nn.Identity()


class TestLinearModels(TaskTests):
    names = ("linear-models",)

    @pytest.fixture
    def make(self):
        return lambda: localplug.task("linear-models", num_train=40, num_held=40, width=8)

    def right_answers(self, task, batch):
        return F.one_hot(batch[1], 128).float()
