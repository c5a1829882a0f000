"""Sharded parameters (DTensor, as FSDP2's fully_shard makes them): which elements of the whole a worker holds.

Noise is a function of the element's index in the whole parameter, so that each worker makes the noise of its own shard
and a sharded run equals the unsharded one. This needs a shard that is a contiguous run of rows: Shard(0) along at most one
dimension of the mesh, replicated along the others. That is what fully_shard makes, also with replicas (HSDP); shards of
columns (tensor parallelism) are refused.
"""

import sys
from typing import Any

from torch import Tensor, nn


def is_sharded(tensor: Tensor) -> bool:
    """Whether this is a DTensor."""
    distributed_tensors = sys.modules.get("torch.distributed.tensor")  # where nobody imported it, there is none
    return distributed_tensors is not None and isinstance(tensor, distributed_tensors.DTensor)


def local_part(tensor: Tensor) -> tuple[Tensor, int]:
    """The elements that this worker holds, and the index of the first of them in the whole, row by row.

    Returns: (the tensor itself, 0) for a plain tensor; for a DTensor its local tensor, not a copy.
    """
    if not is_sharded(tensor):
        return tensor, 0
    shard: Any = tensor
    local: Tensor = shard.to_local()
    rows = 0
    for place, size, placement in zip(
        shard.device_mesh.get_coordinate(), shard.device_mesh.shape, shard.placements, strict=True
    ):
        if placement.is_shard():
            rows = min(place * -(-shard.shape[0] // size), shard.shape[0])  # chunks as torch.chunk makes them
    return local, rows * (tensor.numel() // max(tensor.shape[0], 1)) if tensor.dim() else 0


def whole(tensor: Tensor) -> Tensor:
    """The tensor with all its elements; collective for a DTensor."""
    shard: Any = tensor
    return shard.full_tensor() if is_sharded(tensor) else tensor


def unsupported_shards(named: list[tuple[str, nn.Parameter]]) -> list[str]:
    """Names of the parameters whose shards are not runs of rows."""
    return [name for name, parameter in named if is_sharded(parameter) and not _by_rows(parameter)]


def _by_rows(parameter: Any) -> bool:
    shard_type = sys.modules["torch.distributed.tensor"].Shard
    cut = [p for p in parameter.placements if not p.is_replicate()]
    return len(cut) <= 1 and all(type(p) is shard_type and p.dim == 0 for p in cut)


def gathers_itself(module: nn.Module) -> bool:
    """Whether hooks of fully_shard gather this module's parameters when it is called."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and isinstance(module, fsdp.FSDPModule)


def let_go(model: nn.Module) -> None:
    """Drop gathered parameters, so that the next forward call gathers the shards as they are then."""
    for module in model.modules():
        if gathers_itself(module):
            module.reshard()  # type: ignore[operator]
