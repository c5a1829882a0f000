"""Scores of units without training and without a backward pass: higher means, train this one.

For unit u with weights w_u, a batch with the loss L, z_j random signs on w_u alone, n_u the number of its weights:

    weight      ||w_u|| / sqrt(n_u)                                              no forward pass
    activation  log det K_u / B,  K_u = X X^T / D + 1e-6 I, X (B, D) its output  1 for all units together
    ablation    |L(w_u = 0) - L|                                                 1 for each unit
    ray         |L((1 + e) w_u) - L((1 - e) w_u)| / 2e  ~  |<w_u, grad_u L>|     2 for each
    gradient    sqrt(mean_j g_j^2)  ~  ||grad_u L||                              2 q for each
    newton      mean_j g_j^2 / (2 |h_j| + d)                                     the same ones
                g_j = (L(w + eps z_j) - L(w - eps z_j)) / 2 eps,  h_j = (L(w + eps z_j) - 2 L + L(w - eps z_j)) / eps^2

activation: NASWOT as the code of RoBoT (arXiv:2403.07591) has it, by unit. ray: the sum within SNIP's |<w, grad>|, one finite
difference along w. gradient: grad_norm without the gradient. newton: the best decrease along a random direction, after the
curvature of 1.5-SPSA; new here. ablation: pruning's oldest question. The metrics of RoBoT's own list all differentiate.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import final

import torch
from torch import Tensor, nn

from localplug import Directions, Distribution, Perturbation, Piece, Rademacher, Run, Unit
from localplug.checks import trainable
from localplug.selection import Selection
from localplug.signals import first_tensor

ROWS = 128  # of a unit's output that its kernel is made of, at most


@final
class Scoring:
    """What a score may use: a model, its units, and a loss that is evaluated at perturbed weights without writing them.

    Args:
        model: in whichever mode; it is evaluated in eval mode, without gradients.
        units: with trainable weights.
        loss: () -> scalar, the loss of one fixed batch.
        eps: half-width of the finite differences, in parameter units, > 0; along w relative to it.
        num_probes: q, random directions for each unit, >= 1.
        seed: of the random directions.
    """

    def __init__(
        self,
        model: nn.Module,
        units: Sequence[Unit],
        loss: Callable[[], Tensor],
        *,
        eps: float = 1e-3,
        num_probes: int = 8,
        seed: int = 0,
    ) -> None:
        self.model, self.units, self.eps, self.num_probes = model, list(units), eps, num_probes
        self._loss = loss
        self.run = Run(model, trainable(model), seed)
        self._names = {p: name for name, p in self.run.parameters}
        self.num_forwards = 0
        """Forward passes that the scores have taken so far."""

    def names(self, unit: Unit) -> list[str]:
        """Of a unit's trainable parameters, as `parameters=` takes them."""
        return [self._names[p] for p in unit.parameters]

    @torch.no_grad()
    def evaluated(self) -> float:
        """The loss of the batch now, in eval mode."""
        modes = [(module, module.training) for module in self.model.modules()]
        self.model.eval()
        try:
            self.num_forwards += 1
            value = float(self._loss())
        finally:
            for module, mode in modes:
                module.training = mode
        return value

    @functools.cached_property
    def clean(self) -> float:
        """L."""
        return self.evaluated()

    def along(self, unit: Unit, distribution: Distribution, scales: Sequence[float], num: int = 1) -> list[list[float]]:
        """[[L at w + scale z_j on one unit, for each scale], for each of `num` directions]."""
        directions = Directions(self.run, distribution, Selection(self.names(unit)))
        perturbed = Perturbation(self.run, directions)
        found: list[list[float]] = []
        with torch.no_grad():
            for direction in range(num):
                found.append([])
                for scale in scales:
                    with perturbed(direction, scale):
                        found[-1].append(self.evaluated())
        return found

    @functools.cached_property
    def slopes(self) -> list[list[tuple[float, float]]]:
        """[[(g_j, h_j) of each direction], of each unit]."""
        eps, found = self.eps, []
        for unit in self.units:
            pairs = self.along(unit, Rademacher(), (eps, -eps), self.num_probes)
            found.append([((a - b) / (2 * eps), (a - 2 * self.clean + b) / eps**2) for a, b in pairs])
        return found


Score = Callable[[Scoring], Sequence[float]]
"""Gives a number for each of scoring.units; higher means, train this one."""


def weight(scoring: Scoring) -> list[float]:
    """||w_u|| / sqrt(n_u)."""
    squares = [sum(float(p.detach().float().square().sum()) for p in unit.parameters) for unit in scoring.units]
    return [math.sqrt(s / sum(p.numel() for p in u.parameters)) for s, u in zip(squares, scoring.units, strict=True)]


def activation(scoring: Scoring) -> list[float]:
    """log det (X X^T / D + 1e-6 I) / B of each unit's output X (B, D): examples, or the positions of a sequence."""
    outputs: dict[int, Tensor] = {}

    def keep(number: int, output: object) -> None:
        if (found := first_tensor(output)) is not None and number not in outputs:
            rows = found.detach().float().flatten(0, 1) if found.dim() == 3 else found.detach().float().flatten(1)
            outputs[number] = rows[:: -(-len(rows) // ROWS)]

    handles = [
        unit.module.register_forward_hook(lambda module, inputs, output, k=k: keep(k, output))
        for k, unit in enumerate(scoring.units)
    ]
    try:
        scoring.evaluated()
    finally:
        for handle in handles:
            handle.remove()
    found = []
    for k in range(len(scoring.units)):
        if k not in outputs:
            found.append(float("-inf"))  # a unit that the loss does not use
            continue
        x_BD = outputs[k].double()
        kernel_BB = x_BD @ x_BD.T / x_BD.shape[1] + 1e-6 * torch.eye(len(x_BD), dtype=x_BD.dtype, device=x_BD.device)
        found.append(float(torch.linalg.slogdet(kernel_BB).logabsdet) / len(x_BD))
    return found


def ablation(scoring: Scoring) -> list[float]:
    """|L(w_u = 0) - L|."""
    return [abs(scoring.along(unit, Rays(), (-1.0,))[0][0] - scoring.clean) for unit in scoring.units]


def ray(scoring: Scoring) -> list[float]:
    """|L((1 + e) w_u) - L((1 - e) w_u)| / 2e, with e = 1e-2."""
    e = 1e-2
    pairs = [scoring.along(unit, Rays(), (e, -e))[0] for unit in scoring.units]
    return [abs(a - b) / (2 * e) for a, b in pairs]


def gradient(scoring: Scoring) -> list[float]:
    """sqrt(mean_j g_j^2)."""
    return [math.sqrt(sum(g * g for g, _ in pairs) / len(pairs)) for pairs in scoring.slopes]


def newton(scoring: Scoring) -> list[float]:
    """mean_j g_j^2 / (2 |h_j| + d), d a thousandth of the mean |h| over all units."""
    every = [abs(h) for pairs in scoring.slopes for _, h in pairs]
    d = 1e-3 * sum(every) / len(every) + 1e-12
    return [sum(g * g / (2 * abs(h) + d) for g, h in pairs) / len(pairs) for pairs in scoring.slopes]


SCORES: dict[str, Score] = {
    "weight": weight,
    "activation": activation,
    "ablation": ablation,
    "ray": ray,
    "gradient": gradient,
    "newton": newton,
}
"""The scores by the names of this file's head."""


@final
class Rays(Distribution):
    """z = w: the weights as they were when the run was set up."""

    def describe(self) -> str:
        return "along the weights"

    def setup(self, run: Run, indices: Sequence[int]) -> None:
        self._weights = {i: run.parameters[i][1].data for i in indices}

    def add_(self, target: Tensor, piece: Piece, factor: float) -> None:
        w = self._weights[piece.index].reshape(-1)[piece.offset : piece.offset + target.numel()]
        target.add_(w, alpha=factor)

    def kappa(self, num_elements: int) -> float:
        return 1.0
