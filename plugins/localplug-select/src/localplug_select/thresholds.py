"""The k-th smallest magnitude of many weights, exactly, without a copy of them.

|w| in float32, read as an integer, keeps its order. Two passes over the weights, chunk by chunk, count the upper and then the
lower 16 bits; the memory is that of a chunk.
"""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

CHUNK = 1 << 20  # elements in work at once


def chunks(weights: Tensor) -> Iterator[Tensor]:
    """A parameter's weights in pieces of one dimension, row by row."""
    flat = weights.detach().reshape(-1)
    for start in range(0, flat.numel(), CHUNK):
        yield flat[start : start + CHUNK]


@torch.no_grad()
def kth_smallest(weights: Iterable[Tensor], k: int) -> float:
    """The k-th smallest |w| over all the tensors together, in parameter units; a NaN counts as the largest.

    Args:
        weights: read twice; of any floating dtype, compared in float32.
        k: from 1 to the number of elements.

    Example:
        >>> kth_smallest([torch.tensor([3.0, -1.0]), torch.tensor([[-2.0]])], 2)
        2.0
    """
    together = list(weights)
    high, k = _bin(_counts(together, lambda key: key >> 16, 1 << 15), k)
    low, _ = _bin(_counts(together, lambda key: key[key >> 16 == high] & 0xFFFF, 1 << 16), k)
    return float(torch.tensor((high << 16) | low, dtype=torch.int32).view(torch.float32))


def _counts(weights: list[Tensor], digits: Callable[[Tensor], Tensor], num: int) -> Tensor:
    counts = torch.zeros(num, dtype=torch.int64)
    for tensor in weights:
        for piece in chunks(tensor):
            key = piece.float().abs().view(torch.int32)
            counts += torch.bincount(digits(key), minlength=num).cpu()
    return counts


def _bin(counts: Tensor, k: int) -> tuple[int, int]:
    """The bin that holds number k, and its number in that bin."""
    ends = counts.cumsum(0)
    which = int(torch.searchsorted(ends, k))
    return which, k - int(ends[which] - counts[which])
