"""From the solution of a convex program back to a network, and what is known about it.

A vector v_i in the cone of its pattern, (2 D_i - I) X v_i >= 0, is one neuron u_j = v_i / sqrt(|v_i|) with the output weight
alpha_j = +sqrt(|v_i|), and w_i one with -sqrt(|w_i|), because relu(X u_j) alpha_j = D_i X v_i. Then beta/2 (|u_j|^2 +
alpha_j^2) = beta |v_i|: weight decay on the network is the group norm of the convex program. Reference: Bai, Gautam,
Sojoudi, 2022, arXiv:2201.01965.

Letters: N examples, D features, S = 2 signs (v, then w), P patterns, M neurons, K outputs.
"""

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor, nn


@dataclasses.dataclass(frozen=True)
class Solution:
    """What a solver made, and how good it is.

    Args:
        network: Linear, ReLU, Linear; (B, D) in, (B, K) out, in the inputs' dtype and on their device. Only the first Linear
            can have a bias, which counts among its neuron's weights.
        objective: the convex program's value at a point that satisfies its constraints: no less than its optimum.
        network_objective: loss + beta/2 (sum of all squared weights), of `network`; no greater than `objective` but for
            rounding, and equal to it once the solver has converged.
        lower_bound: no greater than the optimum of the convex program, by its dual; None where a loss has no known dual.
        residuals: the last of each that the solver watches, by name.
        iterations: how many were run.
        converged: whether the solver's stopping rule was met, and not its limit of iterations.
    """

    network: nn.Sequential
    objective: float
    network_objective: float
    lower_bound: float | None
    residuals: dict[str, float]
    iterations: int
    converged: bool


def into_cones(V_DSPK: Tensor, X_ND: Tensor, patterns_NP: Tensor, gates_DP: Tensor) -> Tensor:
    """The same v_i and w_i, each moved along its own gate h_i just far enough that (2 D_i - I) X v_i >= 0 holds.

        v_i + t h_i,   t = max_n  max(0, -(2 D_i - I)_nn x_n v_i) / |x_n h_i|

    h_i has its pattern, so that it lies inside the cone. A vector that would move by more than its own length becomes zero,
    which is in every cone too: a sliver of a cone can be far away in the direction of h_i.
    """
    sign_NP = 2 * patterns_NP - 1
    margin_NP = sign_NP * (X_ND @ gates_DP)
    XV_NSPK = (X_ND @ V_DSPK.flatten(1)).view(-1, *V_DSPK.shape[1:])
    below_NSPK = (-sign_NP[:, None, :, None] * XV_NSPK).clamp_(min=0)
    smallest = torch.finfo(X_ND.dtype).tiny  # an example that is zero has no margin, and no violation either
    t_SPK = (below_NSPK / margin_NP.clamp(min=smallest)[:, None, :, None]).amax(0)
    move_DSPK = gates_DP[:, None, :, None] * t_SPK
    return torch.where(move_DSPK.norm(dim=0) <= V_DSPK.norm(dim=0), V_DSPK + move_DSPK, 0.0)


def network_of(V_DSPK: Tensor, *, bias: bool) -> nn.Sequential:
    """One neuron for each v_i (output weight > 0) and w_i (< 0) that is not zero; a single silent one if all are.

    Args:
        bias: the last row of V is the neurons' bias.
    """
    norm_SPK = V_DSPK.norm(dim=0)
    chosen = norm_SPK.nonzero()  # (M, 3)
    s, p, k = chosen.T
    root_M = norm_SPK[s, p, k].sqrt()
    u_MD = (V_DSPK[:, s, p, k] / root_M).T
    alpha_MK = V_DSPK.new_zeros(len(chosen), V_DSPK.shape[3])
    alpha_MK[torch.arange(len(chosen), device=k.device), k] = (1 - 2 * s) * root_M
    return assemble(u_MD, alpha_MK, bias=bias)


def assemble(u_MD: Tensor, alpha_MK: Tensor, *, bias: bool) -> nn.Sequential:
    """Linear, ReLU, Linear with these weights; a single silent neuron where there is none.

    Args:
        bias: the last column of u is the neurons' bias.
    """
    if not len(u_MD):
        u_MD, alpha_MK = u_MD.new_zeros(1, u_MD.shape[1]), alpha_MK.new_zeros(1, alpha_MK.shape[1])
    M, D = u_MD.shape
    like = {"dtype": u_MD.dtype, "device": u_MD.device}
    first: nn.Linear = nn.utils.skip_init(nn.Linear, D - 1 if bias else D, M, bias=bias, **like)
    last: nn.Linear = nn.utils.skip_init(nn.Linear, M, alpha_MK.shape[1], bias=False, **like)
    with torch.no_grad():
        first.weight.copy_(u_MD[:, :-1] if bias else u_MD)
        if bias:
            first.bias.copy_(u_MD[:, -1])
        last.weight.copy_(alpha_MK.T)
    return nn.Sequential(first, nn.ReLU(), last)


@torch.no_grad()
def network_objective(
    network: nn.Module, inputs_ND: Tensor, targets: Tensor, beta: float, loss: Callable[[Tensor, Tensor], Tensor]
) -> float:
    """loss(network(inputs), targets) + beta/2 (sum of all squared parameters), by a forward pass of the network.

    Example:
        >>> import torch
        >>> network = assemble(torch.tensor([[2.0]]), torch.tensor([[3.0]]), bias=False)
        >>> square = lambda output, y: 0.5 * (output - y).square().sum()
        >>> round(network_objective(network, torch.tensor([[1.0]]), torch.tensor([[5.0]]), 0.1, square), 6)
        1.15
    """
    decay = sum(float(p.double().square().sum()) for p in network.parameters())
    return float(loss(network(inputs_ND), targets)) + 0.5 * beta * decay
