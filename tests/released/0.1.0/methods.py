"""SPSA: simultaneous perturbation stochastic approximation (Spall, 1992).

With parameters theta, step k, and Delta_k of independent signs, +1 or -1 with probability 1/2 each:

    g_k     = (L(theta + c_k Delta_k) - L(theta - c_k Delta_k)) / (2 c_k)      1 / Delta = Delta for signs
    theta  <- theta - a_k g_k Delta_k
    a_k     = lr of the trainer's optimizer at step k,   c_k = c / (k + 1)^gamma
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, final

import torch
from torch import Tensor

import localplug
from localplug import Estimating, Groups, Method, Projection, Run, noise

localplug_contract = "1.0"


@localplug.hookimpl
def localplug_methods() -> dict[str, Any]:
    return {"released-spsa": SPSA}


@final
class SPSA(Method):
    """Two evaluations a step, at theta + c_k Delta and theta - c_k Delta, and a step along Delta.

        g = (L(theta + c_k Delta) - L(theta - c_k Delta)) / (2 c_k),   theta <- theta - a_k g Delta

    a_k is the lr of the trainer's optimizer; for Spall's own a / (A + k + 1)^0.602 give the trainer that schedule. Its
    weight_decay is decoupled. An evaluation sees perturbed copies, and the weights themselves are not written.

    Args:
        c: half-width of the difference at the first step, in parameter units, > 0. About the standard deviation of the
            loss's own noise; small where the loss has none.
        gamma: how fast the half-width shrinks, in [0, 1). 0.101 is the smallest that Spall's theory allows, and the one
            he recommends; 0 keeps c.

    Raises:
        ValueError: an option is outside its range; lists all of them.

    Example:
        >>> import torch, localplug
        >>> model = torch.nn.Linear(4, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        >>> with localplug.attach(model, SPSA(c=1e-3), optimizer):
        ...     loss = model(torch.ones(8, 4)).square().mean()
        ...     loss.backward()
        ...     optimizer.step()

    Reference: Spall: Multivariate stochastic approximation using a simultaneous perturbation gradient approximation,
        IEEE Transactions on Automatic Control 37(3), 1992; gains as in Spall: Implementation of the simultaneous
        perturbation algorithm for stochastic optimization, IEEE Trans. Aerospace and Electronic Systems 34(3), 1998.
    """

    def __init__(self, c: float = 1e-3, gamma: float = 0.101) -> None:
        wrong = []
        if not c > 0:
            wrong.append(f"c must be positive, got {c!r}")
        if not 0 <= gamma < 1:
            wrong.append(f"gamma must be in [0, 1), got {gamma!r}")
        if wrong:
            raise ValueError("SPSA: " + "; ".join(wrong))
        self.c, self.gamma = float(c), float(gamma)

    @property
    def num_evaluations(self) -> int:
        return 2

    @property
    def num_coefficients(self) -> int:
        return 1

    def describe(self) -> str:
        return f"spsa, c {self.c:g} / (step + 1)^{self.gamma:g}"

    def problems(self, run: Run) -> list[str]:
        found = []
        if half := sorted({str(p.dtype) for _, p in run.parameters if p.element_size() < 4}):
            found.append(f"spsa steps would be lost in the rounding of {half}; load the model in float32")
        if run.num_workers_apart > 1:
            found.append("spsa draws one direction a step, the same on every worker; set worker_directions='same'")
        if any(type(p.data) is not torch.Tensor for _, p in run.parameters):
            found.append("spsa perturbs whole parameters, and these are sharded; replicate the model instead")
        return found

    def setup(self, run: Run) -> None:
        pass

    def estimate(self, run: Run) -> Estimating:
        c_k = self.c / (run.step + 1) ** self.gamma
        with _shifted(run, +c_k):
            plus = [leaf.detach().double() for leaf in (yield)]
        with _shifted(run, -c_k):
            minus = [leaf.detach().double() for leaf in (yield)]
        g = [(p - m) / (2 * c_k) for p, m in zip(plus, minus, strict=True)]
        return Projection([(p + m) / 2 for p, m in zip(plus, minus, strict=True)], [g])

    def update(self, run: Run, coefficients: Sequence[float], groups: Groups) -> None:
        (g,) = coefficients
        for name, theta in run.parameters:
            a_k, decay = groups[theta]["lr"], groups[theta].get("weight_decay", 0.0)
            theta.data.mul_(1 - a_k * decay).sub_(_delta(run, name, theta), alpha=a_k * g)

    def teardown(self) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {}  # Delta_k and c_k follow from the seed and the step

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def _delta(run: Run, name: str, theta: Tensor) -> Tensor:
    """Delta_k for one parameter: signs, made again wherever they are needed. Shaped like the parameter."""
    bits = noise.bits16(noise.stream(run.seed, run.step, 0, name), 0, theta.numel(), theta.device)
    return bits.lt(1 << 15).to(theta.dtype).mul_(2).sub_(1).view(theta.shape)


@contextlib.contextmanager
def _shifted(run: Run, by: float) -> Iterator[None]:
    """Lets the model see theta + by * Delta: copies take the place of the weights, which come back as they were."""
    own = [theta.data for _, theta in run.parameters]
    try:
        with torch.no_grad():
            for name, theta in run.parameters:
                theta.data = theta.data + by * _delta(run, name, theta)
        yield
    finally:
        for (_, theta), data in zip(run.parameters, own, strict=True):
            theta.data = data
