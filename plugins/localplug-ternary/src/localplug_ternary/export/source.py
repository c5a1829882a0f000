"""What there is to export, packed layers and other tensors, and a folder that appears whole or not at all."""

import contextlib
import dataclasses
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any, final

import torch
from torch import Tensor, nn
from tqdm import tqdm  # type: ignore[import-untyped]
from transformers import PreTrainedModel

from localplug_ternary.latent import TernaryLinear
from localplug_ternary.packed import PackedTernaryLinear
from localplug_ternary.selection import refuse


@final
@dataclasses.dataclass(frozen=True)
class Source:
    """A model, read."""

    model: PreTrainedModel
    layers: dict[str, PackedTernaryLinear]
    """By name. Latent layers are packed here; the model keeps its own."""
    rest: dict[str, Tensor]
    """Every other tensor of the state dict."""
    wrong: list[str]
    """What stands against any export."""


def read(what: str, model: Any, out: str | os.PathLike[str]) -> Source:
    """Read a model and look at the folder that it shall be written to.

    Raises:
        ValueError: it is no model of transformers. All else that is wrong is told in `wrong`.
    """
    if not isinstance(model, PreTrainedModel):
        refuse(what, [f"{type(model).__name__} is no model of transformers; unload adapters of peft, if it has them"])
    wrong = []
    if pathlib.Path(out).exists() and not (pathlib.Path(out).is_dir() and not any(pathlib.Path(out).iterdir())):
        wrong.append(f"{os.fspath(out)!r} exists already and is no empty folder")
    layers: dict[str, PackedTernaryLinear] = {}
    adapted, unfinished = [], []
    modules = dict(model.named_modules())
    for name, module in bar(modules.items(), "read", len(modules)):  # latent layers are packed on the way
        if hasattr(module, "lora_A"):
            adapted.append(name)
        elif isinstance(module, TernaryLinear):
            if not module.method.is_ternary(module.progress):
                unfinished.append(name)
            try:
                layers[name] = PackedTernaryLinear.of(module)
            except ValueError as error:
                wrong.append(f"{name!r}: {error}")
        elif isinstance(module, PackedTernaryLinear):
            layers[name] = module
            stored = [module.scales.detach().half(), *([] if module.bias is None else [module.bias.detach()])]
            if not all(bool(t.isfinite().all()) for t in stored):
                wrong.append(f"{name!r} has scales too large for float16, or scales or a bias that are not finite")
    if adapted:
        wrong.append(
            f"{len(adapted)} layers, such as {adapted[0]!r}, have adapters, which no export holds; unload them"
        )
    if unfinished:
        wrong.append(
            f"{len(unfinished)} layers, such as {unfinished[0]!r}, do not compute with ternary weights yet; train to the end, "
            "or say set_progress_(model, 1.0) and evaluate again"
        )
    if not layers and not wrong:
        wrong.append("the model has no ternary layer; ternarize_ makes them")
    inside = {f"{name}.{tensor}" for name in layers for tensor in ("weight", "codes", "scales", "bias")}
    rest = {name: t for name, t in model.state_dict().items() if name not in inside}
    return Source(model, layers, rest, wrong)


@contextlib.contextmanager
def appearing(out: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """A new folder beside `out`, which takes that name at the end, or is gone if anything fails."""
    final_path = pathlib.Path(os.path.abspath(out))
    final_path.parent.mkdir(parents=True, exist_ok=True)
    made = pathlib.Path(tempfile.mkdtemp(prefix=f".{final_path.name}.", dir=final_path.parent))
    try:
        yield made
        made.chmod(0o777 & ~_umask())  # mkdtemp lets nobody else in
        if final_path.is_dir():
            final_path.rmdir()  # empty: read() has looked
        made.rename(final_path)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise


def _umask() -> int:
    mask = os.umask(0o022)  # the only way to read it
    os.umask(mask)
    return mask


def bar(items: Iterable[Any], what: str, total: int) -> Iterable[Any]:
    """Progress, for what takes longer than a second."""
    return tqdm(items, desc=what, total=total, unit="layer", delay=1.0, leave=False)


def meta_copy(model: PreTrainedModel, config: Any) -> PreTrainedModel:
    """Another model of the same class, without memory for its weights."""
    with torch.device("meta"):
        made: PreTrainedModel = type(model)(config)
    return made.eval()


def own_buffers(module: nn.Module) -> dict[str, Tensor]:
    """Buffers that no checkpoint holds, such as the frequencies of rotary embeddings."""
    saved = module.state_dict().keys()
    return {name: b for name, b in module.named_buffers() if name not in saved}


def set_buffers(module: nn.Module, buffers: dict[str, Tensor]) -> None:
    for name, buffer in buffers.items():
        owner, _, last = name.rpartition(".")
        setattr(module.get_submodule(owner), last, buffer)
