"""What the call of a layer takes and leaves behind, as far as a later call could tell that it was left out."""

import collections
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module


class Unfit(Exception):
    """What was seen does not allow layers to be skipped."""


def has_hooks(module: nn.Module) -> bool:
    """Whether hooks see its calls."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


@final
class Attributes:
    """What the modules of some layers hold, to see whether a call changes it.

    Raises:
        Unfit: it could change unseen.
    """

    LARGE = 1 << 20  # elements of a buffer that is not compared by value; its layer is never skipped

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self._modules = [module for layer in layers for module in layer.modules()]
        self._held = [_held(module) for module in self._modules]
        if any(torch.Generator in map(type, (*held, *inside)) for _, held, inside in self._held):
            raise Unfit
        buffers = [b for module in self._modules for b in module._buffers.values() if b is not None]
        if any(b.numel() > self.LARGE for b in buffers):
            raise Unfit
        self._buffers = [(b, b.clone()) for b in buffers]

    def are_same(self) -> bool:
        """Whether all of it is as it was, and no hook of others is called with the layers."""
        for module, (names, held, inside) in zip(self._modules, self._held, strict=True):
            if has_hooks(module):
                return False
            now = _held(module)
            if now[0] != names or len(now[2]) != len(inside):
                return False
            if not all(map(operator.is_, now[1], held)) or not all(map(operator.is_, now[2], inside)):
                return False
        if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
            return False
        return all(torch.equal(buffer, before) for buffer, before in self._buffers)


_CONTAINERS = {list, set, dict, collections.OrderedDict, collections.defaultdict, collections.deque}


def _held(module: nn.Module) -> tuple[list[str], list[Any], list[Any]]:
    """Names and values of a module's attributes, and what the lists, sets and dictionaries among them hold."""
    values = list(module.__dict__.values())
    inside: list[Any] = []
    for value in values:
        if type(value) in _CONTAINERS and value:
            inside += value
            if isinstance(value, dict):
                inside += value.values()
    return list(module.__dict__), values, inside


def parted(args: Any, kwargs: dict[str, Any]) -> tuple[Tensor, Any]:
    """A layer's input, and its other arguments.

    Raises:
        Unfit: the input is no tensor.
    """
    if args:
        x, others = args[0], list(kwargs.items())
    else:
        x, others = kwargs.get("hidden_states"), [item for item in kwargs.items() if item[0] != "hidden_states"]
    if type(x) is not Tensor or x.is_inference():
        raise Unfit
    return x, (tuple(args[1:]), tuple(others))


_PLAIN = (type(None), bool, int, float, str, torch.dtype, torch.device)


def described(value: Any, tensors: list[Tensor], caches: list[Any]) -> Any:
    """Shapes and plain values in a layer's arguments; tensors and caches among them are added to the lists.

    Raises:
        Unfit: there is something else among them, such as a list that a layer could write.
    """
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, Tensor):
        if value.is_inference():
            raise Unfit
        tensors.append(value)
        return ("tensor", value.shape, value.dtype, value.device)
    if isinstance(value, tuple):
        return tuple(described(part, tensors, caches) for part in value)
    if _is_cache(value):
        caches.append(value)
        return ("cache", type(value))
    raise Unfit


def _is_cache(value: Any) -> bool:
    """A key-value cache, as those of transformers, which is not imported here."""
    return isinstance(getattr(value, "layers", None), list) and callable(getattr(value, "update", None))


class Entries(NamedTuple):
    """What a cache holds: its own attributes, and (class, attributes) of each layer's entry."""

    own: dict[str, Any]
    layers: list[tuple[type, dict[str, Any]]]


def entries(cache: Any) -> Entries:
    """Of a cache as it is now.

    Raises:
        Unfit: it holds something else than tensors and plain values, or moves them about.
    """
    own = {name: value for name, value in cache.__dict__.items() if name != "layers"}
    layers = [(type(layer), dict(layer.__dict__)) for layer in cache.layers]
    if getattr(cache, "offloading", False) or not all(isinstance(v, (*_PLAIN, type)) for v in own.values()):
        raise Unfit
    if not all(isinstance(v, (*_PLAIN, Tensor)) for _, attributes in layers for v in attributes.values()):
        raise Unfit
    return Entries(own, layers)


def fill(cache: Any, filled: Entries) -> None:
    """Give an empty cache the entries that the first evaluation's got while the layers were called."""
    for number, (kind, attributes) in enumerate(filled.layers):
        if number >= len(cache.layers):
            cache.layers.append(object.__new__(kind))
        cache.layers[number].__dict__.update(attributes)
