"""Auxiliary heads: what a unit's features go through to become logits.

Shapes: B examples, C channels, D features, K classes or tokens, N rows (examples or positions).
"""

from typing import Literal, final

import torch
from torch import Tensor, nn

Shape = Literal["cnn", "mlp", "linear"]

_CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


@final
class Pool(nn.Module):
    """Average a feature map (B, C, ...) to at most `side` positions along each side.

    Args:
        side: positions along each side, >= 1.
        flat: whether to flatten what is left, to (B, features).
    """

    def __init__(self, side: int, *, flat: bool = False) -> None:
        super().__init__()
        self.side, self.flat = side, flat

    def forward(self, x: Tensor) -> Tensor:
        sizes = [min(self.side, n) for n in x.shape[2:]]
        pooled: Tensor = getattr(nn.functional, f"adaptive_avg_pool{len(sizes)}d")(x, sizes)
        return pooled.flatten(1) if self.flat else pooled


def pooled_size(shape: torch.Size, side: int) -> int:
    """How many features `Pool(side, flat=True)` leaves of a feature map (B, C, ...)."""
    num = shape[1]
    for n in shape[2:]:
        num *= min(side, n)
    return num


def side_for(shape: torch.Size, max_features: int) -> int:
    """The largest side of a pooled feature map (B, C, ...) that has at most max_features features; at least 1."""
    side = max(shape[2:])
    while side > 1 and pooled_size(shape, side) > max_features:
        side -= 1
    return side


def on_map(
    kind: Shape, shape: torch.Size, num_outputs: int, *, width: int | None, num_layers: int, rank: int | None = None
) -> nn.Module:
    """A head for feature maps (B, C, ...): hidden layers, an average over at most 2 positions a side, a linear read-out.

    Args:
        kind: "cnn": the hidden layers are 3x3 convolutions; "mlp": 1x1 convolutions, after an average over neighbours
            that leaves a quarter of each side; "linear": there are none.
        shape: of the unit's output.
        num_outputs: K.
        width: channels of the hidden layers; by default those of the unit.
        num_layers: hidden layers.
        rank: of the read-out; see `read_out`.
    """
    spatial, channels = len(shape) - 2, shape[1]
    width = width or channels
    layers: list[nn.Module] = []
    size = list(shape[2:])
    if kind == "mlp":
        side = -(-max(size) // 4)
        layers.append(Pool(side))
        size = [min(side, n) for n in size]
    if kind != "linear":
        for _ in range(num_layers):
            kernel = 3 if kind == "cnn" else 1
            layers += [_CONV[spatial](channels, width, kernel, padding=kernel // 2), nn.ReLU()]
            channels = width
    left = pooled_size(torch.Size([shape[0], channels, *size]), 2)
    return nn.Sequential(*layers, Pool(2, flat=True), *read_out(left, num_outputs, rank))


def on_rows(
    kind: Shape,
    num_features: int,
    num_outputs: int,
    *,
    width: int | None,
    num_layers: int,
    rank: int | None = None,
    normalise: bool = False,
) -> nn.Module:
    """A head for rows (N, D).

    Args:
        kind: "mlp": hidden layers and a linear read-out; "linear": the read-out alone.
        num_features: D.
        normalise: whether a LayerNorm comes first, as a transformer's residual stream grows from block to block.
        num_outputs, width, num_layers, rank: as in `on_map`.
    """
    layers: list[nn.Module] = [nn.LayerNorm(num_features)] if normalise else []
    if kind == "mlp":
        width = width or num_features
        for _ in range(num_layers):
            layers += [nn.Linear(num_features, width), nn.ReLU()]
            num_features = width
    return nn.Sequential(*layers, *read_out(num_features, num_outputs, rank))


def placed(output: Tensor) -> Tensor:
    """A tensor on the device and of the dtype that a head on this output shall have: float32 under autocast."""
    is_cast = torch.is_autocast_enabled(output.device.type)
    return output.new_empty(0, dtype=torch.float32 if is_cast else output.dtype)


def read_out(num_features: int, num_outputs: int, rank: int | None) -> list[nn.Module]:
    """A Linear, or two with `rank` features between them, which a large vocabulary makes smaller."""
    if rank is None:
        return [nn.Linear(num_features, num_outputs)]
    return [nn.Linear(num_features, rank, bias=False), nn.Linear(rank, num_outputs)]


@final
class Frozen:
    """The model's own way from the residual stream to its logits, held constant: final norm and output embedding.

    logits = E norm(h), with the weights as they are at this moment; h alone gets a gradient.
    """

    def __init__(self, norm: nn.Module | None, embedding: nn.Module) -> None:
        self._parts = [part for part in (norm, embedding) if part is not None]

    def __call__(self, h_ND: Tensor) -> Tensor:
        for part in self._parts:
            constant = {name: p.detach() for name, p in part.named_parameters()}
            h_ND = torch.func.functional_call(part, constant, (h_ND,))
        return h_ND


def frozen(model: nn.Module) -> Frozen | None:
    """The final norm and the output embedding of a transformers model, or of one inside it; None if it has none.

    The final norm is the last one outside of the stack of layers that is as wide as the output embedding's input.
    """
    embedding = None
    for module in model.modules():
        get = getattr(module, "get_output_embeddings", None)
        if callable(get) and isinstance(found := get(), nn.Module):
            embedding = found
            break
    if embedding is None:
        return None
    width = next(p.shape[-1] for p in embedding.parameters() if p.dim() == 2)
    stacked = {id(m) for stack in model.modules() if isinstance(stack, nn.ModuleList) for m in stack.modules()}
    norms = [
        m
        for m in model.modules()
        if type(m).__name__.endswith("Norm") and id(m) not in stacked and _width(m) in (None, width)
    ]
    return Frozen(norms[-1] if norms else None, embedding)


def _width(norm: nn.Module) -> int | None:
    return next((p.shape[-1] for p in norm.parameters()), None)
