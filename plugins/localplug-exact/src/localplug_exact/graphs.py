"""Random graphs and their shortest paths by Bellman-Ford: the plain algorithm, from which the tasks have their answers.

Letters: B graphs of n nodes and E edges each; edges (B, E, 3) hold (from, to, length), int64. Node 0 is the source.
"""

import torch
from torch import Tensor

UNREACHED = -1


def bands(num: int, num_nodes: int, max_length: int, generator: torch.Generator) -> Tensor:
    """Edges (B, 3 (n - 1), 3) of graphs in which every node can be reached, and the way to the last ones is long.

    Node v >= 1 has an edge from v - 1, v - 2 or v - 3, another such edge, and one from any node that is no earlier;
    lengths are uniform in 1 ... max_length. So distances grow with the number of nodes.

    Args:
        num: B, >= 1.
        num_nodes: n, >= 2.
        max_length: >= 1.
        generator: what draws them.

    Example:
        >>> import torch
        >>> bands(5, 4, 2, torch.Generator().manual_seed(0)).shape
        torch.Size([5, 9, 3])
    """
    v = torch.arange(1, num_nodes)

    def up_to(limit: Tensor) -> Tensor:
        """A whole number in [0, limit) for each node of each graph."""
        share = torch.rand(num, num_nodes - 1, generator=generator, dtype=torch.float64)
        return (share * limit).long().minimum(limit - 1)

    back = [v - 1 - up_to(v.clamp(max=3)) for _ in range(2)]
    ahead = v + up_to(num_nodes - v)
    starts_BE = torch.cat([*back, ahead], 1)
    lengths_BE = torch.randint(1, max_length + 1, starts_BE.shape, generator=generator)
    return torch.stack([starts_BE, v.repeat(3).expand_as(starts_BE), lengths_BE], 2)


def rounds(edges_BE3: Tensor, num_nodes: int, *, weighted: bool = True) -> list[Tensor]:
    """Distances from node 0 before the first and after each round of Bellman-Ford, (B, n) int64, until nothing changes.

    In a round every edge is relaxed at the distances of the round before. UNREACHED marks nodes that no path has reached yet.
    With all lengths 1 (`weighted` False) a round is one of breadth-first search, level by level.

    Example:
        >>> import torch
        >>> [d.tolist() for d in rounds(torch.tensor([[[0, 1, 5], [0, 2, 1], [2, 1, 2]]]), 3)]
        [[[0, -1, -1]], [[0, 5, 1]], [[0, 3, 1]]]
    """
    start, end, length = edges_BE3.unbind(2)
    length = length if weighted else torch.ones_like(length)
    far = torch.iinfo(torch.int64).max // 4
    d_Bn = torch.full((len(edges_BE3), num_nodes), far)
    d_Bn[:, 0] = 0
    found = [d_Bn]
    while True:
        offered_BE = (d_Bn.gather(1, start) + length).clamp(max=far)
        after_Bn = d_Bn.scatter_reduce(1, end, offered_BE, "amin")
        if torch.equal(after_Bn, d_Bn):
            return [torch.where(d == far, UNREACHED, d) for d in found]
        d_Bn = after_Bn
        found.append(d_Bn)
