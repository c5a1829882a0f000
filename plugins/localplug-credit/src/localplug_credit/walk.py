"""From a result back to all that it was made from: the relevance pass over a tape, and gradients through a loss at its top."""

import heapq
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from localplug_credit import products, sums  # noqa: F401 (they fill the table)
from localplug_credit import rules as table
from localplug_credit.rules import Rules
from localplug_credit.tape import Step, Value, functional

_PREDICTIONS = """
_log_softmax mse_loss smooth_l1_loss huber_loss soft_margin_loss binary_cross_entropy binary_cross_entropy_with_logits
"""
_LOSSES = """
nll_loss_forward nll_loss2d_forward nll_loss_nd sum mean div mul neg add sub rsub pow square abs exp log log2 sqrt where xlogy
masked_fill clamp_min view _unsafe_view reshape slice select squeeze unsqueeze expand transpose t permute gather index _to_copy
clone alias detach
"""
PREDICTIONS = frozenset(_PREDICTIONS.split())
"""Losses, or parts of them, whose first argument is what the model predicts."""
LOSSES = frozenset(_LOSSES.split())
"""What a loss is made of below its scalar; the first other operation is the model's."""


def walk(seeds: Mapping[Value, Tensor], rules: Rules, watched: Sequence[Value] = ()) -> dict[Value, Tensor]:
    """The relevance of every leaf (followed input, parameter) and of the watched Values.

    Args:
        seeds: relevance of results, shaped like them.
        watched: Values whose relevance is wanted although they are no leaves.

    Raises:
        Unsupported: an operation on the way has no rule.
    """
    arrived: dict[Value, Tensor] = {}
    found: dict[Value, Tensor] = {}
    wanted = set(watched)
    for value, r in seeds.items():
        _add(arrived, value, r.to(torch.promote_types(r.dtype, torch.float32)))
    for values in _backwards(arrived):
        R = {value: arrived.pop(value) for value in values}
        for value, r in R.items():
            if value.is_leaf or value in wanted:
                found[value] = r
        step = values[0].step
        if step is None:
            continue
        results: list[Tensor | None] = [None] * (max(v.place for v in values) + 1)
        for value, r in R.items():
            results[value.place] = r
        results += [None] * (_num_results(step) - len(results))
        args, _ = step.arguments
        for place, r in table.backward(step, results, rules).items():
            argument = args[place]
            pairs = zip(argument, r, strict=True) if isinstance(argument, list | tuple) else [(argument, r)]
            for one, its in pairs:
                if isinstance(one, Value) and its is not None:
                    _add(arrived, one, its)
    return found


def _add(arrived: dict[Value, Tensor], value: Value, r: Tensor) -> None:
    before = arrived.get(value)
    arrived[value] = r if before is None else before + r


def _backwards(arrived: dict[Value, Tensor]) -> Iterator[list[Value]]:
    """The Values that something has arrived at, those of one step together, the latest step first."""
    heap: list[tuple[int, int, Value]] = []
    pushed: set[Value] = set()
    count = itertools.count()
    while True:
        for value in arrived:
            if value not in pushed:
                pushed.add(value)
                heapq.heappush(heap, (-value.number, next(count), value))
        if not heap:
            return
        together = [heapq.heappop(heap)[2]]
        while heap and together[0].step is not None and heap[0][2].step is together[0].step:
            together.append(heapq.heappop(heap)[2])
        yield together


def _num_results(step: Step) -> int:
    """Of an operation that gives several; 1 of one that gives a tensor, and of a list as many as it has."""
    returns = step.function._schema.returns
    if len(returns) == 1 and str(returns[0].type) == "List[Tensor]":
        args, kwargs = step.arguments
        with torch.no_grad():
            moved = [torch.empty(a.shape, device="meta") if isinstance(a, Value) else a for a in args]
            return len(functional(step.function)(*moved, **kwargs))
    return max(1, len(returns))


def predictions(loss: Value, gradient: Tensor) -> dict[Value, Tensor]:
    """d loss / d prediction, through the loss's own operations one by one.

    What the model predicts is the first argument of an operation in PREDICTIONS, or else the result of the first operation
    below the scalar that is not in LOSSES.

    Args:
        gradient: of the loss; 1, or what the trainer scales it by.
    """
    found: dict[Value, Tensor] = {}
    arrived = {loss: gradient}
    for values in _backwards(arrived):
        G = {value: arrived.pop(value) for value in values}
        step = values[0].step
        if step is None or step.name not in LOSSES | PREDICTIONS:
            for value, g in G.items():
                _add(found, value, g)
            continue
        into = found if step.name in PREDICTIONS else arrived
        for value, g in _derivative(step, G).items():
            _add(into, value, g)
    return found


def _derivative(step: Step, G: dict[Value, Tensor]) -> dict[Value, Tensor]:
    """The vector-Jacobian product of one operation."""
    with torch.enable_grad():
        at = {value: value.tensor().detach().requires_grad_() for value in dict.fromkeys(step.parents)}
        args, kwargs = step.arguments

        def real(leaf: Any) -> Any:
            return at[leaf] if isinstance(leaf, Value) else leaf

        moved = [[real(x) for x in a] if isinstance(a, list | tuple) else real(a) for a in args]
        results = functional(step.function)(*moved, **{k: real(v) for k, v in kwargs.items()})
        results = results if isinstance(results, list | tuple) else [results]
        pairs = [(results[value.place], g.to(results[value.place].dtype)) for value, g in G.items()]
        inputs = list(at.values())
        gradients = torch.autograd.grad([y for y, _ in pairs], inputs, [g for _, g in pairs], allow_unused=True)
    return {value: g for value, g in zip(at, gradients, strict=True) if g is not None}
