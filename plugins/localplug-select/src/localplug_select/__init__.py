"""What to train, for localplug: masks of single weights, and which units.

sara, magnitude (selectors, for `parameters=` of any zeroth-order method), low-rank (an update that shrinks singular values of
what a mask lets train), sara (the method of both). SaRA: arXiv:2409.06633.

`choose` answers "which layers should I train?" by forward passes alone: scores of units, combined as in RoBoT,
arXiv:2403.07591.
"""

import importlib
from typing import TYPE_CHECKING, Any

import localplug

if TYPE_CHECKING:
    from localplug_select.choosing import choose
    from localplug_select.chosen import ChosenUnits
    from localplug_select.combination import Combination, combine
    from localplug_select.scores import SCORES, Scoring
    from localplug_select.trial import Trial

_HOME = {
    "choose": "choosing",
    "ChosenUnits": "chosen",
    "Combination": "combination",
    "combine": "combination",
    "SCORES": "scores",
    "Scoring": "scores",
    "Trial": "trial",
}
__all__ = ["SCORES", "ChosenUnits", "Combination", "Scoring", "Trial", "choose", "combine"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'localplug_select' has no attribute {name!r}")
    home = importlib.import_module(f"localplug_select.{_HOME[name]}")
    value = getattr(home, name)
    globals()[name] = value
    return value


@localplug.hookimpl
def localplug_selectors():
    return {"sara": "localplug_select.sara:SaRA", "magnitude": "localplug_select.magnitude:Magnitude"}


@localplug.hookimpl
def localplug_update_rules():
    return {"low-rank": "localplug_select.low_rank:LowRank"}


@localplug.hookimpl
def localplug_methods():
    return {"sara": "localplug_select.sara:sara"}
