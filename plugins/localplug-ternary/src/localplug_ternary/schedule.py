"""How far the training is, for methods that change on the way: sherry's residual and annealed's temperature."""

from typing import Any, final

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from localplug_ternary.config import config_of
from localplug_ternary.latent import TernaryLinear


def set_progress_(model: nn.Module, progress: float) -> None:
    """Tell all latent layers of a model how much of its training is done.

    In a loop of your own call it before each step with step / num_steps, and with 1.0 at the end.

    Raises:
        ValueError: it is outside [0, 1].
    """
    if not 0 <= progress <= 1:
        raise ValueError(f"progress must be in [0, 1], got {progress!r}")
    for module in model.modules():
        if isinstance(module, TernaryLinear):
            module.progress = progress
    if (config := config_of(model) or config_of(getattr(model, "module", None))) is not None:
        config.progress = progress


@final
class TernaryProgress(TrainerCallback):
    """Keeps the progress of a model's layers, from the Trainer's own count of its steps.

    Example:
        trainer = Trainer(model, args, train_dataset=data, callbacks=[TernaryProgress()])
    """

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        set_progress_(kwargs["model"], min(state.global_step / max(state.max_steps, 1), 1.0))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        # What is evaluated and saved after this step is the model at its end; after the last one, the ternary model.
        set_progress_(kwargs["model"], min(state.global_step / max(state.max_steps, 1), 1.0))
