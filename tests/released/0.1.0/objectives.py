"""released-objective: the share of examples whose label is among the two highest logits (top-2 accuracy; Russakovsky, 2015)."""

from typing import Any

import localplug

localplug_contract = "1.0"


@localplug.hookimpl
def localplug_objectives() -> dict[str, Any]:
    return {"released-objective": top_two}


def top_two(outputs: Any, batch: Any) -> float:
    """The share of examples whose label is among their two highest logits.

    Args:
        outputs: of the model, by key, with `logits` (B, K).
        batch: with `labels` (B,).

    Example:
        >>> import torch
        >>> logits = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
        >>> top_two({"logits": logits}, {"labels": torch.tensor([1, 2])})
        0.5
    """
    logits_BK = outputs["logits"]
    labels_B = batch["labels"]
    found_B2 = logits_BK.topk(min(2, logits_BK.shape[-1]), dim=-1).indices
    return float((found_B2 == labels_B.unsqueeze(-1)).any(-1).float().mean())
