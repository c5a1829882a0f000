"""FA: feedback alignment, and its variants that keep the signs of the forward weights. References:

Lillicrap, Cownden, Tweed, Akerman: Random synaptic feedback weights support error backpropagation for deep learning,
Nature Communications 7, 2016, arXiv:1411.0247. Signs: Liao, Leibo, Poggio: How Important is Weight Symmetry in
Backpropagation?, AAAI 2016, arXiv:1510.05067; Moskovitz, Litwin-Kumar, Abbott, arXiv:1812.06488.

Layer k computes z_k = W_k y_{k-1} + b_k, y_k = sigma(z_k). The error goes back through B_k in the place of W_k:

    dz_k = dy_k . sigma'(z_k),     dW_k = dz_k y_{k-1}^T,     dy_{k-1} = B_k^T dz_k      (backpropagation has W_k^T dz_k)

    random                B_k fixed, uniform, of the standard deviation that W_k has at the start
    sign                  B_k = m_k sign(W_k),                m_k the mean of abs(W_k) now
    sign-fixed-random     B_k = R_k . sign(W_k),              R_k >= 0 fixed, uniform, of the same mean square
    sign-batch-random     the same with another R_k in each step

It is no layer-local rule: the error passes layer by layer from the top, and the activations of all layers wait for it.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, final, get_args

import torch
from torch import Tensor, nn
from torch.nn import grad as gradients

from localplug import Estimate, Estimating, Groups, Method, Run
from localplug_tpsgd.feedback import matrix

Kind = Literal["random", "sign", "sign-fixed-random", "sign-batch-random"]
_CONVOLUTIONS: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.Conv1d: gradients.conv1d_input,
    nn.Conv2d: gradients.conv2d_input,
    nn.Conv3d: gradients.conv3d_input,
}
_ELEMENTWISE = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.PReLU, nn.Embedding)


@final
class FA(Method):
    """Feedback alignment: a backward pass whose weights are fixed random ones, or have the forward weights' signs only.

        dy_{k-1} = B_k^T dz_k,      dW_k = dz_k y_{k-1}^T

    One forward pass and one backward pass a step, with the memory of backpropagation and that of B_k; for studies of how
    symmetric feedback must be. Linear and convolutional layers have a B_k; norms, activations and pooling their own derivative.
    Gradients appear in .grad.

    Args:
        feedback: "random" (FA), "sign" (uniform sign-concordant), "sign-fixed-random" or "sign-batch-random"; see the formulas.

    Raises:
        ValueError: feedback is none of these.

    Example:
        >>> import torch, localplug
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> engine = localplug.Engine(net, FA(), optimizer)
        >>> x, y = torch.ones(6, 4), torch.tensor([0, 1, 0, 1, 0, 1])
        >>> loss = engine.step(lambda: torch.nn.functional.cross_entropy(net(x), y), optimizer)
    """

    num_evaluations = 1
    num_coefficients = 0

    def __init__(self, feedback: Kind = "random") -> None:
        if feedback not in get_args(Kind):
            raise ValueError(f"FA: feedback must be one of {', '.join(get_args(Kind))}, got {feedback!r}")
        self.feedback = feedback
        self._fixed: dict[int, tuple[int, Tensor]] = {}  # by number of the layer: the step it is of, and R_k or B_k
        self._spreads: list[float] = []  # root mean square of each W_k at the start

    @property
    def backpropagates(self) -> str:
        return "all layers, with other weights than the forward pass has"

    @property
    def cost(self) -> str:
        return "1 forward pass and 1 backward pass a batch"

    def describe(self) -> str:
        return f"fa, {self.feedback} feedback, updates by the trainer's optimizer; BACKWARD PASS through {self.backpropagates}"

    def problems(self, run: Run) -> list[str]:
        found = []
        for name, module in run.model.named_modules():
            own = any(p is not None and p.requires_grad for p in module._parameters.values())
            if type(module) in _CONVOLUTIONS:
                if getattr(module, "padding_mode", "zeros") != "zeros" or isinstance(
                    getattr(module, "padding", 0), str
                ):
                    found.append(f"{name!r} pads by {module.padding_mode!r} or by name; give its padding in numbers")
            elif isinstance(module, nn.MultiheadAttention) or (
                own and type(module) is not nn.Linear and not isinstance(module, _ELEMENTWISE)
            ):
                found.append(
                    f"{name or 'the model'} ({type(module).__name__}) has weights that no feedback is defined for; FA covers "
                    "Linear and Conv layers"
                )
        return found

    def setup(self, run: Run) -> None:
        if not self._spreads:
            self._spreads = [float(m.weight.detach().float().square().mean().sqrt()) for _, m in _layers(run.model)]

    def feedback_weight(self, number: int, layer: Any, run: Run) -> Tensor:
        """B_k of the layer with this number, shaped like its weight."""
        weight: Tensor = layer.weight.detach()
        if self.feedback == "sign":
            return weight.sign() * weight.abs().mean()
        step = run.step if self.feedback == "sign-batch-random" else 0
        drawn, made = self._fixed.get(number, (None, None))
        if made is None or drawn != step or made.device != weight.device:
            bound = 3**0.5 * self._spreads[number]  # uniform in (-bound, bound): root mean square bound / sqrt(3)
            made = matrix(run.seed, number, f"feedback {step}", weight.shape, bound, weight.device).to(weight.dtype)
            self._fixed[number] = step, made
        return made if self.feedback == "random" else made.abs() * weight.sign()

    @contextlib.contextmanager
    def _diverted(self, run: Run) -> Iterator[None]:
        """While this is open, the layers' inputs have their gradients through B_k."""
        waiting: dict[nn.Module, Tensor] = {}
        handles = []
        for number, (_, module) in enumerate(_layers(run.model)):

            def before(layer: nn.Module, args: tuple[Any, ...]) -> Any:
                (x,) = args
                if not x.requires_grad:
                    return None
                waiting[layer] = x
                return (x.detach(),)

            def after(layer: nn.Module, args: tuple[Any, ...], output: Tensor, number: int = number) -> Any:
                x = waiting.pop(layer, None)
                if x is None:
                    return None
                return _Divert.apply(output, x, self.feedback_weight(number, layer, run), layer)

            handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
        try:
            with torch.enable_grad():
                yield
        finally:
            for handle in handles:
                handle.remove()

    def estimate(self, run: Run) -> Estimating:
        with self._diverted(run):
            leaves = yield
        return _Diverted(run, list(leaves))

    def update(self, run: Run, coefficients: Sequence[float], groups: Groups) -> None:
        """Nothing: the trainer's optimizer takes the gradients."""

    def teardown(self) -> None:
        self._fixed.clear()

    def state_dict(self) -> dict[str, Any]:
        return {"spreads": list(self._spreads)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._spreads = list(state["spreads"])
        self._fixed.clear()


def _layers(model: nn.Module) -> list[tuple[str, Any]]:
    return [(n, m) for n, m in model.named_modules() if type(m) is nn.Linear or type(m) in _CONVOLUTIONS]


class _Divert(torch.autograd.Function):
    """A layer's output as it is; backward, its own weights get their gradient, and its input what B gives."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, x: Tensor, weight: Tensor, layer: nn.Module) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.shape, ctx.layer = x.shape, layer
        ctx.mark_dirty(output)  # it is handed on, not copied
        return output

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> Any:
        (g,), (weight,), layer = outputs, ctx.saved_tensors, ctx.layer
        if isinstance(layer, nn.Linear):
            return g, g @ weight, None, None
        geometry = (layer.stride, layer.padding, layer.dilation, layer.groups)
        return g, _CONVOLUTIONS[type(layer)](ctx.shape, weight, g, *geometry), None, None


@final
class _Diverted(Estimate):
    """The graph of one forward pass, for the trainer's gradients of its leaves."""

    def __init__(self, run: Run, leaves: list[Tensor]) -> None:
        self.values: list[Tensor] = []
        self._run, self._leaves = run, leaves

    def pull_back(self, leaf_gradients: Sequence[Tensor | None]) -> None:
        pairs = [(x, g) for x, g in zip(self._leaves, leaf_gradients, strict=True) if g is not None and x.requires_grad]
        self._leaves = []
        if not pairs:
            return
        parameters = [p for _, p in self._run.parameters]
        found = torch.autograd.grad([x for x, _ in pairs], parameters, [g for _, g in pairs], allow_unused=True)
        for p, g in zip(parameters, found, strict=True):
            if g is not None:
                p.grad = g if p.grad is None else p.grad.add_(g)
