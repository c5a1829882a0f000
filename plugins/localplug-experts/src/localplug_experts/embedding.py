"""Embeddings of mixed-integer programs without a gradient: random graph layers, a codebook by moving averages, a histogram.

    h_i^0 = features of node i, constraints and variables in one space of 10 (zeros in the other's place)
    h_i <- relu(S h_i + T sum_j A_ij h_j / sum_j abs(A_ij))          two layers (edge-weighted SAGE), S and T random, fixed
    k_i = the nearest code of h_i;   z = the histogram of k over the nodes of an instance

FORGE trains the layers by backpropagation through straight-through codes; here only the codes learn, by the online k-means that
it uses too (localplug_experts.codebook). Reference: FORGE, TMLR 2026, arXiv:2508.20330 (two layers of 1024, 5,000 codes, decay
0.8 there).

Shapes: I instances, n nodes of one, D width, K codes.
"""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from localplug import noise
from localplug_experts.codebook import moving_average
from localplug_experts.mip import MIP

FEATURES = 10


@final
class InstanceEmbedding:
    """Histograms of codes, as a vector for each mixed-integer program.

        z_I = (1/n) sum_i onehot(argmin_k |h_i - e_k|^2)

    Args:
        num_codes: K, at least 2.
        width: D, at least 1.
        decay: of the moving average, in [0, 1).
        passes: over the instances, each an instance at a time; at least 1.
        seed: of the layers, and of the nodes that the codes begin at.

    Raises:
        ValueError: an option is outside its range; lists all of them.

    Example:
        >>> import torch
        >>> from localplug_experts.mip import graph
        >>> def knapsack(cost):
        ...     one, V = torch.ones(3).double(), torch.arange(3)
        ...     edges = torch.stack([torch.zeros(3).long(), V])
        ...     infinite = torch.tensor([-torch.inf]).double()
        ...     return graph(edges, one, infinite, one[:1], cost * V.double(), 0 * one, one, torch.ones(3).bool())
        >>> embedding = InstanceEmbedding(num_codes=4, width=8).fit([knapsack(1.0), knapsack(-1.0)])
        >>> embedding([knapsack(1.0)]).sum(1).tolist()
        [1.0]

    Reference: see the head of this file.
    """

    def __init__(
        self, num_codes: int = 64, width: int = 64, decay: float = 0.8, passes: int = 2, seed: int = 0
    ) -> None:
        wrong = []
        if not num_codes >= 2:
            wrong.append(f"num_codes must be at least 2, got {num_codes!r}")
        for name, value in (("width", width), ("passes", passes)):
            if not value >= 1:
                wrong.append(f"{name} must be at least 1, got {value!r}")
        if not 0 <= decay < 1:
            wrong.append(f"decay must be in [0, 1), got {decay!r}")
        if wrong:
            raise ValueError("InstanceEmbedding: " + "; ".join(wrong))
        self.num_codes, self.width, self.decay, self.passes, self.seed = num_codes, width, decay, passes, seed
        sizes = ((FEATURES, width), (width, width))
        self.layers = [
            tuple(self._drawn(f"{part} {i}", size, size[0] ** -0.5) for part in ("self", "neighbours"))
            for i, size in enumerate(sizes)
        ]
        self.codes_KD: Tensor | None = None

    def _drawn(self, name: str, size: tuple[int, int], scale: float) -> Tensor:
        flat = torch.zeros(size[0] * size[1])
        noise.add_normal_(flat, noise.stream(self.seed, 0, 0, f"embedding {name}"), 0, scale)
        return flat.view(size)

    def nodes(self, mip: MIP) -> Tensor:
        """h of all nodes of an instance, constraints first, (n, D)."""
        C, V = len(mip.constraints), len(mip.variables)
        h = torch.zeros(C + V, FEATURES)
        h[:C, :4], h[C:, 4:] = mip.constraints, mip.variables
        of_constraint, of_variable = mip.edges[0], C + mip.edges[1]
        to, come_from = torch.cat([of_constraint, of_variable]), torch.cat([of_variable, of_constraint])
        weight = torch.cat([mip.weights, mip.weights])
        total = torch.zeros(C + V).index_add_(0, to, weight.abs()).clamp(min=1e-12)
        for S, T in self.layers:
            gathered = torch.zeros_like(h).index_add_(0, to, weight[:, None] * h[come_from]) / total[:, None]
            h = (h @ S + gathered @ T).relu()
        return h

    def fit(self, instances: Sequence[MIP]) -> "InstanceEmbedding":
        """Let the codes follow the nodes of these instances.

        Raises:
            ValueError: there are fewer nodes than codes.
        """
        hidden = [self.nodes(mip) for mip in instances]
        everything = torch.cat(hidden) if hidden else torch.zeros(0, self.width)
        K = self.num_codes
        if len(everything) < K:
            raise ValueError(f"{K} codes need at least as many nodes, the instances have {len(everything)}")
        u = noise.uniform(noise.stream(self.seed, 0, 0, "embedding codes"), 0, len(everything), everything.device)
        e, N = everything[u.argsort()[:K]].clone(), torch.full((K,), 1 / K)
        for _ in range(self.passes):
            for h in hidden:
                e, N = moving_average(e, N, h, _nearest(e, h), self.decay)
        self.codes_KD = e
        return self

    def __call__(self, instances: Sequence[MIP]) -> Tensor:
        """z (I, K), rows that sum up to 1.

        Raises:
            RuntimeError: `fit` has not been called.
        """
        if self.codes_KD is None:
            raise RuntimeError("InstanceEmbedding: call fit with some instances first")
        e, K = self.codes_KD, self.num_codes
        found = [torch.bincount(_nearest(e, h), minlength=K) / len(h) for h in map(self.nodes, instances)]
        return torch.stack(found)


def _nearest(e_KD: Tensor, h_nD: Tensor) -> Tensor:
    return (e_KD.square().sum(1) - 2 * h_nD @ e_KD.T).argmin(1)
