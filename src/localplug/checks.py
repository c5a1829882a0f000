"""Every reason why this model, method and optimizer will not train together, all at once."""

import torch
from torch import nn

from localplug.contract import Method, Run, parameter_names
from localplug.errors import Unsupported


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
    found: list[str] = []
    if not run.parameters:
        return ["the model has no trainable parameter; set requires_grad=True on what should be trained"]
    for what, wrong in (
        ("floating-point", [n for n, p in run.parameters if not p.is_floating_point()]),
        ("materialised (they are on the meta device)", [n for n, p in run.parameters if p.is_meta]),
        ("plain tensors (they are sharded)", [n for n, p in run.parameters if type(p.data) is not torch.Tensor]),
    ):
        if wrong:
            found.append(
                f"trainable parameters must be {what}: {_some(wrong)}; freeze them or load the model differently"
            )
    if isinstance(model, nn.DataParallel):
        found.append("nn.DataParallel replicates the model round the engine; use one device")
    together = torch.distributed.is_available() and torch.distributed.is_initialized()
    if together and (workers := torch.distributed.get_world_size()) > 1:
        found.append(f"{workers} processes train together, which this release does not support; start one process")
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
