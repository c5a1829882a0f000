"""released-solver: random features of the inputs, and the best linear function of them (Rahimi, Recht, 2008).

h = relu(x W + b)        W, b normal numbers, made from the seed
v = argmin |h v - y|^2 + ridge |v|^2
"""

from typing import Any, final

import torch
from torch import Tensor, nn

import localplug

localplug_contract = "1.0"


@localplug.hookimpl
def localplug_solvers() -> dict[str, Any]:
    return {"released-solver": ReleasedSolver}


@final
class ReleasedSolver:
    """A two-layer network whose first layer is random and whose second is fitted by least squares.

    Args:
        width: hidden units, >= 1.
        ridge: weight of |v|^2, in units of h^2, > 0.
        seed: of the first layer.

    Raises:
        ValueError: an option is outside its range; lists all of them.

    Example:
        >>> import torch
        >>> x = torch.linspace(-1, 1, 20, dtype=torch.float64).unsqueeze(1)
        >>> (ReleasedSolver()(x, x.abs())(x).detach() - x.abs()).abs().max().item() < 0.1
        True
    """

    def __init__(self, width: int = 64, ridge: float = 1e-4, seed: int = 0) -> None:
        wrong = []
        if width < 1:
            wrong.append(f"width must be at least 1, got {width!r}")
        if not ridge > 0:
            wrong.append(f"ridge must be positive, got {ridge!r}")
        if wrong:
            raise ValueError("released-solver: " + "; ".join(wrong))
        self.width, self.ridge, self.seed = int(width), float(ridge), int(seed)

    @torch.no_grad()
    def __call__(self, inputs: Tensor, targets: Tensor) -> nn.Module:
        wrong = [f"inputs must be (N, D), they are {tuple(inputs.shape)}"] if inputs.dim() != 2 else []
        if targets.dim() != 2 or len(targets) != len(inputs):
            wrong.append(f"targets must be (N, M), they are {tuple(targets.shape)}")
        if not (torch.isfinite(inputs).all() and torch.isfinite(targets).all()):
            wrong.append("inputs and targets must be finite")
        if wrong:
            raise ValueError("released-solver: " + "; ".join(wrong))
        D, M = inputs.shape[1], targets.shape[1]
        draw = torch.Generator().manual_seed(self.seed)
        numbers = torch.randn(self.width, D + 1, generator=draw, dtype=torch.float64)
        with torch.random.fork_rng(devices=[]):  # the layers draw weights, which are then written over
            hidden, output = nn.Linear(D, self.width), nn.Linear(self.width, M, bias=False)
        network = nn.Sequential(hidden, nn.ReLU(), output).to(inputs)
        hidden.weight.copy_(numbers[:, :D])
        hidden.bias.copy_(numbers[:, D])
        h_NW = network[:2](inputs)
        gram_WW = h_NW.T @ h_NW + self.ridge * torch.eye(self.width, dtype=h_NW.dtype, device=h_NW.device)
        output.weight.copy_(torch.linalg.solve(gram_WW, h_NW.T @ targets).T)
        return network
