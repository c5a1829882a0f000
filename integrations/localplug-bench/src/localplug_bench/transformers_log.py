"""An observer in the log of transformers' Trainer: in its history, its progress bar, and whatever `report_to` names."""

from typing import Any, final

from transformers import Trainer, TrainerCallback

from localplug import Engine
from localplug_bench.observers import Observer


@final
class TrainerLog(TrainerCallback):
    """Logs what an observer finds, as localplug/..., with every `logging_steps`-th step, by `Trainer.log`.

    Args:
        trainer: to which the callback is added after LocalPlugCallback, if that is there.
        observer: what looks on.

    Example:
        trainer = Trainer(model, args, train_dataset=data, callbacks=[LocalPlugCallback("mezo")])
        trainer.add_callback(TrainerLog(trainer, Observer(probe=lambda: model(**batch).loss, every=args.logging_steps)))
    """

    def __init__(self, trainer: Trainer, observer: Observer) -> None:
        self._trainer, self.observer = trainer, observer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        engines = (getattr(callback, "engine", None) for callback in self._trainer.callback_handler.callbacks)
        engine = next((engine for engine in engines if isinstance(engine, Engine)), None)
        self.observer.attach(kwargs["model"], kwargs["optimizer"], engine)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        is_due = state.global_step % max(state.logging_steps, 1) == 0 or state.global_step == 1
        if is_due and self.observer.found:
            self._trainer.log({f"localplug/{name}": value for name, value in self.observer.found.items()})

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.observer.detach()
