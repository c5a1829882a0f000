"""Everything of the distribution against the conformance kit, as `localplug check localplug-updates` does."""

from localplug_updates.conformance import *  # noqa: F403
