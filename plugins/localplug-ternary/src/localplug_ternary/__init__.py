"""Ternary weights for localplug and transformers: quantizers, training in latent form, packed layers, adapters.

Importing this package imports neither torch nor transformers; both come with the first name that needs them. To load a saved
ternary model, import localplug_ternary.quantizer first: it registers "localplug_ternary" with transformers.
"""

import importlib
from typing import TYPE_CHECKING, Any

import localplug

if TYPE_CHECKING:
    from localplug_ternary.activations import set_int8_activations_
    from localplug_ternary.adapters import load_lora, with_lora
    from localplug_ternary.card import save_pretrained
    from localplug_ternary.config import TernaryConfig
    from localplug_ternary.convert import freeze_, ternarize_, unfreeze_
    from localplug_ternary.distill import Distillation
    from localplug_ternary.latent import TernaryLinear
    from localplug_ternary.measure import report
    from localplug_ternary.packed import PackedTernaryLinear
    from localplug_ternary.reconstruct import reconstruct_
    from localplug_ternary.scales import train_scales_
    from localplug_ternary.schedule import TernaryProgress, set_progress_
    from localplug_ternary.signs import TernarySigns
    from localplug_ternary.speed import speed_up_

_HOME = {
    "TernaryConfig": "config",
    "ternarize_": "convert",
    "freeze_": "convert",
    "unfreeze_": "convert",
    "report": "measure",
    "Distillation": "distill",
    "TernaryLinear": "latent",
    "PackedTernaryLinear": "packed",
    "reconstruct_": "reconstruct",
    "train_scales_": "scales",
    "set_int8_activations_": "activations",
    "set_progress_": "schedule",
    "speed_up_": "speed",
    "TernaryProgress": "schedule",
    "TernarySigns": "signs",
    "save_pretrained": "card",
    "with_lora": "adapters",
    "load_lora": "adapters",
}

__all__ = [
    "Distillation",
    "PackedTernaryLinear",
    "TernaryConfig",
    "TernaryLinear",
    "TernaryProgress",
    "TernarySigns",
    "freeze_",
    "load_lora",
    "report",
    "reconstruct_",
    "save_pretrained",
    "set_int8_activations_",
    "set_progress_",
    "speed_up_",
    "ternarize_",
    "train_scales_",
    "unfreeze_",
    "with_lora",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'localplug_ternary' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"localplug_ternary.{_HOME[name]}"), name)
    globals()[name] = value
    return value


@localplug.hookimpl
def localplug_quantizers() -> dict[str, str]:
    return {
        "tequila": "localplug_ternary.tequila:Tequila",
        "absmean": "localplug_ternary.absmean:Absmean",
        "twn": "localplug_ternary.twn:TWN",
        "sherry": "localplug_ternary.sherry:Sherry",
        "annealed": "localplug_ternary.annealed:Annealed",
    }


@localplug.hookimpl
def localplug_methods() -> dict[str, str]:
    return {"ternary-signs": "localplug_ternary.signs:TernarySigns"}


@localplug.hookimpl
def localplug_commands() -> dict[str, str]:
    return {"ternarize": "localplug_ternary.command:main", "export": "localplug_ternary.export.command:main"}
