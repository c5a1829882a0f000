"""LFP: layer-wise feedback propagation, which trains a network by relevance in the place of gradients.

Weber, Berend, Weckbecker, Binder, Wiegand, Samek, Lapuschkin: Efficient and Flexible Neural Network Training through Layer-wise
Feedback Propagation, TMLR 2025, arXiv:2308.12053. The relevance pass over single operations: DynamicLRP, arXiv:2512.07010.

A unit j has z_j = sum_i w_ij a_i + b_j, the model's outputs are o, the loss is L.

    r = -o . dL/do                     reward of the outputs; of cross-entropy o . (y* - softmax(o))
    r_{i<-j} = w_ij a_i r_j / z_j      a reward goes where the activity came from, by the epsilon rule
    r_i = sum_j r_{i<-j}
    dw_ij = abs(w_ij) a_i r_j / z_j = sign(w_ij) r_{i<-j}        summed over the batch
    w <- w + eta dw

-dw is left in .grad. Activations pass the reward on as it is, so that they need no derivative: a step function trains.
"""

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Literal, final

import torch
from torch import Tensor

from localplug import Estimate, Estimating, Groups, Method, Run
from localplug_credit.attribution import follow
from localplug_credit.rules import Rules
from localplug_credit.tape import Tape, Value
from localplug_credit.walk import predictions, walk

logger = logging.getLogger("localplug")


@final
class LFP(Method):
    """Layer-wise feedback propagation: each weight grows by the reward that went through it.

        dw_ij = abs(w_ij) a_i r_j / z_j,    r of the outputs = -o . dL/do

    One forward pass and one relevance pass a step, without autograd's graph: a tape keeps what the relevance pass has to see.
    The credit is global: it comes from the loss through all layers. -dw appears in .grad, for the trainer's optimizer; SGD
    wants larger rates than for gradients. A weight that is 0 stays 0 (biases of norms, adapters that begin at 0), and signs
    change only by a step across 0. Any loss that the trainer makes of the outputs gives the reward.

    Args:
        eps: of the epsilon rule, > 0; see localplug_credit.rules.Rules. Units that give something although z is near 0 (steps,
            sigmoids) need a large one, such as 0.1: r / z is bounded by it.
        sums: how the sum of two activations (a residual) divides the reward, "absolute" or "signed"; see there.
        softmax: "taylor" or "identity"; see there.
        rebuild: a tensor is not kept if so few operations make it again; >= 0; see localplug_credit.tape.

    Raises:
        ValueError: an option is outside its range; lists all of them.
        Unsupported: an operation of the model has no rule.

    Example:
        >>> import torch, localplug
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> engine = localplug.Engine(net, LFP(), optimizer)
        >>> x, y = torch.ones(6, 4), torch.tensor([0, 1, 0, 1, 0, 1])
        >>> loss = engine.step(lambda: torch.nn.functional.cross_entropy(net(x), y), optimizer)
    """

    num_evaluations = 1
    num_coefficients = 0

    def __init__(
        self,
        eps: float = 1e-6,
        sums: Literal["absolute", "signed"] = "absolute",
        softmax: Literal["taylor", "identity"] = "taylor",
        rebuild: int = 1,
    ) -> None:
        is_whole = isinstance(rebuild, int) and rebuild >= 0
        also = "" if is_whole else f"rebuild must be an integer of at least 0, got {rebuild!r}"
        try:
            self.rules = Rules(eps=eps, sums=sums, softmax=softmax)
        except ValueError as error:
            raise ValueError("LFP: " + "; ".join(filter(None, [str(error), also]))) from None
        if also:
            raise ValueError(f"LFP: {also}")
        self.rebuild = rebuild

    @property
    def backpropagates(self) -> str:
        return "all layers, relevance in the place of the gradient, from a tape of activations"

    @property
    def cost(self) -> str:
        return "1 forward pass and 1 relevance pass a batch"

    def describe(self) -> str:
        rules = self.rules
        options = f"eps {rules.eps:g}, {rules.sums} sums, softmax by {rules.softmax}"
        return (
            f"lfp, {options}, updates by the trainer's optimizer; RELEVANCE PASS through all layers, no autograd graph"
        )

    def problems(self, run: Run) -> list[str]:
        if run.is_compiled:
            return ["lfp notes single operations, which torch.compile hides; give it the model as it is"]
        return []

    def setup(self, run: Run) -> None:
        resting = [name for name, p in run.parameters if not p.any()]
        if resting:
            shown = ", ".join(resting[:3]) + (" and others" if len(resting) > 3 else "")
            logger.warning("lfp: a weight that is 0 stays 0, and all of these are: %s", shown)

    def estimate(self, run: Run) -> Estimating:
        with ExitStack() as stack:
            tape = stack.enter_context(follow(run.model, rebuild=self.rebuild))
            leaves = yield
        return _Rewarded(run, self.rules, tape, list(leaves))

    def update(self, run: Run, coefficients: Sequence[float], groups: Groups) -> None:
        """Nothing: the trainer's optimizer takes the gradients."""

    def teardown(self) -> None:
        """Nothing was done to the model."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to take back."""


@final
class _Rewarded(Estimate):
    """The tape of one forward pass, for the trainer's gradients of its results."""

    def __init__(self, run: Run, rules: Rules, tape: Tape, leaves: list[Tensor]) -> None:
        self.values: list[Tensor] = []
        self._run, self._rules = run, rules
        self._leaves = [tape.value(leaf) for leaf in leaves]
        self._parameters = {v: p for _, p in run.parameters if (v := tape.value(p)) is not None}

    @torch.no_grad()
    def pull_back(self, leaf_gradients: Sequence[Tensor | None]) -> None:
        outputs: dict[Value, Tensor] = {}
        for leaf, gradient in zip(self._leaves, leaf_gradients, strict=True):
            if leaf is None or gradient is None:
                continue
            found = predictions(leaf, gradient) if not leaf.shape else {leaf: gradient}
            for value, g in found.items():
                outputs[value] = outputs[value] + g if value in outputs else g
        self._leaves = []
        rewards = {o: -o.tensor() * g.to(o.dtype) for o, g in outputs.items() if g is not None}
        credit = walk(rewards, self._rules)
        for value, parameter in self._parameters.items():
            if (r := credit.get(value)) is not None:
                gradient = (-parameter.sign() * r).to(parameter.dtype)
                parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
        self._parameters = {}
