"""The classes of the conformance kit for this distribution."""

import pytest
import torch
from torch import nn

from localplug.testing import CurvedProblem, LocalMethodTests, Problem
from localplug_experts.codebook import VectorQuantizer, place_codes_
from localplug_experts.vq import VQ


class Coded:
    """Layers with a codebook after the first, or after each of several."""

    def network(self, depth, dropout):
        plain = super().network(depth, dropout)
        layers = []
        for layer in plain:
            layers.append(layer)
            if isinstance(layer, nn.Dropout):
                layers.append(VectorQuantizer(24, 12, seed=len(layers)))
        model = nn.Sequential(*layers)
        place_codes_(model, *self.data()[0])
        return model


class CodedProblem(Coded, Problem):
    pass


class CodedCurvedProblem(Coded, CurvedProblem):
    pass


class TestVQ(LocalMethodTests):
    names = ("vq",)
    problem, curved_problem = CodedProblem, CodedCurvedProblem

    @pytest.fixture
    def make(self):
        return lambda: VQ(decay=0.9)

    def local_loss(self, activity, run):
        """(1 - decay) / (2 N) mean |x - e_k|^2 for each code, N after the step: its gradient is what the average moves by."""
        x, codes = activity.input, activity.unit.module.codes
        k = activity.unit.module.nearest(x)
        share = 0.9 / len(codes) + 0.1 * (torch.bincount(k, minlength=len(codes)) / len(x))
        return 0.1 * ((x - codes[k]).square().sum(1) / (2 * share[k])).mean()
