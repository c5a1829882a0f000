"""Write a linear program for a problem in words, byte by byte, and be judged by a solver: a task for the bench.

The problem is a mix of two products and two resources. A network reads all bytes of it and gives all bytes of the program
at once; numbers have to come to their places, which a table of texts cannot know. Quality is the share of problems whose
written program has the right optimum. After OptMATH (arXiv:2502.11102), at the size of a laptop.

Letters: B rows, T bytes, D width, V the 128 values of a byte.
"""

import functools
import random
from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from localplug import Parts, Task, Tensors
from localplug_rewards.verifying import Tolerance, Verifier

QUESTION = "x earns {0}, y earns {1}. wood: {2} for x, {3} for y, {4} there. steel: {5} for x, {6} for y, {7} there."
PROGRAM = "max {0}x+{1}y;{2}x+{3}y<={4};{5}x+{6}y<={7}"
SIZES = (9, 9, 9, 9, (10, 60), 9, 9, (10, 60))


@final
class Writer(nn.Module):
    """Attention from the places of the program to the bytes of the question, a hidden layer, and a byte for each place.

    Args:
        num_read: bytes of a question.
        num_written: bytes of a program.
        width: D.
    """

    def __init__(self, num_read: int, num_written: int, width: int) -> None:
        super().__init__()
        self.bytes = nn.Embedding(128, width)
        self.places = nn.Parameter(0.3 * torch.randn(num_read, width))
        self.asks = nn.Parameter(0.3 * torch.randn(num_written, width))
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.hidden = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.head = nn.Linear(width, 128)

    def forward(self, read_BT: Tensor) -> Tensor:
        seen_BTD = self.bytes(read_BT) + self.places
        asked_BTD = self.query(self.asks).expand(len(read_BT), -1, -1)
        found_BTD = F.scaled_dot_product_attention(asked_BTD, self.key(seen_BTD), self.value(seen_BTD)) + self.asks
        return self.head(found_BTD + self.hidden(found_BTD))


def texts(written_BT: Tensor) -> list[str]:
    """Rows of bytes as texts; what is no ASCII cannot be written."""
    return [bytes(row).decode("ascii") for row in written_BT.tolist()]


@final
class LinearModels(Task):
    """linear-models: from a problem in words to a linear program, verified by HiGHS (after arXiv:2502.11102).

    The loss is the cross-entropy of the program's bytes. For rewards instead of it see localplug_rewards.solved.

    Args:
        num_train: problems to learn from, >= 1.
        num_held: to validate, and as many to test, >= 1.
        width: of the network, >= 1.

    Raises:
        ValueError: an option is out of its range.

    Example:
        >>> import localplug
        >>> task = localplug.task("linear-models", num_train=10, num_held=5)
        >>> texts(task.parts(0).train.columns[1])[0]
        'max 6x+8y;9x+9y<=22;5x+1y<=42'
    """

    metric = "solved share"
    batch_size, budget = 32, 6000

    def __init__(self, num_train: int = 1000, num_held: int = 300, width: int = 32) -> None:
        if min(num_train, num_held, width) < 1:
            raise ValueError(
                f"num_train, num_held and width must be at least 1, got {num_train}, {num_held} and {width}"
            )
        self.num_train, self.num_held, self.width = num_train, num_held, width
        self.judge = Verifier(Tolerance(absolute=1e-4))

    def model(self) -> nn.Module:
        read, written = (len(template.format(1, 1, 1, 1, 10, 1, 1, 10)) for template in (QUESTION, PROGRAM))
        return Writer(read, written, self.width)

    @functools.cached_property
    def _problems(self) -> list[Tensor]:
        """(questions, programs, optima) of all parts, no problem twice."""
        draw, found = random.Random("linear models"), dict[tuple[int, ...], None]()
        while len(found) < self.num_train + 2 * self.num_held:
            found[tuple(draw.randint(*(size if isinstance(size, tuple) else (1, size))) for size in SIZES)] = None
        questions, programs = (_bytes([t.format(*numbers) for numbers in found]) for t in (QUESTION, PROGRAM))
        optima = [self.judge(text, float("inf")).value for text in texts(programs)]
        return [questions, programs, torch.tensor([float("nan") if v is None else v for v in optima]).double()]

    def parts(self, seed: int) -> Parts:
        cuts = torch.arange(self.num_train + 2 * self.num_held).split([self.num_train, self.num_held, self.num_held])
        return Parts(*(Tensors(*(column[rows] for column in self._problems)) for rows in cuts))

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        read_BT, written_BT, _ = batch
        return F.cross_entropy(model(read_BT).flatten(0, 1), written_BT.flatten())

    def score(self, model: nn.Module, batch: Any) -> tuple[float, int]:
        written = texts(model(batch[0]).argmax(-1))
        return float(sum(self.judge(text, float(v)).reward for text, v in zip(written, batch[2], strict=True))), len(
            written
        )


def _bytes(rows: Sequence[str]) -> Tensor:
    return torch.tensor([list(row.encode("ascii")) for row in rows])
