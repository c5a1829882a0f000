"""Cora (Sen et al., 2008): 2,708 papers that cite each other, seven fields; a graph network classifies them all in one batch.

Shapes: N papers, F words, E links.
"""

import functools
import pathlib
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from localplug import Part, Parts, Task
from localplug.tasks import located


class Graph(NamedTuple):
    """A batch: the whole graph, x (N, F) and edges (2, E), and whose labels (N,) count (-100 for others)."""

    x: Tensor
    edges: Tensor
    labels: Tensor


@final
class Nodes(Part):
    """One example: the graph, with the labels of some of its nodes."""

    def __init__(self, graph: Graph, nodes: Tensor) -> None:
        labels = torch.full_like(graph.labels, -100)
        labels[nodes] = graph.labels[nodes]
        self._graph = graph._replace(labels=labels)

    def __len__(self) -> int:
        return 1

    def batch(self, chosen: Tensor) -> Graph:
        return self._graph


class GCN(nn.Module):
    """GCNConv layers of torch-geometric with ReLU, and a linear read-out."""

    def __init__(self, num_features: int, width: int, depth: int, num_classes: int) -> None:
        super().__init__()
        from torch_geometric.nn import GCNConv  # type: ignore[import-untyped]

        self.convs = nn.ModuleList(GCNConv(num_features if i == 0 else width, width) for i in range(depth))
        self.head = nn.Linear(width, num_classes)

    def forward(self, x_NF: Tensor, edges_2E: Tensor) -> Tensor:
        x = x_NF
        for conv in self.convs:
            x = torch.relu(conv(x, edges_2E))
        return self.head(x)


@final
class Cora(Task):
    """Node classification on Cora; each seed splits the nodes anew, 64 % train, 16 % validate, 20 % test.

    A forward pass is over the whole graph. The methods of localplug-graph are made for it.

    Args:
        data: a folder with cora/cora.npz: x as a sparse matrix (x_data, x_indices, x_indptr, x_shape), edge_index, y.
        depth, width: graph convolutions, and features of each.

    Raises:
        FileNotFoundError, ImportError: in `parts`, `model`: the file or torch-geometric is missing; says what to fetch.

    Example:
        >>> import localplug
        >>> localplug.task("cora", depth=3).budget
        600
    """

    batch_size, evaluation_batch, budget = 1, 1, 600

    def __init__(self, data: pathlib.Path | None = None, depth: int = 2, width: int = 128) -> None:
        self._data, self.depth, self.width = data, depth, width

    def model(self) -> nn.Module:
        try:
            return GCN(self._graph.x.shape[1], self.width, self.depth, int(self._graph.labels.max()) + 1)
        except ImportError as error:
            raise ImportError("Cora needs graph layers: pip install 'localplug[graph]'") from error

    @functools.cached_property
    def _graph(self) -> Graph:
        folder = located(
            self._data,
            "cora",
            ["cora.npz"],
            get_it="It is made from the ind.cora.* files of github.com/kimiyoung/planetoid.",
        )
        try:
            import numpy
        except ImportError as error:
            raise ImportError("Cora's file needs: pip install 'localplug-bench[tasks]'") from error
        d = numpy.load(folder / "cora.npz", allow_pickle=False)
        rows = numpy.repeat(numpy.arange(d["x_shape"][0]), numpy.diff(d["x_indptr"]))
        x = torch.zeros(*d["x_shape"].tolist())
        x[torch.from_numpy(rows).long(), torch.from_numpy(d["x_indices"]).long()] = torch.from_numpy(
            d["x_data"]
        ).float()
        edges, y = torch.from_numpy(d["edge_index"]).long(), torch.from_numpy(d["y"]).long()
        return Graph(F.normalize(x, dim=1), edges, y)

    def parts(self, seed: int) -> Parts:
        num = len(self._graph.labels)
        order = torch.randperm(num, generator=torch.Generator().manual_seed(seed))
        a, b = int(0.64 * num), int(0.8 * num)
        return Parts(*(Nodes(self._graph, nodes) for nodes in (order[:a], order[a:b], order[b:])))

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(model(batch.x, batch.edges), batch.labels)

    def score(self, model: nn.Module, batch: Any) -> tuple[float, int]:
        counted = batch.labels >= 0
        right = (model(batch.x, batch.edges).argmax(1) == batch.labels)[counted]
        return float(right.sum()), len(right)

    def targets(self, batch: Any) -> Any:
        return batch.labels
