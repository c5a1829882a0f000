"""The problem that the kit trains: two separable classes, a network of two layers with dropout off by default."""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn

from localplug.contract import Method
from localplug.engine import Engine

NUM_EXAMPLES, NUM_FEATURES, NUM_CLASSES = 48, 6, 2


@final
class Problem:
    """A model, its data, its optimizer, and an engine around a method."""

    def __init__(
        self,
        method: Method,
        *,
        seed: int = 0,
        lr: float = 0.05,
        weight_decay: float = 0.0,
        dropout: float = 0.0,
        frozen: Sequence[str] = (),
    ) -> None:
        self.model, self.x_BD, self.labels_B = network(dropout), *data()
        for name, p in self.model.named_parameters():
            p.requires_grad_(name not in frozen)
        groups = [{"params": [p]} for p in self.model.parameters() if p.requires_grad]  # one for each parameter
        self.optimizer = torch.optim.SGD(groups, lr=lr, weight_decay=weight_decay)
        self.engine = Engine(self.model, method, self.optimizer, seed=seed)

    def loss(self) -> Tensor:
        return nn.functional.cross_entropy(self.model(self.x_BD), self.labels_B)

    def step(self) -> Tensor:
        return self.engine.step(self.loss, self.optimizer, targets=self.labels_B)

    def clean_loss(self) -> float:
        with torch.no_grad():
            return float(self.loss())

    def weights(self) -> Tensor:
        return torch.cat([p.detach().flatten().clone() for p in self.model.parameters()])


def network(dropout: float = 0.0) -> nn.Module:
    """6 -> 12 -> 2 with numbers of an owned generator: the same at every call, the global random state untouched."""
    model = nn.Sequential(
        nn.Linear(NUM_FEATURES, 12, device="meta"),
        nn.Tanh(),
        nn.Dropout(dropout),
        nn.Linear(12, NUM_CLASSES, device="meta"),
    ).to_empty(device="cpu")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) / p.shape[-1] ** 0.5)
    return model


def data() -> tuple[Tensor, Tensor]:
    """x (48, 6) and labels (48,), separable by a plane."""
    generator = torch.Generator().manual_seed(2)
    x_BD = torch.randn(NUM_EXAMPLES, NUM_FEATURES, generator=generator)
    return x_BD, (x_BD[:, :3].sum(1) > 0).long()
