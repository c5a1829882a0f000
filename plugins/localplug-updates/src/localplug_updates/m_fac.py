"""M-FAC: the inverse of an empirical Fisher matrix from the last m gradients, times the newest of them, unit by unit.

    F = lambda I + (1/m) G^T G,  G (m, d) the window                    a unit is a parameter group, d its weights
    F^-1 x = (x - G^T (lambda m I + G G^T)^-1 G x) / lambda             Woodbury: an inverse of m x m in the place of d x d
    theta <- (1 - lr weight_decay) theta - lr F^-1 g
    lambda = damping + tr Cov[g]                            the latter where it is known: of random directions

F holds g g^T itself, and so divides what the gradients of the window have in common, the true gradient, by more than their
noise: harm, unless lambda is as large as the square of the true gradient. The variance of an estimate along random directions
is that many times over, and then F^-1 changes nothing; where there is no such noise, lambda is the damping alone.

The newest gradient g is row i of the window, x = G^T e_i, and so F^-1 g = m G^T (lambda m I + G G^T)^-1 e_i: a sum of the
window's gradients, without the difference above, of which lambda would magnify the rounding.

Frantar, Kurtic, Alistarh: M-FAC: Efficient Matrix-Free Approximations of Second-Order Information, 2021, arXiv:2107.03356.
The identity takes the place of the paper's recursion. Damping by the estimator's variance is new here.
"""

from collections.abc import Callable, Iterable
from typing import Any, final

import torch
from torch import Tensor
from torch.optim import Optimizer


@final
class MFAC(Optimizer):
    """theta <- (1 - lr weight_decay) theta - lr (lambda I + G^T G / m)^-1 g, g the newest of the m gradients in G.

    A parameter group is a unit: one group gives the paper's M-FAC, one for each layer its layer-wise form. m numbers for each
    weight, and an eigenvalue problem of m x m a step. For gradients that have much signal: those of layer-local methods and
    backpropagation. Along random directions it has nothing to tell: of one direction a step it is plain descent, as random
    directions are nearly orthogonal; of several it harms, unless `variance` says how much of them is noise.

    Args:
        params: as for any torch optimizer; a group for each unit.
        lr: >= 0, of a step that divides by curvature.
        window: m >= 1, gradients that are kept.
        damping: > 0, in units of the squared gradient of a weight.
        weight_decay: decoupled, in units of 1 / lr, >= 0.
        variance: gives tr Cov of the newest gradient, which is added to the damping; `lambda: method.variance` of a
            localplug.ZerothOrder, such as `localplug.method("zo", update="trainer")`.

    Raises:
        ValueError: one of them is out of range; says all that are.

    Example:
        >>> import torch
        >>> w = torch.nn.Parameter(torch.tensor([2.0, -3.0]))
        >>> w.grad = torch.tensor([1.0, 0.0])
        >>> MFAC([w], lr=1.0, window=1, damping=1.0).step()  # F = I + g g^T
        >>> w.tolist()
        [1.5, -3.0]

    Reference: Frantar, Kurtic, Alistarh, 2021, arXiv:2107.03356.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        window: int = 32,
        damping: float = 1e-5,
        weight_decay: float = 0.0,
        variance: Callable[[], float] | None = None,
    ) -> None:
        wrong = []
        if not lr >= 0 or not weight_decay >= 0:
            wrong.append(f"lr and weight_decay must not be negative, got {lr!r} and {weight_decay!r}")
        if not (isinstance(window, int) and window >= 1):
            wrong.append(f"window must be an integer of at least 1, got {window!r}")
        if not damping > 0:
            wrong.append(f"damping must be positive, got {damping!r}")
        if wrong:
            raise ValueError("; ".join(wrong))
        self.variance = variance
        self._grams: dict[Tensor, Tensor] = {}  # of each parameter's part of the window: made again when it is missing
        super().__init__(params, {"lr": lr, "window": window, "damping": damping, "weight_decay": weight_decay})

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"variance": self.variance}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.variance = state.get("variance", self.__dict__.get("variance"))
        self._grams = {}  # of windows that are gone
        super().__setstate__(state)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        noise = 0.0 if self.variance is None else self.variance()
        for group in self.param_groups:
            unit = [p for p in group["params"] if p.grad is not None]
            if not unit:
                continue
            m, lr = group["window"], float(group["lr"])
            K_mm = sum(self._pushed(p, m) for p in unit)
            assert isinstance(K_mm, Tensor)
            newest = (max(int(self.state[p]["step"]) for p in unit) - 1) % m
            weights_m = _inverse_row(K_mm, group["damping"] + noise, newest)
            for p in unit:
                G_md = self.state[p]["window"]
                step = (weights_m.to(_wide(p.dtype)) @ G_md.to(_wide(p.dtype))).view_as(p)
                p.mul_(1 - lr * group["weight_decay"]).sub_((lr * step).to(p.dtype))
        return loss

    def _pushed(self, p: Tensor, m: int) -> Tensor:
        """G G^T of one parameter's part of the window, with its gradient in the place of the oldest. float64, (m, m)."""
        assert p.grad is not None
        state = self.state[p]
        if not state:
            state["step"], state["window"] = 0, p.new_zeros(m, p.numel())
        G_md, row = state["window"], state["step"] % m
        K_mm = self._grams.get(p)
        if K_mm is None:
            K_mm = torch.stack([_products(G_md, i) for i in range(m)])
            self._grams[p] = K_mm
        G_md[row] = p.grad.flatten()
        K_mm[row] = K_mm[:, row] = _products(G_md, row)
        state["step"] += 1
        return K_mm


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _products(G_md: Tensor, row: int) -> Tensor:
    """G g of one of its rows, in float64."""
    G_md = G_md.to(_wide(G_md.dtype))
    return (G_md @ G_md[row]).double()


def _inverse_row(K_mm: Tensor, lambda_: float, i: int) -> Tensor:
    """m (lambda m I + K)^-1 e_i. By eigenvalues, of which rounding may leave some of K's below zero."""
    m = len(K_mm)
    values_m, vectors_mm = torch.linalg.eigh(K_mm)
    return m * (vectors_mm @ (vectors_mm[i] / (lambda_ * m + values_m.clamp(min=0))))
