"""Target projection for localplug: every layer learns from a random projection of the label, layer by layer.

tpsgd (localplug_tpsgd.tpsgd), the target generator projection, the local losses l1 and l2.
"""

import localplug


@localplug.hookimpl
def localplug_methods():
    return {"tpsgd": "localplug_tpsgd.tpsgd:TPSGD"}


@localplug.hookimpl
def localplug_target_generators():
    return {"projection": "localplug_tpsgd.projection:TargetProjection"}


@localplug.hookimpl
def localplug_local_losses():
    return {"l1": "localplug_tpsgd.losses:l1", "l2": "localplug_tpsgd.losses:l2"}
