"""Large linear and embedding layers at perturbed weights, a few rows of the matrix at a time.

    y[:, rows] = x (W[rows] + s z[rows])^T + b        linear: one tile of rows is perturbed, used and dropped
    y = (W + s z)[ids]                                embedding: only the rows that are looked up are perturbed

so that an evaluation needs no perturbed copy of a vocabulary-sized matrix.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from localplug.directions import Directions
from localplug.parts import Term

TILE = 1 << 20  # elements of a matrix perturbed at once: 4 MB in float32


def is_tiled(module: nn.Module) -> bool:
    """Whether a layer is large and plain enough: exactly nn.Linear or nn.Embedding, with nothing put over its forward."""
    if type(module) not in (nn.Linear, nn.Embedding) or "forward" in module.__dict__:
        return False
    if isinstance(module, nn.Embedding) and module.max_norm is not None:
        return False  # it renormalises its weight in place
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.numel() > TILE and weight.is_contiguous()


def tiled_forward(
    module: nn.Module, directions: Directions, index: dict[nn.Parameter, int], terms: Sequence[Term]
) -> Callable[[Tensor], Tensor]:
    """The layer's forward at w + sum of factor * z over the terms."""
    weight: Any = module.weight
    place = index[weight]
    num_rows, width = weight.shape

    def linear(x: Tensor) -> Tensor:
        bias: Any = module.bias
        shift = None if bias is None else bias.data
        if shift is not None and bias in index:
            shift = directions.added(shift, index[bias], terms)
        rows = max(TILE // width, 1)
        y: Tensor | None = None
        for first in range(0, num_rows, rows):
            tile = directions.added(weight.data[first : first + rows], place, terms, offset=first * width)
            part = nn.functional.linear(x, tile, None if shift is None else shift[first : first + rows])
            if y is None:  # allocated once: a list of parts would need the whole output twice when it is joined
                y = part.new_empty(*part.shape[:-1], num_rows)
            y[..., first : first + rows] = part
        assert y is not None
        return y

    def embedding(ids: Tensor) -> Tensor:
        used, where = ids.unique(return_inverse=True)
        rows = weight.data[used]
        for i, row in enumerate(used.tolist()):
            directions.add_(rows[i], place, terms, offset=row * width)
        return rows[where]

    return linear if isinstance(module, nn.Linear) else embedding
