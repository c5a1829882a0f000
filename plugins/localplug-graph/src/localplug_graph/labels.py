"""The labels of nodes, some of which have none.

Shapes: N nodes, K classes.
"""

from typing import Any

import torch
from torch import Tensor

from localplug import Run, noise

UNLABELLED = -100
"""What stands for a node without a label, as in torch's cross entropy."""


def node_labels(targets: Any, num_nodes: int, K: int | None, device: torch.device) -> Tensor:
    """The labels y (N,) in [0, K), or -100 where a node has none.

    Raises:
        TypeError, ValueError: they are no integer tensor, of another shape, outside of [0, K), or all missing.
    """
    if not isinstance(targets, Tensor) or targets.is_floating_point():
        found = f"{targets.dtype}" if isinstance(targets, Tensor) else type(targets).__name__
        raise TypeError(f"this method needs the nodes' class labels as an integer tensor, got {found}")
    if targets.shape != (num_nodes,):
        raise ValueError(
            f"the targets must be one label for each of the graph's {num_nodes} nodes, -100 for those without, got the "
            f"shape {tuple(targets.shape)}; do not leave unlabelled nodes out, give them -100"
        )
    y_N = targets.to(device)
    known = y_N[y_N != UNLABELLED]
    if not known.numel():
        raise ValueError("no node has a label: all targets are -100")
    assert K is not None
    if not 0 <= int(known.min()) <= int(known.max()) < K:
        raise ValueError(f"labels must be -100 or in [0, {K}), got {int(known.min())} to {int(known.max())}")
    return y_N


def wrong_labels(y_N: Tensor, j: int, K: int, num_negatives: int | None, run: Run) -> Tensor:
    """The labels of the j-th negative graph, j = 1 ... : wrong for every labelled node, -100 where there is none.

    Args:
        num_negatives: None gives y + j mod K, so that j = 1 ... K - 1 are all the wrong ones; otherwise each node's is drawn
            among them, a function of (seed, step, j, node).
    """
    if num_negatives is None:
        shift_N: Tensor | int = j
    else:
        u_N = noise.uniform(noise.stream(run.seed, run.step, j, "wrong labels"), 0, len(y_N), y_N.device)
        shift_N = 1 + (u_N * (K - 1)).long()
    return torch.where(y_N == UNLABELLED, y_N, (y_N + shift_N) % K)


def shown(y_N: Tensor, asked_N: Tensor) -> Tensor:
    """The labels that were learned from, and the one in question for all other nodes.

    Raises:
        ValueError: this is another graph than the one that was trained on.
    """
    if len(y_N) != len(asked_N):
        raise ValueError(
            f"a transductive prediction is for the {len(y_N)} nodes that were trained on, got {len(asked_N)} nodes; "
            "transductive=False predicts for any graph"
        )
    return torch.where(y_N == UNLABELLED, asked_N, y_N)
