"""The engine drives a method under any trainer: it repeats forwards, intercepts the backward, and applies the update.

Three drivers give a method the same semantics:
    attach(module)      hooks on the model; the framework's own forward call is the last evaluation of each estimate
    surrogate(closure)  closure() -> any output; what comes back looks differentiable, and reports instead
    evaluate(closure)   closure() -> scalar loss; nothing pretends to be differentiable
and `apply(optimizer)` turns what they gathered into one update. The engine knows no mechanism and no framework.
"""

import contextlib
import logging
import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from localplug.alarms import Alarms
from localplug.carrier import Carrier
from localplug.checks import check, refuse, trainable
from localplug.contract import Estimate, Estimating, Groups, Method, Run
from localplug.errors import EngineError
from localplug.output import Output
from localplug.replay import Replay

logger = logging.getLogger("localplug")


@final
class Engine:
    """Drives one method on one model.

    Args:
        model: unwrapped; its trainable parameters at this moment are what is trained.
        method: the algorithm.
        optimizer: if given, the problems of this optimizer are looked for, too.
        seed: of every random direction and projection; with `run.step` it gives them all.
        outputs: names of the output leaves that the loss is built on, such as ("logits",). By default the model's own
            scalar loss is assumed, and the first backward call corrects the assumption at the cost of one repetition.
        clipping: the gradient norm that the trainer clips to, 0 if it does not; methods that must not be clipped refuse.
        accumulation: micro-batches in one optimizer step, for methods that refuse it.
        refusals: reasons why the trainer cannot take part, to be reported together with all the others.

    Raises:
        Unsupported: the model, the method and the optimizer cannot train together; lists every reason.
    """

    def __init__(
        self,
        model: nn.Module,
        method: Method,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        seed: int = 0,
        outputs: Sequence[str] | None = None,
        clipping: float = 0.0,
        accumulation: int = 1,
        refusals: Sequence[str] = (),
    ) -> None:
        if isinstance(outputs, str):
            raise TypeError(f"outputs must be a sequence of names such as ({outputs!r},), got the string {outputs!r}")
        refuse([*refusals, *check(model, method, optimizer, seed=seed, clipping=clipping, accumulation=accumulation)])
        self.run = Run(model, trainable(model), seed, clipping=clipping, accumulation=accumulation)
        self.method = method
        self.alarms = Alarms()
        self.gradient_norm: float | None = None
        """Root mean square of the last step's coefficients, after whatever clipped them."""
        self._outputs = tuple(outputs) if outputs is not None else None
        self._used: dict[str, set[str]] = {}  # kind of output -> names of the leaves that the loss was built on
        self._busy = False
        self._last: Output | None = None
        q = method.num_coefficients
        self._carrier = Carrier([p for _, p in self.run.parameters], q) if q else None
        self._forwards_applied = 0
        self._replay = Replay(model)
        method.setup(self.run)

    # ---- evaluations ----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _inside(self) -> Iterator[None]:
        self._busy = True
        try:
            with torch.no_grad(), self._replay:
                yield
        finally:
            self._busy = False

    def _tracked(self, output: Output) -> list[int]:
        """Positions of the leaves that an estimate is made of."""
        names = self._used.get(output.kind)
        if names is None and self._outputs is not None:
            if missing := set(self._outputs) - set(output.names):
                raise ValueError(f"outputs={self._outputs}: the model gives {output.names}, and no {sorted(missing)}")
            names = set(self._outputs)
        if names is None:
            scalar = [i for i, leaf in enumerate(output.leaves) if leaf.dim() == 0]
            return scalar[:1] or list(range(len(output.leaves)))
        return [i for i, name in enumerate(output.names) if name in names]

    def _send(self, estimating: Estimating, tree: Any) -> None:
        """Hand one evaluation to the method. StopIteration carries its estimate."""
        self.run.num_forwards += 1
        output = Output(tree)
        if not output.leaves:
            raise EngineError("the model returned no floating-point tensor, so that no loss can depend on it")
        leaves = [output.leaves[i] for i in self._tracked(output)]
        self.alarms.half_precision_loss(leaves)
        self._last = output
        estimating.send(leaves)

    def _drive(self, closure: Callable[[], Any]) -> tuple[Output, Estimate]:
        estimating = self.method.estimate(self.run)
        try:
            next(estimating)
            while True:
                self._last = None  # the output before may go before the next one comes
                self._replay.rewind()
                self._send(estimating, _evaluated(closure))
        except StopIteration as stop:
            assert self._last is not None
            return self._last, stop.value
        finally:
            estimating.close()  # leaves the method's `with` blocks, also when an evaluation raised

    def evaluate(self, closure: Callable[[], Tensor], *, scale: float = 1.0, targets: Any = None) -> Tensor:
        """Estimate from a closure that gives a scalar loss; nothing in it may call backward().

        Args:
            scale: weight of this micro-batch; 1 / (number of micro-batches) averages them.
            targets: labels, for layer-local methods.

        Returns: the loss, detached.
        """
        self.run.targets = targets
        with self._inside():
            output, estimate = self._drive(closure)
            loss = estimate.values[0] if estimate.values else output.leaves[0].detach()
            if loss.dim() != 0:
                raise ValueError(f"the closure must return a scalar loss, got shape {tuple(loss.shape)}")
            self._gather(estimate.pull_back([torch.full_like(loss, scale)]))
        self.run.targets = None
        self._last = None
        return loss

    def surrogate(self, closure: Callable[[], Any], *, targets: Any = None) -> Any:
        """Estimate from a closure that gives any output; the result looks differentiable and reports to the engine."""
        self.run.targets = targets
        with self._inside():
            output, estimate = self._drive(closure)
        return self._wrapped(output, estimate, lambda: self._again(closure, targets))

    def attach(
        self,
        module: nn.Module | None = None,
        *,
        targets: Callable[[tuple[Any, ...], dict[str, Any]], Any] | None = None,
    ) -> Callable[[], None]:
        """Let every training forward of `module` (by default the model) be estimated; returns what detaches it.

        A call is left alone in evaluation mode and while gradients are off. All but the last evaluation run before the
        framework's own forward call, which is the last one, so that no earlier output lives when it peaks.

        Args:
            targets: gets the call's (args, kwargs) and gives the labels, for layer-local methods.
        """
        module = self.run.model if module is None else module
        pending: list[tuple[Estimating, contextlib.ExitStack]] = []

        def abandon() -> None:
            while pending:
                estimating, stack = pending.pop()
                with stack:
                    estimating.close()

        def before(called: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self._busy or called is not module or not module.training or not torch.is_grad_enabled():
                return  # a copy of the model carries a copy of this hook, and is not ours
            self.run.targets = targets(args, kwargs) if targets else None
            stack = contextlib.ExitStack()
            stack.enter_context(self._inside())
            estimating = self.method.estimate(self.run)
            pending.append((estimating, stack))
            try:
                next(estimating)
                for _ in range(self.method.num_evaluations - 1):
                    self._replay.rewind()
                    self._send(estimating, module.forward(*args, **kwargs))
                    self._last = None
                self._replay.rewind()
            except BaseException:
                abandon()
                raise

        def after(called: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], tree: Any) -> Any:
            if called is not module or not pending:
                return None
            estimate: Estimate | None = None
            try:
                if tree is None:
                    return None  # the forward raised; `abandon` restores the weights
                self._send(pending[-1][0], tree)
                raise EngineError(
                    f"{type(self.method).__name__} asks for more evaluations than its num_evaluations = "
                    f"{self.method.num_evaluations}"
                )
            except StopIteration as stop:
                estimate = stop.value
            finally:
                abandon()
            output = self._last
            assert output is not None and estimate is not None
            asked_for = self.run.targets
            return self._wrapped(
                output, estimate, lambda: self._again(lambda: module.forward(*args, **kwargs), asked_for)
            )

        if (old := _ATTACHED.pop(module, None)) is not None:
            old()  # a training that was interrupted never detached itself
        handles: list[RemovableHandle] = [
            module.register_forward_pre_hook(before, with_kwargs=True),
            module.register_forward_hook(after, with_kwargs=True, always_call=True),
            # Torch runs no hook after a KeyboardInterrupt: whoever saves the model then must see its own weights.
            module.register_state_dict_pre_hook(lambda *_: abandon()),
        ]

        def detach() -> None:
            abandon()
            for handle in handles:
                handle.remove()
            if _ATTACHED.get(module) is detach:
                del _ATTACHED[module]

        _ATTACHED[module] = detach
        return detach

    def close(self) -> None:
        """Undo what the method did to the model. The engine is of no use afterwards."""
        if (detach := _ATTACHED.get(self.run.model)) is not None:
            detach()
        self.method.teardown()

    # ---- from the trainer's backward to coefficients ----------------------------------------------------------------

    def _again(self, closure: Callable[[], Any], targets: Any) -> Estimate:
        """The same estimate once more, now that it is known which leaves the loss is built on."""
        self.run.targets = targets
        with self._inside():
            return self._drive(closure)[1]

    def _wrapped(self, output: Output, estimate: Estimate, again: Callable[[], Estimate]) -> Any:
        self._last = None
        tracked = self._tracked(output)
        known = output.kind in self._used or self._outputs is not None
        replayable = self._replay.frozen()
        leaves = [leaf.detach() for leaf in output.leaves]
        for position, value in zip(tracked, estimate.values, strict=False):
            leaves[position] = value.to(leaves[position].dtype)
        names, kind = output.names, output.kind

        def sink(gradients: Sequence[Tensor | None]) -> None:
            got = [i for i, gradient in enumerate(gradients) if gradient is not None]
            positions, mine = tracked, estimate
            if not set(got) <= set(positions):
                if known:
                    new = [names[i] for i in got if i not in positions]
                    raise EngineError(
                        f"the loss is now built on the outputs {new}, which it did not use before; "
                        f"pass outputs={[names[i] for i in got]} if that is meant"
                    )
                positions = got
            if not known:
                self._used[kind] = {names[i] for i in positions}
                if positions is not tracked:
                    with replayable:
                        mine = again()
            with torch.no_grad():
                self._gather(mine.pull_back([gradients[i] for i in positions]))

        return output.stubbed(leaves, sink)

    def _gather(self, coefficients: Tensor | None) -> None:
        if coefficients is not None and self._carrier is not None:
            self._carrier.gather(coefficients)

    # ---- the update -------------------------------------------------------------------------------------------------

    def apply(self, optimizer: torch.optim.Optimizer) -> bool:
        """Update the weights, or leave in .grad what the optimizer needs to; call it just before optimizer.step().

        Returns: False if the estimate was not finite and the update was left out.

        Raises:
            EngineError: no evaluation reached the engine since the last update, or a real backward pass reached the
                weights of a method that needs none.
        """
        if self.run.num_forwards == self._forwards_applied:
            raise EngineError(
                "no evaluation reached localplug in this step: the loss was computed without a training forward call "
                "of the attached module"
            )
        self._forwards_applied = self.run.num_forwards
        groups: Groups = {p: group for group in optimizer.param_groups for p in group["params"]}
        coefficients = None
        if self._carrier is not None:
            self._refuse_real_gradients(self._carrier.parameter)
            coefficients = self._carrier.take()
            if coefficients is None:
                raise EngineError("no loss was back-propagated in this step (or zero_grad() came after it)")
        values: list[float] = [] if coefficients is None else coefficients.tolist()
        fine = True
        if values:
            fine = self.alarms.coefficients(values, self.run.step)
            self.gradient_norm = math.sqrt(sum(v * v for v in values) / len(values))
        if fine:
            with torch.no_grad():
                self.method.update(self.run, values, groups)
        else:
            self.run.num_dropped += 1
        self.run.step += 1
        return fine

    def _refuse_real_gradients(self, carrier: nn.Parameter) -> None:
        wrong = [n for n, p in self.run.parameters if p.grad is not None and p is not carrier]
        if wrong:
            raise EngineError(
                f"a real backward pass reached {wrong[:3]}: part of the loss does not go through the attached module"
            )

    def step(self, closure: Callable[[], Tensor], optimizer: torch.optim.Optimizer, *, targets: Any = None) -> Tensor:
        """One whole training step: evaluate, apply, optimizer.step(), zero_grad(). Returns the loss."""
        loss = self.evaluate(closure, targets=targets)
        self.apply(optimizer)
        optimizer.step()
        optimizer.zero_grad()
        return loss

    # ---- state ------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs besides the weights and the optimizer: seed, step, and the method's own state."""
        return {"seed": self.run.seed, "step": self.run.step, "method": self.method.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.run.seed, self.run.step = int(state["seed"]), int(state["step"])
        self.method.load_state_dict(state["method"])


def _evaluated(closure: Callable[[], Any]) -> Any:
    """The closure's output. Its own StopIteration must not pass for the end of an estimate."""
    try:
        return closure()
    except StopIteration as stop:
        raise RuntimeError("the closure raised StopIteration: its iterator is exhausted") from stop


_ATTACHED: "weakref.WeakKeyDictionary[nn.Module, Callable[[], None]]" = weakref.WeakKeyDictionary()
