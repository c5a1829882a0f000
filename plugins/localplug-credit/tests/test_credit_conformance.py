"""Everything of the distribution against the conformance kit, as `localplug check localplug-credit` does."""

from localplug_credit.conformance import *  # noqa: F403
