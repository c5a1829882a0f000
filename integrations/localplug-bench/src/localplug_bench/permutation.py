"""Does a method learn a rule or a table? A permutation of bits, learned from its single bits alone, tested on all other inputs.

After arXiv:2502.16763 (Exact learning of permutations): the examples of training are the k basis vectors e_i with targets
P e_i; an input x of several ones, scaled to length 1, is right if every output is on the right side of 0. In the paper's limit
of width a network that fits the basis vectors is right on all inputs on average over its random weights, so that what a single
narrow network reaches tells how much of that a method keeps.
"""

from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from localplug import Parts, Task, Tensors
from localplug.tasks import seeded_state


@final
class Permutation(Task):
    """All inputs of k bits, and where a fixed random permutation sends them.

    The loss is the mean squared error to targets in {-1/k, 1}, where the paper has 0 for the lower one: there the sign of an
    output that should be 0 is only right on average over many wide networks, and one network is what is trained here.
    Quality is the share of the inputs with at least two ones whose every bit is right; half of these inputs validate, and
    half are tested.

    Args:
        num_bits: k, in [2, 16].
        width: of the one hidden layer.

    Raises:
        ValueError: an option is out of its range.

    Example:
        >>> import localplug
        >>> task = localplug.task("permutation", num_bits=4)
        >>> len(task.parts(0).train), len(task.parts(0).test)
        (4, 6)
    """

    metric = "exact share"
    budget = 3000

    def __init__(self, num_bits: int = 8, width: int = 256) -> None:
        if not 2 <= num_bits <= 16 or width < 1:
            raise ValueError(f"num_bits must be in [2, 16] and width at least 1, got {num_bits} and {width}")
        self.k, self.width = num_bits, width
        self.batch_size = num_bits

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(self.k, self.width), nn.ReLU(), nn.Linear(self.width, self.k))

    def parts(self, seed: int) -> Parts:
        with seeded_state(1000 + seed):
            order = torch.randperm(self.k)
            numbers = torch.randperm(2**self.k)
        bits_NK = (numbers[:, None] >> torch.arange(self.k) & 1).float()
        several = bits_NK[bits_NK.sum(1) >= 2]
        middle = len(several) // 2
        basis = torch.eye(self.k)
        return Parts(
            Tensors(basis, self._targets(basis, order)),
            Tensors(F.normalize(several[:middle], dim=1), self._targets(several[:middle], order)),
            Tensors(F.normalize(several[middle:], dim=1), self._targets(several[middle:], order)),
        )

    def _targets(self, bits_NK: Tensor, order: Tensor) -> Tensor:
        return torch.where(bits_NK[:, order] > 0, 1.0, -1.0 / self.k)

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        return F.mse_loss(model(batch[0]), batch[1])

    def score(self, model: nn.Module, batch: Any) -> tuple[float, int]:
        right = ((model(batch[0]) > 0) == (batch[1] > 0)).all(1)
        return float(right.sum()), len(right)
