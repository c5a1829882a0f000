"""What the model gave, and what the framework gets instead: leaves by name, and the stub that ends a backward pass."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten_with_path, tree_unflatten

from localplug.contract import is_float


@final
class Output:
    """The float leaves of one model output, by the name a user knows ("loss", "logits", "0")."""

    def __init__(self, tree: Any) -> None:
        paths, self._spec = tree_flatten_with_path(tree)
        self._all = [leaf for _, leaf in paths]
        self._places = [i for i, leaf in enumerate(self._all) if is_float(leaf)]
        self.names = [".".join(str(getattr(k, "key", getattr(k, "idx", k))) for k in paths[i][0]) for i in self._places]
        self.leaves: list[Tensor] = [self._all[i] for i in self._places]
        self.kind = str(self._spec)

    def replaced(self, values: Mapping[int, Tensor]) -> Any:
        """The same tree with other values of some leaves, by their number."""
        everything = list(self._all)
        for number, value in values.items():
            everything[self._places[number]] = value
        return tree_unflatten(everything, self._spec)

    def stubbed(self, leaves: Sequence[Tensor], sink: Callable[[Sequence[Tensor | None]], None]) -> Any:
        """The same tree with other leaves, which look differentiable: backward hands d loss / d leaf to `sink`, and ends."""
        anchor = torch.zeros((), device=leaves[0].device, requires_grad=True)
        with torch.enable_grad():
            stubs = _Stub.apply(anchor, sink, *leaves)
        everything = list(self._all)
        for place, leaf in zip(self._places, stubs, strict=True):
            everything[place] = leaf
        return tree_unflatten(everything, self._spec)


class _Stub(torch.autograd.Function):
    """The identity in value. Its backward reports and stops."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, sink: Callable[[Sequence[Tensor | None]], None], *leaves: Tensor) -> Any:
        ctx.sink = sink
        ctx.set_materialize_grads(False)
        return tuple(leaf.detach() for leaf in leaves)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        ctx.sink(gradients)
        return (None,) * (2 + len(gradients))
