"""The linear system of an ADMM iteration, four ways: (I + G^T G + F^T F / rho) u = r.

F u = sum_i D_i X (v_i - w_i) and G u = ((2 D_i - I) X v_i, (2 D_i - I) X w_i)_i. Since (2 D_i - I)^2 = I, G^T G has X^T X in
every diagonal block and nothing else; M = I + X^T X. F sees the differences a_i = v_i - w_i alone, so that, with the
halves r = (r_v, r_w),

    M (v_i + w_i) = r_v + r_w                                               one D x D factor for every block
    (M + 2/rho Phi^T Phi) a = r_v - r_w,   Phi a = sum_i D_i X a_i,   M acting on every block

The second system is what the classes of this file solve. Letters: N examples, D features, P patterns, K outputs.
"""

import abc
from typing import final

import torch
from torch import Tensor

from localplug import noise


class Difference(abc.ABC):
    """Solves (M + 2/rho Phi^T Phi) a = r for a (D, P, K)."""

    def __init__(self, X_ND: Tensor, patterns_NP: Tensor) -> None:
        self.X_ND, self.patterns_NP = X_ND, patterns_NP
        eye = torch.eye(X_ND.shape[1], dtype=X_ND.dtype, device=X_ND.device)
        self.M_DD = eye + X_ND.T @ X_ND
        self.factor_DD = torch.linalg.cholesky(self.M_DD)

    def divide(self, r_D: Tensor) -> Tensor:
        """M^{-1} r, for every block at once. r is (D, ...)."""
        return torch.cholesky_solve(r_D.flatten(1), self.factor_DD).view_as(r_D)

    def phi(self, a_DPK: Tensor) -> Tensor:
        """sum_i D_i X a_i: (N, K)."""
        Xa_NPK = (self.X_ND @ a_DPK.flatten(1)).view(-1, *a_DPK.shape[1:])
        return torch.einsum("np,npk->nk", self.patterns_NP, Xa_NPK)

    def phi_transposed(self, z_NK: Tensor) -> Tensor:
        """(X^T D_i z)_i: (D, P, K)."""
        masked_NPK = self.patterns_NP[:, :, None] * z_NK[:, None, :]
        return (self.X_ND.T @ masked_NPK.flatten(1)).view(-1, *masked_NPK.shape[1:])

    def apply(self, a_DPK: Tensor, rho: float) -> Tensor:
        """(M + 2/rho Phi^T Phi) a."""
        return (self.M_DD @ a_DPK.flatten(1)).view_as(a_DPK) + 2 / rho * self.phi_transposed(self.phi(a_DPK))

    @abc.abstractmethod
    def solve(self, r_DPK: Tensor, rho: float, guess_DPK: Tensor) -> Tensor:
        """a, exactly or from a guess."""


@final
class Cholesky(Difference):
    """One Cholesky factor of the D P x D P matrix, made again only when rho changes. Exact."""

    def __init__(self, X_ND: Tensor, patterns_NP: Tensor) -> None:
        super().__init__(X_ND, patterns_NP)
        self._rho = float("nan")

    def _factorize(self, rho: float) -> None:
        N, P, D = len(self.X_ND), self.patterns_NP.shape[1], self.X_ND.shape[1]
        Phi_NDP = (self.X_ND[:, :, None] * self.patterns_NP[:, None, :]).reshape(N, D * P)
        matrix = 2 / rho * (Phi_NDP.T @ Phi_NDP)
        same = matrix.view(D, P, D, P).diagonal(dim1=1, dim2=3)  # (D, D, P): a view of the diagonal blocks
        same += self.M_DD[:, :, None]
        self._factor, self._rho = torch.linalg.cholesky(matrix), rho

    def solve(self, r_DPK: Tensor, rho: float, guess_DPK: Tensor) -> Tensor:
        if rho != self._rho:
            self._factorize(rho)
        return torch.cholesky_solve(r_DPK.reshape(-1, r_DPK.shape[2]), self._factor).view_as(r_DPK)


@final
class Woodbury(Difference):
    """One Cholesky factor of an N x N matrix instead, whatever P is. Exact.

    a = M^{-1} (r - Phi^T z),   (rho/2 I + Phi M^{-1} Phi^T) z = Phi M^{-1} r,
    Phi M^{-1} Phi^T = (X M^{-1} X^T) * (S S^T) elementwise, with the patterns S (N, P)
    """

    def __init__(self, X_ND: Tensor, patterns_NP: Tensor) -> None:
        super().__init__(X_ND, patterns_NP)
        self._kernel_NN = (X_ND @ self.divide(X_ND.T)) * (patterns_NP @ patterns_NP.T)
        self._rho = float("nan")

    def solve(self, r_DPK: Tensor, rho: float, guess_DPK: Tensor) -> Tensor:
        if rho != self._rho:
            matrix = self._kernel_NN.clone()
            matrix.diagonal().add_(rho / 2)
            self._factor, self._rho = torch.linalg.cholesky(matrix), rho
        z_NK = torch.cholesky_solve(self.phi(self.divide(r_DPK)), self._factor)
        return self.divide(r_DPK - self.phi_transposed(z_NK))


@final
class ConjugateGradient(Difference):
    """Conjugate gradients with the preconditioner M^{-1}: no matrix larger than D x D. Inexact, from the last solution.

    Args:
        steps: most iterations of one solve, >= 1; fewer once the residual is a thousandth of the guess's.
    """

    def __init__(self, X_ND: Tensor, patterns_NP: Tensor, steps: int) -> None:
        super().__init__(X_ND, patterns_NP)
        self.steps = steps

    def solve(self, r_DPK: Tensor, rho: float, guess_DPK: Tensor) -> Tensor:
        a = guess_DPK.clone()
        residual = r_DPK - self.apply(a, rho)
        direction = z = self.divide(residual)
        rz_K = (residual * z).sum((0, 1))
        enough_K = 1e-6 * rz_K
        for _ in range(self.steps):
            if bool((rz_K <= enough_K).all()):
                break
            A_direction = self.apply(direction, rho)
            step_K = rz_K / (direction * A_direction).sum((0, 1)).clamp(min=torch.finfo(a.dtype).tiny)
            a += step_K * direction
            residual = residual - step_K * A_direction
            z = self.divide(residual)
            new_K = (residual * z).sum((0, 1))
            direction = z + (new_K / rz_K.clamp(min=torch.finfo(a.dtype).tiny)) * direction
            rz_K = new_K
        return a


@final
class RandomBlocks(Difference):
    """Random block coordinate descent (RBCD): gradient steps on one block at a time, in random order. Inexact.

        g = block i of the residual,   a_i <- a_i - t M^{-1} g,   t the minimiser along that direction

    The objective is quadratic, so that the minimiser has a closed form and meets Armijo's condition with constant 1/2
    without trials. The order is drawn from the noise stream of `seed`.

    Args:
        steps: block steps of one solve, >= 1.
        seed: of the order of the blocks.
    """

    def __init__(self, X_ND: Tensor, patterns_NP: Tensor, steps: int, seed: int) -> None:
        super().__init__(X_ND, patterns_NP)
        self.steps, self.seed = steps, seed
        self._num_solves = 0

    def solve(self, r_DPK: Tensor, rho: float, guess_DPK: Tensor) -> Tensor:
        a = guess_DPK.clone()
        fit_NK = self.phi(a)
        key = noise.stream(self.seed, self._num_solves, 0, "relu block order")
        blocks = (noise.uniform(key, 0, self.steps, torch.device("cpu")) * a.shape[1]).long().tolist()
        self._num_solves += 1
        for i in blocks:
            active_N1 = self.patterns_NP[:, i, None]
            a_DK = a[:, i]
            g_DK = self.M_DD @ a_DK + 2 / rho * (self.X_ND.T @ (active_N1 * fit_NK)) - r_DPK[:, i]
            direction_DK = self.divide(g_DK)
            moved_NK = active_N1 * (self.X_ND @ direction_DK)
            slope_K = (g_DK * direction_DK).sum(0)
            curvature_K = slope_K + 2 / rho * moved_NK.square().sum(0)
            t_K = slope_K / curvature_K.clamp(min=torch.finfo(a.dtype).tiny)
            a[:, i] -= t_K * direction_DK
            fit_NK -= t_K * moved_NK
        return a
