"""Directions of low rank: each weight matrix W (m x n) moves along Z = A B^T / scale, everything else along dense noise.

                Z                            fresh each step   every `refresh` steps   kappa - mn of one matrix
    LowRank     U V^T / sqrt(r)              U, V                                      (2 (m + n) + 2 + 2 r) / r
      signs     the same of random signs     U, V                                      2 (r - 1) / r
    LOZO        U V^T / sqrt(r)              U                 V                       as LowRank
    SubZero     sqrt(mn) / r U Z0 V^T        Z0 (r x r)        U, V, orthonormal       2 mn / r^2
    TeZO        U diag(tau) V^T / sqrt(r)    tau (r)           U, V                    (6 (m + n) + 10 + 2 r + 2 mn) / r

U is m x r, V is n x r, standard normal if nothing else is said; a convolution's kernel is read as a matrix of shape[0] rows.
E[z z^T] = I over all draws. kappa is E ||<g, z> z||^2 / ||g||^2 over all draws (localplug.Distribution.kappa); for a model
it is d + max over matrices (kappa - mn), at most, since parameters are independent. In each step the weights are updated
along the very direction that was evaluated, on the steps that draw anew as well.

LowRank of rank 1: EGGROLL, arXiv:2511.16652. LOZO: arXiv:2410.07698. SubZero: arXiv:2410.08989. TeZO: arXiv:2501.19057.
"""

import abc
import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from localplug import Distribution, Piece, Run, add_low_rank_, noise
from localplug.low_rank import EXACT

KEPT = 1 << 23  # elements of factors that are kept: 32 MB
BLOCK = 1 << 19  # elements of those that are made in one call


class _LowRank(Distribution):
    """What they share: the factors of matrices, dense noise for the rest, and a memory for the factors of a few steps."""

    def __init__(self, rank: int, refresh: int) -> None:
        wrong = [f"rank must be an integer of at least 1, got {rank!r}"] if not _positive(rank) else []
        if not _positive(refresh):
            wrong.append(f"refresh must be an integer of at least 1, got {refresh!r}")
        if wrong:
            raise ValueError("; ".join(wrong))
        self.rank, self.refresh = rank, refresh
        self.streams = rank <= EXACT

    def setup(self, run: Run, indices: Sequence[int]) -> None:
        self._run = run
        self._shapes = {
            i: (p.shape[0], p.numel() // p.shape[0])
            for i, p in ((i, run.parameters[i][1]) for i in indices)
            if p.dim() > 1 and p.numel()
        }
        self._kept: OrderedDict[tuple[int, int, int, int], tuple[Tensor, Tensor]] = OrderedDict()
        self._size = 0

    def factors(self, index: int, step: int, direction: int) -> tuple[Tensor, Tensor] | None:
        if index not in self._shapes:
            return None
        key = (self._run.seed, step, direction, index)
        made = self._kept.get(key)
        if made is None:
            for other, pair in self._made_with(index, step, direction).items():
                self._kept[(self._run.seed, step, direction, other)] = pair
                self._size += pair[0].numel() + pair[1].numel()
            made = self._kept[key]
            while self._size > KEPT and len(self._kept) > 1:
                a, b = self._kept.popitem(last=False)[1]
                self._size -= a.numel() + b.numel()
        return made

    def _made_with(self, index: int, step: int, direction: int) -> dict[int, tuple[Tensor, Tensor]]:
        """The factors of a matrix, and of others that cost little beside them."""
        return {index: self._made(index, step, direction)}

    @abc.abstractmethod
    def _made(self, index: int, step: int, direction: int) -> tuple[Tensor, Tensor]: ...

    @abc.abstractmethod
    def _excess(self, m: int, n: int) -> float:
        """kappa - mn of one matrix."""

    def add_(self, target: Tensor, piece: Piece, factor: float) -> None:
        factors = self.factors(piece.index, piece.step, piece.direction)
        if factors is None:
            self._add_dense_(target, self._key(piece.index, piece.step, piece.direction, ""), piece.offset, factor)
        else:
            add_low_rank_(target, *factors, factor, piece.offset)

    def _add_dense_(self, target: Tensor, key: int, offset: int, factor: float) -> None:
        noise.add_normal_(target, key, offset, factor)

    def kappa(self, num_elements: int) -> float:
        return num_elements + max((self._excess(m, n) for m, n in self._shapes.values()), default=2.0)

    def _key(self, index: int, step: int, direction: int, which: str) -> int:
        name = self._run.parameters[index][0]
        return noise.stream(self._run.seed, step, direction, f"{name} {which}" if which else name)

    def _drawn(
        self, index: int, step: int, direction: int, which: str, rows: int, columns: int, scale: float
    ) -> Tensor:
        """A matrix of noise of its own stream, times scale. float32."""
        drawn = torch.zeros(rows * columns, device=self._run.parameters[index][1].device)
        self._add_dense_(drawn, self._key(index, step, direction, which), 0, scale)
        return drawn.view(rows, columns)

    def _epoch(self, step: int) -> int:
        return step // self.refresh


@final
class LowRank(_LowRank):
    """Z = U V^T / sqrt(r), drawn anew for every direction.

    Args:
        rank: r >= 1.
        noise: of U and V: "rademacher" (random signs; at rank 1 no direction of any distribution has less variance) or
            "gaussian".

    Raises:
        ValueError: one of them is out of range.

    Example:
        >>> import localplug
        >>> localplug.distribution("rank-1", rank=2, noise="gaussian").describe()
        'rank-2 gaussian'
    """

    def __init__(self, rank: int = 1, noise: str = "rademacher") -> None:
        super().__init__(rank, 1)
        if noise not in ("rademacher", "gaussian"):
            raise ValueError(f'noise must be "rademacher" or "gaussian", got {noise!r}')
        self.noise = noise

    def describe(self) -> str:
        return f"rank-{self.rank} {self.noise}"

    def setup(self, run: Run, indices: Sequence[int]) -> None:
        super().setup(run, indices)
        self._blocks: list[list[int]] = []
        self._block_of: dict[int, int] = {}
        room, device = 0, None
        for index, (m, n) in self._shapes.items():
            size, where = self.rank * (m + n), run.parameters[index][1].device
            if size > room or where != device:
                self._blocks.append([])
                room, device = BLOCK, where
            self._blocks[-1].append(index)
            self._block_of[index] = len(self._blocks) - 1
            room -= size

    def _made_with(self, index: int, step: int, direction: int) -> dict[int, tuple[Tensor, Tensor]]:
        if self.noise != "rademacher":
            return super()._made_with(index, step, direction)
        r, some = self.rank, self._blocks[self._block_of[index]]
        shapes = [self._shapes[i] for i in some]
        flat = noise.signs_of(
            [f"{self._run.parameters[i][0]} {which}" for i in some for which in "UV"],
            [r * length for shape in shapes for length in shape],
            [1 / math.sqrt(r), 1.0] * len(some),
            (self._run.seed, step, direction),
            self._run.parameters[index][1].device,
        )
        return {
            i: (u.view(m, r), v.view(n, r)) for i, (m, n), u, v in zip(some, shapes, flat[::2], flat[1::2], strict=True)
        }

    def _made(self, index: int, step: int, direction: int) -> tuple[Tensor, Tensor]:
        m, n = self._shapes[index]
        scale = 1 / math.sqrt(self.rank)
        return (
            self._drawn(index, step, direction, "U", m, self.rank, scale),
            self._drawn(index, step, direction, "V", n, self.rank, 1.0),
        )

    def _add_dense_(self, target: Tensor, key: int, offset: int, factor: float) -> None:
        (noise.add_signs_ if self.noise == "rademacher" else noise.add_normal_)(target, key, offset, factor)

    def kappa(self, num_elements: int) -> float:
        return num_elements if self.noise == "rademacher" and self.rank == 1 else super().kappa(num_elements)

    def _excess(self, m: int, n: int) -> float:
        r = self.rank
        return 2 * (r - 1) / r if self.noise == "rademacher" else (2 * (m + n) + 2 + 2 * r) / r


@final
class LOZO(_LowRank):
    """Z = U V^T / sqrt(r), V drawn anew every `refresh` steps and shared by the directions of a step.

    Args:
        rank: r >= 1; 1 or 2 in the paper.
        refresh: nu of the paper, steps, >= 1.

    Raises:
        ValueError: one of them is out of range.

    Example:
        >>> import localplug
        >>> localplug.distribution("lozo", rank=4, refresh=50).describe()
        'LOZO rank-4 (refreshed every 50 steps)'
    """

    def __init__(self, rank: int = 2, refresh: int = 50) -> None:
        super().__init__(rank, refresh)

    def describe(self) -> str:
        return f"LOZO rank-{self.rank} (refreshed every {self.refresh} steps)"

    def _made(self, index: int, step: int, direction: int) -> tuple[Tensor, Tensor]:
        m, n = self._shapes[index]
        return (
            self._drawn(index, step, direction, "U", m, self.rank, 1 / math.sqrt(self.rank)),
            self._drawn(index, self._epoch(step), 0, "V", n, self.rank, 1.0),
        )

    def _excess(self, m: int, n: int) -> float:
        return (2 * (m + n) + 2 + 2 * self.rank) / self.rank


@final
class SubZero(_LowRank):
    """Z = sqrt(mn) / r U Z0 V^T, U and V with orthonormal columns, drawn anew every `refresh` steps.

    Args:
        rank: r >= 1; of a matrix with fewer rows or columns it is their number.
        refresh: T0 of the paper, steps, >= 1.

    Raises:
        ValueError: one of them is out of range.

    Example:
        >>> import localplug
        >>> localplug.distribution("subzero", rank=4).describe()
        'SubZero rank-4 (refreshed every 1000 steps)'
    """

    def __init__(self, rank: int = 8, refresh: int = 1000) -> None:
        super().__init__(rank, refresh)
        self._bases: dict[int, tuple[tuple[int, int], Tensor, Tensor]] = {}

    def describe(self) -> str:
        return f"SubZero rank-{self.rank} (refreshed every {self.refresh} steps)"

    def _made(self, index: int, step: int, direction: int) -> tuple[Tensor, Tensor]:
        m, n = self._shapes[index]
        r, epoch = min(self.rank, m, n), self._epoch(step)
        seed_and_epoch, u, v = self._bases.get(index, ((0, -1), None, None))
        if seed_and_epoch != (self._run.seed, epoch) or u is None or v is None:
            u = torch.linalg.qr(self._drawn(index, epoch, 0, "U", m, r, 1.0))[0]
            v = torch.linalg.qr(self._drawn(index, epoch, 0, "V", n, r, 1.0))[0]
            self._bases[index] = ((self._run.seed, epoch), u, v)
        return u @ self._drawn(index, step, direction, "Z", r, r, math.sqrt(m * n) / r), v

    def _excess(self, m: int, n: int) -> float:
        return 2 * m * n / min(self.rank, m, n) ** 2


@final
class TeZO(_LowRank):
    """Z = U diag(tau) V^T / sqrt(r): of a direction only the r numbers tau are new.

    Args:
        rank: r >= 1.
        refresh: steps after which U and V are drawn anew; the paper keeps them for the whole run, which is the default.

    Raises:
        ValueError: one of them is out of range.

    Example:
        >>> import localplug
        >>> localplug.distribution("tezo", rank=8).describe()
        'TeZO rank-8'
    """

    def __init__(self, rank: int = 24, refresh: int = 1_000_000_000) -> None:
        super().__init__(rank, refresh)

    def describe(self) -> str:
        return f"TeZO rank-{self.rank}"

    def _made(self, index: int, step: int, direction: int) -> tuple[Tensor, Tensor]:
        m, n = self._shapes[index]
        epoch = self._epoch(step)
        tau = self._drawn(index, step, direction, "tau", 1, self.rank, 1 / math.sqrt(self.rank))
        return (
            self._drawn(index, epoch, 0, "U", m, self.rank, 1.0) * tau,
            self._drawn(index, epoch, 0, "V", n, self.rank, 1.0),
        )

    def _excess(self, m: int, n: int) -> float:
        r = self.rank
        return (3 * (m + 2) * (n + 2) + (r - 1) * (m * n + 2)) / r - m * n


def _positive(value: object) -> bool:
    return isinstance(value, int) and value >= 1
