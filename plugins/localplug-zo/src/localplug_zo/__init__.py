"""Zeroth-order fine-tuning for localplug: train with forward passes alone.

mezo (MeZO, in localplug_zo.mezo; its released code bit for bit in localplug_zo.strict) and the update rule zo-sgd-sign.
"""

import localplug


@localplug.hookimpl
def localplug_methods():
    return {"mezo": "localplug_zo.mezo:MeZO"}


@localplug.hookimpl
def localplug_update_rules():
    return {"zo-sgd-sign": "localplug_zo.sign:SignSGD"}
