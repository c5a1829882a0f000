"""Forward gradient: the directional derivative itself, by forward-mode differentiation (Baydin et al., arXiv:2202.08587).

    c_j = <grad L(theta), z_j>,  exact, without eps

q forward passes that carry a tangent beside each value, at about twice the time and the activation memory of a plain one; no
graph is kept. Weights and tangents live in dual numbers made for one module at a time, so that z is never stored as a whole.

Attention kernels mostly have no forward-mode rule. "exact" computes attention by plain matrix products; "kernel" runs
torch's scaled_dot_product_attention as it is, and gets its tangent from a central difference of that one operation.
"""

import contextlib
import functools
from collections.abc import Sequence
from typing import Any, Literal, final

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from localplug import Estimating, Estimator, Perturbation, Projection, Run, read
from localplug.substitution import substituted
from localplug_zo.two_sided import spsa_variance


@final
class ForwardGradient(Estimator):
    """c_j = <grad L, z_j> by a Jacobian-vector product, one tangent-carrying forward pass a direction.

    Args:
        num_directions: q >= 1.
        attention: "exact" or "kernel"; see the head of this file.

    Raises:
        ValueError: one of them is out of range.

    Example:
        >>> import localplug
        >>> localplug.estimator("forward-gradient", num_directions=4).describe()
        'forward gradient, 4 direction(s), attention by exact'
    """

    num_fields = 1
    needs_derivative = True

    def __init__(self, num_directions: int = 1, attention: Literal["exact", "kernel"] = "exact") -> None:
        if not (isinstance(num_directions, int) and num_directions >= 1) or attention not in ("exact", "kernel"):
            raise ValueError(
                f'num_directions must be an integer of at least 1 and attention "exact" or "kernel", got '
                f"{num_directions!r} and {attention!r}"
            )
        self.num_directions, self.attention = num_directions, attention

    @property
    def num_evaluations(self) -> int:
        return self.num_directions

    def describe(self) -> str:
        return f"forward gradient, {self.num_directions} direction(s), attention by {self.attention}"

    def problems(self, run: Run) -> list[str]:
        if run.is_compiled:
            return ["forward-mode differentiation goes through the model's modules one by one; leave torch.compile out"]
        return []

    def estimate(self, run: Run, perturbed: Perturbation) -> Estimating:
        values: list[list[Tensor]] = []
        slopes: list[list[Tensor]] = []
        for j in range(self.num_directions):
            with forward_ad.dual_level(), _duals(run, perturbed, j), _attention(self.attention):
                pairs = [forward_ad.unpack_dual(leaf) for leaf in (yield)]
                values.append(read([p.primal for p in pairs]))
                slopes.append(read([torch.zeros_like(p.primal) if p.tangent is None else p.tangent for p in pairs]))
        means = [torch.stack(leaf).mean(0) for leaf in zip(*values, strict=True)]
        return Projection(means, slopes)

    def coefficients(self, run: Run, raw: Sequence[float]) -> list[float]:
        return list(raw)

    def variance(self, coefficients: Sequence[float], kappa: float) -> float:
        return spsa_variance(coefficients, kappa)


def _duals(run: Run, perturbed: Perturbation, direction: int) -> contextlib.AbstractContextManager[Any]:
    """While this is open, the model reads dual numbers w + d z in the place of its parameters."""
    directions, number = perturbed.directions, direction + run.first_direction

    def dual(index: int) -> Tensor:
        parameter = run.parameters[index][1].detach()
        return forward_ad.make_dual(parameter, directions.values(index, number).to(parameter.dtype))

    make = {run.parameters[i][1]: functools.partial(dual, i) for i in directions.reached(number)}
    return substituted(run.model, make)


def _attention(how: str) -> contextlib.AbstractContextManager[Any]:
    return _KernelTangent() if how == "kernel" else sdpa_kernel(SDPBackend.MATH)


class _KernelTangent(TorchFunctionMode):
    """Runs scaled_dot_product_attention on plain numbers, and takes its tangent from a central difference."""

    WIDTH = 1e-2  # of the difference, relative to the size of the inputs over that of their tangents

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is not nn.functional.scaled_dot_product_attention:
            return function(*args, **kwargs)
        names = ("query", "key", "value")
        rest = {k: v for k, v in kwargs.items() if k not in names}
        if rest.get("dropout_p", args[4] if len(args) > 4 else 0.0):  # the kernel would drop others on each side
            with sdpa_kernel(SDPBackend.MATH):
                return function(*args, **kwargs)
        inputs = [*args[:3], *(kwargs[n] for n in names[len(args[:3]) :])]
        pairs = [forward_ad.unpack_dual(x) for x in inputs]
        if all(p.tangent is None for p in pairs):
            return function(*args, **kwargs)
        primals = [p.primal for p in pairs]
        tangents = [torch.zeros_like(p.primal) if p.tangent is None else p.tangent for p in pairs]
        size = torch.stack([p.float().norm() for p in primals]).norm()
        speed = torch.stack([t.float().norm() for t in tangents]).norm()
        h = float(self.WIDTH * size / speed) if float(speed) else 1.0
        y = function(*primals, *args[3:], **rest)
        plus, minus = (
            function(*(p + sign * t for p, t in zip(primals, tangents, strict=True)), *args[3:], **rest)
            for sign in (h, -h)
        )
        return forward_ad.make_dual(y, (plus - minus) / (2 * h))
