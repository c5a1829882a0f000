"""Updates of low rank that a weight has not taken in yet: W + sum_k a_k b_k^T, W in memory and the rest as factors.

A step then costs a few numbers for each matrix, and the terms of K steps are added in one sweep over the weights. They are the
same, bit for bit, as if each step had swept them: every product and every sum is rounded, in the order of the steps,
whenever the sweep comes. Layers that can (localplug.low_rank) compute with the factors in the meantime.

Nobody else needs to know. While terms wait, the parameter is of a class whose every read in torch adds them first: an
evaluation, a state dict, a copy, a norm. What is not seen is memory that was shared with the parameter before (the tensors of
an earlier state_dict(), .data, NumPy views): it changes with the sweep, after at most K steps or when the training ends.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from localplug import kernels
from localplug.contract import Run
from localplug.interrupts import held
from localplug.low_rank import EXACT, Shift, is_low, scaled_rows

TERMS = 8
"""Products that wait at most, by default: their sweep costs twice that of one, their factors some percent of the weights."""


@final
class Pending:
    """The updates that wait, of all matrices of a run.

    Args:
        run: whose parameters they are.
        num_terms: K, products of two vectors that wait at most for each matrix, >= 1.
    """

    def __init__(self, run: Run, num_terms: int = TERMS) -> None:
        self._run, self.num_terms = run, num_terms
        self.is_open = True
        """Whether updates may wait now; those that wait already do so in any case."""
        self._waiting: dict[int, _Waiting] = {}
        self._alone: dict[int, bool] = {}

    def take(self, index: int, factors: Sequence[tuple[Tensor, Tensor, float]], decay: float) -> bool:
        """Let w <- (1 - decay) w + sum of factor * A B^T wait; False where it cannot, and nothing was done.

        Args:
            factors: (A, B, factor) of each term.
        """
        if (
            not self.is_open
            or not self._can(index)
            or any(a.shape[1] > EXACT or not is_low(a, b) for a, b, _ in factors)
        ):
            return False
        waiting = self._waiting.get(index)
        if waiting is None:
            waiting = self._waiting[index] = _Waiting(self._run.parameters[index][1], self.num_terms)
        waiting.begin()
        keep = 1 - decay
        if waiting.adopt(factors, keep):
            return True
        for a, b, factor in factors:
            rows = scaled_rows(a, factor)
            for k in range(len(rows)):
                waiting.add(rows[k], b[:, k], keep)
                keep = 1.0
        return True

    def indices(self) -> list[int]:
        """Numbers of the parameters for which something waits."""
        return [index for index, waiting in self._waiting.items() if waiting.num]

    def weight(self, index: int) -> Tensor:
        """What is in memory of a parameter: without what waits for it."""
        waiting = self._waiting.get(index)
        if waiting is None or not waiting.num:
            return self._run.parameters[index][1].detach()
        return waiting.weight

    def shift(self, index: int, factors: Sequence[tuple[Tensor, Tensor]]) -> Shift | None:
        """What waits for a parameter, and behind it directions that it is perturbed along; None if there is neither.

        Args:
            factors: (A, B) of each direction.

        Returns: good until the next call, or the next update, for this parameter.
        """
        waiting = self._waiting.get(index)
        if waiting is None or (not waiting.num and not self.is_open):
            return Shift.along(factors) if factors else None
        return waiting.shift(factors) if waiting.num or factors else None

    def fold(self) -> None:
        """Add what waits to the weights."""
        for waiting in self._waiting.values():
            waiting.fold()

    def _can(self, index: int) -> bool:
        """Whether a parameter is a plain float32 matrix that shares its memory with no other."""
        parameter = self._run.parameters[index][1]
        if type(parameter) is _Behind:
            return True
        if type(parameter) is not nn.Parameter or parameter.dtype != torch.float32 or not parameter.is_contiguous():
            return False
        alone = self._alone.get(index)
        if alone is None:  # a tie by name is one parameter; this is one by memory, whose other side would not know
            place = parameter.untyped_storage().data_ptr()
            model = self._run.model
            alone = self._alone[index] = not any(
                other is not parameter and type(other) is not _Behind and not _is_apart(other, place)
                for other in (*model.parameters(), *model.buffers())
            )
        return alone


def _is_apart(tensor: Tensor, place: int) -> bool:
    try:
        return tensor.untyped_storage().data_ptr() != place
    except (RuntimeError, NotImplementedError):  # it has no memory of its own
        return True


@final
class _Waiting:
    """What waits for one parameter."""

    def __init__(self, parameter: nn.Parameter, capacity: int) -> None:
        self._parameter, self._capacity = parameter, capacity
        self._rows, self._columns = self._room(capacity)
        self._keeps: list[float] = []  # by what the weight and all before is multiplied first
        self._lock = threading.Lock()
        self._handed: Shift | None = None
        self._placed: list[tuple[Tensor, Tensor]] = []  # directions that lie behind what waits
        self.weight = parameter.detach()

    @property
    def num(self) -> int:
        """Products that wait."""
        return len(self._keeps)

    def _room(self, num: int) -> tuple[Tensor, Tensor]:
        m = self._parameter.shape[0]
        shapes = ((num, m), (num, self._parameter.numel() // m))
        return tuple(torch.empty(shape, device=self._parameter.device) for shape in shapes)  # type: ignore[return-value]

    def begin(self) -> None:
        """Before the first one: from now on, whoever reads the parameter has them added."""
        if not self._keeps:
            self.weight = self._parameter.detach()

    def add(self, row: Tensor, column: Tensor, keep: float) -> None:
        k = len(self._keeps)
        self._rows[k].copy_(row)
        self._columns[k].copy_(column)
        self._placed = []
        self._keeps.append(keep)
        self._grown(k)

    def adopt(self, factors: Sequence[tuple[Tensor, Tensor, float]], keep: float) -> bool:
        """Add directions that the last evaluation has put behind what waits; False where they are others."""
        num, ranks = len(self._keeps), [a.shape[1] for a, _, _ in factors]
        placed = self._placed
        if len(placed) != len(factors) or num + sum(ranks) > self._capacity:
            return False
        if any(a is not given or b is not other for (a, b, _), (given, other) in zip(factors, placed, strict=True)):
            return False
        at = num
        for rank, (_, _, factor) in zip(ranks, factors, strict=True):
            self._rows[at : at + rank].mul_(factor)
            at += rank
        self._placed = []
        self._keeps += [keep, *[1.0] * (at - num - 1)]
        self._grown(num)
        return True

    def _grown(self, before: int) -> None:
        if not before:
            self._parameter.__dict__[_WAITING] = self
            self._parameter.__class__ = _Behind
        if len(self._keeps) == self._capacity:
            self.fold()

    def shift(self, factors: Sequence[tuple[Tensor, Tensor]]) -> Shift:
        num = len(self._keeps)
        total = num + sum(a.shape[1] for a, _ in factors)
        if total > len(self._rows):
            rows, columns = self._room(total)
            rows[:num], columns[:num] = self._rows[:num], self._columns[:num]
            self._rows, self._columns = rows, columns
        at = num
        for a, b in factors:
            self._rows[at : at + a.shape[1]].copy_(a.T)
            self._columns[at : at + a.shape[1]].copy_(b.T)
            at += a.shape[1]
        self._placed = list(factors)
        left, factor = [], 1.0
        for keep in reversed(self._keeps):
            left.append(factor)
            factor *= keep
        self._handed = Shift(self._rows[:total], self._columns[:total], tuple(reversed(left)), keep=factor)
        return self._handed

    def fold(self) -> None:
        with self._lock, held(), torch.no_grad():
            num = len(self._keeps)
            if not num:
                return  # another thread was faster
            add_products_(self.weight, self._rows[:num], self._columns[:num], self._keeps)
            self._keeps, self._placed = [], []
            if self._handed is not None:  # an evaluation in work, one layer of which has read the weight as it is
                self._handed.rows[:num].zero_()
                self._handed.keep = 1.0
                self._handed = None
            self._parameter.__class__ = nn.Parameter
            self._parameter.__dict__.pop(_WAITING, None)


def add_products_(weight: Tensor, rows: Tensor, columns: Tensor, keeps: Sequence[float]) -> None:
    """weight <- weight * keeps[k] + rows[k] columns[k]^T for each k in turn, with the roundings of one sweep each."""
    if kernels.usable(weight):
        kernels.add_outers_(weight.view(-1), rows, columns, torch.tensor(keeps, dtype=torch.float32))
        return
    matrix = weight.view(rows.shape[1], columns.shape[1])
    for row, column, keep in zip(rows, columns, keeps, strict=True):
        if keep != 1:
            matrix.mul_(keep)
        matrix.add_(row[:, None] * column[None])


_WAITING = "_localplug_waiting"


class _Behind(nn.Parameter):
    """A parameter for which updates wait. Whatever torch does with it, but to ask for its form, adds them first."""

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function in _OF_FORM:
            with torch._C.DisableTorchFunctionSubclass():
                return function(*args, **(kwargs or {}))
        for given in (*args, *(kwargs or {}).values()):
            _bring_up(given)
        return function(*args, **(kwargs or {}))

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        _bring_up(self)
        return self.__deepcopy__(memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        _bring_up(self)
        return self.__reduce_ex__(protocol)


def _bring_up(given: Any) -> None:
    if isinstance(given, _Behind):
        if (waiting := given.__dict__.get(_WAITING)) is not None:
            waiting.fold()
        given.__class__ = nn.Parameter  # type: ignore[assignment]
    elif isinstance(given, list | tuple):
        for each in given:
            _bring_up(each)
    elif isinstance(given, dict):
        for each in given.values():
            _bring_up(each)


# In a loop these are asked of every parameter in every step, and none of them depends on the values.
_ASKED = """shape dtype device layout ndim requires_grad is_leaf grad grad_fn is_cuda is_meta is_sparse is_quantized itemsize
    nbytes"""
_CALLED = """size dim numel nelement element_size stride is_contiguous is_floating_point is_complex requires_grad_"""
_OF_FORM: frozenset[Any] = frozenset(
    [
        *(getattr(Tensor, name).__get__ for name in _ASKED.split()),
        *(getattr(Tensor, name).__set__ for name in ("grad", "requires_grad")),
        *(getattr(Tensor, name) for name in _CALLED.split()),
        *(torch.is_floating_point, torch.is_complex, torch.numel),
    ]
)
