"""Evaluate a model at perturbed weights without writing the weights.

Perturbed weights live in a scratch copy of one module's parameters at a time, and of one tile of a large matrix. The
weights themselves are not written while evaluating, and so cannot drift, and an evaluation that raises has nothing to
put right.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from localplug import kernels, low_rank
from localplug.contract import Estimating, Run
from localplug.directions import Directions
from localplug.parts import Term
from localplug.pending import TERMS
from localplug.prefix import Prefix
from localplug.shards import is_sharded, let_go, local_part
from localplug.stacked import Plan, Stack, stack_problems
from localplug.tiles import TILE, is_tiled, tiled_forward

BACKENDS = ("auto", "scratch", "copy", "low-rank", "stacked", "deferred")
"""How an evaluation sees perturbed weights: see `Perturbation`."""


@final
class Perturbation:
    """Evaluate the model at w + scale * z without writing w.

    "scratch": each module's own parameters are swapped for a perturbed scratch copy while that module runs; a large linear
    or embedding layer is evaluated tile by tile instead (localplug.tiles). A parameter that is read outside its module's
    own call (nn.MultiheadAttention reads out_proj's weight, tied heads read an embedding's) is found during the first
    evaluation, and keeps its scratch copy for the whole evaluation from then on. Small parameters have theirs for the
    whole evaluation, as long as they are no more than a tile together: made many at a time, and without a hook on each of
    their modules.

    "low-rank": the same, but a linear, embedding or convolution layer whose direction has low rank gets its share added
    to its output (localplug.low_rank), and no scratch copy is made.

    "copy": all parameters have their scratch copy for the whole evaluation, at the memory of the weights once more. Under
    torch.compile it is so always: no hook can go into the model then.

    "stacked": evaluations that are known beforehand are made two at a time in one forward pass, "stacked:8" eight at a time
    (localplug.stacked).

    "deferred": as "stacked", and the weights are swept every 8 steps instead of in each, "deferred:K" every K
    (localplug.pending): for directions of low rank in float32, and updates that add them to the weights. The weights
    of every step are the same, bit for bit, for whoever reads them; what an evaluation computes differs by rounding.

    "auto" is "low-rank" where directions have low rank, "copy" under torch.compile, "scratch" otherwise. "low-rank"
    becomes "deferred" for batches of few tokens of a large model, where reading and writing the weights takes the time: up to
    32 elements in the batch (of `input_ids`, or else of the first tensor that the model is called with), and 4 million weights
    in matrices of low rank. It needs an attached model, whose batch is known before it is evaluated, and its own loss.

    Sharded parameters (DTensor) are gathered by fully_shard from storage of its own, so that each worker's shard is
    written, and put back from a copy of it.

    Layers before the first one that an estimate perturbs are computed by its first evaluation alone, where that changes
    nothing, at the memory of their input and output (localplug.prefix); not by "stacked".

    Args:
        run: whose model is evaluated.
        directions: what it is perturbed along.
        backend: see above.

    Raises:
        ValueError: there is no such back-end.
    """

    HELD = TILE  # elements of small parameters whose scratch copies live for a whole evaluation
    SMALL = 1 << 15  # elements of a parameter that counts as small
    FEW = 32  # elements of a batch for which a stacked pass takes less time than its evaluations one by one
    LARGE = 1 << 22  # weights that are worth it: 16 MB, more than stays in a cache from one pass to the next

    def __init__(self, run: Run, directions: Directions, backend: str = "auto") -> None:
        self._run, self.directions = run, directions
        self._backend, self._stack, _ = parsed(backend)
        trained = [(i, run.parameters[i][1]) for i in directions.indices]
        self._index = {parameter: i for i, parameter in trained if not is_sharded(parameter)}
        self._sharded = [i for i, parameter in trained if is_sharded(parameter)]
        self._held: list[int] = []
        room = self.HELD
        for index, parameter in trained:
            if parameter.numel() > self.SMALL or is_sharded(parameter):
                continue
            room -= parameter.numel()
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
        self._plan: Plan | None = None  # of stacked evaluations
        self._large: bool | None = None
        self._prefix: tuple[Prefix, set[int]] | None = None  # of the estimate in work, and what it may perturb

    @property
    def is_whole(self) -> bool:
        """Whether all parameters have their scratch copy for the whole evaluation."""
        return self._run.is_compiled or self._backend == "copy"

    @property
    def chosen(self) -> str:
        """The back-end in force."""
        if self.is_whole:
            return "copy"
        if self._backend in ("scratch", "stacked", "deferred"):
            return self._backend
        if self.pays:
            return "deferred"
        if self._run.goes_round and self.may_stack:
            return f"low-rank, deferred for batches of up to {self.FEW} elements"
        return "low-rank" if self._is_low() else "scratch"

    @property
    def stack(self) -> int:
        """Evaluations that are made in one forward pass, where they are known beforehand, of the batch in work."""
        if self._stack > 1:
            return self._stack
        return 2 if self.pays and (self._plan is None or self._plan.works is not False) else 1

    @property
    def may_stack(self) -> bool:
        """Whether evaluations of some batch may be made in one forward pass."""
        return self._stack > 1 or (self._backend == "auto" and not self.is_whole and self._is_large())

    @property
    def pays(self) -> bool:
        """Whether the batch in work is of the kind for which "auto" is "deferred"."""
        run = self._run
        return run.goes_round and 0 < math.prod(run.shape) <= self.FEW and self._stack == 1 and self.may_stack

    def begin(self) -> None:
        """Before each estimate: decide what depends on the batch."""
        pending = self.directions.pending
        if pending is None or self._backend != "auto":
            return
        pending.is_open = self.pays

    def _is_low(self) -> bool:
        return any(self.directions.factors(i, 0) is not None for i in self.directions.reached(0))

    def _is_large(self) -> bool:
        if self._large is None:
            directions, parameters = self.directions, self._run.parameters
            of_rank = [i for i in directions.reached(0) if directions.factors(i, 0) is not None]
            weights = sum(parameters[i][1].numel() for i in of_rank)
            plain = all(
                parameters[i][1].dtype == torch.float32 and kernels.usable(parameters[i][1].data) for i in of_rank
            )
            self._large = weights >= self.LARGE and plain and not stack_problems(self._run)
        return self._large

    def together(self, probes: Sequence[tuple[int, float]]) -> Stack:
        """Evaluations in one forward pass, along this worker's directions.

        Args:
            probes: (number of the direction, scale) of each.
        """
        if self._plan is None:
            self._plan = Plan(self._run, self.directions, self if self._stack == 1 else None)
        return Stack(self._plan, probes)

    def reusing(self, estimating: Estimating, num_directions: int) -> Estimating:
        """The same evaluations; the layers before all that they perturb are computed in the first one alone.

        Args:
            num_directions: of this worker that they perturb along. One that goes beyond them ends the reuse.
        """
        found = self._prefix_of(num_directions)
        if found is None:
            return (yield from estimating)
        prefix = found[0]
        self._prefix = found
        try:
            around = next(estimating)
            while True:
                # until all is explored, an evaluation has to read every parameter; see `_Explorer`
                with prefix.evaluation(may_skip=self.is_whole or self._explored):
                    leaves = yield around
                around = estimating.send(leaves)
        except StopIteration as stop:
            return stop.value
        finally:
            self._prefix = None
            prefix.drop()
            estimating.close()

    def _prefix_of(self, num_directions: int) -> tuple[Prefix, set[int]] | None:
        directions, run = self.directions, self._run
        if self.stack > 1 or run.is_compiled or self._sharded:
            return None
        moved: set[int] = set()
        for direction in range(run.first_direction, run.first_direction + num_directions):
            some = directions.distribution.reached(run.step, direction)
            moved.update(directions.indices if some is None else some)
            if some is None:
                break
        prefix = Prefix(run.model, {run.parameters[i][1] for i in moved})
        return None if prefix.is_empty else (prefix, moved)

    @contextlib.contextmanager
    def __call__(self, direction: int, scale: float, also: Sequence[Term] = ()) -> Iterator[None]:
        """While this context is open, every forward pass of the model sees w + scale * z of this worker's direction.

        Args:
            also: further terms, of directions numbered over all workers.
        """
        terms = [*also, Term(direction + self._run.first_direction, scale)] if scale else list(also)
        pending = self.directions.pending
        if not terms and (pending is None or not pending.indices()):
            yield
            return
        with self._perturbed(terms):
            yield

    @contextlib.contextmanager
    def _perturbed(self, terms: list[Term]) -> Iterator[None]:
        directions, parameters = self.directions, self._run.parameters
        reached = [(term, set(directions.reached(term.direction, term.step))) for term in terms]
        moved = {i for _, some in reached for i in some}
        behind = set() if directions.pending is None or self.is_whole else set(directions.pending.indices())
        if self._prefix is not None and not moved <= self._prefix[1]:
            self._prefix[0].drop()
        originals: dict[int, tuple[Tensor, int]] = {}  # parameter -> (its own data, how many open modules swapped it)
        swapping: set[int] = set()  # so that the explorer does not take our own reads for the model's

        def swap(index: int) -> None:
            parameter = parameters[index][1]
            if index in originals:
                data, depth = originals[index]
            else:
                swapping.add(index)
                data, depth = parameter.data, 0
                parameter.data = directions.added(data, index, terms)
                swapping.remove(index)
            originals[index] = (data, depth + 1)

        def unswap(index: int) -> None:
            data, depth = originals.pop(index)
            if depth > 1:
                originals[index] = (data, depth - 1)
            else:
                parameters[index][1].data = data

        def read_outside(index: int) -> bool:
            if index in originals or index in swapping:
                return False
            self.read_outside.add(index)
            if index not in moved:
                return False
            swap(index)
            return True

        handles: list[Any] = []
        replaced: list[nn.Module] = []
        whole, vectors = self.is_whole, _Vectors()
        explorer = contextlib.nullcontext() if whole or self._explored else _Explorer(self._index, read_outside)
        stack = contextlib.ExitStack()
        try:
            if self._sharded:
                stack.enter_context(self._shifted_shards(terms, moved))
            small = set(directions.small())  # a trainer may have converted the model since
            quick = [i for i in self._held if i in small and i in moved]
            for index, value in zip(quick, directions.small_added(quick, terms), strict=True):
                parameter = parameters[index][1]
                originals[index] = (parameter.data, 1)
                parameter.data = value
            for index in self._index.values() if whole else [*self._held, *self.read_outside]:
                if index not in originals and index in moved:
                    swap(index)
            for module, everything in () if whole else self._owners:
                own = [i for i in everything if i in moved]
                instead = self._instead(module, [i for i in everything if i in moved or i in behind], reached, vectors)
                if instead is not None:
                    forward, done = instead
                    module.forward = _quietly(module, forward, done, swapping, originals)
                    replaced.append(module)
                    own = [i for i in own if i not in done]
                if own:
                    handles += _hook(module, own, swap, unswap)
            with explorer:
                yield
            self._explored = self._explored or not whole
        finally:
            for handle in handles:
                handle.remove()
            for module in replaced:
                del module.forward
            for index, (data, _) in originals.items():
                parameters[index][1].data = data
            stack.close()

    def _instead(
        self, module: nn.Module, own: list[int], reached: "list[tuple[Term, set[int]]]", vectors: "_Vectors"
    ) -> tuple[Callable[[Tensor], Tensor], list[int]] | None:
        """A forward that needs no scratch copy of the weight, and the parameters that it perturbs by itself."""
        parameter = module._parameters.get("weight")
        index = self._index.get(parameter) if parameter is not None else None
        if parameter is None or index is None or index not in own or not self.read_outside.isdisjoint(own):
            return None
        directions, pending = self.directions, self.directions.pending
        along = [term for term, some in reached if index in some]
        if self._backend not in ("scratch", "copy") and low_rank.is_able(module):
            made = [directions.factors(index, t.direction, t.step) for t in along]
            factors = [f for f in made if f is not None and low_rank.is_low(*f)]
            shift = None
            if len(factors) == len(made):
                shift = pending.shift(index, factors) if pending is not None else low_rank.Shift.along(factors)
            if shift is not None:
                ranks = [(t.factor, a.shape[1]) for t, (a, _) in zip(along, factors, strict=True)]
                weight = parameter.detach() if pending is None else pending.weight(index)
                f = vectors.get((*shift.waiting, *(f for f, rank in ranks for _ in range(rank))), weight.device)
                return low_rank.low_rank_forward(module, weight, shift, f), [index]
        if along and is_tiled(module):
            moved = {i for i in own if any(i in some for _, some in reached)}
            inside = {p: i for p in module._parameters.values() if p is not None and (i := self._index.get(p)) in moved}
            return tiled_forward(module, directions, inside, [term for term, _ in reached]), sorted(moved)
        return None

    @contextlib.contextmanager
    def _shifted_shards(self, terms: list[Term], moved: set[int]) -> Iterator[None]:
        kept: list[tuple[Tensor, Tensor]] = []
        try:
            for index in sorted(moved.intersection(self._sharded)):
                shard = self._run.parameters[index][1].data
                local, _ = local_part(shard)
                kept.append((local, local.clone()))
                self.directions.add_(shard, index, terms)
            let_go(self._run.model)
            yield
        finally:
            for local, value in kept:
                local.copy_(value)
            let_go(self._run.model)


def parsed(backend: str) -> tuple[str, int, int]:
    """(back-end, evaluations in one forward pass, steps in one sweep of the weights) from what a user gives.

    Raises:
        ValueError: there is no such back-end.
    """
    name, _, given = backend.partition(":") if isinstance(backend, str) else (backend, "", "")
    number = int(given) if given.isdigit() else 0
    has_number = backend != name
    if name not in BACKENDS or (has_number and (name not in ("stacked", "deferred") or number < 2)):
        names = ", ".join(map(repr, BACKENDS))
        raise ValueError(
            f"backend must be one of {names}, or 'stacked:K' with K >= 2 evaluations at a time, or 'deferred:K' with K >= 2 "
            f"steps at a time, got {backend!r}"
        )
    stack = number if name == "stacked" and number else 2 if name in ("stacked", "deferred") else 1
    steps = number if name == "deferred" and number else TERMS if name in ("deferred", "auto") else 1
    return name, stack, steps


@final
class _Vectors:
    """Vectors f of the layers in one evaluation: mostly the same one."""

    def __init__(self) -> None:
        self._made: dict[tuple[tuple[float, ...], torch.device], Tensor] = {}

    def get(self, numbers: tuple[float, ...], device: torch.device) -> Tensor:
        key = (numbers, device)
        if key not in self._made:
            self._made[key] = torch.tensor(numbers, dtype=torch.float32, device=device)
        return self._made[key]


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
