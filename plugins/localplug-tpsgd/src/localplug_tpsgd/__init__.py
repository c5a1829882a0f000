"""Learning from projected targets and errors for localplug: tpSGD, DRTP, DFA and FA, one file each.

The target generator projection, the local losses l1 and l2. What they share: feedback (fixed random matrices) and recurrent
(layers truncated to one step).
"""

import localplug


@localplug.hookimpl
def localplug_methods():
    return {
        "tpsgd": "localplug_tpsgd.tpsgd:TPSGD",
        "drtp": "localplug_tpsgd.drtp:DRTP",
        "dfa": "localplug_tpsgd.dfa:DFA",
        "fa": "localplug_tpsgd.fa:FA",
    }


@localplug.hookimpl
def localplug_target_generators():
    return {"projection": "localplug_tpsgd.projection:TargetProjection"}


@localplug.hookimpl
def localplug_local_losses():
    return {"l1": "localplug_tpsgd.losses:l1", "l2": "localplug_tpsgd.losses:l2"}
