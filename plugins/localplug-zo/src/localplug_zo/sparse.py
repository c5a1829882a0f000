"""Directions that leave most of the model alone: a subset of layers, one coordinate; and the sphere, which leaves nothing.

    layers        z = 0 outside the layers drawn for the step             E[z z^T] = I on the layers in turn
    coordinates   z = sqrt(d) e_i, i drawn without replacement            E[z z^T] = I,  kappa = d
    sphere        z = sqrt(d) y / ||y||, y ~ N(0, I)                      E[z z^T] = I,  kappa = d

layers: LeZO, arXiv:2410.09823 (random), and block-wise as in ZO-Bench, arXiv:2402.11592 (in turn). coordinates: with all d of
them, two-sided, this is the coordinate-wise gradient estimate (CGE), the full finite-difference gradient. sphere: Flaxman,
Kalai, McMahan: Online Convex Optimization in the Bandit Setting, 2005.
"""

import functools
import math
import random
import re
from collections.abc import Sequence
from typing import Literal, final

import torch
from torch import Tensor

from localplug import Distribution, Gaussian, Piece, Run, noise


def layer_of(name: str) -> str | None:
    """The layer that a parameter belongs to, up to the first number in its name ("layers.7"); None outside all layers."""
    found = re.match(r"(.*?\.\d+|\d+)\.", name)
    return found.group(1) if found else None


@final
class Layers(Distribution):
    """The directions of another distribution, on some of the model's layers in each step.

    A layer is what shares the first number in its parameters' names ("layers.7"). Parameters outside them (embeddings,
    head, last norm) belong to every direction if `with_rest`.

    Args:
        keep: layers in one step: a number >= 1, or a share in (0, 1).
        order: "random" draws them anew in each step, "cyclic" takes one run of layers after another.
        with_rest: whether the other parameters take part.
        distribution: standard normal by default.

    Raises:
        ValueError: one of them is out of range.

    Example:
        >>> import localplug
        >>> localplug.distribution("layers", keep=2, order="cyclic").describe()
        'Gaussian (2 layer(s), cyclic)'
    """

    def __init__(
        self,
        keep: float = 0.25,
        order: Literal["random", "cyclic"] = "random",
        with_rest: bool = True,
        distribution: Distribution | None = None,
    ) -> None:
        if not keep > 0 or (keep > 1 and int(keep) != keep) or order not in ("random", "cyclic"):
            raise ValueError(
                f'keep must be a share in (0, 1) or a number of layers, and order "random" or "cyclic", got {keep!r}, {order!r}'
            )
        self.keep, self.order, self.with_rest = keep, order, with_rest
        self.inner = distribution or Gaussian()
        self.streams = self.inner.streams

    def describe(self) -> str:
        what = f"{self.keep:.0%} of the layers" if self.keep < 1 else f"{int(self.keep)} layer(s)"
        return f"{self.inner.describe()} ({what}, {self.order})"

    def setup(self, run: Run, indices: Sequence[int]) -> None:
        self._run = run
        self.inner.setup(run, indices)
        self._layers: dict[str, list[int]] = {}
        self._rest: list[int] = []
        for i in indices:
            layer = layer_of(run.parameters[i][0])
            (self._rest if layer is None else self._layers.setdefault(layer, [])).append(i)
        if not self._layers:
            self._layers, self._rest = {run.parameters[i][0]: [i] for i in indices}, []
        self._moved = functools.lru_cache(maxsize=256)(self._moved_in)  # asked for every parameter and every chunk

    def kept(self, step: int) -> list[str]:
        """Names of the layers of a step."""
        names = list(self._layers)
        num = min(int(self.keep) if self.keep >= 1 else max(round(self.keep * len(names)), 1), len(names))
        if self.order == "cyclic":
            first = step * num % len(names)
            return (names + names)[first : first + num]
        drawn = random.Random(noise.stream(self._run.seed, step, 0, "layers")).sample(range(len(names)), num)
        return [names[i] for i in sorted(drawn)]

    def _moved_in(self, seed: int, step: int) -> tuple[int, ...]:
        inside = [i for name in self.kept(step) for i in self._layers[name]]
        return (*(self._rest if self.with_rest else ()), *inside)

    def reached(self, step: int, direction: int) -> Sequence[int]:
        return self._moved(self._run.seed, step)

    def add_(self, target: Tensor, piece: Piece, factor: float) -> None:
        if piece.index in self.reached(piece.step, piece.direction):
            self.inner.add_(target, piece, factor)

    def add_to_(self, target: Tensor, source: Tensor, piece: Piece, factor: float) -> None:
        if piece.index in self.reached(piece.step, piece.direction):
            self.inner.add_to_(target, source, piece, factor)
        else:
            target.copy_(source)

    def factors(self, index: int, step: int, direction: int) -> tuple[Tensor, Tensor] | None:
        if index not in self.reached(step, direction):
            return None
        return self.inner.factors(index, step, direction)

    def kappa(self, num_elements: int) -> float:
        """Of the elements that one step reaches."""
        reached = self.reached(self._run.step, 0)
        return self.inner.kappa(sum(self._run.parameters[i][1].numel() for i in reached))


@final
class Coordinates(Distribution):
    """z = sqrt(d) e_i: single elements, drawn without replacement among the directions of a step.

    Args:
        num_directions: of a step and worker; those of all workers are at most d.
    """

    def __init__(self, num_directions: int) -> None:
        self.num_directions = num_directions

    streams = True

    def describe(self) -> str:
        return "coordinate"

    def setup(self, run: Run, indices: Sequence[int]) -> None:
        self._run = run
        self._indices, self._ends = list(indices), []
        total = 0
        for i in indices:
            total += run.parameters[i][1].numel()
            self._ends.append(total)
        self._total = total
        self._places = functools.lru_cache(maxsize=4)(self._drawn)
        self._num = self.num_directions * run.num_workers_apart
        if self.num_directions * run.num_workers_apart > total:
            raise ValueError(
                f"{self.num_directions * run.num_workers_apart} directions are more than the {total} elements that are trained"
            )

    def _drawn(self, seed: int, step: int) -> list[int]:
        """Different numbers below d, of which the first ones do not depend on how many there are."""
        generator = random.Random(noise.stream(seed, step, 0, "coordinates"))
        drawn: dict[int, None] = {}
        if self._total <= 1 << 16:  # perhaps all of them are wanted: in a random order
            return generator.sample(range(self._total), self._total)
        while len(drawn) < self._num:
            drawn[generator.randrange(self._total)] = None
        return list(drawn)

    def place(self, step: int, direction: int) -> tuple[int, int]:
        """(number of the parameter, number of its element)."""
        number = self._places(self._run.seed, step)[direction]
        which = next(k for k, end in enumerate(self._ends) if number < end)
        return self._indices[which], number - (self._ends[which - 1] if which else 0)

    def reached(self, step: int, direction: int) -> Sequence[int]:
        return [self.place(step, direction)[0]]

    def add_(self, target: Tensor, piece: Piece, factor: float) -> None:
        index, element = self.place(piece.step, piece.direction)
        if index == piece.index and 0 <= element - piece.offset < target.numel():
            target[element - piece.offset] += factor * math.sqrt(self._total)

    def kappa(self, num_elements: int) -> float:
        return self._total


@final
class Sphere(Distribution):
    """z = sqrt(d) y / ||y||: Gaussian directions of one length.

    Example:
        >>> import localplug
        >>> localplug.distribution("sphere").describe()
        'sphere'
    """

    streams = True

    def describe(self) -> str:
        return "sphere"

    def setup(self, run: Run, indices: Sequence[int]) -> None:
        self._run, self._indices = run, list(indices)
        self._scales = functools.lru_cache(maxsize=256)(self._scale)

    def _scale(self, seed: int, step: int, direction: int) -> float:
        """sqrt(d) / ||y||: one sweep of noise, on the whole of sharded parameters, too."""
        square, total = 0.0, 0
        for i in self._indices:
            name, parameter = self._run.parameters[i]
            key, num = noise.stream(seed, step, direction, name), parameter.numel()
            size = 1 << 17  # fixed: the sum must not depend on the machine
            for start in range(0, num, size):
                y = torch.zeros(min(size, num - start), device=parameter.device)
                noise.add_normal_(y, key, start, 1.0)
                square += float(y.double().square().sum())
            total += num
        return math.sqrt(total / square)

    def add_(self, target: Tensor, piece: Piece, factor: float) -> None:
        key = noise.stream(self._run.seed, piece.step, piece.direction, self._run.parameters[piece.index][0])
        scale = self._scales(self._run.seed, piece.step, piece.direction)
        noise.add_normal_(target, key, piece.offset, factor * scale)

    def kappa(self, num_elements: int) -> float:
        return num_elements
