"""Searchers by name: what `localplug propose --by NAME` knows."""

import importlib
import inspect
from typing import Any

from localplug_blackbox.box import Box
from localplug_blackbox.contract import Searcher

SEARCHERS = {
    "directional-attacks": "directional:DirectionalAttacks",
    "zeroth-order": "zeroth_order:ZerothOrderSearch",
    "bayesian": "bayesian:BayesianSearch",
    "mean-descent": "mean_descent:MeanDescent",
    "root": "root:ROOT",
    "cma": "cma_es:CMAES",
    "nevergrad": "nevergrad_search:NevergradSearch",
    "sobol": "sobol:SobolSearch",
}
"""{name: where its class is}; its options are those of the class."""


def searcher(name: str, box: Box, **options: Any) -> Searcher:
    """A searcher by name, with its options.

    Raises:
        ValueError: there is no such name, or an option is outside its range.
        TypeError: it has no such option; says which it has.
        ImportError: the library that it uses is not installed.

    Example:
        >>> from localplug_blackbox import Box
        >>> searcher("sobol", Box([0.0], [1.0]), seed=1).ask(2).shape
        torch.Size([2, 1])
    """
    if name not in SEARCHERS:
        raise ValueError(f"there is no searcher {name!r}; there are {', '.join(SEARCHERS)}")
    module, attribute = SEARCHERS[name].split(":")
    cls = getattr(importlib.import_module(f"localplug_blackbox.{module}"), attribute)
    known = [option for option in inspect.signature(cls).parameters if option != "box"]
    if unknown := sorted(set(options) - set(known)):
        raise TypeError(f"{name} has no option {', '.join(unknown)}, but {', '.join(known)}")
    made: Searcher = cls(box, **options)
    return made
