"""What wide networks learn of a permutation of bits from its single bits alone, in closed form.

Trained on the basis vectors e_1 ... e_k with targets P e_i and asked for an input of s ones, scaled to length 1, an
infinitely wide network answers on average `inside` where the permuted input has a one, and `outside` elsewhere. With a =
t(1), b = t(0), c = t(1/sqrt(s)) of the kernel t (localplug_exact.kernels) and S = s c + (k - s) b:

    inside  = (c - b S / (a + (k - 1) b)) / (a - b)
    outside = (b - b S / (a + (k - 1) b)) / (a - b)

inside > 0 > outside for every s >= 2: the sign is the rule, which no example showed. A single network scatters about the
mean. Of one whose readout alone is trained, the variance is that of the kernel's Gaussian process, and outputs are
independent:

    variance = a - (s c^2 + (k - s) b^2 - b S^2 / (a + (k - 1) b)) / (a - b)

References: arXiv:2502.16763 (the theorem, by full training; k = 5 to 20 by ensembles); the regression written out for the
matrix (a - b) I + b 11', whose inverse is (I - b 11' / (a + (k - 1) b)) / (a - b).
"""

import dataclasses
import math
from typing import final

import torch

from localplug_exact.kernels import Kernel, of_angle


@final
@dataclasses.dataclass(frozen=True)
class Answer:
    """The output of an infinitely wide network for an input of s ones among k bits.

    Args:
        inside: mean where the permuted input has a one.
        outside: mean elsewhere.
        variance: of one network about it, if its readout alone is trained and was standard normal before; None for "ntk".
    """

    inside: float
    outside: float
    variance: float | None

    def is_right(self) -> bool:
        """Whether the mean is on the right side of 0 for every bit."""
        return self.inside > 0 and not self.outside > 1e-12  # with one bit alone, `outside` is 0 but for rounding


def answer(num_bits: int, num_ones: int, kernel: Kernel = "ntk") -> Answer:
    """The closed form above.

    Args:
        num_bits: k, >= 2.
        num_ones: s, in [1, k].
        kernel: "ntk", both layers trained, or "readout", the second alone.

    Raises:
        ValueError: a number is out of its range, or there is no such kernel.

    Example:
        >>> answer(10, 2).is_right(), round(answer(10, 2).inside, 4), round(answer(10, 2).outside, 4)
        (True, 0.5654, -0.0099)
    """
    if not 1 <= num_ones <= num_bits or num_bits < 2:
        raise ValueError(f"num_ones must be in [1, num_bits] and num_bits at least 2, got {num_ones} and {num_bits}")
    k, s = num_bits, num_ones
    a, b, c = of_angle(torch.tensor([1.0, 0.0, s**-0.5], dtype=torch.float64), kernel).tolist()
    S = s * c + (k - s) * b
    common = b * S / (a + (k - 1) * b)
    variance = a - (s * c * c + (k - s) * b * b - common * S) / (a - b)
    return Answer((c - common) / (a - b), (b - common) / (a - b), max(variance, 0.0) if kernel == "readout" else None)


def share_right(num_bits: int, num_ones: int, num_models: int, initial: float = 1.0) -> float:
    """Expected share of the inputs of s ones that an average of M networks with trained readouts has right, all bits.

        Phi(inside / deviation)^s Phi(-outside / deviation)^(k - s),   deviation = initial sqrt(variance / M)

    Args:
        num_bits, num_ones: k and s, 1 <= s <= k.
        num_models: M, >= 1.
        initial: standard deviation of the readout before training, > 0, as of `relu-readout`.

    Raises:
        ValueError: a number is out of its range.

    Example:
        >>> [round(share_right(10, 2, num), 2) for num in (10, 100, 1000)]
        [0.01, 0.09, 0.86]
    """
    if num_models < 1 or not initial > 0:
        raise ValueError(f"num_models must be at least 1 and initial positive, got {num_models} and {initial}")
    found = answer(num_bits, num_ones, "readout")
    assert found.variance is not None
    scale = math.sqrt(num_models / max(found.variance, 1e-300)) / initial
    return _phi(found.inside * scale) ** num_ones * _phi(-found.outside * scale) ** (num_bits - num_ones)


def models_needed(num_bits: int, num_ones: int = 2, share: float = 0.9, initial: float = 1.0) -> int:
    """The smallest ensemble with that expected share of inputs right.

    The paper's released code starts from a readout that is smaller than the hidden layer's 1 by a factor 1 / sqrt(2 k).

    Args:
        num_bits, num_ones: k and s, 2 <= s <= k.
        share: in (0, 1).
        initial: see `share_right`.

    Raises:
        ValueError: a number is out of its range.

    Example:
        >>> models_needed(10), models_needed(10, initial=20**-0.5)
        (1149, 58)
    """
    if not 0 < share < 1 or num_ones < 2:
        raise ValueError(f"share must be in (0, 1) and num_ones at least 2, got {share} and {num_ones}")
    low, high = 0, 1
    while share_right(num_bits, num_ones, high, initial) < share:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        enough = share_right(num_bits, num_ones, middle, initial) >= share
        low, high = (low, middle) if enough else (middle, high)
    return high


def _phi(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2))
