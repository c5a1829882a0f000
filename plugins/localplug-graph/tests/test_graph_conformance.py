"""Everything of the distribution against the conformance kit, as `localplug check localplug-graph` does."""

from localplug_graph.conformance import *  # noqa: F403
