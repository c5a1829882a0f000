"""A layer that makes a network's output satisfy equations: the network gives functions, the layer their best combination.

    u(x) = sum_n w_en phi_n(x)           x in part e of the domain
    w_e = argmin |A_e w - b_e|^2 + ridge |w|^2

The domain is cut into parts, each with an expert that solves by itself: a partition along the domain and not along depth. Rows
A_e say what the equation makes of each phi_n at the expert's points, and b_e what that should come to; conditions at the
borders are rows too. The gradient to phi stays inside of the expert (localplug_experts.linear). Reference: Chalapathi,
Du, Krishnapriyan, ICLR 2024, arXiv:2402.13412.

Shapes: E experts, P points of each, D coordinates, M rows, N functions, Q points that are asked for.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import final

import torch
from torch import Tensor, nn
from torch.func import jvp

from localplug_experts.linear import least_squares

Rows = Callable[[nn.Module, Tensor], tuple[Tensor, Tensor]]
"""(basis, points (E, P, D)) -> A (E, M, N), b (E, M)."""


def derivative(basis: Callable[[Tensor], Tensor], points: Tensor, axis: int = 0, order: int = 1) -> Tensor:
    """d^order phi / d x_axis^order at points, by forward-mode differentiation.

    Args:
        basis: points (..., D) -> (..., N), each row by itself.
        points: (..., D).
        axis: of the coordinate, in [0, D).
        order: >= 0.

    Returns: (..., N).

    Example:
        >>> import torch
        >>> derivative(lambda x: x**3, torch.tensor([[2.0]]), order=2)
        tensor([[12.]])

    Reference: new here.
    """
    if order == 0:
        return basis(points)
    direction = torch.zeros_like(points)
    direction[..., axis] = 1.0
    found: Tensor = jvp(lambda x: derivative(basis, x, axis, order - 1), (points,), (direction,))[1]
    return found


@final
class HardConstraint(nn.Module):
    """Functions of a network, combined in each part of a domain so that equations hold as well as they can.

        u(x) = w_e . phi(x),   w_e = argmin |A_e w - b_e|^2 + ridge |w|^2

    Training works by whatever you train with: gradients go through the solution implicitly, and zeroth-order methods need none.

    Args:
        basis: points (..., D) -> functions (..., N), each row by itself.
        rows: see Rows; scale rows of conditions by how much they count.
        edges: where the parts end along the first coordinate, E + 1 growing numbers.
        points_EPD: where each expert's equations are written down.
        ridge: >= 0; see localplug_experts.linear.

    Raises:
        ValueError: edges that do not grow, or points of another number of experts; lists all of them.

    Example:
        >>> import torch
        >>> from localplug_experts import HardConstraint, derivative
        >>> powers = lambda x: torch.cat([x**0, x, x**2], -1)
        >>> def rows(basis, points):  # u' = 2x everywhere, u(0) = 1
        ...     origin = basis(torch.zeros(1, 1, 1).double())
        ...     A = torch.cat([derivative(basis, points), origin], 1)
        ...     return A, torch.cat([2 * points[..., 0], torch.ones(1, 1).double()], 1)
        >>> layer = HardConstraint(powers, rows, [0.0, 1.0], torch.linspace(0, 1, 5).double().view(1, 5, 1))
        >>> round(float(layer(torch.tensor([[3.0]]).double())), 6)
        10.0

    Reference: see the head of this file.
    """

    edges: Tensor
    points: Tensor

    def __init__(
        self,
        basis: Callable[[Tensor], Tensor],
        rows: Rows,
        edges: Sequence[float],
        points_EPD: Tensor,
        ridge: float = 0.0,
    ) -> None:
        super().__init__()
        wrong = []
        if len(edges) < 2 or any(not a < b for a, b in itertools.pairwise(edges)):
            wrong.append(f"edges must be two or more growing numbers, got {list(edges)}")
        if points_EPD.dim() != 3 or len(points_EPD) != len(edges) - 1:
            wrong.append(f"points must be ({len(edges) - 1}, P, D) for these edges, got {tuple(points_EPD.shape)}")
        if wrong:
            raise ValueError("HardConstraint: " + "; ".join(wrong))
        self.basis, self.rows, self.ridge = basis, rows, ridge
        self.register_buffer("edges", torch.tensor(list(edges), dtype=points_EPD.dtype), persistent=False)
        self.register_buffer("points", points_EPD, persistent=False)

    def coefficients(self) -> Tensor:
        """w (E, N)."""
        A, b = self.rows(self.basis, self.points)  # type: ignore[arg-type]
        return least_squares(A, b, ridge=self.ridge)

    def residuals(self) -> Tensor:
        """A w - b (E, M): what is left of the equations."""
        A, b = self.rows(self.basis, self.points)  # type: ignore[arg-type]
        w = least_squares(A, b, ridge=self.ridge)
        return (A @ w[..., None])[..., 0] - b

    def experts(self, x_QD: Tensor) -> Tensor:
        """The number of the part that each point is in, (Q,); the outer parts reach on beyond the edges."""
        return torch.bucketize(x_QD[:, 0].contiguous(), self.edges[1:-1], right=True)

    def forward(self, x_QD: Tensor) -> Tensor:
        """u at points, (Q,)."""
        return (self.basis(x_QD) * self.coefficients()[self.experts(x_QD)]).sum(-1)
