"""Evaluate a model at perturbed weights without writing the weights.

Perturbed weights live in a scratch copy of one module's parameters at a time, and of one tile of a large matrix. The
weights themselves are not written while evaluating, and so cannot drift, and an evaluation that raises has nothing to
put right.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, final

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from localplug import low_rank
from localplug.contract import Estimating, Run
from localplug.directions import Directions
from localplug.parts import Term
from localplug.prefix import Prefix
from localplug.shards import is_sharded, let_go, local_part
from localplug.stacked import Stack
from localplug.substitution import Reads
from localplug.tiles import TILE, is_tiled, tiled_forward

BACKENDS = ("auto", "scratch", "copy", "low-rank", "stacked")
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

    "auto" is "low-rank" where directions have low rank, "copy" under torch.compile, "scratch" otherwise.

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

    def __init__(self, run: Run, directions: Directions, backend: str = "auto") -> None:
        self._run, self.directions = run, directions
        self._backend, self.stack = parsed(backend)
        """Evaluations that are made in one forward pass, where they are known beforehand."""
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
        self._reads = Reads()  # of stacked evaluations
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
        if self._backend in ("scratch", "stacked"):
            return self._backend
        is_low = any(self.directions.factors(i, 0) is not None for i in self.directions.reached(0))
        return "low-rank" if is_low else "scratch"

    def together(self, probes: Sequence[tuple[int, float]]) -> Stack:
        """Evaluations in one forward pass, along this worker's directions.

        Args:
            probes: (number of the direction, scale) of each.
        """
        numbered = [(j + self._run.first_direction, scale) for j, scale in probes]
        return Stack(self._run, self.directions, numbered, self._reads)

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
        if not terms:
            yield
            return
        with self._perturbed(terms):
            yield

    @contextlib.contextmanager
    def _perturbed(self, terms: list[Term]) -> Iterator[None]:
        directions, parameters = self.directions, self._run.parameters
        moved = {i for term in terms for i in directions.reached(term.direction, term.step)}
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
        whole = self.is_whole
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
                instead = self._instead(module, own, terms)
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
        self, module: nn.Module, own: list[int], terms: list[Term]
    ) -> tuple[Callable[[Tensor], Tensor], list[int]] | None:
        """A forward that needs no scratch copy of the weight, and the parameters that it perturbs by itself."""
        weight = module._parameters.get("weight")
        index = self._index.get(weight) if weight is not None else None
        if index is None or index not in own or not self.read_outside.isdisjoint(own):
            return None
        if self._backend in ("auto", "low-rank", "stacked") and low_rank.is_able(module):
            factors = [(self.directions.factors(index, t.direction, t.step), t.factor) for t in terms]
            if all(f is not None and low_rank.is_low(*f) for f, _ in factors):
                return low_rank.low_rank_forward(module, [(*f, scale) for f, scale in factors if f is not None]), [
                    index
                ]
        if is_tiled(module):
            inside = {p: i for p in module._parameters.values() if p is not None and (i := self._index.get(p)) in own}
            return tiled_forward(module, self.directions, inside, terms), own
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


def parsed(backend: str) -> tuple[str, int]:
    """(back-end, evaluations in one forward pass) from what a user gives.

    Raises:
        ValueError: there is no such back-end.
    """
    name, _, number = backend.partition(":") if isinstance(backend, str) else (backend, "", "")
    stack = int(number) if number.isdigit() else 2 if backend == "stacked" else 1
    if name not in BACKENDS or (backend != name and (name != "stacked" or stack < 2)):
        names = ", ".join(map(repr, BACKENDS))
        raise ValueError(
            f"backend must be one of {names}, or 'stacked:K' with K >= 2 evaluations at a time, got {backend!r}"
        )
    return name, stack


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
