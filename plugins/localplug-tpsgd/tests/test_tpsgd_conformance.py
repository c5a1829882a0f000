"""Everything of the distribution against the conformance kit, as `localplug check localplug-tpsgd` does."""

from localplug_tpsgd.conformance import *  # noqa: F403
