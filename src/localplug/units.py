"""Split a model into units that learn locally."""

import fnmatch
from collections.abc import Sequence

from torch import nn

from localplug.contract import Unit

_NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, _NORMS) or type(module).__name__.endswith("Norm")


def _leads(module: nn.Module) -> bool:
    """Whether a unit starts here by default: a module with trainable parameters of its own that is no normalisation."""
    own = any(p is not None and p.requires_grad for p in module._parameters.values())
    return own and not _is_norm(module)


def partition(model: nn.Module, names: Sequence[str] | None = None) -> list[Unit]:
    """The units of a model, in the order of its modules.

    Args:
        names: of the modules that start a unit, as in `model.named_modules()`; * and ? match as in file names. By
            default each layer with trainable weights starts one, and a norm that follows belongs to it.

    Raises:
        ValueError: a name matches no module, or no unit was found.

    Every trainable parameter of a module, and of the modules after it up to the next unit, is that unit's own.
    """
    modules = list(model.named_modules())
    if names is None:
        starts = [(n, m) for n, m in modules if _leads(m)]
        first_own = next(
            ((n, m) for n, m in modules if any(p is not None and p.requires_grad for p in m._parameters.values())), None
        )
        if first_own is not None and first_own not in starts:
            starts.insert(0, first_own)
    else:
        if isinstance(names, str):
            raise TypeError(f"units must be a sequence of module names, got the string {names!r}")
        starts = [(n, m) for n, m in modules if any(fnmatch.fnmatchcase(n, pattern) for pattern in names)]
        if missing := [p for p in names if not any(fnmatch.fnmatchcase(n, p) for n, _ in modules)]:
            raise ValueError(
                f"units={list(names)}: no module is named {missing}; there are {[n for n, _ in modules if n]}"
            )
    if not starts:
        raise ValueError("no unit found: the model has no module with trainable parameters")
    heads = {id(m) for _, m in starts}
    taken: set[int] = set()
    owners: dict[int, list[nn.Parameter]] = {id(m): [] for _, m in starts}
    current: list[nn.Parameter] | None = None
    for _, module in modules:
        if id(module) in heads:
            current = owners[id(module)]
        for parameter in module._parameters.values():
            if parameter is not None and parameter.requires_grad and id(parameter) not in taken and current is not None:
                taken.add(id(parameter))
                current.append(parameter)
    units = [Unit(i, n, m, owners[id(m)]) for i, (n, m) in enumerate(starts)]
    units[-1].is_last = True
    return units
