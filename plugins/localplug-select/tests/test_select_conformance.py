"""Everything of the distribution against the conformance kit, as `localplug check localplug-select` does."""

from localplug_select.conformance import *  # noqa: F403
