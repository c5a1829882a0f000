"""Processes for FlowOpt: Euler's method along a velocity, the way back that starts the search, and pipelines of diffusers.

A flow model gives a velocity v(x, t); t goes from 1, noise, to 0, data, as in diffusers' FlowMatchEulerDiscreteScheduler:

    x_i+1 = x_i + (t_i+1 - t_i) v(x_i, t_i),   t_0 > t_1 > ... > t_T

Backwards, v at the known end stands for v at the unknown start, x_i = x_i+1 - (t_i+1 - t_i) v(x_i+1, t_i): an approximate
inversion, and a good first z.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from localplug_blackbox.flow import Process

Velocity = Callable[[Tensor, float], Tensor]
_OURS = ("latents", "output_type", "return_dict")


def euler_process(velocity: Velocity, times: Sequence[float]) -> Process:
    """The sampler of a flow model as a process: the x at the last time from the x at the first.

    Args:
        velocity: v(x, t), shaped like x.
        times: t_0 > ... > t_T, at least two.

    Raises:
        ValueError: the times do not fall.

    Example:
        >>> import torch
        >>> process = euler_process(lambda x, t: torch.ones_like(x), [1.0, 0.5, 0.0])
        >>> process(torch.tensor([3.0])).tolist()
        [2.0]
    """
    steps = _falling(times)

    @torch.no_grad()
    def process(z: Tensor) -> Tensor:
        x = z
        for t, following in steps:
            x = x + (following - t) * velocity(x, t)
        return x

    return process


@torch.no_grad()
def euler_inversion(velocity: Velocity, times: Sequence[float], x: Tensor) -> Tensor:
    """About the z from which `euler_process` gives x: Euler's method backwards, as many velocities as forwards.

    Args:
        velocity: v(x, t).
        times: of the process, falling.
        x: what it should give.

    Raises:
        ValueError: the times do not fall.

    Example:
        >>> import torch
        >>> euler_inversion(lambda x, t: torch.ones_like(x), [1.0, 0.5, 0.0], torch.tensor([2.0])).tolist()
        [3.0]
    """
    for t, following in reversed(_falling(times)):
        x = x - (following - t) * velocity(x, t)
    return x


def pipeline_process(pipeline: Callable[..., Any], call: Mapping[str, Any]) -> Process:
    """A pipeline of diffusers as a process: the latents that it ends with, from those that it starts with.

    For pipelines of flow models, such as FluxPipeline and StableDiffusion3Pipeline: they take `latents`, and give latents of
    the same shape with output_type="latent". Nothing of diffusers is imported here. For a start between noise and data, give
    `sigmas` in the call, the times that are left.

    Args:
        pipeline: called as pipeline(latents=z, output_type="latent", return_dict=False, **call), and gives a tuple.
        call: its other arguments: the prompt or its embeddings, num_inference_steps, guidance_scale.

    Raises:
        ValueError: the call has an argument that is set here.

    Example:
        >>> import torch
        >>> pipeline = lambda latents, output_type, return_dict, prompt: (latents * 2,)
        >>> pipeline_process(pipeline, {"prompt": "a cat"})(torch.ones(1)).tolist()
        [2.0]
    """
    if given := [name for name in _OURS if name in call]:
        raise ValueError(f"call must not have {', '.join(given)}: these are set for each evaluation")

    @torch.no_grad()
    def process(z: Tensor) -> Tensor:
        found: Tensor = pipeline(latents=z, output_type="latent", return_dict=False, **call)[0]
        return found

    return process


def _falling(times: Sequence[float]) -> list[tuple[float, float]]:
    found = list(itertools.pairwise(map(float, times)))
    if not found or not all(t > following for t, following in found):
        raise ValueError(f"times must be at least two that fall, got {list(times)}")
    return found
