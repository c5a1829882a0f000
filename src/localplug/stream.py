"""The stream through a model's units: hooks that let each learn as soon as its output is complete.

A unit's input is detached when its module is called. When the next unit's module is called, what arrives there is the
unit's output: the algorithm makes its Signal from it, the unit's own small graph turns the signal into gradients, and the
graph is freed before the next unit starts. Gradients wait in a stash until the trainer calls backward (it may clear .grad
between forward and backward), and then appear in .grad.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.hooks import RemovableHandle

from localplug import noise
from localplug.contract import NOTHING, Estimate, Run, is_float
from localplug.errors import Unsupported
from localplug.signals import Activity, Signal, View
from localplug.units import Unit

if TYPE_CHECKING:
    from localplug.local import LocalMethod

Gradients = dict[nn.Parameter, Tensor]


class _Enough(BaseException):
    """A view has seen what it is for. No Exception, so that a model's own handlers let it through."""


@final
class Stream:
    """The hooks on the units' modules, and the gradients that wait for the trainer's backward."""

    def __init__(self, method: "LocalMethod", units: list[Unit], run: Run) -> None:
        self._method, self.run = method, run
        self.units = units
        self._view: View | None = None  # None: calls of the modules are nobody's business
        self._is_predicting = False
        self._current: tuple[Unit, tuple[Any, ...], dict[str, Any]] | None = None
        self._stash: Gradients = {}
        self.micro_batches = 0
        self._handles: list[RemovableHandle] = []
        for unit in units:
            self._handles.append(unit.module.register_forward_pre_hook(self._enter(unit), with_kwargs=True))
            if unit.is_recurrent or unit.is_last:
                self._handles.append(unit.module.register_forward_hook(self._leave(unit)))

    # ---- views ------------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """A new estimate."""
        self._stash = {}

    def open(self, view: View, *, is_predicting: bool = False) -> None:
        """The next calls of the units' modules are this view's."""
        self._view, self._is_predicting, self._current = view, is_predicting, None

    def shut(self) -> None:
        """The view is over, or has failed."""
        self._view, self._current = None, None
        torch.set_grad_enabled(False)  # the engine's surroundings, whatever unit an exception left open

    def broken_off(self, view: View, *, is_predicting: bool = False) -> Callable[[Callable[[], Any]], Any]:
        """An Around for a view that ends before the loss."""

        def around(call: Callable[[], Any]) -> Any:
            self.open(view, is_predicting=is_predicting)
            try:
                call()
            except _Enough:
                return NOTHING
            finally:
                self.shut()
            raise Unsupported(
                f"the forward pass ended without a call of the last unit {self.units[-1].name!r}; name the units in the "
                "order of their calls with units="
            )

        return around

    @contextlib.contextmanager
    def predicting(self, view: View) -> Iterator[None]:
        """Round the forward pass of a prediction that counts."""
        self.open(view, is_predicting=True)
        try:
            yield
        finally:
            self._view, self._current = None, None

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()

    # ---- hooks ------------------------------------------------------------------------------------------------------

    def _enter(self, unit: Unit) -> Callable[..., Any]:
        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if self._view is None:
                return None
            self._close_current((args, kwargs))
            if unit.is_last and self._view.ends == "hidden":
                raise _Enough
            args, kwargs = _detached(args), _detached(kwargs)
            with torch.no_grad():
                args, kwargs = self._method.local_inputs(unit, args, kwargs, self._view, self.run)
            self._current = (unit, args, kwargs)
            if not self._is_predicting:
                torch.set_grad_enabled(self._records(unit))
            return args, kwargs

        return before

    def _leave(self, unit: Unit) -> Callable[..., Any]:
        def after(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            if self._view is None:
                return None
            if not unit.is_last:
                self._close_current(output)
                return _detached(output)
            if self._view.ends == "output":
                with torch.no_grad():
                    self._method.top(unit, _first_float(output).detach(), self.run)
                raise _Enough
            if self._is_predicting:
                with torch.no_grad():
                    return self._method.scores(_first_float(output).detach(), self.run)
            return None

        return after

    def _learns(self, unit: Unit) -> bool:
        assert self._view is not None
        return self._view.learns and not self._is_predicting and self._method.learns(unit, self._view, self.run)

    def _records(self, unit: Unit) -> bool:
        """Whether autograd records this unit in this view."""
        assert self._view is not None
        if unit.is_last:
            return self._view.ends == "loss" and self._method.learns(unit, self._view, self.run)
        return self._learns(unit) and self._method.needs_graph(unit, self._view)

    def _close_current(self, arriving: Any) -> None:
        """The current unit's output is complete: let it learn, and free its graph."""
        if self._current is None:
            return
        unit, args, kwargs = self._current
        self._current = None
        if unit.is_last:
            if not self._is_predicting:
                torch.set_grad_enabled(False)
            return
        assert self._view is not None
        output = _first_float(arriving)
        unit.owned = self._method.owned_of(unit, output, self.run)
        activity = Activity(unit, self._view, args, kwargs, output)
        learns, view = self._learns(unit), self._view
        self._view = None  # the algorithm may call the unit's module by itself
        try:
            if not learns:
                with torch.no_grad():
                    self._method.observe(activity, self.run)
                return
            with torch.enable_grad():
                signal = self._method.signal(activity, self.run)
                gradients = {} if signal is None else _gradients(unit, signal, output, self.run)
            torch.set_grad_enabled(False)
        finally:
            self._view = view
        for parameter, gradient in gradients.items():
            before = self._stash.get(parameter)
            self._stash[parameter] = gradient if before is None else before + gradient

    # ---- the end of an estimate -----------------------------------------------------------------------------------------

    def finished(self, leaves: Sequence[Tensor]) -> Estimate:
        """What the views of a step have gathered, and the last unit's graph.

        Raises:
            Unsupported: the forward pass did not end in the last unit.
        """
        if self._current is None or not self._current[0].is_last:
            raise Unsupported(
                f"the forward pass did not end in the last unit {self.units[-1].name!r}: the model calls its modules in "
                "another order than it registers them; name the units in the order of their calls with units="
            )
        unit, view = self._current[0], self._view
        assert view is not None
        owned = set(self._method.owned_parameters)
        hidden = {p: g for p, g in self._stash.items() if p not in owned}
        of_owned = {p: g for p, g in self._stash.items() if p in owned}
        self._stash = {}
        return _Streamed(self, unit, list(leaves), hidden, of_owned, learns=self._method.learns(unit, view, self.run))

    def gather_owned(self, gradients: Gradients, share: float | None) -> None:
        """One micro-batch's gradients of the modules that the algorithm owns; see Owned.gather."""
        self._method.owned_modules.gather(gradients, share)


def _share(run: Run) -> float | None:
    """The share of this micro-batch in the labels of its step; None where the trainer does not divide the loss by those."""
    if run.num_items is None or not isinstance(run.targets, Tensor):
        return None
    labels = run.targets
    counted = labels.numel() if labels.is_floating_point() else int((labels != -100).sum())
    return counted / run.num_items


def _detached(tree: Any) -> Any:
    return tree_map(lambda x: x.detach() if is_float(x) else x, tree)


def _first_float(tree: Any) -> Tensor:
    for leaf in tree_leaves(tree):
        if is_float(leaf):
            return leaf
    raise Unsupported("a unit was called without a floating-point tensor, so that the unit before has no output")


def _gradients(unit: Unit, signal: Signal, output: Tensor, run: Run) -> Gradients:
    owned = [] if unit.owned is None else [p for p in unit.owned.parameters() if p.requires_grad]
    parameters = unit.parameters + owned
    if signal.delta is not None:
        return dict(signal.delta)
    if not parameters:
        return {}
    if signal.closure is not None:
        return _probed(unit, parameters, signal, run)
    root, weight = (signal.loss, None) if signal.loss is not None else (output, signal.grad_output)
    assert root is not None
    if not root.requires_grad:
        raise Unsupported(
            f"unit {unit.name!r}: what arrives at the next unit does not depend on it; choose coarser units with units="
        )
    found = torch.autograd.grad(root, parameters, weight, allow_unused=True)
    gradients = {p: g for p, g in zip(parameters, found, strict=True) if g is not None}
    if not gradients:
        raise Unsupported(
            f"unit {unit.name!r}: what arrives at the next unit depends on none of its parameters; choose coarser units "
            "with units="
        )
    return gradients


@torch.no_grad()
def _probed(unit: Unit, parameters: list[nn.Parameter], signal: Signal, run: Run) -> Gradients:
    """Two-sided SPSA inside the unit: g = mean over directions of (J(w + eps z) - J(w - eps z)) / (2 eps) z."""
    assert signal.closure is not None
    eps, start = signal.eps, [p.clone() for p in parameters]
    gradients = [
        torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32), memory_format=torch.contiguous_format)
        for p in parameters
    ]
    for direction in range(signal.num_directions):
        keys = [noise.stream(run.seed, run.step, direction, f"{unit.key} {i}") for i in range(len(parameters))]
        losses = []
        try:
            for sign in (1, -1):
                for p, w, g, key in zip(parameters, start, gradients, keys, strict=True):
                    moved = w.to(g.dtype, copy=True).contiguous()
                    noise.add_normal_(moved, key, 0, sign * eps)
                    p.copy_(moved)
                losses.append(float(signal.closure()))
        finally:
            for p, w in zip(parameters, start, strict=True):
                p.copy_(w)
        slope = (losses[0] - losses[1]) / (2 * eps * signal.num_directions)
        for g, key in zip(gradients, keys, strict=True):
            noise.add_normal_(g, key, 0, slope)
    return {p: g.to(p.dtype) for p, g in zip(parameters, gradients, strict=True)}


@final
class _Streamed(Estimate):
    """The hidden units' gradients, and the last unit's graph from its input to the model's output."""

    def __init__(
        self, stream: Stream, unit: Unit, leaves: list[Tensor], hidden: Gradients, owned: Gradients, *, learns: bool
    ) -> None:
        self.values = []
        self._stream, self._unit, self._leaves, self._learns = stream, unit, leaves, learns
        self._hidden, self._owned = hidden, owned
        self._share = _share(stream.run)
        device = leaves[0].device.type
        self._is_scaled = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16

    def pull_back(self, leaf_gradients: Sequence[Tensor | None]) -> None:
        """Move everything to .grad. A loss that is a leaf scales the hidden units as it scales the last one: a trainer divides
        it by the number of micro-batches, or the model divides it by the labels of them all, and hidden units then count by
        their share of those. With a loss made outside, micro-batches are averaged."""
        pairs = [(leaf, g) for leaf, g in zip(self._leaves, leaf_gradients, strict=True) if g is not None]
        losses = [g for leaf, g in pairs if leaf.dim() == 0]
        if self._is_scaled and not losses:
            raise Unsupported(
                "under float16 autocast the loss is scaled, and a loss that is made outside of the model does not tell "
                "hidden units its scale; let the model return its loss, or use bfloat16"
            )
        if all(parameter.grad is None for parameter in self._hidden):
            self._stream.micro_batches = 0  # a new step, or zero_grad() after a micro-batch that was given up
        self._stream.micro_batches += 1
        n = self._stream.micro_batches if not losses else 1
        scale = float(losses[0]) * (1.0 if self._share is None else self._share) if losses else 1.0 / n
        for parameter, gradient in self._hidden.items():
            if parameter.grad is None:
                parameter.grad = gradient.mul(scale if losses else 1.0)
            else:
                parameter.grad.mul_(1.0 if losses else (n - 1) / n).add_(gradient, alpha=scale)
        self._stream.gather_owned(self._owned, self._share if losses else None)
        pairs = [(leaf, g) for leaf, g in pairs if leaf.requires_grad]
        if self._learns and pairs:
            roots, weights = [leaf for leaf, _ in pairs], [g for _, g in pairs]
            found = torch.autograd.grad(roots, self._unit.parameters, weights, allow_unused=True)
            for parameter, gradient in zip(self._unit.parameters, found, strict=True):
                if gradient is not None:
                    parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
        self._leaves, self._hidden, self._owned = [], {}, {}
