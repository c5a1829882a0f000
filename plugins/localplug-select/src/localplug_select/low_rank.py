"""An update that keeps what a mask lets train of low rank, without a gradient of the nuclear norm.

    X = W o M,  X = U S V^T                                     the trained entries of one matrix, drawn for each step
    Y = U max(S - lr lambda, 0) V^T = argmin_Y 1/2 ||Y - X||^2 + lr lambda ||Y||_*
    W_M <- Y_M

SaRA (arXiv:2409.06633) adds lambda ||W o M||_* of one random matrix to the loss and differentiates it. Here it is a proximal
step: exact where M is everything; with a mask, Y is taken at the entries of M. Where no singular value is below lr lambda that
is the step along the regulariser's gradient, W_M - lr lambda (U V^T)_M, and smaller ones go to zero instead of beyond it.
"""

from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor

import localplug
from localplug import Directions, Groups, Run, Update, noise

SIDE = 64
"""Matrices are shrunk whose shorter side is longer than this, as in SaRA's code."""
_DRAW = -3  # the noise stream of the drawn matrix; directions count from 0, rounding takes -1, masks -2


@final
class LowRank(Update):
    """Another update, and after it a step that shrinks the singular values of one matrix's trained entries.

        W_M <- (prox of lr weight ||.||_* at W o M)_M

    Each step draws one matrix with more than 64 rows and columns by (seed, step). It costs the eigenvalues of an s x s matrix,
    s its shorter side, and copies of that matrix in float64; lr is that of its parameter group. With an inner update that
    leaves the step to the trainer's optimizer, the weights are shrunk before that step.

    Args:
        weight: lambda, > 0, in units of the loss over those of the weights. The published code has 5e-4.
        inner: the update itself: a name such as "sgd" or "momentum", or a localplug.Update.
        most: elements of the largest matrix that is ever shrunk; larger ones (embeddings) are left alone.

    Raises:
        ValueError: weight or most are out of range.

    Example:
        >>> import localplug
        >>> localplug.update("low-rank", weight=1e-3).describe()
        'SGD in place, singular values shrunk by lr 0.001'

    Reference: the regulariser of SaRA, ICLR 2025, arXiv:2409.06633; the step: Cai, Candes, Shen: A Singular Value Thresholding
        Algorithm for Matrix Completion, SIAM J. Optim. 2010.
    """

    def __init__(self, weight: float = 5e-4, inner: str | Update = "sgd", most: int = 1 << 24) -> None:
        if not weight > 0 or not most > 0:
            raise ValueError(f"weight and most must be positive, got {weight!r} and {most!r}")
        self.weight, self.inner, self.most = float(weight), localplug.update(inner), most

    def describe(self) -> str:
        return f"{self.inner.describe()}, singular values shrunk by lr {self.weight:g}"

    def problems(self, run: Run) -> list[str]:
        return self.inner.problems(run)

    def replay_problems(self, run: Run) -> list[str]:
        return self.inner.replay_problems(run)

    def setup(self, run: Run, directions: Directions) -> None:
        self.inner.setup(run, directions)
        shapes = {i: run.parameters[i][1].shape for i in directions.indices}
        self._matrices = [i for i, s in shapes.items() if len(s) == 2 and min(s) > SIDE and s.numel() <= self.most]

    def apply(self, run: Run, directions: Directions, coefficients: Sequence[float], groups: Groups) -> None:
        self.inner.apply(run, directions, coefficients, groups)
        if not self._matrices:
            return
        index = self._matrices[noise.stream(run.seed, run.step, _DRAW, "low-rank") % len(self._matrices)]
        weights = run.parameters[index][1]
        if lr := float(groups[weights]["lr"]):
            flat = weights.data.float().reshape(-1)
            mask = directions.selection.mask(index, flat, 0, run.step)
            trained = flat if mask is None else flat * mask
            shrunk = shrink(trained.view(weights.shape), lr * self.weight).reshape(-1)
            directions.rewrite_(
                weights.data, index, lambda value, offset: shrunk[offset : offset + value.numel()].to(value.dtype)
            )

    def state_dict(self) -> dict[str, Any]:
        return self.inner.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.inner.load_state_dict(state)


@torch.no_grad()
def shrink(x_MN: Tensor, by: float) -> Tensor:
    """U max(S - by, 0) V^T of x = U S V^T, from the eigenvalues of the smaller of x x^T and x^T x. float32, like x.

    Args:
        by: >= 0, in the unit of the singular values.

    Example:
        >>> shrink(torch.diag(torch.tensor([3.0, 1.0])), 2.0)
        tensor([[1., 0.],
                [0., 0.]])
    """
    x = x_MN.double()
    is_tall = x.shape[0] >= x.shape[1]
    squares, vectors = torch.linalg.eigh(x.T @ x if is_tall else x @ x.T)
    values = squares.clamp(min=0).sqrt()
    kept = torch.where(values > by, 1 - by / values.clamp(min=1e-300), 0.0)
    projection = (vectors * kept) @ vectors.T
    return (x @ projection if is_tall else projection @ x).to(x_MN.dtype)
