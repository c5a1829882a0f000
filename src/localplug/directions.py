"""The random directions of a run, made chunk by chunk wherever they are added to something, and never stored."""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from localplug import noise
from localplug.contract import Run
from localplug.shards import is_sharded, local_part


@final
class Directions:
    """The random directions of a run: standard normal, one for each (step, number of the direction)."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._small = _SmallParameters(run)

    def values(self, index: int, direction: int) -> Tensor:
        """z for one parameter, as a whole. float32, shaped like the parameter."""
        name, parameter = self._run.parameters[index]
        key = noise.stream(self._run.seed, self._run.step, direction, name)
        return noise.normal(key, 0, parameter.numel(), parameter.device).view(parameter.shape)

    @torch.no_grad()
    def add_(self, target: Tensor, index: int, terms: Sequence[tuple[int, float]], *, offset: int = 0) -> Tensor:
        """target <- target + sum of factor * z over (direction, factor) in terms, chunk by chunk, in float32 or better.

        Args:
            target: elements offset ... offset + target.numel() - 1 of something shaped like parameter `index`, of a
                DTensor those that this worker holds; of half precision it is rounded to nearest in the end.
        """
        return self._combine(target, index, terms, 0.0, offset, stochastic=False)

    def small(self) -> list[int]:
        """Indices of the small parameters that are float32 now, which `small_added` and `update_small_` treat many at a
        time. A trainer may convert the model between two calls."""
        return [i for i, (_, p) in enumerate(self._run.parameters) if i in self._small and p.dtype == torch.float32]

    @torch.no_grad()
    def small_added(self, indices: Sequence[int], direction: int, factor: float) -> list[Tensor]:
        """w + factor * z of some of the small parameters, in new tensors; the same bits as of `add_`."""
        noise_of_each = [self._small.normal(i, direction) for i in indices]
        values = [self._run.parameters[i][1].data for i in indices]
        return list(torch._foreach_add(values, torch._foreach_mul(noise_of_each, factor))) if values else []

    @torch.no_grad()
    def update_small_(self, indices: Sequence[int], terms: Sequence[tuple[int, float]], *, decay: float) -> None:
        """`update_` of some of the small parameters; the same bits."""
        values = [self._run.parameters[i][1].data for i in indices]
        if decay:
            torch._foreach_mul_(values, 1 - decay)
        for direction, factor in terms:
            noise_of_each = [self._small.normal(i, direction) for i in indices]
            torch._foreach_add_(values, torch._foreach_mul(noise_of_each, factor))

    @torch.no_grad()
    def update_(self, target: Tensor, index: int, terms: Sequence[tuple[int, float]], *, decay: float) -> Tensor:
        """target <- (1 - decay) target + the same sum. Half precision is rounded stochastically: a step below the rounding
        unit is not lost, but taken with the probability that keeps the mean."""
        return self._combine(target, index, terms, decay, 0, stochastic=True)

    def _combine(
        self,
        target: Tensor,
        index: int,
        terms: Sequence[tuple[int, float]],
        decay: float,
        offset: int,
        *,
        stochastic: bool,
    ) -> Tensor:
        run = self._run
        name, _ = run.parameters[index]
        if is_sharded(target):
            local, first = local_part(target)
            self._combine(local, index, terms, decay, offset + first, stochastic=stochastic)
            return target
        if not target.is_contiguous():  # elements are numbered row by row, whatever the strides
            whole = self._combine(target.contiguous(), index, terms, decay, offset, stochastic=stochastic)
            return target.copy_(whole)
        device = target.device
        if index in self._small:
            known = [(self._small.normal(index, direction).reshape(-1), factor) for direction, factor in terms]
            streams = []
        else:
            known = []
            streams = [
                (noise.stream(run.seed, run.step, direction, name), noise.normal_table(device, factor))
                for direction, factor in terms
            ]
        half = target.dtype in (torch.float16, torch.bfloat16)
        dice = noise.stream(run.seed, run.step, -1, name) if half and stochastic else 0
        flat, size = target.view(-1), noise.chunk_size(device)
        for start in range(0, flat.numel(), size):
            part = flat[start : start + size]
            value = part.float() if half else part
            if decay:
                value.mul_(1 - decay)
            # the product is rounded before it is added, not fused: the same bits on every device and any chunking
            for z, factor in known:
                value.add_(z[offset + start : offset + start + part.numel()] * factor)
            for key, table in streams:
                value.add_(noise.normal(key, offset + start, part.numel(), device, table))
            if half and stochastic:
                part.copy_(
                    _round_stochastically(value, noise.uniform(dice, offset + start, part.numel(), device), part.dtype)
                )
            elif half:
                part.copy_(value)
        return target


@final
class _SmallParameters:
    """The noise of small parameters, made for many of them at once: each would cost more to ask for than to make.

    They stand in blocks, in the order of registration, which is roughly that of use. The noise of a few blocks of the
    step in work is kept.
    """

    SMALL = 1 << 15  # elements of a parameter
    BLOCK = 1 << 17  # elements of a block: half a megabyte
    KEPT = 8  # blocks

    def __init__(self, run: Run) -> None:
        self._run = run
        self._blocks: list[list[int]] = []
        self._place: dict[int, tuple[int, int]] = {}  # index -> (block, position in it)
        room, device = 0, None
        for index, (_, parameter) in enumerate(run.parameters):
            size = parameter.numel()
            if size > self.SMALL or is_sharded(parameter):
                continue
            if size > room or parameter.device != device:
                self._blocks.append([])
                room, device = self.BLOCK, parameter.device
            self._place[index] = (len(self._blocks) - 1, len(self._blocks[-1]))
            self._blocks[-1].append(index)
            room -= size
        self._step: tuple[int, int] | None = None
        self._made: dict[tuple[int, int], list[Tensor]] = {}  # (direction, block), oldest first

    def __contains__(self, index: int) -> bool:
        return index in self._place

    def normal(self, index: int, direction: int) -> Tensor:
        """The noise of one parameter, float32, shaped like it."""
        run = self._run
        if self._step != (run.seed, run.step):
            self._step = (run.seed, run.step)
            self._made = {}
        block, position = self._place[index]
        made = self._made.pop((direction, block), None)
        if made is None:
            inside = [run.parameters[i] for i in self._blocks[block]]
            keys = [noise.stream(run.seed, run.step, direction, name) for name, _ in inside]
            flat = noise.normals(keys, [p.numel() for _, p in inside], inside[0][1].device)
            made = [z.view(p.shape).to(p.device) for z, (_, p) in zip(flat, inside, strict=True)]
        self._made[direction, block] = made
        while len(self._made) > self.KEPT:
            del self._made[next(iter(self._made))]
        return made[position]


def _round_stochastically(value: Tensor, uniform: Tensor, dtype: torch.dtype) -> Tensor:
    """Round float32 to a half precision, up or down with the probabilities that keep the mean."""
    nearest = value.to(dtype)
    bits = nearest.view(torch.int16)
    # sign and magnitude: one less in the bits is one step towards zero, for either sign
    towards_zero = torch.where(nearest.float().abs() > value.abs(), bits - 1, bits)
    away = towards_zero + 1
    low, high = towards_zero.view(dtype).float(), away.view(dtype).float()
    share = (value - low) / (high - low)
    chosen = torch.where(uniform < share, away, towards_zero).view(dtype)
    return torch.where(torch.isfinite(high) & torch.isfinite(value), chosen, nearest)
