"""A Fabric script that two processes run for tests/test_fabric.py. Arguments: folder, number of processes."""

import json
import pathlib
import sys
import warnings

import torch
from lightning.fabric import Fabric
from torch import nn

import localplug
from lightning_problems import dataset, module
from problems import weights

STEPS = 6


def buckets(model):
    """Elements for which a DistributedDataParallel in this model has gradient buckets."""
    wrappers = [m for m in model.modules() if isinstance(m, nn.parallel.DistributedDataParallel)]
    return sum(p.numel() for m in wrappers for p in m._module_parameters)


def train(fabric, method, directions="same", resume=None, save=None, steps=STEPS, accumulate=1, clip=None):
    model = module()
    if fabric.global_rank == 1:
        nn.init.zeros_(model.net[0].weight)  # which the start puts right
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    options = dict(update="trainer") if method == "mezo" else {}
    loader = fabric.setup_dataloaders(
        torch.utils.data.DataLoader(dataset(96), batch_size=16 // fabric.world_size, shuffle=False)
    )
    attached = localplug.attach(
        model.net, method, optimizer, worker_directions=directions, targets=lambda *_: now[0], **options
    )
    wrapped, optimizer = fabric.setup(model.net, optimizer)
    state = {"model": wrapped, "optimizer": optimizer, "localplug": attached.engine, "batch": 0}
    if resume:
        fabric.load(resume, state)
    now = [None]
    with attached:
        for i, (x, y) in enumerate(loader):
            if i < state["batch"] or i >= steps:
                continue
            now[0], accumulating = y, (i + 1) % accumulate != 0
            with fabric.no_backward_sync(wrapped, enabled=accumulating and accumulate > 1 and fabric.world_size > 1):
                loss = nn.functional.cross_entropy(wrapped(x), y)
                fabric.backward(loss / accumulate)
            state["batch"] = i + 1
            if accumulating:
                continue
            if clip:
                fabric.clip_gradients(wrapped, optimizer, max_norm=clip)
            optimizer.step()
            optimizer.zero_grad()
        if save:
            fabric.save(save, state)
    return model, buckets(wrapped), attached.engine


def main(folder, devices):
    fabric = Fabric(accelerator="cpu", devices=devices, strategy="ddp")
    fabric.launch()
    path = folder / "half.ckpt"
    for name, options in {
        "mezo": dict(method="mezo"),
        "tpsgd": dict(method="tpsgd"),
        "different": dict(method="mezo", directions="different"),
        "clipped": dict(method="mezo", accumulate=2, clip=0.05),
        "half": dict(method="mezo", steps=3, save=path),
        "resumed": dict(method="mezo", resume=path),
    }.items():
        model, held, engine = train(fabric, **options)
        torch.save(weights(model), folder / f"{name}-{fabric.global_rank}.pt")
        facts = dict(buckets=held, step=engine.run.step, workers=engine.num_workers)
        (folder / f"{name}-{fabric.global_rank}.json").write_text(json.dumps(facts))
        fabric.barrier()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    main(pathlib.Path(sys.argv[1]), int(sys.argv[2]))
