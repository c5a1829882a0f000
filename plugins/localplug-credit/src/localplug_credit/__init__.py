"""Relevance in the place of gradients, for localplug: what a result came from, and learning from that.

lfp (localplug_credit.lfp) trains by relevance. `relevance`, `scores`, `unit_scores` and `masks` (localplug_credit.attribution)
say what a result came from, and choose weights by it for `parameters=`. Both walk back over a tape of operations
(localplug_credit.tape), without autograd's graph. References: DynamicLRP, arXiv:2512.07010; LFP, arXiv:2308.12053. Importing
this package imports no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

import localplug

if TYPE_CHECKING:
    from localplug_credit.attribution import Relevance, masks, relevance, scores, unit_scores
    from localplug_credit.lfp import LFP
    from localplug_credit.rules import Rules

_HOME = {
    "LFP": "lfp",
    "Relevance": "attribution",
    "Rules": "rules",
    "masks": "attribution",
    "relevance": "attribution",
    "scores": "attribution",
    "unit_scores": "attribution",
}

__all__ = ["LFP", "Relevance", "Rules", "masks", "relevance", "scores", "unit_scores"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@localplug.hookimpl
def localplug_methods():
    return {"lfp": "localplug_credit.lfp:LFP"}
