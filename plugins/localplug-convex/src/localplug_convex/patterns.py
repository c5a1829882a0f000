"""Activation patterns of one ReLU neuron on a data set, sampled: D_i = diag(1[X h_i >= 0]) with h_i ~ N(0, I).

X (N, D) holds one example a row. A neuron's pattern says on which examples it is active; N points in D dimensions have
finitely many of them, far too many to list, so that a sample stands for all. Reference: Bai, Gautam, Sojoudi, 2022,
arXiv:2201.01965.
"""

import torch
from torch import Tensor

from localplug import noise

_ROUNDS = 8  # of as many draws as patterns are wanted, before the search for more distinct ones is given up


def gates(num: int, width: int, seed: int, like: Tensor, first: int = 0) -> Tensor:
    """h_first ... h_{first + num - 1}, one a column, standard normal: (width, num), with the dtype and device of `like`."""
    keys = [noise.stream(seed, 0, first + i, "relu gate") for i in range(num)]
    return torch.stack(noise.normals(keys, [width] * num, like.device), 1).to(like.dtype)


def sample(X_ND: Tensor, num_patterns: int, seed: int) -> tuple[Tensor, Tensor]:
    """Distinct patterns and a neuron that has each: (patterns (N, P) of zeros and ones, gates (D, P)).

    Column i of the gates, h_i, lies in the cone of pattern i: (2 D_i - I) X h_i >= 0. Patterns come in the order in which
    they are drawn, so that a larger number extends a smaller one. The pattern that is active nowhere is left out: its
    neurons are zero on the data.

    Args:
        num_patterns: P wanted, >= 1. Fewer come back where 8 P draws have no more distinct ones.
        seed: of the noise stream; the global generator is not touched.

    Example:
        >>> import torch
        >>> X_ND = torch.tensor([[1.0], [-1.0]])
        >>> patterns_NP, gates_DP = sample(X_ND, 10, seed=0)  # two neurons differ: x >= 0 and x <= 0
        >>> sorted(patterns_NP.T.tolist())
        [[0.0, 1.0], [1.0, 0.0]]
    """
    seen: set[bytes] = set()
    found_patterns, found_gates = [], []
    for round_ in range(_ROUNDS):
        h_DP = gates(num_patterns, X_ND.shape[1], seed, X_ND, first=round_ * num_patterns)
        active_NP = X_ND @ h_DP >= 0
        for i, column in enumerate(active_NP.T.tolist()):
            key = bytes(column)
            if key not in seen and any(column) and len(seen) < num_patterns:
                seen.add(key)
                found_patterns.append(active_NP[:, i])
                found_gates.append(h_DP[:, i])
        if len(seen) >= num_patterns:
            break
    if not found_patterns:  # a single example, on the inactive side of every draw
        raise ValueError(
            f"no neuron was active on any of the {len(X_ND)} examples; raise num_patterns, or change the seed"
        )
    return torch.stack(found_patterns, 1).to(X_ND.dtype), torch.stack(found_gates, 1)
