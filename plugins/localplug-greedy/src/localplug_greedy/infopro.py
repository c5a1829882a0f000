"""InfoPro: each module keeps what its input tells about the image, and what it tells about the label.

Wang, Ni, Song, Yang, Huang: Revisiting Locally Supervised Learning: an Alternative to End-to-end Training, ICLR 2021,
arXiv:2101.10832.

Training each module for the label alone makes early modules throw away what later ones would need. With h the output of a
module, x the model's own input, and y the label, a module learns from the computable bound of the paper's loss:

    L = -lambda1 I(h, x) - lambda2 I(h, y)

    -I(h, x)  <=  R(x | h)                 a decoder's error when it makes x from h (up to a constant)
    -I(h, y)  <=  CE(aux(h), y), or the supervised contrastive loss of a projection z of h,

        mean_i  -1/|P(i)| sum_{p in P(i)} log exp(z_i.z_p / tau) / sum_{a != i} exp(z_i.z_a / tau)

with P(i) the other examples of i's class. lambda1 and lambda2 go linearly from the first hidden module to the last, so that
early modules keep the image and late ones the label. The last module has the model's own head and the trainer's loss.

Shapes: N rows (examples, or positions that have a label), B examples, T positions, D features.
"""

from collections.abc import Sequence
from typing import Literal, final

import torch
from torch import Tensor, nn

from localplug import Activity, LocalMethod, Run, Signal, Unit, View, seeded
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
    no_padding,
    unflattened,
)


@final
class InfoPro(LocalMethod):
    """Information propagation: L = lambda1 R(x | h) + lambda2 CE(aux(h), y), with lambda interpolated over depth.

    One forward pass a step; saved activations are those of one unit, its decoder and its head at a time, and the model's
    input is kept until the last unit begins. Gradients appear in .grad. x is what enters the first unit: an image, a vector;
    or the tokens of a language model, which the decoder then names position by position. (The paper has images alone.) Labels
    are (B,), or one for each position of a sequence, (B, T). A label of -100 counts for nothing.

    Args:
        lambda1: weight of the reconstruction, (first hidden unit, last hidden unit), each >= 0.
        lambda2: weight of the label's term, in the same order, each >= 0. (The authors' settings differ by the number of
            modules; for CIFAR-10, 2 modules: (5, -) and (0.5, -); 8 modules: (5, 0) and (0, 1).)
        reconstruction: R of an image or a vector: "mse" for any input, "bce" for inputs in [0, 1], as in the authors' code,
            which undoes the normalisation first.
        supervision: "cross_entropy", or "contrast" for labels of examples.
        temperature: tau of "contrast", > 0.
        feature_dim: features of the projection z of "contrast", >= 1.
        width: channels of the decoder's hidden layer on a feature map, >= 1.
        pool: which vector of a sequence goes with the label of an example: the "mean" over its positions, the "first", as
            BERT's own head takes it, or the "last", as a decoder's does; padding is left out.
        shift: whether labels (B, T) are those of the next position; by default True for transformers' causal language
            models, which take their labels so, and False for any other model.
        units, kind: where units start; see localplug.partition. A unit may be any group of layers.
        joins_head: whether the last block learns through the model's head from the trainer's own loss. False makes a head
            that learns a unit by itself, and gives the last block a decoder and a head like the others. A head that is
            frozen belongs to the last block in either case.
        num_classes: K, the number of classes or tokens; by default the number of outputs of the model's last Linear.

    Raises:
        ValueError: an option is outside its range, or two exclude each other; lists all of them.

    Example:
        >>> import torch, localplug
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 8), torch.nn.Linear(8, 2))
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> engine = localplug.Engine(net, InfoPro(lambda1=(1.0, 0.0)), optimizer)
        >>> x, y = torch.ones(6, 4), torch.tensor([0, 1, 0, 1, 0, 1])
        >>> loss = engine.step(lambda: torch.nn.functional.cross_entropy(net(x), y), optimizer, targets=y)
    """

    def __init__(
        self,
        lambda1: tuple[float, float] = (5.0, 0.0),
        lambda2: tuple[float, float] = (0.5, 1.0),
        reconstruction: Literal["mse", "bce"] = "mse",
        supervision: Literal["cross_entropy", "contrast"] = "cross_entropy",
        temperature: float = 0.07,
        feature_dim: int = 128,
        width: int = 12,
        pool: Pool = "mean",
        shift: bool | None = None,
        units: Sequence[str] | None = None,
        kind: Kind = "block",
        joins_head: bool = True,
        num_classes: int | None = None,
    ) -> None:
        wrong = []
        for name, pair in (("lambda1", lambda1), ("lambda2", lambda2)):
            if not (isinstance(pair, Sequence) and len(pair) == 2 and all(value >= 0 for value in pair)):
                wrong.append(f"{name} must be two numbers >= 0, of the first and of the last hidden unit, got {pair!r}")
        if reconstruction not in ("mse", "bce"):
            wrong.append(f'reconstruction must be "mse" or "bce", got {reconstruction!r}')
        if supervision not in ("cross_entropy", "contrast"):
            wrong.append(f'supervision must be "cross_entropy" or "contrast", got {supervision!r}')
        if not temperature > 0:
            wrong.append(f"temperature must be positive, got {temperature!r}")
        if supervision != "contrast" and (temperature != 0.07 or feature_dim != 128):
            wrong.append("temperature and feature_dim belong to supervision='contrast'; leave them out")
        for name, value in (("feature_dim", feature_dim), ("width", width), ("num_classes", num_classes)):
            if value is not None and not value >= 1:
                wrong.append(f"{name} must be at least 1, got {value!r}")
        if pool not in POOLS:
            wrong.append(f'pool must be "mean", "first" or "last", got {pool!r}')
        if kind not in ("layer", "block", "model"):
            wrong.append(f'kind must be "layer", "block" or "model", got {kind!r}')
        if wrong:
            raise ValueError("InfoPro: " + "; ".join(wrong))
        super().__init__(units=units, kind=kind, joins_head=joins_head, num_classes=num_classes)
        self.lambda1, self.lambda2 = tuple(lambda1), tuple(lambda2)
        self.reconstruction, self.supervision = reconstruction, supervision
        self.pool, self.shift = pool, shift
        self.temperature, self.feature_dim, self.width = temperature, feature_dim, width
        self._x: Tensor | None = None
        self._num_hidden: int | None = None

    def describe(self) -> str:
        first, last = self.lambda1, self.lambda2
        return (
            f"infopro, {first[0]:g} to {first[1]:g} reconstruction ({self.reconstruction}) + {last[0]:g} to {last[1]:g} "
            f"{self.supervision} for each {self.kind}, updates by the trainer's optimizer"
        )

    def local_input(self, unit: Unit, x: Tensor, view: View, run: Run) -> Tensor:
        if unit.index == 0:
            self._x = x
        if unit.is_last:
            self._x = None  # no unit after this one asks for it
        return x

    def owns(self, unit: Unit, output: Tensor, run: Run) -> nn.Module | None:
        assert self.K is not None and self._x is not None
        K, x, tokens, output = self.K, self._x, are_tokens(run), unflattened(unit, output)
        num_outputs = self.feature_dim if self.supervision == "contrast" else K

        def make() -> nn.Module:
            if is_map(unit, output):
                aux = heads.on_map("cnn", output.shape, num_outputs, width=None, num_layers=1)
            else:
                kind: heads.Shape = "linear" if tokens else "mlp"
                sequence = is_sequence(unit, output)
                aux = heads.on_rows(kind, output.shape[-1], num_outputs, width=None, num_layers=1, normalise=sequence)
            return Pair(decoder(unit, output, x, self.width, run.model), aux)

        return seeded(make, heads.placed(output), seed=run.seed, name=unit.key)

    def signal(self, activity: Activity, run: Run) -> Signal | None:
        owned = activity.unit.owned
        assert isinstance(owned, Pair) and self._x is not None
        lambda1, lambda2 = self._weights(activity.unit, run)
        if lambda1 == lambda2 == 0:
            return None
        L = activity.output.new_zeros((), dtype=torch.float32)
        if lambda1 > 0:
            L = L + lambda1 * self._reconstruction_term(owned.decoder, activity, self._x, run)
        if lambda2 > 0:
            L = L + lambda2 * self._label_term(owned.aux, activity, run)
        return Signal(loss=L)

    def _weights(self, unit: Unit, run: Run) -> tuple[float, float]:
        """lambda1 and lambda2 of one unit."""
        if self._num_hidden is None:
            self._num_hidden = len(self.partition(run)) - 1
        r = unit.index / (self._num_hidden - 1) if self._num_hidden > 1 else 0.0
        first, last = self.lambda1, self.lambda2
        return first[0] * (1 - r) + first[1] * r, last[0] * (1 - r) + last[1] * r

    def _reconstruction_term(self, decode: nn.Module, activity: Activity, x: Tensor, run: Run) -> Tensor:
        """R(x | h), a mean over all that is reconstructed."""
        made = decode(unflattened(activity.unit, activity.output))
        if not x.is_floating_point():
            counts_BT = no_padding(x, run.model)
            counts_BT = torch.ones_like(x, dtype=torch.bool) if counts_BT is None else counts_BT
            return cross_entropy(made[counts_BT], x[counts_BT])
        made, x = made.float().flatten(1), x.float().flatten(1)
        if self.reconstruction == "mse":
            return nn.functional.mse_loss(made, x)
        if not 0 <= float(x.min()) <= float(x.max()) <= 1:
            raise ValueError(
                f"reconstruction='bce' needs inputs in [0, 1], got {float(x.min()):g} to {float(x.max()):g}; use 'mse'"
            )
        return nn.functional.binary_cross_entropy_with_logits(made, x)

    def _label_term(self, aux: nn.Module, activity: Activity, run: Run) -> Tensor:
        rows = labelled(activity, run, self.K, shift=self.shift, pool=self.pool)
        made = aux(rows.features)
        if self.supervision == "cross_entropy":
            return cross_entropy(made, rows.labels)
        if are_tokens(run):
            raise ValueError("supervision='contrast' needs labels of shape (B,); use 'cross_entropy' for tokens")
        return contrast(made, rows.labels, self.temperature)


@final
class Pair(nn.Module):
    """What a unit owns: the decoder, and the head or projection for the label's term."""

    def __init__(self, decoder: nn.Module, aux: nn.Module) -> None:
        super().__init__()
        self.decoder, self.aux = decoder, aux


def decoder(unit: Unit, output: Tensor, x: Tensor, width: int, model: nn.Module) -> nn.Module:
    """Makes the model's input x of a unit's output, or logits over the vocabulary where x holds tokens.

    A feature map is interpolated to the image's size and goes through two 3x3 convolutions, as the authors' does, without
    its batch norm. A sequence is read out position by position, and anything else goes through one hidden layer.

    Raises:
        ValueError: x holds tokens, and the unit does not give one vector for each.
    """
    features = output.shape[-1]
    if is_sequence(unit, output) and x.shape[:2] == output.shape[:2]:
        outputs = x.shape[-1] if x.is_floating_point() else _vocabulary(model)
        return nn.Sequential(nn.LayerNorm(features), nn.Linear(features, outputs))
    if not x.is_floating_point():
        raise ValueError(
            f"infopro decodes tokens {tuple(x.shape)} position by position, and unit {unit.name!r} gives "
            f"{tuple(output.shape)}; name other units with units="
        )
    if is_map(unit, output) and x.dim() == output.dim():
        spatial = x.dim() - 2
        Conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[spatial]
        mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[spatial]
        return nn.Sequential(
            nn.Upsample(tuple(x.shape[2:]), mode=mode, align_corners=True),
            Conv(output.shape[1], width, 3, padding=1),
            nn.ReLU(),
            Conv(width, x.shape[1], 3, padding=1),
        )
    return nn.Sequential(
        nn.Flatten(), nn.Linear(output[0].numel(), features), nn.ReLU(), nn.Linear(features, x[0].numel())
    )


def _vocabulary(model: nn.Module) -> int:
    """How many tokens the model's first embedding knows."""
    return next(m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding))


def contrast(z_ND: Tensor, labels_N: Tensor, temperature: float) -> Tensor:
    """Supervised contrastive loss, a mean over the examples that share their class with another; 0 if none does. Scalar.

    Khosla et al.: Supervised Contrastive Learning, 2020, arXiv:2004.11362.
    """
    z_ND = nn.functional.normalize(z_ND.float(), dim=1)
    itself_NN = torch.eye(len(z_ND), dtype=torch.bool, device=z_ND.device)
    logits_NN = (z_ND @ z_ND.T / temperature).masked_fill(itself_NN, -torch.inf)
    log_p_NN = logits_NN.log_softmax(1).masked_fill(itself_NN, 0.0)
    P_NN = (labels_N.unsqueeze(0) == labels_N.unsqueeze(1)) & ~itself_NN
    num_N = P_NN.sum(1)
    loss_N = -(log_p_NN * P_NN).sum(1) / num_N.clamp(min=1)
    return loss_N.sum() / (num_N > 0).sum().clamp(min=1)
