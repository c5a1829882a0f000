"""The strategies for code that imports `pytorch_lightning`: its Trainer does not take the classes of `lightning`."""

from localplug_lightning.strategy import make

__all__ = ["LocalPlugDDPStrategy", "LocalPlugStrategy"]

LocalPlugStrategy, LocalPlugDDPStrategy = make("pytorch_lightning")
