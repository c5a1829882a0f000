"""Networks that have the right answer by construction: weights written down instead of learned ("neural compilation").

Each function writes into a stack Linear, ReLU, ..., Linear that has room for it, so that what is compiled and what is
trained are the same architecture. Numbers that are not negative pass a ReLU unchanged, which is how they get through
layers that have nothing to do. The idea: arXiv:2505.18623 (algorithms as weights of graph networks); the weights below
are this package's own.
"""

from typing import cast

import torch
from torch import Tensor, nn


@torch.no_grad()
def permutation_(network: nn.Sequential, order: Tensor) -> nn.Sequential:
    """Write y_j > 0 iff x at order_j > 0 into a network, exact for bits scaled to length 1.

        y_j = relu(x at order_j) - 1 / (2 sqrt(k))

    Args:
        network: k inputs, hidden layers of at least k units, k outputs; such as the model of the task `permutation`.
        order: int64, (k,), the input bit of each output.

    Raises:
        ValueError: the network has no room for it.

    Example:
        >>> import torch
        >>> network = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> (permutation_(network, torch.tensor([1, 0]))(torch.tensor([[1.0, 0.0]])) > 0).tolist()
        [[False, True]]
    """
    k = len(order)
    layers = _cleared(network, k, k, k)
    for layer in layers[:-1]:
        layer.weight[:k, :k] = torch.eye(k)
    layers[-1].weight[torch.arange(k), order] = 1.0
    layers[-1].bias.fill_(-0.5 * k**-0.5)
    return network


@torch.no_grad()
def relaxation_(network: nn.Sequential, *, weighted: bool, unit: float, limit: float) -> nn.Sequential:
    """Write the step of Bellman-Ford, or of breadth-first search, into a network.

        min(d, e + w) if r = 1 else e + w    =    relu(e + w) - relu(e + w - d - limit (1 - r))

    d is the distance of a node, r whether it has one yet (d = 0 if not), e that of a neighbour, w the length of the edge
    between.

    Args:
        network: inputs (d, r, e, w), or (d, r, e) for breadth-first search, hidden layers of at least 2 units, one output.
        weighted: whether w is an input, or `unit` instead of it.
        unit: the length of an edge without a weight.
        limit: no distance is larger.

    Raises:
        ValueError: the network has no room for it.

    Example:
        >>> import torch
        >>> network = nn.Sequential(nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 1))
        >>> relaxation_(network, weighted=True, unit=1.0, limit=100.0)(torch.tensor([[5.0, 1, 1, 2], [0, 0, 1, 2]])).tolist()
        [[3.0], [3.0]]
    """
    first, *middle, last = _cleared(network, 3 + weighted, 2, 1)
    first.weight[:2, :3] = torch.tensor([[0.0, 0.0, 1.0], [-1.0, limit, 1.0]])
    if weighted:
        first.weight[:2, 3] = 1.0
    first.bias[:2] = torch.tensor([0.0, -limit]) + (0.0 if weighted else unit)
    for layer in middle:
        layer.weight[:2, :2] = torch.eye(2)
    last.weight[0, :2] = torch.tensor([1.0, -1.0])
    return network


def _cleared(network: nn.Sequential, num_inputs: int, num_hidden: int, num_outputs: int) -> list[nn.Linear]:
    """Its linear layers, all weights zero.

    Raises:
        ValueError: it is no stack of them with biases and ReLUs between, or not of this size.
    """
    parts = list(network)
    layers = [cast(nn.Linear, layer) for layer in parts[::2]]
    widths = [layer.out_features for layer in layers[:-1] if isinstance(layer, nn.Linear)]
    fits = (
        len(parts) % 2 == 1
        and len(layers) >= 2
        and all(isinstance(layer, nn.Linear) and layer.bias is not None for layer in layers)
        and all(isinstance(layer, nn.ReLU) for layer in parts[1::2])
    )
    if not (
        fits
        and layers[0].in_features == num_inputs
        and layers[-1].out_features == num_outputs
        and min(widths) >= num_hidden
    ):
        raise ValueError(
            f"it is written into Linear, ReLU, ..., Linear with biases, {num_inputs} inputs, {num_outputs} outputs and hidden "
            f"layers of at least {num_hidden} units, got {network}"
        )
    for layer in layers:
        layer.weight.zero_()
        layer.bias.zero_()
    return layers
