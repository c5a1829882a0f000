"""LocalPlugStrategy: any localplug method under an unmodified Lightning Trainer and LightningModule.

training_step runs as often as the method asks and gives back a loss whose backward stops at once; the update happens
between that backward and the optimizer's step. `backward` itself is left alone, so that accumulation, clipping and the
module's own hooks see what they always see. One mixin serves `lightning` and `pytorch_lightning`, whose base classes
differ only by name.
"""

import functools
import importlib
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from localplug import Engine, Method
from localplug import method as make_method
from localplug.checks import refuse
from localplug.loop import start_line
from localplug.plugins import names

logger = logging.getLogger("localplug")

TARGET_KEYS = ("labels", "label", "targets", "target", "y")


def batch_targets(batch: Any) -> Any:
    """The labels of a batch: (inputs, labels), or a mapping with one of TARGET_KEYS; None where there are none."""
    if isinstance(batch, Mapping):
        return next((batch[key] for key in TARGET_KEYS if key in batch), None)
    if isinstance(batch, Sequence) and not isinstance(batch, str) and len(batch) > 1:
        return batch[1]
    return None


class _LocalPlugMixin:
    """The overrides, to be combined with a Lightning strategy of one device."""

    _misconfigured: type[Exception]

    def _plug(
        self,
        method: str | Method,
        seed: int,
        targets: Callable[[Any], Any] | None,
        options: dict[str, Any],
    ) -> None:
        self._method = make_method(method, **options)
        self._make = lambda: make_method(method, **options)
        self._seed, self._targets = seed, targets or batch_targets
        self._restored: dict[str, Any] | None = None
        self.engine: Engine | None = None

    # ---- life -------------------------------------------------------------------------------------------------------

    def setup(self, trainer: Any) -> None:
        super().setup(trainer)  # type: ignore[misc]
        if trainer.state.fn != "fit":
            return
        if self.engine is not None:
            self.engine.close()
            self._method = self._make()
        optimizers = self.optimizers  # type: ignore[attr-defined]
        refusals = _refusals(self, trainer)
        if len(optimizers) != 1:
            refuse(refusals)
        self.engine = Engine(
            self.lightning_module,  # type: ignore[attr-defined]
            self._method,
            optimizers[0],
            seed=self._seed,
            clipping=float(trainer.gradient_clip_val or 0.0),
            accumulation=trainer.accumulate_grad_batches,
            refusals=refusals,
        )
        if self._restored is not None:  # the checkpoint is read before the engine exists
            self.engine.load_state_dict(self._restored)
            self._restored = None
        logger.info(start_line(self.engine))

    def teardown(self) -> None:
        if self.engine is not None:
            self.engine.close()
        super().teardown()  # type: ignore[misc]

    # ---- one step ---------------------------------------------------------------------------------------------------

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        assert self.engine is not None
        run = functools.partial(super().training_step, *args, **kwargs)  # type: ignore[misc]
        module = self.lightning_module  # type: ignore[attr-defined]
        evaluations, extra = [0], {}

        def closure() -> Any:
            evaluations[0] += 1
            if evaluations[0] > 1:  # the metrics of a batch are logged once
                module.log = module.log_dict = lambda *_, **__: None
            try:
                output = run()
            finally:
                module.__dict__.pop("log", None)
                module.__dict__.pop("log_dict", None)
            if isinstance(output, Mapping):
                extra.update({k: v for k, v in output.items() if k != "loss"})
                output = output.get("loss")
            if not isinstance(output, torch.Tensor):
                raise self._misconfigured(
                    f"training_step must return the loss, or a dictionary with 'loss', for localplug; got {output!r}"
                )
            return output

        loss = self.engine.surrogate(closure, targets=self._targets(args[0]) if args else None)
        return {"loss": loss, **extra} if extra else loss

    def optimizer_step(
        self, optimizer: torch.optim.Optimizer, closure: Callable[[], Any], model: Any = None, **kwargs: Any
    ) -> Any:
        # The precision plugin calls .step(closure), where closure = training_step, zero_grad, backward, clipping: the
        # stand-in runs it, lets the engine update, and then steps the real optimizer.
        return super().optimizer_step(_Applying(optimizer, self), closure, model, **kwargs)  # type: ignore[misc]

    # ---- checkpoints ------------------------------------------------------------------------------------------------

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        if self.engine is not None:
            checkpoint["localplug"] = self.engine.state_dict()
        super().save_checkpoint(checkpoint, filepath, storage_options)  # type: ignore[misc]

    def load_checkpoint(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        checkpoint: dict[str, Any] = super().load_checkpoint(*args, **kwargs)  # type: ignore[misc]
        self._restored = checkpoint.get("localplug")
        if self.engine is not None and self._restored is not None:
            self.engine.load_state_dict(self._restored)
            self._restored = None
        return checkpoint


def _refusals(strategy: Any, trainer: Any) -> list[str]:
    found = []
    if not strategy.lightning_module.automatic_optimization:
        found.append(
            "the module has automatic_optimization=False, and localplug stands in for automatic optimization; "
            "set it to True, or use localplug.attach in the module's own loop with another strategy"
        )
    if len(strategy.optimizers) != 1:
        found.append(f"configure_optimizers must give one optimizer, it gave {len(strategy.optimizers)}; give one")
    if getattr(trainer.precision_plugin, "scaler", None) is not None:
        found.append("precision 16-mixed scales the loss for a backward pass; use bf16-mixed, bf16-true or 32-true")
    return found


class _Applying:
    """Stands for the optimizer while the precision plugin steps it."""

    def __init__(self, optimizer: torch.optim.Optimizer, strategy: Any) -> None:
        self.__dict__.update(_optimizer=optimizer, _strategy=strategy)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._optimizer, name)

    def step(self, closure: Callable[[], Any] | None = None, **kwargs: Any) -> Any:
        result = closure() if closure is not None else None
        self._strategy.engine.apply(self._optimizer)
        self._optimizer.step(**kwargs)
        return result


@functools.cache
def make(package: str) -> Any:
    """The strategy class for one package, "lightning.pytorch" or "pytorch_lightning", with its names registered there."""
    strategies = importlib.import_module(f"{package}.strategies")
    exceptions = importlib.import_module(f"{package}.utilities.exceptions")

    class LocalPlugStrategy(_LocalPlugMixin, strategies.SingleDeviceStrategy):  # type: ignore[name-defined]
        """Train a LightningModule by a localplug method, on one device.

        Args:
            method: a name such as "mezo" or "tpsgd", or a localplug.Method.
            seed: of the random directions.
            targets: gets the batch and gives the labels, for layer-local methods; by default the second element, or
                what is under "labels", "label", "targets", "target" or "y".
            device, accelerator, checkpoint_io, precision_plugin: as of Lightning's SingleDeviceStrategy; the Trainer's
                accelerator= and devices= choose the device when none is given here.
            **options: the method's own, checked against its signature.

        Raises:
            TypeError, ValueError: when made, for options that the method does not have, or out of their range.
            localplug.Unsupported: at fit(), with every reason why this module and Trainer cannot train by this method.
        """

        strategy_name = "localplug"
        _misconfigured = exceptions.MisconfigurationException

        def __init__(
            self,
            method: str | Method = "mezo",
            *,
            seed: int = 0,
            targets: Callable[[Any], Any] | None = None,
            device: Any = None,
            accelerator: Any = None,
            checkpoint_io: Any = None,
            precision_plugin: Any = None,
            **options: Any,
        ) -> None:
            self._plug(method, seed, targets, options)
            self._device_is_free = device is None
            super().__init__(
                device=device or "cpu",
                accelerator=accelerator,
                checkpoint_io=checkpoint_io,
                precision_plugin=precision_plugin,
            )

        # Lightning hands the devices that the user chose to strategies that have this attribute.
        @property
        def parallel_devices(self) -> Any:
            return None if self._device_is_free else [self._root_device]

        @parallel_devices.setter
        def parallel_devices(self, devices: Sequence[torch.device]) -> None:
            if len(devices) > 1:
                raise self._misconfigured(
                    f"localplug trains on one device in this release, the Trainer has {len(devices)}; set devices=1"
                )
            self._root_device, self._device_is_free = torch.device(devices[0]), False

    LocalPlugStrategy.__module__ = (
        "localplug_lightning" if package.startswith("lightning") else "localplug_lightning.pl"
    )
    for name in sorted(names("methods")):
        registered = f"localplug_{name}"
        if registered not in strategies.StrategyRegistry:
            strategies.StrategyRegistry.register(
                registered, LocalPlugStrategy, description=f"localplug: {name}, without backpropagation", method=name
            )
    return LocalPlugStrategy
