"""What tests/test_doors.py runs in two processes: `torchrun door_workers.py FOLDER`. Each worker saves what it found.

FOLDER/DOOR.HOW.RANK.pt holds, for HOW in "same" and "different" directions and "sharded" parameters, {weights, workers,
step}, or the error.
"""

import logging
import pathlib
import sys
import tempfile
import warnings

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import localplug
from door import BATCH, ROWS, world
from doors import DOORS, Lightning
from problems import Tokens, tiny_llama, weights

OPTIONS = dict(eps=1e-2)
LR = 1e-2


def llama():
    return tiny_llama(initializer_range=0.2)


def replicas(door, directions, folder):
    fit = DOORS[door](llama(), folder, options=OPTIONS, worker_directions=directions)
    fit.run()
    return found(fit.model, fit.engine)


def found(model, engine):
    return dict(weights=whole(model), workers=engine.num_workers, step=engine.run.step)


# ---- fully sharded parameters -----------------------------------------------------------------------------------------------


def shard(model, mesh=None):
    mesh = init_device_mesh("cpu", (world(),)) if mesh is None else mesh
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def whole(model):
    for module in model.modules():
        if isinstance(module, torch.distributed.fsdp.FSDPModule):
            module.reshard()
    shards = [p.detach() for p in model.parameters()]
    return torch.cat([(p.full_tensor() if hasattr(p, "full_tensor") else p).flatten() for p in shards])


def loader():
    return torch.utils.data.DataLoader(Tokens(ROWS), batch_size=BATCH // world())


def by_the_trainer(door, folder):
    """fsdp= of the Trainer's arguments, which shards by FSDP2."""
    fit = DOORS[door](llama(), folder, options=OPTIONS, changes=dict(fsdp=True))
    fit.run()
    return found(fit.model, fit.engine)


def by_lightning(folder):
    """fully_shard in the module's own configure_model."""

    class Sharded(Lightning):
        def make_module(self):
            module = super().make_module()
            module.configure_model = lambda: shard(self.model)
            return module

    fit = Sharded(llama(), folder, options=OPTIONS).run()
    return found(fit.model, fit.engine)


def by_fabric(folder):
    """ModelParallelStrategy, which calls the user's own function in setup_module: attach after it."""
    from lightning.fabric import Fabric
    from lightning.fabric.strategies import ModelParallelStrategy

    strategy = ModelParallelStrategy(
        lambda model, mesh: shard(model, mesh["data_parallel"]), data_parallel_size=world(), tensor_parallel_size=1
    )
    fabric = Fabric(accelerator="cpu", devices=world(), strategy=strategy)
    fabric.launch()
    model = llama()
    called = fabric.setup_module(model)
    optimizer = torch.optim.SGD(called.parameters(), lr=LR)
    with localplug.attach(model, "mezo", optimizer, **OPTIONS) as attached:
        optimizer = fabric.setup_optimizers(optimizer)
        for batch in fabric.setup_dataloaders(loader()):
            fabric.backward(called(**batch).loss)
            optimizer.step()
            optimizer.zero_grad()
    return found(model, attached.engine)


def by_accelerate(folder, attach="after"):
    """FullyShardedDataParallelPlugin of version 2, whose prepare makes new parameters: attach after it."""
    from accelerate import Accelerator, FullyShardedDataParallelPlugin
    from accelerate.state import AcceleratorState, DistributedType

    AcceleratorState._reset_state(reset_partial_state=True)
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", transformer_cls_names_to_wrap=["LlamaDecoderLayer"]
    )
    accelerator = Accelerator(cpu=True, fsdp_plugin=plugin)
    # Accelerate takes the plugin on a GPU alone
    accelerator.state._shared_state.update(distributed_type=DistributedType.FSDP, fsdp_plugin=plugin)
    model = llama()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    attached = localplug.attach(model, "mezo", optimizer, **OPTIONS) if attach == "before" else None
    model, optimizer, batches = accelerator.prepare(model, optimizer, loader())
    with attached or localplug.attach(model, "mezo", optimizer, **OPTIONS) as attached:
        for batch in batches:
            accelerator.backward(model(**batch).loss)
            optimizer.step()
            optimizer.zero_grad()
    return found(model, attached.engine)


def by_hand(folder):
    fit = DOORS["bare loop"](shard(llama()), folder, options=OPTIONS).run()
    return found(fit.model, fit.engine)


SHARDED = {
    "Trainer": lambda folder: by_the_trainer("Trainer", folder), "TRL": lambda folder: by_the_trainer("TRL", folder),
    "Lightning": by_lightning, "Fabric": by_fabric, "Accelerate": by_accelerate, "bare loop": by_hand,
}  # fmt: skip


def main(folder):
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    for door in DOORS:
        for how in ("same", "different", "sharded"):
            own = pathlib.Path(tempfile.mkdtemp(dir=folder))
            torch.manual_seed(0)
            try:
                result = SHARDED[door](own) if how == "sharded" else replicas(door, how, own)
            except localplug.Unsupported as error:
                result = dict(error=str(error))
            assert how != "sharded" or "error" in result or not torch.equal(result["weights"], weights(llama()))
            torch.save(result, folder / f"{door}.{how}.{rank}.pt")
            dist.barrier()
    try:
        too_early = by_accelerate(folder, attach="before")
    except Exception as error:
        too_early = dict(error=str(error))
    torch.save(too_early, folder / f"Accelerate.too early.{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    main(pathlib.Path(sys.argv[1]))
