"""Everything of the distribution against the conformance kit, as `localplug check localplug-experts` does."""

from localplug_experts.conformance import *  # noqa: F403
