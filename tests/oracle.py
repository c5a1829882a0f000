"""Backpropagation as the oracle of a projected gradient: what one SGD step of the stock Trainer shows of the gradient."""

import torch

import localplug

LR = 1024.0
"""One SGD step is linear in lr: a large one makes the rounding of the weights small against the step, in bfloat16, too."""


def change(model, train):
    """{name: what train() added to the weight, float32}; and what train() returned."""
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    result = train()
    return {n: p.detach().float() - before[n].float() for n, p in model.named_parameters()}, result


def trained(model):
    return [n for n, p in model.named_parameters() if p.requires_grad]


def flat(by_name, names):
    return torch.cat([by_name[n].flatten().double() for n in names])


def visible_direction(model, gradient):
    """(seed, <gradient, z>, z) of the first seed whose slope in step 0 is at least |gradient|, its root mean square.

    A slope that happens to be near 0 would agree with nothing. One seed in three will do.
    """
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    short = localplug.contract.parameter_names([n for n, _ in named])
    run = localplug.Run(model, [(s, p) for s, (_, p) in zip(short, named, strict=True)], seed=0)
    for seed in range(100, 150):
        run.seed = seed
        directions = localplug.Directions(run)
        z = torch.cat([directions.values(i, 0).flatten().double() for i in range(len(named))])
        slope = gradient @ z
        if abs(slope) >= gradient.norm() > 0:
            return seed, float(slope), z
    raise AssertionError("no seed of fifty sees the gradient: it is zero or not finite, or the noise is not normal")


def along(moved, z, lr=LR):
    """The slope that this step was made of, and the share of the step that is not along z."""
    slope = -(moved @ z) / (z @ z) / lr
    return float(slope), float((moved + lr * slope * z).norm() / moved.norm())
