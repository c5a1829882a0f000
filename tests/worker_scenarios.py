"""What tests/test_workers.py runs in several processes: `... worker_scenarios.py FOLDER NAME NAME ...`.

Each scenario returns a dictionary, which every worker saves as FOLDER/NAME.RANK.pt. Those of plain loops import no trainer.
"""

import json
import os
import pathlib
import signal
import sys

import torch
import torch.distributed as dist
from torch.nn import functional as F

import localplug

BATCH = 8
PLAIN = ("bytes_on_the_wire", "plain_loops", "sharded", "sharded_by_columns", "unlike", "too_late")
TRAINER = ("trainer_200_steps", "trainer_few_steps")


def weights(model):
    return torch.cat([p.detach().flatten().float() for p in model.parameters()])


def world():
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank():
    return int(os.environ.get("RANK", "0"))


def mine(batch):
    """This worker's part of a batch."""
    size = len(batch) // world()
    return batch[rank() * size : (rank() + 1) * size]


class Wire:
    """Counts the payload of every collective that Python code starts; DistributedDataParallel's own are started in C++."""

    NAMES = (
        "all_reduce",
        "broadcast",
        "all_gather",
        "all_gather_into_tensor",
        "reduce_scatter_tensor",
        "reduce",
        "send",
    )

    def __init__(self):
        self.bytes = self.calls = 0
        self._theirs = {name: getattr(dist, name) for name in self.NAMES}

    def __enter__(self):
        for name, function in self._theirs.items():
            setattr(dist, name, self._counting(name, function))
        return self

    def _counting(self, name, function):
        def counted(*args, **kwargs):
            sent = args[1] if name in ("all_gather", "all_gather_into_tensor", "reduce_scatter_tensor") else args[0]
            self.bytes += sent.numel() * sent.element_size()
            self.calls += 1
            return function(*args, **kwargs)

        return counted

    def __exit__(self, *_):
        for name, function in self._theirs.items():
            setattr(dist, name, function)


def loopback():
    """Bytes that this machine has received from itself."""
    line = next(
        line for line in pathlib.Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:")
    )
    return int(line.split(":")[1].split()[0])


def by_callback(folder, model=None, method="mezo", options=None, **changes):
    from localplug_transformers import LocalPlugCallback
    from problems import fit, tiny_llama

    callback = LocalPlugCallback(method, **(options or {}))
    changes = {"per_device_train_batch_size": BATCH // world(), **changes}
    if world() > 1:
        changes["ddp_backend"] = "gloo"
    model = tiny_llama() if model is None else model
    return fit(model, folder, callback, **changes), callback, model


def trainer_200_steps(folder):
    from problems import logged

    trainer, callback, model = by_callback(folder, max_steps=200, max_grad_norm=0.5, lr_scheduler_type="linear")
    return {
        "weights": weights(model),
        "grad_norm": logged(trainer, "grad_norm"),
        "workers": callback.engine.num_workers,
        "wrapper": type(trainer.model_wrapped).__name__,
        "bucket_elements": sum(p.numel() for p in getattr(trainer.model_wrapped, "_module_parameters", ())),
        "smallest": min(p.numel() for p in model.parameters()),
        "buffers_sent_round": len(getattr(trainer.model_wrapped, "modules_buffers", ())),
    }


def trainer_few_steps(folder):
    from problems import logged, tiny_llama

    found = {}
    for name, changes in (
        ("plain", {}),
        ("accumulated", dict(gradient_accumulation_steps=2, per_device_train_batch_size=BATCH // world() // 2)),
        ("q=3", dict(options=dict(num_directions=3))),
        ("lora", dict(lora=True, learning_rate=1e-2)),
    ):
        model = None
        if changes.pop("lora", False):
            from peft import LoraConfig, get_peft_model

            torch.manual_seed(0)
            lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights="gaussian")
            model = get_peft_model(tiny_llama(), lora)
        trainer, _, model = by_callback(folder, model, max_steps=4, **changes)
        moving = [p for p in model.parameters() if p.requires_grad]
        found[name] = torch.cat([p.detach().flatten() for p in moving])
        found[name + " loss"] = torch.tensor(logged(trainer, "loss"))
    return found


def bytes_on_the_wire(folder):
    """Payload and real traffic a step, for a model and one with sixteen times the weights."""
    found = {}
    for hidden in (32, 2048):
        model = net(hidden=hidden)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
        with localplug.attach(model, "mezo", optimizer, num_directions=2):
            part = mine(torch.arange(16))
            for step in range(25):
                if step == 5:
                    dist.barrier()
                    start, wire = loopback(), Wire()
                    wire.__enter__()
                F.cross_entropy(model(X[part]), Y[part]).backward()
                optimizer.step()
            wire.__exit__()
            dist.barrier()
            found[hidden] = {
                "weights": weights(model).numel(), "payload": wire.bytes / 20, "calls": wire.calls / 20,
                "traffic": (loopback() - start) / 20,
            }  # fmt: skip
    return found


def net(seed=0, hidden=32):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(8, hidden), torch.nn.Tanh(), torch.nn.Linear(hidden, 2))


X = torch.randn(64, 8, generator=torch.Generator().manual_seed(1))
Y = (X[:, 0] > 0).long()


def plain_loop(model, steps, method="mezo", optimizer=None, prepare=None, backward=None, **options):
    """An ordinary loop over this worker's parts of the batches."""
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.05)
    part = None
    targets = {"targets": lambda args, kwargs: Y[part]} if method == "tpsgd" else {}
    with localplug.attach(model, method, optimizer, **targets, **options) as plug:
        called = prepare(model) if prepare else model
        for step in range(steps):
            part = mine(torch.arange(16) + 16 * (step % 4))
            loss = F.cross_entropy(called(X[part]), Y[part])
            backward(loss) if backward else loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return plug


def plain_loops(folder):
    found = {}
    for name, options in (
        ("same", {}),
        ("different", dict(worker_directions="different")),
        ("different q=2", dict(worker_directions="different", num_directions=2)),
        ("tpsgd", dict(method="tpsgd")),
        ("adam", dict(update="trainer")),
    ):
        model = net()
        if name == "adam":
            options["optimizer"] = torch.optim.AdamW(model.parameters(), lr=1e-3)
        plain_loop(model, 10, **options)
        found[name] = weights(model)
    return found


def different_directions_by_hand(folder):
    """One process: direction r is evaluated on part r of the batch, and the slopes of all parts are applied at once."""
    eps, lr, parts = 1e-3, 0.05, 2
    model = net()
    run = localplug.Run(model, [(n, p) for n, p in model.named_parameters()], seed=0)
    directions = localplug.Directions(run)
    for step in range(10):
        run.step = step
        batch = torch.arange(16) + 16 * (step % 4)
        theta = [p.detach().clone() for p in model.parameters()]
        change = [torch.zeros_like(t) for t in theta]
        for r in range(parts):
            part, losses = batch[8 * r : 8 * r + 8], []
            z = [directions.values(i, r) for i in range(len(theta))]
            for sign in (1, -1):
                with torch.no_grad():
                    for p, t, d in zip(model.parameters(), theta, z, strict=True):
                        p.copy_(t + sign * eps * d)
                    losses.append(F.cross_entropy(model(X[part]), Y[part]))
            g = (losses[0] - losses[1]) / (2 * eps)
            change = [c - lr * g * d / parts for c, d in zip(change, z, strict=True)]
        with torch.no_grad():
            for p, t, c in zip(model.parameters(), theta, change, strict=True):
                p.copy_(t + c)
    return {"weights": weights(model)}


def accelerate(folder):
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    wrapped = []

    def prepare(model):
        wrapped.append(accelerator.prepare(model))
        return wrapped[0]

    plain_loop(model, 10, optimizer=accelerator.prepare(optimizer), prepare=prepare, backward=accelerator.backward)
    return {
        "weights": weights(model),
        "wrapper": type(wrapped[0]).__name__,
        "bucket_elements": sum(p.numel() for p in getattr(wrapped[0], "_module_parameters", ())),
    }


def sharded(folder):
    """fully_shard against replicas, in float32 and bfloat16, streamed and by AdamW, clipped; 67 rows on two workers."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    found = {}
    for name, dtype, update, clip in (
        ("sgd", torch.float32, "sgd", None),
        ("bf16", torch.bfloat16, "sgd", None),
        ("adam", torch.float32, "trainer", None),
        ("clipped", torch.float32, "sgd", 0.1),
    ):
        for shard in (False, True) if world() > 1 else (False,):
            model = net(hidden=67).to(dtype)
            if shard:
                mesh = init_device_mesh("cpu", (world(),))
                fully_shard(model[2], mesh=mesh)
                fully_shard(model, mesh=mesh)
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
            with localplug.attach(
                model, "mezo", optimizer, update=update, eps=1e-3 if dtype == torch.float32 else 1e-2
            ):
                for step in range(5):
                    part = mine(torch.arange(16) + 16 * (step % 4))
                    F.cross_entropy(model(X[part].to(dtype)).float(), Y[part]).backward()
                    if clip:
                        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
                    optimizer.step()
                    optimizer.zero_grad()
            whole = [p.full_tensor() if shard else p for p in model.parameters()]
            found[name + (" sharded" if shard else "")] = torch.cat([p.detach().flatten().float() for p in whole])
    if world() > 1:
        model = net()
        fully_shard(model, mesh=init_device_mesh("cpu", (world(),)))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for what, options in (("apart", dict(worker_directions="different")), ("tpsgd", dict(method="tpsgd"))):
            try:
                localplug.attach(model, **{"method": "mezo", **options}, optimizer=optimizer)
            except localplug.Unsupported as refused:
                found[what] = str(refused)
    return found


def sharded_by_columns(folder):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    model = net()
    mesh = init_device_mesh("cpu", (world(),))
    model[0].weight = torch.nn.Parameter(distribute_tensor(model[0].weight.detach(), mesh, [Shard(1)]))
    return {"problems": localplug.check(model, localplug.method("mezo"))}


def unlike(folder):
    """Other start weights on worker 1, then another seed; and a loop that attaches before the processes know each other."""
    found, model = {}, net(seed=rank())
    found["before"] = weights(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    localplug.attach(model, "mezo", optimizer).close()
    found["after"] = weights(model)
    try:
        localplug.attach(model, "mezo", optimizer, seed=rank())
    except localplug.EngineError as error:
        found["seed"] = str(error)
    wrapped = torch.nn.parallel.DistributedDataParallel(model)
    found["wrapped"] = localplug.check(wrapped, localplug.method("mezo"))
    with localplug.attach(model, "mezo", optimizer) as plug:  # too late: the buckets are there
        wrapped(X[:4]).sum().backward()
        optimizer.step()
        found["alarm"] = "buckets" in plug.engine.alarms._spoken
    return found


def too_late(folder):
    dist.destroy_process_group()
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with localplug.attach(model, "mezo", optimizer):
        dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank(), world_size=world())
        try:
            F.cross_entropy(model(X), Y).backward()
        except localplug.EngineError as error:
            return {"error": str(error)}


RESUMABLE = dict(max_steps=8, save_strategy="steps", save_steps=2, lr_scheduler_type="linear")


def uninterrupted(folder):
    return {"weights": weights(by_callback(f"{folder}/whole", **RESUMABLE)[2])}


def dying(folder):
    """Worker 1 is killed in its sixth step. Worker 0 writes down what it is told, and ends."""
    import transformers

    from localplug_transformers import LocalPlugCallback
    from problems import fit, tiny_llama

    class Dies(transformers.TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 5 and rank() == 1:
                os.kill(os.getpid(), signal.SIGKILL)

    callback = LocalPlugCallback("mezo")
    changes = {**RESUMABLE, "ddp_backend": "gloo", "per_device_train_batch_size": BATCH // world()}
    try:
        fit(tiny_llama(), f"{folder}/dying", callback, also=[Dies()], **changes)
    except localplug.EngineError as error:
        pathlib.Path(folder, "survivor.json").write_text(json.dumps([str(error), callback.engine.run.step]))
        os._exit(3)


def resumed(folder):
    return {
        "weights": weights(
            by_callback(f"{folder}/resumed{world()}", resume=f"{folder}/dying/checkpoint-4", **RESUMABLE)[2]
        )
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, *scenarios = sys.argv[1:]
    for scenario in scenarios:
        torch.manual_seed(0)
        if scenario in PLAIN and not dist.is_initialized():
            dist.init_process_group("gloo")
        torch.save(globals()[scenario](folder), f"{folder}/{scenario}.{rank()}.pt")
    dist.barrier()
    dist.destroy_process_group()
