"""Nonlinear least squares for each expert by Levenberg-Marquardt, differentiable by the implicit function theorem.

    w_e = argmin |r(w, p_e)|^2 / 2 + ridge |w|^2 / 2       r the residuals of one expert, p_e what they depend on
    step:      (J^T J + (ridge + mu) I) d = -(J^T r + ridge w),   J = dr/dw;  mu / 10 if the objective fell, else mu * 10
    near it:   (dG/dw) d = -G, Newton's, where that makes G smaller
    gradient:  G(w, p) = J^T r + ridge w = 0 at the solution, so that  d loss / d p = -v^T dG/dp,  (dG/dw)^T v = d loss / d w

dG/dw is exact, with the residuals' second derivatives. Reference: Chalapathi, Du, Krishnapriyan, ICLR 2024, arXiv:2402.13412
(tolerance 1e-4, at most 100 iterations, ridge 1e-4 there).

Shapes: E experts, M residuals of each, N coefficients.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import jacfwd, vmap

Residual = Callable[..., Tensor]
"""(w (N,), the inputs of one expert) -> residuals (M,)."""


def levenberg_marquardt(
    residual: Residual,
    start_EN: Tensor,
    *inputs: Tensor,
    ridge: float = 1e-4,
    tolerance: float = 1e-10,
    max_iterations: int = 100,
) -> Tensor:
    """The coefficients of each expert, w_e = argmin |r(w, p_e)|^2 + ridge |w|^2, with an implicit gradient in p_e.

    Args:
        residual: see Residual; of torch operations that torch.func differentiates twice.
        start_EN: where the search begins; no gradient goes to it. float64 is advised.
        inputs: p, each (E, ...): row e belongs to expert e alone.
        ridge: > 0 where the residuals may leave a direction open, else >= 0.
        tolerance: of the largest number in G, > 0.
        max_iterations: at least 1.

    Returns: w (E, N).

    Raises:
        ValueError: an option is outside its range, or an input has another number of experts; lists all of them.
        RuntimeError: an expert did not converge.

    Example:
        >>> import torch
        >>> cubes = torch.tensor([[8.0], [27.0]], dtype=torch.float64)
        >>> w = levenberg_marquardt(lambda w, p: w**3 - p, torch.ones(2, 1, dtype=torch.float64), cubes, ridge=0.0)
        >>> [round(float(x), 6) for x in w]
        [2.0, 3.0]

    Reference: see the head of this file.
    """
    wrong = []
    if start_EN.dim() != 2:
        wrong.append(f"start must be (E, N), got {tuple(start_EN.shape)}")
    if odd := [tuple(p.shape) for p in inputs if p.shape[:1] != start_EN.shape[:1]]:
        wrong.append(f"each input must have a row for each of {len(start_EN)} experts, got {odd}")
    if not ridge >= 0:
        wrong.append(f"ridge must not be negative, got {ridge!r}")
    if not tolerance > 0:
        wrong.append(f"tolerance must be positive, got {tolerance!r}")
    if not max_iterations >= 1:
        wrong.append(f"max_iterations must be at least 1, got {max_iterations!r}")
    if wrong:
        raise ValueError("levenberg_marquardt: " + "; ".join(wrong))
    found: Tensor = _Implicit.apply(residual, ridge, tolerance, max_iterations, start_EN.detach(), *inputs)
    return found


def _stationary(residual: Residual, ridge: float) -> Callable[..., Tensor]:
    """G(w, p) of one expert."""

    def gradient(w: Tensor, *p: Tensor) -> Tensor:
        return jacfwd(residual)(w, *p).T @ residual(w, *p) + ridge * w

    return gradient


@torch.no_grad()
def _solve(
    residual: Residual, ridge: float, tolerance: float, limit: int, w: Tensor, inputs: tuple[Tensor, ...]
) -> Tensor:
    of_all, slopes_of_all, gradients = vmap(residual), vmap(jacfwd(residual)), vmap(_stationary(residual, ridge))
    identity = torch.eye(w.shape[1], dtype=w.dtype, device=w.device)
    mu = torch.full_like(w[:, :1], 1e-3)

    def objective(w: Tensor) -> Tensor:
        return of_all(w, *inputs).square().sum(1, keepdim=True) + ridge * w.square().sum(1, keepdim=True)

    before, curvatures = objective(w), vmap(jacfwd(_stationary(residual, ridge)))
    for iteration in range(limit):
        G = gradients(w, *inputs)
        is_done = G.abs().amax(1, keepdim=True) <= tolerance
        if bool((is_done | (mu > 1e12)).all()):
            break
        J = slopes_of_all(w, *inputs)
        trial = w - torch.linalg.solve(J.mT @ J + (ridge + mu)[..., None] * identity, G)
        after = objective(trial)
        is_better = (after < before) & ~is_done
        w, before = torch.where(is_better, trial, w), torch.where(is_better, after, before)
        mu = torch.where(is_better, mu / 10, mu * 10).clamp(1e-15, 1e15)
        if iteration % 8 == 7:  # where residuals are left over, the steps above come near by the same factor each time
            w = _polished(gradients, curvatures, w, inputs)
            before = objective(w)
    w = _polished(gradients, curvatures, w, inputs)
    left = gradients(w, *inputs).abs().amax(1)
    if stuck := [e for e, size in enumerate(left.tolist()) if not size <= tolerance]:
        worst = max(float(left[e]) for e in stuck)
        raise RuntimeError(
            f"experts {stuck[:8]} did not converge in {limit} iterations (gradient {worst:.2g}, tolerance {tolerance:.2g}); "
            "start nearer, raise ridge, tolerance or max_iterations"
        )
    return w


def _polished(
    gradients: Residual, curvatures: Residual, w: Tensor, inputs: tuple[Tensor, ...], limit: int = 8
) -> Tensor:
    """Newton steps for the experts that are near, whose |G| they make smaller, and that curve upwards there."""
    size = gradients(w, *inputs).abs().amax(1, keepdim=True)
    for _ in range(8):
        H = curvatures(w, *inputs)
        lowest = torch.linalg.eigvalsh((H + H.mT) / 2)[:, :1]
        H = torch.where(lowest[..., None] > 0, H, torch.eye(w.shape[1], dtype=w.dtype, device=w.device))
        trial = w - torch.linalg.solve(H, gradients(w, *inputs))
        after = gradients(trial, *inputs).abs().amax(1, keepdim=True)
        is_better = (after < size) & (lowest > 0) & (size < 1e-3)
        if not bool(is_better.any()):
            return w
        w, size = torch.where(is_better, trial, w), torch.where(is_better, after, size)
    return w


class _Implicit(torch.autograd.Function):
    """The solution as a function of the inputs: nothing of the iterations is held."""

    @staticmethod
    def forward(
        ctx: Any, residual: Residual, ridge: float, tolerance: float, limit: int, w: Tensor, *p: Tensor
    ) -> Tensor:
        found = _solve(residual, ridge, tolerance, limit, w, p)
        ctx.save_for_backward(found, *p)
        ctx.residual, ctx.ridge = residual, ridge
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (g,), (w, *p) = gradients, ctx.saved_tensors
        G = _stationary(ctx.residual, ctx.ridge)
        v = torch.linalg.solve(vmap(jacfwd(G))(w, *p).mT, g)
        with torch.enable_grad():
            leaves = [x.detach().requires_grad_(x.is_floating_point()) for x in p]
            wanted = [x for x in leaves if x.requires_grad]
            found = iter(torch.autograd.grad((vmap(G)(w.detach(), *leaves) * v).sum(), wanted, allow_unused=True))
        of_inputs = [None if not x.requires_grad or (d := next(found)) is None else -d for x in leaves]
        return None, None, None, None, None, *of_inputs
