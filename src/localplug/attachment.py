"""Hooks on a module that let each of its training forwards be estimated by an engine.

All evaluations but the last run in a forward pre-hook, and the framework's own forward call is the last one, so that no
earlier output lives when it peaks. A forward hook ends the estimate and hands out an output that looks differentiable.

Under torch.compile the two hooks break the graph round the model's forward, which is compiled as ever, also where it is
called from the first hook: of what happens here the compiler sees nothing but those calls.
"""

import contextlib
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, final

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from localplug.contract import Around, Estimate, Estimating
from localplug.errors import EngineError, Unsupported
from localplug.interrupts import HeldInterrupt
from localplug.objectives import arguments
from localplug.predictor import broken_off
from localplug.shards import gathers_itself
from localplug.workers import wasted_buckets

if TYPE_CHECKING:
    from localplug.engine import Engine

Targets = Callable[[tuple[Any, ...], dict[str, Any]], Any]


@final
class Attachment:
    """The hooks of one engine on one module.

    A call is left alone in evaluation mode and while gradients are off. A copy of the module carries copies of the
    hooks, which do nothing.

    Args:
        targets: gets the call's (args, kwargs) and gives the labels, for layer-local methods.
    """

    def __init__(self, engine: "Engine", module: nn.Module, targets: Targets | None) -> None:
        self._engine, self._module, self._targets = engine, module, targets
        self._pending: list[tuple[Estimating, contextlib.ExitStack]] = []
        self._interrupt = HeldInterrupt()
        self._nested = False  # in a call of our own
        self._predicting = contextlib.ExitStack()
        self.around: Around | None = None
        """What the framework's own forward call, which comes next, is to be made by."""
        if (old := _ATTACHED.pop(module, None)) is not None:
            old.detach()  # a training that was interrupted never detached itself
        # Where a module's own hooks gather its parameters, they must see what an evaluation has made of the shards.
        self._gathers = gathers_itself(module)
        hidden = torch.compiler.disable
        self._start, self._feed, self._finish = hidden(self._begin), hidden(self._take), hidden(self._end)
        self._handles: list[RemovableHandle] = [
            module.register_forward_pre_hook(self._before, with_kwargs=True, prepend=self._gathers),
            module.register_forward_hook(self._after, with_kwargs=True, always_call=True),
            # After an exception that is no Exception torch runs no hook: whoever saves the model must see its own weights.
            module.register_state_dict_pre_hook(lambda *_: self._abandon()),
        ]
        engine.run.goes_round = engine.objective is None
        if engine.method.goes_round:
            module.forward = _Forward(module)
        _ATTACHED[module] = self

    def __deepcopy__(self, memo: dict[int, Any]) -> "Attachment":
        return self  # a copy of the module keeps its hooks, which then see that they are not called by their module

    def detach(self) -> None:
        """Take the hooks off."""
        self._abandon()
        self._engine.run.goes_round = False
        for handle in self._handles:
            handle.remove()
        if isinstance(own := self._module.__dict__.get("forward"), _Forward):
            own.take_off()
        if _ATTACHED.get(self._module) is self:
            del _ATTACHED[self._module]

    def call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Evaluate the module once more. Hooks of others on the module itself see the framework's own call alone."""
        if not self._gathers:
            return self._module.forward(*args, **kwargs)
        self._nested = True
        try:
            return self._module(*args, **kwargs)
        finally:
            self._nested = False

    def _abandon(self) -> None:
        self._interrupt.let_go()
        self.around = None
        while self._pending:
            estimating, stack = self._pending.pop()
            with stack:
                estimating.close()

    def _before(self, called: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._engine.is_evaluating or self._nested or called is not self._module:
            return
        if not self._module.training:
            self._predict(args, kwargs)
            return
        if not torch.is_grad_enabled():
            return
        if torch.compiler.is_compiling():  # true while the compiler reads this
            self._engine.run.is_compiled = True
        self._evaluate(args, kwargs)

    def _predict(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Whatever a prediction needs before the evaluation loop's own call."""
        self._predicting.close()  # of a call that an interrupt has ended
        if (prediction := self._engine.method.predicting(self._engine.run)) is None:
            return
        self._nested = True
        try:
            broken_off(prediction, lambda: self._module.forward(*args, **kwargs))
        finally:
            self._nested = False
        self._predicting.enter_context(prediction.during)

    def _evaluate(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """All evaluations but the last; the compiler skips this frame, and reads those it calls."""
        try:
            estimating, around = self._start(args, kwargs)
            for _ in range(self._engine.method.num_evaluations - 1):
                around = self._feed(estimating, self._called(args, kwargs, around))
            self.around = around
        except BaseException:
            self._abandon()
            raise
        self._interrupt.hold()

    def _called(self, args: tuple[Any, ...], kwargs: dict[str, Any], around: Around | None) -> Any:
        objective = self._engine.objective
        if objective is not None and not objective.needs_outputs:
            return self._judged(None, args, kwargs)
        tree = self.call(args, kwargs) if around is None else around(lambda: self.call(args, kwargs))
        return self._judged(tree, args, kwargs)

    def _judged(self, tree: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The output with the objective in the place of its loss; the objective alone, where there is no output."""
        objective, model = self._engine.objective, self._engine.run.model
        if objective is None:
            return tree
        batch = arguments(self._module.forward, args, kwargs)
        nested, self._nested = self._nested, True  # the objective may call the model by itself
        try:
            return objective.loss(None, batch, model) if tree is None else objective.judged(tree, batch, model)
        finally:
            self._nested = nested

    def _begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Estimating, Around | None]:
        engine = self._engine
        if engine.run.is_compiled and not engine.method.num_coefficients:
            raise Unsupported("layer-local methods hook the model's modules, which torch.compile has compiled already")
        engine.alarms.wasted_buckets(wasted_buckets() - engine.num_shown)
        engine.run.targets = self._targets(args, kwargs) if self._targets else None
        engine.run.shape = _shape(args, kwargs)
        num_items = kwargs.get("num_items_in_batch")
        engine.run.num_items = None if num_items is None else float(num_items)
        stack = contextlib.ExitStack()
        stack.enter_context(engine.evaluating())
        estimating = engine.method.estimate(engine.run)
        self._pending.append((estimating, stack))
        around = next(estimating)
        engine.rewind()
        return estimating, around

    def _take(self, estimating: Estimating, tree: Any) -> Around | None:
        around = self._engine.send(estimating, tree)
        self._engine.forget()
        self._engine.rewind()
        return around

    def _after(self, called: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], tree: Any) -> Any:
        if called is not self._module or self._nested:
            return None
        self._predicting.close()
        if not self._pending:
            return None
        return self._finish(args, kwargs, tree)

    def _end(self, args: tuple[Any, ...], kwargs: dict[str, Any], tree: Any) -> Any:
        engine = self._engine
        estimate: Estimate | None = None
        try:
            if tree is None:
                return None  # the forward raised; `_abandon` restores the weights
            tree = self._judged(tree, args, kwargs)
            engine.send(self._pending[-1][0], tree)
            raise EngineError(
                f"{type(engine.method).__name__} asks for more evaluations than its num_evaluations = "
                f"{engine.method.num_evaluations}"
            )
        except StopIteration as stop:
            estimate = stop.value
        finally:
            interrupted = self._interrupt.let_go()
            self._abandon()
            if interrupted is not None:
                interrupted()
        targets = engine.run.targets
        assert estimate is not None
        return engine.wrapped(estimate, lambda: self.call(args, kwargs), targets)


def _shape(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, ...]:
    tensors = [x for x in (kwargs.get("input_ids"), *args, *kwargs.values()) if isinstance(x, torch.Tensor)]
    return tuple(tensors[0].shape) if tensors else ()


class _Forward:
    """Stands for a module's forward, and lets the attachment's `around` make one call of it.

    A hook could not: torch reads `forward` before it runs them. A copy of the module gets a copy of this, by memo.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._own = module.__dict__.get("forward")
        self.__wrapped__ = module.forward  # so that whoever asks for the signature gets the module's

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        attachment = _ATTACHED.get(self._module)
        around = attachment.around if attachment is not None else None
        if attachment is None or around is None:
            return self._theirs(*args, **kwargs)
        attachment.around = None
        return around(lambda: self._theirs(*args, **kwargs))

    def _theirs(self, *args: Any, **kwargs: Any) -> Any:
        if self._own is not None:
            return self._own(*args, **kwargs)
        return type(self._module).forward(self._module, *args, **kwargs)

    def take_off(self) -> None:
        """Give the module its own forward back."""
        if self._own is None:
            del self._module.forward
        else:
            self._module.forward = self._own


_ATTACHED: "weakref.WeakKeyDictionary[nn.Module, Attachment]" = weakref.WeakKeyDictionary()
