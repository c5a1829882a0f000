"""ROOT: from bad points to good ones by a bridge that is learnt on functions that fit the data. 2025, arXiv:2509.16300.

For an objective of which only past values are known. In each round Gaussian processes of different lengths and variances are
put through the data; on the mean of each, points go down and up by gradient steps. Their ends are pairs of a worse point x_w
with value y_w and a better one x_b with value y_b, on a function that is known everywhere. A Brownian bridge

    x_t = (1 - m_t) x_b + m_t x_w + sigma_t e,   m_t = t / T,   sigma_t^2 = 2 (m_t - m_t^2),   e normal

goes from the better point at t = 0 to the worse one at T; a network learns the way back, m_t (x_w - x_b) + sigma_t e,
from (x_t, t, y_b, y_w) in the mean absolute error. For new points the bridge is run backwards from the best known ones, with a
wanted value y_b below all that are known. Guidance w mixes in the network's answer without values: (1 + w) with - w without.

The released code gives its sampler the two values in the other order than its training, and w = -1.5; here the order is
the same in both, and w is an option whose sign matters. The network is a small one of this searcher's own, and is
trained by backpropagation. This file minimises. Letters: N points, D numbers, B pairs of a batch, P pairs, T steps.
"""

import itertools
import math
from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

from localplug_blackbox.box import Box
from localplug_blackbox.contract import Searcher
from localplug_blackbox.gaussian_process import GaussianProcess, fitted
from localplug_blackbox.generation import generator
from localplug_blackbox.past_values import PastValues, spread

_MIN_GAP = 1e-3  # of a pair, in deviations of the values
_NUM_TIMES = 1000
_BATCH = 256


@final
class ROOT(Searcher):
    """The next points from past values alone, by a learnt bridge from worse to better points.

    Each `ask` learns anew from all that is known, and its points are ordered by a Gaussian process's mean; `MeanDescent` is the
    plain alternative, and was far better where we measured both.

    Args:
        box: where to look; every bound finite.
        wanted: how far below the best known value y_b is set, >= 0, in deviations of the values.
        guidance: w, the weight of the answer with values over the one without, finite; its useful sign depends
            on the data, and the default is that of the released code.
        num_rounds: of new functions and pairs, >= 1.
        num_functions: in a round, >= 1.
        num_updates: of the network in a round, >= 1.
        num_starts: of the best known points, from which pairs start and the bridge runs back, >= 1.
        num_gradient_steps: of a start each way, >= 1.
        gradient_lr: their rate, > 0, on the mean over the box scaled to [0, 1].
        width: of the network's three layers, >= 1.
        lr: Adam's rate for the network, > 0.
        num_sampling_steps: of the bridge run backwards, >= 1.
        seed: of functions, network and bridge.

    Raises:
        ValueError: an option is outside its range; lists all of them. `ask` raises it while fewer than two finite values are
            known, or when all pairs are equal.

    Reference: arXiv:2509.16300.

    Example:
        >>> import torch
        >>> from localplug_blackbox import Box
        >>> X = torch.rand(30, 2, generator=torch.Generator().manual_seed(0)).double()
        >>> searcher = ROOT(Box([0, 0], [1, 1]), num_rounds=2, width=16)
        >>> searcher.fit(X, (X - 0.5).square().sum(1))
        >>> searcher.ask(3).shape
        torch.Size([3, 2])
    """

    def __init__(
        self,
        box: Box,
        wanted: float = 0.5,
        guidance: float = -1.5,
        num_rounds: int = 30,
        num_functions: int = 4,
        num_updates: int = 40,
        num_starts: int = 128,
        num_gradient_steps: int = 50,
        gradient_lr: float = 0.01,
        width: int = 128,
        lr: float = 1e-3,
        num_sampling_steps: int = 100,
        seed: int = 0,
    ) -> None:
        super().__init__(box)
        wrong = [] if box.bounded else ["box must have finite bounds"]
        counts = dict(
            num_rounds=num_rounds,
            num_functions=num_functions,
            num_updates=num_updates,
            num_starts=num_starts,
            num_gradient_steps=num_gradient_steps,
            width=width,
            num_sampling_steps=num_sampling_steps,
        )
        wrong += [f"{name} must be at least 1, got {count!r}" for name, count in counts.items() if not count >= 1]
        for name, value in (("gradient_lr", gradient_lr), ("lr", lr)):
            if not 0 < value < math.inf:
                wrong.append(f"{name} must be positive and finite, got {value!r}")
        if not 0 <= wanted < math.inf:
            wrong.append(f"wanted must not be negative, and finite, got {wanted!r}")
        if not math.isfinite(guidance):
            wrong.append(f"guidance must be finite, got {guidance!r}")
        if wrong:
            raise ValueError("; ".join(wrong))
        self.wanted, self.guidance, self.num_rounds, self.num_functions = wanted, guidance, num_rounds, num_functions
        self.num_updates = num_updates
        self.num_starts, self.num_gradient_steps, self.gradient_lr = num_starts, num_gradient_steps, gradient_lr
        self.width, self.lr, self.num_sampling_steps = width, lr, num_sampling_steps
        self._past = PastValues(box)
        self._generator = generator(seed)

    def _propose(self, num: int) -> Tensor:
        if len(self._past) < 2:
            raise ValueError(f"give `fit` at least two finite values first; {len(self._past)} are known")
        U_ND, y_N = self._past.unit(), self._past.standard()
        process = fitted(U_ND, y_N)
        network = self._learnt(process, U_ND, y_N)
        order_N = y_N.argsort()[: max(self.num_starts, num)]
        found_ND = self._back(network, U_ND[order_N], y_N[order_N], float(y_N.min()) - self.wanted)
        chosen_ND = spread(found_ND, process.mean(found_ND), min(num, len(found_ND)), 0.02 * math.sqrt(self.box.num))
        return self.box.from_unit(chosen_ND)

    def _pairs(self, process: GaussianProcess, U_ND: Tensor, y_N: Tensor) -> tuple[Tensor, ...]:
        """(better points, worse points, their values) of one function through the data. (P, D), (P, D), (P,), (P,)."""
        low, high = 0.75, 1.25
        factors = low + (high - low) * torch.rand(2, generator=self._generator, dtype=torch.float64)
        function = GaussianProcess(U_ND, y_N, process.length * float(factors[0]), float(factors[1]), process.noise)
        start_PD = U_ND[y_N.argsort()[: self.num_starts]]
        ends = []
        for direction in (-1, 1):
            Z_PD = start_PD
            for _ in range(self.num_gradient_steps):
                Z_PD = (Z_PD + direction * self.gradient_lr * function.slope(Z_PD)).clamp(0, 1)
            ends.append(Z_PD)
        better_P, worse_P = function.mean(ends[0]), function.mean(ends[1])
        kept_P = worse_P - better_P > _MIN_GAP
        return ends[0][kept_P], ends[1][kept_P], better_P[kept_P], worse_P[kept_P]

    @torch.enable_grad()
    def _learnt(self, process: GaussianProcess, U_ND: Tensor, y_N: Tensor) -> nn.Module:
        num, layers = self.box.num, []
        for wide_in, wide_out in ((num + 4, self.width), (self.width, self.width), (self.width, self.width)):
            layers += [_linear(wide_in, wide_out, self._generator), nn.SiLU()]
        network = nn.Sequential(*layers, _linear(self.width, num, self._generator))
        optimizer = torch.optim.Adam(network.parameters(), lr=self.lr)
        learnt = False
        for _ in range(self.num_rounds):
            found = [self._pairs(process, U_ND, y_N) for _ in range(self.num_functions)]
            parts = [torch.cat(part).float() for part in zip(*found, strict=True)]
            for _ in range(self.num_updates if len(parts[0]) else 0):
                learnt = True
                rows_B = torch.randint(len(parts[0]), (_BATCH,), generator=self._generator)
                loss = self._loss(network, *(part[rows_B] for part in parts))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        if not learnt:
            raise ValueError("the known values are too alike: no pair of points differs on a function through them")
        return network.requires_grad_(False)

    def _loss(self, network: nn.Module, better_BD: Tensor, worse_BD: Tensor, yb_B: Tensor, yw_B: Tensor) -> Tensor:
        m_B1 = (torch.rand(len(yb_B), 1, generator=self._generator) * 0.998 + 0.001).mul(
            _NUM_TIMES
        ).round() / _NUM_TIMES
        e_BD = torch.randn(better_BD.shape, generator=self._generator)
        sigma_B1 = (2 * (m_B1 - m_B1.square())).clamp_min(0).sqrt()
        way_BD = m_B1 * (worse_BD - better_BD) + sigma_B1 * e_BD
        kept_B = (torch.rand(len(yb_B), generator=self._generator) > 0.15).float()
        return (network(_inputs(better_BD + way_BD, m_B1, yb_B, yw_B, kept_B)) - way_BD).abs().mean()

    @torch.no_grad()
    def _back(self, network: nn.Module, start_ND: Tensor, worse_N: Tensor, wanted: float) -> Tensor:
        """The bridge from the known points at t = T to better ones at t = 0, by half-random steps as in DDIM with eta = 0.2."""
        x_ND, yw_N = start_ND.float(), worse_N.float()
        yb_N, one_N = torch.full_like(yw_N, wanted), torch.ones_like(yw_N)
        times = torch.linspace(0.999, 0.001, self.num_sampling_steps + 1).tolist()
        variance = lambda m: 2 * (m - m * m)  # noqa: E731
        for m, following in itertools.pairwise(times):
            m_N1 = x_ND.new_full((len(x_ND), 1), m)
            with_ND = network(_inputs(x_ND, m_N1, yb_N, yw_N, one_N))
            without_ND = network(_inputs(x_ND, m_N1, yb_N, yw_N, 0 * one_N))
            found_ND = (x_ND - ((1 + self.guidance) * with_ND - self.guidance * without_ND)).clamp(-0.5, 1.5)
            noise_ND = (x_ND - (1 - m) * found_ND - m * start_ND.float()) / math.sqrt(variance(m))
            fresh = (
                0.2
                * math.sqrt(variance(following))
                * math.sqrt(max(0.0, 1 - variance(following) / max(variance(m), 1e-9)))
            )
            kept = math.sqrt(max(variance(following) - fresh**2, 0.0))
            x_ND = (1 - following) * found_ND + following * start_ND.float() + kept * noise_ND
            x_ND = x_ND + fresh * torch.randn(x_ND.shape, generator=self._generator)
        return x_ND.double().clamp(0, 1)

    def _learn(self, X_ND: Tensor, y_N: Tensor) -> None:
        self._past.add(X_ND, y_N)

    _know = _learn

    def _state(self) -> dict[str, Any]:
        return {"past": self._past.state(), "generator": self._generator.get_state()}

    def _restore(self, state: Mapping[str, Any]) -> None:
        self._past.restore(state["past"])
        self._generator.set_state(state["generator"])


def _inputs(x_BD: Tensor, m_B1: Tensor, yb_B: Tensor, yw_B: Tensor, kept_B: Tensor) -> Tensor:
    """(x, t, y_b, y_w, whether the values are given)."""
    return torch.cat([x_BD, m_B1, (kept_B * yb_B).unsqueeze(1), (kept_B * yw_B).unsqueeze(1), kept_B.unsqueeze(1)], 1)


def _linear(wide_in: int, wide_out: int, random: torch.Generator) -> nn.Linear:
    """torch's initialisation, from a generator of one's own."""
    layer = nn.utils.skip_init(nn.Linear, wide_in, wide_out)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.uniform_(-1 / math.sqrt(wide_in), 1 / math.sqrt(wide_in), generator=random)
    return layer
