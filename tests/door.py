"""What the doors of tests/doors.py have in common, and the training by hand that they are compared with."""

import os

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

import localplug
from problems import Tokens, weights

BATCH = 4
"""Rows in one micro-batch of all workers together."""
ROWS = 16


def world():
    """Processes that a launcher has started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def language_model_loss(logits_BTV, labels_BT):
    """A loss that no model has of its own: focal cross entropy of the next token, averaged."""
    logits, labels = logits_BTV[:, -labels_BT.shape[1] :][:, :-1].flatten(0, 1).float(), labels_BT[:, 1:].flatten()
    loss = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    return (loss * (1 - torch.exp(-loss)) ** 2).mean()


class Door:
    """One training: its arguments, which all doors share, the optimizer and its groups, the loss. `run()` trains.

    Args:
        model: unwrapped.
        folder: for whatever the trainer writes.
        data: a map-style dataset of dictionaries that the model takes; by default 16 rows, so 4 batches.
        epochs: times that the data is gone through, in the same order.
        optim: "sgd" or "adamw"; or a function of the model that makes the optimizer.
        weight_decay: of all parameters but the norms'.
        linear: whether the learning rate goes down to 0 in a straight line.
        accumulate: micro-batches in one optimizer step.
        clip: largest gradient norm.
        precision: "float32", "bf16 weights", "bf16 autocast" or "fp16 scaled".
        loss: a function of (logits, labels), or None for the model's own loss.
        extra: a function of the model, whose value is added to the loss and does not go through the model's forward.
        compiled: a backend of torch.compile.
        evaluated: a dataset whose loss is taken after every second step.
        save: whether a checkpoint of the middle of training is written.
        resume: go on from that checkpoint of another training in the same folder.
        averaged: whether a deep copy of the model follows its weights, half of the way in each step.
        fits: times that the same objects are trained.
        watch: called with the model after every step.
        worker_directions: as of localplug.attach.
        changes: more TrainingArguments, where there are any.
    """

    name: str
    within = 1e-6
    """How near the weights come to those of `by_hand`, as a share of the way from the start."""
    goes_on = False
    """Whether a second training goes on with new directions; else it starts again with the first."""
    deals_out = True
    """Whether the user gives each worker its part of the data; else the trainer does."""
    counts_tokens = False
    """Whether the loss is a sum divided by the number of labels; else the model divides as it thinks right."""

    def __init__(
        self, model, folder, *, method="mezo", options=None, data=None, epochs=1, optim="sgd", lr=1e-2, weight_decay=0.0,
        linear=False, accumulate=1, clip=None, precision="float32", loss=None, checkpointing=False, compiled=None,
        evaluated=None, save=False, resume=False, averaged=False, fits=1, watch=None, worker_directions="same",
        extra=None, changes=None,
    ):  # fmt: skip
        self.model, self.folder, self.method, self.options = model, folder, method, options or {}
        self.data, self.epochs, self.lr = data or Tokens(ROWS), epochs, lr
        self.optim, self.weight_decay = optim, weight_decay
        self.linear, self.accumulate, self.clip, self.precision, self.loss = linear, accumulate, clip, precision, loss
        self.checkpointing, self.compiled, self.evaluated = checkpointing, compiled, evaluated
        self.save, self.resume, self.averaged, self.fits, self.watch = save, resume, averaged, fits, watch
        self.worker_directions, self.extra, self.changes = worker_directions, extra, changes or {}
        self.engine = self.optimizer = self.average = None
        self.eval_losses = []
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, enabled=precision == "fp16 scaled")
        if precision == "bf16 weights":
            model.to(torch.bfloat16)

    @property
    def num_steps(self):
        return self.epochs * (len(self.data) // BATCH) // self.accumulate

    def loader(self):
        """This worker's part of each batch; of the loops, Accelerate and Fabric deal the whole out themselves."""
        dealt = world() > 1 and self.deals_out
        sampler = torch.utils.data.DistributedSampler(self.data, shuffle=False) if dealt else None
        return DataLoader(self.data, batch_size=BATCH // world(), sampler=sampler)

    def loss_of(self, model, batch):
        if self.loss is None:
            loss = model(**batch)["loss"]
        else:
            inputs = {k: v for k, v in batch.items() if k != "labels"}
            loss = self.loss(model(**inputs).logits, batch["labels"])
        return loss if self.extra is None else loss + self.extra(self.model)

    def make_optimizer(self):
        if callable(self.optim):
            return self.optim(self.model)
        trained = [(n, p) for n, p in self.model.named_parameters() if p.requires_grad]
        groups = [
            dict(params=[p for n, p in trained if "norm" not in n], weight_decay=self.weight_decay),
            dict(params=[p for n, p in trained if "norm" in n], weight_decay=0.0),
        ]
        made = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[self.optim]
        return made([group for group in groups if group["params"]], lr=self.lr)

    def make_scheduler(self, optimizer):
        share = (lambda step: 1 - step / self.num_steps) if self.linear else (lambda step: 1.0)
        return torch.optim.lr_scheduler.LambdaLR(optimizer, share)

    def make_average(self, model):
        return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))

    def evaluate(self, model):
        model.eval()
        with torch.no_grad():
            losses = [float(self.loss_of(model, batch)) for batch in DataLoader(self.evaluated, batch_size=BATCH)]
        model.train()
        self.eval_losses.append(sum(losses) / len(losses))


class ByHand(Door):
    """The engine by itself, without hooks on the model: the loss is a closure, and nothing is back-propagated."""

    name = "by hand"

    def __init__(self, *args, like=None, **kwargs):
        super().__init__(*args, **kwargs)
        if like is not None:
            self.goes_on, self.counts_tokens = like.goes_on, like.counts_tokens

    def loss_of(self, model, batch):
        if self.counts_tokens and self.loss is None and model.training and batch["labels"].dim() == 2:
            batch = {**batch, "num_items_in_batch": batch["labels"][:, 1:].numel()}
        return super().loss_of(model, batch)

    def run(self):
        optimizer = self.make_optimizer()
        scheduler = self.make_scheduler(optimizer)
        cast = torch.bfloat16 if self.precision == "bf16 autocast" else torch.float16
        step = 0
        for _ in range(self.fits):
            engine = localplug.Engine(self.model, localplug.method(self.method, **self.options), optimizer)
            engine.run.step = step if self.goes_on else 0
            for i, batch in enumerate(b for _ in range(self.epochs) for b in self.loader()):

                def closure(batch=batch):
                    with torch.autocast("cpu", cast, enabled=self.precision in ("bf16 autocast", "fp16 scaled")):
                        return self.loss_of(self.model, batch)

                engine.evaluate(closure, scale=1 / self.accumulate, targets=batch["labels"])
                if (i + 1) % self.accumulate:
                    continue
                if self.clip:
                    torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
                engine.apply(optimizer)
                optimizer.step()
                optimizer.zero_grad()
                scheduler.step()
                step = engine.run.step
                if self.watch:
                    self.watch(self.model)
                if self.evaluated and step % 2 == 0:
                    self.evaluate(self.model)
        return self


def share_of_the_way(model, other, start):
    """How far apart two trained models are, as a share of the way that the second one went from the start."""
    way = (weights(other) - start).norm()
    assert way > 0
    return float((weights(model) - weights(other)).norm() / way)
