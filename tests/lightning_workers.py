"""What each of two worker processes runs for tests/test_lightning_ddp.py, as a user's script. Arguments: folder, spawn?"""

import json
import pathlib
import sys
import warnings

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torchmetrics.classification import BinaryAccuracy

from lightning_problems import Quiet, dataset, module, trainer
from localplug_lightning import LocalPlugDDPStrategy
from problems import weights

STEPS = 8


def loader(batch, alone=False, num=128):
    """Lightning gives several workers a sampler that shuffles, whatever the loader says; `alone` gives it to one."""
    sampler = torch.utils.data.DistributedSampler(dataset(num), 1, 0, shuffle=True, seed=0) if alone else None
    return torch.utils.data.DataLoader(dataset(num), batch_size=batch, sampler=sampler)


def counted():
    """The module with batch norm, an accuracy, and a validation that both depend on."""
    model = module()
    model.net.insert(1, nn.BatchNorm1d(32))
    model.accuracy = BinaryAccuracy()
    step = model.training_step

    def training_step(batch, batch_idx):
        model.accuracy.update(model.net(batch[0]).argmax(1), batch[1])
        model.log("accuracy", model.accuracy, on_step=False, on_epoch=True)
        return step(batch, batch_idx)

    model.training_step = training_step
    model.validation_step = lambda batch, batch_idx: model.log("scores", model.net(batch[0]).mean(), sync_dist=True)
    model.counted = []
    model.on_train_epoch_end = lambda: model.counted.append(int(model.accuracy._update_count))
    return model


def resumable(folder):
    return ModelCheckpoint(folder, every_n_train_steps=4, save_top_k=-1, filename="{step}")


def options(name, folder):
    """Of the Trainer, by the name of the case; the same with one worker and with two."""
    return {
        "clipped": dict(accumulate_grad_batches=2, gradient_clip_val=0.05, max_steps=STEPS // 2),
        "whole": dict(enable_checkpointing=True, callbacks=[resumable(folder)]),
    }.get(name, {})


def strategies(start_method="popen"):
    plug = LocalPlugDDPStrategy
    return {
        "mezo": "localplug_mezo_ddp" if start_method == "popen" else plug("mezo", start_method=start_method),
        "clipped": plug("mezo", num_directions=2),
        "different": plug("mezo", worker_directions="different"),
        "tpsgd": "localplug_tpsgd_ddp",
        "whole": plug("mezo", update="trainer"),
        "resumed": plug("mezo", update="trainer"),
        "unequal": plug("mezo"),
        "counted": plug("mezo"),
    }


def main(folder, start_method):
    names = ["mezo"] if start_method != "popen" else list(strategies())
    for name in names:
        model = counted() if name == "counted" else module(schedule=name in ("whole", "resumed"))
        if start_method != "popen":
            model = Quiet()
        chosen = strategies(start_method)[name]
        fitted = trainer(
            folder,
            strategy=chosen,
            devices=2,
            **{"max_steps": STEPS, "num_sanity_val_steps": 0, **options(name, folder)},
        )
        rank = fitted.global_rank
        if name == "unequal" and rank == 1:
            nn.init.zeros_(model.net[0].weight)
        num = 64 if name in ("whole", "resumed") else 128  # the checkpoint is of the end of an epoch
        given = [loader(8, num=num)] + ([loader(8)] if name == "counted" else [])
        resume = dict(ckpt_path=str(folder / "step=4.ckpt"), weights_only=True) if name == "resumed" else {}
        fitted.fit(model, *given, **resume)
        if start_method != "popen":  # the processes are gone; what they trained came back to this one
            torch.save(weights(model), folder / f"{start_method}.pt")
            continue
        wrapped = isinstance(fitted.strategy.model, nn.parallel.DistributedDataParallel)
        facts = dict(
            step=fitted.strategy.engine.run.step, wrapped=wrapped, calls=model.calls,
            counted=getattr(model, "counted", None), workers=fitted.strategy.engine.num_workers,
            accuracy=float(fitted.callback_metrics.get("accuracy", 0)), scores=float(fitted.callback_metrics.get("scores", 0)),
        )  # fmt: skip
        buffers = torch.cat([b.flatten().float() for b in model.buffers()]) if name == "counted" else torch.zeros(0)
        torch.save((weights(model), buffers), folder / f"{name}-{rank}.pt")
        (folder / f"{name}-{rank}.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    L.seed_everything(0, verbose=False)
    main(pathlib.Path(sys.argv[1]), sys.argv[2])
