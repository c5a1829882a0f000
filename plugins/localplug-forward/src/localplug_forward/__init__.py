"""The Forward-Forward family for localplug: Forward-Forward, Mono-Forward, CaFo, PEPITA, SoftHebb, PhyLL.

ff (localplug_forward.forward_forward), mono-forward (localplug_forward.mono_forward), cafo (localplug_forward.cafo),
pepita (localplug_forward.pepita), softhebb (localplug_forward.softhebb), phyll (localplug_forward.phyll).
"""

import localplug


@localplug.hookimpl
def localplug_methods():
    return {
        "ff": "localplug_forward.forward_forward:ForwardForward",
        "mono-forward": "localplug_forward.mono_forward:MonoForward",
        "cafo": "localplug_forward.cafo:CaFo",
        "pepita": "localplug_forward.pepita:PEPITA",
        "softhebb": "localplug_forward.softhebb:SoftHebb",
        "phyll": "localplug_forward.phyll:PhyLL",
    }
