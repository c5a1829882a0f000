"""The strategy for code that imports `pytorch_lightning`: its Trainer does not take the classes of `lightning`."""

from localplug_lightning.strategy import make

__all__ = ["LocalPlugStrategy"]

LocalPlugStrategy = make("pytorch_lightning")
