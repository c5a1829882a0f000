"""Signs that flip: zeroth-order training of a packed model's codes, with an error that is fed back. After Quantized Evolution
Strategies, arXiv:2602.03120, on the lattice {-1, 0, 1}.

Letters: t in {-1, 0, 1} the codes of one layer, s its scales, z in {-1, 1} a random direction, c its slope, r the residual of
each code, an integer in [-128, 127] that stands for r / 256 of a step from one code to the next. Steps alternate. An even one,
of q directions z', is MeZO's on scales and biases, an odd one trains the codes:

    c_j = (L(s + scale_eps z'_j) - L(s - scale_eps z'_j)) / (2 scale_eps),   s <- s - lr (1/q) sum_j c_j z'_j

    c_j = (L(s (t + eps z_j)) - L(s (t - eps z_j))) / (2 eps)                          nothing is rounded here
    v   = 256 t + r - [256 rate lr / (mean s^2) (1/q) sum_j c_j z_j]                   [.] rounds up or down, to keep the mean
    t, r <- v, cut to [-384, 383], as 256 t + r                                        a code moves where |r| would pass a half

c_j z_j estimates dL/dt = s dL/dw of the weights w = s t, and dt = dw / s: with rate 1 the weights move by lr dL/dw, as SGD
would move them, s^2 being the mean over the layer. The steps alternate since the many codes would drown the few scales in the
noise of a common estimate.

The residual is one byte a weight, beside the two bits of a code: less than the 16 or 32 bits of latent weights, and no
gradient. It is state of the method, so that a run resumes exactly; z and the rounding are noise(seed, step, name, element).
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, final

import torch
from torch import Tensor

from localplug import Directions, Estimating, Groups, Method, Perturbation, Projection, Run, noise, read, sgd_update
from localplug_ternary.packed import PackedTernaryLinear, pack, unpack

STEP = 256  # parts of the way from one code to the next
LOW, HIGH = -STEP - STEP // 2, STEP + STEP // 2 - 1


@final
class TernarySigns(Method):
    """Codes of packed layers move through {-1, 0, 1}, by 2 q forward passes a step.

        c_j = (L(t + eps z_j) - L(t - eps z_j)) / (2 eps)
        v = 256 t + r - [256 rate lr / (mean s^2) (1/q) sum_j c_j z_j],   t, r <- v

    For a packed model whose scales train (`train_scales_`): every second step trains them and the biases. Extra memory: 1 byte
    for each packed weight, which its checkpoints hold as well, and one layer's unpacked weights at a time. Weight decay acts on
    scales and biases alone. A bfloat16 model rounds the perturbed weights, and so the directions, to 8 bits.

    Args:
        eps: half-width of the finite difference for codes, in steps from one code to the next, > 0.
        scale_eps: that for scales and biases, in their own units, > 0.
        rate: learning rate of the weights by that of the trainer, which scales and biases take, > 0. Weights are many more,
            and diverge at learning rates that suit scales.
        num_directions: q, >= 1. Their estimates are averaged.

    Raises:
        ValueError: an option is outside its range; lists all of them.

    Example:
        >>> import torch, localplug
        >>> from localplug_ternary import TernaryConfig, ternarize_, train_scales_
        >>> net = torch.nn.Sequential(torch.nn.Linear(64, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> net = train_scales_(ternarize_(net, TernaryConfig(group_size=None, packed=True)))
        >>> optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=1e-3)
        >>> engine = localplug.Engine(net, TernarySigns(), optimizer, seed=0)
        >>> loss = engine.step(lambda: net(torch.ones(4, 64)).square().mean(), optimizer)

    Reference: Quantized Evolution Strategies, arXiv:2602.03120 (integers of 4 and 8 bits, and a residual as here).
    """

    def __init__(self, eps: float = 0.05, scale_eps: float = 1e-3, rate: float = 0.1, num_directions: int = 1) -> None:
        wrong = [
            f"{name} must be positive and finite, got {value!r}"
            for name, value in (("eps", eps), ("scale_eps", scale_eps), ("rate", rate))
            if not 0 < value < float("inf")
        ]
        if not (isinstance(num_directions, int) and num_directions >= 1):
            wrong.append(f"num_directions must be an integer of at least 1, got {num_directions!r}")
        if wrong:
            raise ValueError("TernarySigns: " + "; ".join(wrong))
        self.eps, self.scale_eps, self.rate, self._q = float(eps), float(scale_eps), float(rate), num_directions
        self._layers: dict[str, PackedTernaryLinear] = {}
        self._residual: dict[str, Tensor] = {}
        self.num_moved = 0
        """Codes that the last step moved."""

    @property
    def num_evaluations(self) -> int:
        return 2 * self._q

    @property
    def num_coefficients(self) -> int:
        return self._q

    def describe(self) -> str:
        return (
            f"ternary-signs, eps {self.eps:g} of a code and {self.scale_eps:g} of scales and biases, {self._q} direction(s), "
            f"weights at {self.rate:g} times the learning rate, with a residual of 1 byte a weight"
        )

    def problems(self, run: Run) -> list[str]:
        packed = [m for m in run.model.modules() if isinstance(m, PackedTernaryLinear)]
        if not packed:
            return ["the model has no packed layer, whose codes it would train; freeze_ or ternarize_ make them"]
        if not any(m.trains_scales for m in packed):
            return ["no packed layer's scales train; say train_scales_(model) before the optimizer is made"]
        if run.is_compiled:
            return [
                "codes are perturbed inside the layers, which a compiled model would not see; leave torch.compile out"
            ]
        return []

    def setup(self, run: Run) -> None:
        self._directions = Directions(run)
        self._perturbed = Perturbation(run, self._directions)
        names = {id(p): name.removesuffix("scales") + "codes" for name, p in run.parameters}
        self._layers = {
            names[id(m.scales)]: m
            for m in run.model.modules()
            if isinstance(m, PackedTernaryLinear) and id(m.scales) in names
        }
        for name, layer in self._layers.items():
            size = (layer.out_features, layer.in_features)
            if name not in self._residual or self._residual[name].shape != size:
                self._residual[name] = torch.zeros(size, dtype=torch.int8, device=layer.codes.device)

    def estimate(self, run: Run) -> Estimating:
        values: list[list[Tensor]] = []
        eps = self.eps if _trains_codes(run) else self.scale_eps
        for j in range(self._q):
            for sign in (+1, -1):
                moved = self._shifted(run, j, sign) if _trains_codes(run) else self._perturbed(j, sign * eps)
                with moved:
                    values.append(read((yield)))
        pairs = list(zip(values[::2], values[1::2], strict=True))
        slopes = [[(p - m) / (2 * eps) for p, m in zip(plus, minus, strict=True)] for plus, minus in pairs]
        return Projection([torch.stack(leaves).mean(0) for leaves in zip(*values, strict=True)], slopes)

    @contextlib.contextmanager
    def _shifted(self, run: Run, j: int, sign: int) -> Iterator[None]:
        """Evaluate with the codes at t + sign eps z_j, j being this worker's direction."""
        for name, layer in self._layers.items():
            key = noise.stream(run.seed, run.step, run.first_direction + j, name)
            layer.code_shift = lambda t_NK, key=key: noise.add_signs_(t_NK, key, 0, sign * self.eps)
        try:
            yield
        finally:
            for layer in self._layers.values():
                layer.code_shift = None

    @torch.no_grad()
    def update(self, run: Run, coefficients: Sequence[float], groups: Groups) -> None:
        self.num_moved = 0
        if not _trains_codes(run):
            sgd_update(run, self._directions, coefficients, groups)
            return
        for name, layer in self._layers.items():
            step = self.rate * float(groups[layer.scales]["lr"]) / float(layer.scales.square().mean().clamp_min(1e-30))
            self.num_moved += self._move(run, name, coefficients, step)

    def _move(self, run: Run, name: str, coefficients: Sequence[float], step: float) -> int:
        """One layer's codes and residuals, a few rows at a time. Returns how many codes moved.

        Args:
            step: rate lr / (mean s^2).
        """
        layer, r_NK = self._layers[name], self._residual[name]
        device, K, num_moved = layer.codes.device, layer.in_features, 0
        keys = [noise.stream(run.seed, run.step, j, name) for j in range(len(coefficients))]
        dice = noise.stream(run.seed, run.step, -1, name)
        rows = max(noise.chunk_size(device) // K, 1)
        for start in range(0, layer.out_features, rows):
            some = slice(start, min(start + rows, layer.out_features))
            t_nK, r_nK = unpack(layer.codes[some]), r_NK[some]
            step_nK = torch.zeros(t_nK.shape, dtype=torch.float32, device=device)
            for key, c in zip(keys, coefficients, strict=True):
                noise.add_signs_(step_nK, key, start * K, -STEP * step * c / len(coefficients))
            u_nK = noise.uniform(dice, start * K, step_nK.numel(), device).view(step_nK.shape)
            step_nK = step_nK.add_(u_nK).floor_().clamp_(-4 * STEP, 4 * STEP)
            v_nK = (STEP * t_nK.short() + r_nK + step_nK.short()).clamp_(LOW, HIGH)
            moved_nK = (v_nK + STEP // 2).div(STEP, rounding_mode="floor")
            layer.codes[some] = pack(moved_nK)
            r_nK.copy_(v_nK - STEP * moved_nK)
            num_moved += int((moved_nK != t_nK).sum())
        return num_moved

    def teardown(self) -> None:
        self._layers = {}

    def state_dict(self) -> dict[str, Any]:
        return {"residual": {name: r_NK.clone() for name, r_NK in self._residual.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, r_NK in state.get("residual", {}).items():
            device = self._layers[name].codes.device if name in self._layers else r_NK.device
            self._residual[name] = r_NK.to(device).clone()


def _trains_codes(run: Run) -> bool:
    return run.step % 2 == 1
