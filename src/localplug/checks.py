"""Every reason why this model, method and optimizer will not train together, all at once."""

import torch
from torch import nn

from localplug.contract import Method, Run, parameter_names
from localplug.errors import Unsupported
from localplug.shards import is_sharded, unsupported_shards


def trainable(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """(wrapper-free name, parameter) of every trainable parameter, tied ones once."""
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    return list(zip(parameter_names([n for n, _ in named]), (p for _, p in named), strict=True))


def check(
    model: nn.Module,
    method: Method,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    seed: int = 0,
    clipping: float = 0.0,
    accumulation: int = 1,
) -> list[str]:
    """The reasons, each with the way out; an empty list means that training can start.

    Args:
        clipping: the gradient norm that the trainer clips to; 0 if it does not clip.
        accumulation: micro-batches in one optimizer step.
    """
    run = Run(model, trainable(model), seed, clipping=clipping, accumulation=accumulation)
    return problems(run, method, optimizer)


def problems(run: Run, method: Method, optimizer: torch.optim.Optimizer | None = None) -> list[str]:
    """The same for a run that is already described."""
    model, found = run.model, []
    if not run.parameters:
        return ["the model has no trainable parameter; set requires_grad=True on what should be trained"]
    for what, wrong in (
        ("floating-point", [n for n, p in run.parameters if not p.is_floating_point()]),
        ("materialised (they are on the meta device)", [n for n, p in run.parameters if p.is_meta]),
        (
            "plain tensors or DTensors",
            [n for n, p in run.parameters if type(p.data) is not torch.Tensor and not is_sharded(p)],
        ),
        ("sharded by rows, as fully_shard does it", unsupported_shards(run.parameters)),
    ):
        if wrong:
            found.append(
                f"trainable parameters must be {what}: {_some(wrong)}; freeze them or load the model differently"
            )
    if isinstance(model, nn.DataParallel):
        found.append("nn.DataParallel replicates the model round the engine; use one device")
    if any(isinstance(m, nn.parallel.DistributedDataParallel) for m in model.modules()):
        found.append(
            "DistributedDataParallel holds a gradient bucket for every weight; attach to the model before it is wrapped"
        )
    if any(type(m).__name__ == "FullyShardedDataParallel" for m in model.modules()):
        found.append(
            "FullyShardedDataParallel (FSDP1) flattens parameters of several modules into one, so that an element's place "
            "in its parameter is lost; use torch.distributed.fsdp.fully_shard (FSDP2)"
        )
    if any(is_sharded(p) for _, p in run.parameters):
        if not method.num_coefficients:
            found.append(
                "layer-local methods need whole parameters, and these are sharded; replicate the model instead"
            )
        if run.num_workers_apart > 1:
            found.append(
                "workers that share sharded parameters see the same weights, and so cannot draw different directions; "
                "set worker_directions='same'"
            )
    if run.is_compiled and not method.num_coefficients:
        found.append("layer-local methods hook the model's modules, and so cannot be compiled; leave torch.compile out")
    if run.num_workers_apart > 1 and not method.num_coefficients:
        found.append("worker_directions='different' is for methods that draw directions; leave it at 'same'")
    if optimizer is not None:
        found += _optimizer_problems(run, optimizer)
    return found + method.problems(run)


def _optimizer_problems(run: Run, optimizer: torch.optim.Optimizer) -> list[str]:
    held = {p for group in optimizer.param_groups for p in group["params"]}
    left_out = [n for n, p in run.parameters if p not in held]
    if len(left_out) == len(run.parameters):
        return ["the optimizer holds none of the model's trainable parameters; build it from this model's parameters"]
    found = []
    if left_out:
        found.append(
            f"the optimizer does not hold {_some(left_out)}, which would be perturbed and never updated; "
            "add them to the optimizer or set requires_grad=False"
        )
    if isinstance(optimizer, torch.optim.LBFGS):
        found.append("LBFGS evaluates the model inside its step; use an optimizer whose step needs no closure")
    return found


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def refuse(reasons: list[str]) -> None:
    """Raise Unsupported with all reasons, if there are any."""
    if reasons:
        raise Unsupported("this cannot train:\n" + "\n".join(f"  - {reason}" for reason in reasons))
