"""Virtual nodes: one more node for each class, number N + k for class k, joined by edges to the nodes of that class.

Shapes: N nodes, D features, E edges, K classes.
"""

from typing import Literal

import torch
from torch import Tensor

from localplug import noise
from localplug_graph.labels import UNLABELLED

Edges = Literal["to virtual", "to nodes", "both"]


def virtual_features(x_ND: Tensor, K: int, *, seed: int) -> Tensor:
    """The virtual nodes' fixed features (K, D): random directions, as long as the nodes' own features are on average."""
    z_KD = noise.normal(noise.stream(seed, 0, 0, "virtual nodes"), 0, K * x_ND.shape[1], x_ND.device).view(K, -1)
    length = x_ND.float().norm(dim=1).mean()
    return (z_KD * (length / z_KD.norm(dim=1, keepdim=True))).to(x_ND.dtype)


def virtual_edges(y_N: Tensor, edges: Edges) -> Tensor:
    """The edges (2, E) between each labelled node and the virtual node of its class."""
    (labelled,) = torch.where(y_N != UNLABELLED)
    to_virtual_2E = torch.stack([labelled, len(y_N) + y_N[labelled]])
    if edges == "to virtual":
        return to_virtual_2E
    if edges == "to nodes":
        return to_virtual_2E.flip(0)
    return torch.cat([to_virtual_2E, to_virtual_2E.flip(0)], 1)
