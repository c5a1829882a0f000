"""The layer-local mechanism: stream through the units, so that only one unit's graph is alive at any time.

A unit's input is detached when its module is called. When the next unit's module is called, what arrives there is the
unit's output: the method makes its Signal from it, the unit's own small graph turns the signal into gradients, and the
graph is freed before the next unit starts. The last unit learns from the trainer's own loss. Gradients wait in a stash
until the trainer calls backward (it may clear .grad between forward and backward), and then appear in .grad.
"""

import abc
from collections.abc import Callable, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.hooks import RemovableHandle

from localplug.contract import Estimate, Estimating, Groups, Method, Run, Signal, Unit, is_float
from localplug.errors import Unsupported


class LocalMethod(Method, abc.ABC):
    """A method whose units learn one by one during a single forward pass. What is not abstract here is final."""

    @abc.abstractmethod
    def partition(self, run: Run) -> list[Unit]:
        """The units in the order in which the forward pass reaches them; the last one learns from the trainer's loss."""

    @abc.abstractmethod
    def learns(self, unit: Unit, run: Run) -> bool:
        """Whether a unit learns in this step; one that does not runs without a graph."""

    @abc.abstractmethod
    def needs_graph(self, unit: Unit) -> bool:
        """Whether autograd should record the unit's forward; False for units whose signal is a loss of their own."""

    @abc.abstractmethod
    def signal(self, unit: Unit, inputs: tuple[Any, ...], output: Tensor, run: Run) -> Signal:
        """What a unit that is not the last learns from. Gradients are on while this is called.

        Args:
            inputs: the positional inputs of the unit's module, detached.
            output: the unit's output, (B, ...); attached to the unit's graph if `needs_graph`.
        """

    @property
    def num_evaluations(self) -> int:
        return 1

    @property
    def num_coefficients(self) -> int:
        return 0

    def setup(self, run: Run) -> None:
        self._stream = _Stream(self, self.partition(run), run)

    def estimate(self, run: Run) -> Estimating:
        if run.targets is None:
            raise ValueError(
                "local targets need the labels, and none reached the model's forward call: pass labels= to the model, "
                "or targets= to the callback, the strategy or attach (label smoothing and compute_loss_func take the "
                "labels away before the model is called)"
            )
        self._stream.open()
        try:
            leaves = yield
            return self._stream.finished(leaves)
        finally:
            self._stream.shut()

    def update(self, run: Run, coefficients: Sequence[float], groups: Groups) -> None:
        self._stream.applied()

    def teardown(self) -> None:
        self._stream.remove()


def uncovered(run: Run, units: Sequence[Unit]) -> list[str]:
    """Names of trainable parameters that belong to no unit, and would never learn."""
    covered = {p for unit in units for p in unit.parameters}
    return [n for n, p in run.parameters if p not in covered]


def _detached(tree: Any) -> Any:
    return tree_map(lambda x: x.detach() if is_float(x) else x, tree)


def _first_float(tree: Any) -> Tensor:
    for leaf in tree_leaves(tree):
        if is_float(leaf):
            return leaf
    raise Unsupported("a unit was called without a floating-point tensor, so that the unit before has no output")


@final
class _Stream:
    """The hooks on the units' modules, and the gradients that wait for the trainer's backward."""

    def __init__(self, method: LocalMethod, units: list[Unit], run: Run) -> None:
        self._method, self._units, self._run = method, units, run
        self._running = False
        self._current: tuple[Unit, tuple[Any, ...]] | None = None
        self.stash: dict[nn.Parameter, Tensor] = {}
        self.micro_batches = 0
        self._handles: list[RemovableHandle] = []
        for unit in units:
            self._handles.append(unit.module.register_forward_pre_hook(self._enter(unit), with_kwargs=True))
            if unit.is_recurrent:
                self._handles.append(unit.module.register_forward_hook(self._leave(unit)))

    def open(self) -> None:
        self._running, self._current, self.stash = True, None, {}

    def shut(self) -> None:
        self._running, self._current = False, None
        torch.set_grad_enabled(False)  # the engine's surroundings, whatever unit an exception left open

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _enter(self, unit: Unit) -> Callable[..., Any]:
        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if not self._running:
                return None
            self._close_current((args, kwargs))
            args, kwargs = _detached(args), _detached(kwargs)
            self._current = (unit, args)
            record = self._method.learns(unit, self._run) and (unit.is_last or self._method.needs_graph(unit))
            torch.set_grad_enabled(record)
            return args, kwargs

        return before

    def _leave(self, unit: Unit) -> Callable[..., Any]:
        def after(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            if not self._running or unit.is_last:
                return None
            self._close_current(output)
            return _detached(output)

        return after

    def _close_current(self, arriving: Any) -> None:
        """The current unit's output is complete: let it learn, and free its graph."""
        if self._current is None:
            return
        unit, inputs = self._current
        self._current = None
        if unit.is_last or not self._method.learns(unit, self._run):
            torch.set_grad_enabled(False)
            return
        output = _first_float(arriving)
        with torch.enable_grad():
            signal = self._method.signal(unit, inputs, output, self._run)
            gradients = _gradients(unit, signal, output)
        torch.set_grad_enabled(False)
        self.add(gradients)

    def add(self, gradients: dict[nn.Parameter, Tensor]) -> None:
        for parameter, gradient in gradients.items():
            self.stash[parameter] = self.stash[parameter] + gradient if parameter in self.stash else gradient

    def finished(self, leaves: Sequence[Tensor]) -> Estimate:
        if self._current is None or not self._current[0].is_last:
            raise Unsupported(
                f"the forward pass did not end in the last unit {self._units[-1].name!r}: the model calls its modules in "
                "another order than it registers them; name the units in the order of their calls with units="
            )
        unit, _ = self._current
        return _Streamed(self, unit, list(leaves), learns=self._method.learns(unit, self._run))

    def applied(self) -> None:
        self.micro_batches = 0


def _gradients(unit: Unit, signal: Signal, output: Tensor) -> dict[nn.Parameter, Tensor]:
    if signal.delta is not None:
        return dict(signal.delta)
    root, weight = (signal.loss, None) if signal.loss is not None else (output, signal.grad_output)
    assert root is not None
    if not root.requires_grad:
        raise Unsupported(
            f"unit {unit.name!r}: what arrives at the next unit does not depend on it; choose coarser units with units="
        )
    found = torch.autograd.grad(root, unit.parameters, weight, allow_unused=True)
    gradients = {p: g for p, g in zip(unit.parameters, found, strict=True) if g is not None}
    if not gradients:
        raise Unsupported(
            f"unit {unit.name!r}: what arrives at the next unit depends on none of its parameters; choose coarser units "
            "with units="
        )
    return gradients


@final
class _Streamed(Estimate):
    """The hidden units' gradients, and the last unit's graph from its input to the model's output."""

    def __init__(self, stream: _Stream, unit: Unit, leaves: list[Tensor], *, learns: bool) -> None:
        self.values = []
        self._stream, self._unit, self._leaves, self._learns = stream, unit, leaves, learns
        self._hidden = dict(stream.stash)
        device = leaves[0].device.type
        self._is_scaled = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16

    def pull_back(self, leaf_gradients: Sequence[Tensor | None]) -> None:
        """Move everything to .grad. A loss that is a leaf scales the hidden units as it scales the last one (a trainer
        divides it by the number of micro-batches); with a loss made outside, micro-batches are averaged."""
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
        scale = float(losses[0]) if losses else 1.0 / n
        for parameter, gradient in self._hidden.items():
            if parameter.grad is None:
                parameter.grad = gradient.mul(scale if losses else 1.0)
            else:
                parameter.grad.mul_(1.0 if losses else (n - 1) / n).add_(gradient, alpha=scale)
        pairs = [(leaf, g) for leaf, g in pairs if leaf.requires_grad]
        if self._learns and pairs:
            roots, weights = [leaf for leaf, _ in pairs], [g for _, g in pairs]
            found = torch.autograd.grad(roots, self._unit.parameters, weights, allow_unused=True)
            for parameter, gradient in zip(self._unit.parameters, found, strict=True):
                if gradient is not None:
                    parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
        self._leaves, self._hidden = [], {}
