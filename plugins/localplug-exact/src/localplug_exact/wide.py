"""Wide networks in closed form: the average infinitely wide network, and ensembles of wide ones whose readout is trained.

    relu-ntk       f(x) = k(x, X) (k(X, X) + ridge)^-1 Y
    relu-readout   f(x) = 1/M sum_m  h_m(x) (r_m + H_m' (H_m H_m' + ridge)^-1 (Y - H_m r_m)),   h_m(x) = sqrt(2/W) relu(x A_m)

k is a kernel of localplug_exact.kernels, H_m (N, W) the features of the examples, r_m the readout before training. The
second is where gradient descent on the readout alone ends, from r_m (the least-squares solution that is nearest to r_m):
a local rule, since no error passes the hidden layer. Reference: arXiv:2502.16763 trains ensembles of wide networks and
compares them with the kernel.

Letters: N examples, D features, K outputs, W width, M models.
"""

from typing import final

import torch
from torch import Tensor, nn

from localplug import noise
from localplug_exact.kernels import KERNELS, Kernel, gram


@final
class KernelRegression(nn.Module):
    """x -> k(x, X) C: the network that `relu-ntk` makes.

    Args:
        x_ND: the examples.
        coefficients_NK: C.
        kernel: which one k is.
    """

    def __init__(self, x_ND: Tensor, coefficients_NK: Tensor, kernel: Kernel) -> None:
        super().__init__()
        self.kernel: Kernel = kernel
        self.x_ND: Tensor
        self.coefficients_NK: Tensor
        self.register_buffer("x_ND", x_ND)
        self.register_buffer("coefficients_NK", coefficients_NK)

    def forward(self, x_BD: Tensor) -> Tensor:
        return gram(x_BD, self.x_ND, self.kernel) @ self.coefficients_NK


@final
class InfinitelyWide:
    """relu-ntk: what networks of one hidden ReLU layer learn on average, in the limit of width (arXiv:1806.07572).

    f(x) = k(x, X) (k(X, X) + ridge)^-1 Y, computed in float64. Called with inputs (N, D) and targets (N, K) it gives a module;
    it has the examples and no weights.

    Args:
        kernel: "ntk", both layers are trained, or "readout", the second alone.
        ridge: added to the diagonal, as a share of its mean, >= 0; 0 fits the examples exactly, if no two have one direction.

    Raises:
        ValueError: an option is out of its range; when called: inputs and targets are of unequal length or not finite.

    Example:
        >>> import torch, localplug
        >>> network = localplug.solver("relu-ntk")(torch.eye(2), torch.tensor([[1.0], [0.0]]))
        >>> network(torch.tensor([[1.0, 0.0], [0.6, 0.8]])).round(decimals=3)
        tensor([[1.0000],
                [0.4450]])
    """

    def __init__(self, kernel: Kernel = "ntk", ridge: float = 1e-8) -> None:
        found = [] if kernel in KERNELS else [f"kernel must be one of {', '.join(KERNELS)}, got {kernel!r}"]
        _refuse([*found, *_ridge_problems(ridge)])
        self.kernel: Kernel = kernel
        self.ridge = ridge

    @torch.no_grad()
    def __call__(self, inputs_ND: Tensor, targets_NK: Tensor) -> KernelRegression:
        _check(inputs_ND, targets_NK)
        x_ND = inputs_ND.double()
        C_NK = _solved(gram(x_ND, x_ND, self.kernel), self.ridge, targets_NK.double())
        return KernelRegression(inputs_ND.clone(), C_NK.to(inputs_ND.dtype), self.kernel)


@final
class Readouts:
    """relu-readout: an ensemble of random hidden layers whose readouts alone are trained, to the end (after arXiv:2502.16763).

    Called with inputs (N, D) and targets (N, K) it gives Linear, ReLU, Linear without biases: the average of M networks
    of W hidden units is one of M W. With `initial` > 0 its mean over seeds is that of `relu-ntk` with kernel "readout",
    and models differ as samples of that kernel's Gaussian process do; with 0 they differ by their features alone.

    Args:
        width: W, hidden units of a model, >= 1; more than there are examples, if it is to fit them.
        num_models: M, >= 1.
        initial: standard deviation of the readout before training, >= 0.
        ridge: added to the diagonal of H H', as a share of its mean, >= 0.
        seed: of the random weights.

    Raises:
        ValueError: an option is out of its range; when called: inputs and targets are of unequal length or not finite.

    Example:
        >>> import torch, localplug
        >>> network = localplug.solver("relu-readout", width=64)(torch.eye(2), torch.tensor([[1.0], [0.0]]))
        >>> torch.allclose(network(torch.eye(2)), torch.tensor([[1.0], [0.0]]), atol=1e-5)
        True
    """

    def __init__(
        self, width: int = 1024, num_models: int = 1, initial: float = 0.0, ridge: float = 1e-8, seed: int = 0
    ) -> None:
        found = [f"{n} must be at least 1, got {v}" for n, v in (("width", width), ("num_models", num_models)) if v < 1]
        found += [] if initial >= 0 else [f"initial must be at least 0, got {initial}"]
        _refuse([*found, *_ridge_problems(ridge)])
        self.width, self.num_models, self.initial, self.ridge, self.seed = width, num_models, initial, ridge, seed

    @torch.no_grad()
    def __call__(self, inputs_ND: Tensor, targets_NK: Tensor) -> nn.Sequential:
        _check(inputs_ND, targets_NK)
        x_ND, y_NK = inputs_ND.double(), targets_NK.double()
        (D, K), W, M = (x_ND.shape[1], y_NK.shape[1]), self.width, self.num_models
        like = {"dtype": inputs_ND.dtype, "device": inputs_ND.device}
        first: nn.Linear = nn.utils.skip_init(nn.Linear, D, M * W, bias=False, **like)
        last: nn.Linear = nn.utils.skip_init(nn.Linear, M * W, K, bias=False, **like)
        for m in range(M):
            keys = [noise.stream(self.seed, 0, m, name) for name in ("hidden layer", "readout")]
            drawn = noise.normals(keys, [W * D, W * K], x_ND.device)
            A_WD, r_WK = drawn[0].view(W, D).to(x_ND), self.initial * drawn[1].view(W, K).to(x_ND)
            H_NW = (2 / W) ** 0.5 * (x_ND @ A_WD.T).relu()
            r_WK = r_WK + H_NW.T @ _solved(H_NW @ H_NW.T, self.ridge, y_NK - H_NW @ r_WK)
            own = slice(m * W, (m + 1) * W)
            first.weight[own] = A_WD.to(inputs_ND.dtype)
            last.weight[:, own] = ((2 / W) ** 0.5 / M * r_WK.T).to(inputs_ND.dtype)
        return nn.Sequential(first, nn.ReLU(), last)


def _solved(gram_NN: Tensor, ridge: float, right_NK: Tensor) -> Tensor:
    """(gram + ridge mean(diag) I)^-1 right; least squares where that is singular."""
    gram_NN = gram_NN + ridge * gram_NN.diagonal().mean() * torch.eye(len(gram_NN), dtype=gram_NN.dtype).to(gram_NN)
    return torch.linalg.lstsq(gram_NN, right_NK, driver="gelsd" if not gram_NN.is_cuda else None).solution


def _check(inputs_ND: Tensor, targets_NK: Tensor) -> None:
    found = []
    if inputs_ND.dim() != 2 or targets_NK.dim() != 2 or len(inputs_ND) != len(targets_NK):
        found.append(
            f"inputs must be (N, D) and targets (N, K), got {tuple(inputs_ND.shape)} and {tuple(targets_NK.shape)}"
        )
    for name, given in (("inputs", inputs_ND), ("targets", targets_NK)):
        if not given.isfinite().all():
            found.append(f"{name} must be finite numbers")
    _refuse(found)


def _ridge_problems(ridge: float) -> list[str]:
    return [] if ridge >= 0 else [f"ridge must be at least 0, got {ridge}"]


def _refuse(problems: list[str]) -> None:
    if problems:
        raise ValueError("; ".join(problems))
