"""Networks that predict by denoising a label (NoProp, arXiv:2503.24322): their ordinary forward is the inference.

u(z, x) = softmax(block(z, x)) W_embed is the label's embedding as a block sees it in the noisy z. A prediction begins with
z_0 ~ N(0, I), and no label enters it:

    NoPropNet     z_t = a_t u_t(z_{t-1}, x) + b_t z_{t-1} + sqrt(c_t) eps, t = 1 ... T;   out(z_T)
    NoPropCTNet   dz/dt = lambda'(t)/2 (sqrt(ab) u(z, x, t) - ab z), lambda = log SNR;    out(z(1))
    NoPropFMNet   dz/dt = v(z, x, t), v = block(z, x, t) W_embed;                         the nearest row of W_embed to z(1)

The second is the probability-flow equation of q(z_t | y) = N(sqrt(ab) u_y, (1 - ab) I); the last two are solved by
`num_steps` Euler steps. The noise of a prediction is a function of (seed, t), the same for each example: evaluation
repeats itself, and an example's scores depend on nothing but the example.

Every network keeps its units under `noprop`: the blocks, what is between them, and the read-out `out`. W_embed is held by
each unit that uses it, as one tensor: a torch.nn.Parameter is learned (and then tied), any other tensor stays as it is.

Shapes: B examples, D features of an embedding, K classes.
"""

import itertools
from collections.abc import Callable, Iterable
from typing import Any, final

import torch
from torch import Tensor, nn

from localplug import noise
from localplug_noprop.blocks import Block
from localplug_noprop.schedule import LearnedSchedule, coefficients, cosine, signal_problems


def _hold(module: nn.Module, name: str, W_KD: Tensor) -> None:
    if isinstance(W_KD, nn.Parameter):
        module.register_parameter(name, W_KD)
    else:
        module.register_buffer(name, W_KD)


def _prediction_noise(seed: int, t: int, like_D: Tensor) -> Tensor:
    stream = noise.stream(seed, 0, t, "noprop prediction")
    return noise.normal(stream, 0, like_D.numel(), like_D.device).to(like_D.dtype)


def _logits(unit: nn.Module, x: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """A unit's block as a function of (z, t). A Block sees x once, however often that is called."""
    block = unit.block
    if not isinstance(block, Block):
        assert isinstance(block, nn.Module)
        return lambda z_BD, t_B: block(z_BD, x, t_B)
    embedded_BE = block.embed(x)
    return lambda z_BD, t_B: block.fuse(z_BD, embedded_BE, t_B)


def _embedding_problems(W_KD: Tensor) -> list[str]:
    if isinstance(W_KD, Tensor) and W_KD.dim() == 2 and W_KD.is_floating_point():
        return []
    found = tuple(W_KD.shape) if isinstance(W_KD, Tensor) else type(W_KD).__name__
    return [f"embedding must be a floating-point tensor of shape (K, D), got {found}; see localplug_noprop.embeddings"]


@final
class Denoiser(nn.Module):
    """u(z, x) = softmax(block(z, x)) W_embed, (B, D)."""

    embedding: Tensor

    def __init__(self, block: nn.Module, embedding: Tensor, schedule: LearnedSchedule | None = None) -> None:
        super().__init__()
        _hold(self, "embedding", embedding)
        self.schedule = schedule
        self.block = block

    def forward(self, z_BD: Tensor, x: Tensor, *t_B: Tensor) -> Tensor:
        return self.of_logits(self.block(z_BD, x, *t_B))

    def of_logits(self, logits_BK: Tensor) -> Tensor:
        """The embedding that these logits speak for."""
        return torch.softmax(logits_BK, -1) @ self.embedding


@final
class Velocity(nn.Module):
    """v(z, x, t) = block(z, x, t) W_embed, (B, D): the logits themselves are the weights."""

    embedding: Tensor

    def __init__(self, block: nn.Module, embedding: Tensor) -> None:
        super().__init__()
        _hold(self, "embedding", embedding)
        self.block = block

    def forward(self, z_BD: Tensor, x: Tensor, t_B: Tensor) -> Tensor:
        return self.of_logits(self.block(z_BD, x, t_B))

    def of_logits(self, logits_BK: Tensor) -> Tensor:
        """The velocity that these logits speak for."""
        return logits_BK @ self.embedding


@final
class Posterior(nn.Module):
    """z_t = a_t u + b_t z_{t-1} + sqrt(c_t) eps; has no weights."""

    def __init__(self, alpha_bar: list[float], seed: int) -> None:
        super().__init__()
        self.coefficients = [coefficients(*pair) for pair in itertools.pairwise(alpha_bar)]
        self.seed = seed

    def forward(self, u_BD: Tensor, z_BD: Tensor, t: int) -> Tensor:
        a, b, c = self.coefficients[t - 1]
        return a * u_BD + b * z_BD + c**0.5 * _prediction_noise(self.seed, t, z_BD[0])


@final
class Extrapolation(nn.Module):
    """z_1 = z_t + (1 - t) v, where z would arrive if the velocity stayed; has no weights."""

    def forward(self, v_BD: Tensor, z_BD: Tensor, t_B: Tensor) -> Tensor:
        return z_BD + (1 - t_B)[:, None] * v_BD


@final
class Out(nn.Module):
    """p_out(y | z): the logits of a linear layer, (B, K)."""

    def __init__(self, embedding: Tensor) -> None:
        super().__init__()
        _hold(self, "embedding", embedding)  # its z is made of the label's row, and W_embed learns from that, too
        self.linear = nn.Linear(embedding.shape[1], embedding.shape[0])

    def forward(self, z_BD: Tensor) -> Tensor:
        return self.linear(z_BD)


@final
class Nearest(nn.Linear):
    """log p(y | z) up to a constant, for N(u_y, I) and equal priors: z u_y - |u_y|^2 / 2. A linear layer, and W_embed is its
    weight."""

    def __init__(self, embedding: Tensor) -> None:
        super().__init__(embedding.shape[1], embedding.shape[0], bias=False, device="meta")
        del self.weight
        _hold(self, "weight", embedding)

    def forward(self, z_BD: Tensor) -> Tensor:
        return super().forward(z_BD) - self.weight.square().sum(-1) / 2


class _Denoising(nn.Module):
    """What the three have in common: the embeddings, and the beginning of a prediction."""

    noprop: nn.ModuleDict
    seed: int

    @property
    def embedding(self) -> Tensor:
        """W_embed, (K, D)."""
        first = next(iter(self.noprop.values()))
        W_KD = first.embedding
        assert isinstance(W_KD, Tensor)
        return W_KD

    def _start(self, x: Tensor) -> Tensor:
        z_D = _prediction_noise(self.seed, 0, self.embedding[0].detach())
        return z_D.expand(x.shape[0], -1)


@final
class NoPropNet(_Denoising):
    """T blocks, each of which denoises once; for noprop-dt.

    Args:
        blocks: T modules, (z, x) -> logits (B, K); see localplug_noprop.blocks.
        embedding: W_embed (K, D); a torch.nn.Parameter is learned. See localplug_noprop.embeddings.
        max_signal: ab_T, in (0, 1): how clean the last block's target is. Towards 1 the last block's loss outweighs all
            others without bound; see localplug_noprop.schedule.
        min_signal: ab_0, in (0, 1).
        seed: of the noise in predictions.

    Raises:
        ValueError: an option is out of its range; lists all of them.

    Example:
        >>> from localplug_noprop.embeddings import one_hot
        >>> def block():
        ...     return Block(nn.Linear(6, 16), embedded=16, z_dim=3, num_classes=3, width=16)
        >>> net = NoPropNet([block() for _ in range(4)], one_hot(3))
        >>> net(torch.zeros(2, 6)).shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        blocks: Iterable[nn.Module],
        embedding: Tensor,
        *,
        max_signal: float = 0.99,
        min_signal: float = 1e-4,
        seed: int = 0,
    ) -> None:
        blocks = list(blocks)
        wrong = _embedding_problems(embedding) + signal_problems(min_signal, max_signal)
        if not 1 <= len(blocks) <= 999:
            wrong.append(f"there must be 1 to 999 blocks, got {len(blocks)}")
        if len({id(block) for block in blocks}) < len(blocks):
            wrong.append("each block must be a module of its own; make them in a loop")
        if wrong:
            raise ValueError("NoPropNet: " + "; ".join(wrong))
        super().__init__()
        self.seed = seed
        self.alpha_bar = cosine(len(blocks), min_signal=min_signal, max_signal=max_signal)
        units: dict[str, nn.Module] = {f"t{t:03d}": Denoiser(block, embedding) for t, block in enumerate(blocks, 1)}
        self.noprop = nn.ModuleDict(
            {**units, "posterior": Posterior(self.alpha_bar, seed), "out": Out(embedding)},
        )

    @property
    def num_blocks(self) -> int:
        """T."""
        return len(self.alpha_bar) - 1

    def forward(self, x: Tensor) -> Tensor:
        *denoisers, posterior, out = self.noprop.values()
        z_BD = self._start(x)
        for t, denoiser in enumerate(denoisers, 1):
            z_BD = posterior(denoiser(z_BD, x), z_BD, t)
        return out(z_BD)


@final
class NoPropCTNet(_Denoising):
    """One block for all times t in [0, 1]; for noprop-ct.

    In training mode forward makes one evaluation, out(u(z_0, x, 0)); in evaluation mode `num_steps` of them.

    Args:
        block: (z, x, t) -> logits (B, K), t being (B,); see localplug_noprop.blocks.
        embedding: W_embed (K, D); a torch.nn.Parameter is learned. See localplug_noprop.embeddings.
        num_steps: Euler steps of a prediction, >= 1. The paper makes 1000.
        max_signal: ab(1), in (0, 1). A prediction's last z has noise of variance 1 - ab(1) left: too much of it and one-hot
            embeddings are mistaken for each other.
        min_signal: ab(0), in (0, 1). Where the signal is very small the loss has next to no weight, and the block learns
            nothing there.
        seed: of the noise in predictions.

    Raises:
        ValueError: an option is out of its range; lists all of them.

    Example:
        >>> from localplug_noprop.embeddings import one_hot
        >>> block = Block(nn.Linear(6, 16), embedded=16, z_dim=3, num_classes=3, width=16, takes_time=True)
        >>> net = NoPropCTNet(block, one_hot(3), num_steps=20).eval()
        >>> net(torch.zeros(2, 6)).shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        block: nn.Module,
        embedding: Tensor,
        *,
        num_steps: int = 100,
        max_signal: float = 0.99,
        min_signal: float = 0.05,
        seed: int = 0,
    ) -> None:
        wrong = _embedding_problems(embedding) + signal_problems(min_signal, max_signal)
        if not num_steps >= 1:
            wrong.append(f"num_steps must be at least 1, got {num_steps!r}")
        if wrong:
            raise ValueError("NoPropCTNet: " + "; ".join(wrong))
        super().__init__()
        self.seed, self.num_steps, self.max_signal, self.min_signal = seed, num_steps, max_signal, min_signal
        denoiser = Denoiser(block, embedding, LearnedSchedule(min_signal, max_signal))
        self.noprop = nn.ModuleDict({"denoiser": denoiser, "out": Out(embedding)})

    @property
    def schedule(self) -> LearnedSchedule:
        """gamma, a part of the block's unit."""
        found = self.noprop["denoiser"].schedule
        assert isinstance(found, LearnedSchedule)
        return found

    def forward(self, x: Tensor) -> Tensor:
        denoiser: Any
        denoiser, out = self.noprop["denoiser"], self.noprop["out"]
        z_BD = self._start(x)
        if self.training:
            return out(denoiser(z_BD, x, z_BD.new_zeros(len(z_BD))))
        logits = _logits(denoiser, x)
        for step in range(self.num_steps):
            t_B = z_BD.new_full((len(z_BD),), step / self.num_steps)
            gamma_B, slope_B = self.schedule(t_B)
            ab_B1 = torch.sigmoid(-gamma_B)[:, None]
            u_BD = denoiser.of_logits(logits(z_BD, t_B))
            speed_BD = -slope_B[:, None] / 2 * (ab_B1.sqrt() * u_BD - ab_B1 * z_BD)
            z_BD = z_BD + speed_BD / self.num_steps
        return out(z_BD)


@final
class NoPropFMNet(_Denoising):
    """One block for all times t in [0, 1], which gives a velocity; for noprop-fm.

    In training mode forward makes one evaluation, the nearest embedding to z_0 + v(z_0, x, 0); in evaluation mode
    `num_steps` of them.

    Args:
        block: (z, x, t) -> logits (B, K), t being (B,); see localplug_noprop.blocks.
        embedding: W_embed (K, D); a torch.nn.Parameter is learned. See localplug_noprop.embeddings.
        num_steps: Euler steps of a prediction, >= 1. The paper makes 1000.
        seed: of the noise in predictions.

    Raises:
        ValueError: an option is out of its range; lists all of them.

    Example:
        >>> from localplug_noprop.embeddings import one_hot
        >>> block = Block(nn.Linear(6, 16), embedded=16, z_dim=3, num_classes=3, width=16, takes_time=True)
        >>> net = NoPropFMNet(block, one_hot(3), num_steps=20).eval()
        >>> net(torch.zeros(2, 6)).shape
        torch.Size([2, 3])
    """

    def __init__(self, block: nn.Module, embedding: Tensor, *, num_steps: int = 100, seed: int = 0) -> None:
        wrong = _embedding_problems(embedding)
        if not num_steps >= 1:
            wrong.append(f"num_steps must be at least 1, got {num_steps!r}")
        if wrong:
            raise ValueError("NoPropFMNet: " + "; ".join(wrong))
        super().__init__()
        self.seed, self.num_steps = seed, num_steps
        self.noprop = nn.ModuleDict(
            {"velocity": Velocity(block, embedding), "extrapolation": Extrapolation(), "out": Nearest(embedding)}
        )

    def forward(self, x: Tensor) -> Tensor:
        velocity: Any
        velocity, out = self.noprop["velocity"], self.noprop["out"]
        z_BD = self._start(x)
        if self.training:
            t_B = z_BD.new_zeros(len(z_BD))
            return out(self.noprop["extrapolation"](velocity(z_BD, x, t_B), z_BD, t_B))
        logits = _logits(velocity, x)
        for step in range(self.num_steps):
            t_B = z_BD.new_full((len(z_BD),), step / self.num_steps)
            z_BD = z_BD + velocity.of_logits(logits(z_BD, t_B)) / self.num_steps
        return out(z_BD)
