"""Optimal transport between two sets of points: how much work it takes to move one onto the other.

    exact       W2^2 = min over plans P of sum_ij P_ij |x_i - y_j|^2, rows of P sum to 1/N, columns to 1/M
    line        the same in one dimension: sort both, W2^2 = integral of (F_x^-1(q) - F_y^-1(q))^2 over q in (0, 1)
    sliced      the mean of that over random lines through the origin
    gaussian    of Gaussians with the sets' means and covariances:
                |m_x - m_y|^2 + tr(S_x + S_y - 2 (S_x^1/2 S_y S_x^1/2)^1/2)

Exact plans are POT's (Flamary et al., POT: Python Optimal Transport, JMLR 2021); sliced: Bonneel et al., 2015; Gaussians:
Dowson, Landau, 1982. No gradient is kept: these are rewards.

Letters: N, M points, D dimensions, L lines.
"""

import math

import torch
from torch import Tensor

from localplug import noise


@torch.no_grad()
def exact(x_ND: Tensor, y_MD: Tensor) -> float:
    """W2^2 of two sets of points of equal weight, by POT's network simplex; time about N M log(N M) to N^3. Not finite: inf.

    Example:
        >>> import torch
        >>> exact(torch.tensor([[0.0], [1.0]]), torch.tensor([[2.0], [1.0]]))
        1.0
    """
    import ot  # type: ignore[import-untyped]

    x, y = x_ND.double().cpu(), y_MD.double().cpu()
    cost = torch.cdist(x, y).square()
    largest = float(cost.max())
    if not math.isfinite(largest):  # POT would call that 0
        return math.inf
    weights = [torch.full((len(points),), 1 / len(points), dtype=torch.float64).numpy() for points in (x, y)]
    scale = largest or 1.0  # the simplex works in units of cost
    return scale * float(ot.emd2(*weights, (cost / scale).numpy(), numItermax=1_000_000))


@torch.no_grad()
def line(x_N: Tensor, y_M: Tensor) -> Tensor:
    """W2^2 in one dimension, of sets that may differ in size; over the last dimension of both, all others alike.

    Example:
        >>> import torch
        >>> line(torch.tensor([0.0, 1.0]), torch.tensor([2.0])).item()  # 1/2 (2^2 + 1^2)
        2.5
    """
    x, y = x_N.double().sort(-1).values, y_M.double().sort(-1).values
    N, M = x.shape[-1], y.shape[-1]
    ends = [torch.arange(1, num + 1, device=x.device, dtype=torch.float64) / num for num in (N, M)]
    until = torch.cat(ends).sort().values  # where either quantile function jumps
    width = until.diff(prepend=until.new_zeros(1))
    middle = until - width / 2
    of_x, of_y = ((middle * num).long().clamp(max=num - 1) for num in (N, M))
    return (width * (x[..., of_x] - y[..., of_y]).square()).sum(-1)


@torch.no_grad()
def sliced(x_ND: Tensor, y_MD: Tensor, num_lines: int = 64, seed: int = 0) -> float:
    """The mean of W2^2 over the points' shadows on random lines, always the same ones for a seed. Time L N log N.

    Example:
        >>> import torch
        >>> sliced(torch.zeros(3, 2), torch.zeros(5, 2))
        0.0
    """
    D = x_ND.shape[1]
    (drawn,) = noise.normals([noise.stream(seed, 0, 0, "lines")], [num_lines * D], x_ND.device)
    lines_LD = torch.nn.functional.normalize(drawn.view(num_lines, D).double(), dim=1)
    return float(line(lines_LD @ x_ND.double().T, lines_LD @ y_MD.double().T).mean())


@torch.no_grad()
def gaussian(x_ND: Tensor, y_MD: Tensor) -> float:
    """W2^2 of the Gaussians with the sets' means and covariances (the Bures distance and that of the means); time N D^2 + D^3.

    Example:
        >>> import torch
        >>> round(gaussian(torch.tensor([[0.0], [2.0]]), torch.tensor([[3.0], [5.0]])), 6)
        9.0
    """
    (m_x, S_x), (m_y, S_y) = moments(x_ND), moments(y_MD)
    root = root_of(S_x)
    bures = (S_x + S_y - 2 * root_of(root @ S_y @ root)).trace()
    return float((m_x - m_y).square().sum() + bures.clamp(min=0))


def moments(x_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and covariance (D, D), the mean over N, float64."""
    x = x_ND.double()
    centred = x - x.mean(0)
    return x.mean(0), centred.T @ centred / len(x)


def root_of(S_DD: Tensor) -> Tensor:
    """The square root of a symmetric matrix without negative eigenvalues."""
    values, vectors = torch.linalg.eigh((S_DD + S_DD.T) / 2)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


@torch.no_grad()
def unbalanced(
    cost_BNM: Tensor, *, eps: float = 0.05, exponent: float = 0.9, max_iterations: int = 200, tolerance: float = 1e-3
) -> Tensor:
    """Plans that need not move everything, (B, N, M), by Sinkhorn's iterations with an exponent:

        K = exp(-cost / eps),   u = (a / (K v))^exponent,   v = (b / (K' u))^exponent,   P = diag(u) K diag(v)

    They minimise sum P cost + eps sum P (log P - 1) + rho (KL(P 1, a) + KL(P' 1, b)) with exponent = rho / (rho + eps)
    (Chizat et al., 2018), a = 1/N and b = 1/M. PISCES (arXiv:2602.01624) runs it with eps 0.05 and exponent 0.9, which
    its documentation calls transporting a mass of 0.9; that is not what comes out, and what it reads are rows normalised
    afterwards.

    Args:
        cost_BNM: in [0, 1], or not much larger than eps; inf keeps a pair apart, as of padding.
        eps: of the entropy, in units of cost, > 0.
        exponent: in (0, 1]; 1 is balanced transport.
        max_iterations: >= 1.
        tolerance: it stops when no u changes by more than this share of the largest.

    Example:
        >>> import torch
        >>> plan = unbalanced(torch.tensor([[[0.0, 1.0], [1.0, 0.0]]]))
        >>> (plan[0].argmax(1)).tolist()
        [0, 1]
    """
    if not (eps > 0 and 0 < exponent <= 1 and max_iterations >= 1):
        raise ValueError(
            f"eps must be positive, exponent in (0, 1] and max_iterations at least 1, got {eps}, {exponent}, {max_iterations}"
        )
    K = (-cost_BNM.double() / eps).exp()
    shown_N, shown_M = K.sum(2) > 0, K.sum(1) > 0  # rows and columns that are no padding
    a, b = (shown.double() / shown.sum(1, keepdim=True).clamp(min=1) for shown in (shown_N, shown_M))
    tiny = torch.finfo(torch.float64).tiny
    u, v = torch.ones_like(a), torch.ones_like(b)
    for _ in range(max_iterations):
        before = u
        u = (a / (K @ v.unsqueeze(2)).squeeze(2).clamp(min=tiny)) ** exponent
        v = (b / (K.transpose(1, 2) @ u.unsqueeze(2)).squeeze(2).clamp(min=tiny)) ** exponent
        if float(((u - before).abs().amax(1) / u.amax(1).clamp(min=tiny)).max()) < tolerance:
            break
    return u.unsqueeze(2) * K * v.unsqueeze(1)
