"""The class of the conformance kit for `ternary-signs`, which trains networks of packed layers."""

import pytest
import torch
from torch import nn

from localplug.testing import MethodTests, Problem
from localplug_ternary import TernaryConfig, TernarySigns, freeze_, ternarize_, train_scales_

NUM_FEATURES = 64


class PackedProblem(Problem):
    """A packed layer of 64 inputs under a dense head, at a learning rate that suits the scales of groups."""

    def __init__(self, method, *, lr=3e-3, **options):
        super().__init__(method, lr=lr, **options)

    def network(self, depth, dropout):
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            net = nn.Sequential(nn.Linear(NUM_FEATURES, 8), nn.Dropout(dropout), nn.Tanh(), nn.Linear(8, 2))
        return train_scales_(freeze_(ternarize_(net, TernaryConfig("tequila", None))))

    def data(self):
        x_BD = torch.randn(48, NUM_FEATURES, generator=torch.Generator().manual_seed(2))
        return (x_BD,), (x_BD[:, :8].sum(1) > 0).long()


class TestTernarySigns(MethodTests):
    names = ("ternary-signs",)
    problem = PackedProblem

    @pytest.fixture
    def make(self):
        return lambda: TernarySigns(rate=10.0, num_directions=8)
