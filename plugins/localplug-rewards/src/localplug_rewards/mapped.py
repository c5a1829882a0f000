"""A prompt's embedding, carried over to where real outputs lie: the optimal map between two clouds of embeddings.

    T(x) = m_y + A (x - m_x),   A = S_x^-1/2 (S_x^1/2 S_y S_x^1/2)^1/2 S_x^-1/2

T is the optimal transport map between Gaussians with the clouds' means and covariances (Olkin, Pukelsheim, 1982). PISCES
(arXiv:2602.01624) takes the cosine of T(prompt) and an output's embedding as its reward of quality, with T a network that
is trained against a potential; the Gaussian map is what of that is known in closed form, fitted without training, and
linear.

Letters: N, M points, D dimensions.
"""

from collections.abc import Callable, Mapping
from typing import Any, final

import torch
from torch import Tensor
from torch.nn import functional as F

from localplug_rewards.transport import moments, root_of


@final
class GaussianMap:
    """T, fitted to two clouds of points.

    Args:
        x_ND: where it maps from; D may not be larger than N - 1 without `ridge`.
        y_MD: where it maps to.
        ridge: added to the diagonals of both covariances, as a share of their mean, > 0.

    Raises:
        ValueError: the clouds do not fit, are not finite, or ridge is not positive.

    Example:
        >>> import torch
        >>> x = torch.tensor([[0.0], [2.0]])
        >>> GaussianMap(x, 3 * x + 1)(torch.tensor([[1.0], [5.0]])).round(decimals=3)
        tensor([[ 4.],
                [16.]])
    """

    def __init__(self, x_ND: Tensor, y_MD: Tensor, ridge: float = 1e-6) -> None:
        if x_ND.dim() != 2 or y_MD.dim() != 2 or x_ND.shape[1] != y_MD.shape[1] or not ridge > 0:
            raise ValueError(
                f"two clouds (N, D) and (M, D) and a positive ridge are wanted, got {tuple(x_ND.shape)}, {tuple(y_MD.shape)} "
                f"and {ridge}"
            )
        if not (bool(x_ND.isfinite().all()) and bool(y_MD.isfinite().all())):
            raise ValueError("the clouds must be finite numbers")
        (self.m_x, S_x), (self.m_y, S_y) = moments(x_ND.detach()), moments(y_MD.detach())
        S_x, S_y = (S + ridge * (S.diagonal().mean() + 1e-300) * torch.eye(len(S)).to(S) for S in (S_x, S_y))
        root = root_of(S_x)
        inverse = torch.linalg.inv(root)
        self.A = inverse @ root_of(root @ S_y @ root) @ inverse

    def __call__(self, x_BD: Tensor) -> Tensor:
        m_x, m_y, A = (t.to(x_BD.device) for t in (self.m_x, self.m_y, self.A))
        return (m_y + (x_BD.double() - m_x) @ A.T).to(x_BD.dtype)


@final
class MappedSimilarity:
    """The mean cosine of T(prompt) and the embedding of what was made of it, in [-1, 1] (after arXiv:2602.01624).

    Args:
        transport: from prompts' embeddings to those of good outputs.
        embed: (outputs, batch) -> (prompts' embeddings (B, D), outputs' embeddings (B, D)), by encoders that are not trained.

    Example:
        >>> import torch
        >>> x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
        >>> reward = MappedSimilarity(GaussianMap(x, -2 * x), lambda outputs, batch: (batch["prompt"], outputs))
        >>> round(reward(x, {"prompt": x}), 3)  # of the clouds, not of pairs: the nearest way from one to the other
        1.0
    """

    def __init__(
        self, transport: GaussianMap, embed: Callable[[Any, Mapping[str, Any]], tuple[Tensor, Tensor]]
    ) -> None:
        self.transport, self.embed = transport, embed

    @torch.no_grad()
    def __call__(self, outputs: Any, batch: Mapping[str, Any]) -> float:
        prompts_BD, made_BD = self.embed(outputs, batch)
        return float(F.cosine_similarity(self.transport(prompts_BD), made_BD, dim=1).mean())
