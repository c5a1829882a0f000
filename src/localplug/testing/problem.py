"""The problems that the kit trains: small networks, separable classes, dropout off by default."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from localplug.contract import Method
from localplug.engine import Engine

NUM_EXAMPLES, NUM_FEATURES, NUM_CLASSES, WIDTH = 48, 6, 2, 12


class Problem:
    """A model, its data, its optimizer, and an engine around a method.

    A plugin whose methods need other inputs or another model (a graph) gives its tests a subclass with its own `network`
    and `data`: `problem = MyProblem` in the class of tests.

    Args:
        depth: hidden layers.
        frozen: names of parameters that are not trained.
        dtype: of the weights and of floating-point inputs.
    """

    frozen_name = "0.bias"
    """A parameter of the shallow network that can be frozen and leaves its unit others to learn."""

    def __init__(
        self,
        method: Method,
        *,
        seed: int = 0,
        lr: float = 0.05,
        weight_decay: float = 0.0,
        dropout: float = 0.0,
        depth: int = 1,
        frozen: Sequence[str] = (),
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.model = self.network(depth, dropout).to(dtype)
        given, self.labels_B = self.data()
        self.inputs = tuple(x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x for x in given)
        for name, p in self.model.named_parameters():
            p.requires_grad_(name not in frozen)
        groups = [{"params": [p]} for p in self.model.parameters() if p.requires_grad]  # one for each parameter
        self.optimizer: torch.optim.Optimizer = torch.optim.SGD(groups, lr=lr, weight_decay=weight_decay)
        self.engine = Engine(self.model, method, self.optimizer, seed=seed)

    def network(self, depth: int, dropout: float) -> nn.Module:
        """The same weights at every call, and the global random state untouched."""
        return network(depth, dropout)

    def data(self) -> tuple[tuple[Any, ...], Tensor]:
        """What the model is called with, and labels (B,); -100 where an example has none."""
        x_BD, labels_B = data()
        return (x_BD,), labels_B

    def rows(self, inputs: tuple[Any, ...], chosen_B: Tensor) -> tuple[Any, ...]:
        """The inputs of some of the examples, in the order of their numbers; of all of them too, in another order."""
        return tuple(x[chosen_B] if isinstance(x, Tensor) else x for x in inputs)

    def loss(self) -> Tensor:
        return nn.functional.cross_entropy(self.model(*self.inputs).float(), self.labels_B)

    def step(self) -> Tensor:
        return self.engine.step(self.loss, self.optimizer, targets=self.labels_B)

    def clean_loss(self) -> float:
        with torch.no_grad():
            return float(self.loss())

    def weights(self) -> Tensor:
        """The model's, in one vector."""
        return torch.cat([p.detach().flatten().clone() for p in self.model.parameters()])

    def everything(self) -> Tensor:
        """The model's weights, and those that the algorithm owns."""
        own = [p.detach().flatten().clone() for p in self.engine.method.owned_parameters]
        return torch.cat([self.weights(), *own])


class CurvedProblem(Problem):
    """Classes that no plane separates, and random features hardly: the sign of a product of two inputs."""

    def data(self) -> tuple[tuple[Any, ...], Tensor]:
        return self.split(2, 400)

    def split(self, seed: int, num: int) -> tuple[tuple[Any, ...], Tensor]:
        """Examples that no other seed has."""
        x_BD = torch.randn(num, NUM_FEATURES, generator=torch.Generator().manual_seed(seed))
        return (x_BD,), (x_BD[:, 0] * x_BD[:, 1] > 0).long()


def network(depth: int = 1, dropout: float = 0.0) -> nn.Module:
    """6 -> 12 (depth times) -> 2, with numbers of an owned generator."""
    layers: list[nn.Module] = []
    for i in range(depth):
        width = WIDTH if i else NUM_FEATURES
        layers += [nn.Linear(width, WIDTH, device="meta"), nn.Tanh(), nn.Dropout(dropout)]
    model = nn.Sequential(*layers, nn.Linear(WIDTH, NUM_CLASSES, device="meta")).to_empty(device="cpu")
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
