"""Everything of the distribution against the conformance kit, as `localplug check localplug-convex` does."""

from localplug_convex.conformance import *  # noqa: F403
