"""predsim: each layer learns to predict the label, and to be alike for alike labels.

Nokland, Eidnes: Training Neural Networks with Local Error Signals, ICML 2019, arXiv:1901.06656.

A hidden layer gives H for a batch of N examples; Y holds their labels, one-hot. With a linear classifier W on the pooled
features, and a linear or 3x3 convolutional projection C, both trained with the layer:

    L_pred = CE(W pool(H), Y)
    L_sim  = mean_ij (S(C(H))_ij - S(Y)_ij)^2        S(X)_ij = cos(x_i, x_j), each x_i about its own mean
    L      = (1 - beta) L_pred + beta L_sim

A feature map enters S by the standard deviation of each channel over its positions, as in the authors' code. The last layer
learns from the trainer's own loss. For language models, N counts positions, and the labels are the next tokens.

Shapes: N rows (examples, or positions that have a label), D features, K classes, G rows of a group.
"""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn

from localplug import Activity, LocalMethod, Run, Signal, Unit, seeded
from localplug.units import Kind
from localplug_greedy import heads
from localplug_greedy.labels import (
    POOLS,
    Pool,
    are_tokens,
    cross_entropy,
    is_map,
    is_sequence,
    labelled,
    unflattened,
)

_CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


@final
class PredSim(LocalMethod):
    """Local prediction and similarity matching: L = (1 - beta) CE(W pool(H), y) + beta mean (S(C(H)) - S(Y))^2.

    One forward pass a step; saved activations are those of one unit, W and C at a time. Gradients appear in .grad. Labels are
    (B,), or one for each position of a sequence, (B, T). A label of -100 counts for nothing.

    Args:
        beta: weight of similarity matching, in [0, 1]: 0 is the authors' "pred" loss, 1 their "sim" loss.
        max_features: how many features of a feature map W sees at most, >= 1; it is averaged over neighbours until they
            are so few, but never below one value for each channel.
        projection: whether C is trained; False compares the features themselves.
        group: rows that are compared with one another where labels are those of positions, >= 2: positions in a row, as
            many as fit. Labels of examples are compared over the whole batch.
        pool: which vector of a sequence goes with the label of an example: the "mean" over its positions, the "first", as
            BERT's own head takes it, or the "last", as a decoder's does; padding is left out.
        shift: whether labels (B, T) are those of the next position; by default True for transformers' causal language
            models, which take their labels so, and False for any other model.
        units, kind: where units start; see localplug.partition. Transformers need kind="block".
        joins_head: whether the last hidden unit learns through the model's head from the trainer's own loss. A head that is
            frozen belongs to the last unit in either case.
        num_classes: K, the number of classes or tokens; by default the number of outputs of the model's last Linear.

    Raises:
        ValueError: an option is outside its range; lists all of them.

    Example:
        >>> import torch, localplug
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> engine = localplug.Engine(net, PredSim(beta=0.99), optimizer)
        >>> x, y = torch.ones(6, 4), torch.tensor([0, 1, 0, 1, 0, 1])
        >>> loss = engine.step(lambda: torch.nn.functional.cross_entropy(net(x), y), optimizer, targets=y)
    """

    def __init__(
        self,
        beta: float = 0.99,
        max_features: int = 2048,
        projection: bool = True,
        group: int = 256,
        pool: Pool = "mean",
        shift: bool | None = None,
        units: Sequence[str] | None = None,
        kind: Kind = "layer",
        joins_head: bool = False,
        num_classes: int | None = None,
    ) -> None:
        wrong = []
        if not 0 <= beta <= 1:
            wrong.append(f"beta must be in [0, 1], got {beta!r}")
        if not max_features >= 1:
            wrong.append(f"max_features must be at least 1, got {max_features!r}")
        if not group >= 2:
            wrong.append(f"group must be at least 2, got {group!r}")
        if pool not in POOLS:
            wrong.append(f'pool must be "mean", "first" or "last", got {pool!r}')
        if kind not in ("layer", "block", "model"):
            wrong.append(f'kind must be "layer", "block" or "model", got {kind!r}')
        if num_classes is not None and not num_classes >= 1:
            wrong.append(f"num_classes must be at least 1, got {num_classes!r}")
        if wrong:
            raise ValueError("PredSim: " + "; ".join(wrong))
        super().__init__(units=units, kind=kind, joins_head=joins_head, num_classes=num_classes)
        self.beta, self.max_features, self.projection, self.group = beta, max_features, projection, group
        self.pool, self.shift = pool, shift

    def describe(self) -> str:
        return (
            f"predsim, {1 - self.beta:g} prediction + {self.beta:g} similarity matching for each {self.kind}, "
            "updates by the trainer's optimizer"
        )

    def owns(self, unit: Unit, output: Tensor, run: Run) -> nn.Module | None:
        assert self.K is not None
        output = unflattened(unit, output)
        K, on_map, shape = self.K, is_map(unit, output), output.shape

        def make() -> nn.Module:
            C: nn.Module
            if on_map:
                C = _CONV[len(shape) - 2](shape[1], shape[1], 3, padding=1, bias=False)
                side = heads.side_for(shape, self.max_features)
                W = nn.Sequential(heads.Pool(side, flat=True), nn.Linear(heads.pooled_size(shape, side), K))
            else:
                C = nn.Linear(shape[-1], shape[-1], bias=False)
                W = nn.Sequential(*([nn.LayerNorm(shape[-1])] if is_sequence(unit, output) else []))
                W.append(nn.Linear(shape[-1], K))
            return Pair(W, C if self.projection else nn.Identity())

        return seeded(make, heads.placed(output), seed=run.seed, name=unit.key)

    def signal(self, activity: Activity, run: Run) -> Signal:
        rows = labelled(activity, run, self.K, shift=self.shift, pool=self.pool)
        owned = activity.unit.owned
        assert isinstance(owned, Pair)
        L = rows.features.new_zeros((), dtype=torch.float32)
        if self.beta < 1:
            L = L + (1 - self.beta) * cross_entropy(owned.W(rows.features), rows.labels)
        if self.beta > 0:
            group = self.group if are_tokens(run) else max(len(rows.labels), 1)
            L = L + self.beta * similarity_matching(owned.C(rows.features), rows.labels, self.K or 1, group)
        return Signal(loss=L)


@final
class Pair(nn.Module):
    """What a unit owns: the classifier W and the projection C."""

    def __init__(self, W: nn.Module, C: nn.Module) -> None:
        super().__init__()
        self.W, self.C = W, C


def similarity_matching(features: Tensor, labels_N: Tensor, num_classes: int, group: int) -> Tensor:
    """mean_ij (S(H)_ij - S(Y)_ij)^2 over all pairs of rows inside each group. Scalar, float32.

    Args:
        features: (N, D), or (N, C, ...) of a feature map.
        labels_N: integers in [0, num_classes).
        group: rows that are compared with one another.
    """
    total, pairs = features.new_zeros((), dtype=torch.float32), 0
    for h, y_G in zip(features.split(group), labels_N.split(group), strict=True):
        S_GG = similarity(h.float())
        same_GG = (y_G.unsqueeze(0) == y_G.unsqueeze(1)).float()
        # of one-hot rows about their mean 1 / K: 1 for the same class, -1 / (K - 1) for another
        target_GG = same_GG - (1 - same_GG) / max(num_classes - 1, 1)
        total = total + (S_GG - target_GG).square().sum()
        pairs += target_GG.numel()
    return total / max(pairs, 1)


def similarity(x: Tensor) -> Tensor:
    """S(X)_ij = cos(x_i - mean(x_i), x_j - mean(x_j)), (N, N); a row that is constant has the similarity 0 to all.

    Args:
        x: (N, D), or (N, C, ...) of a feature map, whose channels enter by their standard deviation over positions.
    """
    if x.dim() > 2:
        x = x.flatten(2).std(-1) if x[0, 0].numel() > 1 else x.flatten(1)
    centred_ND = nn.functional.normalize(x - x.mean(1, keepdim=True), dim=1, eps=1e-8)
    return centred_ND @ centred_ND.T
