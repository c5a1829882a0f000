"""How close what a generator makes is to a set of examples, as a whole: the negative of a transport cost.

A reward of single samples can be had by one good sample again and again; this one cannot, since every example wants its share.
Uses localplug_rewards.transport. The idea, optimal transport between what is generated and what is real as a reward: PISCES,
arXiv:2602.01624.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, final

from torch import Tensor

from localplug_rewards import transport

COSTS: dict[str, Callable[[Tensor, Tensor], float]] = {
    "exact": transport.exact,
    "sliced": transport.sliced,
    "gaussian": transport.gaussian,
}


@final
class SampleTransport:
    """-W2^2 between a batch of samples and examples, at most 0 (the reward of a distribution, after
    arXiv:2602.01624).

    Args:
        examples: (M, D), what samples should be like; None: the batch's `targets`.
        cost: "exact" (plans of POT), "sliced" (64 fixed lines, for many samples) or "gaussian" (means and covariances alone).
        samples: the name of the model's output that has the samples, (N, ...); all but the first dimension become D.

    Raises:
        ValueError: there is no such cost; when called: samples or examples are missing or do not fit.

    Example:
        >>> import torch
        >>> reward = SampleTransport(torch.tensor([[0.0, 0.0], [2.0, 0.0]]))
        >>> reward({"samples": torch.tensor([[2.0, 1.0], [0.0, 1.0]])}, {})
        -1.0
    """

    def __init__(
        self,
        examples: Tensor | None = None,
        cost: Literal["exact", "sliced", "gaussian"] = "exact",
        samples: str = "samples",
    ) -> None:
        if cost not in COSTS:
            raise ValueError(f"cost must be one of {', '.join(COSTS)}, got {cost!r}")
        self.examples, self.cost, self.samples = examples, cost, samples

    def __call__(self, outputs: Any, batch: Mapping[str, Any]) -> float:
        given = outputs.get(self.samples) if isinstance(outputs, Mapping) else getattr(outputs, self.samples, None)
        examples = batch.get("targets") if self.examples is None else self.examples
        if not isinstance(given, Tensor) or not isinstance(examples, Tensor):
            raise ValueError(
                f"ot-samples needs {self.samples!r} in the model's output, and examples=, or `targets` in the batch, which has "
                f"{sorted(batch)}"
            )
        x_ND, y_MD = given.detach().flatten(1), examples.detach().to(given.device).flatten(1)
        if x_ND.shape[1] != y_MD.shape[1]:
            raise ValueError(f"samples have {x_ND.shape[1]} numbers each, examples {y_MD.shape[1]}")
        if not bool(x_ND.isfinite().all()):
            return float("-inf")
        return -COSTS[self.cost](x_ND, y_MD)


def samples(outputs: Any, batch: Mapping[str, Any]) -> float:
    """ot-samples: -W2^2 between the model's `samples` and the batch's `targets`, by exact plans (after arXiv:2602.01624).

    What `SampleTransport()` gives; make one for fixed examples or another cost.

    Args:
        outputs: with `samples`, (N, ...).
        batch: with `targets`, (M, ...).

    Raises:
        ValueError: samples or targets are missing or do not fit.

    Example:
        >>> import torch
        >>> samples({"samples": torch.tensor([[0.0], [3.0]])}, {"targets": torch.tensor([[3.0], [1.0]])})
        -0.5
    """
    return SampleTransport()(outputs, batch)
