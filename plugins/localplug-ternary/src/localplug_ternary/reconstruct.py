"""Make a model ternary block by block: each block learns to give the outputs that it had. No backward pass crosses a block.

After the block-wise reconstruction of BRECQ, arXiv:2102.05426, with latent ternary weights in the place of its rounding. For
block k, with f_k its full-precision form and q_k the ternary one that starts from f_k's weights:

    x_{k+1} = f_k(x_k),   minimise over q_k's weights  |q_k(z_k) - x_{k+1}|^2 / |x_{k+1}|^2,   then  z_{k+1} = q_k(z_k)

z_k are the inputs that block k will have in the ternary model, so that a block also repairs what those before it lost. A few
hundred rows of text do; labels are not used. It holds the activations of one block in one step, whatever the depth, and twice
the hidden states of the given batches.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn
from tqdm import tqdm  # type: ignore[import-untyped]

from localplug_ternary.config import TernaryConfig
from localplug_ternary.convert import latent_of, tell
from localplug_ternary.schedule import set_progress_
from localplug_ternary.selection import problems, refuse, selected


@final
@dataclasses.dataclass(frozen=True)
class BlockFit:
    """How far a block's outputs are from those it had, |q(z) - x|^2 / |x|^2 over all batches."""

    name: str
    before: float
    """As converted, without training."""
    after: float


def reconstruct_(
    model: nn.Module,
    config: TernaryConfig,
    batches: Sequence[Mapping[str, Tensor]],
    steps: int = 200,
    lr: float = 1e-3,
) -> list[BlockFit]:
    """Make a transformer ternary in place, block after block, so that each keeps its outputs on the given batches.

    Layers outside the blocks stay as they are. The model is latent then, at the end of its schedule: train on, or freeze_ it.

    Args:
        model: a transformer whose blocks are the items of one ModuleList, such as those of transformers.
        config: the method and its options; not packed. For sherry take residual=0: in so few steps the residual does the
            work that the ternary weights are to learn.
        batches: keyword arguments of the model's forward, such as {"input_ids": (B, T)}. Each step takes the next one.
        steps: of Adam, for each block, >= 1.
        lr: Adam's learning rate at the first step, in weight units; it falls to 0 in a straight line. > 0.

    Returns: what it came to, for each block.

    Raises:
        ValueError: lists everything that stands against it; nothing was changed then.

    Example:
        fits = reconstruct_(model, TernaryConfig("tequila"), [tokenizer(text, return_tensors="pt") for text in texts])
    """
    blocks = _blocks(model)
    wrong = [] if blocks else ["the model has no ModuleList of blocks of one class"]
    if config.packed:
        wrong.append("packed layers do not learn; leave packed=False, and freeze_ the model afterwards")
    if not batches:
        wrong.append("batches must hold at least one batch")
    if not steps >= 1:
        wrong.append(f"steps must be at least 1, got {steps!r}")
    if not lr > 0:
        wrong.append(f"lr must be positive, got {lr!r}")
    chosen = {n: m for n, m in selected(model, config).items() if any(n.startswith(f"{b}.") for b in blocks)}
    refuse("reconstruct_", wrong + problems(model, chosen, config))
    method, was_training = config.make_method(), model.training
    model.eval()
    x, calls = _recorded(model, blocks, batches)
    z = list(x)
    fits = []
    for name, block in tqdm(blocks.items(), desc="reconstruct", unit="block", delay=1.0, leave=False):
        with torch.no_grad():
            x = [_output(block, h, call) for h, call in zip(x, calls[name], strict=True)]
        for inner, layer in chosen.items():
            if inner.startswith(f"{name}."):
                model.set_submodule(inner, latent_of(layer, method, 1.0))
        before = _error(block, z, x, calls[name])
        _fit(block, z, x, calls[name], steps, lr)
        fits.append(BlockFit(name, before, _error(block, z, x, calls[name])))
        with torch.no_grad():
            z = [_output(block, h, call) for h, call in zip(z, calls[name], strict=True)]
    model.train(was_training)
    tell(model, config, converted=list(chosen))
    set_progress_(model, 1.0)
    return fits


Call = tuple[tuple[Any, ...], dict[str, Any]]


def _blocks(model: nn.Module) -> dict[str, nn.Module]:
    """The items of the ModuleList of one class that holds most parameters."""
    best: dict[str, nn.Module] = {}
    most = 0
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len({type(m) for m in module}) == 1:
            size = sum(p.numel() for p in module.parameters())
            if size > most:
                most, best = size, {f"{name}.{i}": m for i, m in enumerate(module)}
    return best


@torch.no_grad()
def _recorded(
    model: nn.Module, blocks: dict[str, nn.Module], batches: Sequence[Mapping[str, Tensor]]
) -> tuple[list[Tensor], dict[str, list[Call]]]:
    """What the first block gets, and with which other arguments each block is called."""
    first: list[Tensor] = []
    calls: dict[str, list[Call]] = {name: [] for name in blocks}

    def taking(name: str, is_first: bool) -> Any:
        def take(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = dict(kwargs)
            hidden = args[0] if args else given.pop("hidden_states")
            calls[name].append((args[1:], given))
            if is_first:
                first.append(hidden.detach().clone())

        return take

    handles = [
        block.register_forward_pre_hook(taking(name, i == 0), with_kwargs=True)
        for i, (name, block) in enumerate(blocks.items())
    ]
    try:
        for batch in tqdm(batches, desc="record", unit="batch", delay=1.0, leave=False):
            model(**batch, **({"use_cache": False} if hasattr(model, "config") else {}))
    finally:
        for handle in handles:
            handle.remove()
    return first, calls


def _output(block: nn.Module, hidden: Tensor, call: Call) -> Tensor:
    made = block(hidden, *call[0], **call[1])
    output: Tensor = made[0] if isinstance(made, tuple | list) else made
    return output


@torch.no_grad()
def _error(block: nn.Module, z: list[Tensor], x: list[Tensor], calls: list[Call]) -> float:
    off = sum(float((_output(block, h, c) - y).square().sum()) for h, y, c in zip(z, x, calls, strict=True))
    return off / max(sum(float(y.square().sum()) for y in x), 1e-30)


def _fit(block: nn.Module, z: list[Tensor], x: list[Tensor], calls: list[Call], steps: int, lr: float) -> None:
    trains = [p for p in block.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trains, lr=lr)
    for step in range(steps):
        set_progress_(block, step / steps)
        i = step % len(z)
        with torch.enable_grad():
            loss = (_output(block, z[i], calls[i]) - x[i]).square().sum() / x[i].square().sum()
            gradients = torch.autograd.grad(loss, trains, allow_unused=True)
        for parameter, gradient in zip(trains, gradients, strict=True):
            parameter.grad = gradient
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 - step / steps)
        optimizer.step()
    optimizer.zero_grad()
    set_progress_(block, 1.0)
