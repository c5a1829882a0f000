"""Regression by a Gaussian process with a squared exponential kernel: its mean, and the mean's slope in closed form.

    k(x, x') = v exp(-|x - x'|^2 / 2 l^2),   mean(x) = sum over i of a_i k(x, x_i),   (K + noise I) a = y

Rasmussen, Williams: Gaussian Processes for Machine Learning, 2006, chapter 2. Letters: N examples, M points, D numbers.
"""

import math
from typing import final

import torch
from torch import Tensor


@final
class GaussianProcess:
    """The posterior mean of a Gaussian process, for values of mean 0 and variance 1 over a box scaled to [0, 1].

    Args:
        X_ND: examples, float64.
        y_N: their values, finite.
        length: l, > 0, in the units of x.
        variance: v, > 0.
        noise: variance of the values about the function, > 0.

    Raises:
        ValueError: the noise is too small for points that lie so close.

    Example:
        >>> import torch
        >>> process = GaussianProcess(torch.tensor([[0.0], [1.0]]).double(), torch.tensor([0.0, 1.0]).double(), noise=1e-6)
        >>> process.mean(torch.tensor([[1.0]]).double()).round(decimals=4).tolist()
        [1.0]
    """

    def __init__(
        self, X_ND: Tensor, y_N: Tensor, length: float = 0.5, variance: float = 1.0, noise: float = 1e-2
    ) -> None:
        self.X_ND, self.length, self.variance, self.noise = X_ND, length, variance, noise
        K_NN = self._kernel(X_ND) + noise * torch.eye(len(X_ND), dtype=X_ND.dtype)
        self._root_NN, failed = torch.linalg.cholesky_ex(K_NN)
        if int(failed):
            raise ValueError(f"the kernel with noise {noise} is not positive definite in float64; give more noise")
        self._y_N = y_N
        self.a_N = torch.cholesky_solve(y_N.unsqueeze(1), self._root_NN).squeeze(1)

    def _kernel(self, Z_MD: Tensor) -> Tensor:
        return self.variance * torch.exp(-torch.cdist(Z_MD, self.X_ND).square() / (2 * self.length**2))

    def mean(self, Z_MD: Tensor) -> Tensor:
        """(M,)."""
        return self._kernel(Z_MD) @ self.a_N

    def slope(self, Z_MD: Tensor) -> Tensor:
        """d mean / dx = sum over i of a_i k(x, x_i) (x_i - x) / l^2. (M, D)."""
        weights_MN = self._kernel(Z_MD) * self.a_N
        return (weights_MN @ self.X_ND - weights_MN.sum(1, keepdim=True) * Z_MD) / self.length**2

    def log_likelihood(self) -> float:
        """Of the values, by which kernels are chosen."""
        fit = float(self._y_N @ self.a_N)
        return -0.5 * fit - float(self._root_NN.diagonal().log().sum()) - 0.5 * len(self._y_N) * math.log(2 * math.pi)


def fitted(X_ND: Tensor, y_N: Tensor) -> GaussianProcess:
    """The process whose length and noise have the greatest likelihood, of some that cover what a box scaled to [0, 1] has."""
    roots = math.sqrt(X_ND.shape[1])
    found = None
    best = -math.inf
    for length in (0.05, 0.1, 0.2, 0.4, 0.8, 1.6):
        for noise in (1e-4, 1e-2, 1e-1):
            try:
                process = GaussianProcess(X_ND, y_N, length * roots, 1.0, noise)
            except ValueError:
                continue
            if process.log_likelihood() > best:
                best, found = process.log_likelihood(), process
    if found is None:
        raise ValueError("no Gaussian process fits the values; are rows of X repeated with different values?")
    return found
