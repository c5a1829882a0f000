"""Two-layer ReLU networks by convex optimization, for localplug: solved from the whole data set, without steps.

relu-admm (localplug_convex.admm), squared loss, sampled activation patterns; relu-scp (localplug_convex.scp), any convex
loss, sampled neurons. Reference for both: Bai, Gautam, Sojoudi: Efficient Global Optimization of Two-Layer ReLU Networks,
2022, arXiv:2201.01965.
"""

import localplug


@localplug.hookimpl
def localplug_solvers():
    return {"relu-admm": "localplug_convex.admm:ADMM", "relu-scp": "localplug_convex.scp:SampledConvex"}
