"""Let a model read other tensors in the place of its parameters, whatever they are: dual numbers, batches of weights."""

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Set
from typing import Any, final

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map


@final
class Reads:
    """What one evaluation of a model showed of its reads, for the next ones."""

    def __init__(self) -> None:
        self.is_known = False
        self.outside: set[nn.Parameter] = set()
        """Parameters that are read outside their module's own call."""


@contextlib.contextmanager
def substituted(
    model: nn.Module,
    make: Mapping[nn.Parameter, Callable[[], Tensor]],
    spared: Collection[nn.Module] = (),
    reads: Reads | None = None,
    held: Mapping[nn.Parameter, Tensor] | None = None,
    modules: Iterable[nn.Module] | None = None,
) -> Iterator[None]:
    """While this is open, every forward call in the model reads make[p]() where it would read p.

    A tensor is made when its module is called, and dropped after it; one that is read outside its module's own call (tied
    heads, nn.MultiheadAttention's out_proj) is made at the first such read, and kept.

    Args:
        make: for each parameter to be replaced, what makes its substitute.
        spared: modules that do not read their `weight` while they are called, so that it is not replaced for them.
        reads: filled by the first evaluation; those after it look for no other reads from outside, which takes time in every
            operation. By default each evaluation looks.
        held: further substitutes, in the modules all the time: no call of a module costs anything then.
        modules: model.modules(), where somebody knows them.
    """
    quiet: set[nn.Parameter] = set()
    seen = Reads() if reads is None else reads
    aside = set(spared)
    handles: list[Any] = []
    swapped: list[tuple[nn.Module, str, nn.Parameter]] = []
    lasting: list[tuple[nn.Module, str, nn.Parameter]] = []  # those of `held`
    kept: dict[nn.Parameter, Tensor] = dict(held or {})
    replaced = {*make, *kept}

    def made(parameter: nn.Parameter) -> Tensor:
        if parameter in kept:
            return kept[parameter]
        quiet.add(parameter)  # what makes the substitute reads the parameter itself
        try:
            return make[parameter]()
        finally:
            quiet.discard(parameter)

    def before(module: nn.Module, *_: Any) -> None:
        for name, parameter in list(module._parameters.items()):
            if isinstance(parameter, nn.Parameter) and parameter in make and not (name == "weight" and module in aside):
                instead: Any = made(parameter)
                module._parameters[name] = instead
                swapped.append((module, name, parameter))

    def after(module: nn.Module, *_: Any) -> None:
        while swapped and swapped[-1][0] is module:
            owner, name, parameter = swapped.pop()
            owner._parameters[name] = parameter

    def read_outside(parameter: nn.Parameter) -> Tensor:
        seen.outside.add(parameter)
        kept[parameter] = made(parameter)
        return kept[parameter]

    try:
        everywhere = list(model.modules()) if modules is None else modules
        for module in everywhere if held else ():
            for name, p in list(module._parameters.items()):
                if p is not None and p in kept:
                    lasting.append((module, name, p))
                    substitute: Any = kept[p]
                    module._parameters[name] = substitute
        for module in everywhere:
            own = [n for n, p in module._parameters.items() if isinstance(p, nn.Parameter) and p in make]
            if not own or (own == ["weight"] and module in aside):
                continue
            if module is model:  # the host also calls its forward by itself, and then no hook of it runs
                before(module)
                continue
            handles.append(module.register_forward_pre_hook(before))
            handles.append(module.register_forward_hook(after, always_call=True))
        idle = seen.is_known and seen.outside.isdisjoint(replaced)
        with contextlib.nullcontext() if idle else _Outside(replaced, quiet, read_outside):
            yield
        seen.is_known = True
    finally:
        for handle in handles:
            handle.remove()
        for owner, name, parameter in reversed(lasting + swapped):
            owner._parameters[name] = parameter


class _Outside(TorchFunctionMode):
    """Finds parameters among the arguments of torch's functions, and puts the substitutes there."""

    def __init__(
        self, make: Set[nn.Parameter], quiet: Set[nn.Parameter], read_outside: Callable[[nn.Parameter], Tensor]
    ) -> None:
        super().__init__()
        self._make, self._quiet, self._read_outside = make, quiet, read_outside

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if any(self._is_meant(x) for x in _given(args, kwargs)):
            args, kwargs = tree_map(self._instead, (args, kwargs))
        return function(*args, **kwargs)

    def _instead(self, x: Any) -> Any:
        return self._read_outside(x) if self._is_meant(x) else x

    def _is_meant(self, x: Any) -> bool:
        return isinstance(x, nn.Parameter) and x in self._make and x not in self._quiet


def _given(args: Any, kwargs: dict[str, Any]) -> Iterator[Any]:
    """The arguments of one of torch's functions, and what their lists and tuples hold."""
    for x in (*args, *kwargs.values()):
        if isinstance(x, list | tuple):
            yield from x
        else:
            yield x
