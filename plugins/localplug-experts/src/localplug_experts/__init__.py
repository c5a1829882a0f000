"""Parts that solve or learn by themselves, for localplug: experts of a domain, codebooks, and features of integer programs.

vq (localplug_experts.vq) trains networks with codebooks. `HardConstraint`, `least_squares` and `levenberg_marquardt` solve for
each expert of a domain and keep the gradient inside of it. `read_mip` and `InstanceEmbedding` describe mixed-integer programs.
Importing this package imports no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

import localplug

if TYPE_CHECKING:
    from localplug_experts.codebook import VectorQuantizer, moving_average, place_codes_
    from localplug_experts.embedding import InstanceEmbedding
    from localplug_experts.hard_constraint import HardConstraint, derivative
    from localplug_experts.linear import least_squares
    from localplug_experts.mip import MIP, read_mip
    from localplug_experts.nonlinear import levenberg_marquardt
    from localplug_experts.vq import VQ

_HOME = {
    "HardConstraint": "hard_constraint",
    "InstanceEmbedding": "embedding",
    "MIP": "mip",
    "VQ": "vq",
    "VectorQuantizer": "codebook",
    "derivative": "hard_constraint",
    "least_squares": "linear",
    "levenberg_marquardt": "nonlinear",
    "moving_average": "codebook",
    "place_codes_": "codebook",
    "read_mip": "mip",
}

__all__ = [
    "MIP",
    "VQ",
    "HardConstraint",
    "InstanceEmbedding",
    "VectorQuantizer",
    "derivative",
    "least_squares",
    "levenberg_marquardt",
    "moving_average",
    "place_codes_",
    "read_mip",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@localplug.hookimpl
def localplug_methods():
    return {"vq": "localplug_experts.vq:VQ"}
