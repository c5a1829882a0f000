"""What a layer of a graph network is called with: node features, edges, edge weights; and the same call with others.

Shapes: N nodes, D features, E edges, K classes.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from localplug import Run, Unit

Inputs = tuple[Any, ...]
Named = dict[str, Any]


def node_features(inputs: Inputs, kwargs: Named) -> Tensor:
    """x (N, D): the first floating-point tensor of the call."""
    return next(leaf for leaf in _tensors(inputs, kwargs) if leaf.is_floating_point())


def edge_index(inputs: Inputs, kwargs: Named) -> Tensor | None:
    """The edges (2, E), from the first row's nodes to the second row's; None for a layer that is called without."""
    return next(
        (leaf for leaf in _tensors(inputs, kwargs) if leaf.dtype == torch.long and leaf.dim() == 2 and len(leaf) == 2),
        None,
    )


def edge_weights(inputs: Inputs, kwargs: Named) -> list[Tensor]:
    """What else the call holds in floating point, which must be one weight for each edge.

    Raises:
        ValueError: it is something else, which would have to be made up for edges that are added.
    """
    x, edges = node_features(inputs, kwargs), edge_index(inputs, kwargs)
    others = [leaf for leaf in _tensors(inputs, kwargs) if leaf.is_floating_point() and leaf is not x]
    for leaf in others:
        if edges is None or leaf.shape != (edges.shape[1],):
            raise ValueError(
                "edges can be added to a layer that is called with node features, edge_index (2, E) and at most edge weights "
                f"(E,), got another tensor of the shape {tuple(leaf.shape)}"
            )
    return others


def exchanged(inputs: Inputs, kwargs: Named, pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[Inputs, Named]:
    """The same call with the second tensor of each pair in the place of the first."""
    new = {id(old): value for old, value in pairs}

    def put(leaf: Any) -> Any:
        return new.get(id(leaf), leaf)

    return tree_map(put, inputs), tree_map(put, kwargs)


def with_edges(inputs: Inputs, kwargs: Named, x: Tensor, added_2E: Tensor) -> tuple[Inputs, Named]:
    """The same call with other node features and more edges, whose weight is 1."""
    pairs = [(node_features(inputs, kwargs), x)]
    edges = edge_index(inputs, kwargs)
    if edges is not None:
        pairs.append((edges, torch.cat([edges, added_2E], 1)))
        pairs += [(w, torch.cat([w, w.new_ones(added_2E.shape[1])])) for w in edge_weights(inputs, kwargs)]
    return exchanged(inputs, kwargs, pairs)


def normalised(x_ND: Tensor) -> Tensor:
    """Each node's features at length 1."""
    return nn.functional.normalize(x_ND, dim=1)


def problems(units: Sequence[Unit], run: Run, *, adds_edges: bool) -> list[str]:
    """What would not learn, or not see edges that are added; each says what to do.

    A layer that caches keeps the edges of its first call. A norm that is registered behind the last layer, as PyG's own
    models hold those of all layers, is counted to the last unit, and has no gradient there.
    """
    found = [
        f"unit {unit.name!r}: a layer with cached=True keeps the edges of its first call; build it with cached=False"
        for unit in units
        if adds_edges and any(getattr(module, "cached", False) is True for module in unit.module.modules())
    ]
    last = units[-1]
    behind = {id(p) for p in last.parameters} - {id(p) for p in last.module.parameters()}
    if names := [name for name, p in run.parameters if id(p) in behind]:
        found.append(
            f"the parameters {names[:4]} are registered behind the last layer, {last.name!r}, and would belong to it; register "
            "each norm right behind its own layer, or leave norms out"
        )
    return found


def _tensors(inputs: Inputs, kwargs: Named) -> list[Tensor]:
    return [leaf for leaf in tree_leaves((inputs, kwargs)) if isinstance(leaf, Tensor)]
