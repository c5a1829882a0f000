"""Updates along an estimate g_t = (1/q) sum_j c_tj z_tj, without a copy of the gradient or of an optimizer's state.

    sgd         theta <- theta - lr g_t
    momentum    theta <- theta - lr sum_k beta^k g_{t-k}
    adam        theta <- theta - lr m / (sqrt(v) + delta),  m, v: weighted means of g_{t-k}, g_{t-k}^2
    scalar      theta <- theta - lr g_t / (sqrt(v_t) + delta),  v_t: running mean of (1/q) sum_j c_tj^2, one number
    sign        theta <- theta - lr sign(g_t)

k counts back over a window of steps: z_{t-k} is made again from its seed, so that moments cost a few numbers for each step
in the window, and no memory. All decay the weights first, theta <- (1 - lr weight_decay) theta, decoupled.

momentum: Malladi et al., arXiv:2305.17333, appendix B. adam: truncated moments as in AdaMeZO, arXiv:2605.00650. scalar: MEAZO,
arXiv:2605.03869. sign: Liu, Chen, Chen, Hong: signSGD via Zeroth-Order Oracle, 2019.
"""

import math
from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor

from localplug import Directions, Groups, Run, Term, Update, gradient_of, sgd_update, update_linearly, write_gradients


class _Stateless(Update):
    """An update whose every step stands alone, on any model."""

    def problems(self, run: Run) -> list[str]:
        return []

    def setup(self, run: Run, directions: Directions) -> None:
        pass


@final
class SGD(_Stateless):
    """theta <- (1 - lr weight_decay) theta - lr g_t.

    Example:
        >>> import localplug
        >>> localplug.update("sgd").describe()
        'SGD in place'
    """

    is_linear = True

    def describe(self) -> str:
        return "SGD in place"

    def apply(self, run: Run, directions: Directions, coefficients: Sequence[float], groups: Groups) -> None:
        sgd_update(run, directions, coefficients, groups)


@final
class Sign(_Stateless):
    """theta <- (1 - lr weight_decay) theta - lr sign(g_t).

    Example:
        >>> import localplug
        >>> localplug.update("sign").describe()
        'the sign in place'
    """

    def describe(self) -> str:
        return "the sign in place"

    def apply(self, run: Run, directions: Directions, coefficients: Sequence[float], groups: Groups) -> None:
        terms = _terms(coefficients)
        for index, lr, decay in each(run, directions, groups):

            def rule(value: Tensor, offset: int, index: int = index, lr: float = lr, decay: float = decay) -> Tensor:
                g = directions.summed(index, terms, offset, value)
                return value.mul_(1 - decay).sub_(g.sign_(), alpha=lr)

            directions.rewrite_(run.parameters[index][1].data, index, rule)


@final
class Scalar(_Stateless):
    """theta <- (1 - lr weight_decay) theta - lr g_t / (sqrt(v_t / (1 - beta^t)) + delta): one number of state.

        v_t = beta v_{t-1} + (1 - beta) (1/q) sum_j c_tj^2

    Args:
        beta: in [0, 1).
        delta: > 0, in units of the directional slope.

    Raises:
        ValueError: one of them is out of range.

    Example:
        >>> import localplug
        >>> localplug.update("scalar", beta=0.9).describe()
        'SGD over a scalar second moment (beta 0.9)'
    """

    is_linear = True

    def __init__(self, beta: float = 0.99, delta: float = 1e-8) -> None:
        if not 0 <= beta < 1 or not delta > 0:
            raise ValueError(f"beta must be in [0, 1) and delta positive, got {beta!r} and {delta!r}")
        self.beta, self.delta = float(beta), float(delta)
        self._second, self._count = 0.0, 0

    def describe(self) -> str:
        return f"SGD over a scalar second moment (beta {self.beta:g})"

    def apply(self, run: Run, directions: Directions, coefficients: Sequence[float], groups: Groups) -> None:
        square = sum(c * c for c in coefficients) / len(coefficients)
        self._second = self.beta * self._second + (1 - self.beta) * square
        self._count += 1
        scale = math.sqrt(self._second / (1 - self.beta**self._count)) + self.delta
        sgd_update(run, directions, [c / scale for c in coefficients], groups)

    def state_dict(self) -> dict[str, Any]:
        return {"second": self._second, "count": self._count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._second, self._count = float(state.get("second", 0.0)), int(state.get("count", 0))


class _Windowed(Update):
    """The coefficients of the last steps, newest first: all that moments are made of."""

    def __init__(self, window: int) -> None:
        if not (isinstance(window, int) and window >= 1):
            raise ValueError(f"window must be an integer of at least 1, got {window!r}")
        self.window = window
        self._past: list[tuple[int, list[float]]] = []

    def problems(self, run: Run) -> list[str]:
        return []

    def setup(self, run: Run, directions: Directions) -> None:
        if directions.selection.changes and self.window > 1:
            raise ValueError(
                "moments are rebuilt from past directions, and a selection that follows the weights or the step would "
                f"change them ({directions.selection.describe()}); select by name or by a mask"
            )

    def _take(self, run: Run, coefficients: Sequence[float]) -> list[list[Term]]:
        """(1/q) c_tj z_tj as terms, for each step of the window."""
        self._past = [(run.step, list(coefficients)), *self._past][: self.window]
        return [_terms(cs, step) for step, cs in self._past]

    def state_dict(self) -> dict[str, Any]:
        return {"past": [[step, *cs] for step, cs in self._past]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._past = [(int(step), [float(c) for c in cs]) for step, *cs in state.get("past", [])]


@final
class Momentum(_Windowed):
    """theta <- (1 - lr weight_decay) theta - lr sum_k beta^k g_{t-k}, k < window: heavy-ball momentum without its buffer.

    Args:
        beta: in [0, 1).
        window: steps that are looked back on; what is older counts beta^window or less. Costs one sweep of noise each.

    Raises:
        ValueError: one of them is out of range, or the selection of elements changes.

    Example:
        >>> import localplug
        >>> localplug.update("momentum", beta=0.5, window=4).describe()
        'momentum 0.5 rebuilt from 4 steps'
    """

    is_linear = True

    def __init__(self, beta: float = 0.9, window: int = 20) -> None:
        super().__init__(window)
        if not 0 <= beta < 1:
            raise ValueError(f"beta must be in [0, 1), got {beta!r}")
        self.beta = float(beta)

    def describe(self) -> str:
        return f"momentum {self.beta:g} rebuilt from {self.window} steps"

    def apply(self, run: Run, directions: Directions, coefficients: Sequence[float], groups: Groups) -> None:
        past = self._take(run, coefficients)

        def terms(lr: float) -> list[Term]:
            return [
                Term(t.direction, -lr * self.beta**k * t.factor, t.step) for k, step in enumerate(past) for t in step
            ]

        update_linearly(run, directions, terms, groups)


@final
class Adam(_Windowed):
    """theta <- (1 - lr weight_decay) theta - lr m / (sqrt(v) + delta), m and v rebuilt from the window.

        m = sum_k beta1^k g_{t-k} / sum_k beta1^k,     v = sum_k beta2^k g_{t-k}^2 / sum_k beta2^k,     k < window

    With a window as long as the run this is Adam with its bias correction.

    Args:
        betas: (beta1, beta2), each in [0, 1).
        delta: > 0, in units of the gradient.
        window: steps that are looked back on. Costs one sweep of noise each.

    Raises:
        ValueError: one of them is out of range, or the selection of elements changes.

    Example:
        >>> import localplug
        >>> localplug.update("adam", window=4).describe()
        'Adam (0.9, 0.999) rebuilt from 4 steps'
    """

    def __init__(self, betas: tuple[float, float] = (0.9, 0.999), delta: float = 1e-8, window: int = 10) -> None:
        super().__init__(window)
        if not all(0 <= b < 1 for b in betas) or not delta > 0:
            raise ValueError(f"betas must be in [0, 1) and delta positive, got {betas!r} and {delta!r}")
        self.betas, self.delta = (float(betas[0]), float(betas[1])), float(delta)

    def describe(self) -> str:
        return f"Adam {self.betas} rebuilt from {self.window} steps"

    def apply(self, run: Run, directions: Directions, coefficients: Sequence[float], groups: Groups) -> None:
        past = self._take(run, coefficients)
        first, second = ([beta**k for k in range(len(past))] for beta in self.betas)
        first, second = [f / sum(first) for f in first], [s / sum(second) for s in second]
        for index, lr, decay in each(run, directions, groups):

            def rule(value: Tensor, offset: int, index: int = index, lr: float = lr, decay: float = decay) -> Tensor:
                m, v = torch.zeros_like(value), torch.zeros_like(value)
                for terms, a, b in zip(past, first, second, strict=True):
                    g = directions.summed(index, terms, offset, value)
                    m.add_(g, alpha=a)
                    v.addcmul_(g, g, value=b)
                return value.mul_(1 - decay).sub_(m.div_(v.sqrt_().add_(self.delta)), alpha=lr)

            directions.rewrite_(run.parameters[index][1].data, index, rule)


@final
class Materialized(_Stateless):
    """p.grad <- g_t, and the trainer's optimizer does the rest: any optimizer, at one gradient's memory and its state.

    Example:
        >>> import localplug
        >>> localplug.update("trainer").describe()
        "the trainer's optimizer"
    """

    def describe(self) -> str:
        return "the trainer's optimizer"

    def replay_problems(self, run: Run) -> list[str]:
        return [
            "the trainer's optimizer does the update, and its state is not in the log; let the method do it, or leave log out"
        ]

    def apply(self, run: Run, directions: Directions, coefficients: Sequence[float], groups: Groups) -> None:
        write_gradients(run, directions, coefficients)


@final
class Streamed(_Stateless):
    """p.grad <- g_t and one step of the trainer's optimizer, parameter by parameter: one parameter's gradient at a time.

    For optimizers that treat parameters apart (SGD, Adam, Lion, sign), which is nearly all of torch.optim. The state of
    the optimizer is as large as ever.

    Example:
        >>> import localplug
        >>> localplug.update("trainer-streamed").describe()
        "the trainer's optimizer, parameter by parameter"
    """

    def describe(self) -> str:
        return "the trainer's optimizer, parameter by parameter"

    def problems(self, run: Run) -> list[str]:
        if run.optimizer is not None and len(run.optimizer.defaults) == 0:
            return [
                "update='trainer-streamed' steps the trainer's optimizer for one parameter at a time; use 'trainer'"
            ]
        return []

    def replay_problems(self, run: Run) -> list[str]:
        return [
            "the trainer's optimizer does the update, and its state is not in the log; let the method do it, or leave log out"
        ]

    def apply(self, run: Run, directions: Directions, coefficients: Sequence[float], groups: Groups) -> None:
        optimizer = run.optimizer
        assert optimizer is not None
        every, members = list(optimizer.param_groups), [group["params"] for group in optimizer.param_groups]
        step = type(optimizer).step.__get__(optimizer)  # not the instance's: a scheduler counts the calls of that
        hooks = (optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks)
        try:
            optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks = (
                type(hooks[0])(),
                type(hooks[1])(),
            )
            for index in directions.indices:
                parameter = run.parameters[index][1]
                group = groups[parameter]
                group["params"] = [parameter]
                optimizer.param_groups = [group]
                parameter.grad = gradient_of(run, directions, coefficients, index)
                step()
                parameter.grad = None
        finally:
            optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks = hooks
            for group, inside in zip(every, members, strict=True):
                group["params"] = inside
            optimizer.param_groups = every


def _terms(coefficients: Sequence[float], step: int | None = None) -> list[Term]:
    return [Term(j, c / len(coefficients), step) for j, c in enumerate(coefficients)]


def each(run: Run, directions: Directions, groups: Groups) -> list[tuple[int, float, float]]:
    """(index, lr, lr * weight_decay) of every parameter that this step moves."""
    found = []
    for index in directions.indices:
        group = groups[run.parameters[index][1]]
        lr = float(group["lr"])
        found.append((index, lr, lr * float(group.get("weight_decay", 0.0))))
    return found
