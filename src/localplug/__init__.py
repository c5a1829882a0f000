"""localplug: train and fine-tune without backpropagation, inside the trainer you already use.

Importing this package imports neither torch nor any plugin; both come with the first name that needs them.
"""

import importlib
import logging
import sys
import warnings
from typing import TYPE_CHECKING, Any

from localplug.hookspecs import hookimpl

if TYPE_CHECKING:
    from localplug import noise
    from localplug.checks import check
    from localplug.compatibility import CONTRACT_VERSION, LocalPlugDeprecationWarning
    from localplug.contract import (
        Estimate,
        Estimating,
        Groups,
        Method,
        Run,
    )
    from localplug.directions import Directions
    from localplug.distributions import Gaussian, Rademacher
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
    from localplug.low_rank import add_low_rank_
    from localplug.objectives import Objective
    from localplug.owned import seeded
    from localplug.parts import Distribution, Estimator, Piece, Probing, Term, Update, read
    from localplug.perturbation import Perturbation
    from localplug.plugins import get, installed, register
    from localplug.predictor import Predictor
    from localplug.quantizers import Quantizer, Ternary, dequantize, grouped, straight_through, ternary, wide
    from localplug.rebuild import replay_checkpoint, replay_log
    from localplug.recipes import (
        distribution,
        estimator,
        local_loss,
        method,
        objective,
        quantizer,
        selector,
        solver,
        target_generator,
        update,
        update_rule,
    )
    from localplug.selectors import Selector
    from localplug.signals import Activity, LocalLoss, Signal, TargetGenerator, View
    from localplug.tasks import Part, Parts, Sealed, Task, Tensors, task
    from localplug.trajectory import read_log
    from localplug.units import Unit, partition
    from localplug.zeroth_order import (
        Projection,
        ZerothOrder,
        gradient_of,
        sgd_update,
        update_linearly,
        write_gradients,
    )

__version__ = "0.1.0"

_HOME = {
    "attach": "loop",
    "check": "checks",
    "CONTRACT_VERSION": "compatibility",
    "LocalPlugDeprecationWarning": "compatibility",
    "Estimate": "contract",
    "Estimating": "contract",
    "Groups": "contract",
    "LocalLoss": "signals",
    "Method": "contract",
    "Run": "contract",
    "Signal": "signals",
    "Activity": "signals",
    "View": "signals",
    "TargetGenerator": "signals",
    "Unit": "units",
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
    "replay_checkpoint": "rebuild",
    "replay_log": "rebuild",
    "read_log": "trajectory",
    "Part": "tasks",
    "Parts": "tasks",
    "Sealed": "tasks",
    "Selector": "selectors",
    "Task": "tasks",
    "Tensors": "tasks",
    "task": "tasks",
    "local_loss": "recipes",
    "method": "recipes",
    "target_generator": "recipes",
    "objective": "recipes",
    "selector": "recipes",
    "solver": "recipes",
    "quantizer": "recipes",
    "Objective": "objectives",
    "distribution": "recipes",
    "estimator": "recipes",
    "update": "recipes",
    "update_rule": "recipes",
    "Quantizer": "quantizers",
    "Ternary": "quantizers",
    "dequantize": "quantizers",
    "grouped": "quantizers",
    "straight_through": "quantizers",
    "ternary": "quantizers",
    "wide": "quantizers",
    "partition": "units",
    "seeded": "owned",
    "Predictor": "predictor",
    "Directions": "directions",
    "Perturbation": "perturbation",
    "Gaussian": "distributions",
    "Rademacher": "distributions",
    "add_low_rank_": "low_rank",
    "Distribution": "parts",
    "Estimator": "parts",
    "Piece": "parts",
    "Probing": "parts",
    "read": "parts",
    "Term": "parts",
    "Update": "parts",
    "Projection": "zeroth_order",
    "ZerothOrder": "zeroth_order",
    "gradient_of": "zeroth_order",
    "update_linearly": "zeroth_order",
    "sgd_update": "zeroth_order",
    "write_gradients": "zeroth_order",
}

__all__ = [
    "hookimpl",
    "Activity",
    "CONTRACT_VERSION",
    "Directions",
    "Distribution",
    "DuplicateName",
    "Engine",
    "EngineError",
    "Estimate",
    "Estimating",
    "Estimator",
    "Gaussian",
    "Groups",
    "LocalLoss",
    "LocalMethod",
    "LocalPlugDeprecationWarning",
    "LocalPlugError",
    "Method",
    "Objective",
    "Part",
    "Parts",
    "Perturbation",
    "Piece",
    "Probing",
    "PluginFailed",
    "Predictor",
    "Projection",
    "Quantizer",
    "Rademacher",
    "Run",
    "Sealed",
    "Selector",
    "Signal",
    "TargetGenerator",
    "Task",
    "Tensors",
    "Term",
    "Ternary",
    "Unit",
    "UnknownName",
    "Unsupported",
    "Update",
    "View",
    "ZerothOrder",
    "add_low_rank_",
    "attach",
    "check",
    "dequantize",
    "distribution",
    "estimator",
    "get",
    "gradient_of",
    "grouped",
    "installed",
    "local_loss",
    "method",
    "noise",
    "objective",
    "solver",
    "partition",
    "quantizer",
    "read",
    "read_log",
    "register",
    "replay_checkpoint",
    "replay_log",
    "seeded",
    "selector",
    "sgd_update",
    "straight_through",
    "target_generator",
    "task",
    "ternary",
    "update",
    "update_linearly",
    "update_rule",
    "wide",
    "write_gradients",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        compatibility = importlib.import_module("localplug.compatibility")
        if name in compatibility.MOVED:
            warnings.warn(compatibility.moved(name), stacklevel=2)
            return getattr(sys.modules[__name__], compatibility.MOVED[name].to)
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
