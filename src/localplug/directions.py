"""The random directions of a run, made chunk by chunk wherever they are added to something, and never stored."""

from collections.abc import Callable, Sequence
from typing import final

import torch
from torch import Tensor

from localplug import kernels, noise
from localplug.contract import Run
from localplug.distributions import Gaussian
from localplug.parts import Distribution, Piece, Term
from localplug.pending import Pending
from localplug.rounding import round_
from localplug.selection import Selection
from localplug.shards import is_sharded, local_part


@final
class Directions:
    """The random directions of a run, one for each (step, number of the direction).

    Args:
        run: whose parameters they move.
        distribution: standard normal by default.
        selection: which parameters and elements they move; by default all.
    """

    def __init__(self, run: Run, distribution: Distribution | None = None, selection: Selection | None = None) -> None:
        self._run = run
        self.distribution = distribution or Gaussian()
        self.selection = selection or Selection()
        self.selection.setup(run)
        self.indices: list[int] = self.selection.indices
        """Numbers of the parameters that are trained."""
        self.distribution.setup(run, self.indices)
        self.pending: Pending | None = None
        """Where updates of low rank may wait, if there is such a place."""
        simple = isinstance(self.distribution, Gaussian) and not self.selection.has_masks
        self._small = _SmallParameters(run, self.indices if simple else ())

    @property
    def num_elements(self) -> int:
        """d: elements that are trained."""
        return self.selection.num_elements()

    def reached(self, direction: int = 0, step: int | None = None) -> Sequence[int]:
        """Numbers of the parameters that a direction moves, in order."""
        some = self.distribution.reached(self._run.step if step is None else step, direction)
        if some is None:
            return self.indices
        moved = set(some)
        return [i for i in self.indices if i in moved]

    def factors(self, index: int, direction: int, step: int | None = None) -> tuple[Tensor, Tensor] | None:
        """(A, B) with z = A B^T, where that is all of z: shapes (m, r) and (n, r); see localplug.Distribution."""
        if self.selection.has_masks or is_sharded(self._run.parameters[index][1]):
            return None
        return self.distribution.factors(index, self._run.step if step is None else step, direction)

    def update_later(self, index: int, terms: Sequence[Term], *, decay: float) -> bool:
        """Let `update_` of a parameter wait, with the same bits in the end; False where it cannot. See localplug.pending."""
        if self.pending is None or not self.pending.is_open:
            return False
        factors = []
        for term in terms:
            made = self.factors(index, term.direction, term.step)
            if made is None:
                return False
            factors.append((*made, term.factor))
        return self.pending.take(index, factors, decay)

    @torch.no_grad()
    def values(self, index: int, direction: int, step: int | None = None) -> Tensor:
        """z of one parameter, as a whole. float32, shaped like the parameter."""
        _, parameter = self._run.parameters[index]
        z = torch.zeros(parameter.shape, dtype=torch.float32, device=parameter.device)
        return self.add_(z, index, [Term(direction, 1.0, step)], weights=parameter.data)

    @torch.no_grad()
    def add_(
        self, target: Tensor, index: int, terms: Sequence[Term], *, offset: int = 0, weights: Tensor | None = None
    ) -> Tensor:
        """target <- target + sum of factor * z over the terms, chunk by chunk, in float32 or better.

        Args:
            target: elements offset ... offset + target.numel() - 1 of something shaped like parameter `index`, of a
                DTensor those that this worker holds; of half precision it is rounded to nearest in the end.
            weights: the unperturbed weights there, shaped like target, if it holds something else: what is selected may
                depend on them.
        """
        return self._walk(target, target, index, self._adding(index, terms, weights, offset), offset, stochastic=False)

    @torch.no_grad()
    def added(self, values: Tensor, index: int, terms: Sequence[Term], *, offset: int = 0) -> Tensor:
        """values + the same sum, in a new tensor; `values` are unperturbed weights as `add_` takes them."""
        if is_sharded(values) or not values.is_contiguous():
            return self.add_(values.clone(memory_format=torch.contiguous_format), index, terms, offset=offset)
        out = torch.empty_like(values)
        if self._is_whole(values, index, terms):
            factor = terms[0].factor
            self.distribution.add_to_(out.view(-1), values.view(-1), self._piece(index, terms[0], offset), factor)
            return out
        return self._walk(values, out, index, self._adding(index, terms, None, offset), offset, stochastic=False)

    def small(self) -> list[int]:
        """Indices of the small parameters that are float32 now, which `small_added` and `update_small_` treat many at a
        time. A trainer may convert the model between two calls."""
        return [i for i in self.indices if i in self._small and self._run.parameters[i][1].dtype == torch.float32]

    @torch.no_grad()
    def small_added(self, indices: Sequence[int], terms: Sequence[Term]) -> list[Tensor]:
        """w + the same sum, of some of the small parameters, in new tensors; the same bits as of `add_`."""
        values = [self._run.parameters[i][1].data for i in indices]
        if not values:
            return []
        for term in terms:
            noise_of_each = [self._small.normal(i, term.direction, term.step) for i in indices]
            values = list(torch._foreach_add(values, torch._foreach_mul(noise_of_each, term.factor)))
        return values

    @torch.no_grad()
    def update_small_(self, indices: Sequence[int], terms: Sequence[Term], *, decay: float) -> None:
        """`update_` of some of the small parameters; the same bits."""
        values = [self._run.parameters[i][1].data for i in indices]
        if decay:
            torch._foreach_mul_(values, 1 - decay)
        for term in terms:
            noise_of_each = [self._small.normal(i, term.direction, term.step) for i in indices]
            torch._foreach_add_(values, torch._foreach_mul(noise_of_each, term.factor))

    def update_(self, target: Tensor, index: int, terms: Sequence[Term], *, decay: float) -> Tensor:
        """target <- (1 - decay) target + the same sum. Half precision is rounded stochastically: a step below the rounding
        unit is not lost, but taken with the probability that keeps the mean."""
        if not decay and self._is_whole(target, index, terms):
            self.distribution.add_(target.view(-1), self._piece(index, terms[0], 0), terms[0].factor)
            return target
        add = self._adding(index, terms, None, 0)

        def rule(value: Tensor, offset: int) -> Tensor:
            if decay:
                value = value.mul_(1 - decay)
            return add(value, offset)

        return self.rewrite_(target, index, rule)

    @torch.no_grad()
    def rewrite_(self, target: Tensor, index: int, rule: Callable[[Tensor, int], Tensor]) -> Tensor:
        """target <- rule(target), chunk by chunk; half precision is rounded stochastically.

        What is not selected stays as it is, whatever the rule makes of it.

        Args:
            target: the weights of parameter `index`, or of a DTensor what this worker holds.
            rule: gets a chunk as one-dimensional float32 (or float64), which it may write, and the number of its first
                element; gives the new chunk.
        """
        if not self.selection.has_masks:
            return self._walk(target, target, index, rule, 0, stochastic=True)

        def masked(value: Tensor, offset: int) -> Tensor:
            mask = self.selection.mask(index, value, offset, self._run.step)
            return rule(value, offset) if mask is None else torch.where(mask, rule(value.clone(), offset), value)

        return self._walk(target, target, index, masked, 0, stochastic=True)

    @torch.no_grad()
    def summed(self, index: int, terms: Sequence[Term], offset: int, weights: Tensor) -> Tensor:
        """Sum of factor * z over the terms, for a `rule` of `rewrite_`.

        Args:
            weights: the unperturbed chunk, one-dimensional; the sum is shaped like it.
        """
        total = torch.zeros_like(weights)
        for term in terms:
            self.distribution.add_(total, self._piece(index, term, offset), term.factor)
        return total

    def _is_whole(self, values: Tensor, index: int, terms: Sequence[Term]) -> bool:
        """Whether one call can do all of a parameter: chunks would only cost calls, as nothing is read twice."""
        return (
            len(terms) == 1
            and self.distribution.streams
            and not is_sharded(values)
            and kernels.usable(values)
            and not self.selection.has_masks
            and index not in self._small
        )

    def _piece(self, index: int, term: Term, offset: int) -> Piece:
        return Piece(index, offset, self._run.step if term.step is None else term.step, term.direction)

    def _adding(
        self, index: int, terms: Sequence[Term], weights: Tensor | None, first: int
    ) -> Callable[[Tensor, int], Tensor]:
        """The rule value -> value + sum of factor * z; of weights that may hold something else than value."""
        if index in self._small:

            def small(value: Tensor, offset: int) -> Tensor:
                for term in terms:
                    z = self._small.normal(index, term.direction, term.step).reshape(-1)
                    value.add_(z[offset : offset + value.numel()] * term.factor)
                return value

            return small

        def add(value: Tensor, offset: int) -> Tensor:
            for term in terms:
                self.distribution.add_(value, self._piece(index, term, offset), term.factor)
            return value

        if not self.selection.has_masks:
            return add

        def masked(value: Tensor, offset: int) -> Tensor:
            clean = value if weights is None else weights.reshape(-1)[offset - first : offset - first + value.numel()]
            mask = self.selection.mask(index, clean, offset, self._run.step)
            return add(value, offset) if mask is None else torch.where(mask, add(value.clone(), offset), value)

        return masked

    def _walk(
        self,
        source: Tensor,
        target: Tensor,
        index: int,
        rule: Callable[[Tensor, int], Tensor],
        offset: int,
        *,
        stochastic: bool,
    ) -> Tensor:
        """target <- rule(source), chunk by chunk in float32 or better."""
        if is_sharded(target):
            local, first = local_part(target)
            self._walk(local, local, index, rule, offset + first, stochastic=stochastic)
            return target
        if not target.is_contiguous():  # elements are numbered row by row, whatever the strides
            whole = target.contiguous()
            return target.copy_(self._walk(whole, whole, index, rule, offset, stochastic=stochastic))
        half = target.dtype in (torch.float16, torch.bfloat16)
        dice = noise.stream(self._run.seed, self._run.step, -1, self._run.parameters[index][0])
        before, after, size = source.view(-1), target.view(-1), noise.chunk_size(target.device)
        for start in range(0, after.numel(), size):
            old, new = before[start : start + size], after[start : start + size]
            if half:
                value = rule(old.float(), offset + start)
                if stochastic:
                    round_(new, value, dice, offset + start)
                else:
                    new.copy_(value)
                continue
            if source is not target:
                new.copy_(old)
            value = rule(new, offset + start)
            if value is not new:
                new.copy_(value)
        return target


@final
class _SmallParameters:
    """The noise of small parameters, made for many of them at once: each would cost more to ask for than to make.

    They stand in blocks, in the order of registration, which is roughly that of use. The noise of a few blocks is kept.
    """

    SMALL = 1 << 15  # elements of a parameter
    BLOCK = 1 << 17  # elements of a block: half a megabyte
    KEPT = 8  # blocks

    def __init__(self, run: Run, indices: Sequence[int]) -> None:
        self._run = run
        self._blocks: list[list[int]] = []
        self._place: dict[int, tuple[int, int]] = {}  # index -> (block, position in it)
        room, device = 0, None
        for index in indices:
            parameter = run.parameters[index][1]
            size = parameter.numel()
            if size > self.SMALL or is_sharded(parameter):
                continue
            if size > room or parameter.device != device:
                self._blocks.append([])
                room, device = self.BLOCK, parameter.device
            self._place[index] = (len(self._blocks) - 1, len(self._blocks[-1]))
            self._blocks[-1].append(index)
            room -= size
        self._made: dict[tuple[int, int, int, int], list[Tensor]] = {}  # (seed, step, direction, block), oldest first

    def __contains__(self, index: int) -> bool:
        return index in self._place

    def normal(self, index: int, direction: int, step: int | None) -> Tensor:
        """The noise of one parameter, float32, shaped like it."""
        run = self._run
        step = run.step if step is None else step
        block, position = self._place[index]
        made = self._made.pop((run.seed, step, direction, block), None)
        if made is None:
            inside = [run.parameters[i] for i in self._blocks[block]]
            keys = [noise.stream(run.seed, step, direction, name) for name, _ in inside]
            flat = noise.normals(keys, [p.numel() for _, p in inside], inside[0][1].device)
            made = [z.view(p.shape).to(p.device) for z, (_, p) in zip(flat, inside, strict=True)]
        self._made[run.seed, step, direction, block] = made
        while len(self._made) > self.KEPT:
            del self._made[next(iter(self._made))]
        return made[position]
