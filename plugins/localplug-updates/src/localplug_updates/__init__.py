"""Update rules for localplug, and hyper-parameters that tune themselves.

Optimizers, for any trainer: lion (localplug_updates.lion), m-fac (localplug_updates.m_fac), schedule-free
(localplug_updates.schedule_free). Updates of the zeroth order: lion-seeds (localplug_updates.seed_lion), prodigy and
d-adaptation (localplug_updates.learning_rate_free). localplug_updates.self_tuning is for the user's own hands.
"""

import localplug


@localplug.hookimpl
def localplug_update_rules():
    return {
        "lion": "localplug_updates.lion:Lion",
        "lion-seeds": "localplug_updates.seed_lion:SeedLion",
        "prodigy": "localplug_updates.learning_rate_free:Prodigy",
        "d-adaptation": "localplug_updates.learning_rate_free:DAdaptation",
        "schedule-free": "localplug_updates.schedule_free:ScheduleFree",
        "m-fac": "localplug_updates.m_fac:MFAC",
    }
