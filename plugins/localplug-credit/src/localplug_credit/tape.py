"""A tape of ATen operations, without autograd: what the relevance pass needs to walk back through a forward pass.

While a Tape is open it sees every operation that torch dispatches. It notes those that depend on a parameter or on a tensor
that it was told to follow, and binds each result to a Value. A Value holds the Step that made it, a Step the Values that it
was made from; tensors hold nothing. So what no live tensor depends on is freed as the forward pass goes on, as autograd's
graph is.

A rule says which inputs of its operation it will want to see. Such an input is kept, unless it can be made again from kept
ones by at most `rebuild` operations that compute something (views are free): then nothing is kept, and it is made when it is
wanted. Parameters and the tensors of the batch are there anyway.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, final

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten
from torch.utils.weak import WeakTensorKeyDictionary

from localplug import Unsupported

Role = Literal["activation", "parameter"]


@final
class Value:
    """One tensor of the forward pass.

    number:  of the step that made it; -1 of what was there before.
    role:    "parameter" for parameters and what is made of them alone (their transposes), "activation" for all else.
    place:   which of its step's results it is.
    kept:    the tensor, if it is held.
    """

    __slots__ = ("_version", "dtype", "kept", "place", "role", "shape", "step")

    def __init__(self, like: Tensor, role: Role, step: "Step | None", place: int = 0) -> None:
        self.shape, self.dtype, self.role, self.step, self.place = like.shape, like.dtype, role, step, place
        self.kept: Tensor | None = None
        self._version = 0
        if step is None:
            self.keep(like)

    def keep(self, tensor: Tensor) -> None:
        """Hold the tensor, as it is now."""
        if self.kept is None:
            self.kept, self._version = tensor, tensor._version

    @property
    def is_leaf(self) -> bool:
        """Whether no operation made it."""
        return self.step is None

    @property
    def number(self) -> int:
        return -1 if self.step is None else self.step.number

    def tensor(self) -> Tensor:
        """The tensor itself, made again if it was not kept.

        Raises:
            Unsupported: it was changed in place since.
        """
        if self.kept is not None:
            if self.kept._version != self._version:
                raise Unsupported(
                    f"a tensor of shape {tuple(self.shape)} was changed in place after an operation had used it, so that the "
                    "relevance pass cannot see what that operation saw; use the form of the module that is not in place"
                )
            return self.kept
        assert self.step is not None
        made = self.step.again()
        return made if isinstance(made, Tensor) else made[self.place]


@final
class Step:
    """One operation: its function, and its arguments with Values in the place of the tensors that are followed."""

    __slots__ = ("_leaves", "_spec", "function", "name", "number", "parents")

    def __init__(self, number: int, function: Any, args: Any, kwargs: Any, values: dict[int, Value]) -> None:
        self.number, self.function, self.name = number, function, name_of(function)
        leaves, self._spec = tree_flatten((args, kwargs))
        self._leaves = [values.get(id(leaf), leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self.parents: list[Value] = [leaf for leaf in self._leaves if isinstance(leaf, Value)]

    @property
    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """As the operation got them, with Values in them."""
        return tree_unflatten(self._leaves, self._spec)

    @property
    def constants(self) -> list[Tensor]:
        """Tensors among the arguments that nobody follows."""
        return [leaf for leaf in self._leaves if isinstance(leaf, Tensor)]

    @property
    def is_free(self) -> bool:
        """Whether it computes nothing (a view)."""
        return self.function.is_view or self.name in ("_unsafe_view", "alias", "lift_fresh")

    @property
    def is_random(self) -> bool:
        return torch.Tag.nondeterministic_seeded in self.function.tags

    def tensors(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with tensors in the place of Values."""
        leaves = [leaf.tensor() if isinstance(leaf, Value) else leaf for leaf in self._leaves]
        return tree_unflatten(leaves, self._spec)

    def again(self) -> Any:
        """Its result, made a second time; of an operation in place, by the form that is not."""
        args, kwargs = self.tensors()
        return functional(self.function)(*args, **kwargs)


@final
class Tape(TorchDispatchMode):
    """Notes the operations of a forward pass; see the head of this file.

    Args:
        needs: gives, for a step, the positions of the arguments whose tensors its rule will want; see localplug_credit.rules.
        stops: names of operations whose results carry no relevance: from there on they are constants.
        parameters: whose role is "parameter".
        mixes: names of operations that make an activation of a parameter and a tensor that nobody follows (a product with the
            batch, an embedding).
        rebuild: at most so many computing operations lie between kept tensors and one that a rule wants; >= 0. 0 keeps each.

    Example:
        >>> import torch
        >>> from localplug_credit.attribution import follow
        >>> net = torch.nn.Linear(3, 2, bias=False)
        >>> x = torch.ones(1, 3)
        >>> with torch.no_grad(), follow(net, inputs=[x]) as tape:
        ...     y = net(x)
        >>> tape.value(y).step.name
        'mm'
    """

    def __init__(
        self,
        needs: Callable[[Step], Sequence[int]],
        *,
        stops: frozenset[str],
        mixes: frozenset[str],
        parameters: Sequence[nn.Parameter] = (),
        rebuild: int = 1,
    ) -> None:
        super().__init__()
        self._needs, self._stops, self._mixes, self.rebuild = needs, stops, mixes, rebuild
        self._values: Any = WeakTensorKeyDictionary()
        self._overwritten: Any = WeakTensorKeyDictionary()  # bases of views that were written into
        self._number = 0
        for parameter in parameters:
            self._values[parameter] = Value(parameter.detach(), "parameter", None)

    def follow(self, tensor: Tensor) -> Value:
        """Begin to follow a tensor: an input whose relevance is asked for."""
        value = Value(tensor.detach(), "activation", None)
        self._values[tensor] = value
        return value

    def value(self, tensor: Tensor) -> Value | None:
        """What is known of a tensor; None if it depends on nothing that is followed."""
        return self._values.get(tensor)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        found = {id(t): v for t in tensors if (v := self._values.get(t)) is not None}
        name = name_of(function)
        if len(self._overwritten) and any(t in self._overwritten for t in tensors):
            raise Unsupported(
                f"{name} reads a tensor into a part of which something was written in place, which the tape cannot follow; put "
                "such tensors together by torch.cat or torch.where"
            )
        if not found or name in self._stops:
            result = function(*args, **kwargs)
            self._forget(function, args, result)
            return result
        changed = args[0] if _is_in_place(function) else None
        step = Step(self._number, function, args, kwargs, found)
        self._number += 1
        if changed is not None and (before := found.get(id(changed))) is not None and before.kept is changed:
            before.kept, before._version = changed.clone(), 0
        if changed is not None and changed._is_view():
            self._overwritten[changed._base] = True
        self._keep(step, tensors, found, changed)
        result = function(*args, **kwargs)
        has_activation = any(v.role == "activation" for v in step.parents)
        mixed = name in self._mixes and len(found) < len({id(t) for t in tensors})
        role: Role = "activation" if has_activation or mixed else "parameter"
        for place, leaf in enumerate(result if isinstance(result, list | tuple) else [result]):
            if isinstance(leaf, Tensor) and leaf.is_floating_point():
                self._values[leaf] = Value(leaf, role, step, place)
        return result

    def _forget(self, function: Any, args: Any, result: Any) -> None:
        """A tensor that constants are written into is a constant from then on."""
        if _is_in_place(function) and args and isinstance(args[0], Tensor) and args[0] in self._values:
            del self._values[args[0]]

    def _keep(self, step: Step, tensors: list[Tensor], found: dict[int, Value], changed: Tensor | None) -> None:
        wanted = set(self._needs(step))
        if not wanted:
            return
        args, _ = step.arguments
        values = {id(v) for i in wanted if i < len(args) for v in tree_leaves(args[i]) if isinstance(v, Value)}
        for tensor in tensors:
            value = found.get(id(tensor))
            if value is not None and id(value) in values and not _is_cheap(value, self.rebuild):
                value.keep(tensor.clone() if tensor is changed else tensor)


def _is_cheap(value: Value, budget: int) -> bool:
    """Whether it is there, or at most so many computing operations away from what is."""
    if value.kept is not None:
        return True
    step = value.step
    assert step is not None
    if step.is_random:
        return False
    budget -= 0 if step.is_free else 1
    return budget >= 0 and all(_is_cheap(parent, budget) for parent in step.parents)


def kept_bytes(outputs: Sequence[Value], besides: Iterable[Tensor] = ()) -> int:
    """Bytes that are held for a relevance pass from these: each storage once, constants (masks) among them; parameters and
    followed inputs left out.

    Args:
        besides: tensors that are there anyway, to be left out too: the batch, the model's buffers.
    """
    sizes: dict[int, int] = {}
    there = {tensor.untyped_storage().data_ptr() for tensor in besides}
    for value in reachable(outputs):
        held = [] if value.step is None else value.step.constants
        if value.kept is not None and value.step is not None:
            held = [*held, value.kept]
        sizes |= {storage.data_ptr(): storage.nbytes() for storage in (tensor.untyped_storage() for tensor in held)}
    return sum(size for address, size in sizes.items() if address not in there)


def reachable(outputs: Sequence[Value]) -> Iterator[Value]:
    """All Values that these were made from, and these."""
    seen, waiting = set(), list(outputs)
    while waiting:
        value = waiting.pop()
        if id(value) not in seen:
            seen.add(id(value))
            yield value
            waiting += value.step.parents if value.step is not None else []


def name_of(function: Any) -> str:
    """The operation's name without namespace and overload, and without the underscore of one in place: "add"."""
    name: str = function._schema.name.split("::")[-1]
    return name[:-1] if _is_in_place(function) else name


def _is_in_place(function: Any) -> bool:
    name = function._schema.name
    return bool(name.endswith("_") and not name.endswith("__"))


def functional(function: Any) -> Any:
    """The form of an operation that changes nothing in place."""
    if not _is_in_place(function):
        return function
    packet = getattr(torch.ops.aten, name_of(function))
    return getattr(packet, function._overloadname)
