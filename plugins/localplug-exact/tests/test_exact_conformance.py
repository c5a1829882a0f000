"""Everything of the distribution against the conformance kit, as `localplug check localplug-exact` does."""

from localplug_exact.conformance import *  # noqa: F403
