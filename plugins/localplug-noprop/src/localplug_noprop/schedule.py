"""How much of the label is left in z_t: the noise schedules of NoProp (arXiv:2503.24322).

    q(z_t | y) = N(sqrt(ab_t) u_y, (1 - ab_t) I)       ab_t, the signal, rises from about 0 to about 1
    SNR(t)     = ab_t / (1 - ab_t)

Discrete time, t = 0 ... T, with alpha_{t-1} = ab_{t-1} / ab_t:

    z_t = a_t u + b_t z_{t-1} + sqrt(c_t) eps
    a_t = sqrt(ab_t) (1 - alpha_{t-1}) / (1 - ab_{t-1})
    b_t = sqrt(alpha_{t-1}) (1 - ab_t) / (1 - ab_{t-1})
    c_t = (1 - ab_t) (1 - alpha_{t-1}) / (1 - ab_{t-1})

so that

    a_t + b_t sqrt(ab_{t-1}) = sqrt(ab_t),   b_t^2 (1 - ab_{t-1}) + c_t = 1 - ab_t,   a_t^2 / (2 c_t) = (SNR(t) - SNR(t-1)) / 2

Where ab ends decides the weight of the last block: with T = 10, eta = 0.1 and an end at 1 - 1e-4 the weights
T/2 eta (SNR(t) - SNR(t-1)) of the blocks are 0.012 ... 12.9, and 4982 for the last one; with an end at 0.99 the last two are
8.8 and 36.7.
"""

import math
from typing import NamedTuple, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def signal_problems(min_signal: float, max_signal: float) -> list[str]:
    """What is wrong with the two ends of a schedule."""
    if 0 < min_signal < max_signal < 1:
        return []
    return [f"0 < min_signal < max_signal < 1 must hold, got {min_signal!r} and {max_signal!r}"]


def cosine(num_blocks: int, *, min_signal: float = 1e-4, max_signal: float = 0.99) -> list[float]:
    """ab_0 ... ab_T: cos^2(pi/2 (1 - t/T + s) / (1 + s)), s = 0.008, stretched to go from one end to the other.

    Args:
        num_blocks: T, >= 1.
        min_signal, max_signal: ab_0 and ab_T, in (0, 1).

    Raises:
        ValueError: an option is out of its range; lists all of them.

    Example:
        >>> [round(ab, 3) for ab in cosine(4)]
        [0.0, 0.143, 0.489, 0.839, 0.99]
    """
    wrong = signal_problems(min_signal, max_signal)
    if not num_blocks >= 1:
        wrong.append(f"num_blocks must be at least 1, got {num_blocks!r}")
    if wrong:
        raise ValueError("cosine: " + "; ".join(wrong))
    s = 0.008

    def f(noise: float) -> float:
        return math.cos((noise + s) / (1 + s) * math.pi / 2) ** 2

    span = max_signal - min_signal
    return [min_signal + span * f(1 - t / num_blocks) / f(0) for t in range(num_blocks)] + [max_signal]


def snr(ab: float) -> float:
    """ab / (1 - ab)."""
    return ab / (1 - ab)


class Coefficients(NamedTuple):
    """Of z_t = a u + b z_{t-1} + sqrt(c) eps."""

    a: float
    b: float
    c: float


def coefficients(before: float, after: float) -> Coefficients:
    """a_t, b_t and c_t.

    Args:
        before, after: ab_{t-1} and ab_t, in (0, 1).
    """
    alpha = before / after
    return Coefficients(
        math.sqrt(after) * (1 - alpha) / (1 - before),
        math.sqrt(alpha) * (1 - after) / (1 - before),
        (1 - after) * (1 - alpha) / (1 - before),
    )


@final
class LearnedSchedule(nn.Module):
    """ab(t) = sigmoid(-gamma(t)) in continuous time, with a learned monotone gamma_bar.

        gamma(t) = gamma_0 + (gamma_1 - gamma_0) (1 - gamma_bar(t)),   gamma_bar(0) = 0, gamma_bar(1) = 1
        gamma_bar(t) = (g(t) - g(0)) / (g(1) - g(0)),   g(t) = |w| t + sum_h |v_h| sigmoid(|r_h| t + d_h)

    |.| is softplus, which makes g rise. It begins almost straight. gamma_0 and gamma_1 follow from the two ends and are not
    learned: with them the weight of the loss is bounded.

    Args:
        min_signal, max_signal: ab(0) and ab(1), in (0, 1).
        width: number of sigmoids, >= 1.

    Raises:
        ValueError: an option is out of its range; lists all of them.

    Example:
        >>> schedule = LearnedSchedule()
        >>> gamma, slope = schedule(torch.tensor([0.0, 1.0]))
        >>> [round(ab, 4) for ab in torch.sigmoid(-gamma).tolist()]
        [0.05, 0.99]
    """

    def __init__(self, min_signal: float = 0.05, max_signal: float = 0.99, width: int = 8) -> None:
        wrong = signal_problems(min_signal, max_signal)
        if not width >= 1:
            wrong.append(f"width must be at least 1, got {width!r}")
        if wrong:
            raise ValueError("LearnedSchedule: " + "; ".join(wrong))
        super().__init__()
        self.gamma_0, self.gamma_1 = -math.log(snr(max_signal)), -math.log(snr(min_signal))
        self.w = nn.Parameter(torch.tensor(1.0))
        self.v = nn.Parameter(torch.full((width,), -4.0))
        self.r = nn.Parameter(torch.full((width,), float(width)))
        self.d = nn.Parameter(-torch.linspace(0.0, float(width), width))

    def forward(self, t_B: Tensor) -> tuple[Tensor, Tensor]:
        """gamma(t) and d gamma / dt, each (B,).

        Args:
            t_B: times in [0, 1].
        """
        w, v_H, r_H = F.softplus(self.w), F.softplus(self.v), F.softplus(self.r)

        def g(t_N: Tensor) -> tuple[Tensor, Tensor]:
            s_NH = torch.sigmoid(t_N[:, None] * r_H + self.d)
            return w * t_N + (s_NH * v_H).sum(1), w + (s_NH * (1 - s_NH) * v_H * r_H).sum(1)

        ends, _ = g(t_B.new_tensor([0.0, 1.0]))
        value_B, slope_B = g(t_B)
        height = ends[1] - ends[0]
        span = self.gamma_1 - self.gamma_0
        return self.gamma_0 + span * (1 - (value_B - ends[0]) / height), -span * slope_B / height
