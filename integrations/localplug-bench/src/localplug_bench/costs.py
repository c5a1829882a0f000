"""What one step holds and computes: bytes that autograd saves, floating-point operations, and what is stored of a run."""

import contextlib
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from localplug import Task
from localplug.tasks import moved, seeded_state
from localplug_bench.clock import Clock
from localplug_bench.specs import Spec
from localplug_bench.ways import ByMethod, way


@contextlib.contextmanager
def saved_bytes(model: nn.Module, batch: Any) -> Iterator[list[int]]:
    """The most bytes that autograd holds at one time inside the `with`: [peak].

    A storage counts once, however many tensors share it; those of weights, buffers and the batch do not count.
    """
    tensors = [*model.parameters(), *model.buffers(), *(x for x in tree_leaves(batch) if isinstance(x, Tensor))]
    own = {t.untyped_storage().data_ptr() for t in tensors}
    held: dict[int, list[int]] = {}  # storage -> [bytes, how many saved tensors share it]
    peak = [0]

    class Kept:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor.detach()  # a saved output would hold its own graph
            self.place = tensor.untyped_storage().data_ptr()
            held.setdefault(self.place, [tensor.untyped_storage().nbytes(), 0])[1] += 1
            peak[0] = max(peak[0], sum(size for size, _ in held.values()))

        def __del__(self) -> None:
            held[self.place][1] -= 1
            if not held[self.place][1]:
                del held[self.place]

    def pack(tensor: Tensor) -> Tensor | Kept:
        return tensor if tensor.untyped_storage().data_ptr() in own else Kept(tensor)

    def unpack(kept: Tensor | Kept) -> Tensor:
        return kept.tensor if isinstance(kept, Kept) else kept

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield peak


def costs(task: Task, spec: Spec, *, batch_size: int, device: str = "cpu", seed: int = 0) -> dict[str, Any]:
    """What a step of this way of training costs, apart from time, measured on its second step.

    Returns:
        saved_bytes: see `saved_bytes`.
        flops_forward, flops_step: of matrix products, convolutions and attention, in a plain forward pass over the batch, and
            in a step; random directions are not among them.
        stored_bytes: of the trained weights, and of what the method needs to predict.
        log_bytes_a_step: of the run as (seed, coefficients), for methods that can be replayed; None for others.
    """
    train = task.parts(seed).train
    batch = moved(train.batch(torch.arange(min(batch_size, len(train)))), device)
    trained, clock = way(task, spec, seed, device), Clock()
    with torch.no_grad(), FlopCounterMode(display=False) as forward:
        task.loss(trained.model, batch)
    trained.step(batch, clock)  # what is made once, such as heads, is there afterwards
    with saved_bytes(trained.model, batch) as peak:
        trained.step(batch, clock)
    with FlopCounterMode(display=False) as step:
        trained.step(batch, clock)
    stored = [p for p in trained.model.parameters() if p.requires_grad]
    if isinstance(trained, ByMethod) and trained.predictor is not trained.model:
        stored += trained.method.owned_parameters
    found = {
        "saved_bytes": peak[0],
        "flops_forward": forward.get_total_flops(),
        "flops_step": step.get_total_flops(),
        "stored_bytes": sum(p.numel() * p.element_size() for p in stored),
        "log_bytes_a_step": None,
    }
    can_be_logged = isinstance(trained, ByMethod) and not trained.method.replay_problems(trained.engine.run)
    trained.close()
    if can_be_logged:
        found["log_bytes_a_step"] = _logged(task, spec, batch, device, seed)
    return found


def passes_a_step(task: Task, spec: Spec, *, batch_size: int, device: str = "cpu", seed: int = 0) -> float:
    """The operations of a step over those of a plain forward pass over its batch: a mean over three steps, after a first one.

    Raises:
        ValueError: a forward pass has no operations that could be counted, or a step has none.
    """
    train = task.parts(seed).train
    batch = moved(train.batch(torch.arange(min(batch_size, len(train)))), device)
    trained, clock = way(task, spec, seed, device), Clock()
    with seeded_state(seed):  # dropout must not draw from the state of whoever asks
        with torch.no_grad(), FlopCounterMode(display=False) as forward:
            task.loss(trained.model, batch)
        trained.step(batch, clock)
        with FlopCounterMode(display=False) as steps:
            for _ in range(3):
                trained.step(batch, clock)
    trained.close()
    ratio = steps.get_total_flops() / max(forward.get_total_flops(), 1) / 3
    if not ratio:
        raise ValueError(
            f"a step of {spec} has no products or convolutions that could be counted; count passes instead"
        )
    return ratio


def _logged(task: Task, spec: Spec, batch: Any, device: str, seed: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        log = pathlib.Path(folder, "run.lplog")
        trained, clock = way(task, spec, seed, device, log=log), Clock()
        sizes = []
        for _ in range(5):
            trained.step(batch, clock)
            sizes.append(log.stat().st_size)
        trained.close()
    return (sizes[-1] - sizes[0]) / 4
