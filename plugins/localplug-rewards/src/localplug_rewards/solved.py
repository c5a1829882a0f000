"""The share of written programs that a solver finds right, as an objective of training (after arXiv:2407.09887,
2502.11102)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

from torch import nn

from localplug_rewards.verifying import Verifier, Wanted

_REMEMBERED = 20_000


@final
class SolverReward:
    """The mean reward of the programs that a model writes for a batch, in [0, 1], each verified by HiGHS.

    An objective for zeroth-order methods: no gradient leads through a solver. Texts that were judged before are
    remembered, since a small step along a direction changes few of them.

    Args:
        write: (model, batch) -> [(text, wanted)], a pair for each row; wanted as in `Verifier`.
        verifier: judges a text; None: Verifier() with credit (0.1, 0.3) for a program and one that has an optimum.

    Example:
        >>> import torch
        >>> reward = SolverReward(lambda model, batch: [("max x; x <= 2", 2.0), ("max x", 2.0)])
        >>> round(reward(torch.nn.Identity(), {}), 2)  # right; a program without an optimum
        0.55
    """

    def __init__(
        self,
        write: Callable[[nn.Module, Mapping[str, Any]], Sequence[tuple[str, Wanted]]],
        verifier: Verifier | None = None,
    ) -> None:
        self.write, self.verifier = write, Verifier(credit=(0.1, 0.3)) if verifier is None else verifier
        self._known: dict[tuple[str, Any], float] = {}

    def __call__(self, model: nn.Module, batch: Mapping[str, Any]) -> float:
        rewards = [self._judged(text, wanted) for text, wanted in self.write(model, batch)]
        return sum(rewards) / max(len(rewards), 1)

    def _judged(self, text: str, wanted: Wanted) -> float:
        key = text, tuple(wanted.items()) if isinstance(wanted, Mapping) else wanted
        if key not in self._known:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[key] = self.verifier(text, wanted).reward
        return self._known[key]
