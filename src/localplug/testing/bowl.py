"""What the parts of a zeroth-order method are tried on: a quadratic bowl, its run, and its true gradient."""

import copy
import io
from typing import Any

import torch
from torch import Tensor, nn

from localplug.contract import Run, parameter_names


class Bowl(nn.Module):
    """L(w) = 1/2 sum_i h_i (w_i - t_i)^2, with w in a matrix (3, 4), a vector (5,) and a frozen one (2,)."""

    target: Tensor
    height: Tensor

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(3)
        self.matrix, self.vector = (
            nn.Parameter(torch.randn(3, 4, generator=g)),
            nn.Parameter(torch.randn(5, generator=g)),
        )
        self.still = nn.Parameter(torch.ones(2), requires_grad=False)
        self.register_buffer("target", torch.randn(17, generator=g))
        self.register_buffer("height", torch.linspace(0.5, 1.5, 17))
        self.to(dtype)

    def forward(self, factor: float = 1.0) -> Tensor:
        w = torch.cat([self.matrix.flatten(), self.vector])
        loss: Tensor = 0.5 * factor * (self.height * (w - self.target).square()).sum()
        return loss + 1.0  # of its lowest point, where a relative error would have no meaning


def run_of(model: nn.Module, *, seed: int = 1, step: int = 0, workers: int = 1) -> Run:
    """As the engine makes it."""
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    names = parameter_names([n for n, _ in named])
    trained = [(name, p) for name, (_, p) in zip(names, named, strict=True)]
    return Run(model, trained, seed, step=step, num_workers_apart=workers)


def gradient(run: Run) -> Tensor:
    """dL/dw of what is trained, in one vector."""
    with torch.enable_grad():
        found = torch.autograd.grad(run.model(), [p for _, p in run.parameters])
    return torch.cat([g.flatten() for g in found]).float()


def weights(run: Run) -> Tensor:
    """Of the whole model, in one vector."""
    return torch.cat([p.detach().flatten().clone() for p in run.model.parameters()])


def elements(tree: object) -> int:
    """How many numbers and other things lie in nested dictionaries and lists."""
    leaves = torch.utils._pytree.tree_leaves(tree)
    return sum(leaf.numel() if isinstance(leaf, Tensor) else 1 for leaf in leaves)


def reloaded(state: dict[str, Any]) -> dict[str, Any]:
    """A state dict as it comes back from a checkpoint: numbers and tensors only."""
    checkpoint = io.BytesIO()
    torch.save(copy.deepcopy(state), checkpoint)
    checkpoint.seek(0)
    found: dict[str, Any] = torch.load(checkpoint, weights_only=True)
    return found
