"""Lion along an estimate g_t = (1/q) sum_j c_tj z_tj, its momentum made again from the last seeds and scalars.

    m_{t-1} = s (1 - beta2) sum_{k=1}^{K-1} beta2^(k-1) g_{t-k}
    theta   <- (1 - lr weight_decay) theta - lr sign(beta1 m_{t-1} + (1 - beta1) g_t)

K is the window. s = (1 - beta2^(t-1)) / (1 - beta2^(min(t, K)-1)) gives what is left of the momentum the weight that all of it
would have: it is 1 while the run is no longer than the window, and the update is then Lion itself.

Lion: Chen et al.: Symbolic Discovery of Optimization Algorithms, 2023, arXiv:2302.06675. Moments from seeds: Malladi et al.,
2023, arXiv:2305.17333, appendix B. Their combination, and s, are new here.
"""

from collections.abc import Sequence
from typing import Any, final

from torch import Tensor

from localplug import Directions, Groups, Run, Term, Update


@final
class SeedLion(Update):
    """theta <- (1 - lr weight_decay) theta - lr sign(beta1 m + (1 - beta1) g), m made again from a window of seeds.

    Its state are the q scalars of each step in the window: a checkpoint of some kilobytes, and no memory beside the weights.

    Args:
        betas: (beta1, beta2): the share of the momentum in a step, and its decay; each in [0, 1).
        window: steps that are looked back on, the one in work among them, >= 1. Each costs a sweep of noise.

    Raises:
        ValueError: one of them is out of range, or the selection of elements changes.

    Example:
        >>> import localplug
        >>> localplug.update("lion-seeds", window=8).describe()
        'Lion (0.9, 0.99) rebuilt from 8 steps'

    Reference: Chen et al., 2023, arXiv:2302.06675; Malladi et al., 2023, arXiv:2305.17333.
    """

    def __init__(self, betas: tuple[float, float] = (0.9, 0.99), window: int = 20) -> None:
        wrong = [] if all(0 <= b < 1 for b in betas) else [f"betas must be in [0, 1), got {betas!r}"]
        if not (isinstance(window, int) and window >= 1):
            wrong.append(f"window must be an integer of at least 1, got {window!r}")
        if wrong:
            raise ValueError("; ".join(wrong))
        self.betas, self.window = (float(betas[0]), float(betas[1])), window
        self._past: list[tuple[int, list[float]]] = []  # (step, its coefficients), newest first
        self._count = 0

    def describe(self) -> str:
        return f"Lion {self.betas} rebuilt from {self.window} steps"

    def problems(self, run: Run) -> list[str]:
        return []

    def setup(self, run: Run, directions: Directions) -> None:
        if directions.selection.changes and self.window > 1:
            raise ValueError(
                "the momentum is rebuilt from past directions, and a selection that follows the weights or the step would "
                f"change them ({directions.selection.describe()}); select by name or by a mask, or set window=1"
            )

    def apply(self, run: Run, directions: Directions, coefficients: Sequence[float], groups: Groups) -> None:
        self._past = [(run.step, list(coefficients)), *self._past][: self.window]
        self._count += 1
        terms = [
            Term(j, weight * c / len(cs), step)
            for weight, (step, cs) in zip(self._weights(), self._past, strict=True)
            for j, c in enumerate(cs)
        ]
        for index in directions.indices:
            parameter = run.parameters[index][1]
            group = groups[parameter]
            lr = float(group["lr"])
            decay = lr * float(group.get("weight_decay", 0.0))

            def rule(value: Tensor, offset: int, index: int = index, lr: float = lr, decay: float = decay) -> Tensor:
                u = directions.summed(index, terms, offset, value).sign_()
                return value.mul_(1 - decay).sub_(u, alpha=lr)

            directions.rewrite_(parameter.data, index, rule)

    def _weights(self) -> list[float]:
        """Of g_t, g_{t-1}, ... in the interpolation."""
        beta1, beta2 = self.betas
        kept = len(self._past) - 1
        if kept == 0:
            return [1.0 - beta1]
        s = (1 - beta2 ** (self._count - 1)) / (1 - beta2**kept)
        return [1 - beta1, *(beta1 * s * (1 - beta2) * beta2**k for k in range(kept))]

    def state_dict(self) -> dict[str, Any]:
        return {"past": [[step, *cs] for step, cs in self._past], "count": self._count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._past = [(int(step), [float(c) for c in cs]) for step, *cs in state.get("past", [])]
        self._count = int(state.get("count", len(self._past)))
