"""Everything of the distribution against the conformance kit, as `localplug check localplug-zo` does."""

from localplug_zo.conformance import *  # noqa: F403
