"""Everything of the distribution against the conformance kit, as `localplug check localplug-greedy` does."""

from localplug_greedy.conformance import *  # noqa: F403
