"""localplug inside an unmodified Hugging Face Trainer: `callbacks=[LocalPlugCallback("mezo", eps=1e-3)]`."""

from typing import TYPE_CHECKING, Any

import localplug

if TYPE_CHECKING:
    from localplug_transformers.callback import LocalPlugCallback
    from localplug_transformers.generation import ExactMatch, TokenF1

__all__ = ["ExactMatch", "LocalPlugCallback", "TokenF1"]


def __getattr__(name: str) -> Any:
    if name == "LocalPlugCallback":  # on first use: the plugin list must not import transformers
        from localplug_transformers.callback import LocalPlugCallback

        return LocalPlugCallback
    if name in ("ExactMatch", "TokenF1"):
        from localplug_transformers import generation

        return getattr(generation, name)
    raise AttributeError(f"module 'localplug_transformers' has no attribute {name!r}")


@localplug.hookimpl
def localplug_commands():
    return {"demo": "localplug_transformers.demo:main"}
