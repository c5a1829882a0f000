"""A layer that gives the nearest of K vectors, and the exponential moving average by which these follow their inputs.

    y = e_k,   k = argmin_j |x - e_j|^2
    N_k <- decay N_k + (1 - decay) n_k,                          n_k the share of the inputs that chose k
    e_k <- (decay N_k e_k + (1 - decay) s_k) / N_k               s_k the mean over all inputs of those that chose k

the online k-means of van den Oord, Vinyals, Kavukcuoglu: Neural Discrete Representation Learning, 2017, arXiv:1711.00937,
appendix A.1. No gradient is in it.

Shapes: B inputs (all but the last dimension), D numbers of each, K codes.
"""

from typing import Any, final

import torch
from torch import Tensor, nn

from localplug import noise


@final
class VectorQuantizer(nn.Module):
    """Gives the nearest code: y = e_k, k = argmin_j |x - e_j|^2.

    Train it as a unit of the method `vq`. Backpropagation does not pass it.

    Args:
        num_codes: K, at least 2.
        dim: D, at least 1.
        seed: of the first codes, which are Gaussian.

    Raises:
        ValueError: a size is too small; lists all of them.

    Example:
        >>> import torch
        >>> layer = VectorQuantizer(2, 1)
        >>> with torch.no_grad():
        ...     _ = layer.codes.copy_(torch.tensor([[0.0], [1.0]]))
        >>> layer(torch.tensor([[0.2], [0.9]])).tolist()
        [[0.0], [1.0]]

    Reference: see the head of this file.
    """

    def __init__(self, num_codes: int, dim: int, seed: int = 0) -> None:
        super().__init__()
        wrong = [f"num_codes must be at least 2, got {num_codes!r}"] if not num_codes >= 2 else []
        wrong += [f"dim must be at least 1, got {dim!r}"] if not dim >= 1 else []
        if wrong:
            raise ValueError("VectorQuantizer: " + "; ".join(wrong))
        drawn = torch.zeros(num_codes * dim)
        noise.add_normal_(drawn, noise.stream(seed, 0, 0, "codes"), 0, 1.0)
        self.codes = nn.Parameter(drawn.view(num_codes, dim).to(torch.get_default_dtype()))

    def nearest(self, x: Tensor) -> Tensor:
        """k of each input, (...): the first of those that are equally near."""
        e = self.codes.detach().to(x.dtype)
        return (e.square().sum(1) - 2 * x @ e.T).argmin(-1)

    def forward(self, x: Tensor) -> Tensor:
        return self.codes.to(x.dtype)[self.nearest(x)]


@torch.no_grad()
def place_codes_(model: nn.Module, *inputs: Tensor, seed: int = 0) -> None:
    """Put the codes of every codebook in a model where inputs of it are, one after the other as a forward pass reaches them.

    Args:
        inputs: of the model's call, such as a batch of training examples.
        seed: of the choice among them.

    Raises:
        ValueError: there is no VectorQuantizer in the model.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(VectorQuantizer(4, 2), torch.nn.Linear(2, 2))
        >>> place_codes_(net, torch.ones(3, 2))
        >>> bool((net[0].codes == 1).all())
        True

    Reference: new here.
    """
    found = [(name, m) for name, m in model.named_modules() if isinstance(m, VectorQuantizer)]
    if not found:
        raise ValueError("place_codes_: there is no localplug_experts.VectorQuantizer in the model")

    def placing(name: str) -> Any:
        def place(module: nn.Module, args: tuple[Any, ...]) -> None:
            codes = module.get_parameter("codes")
            x = args[0].reshape(-1, codes.shape[1])
            u = noise.uniform(noise.stream(seed, 0, 0, f"places {name}"), 0, len(x), x.device)
            codes.copy_(x[u.argsort()[torch.arange(len(codes), device=x.device) % len(x)]])

        return place

    handles = [module.register_forward_pre_hook(placing(name)) for name, module in found]
    modes = [(module, module.training) for module in model.modules()]
    model.eval()  # dropout would draw from the global random state
    try:
        model(*inputs)
    finally:
        for module, mode in modes:
            module.training = mode
        for handle in handles:
            handle.remove()


@torch.no_grad()
def moving_average(codes_KD: Tensor, share_K: Tensor, x_BD: Tensor, k_B: Tensor, decay: float) -> tuple[Tensor, Tensor]:
    """One step of the moving average; see the head of this file.

    Args:
        codes_KD: e.
        share_K: N, in [0, 1].
        x_BD: inputs.
        k_B: which code each chose.
        decay: in [0, 1).

    Returns: the next e and N; a code that has never been chosen stays.

    Example:
        >>> import torch
        >>> e, N = moving_average(torch.zeros(1, 1), torch.ones(1), torch.ones(4, 1), torch.zeros(4, dtype=torch.long), 0.75)
        >>> float(e), float(N)
        (0.25, 1.0)

    Reference: see the head of this file.
    """
    one_hot_BK = torch.nn.functional.one_hot(k_B, len(codes_KD)).to(x_BD.dtype)
    n_K, s_KD = one_hot_BK.mean(0), one_hot_BK.T @ x_BD / len(x_BD)
    next_K = decay * share_K + (1 - decay) * n_K
    moved_KD = (decay * share_K[:, None] * codes_KD + (1 - decay) * s_KD) / next_K.clamp(min=1e-30)[:, None]
    return torch.where(next_K[:, None] > 1e-12, moved_KD, codes_KD), next_K
