"""Class embeddings u_y of NoProp (arXiv:2503.24322): the rows of W_embed, which the blocks learn to denoise.

A network holds them fixed if it gets a tensor, and learns them if it gets a torch.nn.Parameter.
"""

import torch
from torch import Tensor

_CHUNK = 512  # images that are compared with their class at once


def one_hot(num_classes: int) -> Tensor:
    """W = I, (K, K). Example: one_hot(10)."""
    return torch.eye(num_classes)


def orthogonal(num_classes: int, dim: int, *, seed: int = 0) -> Tensor:
    """Orthonormal rows (K, D), or orthonormal columns if D < K; what the paper's learned embeddings of dimension 20 begin at.

    Args:
        num_classes, dim: K and D, >= 1.
        seed: of the random rotation.

    Example:
        >>> W = orthogonal(3, 20)
        >>> torch.allclose(W @ W.T, torch.eye(3), atol=1e-5)
        True
    """
    normal = torch.randn(max(num_classes, dim), min(num_classes, dim), generator=torch.Generator().manual_seed(seed))
    q, r = torch.linalg.qr(normal)
    q = q * r.diagonal().sign()  # of the two signs of each column the one that makes the factorisation unique
    return q.T.contiguous() if dim >= num_classes else q


@torch.no_grad()
def prototypes(x: Tensor, labels_B: Tensor, num_classes: int) -> Tensor:
    """One example of each class, flattened, (K, D): that with the smallest median distance to the examples of its class.

    Args:
        x: training examples, (B, ...).
        labels_B: integers in [0, K).

    Raises:
        ValueError: a class has no example.

    Example:
        >>> prototypes(torch.tensor([[0.0], [2.0], [3.0], [5.0]]), torch.tensor([0, 0, 0, 1]), 2)
        tensor([[2.],
                [5.]])
    """
    rows = []
    for y in range(num_classes):
        x_ND = x[labels_B == y].flatten(1).float()
        if not len(x_ND):
            raise ValueError(f"class {y} has no example, and so no prototype")
        medians = torch.cat([torch.cdist(part, x_ND).median(1).values for part in x_ND.split(_CHUNK)])
        rows.append(x_ND[medians.argmin()])
    return torch.stack(rows)
