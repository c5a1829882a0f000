"""Several probes in one forward pass: the batch is evaluated at all of their weights at once.

torch.func.vmap carries the probes as one more dimension through the model as it is. A layer whose directions have low rank
multiplies all probes' inputs by the one weight matrix, W x + A (f_k * B x), so that the weights are read once for all
probes: that is what a forward pass of few tokens spends its time on. The small products hold the columns of every
direction, and f_k is zero for those of the others. Other parameters are made once for each probe.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_flatten, tree_unflatten

from localplug import low_rank
from localplug.contract import Run
from localplug.directions import Directions
from localplug.low_rank import Shift
from localplug.replay import random_state, restore_random_state
from localplug.shards import is_sharded
from localplug.substitution import Reads, substituted

logger = logging.getLogger("localplug")

Singly = Callable[[int, float], contextlib.AbstractContextManager[None]]
"""Gives what one evaluation by itself is made in, for a number of the direction and a scale."""


@final
class Plan:
    """What all stacked evaluations of a run share.

    Args:
        run: whose model is evaluated.
        directions: what it is perturbed along.
        singly: where given, a model that cannot be evaluated so has its evaluations made one after another instead, which the
            first one shows; else its error is raised.
    """

    # elements of a parameter that is replaced for the whole evaluation, together with others of its kind
    HELD = 1 << 15

    def __init__(self, run: Run, directions: Directions, singly: Singly | None = None) -> None:
        self.run, self.directions, self.singly = run, directions, singly
        self.works: bool | None = None
        """Whether the model can be evaluated so; None until an evaluation has shown it."""
        self.modules = list(run.model.modules())
        self.reads = Reads()
        index = {run.parameters[i][1]: i for i in directions.indices}
        self.able = [
            (module, index[weight])
            for module in self.modules
            if low_rank.is_able(module) and isinstance(weight := module.weight, nn.Parameter) and weight in index
        ]


class _Low(NamedTuple):
    """A parameter of low rank: what it is shifted by, and which of the vectors f goes with that."""

    weight: Tensor
    shift: Shift
    place: int


class _Dense(NamedTuple):
    """Parameters that are made together: their values and directions in a row, (d,), or (K, d) of different directions."""

    indices: list[int]
    values: Tensor
    directions: Tensor


@final
class Stack:
    """Evaluates a model at w + s_k z_jk for k = 0 ... K - 1 in one call.

    Args:
        plan: of the run.
        probes: (j_k, s_k): number of the direction on this worker, and scale.
    """

    def __init__(self, plan: Plan, probes: Sequence[tuple[int, float]]) -> None:
        self._plan, self._run, self._directions = plan, plan.run, plan.directions
        self._given = list(probes)
        self._probes = [(j + self._run.first_direction, scale) for j, scale in probes]
        self._stacked: dict[int, tuple[Tensor, Tensor]] = {}

    def evaluate(self, call: Callable[[], Any]) -> Any:
        """What `call` gives at the first probe's weights; all of them are kept for `split`.

        Args:
            call: a forward pass of the model, or whatever ends in tensors that come from some.
        """
        plan = self._plan
        if plan.works is None and plan.singly is not None:
            start = random_state()
            try:
                tree = self._together(call)
            except Exception as error:
                restore_random_state(start)
                plan.works = False
                logger.info(
                    "evaluations one at a time, as torch.func.vmap cannot carry this model: %s",
                    str(error).partition("\n")[0],
                )
            else:
                plan.works = True
                return tree
        if plan.works is False and plan.singly is not None:
            return self._one_by_one(call, plan.singly)
        tree = self._together(call)
        plan.works = True
        return tree

    def _together(self, call: Callable[[], Any]) -> Any:
        low, dense, vectors = self._inputs()
        batched = [d.directions for d in dense if d.directions.dim() > 1]
        found: list[Any] = []

        def one(scale: Tensor, factors: list[Tensor], rows: list[Tensor]) -> list[Tensor]:
            each = iter(rows)
            moved = [d if d.directions.dim() == 1 else d._replace(directions=next(each)) for d in dense]
            # attention by matrix products: the kernels cannot carry one more dimension, and few tokens do not need them
            with self._perturbed(scale, factors, low, moved), sdpa_kernel(SDPBackend.MATH):
                leaves, spec = tree_flatten(call())
            found[:] = [spec, leaves]
            return [leaf for leaf in leaves if isinstance(leaf, Tensor)]

        scales = torch.tensor([s for _, s in self._probes], dtype=torch.float32, device=self._device)
        results = torch.func.vmap(one, randomness="same")(scales, vectors, batched)
        spec, given = found
        return self._first(spec, given, results)

    def _one_by_one(self, call: Callable[[], Any], singly: Singly) -> Any:
        start = random_state()
        outputs = []
        for j, scale in self._given:
            restore_random_state(start)
            with singly(j, scale):
                outputs.append(tree_flatten(call()))
        leaves, spec = outputs[0]
        tensors = [[x for x in each if isinstance(x, Tensor)] for each, _ in outputs]
        return self._first(spec, leaves, [torch.stack(same) for same in zip(*tensors, strict=True)])

    def _first(self, spec: Any, leaves: Sequence[Any], results: Sequence[Tensor]) -> Any:
        """The output with the first probe's values, and all of them remembered."""
        stacked, whole = iter(results), []
        for leaf in leaves:
            if isinstance(leaf, Tensor):
                values = next(stacked)
                leaf = values[0]  # noqa: PLW2901
                self._stacked[id(leaf)] = (leaf, values)  # held, so that the id stays its own
            whole.append(leaf)
        return tree_unflatten(whole, spec)

    def split(self, leaves: Sequence[Tensor]) -> list[list[Tensor]]:
        """For each probe the values that it gave to some tensors of what `evaluate` returned.

        Raises:
            KeyError: a tensor is not one of those.
        """
        rows = [self._stacked[id(leaf)][1] for leaf in leaves]
        self._stacked = {}
        return [[row[k] for row in rows] for k in range(len(self._probes))]

    @property
    def _device(self) -> torch.device:
        return self._run.parameters[0][1].device

    def _inputs(self) -> tuple[dict[int, _Low], list[_Dense], list[Tensor]]:
        """Parameters of low rank, the others, and the vectors f, a row for each probe."""
        directions, pending = self._directions, self._directions.pending
        numbers = list(dict.fromkeys(j for j, _ in self._probes))
        reached = {i for j in numbers for i in directions.reached(j)}
        behind = set() if pending is None else {i for _, i in self._plan.able}.intersection(pending.indices())
        low: dict[int, _Low] = {}
        dense: list[int] = []
        places: dict[Any, int] = {}
        vectors: list[Tensor] = []
        for index in sorted(reached | behind):
            made = [directions.factors(index, j) for j in numbers] if index in reached else []
            factors = [f for f in made if f is not None and low_rank.is_low(*f)]
            if len(factors) < len(made):
                dense.append(index)
                continue
            shift = None if pending is None else pending.shift(index, factors)
            shift = Shift.along(factors) if shift is None else shift
            ranks = tuple(a.shape[1] for a, _ in factors)
            place = places.setdefault((shift.waiting, ranks), len(vectors))
            if place == len(vectors):
                vectors.append(self._factors(shift.waiting, numbers, ranks))
            weight = self._run.parameters[index][1].detach() if pending is None else pending.weight(index)
            low[index] = _Low(weight, shift, place)
        return low, self._grouped(dense, numbers), vectors

    def _factors(self, waiting: tuple[float, ...], numbers: list[int], ranks: tuple[int, ...]) -> Tensor:
        """f of each probe, (K, R): zero for the columns of other directions than its own."""
        rows = [
            [
                *waiting,
                *(scale * (j == number) for number, rank in zip(numbers, ranks, strict=False) for _ in range(rank)),
            ]
            for j, scale in self._probes
        ]
        return torch.tensor(rows, dtype=torch.float32, device=self._device)

    def _grouped(self, indices: list[int], numbers: list[int]) -> list[_Dense]:
        groups: dict[Any, list[int]] = {}
        for index in indices:
            parameter = self._run.parameters[index][1]
            is_small = parameter.numel() <= Plan.HELD
            groups.setdefault((parameter.dtype, parameter.device) if is_small else index, []).append(index)
        made = []
        for group in groups.values():
            parameters = [self._run.parameters[i][1] for i in group]
            values = torch.cat([p.detach().reshape(-1) for p in parameters])
            along = [torch.cat([self._directions.values(i, j).view(-1) for i in group]) for j in numbers]
            if len(along) > 1:  # one row for each probe
                made.append(_Dense(group, values, torch.stack([along[numbers.index(j)] for j, _ in self._probes])))
            else:
                made.append(_Dense(group, values, along[0]))
        return made

    @contextlib.contextmanager
    def _perturbed(
        self, scale: Tensor, factors: list[Tensor], low: dict[int, _Low], dense: list[_Dense]
    ) -> Iterator[None]:
        parameters = self._run.parameters

        def product(parameter: nn.Parameter, known: _Low) -> Callable[[], Tensor]:
            def make() -> Tensor:
                shift = known.shift
                z = (shift.rows.T * factors[known.place]) @ shift.columns
                value = shift.keep * known.weight.float() + z.view(parameter.shape)
                return value.to(parameter.dtype)

            return make

        def sum_of(group: _Dense) -> Tensor:
            return (group.values.float() + scale * group.directions).to(group.values.dtype)

        def alone(group: _Dense) -> Callable[[], Tensor]:
            return lambda: sum_of(group).view(parameters[group.indices[0]][1].shape)

        held: dict[nn.Parameter, Tensor] = {}
        instead = {parameters[i][1]: product(parameters[i][1], known) for i, known in low.items()}
        for group in dense:
            some = [parameters[i][1] for i in group.indices]
            if some[0].numel() > Plan.HELD:
                instead[some[0]] = alone(group)
                continue
            pieces = sum_of(group).split([p.numel() for p in some])
            held.update((p, piece.view(p.shape)) for p, piece in zip(some, pieces, strict=True))
        able = [(m, low[i]) for m, i in self._plan.able if i in low and "forward" not in m.__dict__]
        try:
            with substituted(
                self._run.model, instead, [m for m, _ in able], self._plan.reads, held, self._plan.modules
            ):
                for module, known in able:
                    module.__dict__["forward"] = low_rank.low_rank_forward(
                        module, known.weight, known.shift, factors[known.place], is_stacked=True
                    )
                yield
        finally:
            for module, _ in able:
                module.__dict__.pop("forward", None)


def stack_problems(run: Run) -> list[str]:
    """Why this model cannot be evaluated so."""
    found = []
    if run.is_compiled:
        found.append("back-end 'stacked' goes through the model's modules one by one; leave torch.compile out")
    if any(is_sharded(p) for _, p in run.parameters):
        found.append("back-end 'stacked' needs whole parameters, and these are sharded; use another back-end")
    if any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats for m in run.model.modules()):
        found.append("back-end 'stacked' cannot advance batch norm's running statistics; use another back-end")
    return found
