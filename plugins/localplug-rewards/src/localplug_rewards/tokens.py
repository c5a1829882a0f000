"""Token by token: what was written, moved onto what should be there, by a plan that prefers the same order.

    C_ij = 1 - cos(y_i, x_j) + w |i/(n-1) - j/(m-1)|
    P    = unbalanced(C, scaled to [0, 1] for each pair of texts),  rows normalised: P~
    reward = 1 - mean_i sum_j P~_ij C_ij

y_i are the n tokens that are wanted, x_j the m written ones. Of the token-level reward of PISCES (arXiv:2602.01624), which
aligns prompt tokens with places in a video by space and time, this has the plan and its settings (w 0.2, eps 0.05, exponent
0.9, 200 iterations, tolerance 1e-3); a text has one position and no video-text model that the plan could steer. `fused` is
that last step for whoever has one.

The cost of places is part of the reward here. A similarity alone, as the plan has it, is full for the right tokens in any
order.

Letters: B rows, n wanted and m written tokens, D numbers an embedding, V vocabulary.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from localplug_rewards.transport import unbalanced

Pairs = Sequence[tuple[Tensor, Tensor]]


@torch.no_grad()
def aligned(similarity_nm: Tensor, weight: float = 0.2) -> tuple[Tensor, Tensor]:
    """The plan with normalised rows, (n, m), and 1 - the cost of moving each wanted token to what the plan says, (n,).

    Args:
        similarity_nm: cosines, in [-1, 1].
        weight: w, of positions, >= 0.

    Example:
        >>> import torch
        >>> plan, found = aligned(torch.eye(3))
        >>> plan.argmax(1).tolist(), found.round(decimals=2).tolist()
        ([0, 1, 2], [1.0, 1.0, 1.0])
    """
    n, m = similarity_nm.shape
    at_n, at_m = (torch.arange(num, device=similarity_nm.device) / max(num - 1, 1) for num in (n, m))
    cost_nm = 1 - similarity_nm.double() + weight * (at_n[:, None] - at_m).abs()
    low, high = cost_nm.min(), cost_nm.max()
    plan_nm = unbalanced(((cost_nm - low) / (high - low).clamp(min=1e-12)).unsqueeze(0))[0]
    plan_nm = plan_nm / plan_nm.sum(1, keepdim=True).clamp(min=1e-300)
    return plan_nm, 1 - (plan_nm * cost_nm).sum(1)


def fused(attention: Tensor, plan: Tensor) -> Tensor:
    """softmax(log(A + 1e-6) + log(P + 1e-6)) over the last dimension: attention that follows a plan (arXiv:2602.01624).

    Example:
        >>> import torch
        >>> fused(torch.tensor([0.5, 0.5]), torch.tensor([0.9, 0.1])).round(decimals=3)
        tensor([0.9000, 0.1000])
    """
    return ((attention + 1e-6).log() + (plan + 1e-6).log()).softmax(-1)


@final
class TokenTransport:
    """How well the written tokens can be moved onto the wanted ones, in [-1 - w, 1]; about 1 if they are the same.

    The mean over the rows of a batch. It moves with single tokens, where exact match does not, and a token at another
    place costs no more than w: with a small w this rewards the right tokens in any order. After arXiv:2602.01624, see the
    head of this file.

    Args:
        embeddings: (V, D), of the tokens, kept fixed; None: two tokens are alike if they are the same one. Not the model's own
            table while that is trained, which could make all tokens alike.
        write: (model, batch) -> [(written ids, wanted ids)], one pair a row, such as by generation; None: the likeliest token
            wherever the batch's labels are not -100, and those labels.
        shifts: without `write`: whether the logits at t are for the label at t + 1, as of a causal language model.
        weight: w, what it costs to move a token from one end of the text to the other, >= 0.

    Raises:
        ValueError: weight is negative; when called: there are no logits or no labels.

    Example:
        >>> import torch
        >>> labels = torch.tensor([[-100, 1, 2, 0]])
        >>> logits = torch.nn.functional.one_hot(torch.tensor([[1, 2, 0, 0]]), 3).float()  # right, one place earlier
        >>> round(TokenTransport()({"logits": logits}, {"labels": labels}, torch.nn.Identity()), 3)
        1.0
    """

    def __init__(
        self,
        embeddings: Tensor | None = None,
        write: Callable[[nn.Module, Mapping[str, Any]], Pairs] | None = None,
        *,
        shifts: bool = True,
        weight: float = 0.2,
    ) -> None:
        if not weight >= 0:
            raise ValueError(f"weight must be at least 0, got {weight}")
        self.embeddings = None if embeddings is None else F.normalize(embeddings.detach().clone().float(), dim=1)
        self.write, self.shifts, self.weight = write, shifts, weight

    def __call__(self, outputs: Any, batch: Mapping[str, Any], model: nn.Module) -> float:
        pairs = self._likeliest(outputs, batch) if self.write is None else self.write(model, batch)
        scores = [self.of_pair(written, wanted) for written, wanted in pairs if len(wanted)]
        return sum(scores) / max(len(scores), 1)

    def of_pair(self, written_m: Tensor, wanted_n: Tensor) -> float:
        """Of one text; 0 if nothing was written."""
        if not len(written_m):
            return 0.0
        if self.embeddings is None:
            similarity = (wanted_n[:, None] == written_m).double()
        else:
            table = self.embeddings.to(wanted_n.device)
            similarity = (table[wanted_n] @ table[written_m].T).double()
        return float(aligned(similarity, self.weight)[1].mean())

    def _likeliest(self, outputs: Any, batch: Mapping[str, Any]) -> Pairs:
        logits = outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", None)
        labels_BT = batch.get("labels")
        if not (
            isinstance(logits, Tensor) and isinstance(labels_BT, Tensor) and logits.dim() == labels_BT.dim() + 1 == 3
        ):
            raise ValueError(
                "ot-tokens needs `logits` (B, T, V) in the output and `labels` (B, T) in the batch, or write=; the batch has "
                f"{sorted(batch)}"
            )
        written_BT = logits.detach().argmax(-1)
        if self.shifts:
            written_BT, labels_BT = written_BT[:, :-1], labels_BT[:, 1:]
        counted = labels_BT != -100
        return [(w[c], y[c]) for w, y, c in zip(written_BT, labels_BT, counted, strict=True)]


def tokens(outputs: Any, batch: Mapping[str, Any], model: nn.Module) -> float:
    """ot-tokens: how well the likeliest tokens can be moved onto the labels, in [-0.2, 1] (after arXiv:2602.01624).

    What `TokenTransport()` gives for a causal language model; make one for embeddings, generation or other models.

    Args:
        outputs: with `logits`, (B, T, V); those at t are for the label at t + 1.
        batch: with `labels`, (B, T); -100 does not count.
        model: not used.

    Raises:
        ValueError: there are no logits or no labels.

    Example:
        >>> import torch
        >>> logits = torch.nn.functional.one_hot(torch.tensor([[1, 2, 0]]), 3).float()
        >>> round(tokens({"logits": logits}, {"labels": torch.tensor([[-100, 1, 2]])}, torch.nn.Identity()), 3)
        1.0
    """
    return TokenTransport()(outputs, batch, model)
