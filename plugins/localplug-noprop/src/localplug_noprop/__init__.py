"""NoProp for localplug: blocks that learn to denoise the label, each by itself.

noprop-dt (localplug_noprop.dt), noprop-ct (localplug_noprop.ct) and noprop-fm (localplug_noprop.fm), for the networks in
localplug_noprop.network.
"""

import localplug


@localplug.hookimpl
def localplug_methods():
    return {
        "noprop-dt": "localplug_noprop.dt:NoPropDT",
        "noprop-ct": "localplug_noprop.ct:NoPropCT",
        "noprop-fm": "localplug_noprop.fm:NoPropFM",
    }
