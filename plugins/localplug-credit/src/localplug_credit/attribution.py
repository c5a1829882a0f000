"""What in a model a result came from: relevance of inputs and hidden activities, scores of parameters and units, masks.

R_input sums up to the result where the rules conserve it (see localplug_credit.rules); a parameter's relevance is what of it
went through that parameter. One forward pass without autograd, and one relevance pass. Weights by the size of their relevance
as a criterion of what to prune: Yeom et al., Pattern Recognition 2021, arXiv:1912.08881.
"""

import contextlib
import dataclasses
import fnmatch
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from localplug import partition
from localplug_credit import products
from localplug_credit.rules import STOPS, Rules, needs
from localplug_credit.tape import Tape, Value, kept_bytes
from localplug_credit.walk import walk

Select = Callable[[Any], Tensor]
"""(the model's output) -> the tensor whose relevance is distributed."""


@final
@dataclasses.dataclass
class Relevance:
    """Where a result came from.

    result:     what was distributed, as `select` gave it.
    inputs:     of each floating-point input that was followed, in the order of the call, shaped like it; None of one that the
                result does not depend on.
    modules:    {name: relevance of the module's output} of those asked for.
    parameters: {name: relevance that went through it}, shaped like it, summed over the batch; of all but those without any.
    kept_bytes: what the tape held between the forward pass and the relevance pass, beside model and batch.
    """

    result: Tensor
    inputs: list[Tensor | None]
    modules: dict[str, Tensor]
    parameters: dict[str, Tensor]
    kept_bytes: int


def relevance(
    model: nn.Module,
    *inputs: Any,
    select: Select | None = None,
    at: Sequence[str] = (),
    rules: Rules | None = None,
    rebuild: int = 1,
    **kwargs: Any,
) -> Relevance:
    """Layer-wise relevance propagation through any model whose operations have rules.

        R_x = x . W^T (R / z),   R = the result at the top

    Args:
        model: as it is; put it into evaluation mode first.
        inputs, kwargs: of its call. Floating-point tensors among the positional ones are followed; of token numbers take the
            relevance `at` the embedding, summed over features.
        select: of the output the tensor to be distributed; by default the largest number of each row: of its last dimension.
        at: names of modules whose outputs' relevance is wanted; * and ? match.
        rules: options; see Rules.
        rebuild: see localplug_credit.tape.

    Raises:
        ValueError: a name in `at` matches no module, or what `select` gives does not depend on the model.
        Unsupported: an operation has no rule.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4, bias=False), torch.nn.ReLU(), torch.nn.Linear(4, 2, bias=False))
        >>> found = relevance(net, torch.ones(1, 3))
        >>> bool(torch.isclose(found.inputs[0].sum(), found.result.sum(), rtol=1e-3))
        True

    Reference: DynamicLRP, arXiv:2512.07010; Bach et al., PLOS ONE 2015.
    """
    rules = rules or Rules()
    names = _matching(model, at)
    floats = [x for x in inputs if isinstance(x, Tensor) and x.is_floating_point()]
    outputs: dict[str, Value] = {}
    with torch.no_grad(), follow(model, inputs=floats, rebuild=rebuild) as tape:
        followed = [tape.value(x) for x in floats]
        handles = [
            module.register_forward_hook(_noting(name, tape, outputs))
            for name, module in model.named_modules()
            if name in names
        ]
        try:
            output = model(*inputs, **kwargs)
        finally:
            for handle in handles:
                handle.remove()
        result = (select or largest)(output)
        top = tape.value(result)
    if top is None:
        raise ValueError("what select gives does not depend on the model's inputs or parameters; give another select")
    there = [x for x in torch.utils._pytree.tree_leaves((inputs, kwargs)) if isinstance(x, Tensor)]
    held = kept_bytes([top], [*there, *model.buffers()])
    with torch.no_grad():
        found = walk({top: result}, rules, [*outputs.values()])
    by_value = {value: name for name, value in _parameters(model, tape)}
    return Relevance(
        result,
        [None if v is None else found.get(v) for v in followed],
        {name: found[value] for name, value in outputs.items() if value in found},
        {name: found[value] for value, name in by_value.items() if value in found},
        held,
    )


def scores(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    select: Select | None = None,
    rules: Rules | None = None,
) -> dict[str, Tensor]:
    """How much of the results went through each weight: abs(sum of its relevance over the batches).

    Args:
        batches: each is the argument of a call of the model: a tensor, a tuple of positional arguments, or a dictionary.
        select, rules: see `relevance`.

    Returns: {name of a parameter: score >= 0, float32, shaped like it}; parameters that no relevance reached are left out.

    Example:
        >>> import torch
        >>> net = torch.nn.Linear(3, 2, bias=False)
        >>> sorted(scores(net, [torch.ones(4, 3)]))
        ['weight']

    Reference: Yeom et al., Pattern Recognition 2021, arXiv:1912.08881.
    """
    total: dict[str, Tensor] = {}
    for batch in batches:
        args, kwargs = _call(batch)
        found = relevance(model, *args, select=select, rules=rules, **kwargs).parameters
        for name, r in found.items():
            total[name] = total[name].add_(r) if name in total else r.float()
    return {name: r.abs_() for name, r in total.items()}


def unit_scores(model: nn.Module, found: Mapping[str, Tensor], *, kind: Any = "layer") -> dict[str, float]:
    """The scores of `scores` summed up over each unit of a model: which layers or blocks the results went through most.

    Args:
        found: what `scores` gave.
        kind: "layer", "block" or "model"; see localplug.partition.

    Returns: {name of the unit's module: share of all, in [0, 1]}.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        >>> list(unit_scores(net, scores(net, [torch.ones(4, 3)])))
        ['0', '2']

    Reference: new here.
    """
    by_parameter = {id(p): found[name] for name, p in model.named_parameters() if name in found}
    sums = {
        u.name: sum(float(by_parameter[id(p)].sum()) for p in u.parameters if id(p) in by_parameter)
        for u in partition(model, kind=kind)
    }
    whole = sum(sums.values()) or 1.0
    return {name: value / whole for name, value in sums.items()}


def masks(found: Mapping[str, Tensor], share: float, *, largest: bool = True) -> dict[str, Tensor]:
    """The elements with the largest scores, or the smallest, of all parameters together.

    Args:
        found: what `scores` gave.
        share: of all elements, in (0, 1].
        largest: whether those with the largest scores are chosen.

    Returns: {name: bool, shaped like the parameter}: what zeroth-order methods take as `parameters=`.

    Raises:
        ValueError: share is outside its range, or there are no scores.

    Example:
        >>> import torch
        >>> masks({"weight": torch.tensor([0.1, 3.0, 2.0, 0.0])}, 0.5)["weight"].tolist()
        [False, True, True, False]

    Reference: new here.
    """
    if not (0 < share <= 1 and found):
        raise ValueError(
            f"masks: share must be in (0, 1] and scores must be given, got {share!r} and {len(found)} scores"
        )
    flat = torch.cat([r.flatten() for r in found.values()])
    order = flat.argsort(descending=largest, stable=True)[: max(round(share * len(flat)), 1)]
    chosen = torch.zeros_like(flat, dtype=torch.bool)
    chosen[order] = True
    sizes = [r.numel() for r in found.values()]
    return {name: m.view(r.shape) for (name, r), m in zip(found.items(), chosen.split(sizes), strict=True)}


def largest(output: Any) -> Tensor:
    """The largest number of each row of a model's output, its logits, or its first tensor."""
    logits = getattr(output, "logits", None)
    if logits is None:
        logits = next(x for x in torch.utils._pytree.tree_leaves(output) if isinstance(x, Tensor))
    found: Tensor = logits.max(-1).values
    return found


@contextlib.contextmanager
def follow(model: nn.Module, *, inputs: Sequence[Tensor] = (), rebuild: int = 1) -> Iterator[Tape]:
    """Open a tape for a model's forward pass.

    Args:
        inputs: tensors whose relevance will be asked for.
        rebuild: see localplug_credit.tape.
    """
    tape = Tape(needs, stops=STOPS, mixes=products.MIXES, parameters=list(model.parameters()), rebuild=rebuild)
    for tensor in inputs:
        tape.follow(tensor)
    with tape:
        yield tape


def _parameters(model: nn.Module, tape: Tape) -> list[tuple[str, Value]]:
    return [(name, value) for name, p in model.named_parameters() if (value := tape.value(p)) is not None]


def _noting(name: str, tape: Tape, outputs: dict[str, Value]) -> Callable[..., None]:
    def note(module: nn.Module, args: Any, output: Any) -> None:
        first = next((x for x in torch.utils._pytree.tree_leaves(output) if isinstance(x, Tensor)), None)
        if first is not None and (value := tape.value(first)) is not None:
            outputs[name] = value

    return note


def _matching(model: nn.Module, patterns: Sequence[str]) -> set[str]:
    if isinstance(patterns, str):
        raise TypeError(f"at must be a sequence of module names, got the string {patterns!r}")
    names = [name for name, _ in model.named_modules()]
    if missing := [p for p in patterns if not fnmatch.filter(names, p)]:
        raise ValueError(f"at={list(patterns)}: no module is named {missing}; there are {[n for n in names if n]}")
    return {name for p in patterns for name in fnmatch.filter(names, p)}


def _call(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(batch, Mapping):
        return (), dict(batch)
    return tuple(batch) if isinstance(batch, list | tuple) else (batch,), {}
