"""A task of your own for the bench: localplug bench examples/own_task.py:Ring mezo:lr=0.05 tpsgd"""

import torch
from torch import nn

from localplug import Parts, Task, Tensors


class Ring(Task):
    """Is a point of the plane in a ring? The loss and the quality are those of every classifier."""

    batch_size, budget = 32, 900

    def model(self):
        return nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 2))

    def parts(self, seed):
        points = torch.randn(1500, 2, generator=torch.Generator().manual_seed(0))
        labels = ((points.norm(dim=1) - 1).abs() < 0.35).long()
        cuts = slice(0, 1000), slice(1000, 1200), slice(1200, 1500)  # to train, to choose by, to test once
        return Parts(*(Tensors(points[rows], labels[rows]) for rows in cuts))
