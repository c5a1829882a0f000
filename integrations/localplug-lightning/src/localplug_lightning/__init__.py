"""localplug as a strategy of an unmodified Lightning Trainer: `strategy=LocalPlugStrategy("mezo", eps=1e-3)`.

Importing this package registers `strategy="localplug_mezo"` and so on, and `strategy="localplug_mezo_ddp"` for several
processes, for each installed method, with the package `lightning`, and with `pytorch_lightning` if that was imported
before (`localplug_lightning.pl` is for it alone).
"""

import sys

from localplug_lightning.strategy import make

__all__ = ["LocalPlugDDPStrategy", "LocalPlugStrategy"]

LocalPlugStrategy, LocalPlugDDPStrategy = make("lightning.pytorch")
if "pytorch_lightning" in sys.modules:
    import localplug_lightning.pl  # noqa: F401
