"""Optimization by directional attacks, 2025, arXiv:2510.01461: a direct search with a covering step, helped by attacks.

One iteration, at the best point x with value y:

    attack   x + d in the box of radius r round x. A gain of at least 1e-3 |y|: take it, r <- 1.3 r, next iteration. A
             smaller gain: take it, r <- 1.1 r. None: r <- r / 1.3.
    cover    one random point of the ball of radius r0 round x
    line     points of a random line through x, as far as r0 sqrt(1 + their number)
    poll     x + s d over directions that span the space positively, until the first gain: s <- 2 s. None: s <- s / 2

What is better than y is taken in every part. A poll without success at the smallest s ends the search, with a certificate.
This file minimises. Where the paper's attack is a gradient through a network, `attack="zeroth-order"` takes the objective's own
values at q pairs of random signs u, g = 1/q sum over u of (f(x + m u) - f(x - m u)) / 2m u, and d = -r sign(g). The released
search ends when r has become the smallest too; r plays no part in the certificate, and does not delay it here.

Letters: N points, D numbers, P directions.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, final

import torch
from torch import Tensor

from localplug_blackbox import polling
from localplug_blackbox.attacks import Attack
from localplug_blackbox.box import Box
from localplug_blackbox.contract import Searcher
from localplug_blackbox.generation import Generation, generator
from localplug_blackbox.polling import Certificate, Poll

_ORDER = ("probe", "attack", "cover", "line", "poll")
_ENOUGH = 1e-3  # a gain of this share of the value ends the iteration


@final
class DirectionalAttacks(Searcher):
    """Direct search with covering and attacks: for an objective without a gradient, with a certificate at the end.

    Args:
        box: where to look; bounds may be infinite.
        start: (D,), the first point; by default the middle of the box, or 0.
        attack: "zeroth-order": from values of the objective alone, 2 num_probes + 1 evaluations an iteration;
            None: direct search alone; or a callable(x, radius) -> step, such as `gradient_attack` makes.
        poll: "n+1" directions, or "2n".
        step: s at the start, > 0, in the units of x.
        smallest_step: the search ends when a poll of this step finds nothing better, in (0, step].
        attack_radius: r at the start, > 0, in the units of x; it never falls below smallest_step.
        covering_radius: r0, >= 0; at 0 there are no covering and no line steps.
        num_line: points on a random line each iteration, >= 0.
        num_probes: q, >= 1; by default a quarter of D, rounded up.
        probe_share: m / r, in (0, 1].
        seed: of all random choices.

    Attributes:
        certificate: of the last poll without success at the smallest step; None before.

    Raises:
        ValueError: an option is outside its range; lists all of them.

    Reference: arXiv:2510.01461.

    Example:
        >>> import torch
        >>> from localplug_blackbox import Box, minimize
        >>> searcher = DirectionalAttacks(Box.free(2), start=[2.0, -1.0], smallest_step=1e-4)
        >>> best = minimize(lambda X: (X - 1).abs().sum(1), searcher, 2000)
        >>> best.value < 1e-2, searcher.certificate.complete
        (True, True)
    """

    def __init__(
        self,
        box: Box,
        start: Tensor | Sequence[float] | None = None,
        attack: Attack | Literal["zeroth-order"] | None = "zeroth-order",
        poll: Poll = "n+1",
        step: float = 1.0,
        smallest_step: float = 1e-6,
        attack_radius: float = 0.1,
        covering_radius: float = 1.0,
        num_line: int = 1,
        num_probes: int | None = None,
        probe_share: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__(box)
        wrong = []
        if attack is not None and attack != "zeroth-order" and not callable(attack):
            wrong.append(f"attack must be 'zeroth-order', None or a callable(x, radius), got {attack!r}")
        if poll not in ("n+1", "2n"):
            wrong.append(f"poll must be 'n+1' or '2n', got {poll!r}")
        for name, value in (("step", step), ("attack_radius", attack_radius)):
            if not 0 < value < math.inf:
                wrong.append(f"{name} must be positive and finite, got {value!r}")
        if not 0 < smallest_step <= step:
            wrong.append(f"smallest_step must be in (0, step], got {smallest_step!r}")
        if not 0 <= covering_radius < math.inf:
            wrong.append(f"covering_radius must not be negative, and finite, got {covering_radius!r}")
        if not num_line >= 0:
            wrong.append(f"num_line must not be negative, got {num_line!r}")
        if num_probes is not None and not num_probes >= 1:
            wrong.append(f"num_probes must be at least 1, got {num_probes!r}")
        if not 0 < probe_share <= 1:
            wrong.append(f"probe_share must be in (0, 1], got {probe_share!r}")
        wrong += box.start_problems(start)
        if wrong:
            raise ValueError("; ".join(wrong))
        self._x_D = box.start(start)
        self.attack, self.poll, self.smallest_step = attack, poll, float(smallest_step)
        self.covering_radius, self.num_line = float(covering_radius), num_line
        self.num_probes = (box.num + 3) // 4 if num_probes is None else num_probes
        self.probe_share = probe_share
        self.certificate: Certificate | None = None
        self._y = math.inf
        self._step, self._radius = float(step), float(attack_radius)
        self._generator = generator(seed)
        self._stage = "start"
        self._now: Generation | None = None
        self._all_inside = True
        self._slope_D: Tensor | None = None

    @property
    def finished(self) -> str:
        """Why the search is over: a poll at the smallest step found nothing better; empty before."""
        if self.certificate is None:
            return ""
        return f"no point of a poll at the step {self.certificate.step:g} is better"

    @property
    def radii(self) -> tuple[float, float]:
        """(s of the poll, r of the attack), in the units of x."""
        return self._step, self._radius

    def _propose(self, num: int) -> Tensor:
        while self._now is None:
            X_ND = self._planned()
            if len(X_ND):
                self._now = Generation(X_ND)
            elif self._stage == "poll":
                self._poll_failed()
            else:
                self._advance()
        return self._now.next(num)

    def _planned(self) -> Tensor:
        """The points of this part of the iteration; (0, D) to leave it out."""
        none_0D = self._x_D.new_zeros(0, self.box.num)
        if self._stage == "start":
            return self._x_D.unsqueeze(0)
        if self._stage == "probe":
            if self.attack != "zeroth-order":
                return none_0D
            u_QD = torch.randint(2, (self.num_probes, self.box.num), generator=self._generator).double() * 2 - 1
            m_QD = self.probe_share * self._radius * u_QD
            return self.box.clip(self._x_D + torch.stack([m_QD, -m_QD], 1).flatten(0, 1))
        if self._stage == "attack":
            d_D = self._aimed()
            if d_D is not None and bool(torch.isfinite(d_D).all()):
                candidate_1D = self.box.clip(self._x_D + d_D).unsqueeze(0)
                if not torch.equal(candidate_1D[0], self._x_D):
                    return candidate_1D
            if self.attack is not None:
                self._shrink_radius()
            return none_0D
        if self._stage == "cover" and self.covering_radius:
            d_D = self._unit() * float(torch.rand(1, dtype=torch.float64, generator=self._generator)) ** (
                1 / self.box.num
            )
            return self.box.clip(self._x_D + self.covering_radius * d_D).unsqueeze(0)
        if self._stage == "line" and self.covering_radius and self.num_line:
            far = self.covering_radius * math.sqrt(1 + self.num_line)
            t_N1 = far * (2 * torch.rand(self.num_line, 1, dtype=torch.float64, generator=self._generator) - 1)
            return self.box.clip(self._x_D + t_N1 * self._unit())
        if self._stage == "poll":
            d_PD = polling.directions(self.box.num, self.poll, self._generator)
            X_PD = self._x_D + self._step * d_PD
            inside_P = self.box.contains(X_PD)
            self._all_inside = bool(inside_P.all())
            return X_PD[inside_P]
        return none_0D

    def _aimed(self) -> Tensor | None:
        """The step of the attack; None without one, or without a slope."""
        if self.attack == "zeroth-order":
            return None if self._slope_D is None else -self._radius * self._slope_D.sign()
        if callable(self.attack):
            d_D = torch.as_tensor(self.attack(self._x_D.clone(), self._radius), dtype=torch.float64).detach().cpu()
            if d_D.shape != self._x_D.shape:
                raise ValueError(f"attack must give a step of {self.box.num} numbers, got {tuple(d_D.shape)}")
            return d_D
        return None

    def _unit(self) -> Tensor:
        v_D = torch.randn(self.box.num, dtype=torch.float64, generator=self._generator)
        return v_D / v_D.norm()

    def _learn(self, X_ND: Tensor, y_N: Tensor) -> None:
        now = self._now
        assert now is not None
        now.put(y_N)
        before = self._y
        gained = self._take(X_ND, y_N)
        if self._stage == "poll" and gained:
            self._step *= 2
            self._advance()
        elif now.complete:
            after = {"probe": self._after_probe, "attack": self._after_attack, "poll": self._after_poll}
            after.get(self._stage, lambda now, before: self._advance())(now, before)

    def _take(self, X_ND: Tensor, y_N: Tensor) -> bool:
        """Move to the best of these points, if it is better."""
        place = int(y_N.argmin())
        if not float(y_N[place]) < self._y:
            return False
        self._x_D, self._y = X_ND[place].clone(), float(y_N[place])
        return True

    def _after_probe(self, now: Generation, before: float) -> None:
        plus_Q, minus_Q = now.y_N.view(-1, 2).unbind(1)
        plus_QD, minus_QD = now.X_ND.view(-1, 2, self.box.num).unbind(1)
        slope_D = ((plus_Q - minus_Q).unsqueeze(1) * (plus_QD - minus_QD)).sum(0)  # up to a factor; its signs are used
        self._slope_D = slope_D if bool(torch.isfinite(slope_D).all()) else None
        self._advance()

    def _after_attack(self, now: Generation, before: float) -> None:
        gain = before - self._y
        if gain > 0:
            enough = gain >= _ENOUGH * abs(before) if math.isfinite(before) else True
            self._radius *= 1.3 if enough else 1.1
            self._advance("probe" if enough else None)
        else:
            self._shrink_radius()
            self._advance()

    def _after_poll(self, now: Generation, before: float) -> None:
        self._poll_failed()

    def _poll_failed(self) -> None:
        if self._step <= self.smallest_step:
            kappa = polling.cosine_measure(self.box.num, self.poll)
            self.certificate = Certificate(self._step, kappa, self._all_inside and math.isfinite(self._y))
        self._step = max(self._step / 2, self.smallest_step)
        self._advance()

    def _shrink_radius(self) -> None:
        self._radius = max(self._radius / 1.3, self.smallest_step)

    def _advance(self, stage: str | None = None) -> None:
        """On to the next part of the iteration, or to the named one."""
        if stage is None:
            following = {"start": "probe", **dict(zip(_ORDER, (*_ORDER[1:], _ORDER[0]), strict=True))}
            stage = following[self._stage]
        self._stage, self._now = stage, None
        if stage == "probe":
            self._slope_D = None

    def _know(self, X_ND: Tensor, y_N: Tensor) -> None:
        if self._take(X_ND, y_N):  # what was begun round the old point is left
            self.certificate = None
            self._advance("probe")

    def _state(self) -> dict[str, Any]:
        certificate = self.certificate
        return {
            "x": self._x_D.clone(),
            "y": self._y,
            "radii": [self._step, self._radius],
            "generator": self._generator.get_state(),
            "stage": self._stage,
            "now": None if self._now is None else self._now.state(),
            "all_inside": self._all_inside,
            "slope": None if self._slope_D is None else self._slope_D.clone(),
            "certificate": None
            if certificate is None
            else [certificate.step, certificate.cosine_measure, certificate.complete],
        }

    def _restore(self, state: Mapping[str, Any]) -> None:
        self._x_D, self._y = state["x"].clone(), float(state["y"])
        self._step, self._radius = state["radii"]
        self._generator.set_state(state["generator"])
        self._stage = state["stage"]
        self._now = None if state["now"] is None else Generation.restored(state["now"])
        self._all_inside = bool(state["all_inside"])
        self._slope_D = None if state["slope"] is None else state["slope"].clone()
        certificate = state["certificate"]
        self.certificate = None if certificate is None else Certificate(*certificate)
