"""localplug: train and fine-tune without backpropagation, inside the trainer you already use.

Importing this package imports neither torch nor any plugin; both come with the first name that needs them.
"""

import importlib
import logging
from typing import TYPE_CHECKING, Any

from localplug.hookspecs import hookimpl

if TYPE_CHECKING:
    from localplug import noise
    from localplug.checks import check
    from localplug.contract import (
        Estimate,
        Estimating,
        Groups,
        LocalLoss,
        Method,
        Run,
        Signal,
        TargetGenerator,
        Unit,
    )
    from localplug.directions import Directions
    from localplug.engine import Engine
    from localplug.errors import (
        DuplicateName,
        EngineError,
        LocalPlugError,
        PluginFailed,
        UnknownName,
        Unsupported,
    )
    from localplug.local import LocalMethod
    from localplug.loop import attach
    from localplug.perturbation import Perturbation
    from localplug.plugins import get, installed, register
    from localplug.recipes import local_loss, method, target_generator, update_rule
    from localplug.units import partition
    from localplug.zeroth_order import Projection, sgd_update, write_gradients

__version__ = "0.1.0"

_HOME = {
    "attach": "loop",
    "check": "checks",
    "Estimate": "contract",
    "Estimating": "contract",
    "Groups": "contract",
    "LocalLoss": "contract",
    "Method": "contract",
    "Run": "contract",
    "Signal": "contract",
    "TargetGenerator": "contract",
    "Unit": "contract",
    "noise": "noise",
    "Engine": "engine",
    "DuplicateName": "errors",
    "EngineError": "errors",
    "LocalPlugError": "errors",
    "PluginFailed": "errors",
    "UnknownName": "errors",
    "Unsupported": "errors",
    "LocalMethod": "local",
    "get": "plugins",
    "installed": "plugins",
    "register": "plugins",
    "local_loss": "recipes",
    "method": "recipes",
    "target_generator": "recipes",
    "update_rule": "recipes",
    "partition": "units",
    "Directions": "directions",
    "Perturbation": "perturbation",
    "Projection": "zeroth_order",
    "sgd_update": "zeroth_order",
    "write_gradients": "zeroth_order",
}

__all__ = [
    "hookimpl",
    "Directions",
    "DuplicateName",
    "Engine",
    "EngineError",
    "Estimate",
    "Estimating",
    "Groups",
    "LocalLoss",
    "LocalMethod",
    "LocalPlugError",
    "Method",
    "Perturbation",
    "PluginFailed",
    "Projection",
    "Run",
    "Signal",
    "TargetGenerator",
    "Unit",
    "UnknownName",
    "Unsupported",
    "attach",
    "check",
    "get",
    "installed",
    "local_loss",
    "method",
    "noise",
    "partition",
    "register",
    "sgd_update",
    "target_generator",
    "update_rule",
    "write_gradients",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'localplug' has no attribute {name!r}")
    module = importlib.import_module(f"localplug.{_HOME[name]}")
    value = module if name == _HOME[name] else getattr(module, name)
    globals()[name] = value
    return value


class _Console(logging.StreamHandler):  # type: ignore[type-arg]
    """Shows localplug's few lines to a user who configured no logging; steps back as soon as somebody did."""

    def emit(self, record: logging.LogRecord) -> None:
        if not logging.getLogger().hasHandlers():
            super().emit(record)


_logger = logging.getLogger("localplug")
if not _logger.handlers:
    _logger.addHandler(_Console())
    _logger.setLevel(logging.INFO)
    _logger.handlers[0].setFormatter(logging.Formatter("localplug: %(message)s"))
