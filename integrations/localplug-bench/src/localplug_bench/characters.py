"""A language model of characters, from scratch: tiny Shakespeare (Karpathy, 2015), or any text file.

Shapes: B rows, T characters of context, V different characters.
"""

import functools
import math
import pathlib
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from localplug import Parts, Task, Tensors
from localplug.tasks import located


class Block(nn.Module):
    """Causal self-attention and an MLP, each after a layer norm."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x_BTC: Tensor) -> Tensor:
        B, T, C = x_BTC.shape
        q, k, v = (
            part.view(B, T, self.num_heads, -1).transpose(1, 2) for part in self.qkv(self.norm1(x_BTC)).chunk(3, dim=-1)
        )
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x_BTC = x_BTC + self.out(attended.transpose(1, 2).reshape(B, T, C))
        return x_BTC + self.mlp(self.norm2(x_BTC))


class Transformer(nn.Module):
    """A small GPT."""

    def __init__(self, num_characters: int, context: int, width: int, depth: int) -> None:
        super().__init__()
        self.embedding, self.position = nn.Embedding(num_characters, width), nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, max(width // 32, 1)) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, num_characters)

    def forward(self, ids_BT: Tensor) -> Tensor:
        x = self.embedding(ids_BT) + self.position(torch.arange(ids_BT.shape[1], device=ids_BT.device))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


@final
class Characters(Task):
    """Predict the next character; quality in bits a character, lower is better.

    The text is split 90 : 5 : 5 in its order; validation and test use rows at equal distances.

    Args:
        data: a folder with tinyshakespeare/input.txt.
        text: a file of your own in its place.
        context: T.
        depth, width: blocks, and features of each; a multiple of 32 features.
        num_evaluated: rows of validation, and of test.

    Raises:
        FileNotFoundError: in `parts`, `model`: the text is missing; says what to fetch.

    Example:
        >>> import localplug
        >>> localplug.task("char-lm", depth=2).metric
        'bits a character'
    """

    metric, higher_is_better, perfect = "bits a character", False, 0.0
    batch_size, evaluation_batch, budget = 16, 64, 3000

    def __init__(
        self,
        data: pathlib.Path | None = None,
        text: str | None = None,
        context: int = 64,
        depth: int = 4,
        width: int = 128,
        num_evaluated: int = 128,
    ) -> None:
        self._data, self._text, self.context = data, text, context
        self.depth, self.width, self.num_evaluated = depth, width, num_evaluated

    @functools.cached_property
    def _ids(self) -> tuple[Tensor, int]:
        if self._text is None:
            hint = "It is data/tinyshakespeare/input.txt of github.com/karpathy/char-rnn. Or pass text=FILE."
            file = located(self._data, "tinyshakespeare", ["input.txt"], get_it=hint) / "input.txt"
        else:
            file = pathlib.Path(self._text)
        text = file.read_text("utf-8")
        place = {character: number for number, character in enumerate(sorted(set(text)))}
        ids = torch.tensor([place[character] for character in text])
        rows = (len(ids) - 1) // self.context
        return torch.stack([ids[i * self.context : (i + 1) * self.context + 1] for i in range(rows)]), len(place)

    def model(self) -> nn.Module:
        return Transformer(self._ids[1], self.context, self.width, self.depth)

    def parts(self, seed: int) -> Parts:
        rows, _ = self._ids
        a, b = int(0.9 * len(rows)), int(0.95 * len(rows))

        def spread(some: Tensor) -> Tensor:
            return some[:: max(1, len(some) // self.num_evaluated)][: self.num_evaluated]

        return Parts(Tensors(rows[:a]), Tensors(spread(rows[a:b])), Tensors(spread(rows[b:])))

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        (ids,) = batch
        return F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())

    def score(self, model: nn.Module, batch: Any) -> tuple[float, int]:
        (ids,) = batch
        return float(self.loss(model, batch)) / math.log(2) * ids[:, 1:].numel(), ids[:, 1:].numel()

    def targets(self, batch: Any) -> Any:
        return batch[0][:, 1:]
