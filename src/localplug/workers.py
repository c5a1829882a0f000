"""Many workers train one model: they exchange coefficients, a few bytes for each direction, and never gradients.

With worker r's coefficients c_rj of its own part of the batch, every worker applies the same update:

    worker_directions="same"       (1/q) sum_j mean_r(c_rj) z_j         one set of q directions, the mean of all batches
    worker_directions="different"  (1/(W q)) sum_rj c_rj z_rj           W sets of q directions, for the price of one

Replicas stay equal to the last bit, because all of them compute that update from the same numbers. What layer-local
methods learn has no coefficients: their gradients are averaged, as DistributedDataParallel does.
"""

import functools
import hashlib
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar, final

import torch
from torch import Tensor, nn

from localplug.contract import Run
from localplug.errors import EngineError
from localplug.shards import is_sharded

logger = logging.getLogger("localplug")

_T = TypeVar("_T")
_GAMMA = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed integer
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def number_of_workers(process_group: Any = None) -> int:
    """Processes in the group, 1 where torch.distributed is not in use."""
    distributed = torch.distributed
    if not distributed.is_available() or not distributed.is_initialized():
        return 1
    return int(distributed.get_world_size(process_group))


@final
class Workers:
    """The processes that train this model together, at least two.

    Args:
        process_group: of torch.distributed; all processes by default.
    """

    def __init__(self, process_group: Any = None) -> None:
        self._group = process_group
        self.size = number_of_workers(process_group)
        self.rank = int(torch.distributed.get_rank(process_group))
        self._first = torch.distributed.get_global_rank(process_group, 0) if process_group is not None else 0
        self._exchanges = 0

    def exchange(self, coefficients: Tensor, run: Run) -> Tensor:
        """Every worker's coefficients for this micro-batch, as all of them will apply them.

        Each worker sends 4 bytes a coefficient, and 4 that tell whether all are at the same place of the same run.

        Args:
            coefficients: float32, shape (q,).

        Returns: the mean, shape (q,); with different directions those of all workers, shape (W q,), scaled alike.

        Raises:
            EngineError: a worker was lost, or the workers are not in step.
        """
        self._exchanges += 1
        place = _fingerprint(run.seed, run.step, self._exchanges, len(run.parameters), len(coefficients))
        mine = torch.cat([coefficients.view(torch.int32), coefficients.new_tensor([place], dtype=torch.int32)])
        received = torch.stack(self._gathered(mine, run))
        if bool((received[:, -1] != place).any()):
            where = [r for r in range(self.size) if int(received[r, -1]) != place]
            raise EngineError(
                f"the workers are not in step: {where} are not where worker {self.rank} is, which is in step {run.step} "
                f"with seed {run.seed} and {len(run.parameters)} trained parameters; start all with the same model, "
                "arguments and number of batches"
            )
        each = received[:, :-1].contiguous().view(torch.float32)
        return each.flatten() if run.num_workers_apart > 1 else each.mean(0)

    def average_(self, gradients: Sequence[Tensor], run: Run) -> None:
        """Gradients of a layer-local method: each becomes the mean over the workers."""
        for gradient in gradients:
            self._together(functools.partial(torch.distributed.all_reduce, gradient, group=self._group), run)
            gradient.div_(self.size)

    @torch.no_grad()
    def start_alike(self, model: nn.Module, run: Run) -> None:
        """Compare seeds and weights; workers whose weights differ from worker 0's take worker 0's.

        Raises:
            EngineError: the seeds, the names or the shapes of what is trained differ.
        """
        shapes = [(name, tuple(p.shape), str(p.dtype)) for name, p in run.parameters]
        device = run.parameters[0][1].device
        facts = torch.tensor([_fingerprint(run.seed, run.step), _fingerprint(shapes)], device=device)
        whole = [t.data for t in (*model.parameters(), *model.buffers()) if not is_sharded(t)]
        whole = [t for t in whole if type(t) is torch.Tensor and not t.is_meta]
        mine = torch.cat([facts.to(torch.int64), _checksum(whole, device)])
        everyone = self._gathered(mine, run)
        for what, column in (("seed or the step", 0), ("names or shapes of the trained parameters", 1)):
            if len({int(other[column]) for other in everyone}) > 1:
                raise EngineError(f"the workers differ in the {what}; start all of them with the same arguments")
        if len({int(other[2]) for other in everyone}) > 1:
            logger.info("the workers' start weights differ: all take those of worker 0")
            for tensor in whole:
                contiguous = tensor.contiguous()
                send = functools.partial(torch.distributed.broadcast, contiguous, self._first, group=self._group)
                self._together(send, run)
                tensor.copy_(contiguous)

    def _gathered(self, mine: Tensor, run: Run) -> list[Tensor]:
        """What each worker has, in their order."""
        everyone = [torch.empty_like(mine) for _ in range(self.size)]
        self._together(lambda: torch.distributed.all_gather(everyone, mine, group=self._group), run)
        return everyone

    def _together(self, collective: Callable[[], _T], run: Run) -> _T:
        try:
            return collective()
        except RuntimeError as error:  # gloo: connection closed; nccl: DistBackendError; both: timed out
            raise EngineError(
                f"worker {self.rank} of {self.size} lost the others in step {run.step}: one of them ended or hangs "
                "(its own output says why). Start again from the last checkpoint, on any number of workers"
            ) from error


def spare_gradients(model: nn.Module) -> Callable[[], None]:
    """Tell a DistributedDataParallel that will wrap this model to leave all but its smallest trained parameter alone.

    It then neither allocates gradient buckets for the others nor sends buffers round at every forward call. It insists
    on one parameter. Returns what takes this back.
    """
    trained = [(p.numel(), n) for n, p in model.named_parameters() if p.requires_grad]
    kept = min(trained)[1] if trained else None
    ignored = [n for n, _ in model.named_parameters() if n != kept] + [n for n, _ in model.named_buffers()]
    before = model.__dict__.get(_IGNORED)
    setattr(model, _IGNORED, [*(before or []), *ignored])

    def take_back() -> None:
        if before is None:
            model.__dict__.pop(_IGNORED, None)
        else:
            setattr(model, _IGNORED, before)

    return take_back


_IGNORED = "_ddp_params_and_buffers_to_ignore"  # what DistributedDataParallel's constructor reads


def wasted_buckets() -> int:
    """Elements in the gradient buckets of the DistributedDataParallel whose forward is running; 0 outside of one."""
    active = getattr(nn.parallel.DistributedDataParallel, "_active_ddp_module", None)
    parameters: Iterable[Tensor] = getattr(active, "_module_parameters", ())
    return sum(p.numel() for p in parameters if p.requires_grad)


def _fingerprint(*facts: Any) -> int:
    """31 bits of a hash that is the same in every process."""
    return int.from_bytes(hashlib.blake2b(repr(facts).encode(), digest_size=4).digest(), "little") >> 1


def _checksum(tensors: Iterable[Tensor], device: torch.device) -> Tensor:
    """Sum over all elements of bits * weight modulo 2**64, in whole integers: the same on every device. Shape (1,)."""
    total, position = torch.zeros((), dtype=torch.int64, device=device), 1
    for tensor in tensors:
        plain = torch.view_as_real(tensor) if tensor.is_complex() else tensor
        flat = plain.contiguous().view(-1).view(_INTEGERS[plain.element_size()])
        for start in range(0, flat.numel(), 1 << 20):
            bits = flat[start : start + (1 << 20)].to(torch.int64)
            weights = torch.arange(position, position + bits.numel(), device=bits.device) * _GAMMA | 1
            total += (bits * weights).sum().to(device)
            position += bits.numel()
    return total.view(1)
