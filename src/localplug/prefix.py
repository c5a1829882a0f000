"""Compute once what no evaluation of an estimate perturbs: the layers before the first perturbed one.

All evaluations of an estimate see the same batch and the same random numbers. The first one runs as ever and is observed; it
stores the output of the last layer before the perturbed ones, and the later ones skip those layers and begin from there.
Layers are skipped only if the first evaluation has shown that this changes nothing: each was called once and in order, took
the one before's output, gave nothing else, and left nothing behind but random numbers drawn and entries of a key-value cache.
What a layer writes into an object that is no attribute of one of its modules cannot be seen.
"""

import contextlib
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from localplug.errors import EngineError
from localplug.footprint import Attributes, Unfit, described, entries, fill, has_hooks, parted
from localplug.replay import RandomState, random_state, restore_random_state
from localplug.shards import is_sharded


@final
class Prefix:
    """The layers before the perturbed ones, in one estimate.

    Args:
        model: what is evaluated.
        moved: every parameter that an evaluation of this estimate may perturb.
    """

    def __init__(self, model: nn.Module, moved: set[nn.Parameter]) -> None:
        self._model, self._moved = model, moved
        self._segments = [_Segment(layers) for layers in _before(model, moved)]
        self._is_first = True

    @property
    def is_empty(self) -> bool:
        """Whether nothing is there to be computed once."""
        return not self._segments

    def drop(self) -> None:
        """Let go of what is stored; the remaining evaluations run as ever."""
        self._segments = []

    @contextlib.contextmanager
    def evaluation(self, may_skip: bool) -> Iterator[None]:
        """Around each evaluation of the estimate.

        Args:
            may_skip: if not, it runs as a whole; the first one always does.
        """
        was_first, self._is_first = self._is_first, False
        segments = self._segments
        if not segments or not (was_first or may_skip):
            yield
            return
        observation = _Observation(segments, self._moved) if was_first else None
        handles: list[Any] = []
        replaced: list[nn.Module] = []
        try:
            for segment in segments:
                for number, layer in enumerate(segment.layers):
                    layer.forward = segment.instead(number, layer.forward, observation)
                    replaced.append(layer)
            if observation is None:
                yield
                if any(segment.is_underway for segment in segments):
                    raise _called_differently()
            else:
                handles += [
                    module.register_forward_pre_hook(observation.begin, prepend=True)
                    for module in self._model.modules()
                    if any(p in self._moved for p in module._parameters.values() if p is not None)
                ]
                with observation:
                    yield
                observation.settle()
                self._segments = [segment for segment in self._segments if segment.is_known]
        finally:
            for handle in handles:
                handle.remove()
            for layer in replaced:
                del layer.forward


def _before(model: nn.Module, moved: set[nn.Parameter]) -> list[list[nn.Module]]:
    """Runs of layers that are registered before the first parameter that moves, each from the beginning of a list."""
    found: list[list[nn.Module]] = []

    def walk(module: nn.Module) -> bool:
        """Whether a parameter in here moves."""
        if any(p in moved for p in module._parameters.values() if p is not None):
            return True
        children = [child for child in module._modules.values() if child is not None]
        if not isinstance(module, nn.ModuleList | nn.Sequential) or len(children) < 2:
            return any(walk(child) for child in children)
        first = next((k for k, c in enumerate(children) if any(p in moved for p in c.parameters())), len(children))
        if any(True for child in children[:first] for _ in child.parameters()):
            found.append(children[:first])
        return first < len(children) and walk(children[first])

    walk(model)
    layers = [layer for run in found for layer in run]
    if len(set(layers)) < len(layers):
        return []
    return [run for run in found if not any(_is_special(layer) for layer in run)]


def _is_special(layer: nn.Module) -> bool:
    """Whether its forward is not the one of its class, others' hooks run in it, or its parameters are sharded."""
    return (
        "forward" in layer.__dict__
        or isinstance(layer, torch.jit.ScriptModule)
        or any(has_hooks(module) for module in layer.modules())
        or any(is_sharded(p) for p in layer.parameters())
    )


@final
class _Segment:
    """Layers that are called one after another, each with the output of the one before."""

    def __init__(self, layers: list[nn.Module]) -> None:
        self.layers = layers
        self.is_known = False
        """Whether they can be skipped."""
        self.has_failed = False
        self._num_called = 0
        self.current: Tensor | None = None
        """The last layer's output, until the next one takes it."""
        self._outputs: list[weakref.ref[Tensor]] = []  # of all layers but the last: no one else may hold them
        self._lengths: list[int] = []  # of the tuples that the layers give, 0 for a tensor by itself
        self._read: list[tuple[Tensor, int]] = []  # the layers' other arguments, with their versions
        self._attributes: Attributes | None = None
        self._cache: list[Any] = []  # none or one
        self._position: int | None = None

    @property
    def is_underway(self) -> bool:
        """Whether some of the layers were skipped in this evaluation, and the others not called yet."""
        return self._position is not None and 0 < self._position < len(self.layers)

    def instead(
        self, number: int, forward: Callable[..., Any], observation: "_Observation | None"
    ) -> Callable[..., Any]:
        """What stands for the forward of a layer in the first evaluation, and in a later one."""
        self._position = None
        if observation is None:
            return lambda *args, **kwargs: self._skip(number, forward, args, kwargs)
        return lambda *args, **kwargs: self._observe(number, forward, args, kwargs, observation)

    # ---- the first evaluation ---------------------------------------------------------------------------------------

    def _observe(
        self, number: int, forward: Callable[..., Any], args: Any, kwargs: dict[str, Any], observation: "_Observation"
    ) -> Any:
        with observation.inside():
            with self._judging():
                self._enter(number, args, kwargs, observation)
            output = forward(*args, **kwargs)
            with self._judging():
                self._leave(number, output, observation)
            return output

    @contextlib.contextmanager
    def _judging(self) -> Iterator[None]:
        try:
            yield
        except Unfit:
            self.fail()

    def fail(self) -> None:
        self.has_failed, self.is_known = True, False
        self.current = self._attributes = None
        self._outputs, self._read, self._cache = [], [], []

    def _enter(self, number: int, args: Any, kwargs: dict[str, Any], observation: "_Observation") -> None:
        x, rest = parted(args, kwargs)
        if self.has_failed or observation.has_begun or number != self._num_called:
            raise Unfit
        if torch.is_grad_enabled() or torch.is_inference_mode_enabled():
            raise Unfit
        tensors: list[Tensor] = []
        caches: list[Any] = []
        arguments = described(rest, tensors, caches)
        if number == 0:
            observation.open(self)
            self._input, self._arguments = x, arguments
            self._read.append((x, x._version))
            self._random = random_state()
            self._attributes = Attributes(self.layers)
            self._cache = caches
            self._cached = [entries(cache) for cache in caches]
            if len(caches) > 1 or any(
                isinstance(v, Tensor) for c in self._cached for e in c.layers for v in e[1].values()
            ):
                raise Unfit  # a cache that was not empty is one that evaluations share
        elif observation.opened is not self or x is not self.current:
            raise Unfit
        if len(caches) != len(self._cache) or any(a is not b for a, b in zip(caches, self._cache, strict=True)):
            raise Unfit
        if number >= 2 and not self._is_dead(number - 2, x):
            raise Unfit
        self.current = None
        self._read += [(tensor, tensor._version) for tensor in tensors]
        self._num_called += 1

    def _is_dead(self, number: int, current: Tensor | None) -> bool:
        """Whether no one holds the output of a layer any more: a model that did would miss it in a later evaluation."""
        output = self._outputs[number]()
        return output is None or output is current

    def _leave(self, number: int, output: Any, observation: "_Observation") -> None:
        if self.has_failed:
            return
        if observation.has_begun or number != self._num_called - 1:
            raise Unfit
        y = output[0] if type(output) is tuple and output else output
        if type(y) is not Tensor or y.requires_grad or y.device.type not in ("cpu", "cuda"):
            raise Unfit
        if type(output) is tuple and any(part is not None for part in output[1:]):
            raise Unfit
        self._lengths.append(len(output) if type(output) is tuple else 0)
        if number < len(self.layers) - 1:
            self.current = y
            self._outputs.append(weakref.ref(y))
        else:
            self._finish(y)
            observation.close(self)

    def _finish(self, y: Tensor) -> None:
        assert self._attributes is not None
        if any(tensor._version != version for tensor, version in self._read) or not self._attributes.are_same():
            raise Unfit
        self._stored = y.clone()
        if y.storage_offset() or y.stride() != self._stored.stride() or _share_storage(y, self._input):
            raise Unfit
        self._filled = [entries(cache) for cache in self._cache]
        if any(filled.own != empty.own for filled, empty in zip(self._filled, self._cached, strict=True)):
            raise Unfit
        before, self._random_after = self._random, random_state()
        self._draws = not _is_same_state(before, self._random_after)
        self._read, self._cache, self._attributes = [], [], None
        self._input_version = self._input._version
        self.is_known = True

    def settle(self) -> None:
        """After the last layer returned to the model: the one output that it still held then."""
        if self._outputs and not self._is_dead(-1, None):
            self.fail()
        self._outputs = []

    # ---- the later evaluations --------------------------------------------------------------------------------------

    def _skip(self, number: int, forward: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
        if number == 0:
            self._position = 0 if self._fits(args, kwargs) else None
        if self._position is None:
            return forward(*args, **kwargs)
        x, _ = parted(args, kwargs)
        if self._position != number or (number and x is not self.current):
            raise _called_differently()
        self._position += 1
        self.current, y = x, x
        if number == len(self.layers) - 1:
            self.current, y = None, self._stored.clone()  # a later layer may write it
            if self._draws:
                restore_random_state(self._random_after)
            for cache, filled in zip(self._cache, self._filled, strict=True):
                fill(cache, filled)
            self._cache = []
        length = self._lengths[number]
        return (y, *[None] * (length - 1)) if length else y

    def _fits(self, args: Any, kwargs: dict[str, Any]) -> bool:
        """Whether the first layer is called with what it was called with in the first evaluation."""
        caches: list[Any] = []
        try:
            x, rest = parted(args, kwargs)
            if described(rest, [], caches) != self._arguments or torch.is_grad_enabled():
                return False
            cached = [entries(cache) for cache in caches]
        except Unfit:
            return False
        self._cache = caches
        return (
            cached == self._cached
            and self._input._version == self._input_version
            and x.dtype == self._input.dtype
            and x.device == self._input.device
            and torch.equal(x, self._input)
            and (not self._draws or _is_same_state(random_state(), self._random))
        )


@final
class _Observation(TorchFunctionMode):
    """Watches the first evaluation: whether others read a parameter that moves, or an output of a layer to be skipped."""

    def __init__(self, segments: Sequence[_Segment], moved: set[nn.Parameter]) -> None:
        super().__init__()
        self._segments = segments
        self._moved = {id(parameter) for parameter in moved}
        self.has_begun = False
        """Whether a module with a parameter that moves was called, or such a parameter read."""
        self.opened: _Segment | None = None
        """Whose layers are being called."""
        self._closed: _Segment | None = None  # the last one is not settled
        self._depth = 0
        self._is_over = False

    def begin(self, *_: Any) -> None:
        """The perturbed part begins here."""
        if not self._depth:
            self.settle()
        self.has_begun = self._is_over = True

    def open(self, segment: _Segment) -> None:
        if self.opened is not None and not self.opened.has_failed:  # outputs of the one could go into the other
            self.opened.fail()
            segment.fail()
            raise Unfit
        self.opened = segment

    def close(self, segment: _Segment) -> None:
        self.opened, self._closed = None, segment

    def settle(self) -> None:
        if self._closed is not None:
            closed, self._closed = self._closed, None
            closed.settle()
            self._rest()

    def _rest(self) -> None:
        """Stop looking once nothing can change any more."""
        if self._closed is None and all(s.is_known or s.has_failed for s in self._segments):
            self._is_over = True

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """While a layer to be skipped is called."""
        if not self._depth:
            self.settle()
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if not self._depth:
                self._rest()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if self._is_over:
            return result
        if self._closed is not None and not self._depth and not _is_inert(function, result):
            self.settle()
        self._look(args, function, result)
        if kwargs:
            self._look(kwargs.values(), function, result)
        return result

    def _look(self, values: Any, function: Any, result: Any) -> None:
        current = self.opened.current if self.opened is not None and not self._depth else None
        for value in values:
            if isinstance(value, Tensor):
                if id(value) in self._moved and not _is_inert(function, result):
                    self.begin()
                elif value is current and not _is_inert(function, result):
                    assert self.opened is not None
                    self.opened.fail()
            elif isinstance(value, list | tuple):
                self._look(value, function, result)
            elif isinstance(value, dict):
                self._look(value.values(), function, result)


_ASKS = {
    "size",
    "dim",
    "ndimension",
    "numel",
    "nelement",
    "is_floating_point",
    "is_contiguous",
    "stride",
    "element_size",
}


def _is_inert(function: Any, result: Any) -> bool:
    """Whether only the shape, type or place of a tensor was asked for, and nothing of its values."""
    name = getattr(function, "__name__", "")
    return (name == "__get__" or name in _ASKS) and not isinstance(result, Tensor)


def _share_storage(a: Tensor, b: Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def _is_same_state(a: RandomState, b: RandomState) -> bool:
    return torch.equal(a[0], b[0]) and len(a[1]) == len(b[1]) and all(map(torch.equal, a[1], b[1]))


def _called_differently() -> EngineError:
    return EngineError(
        "the layers before the perturbed ones were called otherwise than in the first evaluation of this estimate; an "
        "evaluation must be the same function of the batch each time"
    )
