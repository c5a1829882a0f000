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
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from localplug.alarms import Alarms
from localplug.attachment import Attachment
from localplug.carrier import Carrier
from localplug.checks import problems, refuse, trainable
from localplug.contract import NOTHING, Around, Estimate, Estimating, Groups, Method, Run
from localplug.errors import EngineError
from localplug.interrupts import held
from localplug.log import Log
from localplug.objectives import Objective
from localplug.output import Output
from localplug.replay import Replay
from localplug.workers import Workers, number_of_workers, spare_gradients

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
        worker_directions: what several processes of torch.distributed do: "same" evaluates the same directions on each
            worker's part of the batch and averages; "different" gives each worker directions of its own, so that W
            workers average W times as many. One process does the same either way.
        process_group: the processes that train this model; by default all of torch.distributed.
        objective: a callable whose score stands in the place of the model's own loss, and is raised; it needs no gradient. By
            name ("accuracy", "f1") in `localplug.attach` and the integrations; see localplug.Objective. For `attach` alone: a
            closure can return its score, negated, as it is.
        max_bad_steps: after so many steps in a row without a finite estimate training ends with an error; at least 1.
        log: a file that takes down every step, so that `localplug.replay_log` can repeat the run on the weights it began
            with; see localplug.trajectory. Worker 0 writes it. Buffers, such as running statistics, are not in it.
        refusals: reasons why the trainer cannot take part, to be reported together with all the others.

    Raises:
        Unsupported: the model, the method and the optimizer cannot train together; lists every reason.
        EngineError: the workers do not start alike.
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
        worker_directions: Literal["same", "different"] = "same",
        process_group: Any = None,
        objective: Callable[..., Any] | None = None,
        max_bad_steps: int = 20,
        log: "str | os.PathLike[str] | Log | None" = None,
        refusals: Sequence[str] = (),
    ) -> None:
        if isinstance(outputs, str):
            raise TypeError(f"outputs must be a sequence of names such as ({outputs!r},), got the string {outputs!r}")
        if worker_directions not in ("same", "different"):
            raise ValueError(f'worker_directions must be "same" or "different", got {worker_directions!r}')
        if not (isinstance(max_bad_steps, int) and max_bad_steps >= 1):
            raise ValueError(f"max_bad_steps must be an integer of at least 1, got {max_bad_steps!r}")
        num_workers = number_of_workers(process_group)
        apart = num_workers if worker_directions == "different" else 1
        self.run = Run(
            model,
            trainable(model),
            seed,
            clipping=clipping,
            accumulation=accumulation,
            num_workers_apart=apart,
            optimizer=optimizer,
        )
        self.run.is_compiled = any(_is_compiled(module) for module in model.modules())
        self.log = log if isinstance(log, Log | None) else Log(log)
        self.objective = objective if isinstance(objective, Objective | None) else Objective(objective)
        judging = self.objective.problems(method, outputs) if self.objective is not None else []
        not_logged = self.log.problems(self.run, method) if self.log is not None else []
        refuse([*refusals, *problems(self.run, method, optimizer), *judging, *not_logged])
        self.method = method
        self.alarms = Alarms()
        self.gradient_norm: float | None = None
        """Root mean square of the last step's slopes, after whatever clipped them."""
        self._outputs = tuple(outputs) if outputs is not None else None
        self._used: dict[str, set[str]] = {}  # kind of output -> names of the leaves that the loss was built on
        self._busy = False
        self._last: Output | None = None
        parameters = [p for _, p in self.run.parameters]
        q = method.num_coefficients
        self._carrier = Carrier(parameters, q, method.num_slopes, apart) if q else None
        self._forwards_applied = 0
        self._replay = Replay(model)
        self._max_bad_steps, self._bad_steps = max_bad_steps, 0
        self._attachment: Attachment | None = None
        self._process_group, self._workers, self._take_back = process_group, None, None
        if num_workers > 1:
            self._workers = Workers(process_group)
            self._workers.start_alike(model, self.run)
            self._take_back = spare_gradients(model)
            if self._workers.rank:
                self.log = None
            if apart > 1:
                self.run.first_direction = self._workers.rank * method.num_directions
        method.setup(self.run)

    # ---- evaluations ----------------------------------------------------------------------------------------------

    @property
    def is_evaluating(self) -> bool:
        """Whether an estimate is being made."""
        return self._busy

    @property
    def num_shown(self) -> int:
        """Elements of the parameter whose gradient shows the coefficients; 0 for methods that have none."""
        return self._carrier.parameter.numel() if self._carrier is not None else 0

    @property
    def num_workers(self) -> int:
        """Processes that train this model together."""
        return self._workers.size if self._workers is not None else 1

    @property
    def worker(self) -> int:
        """Number of this process among them, from 0."""
        return self._workers.rank if self._workers is not None else 0

    @property
    def worker_directions(self) -> str:
        """What the workers draw: "same" or "different" directions."""
        return "different" if self.run.num_workers_apart > 1 else "same"

    @property
    def has_estimate(self) -> bool:
        """Whether a loss reached the engine since the last update."""
        return self.run.num_forwards > self._forwards_applied

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """The surroundings of one estimate: no gradients, and the same random numbers in each evaluation."""
        if self.log is not None and not self.has_estimate:
            self.log.weigh(self.run)
        self._busy = True
        self.alarms.begin()
        try:
            with torch.no_grad(), self._replay:
                yield
        finally:
            self._busy = False

    def rewind(self) -> None:
        """Before each evaluation of an estimate."""
        self._replay.rewind()

    def forget(self) -> None:
        """Let go of the last output, so that its memory is free for the next one."""
        self._last = None

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

    def send(self, estimating: Estimating, tree: Any) -> Around | None:
        """Hand one evaluation to the method; gives what the next is made by. StopIteration carries its estimate."""
        self.run.num_forwards += 1
        if tree is NOTHING:
            return estimating.send([])
        output = Output(tree)
        if not output.leaves:
            raise EngineError("the model returned no floating-point tensor, so that no loss can depend on it")
        leaves = [output.leaves[i] for i in self._tracked(output)]
        self.alarms.losses(leaves)
        self._last = output
        return estimating.send(leaves)

    def _drive(self, closure: Callable[[], Any]) -> Estimate:
        if self.objective is not None:
            raise EngineError(
                "objective= is for attached models; let the closure return its score, negated, as the loss"
            )
        estimating = self.method.estimate(self.run)
        try:
            around = next(estimating)
            while True:
                self.forget()
                self.rewind()
                around = self.send(estimating, _evaluated(closure, around))
        except StopIteration as stop:
            return stop.value
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
        with self.evaluating():
            estimate = self._drive(closure)
            assert self._last is not None
            loss = estimate.values[0] if estimate.values else self._last.leaves[0].detach()
            if loss.dim() != 0:
                raise ValueError(f"the closure must return a scalar loss, got shape {tuple(loss.shape)}")
            self._gather(estimate, [torch.full_like(loss, scale)])
        self.run.targets = None
        self.forget()
        return loss

    def surrogate(self, closure: Callable[[], Any], *, targets: Any = None) -> Any:
        """Estimate from a closure that gives any output; the result looks differentiable and reports to the engine."""
        self.run.targets = targets
        with self.evaluating():
            estimate = self._drive(closure)
        return self.wrapped(estimate, closure, targets)

    def attach(
        self,
        module: nn.Module | None = None,
        *,
        targets: Callable[[tuple[Any, ...], dict[str, Any]], Any] | None = None,
    ) -> Callable[[], None]:
        """Let every training forward of `module` (by default the model) be estimated; returns what detaches it.

        Args:
            targets: gets the call's (args, kwargs) and gives the labels, for layer-local methods.
        """
        self._attachment = Attachment(self, self.run.model if module is None else module, targets)
        return self._attachment.detach

    def close(self) -> None:
        """Undo what the engine and the method did to the model. The engine is of no use afterwards."""
        if self._attachment is not None:
            self._attachment.detach()
        if self._take_back is not None:
            self._take_back()
        if self.log is not None:
            self.log.close()
        self.method.teardown()

    # ---- from the trainer's backward to coefficients ----------------------------------------------------------------

    def wrapped(self, estimate: Estimate, evaluate: Callable[[], Any], targets: Any) -> Any:
        """The last output, with leaves that look differentiable and whose backward reports to the engine.

        Args:
            evaluate: gives the output once more; used when the first backward shows that the loss is built on another
                leaf than was assumed.
            targets: the labels of this estimate.
        """
        output = self._last
        assert output is not None
        self.forget()
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
                if self.objective is not None:
                    raise EngineError(
                        f"objective= stands in the place of the model's own loss, and this trainer builds its loss on the "
                        f"outputs {[names[i] for i in got]}; let it take the model's (no label smoothing, no loss function "
                        "of its own)"
                    )
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
                    self.run.targets = targets
                    with replayable, self.evaluating():
                        mine = self._drive(evaluate)
                    self.forget()
            with torch.no_grad():
                self._gather(mine, [gradients[i] for i in positions])

        return output.stubbed(leaves, sink)

    def _gather(self, estimate: Estimate, leaf_gradients: Sequence[Tensor | None]) -> None:
        """Add what one micro-batch gave: to the carrier, or, of a layer-local method, to the gradients."""
        coefficients = estimate.pull_back(leaf_gradients)
        if self._workers is None and number_of_workers(self._process_group) > 1:
            raise EngineError(
                "torch.distributed came up after localplug: this worker would train alone. Attach after "
                "init_process_group (Accelerator(), fabric.launch() and the like do it)"
            )
        if coefficients is None:
            if self._workers is not None:
                learned = [p for _, p in self.run.parameters] + self.method.owned_parameters
                self._workers.average_([p.grad for p in learned if p.grad is not None], self.run)
            return
        if self._workers is not None:
            coefficients = self._workers.exchange(coefficients, self.run)
        if self._carrier is not None:
            self._carrier.gather(coefficients)

    # ---- the update -------------------------------------------------------------------------------------------------

    def apply(self, optimizer: torch.optim.Optimizer) -> bool:
        """Update the weights, or leave in .grad what the optimizer needs to; call it just before optimizer.step().

        Returns: False if the estimate was not finite and the update was left out.

        Raises:
            EngineError: no evaluation reached the engine since the last update, or a real backward pass reached the
                weights of a method that needs none.
        """
        if not self.has_estimate:
            raise EngineError(
                "no evaluation reached localplug in this step: the loss was computed without a training forward call "
                "of the attached module"
            )
        self._forwards_applied = self.run.num_forwards
        self.run.optimizer = optimizer
        groups: Groups = {p: group for group in optimizer.param_groups for p in group["params"]}
        if missing := [n for n, p in self.run.parameters if p not in groups]:
            raise EngineError(
                f"the optimizer does not hold {missing[:3]} any more: something has put other parameters into the model or "
                "the optimizer since (FSDP2 does); attach after that, that is after accelerator.prepare or "
                "fabric.setup_module"
            )
        coefficients = None
        if self._carrier is not None:
            self._refuse_real_gradients(self._carrier.parameter)
            coefficients = self._carrier.take()
            if coefficients is None:
                raise EngineError("no loss was back-propagated in this step (or zero_grad() came after it)")
        values: list[float] = [] if coefficients is None else coefficients.tolist()
        fine = True
        if self._carrier is not None:
            slopes = [values[i] for i in self._carrier.slopes]
            fine = self.alarms.coefficients(values, slopes, self.run.step)
            self.gradient_norm = math.sqrt(sum(v * v for v in slopes) / len(slopes))
        if self.log is not None and coefficients is not None:
            self.log.begin(self.run, self.method, optimizer.param_groups, coefficients)
        with torch.no_grad(), held():  # an interrupt waits until the step is done as a whole
            if fine:
                self.method.update(self.run, values, groups)
                if self.log is not None:
                    self._refuse_gradients_left()
            else:
                self.run.num_dropped += 1
            self.run.step += 1
            if self.log is not None:
                self.log.step(values if fine else None, optimizer.param_groups)
        self._bad_steps = 0 if fine else self._bad_steps + 1
        if self._bad_steps >= self._max_bad_steps:
            raise EngineError(
                f"the estimates of the last {self._bad_steps} steps were not finite, and so nothing is learned; go back "
                "to a checkpoint and lower the learning rate, or train in float32 (max_bad_steps raises this limit)"
            )
        return fine

    def _refuse_real_gradients(self, carrier: nn.Parameter) -> None:
        wrong = [n for n, p in self.run.parameters if p.grad is not None and p is not carrier]
        if wrong:
            raise EngineError(
                f"a real backward pass reached {wrong[:3]}: part of the loss does not go through the attached module"
            )

    def _refuse_gradients_left(self) -> None:
        if left := [n for n, p in self.run.parameters if p.grad is not None]:
            raise EngineError(
                f"the method leaves the update of {left[:3]} to the optimizer, so that its coefficients do not say what a step "
                "does; leave log out, or let the method update the weights itself"
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
        """Take back what `state_dict` gave.

        Raises:
            ValueError: it is not that, or not of this method.
        """
        try:
            seed, step = int(state["seed"]), int(state["step"])
            self.method.load_state_dict(state["method"])
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise ValueError(
                f"this is no state of {self.method.describe()}, or it is damaged: {type(error).__name__}: {error}"
            ) from error
        self.run.seed, self.run.step = seed, step


def _is_compiled(module: nn.Module) -> bool:
    """By torch.compile(module), by module.compile(), or as Lightning keeps a compiled LightningModule."""
    marks = ("_compiled_call_impl", "_compiler_ctx")
    return type(module).__name__ == "OptimizedModule" or any(getattr(module, m, None) is not None for m in marks)


def _evaluated(closure: Callable[[], Any], around: Around | None) -> Any:
    """The closure's output. Its own StopIteration must not pass for the end of an estimate."""
    try:
        return closure() if around is None else around(closure)
    except StopIteration as stop:
        raise RuntimeError("the closure raised StopIteration: its iterator is exhausted") from stop
