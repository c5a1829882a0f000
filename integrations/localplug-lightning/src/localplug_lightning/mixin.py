"""What makes a Lightning strategy train by a localplug method: the overrides that all of ours have in common.

training_step runs as often as the method asks and gives back a loss whose backward stops at once; the update happens
between that backward and the optimizer's step. `backward` itself is left alone, so that accumulation, clipping, loss
scaling and the module's own hooks see what they always see.
"""

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from localplug import Engine, Method, Run
from localplug import method as make_method
from localplug.checks import refuse, trainable
from localplug.log import Log
from localplug.loop import announce
from localplug.predictor import predict
from localplug_lightning.once import muted

TARGET_KEYS = ("labels", "label", "targets", "target", "y")


def batch_targets(batch: Any) -> Any:
    """The labels of a batch: (inputs, labels), or a mapping with one of TARGET_KEYS; None where there are none."""
    if isinstance(batch, Mapping):
        return next((batch[key] for key in TARGET_KEYS if key in batch), None)
    if isinstance(batch, Sequence) and not isinstance(batch, str) and len(batch) > 1:
        return batch[1]
    return None


class _Skipped(Exception):
    """training_step returned None: this batch is not learned from."""


class LocalPlugMixin:
    """The overrides, to be combined with a Lightning strategy."""

    _misconfigured: type[Exception]

    def _plug(
        self,
        method: str | Method,
        seed: int,
        targets: Callable[[Any], Any] | None,
        options: dict[str, Any],
        log: str | os.PathLike[str] | None = None,
        **engine_options: Any,
    ) -> None:
        self._recipe, self._log = (method, options), log
        self._method = make_method(method, **options)
        self._seed, self._targets, self._engine_options = seed, targets or batch_targets, engine_options
        self._restored: dict[str, Any] | None = None
        self._is_fitting = self._is_resumed = self._has_gradients = False
        self.engine: Engine | None = None
        self._run: Run | None = None  # of an evaluation outside of fit()

    # ---- life -------------------------------------------------------------------------------------------------------

    def setup(self, trainer: Any) -> None:
        super().setup(trainer)  # type: ignore[misc]
        if trainer.state.fn != "fit":
            self._evaluate_only()
            return
        self._start(trainer)
        self._is_fitting, self._has_gradients = True, False
        self._is_resumed = self._restored is not None
        if self._restored is not None:  # the checkpoint is read before the engine exists
            self.engine.load_state_dict(self._restored)  # type: ignore[union-attr]
            self._restored = None
        announce(self.engine)  # type: ignore[arg-type]

    def _evaluate_only(self) -> None:
        """validate(), test() or predict(): a checkpoint is read for its weights, and for what the method predicts by."""
        restored, self._restored = self._restored, None
        module = self.lightning_module  # type: ignore[attr-defined]
        run = Run(module, trainable(module), self._seed)
        if self._method.predicting(run) is not None:  # of all others the checkpoint's state may be another method's
            self._run = run
            if restored is not None:
                try:
                    self._method.load_state_dict(restored["method"])
                except (LookupError, TypeError, AttributeError) as error:
                    raise ValueError(f"the checkpoint holds no state of {self._method.describe()}: {error}") from error

    def _start(self, trainer: Any) -> None:
        if self.engine is not None:
            self.engine.close()
            self._method = make_method(self._recipe[0], **self._recipe[1])
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
            log=None if self._log is None else Log(self._log, method=self._recipe[0], options=self._recipe[1]),
            refusals=refusals,
            **self._engine_options,
        )

    def on_train_start(self) -> None:
        super().on_train_start()  # type: ignore[misc]
        assert self.engine is not None
        if not self._is_resumed:  # fit() goes on, or a checkpoint of another strategy does: no direction comes twice
            self.engine.run.step = self.lightning_module.trainer.global_step  # type: ignore[attr-defined]

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)  # type: ignore[misc]
        assert self.engine is not None
        trained = [p for p in self.lightning_module.parameters() if p.requires_grad]  # type: ignore[attr-defined]
        known = [p for _, p in self.engine.run.parameters]
        if len(trained) != len(known) or any(a is not b for a, b in zip(trained, known, strict=True)):
            state = self.engine.state_dict()  # a callback froze or thawed a part of the model (BackboneFinetuning)
            self._start(self.lightning_module.trainer)  # type: ignore[attr-defined]
            self.engine.load_state_dict(state)
            announce(self.engine)

    def teardown(self) -> None:
        self._is_fitting = False
        if self._run is not None:
            self._run = None
            self._method.teardown()
        if self.engine is not None:
            self.engine.close()
        super().teardown()  # type: ignore[misc]

    # ---- one step ---------------------------------------------------------------------------------------------------

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        assert self.engine is not None
        run = functools.partial(super().training_step, *args, **kwargs)  # type: ignore[misc]
        module = self.lightning_module  # type: ignore[attr-defined]
        extra: dict[str, Any] = {}
        is_first = True

        def closure() -> Any:
            nonlocal is_first
            if is_first:
                output = run()
                is_first = False  # of an evaluation that came to its end, and so has logged what it logs
            else:
                with muted(module):
                    output = run()
            if isinstance(output, Mapping):
                extra.update({k: v for k, v in output.items() if k != "loss"})
                output = output.get("loss")
            elif output is None:
                raise _Skipped
            if not isinstance(output, torch.Tensor):
                raise self._misconfigured(
                    "training_step must return the loss, a dictionary with 'loss', or None to skip the batch, for "
                    f"localplug; got {output!r}"
                )
            return output

        try:
            loss = self.engine.surrogate(closure, targets=self._targets(args[0]) if args else None)
        except _Skipped:
            return None
        return {"loss": loss, **extra} if extra else loss

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        return self._predicted(functools.partial(super().validation_step, *args, **kwargs))  # type: ignore[misc]

    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        return self._predicted(functools.partial(super().test_step, *args, **kwargs))  # type: ignore[misc]

    def predict_step(self, *args: Any, **kwargs: Any) -> Any:
        return self._predicted(functools.partial(super().predict_step, *args, **kwargs))  # type: ignore[misc]

    def _predicted(self, call: Callable[[], Any]) -> Any:
        """A step of an evaluation loop, as the method predicts."""
        run = self.engine.run if self._is_fitting and self.engine is not None else self._run
        prediction = self._method.predicting(run) if run is not None else None
        return call() if prediction is None else predict(prediction, call)

    def post_backward(self, closure_loss: torch.Tensor) -> None:
        self._has_gradients = True
        super().post_backward(closure_loss)  # type: ignore[misc]

    def optimizer_step(
        self, optimizer: torch.optim.Optimizer, closure: Callable[[], Any], model: Any = None, **kwargs: Any
    ) -> Any:
        # The precision plugin calls .step(closure), where closure = training_step, zero_grad, backward, clipping; or, if
        # it scales the loss, runs the closure itself and calls .step(), or does not, if a gradient is not finite. The
        # update belongs between the two, and the user's hooks get their own optimizer, no stand-in.
        own = optimizer.__dict__.get("step")  # a learning-rate scheduler puts its counter there
        step = optimizer.step

        def apply_and_step(closure: Callable[[], Any] | None = None, **kwargs: Any) -> Any:
            assert self.engine is not None
            result = closure() if closure is not None else None
            if self._has_gradients:  # else every training_step since the last update returned None
                self._has_gradients = False
                self.engine.apply(optimizer)
            step(**kwargs)
            return result

        optimizer.step = apply_and_step  # type: ignore[method-assign]
        try:
            return super().optimizer_step(optimizer, closure, model, **kwargs)  # type: ignore[misc]
        finally:
            del optimizer.step
            if own is not None:
                optimizer.step = own  # type: ignore[method-assign]

    # ---- checkpoints ------------------------------------------------------------------------------------------------

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        if self.engine is not None:
            checkpoint["localplug"] = self.engine.state_dict()
        super().save_checkpoint(checkpoint, filepath, storage_options)  # type: ignore[misc]

    def load_checkpoint(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        checkpoint: dict[str, Any] = super().load_checkpoint(*args, **kwargs)  # type: ignore[misc]
        self._restored = checkpoint.get("localplug")
        if self._is_fitting and self.engine is not None and self._restored is not None:
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
    elif type(strategy.optimizers[0]).__name__ == "_MockOptimizer":  # what Lightning makes of None
        found.append("configure_optimizers returned None, so that nothing would be trained; return one optimizer")
    if getattr(trainer.precision_plugin, "scaler", None) is not None and any(
        getattr(optimizer, "_step_supports_amp_scaling", False) for optimizer in strategy.optimizers
    ):
        found.append(
            "a fused optimizer undoes the loss scaling inside its step, after the update; use one without fused=True, "
            "or precision bf16-mixed or 32-true"
        )
    return found
