"""LocalPlugCallback: any localplug method under an unmodified transformers.Trainer, by documented callback events alone.

The callback hooks the model, not the trainer: every training forward of the model is evaluated as the method asks, and
the loss that the Trainer builds on the output stops there when it is back-propagated. The update happens in
on_pre_optimizer_step, with the learning rate and weight decay that the Trainer's own optimizer has at that moment.
"""

import functools
import logging
import os
import pathlib
import shutil
from collections.abc import Callable, Sequence
from typing import Any, Literal, final

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from localplug import Engine, Method
from localplug import method as make_method
from localplug import objective as make_objective
from localplug.encoding import from_text, to_text
from localplug.log import Log
from localplug.loop import announce, innermost, labels_of_call
from localplug.trajectory import NAME
from localplug.workers import number_of_workers, spare_gradients

logger = logging.getLogger("localplug")


@final
class LocalPlugCallback(TrainerCallback, ExportableState):
    """Train by a method without a backward pass through the model, inside an unmodified Trainer.

    Args:
        method: a name such as "mezo" or "tpsgd", or a localplug.Method.
        seed: of the random directions; by default `args.seed` of the Trainer.
        outputs: names of the output leaves that the loss is built on, such as ("logits",). By default the model's own
            loss, corrected by what the first backward call shows.
        objective: a score without gradient in the place of the model's own loss: "accuracy", "f1", or a callable of
            `outputs`, `batch` and `model`, higher is better (localplug.Objective; ExactMatch and TokenF1 in
            localplug_transformers.generation). The Trainer logs its negative as the loss.
        targets: gets (args, kwargs) of the model's forward call and gives the labels, for layer-local methods; by
            default kwargs["labels"].
        worker_directions: with several processes, "same" evaluates the same directions on each worker's part of the
            batch, "different" gives each worker its own; see localplug.Engine.
        max_bad_steps: after so many steps in a row without a finite estimate training ends with an error.
        log: a file that takes down every step in some bytes, for `localplug replay`; True puts trajectory.lplog into the
            Trainer's output_dir. A resumed run goes on in it.
        checkpoints: "full" leaves them as the Trainer writes them. "log" puts the log in the place of the weights, some
            kilobytes for any model. Such a checkpoint holds no model by itself, and the Trainer says "Can't find a valid
            checkpoint" if it is to resume from it. Make the weights first, from those that the run began with (save them by
            `trainer.save_model("base")` before the training):

                localplug replay base out/checkpoint-500 --out out/checkpoint-500

            `trainer.train(resume_from_checkpoint="out/checkpoint-500")` then goes on as if nothing had happened.
        **options: the method's own, checked against its signature.

    Raises:
        TypeError, ValueError: when made, for options that the method does not have, or out of their range.
        localplug.Unsupported: in on_train_begin; lists every reason why this Trainer cannot train by this method.

    Example:
        trainer = Trainer(model, args, train_dataset=data, callbacks=[LocalPlugCallback("mezo", eps=1e-3)])
        trainer.train()
    """

    def __init__(
        self,
        method: str | Method,
        *,
        seed: int | None = None,
        outputs: Sequence[str] | None = None,
        objective: str | Callable[..., Any] | None = None,
        targets: Callable[[tuple[Any, ...], dict[str, Any]], Any] | None = None,
        worker_directions: Literal["same", "different"] = "same",
        max_bad_steps: int = 20,
        log: str | os.PathLike[str] | bool | None = None,
        checkpoints: Literal["full", "log"] = "full",
        **options: Any,
    ) -> None:
        if checkpoints not in ("full", "log"):
            raise ValueError(f'checkpoints must be "full" or "log", got {checkpoints!r}')
        if checkpoints == "log" and not log:
            raise ValueError('checkpoints="log" are made of the log; set log=True or log="FILE"')
        self._log = log if isinstance(log, bool) else None if log is None else os.fspath(log)
        self._checkpoints = checkpoints
        self._objective = None if objective is None else make_objective(objective)
        self._objective_name = objective if isinstance(objective, str) else repr(self._objective)
        self._make = functools.partial(make_method, method, **options)  # not a lambda: callbacks are pickled
        self.method = self._make()
        self.engine: Engine | None = None
        self._name = method if isinstance(method, str) else type(method).__name__
        self._seed, self._outputs, self._options = seed, outputs, options
        self._targets = targets or labels_of_call
        self._worker_directions, self._max_bad_steps = worker_directions, max_bad_steps

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if number_of_workers() > 1 and kwargs.get("model") is not None:
            spare_gradients(kwargs["model"])  # before the Trainer wraps it in DistributedDataParallel

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        model, optimizer = kwargs["model"], kwargs["optimizer"]
        self.detach()
        if self.engine is not None:  # train() is called again: a method starts afresh with its optimizer
            self.method = self._make()
        seed = args.seed if self._seed is None else self._seed
        log = self._opened_log(args, state)
        self.engine = Engine(
            model,
            self.method,
            innermost(optimizer),
            seed=seed,
            outputs=self._outputs,
            objective=self._objective,
            clipping=float(args.max_grad_norm or 0.0),
            accumulation=args.gradient_accumulation_steps,
            worker_directions=self._worker_directions,
            max_bad_steps=self._max_bad_steps,
            log=log,
            refusals=_refusals(args, self.method) + self._checkpoint_refusals(args, state, model),
        )
        name = type(self).__name__
        saved: dict[str, Any] = state.stateful_callbacks  # type: ignore[assignment]  # a list only before training
        self._resume(saved.get(name), state.global_step)
        saved.setdefault(name, self.state())  # a checkpoint from before this callback has no entry
        self.engine.attach(targets=self._targets)
        announce(self.engine, self._clipping_note(args))

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        assert self.engine is not None
        self.engine.apply(innermost(kwargs["optimizer"]))

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._checkpoints != "log" or not state.is_world_process_zero:
            return
        assert self.engine is not None and self.engine.log is not None
        folder = pathlib.Path(str(args.output_dir), f"checkpoint-{state.global_step}")
        shutil.copyfile(self.engine.log.path, folder / NAME)
        for pattern in _WEIGHTS:
            for file in folder.glob(pattern):
                file.unlink()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.detach()

    def detach(self) -> None:
        """Take the hooks off the model. Happens by itself at the end of training; needed only after an interruption."""
        if self.engine is not None:
            self.engine.close()

    def _clipping_note(self, args: TrainingArguments) -> str:
        if not self.method.num_coefficients or not args.max_grad_norm:
            return ""
        if self.method.is_scale_free:
            return f"; max_grad_norm={args.max_grad_norm:g} changes nothing, the estimate is divided by its own size"
        return (
            f"; max_grad_norm={args.max_grad_norm:g} clips the projected gradient, max_grad_norm=0 leaves it as it is"
        )

    def _opened_log(self, args: TrainingArguments, state: TrainerState) -> Log | None:
        if not self._log:
            return None
        path = pathlib.Path(str(args.output_dir), NAME) if self._log is True else pathlib.Path(self._log)
        saved = pathlib.Path(str(args.output_dir), f"checkpoint-{state.global_step}", NAME)
        if state.global_step and not path.exists() and saved.exists() and state.is_world_process_zero:
            path.parent.mkdir(parents=True, exist_ok=True)  # nothing but the checkpoint is left of the run
            shutil.copyfile(saved, path)
        return Log(path, method=self._make.args[0], options=self._options)

    def _checkpoint_refusals(self, args: TrainingArguments, state: TrainerState, model: nn.Module) -> list[str]:
        """Why checkpoints cannot be the log alone."""
        if self._checkpoints != "log":
            return []
        found = []
        if args.load_best_model_at_end:
            found.append('checkpoints="log" hold no weights to load at the end; set load_best_model_at_end=False')
        if state.is_hyper_param_search:
            found.append('checkpoints="log" are for one run, and this is a search of many; leave checkpoints="full"')
        counted = [n for n, m in model.named_modules() if getattr(m, "running_mean", None) is not None]
        if counted:
            found.append(
                f'checkpoints="log" hold no running statistics, and {counted[0] or "the model"} has them; '
                'leave checkpoints="full"'
            )
        return found

    # ---- checkpoints: the trainer writes state() to trainer_state.json ------------------------------------------------

    def state(self) -> dict[str, Any]:
        options: dict[str, Any] = {
            k: v if isinstance(v, str | int | float | bool | None) else repr(v) for k, v in self._options.items()
        }
        if self._outputs is not None:  # with restore_callback_states_from_checkpoint these make the callback anew
            options["outputs"] = list(self._outputs)
        if self._objective is not None:
            options["objective"] = self._objective_name
        if self._worker_directions != "same":
            options["worker_directions"] = self._worker_directions
        if self._max_bad_steps != 20:
            options["max_bad_steps"] = self._max_bad_steps
        if self._log:
            options["log"] = self._log
        if self._checkpoints != "full":
            options["checkpoints"] = self._checkpoints
        saved: dict[str, Any] = {"args": {"method": self._name, "seed": self._seed, **options}, "attributes": {}}
        if self.engine is not None:
            whole = self.engine.state_dict()
            saved["engine"] = {"seed": whole["seed"], "step": whole["step"], "method": to_text(whole["method"])}
        return saved

    def _resume(self, saved: dict[str, Any] | None, global_step: int) -> None:
        assert self.engine is not None
        self.engine.run.step = global_step
        if global_step == 0 or not saved or "engine" not in saved:
            return
        try:
            self._restore(saved)
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise ValueError(
                f"the checkpoint's trainer_state.json holds no state of {self.method.describe()}, or a damaged one: {error}"
            ) from error

    def _restore(self, saved: dict[str, Any]) -> None:
        assert self.engine is not None
        now, before = self.state()["args"], saved["args"]
        named = {*now, *before} - {"log", "checkpoints"}
        changed = {k: (before.get(k), now.get(k)) for k in named if now.get(k) != before.get(k)}
        if saved["engine"]["seed"] != self.engine.run.seed:
            changed["seed"] = (saved["engine"]["seed"], self.engine.run.seed)
        if changed:
            logger.warning(
                "this run goes on from a checkpoint of another setting, and so does not repeat the uninterrupted run: %s",
                ", ".join(f"{k} was {a!r}, is {b!r}" for k, (a, b) in sorted(changed.items())),
            )
        if before.get("method") == now.get("method"):
            self.engine.method.load_state_dict(from_text(saved["engine"]["method"]))


# What from_pretrained and the Trainer read weights from. The optimizer's file stays: without it the Trainer does not load
# the learning-rate schedule either; of an optimizer without state it has some kilobytes.
_WEIGHTS = ("model*.safetensors", "model*.safetensors.index.json", "adapter_model*", "pytorch_model*.bin*")


def _refusals(args: TrainingArguments, method: Method) -> list[str]:
    """What in these arguments goes round the model's forward, or owns its parameters or its backward pass."""
    found = []
    if args.n_gpu > 1:
        found.append(
            f"nn.DataParallel over {args.n_gpu} devices replicates the model round the callback; "
            "set CUDA_VISIBLE_DEVICES to one device"
        )
    if args.deepspeed:
        found.append("DeepSpeed owns the parameters and the backward pass; remove deepspeed=")
    if args.fsdp:
        found.append("FSDP shards the parameters; remove fsdp=")
    if args.torch_compile and method.num_coefficients == 0:
        found.append("layer-local methods hook the model's modules, and so cannot be compiled; set torch_compile=False")
    optim = str(getattr(args.optim, "value", args.optim))
    if "lomo" in optim or "layerwise" in optim:
        found.append(f"optim={optim!r} updates during the backward pass; use another optimizer, such as 'sgd'")
    if method.num_coefficients == 0 and args.label_smoothing_factor:
        found.append(
            "label smoothing takes the labels away before the model is called, and local targets need them; "
            "set label_smoothing_factor=0"
        )
    return found
