"""Search for localplug where only values can be asked for: a process's input, a model's latent, a handful of options.

Importing this imports no torch; a name comes with its first use. Each file is one concern:

    contract, box, generation, search     the contract of all searchers, and their names
    directional, attacks, polling         direct search with attacks, and what its end certifies
    zeroth_order, cma_es, nevergrad_search, sobol     further searchers
    bayesian, infinite_width              Bayesian optimization, with a network's kernel
    past_values, gaussian_process, mean_descent, root the next point from past values, without evaluations
    flow, pipelines                       the input of a process, by its residual
    latent                                the latent program of some examples
    past_runs, command                    `localplug propose`: the next run from a table of past ones
"""

import importlib
from typing import TYPE_CHECKING, Any

import localplug

if TYPE_CHECKING:
    from localplug_blackbox.attacks import gradient_attack
    from localplug_blackbox.bayesian import BayesianSearch
    from localplug_blackbox.box import Box
    from localplug_blackbox.cma_es import CMAES
    from localplug_blackbox.contract import Best, Searcher, minimize
    from localplug_blackbox.directional import DirectionalAttacks
    from localplug_blackbox.flow import FlowOpt, FlowResult, FlowStep, step_bound
    from localplug_blackbox.infinite_width import infinite_width_kernel
    from localplug_blackbox.latent import LatentProgram, search_latent
    from localplug_blackbox.mean_descent import MeanDescent
    from localplug_blackbox.nevergrad_search import NevergradSearch
    from localplug_blackbox.pipelines import euler_inversion, euler_process, pipeline_process
    from localplug_blackbox.polling import Certificate
    from localplug_blackbox.root import ROOT
    from localplug_blackbox.search import searcher
    from localplug_blackbox.sobol import SobolSearch
    from localplug_blackbox.zeroth_order import ZerothOrderSearch

_HOME = {
    "BayesianSearch": "bayesian",
    "Best": "contract",
    "Box": "box",
    "CMAES": "cma_es",
    "Certificate": "polling",
    "DirectionalAttacks": "directional",
    "FlowOpt": "flow",
    "FlowResult": "flow",
    "FlowStep": "flow",
    "LatentProgram": "latent",
    "MeanDescent": "mean_descent",
    "NevergradSearch": "nevergrad_search",
    "ROOT": "root",
    "Searcher": "contract",
    "SobolSearch": "sobol",
    "ZerothOrderSearch": "zeroth_order",
    "euler_inversion": "pipelines",
    "euler_process": "pipelines",
    "gradient_attack": "attacks",
    "infinite_width_kernel": "infinite_width",
    "minimize": "contract",
    "pipeline_process": "pipelines",
    "search_latent": "latent",
    "searcher": "search",
    "step_bound": "flow",
}

__all__ = [
    "BayesianSearch",
    "Best",
    "Box",
    "CMAES",
    "Certificate",
    "DirectionalAttacks",
    "FlowOpt",
    "FlowResult",
    "FlowStep",
    "LatentProgram",
    "MeanDescent",
    "NevergradSearch",
    "ROOT",
    "Searcher",
    "SobolSearch",
    "ZerothOrderSearch",
    "euler_inversion",
    "euler_process",
    "gradient_attack",
    "infinite_width_kernel",
    "minimize",
    "pipeline_process",
    "search_latent",
    "searcher",
    "step_bound",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@localplug.hookimpl
def localplug_commands():
    return {"propose": "localplug_blackbox.command:main"}
