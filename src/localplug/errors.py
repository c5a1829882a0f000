"""What can go wrong in the ecosystem. What the user gave wrongly is a ValueError or a TypeError instead."""


class LocalPlugError(Exception):
    """Base of everything below."""


class UnknownName(LocalPlugError):
    """Nobody installed offers that name."""


class DuplicateName(LocalPlugError):
    """Two installed distributions offer the same name, so that neither may answer."""


class PluginFailed(LocalPlugError):
    """The plugin is installed, but importing, validating or asking it raised; the cause is chained."""


class Unsupported(LocalPlugError):
    """This model, method and trainer cannot train together; the message lists every reason."""


class EngineError(LocalPlugError):
    """A step went round the engine: no evaluation reached it, or a real backward pass did reach the weights."""
