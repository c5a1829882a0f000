"""A LightningModule, its data, a Trainer for it, and the same training by the bare engine."""

import logging
import os
import pathlib
import subprocess
import sys

import lightning.pytorch as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import localplug
import localplug_lightning  # noqa: F401 (registers the names of the strategies)

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

WARNINGS = [
    pytest.mark.filterwarnings("ignore:The '.*' does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated"),  # lightning 2.6 on torch 2.13
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]
"""Lightning's own, which have nothing to do with what is tested."""


def dataset(num=64):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(num, 16, generator=generator)
    return TensorDataset(x, (x[:, :4].sum(1) > 0).long())


def data(num=64, batch=8):
    return DataLoader(dataset(num), batch_size=batch)


def module(base=L.LightningModule, **options):
    class Net(base):
        def __init__(self, dropout=0.0, schedule=False, lr=1e-2):
            super().__init__()
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Dropout(dropout), nn.Linear(32, 2))
            self.calls, self.losses, self.schedule, self.lr = 0, [], schedule, lr

        def training_step(self, batch, batch_idx):
            self.calls += 1
            x, y = batch
            loss = nn.functional.cross_entropy(self.net(x), y)
            self.log("train_loss", loss)
            return loss

        def on_train_batch_end(self, outputs, batch, batch_idx):
            self.losses.append(float(outputs["loss"]) if outputs else None)

        def configure_optimizers(self):
            optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=0.0)
            if not self.schedule:
                return optimizer
            return [optimizer], [
                {"scheduler": torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, 8), "interval": "step"}
            ]

    return Net(**options)


def validated(**options):
    """The same module with a validation loss."""
    made = module(**options)
    made.validation_step = lambda batch, batch_idx: made.log(
        "val_loss", nn.functional.cross_entropy(made.net(batch[0]), batch[1])
    )
    return made


def trainer(folder, package=L, **options):
    given = dict(
        max_steps=6, max_epochs=-1, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=str(folder),
    )  # fmt: skip
    return package.Trainer(**{**given, **options})


def reference(model, steps, accumulate=1, clip=None, lr=1e-2, skip=(), batches=None):
    """The same training by the bare engine.

    Args:
        clip: maps the list of a step's coefficients, as the trainer's clipping does.
        lr: a number, or a function of the step.
        skip: micro-batches that are not learned from.
    """
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    engine = localplug.Engine(model, localplug.method("mezo"), optimizer)
    batches = enumerate([b for _ in range(4) for b in data()] if batches is None else batches)
    losses = []
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr(step) if callable(lr) else lr
        for _ in range(accumulate):
            i, (x, y) = next(batches)
            if i in skip:
                losses.append(None)
                continue
            loss = engine.evaluate(lambda x=x, y=y: nn.functional.cross_entropy(model.net(x), y), scale=1 / accumulate)
            losses.append(float(loss))
        if not engine.has_estimate:
            continue
        if clip:
            clip(model.parameters())
        engine.apply(optimizer)
        optimizer.step()
        optimizer.zero_grad()
    return losses


class Quiet(L.LightningModule):
    """module(), of a class that can be pickled, and whose training_step does not log, which Dynamo cannot compile."""

    def __init__(self):
        super().__init__()
        self.net = module().net

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-2)


def run_script(name, *arguments):
    """A script beside this file, as a user starts it."""
    here = pathlib.Path(__file__).parent
    done = subprocess.run(
        [sys.executable, str(here / name), *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(here)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout[-6000:]
