"""Six doors to one training: each runs the same micro-batches of a small model in the same order, in its users' own words.

A door is made with what is to be trained, and `run()` trains it. All of them take the same arguments, so that a test can
ask each of them for the same feature, and compare what it did with `ByHand`, which uses none of them.
"""

import contextlib
import functools
import logging

import torch
from torch.utils.data import DataLoader

import localplug
from door import BATCH, Door, world
from problems import arguments

# ---- loops that the user writes ---------------------------------------------------------------------------------------------


class BareLoop(Door):
    """A loop of plain torch, with localplug.attach around it. The other loops say some of its words differently."""

    name = "bare loop"

    def prepare(self, optimizer):
        called = self.model if self.compiled is None else torch.compile(self.model, backend=self.compiled)
        return called, optimizer, self.loader()

    def autocast(self):
        if self.precision in ("bf16 autocast", "fp16 scaled"):
            return torch.autocast("cpu", torch.bfloat16 if self.precision == "bf16 autocast" else torch.float16)
        return contextlib.nullcontext()

    def backward(self, loss, called):
        self.scaler.scale(loss / self.accumulate).backward()

    def step(self, optimizer, called):
        if self.clip:
            self.scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(called.parameters(), self.clip)
        self.scaler.step(optimizer)
        self.scaler.update()

    def save_state(self, called, optimizer, scheduler):
        state = {k: v.state_dict() for k, v in self.stateful(self.model, optimizer, scheduler).items()}
        torch.save({**state, "random": torch.get_rng_state()}, self.folder / "half.pt")

    def load_state(self, called, optimizer, scheduler):
        saved = torch.load(self.folder / "half.pt", weights_only=True)
        for k, v in self.stateful(self.model, optimizer, scheduler).items():
            v.load_state_dict(saved[k])
        torch.set_rng_state(saved["random"])

    def stateful(self, model, optimizer, scheduler):
        return {"model": model, "optimizer": optimizer, "scheduler": scheduler, "localplug": self.engine}

    def accumulating(self, called):
        return contextlib.nullcontext()

    def run(self):
        if self.checkpointing:
            self.model.gradient_checkpointing_enable()
        self.model.train()
        self.optimizer = self.make_optimizer()
        scheduler = self.make_scheduler(self.optimizer)
        for _ in range(self.fits):
            attached = localplug.attach(
                self.model, self.method, self.optimizer, worker_directions=self.worker_directions, **self.options
            )
            with attached:
                self.engine = attached.engine
                self._loop(scheduler)
        return self

    def _loop(self, scheduler):
        called, optimizer, loader = self.prepare(self.optimizer)
        if self.resume:
            self.load_state(called, optimizer, scheduler)
        if self.averaged:
            self.average = self.make_average(self.model)
        epochs = range(self.epochs // 2 if self.resume else 0, self.epochs)
        for i, batch in enumerate(batch for _ in epochs for batch in loader):
            with self.accumulating(called):
                with self.autocast():
                    loss = self.loss_of(called, batch)
                self.backward(loss, called)
                if (i + 1) % self.accumulate == 0:
                    self.step(optimizer, called)
                    optimizer.zero_grad()
                    scheduler.step()
            if (i + 1) % self.accumulate:
                continue
            if self.watch:
                self.watch(self.model)
            if self.averaged:
                self.average.update_parameters(self.model)
            if self.evaluated and self.engine.run.step % 2 == 0:
                self.evaluate(called)
            if self.save and self.engine.run.step == self.num_steps // 2:
                self.save_state(called, optimizer, scheduler)


def scale_on_a_cpu(accelerator, scaler):
    """Make it do what mixed_precision="fp16" does on a GPU: on a CPU it is refused, or taken for "no"."""
    accelerator.state._shared_state["_mixed_precision"] = "fp16"
    accelerator.scaler, accelerator.native_amp = scaler, True


class Accelerate(BareLoop):
    """accelerate.Accelerator prepares the model, the optimizer and the data, and does backward and clipping."""

    name = "Accelerate"
    deals_out = False

    def prepare(self, optimizer):
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)  # one process trains many times here
        self.accelerator = Accelerator(
            cpu=True,
            mixed_precision="bf16" if self.precision == "bf16 autocast" else "no",
            gradient_accumulation_steps=self.accumulate,
            dynamo_backend=self.compiled,
        )
        if self.precision == "fp16 scaled":
            scale_on_a_cpu(self.accelerator, self.scaler)
        self.accelerator.register_for_checkpointing(self.engine)
        return self.accelerator.prepare(self.model, optimizer, self.loader())

    def autocast(self):
        return contextlib.nullcontext()  # is round the prepared model's forward

    def accumulating(self, called):
        return self.accelerator.accumulate(called)

    def backward(self, loss, called):
        self.accelerator.backward(loss)

    def step(self, optimizer, called):
        if self.clip:
            self.accelerator.clip_grad_norm_(called.parameters(), self.clip)
        optimizer.step()

    def save_state(self, called, optimizer, scheduler):
        self.accelerator.save_state(str(self.folder / "half"))
        torch.save(scheduler.state_dict(), self.folder / "scheduler.pt")

    def load_state(self, called, optimizer, scheduler):
        self.accelerator.load_state(str(self.folder / "half"))
        scheduler.load_state_dict(torch.load(self.folder / "scheduler.pt", weights_only=True))


class Fabric(BareLoop):
    """lightning.fabric.Fabric sets up the model, the optimizer and the data, and does backward and clipping."""

    name = "Fabric"
    deals_out = False

    def prepare(self, optimizer):
        from lightning.fabric import Fabric
        from lightning.fabric.plugins import MixedPrecision

        plugins = []
        if self.precision == "fp16 scaled":
            plugins = [MixedPrecision("16-mixed", "cpu", scaler=self.scaler)]
        precision = {"bf16 weights": "bf16-true", "bf16 autocast": "bf16-mixed"}.get(self.precision)
        self.fabric = Fabric(
            accelerator="cpu",
            devices=world(),
            strategy="ddp" if world() > 1 else "auto",
            precision=precision,
            plugins=plugins,
        )
        self.fabric.launch()
        model = self.model if self.compiled is None else torch.compile(self.model, backend=self.compiled)
        called, optimizer = self.fabric.setup(model, optimizer)
        return called, optimizer, self.fabric.setup_dataloaders(self.loader())

    def autocast(self):
        return contextlib.nullcontext()  # is round the wrapped model's forward

    def backward(self, loss, called):
        self.fabric.backward(loss / self.accumulate)

    def step(self, optimizer, called):
        if self.clip:
            self.fabric.clip_gradients(called, optimizer, max_norm=self.clip)
        optimizer.step()

    def save_state(self, called, optimizer, scheduler):
        state = self.stateful(called, optimizer, scheduler)
        self.fabric.save(self.folder / "half.ckpt", {**state, "random": torch.get_rng_state()})

    def load_state(self, called, optimizer, scheduler):
        rest = self.fabric.load(self.folder / "half.ckpt", self.stateful(called, optimizer, scheduler))
        torch.set_rng_state(rest["random"])


# ---- trainers ----------------------------------------------------------------------------------------------------------


class Trainer(Door):
    """transformers.Trainer with LocalPlugCallback."""

    name = "Trainer"
    counts_tokens = True

    def callbacks(self):
        from transformers import TrainerCallback

        door = self

        class Watching(TrainerCallback):
            def on_train_begin(self, args, state, control, model=None, **kwargs):
                if door.averaged:
                    door.average = door.make_average(model)

            def on_step_end(self, args, state, control, model=None, **kwargs):
                if door.watch:
                    door.watch(model)
                if door.averaged:
                    door.average.update_parameters(model)

        return [Watching()]

    def arguments(self, **changes):
        if self.evaluated:
            changes |= dict(eval_strategy="steps", eval_steps=2, per_device_eval_batch_size=BATCH)
        if world() > 1:
            changes |= dict(ddp_backend="gloo")
        if self.save:
            changes |= dict(save_strategy="steps", save_steps=self.num_steps // 2)
        if self.compiled:
            changes |= dict(torch_compile=True, torch_compile_backend=self.compiled)
        return dict(
            max_steps=-1, num_train_epochs=self.epochs, per_device_train_batch_size=BATCH // world(), learning_rate=self.lr,
            lr_scheduler_type="linear" if self.linear else "constant", weight_decay=self.weight_decay,
            max_grad_norm=self.clip or 0.0, gradient_accumulation_steps=self.accumulate, bf16=self.precision == "bf16 autocast",
            optim="adamw_torch" if self.optim == "adamw" else "sgd", train_sampling_strategy="sequential",
            activation_checkpointing=self.checkpointing, **changes,
        )  # fmt: skip

    def of(self, base):
        """The Trainer's class, or what this training needs of it: loss scaling on a CPU, a loss with something added."""
        door = self

        class Scaling(base):
            def create_accelerator_and_postprocess(self):
                super().create_accelerator_and_postprocess()
                scale_on_a_cpu(self.accelerator, door.scaler)
                self.args.fp16 = True

        class Adding(base):
            def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
                return super().compute_loss(model, inputs, False, num_items_in_batch) + door.extra(door.model)

        return Scaling if self.precision == "fp16 scaled" else Adding if self.extra else base

    def make(self, callback, **given):
        import transformers

        return self.of(transformers.Trainer)(
            self.model, arguments(self.folder, **self.arguments(**self.changes)), callbacks=[callback, *self.callbacks()],
            **given,
        )  # fmt: skip

    def run(self):
        import transformers

        from localplug_transformers import LocalPlugCallback

        callback = LocalPlugCallback(self.method, worker_directions=self.worker_directions, **self.options)
        given = dict(train_dataset=self.data, eval_dataset=self.evaluated)
        if self.loss:
            given["compute_loss_func"] = lambda outputs, labels, num_items_in_batch=None: self.loss(
                outputs.logits, labels
            )
        if callable(self.optim):
            given["optimizers"] = (self.make_optimizer(), None)
        trainer = self.make(callback, **given)
        trainer.remove_callback(transformers.PrinterCallback)
        resume = str(self.folder / f"checkpoint-{self.num_steps // 2}") if self.resume else None
        try:
            for _ in range(self.fits):
                trainer.train(resume_from_checkpoint=resume)
        finally:
            self.engine, self.optimizer = callback.engine, trainer.optimizer
            if self.engine is not None:
                self.engine.close()
        self.eval_losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
        return self


class TRL(Trainer):
    """trl.SFTTrainer with LocalPlugCallback, on rows that are tokens already."""

    name = "TRL"
    within = 1e-4  # the loss is built outside of the model, on the logarithms of probabilities, and rounds differently

    def make(self, callback, **given):
        from trl import SFTConfig, SFTTrainer

        given["train_dataset"], given["eval_dataset"] = _rows(self.data), _rows(self.evaluated)
        given_by_all = arguments(self.folder, **self.arguments(**self.changes)).to_dict()
        names = {n for n, field in SFTConfig.__dataclass_fields__.items() if field.init}
        args = SFTConfig(**{k: v for k, v in given_by_all.items() if k in names} | dict(
            dataset_kwargs={"skip_prepare_dataset": True}, max_length=None, remove_unused_columns=False,
        ))  # fmt: skip
        return self.of(SFTTrainer)(
            self.model, args, callbacks=[callback, *self.callbacks()], processing_class=_tokenizer(), **given
        )


def _rows(data):
    """The same rows as the kind of dataset that SFTTrainer takes; each is read when it is needed."""
    from datasets import Dataset

    def read(numbers):
        rows = [data[i] for i in numbers["number"]]
        return {name: [row[name].tolist() for row in rows] for name in rows[0]}

    return None if data is None else Dataset.from_dict({"number": list(range(len(data)))}).with_transform(read)


@functools.cache
def _tokenizer():
    """Any tokenizer: SFTTrainer wants one, also for rows that are tokens already."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<eos>", "<unk>", *(f"w{i}" for i in range(61))]
    tokens = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=tokens, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


class Lightning(Door):
    """lightning.pytorch.Trainer with LocalPlugStrategy."""

    name = "Lightning"
    goes_on = True

    def make_module(self):
        import lightning.pytorch as L

        door = self

        class Module(L.LightningModule):
            def __init__(self):
                super().__init__()
                self.model = door.model

            def training_step(self, batch, batch_idx):
                return door.loss_of(self.model, batch)

            def configure_optimizers(self):
                door.optimizer = door.make_optimizer()
                scheduler = door.make_scheduler(door.optimizer)
                return [door.optimizer], [{"scheduler": scheduler, "interval": "step"}]

            def on_train_batch_end(self, outputs, batch, batch_idx):
                if door.watch and (batch_idx + 1) % door.accumulate == 0:
                    door.watch(self.model)

        class Validated(Module):
            def validation_step(self, batch, batch_idx):
                self.log("eval_loss", door.loss_of(self.model, batch))

            def on_validation_epoch_end(self):
                door.eval_losses.append(float(self.trainer.callback_metrics["eval_loss"]))

        module = Validated() if self.evaluated else Module()
        return module if self.compiled is None else torch.compile(module, backend=self.compiled)

    def trainer_options(self):
        from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
        from lightning.pytorch.plugins.precision import MixedPrecision

        options = dict(callbacks=[])
        if self.precision in ("bf16 weights", "bf16 autocast"):
            options["precision"] = {"bf16 weights": "bf16-true", "bf16 autocast": "bf16-mixed"}[self.precision]
        if self.precision == "fp16 scaled":
            options["plugins"] = [MixedPrecision("16-mixed", "cpu", scaler=self.scaler)]
        if self.averaged:
            options["callbacks"].append(EMAWeightAveraging(decay=0.5))
        if self.save or self.resume:
            options["callbacks"].append(
                ModelCheckpoint(self.folder, every_n_train_steps=self.num_steps // 2, save_top_k=-1, filename="{step}")
            )
        return options

    def make_strategy(self):
        from localplug_lightning import LocalPlugDDPStrategy, LocalPlugStrategy

        if world() > 1:
            return LocalPlugDDPStrategy(self.method, worker_directions=self.worker_directions, **self.options)
        return LocalPlugStrategy(self.method, **self.options)

    def run(self):
        import lightning.pytorch as L

        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
        if self.checkpointing:
            self.model.gradient_checkpointing_enable()
        self.model.train()
        strategy, module = self.make_strategy(), self.make_module()
        trainer = L.Trainer(
            strategy=strategy, max_epochs=self.epochs, accelerator="cpu", devices=world(), logger=False, num_sanity_val_steps=0,
            enable_checkpointing=self.save or self.resume, enable_progress_bar=False, enable_model_summary=False,
            use_distributed_sampler=False, default_root_dir=str(self.folder), gradient_clip_val=self.clip,
            accumulate_grad_batches=self.accumulate,
            val_check_interval=2 if self.evaluated else 1.0, **self.trainer_options(),
        )  # fmt: skip
        validation = DataLoader(self.evaluated, batch_size=BATCH) if self.evaluated else None
        resume = {}
        if self.resume:
            resume = dict(ckpt_path=str(self.folder / f"step={self.num_steps // 2}.ckpt"), weights_only=True)
        try:
            for fit in range(self.fits):
                trainer.fit_loop.max_epochs = self.epochs * (fit + 1)
                trainer.fit(module, self.loader(), validation, **resume)
        finally:
            self.engine = strategy.engine
        if self.averaged:
            self.average = self.model  # this callback puts the average into the model at the end
        return self


DOORS = {door.name: door for door in (Trainer, TRL, Lightning, Fabric, Accelerate, BareLoop)}
