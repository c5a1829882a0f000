"""Everything of the distribution against the conformance kit, as `localplug check localplug-rewards` does."""

from localplug_rewards.conformance import *  # noqa: F403
