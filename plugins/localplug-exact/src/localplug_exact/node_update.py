"""Does a method learn the step of an algorithm, or a table of what it saw? Bellman-Ford and breadth-first search.

What is learned is what one edge does to a node: from its distance d, whether it has one (r), its neighbour's distance e
and the edge's length w to min(d, e + w). The examples are the steps that the algorithm makes on small graphs. The network
that was trained then runs the whole algorithm on graphs it has not seen, the larger ones for the test: each round it
answers for all edges, a node takes the least answer, distances are rounded to whole numbers, and they must all be right
in the end. A table of the small graphs' distances ends where those end. Such a network is the node update of a graph
network with the aggregation "min".

After arXiv:2505.18623, which writes breadth-first search and Bellman-Ford into a graph network and compares what is
learned with what is compiled; `compile_` does the writing here. Letters: B graphs, n nodes, E edges, S steps.
"""

import abc
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from localplug import Parts, Task, Tensors
from localplug_exact import graphs
from localplug_exact.compiled import relaxation_

UNIT = 0.125  # the length 1 as the network sees it; a power of two, so that compiled weights are exact
LIMIT = 1024  # no distance is larger


class NodeUpdate(Task, abc.ABC):
    """What the two tasks share; they differ in `weighted`.

    Args:
        train_nodes: of the graphs whose steps are the examples, in [3, 64].
        test_nodes: of the graphs of the test, in [3, 256]; those to choose by have a size half way between.
        num_graphs: of each part, >= 1.
        max_length: lengths are whole numbers from 1 to this, in [1, 4].
        width, depth: of the network's hidden layers, >= 2 units and >= 1.

    Raises:
        ValueError: an option is out of its range; lists all of them.
    """

    metric = "exact share"
    batch_size, budget, evaluation_batch = 64, 6000, 100
    weighted: bool

    def __init__(
        self,
        train_nodes: int = 8,
        test_nodes: int = 16,
        num_graphs: int = 100,
        max_length: int = 4,
        width: int = 64,
        depth: int = 2,
    ) -> None:
        limits = {
            "train_nodes": (train_nodes, 3, 64), "test_nodes": (test_nodes, 3, 256), "num_graphs": (num_graphs, 1, 10_000),
            "max_length": (max_length, 1, 4), "width": (width, 2, 10_000), "depth": (depth, 1, 100),
        }  # fmt: skip
        found = [
            f"{name} must be in [{low}, {high}], got {value}"
            for name, (value, low, high) in limits.items()
            if not low <= value <= high
        ]
        if found:
            raise ValueError("; ".join(found))
        self.nodes = train_nodes, (train_nodes + test_nodes) // 2, test_nodes
        self.num_graphs, self.max_length, self.width, self.depth = num_graphs, max_length, width, depth

    def model(self) -> nn.Module:
        layers: list[nn.Module] = []
        for number in range(self.depth):
            layers += [nn.Linear(3 + self.weighted if number == 0 else self.width, self.width), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(self.width, 1))

    def parts(self, seed: int) -> Parts:
        generator = torch.Generator().manual_seed(3000 + seed)
        made = [graphs.bands(self.num_graphs, n, self.max_length, generator) for n in self.nodes]
        steps, after = self.steps(made[0], self.nodes[0])
        larger = [
            Tensors(edges, graphs.rounds(edges, n, weighted=self.weighted)[-1])
            for edges, n in zip(made[1:], self.nodes[1:], strict=True)
        ]
        return Parts(Tensors(steps, after), *larger)

    def steps(self, edges_BE3: Tensor, num_nodes: int) -> tuple[Tensor, Tensor]:
        """Every different step that the algorithm makes on graphs, (S, 4 or 3), and what it gives, (S, 1)."""
        seen = []
        states = graphs.rounds(edges_BE3, num_nodes, weighted=self.weighted)
        start, end, length = edges_BE3.unbind(2)
        for d_Bn in states:
            e_BE, d_BE = d_Bn.gather(1, start), d_Bn.gather(1, end)
            step_BE4 = torch.stack([d_BE.clamp(min=0), (d_BE >= 0).long(), e_BE, length], 2)
            seen.append(step_BE4[e_BE >= 0])
        step_S4 = torch.cat(seen)
        if not self.weighted:
            step_S4[:, 3] = 1
        step_S4 = step_S4.unique(dim=0)
        d, r, e, w = step_S4.unbind(1)
        after_S = torch.where(r == 1, d.minimum(e + w), e + w)
        return self._seen(step_S4), UNIT * after_S.float().unsqueeze(1)

    def _seen(self, step_S4: Tensor) -> Tensor:
        """Steps as the network gets them."""
        scale = torch.tensor([UNIT, 1.0, UNIT, UNIT], device=step_S4.device)
        return (step_S4 * scale)[..., : 3 + self.weighted]

    @torch.no_grad()
    def run(self, model: nn.Module, edges_BE3: Tensor, num_nodes: int) -> list[Tensor]:
        """Distances by the network, (B, n) int64, before the first and after each round, until nothing changes.

        There are num_nodes rounds at most, one more than the algorithm ever needs. UNREACHED marks nodes as in
        `graphs.rounds`.
        """
        start, end, length = edges_BE3.unbind(2)
        d_Bn = torch.full((len(edges_BE3), num_nodes), graphs.UNREACHED, device=edges_BE3.device)
        d_Bn[:, 0] = 0
        found = [d_Bn]
        for _ in range(num_nodes):
            e_BE, d_BE = d_Bn.gather(1, start), d_Bn.gather(1, end)
            step_BE4 = torch.stack([d_BE.clamp(min=0), (d_BE >= 0).long(), e_BE, length], 2)
            given_BE = model(self._seen(step_BE4).flatten(0, 1)).view_as(d_BE) / UNIT
            given_BE = given_BE.nan_to_num(LIMIT).clamp(0, LIMIT).round().long().masked_fill(e_BE < 0, LIMIT)
            least_Bn = torch.full_like(d_Bn, LIMIT).scatter_reduce(1, end, given_BE, "amin")
            asked_Bn = torch.zeros_like(d_Bn).scatter_reduce(1, end, (e_BE >= 0).long(), "amax")
            after_Bn = torch.where(asked_Bn == 1, least_Bn, d_Bn)
            if torch.equal(after_Bn, d_Bn):
                break
            d_Bn = after_Bn
            found.append(d_Bn)
        return found

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        return F.mse_loss(model(batch[0]), batch[1])

    def score(self, model: nn.Module, batch: Any) -> tuple[float, int]:
        edges_BE3, d_Bn = batch
        right_B = (self.run(model, edges_BE3, d_Bn.shape[1])[-1] == d_Bn).all(1)
        return float(right_B.sum()), len(right_B)

    def compile_(self, model: nn.Module) -> nn.Module:
        """Write the algorithm into a model of this task: its quality is 1, on graphs of any size.

        Raises:
            ValueError: it is no model of this task.
        """
        if not isinstance(model, nn.Sequential):
            raise ValueError(
                f"the algorithm is written into a model of the task, nn.Sequential, got {type(model).__name__}"
            )
        return relaxation_(model, weighted=self.weighted, unit=UNIT, limit=UNIT * LIMIT)


@final
class BellmanFord(NodeUpdate):
    """bellman-ford: shortest paths in graphs of whole lengths, by a network that learned a step of the algorithm.

    The loss is the mean squared error of a step; quality is the share of graphs whose distances are all right. After
    arXiv:2505.18623, see the head of this file.

    Args:
        train_nodes: of the graphs whose steps are the examples, in [3, 64].
        test_nodes: of the graphs of the test, in [3, 256]; those to choose by have a size half way between.
        num_graphs: of each part, >= 1.
        max_length: lengths are whole numbers from 1 to this, in [1, 4].
        width: units of a hidden layer, >= 2.
        depth: hidden layers, >= 1.

    Raises:
        ValueError: an option is out of its range; lists all of them.

    Example:
        >>> import localplug
        >>> task = localplug.task("bellman-ford", num_graphs=5)
        >>> task.quality(task.compile_(task.fresh_model(0)), task.parts(0).validation)
        1.0
    """

    weighted = True


@final
class BreadthFirst(NodeUpdate):
    """bfs: the level of every node in a graph without lengths, by a network that learned a step of breadth-first search.

    As bellman-ford with all lengths 1, which the network is not shown. After arXiv:2505.18623, see the head of this file.

    Args:
        train_nodes: of the graphs whose steps are the examples, in [3, 64].
        test_nodes: of the graphs of the test, in [3, 256]; those to choose by have a size half way between.
        num_graphs: of each part, >= 1.
        max_length: of the lengths that are drawn and not used, in [1, 4].
        width: units of a hidden layer, >= 2.
        depth: hidden layers, >= 1.

    Raises:
        ValueError: an option is out of its range; lists all of them.

    Example:
        >>> import localplug
        >>> len(localplug.task("bfs", num_graphs=5).parts(0).test)
        5
    """

    weighted = False
