"""Lion: a step along the sign of an interpolation of momentum and gradient, by lion-pytorch.

    u     = sign(beta1 m + (1 - beta1) g)
    theta <- (1 - lr weight_decay) theta - lr u
    m     <- beta2 m + (1 - beta2) g

Chen et al.: Symbolic Discovery of Optimization Algorithms, 2023, arXiv:2302.06675.
"""

from collections.abc import Iterable
from typing import Any, final

import lion_pytorch  # type: ignore[import-untyped]


@final
class Lion(lion_pytorch.Lion):
    """theta <- (1 - lr weight_decay) theta - lr sign(beta1 m + (1 - beta1) g): lion-pytorch's optimizer, by name.

    Every element moves by lr. The paper takes lr 3 to 10 times smaller, and weight_decay 3 to 10 times larger, than those of
    AdamW, and (0.95, 0.98) to fine-tune language models. The sign throws away how large an estimate is, which one along a
    single direction needs: take several directions. The momentum is one number for each weight; `lion-seeds` does without.

    Args:
        params: as for any torch optimizer.
        lr: step of every element, in parameter units, > 0.
        betas: (beta1, beta2): the share of the momentum in a step, and its decay; each in [0, 1].
        weight_decay: decoupled, in units of 1 / lr, >= 0.

    Raises:
        ValueError: one of them is out of range; says all that are.

    Example:
        >>> import torch
        >>> w = torch.nn.Parameter(torch.tensor([2.0, -3.0]))
        >>> w.grad = torch.tensor([0.1, -5.0])
        >>> Lion([w], lr=0.5).step()
        >>> w.tolist()
        [1.5, -2.5]

    Reference: Chen et al., 2023, arXiv:2302.06675.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        wrong = [] if lr > 0 else [f"lr must be positive, got {lr!r}; a schedule may set it to 0 later"]
        if not all(0 <= beta <= 1 for beta in betas):
            wrong.append(f"betas must be in [0, 1], got {betas!r}")
        if not weight_decay >= 0:
            wrong.append(f"weight_decay must not be negative, got {weight_decay!r}")
        if wrong:
            raise ValueError("; ".join(wrong))
        super().__init__(params, lr=lr, betas=betas, weight_decay=weight_decay)

    def __getstate__(self) -> dict[str, Any]:
        """With what the library keeps beside groups and state, and torch leaves out."""
        mine = {name: getattr(self, name) for name in ("_init_lr", "decoupled_wd", "update_fn")}
        return super().__getstate__() | mine
