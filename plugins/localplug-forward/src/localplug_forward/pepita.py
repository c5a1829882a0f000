"""PEPITA: a second pass on an input that the error of the first has modulated, in the place of a backward pass.

Dellaferrera and Kreiman: Error-driven Input Modulation: Solving the Credit Assignment Problem without a Backward Pass, ICML
2022, arXiv:2201.11665.

    h1_l = sigma_l(W_l h1_{l-1}),  h1_0 = x                first pass
    e = h1_L - y*,  h1_L = softmax of the output
    h2_l = sigma_l(W_l h2_{l-1}),  h2_0 = x + F e           second pass; F fixed, random
    W_l <- W_l - eta (h1_l - h2_l) h2_{l-1}^T               l < L
    W_L <- W_L - eta e2 h2_{L-1}^T,  e2 = h2_L - y*

The last line is the gradient of the cross-entropy in the second pass: the trainer's own loss gives it. The papers' code uses
e2 of the second pass there, and so does this. All updates are means over the examples of a batch.
"""

from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

from localplug import Activity, LocalMethod, Run, Signal, Unit, Unsupported, View, noise

CLEAN = View("clean", learns=False, ends="output")
MODULATED = View("modulated")


@final
class PEPITA(LocalMethod):
    """PEPITA: hidden weights learn from the difference between a clean pass and one on an input modulated by the error.

        dJ/dW_l = mean over the batch of (h1_l - h2_l) h2_{l-1}^T,   h2_0 = x + F e,   F uniform in +-scale sqrt(6 / n_0)

    A bias is the weight of an input that is always 1. Two evaluations a step, and what the trainer reports is the loss of the
    second. The hidden activities of the first are kept until the second passes by: memory grows with depth as in backprop,
    without a graph. The rule has no derivative of the activation in it; it takes the place of the gradient in .grad.

    Train in float32: the activities of the two passes are nearly equal, and in bfloat16 little is left of their difference.

    Hidden units are Linear or Conv2d layers and what works on each of their numbers alone (activations, dropout): of a pooled
    map the rule does not say which position learns. Use strides.

    Args:
        scale: of F, > 0: its entries are uniform in +-scale * sqrt(6 / n_0), n_0 the numbers of one input. The default is the
            paper's; on MNIST, 784-1024-10, SGD, 10,000 rows and 2 epochs the validation error was 8.4 % with it, 7.4 % with 1;
            over 5 epochs of all rows 1 diverged at a learning rate of 0.05.
        units: names of the modules that start a unit (* and ? match), in the order of their calls.
        num_classes: K; by default the number of outputs of the last unit, if that is a Linear.

    Raises:
        ValueError: an option is outside its range; lists all of them.

    Labels are integers (B,); floating-point targets (B, K) of a regression make e = output - y*.

    Example:
        >>> import torch, localplug
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> engine = localplug.Engine(net, PEPITA(), optimizer)
        >>> x, y = torch.ones(6, 4), torch.tensor([0, 1, 0, 1, 0, 1])
        >>> loss = engine.step(lambda: torch.nn.functional.cross_entropy(net(x), y), optimizer, targets=y)
    """

    views = (CLEAN, MODULATED)
    reads_above = "the error of the whole network's first pass, which modulates the input of the second"

    def __init__(self, scale: float = 0.05, units: Sequence[str] | None = None, num_classes: int | None = None) -> None:
        wrong = []
        if not scale > 0:
            wrong.append(f"scale must be positive, got {scale!r}")
        if num_classes is not None and not num_classes >= 1:
            wrong.append(f"num_classes must be at least 1, got {num_classes!r}")
        if wrong:
            raise ValueError("PEPITA: " + "; ".join(wrong))
        super().__init__(units=units, num_classes=num_classes)
        self.scale = float(scale)
        self._e_BK: Tensor | None = None
        self._h1: dict[str, Tensor] = {}  # of the first pass, until the second has used it
        self._F: dict[
            tuple[int, int, int, torch.device], Tensor
        ] = {}  # follows from the seed, and so is in no checkpoint

    def describe(self) -> str:
        return f"pepita, input modulated by the error at scale {self.scale:g}, updates by the trainer's optimizer"

    def unit_problems(self, units: Sequence[Unit], run: Run) -> list[str]:
        found = []
        for unit in units[:-1]:
            own = {id(p) for p in unit.module.parameters()}
            if not isinstance(unit.module, nn.Linear | nn.Conv2d):
                kind = type(unit.module).__name__
                found.append(f"PEPITA's rule is for Linear and Conv2d layers, and {unit.name!r} is a {kind}")
            elif any(id(p) not in own for p in unit.parameters):
                found.append(f"{unit.name!r} is followed by other weights (a norm); freeze them or leave them out")
            elif isinstance(unit.module, nn.Conv2d) and (
                unit.module.padding_mode != "zeros" or isinstance(unit.module.padding, str)
            ):
                found.append(f"{unit.name!r} must pad by a number of zeros; give padding as integers")
        return found

    def needs_graph(self, unit: Unit, view: View) -> bool:
        return False

    def local_input(self, unit: Unit, x: Tensor, view: View, run: Run) -> Tensor:
        if view != MODULATED or unit.index > 0:
            return x
        assert self._e_BK is not None
        if not x.is_floating_point():
            raise Unsupported(f"the error is added to the input of the first unit, which gets {x.dtype}")
        return x + (self._e_BK @ self._projection(x, run)).view_as(x).to(x.dtype)

    def _projection(self, x: Tensor, run: Run) -> Tensor:
        """F^T (K, n_0)."""
        assert self._e_BK is not None
        K, D = self._e_BK.shape[1], x[0].numel()
        key = (run.seed, K, D, x.device)
        if key not in self._F:
            u_KD = noise.uniform(noise.stream(run.seed, 0, 0, "pepita F"), 0, K * D, x.device).view(K, D)
            self._F = {key: u_KD.mul_(2).sub_(1).mul_(self.scale * (6 / D) ** 0.5)}
        return self._F[key]

    def observe(self, activity: Activity, run: Run) -> None:
        self._h1[activity.unit.key] = activity.output

    def top(self, unit: Unit, output: Tensor, run: Run) -> None:
        is_regression = isinstance(run.targets, Tensor) and run.targets.is_floating_point()
        output_BK = output.float() if is_regression else output.float().softmax(1)
        self._e_BK = output_BK - self.one_hot(run, output.device)

    @torch.no_grad()
    def signal(self, activity: Activity, run: Run) -> Signal:
        module = activity.unit.module
        dtype = next(module.parameters()).dtype  # under autocast activities have another
        x = activity.input.to(dtype)
        difference = (self._h1.pop(activity.unit.key) - activity.output).to(dtype)
        with torch.autocast(x.device.type, enabled=False):
            if isinstance(module, nn.Linear):
                return Signal(delta=_of_linear(module, difference, x))
            assert isinstance(module, nn.Conv2d)
            return Signal(delta=_of_convolution(module, difference, x, activity.unit.name))


def _of_linear(module: nn.Linear, difference: Tensor, x: Tensor) -> dict[nn.Parameter, Tensor]:
    """(h1 - h2) h2_{l-1}^T, summed over positions, averaged over examples."""
    B = len(x)
    d_ND, x_ND = difference.reshape(-1, module.out_features), x.reshape(-1, module.in_features)
    return _delta(module, d_ND.T @ x_ND / B, d_ND.sum(0) / B)


def _of_convolution(module: nn.Conv2d, difference: Tensor, x: Tensor, name: str) -> dict[nn.Parameter, Tensor]:
    """The same for the patch that each position of the map sees."""
    map_shape = _map_shape(module, x)
    if difference.numel() != map_shape.numel():
        raise Unsupported(
            f"unit {name!r}: the convolution gives {tuple(map_shape)}, and the next unit gets {tuple(difference.shape)}; "
            "PEPITA has no rule for pooling, use strides"
        )
    d_BCHW = difference.reshape(map_shape)
    padding: Any = module.padding
    weight = conv2d_weight(x, list(module.weight.shape), d_BCHW, module.stride, padding, module.dilation, module.groups)
    return _delta(module, weight / len(x), d_BCHW.sum((0, 2, 3)) / len(x))


def _delta(module: nn.Linear | nn.Conv2d, of_weight: Tensor, of_bias: Tensor) -> dict[nn.Parameter, Tensor]:
    """Of those that are trained."""
    found: dict[nn.Parameter, Tensor] = {}
    weight, bias = module.get_parameter("weight"), module._parameters["bias"]
    if weight.requires_grad:
        found[weight] = of_weight
    if bias is not None and bias.requires_grad:
        found[bias] = of_bias
    return found


def _map_shape(module: nn.Conv2d, x: Tensor) -> torch.Size:
    """Of what the convolution gives, without making it."""
    weight, padding = module.weight.to("meta"), module.padding
    return nn.functional.conv2d(
        x.to("meta"), weight, None, module.stride, padding, module.dilation, module.groups
    ).shape
