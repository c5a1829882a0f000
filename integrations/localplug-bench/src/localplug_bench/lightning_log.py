"""An observer in Lightning's log: in whatever loggers the Trainer has."""

from typing import Any, final

import lightning.pytorch as L

from localplug import Engine
from localplug_bench.observers import Observer


@final
class LightningLog(L.Callback):
    """Logs what an observer finds, as localplug/..., by the module's own `log_dict`.

    Args:
        observer: what looks on.

    Example:
        L.Trainer(strategy=LocalPlugStrategy("mezo"), callbacks=[LightningLog(Observer(every=50))]).fit(module, loader)
    """

    def __init__(self, observer: Observer) -> None:
        self.observer = observer

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        engine = getattr(trainer.strategy, "engine", None)
        self.observer.attach(pl_module, trainer.optimizers[0], engine if isinstance(engine, Engine) else None)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if self.observer.found:
            pl_module.log_dict({f"localplug/{name}": value for name, value in self.observer.found.items()})

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.observer.detach()
