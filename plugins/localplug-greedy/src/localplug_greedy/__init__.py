"""Local losses with auxiliary heads for localplug: predsim, DGL and InfoPro, for classifiers and for language models.

predsim (localplug_greedy.predsim), dgl (localplug_greedy.dgl), infopro (localplug_greedy.infopro).
"""

import localplug


@localplug.hookimpl
def localplug_methods():
    return {
        "predsim": "localplug_greedy.predsim:PredSim",
        "dgl": "localplug_greedy.dgl:DGL",
        "infopro": "localplug_greedy.infopro:InfoPro",
    }
