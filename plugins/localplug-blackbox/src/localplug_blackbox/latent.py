"""Latent programs: what some examples have in common as a point of a latent space, found at test time. 2024, arXiv:2411.08706.

An encoder q gives a latent for each pair of input and output; their mean is the first guess of the program. A decoder says how
likely an output is for an input and a program. At test time the guess is improved,

    z <- argmin over z of - sum over pairs of log p(y_i | x_i, z)

and the best z that was visited decodes the new input. The paper climbs by the decoder's gradient. Here any searcher does it
from forward passes alone, `ZerothOrderSearch` by default: no graph, the memory of inference, and decoders that have no
gradient. With few pairs many steps fit them too closely: see `held_out`.
"""

import dataclasses
from collections.abc import Callable
from typing import final

import torch
from torch import Tensor

from localplug_blackbox.box import Box
from localplug_blackbox.contract import Searcher
from localplug_blackbox.zeroth_order import ZerothOrderSearch

Loss = Callable[[Tensor], Tensor]


@final
@dataclasses.dataclass(frozen=True)
class LatentProgram:
    """What `search_latent` found.

    Args:
        z: the best latent that was visited, in the dtype of the first guess.
        loss: there, on the pairs that were searched with.
        first_loss: at the first guess.
        num_evaluations: latents whose loss was asked for.
    """

    z: Tensor
    loss: float
    first_loss: float
    num_evaluations: int


@torch.no_grad()
def search_latent(
    loss: Loss,
    guess: Tensor,
    *,
    searcher: Callable[[Box, Tensor], Searcher] | None = None,
    max_evaluations: int = 320,
    batch: int = 17,
    held_out: Loss | None = None,
) -> LatentProgram:
    """The latent that explains the pairs best, from forward passes of the decoder.

    Args:
        loss: of latents (N, D), in the guess's dtype, to values (N,): - sum over pairs of log p(y_i | x_i, z).
        guess: (D,), such as the mean of what the encoder gives for the pairs.
        searcher: callable(box, guess) -> a searcher; by default ZerothOrderSearch with the paper's Adam: rate 0.1, second
            decay 0.9, gradients clipped to 1.
        max_evaluations: >= 1.
        batch: latents decoded at once, >= 1.
        held_out: like `loss`, of pairs kept back: of the visited latents the best by it is given, not the best by `loss`.

    Raises:
        ValueError: the guess is not (D,), or an option is outside its range, or the first loss is not finite.

    Reference: arXiv:2411.08706.

    Example:
        >>> import torch
        >>> wanted = torch.tensor([1.0, -1.0])
        >>> found = search_latent(lambda z: (z - wanted).square().sum(1), torch.zeros(2), max_evaluations=400)
        >>> found.first_loss, found.loss < 0.05
        (2.0, True)
    """
    wrong = [] if guess.dim() == 1 and guess.numel() else [f"guess must be (D,), got the shape {tuple(guess.shape)}"]
    for name, count in (("max_evaluations", max_evaluations), ("batch", batch)):
        if not count >= 1:
            wrong.append(f"{name} must be at least 1, got {count!r}")
    if wrong:
        raise ValueError("; ".join(wrong))
    box = Box.free(len(guess))
    search = (searcher or _default)(box, guess)
    as_given = lambda z_ND: z_ND.to(device=guess.device, dtype=guess.dtype)  # noqa: E731
    judge = loss if held_out is None else held_out
    best_z, best, first = guess, float("inf"), float("nan")
    guess_1D = guess.detach().cpu().double().unsqueeze(0)
    first_y = loss(as_given(guess_1D)).detach().double().cpu().reshape(-1)
    if not bool(torch.isfinite(first_y).all()):
        raise ValueError(f"the loss of the guess is not finite, {first_y.tolist()}")
    first = float(first_y)
    best_loss, best = first, float(judge(as_given(guess_1D))) if held_out is not None else first
    search.fit(guess_1D, first_y)
    while search.num_evaluations + 1 < max_evaluations and not search.finished:
        z_ND = search.ask(min(batch, max_evaluations - 1 - search.num_evaluations))
        y_N = loss(as_given(z_ND)).detach().double().cpu().reshape(-1)
        judged_N = y_N if held_out is None else judge(as_given(z_ND)).detach().double().cpu().reshape(-1)
        judged_N = torch.where(torch.isfinite(judged_N), judged_N, torch.full_like(judged_N, float("inf")))
        place = int(judged_N.argmin())
        if float(judged_N[place]) < best:
            best, best_loss, best_z = float(judged_N[place]), float(y_N[place]), as_given(z_ND[place])
        search.tell(z_ND, y_N)
    return LatentProgram(best_z.detach().clone(), best_loss, first, search.num_evaluations + 1)


def _default(box: Box, guess: Tensor) -> Searcher:
    return ZerothOrderSearch(
        box, guess.detach().cpu().double(), sigma=0.1, num_directions=8, lr=0.1, betas=(0.9, 0.9), clip=1.0
    )
