"""Gradient descent on values alone: antithetic random directions, and Adam on what they estimate.

    g = 1/q sum over j of (f(x + s z_j) - f(x - s z_j)) / 2s z_j,   z_j normal,   then clipped to a length and given to Adam

Spall, 1992; Salimans and others, arXiv:1703.03864; Adam: Kingma, Ba, arXiv:1412.6980. Letters: N points, Q pairs, D numbers.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor

from localplug_blackbox.box import Box
from localplug_blackbox.contract import Searcher
from localplug_blackbox.generation import Generation, generator

_TINY = 1e-8  # Adam's


@final
class ZerothOrderSearch(Searcher):
    """Descent by estimated gradients: pairs of points on both sides of the iterate, and Adam.

    The best point is the best that was evaluated, which is one of those on either side. The iterate itself is evaluated once,
    at the start. A pair with a value that is not finite is left out of its estimate; a step without any pair is left out.

    Args:
        box: where to look; bounds may be infinite, and points are moved inside.
        start: (D,); by default the middle of the box, or 0.
        sigma: s, > 0, in the units of x.
        num_directions: q, >= 1; a step costs 2 q evaluations.
        lr: Adam's rate, > 0, in the units of x.
        betas: Adam's two decay rates, each in [0, 1).
        clip: the longest gradient that Adam sees, > 0; None for any.
        seed: of the directions.

    Raises:
        ValueError: an option is outside its range; lists all of them.

    Reference: arXiv:1703.03864.

    Example:
        >>> from localplug_blackbox import Box, minimize
        >>> searcher = ZerothOrderSearch(Box.free(4), start=[1.0] * 4, lr=0.05)
        >>> minimize(lambda X: X.square().sum(1), searcher, 1600).value < 0.05
        True
    """

    def __init__(
        self,
        box: Box,
        start: Tensor | Sequence[float] | None = None,
        sigma: float = 0.1,
        num_directions: int = 8,
        lr: float = 0.1,
        betas: tuple[float, float] = (0.9, 0.9),
        clip: float | None = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__(box)
        wrong = []
        for name, value in (("sigma", sigma), ("lr", lr), *((("clip", clip),) if clip is not None else ())):
            if not 0 < value < math.inf:
                wrong.append(f"{name} must be positive and finite, got {value!r}")
        if not num_directions >= 1:
            wrong.append(f"num_directions must be at least 1, got {num_directions!r}")
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            wrong.append(f"betas must be two numbers in [0, 1), got {betas!r}")
        wrong += box.start_problems(start)
        if wrong:
            raise ValueError("; ".join(wrong))
        self._x_D = box.start(start)
        self.sigma, self.num_directions, self.lr, self.betas, self.clip = sigma, num_directions, lr, betas, clip
        self._m_D, self._v_D = torch.zeros_like(self._x_D), torch.zeros_like(self._x_D)
        self._num_steps = 0
        self._generator = generator(seed)
        self._now = Generation(self._x_D.unsqueeze(0))
        self._z_QD: Tensor | None = None

    @property
    def iterate(self) -> Tensor:
        """x, (D,)."""
        return self._x_D.clone()

    def _propose(self, num: int) -> Tensor:
        if self._now.complete:
            self._z_QD = torch.randn(self.num_directions, self.box.num, dtype=torch.float64, generator=self._generator)
            moves_QD = self.sigma * self._z_QD
            self._now = Generation(self.box.clip(self._x_D + torch.stack([moves_QD, -moves_QD], 1).flatten(0, 1)))
        return self._now.next(num)

    def _learn(self, X_ND: Tensor, y_N: Tensor) -> None:
        self._now.put(y_N)
        if self._z_QD is None or not self._now.complete:
            return
        plus_Q, minus_Q = self._now.y_N.view(-1, 2).unbind(1)
        slopes_Q = (plus_Q - minus_Q) / (2 * self.sigma)
        usable_Q = torch.isfinite(slopes_Q)
        if not bool(usable_Q.any()):
            return
        self._step(self._z_QD[usable_Q].mT @ slopes_Q[usable_Q] / int(usable_Q.sum()))

    def _step(self, g_D: Tensor) -> None:
        """Adam's."""
        if self.clip is not None:
            g_D = g_D * min(1.0, self.clip / max(float(g_D.norm()), 1e-300))
        self._num_steps += 1
        first, second = self.betas
        self._m_D = first * self._m_D + (1 - first) * g_D
        self._v_D = second * self._v_D + (1 - second) * g_D.square()
        m_D = self._m_D / (1 - first**self._num_steps)
        v_D = self._v_D / (1 - second**self._num_steps)
        self._x_D = self.box.clip(self._x_D - self.lr * m_D / (v_D.sqrt() + _TINY))

    def _know(self, X_ND: Tensor, y_N: Tensor) -> None:
        """Before the first step, the search starts from the best of them; later they change the record alone."""
        place = int(y_N.argmin())
        if self._num_steps == 0 and self._z_QD is None and math.isfinite(float(y_N[place])):
            self._x_D = X_ND[place].clone()
            self._now = Generation(self._x_D.unsqueeze(0))
            self._now.put(y_N[place : place + 1])

    def _state(self) -> dict[str, Any]:
        return {
            "x": self._x_D.clone(),
            "moments": [self._m_D.clone(), self._v_D.clone(), self._num_steps],
            "generator": self._generator.get_state(),
            "now": self._now.state(),
            "z": None if self._z_QD is None else self._z_QD.clone(),
        }

    def _restore(self, state: Mapping[str, Any]) -> None:
        self._x_D = state["x"].clone()
        self._m_D, self._v_D = (moment.clone() for moment in state["moments"][:2])
        self._num_steps = int(state["moments"][2])
        self._generator.set_state(state["generator"])
        self._now = Generation.restored(state["now"])
        self._z_QD = None if state["z"] is None else state["z"].clone()
