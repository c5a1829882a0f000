"""Linear layers whose weights respond to hyper-parameters: a first-order best response, learned beside the weights.

    w(u) = W + diag(V (u - u_0)) W',   b(u) = b + diag(C (u - u_0)) b'        W, W' (n, m), V and C (n, k), u (k,)

u are the hyper-parameters. V and C begin at zero, so that the network is at first what it was. MacKay et al.: Self-Tuning
Networks, 2019, arXiv:1903.03088; there u_0 = 0, and V and C begin at random.
"""

import dataclasses
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@final
@dataclasses.dataclass
class Settings:
    """What all layers of one network respond to. Shapes: (k,), k hyper-parameters, in unconstrained units less u_0."""

    drawn: Tensor
    """What the network is trained at now: a perturbation round `mean`."""
    mean: Tensor
    """What it is evaluated at."""


@final
class ResponseLinear(nn.Module):
    """y = w(u) x + b(u) in the place of `linear`: at the drawn u in training mode, at their mean in evaluation mode.

    Args:
        linear: the layer, whose parameters stay W and b.
        settings: shared by all layers.
        generator: draws W' and b', as torch.nn.Linear draws its own.

    Example:
        >>> import torch
        >>> at = Settings(torch.tensor([1.0]), torch.tensor([0.0]))
        >>> layer = ResponseLinear(torch.nn.Linear(2, 1, bias=False), at, torch.Generator())
        >>> bool(layer.weight.equal(layer.linear.weight))
        True
        >>> with torch.no_grad():
        ...     _ = layer.gate.fill_(0.5)
        >>> bool(layer.weight.equal(layer.linear.weight + 0.5 * layer.response))
        True

    Reference: MacKay et al., 2019, arXiv:1903.03088.
    """

    def __init__(self, linear: nn.Linear, settings: Settings, generator: torch.Generator) -> None:
        super().__init__()
        (n, m), k, like = linear.weight.shape, len(settings.mean), linear.weight
        self.linear, self.settings = linear, settings

        def drawn(*shape: int) -> nn.Parameter:
            values = 2 * torch.rand(shape, generator=generator) - 1
            return nn.Parameter((values * m**-0.5).to(like.device, like.dtype))

        self.response = drawn(n, m)
        self.gate = nn.Parameter(like.new_zeros(n, k))
        self.response_bias, self.gate_bias = None, None
        if linear.bias is not None:
            self.response_bias, self.gate_bias = drawn(n), nn.Parameter(like.new_zeros(n, k))

    @property
    def weight(self) -> Tensor:
        """w(u), for penalties on weights and for whoever reads a linear layer's weight."""
        return self.linear.weight + (self.gate @ self._u())[:, None] * self.response

    @property
    def bias(self) -> Tensor | None:
        """b(u), or None."""
        if self.gate_bias is None or self.response_bias is None:
            return None
        return self.linear.bias + (self.gate_bias @ self._u()) * self.response_bias

    def forward(self, x_m: Tensor) -> Tensor:
        return F.linear(x_m, self.weight, self.bias)

    def folded(self) -> nn.Linear:
        """The plain layer at the mean; it is `linear`, changed in place."""
        was = self.training
        self.eval()
        with torch.no_grad():
            weight, bias = self.weight.clone(), self.bias
            self.linear.weight.copy_(weight)
            if bias is not None:
                self.linear.bias.copy_(bias)
        return self.linear.train(was)

    def _u(self) -> Tensor:
        u = self.settings.drawn if self.training else self.settings.mean
        return u.to(self.gate.device, self.gate.dtype)
