"""Evaluate a model at perturbed weights without writing the weights.

Perturbed weights live in a scratch copy of one module's parameters at a time, and of one tile of a large matrix. The
weights themselves are not written while evaluating, and so cannot drift, and an evaluation that raises has nothing to
put right.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from localplug.contract import Run
from localplug.directions import Directions
from localplug.shards import is_sharded, let_go, local_part
from localplug.tiles import TILE, is_tiled, tiled_forward


@final
class Perturbation:
    """Evaluate the model at w + scale * z without writing w.

    Each module's own parameters are swapped for a perturbed scratch copy while that module runs; a large linear or
    embedding layer is evaluated tile by tile instead (localplug.tiles). A parameter that is read outside its module's own
    call (nn.MultiheadAttention reads out_proj's weight, tied heads read an embedding's) is found during the first
    evaluation, and keeps its scratch copy for the whole evaluation from then on.

    Small parameters have their scratch copies for the whole evaluation, as long as they are no more than a tile together: made
    many at a time, and without a hook on each of their modules.

    Under torch.compile no hook can go into the model, and all parameters have their scratch copy for the whole
    evaluation. Sharded parameters (DTensor) are gathered by fully_shard from storage of its own, so that each worker's
    shard is written, and put back from a copy of it.
    """

    HELD = TILE  # elements of small parameters whose scratch copies live for a whole evaluation

    def __init__(self, run: Run, directions: Directions) -> None:
        self._run, self._directions = run, directions
        self._index = {parameter: i for i, (_, parameter) in enumerate(run.parameters) if not is_sharded(parameter)}
        self._sharded = [i for i, (_, parameter) in enumerate(run.parameters) if is_sharded(parameter)]
        self._held: list[int] = []
        room = self.HELD
        for index in directions.small():
            room -= run.parameters[index][1].numel()
            if room >= 0:
                self._held.append(index)
        hooked = set(self._index.values()).difference(self._held)
        self._owners = [
            (module, own)
            for module in run.model.modules()
            if (
                own := [i for p in module._parameters.values() if p is not None and (i := self._index.get(p)) in hooked]
            )
        ]
        # the host also calls the model's forward by itself, and then no hook of the model runs
        top = run.model._parameters.values()
        self.read_outside: set[int] = {i for p in top if p is not None and (i := self._index.get(p)) in hooked}
        """Indices of the parameters whose scratch copy lives for a whole evaluation."""
        self._explored = False

    @contextlib.contextmanager
    def __call__(self, direction: int, scale: float) -> Iterator[None]:
        """While this context is open, every forward pass of the model sees w + scale * z of this worker's direction."""
        direction += self._run.first_direction
        originals: dict[int, tuple[Tensor, int]] = {}  # parameter -> (its own data, how many open modules swapped it)
        swapping: set[int] = set()  # so that the explorer does not take our own reads for the model's

        def swap(index: int) -> None:
            parameter = self._run.parameters[index][1]
            if index in originals:
                data, depth = originals[index]
            else:
                swapping.add(index)
                data, depth = parameter.data, 0
                parameter.data = self._directions.add_(data.clone(), index, [(direction, scale)])
                swapping.remove(index)
            originals[index] = (data, depth + 1)

        def unswap(index: int) -> None:
            data, depth = originals.pop(index)
            if depth > 1:
                originals[index] = (data, depth - 1)
            else:
                self._run.parameters[index][1].data = data

        def read_outside(index: int) -> bool:
            if index in originals or index in swapping:
                return False
            self.read_outside.add(index)
            swap(index)
            return True

        handles: list[Any] = []
        tiled: list[nn.Module] = []
        whole = self._run.is_compiled
        explorer = contextlib.nullcontext() if whole or self._explored else _Explorer(self._index, read_outside)
        stack = contextlib.ExitStack()
        try:
            if self._sharded:
                stack.enter_context(self._shifted_shards(direction, scale))
            quick = [i for i in self._held if self._run.parameters[i][1].dtype == torch.float32]  # converted since?
            for index, value in zip(quick, self._directions.small_added(quick, direction, scale), strict=True):
                parameter = self._run.parameters[index][1]
                originals[index] = (parameter.data, 1)
                parameter.data = value
            for index in self._index.values() if whole else [*self._held, *self.read_outside]:
                if index not in originals:
                    swap(index)
            for module, own in () if whole else self._owners:
                if is_tiled(module) and self.read_outside.isdisjoint(own) and module.weight in self._index:
                    forward = tiled_forward(module, self._directions, self._index, direction, scale)
                    module.forward = _quietly(module, forward, own, swapping, originals)
                    tiled.append(module)
                else:
                    handles += _hook(module, own, swap, unswap)
            with explorer:
                yield
            self._explored = self._explored or not whole
        finally:
            for handle in handles:
                handle.remove()
            for module in tiled:
                del module.forward
            for index, (data, _) in originals.items():
                self._run.parameters[index][1].data = data
            stack.close()

    @contextlib.contextmanager
    def _shifted_shards(self, direction: int, scale: float) -> Iterator[None]:
        kept: list[tuple[Tensor, Tensor]] = []
        try:
            for index in self._sharded:
                shard = self._run.parameters[index][1].data
                local, _ = local_part(shard)
                kept.append((local, local.clone()))
                self._directions.add_(shard, index, [(direction, scale)])
            let_go(self._run.model)
            yield
        finally:
            for local, value in kept:
                local.copy_(value)
            let_go(self._run.model)


def _quietly(
    module: nn.Module,
    forward: Callable[[Tensor], Tensor],
    own: list[int],
    swapping: set[int],
    originals: dict[int, tuple[Tensor, int]],
) -> Callable[[Tensor], Tensor]:
    """A tiled forward whose own reads of its parameters are not taken for reads from outside."""

    def tiled(x: Tensor) -> Tensor:
        if not originals.keys().isdisjoint(own):  # swapped since, as a whole: perturbed already
            return type(module).forward(module, x)
        swapping.update(own)
        try:
            return forward(x)
        finally:
            swapping.difference_update(own)

    return tiled


def _hook(module: nn.Module, own: list[int], swap: Callable[[int], None], unswap: Callable[[int], None]) -> list[Any]:
    entered = [0]

    def before(*_: Any) -> None:
        for index in own:
            swap(index)
        entered[0] += 1

    def after(*_: Any) -> None:
        if entered[0]:  # a hook that always runs, also when an earlier hook of this module failed
            entered[0] -= 1
            for index in own:
                unswap(index)

    return [module.register_forward_pre_hook(before), module.register_forward_hook(after, always_call=True)]


class _Explorer(TorchFunctionMode):
    """Finds reads of a parameter outside its module's call, swaps the parameter on the spot, and repeats the read."""

    def __init__(self, index: dict[nn.Parameter, int], read_outside: Callable[[int], bool]) -> None:
        super().__init__()
        self._index, self._read_outside = index, read_outside

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        if isinstance(result, Tensor | tuple | list) and any(isinstance(x, Tensor) for x in tree_leaves(result)):
            read = [
                self._index[x] for x in tree_leaves((args, kwargs)) if isinstance(x, nn.Parameter) and x in self._index
            ]
            swapped = [self._read_outside(i) for i in read]
            if any(swapped):
                result = function(*args, **kwargs)
        return result
