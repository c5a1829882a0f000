"""The whole-model mechanism: evaluate at perturbed weights, take the slope, update along the same directions.

A direction z is never stored: each chunk of it is made again from (seed, step, direction, parameter name) where it is
needed. Perturbed weights live in a scratch copy of one module's parameters at a time; the weights themselves are not
written while evaluating, and so cannot drift, and an evaluation that raises has nothing to put right.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from localplug import noise
from localplug.contract import Estimate, Groups, Run


@final
class Directions:
    """The random directions of a run: standard normal, one for each (step, number of the direction)."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def values(self, index: int, direction: int) -> Tensor:
        """z for one parameter, as a whole. float32, shaped like the parameter."""
        name, parameter = self._run.parameters[index]
        key = noise.stream(self._run.seed, self._run.step, direction, name)
        return noise.normal(key, 0, parameter.numel(), parameter.device).view(parameter.shape)

    @torch.no_grad()
    def add_(self, target: Tensor, index: int, terms: Sequence[tuple[int, float]], *, decay: float = 0.0) -> Tensor:
        """target <- (1 - decay) target + sum of factor * z over (direction, factor) in terms, chunk by chunk.

        In float32 or better throughout; a half-precision target is then rounded stochastically if `decay` or the terms
        are an update (see `update_`), to nearest here.
        """
        return self._combine(target, index, terms, decay, stochastic=False)

    @torch.no_grad()
    def update_(self, target: Tensor, index: int, terms: Sequence[tuple[int, float]], *, decay: float) -> Tensor:
        """As `add_`, but half-precision results are rounded stochastically: a step below the rounding unit is not lost."""
        return self._combine(target, index, terms, decay, stochastic=True)

    def _combine(
        self, target: Tensor, index: int, terms: Sequence[tuple[int, float]], decay: float, *, stochastic: bool
    ) -> Tensor:
        run = self._run
        name, _ = run.parameters[index]
        if not target.is_contiguous():  # elements are numbered row by row, whatever the strides
            whole = self._combine(target.contiguous(), index, terms, decay, stochastic=stochastic)
            return target.copy_(whole)
        keys = [(noise.stream(run.seed, run.step, direction, name), factor) for direction, factor in terms]
        half = target.dtype in (torch.float16, torch.bfloat16)
        flat, size = target.view(-1), noise.chunk_size(target.device)
        for start in range(0, flat.numel(), size):
            part = flat[start : start + size]
            value = part.float() if half else part
            if decay:
                value.mul_(1 - decay)
            for key, factor in keys:
                # two rounded operations, not one fused: the same bits on every device and for every chunking
                value.add_(noise.normal(key, start, part.numel(), part.device).mul_(factor))
            if half and stochastic:
                dice = noise.stream(run.seed, run.step, -1, name)
                part.copy_(
                    _round_stochastically(value, noise.uniform(dice, start, part.numel(), part.device), part.dtype)
                )
            elif half:
                part.copy_(value)
        return target


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


@final
class Perturbation:
    """Evaluate the model at w + scale * z without writing w.

    Each module's own parameters are swapped for a perturbed scratch copy while that module runs. A parameter that is
    read outside its module's own call (nn.MultiheadAttention reads out_proj's weight, tied heads read an embedding's)
    is found during the first evaluation, and keeps its scratch copy for the whole evaluation from then on.
    """

    def __init__(self, run: Run, directions: Directions) -> None:
        self._run, self._directions = run, directions
        self._index = {parameter: i for i, (_, parameter) in enumerate(run.parameters)}
        self._owners = [
            (module, own)
            for module in run.model.modules()
            if (own := [self._index[p] for p in module._parameters.values() if p is not None and p in self._index])
        ]
        self.read_outside: set[int] = set()
        """Indices of the parameters whose scratch copy lives for a whole evaluation."""
        self._explored = False

    @contextlib.contextmanager
    def __call__(self, direction: int, scale: float) -> Iterator[None]:
        """While this context is open, every forward pass of the model sees w + scale * z of this direction."""
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
        explorer = contextlib.nullcontext() if self._explored else _Explorer(self._index, read_outside)
        try:
            for index in self.read_outside:
                swap(index)
            for module, own in self._owners:
                handles += _hook(module, own, swap, unswap)
            with explorer:
                yield
            self._explored = True
        finally:
            for handle in handles:
                handle.remove()
            for index, (data, _) in originals.items():
                self._run.parameters[index][1].data = data


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
            if any([self._read_outside(i) for i in read]):  # a list, so that every one of them is swapped
                result = function(*args, **kwargs)
        return result


@final
class Projection(Estimate):
    """Directional slopes of the tracked leaves: coefficient j is the sum over leaves of <d loss / d leaf, slope_j>.

    For a leaf that is the loss itself this is (L(w + eps z) - L(w - eps z)) / (2 eps), times whatever scale the trainer
    put on the loss; for a loss built on other leaves it is the chain rule, exact to second order in eps.

    Args:
        values: the leaves' values, one tensor a leaf.
        slopes: slopes[j][k] = d leaf_k / d direction_j.
    """

    def __init__(self, values: list[Tensor], slopes: list[list[Tensor]]) -> None:
        self.values, self.slopes = values, slopes

    def pull_back(self, leaf_gradients: Sequence[Tensor | None]) -> Tensor:
        device = self.slopes[0][0].device
        return torch.stack(
            [
                sum(
                    ((gradient.float() * slope).sum().to(device) for gradient, slope in zip(leaf_gradients, row, strict=True)
                     if gradient is not None),
                    torch.zeros((), device=device),
                )
                for row in self.slopes
            ]
        )  # fmt: skip


def sgd_update(run: Run, directions: Directions, coefficients: Sequence[float], groups: Groups) -> None:
    """w <- (1 - lr * weight_decay) w - lr * (1/q) sum_j c_j z_j, streamed; lr and weight_decay by parameter group."""
    q = len(coefficients)
    for index, (_, parameter) in enumerate(run.parameters):
        group = groups[parameter]
        lr = float(group["lr"])
        terms = [(j, -lr * c / q) for j, c in enumerate(coefficients)]
        directions.update_(parameter.data, index, terms, decay=lr * float(group.get("weight_decay", 0.0)))


def write_gradients(run: Run, directions: Directions, coefficients: Sequence[float]) -> None:
    """p.grad <- (1/q) sum_j c_j z_j for every parameter, for whichever optimizer steps next. One gradient copy of memory."""
    q = len(coefficients)
    for index, (_, parameter) in enumerate(run.parameters):
        gradient = torch.zeros_like(parameter, memory_format=torch.contiguous_format)
        parameter.grad = directions.add_(gradient, index, [(j, c / q) for j, c in enumerate(coefficients)])
