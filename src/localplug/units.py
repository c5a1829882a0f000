"""Split a model into units that learn locally."""

import dataclasses
import fnmatch
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, final

from torch import nn

from localplug.contract import parameter_names

_NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)
_CONTAINERS = (nn.Sequential, nn.ModuleList)

Kind = Literal["layer", "block", "model"]


@final
@dataclasses.dataclass
class Unit:
    """A part of the model that learns by itself.

    It goes from the input of its module to the input of the next unit's module, and so takes in whatever lies between
    (activations, pooling, dropout, norms); a recurrent module's unit ends with that module's own output.
    """

    index: int
    name: str
    """As the model registers its module."""
    module: nn.Module
    parameters: list[nn.Parameter]
    """Trainable ones; none of a unit that has no weights, or whose weights are frozen. A tied one is in each of its units."""
    is_last: bool = False
    owned: nn.Module | None = None
    """What the algorithm owns there, once the unit has given its first output."""
    key: str = ""
    """The name without what all units' names begin with: the same in a model and in whatever wraps it. Noise and saved state
    go by it."""

    def __post_init__(self) -> None:
        self.key = self.key or self.name

    @property
    def is_recurrent(self) -> bool:
        return isinstance(self.module, nn.RNNBase)

    @property
    def keeps_map(self) -> bool:
        """Whether the output's positions (a convolution's height and width) belong to the target."""
        return isinstance(self.module, nn.Conv1d | nn.Conv2d | nn.Conv3d)


def partition(
    model: nn.Module, names: Sequence[str] | None = None, *, kind: Kind = "layer", joins_head: bool = False
) -> list[Unit]:
    """The units of a model, in the order of its modules.

    Args:
        names: of the modules that start a unit, as in `model.named_modules()`; * and ? match as in file names. By
            default `kind` says where units start.
        kind: "layer": each layer with trainable weights starts one, and a norm that follows belongs to it; "block": each
            member of a Sequential or ModuleList does, whole with its residual branch (a transformer's decoder layers, a
            ResNet's blocks, the layers of a plain Sequential), and so does each layer outside of them; embeddings belong to
            the block that follows; "model": the whole model is one unit.
        joins_head: whether what comes after the last hidden unit belongs to it, so that this unit learns from the trainer's
            own loss through the head; otherwise the head is the last unit, by itself. Without effect where the head is frozen
            and `names` does not say where units start.

    Raises:
        ValueError: a name matches no module, or no unit was found.

    Every trainable parameter of a module, and of the modules after it up to the next unit, is that unit's own.
    """
    modules = list(model.named_modules())
    if names is not None:
        starts = _named(modules, names)
    elif kind == "model":
        starts = [("", model)]
    elif kind in ("layer", "block"):
        starts = _starts(model, kind, _is_trained)
    else:
        raise ValueError(f'kind must be "layer", "block" or "model", got {kind!r}')
    if not starts:
        raise ValueError("no unit found: the model has no module with trainable parameters")
    if joins_head and len(starts) > 1 and (names is not None or starts[-1] == _starts(model, kind, _is_any)[-1]):
        starts = starts[:-1]  # a head that is frozen (adapters) is in no unit
    heads = {id(m) for _, m in starts}
    owners: dict[int, list[nn.Parameter]] = {id(m): [] for _, m in starts}
    current: list[nn.Parameter] | None = None
    for _, module in modules:
        if id(module) in heads:
            current = owners[id(module)]
        for parameter in module._parameters.values():
            if parameter is None or not parameter.requires_grad or current is None:
                continue
            if all(parameter is not p for p in current):
                current.append(parameter)
    keys = parameter_names([n for n, _ in starts])
    units = [Unit(i, n, m, owners[id(m)], key=key) for i, ((n, m), key) in enumerate(zip(starts, keys, strict=True))]
    units[-1].is_last = True
    return units


def _named(modules: list[tuple[str, nn.Module]], names: Sequence[str]) -> list[tuple[str, nn.Module]]:
    if isinstance(names, str):
        raise TypeError(f"units must be a sequence of module names, got the string {names!r}")
    if missing := [p for p in names if not any(fnmatch.fnmatchcase(n, p) for n, _ in modules)]:
        raise ValueError(f"units={list(names)}: no module is named {missing}; there are {[n for n, _ in modules if n]}")
    return [(n, m) for n, m in modules if any(fnmatch.fnmatchcase(n, pattern) for pattern in names)]


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, _NORMS) or type(module).__name__.endswith("Norm")


Counts = Callable[[nn.Parameter], bool]
"""Which parameters make a module worth a unit."""


def _is_trained(parameter: nn.Parameter) -> bool:
    return parameter.requires_grad


def _is_any(parameter: nn.Parameter) -> bool:
    return True


def _starts(model: nn.Module, kind: Kind, counts: Counts) -> list[tuple[str, nn.Module]]:
    """The modules that start a unit, of "layer" or "block" units."""
    if kind == "block":
        return list(_blocks(model, "", counts))
    modules = list(model.named_modules())
    starts = [(n, m) for n, m in modules if _leads(m, counts)]
    first_own = next(((n, m) for n, m in modules if _has_own(m, counts)), None)
    if first_own is not None and first_own not in starts:
        starts.insert(0, first_own)
    return starts


def _has_own(module: nn.Module, counts: Counts) -> bool:
    return any(p is not None and counts(p) for p in module._parameters.values())


def _leads(module: nn.Module, counts: Counts) -> bool:
    """Whether a layer unit starts here: a module with parameters of its own that is no normalisation."""
    return _has_own(module, counts) and not _is_norm(module)


def _has_any(module: nn.Module, counts: Counts) -> bool:
    return any(counts(p) for p in module.parameters())


def _holds_stack(module: nn.Module, counts: Counts) -> bool:
    """Whether there is a Sequential or ModuleList with several weighty members in it: then it is no single block."""
    return any(
        isinstance(m, _CONTAINERS) and sum(_has_any(child, counts) for child in m.children()) > 1
        for m in module.modules()
        if m is not module
    )


def _blocks(module: nn.Module, prefix: str, counts: Counts) -> Iterator[tuple[str, nn.Module]]:
    """Where block units start, in order."""
    embeddings: tuple[str, nn.Module] | None = None  # the first of those that wait for the block they belong to
    for child_name, child in module.named_children():
        name = f"{prefix}{child_name}"
        if not _has_any(child, counts) or _is_norm(child):
            continue
        is_member = isinstance(module, _CONTAINERS)
        if isinstance(child, _CONTAINERS) or (not is_member and _holds_stack(child, counts)):
            found = list(_blocks(child, f"{name}.", counts))
        elif _is_embedding(child, counts):
            embeddings = embeddings or (name, child)
            continue
        else:
            found = [(name, child)]
        if embeddings is not None and found:
            found[0], embeddings = embeddings, None
        yield from found
    if embeddings is not None:
        yield embeddings


def _is_embedding(module: nn.Module, counts: Counts) -> bool:
    """An embedding, or a module of nothing but embeddings, norms and what has no weights."""
    weighty = [m for m in module.modules() if _leads(m, counts)]
    return bool(weighty) and all(isinstance(m, nn.Embedding) for m in weighty)
