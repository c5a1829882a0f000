"""Plain loops: plug a method into a training loop that stays as it is."""

import logging
import os
from collections.abc import Callable, Sequence
from typing import Any, Literal, final

import torch
from torch import nn

from localplug.contract import Method
from localplug.engine import Engine
from localplug.log import Log
from localplug.recipes import method as make_method
from localplug.recipes import objective as make_objective

logger = logging.getLogger("localplug")


@final
class attach:  # noqa: N801 (used like a function: `with localplug.attach(...)`)
    """Train the model by a method, inside an unchanged loop of plain torch, Accelerate or Fabric.

    The model's forward is evaluated as often as the method needs, loss.backward() stops at the model's output, and the
    update happens just before optimizer.step(), with the optimizer's own learning rate and weight decay.

    Args:
        model: the unwrapped model.
        method: a name, or a method object.
        optimizer: the torch optimizer (or Accelerate's or Fabric's wrapper of it) whose step() the loop calls.
        seed: of the random directions.
        targets: gets (args, kwargs) of the forward call and gives the labels; by default kwargs["labels"].
        outputs: names of the output leaves that the loss is built on, if known.
        objective: a score without gradient in the place of the model's own loss: "accuracy", "f1", or a callable of
            `outputs`, `batch` and `model`, higher is better; see localplug.Objective. The loop sees its negative as the loss.
        log: a file that takes down every step, for `localplug replay`; see localplug.Engine.
        worker_directions, process_group, max_bad_steps: see localplug.Engine. With several processes attach before the
            model is wrapped in DistributedDataParallel (accelerator.prepare, fabric.setup), so that it makes no buckets; and
            after it is sharded by fully_shard, which makes new parameters.
        **options: the method's own, checked against its signature.

    Raises:
        Unsupported: they cannot train together; lists every reason.

    Example:
        >>> import torch, localplug
        >>> model = torch.nn.Linear(4, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        >>> with localplug.attach(model, "mezo", optimizer, eps=1e-3):
        ...     for _ in range(3):
        ...         loss = model(torch.ones(8, 4)).square().mean()
        ...         loss.backward()
        ...         optimizer.step()
        ...         optimizer.zero_grad()
    """

    def __init__(
        self,
        model: nn.Module,
        method: str | Method,
        optimizer: Any,
        *,
        seed: int = 0,
        targets: Callable[[tuple[Any, ...], dict[str, Any]], Any] | None = None,
        outputs: Sequence[str] | None = None,
        objective: str | Callable[..., Any] | None = None,
        worker_directions: Literal["same", "different"] = "same",
        process_group: Any = None,
        max_bad_steps: int = 20,
        log: str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> None:
        optimizer = innermost(optimizer)
        self.engine = Engine(
            model,
            make_method(method, **options),
            optimizer,
            seed=seed,
            outputs=outputs,
            objective=None if objective is None else make_objective(objective),
            worker_directions=worker_directions,
            process_group=process_group,
            max_bad_steps=max_bad_steps,
            log=None if log is None else Log(log, method=method, options=options),
        )
        self._detach = self.engine.attach(targets=targets or labels_of_call)
        self._hook = optimizer.register_step_pre_hook(self._before_step)
        announce(self.engine)

    def _before_step(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if any(a is not None for a in args[1:]) or kwargs.get("closure") is not None:  # args[0] is the optimizer
            raise ValueError("optimizer.step(closure) evaluates round localplug; call loss.backward() and then step()")
        self.engine.apply(optimizer)

    def close(self) -> None:
        """Give the model and the optimizer back as they were."""
        self._detach()
        self._hook.remove()
        self.engine.close()

    def __enter__(self) -> "attach":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def innermost(optimizer: Any) -> torch.optim.Optimizer:
    """The torch optimizer inside the wrappers that Accelerate and Fabric put around it.

    Raises:
        TypeError: there is none.
    """
    inner = getattr(optimizer, "optimizer", None)
    if isinstance(inner, torch.optim.Optimizer):
        return innermost(inner)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer or a wrapper of one, got {optimizer!r}")
    return optimizer


def labels_of_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The labels where nobody says otherwise: the keyword argument `labels` of the model's forward call."""
    return kwargs.get("labels")


def announce(engine: Engine, more: str = "") -> None:
    """Log the start line, on one worker of several."""
    if engine.worker == 0:
        logger.info(start_line(engine) + more)


def start_line(engine: Engine) -> str:
    """What is true at the start of every training, in one line: the method, its cost in forward passes, the weights."""
    weights = sum(p.numel() for _, p in engine.run.parameters)
    workers = engine.num_workers
    together = f", {workers} workers with {engine.worker_directions} directions" if workers > 1 else ""
    return (
        f"{engine.method.describe()}; {engine.method.cost}, "
        f"{'a' if engine.method.backpropagates else 'no'} backward pass through "
        f"{engine.method.backpropagates or 'the model'}, {weights:,} weights, seed {engine.run.seed}{together}"
    )
