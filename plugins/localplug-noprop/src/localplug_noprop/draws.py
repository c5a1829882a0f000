"""What is drawn in a training step: functions of (seed, step) and of an example's place in the batch; and for which network.

Micro-batches of one step draw the same.
"""

from typing import TypeVar

import torch
from torch import Tensor, nn

from localplug import Run, Unsupported, noise

Net = TypeVar("Net", bound=nn.Module)


def net(run: Run, kind: type[Net]) -> Net:
    """The network of this kind in the model; `unit_names` has refused a model with none or with several."""
    return next(module for module in run.model.modules() if isinstance(module, kind))


def net_in_training(run: Run, kind: type[Net]) -> Net:
    """The same, of a network in continuous time.

    Raises:
        Unsupported: it is in evaluation mode.
    """
    found = net(run, kind)
    if not found.training:
        raise Unsupported("in evaluation mode the network calls its block many times; call model.train() to train it")
    return found


def unit_names(run: Run, kind: type[nn.Module]) -> list[str]:
    """The names of the units of the one network that the method trains.

    Raises:
        ValueError: the model has another number of such networks.
    """
    found = [(name, module) for name, module in run.model.named_modules() if isinstance(module, kind)]
    if len(found) != 1:
        raise ValueError(f"the method trains one localplug_noprop.network.{kind.__name__}, the model has {len(found)}")
    ((name, own),) = found
    assert isinstance(own.noprop, nn.ModuleDict)
    return [f"{name}.noprop.{unit}" if name else f"noprop.{unit}" for unit in own.noprop]


def normal(run: Run, number: int, shape: tuple[int, int], like: Tensor) -> Tensor:
    """Standard normal noise of one unit in this step.

    Args:
        number: of the draw in the step.
        like: a tensor on the device and of the dtype that it shall have.
    """
    stream = noise.stream(run.seed, run.step, number, "noprop normal")
    return noise.normal(stream, 0, shape[0] * shape[1], like.device).view(shape).to(like.dtype)


def times(run: Run, num: int, like: Tensor) -> Tensor:
    """Times t ~ U(0, 1) of this step, one for each example, (B,): a random one, and from there on evenly spaced.

    Evenly, because the weight of the loss differs by orders of magnitude between times.
    """
    stream = noise.stream(run.seed, run.step, 0, "noprop times")
    first = noise.uniform(stream, 0, 1, like.device)
    return ((first + torch.arange(num, device=like.device) / num) % 1).to(like.dtype)


def mixed(signal: Tensor | float, u_BD: Tensor, eps_BD: Tensor) -> Tensor:
    """A sample of q(z | y) = N(sqrt(ab) u_y, (1 - ab) I).

    Args:
        signal: ab, in (0, 1); a number, or one for each example, (B, 1).
    """
    ab = torch.as_tensor(signal, dtype=u_BD.dtype, device=u_BD.device)
    return ab.sqrt() * u_BD + (1 - ab).sqrt() * eps_BD


def kl_to_normal(signal: float, u_BD: Tensor) -> Tensor:
    """KL(q(z_0 | y) || N(0, I)) without its constant, ab_0 |u_y|^2 / 2, averaged over the examples."""
    return signal / 2 * u_BD.square().sum(-1).mean()


def distance(one_BD: Tensor, other_BD: Tensor) -> Tensor:
    """|one - other|^2 for each example, (B,). float32."""
    return (one_BD.float() - other_BD.float()).square().sum(-1)
