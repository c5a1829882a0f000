"""Rules for sums.

z = a + b          two activations: by abs(a) : abs(b), or by a : b; see Rules
                   an activation and a parameter (a bias, learned positions): R_x = x R/z, R_b = b R/z
                   with a constant (a mask): all of it to the other
z = sum_i c_i x_i  R_i = c_i x_i R/z, c_i fixed (sums, means, average pooling, interpolation)
"""

from typing import Any

import torch
from torch import Tensor

from localplug_credit.rules import TABLE, Rule, Rules, read, role, unbroadcast, whole
from localplug_credit.tape import Step, Value


def _adds(step: Step, R: list[Tensor | None], rules: Rules) -> dict[int, Any]:
    (a, b, *_), kwargs = step.arguments
    r = whole(R, step)
    if not (isinstance(a, Value) and isinstance(b, Value)):
        place = 0 if isinstance(a, Value) else 1
        one = a if place == 0 else b
        return {place: unbroadcast(r, one.shape)}
    if a is b:
        return {0: r}
    factor = kwargs.get("alpha", 1) * (-1 if step.name == "sub" else 1)
    x, y = read(a), read(b) * factor
    if rules.sums == "absolute" and role(a) == role(b):
        x, y = x.abs(), y.abs()
    s = rules.over(r, x + y)
    return {0: unbroadcast(x * s, a.shape), 1: unbroadcast(y * s, b.shape)}


def _averages(step: Step, R: list[Tensor | None], rules: Rules) -> dict[int, Any]:
    args, kwargs = step.arguments
    x = read(args[0])
    with torch.enable_grad():
        at = x.detach().requires_grad_()
        z = step.function(at, *args[1:], **kwargs)
        (spread,) = torch.autograd.grad(z, at, rules.over(whole(R, step), z.detach()))
    return {0: x * spread}


def _addends(step: Step) -> tuple[int, ...]:
    (a, b, *_), _ = step.arguments
    return (0, 1) if isinstance(a, Value) and isinstance(b, Value) else ()


AVERAGES = """
sum mean cumsum avg_pool1d avg_pool2d avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d upsample_nearest2d
upsample_bilinear2d
"""

TABLE["add"] = Rule(_adds, _addends)
TABLE["sub"] = Rule(_adds, _addends)
TABLE.update({name: Rule(_averages, (0,)) for name in AVERAGES.split()})
