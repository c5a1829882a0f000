"""Least squares for each expert, differentiable by the implicit function theorem, and never across experts.

    w_e = argmin |A_e w - b_e|^2 + ridge |w|^2            e = 1..E, each by itself
    H_e = A_e^T A_e + ridge I
    v_e = H_e^-1 g_e,   g_e = d loss / d w_e
    d loss / d b_e = A_e v_e
    d loss / d A_e = -((A_e w_e - b_e) v_e^T + A_e v_e w_e^T)

so that only A, b and w are held for the backward pass, not the steps of a solver. Reference: Chalapathi, Du, Krishnapriyan:
Scaling physics-informed hard constraints with mixture-of-experts, ICLR 2024, arXiv:2402.13412.

Shapes: E experts, M rows of each (equations, conditions), N coefficients.
"""

from typing import Any

import torch
from torch import Tensor


def least_squares(A_EMN: Tensor, b_EM: Tensor, *, ridge: float = 0.0) -> Tensor:
    """The coefficients of each expert: w_e = argmin |A_e w - b_e|^2 + ridge |w|^2, with an implicit gradient.

    Args:
        A_EMN: rows of each expert; float64 is advised.
        b_EM: what they should come to.
        ridge: >= 0, in the units of A^2; with 0 there must be as many independent rows as coefficients.

    Returns: w (E, N).

    Raises:
        ValueError: shapes that do not fit, a negative ridge, or too few rows without one; lists all of them.

    Example:
        >>> import torch
        >>> A = torch.eye(2, dtype=torch.float64).repeat(3, 1, 1)
        >>> least_squares(A, torch.ones(3, 2, dtype=torch.float64)).shape
        torch.Size([3, 2])

    Reference: see the head of this file.
    """
    wrong = []
    if A_EMN.dim() != 3 or b_EM.shape != A_EMN.shape[:2]:
        wrong.append(f"A must be (E, M, N) and b (E, M), got {tuple(A_EMN.shape)} and {tuple(b_EM.shape)}")
    elif ridge == 0 and A_EMN.shape[1] < A_EMN.shape[2]:
        wrong.append(f"{A_EMN.shape[1]} rows do not determine {A_EMN.shape[2]} coefficients; give more rows or a ridge")
    if not ridge >= 0:
        wrong.append(f"ridge must not be negative, got {ridge!r}")
    if wrong:
        raise ValueError("least_squares: " + "; ".join(wrong))
    found: Tensor = _LeastSquares.apply(A_EMN, b_EM, ridge)
    return found


class _LeastSquares(torch.autograd.Function):
    """By QR of the rows, with sqrt(ridge) I below them: as exact as the rows allow, where the normal equations square it."""

    @staticmethod
    def forward(ctx: Any, A: Tensor, b: Tensor, ridge: float) -> Tensor:
        E, _, N = A.shape
        below = ridge**0.5 * torch.eye(N, dtype=A.dtype, device=A.device).expand(E, N, N)
        Q, R = torch.linalg.qr(torch.cat([A, below], 1) if ridge else A)
        rhs = torch.cat([b, b.new_zeros(E, N)], 1) if ridge else b
        w = torch.linalg.solve_triangular(R, (Q.mT @ rhs[..., None]), upper=True)[..., 0]
        ctx.save_for_backward(A, b, w, R)
        return w

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (g,), (A, b, w, R) = gradients, ctx.saved_tensors
        half = torch.linalg.solve_triangular(R.mT, g[..., None], upper=False)  # H = R^T R
        v = torch.linalg.solve_triangular(R, half, upper=True)[..., 0]
        Av = (A @ v[..., None])[..., 0]
        r = (A @ w[..., None])[..., 0] - b
        return -(r[..., None] * v[:, None] + Av[..., None] * w[:, None]), Av, None
