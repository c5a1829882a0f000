"""LocalPlugStrategy and LocalPlugDDPStrategy: any localplug method under an unmodified Lightning Trainer and module.

The classes are made twice, for `lightning` and for `pytorch_lightning`, whose base classes differ only by name.
"""

import functools
import importlib
import os
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch

from localplug import Method
from localplug.plugins import names
from localplug_lightning.mixin import LocalPlugMixin


@functools.cache
def make(package: str) -> tuple[Any, Any]:
    """The strategy classes for one package, with their names registered there.

    Args:
        package: "lightning.pytorch" or "pytorch_lightning".

    Returns: (LocalPlugStrategy, LocalPlugDDPStrategy).
    """
    strategies = importlib.import_module(f"{package}.strategies")
    exceptions = importlib.import_module(f"{package}.utilities.exceptions")

    class LocalPlugStrategy(LocalPlugMixin, strategies.SingleDeviceStrategy):  # type: ignore[name-defined]
        """Train a LightningModule by a localplug method, on one device.

        Args:
            method: a name such as "mezo" or "tpsgd", or a localplug.Method.
            seed: of the random directions.
            targets: gets the batch and gives the labels, for layer-local methods; by default the second element, or
                what is under "labels", "label", "targets", "target" or "y".
            max_bad_steps: after so many steps in a row without a finite estimate training ends with an error.
            log: a file that takes down every step, for `localplug replay`; see localplug.Engine.
            device, accelerator, checkpoint_io, precision_plugin: as of Lightning's SingleDeviceStrategy; the Trainer's
                accelerator= and devices= choose the device when none is given here.
            **options: the method's own, checked against its signature.

        Raises:
            TypeError, ValueError: when made, for options that the method does not have, or out of their range.
            localplug.Unsupported: at fit(), with every reason why this module and Trainer cannot train by this method.

        What training_step logs, and the torchmetrics that it updates, are those of its first evaluation; what it returns
        besides the loss is that of its last one. A batch for which it returns None is left out.

        In a file for LightningCLI the options go under dict_kwargs, or into the method's own class:

            strategy:
              class_path: localplug_lightning.LocalPlugStrategy
              init_args: {method: mezo, seed: 1}
              dict_kwargs: {eps: 0.001}

            strategy:
              class_path: localplug_lightning.LocalPlugStrategy
              init_args: {method: {class_path: localplug_zo.mezo.MeZO, init_args: {eps: 0.001}}}
        """

        strategy_name = "localplug"
        _misconfigured = exceptions.MisconfigurationException

        def __init__(
            self,
            method: str | Method = "mezo",
            *,
            seed: int = 0,
            targets: Callable[[Any], Any] | None = None,
            max_bad_steps: int = 20,
            log: str | os.PathLike[str] | None = None,
            device: Any = None,
            accelerator: Any = None,
            checkpoint_io: Any = None,
            precision_plugin: Any = None,
            **options: Any,
        ) -> None:
            self._plug(method, seed, targets, options, log, max_bad_steps=max_bad_steps)
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
                name = self._recipe[0] if isinstance(self._recipe[0], str) else "mezo"
                raise self._misconfigured(
                    f"LocalPlugStrategy trains on one device, the Trainer has {len(devices)}; use LocalPlugDDPStrategy "
                    f'(strategy="localplug_{name}_ddp"), or set devices=1'
                )
            self._root_device, self._device_is_free = torch.device(devices[0]), False

    class LocalPlugDDPStrategy(LocalPlugMixin, strategies.DDPStrategy):  # type: ignore[name-defined]
        """Train a LightningModule by a localplug method, in several processes.

        Lightning starts the processes and shards the data as for its DDPStrategy, but the model is not wrapped: no
        gradient buckets are allocated, and of a zeroth-order method only the projected gradients travel.

        Args:
            method: a name such as "mezo" or "tpsgd", or a localplug.Method.
            seed: of the random directions; the same in all processes.
            targets: gets the batch and gives the labels, for layer-local methods; by default the second element, or
                what is under "labels", "label", "targets", "target" or "y".
            worker_directions: "same": all workers try the same directions on their parts of the batch, which is what one
                worker with the whole batch does. "different": each its own, which are averaged.
            max_bad_steps: after so many steps in a row without a finite estimate training ends with an error.
            log: a file that takes down every step, for `localplug replay`; see localplug.Engine.
            accelerator, parallel_devices, cluster_environment, checkpoint_io, precision_plugin, process_group_backend,
                timeout, start_method: as of Lightning's DDPStrategy.
            **options: the method's own, checked against its signature.

        Raises:
            TypeError, ValueError: when made, for options that the method does not have, or out of their range.
            localplug.Unsupported: at fit(), with every reason why this module and Trainer cannot train by this method.

        What training_step logs, and the torchmetrics that it updates, are those of its first evaluation; what it returns
        besides the loss is that of its last one.
        """

        strategy_name = "localplug_ddp"
        _misconfigured = exceptions.MisconfigurationException

        def __init__(
            self,
            method: str | Method = "mezo",
            *,
            seed: int = 0,
            targets: Callable[[Any], Any] | None = None,
            worker_directions: Literal["same", "different"] = "same",
            max_bad_steps: int = 20,
            log: str | os.PathLike[str] | None = None,
            accelerator: Any = None,
            parallel_devices: Any = None,
            cluster_environment: Any = None,
            checkpoint_io: Any = None,
            precision_plugin: Any = None,
            process_group_backend: str | None = None,
            timeout: Any = None,
            start_method: Literal["popen", "spawn", "fork", "forkserver"] = "popen",
            **options: Any,
        ) -> None:
            if worker_directions not in ("same", "different"):
                raise ValueError(f'worker_directions must be "same" or "different", got {worker_directions!r}')
            self._plug(
                method, seed, targets, options, log, worker_directions=worker_directions, max_bad_steps=max_bad_steps
            )
            super().__init__(
                accelerator=accelerator,
                parallel_devices=parallel_devices,
                cluster_environment=cluster_environment,
                checkpoint_io=checkpoint_io,
                precision_plugin=precision_plugin,
                process_group_backend=process_group_backend,
                start_method=start_method,
                **({} if timeout is None else {"timeout": timeout}),
            )

        def configure_ddp(self) -> None:
            """Nothing is wrapped: the engine compares the weights at the start, and exchanges the estimates."""

        # DistributedDataParallel gives worker 0's buffers (running statistics) to all at every forward pass. Training
        # does not depend on them, so that it is enough where they are looked at.
        def on_validation_start(self) -> None:
            super().on_validation_start()
            self._share_buffers()

        def on_train_end(self) -> None:
            super().on_train_end()
            self._share_buffers()

        def _share_buffers(self) -> None:
            for buffer in self.lightning_module.buffers():
                torch.distributed.broadcast(buffer, 0)

    made = (LocalPlugStrategy, LocalPlugDDPStrategy)
    for strategy in made:  # where users and pickle find them
        strategy.__module__ = "localplug_lightning" if package.startswith("lightning") else "localplug_lightning.pl"
        strategy.__qualname__ = strategy.__name__
    for name in sorted(names("methods")):
        for registered, strategy in zip((f"localplug_{name}", f"localplug_{name}_ddp"), made, strict=True):
            if registered not in strategies.StrategyRegistry:
                strategies.StrategyRegistry.register(
                    registered, strategy, description=f"localplug: {name}, without backpropagation", method=name
                )
    return made
