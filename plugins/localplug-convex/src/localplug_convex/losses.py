"""Convex losses of a network's outputs f (N, K), with what a solver needs of each: value, gradient, dual.

Losses are summed over examples and outputs, y in {-1, +1} where they classify:

    squared        1/2 (f - y)^2
    hinge          max(0, 1 - y f)                     its gradient jumps: solved by its dual
    bce            log(1 + exp(-y f))                  binary cross-entropy of the logit f
    cross_entropy  log sum_k exp(f_k) - f_label        y one-hot in {-1, +1}

The conjugate L*(q) = max_f q.f - L(f) gives lower bounds: L(f) >= q.f - L*(q) for every q where it is finite.
"""

import abc
from collections.abc import Callable
from typing import final

import torch
from torch import Tensor


class Loss(abc.ABC):
    """One convex loss L(f) on fixed targets."""

    def __init__(self, Y_NK: Tensor) -> None:
        self.Y_NK = Y_NK

    @abc.abstractmethod
    def value(self, f_NK: Tensor) -> Tensor:
        """L(f), a scalar."""

    @abc.abstractmethod
    def gradient(self, f_NK: Tensor) -> Tensor:
        """dL/df, shaped like f."""

    def conjugate(self, q_NK: Tensor) -> float | None:
        """L*(q) at theta times a gradient, 0 <= theta <= 1; None where it is not known."""
        return None


@final
class Squared(Loss):
    """1/2 |f - y|^2; L*(q) = 1/2 |q|^2 + q.y"""

    def value(self, f_NK: Tensor) -> Tensor:
        return 0.5 * (f_NK - self.Y_NK).square().sum()

    def gradient(self, f_NK: Tensor) -> Tensor:
        return f_NK - self.Y_NK

    def conjugate(self, q_NK: Tensor) -> float | None:
        return float(0.5 * q_NK.square().sum() + (q_NK * self.Y_NK).sum())


@final
class Hinge(Loss):
    """sum max(0, 1 - y f); L*(q) = q.y for -1 <= q y <= 0. The gradient is a subgradient."""

    def value(self, f_NK: Tensor) -> Tensor:
        return (1 - self.Y_NK * f_NK).clamp(min=0).sum()

    def gradient(self, f_NK: Tensor) -> Tensor:
        return -self.Y_NK * (self.Y_NK * f_NK < 1)

    def conjugate(self, q_NK: Tensor) -> float | None:
        return float((q_NK * self.Y_NK).sum())

    def proximal_dual(self, q_NK: Tensor, sigma: float) -> Tensor:
        """argmin_p L*(p) + 1/(2 sigma) |p - q|^2: (q - sigma y), with p y kept in [-1, 0]."""
        return self.Y_NK * (self.Y_NK * q_NK - sigma).clamp(-1, 0)


@final
class BinaryCrossEntropy(Loss):
    """sum log(1 + exp(-y f)); with p = -q y in [0, 1], L*(q) = sum p log p + (1 - p) log(1 - p)."""

    def value(self, f_NK: Tensor) -> Tensor:
        return torch.nn.functional.softplus(-self.Y_NK * f_NK).sum()

    def gradient(self, f_NK: Tensor) -> Tensor:
        return -self.Y_NK * torch.sigmoid(-self.Y_NK * f_NK)

    def conjugate(self, q_NK: Tensor) -> float | None:
        p_NK = -q_NK * self.Y_NK
        return float((torch.special.xlogy(p_NK, p_NK) + torch.special.xlogy(1 - p_NK, 1 - p_NK)).sum())


@final
class CrossEntropy(Loss):
    """sum log sum_k exp(f_k) - f_label; with p = q + one-hot in the simplex, L*(q) = sum p log p."""

    def __init__(self, Y_NK: Tensor) -> None:
        super().__init__(Y_NK)
        self.one_hot_NK = (Y_NK + 1) / 2

    def value(self, f_NK: Tensor) -> Tensor:
        return (torch.logsumexp(f_NK, 1) - (self.one_hot_NK * f_NK).sum(1)).sum()

    def gradient(self, f_NK: Tensor) -> Tensor:
        return torch.softmax(f_NK, 1) - self.one_hot_NK

    def conjugate(self, q_NK: Tensor) -> float | None:
        p_NK = (q_NK + self.one_hot_NK).clamp(min=0)  # rounding apart, it is positive
        return float(torch.special.xlogy(p_NK, p_NK).sum())


@final
class Given(Loss):
    """A callable(outputs, targets) -> scalar tensor, convex and differentiable in its outputs."""

    def __init__(self, Y_NK: Tensor, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__(Y_NK)
        self.function = function

    def value(self, f_NK: Tensor) -> Tensor:
        return self.function(f_NK, self.Y_NK)

    def gradient(self, f_NK: Tensor) -> Tensor:
        with torch.enable_grad():
            f_NK = f_NK.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.value(f_NK), f_NK)
        return gradient


LOSSES: dict[str, Callable[[Tensor], Loss]] = {
    "squared": Squared,
    "hinge": Hinge,
    "bce": BinaryCrossEntropy,
    "cross_entropy": CrossEntropy,
}
