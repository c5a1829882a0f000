"""DGL: decoupled greedy learning. Each block learns by a small head of its own, while the forward pass goes by.

Belilovsky, Eickenberg, Oyallon: Decoupled Greedy Learning of CNNs, ICML 2020, arXiv:1901.08164.

Block j computes x_j = f_j(x_{j-1}; theta_j), x_{j-1} held constant, and has an auxiliary head with weights gamma_j:

    z_j = aux_j(x_j; gamma_j)
    (theta_j, gamma_j) <- (theta_j, gamma_j) - eta d CE(z_j, y) / d (theta_j, gamma_j)

all blocks in every step (the paper's parallel form). The last block's head is the model's own, and its loss the trainer's.
The paper's heads are for images. A block of a language model gets the loss of the next token at each position.
"""

from collections.abc import Sequence
from typing import Literal, final

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

Head = Literal["auto", "cnn", "mlp", "linear", "tied"]


@final
class DGL(LocalMethod):
    """Decoupled greedy learning: each block learns from the cross-entropy of its own auxiliary head.

        z_j = aux_j(x_j; gamma_j),   theta_j and gamma_j follow d CE(z_j, y) / d (theta_j, gamma_j)

    One forward pass a step; saved activations are those of one block and its head at a time. Gradients appear in .grad.
    Labels are (B,), or one for each position of a sequence, (B, T). A label of -100 counts for nothing.

    Args:
        head: "cnn": 3x3 convolutions, an average over 2x2 parts, and a linear read-out, for feature maps; "mlp": hidden
            layers and a linear read-out, on a feature map as 1x1 convolutions on a quarter of its sides; "linear": the
            read-out alone; "tied": the final norm and the output embedding of a transformers model as they are, which
            learn from the last block alone. "auto" takes "cnn" for feature maps, "linear" for labels of positions, and
            "mlp" else. An own head on a sequence begins with a LayerNorm.
        num_layers: hidden layers of the "cnn" and "mlp" heads, >= 1; by default 2.
        width: channels or features of their hidden layers, >= 1; by default those of the block.
        rank: of the read-out, >= 1, made of two matrices then; by default one matrix. For large vocabularies.
        pool: which vector of a sequence goes with the label of an example: the "mean" over its positions, the "first", as
            BERT's own head takes it, or the "last", as a decoder's does; padding is left out.
        shift: whether labels (B, T) are those of the next position; by default True for transformers' causal language
            models, which take their labels so, and False for any other model.
        units, kind: where units start; see localplug.partition. A unit may be any group of layers.
        joins_head: whether the last block learns through the model's head from the trainer's own loss. False makes a head
            that learns a unit by itself, and gives the last block an auxiliary head like the others. A head that is
            frozen belongs to the last block in either case.
        num_classes: K, the number of classes or tokens; by default the number of outputs of the model's last Linear.

    Raises:
        ValueError: an option is outside its range, or two exclude each other; lists all of them.

    Example:
        >>> import torch, localplug
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 8), torch.nn.Linear(8, 2))
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> engine = localplug.Engine(net, DGL(num_layers=1), optimizer)
        >>> x, y = torch.ones(6, 4), torch.tensor([0, 1, 0, 1, 0, 1])
        >>> loss = engine.step(lambda: torch.nn.functional.cross_entropy(net(x), y), optimizer, targets=y)
    """

    def __init__(
        self,
        head: Head = "auto",
        num_layers: int | None = None,
        width: int | None = None,
        rank: int | None = None,
        pool: Pool = "mean",
        shift: bool | None = None,
        units: Sequence[str] | None = None,
        kind: Kind = "block",
        joins_head: bool = True,
        num_classes: int | None = None,
    ) -> None:
        wrong = []
        if head not in ("auto", "cnn", "mlp", "linear", "tied"):
            wrong.append(f'head must be "auto", "cnn", "mlp", "linear" or "tied", got {head!r}')
        for name, value in (("num_layers", num_layers), ("width", width), ("rank", rank), ("num_classes", num_classes)):
            if value is not None and not value >= 1:
                wrong.append(f"{name} must be at least 1, got {value!r}")
        if head in ("linear", "tied") and (width is not None or num_layers is not None):
            wrong.append(f"width and num_layers are for hidden layers, and head={head!r} has none; leave them out")
        if head == "tied" and rank is not None:
            wrong.append("rank is for heads of the method's own; leave it out with head='tied'")
        if pool not in POOLS:
            wrong.append(f'pool must be "mean", "first" or "last", got {pool!r}')
        if kind not in ("layer", "block", "model"):
            wrong.append(f'kind must be "layer", "block" or "model", got {kind!r}')
        if wrong:
            raise ValueError("DGL: " + "; ".join(wrong))
        super().__init__(units=units, kind=kind, joins_head=joins_head, num_classes=num_classes)
        self.head, self.num_layers, self.width, self.rank = head, num_layers or 2, width, rank
        self.pool, self.shift = pool, shift
        self._frozen: heads.Frozen | None = None
        if head == "tied":
            self.reads_above = "the model's final norm and output embedding, as they are"

    def describe(self) -> str:
        own = "the model's own output embedding" if self.head == "tied" else f"auxiliary heads ({self.head})"
        rank = f" of rank {self.rank}" if self.rank is not None else ""
        return f"dgl, {own}{rank}, a local cross-entropy for each {self.kind}, updates by the trainer's optimizer"

    def unit_problems(self, units: Sequence[Unit], run: Run) -> list[str]:
        if self.head == "tied" and heads.frozen(run.model) is None:
            return [
                "head='tied' needs a model with get_output_embeddings(), as transformers' language models have; use 'linear'"
            ]
        return []

    def owns(self, unit: Unit, output: Tensor, run: Run) -> nn.Module | None:
        assert self.K is not None
        K, kind, output = self.K, self.head, unflattened(unit, output)
        if kind == "tied":
            return None
        sequence = is_sequence(unit, output)
        if kind == "auto":
            kind = "cnn" if is_map(unit, output) else "linear" if sequence and are_tokens(run) else "mlp"
        if kind == "cnn" and not is_map(unit, output):
            raise ValueError(
                f"head='cnn' needs feature maps (B, C, H, W), and unit {unit.name!r} gives {tuple(output.shape)}; "
                "use 'auto', 'mlp' or 'linear'"
            )

        width, depth, rank = self.width, self.num_layers, self.rank

        def make() -> nn.Module:
            if is_map(unit, output):
                return heads.on_map(kind, output.shape, K, width=width, num_layers=depth, rank=rank)
            return heads.on_rows(
                kind, output.shape[-1], K, width=width, num_layers=depth, rank=rank, normalise=sequence
            )

        return seeded(make, heads.placed(output), seed=run.seed, name=unit.key)

    def signal(self, activity: Activity, run: Run) -> Signal:
        rows = labelled(activity, run, self.K, shift=self.shift, pool=self.pool)
        if self.head == "tied":
            self._frozen = self._frozen or heads.frozen(run.model)
        head = self._frozen if self.head == "tied" else activity.unit.owned
        assert head is not None
        return Signal(loss=cross_entropy(head(rows.features), rows.labels))
