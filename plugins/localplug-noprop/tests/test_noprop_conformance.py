"""Everything of the distribution against the conformance kit, as `localplug check localplug-noprop` does."""

from localplug_noprop.conformance import *  # noqa: F403
