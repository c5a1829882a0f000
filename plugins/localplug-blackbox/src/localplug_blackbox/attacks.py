"""A step that is aimed through a model: the attack of Optimization by Directional Attacks, for those who can see inside.

Optimization by Directional Attacks, 2025, arXiv:2510.01461: the objective is f(Phi(x)), Phi a
network and f a known function of its output. The derivative of f at Phi(x) says where the output should go, and an attack finds
a small change of the input that moves it there. In the box of radius r the linear answer is the step of the fast gradient sign
method,

    d = -r sign(J^T df),   J the Jacobian of Phi at x, df the derivative of f at Phi(x)

which maximises -<df, Phi(x + d)> to first order. J^T df is one backward pass through the network, to its input; its weights get
no gradient. `DirectionalAttacks(attack="zeroth-order")` aims without it.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Attack = Callable[[Tensor, float], Tensor]
"""A callable(x (D,), radius) that gives the step d (D,), no entry longer than the radius."""


def gradient_attack(network: Callable[[Tensor], Tensor], slope: Callable[[Tensor], Tensor]) -> Attack:
    """The step of the fast gradient sign method through a network, for `DirectionalAttacks(attack=...)`.

        d = -r sign(J^T df)

    One forward and one backward pass through the network, which the searcher does not count as an evaluation.

    Args:
        network: Phi, of points (1, D) in float64 to an output; it is differentiable in torch.
        slope: df, of the output to a tensor of its shape.

    Example:
        >>> import torch
        >>> attack = gradient_attack(lambda X: X * 2, lambda output: 2 * output)  # f = the square of the output's length
        >>> attack(torch.tensor([1.0, -3.0]), 0.5).tolist()
        [-0.5, 0.5]
    """

    def attack(x_D: Tensor, radius: float) -> Tensor:
        with torch.enable_grad():
            x_1D = x_D.detach().clone().unsqueeze(0).requires_grad_()
            output = network(x_1D)
            (pulled_1D,) = torch.autograd.grad(output, x_1D, slope(output.detach()).to(output.dtype))
        return -radius * pulled_1D[0].sign()

    return attack
